"""Run a page of nbs/ with other parameters, as papermill does, but in a process that is forked from this one.

A kernel starts in seconds, because it imports everything again; this takes none of them. That pages run through
papermill itself is tested with `run_cell` and with the audit."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from execnb.nbio import mk_cell, read_nb
from execnb.shell import CaptureShell

KINDS = ("text/markdown", "text/html", "text/plain")


def run_page(path, **parameters):
    "Run a page from top to bottom; all text that it shows"
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(max_workers=1, mp_context=fork) as pool:
        return pool.submit(_run_here, Path(path).resolve(), parameters).result()


def _run_here(path, parameters):
    "Run a page in this process, which is given up afterwards"
    os.chdir(path.parent)
    notebook = read_nb(path)
    (place,) = [number for number, cell in enumerate(notebook.cells) if _holds_parameters(cell)]
    lines = [f"{name} = {value!r}" for name, value in parameters.items()]
    notebook.cells.insert(place + 1, mk_cell("\n".join(lines)))
    shell = CaptureShell(path)
    shell.run_all(notebook, exc_stop=True)
    return "\n".join(text for cell in notebook.cells for text in _texts(cell))


def _holds_parameters(cell):
    "Whether papermill puts parameters behind this cell"
    return "parameters" in cell.get("metadata", {}).get("tags", [])


def _texts(cell):
    "The texts among the outputs of a cell"
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        for kind in KINDS:
            if kind in data:
                yield "".join(data[kind])

"Small grids for the tests, run in a process of their own."

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import psutil

from ddrobust_nb.grid.notebook import is_done
from ddrobust_nb.grid.plan import plan_grid
from ddrobust_nb.grid.tables import (
    rows_of_plan,
)

ROOT = Path(__file__).resolve().parents[2]


TINY = dict(
    dataset="digits",
    n_models=1,
    n_test=20,
    network="ConvNetD3-w8",
    distill_network="ConvNetD3-w8",
    attacks="fgsm@8/255,pgd@8/255@3",
    recipe={"epochs": 40},
)


FOUR = [
    dict(TINY, method="dm", ipc=[1, 2], options={"iterations": 3, "batch_real": 4}),
    dict(TINY, method="random", ipc=[1, 2]),
]


OPTIONS = ["--device", "cpu", "--workers", "2", "--threads", "1"]


def run_command(store, blocks=FOUR, **more):
    "A grid in a process of its own, with everything it starts marked"
    tag = f"grid-{os.getpid()}-{time.monotonic_ns()}"
    env = (
        {k: v for k, v in os.environ.items() if k not in ("DDROBUST_STORE",)}
        | dict(DDROBUST_TEST_MARK=tag, DDROBUST_AUTOSAVE="0", DDROBUST_COMPILE="never", SPT_NOENV="1")
        | more
    )  # a changed title would hide the mark
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "ddrobust_nb.grid.command",
            "run",
            json.dumps(blocks),
            "--store",
            str(store),
            *OPTIONS,
        ],
        env=env,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return process, tag


def processes_of(tag):
    "Every process that was started by a run"
    found = []
    for p in psutil.process_iter():
        try:
            if p.environ().get("DDROBUST_TEST_MARK") == tag:
                found.append(p)
        except psutil.Error:
            pass
    return found


def gone(tag, seconds=90):
    "Wait until nothing of a run is left"
    until = time.monotonic() + seconds
    while (left := processes_of(tag)) and time.monotonic() < until:
        time.sleep(0.2)
    assert not left, f"still there: {[' '.join(p.cmdline())[:100] for p in left]}"


def finish(store, **more):
    process, tag = run_command(store, **more)
    printed = process.communicate(timeout=600)[0]
    assert process.returncode == 0, printed
    gone(tag)
    return printed


def results(store, blocks=FOUR):
    "Rows without what differs from run to run"
    plan = plan_grid(blocks, store=store, device="cpu")
    assert all(is_done(c.out) for c in plan.cells)
    rows = [
        {k: v for k, v in asdict(r).items() if k not in ("seconds", "peak_mb")} for r in rows_of_plan(plan)
    ]
    return sorted(rows, key=lambda r: (r["method"], r["ipc"], r["attack"]))


def made(store):
    "Every artefact and the inode of its card: another inode, and it was made again"
    return {str(p.parent.relative_to(store)): p.stat().st_ino for p in Path(store).glob("*/[!.]*/card.json")}

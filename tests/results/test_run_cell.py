"run_cell.ipynb as a user runs it: papermill in a process of its own, with values other than the defaults, read back from the rows."

import ast
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file

from ddrobust_nb.results.parameters import PARAMETERS, TEXT
from ddrobust_nb.results.reading import read_results
from ddrobust_nb.results.rows import Result

NBS = Path(__file__).resolve().parents[2] / "nbs"
NOTEBOOK = NBS / "run_cell.ipynb"


def environment(**more):
    "Nothing of this machine's settings, and one thread: the networks are tiny"
    keep = {k: v for k, v in os.environ.items() if not k.startswith("DDROBUST_")}
    return keep | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "DDROBUST_STRICT": "1"} | more


def command(*arguments):
    return [sys.executable, "-m", "papermill", *map(str, arguments), "--no-progress-bar"]


def papermill(*arguments, **more):
    "papermill in the folder of the notebook, as the README says"
    return subprocess.run(
        command(*arguments),
        cwd=NBS,
        env=environment(**more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
    )


def sha(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def cells(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))["cells"]


def source(cell):
    return "".join(cell["source"])


def errors(cell):
    return [o for o in cell.get("outputs", []) if o["output_type"] == "error"]


def finished(path):
    return (m := json.loads(Path(path).read_text())["metadata"]["papermill"])["exception"] is None and m[
        "end_time"
    ]


def tagged(path, tag):
    return [i for i, c in enumerate(cells(path)) if tag in c["metadata"].get("tags", [])]


def snapshot(folder):
    return {
        str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.stat().st_size)
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def rows(folder):
    return [
        {k: v for k, v in row.items() if k != "commit"}
        for row in json.loads((folder / "results.json").read_text(encoding="utf-8"))
    ]


def lasting(rows):
    return [{k: v for k, v in row.items() if k not in ("seconds", "peak_mb")} for row in rows]


# The notebook as a file


def declared():
    "The parameters of the notebook: name -> (type, default, help)"
    (cell,) = [c for c in cells(NOTEBOOK) if "parameters" in c["metadata"].get("tags", [])]
    found = {}
    for node, line in zip(ast.parse(source(cell)).body, source(cell).splitlines()):
        name, kind = (
            (node.target.id, node.annotation.id)
            if isinstance(node, ast.AnnAssign)
            else (node.targets[0].id, re.search(r"# type: (\w+)", line)[1])
        )
        found[name] = (
            kind,
            ast.literal_eval(node.value),
            re.sub(r"^(type: \w+)? *", "", line.split("  # ", 1)[1]),
        )
    return found


def test_parameters_of_the_notebook_are_those_of_the_package():
    "Same names, same order, same defaults, types that fit; and a sentence each"
    found = declared()
    assert list(found) == list(PARAMETERS)
    assert {name: default for name, (_, default, _) in found.items()} == PARAMETERS
    for name, (kind, default, text) in found.items():
        assert kind == ("str" if name in TEXT else "dict" if name in ("options", "recipe") else "int")
        assert default is None or type(default).__name__ == kind
        assert len(text) > 15


def test_the_tag_is_there():
    "Without it papermill injects above everything and the defaults silently run; nbdev_clean keeps only allowed keys"
    (place,) = tagged(NOTEBOOK, "parameters")
    assert not tagged(NOTEBOOK, "injected-parameters")
    after = [source(c) for c in cells(NOTEBOOK)[place + 1 :] if c["cell_type"] == "code"]
    assert "given_parameters(globals())" in after[0], "the next cell checks everything"


def test_no_logic_in_the_notebook():
    "What the notebook calls is in the package; it defines nothing itself"
    for cell in cells(NOTEBOOK):
        if cell["cell_type"] == "code":
            assert not [
                n for n in ast.walk(ast.parse(source(cell))) if isinstance(n, (ast.FunctionDef, ast.ClassDef))
            ]


def test_help_lists_every_parameter():
    done = papermill("--help-notebook", NOTEBOOK)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    for name, (kind, default, text) in declared().items():
        shown = f'"{default}"' if isinstance(default, str) else default
        assert f"{name}: {kind} (default {shown}) {' '.join(text.split())}" in said, name


# A good run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("run cell ö")


@pytest.fixture(scope="module")
def arguments(folder):
    "Every parameter that can have a value other than its default and still be small"
    (folder / "data").mkdir()
    (folder / "data" / "note.txt").write_text("a data root must hold something")
    values = dict(
        ipc=2,
        data_root=folder / "data",
        network="ConvNetD3-w16",
        distill_network="ConvNetD3-w8",
        attacks="fgsm@4/255,pgd@8/255@3",
        n_test=20,
        n_models=1,
        select="best_test",
        seed=3,
        device="cpu",
        store=folder / "störe",
        out=folder / "out ü",
    )
    return [x for name, value in values.items() for x in ("-p", name, value)] + [
        "-y",
        "options: {iterations: 2, batch_real: 4, init: noise}",
    ]


@pytest.fixture(scope="module")
def run(folder, arguments):
    "One run with these values"
    before = sha(NOTEBOOK)
    done = papermill(NOTEBOOK.name, folder / "first 1.ipynb", *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    assert sha(NOTEBOOK) == before, "run_cell.ipynb itself is unchanged"
    return folder


def test_values_arrive_in_the_rows(run):
    "Read in the rows, not in the notebook: values that are injected in the wrong place change nothing"
    found = [r for r in rows(run / "out ü") if r["method"] == "dm"]
    assert [(r["attack"], r["eps"], r["steps"]) for r in found] == [("fgsm", "4/255", 1), ("pgd", "8/255", 3)]
    for r in found:
        assert (r["dataset"], r["ipc"], r["network"], r["distill_network"], r["protocol"], r["select"]) == (
            "digits",
            2,
            "ConvNetD3-w16",
            "ConvNetD3-w8",
            "quick",
            "best_test",
        )
        assert (r["set_seed"], r["seed"], r["n"], r["n_clean"], r["device"], r["best"]) == (
            3,
            300,
            20,
            500,
            "cpu",
            True,
        )
        assert 0 <= r["robust"] <= r["clean_n"] <= 1 and r["gradients"] > 0
    assert (
        json.loads((run / "out ü" / "set-dm" / "set.json").read_text())["config"]
        | dict(iterations=2, batch_real=4, init="noise")
        == json.loads((run / "out ü" / "set-dm" / "set.json").read_text())["config"]
    )


def test_rows_have_every_field(run):
    names = list(Result.__dataclass_fields__)
    assert all(list(row) == names for row in json.loads((run / "out ü" / "results.json").read_text()))
    assert len(read_results(run / "out ü")) == len(rows(run / "out ü")) == 4, (
        "two attacks, for the method and for random beside it"
    )


def test_files_and_outputs(run):
    "What the cell leaves, and what the notebook shows"
    out, notebook = run / "out ü", cells(run / "first 1.ipynb")
    assert {p.name for p in out.iterdir()} >= {
        "results.json",
        "flags.safetensors",
        "cell.json",
        "set-dm",
        "model-dm-seed300.safetensors",
        "figures",
    }
    flags = load_file(out / "flags.safetensors")
    assert all(
        flags[r["key"]].double().mean().item() == r["robust"] and len(flags[r["key"]]) == 20
        for r in rows(out)
    )
    assert finished(run / "first 1.ipynb") and not [e for c in notebook for e in errors(c)]
    (place,) = tagged(run / "first 1.ipynb", "parameters")
    assert tagged(run / "first 1.ipynb", "injected-parameters") == [place + 1]
    pictures = [o for c in notebook for o in c.get("outputs", []) if "image/png" in o.get("data", {})]
    text = json.dumps([c.get("outputs", []) for c in notebook])
    assert len(pictures) >= 5, "distilled images, random ones, training, robustness, spectra"
    assert "FGSM" in text and "random" in text
    assert "Traceback" not in text and "stderr" not in text, "no warning of a library in what a reader sees"


def test_again_it_comes_from_the_cache(run, arguments):
    "The short form, its notebook on stdout: nothing is computed, the same rows"
    store, before, first = snapshot(run / "störe"), sha(NOTEBOOK), rows(run / "out ü")
    began = time.monotonic()
    done = papermill(NOTEBOOK.name, *arguments)
    spent = time.monotonic() - began
    assert done.returncode == 0, done.stderr[-3000:]
    (run / "short.ipynb").write_text(done.stdout, encoding="utf-8")
    assert finished(run / "short.ipynb") and not [e for c in cells(run / "short.ipynb") for e in errors(c)]
    assert rows(run / "out ü") == first, "seconds and memory too: they are those of the work"
    assert snapshot(run / "störe") == store and sha(NOTEBOOK) == before
    work = [
        c["metadata"]["papermill"]["duration"] or 0
        for c in cells(run / "short.ipynb")
        if c["cell_type"] == "code"
    ]
    assert sum(sorted(work)[:-1]) < 30 and spent < 120, "imports aside, seconds"


def test_method_dataset_and_protocol(folder):
    "The parameters that the first run left at their defaults"
    for half in ("train", "test"):
        for k, name in enumerate(("a b", "ö")):
            (place := folder / "bilder ☃" / half / name).mkdir(parents=True)
            for i in range(3):
                Image.new("L", (8, 8), 40 + 120 * k + 10 * i).save(place / f"{i}.png")
    done = papermill(
        NOTEBOOK.name,
        folder / "second.ipynb",
        "-p",
        "method",
        "random",
        "-p",
        "dataset",
        f"folder:{folder / 'bilder ☃'}",
        "-p",
        "protocol",
        "full",
        "-p",
        "network",
        "ConvNetD3-w4",
        "-p",
        "n_models",
        2,
        "-p",
        "attacks",
        "none",
        "-p",
        "store",
        folder / "störe 2",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (out,) = (folder / "störe 2" / "cells").iterdir()
    found = rows(out)
    assert [
        (r["method"], r["ipc"], r["protocol"], r["select"], r["seed"], r["attack"], r["n"], r["robust"])
        for r in found
    ] == [("random", 1, "full", "last", s, "none", 6, None) for s in (0, 1)]
    assert found[0]["dataset"] == "folder:bilder ☃" and sum(r["best"] for r in found) == 1


# Bad runs


def refused(folder, say, *arguments):
    "papermill ends with 1, one line says why, nothing is computed and nothing written"
    notebook, store = folder / "bad.ipynb", folder / "bad store"
    done = papermill(NOTEBOOK.name, notebook, "-p", "store", store, *arguments)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("InputError: ")]
    assert len(lines) == 1 and re.search(say, lines[0]), done.stderr[-2000:]
    assert done.stderr.rstrip().endswith(lines[0]), "it is the last thing said"
    assert not store.exists()
    code = [c for c in cells(notebook) if c["cell_type"] == "code"]
    (stopped,) = [i for i, c in enumerate(code) if errors(c)]
    assert not [c for c in code[stopped + 1 :] if c["outputs"]], "no cell has run after it"
    traceback = errors(code[stopped])[0]["traceback"]
    assert len(traceback) == 1 and "\n" not in traceback[0], "the reader sees one line, no traceback"


def test_misspelt(folder):
    refused(folder, "unknown parameter 'methd': did you mean 'method'", "-p", "methd", "dm")


@pytest.mark.slow
@pytest.mark.parametrize(
    "say, arguments",
    (
        ("ipc must be a whole number", ("-p", "ipc", "0")),
        ("ipc must be a whole number", ("-p", "ipc", "True")),
        ("ipc must be .*got '1'", ("-r", "ipc", "1")),
        ("iterations must be a whole number", ("-y", "options: {iterations: many}")),
        ("options must be a mapping", ("-p", "options", "iterations=5")),
        ("n_test must be", ("-p", "n_test", "1.5")),
        ("seed must be", ("-p", "seed", "a")),
        ("out must be text.*-r out 5", ("-p", "out", "5")),
        ("did you mean 'digits'", ("-p", "dataset", "digits ")),
        ("cuda:77", ("-p", "device", "cuda:77")),
        ("did you mean 'fgsm'", ("-p", "attacks", "fgms@8/255")),
        ("store", ("-p", "store", "/dev/null/x")),
        ("distilled", ("-p", "method", "dm", "-p", "distilled", "nowhere")),
    ),
)
def test_refused(folder, say, arguments):
    refused(folder, say, *arguments)


# Ready sets and models


@pytest.mark.slow
def test_ready_set_and_model(run):
    "A set and a model of an earlier run: nothing is distilled or trained again, and what made them is said"
    out, common = (
        run / "out ü",
        (
            "-p",
            "network",
            "ConvNetD3-w16",
            "-p",
            "n_models",
            1,
            "-p",
            "n_test",
            20,
            "-p",
            "attacks",
            "fgsm@4/255",
        ),
    )
    done = papermill(
        NOTEBOOK.name,
        run / "set.ipynb",
        "-p",
        "distilled",
        out / "set-dm",
        *common,
        "-p",
        "store",
        run / "set store",
        "-p",
        "out",
        run / "set out",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert ("dm", 2) in {(r["method"], r["ipc"]) for r in rows(run / "set out")}
    done = papermill(
        NOTEBOOK.name,
        run / "model.ipynb",
        "-p",
        "checkpoint",
        out / "model-dm-seed300.safetensors",
        *common,
        "-p",
        "store",
        run / "model store",
        "-p",
        "out",
        run / "model out",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (found,) = rows(run / "model out")
    earlier = next(r for r in rows(out) if (r["method"], r["attack"]) == ("dm", "fgsm"))
    assert (found["method"], found["ipc"], found["clean"]) == ("dm", 2, earlier["clean"])
    assert {p.name for p in (run / "model store").iterdir()} == {"attack"}


@pytest.mark.slow
def test_unknown_set_and_model(run):
    "Without a card: unknown and null, never the defaults"
    for name, file in (
        ("distilled", "set-random/set.safetensors"),
        ("checkpoint", "model-random-seed300.safetensors"),
    ):
        (run / "bare.safetensors").write_bytes((run / "out ü" / file).read_bytes())
        out = run / f"bare {name}"
        done = papermill(
            NOTEBOOK.name,
            run / f"bare {name}.ipynb",
            "-p",
            name,
            run / "bare.safetensors",
            "-p",
            "network",
            "ConvNetD3-w16",
            "-p",
            "n_models",
            1,
            "-p",
            "attacks",
            "none",
            "-p",
            "store",
            run / f"bare {name} store",
            "-p",
            "out",
            out,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        (found,) = rows(out)
        assert (found["method"], found["ipc"]) == ("unknown", None) and found["clean"] > 0.5, (
            "trained in earnest"
        )


# Killed


def kernel_of(process):
    "The notebook's kernel: a child of papermill"
    said = subprocess.run(
        ["ps", "-o", "pid=,args=", "--ppid", str(process.pid)], capture_output=True, text=True
    ).stdout.splitlines()
    return next((int(line.split()[0]) for line in said if "ipykernel" in line), None)


def killed_when(condition, *arguments):
    "Start a run and kill -9 its kernel once the condition holds; True when it got that far"
    process = subprocess.Popen(
        command(*arguments),
        cwd=NBS,
        env=environment(DDROBUST_AUTOSAVE="0"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    hit = False
    try:
        while process.poll() is None:
            if condition() and (kernel := kernel_of(process)):
                os.kill(kernel, signal.SIGKILL)
                hit = True
                break
            time.sleep(0.005)
        assert process.wait(timeout=300) != 0 or not hit
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    return hit


@pytest.mark.slow
def test_killed_and_taken_up_again(run, arguments):
    "kill -9 of the kernel while it distils, while it trains and while it attacks; the last run ends with the rows of an undisturbed one"
    store, out = run / "killed store", run / "killed out"
    own = [store if a == run / "störe" else out if a == run / "out ü" else a for a in arguments]
    own[own.index("options: {iterations: 2, batch_real: 4, init: noise}")] = (
        "options: {iterations: 40, batch_real: 4, init: noise}"
    )
    own[own.index("fgsm@4/255,pgd@8/255@3")] = "fgsm@4/255,pgd@8/255@200"
    calm = [run / "calm store" if a == store else run / "calm out" if a == out else a for a in own]
    done = papermill(NOTEBOOK.name, run / "calm.ipynb", *calm)
    assert done.returncode == 0, done.stderr[-3000:]
    for stage in ("distil", "train"):

        def begun(stage=stage):
            return any((store / stage).glob("*.state"))

        assert killed_when(begun, NOTEBOOK.name, run / "killed.ipynb", *own), f"killed in {stage}"
        assert not (out / "results.json").exists()
        assert begun(), "the state is there to go on from"

    def attacked():
        return any((store / "attack").glob("*/card.json"))

    assert killed_when(attacked, NOTEBOOK.name, run / "killed.ipynb", *own), "killed between attacks"
    kept = snapshot(store)
    done = papermill(NOTEBOOK.name, run / "killed.ipynb", *own, DDROBUST_AUTOSAVE="0")
    assert done.returncode == 0, done.stderr[-3000:]
    assert lasting(rows(out)) == lasting(rows(run / "calm out"))
    assert all(
        snapshot(store)[name] == stamp
        for name, stamp in kept.items()
        if "/." not in name and not name.endswith(".state")
    ), "what was finished was not made again"
    assert not list(store.rglob("*.state")), "nothing unfinished is left"

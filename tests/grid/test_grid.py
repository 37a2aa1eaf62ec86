"Grids: what is planned, what is run where, and that nothing is computed twice or lost, whoever is killed."

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from dataclasses import MISSING, asdict, fields, replace
from pathlib import Path

import pandas as pd
import psutil
import pytest
from PIL import Image

from ddrobust_nb.foundations.core import InputError
from ddrobust_nb.grid.command import command
from ddrobust_nb.grid.slurm import array_script, run_listed
from ddrobust_nb.grid.cost import estimate_cost, cell_stages
from ddrobust_nb.grid.leaderboard import check_submission, standings
from ddrobust_nb.grid.plan import expand_blocks, plan_grid
from ddrobust_nb.grid.machines import Machines
from ddrobust_nb.grid.notebook import is_done, rows_complete
from ddrobust_nb.grid.run import run_grid, shared_work
from ddrobust_nb.grid.cleanup import find_garbage, remove_garbage
from ddrobust_nb.grid.status import cell_state, is_locked, status
from ddrobust_nb.grid.tables import (
    DamagedRows,
    escape_latex,
    export_rows,
    rows_of_cells,
    rows_of_plan,
    rows_of_store,
)
from ddrobust_nb.attacks.checks import CheckCode
from ddrobust_nb.results.cell_rows import baseline_cell, run_stages, write_out
from ddrobust_nb.results.compare import cell_text, find_rows
from ddrobust_nb.results.lines import lines_of
from ddrobust_nb.results.paper import paper_results, paper_table
from ddrobust_nb.results.report import results_table
from ddrobust_nb.results.reading import read_results
from ddrobust_nb.results.rows import Result, digest_of, normal_recipe, write_results
from ddrobust_nb.results.store import alone, write_json

ROOT = Path(__file__).resolve().parents[2]
TINY = dict(
    dataset="digits",
    n_models=1,
    n_test=20,
    network="ConvNetD3-w8",
    distill_network="ConvNetD3-w8",
    attacks="fgsm@8/255,pgd@8/255@3",
)
FOUR = [
    dict(TINY, method="dm", ipc=[1, 2], options={"iterations": 3, "batch_real": 4}),
    dict(TINY, method="random", ipc=[1, 2]),
]
USUAL = ["--device", "cpu", "--workers", "2", "--threads", "1"]


# ---- plans


@pytest.fixture
def away(tmp_path, monkeypatch):
    "No dataset but the bundled one is here"
    (tmp_path / "no data").mkdir()
    monkeypatch.delenv("DDROBUST_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / "store"


@pytest.fixture
def paper_plan(away):
    return plan_grid("all", store=away, device="cpu")


def test_every_number_of_the_paper_is_planned_once(paper_plan):
    "Each row of the benchmark tables belongs to one planned cell and one of its settings; no planned cell is without a row"
    assert not [c.error for c in paper_plan.cells if c.error]
    offered = Counter()
    for c in (c for c in paper_plan.cells if not c.mixing):
        at = (c.cell.dataset, c.cell.method, c.cell.ipc, c.cell.network)
        offered.update(
            [(*at, "none", None, None), *((*at, t.attack, t.eps_255, t.steps) for t in c.cell.configs)]
        )
    assert set(offered.values()) == {1}
    number = lambda v, kind: None if pd.isna(v) else kind(v)
    used = set()
    for r in paper_results().itertuples():
        want = (
            r.dataset,
            r.method,
            number(r.ipc, int),
            r.network,
            r.attack,
            number(r.eps_255, float),
            number(r.steps, int),
        )
        assert offered[want] == 1, f"{want} of Table {r.table} is not planned"
        used.add(want[:4])
    assert {k[:4] for k in offered} == used


def test_every_number_of_the_mixing_tables_is_planned_once(paper_plan):
    runs = {c.cell.dataset: c.mixing for c in paper_plan.cells if c.mixing}
    for table in ("V", "XXVIII"):
        for r in paper_table(table).itertuples():
            run = runs[r.dataset]
            assert list(run.sets).count(r.method) == 1 and run.cell.network == r.network
            assert r.attack == "none" or [t.attack for t in run.cell.configs].count(r.attack) == 1
    assert sum(bool(c.mixing) for c in paper_plan.cells) == len(runs) == 2


@pytest.mark.parametrize(
    "name",
    [
        "demo",
        "mixing",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("table1", "subsets", "imagenet1k", "all")),
    ],
)
def test_what_a_named_grid_costs_is_said_before_anything_is_there(away, capsys, name):
    assert command(["run", name, "--dry-run", "--store", str(away), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    plan = plan_grid(name, store=away, device="cpu")
    assert (
        f"{len(plan.cells)} cells, {len(plan.cells)} with something to do: about" in said
        and "nothing was started" in said
    )
    assert not away.exists()


def test_products_and_exclusions():
    assert len(expand_blocks([dict(a=[1, 2], b=[3, 4, 5])])) == 6
    assert expand_blocks([dict(a=[1, 2]), dict(a=2)]) == [dict(a=1), dict(a=2)]
    assert expand_blocks([dict(a=[1, 2], b=[3, 4])], exclude=[dict(a=1, b=3), dict(b=4, a=[2])]) == [
        dict(a=1, b=4),
        dict(a=2, b=3),
    ]
    assert expand_blocks([dict(options={"x": [1, 2]})]) == [
        dict(options={"x": [1, 2]})
    ]  # a list inside an option is a value


def test_two_ways_to_say_the_same_are_one_cell(tmp_path):
    plan = plan_grid(
        [dict(method="dm", ipc=1), dict(method="dm", ipc=1, seed=0, protocol="quick")],
        store=tmp_path,
        device="cpu",
    )
    assert len(plan.cells) == 1


def test_one_wrong_cell_does_not_spoil_the_others(tmp_path):
    plan = plan_grid([dict(TINY, method=["dm", "dmm"], ipc=[1, 9999])], store=tmp_path, device="cpu")
    assert [bool(c.key) for c in plan.cells] == [True, False, False, False]
    assert "did you mean 'dm'" in plan.cells[2].error and "smallest class" in plan.cells[1].error


@pytest.mark.parametrize(
    "grid, text",
    [
        ("tabel1", "did you mean 'table1'"),
        ([dict(metod="dm")], "did you mean 'method'"),
        ([dict(method=[])], "method has no values"),
        ([dict(store="x")], "belongs to the whole grid"),
        ([dict(notebook="run_cel")], "did you mean 'run_cell'"),
        ({"method": "dm"}, "list of blocks"),
        (7, "list of blocks"),
    ],
)
def test_bad_grids(tmp_path, grid, text):
    with pytest.raises(InputError, match=text):
        plan_grid(grid, store=tmp_path)


def test_experts_are_paid_for_once(tmp_path):
    "MTT and TESLA at two IPCs read the same two experts; so do both IPCs of SRe2L its teacher"
    plan = plan_grid("demo", store=tmp_path, device="cpu")
    parts, sets, needs = shared_work(plan, plan.cells)
    assert len(parts) == 3 and not sets
    assert sorted(len(n) for n in needs.values()) == [0] * 6 + [1] * 2 + [2] * 4
    keys = [s[:2] for c in plan.cells for s in cell_stages(c.cell)]
    cost = estimate_cost(
        plan,
        speed={
            (n, c.cell.data.spec): 1.0 for c in plan.cells for n in (c.cell.network, c.cell.distill_network)
        },
    )
    once = {s[:2]: s[2] for c in plan.cells for s in cell_stages(c.cell)}
    assert len(keys) > len(once) and cost.lines["seconds"].sum() == pytest.approx(sum(once.values()))


# ---- runs


def run_command(store, blocks=FOUR, **more):
    "A grid in a process of its own, with everything it starts marked"
    mark = f"grid-{os.getpid()}-{time.monotonic_ns()}"
    env = (
        {k: v for k, v in os.environ.items() if k not in ("DDROBUST_STORE",)}
        | dict(DDROBUST_TEST_MARK=mark, DDROBUST_AUTOSAVE="0", DDROBUST_COMPILE="never", SPT_NOENV="1")
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
            *USUAL,
        ],
        env=env,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return process, mark


def of_mark(mark):
    "Every process that was started by a run"
    found = []
    for p in psutil.process_iter():
        try:
            if p.environ().get("DDROBUST_TEST_MARK") == mark:
                found.append(p)
        except psutil.Error:
            pass
    return found


def gone(mark, seconds=90):
    "Wait until nothing of a run is left"
    until = time.monotonic() + seconds
    while (left := of_mark(mark)) and time.monotonic() < until:
        time.sleep(0.2)
    assert not left, f"still there: {[' '.join(p.cmdline())[:100] for p in left]}"


def finish(store, **more):
    process, mark = run_command(store, **more)
    said = process.communicate(timeout=600)[0]
    assert process.returncode == 0, said
    gone(mark)
    return said


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


class Watched(threading.Thread):
    "Looks at a store again and again: which cards every artefact ever had"

    def __init__(self, store):
        super().__init__(daemon=True)
        self.store, self.seen, self.end = store, defaultdict(set), threading.Event()
        self.start()

    def run(self):
        while not self.end.wait(0.02):
            try:
                for name, inode in made(self.store).items():
                    self.seen[name].add(inode)
            except OSError:
                pass

    def made_twice(self):
        self.end.set()
        self.join()
        return {n: i for n, i in self.seen.items() if len(i) > 1}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    store = tmp_path_factory.mktemp("undisturbed") / "store"
    said = finish(store)
    return store, said, results(store)


def test_a_grid_ends_in_a_table(undisturbed):
    store, said, rows = undisturbed
    assert "4 cells in" in said and "4 done" in said and "random" in said
    assert {(r["method"], r["ipc"]) for r in rows} == {("dm", 1), ("dm", 2), ("random", 1), ("random", 2)}
    for c in plan_grid(FOUR, store=store, device="cpu").cells:
        cells = json.loads((c.out / "run_cell.ipynb").read_text())["cells"]
        assert any("image/png" in o.get("data", {}) for cell in cells for o in cell.get("outputs", ()))


def test_a_second_run_does_nothing(undisturbed, capsys):
    store, _, rows = undisturbed
    before = {p: p.stat().st_mtime_ns for p in store.rglob("*") if p.is_file()}
    assert command(["run", json.dumps(FOUR), "--store", str(store), *USUAL]) == 0
    assert {p: p.stat().st_mtime_ns for p in store.rglob("*") if p.is_file()} == before and results(
        store
    ) == rows


def test_one_more_cell_computes_only_that(undisturbed, tmp_path):
    rows, store = undisturbed[2], tmp_path / "store"
    shutil.copytree(undisturbed[0], store)
    before, more = made(store), FOUR + [dict(TINY, method="random", ipc=3)]
    outcome = run_grid(plan_grid(more, store=store, device="cpu"), Machines(workers=1, threads=1))
    assert outcome.count() == {"done": 5}
    after = made(store)
    assert {k: after[k] for k in before} == before and Counter(
        k.split("/")[0] for k in set(after) - set(before)
    ) == {"distil": 1, "train": 1, "attack": 2}
    assert results(store) == rows


def kill(process, mark, victim):
    "True when there was somebody to kill; of the processes that Parsl spawns, a worker is one that has loaded torch"
    if victim == "runner":
        process.kill()
        return True
    for p in of_mark(mark):
        try:
            line = " ".join(p.cmdline())
            if (
                "ipykernel_launcher" in line
                if victim == "kernel"
                else "HTEX worker" in line or ("multiprocessing.spawn" in line and p.memory_info().rss > 3e8)
            ):
                p.kill()
                return True
        except psutil.Error:
            pass
    return False


def disturbed(store, victim, moment):
    "A grid with a kill -9 so many seconds after its first file, then resumed"
    process, mark = run_command(store)
    until = time.monotonic() + 60
    while not (store.is_dir() and any(store.iterdir())) and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(moment)
    if victim != "runner":
        while process.poll() is None and not kill(process, mark, victim):
            time.sleep(0.05)
    else:
        kill(process, mark, victim)
    process.communicate(timeout=300)
    gone(mark)
    finished = made(store)
    for p in store.rglob("results.json"):
        assert rows_complete(p)
    finish(store)
    after = made(store)
    assert {k: after[k] for k in finished} == finished, "something that was finished was made again"


@pytest.mark.parametrize(
    "victim, moment", [("runner", 4.0), pytest.param("worker", 2.0, marks=pytest.mark.slow), ("kernel", 5.0)]
)
def test_killed_and_resumed(undisturbed, tmp_path, victim, moment):
    disturbed(tmp_path / "store", victim, moment)
    assert results(tmp_path / "store") == undisturbed[2]


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["runner", "worker", "kernel"])
def test_killed_at_ten_random_moments(undisturbed, tmp_path, victim):
    import random

    draw = random.Random(f"moments {victim}")
    for k in range(10):
        disturbed(tmp_path / str(k), victim, draw.uniform(0, 25))
        assert results(tmp_path / str(k)) == undisturbed[2]


def test_two_runners_on_one_store(undisturbed, tmp_path):
    store = tmp_path / "store"
    watched = Watched(store)
    two = [run_command(store) for _ in range(2)]
    for process, mark in two:
        said = process.communicate(timeout=600)[0]
        assert process.returncode == 0 and "4 done" in said, said
        gone(mark)
    assert not watched.made_twice() and watched.seen.keys() == made(undisturbed[0]).keys()
    assert results(store) == undisturbed[2]


def test_a_cell_that_fails_does_not_stop_the_others(tmp_path):
    "The option passes every check and fails in the work: its sentence, traceback and notebook are kept, and a later run tries it again"
    bad = dict(TINY, method="dm", ipc=1, options={"iterations": 3, "batch_real": 4, "lr_img": 1e30})
    plan = plan_grid([bad, dict(TINY, method="random", ipc=1)], store=tmp_path / "store", device="cpu")
    outcome = run_grid(plan, Machines(workers=1, threads=1))
    assert outcome.count() == {"failed": 1, "done": 1} and len(outcome.errors) == 1
    report = json.loads((plan.cells[0].out / "failed.json").read_text())
    assert (
        report["error"] == outcome.errors[0]
        and report["error"].split(":")[0] in report["traceback"]
        and (plan.cells[0].out / "failed.ipynb").is_file()
    )
    assert list(status(plan)["state"]) == ["failed", "done"]


def test_nothing_listens_to_the_outside(tmp_path):
    process, mark = run_command(tmp_path / "store", [dict(TINY, method="random", ipc=1)])
    heard, kernels = set(), set()
    while process.poll() is None:
        for p in of_mark(mark):
            try:
                here = {c.laddr.ip for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN}
                if any("ipykernel_launcher" in a for a in p.cmdline()) and here:
                    kernels.add(p.pid)
                heard |= here
            except psutil.Error:
                pass
        time.sleep(0.2)
    assert kernels and heard <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, heard
    gone(mark)


def test_no_pickle_lies_in_a_store(undisturbed):
    "What another may have written is JSON or safetensors; states hold tensors and are read as such"
    assert {p.suffix for p in undisturbed[0].rglob("*") if p.is_file() and ".locks" not in p.parts} <= {
        ".json",
        ".safetensors",
        ".ipynb",
        ".png",
        ".state",
    }
    for source in (ROOT / "ddrobust_nb").rglob("*.py"):
        for line in source.read_text(encoding="utf-8").splitlines():
            assert "import pickle" not in line and (
                "torch.load(" not in line or "weights_only=True" in line
            ), source


# ---- damage


def test_damage_is_named_and_repaired(undisturbed, tmp_path):
    "A rows file cut in half and a flipped byte in an artefact: the next run makes good exactly that"
    store = tmp_path / "store"
    shutil.copytree(undisturbed[0], store)
    plan = plan_grid(FOUR, store=store, device="cpu")
    rows = plan.cells[0].out / "results.json"
    rows.write_bytes(rows.read_bytes()[:200])
    with pytest.warns(DamagedRows, match="left out"):
        rows_of_store(store)
    assert cell_state(plan.cells[0], plan.store)[0] == "waiting"
    weights = sorted((store / "train").glob("*/last.safetensors"))
    for w in weights:
        raw = bytearray(w.read_bytes())
        raw[-1] ^= 1
        w.write_bytes(raw)
    before = made(store)
    finish(store)
    after = made(store)
    assert results(store) == undisturbed[2]
    again = {k.split("/")[0] for k in before if after[k] != before[k]}
    assert again == {"train"}  # of the cell that had to be run: the method's model and the random one


def test_a_newer_store_is_left_alone(tmp_path):
    write_json(tmp_path / "store" / "store.json", {"format": 99})
    plan = plan_grid([dict(TINY, method="dm", ipc=1)], store=tmp_path / "store", device="cpu")
    assert "has format 99, this version knows 1: upgrade" in plan.cells[0].error
    with pytest.raises(InputError, match="format 99"):
        rows_of_store(tmp_path / "store")
    with pytest.raises(InputError, match="format 99"):
        find_garbage(tmp_path / "store")
    assert [p.name for p in (tmp_path / "store").iterdir()] == ["store.json"]


def test_a_full_disk(undisturbed, tmp_path, monkeypatch):
    "The cell fails with the system's sentence, nothing half-written stays, and with space it goes on"
    from ddrobust_nb.results import store as module

    store = tmp_path / "store"
    plan = plan_grid(FOUR[1:], store=store, device="cpu")
    from ddrobust_nb.results.stages import distil_cell

    def full(*a):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as m:
        m.setattr(module.os, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            distil_cell(plan.cells[0].cell)
    assert not [p for p in store.rglob("*") if p.is_file() and ".locks" not in p.parts]
    assert not is_locked(plan.store, "distil", "any") and distil_cell(plan.cells[0].cell).key


def test_a_report_that_cannot_be_written_stops_nobody(tmp_path, monkeypatch):
    from ddrobust_nb.grid import notebook as module

    def full(*a):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_json", full)
    report = module.write_failure(tmp_path / "out", "RuntimeError: x")
    assert (
        report.state == "failed"
        and report.error == "RuntimeError: x (and its report could not be written: No space left on device)"
    )


def test_a_dataset_that_cannot_be_had_is_asked_for_once(tmp_path, monkeypatch):
    from ddrobust_nb.grid import plan as module

    asked = []

    def refuse(name, root):
        asked.append(name)
        raise InputError("no such data")

    monkeypatch.setattr(module, "load_data", refuse)
    plan = plan_grid([dict(method=["dm", "random"], ipc=[1, 2])], store=tmp_path, device="cpu")
    assert asked == ["digits"] and [c.error for c in plan.cells] == ["no such data"] * 4


# ---- tables


def fields_of(line):
    "How many columns a line of a LaTeX table fills"
    return sum(
        int(m.group(1)) if (m := re.match(r"\\multicolumn\{(\d+)\}", part)) else 1
        for part in line.removesuffix(r" \\").split(" & ")
    )


@pytest.mark.parametrize("name", ["I", "III", "VII", "XXIII"])
def test_tables_in_the_layout_of_the_paper(away, monkeypatch, name):
    "Every line of the LaTeX fills every column; ours stands in its cell, and no cell of the paper is lost"
    from ddrobust_nb.grid import tables as module

    found = find_rows(ROOT / "nbs" / "sets")
    monkeypatch.setattr(module, "find_rows", lambda *places: found)
    one = json.dumps([dict(method="dm", ipc=1)])
    for end in ("tex", "md", "csv"):
        assert (
            command(
                ["table", one, "--layout", name, "--to", str(away.parent / f"t.{end}"), "--store", str(away)]
            )
            == 0
        )
    cells, tex = pd.read_csv(away.parent / "t.csv"), (away.parent / "t.tex").read_text()
    assert len(cells) == len(paper_table(name)) and (name != "I" or cells["ours"].notna().any())
    lines = [line for line in tex.splitlines() if line.endswith(r"\\")]
    assert len({fields_of(line) for line in lines}) == 1 and fields_of(lines[0]) == len(
        re.search(r"tabular\}\{([lr]+)\}", tex)[1]
    )
    for text in map(cell_text, cells[~cells["missing"]].astype({"printed": str}).to_dict("records")):
        assert escape_latex(text.split(" | ")[1]) in tex
    assert (
        tex.count("{") == tex.count("}")
        and "footnotesize" in tex
        and "Paper | ours" in (away.parent / "t.md").read_text()
    )


def test_a_layout_that_is_not_there(away):
    with pytest.raises(InputError, match="table of the paper"):
        command(["table", json.dumps([dict(method="dm", ipc=1)]), "--layout", "V", "--store", str(away)])


# ---- cleaning up


def test_garbage_is_what_no_cell_names(undisturbed, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(undisturbed[0], store)
    assert len(find_garbage(store, older_than=0)) == 0
    plan = plan_grid(FOUR, store=store, device="cpu")
    shutil.rmtree(
        plan.cells[0].out
    )  # its distilled set, model and evaluations are garbage now, the random ones are not
    (store / "distil" / "mine").mkdir(), (store / "distil" / "mine" / "x.txt").write_text("x")
    (tmp_path / "precious").mkdir(), (tmp_path / "precious" / "x.txt").write_text("x")
    (store / "train" / "0123456789abcdef").symlink_to(tmp_path / "precious")
    found = find_garbage(store, older_than=0)
    assert Counter(p.split("/")[0] for p in found["path"]) == {"distil": 1, "train": 1, "attack": 2} and set(
        found["what"]
    ) == {"artefact without a cell"}
    assert len(find_garbage(store)) == 0  # a week has not passed
    remove_garbage(store, older_than=0)
    assert (
        (store / "distil" / "mine" / "x.txt").exists()
        and (tmp_path / "precious" / "x.txt").exists()
        and (store / "train" / "0123456789abcdef").is_symlink()
    )
    assert len(results(store, FOUR[1:])) == 4


def test_nothing_is_removed_while_a_card_says_nothing(undisturbed, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(undisturbed[0], store)
    card = next(store.glob("cells/*/cell.json"))
    write_json(card, {k: v for k, v in json.loads(card.read_text()).items() if k != "artefacts"})
    with pytest.raises(InputError, match="nothing was removed"):
        remove_garbage(store, older_than=0)


def test_what_is_being_made_is_no_garbage(tmp_path, undisturbed):
    store = tmp_path / "store"
    shutil.copytree(undisturbed[0], store)
    plan = plan_grid(FOUR, store=store, device="cpu")
    shutil.rmtree(plan.cells[0].out)
    key = find_garbage(store, older_than=0)["path"].iloc[0].split("/")
    with alone(plan.store, *key):
        assert len(find_garbage(store, older_than=0)) == 3


# ---- Slurm

NASTY = "a store; touch x $(touch y) `touch z` 'q\" end"


def test_the_array_script_quotes_every_value(tmp_path):
    "Executed by bash with a stand-in for Python: the path arrives whole, and nothing in it is run"
    place = tmp_path / NASTY
    place.mkdir()
    plan = plan_grid([dict(TINY, method=["dm", "random"], ipc=1)], store=place / "store", device="cpu")
    script = array_script(
        plan,
        place / "grid; touch w.sh",
        Machines(engine="slurm", workers=1, threads=1, gpus=0, partition="p", account="a"),
    )
    fake = tmp_path / "python"
    fake.write_text("#!/bin/bash\nprintf '%s\\n' \"$@\"\n"), fake.chmod(0o755)
    script.write_text(script.read_text().replace(sys.executable, str(fake)))
    subprocess.run(
        ["bash", str(script)], env=dict(os.environ, SLURM_ARRAY_TASK_ID="1"), cwd=tmp_path, check=True
    )
    assert (place / "grid; touch w.1.log").read_text().splitlines() == [
        "-m",
        "ddrobust_nb.grid.command",
        "cell",
        str(place / "grid; touch w.cells.json"),
        "1",
    ]
    assert not {p.name for p in tmp_path.iterdir()} & {"w", "x", "y", "z"}
    listed = json.loads((place / "grid; touch w.cells.json").read_text())
    assert [c["given"]["method"] for c in listed] == ["dm", "random"] and listed[0]["common"]["store"] == str(
        place / "store"
    )


@pytest.mark.parametrize(
    "wrong, text",
    [
        (dict(partition="p; touch x"), "partition must be a name"),
        (dict(account="$(x)"), "account must be a name"),
        (dict(walltime="1h; x"), "walltime must be like"),
        (dict(engine="pbs"), "engine"),
        (dict(workers=0), "workers"),
    ],
)
def test_bad_machines(tmp_path, wrong, text):
    plan = plan_grid([dict(TINY, method="random", ipc=1)], store=tmp_path / "store", device="cpu")
    with pytest.raises(InputError, match=text):
        array_script(plan, tmp_path / "g.sh", Machines(**{"engine": "slurm", **wrong}))
    assert not (tmp_path / "g.sh").exists()


def test_a_listed_cell_runs(tmp_path):
    plan = plan_grid([dict(TINY, method="random", ipc=1)], store=tmp_path / "store", device="cpu")
    array_script(plan, tmp_path / "g.sh", Machines(engine="slurm"))
    assert run_listed(tmp_path / "g.cells.json", 0).state == "done" and is_done(plan.cells[0].out)
    assert run_listed(tmp_path / "g.cells.json", 0).seconds == 0
    with pytest.raises(InputError, match="no cell 1"):
        run_listed(tmp_path / "g.cells.json", 1)


# ---- tables and the leaderboard


def test_rows_come_out_as_they_went_in(undisturbed, tmp_path):
    rows = rows_of_store(undisturbed[0])
    back = pd.read_csv(export_rows(rows, tmp_path / "r.csv"))
    assert len(back) == len(rows) == 8 and back["robust"].tolist() == [r.robust for r in rows]
    assert export_rows(rows, tmp_path / "r.md").read_text().count("\n|") == 1 + 12
    assert r"\toprule" in export_rows(rows, tmp_path / "r.tex").read_text()


def test_random_images_trained_in_two_ways_are_not_averaged(tmp_path):
    "DC's students see no augmentation: the random images beside it are another experiment than those beside DM and DSA"
    given = [
        r
        for r in read_results(ROOT / "nbs" / "sets" / "cifar10-random-ipc1")
        if r.set_seed == 0 and r.attack == "pgd"
    ]
    plain = given[0].recipe | dict(augment="")
    other = [
        replace(
            r,
            key=f"other {r.key}",
            model_key=f"other {r.seed}",
            recipe=plain,
            recipe_digest=digest_of(normal_recipe(plain)),
            clean=r.clean / 2,
            robust=r.robust / 2,
        )
        for r in given
    ]
    for name, beside in (("dm", given), ("dsa", given), ("dc", other)):
        (tmp_path / name).mkdir()
        write_results(
            [replace(r, method=name, key=f"{name} {r.key}", model_key=f"{name} {r.seed}") for r in given]
            + beside,
            tmp_path / name,
        )
    students = len({r.seed for r in given})
    both = results_table(rows_of_cells([tmp_path / n for n in ("dm", "dsa")]))
    assert "training" not in both and both.query("method == 'random' and attack == 'clean'")[
        "models"
    ].tolist() == [students]
    rows = rows_of_cells([tmp_path / n for n in ("dm", "dsa", "dc")])
    lines = results_table(rows).query("attack == 'clean'")
    assert (
        set(lines["models"]) == {students}
        and lines["method"].tolist().count("random") == 2
        and len(lines) == 5
    )
    assert set(lines[lines["method"] == "random"]["training"]) == {
        "augment none",
        "augment color_crop_cutout_flip_scale_rotate",
    }
    board = standings(rows)
    assert len(board) == 5 * len({(r.eps, r.attack) for r in given}) and board["condition"].nunique() == len(
        {(r.eps, r.attack) for r in given}
    )


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    "One store with cells that differ in one thing each, run with three epochs and made into finished cells: the plan, and what `ddrobust results_table` prints of it"
    place = tmp_path_factory.mktemp("many")
    for top, colour in (("a", 40), ("b", 200)):  # two folders of one name
        for split, n in (("train", 3), ("test", 3)):
            for c in range(4):
                folder = place / top / "photos" / split / f"class{c}"
                folder.mkdir(parents=True)
                for i in range(n):
                    Image.new("RGB", (32, 32), (colour + 10 * i, 60 * c, 20 * i)).save(folder / f"{i}.png")
    tiny = dict(TINY, attacks="fgsm@8/255")
    random = dict(tiny, method="random", ipc=1)
    blocks = [
        random,
        random,
        dict(random, n_test=30),
        dict(random, protocol="full"),
        dict(random, seed=1),
        dict(tiny, method="dm", ipc=1, options={"iterations": 2, "batch_real": 4}),
        dict(tiny, method="dm", ipc=1, options={"iterations": 3, "batch_real": 4}),
        *(dict(random, dataset=f"folder:{place}/{top}/photos", n_test=12) for top in "ab"),
    ]
    plan = plan_grid(blocks, store=place / "store", device="cpu")
    for c in plan.cells:
        cell = replace(c.cell, recipe=replace(c.cell.recipe, epochs=3, check_every=3))
        write_out(*(run_stages(one) for one in (cell, baseline_cell(cell)) if one))
        (c.out / "run_cell.ipynb").write_text("{}")
    return plan, blocks, place / "store"


def test_every_experiment_of_a_grid_has_a_line_of_its_own(many, capsys):
    "Two datasets, a swept option, a swept n_test, two protocols, two folders of one name, a repeated block and a second seed"
    plan, blocks, store = many
    assert len(plan.cells) == 8  # the repeated block is one cell
    rows = rows_of_plan(plan)
    assert command(["table", json.dumps(blocks), "--store", str(store), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    t = results_table(rows)
    clean = t[t["attack"] == "clean"]
    described = [
        tuple(line)
        for line in clean[["method", "dataset", "data", "protocol", "options"]].itertuples(index=False)
    ]
    assert len(set(described)) == len(clean) == 6, "a line per experiment, each told from the others"
    digits = clean[(clean["dataset"] == "digits") & (clean["method"] == "random")]
    assert sorted(zip(digits["protocol"], digits["models"])) == [("full", 1), ("quick", 2)], (
        "seeds 0 and 1 are two models; the rows beside dm and those of n_test 30 add none"
    )
    assert sorted(
        t[
            (t["method"] == "random")
            & (t["protocol"] == "quick")
            & (t["dataset"] == "digits")
            & (t["attack"] == "FGSM")
        ]["images"]
    ) == [20, 30]
    assert sorted(clean[clean["method"] == "dm"]["options"]) == ["iterations 2", "iterations 3"]
    folders = clean[clean["dataset"].str.startswith("folder:")]
    assert folders["data"].nunique() == 2 == len(folders)
    for text in ("iterations 2", "iterations 3", "full", "quick", *folders["data"]):
        assert text in said


def test_no_number_of_a_grid_is_a_mean_over_experiments(many):
    rows = rows_of_plan(many[0])
    for line in lines_of(rows):
        mine = [
            r
            for r in rows
            if r.model_key in set(line.all("model_key"))
            and r.data_fingerprint == line["data_fingerprint"]
            and r.protocol == line["protocol"]
        ]
        assert (
            len(
                {
                    (r.dataset, r.data_fingerprint, r.method, r.protocol, r.options_digest, r.recipe_digest)
                    for r in mine
                }
            )
            == 1
        )
        assert line.values == [
            getattr(
                next(
                    r
                    for r in mine
                    if r.model_key == k and (line.clean or (r.attack, r.n) == (line["attack"], line["n"]))
                ),
                line.column,
            )
            for k in line.all("model_key")
        ]


def test_running_a_cell_again_joins_its_old_rows(many, tmp_path):
    "The same cell, its rows once as the first format had them and once as they are now: one line, no model more"
    c = many[0].cells[5]
    shutil.copytree(c.out, tmp_path / "old")
    new = read_results(c.out)
    gone = {f.name for f in fields(Result) if f.default is not MISSING} - {"backend"}
    first = [
        {n: v for n, v in asdict(r).items() if n not in gone}
        | dict(
            worst_iterate=r.worst_iterate,
            carry=r.carry_over_eps,
            distill_network=r.distill_network or "ConvNetD3-w8",
        )
        for r in new
    ]
    (tmp_path / "old" / "results.json").write_text(json.dumps(first))
    old = read_results(tmp_path / "old")
    assert {r.method for r in old} == {"dm", "random"} and all(r.flags == "" for r in old)
    assert [(line.models, line.values) for line in lines_of(old + new)] == [
        (line.models, line.values) for line in lines_of(new)
    ]
    assert [(line.models, line.values) for line in lines_of(old)] == [
        (line.models, line.values) for line in lines_of(new)
    ]


def test_only_equal_conditions_share_a_place(undisturbed):
    rows = rows_of_store(undisturbed[0])
    apart = [replace(r, protocol="full") for r in rows if r.method == "random"] + [
        r for r in rows if r.method == "dm"
    ]
    assert (
        set(standings(apart)["place"]) == {1}
        and set(standings(rows)["place"]) == {1, 2}
        or len({r.robust for r in rows}) == 1
    )


def test_a_submission_is_checked(undisturbed, tmp_path):
    rows = [r for r in rows_of_store(undisturbed[0]) if r.method == "dm"]

    def submit(rows, **card):
        write_json(
            tmp_path / "card.json", dict(method="dm", authors="A. Body", source="https://example.org") | card
        )
        write_json(tmp_path / "results.json", [asdict(r) for r in rows])
        return check_submission(tmp_path)

    assert submit(rows) == []
    assert "lacks authors" in submit(rows, authors=" ")[0]
    assert "begins with http" in submit(rows, source="javascript:x")[0]
    assert "the card says 'other'" in submit(rows, method="other")[0]
    assert "above the clean accuracy" in " ".join(submit([replace(rows[0], robust=1.0)]))
    assert "no share of 20 images" in " ".join(submit([replace(rows[0], robust=0.123)]))
    assert "drop_rate is" in submit([replace(rows[0], drop_rate=0.987)])[0]
    assert "holds no rows" in submit([])[0]
    assert "`strength` says" in submit([replace(rows[0], warnings=("strength",))])[0]
    assert submit([replace(rows[0], warnings=("saturation",))]) == []
    invented = submit([replace(row, warnings=("saturation", "weak")) for row in rows[:2]])
    assert len(invented) == 1 and "warnings name weak, but the codes of self-checks are range" in invented[0]
    assert all(str(code) in invented[0] for code in CheckCode)


@pytest.mark.parametrize(
    "what, text",
    [
        (dict(eps_255=1.0), "eps_255 must be"),
        (dict(eps_255=None), "eps_255 must be"),
        (dict(steps=0), "steps must be 1"),
        (dict(steps=-3), "steps must be 1"),
        (dict(n_clean=-1), "n_clean must be"),
        (dict(n=0), "n must be"),
        (dict(n=200_000), "the test set has"),
        (dict(severity=9), "severity"),
        (dict(origin="made up"), "origin must be"),
        (dict(flags="zz"), "flags"),
        (dict(flags="ff"), "flags"),
        (dict(flags="f" * 6), "flags say"),
    ],
)
def test_rows_that_cannot_be_are_named(undisturbed, tmp_path, what, text):
    row = asdict(next(r for r in rows_of_store(undisturbed[0]) if r.method == "dm" and r.robust < 1))
    write_json(tmp_path / "card.json", dict(method="dm", authors="A. Body", source="https://example.org"))
    write_json(tmp_path / "results.json", [row | what])
    assert text in " ".join(check_submission(tmp_path))


def test_one_model_cannot_have_two_results(undisturbed, tmp_path):
    row = asdict(next(r for r in rows_of_store(undisturbed[0]) if r.method == "dm"))
    write_json(tmp_path / "card.json", dict(method="dm", authors="A. Body", source="https://example.org"))
    write_json(
        tmp_path / "results.json",
        [row, row | dict(robust=0.05, drop_rate=1 - 0.05 / row["clean_n"], flags="")],
    )
    assert "another row of the same model" in " ".join(check_submission(tmp_path))


@pytest.mark.parametrize(
    "what",
    [
        dict(ipc=[1]),
        dict(steps="x"),
        dict(preset=None),
        dict(n=1e19),
        dict(alpha="1/0"),
        dict(drop_rate="0.5"),
        dict(set_seed={}),
        dict(n=0),
        dict(n=-3),
        dict(ipc=0),
        dict(robust="1"),
        dict(clean=2.0),
        dict(data_fingerprint=None),
        dict(warnings=3),
        dict(versions=7),
        dict(n=10**400),
        dict(alpha=[]),
        dict(norm=5),
        dict(commit={}),
        dict(clean_n=-0.5),
        dict(unknown_field=1),
    ],
)
def test_a_strange_submission_is_answered_in_sentences(undisturbed, tmp_path, what):
    row = asdict(next(r for r in rows_of_store(undisturbed[0]) if r.method == "dm"))
    write_json(tmp_path / "card.json", dict(method="dm", authors="A. Body", source="https://example.org"))
    (tmp_path / "results.json").write_text(json.dumps([row | what]))
    wrong = check_submission(tmp_path)
    assert (wrong or what == dict(preset=None)) and all("\n" not in w for w in wrong)

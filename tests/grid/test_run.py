"Runs of grids: nothing is computed twice or lost, whichever process is killed."

import json
import re
import shutil
import threading
import time
from collections import Counter, defaultdict

import psutil
import pytest
from grid_runs import FOUR, OPTIONS, ROOT, TINY, finish, gone, made, processes_of, results, run_command

from ddrobust_nb.grid.command import command
from ddrobust_nb.grid.machines import Machines
from ddrobust_nb.grid.notebook import rows_complete
from ddrobust_nb.grid.plan import plan_grid
from ddrobust_nb.grid.run import run_grid
from ddrobust_nb.grid.status import cell_state, is_locked, status
from ddrobust_nb.grid.tables import (
    DamagedRows,
    rows_of_store,
)


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


def test_a_grid_ends_in_a_table(undisturbed):
    store, printed, rows = undisturbed
    assert "4 cells in" in printed and "4 done" in printed and "random" in printed
    assert {(r["method"], r["ipc"]) for r in rows} == {("dm", 1), ("dm", 2), ("random", 1), ("random", 2)}
    for c in plan_grid(FOUR, store=store, device="cpu").cells:
        cells = json.loads((c.out / "run_cell.ipynb").read_text())["cells"]
        assert any("image/png" in o.get("data", {}) for cell in cells for o in cell.get("outputs", ()))


def test_a_second_run_does_nothing(undisturbed, capsys):
    store, _, rows = undisturbed
    before = {p: p.stat().st_mtime_ns for p in store.rglob("*") if p.is_file()}
    assert command(["run", json.dumps(FOUR), "--store", str(store), *OPTIONS]) == 0
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


def kill(process, tag, victim):
    "True when there was somebody to kill; of the processes that Parsl spawns, a worker is one that has loaded torch"
    if victim == "runner":
        process.kill()
        return True
    for p in processes_of(tag):
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
    process, tag = run_command(store)
    until = time.monotonic() + 60
    while not (store.is_dir() and any(store.iterdir())) and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(moment)
    if victim != "runner":
        while process.poll() is None and not kill(process, tag, victim):
            time.sleep(0.05)
    else:
        kill(process, tag, victim)
    process.communicate(timeout=300)
    gone(tag)
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
    for process, tag in two:
        printed = process.communicate(timeout=600)[0]
        assert process.returncode == 0 and "4 done" in printed, printed
        gone(tag)
    assert not watched.made_twice() and watched.seen.keys() == made(undisturbed[0]).keys()
    assert results(store) == undisturbed[2]


def test_a_cell_that_fails_does_not_stop_the_others(tmp_path):
    "The step size passes every check and fails in the work: its sentence, traceback and notebook are kept, and a later run tries it again"
    bad = dict(TINY, method="random", ipc=2, recipe={"epochs": 40, "lr": 1e15})
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
    process, tag = run_command(tmp_path / "store", [dict(TINY, method="random", ipc=1)])
    addresses, kernels = set(), set()
    while process.poll() is None:
        for p in processes_of(tag):
            try:
                here = {c.laddr.ip for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN}
                if any("ipykernel_launcher" in a for a in p.cmdline()) and here:
                    kernels.add(p.pid)
                addresses |= here
            except psutil.Error:
                pass
        time.sleep(0.2)
    assert kernels and addresses <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, addresses
    gone(tag)


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
            assert not re.match(r"\s*(import|from) pickle\b", line), source
            assert "pickle.load" not in line, source
            assert "torch.load(" not in line or "weights_only=True" in line, source


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
    remade = {k.split("/")[0] for k in before if after[k] != before[k]}
    assert remade == {"train"}  # of the cell that had to be run: the method's model and the random one


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

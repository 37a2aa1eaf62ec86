"A store that several users share: other user ids, the usual umask, interrupted runs, and readers who may not write"

import json
import os
import stat
import sys
import tempfile
import traceback
from pathlib import Path

import pytest

from ddrobust_nb.foundations.core import InputError
from ddrobust_nb.foundations.datasets import dataset
from ddrobust_nb.grid.plan import plan_grid
from ddrobust_nb.grid.status import is_locked, status, status_line
from ddrobust_nb.results.cell_rows import run_stages, write_out
from ddrobust_nb.results.plan import plan_cell
from ddrobust_nb.results.store import Busy, Store, cached, locked, make_folder, new_mode, write_json
from tiny import tiny_cell, tiny_data

ANNA, BERT, GROUP, STRANGER = 12001, 12002, 12003, 12004
pytestmark = pytest.mark.skipif(
    not hasattr(os, "fork") or os.geteuid() != 0, reason="changes user ids, so it needs to start as root"
)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(dataset, "tiny", lambda root: tiny_data())


@pytest.fixture(autouse=True)
def warm(tiny, tmp_path_factory):
    "Everything is imported once: another user may not be able to read this Python's own files"
    store = Store(tmp_path_factory.getbasetemp() / "warm")
    finished = run_stages(tiny_cell(store=str(store.root)))
    if not (store.root / "store.json").is_file() or "cells" not in os.listdir(store.root):
        write_out(finished)
        counting(store, stop_at=1), counting(store)
        status_line(plan_grid(BLOCKS, store=store.root, device="cpu"))


@pytest.fixture
def root():
    "A folder that everybody may look into"
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def shared(root, mode=0o2775):
    store = root / "store"
    store.mkdir()
    os.chown(store, ANNA, GROUP)
    os.chmod(store, mode)
    return Store(store)


def as_user(uid, work, gid=GROUP):
    "What `work` returns in a process of this user, with umask 022; its error is raised here as `AssertionError`"
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            os.setgroups([gid]), os.setgid(gid), os.setuid(uid), os.umask(0o022)
            os.environ["HOME"] = "/nowhere"
            with os.fdopen(writing, "w") as file:
                json.dump(work(), file)
            code = 0
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as file:
        text = file.read()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, text
    return json.loads(text)


def counting(store, stop_at=None):
    "A stage that counts to five and says from where it went on"

    def make(state, save):
        n = state["n"] if state else 0
        first = n
        while n < 5:
            n += 1
            save({"n": n})
            if n == stop_at:
                raise KeyboardInterrupt
        return first

    def write(value, folder):
        write_json(folder / "n.json", value)

    def read(folder):
        return json.loads((folder / "n.json").read_text())

    try:
        return cached(store, "count", "five", {}, make, write, read)
    except KeyboardInterrupt:
        return "interrupted"
    except InputError as error:
        return str(error)


def test_another_user_goes_on_where_the_first_was_interrupted(root):
    store = shared(root)
    assert as_user(ANNA, lambda: counting(store, stop_at=3)) == "interrupted"
    assert as_user(BERT, lambda: counting(store)) == 3
    assert as_user(ANNA, lambda: counting(store)) == 3
    for path in [store.root, *store.root.rglob("*")]:
        found = path.stat()
        assert found.st_gid == GROUP, path
        assert found.st_mode & stat.S_IWGRP, path
    assert not (store.root / "count" / "five" / "card.json").stat().st_mode & stat.S_IWOTH


def test_a_damaged_artefact_of_another_user_is_replaced(root):
    store = shared(root)
    as_user(ANNA, lambda: counting(store))
    (store.root / "count/five/n.json").write_text("8")
    with pytest.warns(UserWarning, match="damaged"):  # here; in the other process it goes to standard error
        from ddrobust_nb.results.store import find_artefact

        find_artefact(store, "count", "five")
    assert as_user(BERT, lambda: counting(store)) == 0
    assert (store.root / "count" / "five").stat().st_uid == BERT


def test_a_store_that_was_made_before_it_was_shared_names_its_owner(root):
    "Everything in it is Anna's alone: Bert is told before the work, and reads what is there"
    store = shared(root, mode=0o755)
    assert as_user(ANNA, lambda: counting(store, stop_at=3)) == "interrupted"
    said = as_user(BERT, lambda: counting(store))
    assert "cannot be locked" in said and f"count belongs to user {ANNA}" in said and "chmod -R g+rwX" in said
    as_user(ANNA, lambda: counting(store))
    assert as_user(BERT, lambda: counting(store)) == 3


def test_what_a_library_hides_is_readable(root):
    "safetensors makes files of mode 0600; in a store written so before, the owner is named"
    store = shared(root)

    def make():
        finished = run_stages(tiny_cell(store=str(store.root)))
        write_out(finished)
        return len(finished.rows)

    def again():
        try:
            return make()
        except InputError as error:
            return str(error)

    rows = as_user(ANNA, make)
    written = [*store.root.rglob("*.safetensors")]
    assert len(written) > 4 and all(stat.S_IMODE(path.stat().st_mode) == 0o664 for path in written)
    assert as_user(BERT, make) == rows
    for path in store.root.glob("distil/*/*.safetensors"):
        path.chmod(0o600)
    assert f"set.safetensors belongs to user {ANNA} and cannot be read" in as_user(BERT, again)


def test_locks_of_another_user_exclude_and_are_free_afterwards(root):
    "Also where the lock file is one that Bert may only read"
    store = shared(root)
    make_folder(store.root / "count")
    os.chmod(store.root / "count", 0o2775), os.chown(store.root / "count", ANNA, GROUP)
    lock = store.root / ".locks" / "count-five"
    make_folder(lock.parent)
    os.chmod(lock.parent, 0o2775), os.chown(lock.parent, ANNA, GROUP)
    lock.touch()
    os.chmod(lock, 0o644), os.chown(lock, ANNA, GROUP)

    def busy():
        try:
            with locked(store, "count", "five", wait=False):
                return "ours"
        except Busy:
            return "busy"

    assert as_user(BERT, busy) == "ours" and not as_user(BERT, lambda: is_locked(store, "count", "five"))
    with locked(store, "count", "five"):
        assert as_user(BERT, busy) == "busy" and as_user(BERT, lambda: is_locked(store, "count", "five"))
        assert as_user(STRANGER, lambda: is_locked(store, "count", "five"), gid=STRANGER)
    assert as_user(BERT, busy) == "ours"


def test_a_lock_that_cannot_be_read(root):
    store = shared(root)
    as_user(ANNA, lambda: counting(store, stop_at=1))
    os.chmod(store.root / ".locks" / "count-five", 0o600)
    said = as_user(BERT, lambda: counting(store))
    assert f"belongs to user {ANNA} and cannot be read" in said and "\n" not in said
    assert as_user(BERT, lambda: is_locked(store, "count", "five")) is False


BLOCKS = [dict(dataset="tiny", method="dm", ipc=[1, 2], n_test=9, n_models=1, attacks="fgsm@8/255")]
BLOCKS[0]["options"] = dict(iterations=2, batch_real=6)


@pytest.mark.parametrize("mode", [0o2775, 0o755])
def test_a_reader_sees_the_status_and_runs_what_is_finished(root, mode):
    "A stranger may not write anywhere: status and the stages that are in the store work, anything new is refused in a sentence"
    store = shared(root, mode)

    def make():
        finished = run_stages(tiny_cell(store=str(store.root)))
        write_out(finished)
        return len(finished.rows)

    n_rows = as_user(ANNA, make)

    def read():
        return len(run_stages(tiny_cell(store=str(store.root))).rows)

    def anew():
        try:
            run_stages(tiny_cell(store=str(store.root), ipc=2))
        except InputError as error:
            return str(error)

    def write_there():
        try:
            write_out(run_stages(tiny_cell(store=str(store.root))))
        except InputError as error:
            return str(error)

    def elsewhere():
        with tempfile.TemporaryDirectory() as out:
            write_out(run_stages(tiny_cell(store=str(store.root), out=f"{out}/x")))
            return os.path.isfile(f"{out}/x/results.json")

    assert n_rows and as_user(STRANGER, read, gid=STRANGER) == n_rows
    assert f"belongs to user {ANNA}" in as_user(STRANGER, anew, gid=STRANGER)
    assert "out cannot be written" in as_user(STRANGER, write_there, gid=STRANGER)
    assert as_user(STRANGER, elsewhere, gid=STRANGER)

    def states():
        plan = plan_grid(BLOCKS, store=store.root, device="cpu")
        return list(status(plan)["state"]), status_line(plan, speed=None)

    found, line = as_user(STRANGER, states, gid=STRANGER)
    assert found == ["waiting", "waiting"] and line.startswith("2 waiting")


@pytest.mark.parametrize("closed", ["cells", ".locks", "one cell", "distil"])
def test_status_never_fails(root, closed):
    "Folders that a reader may not even look into"
    store = shared(root)
    plan = plan_grid(BLOCKS, store=store.root, device="cpu")

    def make():
        with locked(store, "cells", plan.cells[0].key):
            make_folder(plan.cells[0].out)
            write_json(plan.cells[0].out / "failed.json", dict(error="ValueError: x"))
            counting(store)
            make_folder(store.root / "distil")
        return True

    as_user(ANNA, make)
    os.chmod(plan.cells[0].out if closed == "one cell" else store.root / closed, 0o700)

    def states():
        plan = plan_grid(BLOCKS, store=store.root, device="cpu")
        return list(status(plan)["state"]), list(status(plan)["note"]), status_line(plan)

    states, notes, line = as_user(STRANGER, states, gid=STRANGER)
    if closed in (".locks", "distil"):
        assert states == ["failed", "waiting"] and line.startswith("1 waiting, 1 failed")
        return
    assert states == ["impossible", "waiting" if closed == "one cell" else "impossible"]
    assert f"belongs to user {ANNA}" in notes[0] and "1 impossible" in line or "2 impossible" in line


def test_only_shared_folders_pass_their_permissions_on(tmp_path):
    before = os.umask(0o022)
    try:
        for mode, right in ((0o755, 0o644), (0o775, 0o664), (0o770, 0o664), (0o1777, 0o644), (0o2770, 0o664)):
            tmp_path.chmod(mode)
            assert new_mode(tmp_path, 0o666) == right, oct(mode)
        tmp_path.chmod(0o2770)
        os.umask(0o077)
        assert new_mode(tmp_path, 0o666) == 0o660
        make_folder(tmp_path / "a" / "b")
        assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o2770
    finally:
        os.umask(before)


def test_a_store_is_planned_without_writing(root):
    with pytest.raises(InputError, match="store"):
        (root / "a file").write_text("")
        plan_cell(dataset="tiny", n_test=9, options=dict(batch_real=6), store=str(root / "a file"))

"The store: keys, artefacts that are whole or not there, damage that is noticed, and work that is killed in the middle."

import json
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ddrobust_nb.foundations.core import InputError
from ddrobust_nb.foundations.datasets import dataset
from ddrobust_nb.results.cell_rows import run_stages
from ddrobust_nb.results.keys import VERSIONS
from ddrobust_nb.results.plan import plan_cell
from ddrobust_nb.results.store import (
    DamagedArtefact,
    Store,
    cached,
    check_writable,
    find_artefact,
    find_store,
    load_state,
    replacing,
    save_state,
    sha256_of,
    stage_key,
    state_path,
    what_is_wrong,
    write_artefact,
    write_json,
)
from tiny import same_results, tiny_cell, tiny_data

STAGES = ["distil", "train", "attack"]  # Of a method that reads nothing made before
FOLDER = "ein Läger – жук"
CONFIG = {
    "method": "dm",
    "ipc": 1,
    "options": {"lr": 1.0, "init": "real", "steps": [1, 2]},
    "flag": False,
    "none": None,
}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(dataset, "tiny", lambda root: tiny_data())


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / FOLDER)


def content(root):
    "Every file and folder below, hidden ones too; not the locks and the format, which every store has"
    return sorted(
        name
        for p in Path(root).rglob("*")
        if not (name := str(p.relative_to(root))).startswith(".locks") and name != "store.json"
    )


# ---- keys


def test_a_key_is_the_sha256_of_canonical_json():
    "A changed recipe for keys would orphan every store there is"
    assert stage_key("distil", 1, {"b": [1, 2.5, None], "a": "жук"}, ["x"]) == "915a6d8277063dce"


def test_order_does_not_matter():
    def backwards(x):
        return {k: backwards(v) for k, v in reversed(x.items())} if isinstance(x, dict) else x

    assert list(backwards(CONFIG)) != list(CONFIG)
    assert stage_key("train", 1, CONFIG, ["a"]) == stage_key("train", 1, backwards(CONFIG), ("a",))


def test_every_change_gives_another_key():
    keys = [
        stage_key("train", 1, CONFIG, ["a", "b"]),
        stage_key("train", 2, CONFIG, ["a", "b"]),
        stage_key("distil", 1, CONFIG, ["a", "b"]),
        *(stage_key("train", 1, CONFIG, up) for up in ([], ["a"], ["b", "a"], ["ab"], ["a", "b", ""])),
    ]
    changes = [
        ("method", "dc"),
        ("method", "Dm"),
        ("ipc", 2),
        ("ipc", "1"),
        ("ipc", True),
        ("flag", True),
        ("flag", None),
        ("none", False),
        ("none", 0),
        ("new", None),
    ]
    keys += [stage_key("train", 1, {**CONFIG, k: v}, ["a", "b"]) for k, v in changes]
    keys += [stage_key("train", 1, {k: v for k, v in CONFIG.items() if k != "none"}, ["a", "b"])]
    keys += [
        stage_key("train", 1, {**CONFIG, "options": {**CONFIG["options"], k: v}}, ["a", "b"])
        for k, v in (("lr", 1.0000000000000002), ("init", "noise"), ("steps", [2, 1]))
    ]
    assert len(set(keys)) == len(keys) and all(
        len(k) == 16 and set(k) <= set("0123456789abcdef") for k in keys
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), torch.tensor(1.0), {1}, Path("x")])
def test_what_is_no_json_has_no_key(value):
    with pytest.raises((ValueError, TypeError)):
        stage_key("train", 1, {"x": value})


@pytest.mark.parametrize(
    "change",
    [
        dict(seed=1),
        dict(ipc=2),
        dict(options=dict(iterations=5, batch_real=6)),
        dict(distill_network="ConvNetD3-w9"),
        dict(network="ConvNetD3-w9"),
        dict(attacks="fgsm@8/255,pgd@8/255@4"),
        dict(attacks="fgsm@8/255,pgd@7/255@3"),
        dict(n_test=12),
        dict(select="best_test"),
    ],
)
def test_what_changes_a_result_changes_the_keys_below_it(change, store):
    "And nothing above it is done again"
    plain, other = (
        run_stages(tiny_cell(store, n_models=1)),
        run_stages(tiny_cell(store, n_models=1, **change)),
    )
    name = next(iter(change))
    begins = {
        "seed": 0,
        "ipc": 0,
        "options": 0,
        "distill_network": 0,
        "network": 1,
        "select": 1,
        "attacks": 2,
        "n_test": 2,
    }[name]
    for level, key in enumerate(
        (lambda f: f.distilled.key, lambda f: f.models[0].key, lambda f: f.rows[1].key)
    ):
        assert (key(plain) != key(other)) == (level >= begins), (name, level)
    assert plain.cell.key != other.cell.key


@pytest.mark.parametrize("stage", STAGES)
def test_a_new_version_of_a_stage_is_a_new_key(stage, store, monkeypatch):
    def keys(finished):
        return dict(distil=finished.distilled.key, train=finished.models[0].key, attack=finished.rows[0].key)

    before = keys(run_stages(tiny_cell(store, n_models=1)))
    monkeypatch.setitem(VERSIONS, stage, VERSIONS[stage] + 1)
    after, order = keys(run_stages(tiny_cell(store, n_models=1))), ["distil", "train", "attack"]
    assert [before[s] != after[s] for s in order] == [order.index(s) >= order.index(stage) for s in order]


# ---- whole or not there


class Stop(BaseException):
    "As Ctrl-C is, no Exception"


@pytest.mark.parametrize("error", [ValueError, Stop])
def test_a_file_is_replaced_whole_or_not_at_all(error, tmp_path):
    path = tmp_path / FOLDER / "a.json"
    write_json(path, {"old": "жук"})
    with pytest.raises(error):
        with replacing(path) as tmp:
            tmp.write_text("half")
            raise error
    assert json.loads(path.read_text(encoding="utf-8")) == {"old": "жук"} and content(tmp_path) == [
        FOLDER,
        f"{FOLDER}/a.json",
    ]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), torch.ones(1)])
def test_json_that_others_cannot_read_is_not_written(value, tmp_path):
    with pytest.raises((ValueError, TypeError)):
        write_json(tmp_path / "a.json", {"a": [1, {"b": value}]})
    assert content(tmp_path) == []


@pytest.mark.parametrize("error", [ValueError, Stop])
def test_an_artefact_is_there_whole_or_not_at_all(error, store):
    def write(folder):
        (folder / "a.txt").write_text("half")
        raise error

    with pytest.raises(error):
        write_artefact(store, "distil", "k", {}, write)
    assert (
        content(store.root) == ["distil"]
        and find_artefact(store, "distil", "k") is None
        and store.count() == {}
    )
    write_artefact(store, "distil", "k", {}, lambda f: (f / "a.txt").write_text("whole"))
    with pytest.raises(error):
        write_artefact(store, "distil", "k", {}, write)  # the one that is there stays
    assert (find_artefact(store, "distil", "k") / "a.txt").read_text() == "whole" and content(store.root) == [
        "distil",
        "distil/k",
        "distil/k/a.txt",
        "distil/k/card.json",
    ]
    assert store.count() == {"distil": 1}


def test_a_card_says_what_its_files_are(store):
    folder = write_artefact(
        store, "distil", "k", {"lr": 0.5}, lambda f: [(f / n).write_text(n) for n in ("ä b", "c")]
    )
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    assert card == {
        "lr": 0.5,
        "stage": "distil",
        "key": "k",
        "files": {n: sha256_of(folder / n) for n in ("ä b", "c")},
    }
    assert what_is_wrong(folder) == ""
    mask = os.umask(0)
    os.umask(mask)
    assert (
        folder.stat().st_mode & 0o777 == 0o777 & ~mask
        and (folder / "card.json").stat().st_mode & 0o777 == 0o666 & ~mask
    )


# ---- damage


def rewrite(path, raw):
    "Another file of that name: tensors that were read from the old one stay what they are"
    path.unlink()
    path.write_bytes(raw)


def flip(path, at=0.5):
    raw = bytearray(path.read_bytes())
    raw[int(at * (len(raw) - 1))] ^= 1
    rewrite(path, raw)


DAMAGE = {
    "a byte changed": flip,
    "cut": lambda p: rewrite(p, p.read_bytes()[:-7]),
    "empty": lambda p: rewrite(p, b""),
    "gone": lambda p: p.unlink(),
}
FILES = (
    [("distil", n) for n in ("set.safetensors", "set.json")]
    + [("train", n) for n in ("last.safetensors", "best.safetensors", "right.safetensors", "training.json")]
    + [("attack", n) for n in ("flags.safetensors", "evaluation.json")]
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    "A finished cell and its store, which every test leaves as it found it"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(dataset, "tiny", lambda root: tiny_data())
        torch.set_num_threads(1)
        root = tmp_path_factory.mktemp(FOLDER)
        return root, run_stages(tiny_cell(root))


def folders(root, stage):
    return sorted(p for p in (Path(root) / stage).iterdir() if p.is_dir())


def test_these_are_all_files_there_are(finished):
    root, _ = finished
    assert {(s, p.name) for s in STAGES for f in folders(root, s) for p in f.iterdir()} == {
        *FILES,
        *((s, "card.json") for s in STAGES),
    }
    assert (
        {s: len(folders(root, s)) for s in STAGES}
        == {"distil": 1, "train": 2, "attack": 4}
        == Store(root).count()
    )


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("stage, name", FILES + [(s, "card.json") for s in STAGES])
def test_what_is_damaged_is_named_and_made_again(stage, name, how, finished):
    root, want = finished
    folder = folders(root, stage)[0]
    if (how, name) == ("a byte changed", "card.json"):
        flip(folder / name, 0)  # further on is text that nobody reads
    else:
        DAMAGE[how](folder / name)
    assert name in what_is_wrong(folder)
    with pytest.warns(
        DamagedArtefact, match=f"damaged artefact {stage}/{folder.name}: {name}.*computed again"
    ) as heard:
        got = run_stages(tiny_cell(root))
    assert len([w for w in heard if w.category is DamagedArtefact]) == 1
    same_results(got, want)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DamagedArtefact)
        same_results(run_stages(tiny_cell(root)), want)


def write_value(value, folder):
    save_file({"x": value}, folder / "x.safetensors")
    write_json(folder / "x.json", {"n": len(value)})


def read_value(folder):
    assert json.loads((folder / "x.json").read_text())["n"] == 3
    return load_file(folder / "x.safetensors")["x"]


def test_no_byte_of_a_card_can_mislead(store):
    "Whatever single byte changes: noticed, or the value is right all the same"
    value, known = torch.tensor([1.0, 2, 3]), {"x.safetensors", "x.json"}
    folder = write_artefact(store, "distil", "k", {"what": "demo"}, lambda f: write_value(value, f))
    raw, noticed = (folder / "card.json").read_bytes(), 0
    for i in range(len(raw)):
        (folder / "card.json").write_bytes(raw[:i] + bytes([raw[i] ^ (1 << i % 8)]) + raw[i + 1 :])
        noticed += bool(wrong := what_is_wrong(folder))
        if not wrong:
            assert set(json.loads((folder / "card.json").read_bytes())["files"]) == known
    assert noticed > 150


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", "null", '{"files": null}', '{"files": []}', '{"files": {"x.json": 1}}', "\xff"],
)
def test_cards_that_are_none(text, store):
    folder = write_artefact(store, "distil", "k", {}, lambda f: write_value(torch.ones(3), f))
    (folder / "card.json").write_bytes(text.encode("latin1"))
    with pytest.warns(DamagedArtefact, match="distil/k"):
        assert find_artefact(store, "distil", "k") is None


def test_what_is_whole_is_not_made_again(store):
    made = []

    def make(state, save):
        made.append(state)
        return torch.tensor([1.0, 2, 3])

    for _ in range(2):
        assert torch.equal(
            cached(store, "distil", "k", {}, make, write_value, read_value), torch.tensor([1.0, 2, 3])
        )
    assert made == [None]


# ---- states


@pytest.mark.parametrize("how", [h for h in DAMAGE if h != "gone"])
def test_a_damaged_state_means_to_start_again(how, store):
    "A changed byte among its numbers too: it would be trained on otherwise"
    save_state(store, "train", "k", dict(step=3, x=torch.ones(5000), text="жук"))
    assert load_state(store, "train", "k")["step"] == 3
    path = state_path(store, "train", "k")
    DAMAGE[how](path)
    got = []
    with pytest.warns(DamagedArtefact, match="damaged state train/k.state.*starts again"):
        cached(
            store,
            "train",
            "k",
            {},
            lambda state, save: got.append(state) or torch.ones(3),
            write_value,
            read_value,
        )
    assert got == [None] and not path.exists() and store.count() == {"train": 1}


def test_states_unpickle_nothing(store, tmp_path):
    "A state holds tensors and plain values; code in it is not run"

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "boom"),)

    save_state(store, "train", "k", dict(step=Bomb()))
    with pytest.warns(DamagedArtefact):
        assert load_state(store, "train", "k") is None
    assert not (tmp_path / "boom").exists()


def test_a_state_is_used_and_then_gone(store):
    def make(state, save):
        if state:
            return torch.full((3,), float(state["step"]))
        save(dict(step=7))
        raise Stop

    def call():
        return cached(store, "train", "k", {}, make, write_value, read_value)

    with pytest.raises(Stop):
        call()
    assert content(store.root) == ["train", "train/k.state"] and store.count() == {}
    assert call().tolist() == [7, 7, 7] and not state_path(store, "train", "k").exists()


# ---- killed

KILL = """
import os, signal, sys
from pathlib import Path
root, *scenarios = sys.argv[1:]
import torch
torch.set_num_threads(1)
from ddrobust_nb.foundations.datasets import dataset
from ddrobust_nb.results import store
from ddrobust_nb.results.cell_rows import run_stages
from tiny import tiny_cell, tiny_data
dataset["tiny"] = lambda root: tiny_data()

def die(): os.kill(os.getpid(), signal.SIGKILL)

def arrange(stage, moment):
    saves, save_state, sha256_of, replace = [], store.save_state, store.sha256_of, os.replace
    def saving(s, st, key, state):
        save_state(s, st, key, state)
        if st == stage: saves.append(key)
        if moment == "saved" and len(saves) == dict(distil=2, train=2, attack=1)[stage]: die()
    def hashing(path):
        if moment == "writing" and Path(path).parent.parent.name == stage: die()       # files are there, the card is not
        return sha256_of(path)
    def renaming(a, b):
        inside = Path(b).parent.name == stage
        if moment == "saving" and inside and str(b).endswith(".state") and (saves or stage == "attack"):
            os.truncate(a, 100)
            die()
        if moment == "renaming" and inside and os.path.isdir(a): die()                # card and all are there, under another name
        return replace(a, b)
    store.save_state, store.sha256_of, os.replace = saving, hashing, renaming

for scenario in scenarios:
    pid = os.fork()
    if not pid:
        try:
            arrange(*scenario.split("-"))
            run_stages(tiny_cell(Path(root) / scenario))
        finally: os._exit(0)
    print(scenario, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
SCENARIOS = [
    f"{stage}-{moment}"
    for stage in ("distil", "train", "attack")
    for moment in ("saved", "saving", "writing", "renaming")
]


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    "A folder with a store for each scenario, as the killed process left it"
    root = tmp_path_factory.mktemp("killed") / FOLDER
    path = os.pathsep.join(str(p) for p in Path(__file__).resolve().parents[1:3])
    done = subprocess.run(
        [sys.executable, "-c", KILL, str(root), *SCENARIOS],
        env={**os.environ, "DDROBUST_AUTOSAVE": "0", "DDROBUST_QUIET": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.splitlines() == [f"{s} -9" for s in SCENARIOS], done.stdout + done.stderr
    return root


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_killed_in_the_middle_and_run_again(scenario, killed, finished):
    stage = scenario.split("-")[0]
    store, (_, want) = Store(killed / scenario), finished
    left = [
        p
        for s in STAGES
        if (store.root / s).is_dir()
        for p in (store.root / s).iterdir()
        if not p.name.startswith(".")
    ]
    states = [p for p in left if p.suffix == ".state"]
    for folder in set(left) - set(states):
        assert what_is_wrong(folder) == "", "a half-written artefact under its final name"
    assert [p.parent.name for p in states] == [stage] * (0 if scenario == "attack-saving" else 1)
    done = {p.name for p in set(left) - set(states)}
    assert store.count().get(stage, 0) == sum(p.parent.name == stage for p in set(left) - set(states)), (
        "what was not renamed is not finished"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", DamagedArtefact)
        for p in states:
            assert load_state(store, stage, p.stem), "a half-written state"
        times = {p: p.stat().st_mtime_ns for p in left if p.name in done}
        same_results(run_stages(tiny_cell(store.root)), want)
    assert all(p.stat().st_mtime_ns == t for p, t in times.items()), "what was finished is made again"
    assert {s: len([p for p in folders(store.root, s) if not p.name.startswith(".")]) for s in STAGES} == {
        "distil": 1,
        "train": 2,
        "attack": 4,
    }
    assert not list(store.root.rglob("*.state"))


# ---- where it lies


def test_a_store_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "a file").write_text("x")
    for path in (tmp_path / "a file", tmp_path / "a file" / "runs", tmp_path / "a file" / "b" / "c"):
        for name in ("store", "out"):
            with pytest.raises(InputError, match=f"{name} cannot be written: .*a file") as caught:
                plan_cell(
                    dataset="tiny",
                    n_test=9,
                    options=dict(batch_real=6),
                    **{"store": str(tmp_path), name: str(path)},
                )
            assert "\n" not in str(caught.value)
    assert content(tmp_path) == ["a file"] and (tmp_path / "a file").read_text() == "x"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and user ids")
@pytest.mark.parametrize("mode", [0o500, 0o000])
def test_a_folder_of_somebody_else(mode):
    "Read-only, or not even to be looked into; root may do anything, so a process of another user asks"
    with tempfile.TemporaryDirectory() as root:
        os.chmod(root, 0o755)
        (closed := Path(root) / "closed").mkdir(mode)
        if not (pid := os.fork()):
            code = 1
            try:
                if os.geteuid() == 0:
                    os.setgid(65534), os.setuid(65534)
                for path in (closed, closed / "runs", closed / "a" / "b"):
                    with pytest.raises(InputError, match="store .*cannot be (written|read)"):
                        check_writable("store", path)
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        closed.chmod(0o700)
        assert content(root) == ["closed"]


def test_a_store_is_looked_for_and_not_made(tmp_path, monkeypatch):
    monkeypatch.delenv("DDROBUST_STORE", raising=False)
    checkout = tmp_path / FOLDER
    (checkout / "nbs" / "deep").mkdir(parents=True)
    monkeypatch.chdir(checkout / "nbs" / "deep")
    assert find_store().root == checkout / "nbs" / "deep" / "runs"
    (checkout / "runs").mkdir()
    assert find_store().root == checkout / "nbs" / "deep" / "runs", "a folder named runs alone is no checkout"
    (checkout / "settings.ini").write_text("")
    assert find_store().root == checkout / "runs"
    monkeypatch.setenv("DDROBUST_STORE", str(tmp_path / "other"))
    assert (
        find_store().root == tmp_path / "other"
        and find_store("here/там").root == checkout / "nbs" / "deep" / "here" / "там"
    )
    assert not (tmp_path / "other").exists()

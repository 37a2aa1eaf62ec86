"Cards, rows and records that somebody else wrote: right values, or one sentence that names the field"

import json
import re
import warnings
from contextlib import suppress
from dataclasses import asdict

import pytest
from refusals import sentence
import torch
from safetensors.torch import save_file

from ddrobust_nb.foundations.core import InputError
from ddrobust_nb.foundations.data import digits
from ddrobust_nb.foundations.outside import MissingFile, parse_json, read_json
from ddrobust_nb.grid.leaderboard import check_submission
from ddrobust_nb.results.finding import find_rows
from ddrobust_nb.results.reading import read_results
from ddrobust_nb.results.sources import checkpoint_card
from ddrobust_nb.results.store import (
    DamagedArtefact,
    Store,
    cached,
    cached_together,
    check_format,
    load_state,
    save_state,
    state_path,
    what_is_wrong,
    write_json,
)
from ddrobust_nb.training.distilled import DistilledSet, load_own_set, save_set
from ddrobust_nb.results.rows import example_row

HUGE = "9" * 5000
DEEP = "[" * 100_000 + "]" * 100_000
NOT_JSON = {
    "deep lists": DEEP,
    "deep objects": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "open lists": "[" * 100_000,
    "digits": HUGE,
    "digits inside": '{"seed": %s}' % HUGE,
    "NaN": '{"lr": NaN}',
    "infinity": "[-Infinity]",
    "too large": "1e999",
    "twice": '{"lr": 1, "lr": 2}',
    "half a character": '["\\ud800"]',
    "no text": b"\xff\xfe\x00",
    "empty": "",
    "two values": "{} {}",
    "comment": '{"a": 1} // one',
}


@pytest.fixture(scope="module")
def data():
    return digits()


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# What is not JSON


@pytest.mark.parametrize("content", NOT_JSON.values(), ids=NOT_JSON)
def test_what_is_not_json_is_one_sentence_everywhere(tmp_path, data, content):
    "The reader alone, and each kind of file that it reads"
    assert "card.json is not JSON" in sentence(lambda: read_json(write(tmp_path / "card.json", content)))
    write(tmp_path / "results.json", content)
    assert "is not a list of result rows" in sentence(lambda: read_results(tmp_path))
    assert all("\n" not in fault for fault in check_submission(tmp_path)) and check_submission(tmp_path)
    write(tmp_path / "store.json", content)
    assert "store.json cannot be read" in sentence(lambda: check_format(Store(tmp_path)))
    assert "card.json cannot be read" in what_is_wrong(tmp_path)
    save_file({"w": torch.zeros(1)}, tmp_path / "model.safetensors")
    write(tmp_path / "model.json", content)
    assert "model.json" in sentence(lambda: checkpoint_card(str(tmp_path / "model.safetensors"), data))
    a_set(tmp_path, data)
    write(tmp_path / "set.json", content)
    assert "set.json" in sentence(lambda: load_own_set(tmp_path))


def test_a_text_is_read_as_python_reads_it():
    "Where it is JSON, with a mark of the order of bytes or without"
    for value in ({"a": [1, -2.5e-3, None, True, "ä\u2028"]}, [], "text", 0, [[[[1]]]], 2**53, 10**40):
        text = json.dumps(value)
        assert (
            parse_json(text)
            == parse_json(text.encode())
            == parse_json(b"\xef\xbb\xbf" + text.encode())
            == value
        )
        assert json.dumps(parse_json(text)) == text
    assert parse_json('{"a": "[[[[" , "b": "\\\\\\"[["}') == {"a": "[[[[", "b": '\\"[['}
    assert parse_json(json.dumps("[" * 10_000)) == "[" * 10_000


def test_depth_counts_brackets_outside_of_texts():
    fits = "[" * 60 + "]" * 60
    assert parse_json(fits)
    assert "nested more than 60 deep" in sentence(lambda: parse_json(f"[{fits}]"))
    assert "nested" in sentence(lambda: parse_json('{"\\\\": ' * 61 + "1" + "}" * 61))


def test_a_file_that_is_none(tmp_path):
    with pytest.raises(MissingFile):
        read_json(tmp_path / "nothing.json")
    (tmp_path / "folder.json").mkdir()
    assert "is no file" in sentence(lambda: read_json(tmp_path / "folder.json"))
    with open(tmp_path / "huge.json", "wb") as file:
        file.truncate(2**40)  # Takes no place on the disk
    assert "has 1099511627776 bytes" in sentence(lambda: read_json(tmp_path / "huge.json"))


# Cards of sets


def a_set(folder, data, **card):
    "A set of ten images whose card says something else"
    images = torch.rand(10, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    dset = DistilledSet(data.spec, images, torch.arange(10), method="dm", ipc=1, lr=0.01)
    save_set(dset, folder)
    path = folder / "set.json"
    found = json.loads(path.read_text())
    spec = card.pop("spec", {})
    if isinstance(spec, dict):
        found["spec"] |= spec
    else:
        found["spec"] = spec
    path.write_text(json.dumps(found | card))
    return folder


@pytest.mark.parametrize(
    ("card", "field"),
    [
        (dict(lr=float("nan")), "lr"),
        (dict(lr=float("inf")), "lr"),
        (dict(lr="x"), "lr"),
        (dict(lr=-1), "lr"),
        (dict(lr=0), "lr"),
        (dict(lr=True), "lr"),
        (dict(lr=[0.01]), "lr"),
        (dict(seed=-5), "seed"),
        (dict(seed=1.0), "seed"),
        (dict(seed="0"), "seed"),
        (dict(seed=10**30), "seed"),
        (dict(ipc=0), "ipc"),
        (dict(ipc=[1]), "ipc"),
        (dict(ipc=True), "ipc"),
        (dict(method="../../x"), "method"),
        (dict(method=5), "method"),
        (dict(method="a" * 1000), "method"),
        (dict(teacher="text"), "teacher"),
        (dict(teacher=5), "teacher"),
        (dict(teacher=[]), "teacher"),
        (dict(teacher={}), "teacher.key"),
        (dict(teacher={"key": 5}), "teacher.key"),
        (dict(config=[]), "config"),
        (dict(config="none"), "config"),
        (dict(spec="digits"), "spec"),
        (dict(spec=[]), "spec"),
        (dict(spec=dict(classes="10")), "spec.classes"),
        (dict(spec=dict(classes=10.0)), "spec.classes"),
        (dict(spec=dict(classes=-1)), "spec.classes"),
        (dict(spec=dict(size=10**9)), "spec.size"),
        (dict(spec=dict(channels="1")), "spec.channels"),
        (dict(spec=dict(mean="x")), "spec.mean"),
        (dict(spec=dict(mean=["x"])), "spec.mean[0]"),
        (dict(spec=dict(std=[1e300])), "spec.std[0]"),
        (dict(spec=dict(class_names=[1])), "spec.class_names[0]"),
        (dict(spec=dict(name=None)), "spec.name"),
    ],
    ids=str,
)
def test_a_card_names_its_wrong_field(tmp_path, data, card, field):
    said = sentence(lambda: load_own_set(a_set(tmp_path, data, **card)))
    assert re.search(rf"{re.escape(field)}(?!\w)", said) and "set.json" in said


def test_right_cards_are_read_as_before(tmp_path, data):
    "With every optional field, and with those left out that may be"
    card = dict(lr=0.02, seed=3, config={"iterations": 5}, teacher=dict(key="a" * 16, temperature=20.0))
    dset = load_own_set(a_set(tmp_path / "a", data, **card))
    assert (dset.lr, dset.seed, dset.config, dset.teacher) == (0.02, 3, {"iterations": 5}, card["teacher"])
    dset = load_own_set(a_set(tmp_path / "b", data, lr=None, teacher=None))
    assert dset.lr is None and dset.spec == data.spec


# Cards of models


@pytest.mark.parametrize(
    ("card", "field"),
    [
        (dict(dataset=5), "dataset"),
        (dict(network=[]), "network"),
        (dict(ipc=[1]), "ipc"),
        (dict(ipc=1e19), "ipc"),
        (dict(seed=-5), "seed"),
        (dict(seed="x"), "seed"),
        (dict(set_seed={}), "set_seed"),
        (dict(options="none"), "options"),
        (dict(recipe=[1]), "recipe"),
        (dict(labels=5), "labels"),
        ([1], "must be an object"),
    ],
    ids=str,
)
def test_a_card_of_a_model_names_its_wrong_field(tmp_path, data, card, field):
    save_file({"w": torch.zeros(1)}, tmp_path / "model.safetensors")
    write(tmp_path / "model.json", json.dumps(card))
    assert field in sentence(lambda: checkpoint_card(str(tmp_path / "model.safetensors"), data))
    write(tmp_path / "model.json", json.dumps(dict(dataset="digits", network="ConvNetD3", seed=3, ipc=None)))
    assert checkpoint_card(str(tmp_path / "model.safetensors"), data)["seed"] == 3


# Submissions


WRONG_VALUES = ([1], {}, "x", 1e19, -1, None)


def submission(folder, **change):
    "One row in a folder that could be submitted"
    row = asdict(example_row(method="dm")) | change
    write(folder / "results.json", json.dumps([row]))
    write_json(folder / "card.json", dict(method="dm", authors="A. Body", source="https://example.org"))
    return folder


@pytest.mark.parametrize("name", sorted(asdict(example_row(method="dm"))))
def test_no_field_of_a_submission_ends_in_a_traceback(tmp_path, name):
    "Right, or sentences; what is found in them by the tables is never a traceback either"
    for value in WRONG_VALUES:
        folder = submission(tmp_path, **{name: value})
        faults = check_submission(folder)
        assert all(isinstance(fault, str) and "\n" not in fault and len(fault) < 900 for fault in faults)
        if name in ("ipc", "steps", "n", "drop_rate", "set_seed", "seed") and isinstance(
            value, (str, list, dict)
        ):
            assert any(name in fault for fault in faults), (name, value, faults)
    with suppress(InputError):
        find_rows(submission(tmp_path, **{name: [1]}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(ipc=[1]), "ipc must be a whole number"),
        (dict(steps="x"), "steps must be a whole number"),
        (dict(n=1e19), "n must be a whole number"),
        (dict(n=10**19), "n must be below 2**53"),
        (dict(drop_rate="0.5"), "drop_rate must be a number"),
        (dict(set_seed={}), "set_seed must be a whole number"),
        (dict(best=1), "best must be true or false"),
        (dict(warnings=[{}]), "warnings must be a list of texts"),
    ],
    ids=str,
)
def test_a_submission_names_its_wrong_field(tmp_path, change, words):
    assert words in " ".join(check_submission(submission(tmp_path, **change)))


@pytest.mark.parametrize(
    "card", [[], "x", {"method": 5}, {"method": ["dm"]}, {"source": {"a": 1}}, {"authors": []}]
)
def test_a_card_of_a_submission(tmp_path, card):
    folder = submission(tmp_path)
    write(folder / "card.json", json.dumps(card))
    assert check_submission(folder) and all("\n" not in fault for fault in check_submission(folder))


# The store


def test_a_card_that_lost_a_file_together_with_the_file(tmp_path):
    "It is named, and the work is done again: for one item and for several"
    store = Store(tmp_path)
    calls = []

    def make(*given):
        calls.append(1)
        return [1] if isinstance(given[0], list) else 1

    def put(value, folder):
        for name in ("a.json", "b.json"):
            write_json(folder / name, value)

    def get(folder, item=None):
        return read_json(folder / "a.json") + read_json(folder / "b.json")

    def one():
        return cached(store, "train", "0123", {}, make, put, get)

    def several():
        return cached_together(store, "attack", {"x": "4567"}, lambda item: {}, make, put, get)["x"]

    for stage, key, run in (("train", "0123", one), ("attack", "4567", several)):
        assert run() == run() == 2 and len(calls) == 1
        folder = store.folder(stage, key)
        card = json.loads((folder / "card.json").read_text())
        del card["files"]["b.json"]
        write_json(folder / "card.json", card)
        (folder / "b.json").unlink()
        with pytest.warns(DamagedArtefact, match=f"{stage}/{key}: it is incomplete"):
            assert run() == 2
        assert len(calls) == 2 and run() == 2 and len(calls) == 2
        calls.clear()


def test_a_state_of_other_work_is_not_taken(tmp_path):
    "Of another stage, of another key; one that does not say of what it is was written by an older version"
    store = Store(tmp_path)
    save_state(store, "train", "0123", {"batch": 3})
    assert load_state(store, "train", "0123") == {"batch": 3}
    content = state_path(store, "train", "0123").read_bytes()
    for stage, key in (("distil", "0123"), ("train", "4567"), ("attack", "89ab")):
        state_path(store, stage, key).parent.mkdir(exist_ok=True)
        state_path(store, stage, key).write_bytes(content)
        with pytest.warns(DamagedArtefact, match="starts again"):
            assert load_state(store, stage, key) is None
    import hashlib
    import io

    file = io.BytesIO()
    torch.save({"batch": 4}, file)
    old = file.getvalue()
    state_path(store, "train", "cdef").write_bytes(hashlib.sha256(old).digest() + old)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_state(store, "train", "cdef") == {"batch": 4}


def test_a_folder_where_a_file_is_written(tmp_path):
    (tmp_path / "cell.json").mkdir()
    assert "is a folder, where a file is to be written" in sentence(
        lambda: write_json(tmp_path / "cell.json", {})
    )
    (tmp_path / "store.json").mkdir()
    assert "is no file" in sentence(lambda: check_format(Store(tmp_path)))
    state_path(Store(tmp_path), "train", "0123").mkdir(parents=True)
    assert "is a folder" in sentence(lambda: save_state(Store(tmp_path), "train", "0123", {}))


@pytest.mark.parametrize(
    "card",
    [
        {"key": "0123", "files": {"../secret": "a" * 64}},
        {"key": "0123", "files": {"/etc/passwd": "a" * 64}},
        {"key": "0123", "files": {"..": "a" * 64}},
        {"key": "0123", "files": {"a\\b": "a" * 64}},
        {"key": "0123", "files": {"a": 5}},
        {"key": 5, "files": {}},
        {"key": "0123", "files": [["a", "b"]]},
    ],
    ids=str,
)
def test_a_card_never_leads_out_of_its_folder(tmp_path, card):
    folder = tmp_path / "0123"
    folder.mkdir()
    write_json(folder / "card.json", card)
    assert what_is_wrong(folder).startswith("card.json cannot be read")

"""Harmless stand-ins for hostile files: no code of theirs runs, nothing is written outside, one sentence each.

Each stand-in would leave a file `ran` in the working folder, which a real one would do with your data."""

import gzip
import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from refusals import sentence
import torch
from PIL import Image
from safetensors.torch import save_file

from ddrobust_nb.distillers.mtt import load_experts, mtt
from ddrobust_nb.foreign.containers import read_container
from ddrobust_nb.foreign.sets import load_set
from ddrobust_nb.foundations.batches import read_batch, read_class_names
from ddrobust_nb.foundations.core import InputError
from ddrobust_nb.foundations.data import Spec
from ddrobust_nb.foundations.datasets import load_data
from ddrobust_nb.foundations.files import decode, read_cache, read_idx
from ddrobust_nb.grid.leaderboard import check_submission
from ddrobust_nb.grid.tables import to_latex, write_table
from ddrobust_nb.results.keeping import harmless_text
from ddrobust_nb.results.reading import read_results
from ddrobust_nb.results.sources import checkpoint_card
from ddrobust_nb.results.store import DamagedArtefact, Store, load_state, state_path, what_is_wrong


class Trap:
    "Writes a file where Python unpickles it"

    def __reduce__(self):
        return os.system, ("touch ran",)


class Eval:
    "The same by a function of Python itself"

    def __reduce__(self):
        return eval, ("open('ran', 'w').write('')",)


TRAPS = (Trap(), Eval())


@pytest.fixture(autouse=True)
def watched(tmp_path, monkeypatch):
    "The files go into a folder of a watched one; afterwards there is nothing else"
    inside = tmp_path / "outside" / "inside"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    yield
    outside = [path for path in tmp_path.rglob("*") if inside not in path.parents and path != inside]
    assert outside == [tmp_path / "outside"], "something was written outside"
    assert not (inside / "ran").exists(), "code of the file has run"


def torch_archive(path, pickled, extra=()):
    "A file as `torch.save` makes it, with a pickle of its own"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
        for name, content in extra:
            archive.writestr(name, content)


def object_array(path):
    np.save(path, np.array([Trap()], dtype=object), allow_pickle=True)


def object_arrays(path):
    np.savez(path, images=np.zeros((2, 3)), labels=np.array([Trap()], dtype=object))


def in_tensor_attribute(path):
    tensor = torch.zeros(2)
    tensor.note = Trap()
    torch.save({"images": tensor}, path)


def whole_module(path):
    torch.save(torch.nn.Sequential(torch.nn.Linear(2, 2)), path)


def program(path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))


CONTAINERS = {
    "pickle as x.pt": lambda p: p.write_bytes(pickle.dumps(Trap())),
    "pickle as x.pkl": lambda p: p.write_bytes(pickle.dumps({"images": Eval()})),
    "pickle of protocol 0": lambda p: p.write_bytes(pickle.dumps(Trap(), 0)),
    "pickle as x.safetensors": lambda p: p.write_bytes(pickle.dumps(Trap())),
    "torch file": lambda p: torch.save({"images": Trap()}, p),
    "old torch file": lambda p: torch.save({"images": Trap()}, p, _use_new_zipfile_serialization=False),
    "torch archive by hand": lambda p: torch_archive(p, pickle.dumps(Eval(), 2)),
    "trap in an ordered dict": lambda p: torch.save(OrderedDict(a=torch.zeros(1), b=Eval()), p),
    "trap beside a tensor": in_tensor_attribute,
    "trap as a key": lambda p: torch_archive(p, pickle.dumps({("a", Trap()): 1}, 2)),
    "whole module": whole_module,
    "TorchScript": program,
    "object array": lambda p: object_array(p),
    "object arrays": lambda p: object_arrays(p),
    "two pickles in one archive": lambda p: torch_archive(
        p, pickle.dumps({}, 2), [("b/data.pkl", pickle.dumps(Trap(), 2))]
    ),
    "array of 10 TB": lambda p: p.write_bytes(npy_head((10**6, 10**7))),
    "safetensors of 10 TB": lambda p: p.write_bytes(safetensors_head([10**6, 10**7])),
    "safetensors with a head of 1 EB": lambda p: p.write_bytes(struct.pack("<Q", 2**60) + b"{}"),
    "safetensors of negative length": lambda p: p.write_bytes(safetensors_head([-4])),
    "zip bomb": lambda p: zip_bomb(p),
    "nested deeply": lambda p: torch_archive(p, b"\x80\x02" + b"]" * 20_000 + b"a" * 19_999 + b"."),
    "contains itself": lambda p: torch_archive(p, b"\x80\x02]q\x00h\x00a."),
}


def npy_head(shape):
    "The head of a .npy file without its numbers"
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.getvalue() + b"1234"


def safetensors_head(shape):
    head = json.dumps({"images": {"dtype": "U8", "shape": shape, "data_offsets": [0, 4]}}).encode()
    return struct.pack("<Q", len(head)) + head + b"1234"


def zip_bomb(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", npy_head((10**8,)) + bytes(10**8))


@pytest.mark.parametrize("name", CONTAINERS)
def test_containers(name):
    "By the reader of files, of sets and, where it is a batch of CIFAR, by that"
    suffix = ".npy" if name.startswith(("object array", "array")) else ".pt"
    suffix = ".npz" if name in ("object arrays", "zip bomb") else suffix
    path = Path(f"x{suffix}")
    CONTAINERS[name](path)
    data = load_data("digits")
    sentence(lambda: read_container(path))
    sentence(lambda: load_set(path, data))
    sentence(lambda: read_batch(path, "labels"))


def test_archives_whose_entries_lead_out():
    "Names are names of values, never of places"
    good = io.BytesIO()
    np.save(good, np.zeros((2, 2)))
    with zipfile.ZipFile("x.npz", "w") as archive:
        for name in ("../../evil.npy", "/tmp/evil.npy", "..\\evil.npy"):
            archive.writestr(name, good.getvalue())
    assert len(read_container("x.npz")) == 3
    torch_archive(Path("x.pt"), pickle.dumps({"a": 1}, 2), [("../../evil", "x"), ("/evil", "x")])
    try:
        assert read_container("x.pt") == {"a": 1}
    except InputError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("trap", TRAPS, ids=["system", "eval"])
def test_batches_of_cifar(trap):
    Path("cifar10").mkdir()
    Path("batches.meta").write_bytes(pickle.dumps({"label_names": trap}))
    sentence(lambda: read_class_names(Path("."), "label_names"))
    for i in range(1, 6):
        Path(f"cifar10/data_batch_{i}").write_bytes(pickle.dumps({"data": trap, "labels": [trap]}))
    assert "it asks for" in sentence(lambda: load_data("cifar10", "."))


def test_states_and_caches():
    "Both are dropped with a warning"
    import hashlib

    store = Store(Path("store"))
    state_path(store, "train", "0123").parent.mkdir(parents=True)
    for content in (pickle.dumps(Trap()), torch_bytes(Trap()), torch_bytes({"of": Eval(), "state": 1})):
        state_path(store, "train", "0123").write_bytes(hashlib.sha256(content).digest() + content)
        with pytest.warns(DamagedArtefact, match="starts again"):
            assert load_state(store, "train", "0123") is None
        Path("cache.safetensors").write_bytes(content)
        with pytest.warns(UserWarning, match="damaged"):
            assert read_cache(Path("cache.safetensors"), "key") is None


def torch_bytes(value):
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def test_experts():
    "Their card is JSON in a tensor"
    Path("experts").mkdir()
    card = torch.tensor(list(b"[" * 100_000), dtype=torch.uint8)
    save_file({"snapshots": torch.zeros(2, 3), "card": card}, "experts/0.safetensors")
    Path("experts/1.safetensors").write_bytes(pickle.dumps(Trap()))
    experts = load_experts("experts")
    data = load_data("digits")
    for expert in experts:
        sentence(lambda expert=expert: mtt(data, 1, experts=[expert], network="ConvNetD3-w4"))


# Images


def png(width, height):
    "A PNG that declares a size and holds nothing"

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )


def gif(width, height):
    return (
        b"GIF89a"
        + struct.pack("<HH", width, height)
        + b"\0\0\0,\0\0\0\0"
        + struct.pack("<HH", width, height)
        + b"\0\x02\0;"
    )


IMAGES = {
    "strip of 1 x 10,000,000": png(1, 10_000_000),
    "strip of 10,000,000 x 1": png(10_000_000, 1),
    "4 billion pixels": png(65_000, 65_000),
    "2**31 wide": png(2**31 - 1, 2**31 - 1),
    "nothing wide": png(0, 10),
    "large animation": gif(65_535, 65_535),
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(ran) (w) file closefile showpage\n",
    "vector drawing": b'<svg xmlns="http://www.w3.org/2000/svg" onload="ran()"><image href="file:///etc/passwd"/></svg>',
    "pickle": pickle.dumps(Trap()),
    "empty": b"",
}


@pytest.mark.parametrize("content", IMAGES.values(), ids=IMAGES)
def test_images(content):
    Path("x.png").write_bytes(content)
    said = sentence(lambda: decode("x.png", 32, 3))
    assert "x.png" in said
    for half in ("train", "test"):
        for name in "ab":
            Path(f"tree/{half}/{name}").mkdir(parents=True)
            Path(f"tree/{half}/{name}/x.png").write_bytes(content)
    assert "x.png" in sentence(lambda: load_data("folder:tree"))


def test_a_packed_file_that_unpacks_to_gigabytes():
    "What it declares decides, and nothing beyond that is unpacked"
    packed = zlib.compressobj(9, zlib.DEFLATED, 31)
    blocks = [packed.compress(b"\0\0\x08\x01" + struct.pack(">I", 3_000_000_000))]
    zeros = bytes(2**24)
    blocks += [packed.compress(zeros) for _ in range(4)] + [packed.flush()]
    Path("train-labels-idx1-ubyte.gz").write_bytes(b"".join(blocks))
    assert "declares 3000000000 bytes" in sentence(lambda: read_idx(Path("."), "train-labels-idx1-ubyte"))
    Path("train-labels-idx1-ubyte.gz").write_bytes(
        gzip.compress(b"\0\0\x08\x01" + struct.pack(">I", 3) + zeros, 1)
    )
    assert "not a whole IDX file" in sentence(lambda: read_idx(Path("."), "train-labels-idx1-ubyte"))
    Path("train-labels-idx1-ubyte.gz").unlink()
    for head in (
        b"",
        b"\0\0\x08",
        b"\0\0\x08\xff",
        b"\0\0\x08\x00",
        b"\0\0\x08\x02" + struct.pack(">II", 2**31, 2**31),
    ):
        Path("train-labels-idx1-ubyte").write_bytes(head)
        sentence(lambda: read_idx(Path("."), "train-labels-idx1-ubyte"))


def test_lists_of_images_that_lead_out():
    "The list of TinyImageNet's validation images, and its list of classes"
    place = Path("tiny-imagenet-200")
    for name in ("train/a/images", "val/images"):
        (place / name).mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(place / "train/a/images/x.png")
    Image.new("RGB", (64, 64)).save("secret.png")
    (place / "wnids.txt").write_text("a\n")
    for name in ("../../../secret.png", "/etc/passwd", "..", "a/../../b.png"):
        (place / "val/val_annotations.txt").write_text(f"{name}\ta\t0\t0\t1\t1\n")
        assert "no name of a file in it" in sentence(lambda: load_data("tinyimagenet", "."))
    (place / "wnids.txt").write_text("../../inside\na\n")
    assert "no folder in it" in sentence(lambda: load_data("tinyimagenet", "."))


# Cards and links


def test_cards_that_lead_out():
    Path("0123").mkdir()
    for name in ("../../secret", "/etc/passwd", "a/b"):
        Path("0123/card.json").write_text(json.dumps({"key": "0123", "files": {name: "0" * 64}}))
        assert "must be the name of a file in the same folder" in what_is_wrong(Path("0123"))
    save_file({"w": torch.zeros(1)}, "model.safetensors")
    Path("model.json").write_text(
        json.dumps({"method": Path("../" * 9).as_posix(), "dataset": "digits", "network": 5})
    )
    sentence(lambda: checkpoint_card("model.safetensors", load_data("digits")))


def test_links_that_leave_the_folder():
    "They are read as what they point to, and refused as no such file; nothing is written through them"
    Path("set").mkdir()
    Path("set/set.safetensors").symlink_to("/etc/hostname")
    Path("set/set.json").symlink_to("/dev/zero")
    sentence(lambda: load_set("set", load_data("digits")))
    Path("results.json").symlink_to("/dev/zero")
    sentence(lambda: read_results("."))
    assert all("\n" not in fault for fault in check_submission("."))
    Path("loop.json").symlink_to("loop.json")
    sentence(lambda: load_set("loop.json", load_data("digits")))


def test_an_artefact_replaced_by_a_link_is_made_again_in_its_place(tmp_path):
    "The folder that it points to keeps its files"
    from ddrobust_nb.results.store import write_artefact

    store = Store(Path("store"))
    Path("store/train").mkdir(parents=True)
    Path("mine").mkdir()
    Path("mine/precious").write_text("keep")
    Path("store/train/0123").symlink_to(Path("mine").absolute())
    write_artefact(store, "train", "0123", {}, lambda folder: (folder / "a").write_text("x"))
    assert Path("mine/precious").read_text() == "keep" and [*Path("mine").iterdir()] == [
        Path("mine/precious")
    ]
    assert not Path("store/train/0123").is_symlink()


# Texts that are shown


MARKUP = "<script>ran()</script><img src=x onerror=ran()>"


def test_markup_in_names_is_shown_as_text():
    spec = Spec(MARKUP, 2, 8, 1, (0.5,), (0.2,), (MARKUP, "b"))
    texts = [spec._repr_html_(), Store(Path(MARKUP.replace("/", "")))._repr_html_()]
    for half in ("train", "test"):
        for name, colour in (("<b onclick=ran()>", 0), ("b", 255)):
            folder = Path("<i>tree") / half / name
            folder.mkdir(parents=True)
            Image.fromarray(np.full((8, 8), colour, np.uint8)).save(folder / "x.png")
    texts.append(load_data("folder:<i>tree")._repr_html_())
    for text in texts:
        assert not any(tag in text for tag in ("<script", "<img src=x", "<i>", "<b "))


def test_latex_in_names_is_printed_as_text():
    table = pd.DataFrame(
        {"method": [r"\input{/etc/passwd}", "a & b % c", r"\write18{touch ran}"], "robust": [1, 2, 3]}
    )
    text = to_latex(table)
    assert r"\input" not in text and r"\write" not in text and r"a \& b \% c" in text


@pytest.mark.parametrize("text", ["=1+2", "+1+cmd|' /C calc'!A0", "-2+3+cmd|x", "@SUM(1)", "\t=1", " =1"])
def test_cells_of_a_spreadsheet_are_no_formulas(text):
    assert harmless_text(text) == f"'{text}"
    write_table(pd.DataFrame({"method": [text], text: [0.5]}), "x.csv")
    back = pd.read_csv("x.csv", keep_default_na=False)
    assert back["method"][0] == f"'{text}" and f"'{text}" in back.columns


def test_a_text_does_not_begin_a_new_line_of_a_spreadsheet():
    for text in ("\r=1", "dm\r=1", "dm\n=1"):
        write_table(pd.DataFrame({"method": [text], "n": [1]}), "x.csv")
        back = pd.read_csv("x.csv", keep_default_na=False)
        assert len(back) == 1 and "\r" not in back["method"][0]


def test_numbers_in_a_spreadsheet_stay_numbers():
    for value in (-1, 2.5, "-3.5", "+2", "-3.4 ± 0.2", "-1.5e-3", "dm", "", "–", None, "mix:dm", "5 (-2.1)"):
        assert harmless_text(value) == value
    table = pd.DataFrame({"method": ["dm", "dc"], "gain": [-0.5, 0.25], "n": [-1, 2]})
    write_table(table, "x.csv")
    assert pd.read_csv("x.csv").equals(table)

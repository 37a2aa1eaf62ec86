"Containers: every format comes back as the same plain values, and a damaged or hostile file ends in one sentence."

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ddrobust_nb.foreign.containers import MAX_DEPTH, container_format, read_container
from ddrobust_nb.foundations.core import InputError, generator

IMAGES = torch.rand(4, 3, 8, 8, generator=generator(0, "images"))
LABELS = torch.arange(4)


def as_torch(path, **options):
    torch.save({"images": IMAGES, "labels": LABELS}, path, **options)


WRITERS = {
    "new.pt": as_torch,
    "old.pth": lambda path: as_torch(path, _use_new_zipfile_serialization=False),
    "arrays.npz": lambda path: np.savez(path, images=IMAGES.numpy(), labels=LABELS.numpy()),
    "small.npz": lambda path: np.savez_compressed(path, images=IMAGES.numpy(), labels=LABELS.numpy()),
    "set.pkl": lambda path: path.write_bytes(pickle.dumps({"images": IMAGES, "labels": LABELS})),
    "set.safetensors": lambda path: save_file({"images": IMAGES, "labels": LABELS}, path),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("other_suffix", [False, True])
def test_every_container(tmp_path, name, other_suffix):
    WRITERS[name](tmp_path / name)
    path = (tmp_path / name).rename(tmp_path / "images.bin") if other_suffix else tmp_path / name
    values = read_container(path)
    assert type(values) is dict and set(values) == {"images", "labels"}
    assert torch.equal(values["images"], IMAGES) and torch.equal(values["labels"], LABELS)


@pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f8", "|u1", "<i4", ">i8", "<u2", "<u4", "<u8", "|b1"])
@pytest.mark.parametrize("order", "CF")
def test_arrays_of_any_type_and_order(tmp_path, dtype, order):
    array = np.asarray(np.arange(24).reshape(2, 3, 4) % 7, dtype=dtype, order=order)
    np.save(tmp_path / "x.npy", array)
    value = read_container(tmp_path / "x.npy")
    assert value.is_contiguous() and value.tolist() == array.tolist()


def test_numbers_and_no_dimension(tmp_path):
    np.save(tmp_path / "lr.npy", np.float32(0.5))
    assert read_container(tmp_path / "lr.npy").shape == ()
    np.savez(tmp_path / "x.npz", names=np.array(["plane", "car"]), empty=np.zeros((0, 3)))
    values = read_container(tmp_path / "x.npz")
    assert values["names"] == ["plane", "car"] and values["empty"].shape == (0, 3)


def numpy_1_names(path, as_old):
    "The same file as numpy 1 would have written it"
    raw = path.read_bytes()
    if as_old:
        path.write_bytes(raw.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
        return
    source = zipfile.ZipFile(io.BytesIO(raw))
    with zipfile.ZipFile(path, "w") as target:
        for entry in source.infolist():
            body = source.read(entry)
            target.writestr(entry.filename, body.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))


@pytest.mark.parametrize("numpy_1", [True, False])
@pytest.mark.parametrize("as_zip", [True, False])
def test_numpy_scalars(tmp_path, numpy_1, as_zip):
    scalars = [np.float64(0.25), np.float32(0.5), np.int64(-3), np.bool_(True), np.uint8(200)]
    path = tmp_path / "res.pt"
    torch.save(
        {"data": [[IMAGES, LABELS]], "accs": {"ConvNet": scalars}},
        path,
        _use_new_zipfile_serialization=as_zip,
    )
    if numpy_1:
        numpy_1_names(path, as_old=not as_zip)
    accs = read_container(path)["accs"]["ConvNet"]
    assert accs == [0.25, 0.5, -3, True, 200] and [type(a) for a in accs] == [float, float, int, bool, int]
    with pytest.raises(Exception, match="multiarray"):  # nothing stays allowed
        torch.load(path, weights_only=True)


class Calls:
    "Pickled, it calls a function when it is read"

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("as_zip", [True, False])
@pytest.mark.parametrize("hidden", ["value", "key", "state"])
def test_no_code_runs(tmp_path, as_zip, hidden):
    hostile = Calls(Path.touch, tmp_path / "ran")
    state = OrderedDict(w=IMAGES)
    if hidden == "state":
        state._metadata = hostile
    values = {"value": [hostile], "key": {"a": {"b": hostile}}, "state": state}[hidden]
    torch.save(values, tmp_path / "x.pt", _use_new_zipfile_serialization=as_zip)
    with pytest.raises(InputError, match="would run or build"):
        read_container(tmp_path / "x.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("protocol", range(2, 6))
def test_bare_pickles(tmp_path, protocol):
    path = tmp_path / "set.pkl"
    path.write_bytes(pickle.dumps((IMAGES, LABELS, np.float64(0.5), {"a": [1, None, True, b"x"]}), protocol))
    images, labels, number, rest = read_container(path)
    assert torch.equal(images, IMAGES) and torch.equal(labels, LABELS)
    assert (number, rest) == (0.5, {"a": [1, None, True, "x"]})
    hostile = [
        Calls(Path.touch, tmp_path / "ran"),
        Calls(eval, "1"),
        Calls(torch.storage._load_from_bytes, as_bytes(tmp_path)),
    ]
    for value in hostile:
        path.write_bytes(pickle.dumps([IMAGES, value], protocol))
        with pytest.raises(InputError):
            read_container(path)
    assert not (tmp_path / "ran").exists()


def as_bytes(tmp_path):
    "A file inside a pickle that runs a program"
    file = io.BytesIO()
    torch.save(Calls(Path.touch, tmp_path / "ran"), file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def test_objects_are_named(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pt")
    with pytest.raises(InputError, match=r"torch\.nn\.modules\.linear\.Linear.*state_dict"):
        read_container(tmp_path / "model.pt")
    torch.save({"accs": np.zeros(3)}, tmp_path / "array.pt")
    with pytest.raises(InputError, match="_reconstruct"):
        read_container(tmp_path / "array.pt")


def test_tensors_stand_on_their_own(tmp_path):
    base = torch.zeros(1000, requires_grad=True)
    complex_view = torch.arange(4.0).to(torch.complex64).conj()
    values = {"part": base[:3], "again": base, "parameter": torch.nn.Parameter(IMAGES), "lazy": complex_view}
    torch.save(values, tmp_path / "x.pt")
    read = read_container(tmp_path / "x.pt")
    assert read["part"].untyped_storage().nbytes() == 12
    assert type(read["parameter"]) is torch.Tensor and not any(v.requires_grad for v in read.values())
    assert not read["lazy"].is_conj() and torch.equal(read["lazy"], complex_view.resolve_conj())


@pytest.mark.parametrize("as_zip", [True, False])
def test_sizes_are_limited(tmp_path, as_zip):
    path = tmp_path / "x.pt"
    torch.save({"x": torch.zeros(1).expand(10**9)}, path, _use_new_zipfile_serialization=as_zip)
    with pytest.raises(InputError, match="declares values of 4,000,000,000 bytes"):
        read_container(path)
    shared = ["x"]
    for _ in range(30):  # 2 ** 30 values when they are counted one by one
        shared = [shared, shared]
    torch.save(shared, path, _use_new_zipfile_serialization=as_zip)
    with pytest.raises(InputError, match="1,000,000 values"):
        read_container(path)
    deep = []
    for _ in range(MAX_DEPTH + 1):
        deep = [deep]
    torch.save(deep, path, _use_new_zipfile_serialization=as_zip)
    with pytest.raises(InputError, match="levels"):
        read_container(path)


def with_entry(path, change, compression=zipfile.ZIP_STORED):
    "Write a zip archive again with changed entries"
    source = zipfile.ZipFile(io.BytesIO(path.read_bytes()))
    with zipfile.ZipFile(path, "w", compression) as target:
        for entry in source.infolist():
            for name, body in change(entry.filename, source.read(entry)):
                target.writestr(name, body)


def test_zip_bombs(tmp_path):
    as_torch(tmp_path / "x.pt")

    def zeros(name, body):
        yield name, bytes(2**28) if name.endswith("data/0") else body

    with_entry(tmp_path / "x.pt", zeros, zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match="declares values of 268"):
        read_container(tmp_path / "x.pt")
    np.savez_compressed(tmp_path / "x.npz", images=np.zeros(2**28, np.uint8))
    with pytest.raises(InputError, match="declares values of 268"):
        read_container(tmp_path / "x.npz")


def test_two_pickles_of_one_name(tmp_path):
    "Two readers of zip archives may take different ones of two entries"
    as_torch(tmp_path / "x.pt")

    def twice(name, body):
        yield name, body
        if name.endswith("data.pkl"):
            yield name, body

    with pytest.warns(UserWarning):
        with_entry(tmp_path / "x.pt", twice)
    with pytest.raises(InputError, match="not one that torch.save wrote"):
        read_container(tmp_path / "x.pt")


def test_storage_without_its_numbers(tmp_path):
    as_torch(tmp_path / "x.pt")

    def shorter(name, body):
        yield name, body[:16] if name.endswith("data/0") else body

    with_entry(tmp_path / "x.pt", shorter)
    with pytest.raises(InputError, match="get the file again"):
        read_container(tmp_path / "x.pt")


@pytest.mark.parametrize("shape", [(10**12,), (2**62, 2**62), (3, 10**9, 10**9)])
@pytest.mark.parametrize("packed", [False, True])
def test_huge_declared_shapes(tmp_path, shape, packed):
    header = io.BytesIO()
    np.lib.format.write_array_header_2_0(header, {"descr": "<f8", "fortran_order": False, "shape": shape})
    path = tmp_path / "x.npy"
    path.write_bytes(header.getvalue() + bytes(80))
    if packed:
        with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
            archive.write(path, "images.npy")
        path = tmp_path / "x.npz"
    with pytest.raises(InputError, match="declares an array of shape"):
        read_container(path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS"),
        (b"\x80\x04cposix\nsystem\n(X\x04\x00\x00\x00exittR.", "asks for posix.system"),
        (b"hello", "no container that is known here"),
        (b"PK\x03\x04" + bytes(100), "is damaged"),
        (b"\x93NUMPY\x01\x00\x05\x00hello", "is damaged"),
        (b"\x93NUMPY\x09\x00\x05\x00hello", "version"),
        ((20).to_bytes(8, "little") + b"{" + b"x" * 19, "is damaged"),
        (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", "is damaged"),
    ],
)
def test_what_is_no_container(tmp_path, content, sentence):
    (tmp_path / "images.pt").write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        read_container(tmp_path / "images.pt")


def test_places_without_a_file(tmp_path):
    with pytest.raises(InputError, match="there is no file"):
        read_container(tmp_path)
    with pytest.raises(InputError, match="there is no file"):
        read_container(tmp_path / "nothing.pt")


@pytest.mark.parametrize("name", WRITERS)
def test_truncated_and_changed_files(tmp_path, name):
    "A file cut anywhere is refused; one with changed bytes is refused or gives values"
    WRITERS[name](tmp_path / name)
    raw = (tmp_path / name).read_bytes()
    g = np.random.default_rng(0)
    path = tmp_path / "damaged"
    for length in g.integers(1, len(raw), 25):
        path.write_bytes(raw[:length])
        with pytest.raises(InputError) as caught:
            read_container(path)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    for _ in range(60):
        changed = bytearray(raw)
        for at in g.integers(0, len(raw), 8) if g.random() < 0.5 else g.integers(0, min(600, len(raw)), 3):
            changed[at] = g.integers(256)
        path.write_bytes(changed)
        try:
            read_container(path)
        except InputError as error:
            assert "\n" not in str(error)


def test_format_by_content(tmp_path):
    for name, write in WRITERS.items():
        write(tmp_path / name)
    formats = [container_format(tmp_path / name) for name in WRITERS]
    assert formats == ["torch", "torch", "npz", "npz", "pickle", "safetensors"]


@pytest.mark.parametrize("as_zip", [True, False])
def test_messages_stay_short(tmp_path, as_zip):
    "Whatever a file names or counts, the refusal is one sentence"
    path = tmp_path / "x.pt"
    torch.save({"seed": 10**40, "images": IMAGES}, path, _use_new_zipfile_serialization=as_zip)
    with pytest.raises(InputError, match="133 bits"):
        read_container(path)
    name = "a" * 2000
    path.write_bytes(b"\x80\x02c" + name.encode() + b"\n<b>\n)R.")
    with pytest.raises(InputError) as error:
        read_container(path)
    assert len(str(error.value)) < 400 and "\n" not in str(error.value)

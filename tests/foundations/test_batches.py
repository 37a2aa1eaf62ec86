"Batches of CIFAR: the values that a pickle holds, without its programs"

import os
import pickle

import numpy as np
import pytest

from ddrobust_nb.foundations.batches import OFFICIAL_MD5, batch_checksums, read_batch, read_class_names
from ddrobust_nb.foundations.core import InputError
from image_trees import error
from test_datasets import python2_pickle

PIXELS = np.random.default_rng(5).integers(0, 256, (6, 3072), dtype=np.uint8)
LABELS = [0, 9, 3, 99, 3, 1]


def batch(tmp_path, content):
    "A file of this content"
    path = tmp_path / "data_batch_1"
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content))
    return path


def refusal(path):
    "Why a batch is not read"
    return error(lambda: read_batch(path, "labels"))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("order", ["C", "F"])
def test_pixels_are_those_that_pickle_gives(tmp_path, protocol, order):
    "For every protocol, both orders of memory, and for labels as a list or as an array of any width"
    for labels in (LABELS, np.array(LABELS), np.array(LABELS, np.uint8), np.array(LABELS, "<i4")):
        content = pickle.dumps({"data": np.array(PIXELS, order=order), "labels": labels}, protocol=protocol)
        images, found = read_batch(batch(tmp_path, content), "labels")
        there = pickle.loads(content)["data"]
        assert np.array_equal(images.numpy(), there.reshape(-1, 3, 32, 32)) and images.is_contiguous()
        assert found.tolist() == LABELS


def test_what_python_2_wrote(tmp_path):
    "Texts are bytes there, and the names are those of numpy 1"
    images, found = read_batch(batch(tmp_path, python2_pickle(PIXELS, "labels", LABELS)), "labels")
    assert np.array_equal(images.numpy().reshape(6, -1), PIXELS) and found.tolist() == LABELS


class Calls:
    "Calls a function of this machine where it is unpickled by Python"

    def __init__(self, *made):
        self.made = made

    def __reduce__(self):
        return self.made


@pytest.mark.parametrize(
    "made",
    [
        (os.system, ("touch here",)),
        (eval, ("1 + 1",)),
        (np.load, ("here.npy",)),
        (np.ndarray, ((1,), "O")),
        (np.dtype, ("O",)),
        (np.dtype, ("V8",)),
        (np.frombuffer, (b"abc", "u1")),
        (bytearray, (10**12,)),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_nothing_is_called(tmp_path, monkeypatch, made, protocol):
    "Neither the function of a program, nor a constructor of numpy with arguments of another kind"
    monkeypatch.chdir(tmp_path)
    for content in (
        {"data": Calls(*made), "labels": [0]},
        Calls(*made),
        {"data": PIXELS, "labels": [Calls(*made)]},
    ):
        path = batch(tmp_path, pickle.dumps(content, protocol=protocol))
        assert "is not a batch of the Python version of CIFAR" in refusal(path)
    assert [found.name for found in tmp_path.iterdir()] == ["data_batch_1"]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 2, 3, 4, 2**40], "1099511627776"),
        ([0, 1, 2, 3, 4, 10**5000], "digits"),
        ([0, 1, 2, 3, 4, -1], "-1"),
        ([0, 1, 2, 3, 4, True], "True"),
        ([0, 1, 2, 3, 4, 5.0], "5.0"),
        ([0, 1, 2, 3, 4], "not one label for each"),
        (list("012345"), "a label is '0'"),
        (np.array([0, 1, 2, 3, 4, 2**40]), "1099511627776"),
        (np.array([0.0] * 6), "something else than whole numbers"),
        ({0, 1}, "EMPTY_SET"),
        ([[0]] * 6, "a label is [0]"),
        (None, "not one label for each"),
    ],
)
def test_labels_that_are_no_classes(tmp_path, labels, message):
    path = batch(tmp_path, {"data": PIXELS, "labels": labels})
    assert message in refusal(path)


def test_a_declared_shape_never_takes_memory(tmp_path):
    "The bytes that are there decide"
    good = pickle.dumps({"data": PIXELS, "labels": LABELS}, protocol=2)
    shape = pickle.dumps((6, 3072), protocol=2)[2:-1]
    assert good.count(b"K\x06M\x00\x0c") == 1 and shape.startswith(b"K\x06M\x00\x0c")
    for longer in (
        b"J\x00\x00\x00\x7fM\x00\x0c",
        b"\x8a\x0a" + b"\xff" * 9 + b"\x0fM\x00\x0c",
        b"K\x06J\xff\xff\xff\xff",
    ):
        path = batch(tmp_path, good.replace(b"K\x06M\x00\x0c", longer))
        assert "bytes than its shape says" in refusal(path)


def test_cut_or_lengthened_files(tmp_path):
    good = pickle.dumps({"data": PIXELS, "labels": LABELS})
    for content in (good[:-1], good[: len(good) // 2], b"", good + b".", good + good, b"\x80\x04.", b"N."):
        assert "get the file again" in refusal(batch(tmp_path, content))


def test_a_file_larger_than_any_batch_is_not_opened(tmp_path):
    path = tmp_path / "data_batch_1"
    with open(path, "wb") as file:
        file.truncate(2**40)  # Takes no place on the disk
    assert "it has 1099511627776 bytes" in refusal(path)


def test_class_names(tmp_path):
    (tmp_path / "meta").write_bytes(pickle.dumps({b"fine_label_names": [b"apple", "fish"]}))
    assert read_class_names(tmp_path, "fine_label_names") == ("apple", "fish")
    assert "class names" in error(lambda: read_class_names(tmp_path, "label_names"))
    for names in ([1, 2], "ab", {"a": 1}):
        (tmp_path / "meta").write_bytes(pickle.dumps({"label_names": names}))
        with pytest.raises(InputError, match="class names"):
            read_class_names(tmp_path, "label_names")


def test_only_the_published_sum_makes_a_file_official(tmp_path, monkeypatch):
    import hashlib

    assert len(OFFICIAL_MD5) == 10
    (tmp_path / "test_batch").write_bytes(b"some")
    (tmp_path / "mine").write_bytes(b"others")
    digest = hashlib.md5(b"some").hexdigest()
    assert set(batch_checksums(tmp_path)["official"]) == {"not an official file"}
    monkeypatch.setitem(OFFICIAL_MD5, digest, "test_batch of CIFAR-10")
    table = batch_checksums(tmp_path).set_index("file")
    assert table.loc["test_batch", "official"] == "test_batch of CIFAR-10"
    assert (
        table.loc["test_batch", "md5"] == digest and table.loc["mine", "official"] == "not an official file"
    )

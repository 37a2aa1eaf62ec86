"Datasets: official layouts made small, bad input, downloads that fail, and the real images where they are"

import functools
import gzip
import hashlib
import http.server
import os
import pickle
import shutil
import struct
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from ddrobust_nb.foundations import datasets, files
from ddrobust_nb.foundations.data import as_pixels, specs, subsets, test_subset as subset_of
from ddrobust_nb.foundations.datasets import dataset
from ddrobust_nb.foundations.datasets import load_data
from ddrobust_nb.foundations.files import LazyImages
from image_trees import error, make_tree, noise, write


@pytest.fixture(autouse=True)
def no_downloads(request, monkeypatch):
    "No test reaches for the network; the one that tests `fetch` talks to a server of its own"
    if "data_root" in request.fixturenames:
        request.getfixturevalue("data_root")  # found before the variable is gone
    monkeypatch.delenv("DDROBUST_DATA", raising=False)
    monkeypatch.setenv("HOME", str(request.getfixturevalue("tmp_path") / "home"))
    if "server" in request.fixturenames:
        return

    def refuse(urls, md5, folder):
        raise OSError("network is unreachable")

    monkeypatch.setattr(datasets, "download_file", refuse)


def test_registry_and_specs_name_the_same_datasets():
    expected = "digits mnist fashionmnist cifar10 cifar100 tinyimagenet imagenet1k imagenette imagewoof imagefruit imagemeow imagesquawk imageyellow".split()
    assert set(dataset) == set(specs) == set(expected)
    for name, spec in specs.items():
        assert spec.name == name and len(spec.mean) == len(spec.std) == spec.channels
    assert all(len(wnids) == 10 for wnids in subsets.values())


# ---- the data root


def test_bad_roots(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".hidden").mkdir()
    for name in ("digits", "cifar10", "imagenette"):
        assert "does not exist" in error(lambda name=name: load_data(name, tmp_path / "no"))
        assert "is a file" in error(lambda name=name: load_data(name, str(tmp_path / "file")))
        assert "is empty" in error(lambda name=name: load_data(name, tmp_path / "empty"))
        assert "must be the path" in error(lambda name=name: load_data(name, 3))
    assert "is not a path" in error(lambda: load_data("digits", "a\0b"))
    assert not (tmp_path / "home").exists()


def test_unreadable_root(tmp_path, monkeypatch):
    make_tree(tmp_path / "cifar10")

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(datasets.os, "scandir", refuse)
    assert "cannot be read (Permission denied)" in error(lambda: load_data("cifar10", tmp_path))
    assert "Permission denied" in error(lambda: load_data(f"folder:{tmp_path / 'cifar10'}"))


def test_root_from_the_environment_and_its_default(tmp_path, monkeypatch):
    make_tree(tmp_path / "one" / "mnist", list("0123456789"), size=28, channels=1)
    monkeypatch.setenv("DDROBUST_DATA", str(tmp_path / "one"))
    assert len(load_data("mnist").train_labels) == 30
    monkeypatch.delenv("DDROBUST_DATA")
    make_tree(tmp_path / "home" / ".cache" / "ddrobust" / "mnist", list("0123456789"), 4, size=28, channels=1)
    assert len(load_data("mnist").train_labels) == 40
    assert (
        len(load_data("mnist", tmp_path / "one" / "mnist").train_labels) == 30
    )  # the folder of the dataset itself


@pytest.mark.parametrize("name", sorted(set(specs) - {"digits"}))
def test_missing_datasets_say_what_to_put_where(name, tmp_path):
    (tmp_path / "something else").mkdir()
    text = error(lambda name=name: load_data(name, tmp_path))
    assert "no download" in text and "put " in text and str(tmp_path) in text
    assert os.listdir(tmp_path) == ["something else"]
    error(lambda: load_data(name))
    assert not (tmp_path / "home/.cache/ddrobust").exists()


@pytest.mark.parametrize(
    "name,place",
    [("cifar-10", "cifar10"), ("Digits", "digits"), ("imagenete", "imagenette"), (None, ""), (10, "")],
)
def test_unknown_names(name, place):
    assert (
        f"did you mean {place!r}" in error(lambda: load_data(name))
        if place
        else "known: cifar10" in error(lambda: load_data(name))
    )


def test_unknown_options(tmp_path):
    assert "takes no options" in error(lambda: load_data("digits", size=64))
    assert "did you mean 'size'" in error(lambda: load_data("imagenette", sizes=64))
    for size in (0, -1, 4, 2.5, True, 5000):
        assert "size must be" in error(lambda size=size: load_data(f"folder:{tmp_path}", size=size))


# ---- official layouts


def write_cifar(path, files, key, classes, per_file, python2=False):
    path.mkdir(parents=True)
    for k, name in enumerate(files):
        data, labels = (
            noise(per_file, 32, seed=k).reshape(per_file, 3072),
            [i % classes for i in range(per_file)],
        )
        raw = (
            python2_pickle(data, key, labels)
            if python2
            else pickle.dumps(
                {b"data": data, key.encode(): labels, b"filenames": ["a.png"] * per_file}, protocol=2
            )
        )
        (path / name).write_bytes(raw)


def python2_pickle(data, key, labels):
    "The bytes that Python 2 wrote: its `str` opcodes, which today's pickle only reads"

    def text(s):
        return b"U" + bytes([len(s)]) + s

    def long(s):
        return b"T" + struct.pack("<i", len(s)) + s

    def number(i):
        return b"M" + struct.pack("<H", i)

    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\0\x85"
        + text(b"b")
        + b"tR(K\x01"
        + number(data.shape[0])
        + number(data.shape[1])
        + b"\x86"
        + b"cnumpy\ndtype\n("
        + text(b"u1")
        + b"K\0K\x01tR(K\x03"
        + text(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb\x89"
        + long(data.tobytes())
        + b"tb"
    )
    return (
        b"\x80\x02}("
        + text(b"data")
        + array
        + text(key.encode())
        + b"]("
        + b"".join(map(number, labels))
        + b"eu."
    )


TRAIN = [f"data_batch_{i}" for i in range(1, 6)]


@pytest.mark.parametrize("python2", [False, True])
@pytest.mark.parametrize("folder", ["cifar10", "cifar-10-batches-py", "cifar10/cifar-10-batches-py"])
def test_cifar10_batches(tmp_path, folder, python2):
    write_cifar(tmp_path / folder, [*TRAIN, "test_batch"], "labels", 10, 20, python2)
    data = load_data("cifar10", tmp_path)
    assert data.train_images.shape == (100, 3, 32, 32) and data.test_images.shape == (20, 3, 32, 32)
    assert torch.equal(data.train_images[20], torch.tensor(noise(20, 32, seed=1)[0].reshape(3, 32, 32)))
    assert data.train_labels.tolist() == [i % 10 for i in range(20)] * 5 and data.spec == specs["cifar10"]


def test_cifar100_batches(tmp_path):
    write_cifar(tmp_path / "cifar-100-python", ["train", "test"], "fine_labels", 100, 200)
    (tmp_path / "cifar-100-python" / "meta").write_bytes(
        pickle.dumps({"fine_label_names": [f"thing {i}" for i in range(100)]})
    )
    data = load_data("cifar100", tmp_path)
    assert data.spec.class_names[99] == "thing 99" and data.train_images.shape == (200, 3, 32, 32)


class Trap:
    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("file", ["data_batch_3", "batches.meta"])
def test_a_pickle_that_runs_code_does_not(tmp_path, file):
    write_cifar(tmp_path / "cifar10", [*TRAIN, "test_batch"], "labels", 10, 20)
    trap = Trap()
    trap.path = tmp_path / "gotcha"
    (tmp_path / "cifar10" / file).write_bytes(
        pickle.dumps({"data": trap, "labels": [0], "label_names": trap})
    )
    assert file in error(lambda: load_data("cifar10", tmp_path)) and not trap.path.exists()


def test_damaged_cifar(tmp_path):
    write_cifar(tmp_path / "cifar10", [*TRAIN, "test_batch"], "labels", 10, 20)
    good = (tmp_path / "cifar10/test_batch").read_bytes()
    for bad in (
        good[:1000],
        b"",
        b"junk",
        pickle.dumps([1]),
        pickle.dumps({"data": 3, "labels": [1]}),
        pickle.dumps({"data": np.zeros((4, 3072)), "labels": [0] * 4}),
    ):
        (tmp_path / "cifar10/test_batch").write_bytes(bad)
        assert "test_batch' is not a batch" in error(lambda: load_data("cifar10", tmp_path))

    def write_labels(labels):
        return (tmp_path / "cifar10/test_batch").write_bytes(
            pickle.dumps({"data": noise(20, 32).reshape(20, 3072), "labels": labels})
        )

    for labels in ([0] * 20, list(range(20))):
        write_labels(labels)
        assert "not those of cifar10" in error(lambda: load_data("cifar10", tmp_path))
    write_labels([0] * 19)
    assert "not one label for each of its 20 images" in error(lambda: load_data("cifar10", tmp_path))
    (tmp_path / "cifar10/test_batch").unlink()
    assert "test_batch' is missing" in error(lambda: load_data("cifar10", tmp_path))


def write_idx(path, array, zipped):
    raw = (
        bytes([0, 0, 8, array.ndim])
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.astype(np.uint8).tobytes()
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    Path(f"{path}.gz" if zipped else path).write_bytes(gzip.compress(raw) if zipped else raw)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    "name,folder",
    [
        ("mnist", "mnist"),
        ("mnist", "MNIST/raw"),
        ("fashionmnist", "fashion-mnist"),
        ("fashionmnist", "FashionMNIST/raw"),
    ],
)
def test_idx(tmp_path, name, folder, zipped):
    for k, (half, n) in enumerate((("train", 30), ("t10k", 10))):
        write_idx(tmp_path / folder / f"{half}-images-idx3-ubyte", noise(n, 28, 1, k)[..., 0], zipped)
        write_idx(tmp_path / folder / f"{half}-labels-idx1-ubyte", np.arange(n) % 10, zipped)
    data = load_data(name, tmp_path)
    assert data.train_images.shape == (30, 1, 28, 28) and data.test_labels.tolist() == list(range(10))
    assert torch.equal(data.train_images[7, 0], torch.tensor(noise(30, 28, 1, 0)[7, ..., 0]))
    file = next((tmp_path / folder).glob("t10k-images*"))
    good = file.read_bytes()
    for bad in (good[:-5], b"", good[:3], b"\0\0\x0d" + good[3:]):
        file.write_bytes(bad)
        assert file.name in error(lambda name=name: load_data(name, tmp_path))
    file.unlink()
    assert "has no file t10k-images" in error(lambda name=name: load_data(name, tmp_path))


def make_tiny(path, classes=200):
    wnids = [f"n{i:08}" for i in np.random.default_rng(0).permutation(classes)]
    notes = []
    for i, wnid in enumerate(wnids):
        for k, pixels in enumerate(noise(2, 64, seed=i)):
            write(path / "train" / wnid / "images" / f"{wnid}_{k}.JPEG", pixels)
        grey = noise(1, 64, 1, seed=i)[0]  # some of the real ones are grey
        write(path / "val/images" / f"val_{i}.JPEG", grey)
        notes.append(f"val_{i}.JPEG\t{wnid}\t0\t0\t62\t62\n")
    (path / "wnids.txt").write_text("\n".join(wnids) + "\n")
    (path / "val/val_annotations.txt").write_text("".join(notes))
    (path / "words.txt").write_text("n00000000\tgoldfish, Carassius auratus\nn00000001\tsalamander\n")
    (path / "test/images").mkdir(parents=True)  # unlabelled: not to be looked at
    return wnids


def test_tiny_imagenet(tmp_path):
    wnids = make_tiny(tmp_path / "tiny-imagenet-200")
    data = load_data("tinyimagenet", tmp_path)
    assert data.train_images.shape == (400, 3, 64, 64) and data.train_labels.tolist() == [
        c for c in range(200) for _ in range(2)
    ]
    assert data.test_labels.tolist() == [sorted(wnids).index(w) for w in wnids]
    assert data.spec.class_names[:3] == ("goldfish", "salamander", "n00000002")
    lazy = load_data("tinyimagenet", tmp_path, lazy=True)
    assert torch.equal(lazy.test_images[[5, 6]], data.test_images[5:7])
    notes = tmp_path / "tiny-imagenet-200/val/val_annotations.txt"
    notes.write_text("val_0.JPEG\tn99999999\n")
    assert "does not fit" in error(lambda: load_data("tinyimagenet", tmp_path))
    notes.write_text("no such.JPEG\tn00000000\n")
    assert "does not fit" in error(lambda: load_data("tinyimagenet", tmp_path))
    notes.write_text("val_0.JPEG\tn00000000\n")
    assert "has no validation images" in error(lambda: load_data("tinyimagenet", tmp_path))
    shutil.rmtree(tmp_path / "tiny-imagenet-200/train/n00000007")
    assert "'n00000007' has no images" in error(lambda: load_data("tinyimagenet", tmp_path))


def test_imagenet_small(tmp_path, monkeypatch):
    for i in range(1000):
        for half in ("train", "val"):
            write(tmp_path / "imagenet" / half / f"n{i:08}" / "a.JPEG", noise(1, 8, seed=i)[0])
    data = load_data("imagenet1k", tmp_path, size=16)
    assert (
        data.train_images.shape == (1000, 3, 16, 16)
        and data.spec.class_names[0] == "tench"
        and data.spec.size == 16
    )
    assert isinstance(load_data("imagenet1k", tmp_path, size=1024).train_images, LazyImages)  # 6 GB
    assert "'n01440764' has no images" in error(lambda: load_data("imagenette", tmp_path))
    shutil.rmtree(tmp_path / "imagenet/train/n00000003")
    assert "needs all 1,000" in error(lambda: load_data("imagenet1k", tmp_path, size=16))
    shutil.rmtree(tmp_path / "imagenet/val")
    assert "has no folder 'val'" in error(lambda: load_data("imagenette", tmp_path))


@pytest.mark.parametrize("name", subsets)
def test_subset_labels_follow_the_list(tmp_path, name):
    for label, wnid in enumerate(subsets[name].values()):
        for half in ("train", "val"):
            write(tmp_path / "imagenet1k" / half / wnid / "x.png", np.full((40, 60, 3), label, np.uint8))
    data = load_data(name, tmp_path)
    assert data.train_images.shape == (10, 3, 128, 128) and data.test_images[
        :, 0, 0, 0
    ].tolist() == data.test_labels.tolist() == list(range(10))
    assert load_data(name, tmp_path, size=64).test_images.shape == (10, 3, 64, 64)


def test_known_dataset_as_a_tree(tmp_path):
    make_tree(tmp_path / "cifar10", list("abcdefghij"), halves=("train", "val"))
    assert load_data("cifar10", tmp_path).train_images.shape == (30, 3, 32, 32)
    make_tree(tmp_path / "cifar100", list("abc"))
    assert "has 3 classes: cifar100 has 100" in error(lambda: load_data("cifar100", tmp_path))


# ---- any folder


def test_folder_with_blanks_and_other_letters(tmp_path):
    path = make_tree(tmp_path / "eigene Bilder äöü 图", ("katze groß", "hund"), size=48)
    data = load_data(f"folder:{path}")
    assert (
        data.spec.size == 48
        and data.spec.class_names == ("hund", "katze groß")
        and data.spec.name == "folder:eigene Bilder äöü 图"
    )
    pixels = as_pixels(data.train_images).double()
    assert np.allclose(data.spec.mean, pixels.mean((0, 2, 3)), atol=1e-4) and np.allclose(
        data.spec.std, pixels.std((0, 2, 3), correction=0), atol=1e-4
    )
    assert "data:image/png" in data._repr_html_()


def test_folder_sizes_and_channels(tmp_path):
    grey = make_tree(tmp_path / "grey", channels=1)
    assert load_data(f"folder:{grey}").spec.channels == 1
    write(grey / "train/a/colour.png", noise(1, 32)[0])
    assert load_data(f"folder:{grey}").spec.channels == 3
    write(grey / "train/a/large.png", noise(1, 300)[0])
    assert load_data(f"folder:{grey}").spec.size == 32
    assert load_data(f"folder:{grey}", size=64).train_images.shape == (8, 3, 64, 64)
    write(grey / "test/a/deep.png", np.zeros((32, 32, 1), np.uint16))
    assert "more than 8 bits" in error(lambda: load_data(f"folder:{grey}"))


def test_fingerprint_is_of_the_content(tmp_path):
    one = make_tree(tmp_path / "one")
    two = shutil.copytree(one, tmp_path / "deep" / "er" / "two")
    for lazy in (False, True):
        assert (
            load_data(f"folder:{one}", lazy=lazy).fingerprint
            == load_data(f"folder:{two}", lazy=lazy).fingerprint
        )
    before = load_data(f"folder:{two}").fingerprint, load_data(f"folder:{two}", lazy=True).fingerprint
    write(two / "test/a/0.png", noise(1, 32, seed=99)[0])
    assert load_data(f"folder:{two}").fingerprint != before[0]
    write(two / "test/a/extra.png", noise(1, 32, seed=98)[0])
    assert load_data(f"folder:{two}", lazy=True).fingerprint != before[1]


def test_bad_folders(tmp_path):
    def bad(change):
        shutil.rmtree(tmp_path / "x", ignore_errors=True)
        path = make_tree(tmp_path / "x")
        change(path)
        return error(lambda: load_data(f"folder:{path}"))

    assert "is not a folder" in error(lambda: load_data(f"folder:{tmp_path / 'no'}"))
    assert "has no folder 'train'" in bad(lambda p: shutil.rmtree(p / "train"))
    assert "has no folder 'test'" in bad(lambda p: shutil.rmtree(p / "test"))
    assert "1 class folder: at least two" in bad(
        lambda p: [shutil.rmtree(p / h / "a") for h in ("train", "test")]
    )
    assert "0 class folders" in bad(
        lambda p: [shutil.rmtree(p / h / c) for h in ("train", "test") for c in "ab"]
    )
    assert "class 'a' is in only one" in bad(lambda p: shutil.rmtree(p / "test/a"))
    assert "class 'c' has no images" in bad(lambda p: [(p / h / "c").mkdir() for h in ("train", "test")])
    assert "class 'c' has no images" in bad(
        lambda p: [((p / h / "c").mkdir(), (p / h / "c/notes.txt").write_text("")) for h in ("train", "test")]
    )
    assert "b/1.png' is not a readable image" in bad(lambda p: (p / "train/b/1.png").write_bytes(b""))
    assert "b/1.png' is not a readable image" in bad(
        lambda p: (p / "test/b/1.png").write_bytes((p / "test/b/1.png").read_bytes()[:700])
    )
    assert "b/gone.png" in bad(lambda p: (p / "test/b/gone.png").symlink_to("nowhere"))


# ---- downloads


def test_download_is_all_or_nothing(tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    source = tmp_path / "source/mnist"
    for half, n in (("train", 30), ("t10k", 10)):
        write_idx(source / f"{half}-images-idx3-ubyte", noise(n, 28, 1)[..., 0], True)
        write_idx(source / f"{half}-labels-idx1-ubyte", np.arange(n) % 10, True)

    def fetch(urls, md5, folder):
        name = urls[0].rsplit("/", 1)[1]
        if name.startswith("t10k-labels") and broken:
            raise RuntimeError("File not found or corrupted.")
        shutil.copy(source / name, folder / name)

    monkeypatch.setattr(datasets, "download_file", fetch)
    broken = True
    assert "File not found or corrupted" in error(lambda: load_data("mnist", tmp_path))
    assert sorted(os.listdir(tmp_path)) == ["other", "source"]
    broken = False
    assert len(load_data("mnist", tmp_path).train_labels) == 30
    assert sorted(os.listdir(tmp_path)) == ["mnist", "other", "source"]


@pytest.fixture
def server(tmp_path):
    "A web server on this machine, for a folder"

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    (tmp_path / "web").mkdir()
    running = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path / "web"))
    )
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    running.server_close()


def test_download_of_an_archive(tmp_path, monkeypatch, server):
    write_cifar(tmp_path / "made/cifar-10-batches-py", [*TRAIN, "test_batch"], "labels", 10, 20)
    file = tmp_path / "web/cifar.tar.gz"
    with tarfile.open(file, "w:gz") as archive:
        archive.add(tmp_path / "made/cifar-10-batches-py", "cifar-10-batches-py")
    md5 = hashlib.md5(file.read_bytes()).hexdigest()
    root = tmp_path / "fresh root"
    monkeypatch.setenv("DDROBUST_DATA", str(root))
    monkeypatch.setattr(datasets, "official_archives", lambda name: [([f"{server}/cifar.tar.gz"], "0" * 32)])
    assert "no download" in error(lambda: load_data("cifar10")) and not root.exists()
    monkeypatch.setattr(
        datasets,
        "official_archives",
        lambda name: [([f"{server}/missing/cifar.tar.gz", f"{server}/cifar.tar.gz"], md5)],
    )
    assert len(load_data("cifar10").train_labels) == 100
    assert os.listdir(root) == ["cifar-10-batches-py"] and sorted(
        os.listdir(root / "cifar-10-batches-py")
    ) == [*TRAIN, "test_batch"]


@pytest.mark.parametrize("name", sorted(datasets.FOLDERS))
def test_addresses(name):
    if name == "imagenet":
        with pytest.raises(OSError):
            datasets.official_archives(name)
        return
    for urls, md5 in datasets.official_archives(name):
        assert all(u.startswith("http") for u in urls) and len(md5) == 32


# ---- real images


def copy_of(root, tmp_path, *folders):
    "The data root with links to real folders, so that a cache is written here and not there"
    for folder in folders:
        if not (root / folder).is_dir():
            pytest.skip(f"no {folder} in DDROBUST_DATA")
        (tmp_path / folder).symlink_to(root / folder)
    return tmp_path


@pytest.mark.slow
def test_real_cifar10(data_root, tmp_path):
    root = copy_of(data_root, tmp_path, "cifar10")
    data = load_data("cifar10", root)
    assert (
        data.train_images.shape == (50000, 3, 32, 32)
        and torch.bincount(data.test_labels).tolist() == [1000] * 10
    )
    assert data.spec == specs["cifar10"]  # names and order
    mean, _ = files.channel_stats(data.train_images)
    assert np.allclose(mean, data.spec.mean, atol=0.002)
    start = time.monotonic()
    assert load_data("cifar10", root).fingerprint == data.fingerprint
    assert time.monotonic() - start < 10


@pytest.mark.slow
def test_real_tiny_imagenet(data_root, tmp_path):
    data = load_data("tinyimagenet", copy_of(data_root, tmp_path, "tiny-imagenet-200"))
    assert torch.bincount(data.test_labels).tolist() == [50] * 200 and data.spec.class_names[0] == "goldfish"
    assert data.train_images.shape[1:] == (3, 64, 64)


def test_real_tiny_imagenet_lazily(data_root, tmp_path):
    data = load_data("tinyimagenet", copy_of(data_root, tmp_path, "tiny-imagenet-200"), lazy=True)
    index = subset_of(data, 200)
    assert (
        sorted(data.test_labels[index].tolist()) == list(range(200))
        and data.test_images[index[:20]].float().std() > 20
    )


def test_real_imagenet_subsets(data_root, tmp_path):
    if not (data_root / "imagenet/val").is_dir():
        pytest.skip("no imagenet/val in DDROBUST_DATA")
    root = tmp_path / "root"
    (root / "imagenet").mkdir(parents=True)
    (root / "imagenet/val").symlink_to(data_root / "imagenet/val")
    assert "has no folder 'train'" in error(lambda: load_data("imagenette", root))
    (root / "imagenet/train").symlink_to(data_root / "imagenet/val")
    for name in subsets:
        data = load_data(name, root)
        assert data.test_images.shape == (10, 3, 128, 128)
    assert load_data("imagenette", root).spec.class_names[0] == "tench"
    wnids = sorted(os.listdir(root / "imagenet/val"))
    if len(wnids) == 1000:
        for name in subsets:
            assert {i: wnids[i] for i in subsets[name]} == subsets[name]
        assert load_data("imagenet1k", root, size=64, lazy=True).test_images[[0, 999]].shape == (2, 3, 64, 64)


def test_real_fashion_mnist():
    "The Debian package dataset-fashion-mnist, where it is installed"
    root = Path("/usr/share/datasets")
    if not (root / "fashion-mnist").is_dir():
        pytest.skip("the Debian package dataset-fashion-mnist is not installed")
    data = load_data("fashionmnist", root)
    assert (
        data.train_images.shape == (60000, 1, 28, 28)
        and torch.bincount(data.test_labels).tolist() == [1000] * 10
    )
    assert np.allclose(files.channel_stats(data.train_images), (data.spec.mean, data.spec.std), atol=1e-3)

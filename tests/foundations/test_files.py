"Files: decoding, images that are decoded when asked for, and the cache"

import os
import shutil
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from ddrobust_nb.foundations import files
from ddrobust_nb.foundations.data import test_subset as subset_of
from ddrobust_nb.foundations.datasets import load_data
from ddrobust_nb.foundations.files import decode
from image_trees import error, make_tree, noise, write


def test_decoding_agrees_with_torchvision():
    from torchvision.transforms import functional as V

    for w, h in ((160, 213), (240, 160), (64, 64), (131, 129)):
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (h, w, 3), dtype=np.uint8))
        for size, resize in ((64, None), (128, None), (224, 256)):
            import io

            file = io.BytesIO()
            image.save(file, "PNG")
            file.seek(0)
            there = V.pil_to_tensor(V.center_crop(V.resize(image, resize or size), size))
            assert torch.equal(torch.tensor(decode(file, size, 3, resize)), there)


def test_lazy_images_behave_like_the_tensor(tmp_path):
    path = make_tree(tmp_path / "x", train=9)
    eager, lazy = (load_data(f"folder:{path}", lazy=lazy) for lazy in (False, True))
    x, y = eager.train_images, lazy.train_images
    assert y.shape == x.shape and len(y) == len(x) and y.dtype == x.dtype and lazy.spec == eager.spec
    mask = eager.train_labels == 1
    for i in (
        0,
        -1,
        17,
        torch.tensor(3),
        torch.tensor([3, 1, 1]),
        [0, -2],
        slice(2, 9, 3),
        mask,
        lazy.per_class[1],
        torch.tensor([], dtype=torch.int64),
    ):
        assert torch.equal(y[i], x[i])
    with pytest.raises(IndexError):
        y[18]
    assert torch.equal(subset_of(lazy, 4), subset_of(eager, 4)) and "decoded when asked for" in repr(lazy)
    (path / "train/b/3.png").write_bytes(b"")
    assert "3.png' is not a readable image" in error(lambda: y[:])


# ---- the cache of decoded images


def test_cache(tmp_path, monkeypatch):
    path = make_tree(tmp_path / "cifar10", list("abcdefghij"), 150, 50, size=32)
    calls = []
    monkeypatch.setattr(files, "decode", lambda *a: calls.append(a) or decode(*a))

    def load():
        calls.clear()
        return load_data("cifar10", tmp_path)

    first, cache = load(), tmp_path / ".ddrobust-cache/cifar10-32.safetensors"
    assert len(calls) == 2000 and cache.is_file() and not [*cache.parent.glob("*.partial")]
    second = load()
    assert (
        not calls
        and second.fingerprint == first.fingerprint
        and torch.equal(second.test_images, first.test_images)
    )
    write(path / "test/a/0.png", noise(1, 32, seed=5)[0])
    third = load()
    assert len(calls) == 2000 and third.fingerprint != first.fingerprint
    os.utime(path / "test/a/0.png", (1, 1))
    assert load().fingerprint == third.fingerprint and len(calls) == 2000
    good = cache.read_bytes()
    for bad in (good[:-1] + b"?", good[:5000], b"", b"junk" * 100):
        cache.write_bytes(bad)
        with pytest.warns(UserWarning, match="cifar10-32.safetensors' is damaged"):
            assert load().fingerprint == third.fingerprint
        assert len(calls) == 2000 and load().fingerprint == third.fingerprint and not calls
    shutil.rmtree(cache.parent)
    cache.parent.write_text("cannot be a folder")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load().fingerprint == third.fingerprint
    make_tree(tmp_path / "x")
    load_data(f"folder:{tmp_path / 'x'}")
    assert not (tmp_path / "x/.ddrobust-cache").exists()  # not worth it

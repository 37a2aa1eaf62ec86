"Folders of small images for the tests of datasets, and the message of an error"

import hashlib

import numpy as np
import pytest
from PIL import Image

from ddrobust_nb.foundations.core import InputError


def noise(n, size, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, channels), dtype=np.uint8)


def write(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(path, **options)


def make_tree(
    path, classes=("a", "b"), train=3, test=2, size=32, channels=3, halves=("train", "test"), end="png"
):
    for half, n in zip(halves, (train, test)):
        for name in classes:
            for i, pixels in enumerate(noise(n, size, channels, seed=hash_of(half, name))):
                write(path / half / name / f"{i}.{end}", pixels)
    return path


def hash_of(*words):
    return int(hashlib.md5("/".join(words).encode()).hexdigest()[:8], 16)


def error(call):
    with pytest.raises(InputError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and len(text) < 600
    return text

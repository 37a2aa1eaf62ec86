"Photographs: turned as viewers turn them, transparent pixels on white, empty channels, and files that were exchanged"

import io
import os
import shutil
import time
import warnings

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from ddrobust_nb.foundations import files
from ddrobust_nb.foundations.datasets import load_data
from ddrobust_nb.foundations.files import OnBackground, channel_stats, decode
from ddrobust_nb.foundations.networks import make_network
from image_trees import error, make_tree, noise, write

ORIENTATION = 0x0112
WHITE = [255, 255, 255]
SIX = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3)  # Every pixel another


def photograph(path, pixels, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    return path


# ---- orientation

TURNS = {  # By numpy, from the description of EXIF: where the stored first row and column are shown
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: x.transpose(1, 0, 2)[:, ::-1],
    7: lambda x: x.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda x: x.transpose(1, 0, 2)[::-1],
}


@pytest.mark.parametrize("end", ["png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", TURNS)
def test_a_photograph_is_turned_as_viewers_turn_it(tmp_path, orientation, end):
    pixels = noise(1, 24, seed=3)[0]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / f"photo.{end}"
    Image.fromarray(pixels).save(path, exif=exif, **(dict(lossless=True) if end == "webp" else {}))
    right = TURNS[orientation](pixels)
    assert np.array_equal(decode(path, 24, 3).transpose(1, 2, 0), right)


def test_a_jpeg_is_turned_before_it_is_cut(tmp_path):
    path = photograph(tmp_path / "photo.jpg", np.repeat(np.repeat(noise(1, 8)[0], 8, 0), 16, 1), 6)
    with Image.open(path) as image:
        assert image.size == (128, 64)
        upright = ImageOps.exif_transpose(image)
    assert upright.size == (64, 128)
    right = np.asarray(upright.crop((0, 32, 64, 96)))
    assert np.array_equal(decode(path, 64, 3).transpose(1, 2, 0), right)


@pytest.mark.parametrize("note", [b"Exif\0\0junk", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0"])
def test_a_damaged_note_leaves_the_picture_as_it_is_stored(tmp_path, note):
    pixels = noise(1, 24)[0]
    Image.fromarray(pixels).save(tmp_path / "photo.png", exif=note)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.array_equal(decode(tmp_path / "photo.png", 24, 3).transpose(1, 2, 0), pixels)


def test_an_orientation_that_does_not_exist_turns_nothing(tmp_path):
    pixels = noise(1, 24)[0]
    for orientation in (0, 9, 60000):
        path = photograph(tmp_path / "photo.png", pixels, orientation)
        assert np.array_equal(decode(path, 24, 3).transpose(1, 2, 0), pixels)


# ---- transparency


def composed(rgb, alpha):
    "On white, by hand"
    a = alpha[..., None] / 255
    return rgb * a + 255 * (1 - a)


def test_an_alpha_channel_is_put_on_white(tmp_path):
    rgb, alpha = noise(1, 24, seed=1)[0], noise(1, 24, 1, seed=2)[0, ..., 0]
    alpha[:4], alpha[4:8] = 0, 255
    Image.fromarray(np.dstack([rgb, alpha])).save(tmp_path / "x.png")
    found = decode(tmp_path / "x.png", 24, 3).transpose(1, 2, 0)
    assert np.abs(found - composed(rgb, alpha)).max() <= 1
    assert (found[:4] == 255).all() and np.array_equal(found[4:8], rgb[4:8])


def test_grey_with_alpha(tmp_path):
    grey, alpha = noise(1, 24, 1, seed=1)[0, ..., 0], noise(1, 24, 1, seed=2)[0, ..., 0]
    Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)]).save(tmp_path / "x.png")
    right = composed(grey[..., None], alpha)[..., 0]
    for channels in (1, 3):
        assert np.abs(decode(tmp_path / "x.png", 24, channels) - right).max() <= 1


@pytest.mark.parametrize("end", ["png", "gif"])
def test_a_transparent_entry_of_a_palette_is_white(tmp_path, end):
    image = Image.new("P", (24, 24), 0)
    image.putpalette([10, 20, 30, 200, 100, 0])
    image.paste(1, (0, 0, 12, 24))
    image.save(tmp_path / f"x.{end}", transparency=0)
    found = decode(tmp_path / f"x.{end}", 24, 3)
    assert found[:, 5, 20].tolist() == WHITE and found[:, 5, 5].tolist() == [200, 100, 0]


@pytest.mark.parametrize("mode, colour, key", [("RGB", (9, 8, 7), (9, 8, 7)), ("L", 9, 9)])
def test_a_colour_that_means_transparent_is_white(tmp_path, mode, colour, key):
    image = Image.new(mode, (24, 24), colour)
    image.putpixel((3, 4), 200 if mode == "L" else (200, 0, 0))
    image.save(tmp_path / "x.png", transparency=key)
    found = decode(tmp_path / "x.png", 24, 3)
    assert found[:, 0, 0].tolist() == WHITE and found[0, 4, 3] == 200


def test_a_transparent_photograph_is_turned_too(tmp_path):
    "Both rules at once, in a lossless WebP"
    rgba = np.dstack([noise(1, 24, seed=1)[0], np.full((24, 24), 255, np.uint8)])
    rgba[:, :6, 3] = 0
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(rgba).save(tmp_path / "x.webp", lossless=True, exact=True, exif=exif)
    found = decode(tmp_path / "x.webp", 24, 3).transpose(1, 2, 0)
    right = TURNS[6](rgba)
    assert (found[:6] == 255).all() and np.array_equal(found[6:], right[6:, :, :3])


def with_alpha(path, opaque=False):
    make_tree(path)
    for half in ("train", "test"):
        rgba = np.dstack([noise(1, 32)[0], np.full((32, 32), 255 if opaque else 128, np.uint8)])
        for name in ("0.png", "1.png"):
            Image.fromarray(rgba).save(path / half / "a" / name)
    return path


@pytest.mark.parametrize("lazy", [False, True])
def test_a_folder_says_once_that_its_images_are_transparent(tmp_path, lazy):
    path = with_alpha(tmp_path / "icons")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = load_data(f"folder:{path}", lazy=lazy)
        data.train_images[:3], data.test_images[:3]
        with_alpha(tmp_path / "others")
        load_data(f"folder:{tmp_path / 'others'}")
    said = [str(w.message) for w in caught if w.category is OnBackground]
    assert len(said) == 2 and str(path) in said[0] and "'train/a/0.png': they are put on white" in said[0]
    assert "others" in said[1]


def test_a_channel_of_alpha_that_hides_nothing_is_not_mentioned(tmp_path):
    path = with_alpha(tmp_path / "opaque", opaque=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = load_data(f"folder:{path}")
    assert np.array_equal(data.train_images[0].numpy().transpose(1, 2, 0), noise(1, 32)[0])


# ---- depth


def png16(mode, size=16):
    "A PNG of 16 bits, which Pillow reads but does not write"
    import struct
    import zlib

    channels = {"L": 1, "RGB": 3, "LA": 2, "RGBA": 4}[mode]
    kind = {"L": 0, "RGB": 2, "LA": 4, "RGBA": 6}[mode]
    rows = b"".join(b"\0" + bytes([0x9C, 0x40] * channels * size) for _ in range(size))

    def chunk(name, content):
        body = name + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", size, size, 16, kind, 0, 0, 0)
    parts = [chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("mode", ["L", "RGB", "LA", "RGBA"])
def test_sixteen_bits_are_refused(tmp_path, mode):
    (tmp_path / "x.png").write_bytes(png16(mode))
    assert "more than 8 bits per channel" in error(lambda: decode(tmp_path / "x.png", 16, 3))


def test_sixteen_bits_of_a_tiff_and_what_is_not_meant(tmp_path):
    Image.fromarray(np.full((16, 16), 40_000, np.uint16)).save(tmp_path / "x.tiff")
    assert "more than 8 bits per channel" in error(lambda: decode(tmp_path / "x.tiff", 16, 1))
    for mode in ("1", "L", "P", "RGB", "CMYK", "YCbCr"):
        Image.new(mode, (16, 16)).save(tmp_path / "y.tiff")
        assert decode(tmp_path / "y.tiff", 16, 3).shape == (3, 16, 16)


# ---- empty channels


@pytest.mark.parametrize("empty", [(2,), (0,), (0, 2)])
@pytest.mark.parametrize("value", [0, 255, 77])
def test_an_empty_channel_loads(tmp_path, empty, value):
    path = make_tree(tmp_path / "x")
    for file in path.rglob("*.png"):
        pixels = np.array(Image.open(file))
        pixels[..., list(empty)] = value
        Image.fromarray(pixels).save(file)
    data = load_data(f"folder:{path}")
    assert [data.spec.std[c] == 1 for c in range(3)] == [c in empty for c in range(3)]
    assert [data.spec.mean[c] for c in empty] == pytest.approx([value / 255] * len(empty), abs=1e-4)
    z = make_network("ConvNetD3-w8", data.spec, seed=0).normalise(data.train_images / 255)
    assert z.isfinite().all() and z[:, list(empty)].abs().max() < 1e-4
    assert make_network("ConvNetD3-w8", data.spec, seed=0).eval()(data.train_images / 255).isfinite().all()


def test_images_of_one_colour_are_still_refused():
    flat = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    flat[:, 0] = 9
    assert "one grey value" in error(lambda: channel_stats(flat))
    assert "one grey value" in error(lambda: channel_stats(flat[:, :1]))


# ---- lazily read files that were exchanged


def bitmap(path, value, at=0):
    "Every bitmap of this size has the same number of bytes, and the same first and last"
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[16, at] = value
    Image.fromarray(pixels).save(path)


@pytest.fixture
def lazy_folder(tmp_path):
    path = make_tree(tmp_path / "x", end="bmp")
    bitmap(path / "train/a/0.bmp", 5)
    return path


def fingerprint_of(path):
    return load_data(f"folder:{path}", lazy=True).fingerprint


def exchange(path, content):
    "Another file of the same size, with the same time of change"
    before = os.stat(path)
    time.sleep(0.02)
    content(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert os.stat(path).st_size == before.st_size


@pytest.mark.parametrize("few", [0, 2000])  # Digests are kept on the disk, or not
def test_exchanged_files_of_equal_size_are_noticed(lazy_folder, monkeypatch, few):
    monkeypatch.setattr(files, "FEW_FILES", few)
    first = fingerprint_of(lazy_folder)
    assert fingerprint_of(lazy_folder) == first
    exchange(lazy_folder / "train/a/0.bmp", lambda path: bitmap(path, 6))
    second = fingerprint_of(lazy_folder)
    exchange(lazy_folder / "train/a/0.bmp", lambda path: bitmap(path, 6, at=9))
    third = fingerprint_of(lazy_folder)
    exchange(lazy_folder / "train/a/0.bmp", lambda path: bitmap(path, 5))
    assert len({first, second, third}) == 3 and fingerprint_of(lazy_folder) == first


def test_two_files_that_change_places_are_noticed(lazy_folder):
    first = fingerprint_of(lazy_folder)
    a, b = lazy_folder / "test/a/0.bmp", lazy_folder / "test/b/1.bmp"
    content = a.read_bytes(), b.read_bytes()
    exchange(a, lambda path: path.write_bytes(content[1]))
    exchange(b, lambda path: path.write_bytes(content[0]))
    assert fingerprint_of(lazy_folder) != first


def test_a_copy_elsewhere_has_the_same_fingerprint(lazy_folder, tmp_path):
    "As on another machine: other times, another place, nothing remembered"
    shutil.copytree(lazy_folder, tmp_path / "deep" / "x", copy_function=shutil.copyfile)
    assert fingerprint_of(tmp_path / "deep" / "x") == fingerprint_of(lazy_folder)


def test_a_digest_is_computed_once(lazy_folder, monkeypatch):
    monkeypatch.setattr(files, "FEW_FILES", 0)
    computed = []
    content_digest = files.content_digest
    monkeypatch.setattr(files, "content_digest", lambda x: computed.append(x) or content_digest(x))
    first = fingerprint_of(lazy_folder)
    assert len(computed) == 2 and fingerprint_of(lazy_folder) == first and len(computed) == 2
    kept = sorted((lazy_folder / ".ddrobust-cache").glob("*"))
    assert [file.name for file in kept] == ["folder-test.json", "folder-train.json"]
    for junk in ("", "{", '{"key": 1, "digest": 2}', '{"key": "x", "digest": "y"}'):
        kept[0].write_text(junk)
        assert fingerprint_of(lazy_folder) == first
    assert len(computed) == 6


# ---- caches of other rules


def test_a_cache_of_other_rules_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "FEW_FILES", 0)
    path = make_tree(tmp_path / "x")
    write(path / "train/a/0.png", noise(1, 32)[0])
    calls = []
    monkeypatch.setattr(files, "decode", lambda *a: calls.append(a) or decode(*a))
    load_data(f"folder:{path}")
    made = len(calls)
    load_data(f"folder:{path}")
    assert len(calls) == made == 10
    monkeypatch.setattr(files, "DECODING", files.DECODING + 1)
    load_data(f"folder:{path}")
    assert len(calls) == 2 * made
    lazy = fingerprint_of(path)
    monkeypatch.setattr(files, "DECODING", files.DECODING + 1)
    assert fingerprint_of(path) != lazy


def test_the_key_of_the_first_rules_is_another(tmp_path):
    "Version 1 ignored orientation and transparency: what it left on a disk has other pixels"
    import hashlib
    import json

    _, train, test = files.list_tree(make_tree(tmp_path / "x"))
    listed = [[x.names, x.stamps] for x in (train, test)]
    old = hashlib.sha256(json.dumps([1, (32, 3, None), listed]).encode()).hexdigest()
    assert files.cache_key([train, test], 32, 3, None) != old and files.DECODING > 1


def test_a_plain_picture_has_the_pixels_that_it_always_had():
    "Nothing of the above touches an image without a note and without transparency"
    for mode, channels in (("RGB", 3), ("L", 1), ("L", 3), ("P", 3), ("CMYK", 3), ("1", 1)):
        file = io.BytesIO()
        image = Image.fromarray(noise(1, 24)[0]).convert(mode)
        image.save(file, "TIFF")
        file.seek(0)
        plain = np.asarray(image.convert("RGB" if channels == 3 else "L"))
        right = plain[None] if channels == 1 else plain.transpose(2, 0, 1)
        assert np.array_equal(decode(file, 24, channels), right)

"""A process that reads files for `test_mutations`: a request is a line NAME SIZE and the file, an answer one line of JSON.

It lasts: a reader that dies of a signal, that takes memory and keeps it, or that raises anything but `InputError`
is seen by the process that asks."""

import gzip
import hashlib
import io
import json
import os
import resource
import sys
import tempfile
import traceback
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch

from ddrobust_nb.foreign.containers import read_container
from ddrobust_nb.foreign.sets import load_set
from ddrobust_nb.foundations.batches import read_batch
from ddrobust_nb.foundations.core import InputError
from ddrobust_nb.foundations.data import digits
from ddrobust_nb.foundations.files import decode, read_idx
from ddrobust_nb.foundations.outside import Kind, read_json
from ddrobust_nb.results.reading import read_results
from ddrobust_nb.results.store import Store, load_state
from ddrobust_nb.training.distilled import SET_CARD, load_own_set


def is_plain(value):
    "Whether a container gave plain values and whole tensors"
    if isinstance(value, dict):
        return all(is_plain(item) for pair in value.items() for item in pair)
    if isinstance(value, (list, tuple)):
        return all(map(is_plain, value))
    if isinstance(value, torch.Tensor):
        value.sum() if value.dtype != torch.bool else value.any()  # reads every number: none lies outside
        return value.is_contiguous()
    return value is None or isinstance(value, (bool, int, float, complex, str))


def a_card(path):
    card = read_json(path, SET_CARD)
    return not SET_CARD.fault(card, "it") and json.dumps(card, allow_nan=False)


def any_json(path):
    return json.dumps(read_json(path, Kind()), allow_nan=False)


def rows(path):
    return all(row.n >= 0 or row.n < 0 for row in read_results(path))


def batch(path):
    images, labels = read_batch(path, "labels")
    return (
        images.shape == (len(labels), 3, 32, 32)
        and images.dtype == torch.uint8
        and labels.dtype == torch.int64
    )


def idx(path):
    packed = path.read_bytes()[:2] == b"\x1f\x8b"
    name = "train-labels-idx1-ubyte"
    path.rename(path.with_name(f"{name}.gz" if packed else name))
    try:
        return read_idx(path.parent, name).dtype == torch.uint8
    finally:
        for place in path.parent.glob(f"{name}*"):
            place.unlink()


def image(path):
    array = decode(str(path), 16, 3)
    return array.shape == (3, 16, 16) and array.dtype == np.uint8


def container(path):
    return is_plain(read_container(path))


DATA = digits()


def foreign_set(path):
    dset = load_set(path, DATA)
    return dset.images.shape[1:] == (1, 32, 32) and torch.isfinite(dset.images).all() and len(dset)


def own_set(path):
    folder = path.with_name("own")
    folder.mkdir(exist_ok=True)
    path.replace(folder / "set.safetensors")
    dset = load_own_set(folder, DATA.spec)
    return dset.images.shape[1:] == (1, 32, 32) and torch.isfinite(dset.images).all()


def state(path):
    content = path.read_bytes()
    store = Store(path.parent)
    place = path.parent / "train" / "0123.state"
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(hashlib.sha256(content).digest() + content)
    load_state(store, "train", "0123")
    return True


def in_archive(content):
    "The pickle of a file of `torch.save`, changed, in an archive that is whole"
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/data/0", (np.arange(10_240, dtype=np.float32) % 97 / 97).tobytes())
        archive.writestr("archive/data/1", np.arange(10).tobytes())
        archive.writestr("archive/version", "3\n")
    return file.getvalue()


def in_npz(content):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("images.npy", content)
    return file.getvalue()


READERS = {
    "card": a_card,
    "json": any_json,
    "rows": rows,
    "batch": batch,
    "idx": idx,
    "packed idx": idx,
    "png": image,
    "jpeg": image,
    "gif": image,
    "torch": container,
    "torch inside": container,
    "old torch": container,
    "npy": container,
    "npz inside": container,
    "safetensors": container,
    "pickle": container,
    "set inside": foreign_set,
    "own set": own_set,
    "state": state,
    "state inside": state,
}
WRAPPERS = {
    "packed idx": lambda content: gzip.compress(content, 1, mtime=0),
    "torch inside": in_archive,
    "set inside": in_archive,
    "state inside": in_archive,
    "npz inside": in_npz,
}


def answer(name, content, folder):
    "What a reader did with a file"
    path = folder / "file.bin"
    path.write_bytes(WRAPPERS.get(name, bytes)(content))
    try:
        right = READERS[name](path)
    except InputError as error:
        text = str(error)
        return (
            dict(refused=text)
            if "\n" not in text and len(text) < 2000
            else dict(failed=f"no sentence: {text}")
        )
    except BaseException:
        return dict(failed=traceback.format_exc()[-3000:])
    return dict(read=True) if right else dict(failed="wrong values")


def memory():
    "The most memory that this process has had, in MiB; what its parent had does not count"
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def main():
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # What libraries print is not an answer
    before = memory()
    with tempfile.TemporaryDirectory() as folder:
        for line in sys.stdin.buffer:
            name, size = line.decode().rsplit(" ", 1)
            found = answer(name, sys.stdin.buffer.read(int(size)), Path(folder))
            print(json.dumps(found | dict(grown=memory() - before)), file=answers, flush=True)


if __name__ == "__main__":
    main()

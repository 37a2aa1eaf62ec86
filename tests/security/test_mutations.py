"Mutated files: every reader gives right values or one sentence; it neither dies nor takes memory"

import io
import json
import pickle
import select
import struct
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from ddrobust_nb.results.rows import example_row
from reader_process import READERS

MOST_GROWTH = 512  # MiB above what the process has after its imports
EACH = 2000 // len(READERS)  # Files of each kind in `make test`
EACH_SLOW = 20_000
WAIT = 60  # Seconds until a reader counts as hanging


def torch_file(value, **options):
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def inside(content):
    "The pickle of a file of `torch.save`"
    import zipfile

    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        return archive.read(name)


def picture(kind):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def npy():
    file = io.BytesIO()
    np.save(file, np.arange(60, dtype=np.float32).reshape(3, 4, 5))
    return file.getvalue()


def examples():
    "A good file for each reader"
    images = torch.rand(10, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    pair = {"images": images, "labels": torch.arange(10)}
    several = {"data": [[images, torch.arange(10)]], "accs_all_exps": {"ConvNet": [0.5]}}
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3072), dtype=np.uint8)
    card = dict(
        format=1,
        space="pixels",
        spec=dict(
            name="digits", classes=10, size=32, channels=1, mean=[0.3], std=[0.3], class_names=["0", "ä"]
        ),
        method="dm",
        ipc=1,
        seed=0,
        config=dict(lr_img=1.0, band=None),
        lr=0.01,
        teacher=dict(key="a" * 16),
    )
    row = asdict(example_row(method="dm"))
    labels = b"\0\0\x08\x01" + struct.pack(">I", 40) + bytes(range(40))
    batch = pickle.dumps({"data": pixels, "labels": [1, 2, 3]}, protocol=2)
    return {
        "card": json.dumps(card).encode(),
        "json": json.dumps(card).encode(),
        "rows": json.dumps([row]).encode(),
        "batch": batch,
        "idx": labels,
        "packed idx": labels,
        "png": picture("PNG"),
        "jpeg": picture("JPEG"),
        "gif": picture("GIF"),
        "torch": torch_file(pair),
        "torch inside": inside(torch_file(several)),
        "old torch": torch_file(pair, _use_new_zipfile_serialization=False),
        "npy": npy(),
        "npz inside": npy(),
        "safetensors": save(pair),
        "pickle": pickle.dumps(pair, protocol=4),
        "set inside": inside(torch_file(pair)),
        "own set": save(pair),
        "state": torch_file({"of": "train/0123", "state": {"step": 3, "images": images}}),
        "state inside": inside(torch_file({"of": "train/0123", "state": {"step": 3, "images": images}})),
    }


EXAMPLES = examples()
NUMBERS = (
    b"\0" * 4,
    b"\xff" * 4,
    b"\xff\xff\xff\x7f",
    b"\x7f\xff\xff\xff",
    b"\0\0\0\x80",
    b"\x01\0\0\0",
    b"\xff" * 8,
)
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["set", "flip", "cut", "end", "repeat", "number", "insert"]),
        st.floats(0, 1),
        st.integers(0, 2**16 - 1),
    ),
    min_size=1,
    max_size=6,
)


def changed(content, changes):
    "A file after some changes; early places are changed more often, since heads are there"
    content = bytearray(content)
    for kind, place, value in changes:
        at = int(place**2 * len(content))
        if kind == "set" and content:
            content[min(at, len(content) - 1)] = value % 256
        elif kind == "flip" and content:
            content[min(at, len(content) - 1)] ^= 1 << value % 8
        elif kind == "cut":
            del content[at : at + value % 64]
        elif kind == "end":
            del content[len(content) - value % 256 :]
        elif kind == "repeat":
            content[at:at] = content[at : at + value % 512]
        elif kind == "number":
            content[at : at + 4] = NUMBERS[value % len(NUMBERS)]
        elif kind == "insert":
            content[at:at] = struct.pack("<H", value)
    return bytes(content)


class Reader:
    "The process that reads, started once"

    def __init__(self):
        program = Path(__file__).with_name("reader_process.py")
        self.process = subprocess.Popen(
            [sys.executable, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def ask(self, name, content):
        try:
            self.process.stdin.write(f"{name} {len(content)}\n".encode() + content)
            self.process.stdin.flush()
            ready, _, _ = select.select([self.process.stdout], [], [], WAIT)
            line = self.process.stdout.readline() if ready else b""
        except BrokenPipeError:
            line = b""
        if not line:
            self.process.kill()
            pytest.fail(f"the reader of {name} hangs or has died with status {self.process.wait()}")
        return json.loads(line)

    def close(self):
        self.process.stdin.close()
        return self.process.wait(WAIT)


@pytest.fixture(scope="module")
def reader():
    reader = Reader()
    yield reader
    assert reader.close() == 0


def check(reader, name, n_examples):
    "So many mutated files of one kind"

    @settings(
        max_examples=n_examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(CHANGES)
    def try_one(changes):
        found = reader.ask(name, changed(EXAMPLES[name], changes))
        assert "failed" not in found, found["failed"]
        assert found["grown"] < MOST_GROWTH, f"memory grew by {found['grown']:.0f} MiB"

    assert reader.ask(name, EXAMPLES[name]).get("read"), "the good file is not read"
    try_one()


def test_every_reader_has_an_example():
    assert set(EXAMPLES) == set(READERS)


@pytest.mark.parametrize("name", READERS)
def test_mutated_files(reader, name):
    check(reader, name, EACH)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_many_mutated_files(reader, name):
    check(reader, name, EACH_SLOW)

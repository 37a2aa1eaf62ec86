"Fixtures for golden numbers and real images; both are optional and found by environment variables."

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

os.environ.setdefault("DDROBUST_QUIET", "1")
os.environ.setdefault("DDROBUST_STRICT", "1")  # a figure that fails is an error here, not a line of text


def folder(variable):
    "The folder an environment variable names, or a skip with a message"
    path = os.environ.get(variable)
    if not path or not Path(path).is_dir():
        pytest.skip(
            f"{variable} is not set to a folder: this test needs files that are not part of the project"
        )
    return Path(path)


@pytest.fixture
def golden():
    "A function that loads one golden file by name"
    return lambda name: load_file(folder("DDROBUST_GOLDEN") / f"{name}.safetensors")


@pytest.fixture(scope="session")
def data_root():
    "Folder with unpacked real images: cifar10, tiny-imagenet-200, imagenet"
    return folder("DDROBUST_DATA")


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    "Networks as small as those of the tests lose time on several threads; for the whole session, since bits are compared between tests and what a module prepared"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)

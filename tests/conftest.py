"""Fixtures for golden numbers and real images; both are optional and found by environment variables.

Files that take longest come first, so that no worker is left with one of them at the end. `pytest --record-seconds`
notes how long they take."""

import os
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from seconds import known_seconds, record_seconds

os.environ.setdefault("DDROBUST_QUIET", "1")
os.environ.setdefault("DDROBUST_STRICT", "1")  # a figure that fails is an error here, not a line of text

spent = defaultdict(float)  # Seconds of each file in this run


def pytest_addoption(parser):
    "An option that notes the times"
    text = "note the seconds of slow test files in tools/seconds.json"
    parser.addoption("--record-seconds", action="store_true", help=text)


def pytest_collection_modifyitems(items):
    "The files that take longest first; the order within a file stays"
    seconds = known_seconds("tests")

    def slowest_first(item):
        return -seconds.get(file_of(item.nodeid), 0)

    items.sort(key=slowest_first)


def pytest_runtest_logreport(report):
    "Add what a test took to the time of its file"
    spent[file_of(report.nodeid)] += report.duration


def pytest_sessionfinish(session):
    "Note the times where that is asked for; with several workers only the process that hears of all of them does"
    is_worker = hasattr(session.config, "workerinput")
    if session.config.getoption("--record-seconds") and not is_worker:
        record_seconds("tests", spent)


def file_of(test):
    "The file of a test, from its full name"
    return test.split("::")[0]


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

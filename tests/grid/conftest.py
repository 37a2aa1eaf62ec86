"Fixtures of the grid tests."

import os

import pytest
from filelock import FileLock
from grid_runs import finish, results


@pytest.fixture
def away(tmp_path, monkeypatch):
    "No dataset but the bundled one is here"
    (tmp_path / "no data").mkdir()
    monkeypatch.delenv("DDROBUST_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / "store"


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    "A store with a grid that ran without any trouble, what the command printed, and the rows; made once for all workers"
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    store = folder / "undisturbed" / "store"
    printed = folder / "undisturbed" / "printed.txt"
    with FileLock(folder / "undisturbed.lock"):
        if not printed.exists():
            text = finish(store)
            printed.write_text(text, encoding="utf-8")
    return store, printed.read_text(encoding="utf-8"), results(store)

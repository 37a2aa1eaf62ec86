"""Run every notebook from top to bottom, two at a time, the slowest first: python tools/run_notebooks.py

    PATH ...        only these notebooks or folders, for example nbs/attacks
    --flags FLAGS   also run the cells that are marked `#| slow` or `#| gpu`: --flags "slow gpu"
    --workers N     how many at a time
    --record        write the seconds of the slow ones into tools/seconds.json

This is what nbdev_test does, with three differences: the order, a process of its own for each notebook (forked
from one that has imported PyTorch, so none waits for that), and a table of times even when a notebook fails."""

import argparse
import importlib
import multiprocessing
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from seconds import NOTED, known_seconds, record_seconds

ROOT = Path(__file__).resolve().parent.parent
PREPARED = (
    "torch",
    "torch._dynamo",
    "torchvision",
    "pandas",
    "matplotlib.pyplot",
    "sklearn.datasets",
    "scipy.stats",
    "nbdev.test",
)


@dataclass(frozen=True)
class Tested:
    "What came of one notebook"

    path: Path
    passed: bool
    seconds: float

    @property
    def name(self):
        "Its path in the project"
        return self.path.relative_to(ROOT).as_posix()


def notebooks(paths):
    "The notebooks in these places, the slowest first"
    from nbdev.doclinks import nbglob

    found = set()
    for path in paths or [None]:
        found.update(Path(file).absolute() for file in nbglob(path, as_path=True))
    seconds = known_seconds("notebooks")

    def slowest_first(path):
        name = path.relative_to(ROOT).as_posix()
        return -seconds.get(name, 0), name

    return sorted(found, key=slowest_first)


def run_notebook(task):
    "Run one notebook in this process: its path, whether it passed, seconds"
    path, flags = task  # Plain values both ways: the shell of a notebook takes the place of this module
    from nbdev.config import get_config
    from nbdev.test import test_nb

    skipped = get_config().tst_flags.split()
    passed, seconds = test_nb(path, skip_flags=skipped, force_flags=flags, basepath=ROOT)
    return path, passed, seconds


def run_all(paths, flags, workers):
    "Run notebooks in processes of their own; each result as soon as it is there"
    for module in PREPARED:
        importlib.import_module(module)
    tasks = [(path, flags) for path in paths]
    fork = multiprocessing.get_context("fork")
    with fork.Pool(workers, maxtasksperchild=1) as pool:
        for path, passed, seconds in pool.imap_unordered(run_notebook, tasks, chunksize=1):
            yield Tested(path=path, passed=passed, seconds=seconds)


def options(arguments):
    "The command line"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="*", metavar="PATH", help="notebooks or folders; all when left out")
    parser.add_argument("--flags", default="", help="directives of cells that are run as well")
    parser.add_argument("--workers", type=int, default=2, help="how many at a time")
    parser.add_argument("--record", action="store_true", help="note the seconds in tools/seconds.json")
    return parser.parse_args(arguments)


def main(arguments=None):
    "Run the notebooks and print their times; the status is 1 when one fails"
    chosen = options(arguments)
    os.chdir(ROOT)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    done = list(run_all(notebooks(chosen.paths), chosen.flags.split(), chosen.workers))
    done.sort(key=lambda tested: -tested.seconds)
    for tested in done:
        if tested.seconds >= NOTED:
            print(f"{tested.seconds:6.0f} s  {tested.name}")
    if chosen.record:
        record_seconds("notebooks", {tested.name: tested.seconds for tested in done})
    failed = sorted(tested.name for tested in done if not tested.passed)
    for name in failed:
        print(f"FAILED: {name}")
    print(
        f"{len(done)} notebooks, {len(failed)} failed, {sum(tested.seconds for tested in done):.0f} s of work"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""Make one reference set of nbs/sets, with its snapshots, its loss curve and the rows of the students trained on it.

    python tools/make_reference.py dm 1 --seed 0

Run it again after an interruption: what is finished comes from the store. A set that is there is not made again: --attacks quick then gives it rows under attack. Real images are never written: of methods that choose them, only the rows are kept."""

import argparse
import json
import sys
import time
from pathlib import Path

import ddrobust_nb.foundations.core  # noqa: F401  before torch
import torch
from safetensors.torch import save_file

from ddrobust_nb.training.distilled import save_set
from ddrobust_nb.results.cell_rows import run_stages
from ddrobust_nb.results.plan import plan_cell
from ddrobust_nb.results.stages import distil_cell
from ddrobust_nb.results.reading import read_results
from ddrobust_nb.results.rows import write_results
from ddrobust_nb.results.store import write_json

SETS = Path(__file__).parent.parent / "nbs" / "sets"
TEACHERS = SETS / "teachers"  # One serves sets of several sizes
ROWS_ONLY = (
    "random",
    "kmeans",
    "herding",
    "random_teacher",
    "sre2l_hard",
)  # Real images, or those of another method


class Watch:
    "Loss curve and snapshots of one distillation"

    def __init__(self, iterations):
        self.iterations, self.it, self.loss, self.images = iterations, [], [], {}

    def __call__(self, it, loss, images):
        self.it.append(it), self.loss.append(loss)
        if it == 0:
            self.images["start"] = images
        if it <= self.iterations / 2:
            self.images["middle"] = images


def make(method, ipc, dataset, seed, protocol, attacks, data_root, options):
    asked = dict(ipc=ipc, dataset=dataset, data_root=data_root, seed=seed, protocol=protocol)
    cell = plan_cell(method=method, options=options, attacks="none", **asked)
    folder, began = SETS / f"{dataset}-{method}-ipc{ipc}", time.time()
    if method not in ROWS_ONLY:
        ready = folder / f"seed{seed}"
        if not ready.is_dir():
            watch = Watch(cell.options.get("iterations", 0))
            keep(
                distil_cell(cell, watch if watch.iterations else None),
                ready,
                watch,
                time.time() - began,
                dataset,
            )
        cell = plan_cell(distilled=str(ready), network=cell.network, attacks=attacks, **asked)
    else:
        cell = plan_cell(method=method, options=options, attacks=attacks, **asked)
    seconds = time.time() - began
    new = run_stages(cell).rows
    old = [
        r for r in (read_results(folder) if (folder / "results.json").is_file() else []) if r.set_seed != seed
    ]
    folder.mkdir(parents=True, exist_ok=True)
    write_results(sorted(old + new, key=lambda r: (r.set_seed, r.seed)), folder)
    clean = torch.tensor([r.clean for r in {r.seed: r for r in new}.values()])
    print(
        f"{folder.name} seed {seed}: {seconds:.0f} s for the set, {time.time() - began:.0f} s in all, clean {100 * clean.mean():.2f} +- {100 * clean.std():.2f} %",
        flush=True,
    )


def keep(made, folder, watch, seconds, dataset):
    "The set in half precision, its teacher, and what was seen while it was made: the first image of each class, and the loss"
    save_set(made.dset, folder, dtype=torch.float16)
    if made.teacher:
        TEACHERS.mkdir(exist_ok=True)
        save_file(
            {k: v.cpu() for k, v in made.teacher.state_dict().items()},
            TEACHERS / f"{made.dset.teacher['key']}.safetensors",
        )
    if "start" not in watch.images:
        return  # from the store, or taken up again: not all of it was seen
    real_start = made.dset.config.get("init") == "real" and dataset != "digits"
    first = {
        k: v[:: made.dset.ipc].half().contiguous()
        for k, v in watch.images.items()
        if not (k == "start" and real_start)
    }
    save_file(first, folder / "snapshots.safetensors")
    write_json(
        folder / "making.json",
        {
            "seconds": round(seconds),
            "threads": torch.get_num_threads(),
            "iterations": watch.it,
            "loss": watch.loss,
        },
    )


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("method"), p.add_argument("ipc", type=int)
    p.add_argument("--dataset", default="cifar10"), p.add_argument("--data_root", default="")
    p.add_argument("--seed", type=int, default=0), p.add_argument("--protocol", default="quick")
    p.add_argument("--attacks", default="none"), p.add_argument("--options", type=json.loads, default={})
    sys.exit(make(**vars(p.parse_args())))

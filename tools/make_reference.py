"""Make one reference set of nbs/sets, with its snapshots, its loss curve and the rows of the students trained on it.

    python tools/make_reference.py dm 1 --seed 0

After an interruption, run it again: what is finished comes from the store. A set that exists is not made again;
`--attacks quick` then adds its rows under attack. Real images are never written: of methods that choose real images,
only the rows are kept."""

import argparse
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import ddrobust_nb.foundations.core  # noqa: F401  before torch
import torch
from safetensors.torch import save_file

from ddrobust_nb.results.cell_rows import run_stages
from ddrobust_nb.results.plan import plan_cell
from ddrobust_nb.results.reading import read_results
from ddrobust_nb.results.rows import write_results
from ddrobust_nb.results.stages import distil_cell
from ddrobust_nb.results.store import write_json
from ddrobust_nb.training.distilled import save_set

SETS = Path(__file__).parent.parent / "nbs" / "sets"
TEACHERS = SETS / "teachers"  # One serves sets of several sizes
ROWS_ONLY = (  # Real images, or those of another method
    "random",
    "kmeans",
    "herding",
    "random_teacher",
    "sre2l_hard",
)


@dataclass
class Watch:
    "Loss curve and snapshots of one distillation: a function that the distiller calls"

    iterations: int
    seen: list = field(default_factory=list)  # Iterations at which it was called
    loss: list = field(default_factory=list)
    images: dict = field(default_factory=dict)

    def __call__(self, iteration, loss, images):
        self.seen.append(iteration)
        self.loss.append(loss)
        if iteration == 0:
            self.images["start"] = images
        if iteration <= self.iterations / 2:
            self.images["middle"] = images


def make_set(cell, folder):
    "Distil a set and keep it"
    began = time.time()
    iterations = cell.options.get("iterations", 0)
    watch = Watch(iterations)
    made = distil_cell(cell, watch if iterations else None)
    keep(made, folder=folder, watch=watch, seconds=time.time() - began, dataset=cell.dataset)


def keep(made, folder, watch, seconds, dataset):
    "The set in half precision, its teacher, the first image of each class while it was made, and the loss"
    save_set(made.dset, folder, dtype=torch.float16)
    if made.teacher:
        TEACHERS.mkdir(exist_ok=True)
        weights = {name: value.cpu() for name, value in made.teacher.state_dict().items()}
        save_file(weights, TEACHERS / f"{made.dset.teacher['key']}.safetensors")
    if "start" not in watch.images:
        return  # from the store, or resumed: not all of it was seen
    if made.dset.config.get("init") == "real" and dataset != "digits":
        del watch.images["start"]
    first = {}
    for name, images in watch.images.items():
        first[name] = images[:: made.dset.ipc].half().contiguous()
    save_file(first, folder / "snapshots.safetensors")
    making = {
        "seconds": round(seconds),
        "threads": torch.get_num_threads(),
        "iterations": watch.seen,
        "loss": watch.loss,
    }
    write_json(folder / "making.json", making)


def merged_rows(new, folder, seed):
    "New rows in the place of the old ones of this seed"
    old = read_results(folder) if (folder / "results.json").is_file() else []
    others = [row for row in old if row.set_seed != seed]
    return sorted(others + new, key=lambda row: (row.set_seed, row.seed))


def make(method, ipc, dataset, seed, protocol, attacks, data_root, options):
    "The set, where the method makes one, and its rows"
    given = {"ipc": ipc, "dataset": dataset, "data_root": data_root, "seed": seed, "protocol": protocol}
    folder = SETS / f"{dataset}-{method}-ipc{ipc}"
    began = time.time()
    if method in ROWS_ONLY:
        cell = plan_cell(method=method, options=options, attacks=attacks, **given)
    else:
        ready = folder / f"seed{seed}"
        cell = plan_cell(method=method, options=options, attacks="none", **given)
        if not ready.is_dir():
            make_set(cell, ready)
        cell = plan_cell(distilled=str(ready), network=cell.network, attacks=attacks, **given)
    seconds = time.time() - began
    new = run_stages(cell).rows
    folder.mkdir(parents=True, exist_ok=True)
    write_results(merged_rows(new, folder=folder, seed=seed), folder)
    clean_of_models = {row.seed: row.clean for row in new}
    clean = 100 * torch.tensor(list(clean_of_models.values()))
    print(
        f"{folder.name} seed {seed}: {seconds:.0f} s for the set, {time.time() - began:.0f} s in all, "
        f"clean {clean.mean():.2f} +- {clean.std():.2f} %",
        flush=True,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("method")
    parser.add_argument("ipc", type=int)
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--data_root", default="")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--protocol", default="quick")
    parser.add_argument("--attacks", default="none")
    parser.add_argument("--options", type=json.loads, default={})
    sys.exit(make(**vars(parser.parse_args())))

"""Does steering distillation in frequency help robustness? Make DM sets with and without a frequency constraint,
train students on each and attack them.

    python tools/make_steering.py --data_root /data

Writes nbs/sets/steering.json. What is finished comes from the store, so you can interrupt it and run it again."""

import argparse
import json
from pathlib import Path

import ddrobust_nb.foundations.core  # noqa: F401  before torch
from ddrobust_nb.foundations.bands import share_high
from ddrobust_nb.results.cell_rows import run_stages
from ddrobust_nb.results.plan import plan_cell
from ddrobust_nb.results.store import write_json

FILE = Path(__file__).parent.parent / "nbs" / "sets" / "steering.json"
CONSTRAINTS = {
    "none": None,
    "target 0.27": {"weight": 3000, "target": 0.27},
    "target 0.6": {"weight": 3000, "target": 0.6},
    "keep 0 to 8": {"keep": [0, 8]},
    "keep 2 to 23": {"keep": [2, 23]},
}
CELL = {
    "method": "dm",
    "ipc": 1,
    "dataset": "cifar10",
    "attacks": "fgsm@2/255,pgd@2/255@10",
    "n_test": 500,
}
KEPT = (
    "seed",
    "clean",
    "clean_n",
    "n",
    "attack",
    "eps",
    "steps",
    "robust",
    "drop_rate",
    "protocol",
    "commit",
    "versions",
    "data_fingerprint",
)


def measure(name, seed, data_root):
    "Distil under one constraint, train, attack: the line of the file"
    constraint = CONSTRAINTS[name]
    options = {"frequency": constraint} if constraint else {}
    done = run_stages(plan_cell(**CELL, seed=seed, data_root=data_root, options=options))
    shares = share_high(done.distilled.dset.images.float())
    rows = []
    for row in done.rows:
        rows.append({field: getattr(row, field) for field in KEPT})
    return {"wish": name, "frequency": constraint, "set_seed": seed, "share": shares.tolist(), "rows": rows}


def make(data_root, seeds):
    "All lines that are not in the file yet"
    lines = json.loads(FILE.read_text()) if FILE.is_file() else []
    done = {(line["wish"], line["set_seed"]) for line in lines}
    for seed in range(seeds):
        for name in CONSTRAINTS:
            if (name, seed) in done:
                continue
            line = measure(name, seed, data_root)
            lines.append(line)
            write_json(FILE, lines)
            robust = [f"{row['attack']} {row['robust']:.3f}" for row in line["rows"]]
            print(name, seed, robust, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_root", default="")
    parser.add_argument("--seeds", type=int, default=2)
    make(**vars(parser.parse_args()))

"""Does steering distillation in frequency help robustness? Distil DM sets with and without a wish, train students on each, attack them.

    python tools/make_steering.py --data_root /data

Writes nbs/sets/steering.json; what is finished comes from the store, so it can be interrupted and run again."""

import argparse
import json
from pathlib import Path

import ddrobust_nb.foundations.core  # noqa: F401  before torch
from ddrobust_nb.foundations.bands import share_high
from ddrobust_nb.results.cell_rows import run_stages
from ddrobust_nb.results.plan import plan_cell
from ddrobust_nb.results.store import write_json

FILE = Path(__file__).parent.parent / "nbs" / "sets" / "steering.json"
WISHES = {
    "none": None,
    "target 0.27": {"weight": 3000, "target": 0.27},
    "target 0.6": {"weight": 3000, "target": 0.6},
    "keep 0 to 8": {"keep": [0, 8]},
    "keep 2 to 23": {"keep": [2, 23]},
}
ASKED = dict(method="dm", ipc=1, dataset="cifar10", attacks="fgsm@2/255,pgd@2/255@10", n_test=500)
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


def line(name, wish, seed, data_root):
    cell = plan_cell(**ASKED, seed=seed, data_root=data_root, options={"frequency": wish} if wish else {})
    done = run_stages(cell)
    shares = share_high(done.distilled.dset.images.float())
    rows = [{n: getattr(r, n) for n in KEPT} for r in done.rows]
    return {"wish": name, "frequency": wish, "set_seed": seed, "share": shares.tolist(), "rows": rows}


def make(data_root, seeds):
    lines = json.loads(FILE.read_text()) if FILE.is_file() else []
    for seed in range(seeds):
        for name, wish in WISHES.items():
            if any((x["wish"], x["set_seed"]) == (name, seed) for x in lines):
                continue
            lines.append(line(name, wish, seed, data_root))
            write_json(FILE, lines)
            print(name, seed, [f"{r['attack']} {r['robust']:.3f}" for r in lines[-1]["rows"]], flush=True)


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data_root", default=""), p.add_argument("--seeds", type=int, default=2)
    make(**vars(p.parse_args()))

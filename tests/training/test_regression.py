"""A small network that is kept, and 200 digits: every attack still finds what it found.

`kept_network.pt` is a ConvNet of depth 3 and width 16, trained on the training digits; `kept_network.json` holds, for each attack, how many of the 200 images stay right.
Rounding differs between processors, so one image may change sides. `python tests/training/test_regression.py --record` writes down what is found now: only for a change that is meant."""

import json
import sys
from pathlib import Path

import torch

from ddrobust_nb.attacks.robustness import evaluate
from ddrobust_nb.attacks.attack import AttackConfig, parse_attacks
from ddrobust_nb.attacks.autoattack import PARTS
from ddrobust_nb.foundations.datasets import load_data
from ddrobust_nb.foundations.networks import make_network

HERE = Path(__file__).parent
WEIGHTS, FOUND = HERE / "kept_network.pt", HERE / "kept_network.json"
THREATS = [
    t
    for e in ("8/255", "16/255", "24/255")
    for t in (
        *parse_attacks(f"fgsm@{e},pgd@{e}@10,cw@{e}@10"),
        *(AttackConfig(name, e, preset="aa-quick") for name in (*PARTS, "autoattack")),
    )
]


def kept():
    net = make_network("ConvNetD3-w16", load_data("digits").spec)
    net.load_state_dict(torch.load(WEIGHTS, weights_only=True))
    return net.eval()


def found():
    return {
        str(e.config): int(e.flags.sum())
        for e in evaluate(kept(), load_data("digits"), THREATS, n_test=200, device="cpu")
    }


def test_every_attack_finds_what_it_found():
    recorded, now = json.loads(FOUND.read_text(encoding="utf-8")), found()
    assert now.keys() == recorded.keys() and min(recorded.values()) < 50 < 150 < max(recorded.values())
    off = {name: (recorded[name], n) for name, n in now.items() if abs(n - recorded[name]) > 1}
    assert not off, f"images that stay right, then and now: {off}"


if __name__ == "__main__":
    if sys.argv[1:] != ["--record"]:
        sys.exit(__doc__)
    FOUND.write_text(json.dumps(found(), indent=1) + "\n", encoding="utf-8")

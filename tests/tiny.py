"Small things that several test files need: data of three classes, a cell of them, a state as the store would give it back."

import io
import random
from dataclasses import asdict, replace

import numpy as np
import torch

from ddrobust_nb.foundations.core import generator
from ddrobust_nb.foundations.data import Spec, make_data
from ddrobust_nb.results.plan import plan_cell
from ddrobust_nb.results.store import Store

NETWORK = "ConvNetD3-w8"


def tiny_data(counts=(12, 13, 14), tests=6, channels=3, size=8, seed=0):
    "Noise around a colour of its own for each class; classes differ in size and lie mixed"
    spec = Spec("tiny", len(counts), size, channels, (0.5,) * channels, (0.25,) * channels)

    def draw(counts, what):
        g = generator(seed, what)
        y = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))[
            torch.randperm(sum(counts), generator=g)
        ]
        centre = torch.rand(len(counts), channels, size, size, generator=generator(seed, "centres"))
        x = 0.5 * centre[y] + 0.5 * torch.rand(len(y), channels, size, size, generator=g)
        return (x * 255).to(torch.uint8), y

    return make_data(spec, *draw(counts, "train"), *draw((tests,) * len(counts), "test"))


def as_stored(state):
    "What comes back of a state that was written to disk"
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def global_randomness():
    "The state of every global generator, in a form that can be compared"
    name, keys, *rest = np.random.get_state()
    return torch.get_rng_state().numpy().tobytes(), name, keys.tobytes(), rest, random.getstate()


def scramble(seed):
    "Another state for every global generator"
    torch.manual_seed(seed), np.random.seed(seed), random.seed(seed)


def tiny_cell(store, **given):
    "A cell of `tiny`, planned like any other, whose training is cut short; the dataset has to be registered"
    usual = dict(
        method="dm",
        dataset="tiny",
        network=NETWORK,
        distill_network=NETWORK,
        attacks="fgsm@8/255,pgd@8/255@3",
        n_test=9,
        n_models=2,
        device="cpu",
        store=str(store.root if isinstance(store, Store) else store),
    )
    if {**usual, **given}["method"] == "dm":
        usual["options"] = dict(iterations=4, batch_real=6)
    cell = plan_cell(**usual | given)
    return replace(cell, recipe=replace(cell.recipe, epochs=12, lr=0.1, check_every=3, check_n=0))


def measured(rows):
    "Rows without what differs from run to run"
    return [{k: v for k, v in asdict(r).items() if k not in ("seconds", "peak_mb")} for r in rows]


def same_results(a, b):
    "Two finished cells: the same images, weights, flags and rows, to the bit"
    assert torch.equal(a.distilled.dset.images, b.distilled.dset.images) and torch.equal(
        a.distilled.dset.labels, b.distilled.dset.labels
    )
    for m, n in zip(a.models, b.models, strict=True):
        p, q = m.model.state_dict(), n.model.state_dict()
        assert p.keys() == q.keys() and all(torch.equal(p[k], q[k]) for k in p)
        assert torch.equal(m.right, n.right) and (m.clean_last, m.clean_best, m.history.accuracy) == (
            n.clean_last,
            n.clean_best,
            n.history.accuracy,
        )
    for d, e in zip(sum(a.evaluations, []), sum(b.evaluations, []), strict=True):
        assert torch.equal(d.flags, e.flags) and torch.equal(d.index, e.index)
    assert measured(a.rows) == measured(b.rows)

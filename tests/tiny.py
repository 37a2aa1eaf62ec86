"Small things that several test files need: data of three classes, and a state as the store would give it back."
import io
import random

import numpy as np
import torch

from ddrobust_nb.core import generator
from ddrobust_nb.data import Spec, make_data

NETWORK = "ConvNetD3-w8"


def tiny_data(counts=(12, 13, 14), tests=6, channels=3, size=8, seed=0):
    "Noise around a colour of its own for each class; classes differ in size and lie mixed"
    spec = Spec("tiny", len(counts), size, channels, (0.5,) * channels, (0.25,) * channels)
    def draw(counts, what):
        g = generator(seed, what)
        y = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))[torch.randperm(sum(counts), generator=g)]
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

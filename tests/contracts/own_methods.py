"A distiller and an attack in one file outside the package."

import os
import time

import torch

from ddrobust_nb.attacks.attack import attack
from ddrobust_nb.attacks.fgsm import pixel_gradient
from ddrobust_nb.foundations.core import generator
from ddrobust_nb.foundations.data import as_pixels
from ddrobust_nb.training.distilled import DistilledSet
from ddrobust_nb.training.distiller import Prerequisite, balanced, distiller, read_part


def class_means(data, config, *, device, state, save):
    return {"means": torch.stack([as_pixels(data.train_images[c]).mean(0) for c in data.per_class])}


def note_a_round():
    "For the test: one more character in a file, and a moment in which the run can be killed"
    if os.environ.get("DRIFT_LOG"):
        time.sleep(0.15)
        with open(os.environ["DRIFT_LOG"], "a") as log:
            log.write(".")


MEANS = Prerequisite(
    stage="means",
    keyword="means",
    configs=lambda data, network, options: [{"of": "all images"}],
    make=class_means,
    passes=lambda config, n_train: n_train,
)


@distiller(
    label="Drift", passes=lambda options, classes, ipc, n: options["rounds"] * ipc, prerequisites=MEANS
)
def drift(data, ipc, *, seed=0, device="auto", network="auto", rounds=12, means=None, state=None, save=None):
    "Noise that drifts towards the mean of its class"
    targets = read_part(means[0])["means"].repeat_interleave(ipc, 0)
    images = torch.rand(targets.shape, generator=generator(seed, "drift"))
    state = state or {"images": images, "done": 0}
    images = state["images"]
    for i in range(state["done"], rounds):
        note_a_round()
        images = images + 0.2 * (targets - images)
        if save:
            save({"images": images, "done": i + 1})
    return DistilledSet(data.spec, images, balanced(data, ipc), "drift", ipc, seed, {"rounds": rounds})


@attack(label="Push", shares="eps", one_step=True)
def push(model, x, y, configs):
    "Half of eps along the gradient, half of eps towards grey: one gradient for every eps"
    direction = pixel_gradient(model, x, y).sign()
    towards_grey = (0.5 - x).sign()
    for config in configs:
        step = 0.5 * config.eps_value
        yield (x + step * direction + step * towards_grey).clamp(0, 1)

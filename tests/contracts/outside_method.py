"A distiller in one file outside the package: the mean image of each class, with noise."

import torch

from ddrobust_nb.foundations.core import generator
from ddrobust_nb.foundations.data import as_pixels
from ddrobust_nb.training.distilled import DistilledSet
from ddrobust_nb.training.distiller import Prerequisite, balanced, distiller, read_part


def class_means(data, config, *, device, state, save):
    means = [as_pixels(data.train_images[c]).mean(0) for c in data.per_class]
    return {"means": torch.stack(means)}


MEANS = Prerequisite(
    stage="means",
    keyword="means",
    configs=lambda data, network, options: [{"of": "all images"}],
    make=class_means,
    passes=lambda config, n_train: n_train,
)


@distiller(label="Noisy means", passes=lambda options, classes, ipc, n: ipc * classes, prerequisites=MEANS)
def noisy_means(
    data, ipc, *, seed=0, device="auto", network="auto", noise=0.1, means=None, state=None, save=None
):
    done = state["done"] if state else torch.empty(0, *data.train_images.shape[1:])
    for mean in read_part(means[0])["means"].repeat_interleave(ipc, 0)[len(done) :]:
        draw = torch.randn(mean.shape, generator=generator(seed, "noisy_means", len(done)))
        done = torch.cat([done, (mean + noise * draw)[None]])
        if save:
            save({"done": done})
    return DistilledSet(data.spec, done, balanced(data, ipc), "noisy_means", ipc, seed, {"noise": noise})

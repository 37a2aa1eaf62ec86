"""The real code path at the real image sizes, cut in length: TinyImageNet at 64 pixels with ConvNetD4, ImageNet at 64 with ResNet18 and at 128 with ConvNetD5.

The data are cut as well: TinyImageNet has 150 training images a class here, and of ImageNet there is one image of each class, which serves as training and as test image. Nothing of this measures a method."""

import os

import pytest
import torch

from ddrobust_nb.foundations.core import InputError
from ddrobust_nb.foundations.data import as_pixels
from ddrobust_nb.foundations.datasets import imagenet1k, load_data
from ddrobust_nb.distillers.baselines import random
from ddrobust_nb.training.distiller import own_options
from ddrobust_nb.distillers.dc import dc
from ddrobust_nb.distillers.dm import dm
from ddrobust_nb.distillers.mtt import mtt
from ddrobust_nb.distillers.sre2l import sre2l, squeeze, teacher_config
from ddrobust_nb.foundations.networks import make_network
from ddrobust_nb.training.fit import Recipe, fit, frozen

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def threads():
    "All of them: this is about size"
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count())
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tiny(data_root):
    data = load_data("tinyimagenet", data_root)
    assert (data.spec.classes, data.spec.size) == (200, 64) and min(map(len, data.per_class)) == 150
    return data


@pytest.fixture(scope="module")
def one_each(data_root, tmp_path_factory):
    "A data root whose ImageNet has its one image per class in train as well"
    root = tmp_path_factory.mktemp("root")
    (root / "imagenet").mkdir()
    for half in ("train", "val"):
        (root / "imagenet" / half).symlink_to(
            os.path.join(data_root, "imagenet", "val"), target_is_directory=True
        )
    return root


def moved(dset, data, seed=0):
    return (dset.images - random(data, dset.ipc, seed=seed).images).abs().amax((1, 2, 3))


def test_dm_on_tinyimagenet(tiny):
    seen = []
    dset = dm(tiny, 1, device="cpu", iterations=5, batch_real=32, watch=lambda it, loss, x: seen.append(loss))
    assert (
        dset.images.shape == (200, 3, 64, 64)
        and dset.config["network"] in ("auto", "ConvNetD4")
        and torch.isfinite(dset.images).all()
    )
    assert (moved(dset, tiny) > 0).all() and all(0 < loss < float("inf") for loss in seen)


def test_dc_on_tinyimagenet(tiny):
    dset = dc(tiny, 1, device="cpu", iterations=2, batch_real=32)
    assert (
        dset.images.shape == (200, 3, 64, 64)
        and torch.isfinite(dset.images).all()
        and (moved(dset, tiny) > 0).all()
    )
    with pytest.raises(InputError, match="smallest class"):
        dc(tiny, 1, device="cpu", batch_real=256)  # 150 a class here


def test_mtt_on_tinyimagenet(tiny):
    dset = mtt(
        tiny,
        1,
        device="cpu",
        iterations=2,
        syn_steps=10,
        expert_span=1,
        max_start=1,
        n_experts=1,
        lr_img=1e4,
        lr_lr=1e-4,
    )
    assert (
        dset.images.shape == (200, 3, 64, 64)
        and torch.isfinite(dset.images).all()
        and (moved(dset, tiny) > 0).all()
        and dset.lr > 0
    )


def test_sre2l_on_imagenet_at_64(one_each):
    data = imagenet1k(one_each / "imagenet", size=64, lazy=False)
    assert data.spec.classes == 1000 and len(data.train_labels) == 1000
    options = {**own_options("sre2l"), "squeeze_epochs": 1, "squeeze_batch": 128}
    part = squeeze(data, teacher_config(data, "auto", options)[0], device="cpu")
    dset = sre2l(data, 1, device="cpu", teacher=[part], iterations=2, squeeze_epochs=1, classes_per_batch=100)
    assert dset.images.shape == (1000, 3, 64, 64) and dset.images.min() >= 0 and dset.images.max() <= 1
    assert dset.teacher["network"] == "ResNet18" and dset.config["classes_per_batch"] == 100
    teacher = frozen("ResNet18", data.spec, part)
    net = fit(
        dset,
        network="ResNet18-w16",
        recipe=Recipe(epochs=1, batch=100, optimiser="adamw", lr=1e-3, schedule="cosine", check_every=0),
        teacher=teacher,
        device="cpu",
    )
    assert all(torch.isfinite(v).all() for v in net.state_dict().values() if v.is_floating_point())


def test_mtt_at_128_pixels(one_each):
    data = load_data("imagenette", one_each)
    assert (data.spec.size, data.spec.classes, make_network("auto", data.spec, device="meta").name) == (
        128,
        10,
        "ConvNetD5",
    )
    dset = mtt(
        data,
        1,
        device="cpu",
        iterations=2,
        syn_steps=5,
        expert_span=1,
        max_start=1,
        n_experts=1,
        expert_batch=10,
        lr_img=1e3,
    )
    assert dset.images.shape == (10, 3, 128, 128) and torch.isfinite(dset.images).all()
    assert (dset.images - as_pixels(data.train_images)).abs().amax(
        (1, 2, 3)
    ).min() > 0  # IPC 1: the only image of each class moved

"""Attacks and evaluations on images as test sets have them: class after class, whole batches that are classified wrong, one image alone.

What is asked are the registries: every registered attack, and every public function that `test_contracts` calls with a network."""

import pytest
import test_contracts as contracts
import torch
from tiny import tiny_data

from ddrobust_nb.attacks.attack import AttackConfig, attack
from ddrobust_nb.attacks.robustness import evaluate
from ddrobust_nb.attacks.running import attack_images
from ddrobust_nb.foundations.data import as_pixels
from ddrobust_nb.foundations.networks import make_network
from ddrobust_nb.foundations.predict import predict

OWN = sorted(name for name in attack if name not in ("reference", "ta"))
DATA = tiny_data(counts=(6, 6, 6, 6), tests=3)
PIXELS = as_pixels(DATA.test_images)


@pytest.fixture(scope="module")
def net():
    return make_network("ConvNetD3-w8", DATA.spec, norm="batch").eval()


def config_of(name):
    if attack[name].has_preset:
        return AttackConfig(name, "4/255", preset="aa-quick")
    return AttackConfig(name, "4/255", steps=2) if attack[name].has_steps else AttackConfig(name, "4/255")


def order_by_class(labels):
    return labels.argsort(stable=True)


@pytest.mark.parametrize("batch", (1, 3, 5))
@pytest.mark.parametrize("name", OWN)
def test_class_order_and_small_batches_change_nothing(net, name, batch):
    "Each image keeps its flag, whatever lies beside it; untrained networks answer one class, so most batches are wholly wrong"
    order = order_by_class(DATA.test_labels)
    x, y = PIXELS[order], DATA.test_labels[order]
    whole = attack_images(net, x, y, config_of(name), index=order)
    parts = attack_images(net, x, y, config_of(name), index=order, batch=batch)
    assert torch.equal(whole.flags, parts.flags)
    assert (whole.images - parts.images).abs().max() < 1e-3


@pytest.mark.parametrize("name", OWN)
def test_nothing_right(net, name):
    "No image is classified right: none is touched, none holds, and nothing fails"
    wrong = (predict(net, PIXELS, "cpu") + 1) % 4
    outcome = attack_images(net, PIXELS, wrong, config_of(name))
    assert not outcome.flags.any() and torch.equal(outcome.images, PIXELS)
    assert outcome.always is None or not outcome.always.any()
    attack_images(net, PIXELS, wrong, config_of(name), attack_misclassified=True)


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("right", (True, False))
def test_one_image(net, name, right):
    predicted = predict(net, PIXELS[:1], "cpu")
    outcome = attack_images(net, PIXELS[:1], predicted if right else (predicted + 1) % 4, config_of(name))
    assert outcome.flags.shape == (1,) and outcome.images.shape == (1, 3, 8, 8)
    assert right or not outcome.flags.any()


@pytest.mark.parametrize("labels", ("as they are", "all wrong"))
def test_evaluate(net, labels):
    from dataclasses import replace

    order = order_by_class(DATA.test_labels)
    truth = DATA.test_labels[order]
    if labels == "all wrong":
        truth = (predict(net, PIXELS[order], "cpu") + 1) % 4
    data = replace(DATA, test_images=DATA.test_images[order], test_labels=truth)
    for found in evaluate(net, data, [config_of(name) for name in OWN], device="cpu"):
        assert found.flags.shape == (12,) and (labels == "as they are" or not found.flags.any())


def worlds():
    "Images and labels by the name of the case"
    order = order_by_class(DATA.test_labels)
    net = make_network("ConvNetD3-w8", DATA.spec, norm="batch").eval()
    wrong = (predict(net, PIXELS, "cpu") + 1) % 4
    return {
        "class order": (PIXELS[order], DATA.test_labels[order]),
        "all wrong": (PIXELS, wrong),
        "one class": (PIXELS, torch.zeros(12).long()),
    }


@pytest.mark.parametrize("case", ("class order", "all wrong", "one class"))
@pytest.mark.parametrize("name", contracts.ASKS)
def test_every_public_function(monkeypatch, net, name, case):
    x, y = worlds()[case]
    monkeypatch.setattr(contracts, "X", x)
    monkeypatch.setattr(contracts, "Y", y)
    contracts.ASKS[name](net)


ONE_IS_TOO_FEW = {
    "attacks.autoattack.run_part": "its flags are given for twelve images",
    "attacks.square.square_search": "its stripes are given for twelve images",
    "distillers.sre2l.recover_loss": "labels of a whole set",
}


@pytest.mark.parametrize("name", sorted(set(contracts.ASKS) - set(ONE_IS_TOO_FEW)))
def test_every_public_function_on_one_image(monkeypatch, net, name):
    monkeypatch.setattr(contracts, "X", PIXELS[:1])
    monkeypatch.setattr(contracts, "Y", DATA.test_labels[:1])
    monkeypatch.setattr(contracts, "INDEX", torch.arange(1))
    monkeypatch.setattr(contracts, "EPS", torch.full((1, 1, 1, 1), 0.02))
    if name in ("foundations.predict.accuracy", "attacks.robustness.run_group"):
        from dataclasses import replace

        monkeypatch.setattr(
            contracts,
            "DATA",
            replace(DATA, test_images=DATA.test_images[:1], test_labels=DATA.test_labels[:1]),
        )
    contracts.ASKS[name](net)

"A network in training mode is refused and left untouched; one in half precision is attacked in float32."

import copy

import pytest
import torch

from ddrobust_nb.attacks.attack import AttackConfig
from ddrobust_nb.attacks.checks import model_checks
from ddrobust_nb.attacks.robustness import evaluate
from ddrobust_nb.attacks.running import attack_images
from ddrobust_nb.foundations.core import InputError
from ddrobust_nb.foundations.data import as_pixels, digits
from ddrobust_nb.foundations.networks import make_network
from ddrobust_nb.foundations.predict import accuracy, predict

DATA = digits()
X, Y = as_pixels(DATA.test_images[:20]), DATA.test_labels[:20]
CONFIG = AttackConfig("pgd", "8/255", steps=3)
RIGHT = torch.ones(20, dtype=torch.bool)

ASKED = {
    "accuracy": lambda net: accuracy(net, X, Y, "cpu"),
    "predict": lambda net: predict(net, X, "cpu"),
    "attack_images": lambda net: attack_images(net, X, Y, CONFIG, device="cpu"),
    "evaluate": lambda net: evaluate(net, DATA, [CONFIG], n_test=20, device="cpu"),
    "model_checks": lambda net: model_checks(net, X, Y, torch.arange(20), "8/255", device="cpu"),
    "model_checks, clean flags given": lambda net: model_checks(
        net, X, Y, torch.arange(20), "8/255", clean=RIGHT, device="cpu"
    ),
}


def network(name="ConvNetD3-w8", norm="batch"):
    return make_network(name, DATA.spec, norm=norm, seed=0)


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("mode", ["the whole network", "one layer"])
def test_training_mode_is_refused_and_nothing_changes(asked, mode):
    net = network().train(mode == "the whole network")
    net.body.features[1].train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    with pytest.raises(InputError, match="is in training mode"):
        ASKED[asked](net)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert [module.training for module in net.modules()] == modes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_a_network_of_half_precision_is_attacked(dtype, norm):
    "No pixel moves further than eps, and the flags are those of the network that was given"
    net = network(norm=norm).eval().to(dtype)
    before = copy.deepcopy(net.state_dict())
    answers = net(X.to(dtype)).argmax(1)
    assert torch.equal(predict(net, X, "cpu"), answers)
    assert accuracy(net, X, answers, "cpu") == 1
    moved = attack_images(net, X, answers, CONFIG, device="cpu")
    assert moved.images.dtype == torch.float32 and (moved.images - X).abs().max() <= 8 / 255 + 1e-6
    assert torch.equal(moved.flags, net(moved.images.to(dtype)).argmax(1) == answers)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())

"Networks that are trained once, and their weights as other programs write them."

import functools
import re
from dataclasses import replace

import torch
from torch import nn

from ddrobust_nb.foundations.core import generator
from ddrobust_nb.foundations.data import CIFAR10_NAMES, Spec, make_data
from ddrobust_nb.foundations.networks import Network, Normalise
from ddrobust_nb.training.fit import Recipe, fit

SPACES = {
    "dc": None,
    "pixels": ((0.0,) * 3, (1.0,) * 3),
    "half": ((0.5,) * 3, (0.5,) * 3),
    "bytes": ((0.0,) * 3, (1 / 255,) * 3),
}


def coloured(n_train=1300, n_test=500, size=16, classes=10):
    "Images whose classes differ by colour and coarse pattern, with noise: learned in a few steps, but not to 100 %"
    spec = Spec(
        "cifar10",
        classes,
        size,
        3,
        (0.4914, 0.4822, 0.4465),
        (0.2023, 0.1994, 0.2010),
        CIFAR10_NAMES[:classes],
    )
    patterns = torch.rand(classes, 3, 4, 4, generator=generator(0, "patterns"))

    def draw(n, what):
        labels = torch.arange(n) % classes
        coarse = nn.functional.interpolate(patterns[labels], size=size, mode="nearest")
        noise = torch.randn(n, 3, size, size, generator=generator(0, what))
        images = (0.3 + 0.35 * coarse + 0.5 * noise).clamp(0, 1)
        return (images * 255).to(torch.uint8), labels

    return make_data(spec, *draw(n_train, "train"), *draw(n_test, "test"))


@functools.cache
def data():
    return coloured()


@functools.cache
def trained(network, space="dc", epochs=2):
    "A network that was trained on images in some space, by the name of the space"
    constants = SPACES[space] or (data().spec.mean, data().spec.std)
    in_space = replace(data(), spec=replace(data().spec, mean=constants[0], std=constants[1]))
    recipe = Recipe(epochs=epochs, lr=0.05, batch=32, check_every=0)
    return fit(in_space, network=network, recipe=recipe, device="cpu", seed=0)


def plain(net):
    "The weights of a body as `torch.save(model.state_dict())` holds them"
    return {name: tensor.clone().contiguous() for name, tensor in net.body.state_dict().items()}


def renamed(state, *pairs):
    "The same under other names"
    result = {}
    for name, tensor in state.items():
        for pattern, by in pairs:
            name = re.sub(pattern, by, name)
        result[name] = tensor
    return result


def numbered(state, conv, norm, last, first=1):
    "A ConvNet under numbered names"
    result = {}
    for name, tensor in state.items():
        parts = name.split(".")
        if parts[0] == "classifier":
            result[f"{last}.{parts[1]}"] = tensor
            continue
        block = int(parts[1]) // 4 + first
        kind = conv if int(parts[1]) % 4 == 0 else norm
        result[f"{kind}{block}.{parts[2]}"] = tensor
    return result


KUANGLIU = [(r"downsample\.", "shortcut."), (r"^fc\.", "linear.")]
DIALECTS = {
    "ConvNet": {
        "DC family": lambda state: state,
        "IDC": lambda state: numbered(state, "layers.conv.", "layers.norm.", "classifier", first=0),
        "layers.conv1": lambda state: numbered(state, "layers.conv", "layers.norm", "classifier"),
        "conv1, norm1": lambda state: numbered(state, "conv", "norm", "classifier"),
        "conv1, bn1, fc": lambda state: numbered(state, "conv", "bn", "fc"),
        "conv_0, gn_0, linear": lambda state: numbered(state, "conv_", "gn_", "linear", first=0),
    },
    "ResNet18": {
        "torchvision": lambda state: state,
        "kuangliu": lambda state: renamed(state, *KUANGLIU),
        "DC family": lambda state: renamed(state, (r"downsample\.", "shortcut."), (r"^fc\.", "classifier.")),
    },
}
PREFIXES = (
    "",
    "module.",
    "model.",
    "net.",
    "backbone.",
    "_orig_mod.",
    "module._orig_mod.",
    "model.module.",
    "whatever.",
)
WRAPPERS = {
    "nothing": lambda state: state,
    "state_dict": lambda state: {
        "epoch": 3,
        "state_dict": state,
        "best_acc1": 71.2,
        "optimizer": {"state": {0: {"step": 1}}},
    },
    "model_state_dict": lambda state: {
        "model_state_dict": state,
        "optimizer_state_dict": {"state": {}},
        "loss": 0.1,
    },
    "model": lambda state: {"model": state, "args": {"lr": 0.1}},
    "net": lambda state: {"net": state, "acc": 93.0, "epoch": 200},
    "network": lambda state: {"network": state},
    "ema alone": lambda state: {"ema": state, "step": 10},
    "nested": lambda state: {"checkpoint": {"model": state, "epoch": 2}},
    "list": lambda state: [state],
    "beside ema": lambda state: {
        "model": state,
        "model_ema": {k: torch.zeros_like(v) for k, v in state.items()},
    },
}


def with_constants(net, constants):
    "The body of a network behind other constants, computed by hand"
    return Network(Normalise(*constants), net.body).eval()

"Networks and images that the tests of attacks share"

import pytest
import torch
from torch import nn

from ddrobust_nb.attacks.attack import (
    AttackConfig,
)
from ddrobust_nb.attacks.autoattack import PARTS
from ddrobust_nb.foundations.core import generator

OURS = ("uniform", "fgsm", "pgd", "cw")


LIBRARY = (*PARTS, "autoattack", "ta:MIFGSM")


def quick(name, eps="16/255"):
    "A threat with the smallest preset; a test of an attack of torchattacks is skipped where that extra is missing"
    if name.startswith("ta:"):
        needs_torchattacks()
    return AttackConfig(name, eps, preset="aa-quick" if name in (*PARTS, "autoattack") else "")


def needs_torchattacks():
    pytest.importorskip(
        "torchattacks", reason="torchattacks is an extra: pip install 'ddrobust_nb[torchattacks]'"
    )


def dropout_world(n=24, channels=1, classes=10, size=12, seed=0):
    "A random network with dropout and batch statistics, and images whose labels are its own answers, save every sixth"
    torch_state = torch.get_rng_state()
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(8 * (size // 2) ** 2, classes),
    ).eval()
    torch.set_rng_state(torch_state)
    x = torch.rand(n, channels, size, size, generator=generator(seed, "x"))
    with torch.no_grad():
        y = net(x).argmax(1)
    y[::6] = (y[::6] + 1) % classes
    return net, x, y


class Scale(nn.Module):
    "Multiply by a number"

    def __init__(self, by):
        super().__init__()
        self.by = by

    def forward(self, x):
        return self.by * x


def ordered(right, each=4):
    "Images in batches of which all or none are classified right"
    net, x, _ = dropout_world(n=each * len(right), classes=4)
    there = torch.tensor(right).repeat_interleave(each)
    with torch.no_grad():
        answers = net(x).argmax(1)
    return net, x, torch.where(there, answers, (answers + 1) % 4), there


def smooth_world(n=24, classes=10, size=(12, 12), channels=3, seed=0, dtype=torch.double):
    "A small random network and images that it answers as labelled; in double precision, unless a library is asked, which casts to single"
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    h, w = size
    net = nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1),
        nn.GroupNorm(8, 8),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * (h // 2) * (w // 2), classes),
    )
    torch.set_rng_state(state)
    net = net.to(dtype).eval().requires_grad_(False)
    x = torch.rand(n, channels, h, w, generator=generator(seed, "x"), dtype=torch.double).to(dtype)
    return net, x, net(x).argmax(1)


def right_after(net, x, y):
    return net(x).argmax(1) == y

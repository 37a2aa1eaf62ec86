"Convolutions with fewer multiplications: the same numbers, for every registered network, and only where they are meant."

import copy

import pytest
import torch
from torch import nn

from ddrobust_nb.fast.convolution import WinogradConv2d, with_winograd
from ddrobust_nb.foundations.core import generator
from ddrobust_nb.foundations.data import Spec
from ddrobust_nb.foundations.networks import make_network, network

SPEC = Spec(name="demo", classes=10, size=32, channels=3, mean=(0.5, 0.4, 0.3), std=(0.25, 0.2, 0.3))


@pytest.mark.parametrize("name", sorted(network))
def test_fewer_multiplications_are_the_same_network(name):
    "In double precision nothing but rounding: logits, gradients, sizes that windows of four do not fit, and the weights stay as they were"
    net = make_network(f"{name}-w64", SPEC).eval().requires_grad_(False).double()
    before, less = copy.deepcopy(net.state_dict()), with_winograd(net)
    assert sum(isinstance(m, WinogradConv2d) for m in less.modules()) >= 2 and not any(
        isinstance(m, WinogradConv2d) for m in net.modules()
    )
    x = torch.rand(2, 3, 32, 32, generator=generator(0, "less"), dtype=torch.double).requires_grad_()
    z, fewer = net(x), less(x)
    torch.testing.assert_close(fewer, z, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        torch.autograd.grad(fewer[:, 1].sum(), x)[0],
        torch.autograd.grad(z[:, 1].sum(), x)[0],
        rtol=1e-7,
        atol=1e-9,
    )
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize(
    "options, suits",
    (
        ({}, True),
        ({"stride": 2}, False),
        ({"padding": 0}, False),
        ({"dilation": 2, "padding": 2}, False),
        ({"groups": 64}, False),
        ({"padding_mode": "reflect"}, False),
        ({"bias": False}, True),
    ),
)
def test_only_convolutions_that_are_meant_are_replaced(options, suits):
    layer = nn.Conv2d(64, 64, 3, **{"padding": 1, **options})
    less = with_winograd(nn.Sequential(layer))
    assert isinstance(less[0], WinogradConv2d) == suits
    for size in ((8, 8), (6, 9)):
        x = torch.rand(1, 64, *size, generator=generator(0, "layer"))
        torch.testing.assert_close(less(x), layer(x), atol=1e-5, rtol=1e-4)

"Fused networks: the same logits and gradients as the layers they are made from, and only where the kernels suit."

import copy
import subprocess

import pytest
import torch
from torch import nn

from ddrobust_nb.foundations import compiling
from ddrobust_nb.fast import fused
from ddrobust_nb.fast.queries import CountedModel
from ddrobust_nb.foundations.core import generator
from ddrobust_nb.foundations.data import Spec
from ddrobust_nb.foundations.compiling import NotCompiled, compiler_trouble, cpp_compiler
from ddrobust_nb.foundations.networks import make_network
from ddrobust_nb.fast.fused import (
    FusedBlock,
    FusedConvNet,
    can_fuse_block,
    load_kernels,
    accelerated,
    can_fuse,
)

pytestmark = pytest.mark.skipif(not cpp_compiler(), reason="no C++ compiler")


def rand(*shape):
    return torch.rand(*shape, generator=generator(0, "sweep"))


def spec(size=32, channels=3):
    return Spec(
        name=f"demo{size}x{channels}",
        classes=10,
        size=size,
        channels=channels,
        mean=(0.5, 0.4, 0.3)[:channels],
        std=(0.25, 0.2, 0.3)[:channels],
    )


def four(channels=3, width=64, conv=None, norm=None, pool=None):
    "The layers of a block, with weights that are not those of a start"
    conv = conv or {}
    norm = norm or {}
    pool = pool or {}
    layers = [
        nn.Conv2d(channels, width, 3, **{"padding": 1, **conv}),
        nn.GroupNorm(norm.get("groups", width), width, affine=norm.get("affine", True)),
        nn.ReLU(),
        nn.AvgPool2d(**{"kernel_size": 2, "stride": 2, **pool}),
    ]
    with torch.no_grad():
        for m in layers[:2]:
            for p in m.parameters():
                p.copy_(
                    (torch.rand(p.shape, generator=generator(0, "weights")) - 0.3)
                    * (0.2 if p.dim() > 1 else 1)
                )
    return layers


def same(f, g, x):
    "Logits or activations, and gradients along a direction"
    results = []
    for h in (f, g):
        z = x.clone().requires_grad_()
        y = h(z)
        results.append((y, torch.autograd.grad((y * rand(*y.shape)).sum(), z)[0]))
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5 * b.detach().abs().max().item() + 1e-6)
    with torch.no_grad():
        torch.testing.assert_close(f(x), results[0][0], rtol=0, atol=0)


@pytest.mark.parametrize(
    "name, size, channels",
    (
        ("ConvNetD3", 32, 3),
        ("ConvNetD3-w64", 32, 1),
        ("ConvNetD3-w48", 32, 3),
        ("ConvNetD4-w64", 64, 3),
        ("ConvNetD5-w64", 128, 3),
    ),
)
def test_a_network_is_the_same_network(name, size, channels):
    net = make_network(name, spec(size, channels)).eval()
    before = copy.deepcopy(net.state_dict())
    fast = accelerated(net, "cpu")
    assert isinstance(fast, FusedConvNet) and not any(isinstance(m, FusedBlock) for m in net.modules())
    same(fast, net, rand(5, channels, size, size))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items()) and all(
        p.requires_grad for p in net.parameters()
    )


@pytest.mark.parametrize("channels, width", ((1, 16), (3, 48), (32, 64), (64, 64), (128, 64), (64, 128)))
@pytest.mark.parametrize("size", ((8, 8), (8, 16), (20, 24), (6, 8), (9, 12)))
def test_a_block_is_its_four_layers(channels, width, size):
    "Also where height and width differ, and where they do not suit"
    layers = four(channels, width)
    assert can_fuse_block(layers)
    same(FusedBlock(*layers), nn.Sequential(*layers), rand(3, channels, *size) - 0.4)


def test_a_convolution_without_offset():
    layers = four(conv={"bias": False})
    same(FusedBlock(*layers), nn.Sequential(*layers), rand(2, 3, 8, 8))


@pytest.mark.parametrize(
    "change",
    (
        {"conv": {"stride": 2}},
        {"conv": {"padding": 0}},
        {"conv": {"padding": 2, "dilation": 2}},
        {"conv": {"padding_mode": "reflect"}},
        {"width": 24},
        {"channels": 72},
        {"norm": {"groups": 1}},
        {"norm": {"affine": False}},
        {"pool": {"kernel_size": 3}},
        {"pool": {"stride": 1}},
        {"pool": {"padding": 1}},
        {"pool": {"divisor_override": 3}},
    ),
)
def test_only_blocks_that_are_meant_fit(change):
    assert can_fuse_block(four()) and not can_fuse_block(four(**change))


@pytest.mark.parametrize("place, other", ((1, nn.BatchNorm2d(64)), (2, nn.GELU()), (3, nn.MaxPool2d(2))))
def test_other_layers_do_not_fit(place, other):
    layers = four()
    layers[place] = other
    assert not can_fuse_block(layers)


def test_only_networks_that_are_meant_are_swept():
    for options, suits in (
        ({}, True),
        ({"norm": "batch"}, False),
        ({"activation": "gelu"}, False),
        ({"pooling": "max"}, False),
        ({"width": 24}, False),
    ):
        net = make_network("ConvNetD3", spec(), **options)
        assert can_fuse(net, "cpu") == suits and not can_fuse(net, "cuda")
    assert not can_fuse(make_network("ResNet18-w16", spec()), "cpu")
    assert not can_fuse(make_network("ConvNetD3-w64", spec(28, 1)), "cpu"), "a border of three pixels"
    assert not can_fuse(make_network("ConvNetD3-w64", spec(36)), "cpu"), "36 cannot be halved three times"
    assert not can_fuse(nn.Flatten(), "cpu")


def test_double_precision_and_sizes_of_other_data_go_through_the_layers():
    net = make_network("ConvNetD3-w64", spec()).eval()
    x = rand(2, 3, 32, 32).double()
    assert torch.equal(FusedConvNet(net).double()(x), net.double()(x))


def test_what_is_not_finite_stays_so():
    net = make_network("ConvNetD3-w64", spec()).eval()
    x = rand(3, 3, 32, 32)
    x[1, 2, 5, 7] = torch.nan
    z = accelerated(net, "cpu")(x)
    assert z[1].isnan().all() and torch.isfinite(z[[0, 2]]).all()


def test_images_do_not_know_each_other():
    "In batches of any size, cut or whole, with one thread or two, wherever in memory they lie"
    fast, x = accelerated(make_network("ConvNetD3-w64", spec()).eval(), "cpu"), rand(70, 3, 32, 32)
    z, threads = fast(x), torch.get_num_threads()
    torch.testing.assert_close(torch.cat([fast(x[:1]), fast(x[1:8]), fast(x[8:])]), z, rtol=1e-5, atol=1e-6)
    shifted = torch.empty(x.numel() + 1)[1:].view(x.shape).copy_(x)
    assert torch.equal(fast(shifted), z) and torch.equal(
        fast(x.contiguous(memory_format=torch.channels_last)), z
    )
    try:
        torch.set_num_threads(3 - threads if threads < 3 else 1)
        torch.testing.assert_close(fast(x), z, rtol=1e-5, atol=1e-6)
    finally:
        torch.set_num_threads(threads)
    assert fast(x[:0]).shape == (0, 10)


def test_no_gradient_of_a_gradient():
    layers = four()
    x = rand(1, 3, 8, 8).requires_grad_()
    (once,) = torch.autograd.grad(FusedBlock(*layers)(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        once.sum().backward()


@pytest.fixture
def fresh():
    "Nothing is known yet about the compiler, and nothing is known afterwards"
    load_kernels.cache_clear(), compiler_trouble.cache_clear()
    yield
    load_kernels.cache_clear(), compiler_trouble.cache_clear()


def test_a_compiler_that_fails_is_not_fatal(monkeypatch, fresh):
    "A warning says so, and PyTorch's compiler takes the place"
    monkeypatch.setattr(fused, "CPP_PARTS", ("this is no C++",))
    monkeypatch.setattr(compiling, "_compile_something", lambda device: None)
    with pytest.warns(NotCompiled, match="could not be built .*error.*attacks on a CPU run, but more slowly"):
        fast = accelerated(make_network("ConvNetD3-w64", spec()).eval(), "cpu")
    assert type(fast).__name__ == "OptimizedModule" and load_kernels() is None
    block, x = FusedBlock(*four()), rand(1, 3, 8, 8)
    assert torch.equal(block(x), block.layers(x))


@pytest.mark.parametrize(
    "error, reason",
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (FileNotFoundError(2, "No usable temporary directory found"), "No usable temporary directory"),
        (
            subprocess.CalledProcessError(
                1,
                "g++",
                stderr="fused.cpp:1:10: fatal error: omp.h: No such file or directory\ncompilation terminated.",
            ),
            "omp.h: No such file",
        ),
        (
            subprocess.CalledProcessError(
                1,
                "g++",
                stderr="g++: fatal error: cannot execute 'cc1plus': posix_spawnp: No such file or directory",
            ),
            "cannot execute 'cc1plus'",
        ),
    ],
)
def test_without_both_compilers_a_network_answers_as_it_is(error, reason, monkeypatch, fresh):
    def raises(*_):
        raise error

    monkeypatch.setattr(fused, "_build", raises)
    monkeypatch.setattr(compiling, "_compile_something", raises)
    net = make_network("ConvNetD3-w64", spec()).eval()
    with pytest.warns(NotCompiled) as seen:
        assert accelerated(net, "cpu") is net
    assert len(seen) == 2 and reason in str(seen[0].message) and not any("\n" in str(w.message) for w in seen)


def test_a_counted_model_is_swept_without_filling_up(monkeypatch):
    monkeypatch.setenv("DDROBUST_COMPILE", "always")
    net, x = make_network("ConvNetD3-w64", spec()).eval(), rand(33, 3, 32, 32)
    counted, seen = CountedModel(net, torch.zeros(33, dtype=torch.long)), []
    counted(x[:1])
    assert isinstance(counted.fast, FusedConvNet)
    counted.fast.net.register_forward_hook(lambda module, inputs, out: seen.append(len(out)))
    torch.testing.assert_close(counted(x), net(x), atol=1e-5, rtol=1e-4)
    assert seen == [33] and counted.forwards == 34

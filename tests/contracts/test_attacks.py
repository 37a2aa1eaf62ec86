"Every registered attack: the contract, exact answers on linear models, real images, odd shapes."

import copy
import time

import pytest
import torch
from attack_worlds import LIBRARY, OURS, quick
from attack_worlds import dropout_world as world
from torch import nn

from ddrobust_nb.attacks.attack import (
    AA_PRESETS,
    AttackConfig,
    attack,
    parse_attacks,
)
from ddrobust_nb.attacks.autoattack import PARTS
from ddrobust_nb.attacks.running import (
    attack_group,
    attack_images,
)
from ddrobust_nb.foundations.core import InputError, generator
from ddrobust_nb.foundations.data import as_pixels, specs
from ddrobust_nb.foundations.data import test_subset as subset
from ddrobust_nb.foundations.datasets import load_data
from ddrobust_nb.foundations.networks import ConvNet, Normalise, make_network


class Linear(nn.Module):
    "Logits linear in the pixels"

    def __init__(self, classes=4, pixels=16, seed=0):
        super().__init__()
        self.w = nn.Parameter(torch.randn(classes, pixels, generator=generator(seed, "w")))

    def forward(self, x):
        return (x - 0.5).flatten(1) @ self.w.T


def linear_world(classes=4, n=64):
    "A linear model, images so near to grey that the box never acts, and each image's exact distance to the border"
    net = Linear(classes).eval()
    x = 0.5 + 0.1 * torch.randn(n, 1, 4, 4, generator=generator(0, "grey"))
    with torch.no_grad():
        z = net(x)
    y = z.argmax(1)
    w = net.w.detach()
    gap = (z.gather(1, y[:, None]) - z) / (w[y][:, None] - w[None]).abs().sum(-1).clamp(min=1e-9)
    return net, x, y, gap.scatter(1, y[:, None], torch.inf).amin(1)


@pytest.mark.parametrize("name", ("fgsm", "pgd", "cw", "apgd-ce", "fab-t"))
@pytest.mark.parametrize("eps", ("2/255", "6/255", "12/255"))
def test_linear_two_classes(name, eps):
    "With two classes the sign of the gradient is the best direction: broken exactly where the border is nearer than eps"
    net, x, y, distance = linear_world(classes=2)
    config = quick(name, eps)
    surely, hardly = (
        distance > config.eps_value * 1.001,
        distance < config.eps_value * (0.94 if name == "fab-t" else 0.999),
    )
    if name in ("pgd", "cw"):
        hardly &= distance < config.eps_value * 0.95  # the sign steps may end a little short of the corner
    flags = attack_images(net, x, y, config).flags
    assert flags[surely].all() and not flags[hardly].any()
    assert surely.any() and hardly.any(), "the test must hold images of both kinds"


@pytest.mark.parametrize("name", ("pgd", "cw", *PARTS, "ta:PGD"))
def test_linear_four_classes_never_beyond_the_border(name):
    net, x, y, distance = linear_world()
    config = quick(name, "8/255")
    flags = attack_images(net, x, y, config).flags
    assert flags[distance > config.eps_value * 1.001].all()


@pytest.mark.parametrize("name", ("apgd-t", "fab-t"))
def test_linear_four_classes_targeted_breaks_all_within_reach(name):
    net, x, y, distance = linear_world()
    config = quick(name, "8/255")
    flags = attack_images(net, x, y, config).flags
    assert not flags[distance < config.eps_value * 0.94].any()


class NearestMean(nn.Module):
    "Answers with the class whose mean is nearest: linear in the pixels, computed and not trained, so the same on every machine"

    def __init__(self, images, labels, classes):
        super().__init__()
        means = torch.stack([images[labels == c].flatten(1).mean(0) for c in range(classes)])
        self.weight, self.bias = nn.Parameter(means), nn.Parameter(-means.square().sum(1) / 2)

    def forward(self, x):
        return x.flatten(1) @ self.weight.T + self.bias


def truly_robust(net, x, y, eps):
    "Whether anything within eps and [0,1] changes the answer: towards each class the worst image of a linear model is known"
    towards = net.weight - net.weight[y][:, None]  # [n, classes, pixels]
    flat = x.flatten(1)[:, None]
    worst = torch.where(towards > 0, (flat + eps).clamp(max=1), (flat - eps).clamp(min=0))
    gap = (worst * towards).sum(2) + net.bias - net.bias[y][:, None]
    return (gap.scatter(1, y[:, None], -torch.inf) < 0).all(1)


def test_real_images_with_a_known_answer():
    "100 digits, and a model whose robustness is known to the image, edges of [0,1] included: nobody does better than the truth, APGD-T finds it"
    digits = load_data("digits")
    index = subset(digits, 100)
    x, y = as_pixels(digits.test_images[index]).double(), digits.test_labels[index]
    net = NearestMean(as_pixels(digits.train_images).double(), digits.train_labels, 10).eval()
    for eps in ("16/255", "24/255", "32/255"):
        truth = truly_robust(net, x, y, quick("pgd", eps).eps_value)
        assert 0.02 < truth.float().mean() < 0.9, "neither hopeless nor trivial"
        found = {
            name: attack_images(net, x, y, quick(name, eps)).flags for name in ("fgsm", "pgd", "cw", *PARTS)
        }
        assert all(flags[truth].all() for flags in found.values()), "broken beyond the truth"
        assert torch.equal(
            attack_images(net, x, y, AttackConfig("apgd-t", eps, preset="aa-standard")).flags, truth
        )
        assert (found["fab-t"] != truth).float().mean() <= 0.02 and all(
            (flags != truth).float().mean() <= 0.1 for name, flags in found.items() if name != "square"
        )


def test_eps_is_in_pixels_whatever_the_model_does_with_them():
    "A normalisation inside a model is a part of it: the same function written without one is attacked the same way"
    mean, std, eps = (0.3, 0.5, 0.7), (0.1, 0.2, 0.4), AttackConfig("pgd", "4/255").eps_value
    last = nn.Linear(3 * 64, 5, dtype=torch.double)
    with torch.no_grad():
        last.weight.copy_(torch.randn(5, 192, generator=generator(0, "w")))
        last.bias.zero_()
    inside = nn.Sequential(Normalise(mean, std), nn.Flatten(), last).double().eval()
    shift, scale = (torch.tensor(v, dtype=torch.double).repeat_interleave(64) for v in (mean, std))
    without = nn.Sequential(nn.Flatten(), nn.Linear(192, 5, dtype=torch.double)).eval()
    with torch.no_grad():
        without[1].weight.copy_(last.weight / scale)
        without[1].bias.copy_(-(last.weight / scale) @ shift)
    x = 0.2 + 0.6 * torch.rand(40, 3, 8, 8, generator=generator(0, "x"), dtype=torch.double)
    with torch.no_grad():
        y = inside(x).argmax(1)
    for name in ("fgsm", "pgd", "cw", "apgd-ce", "apgd-t", "fab-t"):
        assert torch.equal(
            attack_images(inside, x, y, quick(name, "1/255")).flags,
            attack_images(without, x, y, quick(name, "1/255")).flags,
        )
    moved = (attack_images(inside, x, y, AttackConfig("fgsm", "4/255")).images - x).abs()
    torch.testing.assert_close(
        moved,
        torch.full_like(moved, eps),
        msg="each pixel moves by eps, in every channel, whatever its standard deviation",
    )


@pytest.mark.parametrize("name", (*OURS, *LIBRARY))
@pytest.mark.parametrize("channels, size, classes", ((1, 12, 10), (3, 8, 4)))
def test_contract(name, channels, size, classes):
    net, x, y = world(n=14, channels=channels, size=size, classes=classes)
    config, before = quick(name), x.clone()
    out = attack_images(net, x, y, config, seed=3)
    assert torch.equal(x, before), "the images of the caller are not touched"
    assert (
        out.images.shape == x.shape
        and out.images.dtype == x.dtype
        and out.flags.dtype == torch.bool
        and out.flags.shape == y.shape
    )
    assert (
        (out.images - x).abs().max() <= config.eps_value + 1e-6
        and out.images.min() >= 0
        and out.images.max() <= 1
    )
    with torch.no_grad():
        assert torch.equal(out.flags, net(out.images).argmax(1) == y)
    again = attack_images(net, x, y, config, seed=3)
    assert torch.equal(again.flags, out.flags), "same seed, same flags"
    assert torch.equal(again.images, out.images), "same seed, same images"
    if not name.startswith("ta:"):
        adv = attack[name](net, x, y, config.eps, config.steps, preset=config.preset, seed=3)
        assert torch.equal(adv, out.images), "called by hand"
    assert out.forwards > 0 and out.seconds > 0 and (out.gradients > 0) == (name not in ("uniform", "square"))
    if name in (*PARTS, "autoattack"):
        assert torch.equal(out.images[::6], x[::6]) and not out.flags[::6].any(), (
            "wrong images come back unchanged"
        )


@pytest.mark.parametrize("name", (*OURS, *LIBRARY))
def test_eps_zero_gives_the_images_back(name):
    net, x, y = world(n=8)
    out = attack_images(net, x, y, quick(name, "0/255"))
    assert torch.equal(out.images, x)
    with torch.no_grad():
        assert torch.equal(out.flags, net(x).argmax(1) == y)


@pytest.mark.parametrize("name", (*OURS, *LIBRARY))
def test_edges(name):
    net, x, y = world(n=9)
    empty = attack_images(net, x[:0], y[:0], quick(name))
    assert empty.images.shape == x[:0].shape and empty.flags.shape == (0,)
    assert attack_images(net, x[1:2], y[1:2], quick(name)).flags.shape == (1,)
    with torch.no_grad():
        wrong = (net(x).argmax(1) + 1) % 10
    if name != "uniform":
        assert not attack_images(net, x, wrong, quick(name)).flags.any(), "nothing is attack_misclassified"
    strided = (
        x.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2).contiguous(memory_format=torch.channels_last)
    )
    assert attack_images(net, strided, y.to(torch.uint8), quick(name)).flags.shape == y.shape
    wide = nn.Sequential(nn.AdaptiveAvgPool2d(12), net).eval()
    assert attack_images(wide, torch.nn.functional.interpolate(x, (12, 20)), y, quick(name)).images.shape == (
        9,
        1,
        12,
        20,
    )


@pytest.mark.parametrize("classes", (2, 3, 4))
def test_few_classes(classes):
    net, x, y = world(n=8, classes=classes)
    for name in ("pgd", "cw", "apgd-ce", "fab-t", "square"):
        assert attack_images(net, x, y, quick(name)).flags.shape == (8,)
    for preset in AA_PRESETS:
        if classes >= 4:
            assert attack_images(net, x, y, AttackConfig("apgd-t", "8/255", preset=preset)).flags.shape == (
                8,
            )
        else:
            with pytest.raises(InputError, match="at least 4 classes"):
                attack_images(net, x, y, AttackConfig("apgd-t", "8/255", preset=preset))


def test_grey_28():
    net = ConvNet(1, 10, 28, width=4).eval()
    x = torch.rand(4, 1, 28, 28, generator=generator(0, "grey 28"))
    for name in ("pgd", "square", "ta:TIFGSM"):
        assert attack_images(net, x, torch.arange(4), quick(name)).flags.shape == (4,)


def test_model_without_parameters():
    net = nn.Sequential(nn.AvgPool2d(6), nn.Flatten()).eval()
    x = torch.rand(6, 1, 12, 12, generator=generator(0, "no parameters"))
    y = net(x).argmax(1)
    for name in ("pgd", "apgd-ce", "fab-t", "ta:MIFGSM"):
        assert attack_images(net, x, y, quick(name)).flags.shape == (6,)


@pytest.mark.parametrize("name", (*OURS, *PARTS, "autoattack"))
def test_batches_do_not_matter(name):
    "In double precision not at all: an image's luck and its trajectory are its own"
    net, x, y = world(n=24)
    net, x = net.double(), x.double()
    runs = [attack_images(net, x, y, quick(name, "4/255"), batch=batch) for batch in (1, 7, 24, 256)]
    assert all(torch.equal(runs[0].flags, run.flags) for run in runs)
    order = torch.randperm(24, generator=generator(0, "order"))
    mixed = attack_images(net, x[order], y[order], quick(name, "4/255"), index=order, batch=7)
    assert torch.equal(mixed.flags, runs[0].flags[order])
    torch.testing.assert_close(mixed.images, runs[0].images[order], atol=1e-7, rtol=0)
    part = attack_images(net, x[15:], y[15:], quick(name, "4/255"), index=range(15, 24))
    assert torch.equal(part.flags, runs[0].flags[15:]), "fewer images"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", (*OURS, *LIBRARY))
def test_cuda(name):
    net, x, y = world(n=24)
    cpu = attack_images(net, x, y, quick(name, "4/255"))
    before = torch.cuda.get_rng_state()
    gpu = attack_images(net, x, y, quick(name, "4/255"), device="cuda")
    assert next(net.parameters()).device.type == "cpu" and gpu.flags.device.type == "cpu", (
        "the model stays where it is"
    )
    assert torch.equal(before, torch.cuda.get_rng_state())
    assert (cpu.flags != gpu.flags).sum() <= 1
    there = attack_images(copy.deepcopy(net).cuda(), x.cuda(), y.cuda(), quick(name, "4/255"))
    assert there.images.device.type == "cuda" and torch.equal(there.flags.cpu(), gpu.flags)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_throughput_on_a_gpu(record_property):
    "Settings that share a run ask less than one by one, take less time, and say the same"
    configs = parse_attacks("pgd@4/255@5,pgd@4/255@10")
    net = make_network("ConvNetD3", specs["cifar10"], device="cuda").eval()
    x = torch.rand(1024, 3, 32, 32, generator=generator(0, "x")).cuda()
    with torch.no_grad():
        y = net(x).argmax(1)

    def timed(f):
        f()
        torch.cuda.synchronize()
        began = time.perf_counter()
        out = f()
        torch.cuda.synchronize()
        return time.perf_counter() - began, out

    (slow, apart), (fast, shared) = (
        timed(lambda: [attack_images(net, x, y, t) for t in configs]),
        timed(lambda: attack_group(net, x, y, configs)),
    )
    record_property("images a second", round(len(x) * len(configs) / fast))
    record_property("times as fast as one by one", round(slow / fast, 2))
    assert sum(o.forwards for o in shared) < sum(o.forwards for o in apart) and fast < slow
    assert all((a.flags != b.flags).sum() <= 5 for a, b in zip(apart, shared))

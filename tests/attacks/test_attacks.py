"Attacks: golden numbers, exact answers on linear models, one contract for every registered attack, and what is refused."

import copy
import random
import sys
import time

import numpy as np
import pytest
import torch
from torch import nn

from ddrobust_nb.attacks.autoattack import autoattack_flags
from ddrobust_nb.attacks.fgsm import fgsm, pixel_gradient
from ddrobust_nb.attacks.checks import model_checks
from ddrobust_nb.attacks.cw import margin_loss
from ddrobust_nb.attacks.robustness import evaluate, run_group
from ddrobust_nb.attacks.attack import (
    AA_PRESETS,
    AttackConfig,
    at_eps,
    attack,
    attack_list,
    group_configs,
    parse_attacks,
)
from ddrobust_nb.attacks.autoattack import PARTS
from ddrobust_nb.attacks.running import (
    attack_chunks,
    attack_group,
    attack_images,
    leaving_no_trace,
    unit_noise,
)
from ddrobust_nb.foundations.core import InputError, generator
from ddrobust_nb.foundations.data import Spec, as_pixels, make_data, specs, test_subset as subset
from ddrobust_nb.foundations.datasets import load_data
from ddrobust_nb.foundations.networks import ConvNet, Normalise, make_network

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


def world(n=24, channels=1, classes=10, size=12, seed=0):
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


# Golden numbers


class Golden(nn.Module):
    "The small trained network of the golden file"

    def __init__(self, state):
        super().__init__()
        self.normalise = Normalise(
            state["state.mu"].flatten().tolist(), state["state.sigma"].flatten().tolist()
        )
        self.body = ConvNet(3, 10, 32, width=32)
        self.body.load_state_dict(
            {k.removeprefix("state.net."): v for k, v in state.items() if k.startswith("state.net.")}
        )

    def forward(self, x):
        return self.body(self.normalise(x))


@pytest.fixture
def fixture(golden):
    "Model, images, labels and the golden file"
    g = golden("attacks")
    return Golden(g).eval(), g["images"].float() / 255, g["labels"], g


def test_golden_network(fixture):
    net, x, y, g = fixture
    with torch.no_grad():
        z = net(x)
    torch.testing.assert_close(z, g["logits"], rtol=0, atol=1e-4)
    assert torch.equal(z.argmax(1) == y, g["clean_correct"].bool())
    gradient = pixel_gradient(net, x[:16], y[:16])
    assert (gradient - g["grad16"]).norm() / g["grad16"].norm() < 1e-4


@pytest.mark.parametrize("eps", (2, 4, 8))
def test_golden_fgsm_pgd_cw(fixture, eps):
    net, x, y, g = fixture

    def grey(images):
        return (images * 255).round().to(torch.uint8)

    out = attack_images(net, x, y, AttackConfig("fgsm", f"{eps}/255"), attack_misclassified=True)
    assert (grey(out.images) == g[f"fgsm.eps{eps}"]).float().mean() >= 0.999
    assert torch.equal(out.flags, g[f"fgsm.eps{eps}.robust"].bool())
    for name in ("pgd", "cw"):
        for steps in (5, 10):
            out = attack_images(
                net,
                x,
                y,
                AttackConfig(name, f"{eps}/255", steps=steps, alpha="2/255", random_start=False),
                attack_misclassified=True,
            )
            assert (grey(out.images) == g[f"{name}{steps}.eps{eps}"]).float().mean() >= 0.98, (name, steps)
            assert (out.flags != g[f"{name}{steps}.eps{eps}.robust"].bool()).sum() <= 1, (name, steps)


def golden_parts(fixture, preset, key, eps, tolerance, parts=PARTS):
    "Run parts on all 64 golden images and compare the flags; 'standard' is the conjunction"
    net, x, y, g = fixture
    flags = {
        part: attack_images(net, x, y, AttackConfig(part, f"{eps}/255", preset=preset)).flags
        for part in parts
    }
    if len(parts) == 4:
        flags["standard"] = autoattack_flags(flags)
    for part, mine in flags.items():
        assert (mine != g[f"{key}.{part}.eps{eps}"].bool()).sum() <= tolerance, (part, eps)


def test_golden_paper_parts(fixture):
    golden_parts(fixture, "aa-paper", "ta10", 8, 2)


def test_golden_standard_apgd(fixture):
    golden_parts(fixture, "aa-standard", "aa", 8, 2, ("apgd-ce",))


@pytest.mark.slow
@pytest.mark.parametrize("eps", (1, 2, 4, 8))
@pytest.mark.parametrize("preset, key, tolerance", (("aa-standard", "aa", 2), ("aa-paper", "ta10", 2)))
def test_golden_autoattack(fixture, preset, key, tolerance, eps):
    golden_parts(fixture, preset, key, eps, tolerance)


# Exact answers


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


def test_margin_loss():
    z = torch.tensor([[5.0, 2.0, 1.0], [-30.0, 30.0, 0.0], [0.0, -2000.0, -3000.0]], requires_grad=True)
    loss = margin_loss(z, torch.tensor([0, 0, 0]))
    assert loss.tolist() == [-53.0, 0.0, -2050.0]
    assert torch.autograd.grad(loss.sum(), z)[0].tolist() == [[-1, 1, 0], [0, 0, 0], [-1, 1, 0]]


def test_margin_survives_saturation():
    net, x, y = world()
    with torch.no_grad():
        y = net(x).argmax(1)
    loud = nn.Sequential(net, Scale(1e4)).eval()
    left = {
        name: attack_images(loud, x, y, AttackConfig(name, "8/255")).flags.float().mean()
        for name in ("pgd", "cw")
    }
    assert left["cw"] < left["pgd"] - 0.3
    still = (fgsm(loud, x, y, eps="8/255") == x).flatten(1).all(1)
    assert still.float().mean() > 0.3, (
        "cross-entropy has no gradient left on many images, and they show it by not moving"
    )


class Scale(nn.Module):
    "Multiply by a number"

    def __init__(self, by):
        super().__init__()
        self.by = by

    def forward(self, x):
        return self.by * x


def test_same_as_torchattacks():
    needs_torchattacks()
    net, x, y = world()
    assert torch.equal(
        fgsm(net, x, y, eps="8/255"),
        attack_images(net, x, y, AttackConfig("ta:FGSM", "8/255")).images,
    )


def test_unbounded_attack_reaches_zero():
    net, x, y = world()
    assert not attack_images(net, x, y, AttackConfig("pgd", 1.0, steps=50, alpha="0.1")).flags.any()


# Real images, pixels and what a model does with them


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
    "200 digits, and a model whose robustness is known to the image, edges of [0,1] included: nobody does better than the truth, APGD-T finds it"
    digits = load_data("digits")
    index = subset(digits, 200)
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


# The contract of every registered attack


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


def ordered(right, each=4):
    "Images in batches of which all or none are classified right"
    net, x, _ = world(n=each * len(right), classes=4)
    there = torch.tensor(right).repeat_interleave(each)
    with torch.no_grad():
        answers = net(x).argmax(1)
    return net, x, torch.where(there, answers, (answers + 1) % 4), there


@pytest.mark.parametrize(
    "name, right",
    [
        *(
            (name, right)
            for name in (*OURS, "apgd-ce", "fab-t")
            for right in ((False, True), (True, False), (False, True, False), (False, False))
        ),
        *((name, (False, True)) for name in ("apgd-t", "square", "autoattack")),
    ],
)
def test_a_batch_without_a_right_image(name, right):
    "As in a test set in the order of its classes: no flag is lost, and what is told of the iterates is told of all"
    net, x, y, there = ordered(right)
    out = attack_images(net, x, y, quick(name, "1/255"), batch=4)
    whole = attack_images(net, x, y, quick(name, "1/255"), batch=64)
    assert torch.equal(out.flags, whole.flags) and not out.flags[~there].any()
    assert (out.always is not None) == (name in ("pgd", "cw"))
    if out.always is not None:
        assert (
            torch.equal(out.always, whole.always)
            and not out.always[~there].any()
            and out.always.any() == any(right)
        )
    attack_misclassified = attack_images(net, x, y, quick(name, "0/255"), batch=4, attack_misclassified=True)
    assert torch.equal(attack_misclassified.flags, there) and (
        attack_misclassified.always is None or torch.equal(attack_misclassified.always, there)
    )
    assert torch.equal(
        attack_images(net, x, y, quick(name, "1/255"), batch=4, right=there).flags, out.flags
    ), "what is right is known"


@pytest.mark.parametrize("public", (attack["pgd"], attack["cw"], attack["fgsm"]))
@pytest.mark.parametrize("right", ((False, True), (True, False), (False, False)))
def test_public_functions_on_images_in_the_order_of_their_classes(public, right):
    "With the batch that they choose by themselves; library attacks have the same one"
    net, x, y, there = ordered(right, each=128)
    config = public.config("0/255")
    assert torch.equal(public(net, x, y, "0/255"), x)
    assert torch.equal(attack_images(net, x, y, config).flags, there)
    assert torch.equal(attack_images(net, x, y, AttackConfig("ta:PGD", "0/255", 2)).flags, there)
    assert attack_images(net, x[:0], y[:0], config).always is None or attack_images(
        net, x[:0], y[:0], config
    ).always.shape == (0,)


def test_what_tells_says_so_of_every_chunk_and_of_none():
    net, x, y, there = ordered((False, True))
    for name in ("pgd", "cw"):
        chunks = [
            outs[0].always.tolist()
            for _, outs in attack_chunks(net, x, y, AttackConfig(name, "0/255"), batch=4)
        ]
        assert chunks == [[False] * 4, [True] * 4]
        [nothing] = run_group(net, x, y, torch.arange(0), [AttackConfig(name)], device="cpu")
        assert nothing.flags.shape == nothing.always.shape == (0,)


@pytest.mark.parametrize("right", ((False, True), (True, False), (False, False)))
@pytest.mark.parametrize("declared", (False, True))
def test_any_attack_that_tells(right, declared):
    "Declared or not; only where nothing at all was attacked, an attack that is not declared has told nothing"

    @attack(shares="steps", tells_worst_iterate=declared)
    def telling(model, x, y, configs):
        for _ in configs:
            yield x, torch.arange(len(x)) % 2 == 0

    net, x, y, there = ordered(right)
    try:
        outs = attack_group(net, x, y, [AttackConfig("telling", "1/255", steps) for steps in (1, 2)], batch=4)
    finally:
        del attack["telling"]
    for out in outs:
        assert torch.equal(out.flags, there)
        if declared or any(right):
            assert torch.equal(out.always, there & (torch.arange(8) % 2 == 0))
        else:
            assert out.always is None


@pytest.mark.parametrize("right", ((False, True), (True, False), (False, False)))
def test_evaluate_on_images_in_the_order_of_their_classes(right):
    net, x, y, there = ordered(right, each=128)
    spec = Spec("ordered", 4, 12, 1, (0.5,), (0.25,))
    data = make_data(spec, x[:4], torch.arange(4), (x * 255).round().byte(), y)
    with torch.no_grad():
        there = net(as_pixels(data.test_images)).argmax(1) == y
    for e in evaluate(net, data, parse_attacks("pgd@0/255@2,cw@0/255@2,fgsm@0/255"), device="cpu"):
        assert torch.equal(e.flags, there) and (e.config.attack == "fgsm" or torch.equal(e.always, there))


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
    net, x, y = world(n=64)
    net, x = net.double(), x.double()
    runs = [attack_images(net, x, y, quick(name, "4/255"), batch=batch) for batch in (1, 7, 64, 256)]
    assert all(torch.equal(runs[0].flags, run.flags) for run in runs)
    order = torch.randperm(64, generator=generator(0, "order"))
    mixed = attack_images(net, x[order], y[order], quick(name, "4/255"), index=order, batch=7)
    assert torch.equal(mixed.flags, runs[0].flags[order])
    torch.testing.assert_close(mixed.images, runs[0].images[order], atol=1e-7, rtol=0)
    part = attack_images(net, x[40:], y[40:], quick(name, "4/255"), index=range(40, 64))
    assert torch.equal(part.flags, runs[0].flags[40:]), "fewer images"


@pytest.mark.parametrize("name", (*OURS, *PARTS))
def test_batches_hardly_matter_in_single_precision(fixture, name):
    net, x, y, _ = fixture
    x, y = torch.cat([x, x.flip(3), x.flip(2)]), y.repeat(3)
    runs = [attack_images(net, x, y, quick(name, "4/255"), batch=batch).flags for batch in (7, 64, 192)]
    assert (
        all(
            (run != runs[0]).double().mean() <= 0.005
            and abs(run.double().mean() - runs[0].double().mean()) <= 0.004
            for run in runs[1:]
        )
        or max(int((run != runs[0]).sum()) for run in runs) <= 1
    )


@pytest.mark.parametrize("backend", ("pyautoattack", "torchattacks"))
def test_references_keep_to_their_chunks(backend):
    "A library draws by position: the same images in another order of the index, and from a chunk on, have the same luck"
    if backend == "torchattacks":
        needs_torchattacks()
    net, x, y = world(n=40)
    config = AttackConfig("square", "4/255", preset="aa-quick", backend=backend)
    whole = attack_images(net, x, y, config)
    order = torch.randperm(40, generator=generator(0, "order"))
    assert torch.equal(
        attack_images(net, x[order], y[order], config, index=order).images, whole.images[order]
    )


def test_sharing_changes_nothing():
    "Each threat of a run gets what it would get alone, and the work adds up to less"
    net, x, y = world(n=40)
    for text in (
        "fgsm@2/255,fgsm@8/255",
        "pgd@4/255@3,pgd@4/255@7",
        "cw@4/255@3,cw@4/255@7",
        "fab-t@2/255,fab-t@6/255",
        "aa-quick@2/255,aa-quick@4/255,aa-quick@8/255",
    ):
        [run] = group_configs(parse_attacks(text, "aa-quick"))
        shared, alone = attack_group(net, x, y, run), [attack_images(net, x, y, t) for t in run]
        assert all(torch.equal(a.flags, b.flags) for a, b in zip(shared, alone)), text
        assert sum(a.gradients for a in shared) < sum(b.gradients for b in alone), text


def test_what_shares_a_run():
    runs = [[str(t) for t in run] for run in group_configs(attack_list("paper"))]
    assert (
        ["fgsm@2/255", "fgsm@4/255", "fgsm@8/255"] in runs
        and ["pgd@2/255@5", "pgd@2/255@10"] in runs
        and ["pgd@8/255@10"] in runs
    )
    for name in (*PARTS, "aa-paper"):
        assert [f"{name}@{k}/255" for k in (1, 2, 3, 4)] in runs
    assert sum(map(len, runs)) == 33
    assert len(group_configs(parse_attacks("pyautoattack:fab-t@1/255,pyautoattack:fab-t@2/255"))) == 2, (
        "a library shares nothing"
    )


def test_noise_belongs_to_the_image():
    whole = unit_noise((5, 2, 3, 3), range(5), 0, "pgd")
    assert torch.equal(whole[3:4], unit_noise((1, 2, 3, 3), [3], 0, "pgd")) and whole.abs().max() <= 1
    assert len({tuple(u.flatten().tolist()) for u in whole}) == 5, "five images, five starts"
    for other in (
        unit_noise((5, 2, 3, 3), range(5), 1, "pgd"),
        unit_noise((5, 2, 3, 3), range(5), 0, "cw"),
        unit_noise((5, 2, 3, 3), range(5), 0, "pgd", 1),
    ):
        assert not torch.equal(whole, other)


def test_autoattack_is_the_conjunction():
    net, x, y = world(n=40)
    flags = {part: attack_images(net, x, y, quick(part, "4/255")).flags for part in PARTS}
    assert torch.equal(attack_images(net, x, y, quick("autoattack", "4/255")).flags, autoattack_flags(flags))
    with pytest.raises(InputError, match="square missing"):
        autoattack_flags({k: v for k, v in flags.items() if k != "square"})


def test_work_is_counted():
    "Ten images, eight of them right: each is asked once before, and once for the verdict"
    net, x, y = world(n=10)

    def work(config, **options):
        out = attack_images(net, x, y, config, **options)
        return out.gradients, out.forwards

    assert work(AttackConfig("fgsm")) == (8, 10 + 16)
    assert work(AttackConfig("pgd", steps=5)) == (5 * 8, 10 + 6 * 8)
    assert work(AttackConfig("cw", steps=7)) == (7 * 8, 10 + 8 * 8)
    assert work(AttackConfig("pgd", steps=5), attack_misclassified=True) == (50, 10 + 60)
    assert work(AttackConfig("fgsm"), right=torch.zeros(10).bool()) == (0, 0), "told beforehand"


def survivors(net, x, y, name, preset="aa-quick", eps="1/255"):
    "The images that survive, attacked again by themselves"
    keep = attack_images(net, x, y, AttackConfig(name, eps, preset=preset)).flags.nonzero()[:, 0]
    out = attack_images(
        net,
        x[keep],
        y[keep],
        AttackConfig(name, eps, preset=preset),
        index=keep,
        right=torch.ones(len(keep)).bool(),
    )
    assert out.flags.all() and len(keep) > 5
    return out, len(keep)


@pytest.mark.parametrize("preset", ("aa-quick", "aa-paper"))
def test_survivors_have_had_everything(preset):
    "Speed is not bought with weakness: who counts as robust has had all iterations, all targets, all queries"
    net, x, y = world(n=30)
    p = AA_PRESETS[preset]
    targets = min(p["targets"] or 9, 9)
    out, n = survivors(net, x, y, "apgd-ce", preset)
    assert (out.gradients, out.forwards) == (n * p["steps"], n * (p["steps"] + 2))
    out, n = survivors(net, x, y, "apgd-t", preset)
    assert (out.gradients, out.forwards) == (n * p["steps"] * targets, n * ((p["steps"] + 1) * targets + 2))
    out, n = survivors(net, x, y, "fab-t", preset)
    assert (out.gradients, out.forwards) == (n * p["steps"] * targets, n * (2 * p["steps"] * targets + 2))
    out, n = survivors(net, x, y, "square", "aa-quick")
    assert out.gradients == 0 and out.forwards <= n * (
        AA_PRESETS["aa-quick"]["queries"] + 2
    )  # what is not asked: see the test of Square


# No trace is left


def state_of(net):
    "Everything an attack might change"
    return (
        [m.training for m in net.modules()],
        [p.requires_grad for p in net.parameters()],
        [p.grad for p in net.parameters()],
        {k: v.clone() for k, v in net.state_dict().items()},
        torch.get_rng_state(),
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.backends.cudnn.allow_tf32,
    )


def same_state(a, b):
    "Compare two such states"
    assert a[:2] == b[:2] and a[5:] == b[5:] and torch.equal(a[4], b[4])
    assert all(g is h for g, h in zip(a[2], b[2])), "gradients on parameters"
    assert all(torch.equal(v, b[3][k]) for k, v in a[3].items()), "weights or buffers"


@pytest.mark.parametrize("name", (*OURS, *LIBRARY))
@pytest.mark.parametrize("mode", (torch.enable_grad, torch.no_grad, torch.inference_mode))
def test_no_trace(name, mode):
    net, x, y = world(n=8)
    next(net.parameters()).requires_grad_(False)
    before = state_of(net)
    with mode():
        attack_images(net, x, y, quick(name))
    same_state(before, state_of(net))


def test_no_trace_after_an_exception():
    net, x, y = world(n=8)
    before = state_of(net)

    @attack
    def vandal(model, x, y, config):
        model.train()
        model(x.requires_grad_()).sum().backward()
        model.model[1].running_mean += 1
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        torch.set_default_dtype(torch.float64)
        raise KeyboardInterrupt

    try:
        with pytest.raises(KeyboardInterrupt):
            attack_images(net, x.requires_grad_(), y, AttackConfig("vandal"))
    finally:
        del attack["vandal"]
    same_state(before, state_of(net))


def test_a_tracer_stays():
    "Coverage tools trace: neither attacks nor checks may switch that off (a reference library does)"
    net, x, y = world(n=8)
    mine, before = lambda *a: None, sys.gettrace()
    sys.settrace(mine)
    try:
        for name in (*OURS, *PARTS):
            attack_images(net, x, y, quick(name))
        model_checks(net, x, y, torch.arange(len(x)), "8/255", device="cpu")
        assert sys.gettrace() is mine
    finally:
        sys.settrace(before)


def test_existing_gradients_stay():
    net, x, y = world(n=8)
    net(x).sum().backward()
    grads = [p.grad.clone() for p in net.parameters()]
    attack_images(net, x, y, quick("fab-t"))
    assert all(torch.equal(g, p.grad) for g, p in zip(grads, net.parameters()))


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


# What is refused


def refused(say, **change):
    "The call with one thing changed is refused, in one line that says why"
    net, x, y = world(n=6)
    given = dict(model=net, x=x, y=y, config=AttackConfig("pgd"))
    with pytest.raises(InputError, match=say) as caught:
        attack_images(**{**given, **change})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "say, change",
    (
        ("un-normalised", lambda net, x, y: dict(x=x * 2 - 1)),
        ("un-normalised", lambda net, x, y: dict(x=x * 255)),
        ("as_pixels", lambda net, x, y: dict(x=(x * 255).byte())),
        ("float32", lambda net, x, y: dict(x=x.half())),
        ("NaN", lambda net, x, y: dict(x=x.clone().index_fill_(0, torch.tensor([2]), torch.nan))),
        ("four dimensions", lambda net, x, y: dict(x=x[:, 0])),
        ("must be a tensor", lambda net, x, y: dict(x=x.numpy())),
        ("labels must be 0 or more", lambda net, x, y: dict(y=y - 20)),
        ("labels up to 10 need at least 11 logits", lambda net, x, y: dict(y=y * 0 + 10)),
        (r"shape \[6\]", lambda net, x, y: dict(y=y[:5])),
        ("whole numbers", lambda net, x, y: dict(y=y.float())),
        ("whole numbers", lambda net, x, y: dict(y=y.tolist())),
        ("training mode", lambda net, x, y: dict(model=net.train())),
        ("training mode .first: 1", lambda net, x, y: dict(model=(net[1].train(), net)[1])),
        ("torch module", lambda net, x, y: dict(model=lambda x: net(x))),
        (
            "at least 2 logits|up to",
            lambda net, x, y: dict(model=nn.Sequential(nn.Flatten(), nn.Linear(144, 1)).eval()),
        ),
        (r"logits \[n, classes\]", lambda net, x, y: dict(model=net[:4].eval())),
        ("NaN or infinite logits", lambda net, x, y: dict(model=nn.Sequential(net, Scale(torch.nan)).eval())),
        ("carry no gradient", lambda net, x, y: dict(model=nn.Sequential(net, Detach()).eval())),
        ("seed must be", lambda net, x, y: dict(seed=-1)),
        ("index of length 6", lambda net, x, y: dict(index=[1, 2])),
        ("batch must be", lambda net, x, y: dict(batch=0)),
        ("not on this machine|not known", lambda net, x, y: dict(device="cuda:77")),
    ),
)
def test_refused(say, change):
    refused(say, **change(*world(n=6)))


class Detach(nn.Module):
    "Cut the gradient"

    def forward(self, x):
        return x.detach()


def test_rounding_errors_are_forgiven():
    "Normalising and back gives -3e-8 on black pixels: no reason to crash, and nothing outside [0,1] comes back"
    net, x, y = world(n=6)
    x[0] = -3e-8
    out = attack_images(net, x, y, AttackConfig("pgd"))
    assert out.images.min() >= 0


@pytest.mark.parametrize("name", OURS)
def test_a_broken_attack_is_found_out(name, monkeypatch):
    net, x, y = world(n=6)

    def broken_by(change):
        def bare(model, x, y, configs):
            return iter([change(x)]) if attack[name].shares else change(x)

        return bare

    for change in (lambda x: x + 0.2, lambda x: x * torch.nan, lambda x: x[:3], lambda x: x.double()):
        monkeypatch.setattr(attack[name], "bare", broken_by(change))
        with pytest.raises(RuntimeError, match="the attack is broken"):
            attack_images(net, x, y, AttackConfig(name))


# Threats


@pytest.mark.parametrize(
    "text, say",
    (
        ("pgd@-1/255", "between 0 and 1"),
        ("pgd@2", "between 0 and 1"),
        ("pgd@x", "a fraction"),
        ("pgd@2/0", "a fraction"),
        ("pgd@2/255@0", "steps must be"),
        ("pgd@2/255@1.5", "whole number"),
        ("pgd@2/255@5@3", "NAME"),
        ("@2/255", "NAME"),
        ("fgsm,", "NAME"),
        ("pdg", "did you mean 'pgd'"),
        ("fgsm@2/255@3", "one step"),
        ("square@2/255@100", "preset"),
        ("ta:PGF", "did you mean 'PGD'"),
        ("ta:CW", "ball"),
        ("ta:", "torchattacks"),
        ("headlin", "did you mean 'headline'"),
        ("aa-fast", "unknown attack"),
        ("ta", "unknown"),
        ("PGD", "did you mean"),
    ),
)
def test_bad_grammar(text, say):
    with pytest.raises(InputError, match=say):
        attack_list(text)


def test_named_lists():
    rows = [(t.attack, t.eps, t.steps) for t in attack_list("paper")]
    assert len(rows) == len(set(rows)) == 33
    assert [sum(r[0] == name for r in rows) for name in ("fgsm", "pgd", "cw", *PARTS, "autoattack")] == [
        3,
        5,
        5,
        4,
        4,
        4,
        4,
        4,
    ]
    assert {t.preset for t in attack_list("paper")} == {"", "aa-paper"} and {
        t.alpha for t in attack_list("paper") if t.alpha
    } == {"2/255"}
    assert {t.eps for t in attack_list("quick", "digits")} == {"8/255", "32/255"} and {
        t.eps for t in attack_list("quick", "cifar10")
    } == {"2/255", "8/255"}
    assert attack_list("auto", protocol="full") == attack_list("headline") and attack_list("none") == []
    assert len(attack_list("aa-quick@1/255,aa-quick@1/255")) == 1
    assert [t.attack for t in attack_list("headline")] == ["fgsm", "pgd", "cw", "autoattack"] and {
        t.preset for t in attack_list("headline")
    } == {"", "aa-standard"}


@pytest.mark.parametrize("k", (1, 2, 3, 4, 8, 32))
def test_eps_is_exact(k):
    assert (
        AttackConfig("pgd", f"{k}/255").eps_value == k / 255 and AttackConfig("pgd", f"{k}/255").eps_255 == k
    )
    assert AttackConfig("pgd", round(k / 255, 10)).eps == f"{k}/255" == AttackConfig("pgd", k / 255).eps


def test_short_form_goes_round():
    needs_torchattacks()
    for config in attack_list(
        "fgsm@3/255,pgd@0.03@7,cw@8/255@1,aa-quick@2/255,ta:VMIFGSM@4/255@5,torchattacks:aa-paper@1/255,pyautoattack:fab-t@1/255"
    ):
        preset = config.preset or "aa-standard"
        assert parse_attacks(str(config), preset) == [config]
    assert at_eps(AttackConfig("pgd", "4/255"), "32/255").alpha == "8/255" and at_eps(
        AttackConfig("fgsm"), "8/255"
    ) == AttackConfig("fgsm", "8/255")


def test_chunks_cover_everything_once():
    net, x, y = world(n=30)
    seen = torch.cat([where for where, _ in attack_chunks(net, x, y, AttackConfig("fgsm"), batch=7)])
    assert sorted(seen.tolist()) == list(range(30))


def test_leaving_no_trace_restores_a_replaced_buffer():
    net, _, _ = world()
    kept = net[1].running_mean
    with leaving_no_trace(net):
        net[1].running_mean = kept + 1
    assert net[1].running_mean is kept

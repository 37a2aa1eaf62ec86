"APGD against the code of its authors with the same draws, and its parts."

import pytest
import torch
from attack_worlds import right_after
from attack_worlds import smooth_world as world
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from torch import nn

from ddrobust_nb.attacks import apgd as apgd_module
from ddrobust_nb.attacks import fab as fab_module
from ddrobust_nb.attacks.apgd import apgd, apgd_t, look_backs
from ddrobust_nb.attacks.attack import AttackConfig
from ddrobust_nb.attacks.fgsm import cross_entropy
from ddrobust_nb.attacks.running import attack_group, attack_images

EPS = 6 / 255


@pytest.mark.parametrize("eps", (1 / 255, 3 / 255, EPS))
@pytest.mark.parametrize("steps", (10, 20, 100))
def test_apgd_ce_is_that_of_the_authors(eps, steps):
    net, x, y = world(dtype=torch.float)
    theirs = right_after(
        net,
        APGDAttack(
            net,
            n_iter=steps,
            norm="Linf",
            n_restarts=1,
            eps=eps,
            seed=7,
            loss="ce",
            eot_iter=1,
            rho=0.75,
            device="cpu",
        ).perturb(x, y),
        y,
    )
    torch.manual_seed(7)
    noise = 2 * torch.rand(x.shape) - 1
    adv, broken = apgd(net, x, y, eps, steps, noise, lambda z, i: cross_entropy(z, y[i]))
    assert torch.equal(~broken, theirs) and torch.equal(right_after(net, adv, y), theirs)


class Noting(nn.Module):
    "A model that keeps what it is asked"

    def __init__(self, net):
        super().__init__()
        self.net, self.asked = net, []

    def forward(self, x):
        self.asked.append(x.detach().clone())
        return self.net(x)


@pytest.mark.parametrize("steps", (10, 100))
def test_every_iterate_of_apgd_is_that_of_the_authors(steps):
    "Flags forgive much; where nobody is broken, all iterates can be compared"
    net, x, y = world(n=200, dtype=torch.float)
    theirs, ours, eps = Noting(net).eval(), Noting(net).eval(), 4 / 255
    x = x[keep := attack_images(net, x, y, AttackConfig("apgd-ce", "5/255")).flags]
    y = y[keep]
    APGDAttack(
        theirs,
        n_iter=steps,
        norm="Linf",
        n_restarts=1,
        eps=eps,
        seed=7,
        loss="ce",
        eot_iter=1,
        rho=0.75,
        device="cpu",
    ).perturb(x, y)
    torch.manual_seed(7)
    _, broken = apgd(ours, x, y, eps, steps, 2 * torch.rand(x.shape) - 1, lambda z, i: cross_entropy(z, y[i]))
    assert not broken.any() and len(x) > 15 and len(ours.asked) == steps + 1
    near = [(a - b).abs() < 1e-3 * eps for a, b in zip(theirs.asked[-steps - 1 :], ours.asked)]
    assert all(n.float().mean() > 0.99 for n in near)


def test_the_worlds_are_neither_hopeless_nor_trivial():
    "Else equal flags mean nothing"
    net, x, y = world()
    left = [
        attack_images(net, x, y, AttackConfig("apgd-ce", eps, preset="aa-quick")).flags.double().mean()
        for eps in (1 / 255, 3 / 255, EPS)
    ]
    assert left[0] > left[-1] and any(0.1 < value < 0.9 for value in left)


@pytest.mark.parametrize("eps", (1 / 255, 3 / 255))
def test_apgd_t_is_that_of_the_authors(eps, monkeypatch):
    net, x, y = world(dtype=torch.float)
    theirs = right_after(
        net,
        APGDAttack_targeted(
            net,
            n_iter=10,
            norm="Linf",
            n_restarts=1,
            eps=eps,
            seed=7,
            eot_iter=1,
            rho=0.75,
            n_target_classes=3,
            device="cpu",
        ).perturb(x, y),
        y,
    )
    torch.manual_seed(7)
    monkeypatch.setattr(apgd_module, "unit_noise", lambda shape, *_: 2 * torch.rand(shape) - 1)
    monkeypatch.setitem(apgd_module.AA_PRESETS, "aa-quick", dict(steps=10, targets=3))
    adv = next(
        apgd_t.bare(
            net, x, y, [AttackConfig("apgd-t", eps, preset="aa-quick")], seed=0, index=torch.arange(len(x))
        )
    )
    assert torch.equal(right_after(net, adv, y), theirs)


@pytest.mark.parametrize("name", ("apgd-t", "fab-t"))
def test_classes_tried_at_once_change_nothing(name, monkeypatch):
    "Few images try several classes at the same time: the same images as one class after another"
    net, x, y = world(n=40)
    found, sizes = [], []

    def at_most(most):
        def tasks_at_once(n, many, device):
            sizes.append(min(many, most))
            return sizes[-1]

        return tasks_at_once

    module = apgd_module if name == "apgd-t" else fab_module
    for most in (1, 3, 100):
        monkeypatch.setattr(module, "tasks_at_once", at_most(most))
        found.append(
            attack_group(net, x, y, [AttackConfig(name, f"{k}/255", preset="aa-quick") for k in (1, 3)])
        )
    for a in found[1:]:
        for one, other in zip(found[0], a):
            assert torch.equal(one.flags, other.flags) and torch.equal(one.images, other.images)
    assert max(sizes) > 1 and 0 < found[0][0].flags.sum() < len(x)


def numbered(x):
    "Images that tell which row they are"
    return (torch.arange(len(x), dtype=x.dtype) / 1000)[:, None, None, None].expand_as(x)


def test_of_classes_tried_at_once_the_first_that_works_counts(monkeypatch):
    "The likeliest class fails; of the others, tried together, all work"
    net, x, y = world(n=6)
    x, calls = x[:5], []

    def all_but_the_first(model, x, *rest):
        calls.append(len(x))
        return numbered(x), torch.full((len(x),), len(calls) > 1)

    monkeypatch.setattr(apgd_module, "apgd", all_but_the_first)
    out = apgd_module.apgd_t_rows(
        net, x, y[:5], torch.full((5, 1, 1, 1), 0.1), "aa-paper", 0, torch.arange(5)
    )
    assert len(calls) == 2 and calls[1] > calls[0] == 5 and torch.equal(out, numbered(x))


def test_look_backs():
    assert (
        look_backs(100) == [22, 41, 57, 70, 80, 87, 93, 99]
        and look_backs(10) == [2, 3, 4, 5, 6, 7, 8, 9, 10]
        and look_backs(1) == [1]
    )

"""Our APGD, FAB and Square against the code of their authors with the same draws, against themselves in other orders, and what a whole evaluation does.

Golden flags are in test_attacks.py; that file also holds the contract that every attack has to keep."""

import copy

import pytest
import torch
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack
from torch import nn

from ddrobust_nb.attacks import apgd as apgd_module, fab as fab_module, square as square_module
from ddrobust_nb.attacks import running
from ddrobust_nb.attacks.apgd import apgd, apgd_t, look_backs, other_classes
from ddrobust_nb.attacks.autoattack import autoattack_flags
from ddrobust_nb.attacks.cw import margin
from ddrobust_nb.attacks.fab import fab, to_plane, water_level
from ddrobust_nb.attacks.fgsm import cross_entropy
from ddrobust_nb.fast.queries import (
    COMPILED_SIZES,
    CountedModel,
    tasks_at_once,
    in_fixed_batches,
    should_check,
    batch_sizes,
)
from ddrobust_nb.attacks.robustness import (
    Evaluation,
    ModelEvaluation,
    evaluate,
    expected_cost,
    parts_of,
    run_group,
    work_per_survivor,
)
from ddrobust_nb.attacks.square import own_luck, share_of_image, side_of_square, square_search
from ddrobust_nb.attacks.attack import AttackConfig, attack_list, group_configs, parse_attacks
from ddrobust_nb.attacks.autoattack import PARTS
from ddrobust_nb.attacks.running import attack_group, attack_images
from ddrobust_nb.foundations.core import InputError, generator
from tiny import tiny_data

EPS = 6 / 255


def world(n=24, classes=10, size=(12, 12), channels=3, seed=0, dtype=torch.double):
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


# The authors' programs, with the same draws


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


def test_fab_t_is_that_of_the_authors():
    net, x, y = world(dtype=torch.float)
    classes = other_classes(net(x), 3)
    dist = torch.stack([fab(net, x, y, t, 20)[1] for t in classes.T]).amin(0)
    for eps in (1 / 255, 2 / 255, 4 / 255, 8 / 255):
        adv = FABAttack_PT(
            net,
            norm="Linf",
            n_restarts=1,
            n_iter=20,
            eps=eps,
            seed=0,
            targeted=True,
            n_target_classes=3,
            verbose=False,
            device="cpu",
        ).perturb(x, y)
        assert torch.equal(right_after(net, adv, y), dist > eps), eps
        moved = (adv - x).abs().amax((1, 2, 3))
        torch.testing.assert_close(moved[dist <= eps], dist[dist <= eps], atol=1e-5, rtol=0)


@pytest.mark.parametrize("rescale", (False, True))
@pytest.mark.parametrize("channels, size", ((3, (12, 12)), (1, (12, 12))))
def test_square_is_that_of_the_authors(rescale, channels, size):
    net, x, y = world(dtype=torch.float, channels=channels, size=size)
    queries, eps = 400, 4 / 255
    adv = SquareAttack(
        net,
        norm="Linf",
        n_queries=queries,
        eps=eps,
        p_init=0.8,
        n_restarts=1,
        seed=7,
        verbose=False,
        loss="margin",
        resc_schedule=rescale,
        device="cpu",
    ).perturb(x, y)
    torch.manual_seed(7)
    stripes = torch.rand(len(x), channels, 1, size[1]) > 0.5
    table = torch.stack(
        [
            torch.cat([torch.rand(1), torch.rand(1), torch.rand(channels, 1, 1).flatten()])
            for _ in range(queries)
        ]
    )
    ours, broken, had = square_search(
        net, x, y, eps, queries, rescale, stripes, lambda ids: table.expand(len(ids), -1, -1)
    )
    assert torch.equal(right_after(net, adv, y), ~broken) and 0 < broken.sum() < len(x)
    torch.testing.assert_close(adv[broken], ours[broken], atol=1e-6, rtol=0)
    assert (had[~broken] == queries + 1).all()


def test_what_square_does_not_ask_is_known(monkeypatch):
    "A square that changes nothing counts as a query and is not asked; asking everything gives the same to the bit"
    net, x, y = world(dtype=torch.float, channels=3, size=(12, 12))

    def lucky(ids):
        return own_luck(0, ids.tolist(), 400, 3)

    stripes, asked = (
        torch.rand(len(x), 3, 1, 12, generator=generator(0, "stripes")) > 0.5,
        CountedModel(net, y),
    )
    few = square_search(asked, x, y, 4 / 255, 400, False, stripes, lucky, ahead=1)

    def everything(model, new, y, asked):
        z = model(new)
        return margin(z, y), z.argmax(1) != y

    monkeypatch.setattr(square_module, "_ask", everything)
    every = CountedModel(net, y)
    assert all(
        torch.equal(a, b)
        for a, b in zip(few, square_search(every, x, y, 4 / 255, 400, False, stripes, lucky, ahead=1))
    )
    assert asked.forwards < every.forwards == few[2].sum() and (few[2][~few[1]] == 401).all()


@pytest.mark.parametrize("device", ("cpu", "cuda"))
def test_squares_asked_about_at_once_change_nothing(device, monkeypatch):
    "In double precision to the bit what one after the other finds, and who survives has had every query"
    if device == "cuda":
        monkeypatch.setattr(
            square_module, "should_check", lambda i, device: should_check(i, torch.device("cuda"))
        )
    net, x, y = world(n=40)

    def lucky(ids):
        return own_luck(0, ids.tolist(), 300, 3)

    stripes = torch.rand(len(x), 3, 1, x.shape[3], generator=generator(0, "stripes")) > 0.5
    asked = {ahead: CountedModel(net, y) for ahead in (1, 3, 50, 1000, None)}
    runs = {
        ahead: square_search(a, x, y, 2 / 255, 300, True, stripes, lucky, ahead=ahead)
        for ahead, a in asked.items()
    }
    for run in runs.values():
        assert all(torch.equal(a, b) for a, b in zip(runs[1], run))
    assert 0 < runs[1][1].sum() < len(x) and (runs[1][2][~runs[1][1]] == 301).all()
    assert asked[1].forwards <= asked[3].forwards < asked[50].forwards


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


def test_of_classes_tried_at_once_a_nearer_one_comes_too_late(monkeypatch):
    "One after the other an image is done at the first class within reach, so a later one is not looked at"
    net, x, y = world(n=6)
    x, calls = x[:5], []

    def ever_nearer(model, x, *rest):
        calls.append(len(x))
        return numbered(x), torch.full((len(x),), 9.0) if len(calls) == 1 else 0.001 / (
            1 + torch.arange(len(x)) // 5
        )

    monkeypatch.setattr(fab_module, "fab", ever_nearer)
    [run] = attack_group(
        net,
        x,
        net(x).argmax(1),
        [AttackConfig("fab-t", "255/255", preset="aa-paper")],
        right=torch.ones(5).bool(),
    )[:1]
    assert len(calls) == 2 and calls[1] > calls[0] == 5
    torch.testing.assert_close(run.images, numbered(x))


def test_how_often():
    "Never less than once, never more than there is to do, and no fuller than a batch may be"
    for n in range(70):
        for most in (1, 9):
            assert 1 <= tasks_at_once(n, most, torch.device("cpu")) <= most and (
                n * tasks_at_once(n, most, torch.device("cpu")) <= 64
                or tasks_at_once(n, most, torch.device("cpu")) == 1
            )


def test_square_never_asks_about_no_image():
    "One survivor and a square that changes nothing: many a model refuses an empty batch"
    net, x, y = world(dtype=torch.float)

    class Picky(nn.Module):
        def forward(self, x):
            return net(x.view(len(x), -1).view_as(x))

    keep = (
        square_search(
            net,
            x,
            y,
            1 / 255,
            60,
            False,
            torch.zeros(len(x), 3, 1, 12).bool(),
            lambda ids: own_luck(0, ids.tolist(), 60, 3),
        )[1]
        .logical_not()
        .nonzero()[:1, 0]
    )
    _, broken, had = square_search(
        Picky().eval(),
        x[keep],
        y[keep],
        1 / 255,
        400,
        False,
        torch.zeros(1, 3, 1, 12).bool(),
        lambda ids: own_luck(0, keep[ids].tolist(), 400, 3),
    )
    assert broken.any() or had.item() == 401


def test_every_eps_at_once_is_each_alone():
    "APGD, Square and AutoAttack run all eps as one batch: in double precision to the bit what each would be alone"
    net, x, y = world(n=24)
    for name in ("apgd-ce", "apgd-t", "square", "autoattack"):
        configs = [AttackConfig(name, f"{k}/255", preset="aa-quick") for k in (0, 1, 3, 6)]
        for t, out in zip(configs, attack_group(net, x, y, configs)):
            alone = attack_images(net, x, y, t)
            assert torch.equal(out.flags, alone.flags) and torch.allclose(
                out.images, alone.images, atol=1e-9
            ), str(t)


# Their pieces


def test_look_backs():
    assert (
        look_backs(100) == [22, 41, 57, 70, 80, 87, 93, 99]
        and look_backs(10) == [2, 3, 4, 5, 6, 7, 8, 9, 10]
        and look_backs(1) == [1]
    )


def test_schedule_of_square():
    assert [share_of_image(q, 5000, False) for q in (0, 10, 11, 50, 51, 201, 501, 1001, 2001, 4001)] == [
        0.8,
        0.8,
        0.4,
        0.4,
        0.2,
        0.1,
        0.05,
        0.025,
        0.0125,
        0.00625,
    ]
    assert share_of_image(26, 5000, True) == 0.2 and share_of_image(4999, 5000, True) == 0.8 / 512
    assert (
        side_of_square(0.8, 32, 32) == 29
        and side_of_square(1e-9, 32, 32) == 1
        and side_of_square(0.8, 8, 64) == 8
    )


def test_water_level_is_exact():
    g = generator(0, "water")
    w, c = (
        torch.rand(200, 30, generator=g, dtype=torch.double),
        torch.rand(200, 30, generator=g, dtype=torch.double),
    )
    c[:, ::7], w[:, ::5] = 0, 0
    most = (w * c).sum(1)
    for share in (0.0, 1e-6, 0.3, 0.999999):
        lam = water_level(w, c, share * most)
        torch.testing.assert_close((w * torch.minimum(lam[:, None], c)).sum(1), share * most)
    assert torch.isinf(water_level(w, c, 1.01 * most)).all()
    x = torch.rand(200, 30, generator=g, dtype=torch.double)
    moved = x + to_plane(x, w - 0.5, 2 * most)
    assert (moved >= 0).all() and (moved <= 1).all()


@pytest.mark.parametrize("n", (1, 7, 8, 9, 31, 128, 200, 300))
def test_pieces(n):
    for device, known in COMPILED_SIZES.items():
        sizes = batch_sizes(n, torch.device(device))
        assert (
            set(sizes) <= set(known)
            and 0 <= sum(sizes) - n < known[-1]
            and sizes == sorted(sizes, reverse=True)
        )
    sizes, seen = batch_sizes(n, torch.device("cpu")), []
    x = torch.rand(n, 3)
    assert (
        torch.equal(in_fixed_batches(lambda part: (seen.append(len(part)), part * 2)[1], x), x * 2)
        and seen == sizes
    )


# A GPU asks seldom: the answer must be that of a CPU, which asks always


@pytest.mark.parametrize("name", (*PARTS, "autoattack"))
def test_asking_seldom_changes_nothing(name, monkeypatch):
    net, x, y = world(n=40)
    t = AttackConfig(name, "2/255", preset="aa-quick")
    for module in (apgd_module, fab_module, square_module):
        monkeypatch.setattr(
            module, "tasks_at_once", lambda *_: 1
        )  # else the work would differ by what is tried in vain
    monkeypatch.setattr(square_module, "_worthwhile", lambda state: len(state.id))
    always = attack_images(net, x, y, t)
    cuda = torch.device("cuda")
    for module in (apgd_module, fab_module, square_module):
        monkeypatch.setattr(module, "should_check", lambda i, device: should_check(i, cuda))
    seldom = attack_images(net, x, y, t)
    assert torch.equal(always.flags, seldom.flags) and 0 < always.flags.sum() < len(x)
    torch.testing.assert_close(always.images, seldom.images, atol=1e-9, rtol=0)
    if name != "fab-t":
        assert seldom.forwards >= always.forwards


# Compiled


@pytest.mark.slow
@pytest.mark.parametrize("name, eps", (("ConvNetD3-w64", "1/255"), ("ResNet18-w16", "8/255")))
def test_models_that_answer_faster_give_the_same_flags(name, eps, monkeypatch):
    "In one sweep, and compiled; eps where an untrained network loses some"
    from ddrobust_nb.foundations.data import specs
    from ddrobust_nb.foundations.networks import make_network

    net = make_network(name, specs["cifar10"]).eval()
    x = torch.rand(40, 3, 32, 32, generator=generator(0, "compiled"))
    y, flags = net(x).argmax(1), []
    for rule in ("never", "always"):
        monkeypatch.setenv("DDROBUST_COMPILE", rule)
        flags.append(
            [
                attack_images(
                    net, x, y, AttackConfig(how, eps, preset="aa-quick" if how in PARTS else "")
                ).flags
                for how in ("pgd", *PARTS)
            ]
        )
    assert all((a != b).sum() <= 1 for a, b in zip(*flags)) and 0 < sum(f.sum() for f in flags[0]) < 5 * 40


def test_a_winter_known_beforehand_is_not_rented(monkeypatch):
    "Attacks that go on after their first class, or their first squares, say what lies ahead; nothing is expected of what breaks at once"
    seen = {}
    for name, module in (("apgd-t", apgd_module), ("fab-t", fab_module), ("square", square_module)):
        monkeypatch.setattr(
            module,
            "expect_passes",
            lambda model, passes, name=name: seen.setdefault(name, []).append(int(passes)),
        )
        net, x, y = world(n=40)
        for eps in ("1/255", "255/255"):
            seen.pop(name, None)
            flags = attack_images(net, x, y, AttackConfig(name, eps, preset="aa-quick")).flags
            survivors = int(flags.sum())
            if eps == "255/255":
                assert survivors == 0 and (name not in seen or max(seen[name]) < 2000)
            else:
                assert (
                    survivors > 0
                    and max(seen[name])
                    >= survivors * {"apgd-t": 2 * 30, "fab-t": 2 * 40, "square": 250}[name]
                )


def test_a_model_is_rented_before_it_is_bought(monkeypatch):
    bought = []
    monkeypatch.setattr(
        "ddrobust_nb.fast.queries.accelerated", lambda model, device: bought.append(1) or model
    )
    monkeypatch.setattr("ddrobust_nb.fast.queries.passes_before_compiling", lambda model, device: 100)
    net, x, y = world(n=40)
    counted = CountedModel(net, y)
    for _ in range(2):
        counted(x)
    assert not bought
    torch.testing.assert_close(counted(x), net(x))
    counted(x)
    assert bought == [1] and counted.forwards == 160, "filled-up pieces are not counted"


# Shapes and classes


@pytest.mark.parametrize(
    "classes, size, channels",
    (
        (4, (8, 8), 1),
        (8, (8, 8), 3),
        (200, (16, 16), 3),
        (10, (28, 28), 1),
        (10, (64, 64), 3),
        (10, (128, 128), 3),
        (10, (8, 20), 3),
        (10, (20, 8), 1),
    ),
)
def test_any_shape(classes, size, channels):
    net, x, y = world(6, classes, size, channels)
    flags = {
        part: attack_images(net, x, y, AttackConfig(part, "1/255", preset="aa-quick")).flags for part in PARTS
    }
    assert torch.equal(
        attack_images(net, x, y, AttackConfig("autoattack", "1/255", preset="aa-quick")).flags,
        autoattack_flags(flags),
    )


@pytest.mark.parametrize("name", (*PARTS, "autoattack"))
def test_nothing_to_attack(name):
    net, x, y = world(6)
    t = AttackConfig(name, "1/255", preset="aa-quick")
    wrong = attack_images(net, x, (y + 1) % 10, t)
    assert (
        not wrong.flags.any() and torch.equal(wrong.images, x) and (wrong.gradients, wrong.forwards) == (0, 6)
    )
    assert attack_images(net, x[:0], y[:0], t).flags.shape == (0,)
    broken = attack_images(net, x, y, AttackConfig(name, "128/255", preset="aa-quick"))
    assert not broken.flags.any()


def test_in_turn_the_parts_only_see_what_is_left():
    net, x, y = world(n=40)
    work = {
        name: attack_images(net, x, y, AttackConfig(name, "2/255", preset="aa-quick")).forwards
        for name in (*PARTS, "autoattack")
    }
    assert work["autoattack"] < 0.8 * sum(work[part] for part in PARTS)


# Whole evaluations


@pytest.fixture(scope="module")
def cell():
    "Data of four classes and a model that is right on most of it"
    from ddrobust_nb.training.fit import Recipe, fit

    data = tiny_data((12, 13, 14, 12), tests=20)
    return data, fit(
        data, network="ConvNetD3-w8", recipe=Recipe(epochs=15, batch=16, check_every=0), device="cpu"
    )


GRID = "fgsm@4/255,fgsm@16/255,pgd@8/255@3,pgd@8/255@6,apgd-ce@8/255,apgd-t@8/255,fab-t@8/255,square@8/255,fab-t@16/255,aa-quick@4/255,aa-quick@8/255,aa-quick@16/255"


def test_an_evaluation_is_its_attacks(cell):
    data, net = cell
    configs = parse_attacks(GRID, "aa-quick")
    found = evaluate(net, data, configs, n_test=40, device="cpu")
    assert [e.config for e in found] == configs
    alone = [evaluate(net, data, [t], n_test=40, device="cpu")[0] for t in configs]
    assert all(torch.equal(a.flags, b.flags) for a, b in zip(found, alone))
    by = {str(e.config): e for e in found}
    parts = {name: by[f"{name}@8/255"].flags for name in PARTS}
    assert (
        torch.equal(by["aa-quick@8/255"].flags, autoattack_flags(parts))
        and 0 < by["aa-quick@8/255"].robust < 1
    )
    assert (
        all(e.always is None or (e.always <= e.flags).all() for e in found)
        and by["pgd@8/255@6"].always is not None
    )
    assert sum(e.gradients for e in found) < sum(e.gradients for e in alone)


def test_no_autoattack_without_its_parts(cell):
    data, net = cell
    configs = parse_attacks("apgd-ce@8/255,apgd-t@8/255,fab-t@8/255,square@8/255,aa-quick@8/255", "aa-quick")
    run = ModelEvaluation(net, data, configs, n_test=20, device="cpu")
    for group in run.groups:
        run.add(e for e in run.attack(group) if e.config.attack != "fab-t")
    with pytest.raises(InputError, match="fab-t missing"):
        run.results()


@pytest.mark.parametrize(
    "text",
    ("pgd@8/255@3,pgd@8/255@6", "fab-t@4/255,fab-t@8/255", "square@8/255", "aa-quick@4/255,aa-quick@8/255"),
)
def test_killed_and_resumed(cell, text, monkeypatch):
    data, net = cell
    monkeypatch.setattr(running, "chunk_size", lambda *a: 16)
    monkeypatch.setenv("DDROBUST_AUTOSAVE", "0")
    [group] = group_configs(parse_attacks(text, "aa-quick"))

    def run(**options):
        return run_group(
            net, data.test_images, data.test_labels, torch.arange(60), group, device="cpu", **options
        )

    whole, states = run(), []

    def stop(state):
        states.append(copy.deepcopy(state))
        if len(states) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(save=stop)
    assert 0 < states[-1]["done"] < 60
    for a, b in zip(whole, run(state=states[-1])):
        assert torch.equal(a.flags, b.flags) and (a.gradients, a.forwards) == (b.gradients, b.forwards)


def test_the_rent_is_paid_once(monkeypatch):
    "What the model has had goes from chunk to chunk and from attack to attack, in a resumed run as in a whole one: it is compiled at the same image"
    data, told = tiny_data(counts=(12,) * 4, tests=15), []
    net = nn.Sequential(nn.Flatten(), nn.Linear(data.test_images[0].numel(), 4)).eval()
    monkeypatch.setattr(
        running,
        "CountedModel",
        lambda model, y, passes: told.append(passes) or CountedModel(model, y, passes),
    )
    monkeypatch.setattr(running, "chunk_size", lambda *_: 16)
    monkeypatch.setenv("DDROBUST_AUTOSAVE", "0")
    states, configs = [], parse_attacks("pgd@8/255@5")

    def run(**options):
        return run_group(
            net,
            data.test_images,
            data.test_labels,
            torch.arange(60),
            configs,
            device="cpu",
            passes=7,
            **options,
        )

    whole = run(save=states.append)
    per_chunk, told[:] = list(told), []
    assert len(per_chunk) == 4 and per_chunk[0] == 7 and sorted(set(per_chunk)) == per_chunk
    assert per_chunk[-1] < 7 + whole[0].passes <= per_chunk[-1] + 16 * 18
    run(state=states[1])
    assert told == per_chunk[2:]
    told[:] = []
    evaluate(net, data, parse_attacks("fgsm@8/255,pgd@8/255@5,square@8/255", "aa-quick"), device="cpu")
    first = told[::4]
    assert first[0] == 0 < first[1] <= first[2]  # equal where what was expected is what it took


def test_the_cost_is_known_beforehand(cell):
    "For an image that survives everything the count is exact"
    data, net = cell
    for t in parse_attacks(
        "pgd@0/255@6,apgd-ce@0/255,apgd-t@0/255,fab-t@0/255,square@0/255,aa-quick@0/255", "aa-quick"
    ):
        (e,) = evaluate(net, data, [t], n_test=20, device="cpu")
        n, said = int(e.flags.sum()), work_per_survivor([t], 4)
        did = (3 * e.gradients + (e.forwards - e.gradients)) / n
        if t.attack not in ("square", "autoattack"):
            assert abs(did - said) <= 0.12 * said + 4, str(t)
        else:
            assert did <= 1.12 * said + 4, str(t)  # at eps 0 no candidate of Square is new
    cost = expected_cost(net, data, attack_list("paper"), n_test=40, device="cpu")
    assert 0 < cost.seconds <= cost.most and "if every image survived" in str(cost)


def test_evaluations_know_their_parts():
    t = AttackConfig("autoattack", "1/255", preset="aa-paper", backend="torchattacks")
    assert [str(p) for p in parts_of(t)] == [f"torchattacks:{part}@1/255" for part in PARTS] and {
        p.preset for p in parts_of(t)
    } == {"aa-paper"}
    assert Evaluation(AttackConfig("fgsm"), torch.arange(2), torch.tensor([True, False])).robust == 0.5

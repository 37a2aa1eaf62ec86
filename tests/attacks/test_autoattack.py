"AutoAttack and its parts: golden flags, the conjunction, the libraries, and what survivors have had."

import pytest
import torch
from attack_worlds import dropout_world as world
from attack_worlds import needs_torchattacks, quick, smooth_world

from ddrobust_nb.attacks import apgd as apgd_module
from ddrobust_nb.attacks import fab as fab_module
from ddrobust_nb.attacks import square as square_module
from ddrobust_nb.attacks.attack import (
    AA_PRESETS,
    AttackConfig,
)
from ddrobust_nb.attacks.autoattack import PARTS, autoattack_flags
from ddrobust_nb.attacks.running import (
    attack_group,
    attack_images,
)
from ddrobust_nb.fast.queries import (
    should_check,
)
from ddrobust_nb.foundations.core import InputError, generator
from ddrobust_nb.foundations.data import specs
from ddrobust_nb.foundations.networks import make_network


def golden_parts(golden_world, preset, key, eps, tolerance, parts=PARTS):
    "Run parts on all 64 golden images and compare the flags; 'standard' is the conjunction"
    net, x, y, g = golden_world
    flags = {
        part: attack_images(net, x, y, AttackConfig(part, f"{eps}/255", preset=preset)).flags
        for part in parts
    }
    if len(parts) == 4:
        flags["standard"] = autoattack_flags(flags)
    for part, mine in flags.items():
        assert (mine != g[f"{key}.{part}.eps{eps}"].bool()).sum() <= tolerance, (part, eps)


def test_golden_paper_parts(golden_world):
    golden_parts(golden_world, "aa-paper", "ta10", 8, 2)


def test_golden_standard_apgd(golden_world):
    golden_parts(golden_world, "aa-standard", "aa", 8, 2, ("apgd-ce",))


@pytest.mark.slow
@pytest.mark.parametrize("eps", (1, 2, 4, 8))
@pytest.mark.parametrize("preset, key, tolerance", (("aa-standard", "aa", 2), ("aa-paper", "ta10", 2)))
def test_golden_autoattack(golden_world, preset, key, tolerance, eps):
    golden_parts(golden_world, preset, key, eps, tolerance)


def test_autoattack_is_the_conjunction():
    net, x, y = world(n=40)
    flags = {part: attack_images(net, x, y, quick(part, "4/255")).flags for part in PARTS}
    assert torch.equal(attack_images(net, x, y, quick("autoattack", "4/255")).flags, autoattack_flags(flags))
    with pytest.raises(InputError, match="square missing"):
        autoattack_flags({k: v for k, v in flags.items() if k != "square"})


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


def test_every_eps_at_once_is_each_alone():
    "APGD, Square and AutoAttack run all eps as one batch: in double precision to the bit what each would be alone"
    net, x, y = smooth_world(n=24)
    for name in ("apgd-ce", "apgd-t", "square", "autoattack"):
        configs = [AttackConfig(name, f"{k}/255", preset="aa-quick") for k in (0, 1, 3, 6)]
        for t, out in zip(configs, attack_group(net, x, y, configs)):
            alone = attack_images(net, x, y, t)
            assert torch.equal(out.flags, alone.flags) and torch.allclose(
                out.images, alone.images, atol=1e-9
            ), str(t)


@pytest.mark.parametrize("name", (*PARTS, "autoattack"))
def test_asking_seldom_changes_nothing(name, monkeypatch):
    net, x, y = smooth_world(n=40)
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


@pytest.mark.slow
@pytest.mark.parametrize("name, eps", (("ConvNetD3-w64", "1/255"), ("ResNet18-w16", "8/255")))
def test_models_that_answer_faster_give_the_same_flags(name, eps, monkeypatch):
    "In one sweep, and compiled; eps where an untrained network loses some"

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
    net, x, y = smooth_world(6, classes, size, channels)
    flags = {
        part: attack_images(net, x, y, AttackConfig(part, "1/255", preset="aa-quick")).flags for part in PARTS
    }
    assert torch.equal(
        attack_images(net, x, y, AttackConfig("autoattack", "1/255", preset="aa-quick")).flags,
        autoattack_flags(flags),
    )


@pytest.mark.parametrize("name", (*PARTS, "autoattack"))
def test_nothing_to_attack(name):
    net, x, y = smooth_world(6)
    t = AttackConfig(name, "1/255", preset="aa-quick")
    wrong = attack_images(net, x, (y + 1) % 10, t)
    assert (
        not wrong.flags.any() and torch.equal(wrong.images, x) and (wrong.gradients, wrong.forwards) == (0, 6)
    )
    assert attack_images(net, x[:0], y[:0], t).flags.shape == (0,)
    broken = attack_images(net, x, y, AttackConfig(name, "128/255", preset="aa-quick"))
    assert not broken.flags.any()


def test_in_turn_the_parts_only_see_what_is_left():
    net, x, y = smooth_world(n=40)
    work = {
        name: attack_images(net, x, y, AttackConfig(name, "2/255", preset="aa-quick")).forwards
        for name in (*PARTS, "autoattack")
    }
    assert work["autoattack"] < 0.8 * sum(work[part] for part in PARTS)

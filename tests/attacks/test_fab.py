"FAB against the code of its authors, and its parts."

import torch
from attack_worlds import right_after
from attack_worlds import smooth_world as world
from pyautoattack.fab_pt import FABAttack_PT

from ddrobust_nb.attacks import fab as fab_module
from ddrobust_nb.attacks.apgd import other_classes
from ddrobust_nb.attacks.attack import AttackConfig
from ddrobust_nb.attacks.fab import fab, to_plane, water_level
from ddrobust_nb.attacks.running import attack_group
from ddrobust_nb.foundations.core import generator


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


def numbered(x):
    "Images that tell which row they are"
    return (torch.arange(len(x), dtype=x.dtype) / 1000)[:, None, None, None].expand_as(x)


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

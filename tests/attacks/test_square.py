"Square against the code of its authors with the same draws, and against itself in other orders."

import pytest
import torch
from attack_worlds import right_after
from attack_worlds import smooth_world as world
from pyautoattack.square import SquareAttack
from torch import nn

from ddrobust_nb.attacks import square as square_module
from ddrobust_nb.attacks.cw import margin
from ddrobust_nb.attacks.square import own_luck, share_of_image, side_of_square, square_search
from ddrobust_nb.fast.queries import (
    CountedModel,
    should_check,
)
from ddrobust_nb.foundations.core import generator


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
    net, x, y = world(n=20)

    def lucky(ids):
        return own_luck(0, ids.tolist(), 120, 3)

    stripes = torch.rand(len(x), 3, 1, x.shape[3], generator=generator(0, "stripes")) > 0.5
    asked = {ahead: CountedModel(net, y) for ahead in (1, 3, 50, 1000, None)}
    runs = {
        ahead: square_search(a, x, y, 2 / 255, 120, True, stripes, lucky, ahead=ahead)
        for ahead, a in asked.items()
    }
    for run in runs.values():
        assert all(torch.equal(a, b) for a, b in zip(runs[1], run))
    assert 0 < runs[1][1].sum() < len(x) and (runs[1][2][~runs[1][1]] == 121).all()
    assert asked[1].forwards <= asked[3].forwards < asked[50].forwards


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

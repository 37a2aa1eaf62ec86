"Batches of few sizes, and when a model is compiled."

import pytest
import torch
from attack_worlds import smooth_world as world

from ddrobust_nb.fast.queries import (
    COMPILED_SIZES,
    CountedModel,
    batch_sizes,
    in_fixed_batches,
    tasks_at_once,
)


def test_how_often():
    "Never less than once, never more than there is to do, and no fuller than a batch may be"
    for n in range(70):
        for most in (1, 9):
            assert 1 <= tasks_at_once(n, most, torch.device("cpu")) <= most and (
                n * tasks_at_once(n, most, torch.device("cpu")) <= 64
                or tasks_at_once(n, most, torch.device("cpu")) == 1
            )


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

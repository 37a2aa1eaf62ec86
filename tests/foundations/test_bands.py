"The wish about a set's spectrum: its mathematics, that every distiller heeds it, and that without one nothing differs."

import inspect

import pytest
import torch

from ddrobust_nb.foundations.bands import (
    check_frequency,
    frequency_distances,
    keep_band,
    low_mask,
    share_high,
    steer,
)
from ddrobust_nb.foundations.core import InputError, generator
from ddrobust_nb.foundations.datasets import load_data
from ddrobust_nb.training.distiller import distiller, own_options
from ddrobust_nb.frequency.spectra import band_share, split_bands
from ddrobust_nb.foundations.networks import Normalise
from ddrobust_nb.results.plan import complete_options, plan_cell
from test_distillers import METHODS, distil, same
from tiny import as_stored, tiny_data

STEERABLE = [n for n in METHODS if "frequency" in inspect.signature(distiller[n]).parameters]
WISHES = {
    "pull": {"weight": 100.0, "target": 0.2, "radius": 2},
    "cut": {"keep": [0, 2]},
    "both": {"weight": 100.0, "target": 0.2, "keep": [0, 3]},
}
RATES = {"dc": 0.1, "dsa": 0.1, "dm": 1.0, "mtt": 0.01, "tesla": 0.01}


@pytest.fixture(scope="module")
def data():
    return tiny_data()


def draw(*shape):
    return torch.rand(*shape, generator=generator(0, "bands", *shape), dtype=torch.float64)


# ---- mathematics


@pytest.mark.parametrize("size", [(8, 8), (9, 9), (28, 28), (31, 33), (32, 48)])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_share_is_that_of_the_spectra(size, channels):
    x, r = draw(5, channels, *size), 0.3 * min(size)
    torch.testing.assert_close(share_high(x, r), band_share(x, r, dc=False).per_image)


def test_the_share_has_the_gradient_it_should():
    x = draw(2, 2, 6, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: share_high(x, 1.5), x)


def test_a_constant_image_has_no_share_and_no_gradient():
    x = torch.full((1, 3, 8, 8), 0.4, requires_grad=True)
    share_high(x).sum().backward()
    assert share_high(x) == 0 and torch.isfinite(x.grad).all()


@pytest.mark.parametrize("size", [(8, 8), (9, 7), (32, 32)])
def test_a_band_is_what_the_split_gives(size):
    x, r = draw(3, 2, *size), 2.5
    low, high = split_bands(x, r)
    torch.testing.assert_close(keep_band(x, 0, r), low)
    torch.testing.assert_close(keep_band(x, r, 99), high + x.mean((-2, -1), keepdim=True))
    once = keep_band(x, 1, r)
    torch.testing.assert_close(keep_band(once, 1, r), once)
    torch.testing.assert_close(once.mean((-2, -1)), x.mean((-2, -1)))


def test_distances_are_those_to_the_centre():
    assert (
        frequency_distances(4, 5)[2, 2] == 0
        and frequency_distances(4, 5)[0, 2] == 2
        and frequency_distances(4, 5)[2, 4] == 2
    )
    assert torch.equal(low_mask(4, 5, 2.0), frequency_distances(4, 5) < 2)


# ---- the hook


def test_a_step_moves_by_the_gradient_of_the_term():
    normalise, z = (
        Normalise([0.5] * 3, [0.2] * 3),
        torch.randn(4, 3, 8, 8, generator=generator(0)).requires_grad_(),
    )
    wish = check_frequency({"weight": 7.0, "target": 0.1, "radius": 2}, tiny_data().spec)
    other, start = torch.randn_like(z), z.detach().clone()
    optimiser = torch.optim.SGD([z], lr=0.5)
    steer(optimiser, z, normalise, wish)
    z.grad = other.clone()
    optimiser.step()
    x = start.clone().requires_grad_()
    term = 7.0 * (share_high(x * 0.2 + 0.5, 2).mean() - 0.1) ** 2
    torch.testing.assert_close(z.detach(), start - 0.5 * (other + torch.autograd.grad(term, x)[0]))


def test_the_hook_works_where_gradients_are_off():
    z = torch.rand(2, 3, 8, 8)
    optimiser = torch.optim.SGD([z], lr=1.0)
    steer(
        optimiser,
        z,
        Normalise([0.0] * 3, [1.0] * 3),
        check_frequency({"weight": 10.0, "target": 0.0, "radius": 2}, tiny_data().spec),
    )
    before = share_high(z, 2).mean()
    with torch.no_grad():
        for _ in range(20):
            z.grad = torch.zeros_like(z)
            optimiser.step()
    assert share_high(z, 2).mean() < before


# ---- every distiller


def test_all_that_optimise_images_can_be_steered():
    assert {"dc", "dsa", "dm", "mtt", "tesla", "sre2l"} <= set(STEERABLE)
    assert not {"random", "kmeans", "herding", "whole", "random_teacher"} & set(STEERABLE)
    for n in STEERABLE:
        assert "frequency" not in own_options(n)


@pytest.mark.parametrize("name", STEERABLE)
def test_off_is_off(name, data, monkeypatch):
    want = distil(name, data)
    monkeypatch.setattr(torch.optim.Optimizer, "register_step_pre_hook", None)
    monkeypatch.setattr(torch.optim.Optimizer, "register_step_post_hook", None)
    off = distil(name, data, frequency=None)
    assert same(want, off) and off.config == want.config and "frequency" not in off.config


@pytest.mark.parametrize("wish", WISHES)
@pytest.mark.parametrize("name", STEERABLE)
def test_a_wish_is_heeded(name, wish, data):
    asked = WISHES[wish]
    if wish == "pull":
        asked = asked | {"weight": 20 / RATES.get(name, 0.25)}  # steps of the same size for all
    plain, steered = distil(name, data), distil(name, data, frequency=asked)
    assert steered.config["frequency"] == asked
    if wish == "pull":
        assert abs(share_high(steered.images, 2).mean() - 0.2) < abs(share_high(plain.images, 2).mean() - 0.2)
    elif name not in ("sre2l", "sre2l_hard"):
        assert (
            share_high(steered.images, WISHES[wish]["keep"][1]).max() < 1e-6
        )  # SRe2L cuts to [0,1] after each step
    else:
        assert share_high(steered.images, 2).mean() < share_high(plain.images, 2).mean()


@pytest.mark.parametrize("name", STEERABLE)
def test_an_interrupted_steered_run_ends_like_any_other(name, data, monkeypatch):
    want = distil(name, data, frequency=WISHES["both"])
    monkeypatch.setenv("DDROBUST_AUTOSAVE", "0")
    states = []
    distil(name, data, frequency=WISHES["both"], save=lambda s: states.append(as_stored(s)))
    assert same(want, distil(name, data, frequency=WISHES["both"], state=states[len(states) // 2]))


@pytest.mark.parametrize("name", STEERABLE)
def test_a_wish_that_cannot_be_is_refused_before_any_work(name, data):
    def nothing(*_):
        raise AssertionError("worked")

    with pytest.raises(InputError, match="asks for nothing"):
        distil(name, data, frequency={"radius": 2}, watch=nothing, save=nothing)


# ---- the cell


def test_keys_only_change_with_a_wish(tmp_path):
    digits = load_data("digits")
    plain = complete_options("dm", "quick", digits, 1, {})
    assert (
        "frequency" not in plain and complete_options("dm", "quick", digits, 1, {"frequency": None}) == plain
    )
    assert complete_options("dm", "quick", digits, 1, {"frequency": {"keep": [0, 8]}}) == plain | {
        "frequency": {"keep": [0, 8]}
    }
    keys = {
        plan_cell(store=str(tmp_path), options=o).key
        for o in ({}, {"frequency": None}, {"frequency": {"keep": [0, 8]}})
    }
    assert len(keys) == 2


def test_a_cell_refuses_what_cannot_be(tmp_path):
    with pytest.raises(InputError, match="0 <= inner < outer"):
        plan_cell(store=str(tmp_path), options={"frequency": {"keep": [8, 4]}})
    with pytest.raises(InputError, match="keep has radii of its own"):
        plan_cell(store=str(tmp_path), options={"frequency": {"keep": [0, 8], "radius": 4}})
    with pytest.raises(InputError, match="no options of its own"):
        plan_cell(store=str(tmp_path), method="random", options={"frequency": {"keep": [0, 8]}})

"Principal components against scikit-learn's (the fixture), pairing, and the similarity of two sets."

import itertools

import pytest
import torch

from ddrobust_nb.foundations.core import InputError, generator
from ddrobust_nb.foundations.datasets import load_data
from ddrobust_nb.frequency.similarity import (
    correlation,
    components_by_svd,
    components_by_covariance,
    null_similarity,
    pair_components,
    principal_components,
    similarity,
)
from ddrobust_nb.frequency.spectra import split_bands
from tiny import global_randomness, tiny_data


def draw(*shape, seed=0):
    return torch.rand(*shape, generator=generator(seed, "similarity", *shape), dtype=torch.float64)


@pytest.mark.parametrize("way", [components_by_svd, components_by_covariance])
def test_components_are_those_of_the_fixture(golden, way):
    g = golden("frequency")
    c = way(g["pca.images"], 10)
    torch.testing.assert_close(c.variance, g["pca.explained_variance"].double(), rtol=1e-5, atol=0)
    torch.testing.assert_close(c.mean.flatten(), g["pca.mean"].double(), rtol=0, atol=1e-6)
    overlap = (c.vectors.flatten(1) * g["pca.components"].double()).sum(1).abs()
    torch.testing.assert_close(overlap, torch.ones(10).double(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("n, shape", [(40, (1, 5, 5)), (40, (3, 4, 6)), (30, (1, 9, 9)), (2, (3, 4, 4))])
def test_both_ways_span_the_same(n, shape):
    x = draw(n, *shape)
    k = min(n - 1, 10)
    a, b = components_by_svd(x, k), components_by_covariance(x, k)
    torch.testing.assert_close(a.variance, b.variance)
    for c in (a, b):
        torch.testing.assert_close(
            c.vectors.flatten(1) @ c.vectors.flatten(1).T, torch.eye(k).double(), rtol=0, atol=1e-8
        )
    torch.testing.assert_close(
        (a.vectors.flatten(1) @ b.vectors.flatten(1).T).abs().diagonal(),
        torch.ones(k).double(),
        rtol=0,
        atol=1e-5,
    )


def test_all_components_hold_all_variance():
    x = draw(12, 1, 6, 6)
    c = principal_components(x)
    assert len(c) == 11
    torch.testing.assert_close(c.variance.sum(), (x - x.mean(0)).square().sum() / 11)


def test_chunks_do_not_matter(monkeypatch):
    from ddrobust_nb.frequency import similarity as module

    x = draw(60, 1, 6, 6)
    whole = components_by_covariance(x, 5)
    chunks = module.signal_chunks
    monkeypatch.setattr(module, "signal_chunks", lambda images: chunks(images, 7))
    torch.testing.assert_close(components_by_covariance(x, 5).vectors.abs(), whole.vectors.abs())


def test_correlation_is_that_of_numpy():
    import numpy as np

    a, b = draw(4, 30), draw(5, 30, seed=1)
    want = np.abs(np.corrcoef(a.numpy(), b.numpy())[:4, 4:])
    torch.testing.assert_close(correlation(a, b), torch.tensor(want))
    assert correlation(torch.ones(1, 30).double(), b).eq(0).all()


def test_the_assignment_is_the_best_there_is():
    likeness = draw(5, 6)
    best = max(sum(likeness[i, j] for i, j in enumerate(p)) for p in itertools.permutations(range(6), 5))
    total = {
        m: sum(likeness[i, j] for i, j in pair_components(likeness, m))
        for m in ("hungarian", "greedy", "index")
    }
    torch.testing.assert_close(total["hungarian"], best)
    assert total["greedy"] <= best and total["index"] <= best
    for m in total:
        assert len({j for _, j in pair_components(likeness, m)}) == 5


def test_the_two_numbers_written_out():
    x, y = draw(6, 1, 12, 12), draw(40, 1, 12, 12, seed=1)
    original = principal_components(y, 9)
    s = similarity(x, original, radius=2)
    a, b = components_by_svd(x, 5).vectors, original.vectors[:5]
    low, high = [], []
    for i, j in pair_components(correlation(a, b)):
        for out, p, q in zip((low, high), split_bands(a[i][None], 2), split_bands(b[j][None], 2)):
            out.append(abs(torch.corrcoef(torch.stack([p.flatten(), q.flatten()]))[0, 1].item()))
    assert s.low == pytest.approx(sum(low) / 5) and s.high == pytest.approx(sum(high) / 5)


@pytest.mark.parametrize("match", ["hungarian", "greedy", "index"])
def test_a_set_is_like_itself_whatever_its_order_and_brightness(match):
    x = draw(20, 3, 12, 12)
    original = principal_components(x)
    for same in (x, x[torch.randperm(20, generator=generator(0))], 0.5 * x + 0.2):
        s = similarity(same, original, match=match)
        assert s.low == pytest.approx(1, abs=1e-5) and s.high == pytest.approx(1, abs=1e-5)


def test_the_centre_matters_when_means_differ():
    x = draw(6, 1, 12, 12)
    original = principal_components(draw(40, 1, 12, 12, seed=1) + torch.linspace(0, 3, 12), 9)
    assert similarity(x, original) != similarity(x, original, centre="original")


def test_the_null_model_draws_what_it_says_and_touches_nothing():
    data, before = tiny_data(size=12), global_randomness()
    original = principal_components(data.train_images, 12)
    null = null_similarity(data, 2, original, draws=4)
    assert (
        len({s.low for s in null}) == 4
        and null == null_similarity(data, 2, original, draws=4)
        and global_randomness() == before
    )
    assert all(s.settings["images"] == 6 and s.settings["components"] == 5 for s in null)


def test_ten_components_unless_said():
    x, original = draw(30, 1, 12, 12), principal_components(draw(40, 1, 12, 12, seed=1), 25)
    assert similarity(x, original) == similarity(x, original, k=10) != similarity(x, original, k=20)


def test_all_of_a_set_is_the_set():
    whole = null_similarity(
        tiny_data((5, 5), size=12), 5, principal_components(tiny_data((5, 5), size=12).train_images), draws=2
    )
    assert all(s.low == pytest.approx(1, abs=1e-5) for s in whole)


@pytest.mark.parametrize("size, channels", [(11, 1), (28, 1), (9, 3)])
def test_any_size(size, channels):
    s = similarity(
        draw(5, channels, size, size), principal_components(draw(30, channels, size, size, seed=1), 8)
    )
    assert 0 < s.low <= 1 and 0 < s.high <= 1


@pytest.mark.parametrize(
    "f, says",
    [
        (lambda x, o: similarity(x, o, k=6), "k must be a whole number from 1 to 5"),
        (lambda x, o: similarity(x[:1], o), "at least 2 images|k must"),
        (lambda x, o: similarity(x[:, :, :11], o), "images of one size"),
        (lambda x, o: similarity(x, o, radius=0), "radius must be above 0"),
        (lambda x, o: similarity(x, o, radius=99), "radius must be above 0"),
        (lambda x, o: similarity(x, o, radius=0.9), "nothing but the mean"),
        (lambda x, o: similarity(x, o, match="nearest"), "unknown match"),
        (lambda x, o: similarity(x, o, centre="mean"), "unknown centre"),
        (lambda x, o: principal_components(x, 6), "k must be a whole number from 1 to 5"),
        (lambda x, o: principal_components(x[:0]), "at least 2 images, got 0"),
        (lambda x, o: components_by_svd(torch.full_like(x, float("nan")), 2), "NaN"),
        (lambda x, o: components_by_covariance(torch.zeros(3, 3, 80, 80), 2), "use smaller images"),
        (lambda x, o: null_similarity(tiny_data(size=12), 13, o), "smallest class"),
        (lambda x, o: null_similarity(tiny_data(size=12), 1, o, draws=0), "draws must be"),
    ],
)
def test_refused(f, says):
    x = draw(6, 1, 12, 12)
    with pytest.raises(InputError, match=says):
        f(x, principal_components(draw(30, 1, 12, 12, seed=1), 9))


def test_real_images_have_larger_first_components():
    c = principal_components(load_data("digits").train_images, 20)
    assert (c.variance[:-1] >= c.variance[1:]).all() and c.variance[0] > 5 * c.variance[19]

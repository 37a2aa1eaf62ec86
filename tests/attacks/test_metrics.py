"Numbers made of flags: intervals against scipy, coverage in simulated worlds, and what must hold for any flags."

from statistics import NormalDist

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from ddrobust_nb.attacks.metrics import (
    bootstrap_interval,
    carry_over_eps,
    check_flags,
    compare,
    drop_rate,
    redraw,
    redrawn_means,
    student_interval,
    weaker,
    wilson,
)
from ddrobust_nb.foundations.core import InputError, generator


def world(models, images, seed, between=0.1, shared=1.0, own=0.5, skill=0.0):
    "Flags [models, images]: right where skill + model + image + noise > 0"
    g = generator(seed, "test world")

    def draw(*shape):
        return torch.randn(*shape, generator=g)

    return skill + between * draw(models, 1) + shared * draw(1, images) + own * draw(models, images) > 0


def truth(between=0.1, shared=1.0, own=0.5, skill=0.0):
    return NormalDist().cdf(skill / (between**2 + shared**2 + own**2) ** 0.5)


def coins(*shape, p=0.5, seed=0):
    return torch.rand(*shape, generator=generator(seed, "coins", *shape)) < p


@pytest.mark.parametrize("n", [1, 7, 100, 500, 10_000])
@pytest.mark.parametrize("share", [0, 0.01, 0.2, 0.5, 0.99, 1])
def test_wilson_equals_scipy(n, share):
    k = round(share * n)
    expected = stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
    low, high = wilson(k / n, n, z=stats.norm.ppf(0.975))
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= low <= k / n <= high <= 1


def test_wilson_is_exact_at_the_ends():
    "For every number of images: the plain formula misses 1 at 2,544 of them and 0 at 726, and an error bar would be negative"
    for n in range(1, 10_001):
        none, everything = wilson(0, n), wilson(1, n)
        assert none[0] == 0.0 and everything[1] == 1.0
        assert 0 < none[1] < 1 and 0 < everything[0] < 1
        assert none[1] == pytest.approx(1 - everything[0], abs=1e-12)


@pytest.mark.parametrize("z", [0.1, 1.0, 1.96, 3.3])
def test_wilson_is_exact_at_the_ends_at_every_level(z):
    for n in (1, 11, 48, 60, 100, 200, 500, 9_999):
        assert wilson(0.0, n, z)[0] == 0.0 and wilson(1.0, n, z)[1] == 1.0


@pytest.mark.parametrize("n", [1, 2, 48, 60, 500, 10_000])
def test_wilson_of_a_mean_over_models(n):
    "Shares that no whole number of images makes, as close to the ends as they come: the interval holds them, and grows with them"
    near = [10.0**-k for k in range(1, 17)]
    shares = sorted(
        {0.0, 1.0, *near, *(1 - p for p in near), *(k / 97 for k in range(98)), 1 / (3 * n), 1 - 1 / (3 * n)}
    )
    ends = [wilson(p, n) for p in shares]
    assert all(0 <= low <= p <= high <= 1 for p, (low, high) in zip(shares, ends))
    for side in zip(*ends):
        assert all(b - a >= -1e-12 for a, b in zip(side, side[1:]))


def test_wilson_takes_numbers_of_other_libraries():
    expected = wilson(0.25, 48)
    for p, n in (
        (np.float64(0.25), np.int64(48)),
        (np.float32(0.25), 48.0),
        (pd.Series([0.0, 0.5]).mean(), pd.Series([48]).iloc[0]),
    ):
        assert wilson(p, n) == expected and all(type(end) is float for end in wilson(p, n))
    assert wilson(1 + 1e-12, 48) == wilson(1, 48) and wilson(-1e-12, 48) == wilson(0, 48), (
        "rounding of a mean"
    )


@pytest.mark.parametrize(
    "p", [None, float("nan"), np.float64("nan"), pd.NA, float("inf"), -0.01, 1.01, 99.5, "0.5", True]
)
def test_wilson_of_nothing(p):
    with pytest.raises(InputError, match="p must be a share from 0 to 1.*leave out what was not measured"):
        wilson(p, 100)


@pytest.mark.parametrize("n", [0, -1, 0.5, float("nan"), float("inf"), None, "100"])
def test_wilson_on_no_images(n):
    with pytest.raises(InputError, match="a number of images, 1 or more"):
        wilson(0.5, n)


@pytest.mark.parametrize("n", [100, 500, 10_000])
def test_wilson_after_no_success_and_no_failure(n):
    low, high = wilson(0.0, n)
    assert low == 0 and high == pytest.approx(1.96**2 / (n + 1.96**2), rel=1e-12)
    assert wilson(1.0, n) == pytest.approx((1 - high, 1), abs=1e-12)
    assert high > stats.binomtest(0, n).proportion_ci().high > 0.9 * high


def test_drop_rate_at_its_edges():
    assert drop_rate(0.0, 0.0) is None
    assert (drop_rate(0.5, 0.5), drop_rate(0.5, 0.0), drop_rate(0.4, 0.1)) == (0, 1, pytest.approx(0.75))
    assert drop_rate(0.4, 0.5) == pytest.approx(-0.25)  # an attack that helped shows


@pytest.mark.parametrize("only_a, only_b", [(0, 0), (6, 0), (7, 0), (13, 2), (13, 4), (40, 20), (2, 13)])
def test_weaker_is_the_sign_test_of_scipy(only_a, only_b):
    a = torch.tensor([True] * only_a + [False] * only_b + [True, False] * 50)
    b = torch.tensor([False] * only_a + [True] * only_b + [True, False] * 50)
    p = stats.binomtest(only_a, only_a + only_b, alternative="greater").pvalue if only_a + only_b else 1.0
    for limit in (0.05, 0.01, 0.001):
        assert weaker(a, b, limit) == (p < limit)
    assert not (weaker(a, b) and weaker(b, a))


@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
@pytest.mark.parametrize("n", [2, 5, 30])
def test_spread_equals_scipy(n, level):
    values = torch.rand(n, generator=generator(n, "values"), dtype=torch.float64)
    s = student_interval(values, level=level)
    expected = stats.t.interval(level, n - 1, loc=np.mean(values.numpy()), scale=stats.sem(values.numpy()))
    assert (s.low, s.high) == pytest.approx(expected, abs=1e-12)
    assert (s.mean, s.sd, s.n, s.level) == (
        pytest.approx(np.mean(values.numpy())),
        pytest.approx(np.std(values.numpy(), ddof=1)),
        n,
        level,
    )
    assert (
        student_interval(values.tolist(), level=level) == student_interval(values.numpy(), level=level) == s
    )
    assert type(s.low) is float


def test_five_values_have_the_factor_of_student():
    s = student_interval([0.1, 0.2, 0.3, 0.4, 0.5])
    assert (
        s.high - s.mean
        == pytest.approx(2.776 / 5**0.5 * s.sd, rel=1e-3)
        == pytest.approx(1.24 * s.sd, rel=2e-3)
    )
    assert "0.3 ± 0.16" in str(s) and "95 %" in s._repr_markdown_()


@pytest.mark.parametrize("counts", [[5], [1] * 6, [60, 30, 10], [3, 0, 7]])
def test_redraw_has_the_moments_of_a_multinomial(counts):
    n, total = 20_000, sum(counts)
    drawn = redraw(torch.tensor(counts), n, generator(0, "moments"))
    assert torch.equal(drawn, drawn.round()) and (drawn.sum(1) == total).all()
    shares = drawn / total
    p = torch.tensor(counts, dtype=torch.float64) / total
    assert (drawn >= 0).all()
    torch.testing.assert_close(shares.mean(0), p, rtol=0, atol=0.01)
    torch.testing.assert_close(
        shares.T.cov().reshape(len(p), len(p)), (p.diag() - p[:, None] * p) / total, rtol=0, atol=0.04 / total
    )


def test_bootstrap_has_the_spread_of_the_loop_it_replaces():
    flags, g = world(5, 120, 0, between=0.4), generator(0, "loop")

    def pick(size):
        return torch.randint(size, (size,), generator=g)

    loop = torch.stack([flags[pick(5)][:, pick(120)].double().mean() for _ in range(4000)])
    (fast,) = redrawn_means([flags], 4000)
    assert fast.std() == pytest.approx(loop.std().item(), rel=0.05)
    assert fast.mean() == pytest.approx(loop.mean().item(), abs=0.004)
    assert stats.ks_2samp(loop.numpy(), fast.numpy()).pvalue > 0.001


def test_one_model_is_the_ordinary_bootstrap():
    flags = coins(1, 400, p=0.3)
    p = flags.double().mean().item()
    low, high = bootstrap_interval(flags, n=4000)
    assert (low, high) == pytest.approx(stats.binom(400, p).ppf([0.025, 0.975]) / 400, abs=0.006)


@pytest.mark.parametrize(
    "between, skill, lowest, highest",
    [(0.05, 0.0, 0.93, 1.0), (0.1, -0.8, 0.91, 0.995), (0.4, 0.0, 0.78, 0.92)],
)
def test_coverage(between, skill, lowest, highest):
    "300 worlds of known truth; where five models differ more than images do, a percentile interval is known to be too narrow"
    target, repeats = truth(between=between, skill=skill), 300
    covered = {"bootstrap": 0, "all flags": 0}
    for s in range(repeats):
        flags = world(5, 200, s, between=between, skill=skill)
        low, high = bootstrap_interval(flags, n=400, seed=s)
        covered["bootstrap"] += low <= target <= high
        low, high = wilson(flags.double().mean().item(), flags.numel())
        covered["all flags"] += low <= target <= high
    assert lowest <= covered["bootstrap"] / repeats <= highest
    assert covered["all flags"] / repeats < min(0.85, covered["bootstrap"] / repeats - 0.1)


def test_higher_levels_contain_lower_ones():
    flags = world(5, 200, 1)
    ends = [bootstrap_interval(flags, level=level) for level in (0.5, 0.9, 0.95, 0.99)]
    assert all(b[0] <= a[0] <= a[1] <= b[1] for a, b in zip(ends, ends[1:])) and ends[0] != ends[-1]


@pytest.mark.parametrize("models", range(1, 12))
@pytest.mark.parametrize("images", [1, 3, 48, 60, 500])
def test_flags_that_never_vary_have_no_interval(models, images):
    "Exactly: seven models that get all right had 0.9999999999999998 as their lower end"
    right = torch.ones(models, images, dtype=torch.bool)
    assert bootstrap_interval(right, n=100) == (1.0, 1.0)
    assert bootstrap_interval(~right, n=100) == (0.0, 0.0)
    for flags in (right, ~right):
        verdict = compare(flags, flags[:1].repeat(models % 5 + 1, 1), n=100)
        assert (verdict.low, verdict.high, verdict.clear) == (0.0, 0.0, False)


def test_an_interval_stays_between_none_and_all():
    for seed, p in enumerate((0.002, 0.02, 0.98, 0.998)):
        low, high = bootstrap_interval(coins(3, 60, p=p, seed=seed), n=200)
        assert 0 <= low <= high <= 1


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1])
def test_a_spread_of_equal_values(value):
    for n in (2, 3, 7, 48):
        s = student_interval([value] * n)
        assert (s.low, s.mean, s.high) == pytest.approx((value,) * 3, abs=1e-15) and s.low <= s.mean <= s.high


def test_order_of_images_and_global_state_do_not_matter():
    a, b = world(5, 150, 2), world(4, 150, 2, skill=0.1)
    order = torch.randperm(150, generator=generator(0, "order"))
    before = torch.get_rng_state()
    assert (
        bootstrap_interval(a[:, order], seed=3)
        == bootstrap_interval(a, seed=3)
        != bootstrap_interval(a, seed=4)
    )
    shuffled, c = compare(a[:, order], b[:, order]), compare(a, b)
    assert (shuffled.low, shuffled.high) == (c.low, c.high)
    assert (shuffled.difference, shuffled.only_a, shuffled.only_b) == pytest.approx(
        (c.difference, c.only_a, c.only_b), abs=1e-12
    )
    assert torch.equal(torch.get_rng_state(), before)


def test_order_within_one_method_alone_does_matter():
    "Pairing: the same flags on images in another order are another comparison, with a wider interval"
    a, b = world(10, 400, 5, between=0.02).split(5)
    order = torch.randperm(400, generator=generator(0, "order"))
    paired, broken = compare(a, b), compare(a, b[:, order])
    assert paired.difference == pytest.approx(broken.difference, abs=1e-12)
    assert broken.high - broken.low > 1.3 * (paired.high - paired.low)


def test_a_method_does_not_differ_from_itself():
    several, one = world(5, 200, 0), world(1, 200, 0)
    c = compare(several, several)
    assert c.difference == 0 and c.low < 0 < c.high and not c.clear and c.only_a == pytest.approx(c.only_b)
    c = compare(one, one)
    assert (c.difference, c.low, c.high, c.only_a, c.only_b) == (0, 0, 0, 0, 0)


def test_swapped_methods_have_the_opposite_difference():
    a, b = world(5, 300, 1, skill=0.3), world(7, 300, 1)
    c, d = compare(a, b, n=4000), compare(b, a, n=4000)
    assert (c.a, c.b, c.only_a, c.only_b, c.models) == (
        d.b,
        d.a,
        pytest.approx(d.only_b),
        pytest.approx(d.only_a),
        (5, 7),
    )
    assert c.difference == -d.difference == pytest.approx(c.only_a - c.only_b, abs=1e-12)
    assert (c.low, c.high) == pytest.approx((-d.high, -d.low), abs=0.01)


def test_discordant_shares_by_counting():
    a, b = coins(3, 40, seed=1), coins(2, 40, seed=2)
    c = compare(a, b)
    assert c.only_a == pytest.approx(np.mean([(x & ~y).double().mean().item() for x in a for y in b]))
    assert c.only_b == pytest.approx(np.mean([(y & ~x).double().mean().item() for x in a for y in b]))


def test_two_single_models_agree_with_the_normal_approximation():
    a, b = coins(1, 1000, p=0.6, seed=3), coins(1, 1000, p=0.5, seed=4)
    c = compare(a, b, n=4000)
    half = 1.96 * ((a.double() - b.double()).var().item() / 1000) ** 0.5
    assert (c.low, c.high) == pytest.approx((c.difference - half, c.difference + half), abs=0.005)


@pytest.mark.parametrize("gap, least, most", [(0.0, 0.0, 0.07), (0.3, 0.85, 1.0)])
def test_false_alarms_and_power(gap, least, most):
    skill = torch.tensor([[gap]] * 5 + [[0.0]] * 5)
    clear = [compare(*world(10, 200, s, skill=skill).split(5), n=400, seed=s).clear for s in range(150)]
    assert least <= np.mean(clear) <= most


def test_a_comparison_can_be_read():
    c = compare(coins(5, 100, p=0.9), coins(3, 100, p=0.2, seed=1), level=0.999)
    assert (
        c.clear
        and "with 5 models against" in repr(c)
        and "on 100 images" in repr(c)
        and "99.9 % interval" in repr(c)
        and "**" not in repr(c)
    )
    assert c._repr_markdown_().replace("**", "") == repr(c) == str(c)


def test_carried_is_the_conjunction_of_all_smaller_eps():
    flags = coins(6, 200, p=0.8)
    c = carry_over_eps(flags)
    assert c.dtype == torch.bool and c.shape == flags.shape and torch.equal(c[0], flags[0])
    for k in range(6):
        assert torch.equal(c[k], flags[: k + 1].all(0))
    assert (c[1:] <= c[:-1]).all() and (c <= flags).all() and torch.equal(carry_over_eps(c), c)
    assert torch.equal(flags, coins(6, 200, p=0.8))  # the caller's flags are left alone


def test_carried_changes_nothing_that_falls_already():
    radius = torch.rand(50, generator=generator(0, "radius"))
    flags = torch.linspace(0, 1, 9)[:, None] <= radius
    assert torch.equal(carry_over_eps(flags), flags)


GOOD = torch.ones(2, 10, dtype=torch.bool)


@pytest.mark.parametrize(
    "bad, says",
    [
        (GOOD.float(), "float32"),
        (GOOD.long(), "int64"),
        (GOOD.numpy(), "bool tensor"),
        ([[True]], "list"),
        (None, "NoneType"),
        (GOOD[0], r"flags\[None\]"),
        (GOOD[None], r"shape \[1, 2, 10\]"),
        (GOOD[:0], "nothing to count"),
        (GOOD[:, :0], "nothing to count"),
    ],
)
def test_what_are_no_flags(bad, says):
    for f in (
        bootstrap_interval,
        carry_over_eps,
        lambda x: compare(x, GOOD),
        lambda x: compare(GOOD, x),
        lambda x: check_flags("flags", x),
    ):
        with pytest.raises(InputError, match=says):
            f(bad)


def test_other_bad_input():
    with pytest.raises(InputError, match="a has 10 images and b has 9"):
        compare(GOOD, GOOD[:, :9])
    for f in (
        lambda **o: bootstrap_interval(GOOD, **o),
        lambda **o: compare(GOOD, GOOD, **o),
        lambda **o: student_interval([1, 2], **o),
    ):
        for level in (0, 1, 95, "0.95", True, float("nan")):
            with pytest.raises(InputError, match="level must be between 0 and 1"):
                f(level=level)
    for n in (0, 99, 1e3, True):
        with pytest.raises(InputError, match="n must be a whole number from 100"):
            bootstrap_interval(GOOD, n=n)
        with pytest.raises(InputError, match="n must be a whole number from 100"):
            compare(GOOD, GOOD, n=n)
    for values in (
        [],
        [0.5],
        [0.5, None],
        [0.5, float("nan")],
        0.5,
        "ab",
        [[1, 2], [3, 4]],
        torch.ones(2, 2),
    ):
        with pytest.raises(InputError, match="at least two finite numbers"):
            student_interval(values)

"What networks see of a spectrum: bands, waves and perturbations, against models whose answers can be worked out by hand."

import pytest
import torch
from torch import nn

from ddrobust_nb.attacks.attack import AttackConfig
from ddrobust_nb.foundations.core import InputError
from ddrobust_nb.foundations.data import as_pixels
from ddrobust_nb.frequency.models import (
    ask_model,
    band_accuracy,
    fourier_heat_map,
    side_frequencies,
    mirror_frequency,
    perturbation_share,
    perturbations,
    plot_bands,
    plot_heat_map,
    plot_perturbations,
    wave,
    wave_signs,
)
from ddrobust_nb.frequency.spectra import band_share, split_bands
from ddrobust_nb.foundations.networks import make_network
from ddrobust_nb.training.fit import Recipe, fit
from tiny import NETWORK, global_randomness, tiny_data

SIZES = [(8, 8), (7, 7), (8, 11), (9, 6)]


@pytest.fixture(scope="module")
def data():
    return tiny_data(tests=9)


@pytest.fixture(scope="module")
def net(data):
    return fit(data, network=NETWORK, recipe=Recipe(epochs=15, batch=8, lr=0.05, check_every=0), device="cpu")


class Brightness(nn.Module):
    "Sees nothing but the mean of an image: class 1 above the middle"

    def forward(self, x):
        m = x.mean((1, 2, 3)) - 0.5
        return torch.stack([-m, m], 1)


class Linear(nn.Module):
    "Class 1 where the weights find more than nothing in an image; the weights are no parameter"

    def __init__(self, w):
        super().__init__()
        self.w = w

    def forward(self, x):
        m = ((x - 0.5) * self.w).sum((1, 2, 3))
        return torch.stack([-m, m], 1)


def grey(n=6, channels=1, size=(8, 8)):
    "Dark and bright noise, and which is which"
    y = torch.arange(n) % 2
    x = torch.rand(n, channels, *size, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.6 * y.view(
        -1, 1, 1, 1
    )
    return x, y


# ---- bands


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 3])
def test_who_sees_only_the_mean_needs_only_low_frequencies(size, channels):
    x, y = grey(10, channels, size)
    bands = band_accuracy(Brightness().eval(), x, y, [1, 2, 3])
    assert (bands["whole"] == 1).all() and (bands["low"] == 1).all() and (bands["flipped low"] == 0).all()
    assert (bands["high"] == 0.5).all() and (bands["flipped high"] == 0.5).all(), (
        "a high part has mean 0: all are dark"
    )
    assert (
        bands["rho"].tolist() == [round(2 * r / min(size), 4) for r in (1, 2, 3)]
        and (bands["images"] == 10).all()
    )


def test_bands_are_those_of_the_split(data, net):
    x, y = data.test_images, data.test_labels
    with torch.no_grad():
        whole = net(as_pixels(x)).argmax(1)
        for clip in (False, True):
            bands = band_accuracy(net, x, y, [1, 2.5], clip=clip)
            for r, row in zip((1, 2.5), bands.to_dict("records")):
                for part, name in zip(split_bands(x, r), ("low", "high")):
                    p = net((part.clamp(0, 1) if clip else part).float()).argmax(1)
                    assert (
                        row[name] == (p == y).double().mean().item()
                        and row[f"flipped {name}"] == (p != whole).double().mean().item()
                    )
                assert row["whole"] == (whole == y).double().mean().item() and row["parts"] == (
                    "clipped" if clip else "not clipped"
                )


def test_default_radii_keep_their_ratio(data, net):
    assert band_accuracy(net, data.test_images, data.test_labels)["radius"].tolist() == [1, 2, 3, 4], (
        "4, 8, 12, 16 of 32 px at 8 px"
    )


# ---- waves


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("norm", [0.5, 4])
def test_waves_are_real_of_the_norm_asked_and_one_frequency(size, norm):
    h, w = size
    for f in [(u, v) for u in side_frequencies(h) for v in side_frequencies(w)]:
        x = wave(h, w, *f, norm)
        assert x.dtype == torch.float64 and abs(x.norm().item() - norm) < 1e-12
        assert (x - wave(h, w, *mirror_frequency(f, h, w), norm)).abs().max() < 1e-12
        power = torch.fft.fft2(x).abs().square()
        here = {(f[0] % h, f[1] % w), (-f[0] % h, -f[1] % w)}
        assert {tuple(i.tolist()) for i in (power > 1e-9 * power.max()).nonzero()} == here


@pytest.mark.parametrize("size", [7, 8, 9, 32])
def test_frequencies_and_their_mirror_images(size):
    assert side_frequencies(size) == sorted(torch.fft.fftfreq(size).mul(size).round().int().tolist())
    for step in (1, 2, 3):
        some = side_frequencies(size, step)
        assert some[len(some) // 2] == 0 and all(k % step == 0 for k in some)
        for k in some:
            assert mirror_frequency((k, 0), size, size)[0] in some and mirror_frequency(
                mirror_frequency((k, 0), size, size), size, size
            ) == (k, 0)


@pytest.mark.parametrize("size, channels, clip", [((8, 8), 1, False), ((7, 9), 2, False), ((8, 7), 3, True)])
def test_the_map_of_a_linear_model_can_be_worked_out(size, channels, clip):
    "The margin of an image grows by the sum over channels of sign x <weights, wave>: whoever is pushed over the border is wrong"
    h, w = size
    x, _ = grey(8, channels, size)
    weights = torch.randn(channels, h, w, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    margin = ((x.double() - 0.5) * weights).sum((1, 2, 3))
    y = (margin > 0).long()
    found = fourier_heat_map(Linear(weights.float()).eval(), x, y, norm=2.0, seed=5, clip=clip)
    assert found.error.shape == size and found.clean == 0 and found.down[h // 2] == found.across[w // 2] == 0
    for i, j in [(i, j) for i in range(h) for j in range(w)]:
        f = min(
            (found.down[i], found.across[j]), mirror_frequency((found.down[i], found.across[j]), h, w)
        )  # of two mirrored ones, the one that is asked
        signs, added = wave_signs(8, channels, *f, 5), wave(h, w, *f, 2.0)
        if clip:
            after = (((x.double() + signs * added).clamp(0, 1) - 0.5) * weights).sum((1, 2, 3))
        else:
            after = margin + (signs[..., 0, 0] * (weights * added).sum((1, 2))).sum(1)
        assert found.error[i, j] == ((after > 0).long() != y).double().mean().item(), f
    assert 0 < found.error.mean() < 0.6, "some are pushed over, so that the test can fail"


def test_a_coarse_map_is_part_of_the_fine_one(data, net):
    x, y = data.test_images, data.test_labels
    fine, coarse = (fourier_heat_map(net, x, y, 1.0, step=s) for s in (1, 2))
    rows = [fine.down.index(u) for u in coarse.down]
    assert torch.equal(fine.error[rows][:, rows], coarse.error) and coarse.settings["step"] == 2
    assert torch.equal(fine.error[1:, 1:], fine.error[1:, 1:].flip(0, 1)) and fine.error.std() > 0


def test_constant_waves_change_brightness():
    "At the zero frequency a wave of norm v is v / sqrt(pixels) everywhere"
    x = torch.full((40, 1, 8, 8), 0.6)
    for norm, wrong in ((0.1 * 8 - 1e-3, False), (0.1 * 8 + 1e-3, True)):
        error = fourier_heat_map(Brightness().eval(), x, torch.ones(40, dtype=torch.int64), norm).error
        assert (error[4, 4] > 0) == wrong and 0 < wave_signs(40, 1, 0, 0).eq(1).sum() < 40
        assert error.sum() == error[4, 4], "no other wave has a mean"


# ---- perturbations


def test_perturbations_are_what_attacks_add(data, net):
    x, y = as_pixels(data.test_images), data.test_labels
    y = torch.where(
        torch.arange(len(y)) < 5, (net(x).argmax(1) + 1) % 3, net(x).argmax(1)
    )  # five are wrong already
    changes = perturbations(net, data.test_images, y, "fgsm@8/255,pgd@8/255@3", seed=2)
    assert list(changes) == ["fgsm@8/255", "pgd@8/255@3"]
    for c in changes.values():
        assert c.abs().max() <= 8 / 255 + 1e-6 and not c[:5].any() and c[5:].flatten(1).any(1).all()
    assert torch.equal(
        changes["pgd@8/255@3"],
        perturbations(net, x, y, [AttackConfig("pgd", "8/255", 3)], seed=2)["pgd@8/255@3"],
    )
    for dc in (True, False):
        shares = perturbation_share(changes, 2, dc=dc)
        for row, c in zip(shares.to_dict("records"), changes.values()):
            assert row["high"] == band_share(c[5:], 2, dc=dc).high and row["images"] == len(y) - 5
            assert (
                row["from"] <= row["high"] <= row["to"]
                and row["zero frequency"] == ("kept" if dc else "removed")
                and row["radius"] == 2
            )


# ---- the same for all

ASKED = [
    lambda m, x, y, **o: band_accuracy(m, x, y, [2], **o),
    lambda m, x, y, **o: fourier_heat_map(m, x, y, 1.0, step=2, **o),
]


@pytest.mark.parametrize("ask", ASKED)
def test_batches_do_not_matter(ask, data, net):
    answers = [ask(net.double(), data.test_images, data.test_labels, batch=b) for b in (1, 5, 27, 500)]
    net.float()

    def same(a, b):
        if hasattr(a, "error"):
            return torch.equal(a.error, b.error) and a.clean == b.clean
        return a.equals(b)

    assert all(same(answers[0], a) for a in answers[1:])
    assert same(
        ask(net, data.test_images, data.test_labels), ask(net, as_pixels(data.test_images), data.test_labels)
    ), "bytes and floats"


@pytest.mark.parametrize("ask", [*ASKED, lambda m, x, y: perturbations(m, x, y, "fgsm@8/255")])
def test_nothing_is_left_behind(ask, data):
    net = make_network("ResNet18-w4", data.spec).eval()
    x, before = data.test_images.clone(), {k: v.clone() for k, v in net.state_dict().items()}
    random, wanted = global_randomness(), [p.requires_grad for p in net.parameters()]
    ask(net, x, data.test_labels)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items()) and torch.equal(
        x, data.test_images
    )
    assert [p.requires_grad for p in net.parameters()] == wanted and all(
        p.grad is None for p in net.parameters()
    )
    assert (
        not any(m.training for m in net.modules())
        and global_randomness() == random
        and torch.is_grad_enabled()
    )


@pytest.mark.parametrize("ask", ASKED)
@pytest.mark.parametrize(
    "change, says",
    [
        (lambda m, x, y: (m, x[0], y), "n,C,H,W"),
        (lambda m, x, y: (m, x[:0], y[:0]), "at least one image"),
        (lambda m, x, y: (m, x, y[:3]), "need labels of shape"),
        (lambda m, x, y: (m, x, y + 9), "labels must lie below 3"),
        (lambda m, x, y: (m, x, y.float()), "whole numbers"),
        (lambda m, x, y: (m, x.int(), y), "uint8 or floats"),
        (lambda m, x, y: (m, x / torch.zeros(()), y), "NaN or infinite"),
        (lambda m, x, y: (m, x[:, :1], y), "do not have 3 channels"),
        (lambda m, x, y: (len, x, y), "torch module"),
        (lambda m, x, y: (nn.Flatten(0).eval(), x, y), "finite logits"),
        (lambda m, x, y: (nn.Sequential(m, nn.Dropout()), x, y), "training mode"),
        (lambda m, x, y: (m, None, y), "got shape"),
    ],
)
def test_bad_input(ask, change, says, data, net):
    with pytest.raises(InputError, match=says):
        ask(*change(net, data.test_images, data.test_labels))


@pytest.mark.parametrize("ask", ASKED)
def test_bad_batches(ask, data, net):
    for bad in (0, -1, 2.5, True):
        with pytest.raises(InputError, match="batch must be"):
            ask(net, data.test_images, data.test_labels, batch=bad)


@pytest.mark.parametrize("radii", [4, "4", [], [0], [99], [-1], [float("nan")], ["4"], [True]])
def test_bad_radii(radii, data, net):
    with pytest.raises(InputError, match="radi"):
        band_accuracy(net, data.test_images, data.test_labels, radii)


@pytest.mark.parametrize("norm", [0, -2, float("inf"), float("nan"), "4", None, True])
def test_bad_norms(norm, data, net):
    with pytest.raises(InputError, match="norm must be"):
        fourier_heat_map(net, data.test_images, data.test_labels, norm)


def test_an_error_inside_leaves_nothing_behind(data, net):
    wanted = [p.requires_grad for p in net.parameters()]
    with pytest.raises(KeyError):
        with ask_model(net, data.test_images, data.test_labels):
            raise KeyError
    assert torch.is_grad_enabled() and [p.requires_grad for p in net.parameters()] == wanted


def test_pictures(data, net):
    x, y = data.test_images, data.test_labels
    assert len(plot_bands({"a": band_accuracy(net, x, y), "b": band_accuracy(net, x, y)}).axes) == 2
    heat = fourier_heat_map(net, x, y, step=2)
    assert len(plot_heat_map({"a": heat, "b": heat}).axes) == 3 and len(plot_heat_map(heat).axes) == 2
    assert (
        len(
            plot_perturbations(
                perturbations(net, x, net(as_pixels(x)).argmax(1), "fgsm@8/255,pgd@8/255@2")
            ).axes
        )
        == 3
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_sees_the_same(data, net):
    import copy

    there = copy.deepcopy(net).cuda()
    x, y = data.test_images, data.test_labels
    assert band_accuracy(net, x, y).equals(band_accuracy(there, x, y))
    assert (
        fourier_heat_map(net, x, y, 1.0).error - fourier_heat_map(there, x, y, 1.0).error
    ).abs().max() <= 1 / len(y) + 1e-9

"The band split and its energies against the published helper (HaohanWang/HFC), and what holds for every size and radius."

import pytest
import torch

from ddrobust_nb.foundations.core import InputError, generator
from ddrobust_nb.foundations.bands import frequency_distances, low_mask
from ddrobust_nb.foundations.data import test_subset as subset
from ddrobust_nb.foundations.datasets import load_data
from ddrobust_nb.frequency.spectra import (
    band_energy,
    band_share,
    spectral_slope,
    log_spectrum,
    split_bands,
    radial_profile,
    show_spectra,
    spectrum,
)

RADII, TOLERANCE = (4, 8, 12), 1e-6  # the fixture's images are stored as float32


@pytest.mark.parametrize("r", RADII)
def test_mask_and_parts_equal_the_published_ones(golden, r):
    g = golden("frequency")
    assert torch.equal(low_mask(32, 32, r), g[f"r{r}.mask"].bool())
    for ours, name in zip(split_bands(g["images"], r), ("low", "high")):
        torch.testing.assert_close(ours, g[f"r{r}.{name}"].double(), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("r", RADII)
def test_energy_ratios_equal_the_published_ones(golden, r):
    g = golden("frequency")
    for dc, suffix in ((True, ""), (False, "_nodc")):
        expected = g[f"r{r}.energy_low_ratio{suffix}"]
        energy = band_energy(g["images"], r, dc=dc)
        torch.testing.assert_close(energy[:, 0] / energy[:, 1], expected, rtol=0, atol=TOLERANCE)
        share = band_share(g["images"], r, dc=dc)
        torch.testing.assert_close(1 - share.per_image, expected, rtol=0, atol=TOLERANCE)
        assert share.low == pytest.approx(expected.mean().item(), abs=TOLERANCE)
        assert share.low + share.high == pytest.approx(1, abs=1e-15)
    channels = torch.stack([1 - band_share(g["images"][:, c : c + 1], r).per_image for c in range(3)], 1)
    torch.testing.assert_close(channels, g[f"r{r}.energy_low_ratio_channel"], rtol=0, atol=TOLERANCE)


def test_the_default_is_radius_4_at_32_pixels(golden):
    images = golden("frequency")["images"]
    assert torch.equal(split_bands(images)[0], split_bands(images, 4)[0])
    assert band_share(images).settings["radius"] == 4 and band_share(images).settings["rho"] == 0.25


def draw(*shape):
    return torch.rand(*shape, generator=generator(0, "test", *shape), dtype=torch.float64)


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (31, 33), (32, 48), (64, 64)])
@pytest.mark.parametrize("rho", [0.1, 0.25, 0.7, 1.2])
def test_split_and_parseval_at_every_size(size, rho):
    h, w = size
    x, r = draw(4, 3, h, w) * 3 - 1, rho * min(size) / 2  # floats outside [0,1] are not clipped
    low, high = split_bands(x, r)
    assert (low + high - x).abs().max() < 1e-10
    rest = torch.fft.ifft2(torch.fft.ifftshift(spectrum(x) * ~low_mask(h, w, r), dim=(-2, -1)))
    assert rest.imag.abs().max() < 1e-12 and (rest.real - high).abs().max() < 1e-12
    energy = band_energy(x, r) / (h * w)
    torch.testing.assert_close(energy[:, 1], x.square().sum((1, 2, 3)), rtol=1e-12, atol=0)
    torch.testing.assert_close(energy[:, 0], low.square().sum((1, 2, 3)), rtol=1e-12, atol=0)
    again = split_bands(low, r)[0]
    assert (again - low).abs().max() < 1e-12


def test_white_noise_has_the_share_of_the_disk_area():
    noise = torch.randn(1000, 3, 32, 32, generator=generator(0, "white"), dtype=torch.float64)
    for r in (4, 8, 12, 16):
        assert band_share(noise, r, dc=True).low == pytest.approx(
            low_mask(32, 32, r).sum().item() / 1024, abs=2e-3
        )


@pytest.mark.parametrize("value", [1e-3, 0.3, 1, 255])
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("size", [28, 31, 32, 64])
def test_a_constant_image_has_share_1_or_none(value, power, size):
    x = torch.full((2, 3, size, size), float(value))
    assert band_share(x, power=power).low == pytest.approx(1, abs=1e-9)
    without = band_share(x, power=power, dc=False)
    assert without.low != without.low and without.per_image.isnan().all()


def test_one_grey_level_in_one_pixel_still_counts():
    x = torch.full((1, 3, 64, 64), 255, dtype=torch.uint8)
    x[0, 0, 5, 7] = 254
    share = band_share(x, dc=False, power=2)
    area = low_mask(64, 64).sum().item() - 1
    assert share.low == pytest.approx(area / (64 * 64 - 1), abs=1e-6)


def test_scale_does_not_matter_and_the_global_state_is_untouched():
    x, before = draw(20, 3, 32, 32), torch.get_rng_state()
    a, b = band_share(x, seed=3), band_share(100 * x, seed=3)
    assert a.high == pytest.approx(b.high, rel=1e-12) and a.interval == pytest.approx(b.interval, rel=1e-12)
    assert torch.equal(torch.get_rng_state(), before)
    assert a.interval[0] < a.high < a.interval[1] and band_share(x, seed=4).interval != a.interval


def test_options_against_plain_formulas():
    x = draw(5, 3, 32, 32)
    P = torch.fft.fftshift(torch.fft.fft2(x), dim=(-2, -1)).abs().square()
    mask = low_mask(32, 32, 6)
    low, total = P[..., mask].sum((1, 2)), P.sum((1, 2, 3))
    assert band_share(x, 6).low == pytest.approx((low / total).mean().item())
    assert band_share(x, 6, pooled=True).low == pytest.approx((low.sum() / total.sum()).item())
    A = P.sqrt()
    assert band_share(x, 6, power=1).low == pytest.approx(
        (A[..., mask].sum((1, 2)) / A.sum((1, 2, 3))).mean().item()
    )
    luminance = (0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2])[:, None]
    assert band_share(x, 6, grey=True).low == pytest.approx(band_share(luminance, 6).low)
    mean, std = [0.4, 0.5, 0.6], [0.1, 0.2, 0.3]
    z = (x - torch.tensor(mean).view(3, 1, 1).double()) / torch.tensor(std).view(3, 1, 1).double()
    assert band_share(x, 6, normalise=(mean, std)).low == pytest.approx(band_share(z, 6).low, rel=1e-6)


def test_batches_do_not_change_the_result():
    x = draw(1100, 1, 8, 8)
    torch.testing.assert_close(log_spectrum(x), (spectrum(x).abs().square().mean(0) + 1e-12).log10())
    torch.testing.assert_close(band_share(x, 2).per_image[1050], band_share(x[1050:1051], 2).per_image[0])


@pytest.mark.parametrize("f", [spectrum, log_spectrum, split_bands, band_energy, band_share, show_spectra])
@pytest.mark.parametrize(
    "bad, message",
    [
        (torch.rand(3, 32, 32), "images\\[None\\]"),
        (torch.rand(0, 3, 32, 32), "at least one image"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int64), "uint8 or floats"),
        (torch.full((2, 1, 8, 8), torch.nan), "in 2 of 2 images"),
        (torch.full((1, 1, 8, 8), torch.inf), "NaN or infinite"),
    ],
)
def test_bad_images_are_refused_everywhere(f, bad, message):
    with pytest.raises(InputError, match=message):
        f(bad)


@pytest.mark.parametrize("f", [split_bands, band_energy, band_share])
@pytest.mark.parametrize("radius", [0, -1, 23, float("inf"), float("nan"), "4", True])
def test_bad_radii_are_refused_everywhere(f, radius):
    with pytest.raises(InputError, match="radius must be above 0"):
        f(draw(1, 1, 32, 32), radius)


def test_uint8_is_scaled_and_floats_are_not():
    x = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    for a, b in zip(split_bands(x, 3), split_bands(x.double() / 255, 3)):
        torch.testing.assert_close(a, b)


def test_the_figure_has_a_row_per_image_and_the_mean():
    figure = show_spectra(draw(5, 3, 32, 32), n=2)
    assert len(figure.axes) == 3 * 4 + 1  # and the colour bar
    assert len(show_spectra(draw(1, 1, 8, 8), n=9).axes) == 2 * 2 + 1


SHARES = {
    "pixels, power, zero frequency kept": (0.042, {}),
    "zero frequency removed": (0.270, dict(dc=False)),
    "pooled": (0.243, dict(pooled=True, dc=False)),
    "normalised": (0.192, "normalise"),
    "grey": (0.281, dict(grey=True, dc=False)),
    "amplitude": (0.695, dict(power=1, dc=False)),
}


@pytest.mark.parametrize("name", SHARES)
def test_the_measured_shares_of_real_photographs(data_root, name):
    "Published orientation values on 2,000 CIFAR-10 images, within a tenth; pooled and grey are those without the zero frequency"
    if not (data_root / "cifar10").is_dir():
        pytest.skip("no unpacked CIFAR-10")
    data, (want, options) = load_data("cifar10", data_root), SHARES[name]
    if options == "normalise":
        options = dict(normalise=(data.spec.mean, data.spec.std))
    assert band_share(data.test_images[subset(data, 2000, seed=0)], **options).high == pytest.approx(
        want, rel=0.1
    )


def test_fifty_thousand_images_are_read_in_parts():
    class Lazy:
        shape, asked = torch.Size((50000, 3, 32, 32)), []

        def __len__(self):
            return 50000

        def __getitem__(self, i):
            self.asked.append(i.stop - i.start)
            return draw(2, 3, 32, 32)

    lazy = Lazy()
    assert band_share(lazy).settings["images"] == 2 * len(lazy.asked) and max(lazy.asked) <= 2000


@pytest.mark.parametrize("size", [8, 9, 28, 32])
def test_profile_of_noise_and_of_one_wave(size):
    flat = radial_profile(
        torch.randn(400, 1, size, size, generator=generator(0, "profile", size), dtype=torch.float64)
    )
    assert len(flat) == size // 2 + 1 and abs(spectral_slope(flat)) < 0.1
    wave = (2 * torch.pi * 2 * torch.arange(size) / size).cos().expand(1, 1, size, size)
    assert radial_profile(wave).argmax() == 2
    torch.testing.assert_close(
        radial_profile(wave)[2] * int((frequency_distances(size, size).round() == 2).sum()),
        spectrum(wave).abs().square().sum(),
    )

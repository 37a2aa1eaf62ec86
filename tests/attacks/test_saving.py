"Adversarial images in files: exact as floats, within eps as pictures."

from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ddrobust_nb.attacks.attack import write_size
from ddrobust_nb.attacks.saving import round_within, save_adversarial
from ddrobust_nb.foundations.core import InputError


def images(n=3, channels=3, seed=0):
    "Random images of whole grey levels"
    g = torch.Generator().manual_seed(seed)
    return torch.randint(256, (n, channels, 6, 6), generator=g).float() / 255


@pytest.mark.parametrize("eps", ["0.5/255", "0.7/255", "1/255", "2/255", "2.7/255", "8/255", "1"])
def test_bytes_are_within_eps_and_as_near_as_that_allows(eps):
    x = images()
    levels = float(Fraction(write_size("eps", eps)) * 255)
    adv = (x + (2 * torch.rand(x.shape) - 1) * levels / 255).clamp(0, 1)
    found = round_within(adv, x, eps).double()
    assert (found - x.double() * 255).abs().max() <= levels + 1e-3
    assert (found - adv.double() * 255).abs().max() <= max(0.5, levels % 1) + 1e-3


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_written_is_read(tmp_path, channels):
    x = images(channels=channels)
    adv = (x + 4 / 255).clamp(max=1)
    y = torch.tensor([2, 0, 2])
    folder = save_adversarial(
        adv.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2), x, y, tmp_path, "4/255"
    )
    kept = load_file(folder / "adversarial.safetensors")
    assert (
        torch.equal(kept["images"], adv)
        and torch.equal(kept["original"], x)
        and torch.equal(kept["labels"], y)
    )
    picture = np.asarray(Image.open(folder / "002" / "000002.png"))
    expected = (adv[2] * 255).round().byte().permute(1, 2, 0).squeeze(-1).numpy()
    assert np.array_equal(picture, expected)


def test_images_that_left_the_ball_are_refused(tmp_path):
    x = images()
    with pytest.raises(InputError, match="more than eps"):
        save_adversarial((x + 5 / 255).clamp(max=1), x, torch.zeros(3).long(), tmp_path / "new", "4/255")
    assert not (tmp_path / "new").exists()

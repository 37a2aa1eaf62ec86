"Augmentations against golden numbers of the original programs, and the properties distillation relies on."

import math

import pytest
import torch

from ddrobust_nb.foundations.augment import (
    apply_dsa,
    brightness,
    categories,
    contrast,
    crop,
    cutout,
    draw_dsa,
    augment_dsa,
    flip,
    operations,
    parse_strategy,
    rotate,
    saturation,
    scale,
    strategy_for,
)
from ddrobust_nb.foundations.core import InputError, generator
from ddrobust_nb.foundations.networks import ConvNet

FULL = "color_crop_cutout_flip_scale_rotate"
OPS = {  # golden key: (function, names of its parameters, further options, tolerance)
    "brightness": (brightness, ["shift"], {}, 1e-6),
    "saturation": (saturation, ["factor"], {}, 1e-6),
    "contrast": (contrast, ["factor"], {}, 1e-6),
    "crop": (crop, ["shift_row", "shift_col"], {}, 1e-6),
    "cutout": (cutout, ["center_row", "center_col", "size"], {}, 1e-6),
    "flip": (flip, ["flipped"], {}, 1e-6),
    "scale_ac0": (scale, ["sx", "sy"], {}, 2e-5),
    "scale_ac1": (scale, ["sx", "sy"], {"align_corners": True}, 2e-5),
    "rotate_ac0": (rotate, ["theta"], {}, 2e-5),
    "rotate_ac1": (rotate, ["theta"], {"align_corners": True}, 2e-5),
}


def numbers(g, key, names):
    return [g[f"{key}.{n}"].item() if n == "size" else g[f"{key}.{n}"] for n in names]


@pytest.mark.parametrize("key", OPS)
def test_output_and_gradient_are_the_original_ones(golden, key):
    g, (op, names, options, tolerance) = golden("dsa_ops"), OPS[key]
    x = g["x"].requires_grad_()
    y = op(x, *numbers(g, key, names), **options)
    torch.testing.assert_close(y, g[f"{key}.y"], atol=tolerance, rtol=0)
    (grad,) = torch.autograd.grad(y, x, g["cotangent"])
    torch.testing.assert_close(grad, g[f"{key}.grad_x"], atol=tolerance, rtol=0)


@pytest.mark.parametrize("key", ["crop", "cutout"])
def test_28_pixels(golden, key):
    g, (op, names, _, tolerance) = golden("dsa_ops"), OPS[key]
    torch.testing.assert_close(
        op(g["x28"], *numbers(g, f"{key}28", names)), g[f"{key}28.y"], atol=tolerance, rtol=0
    )


def original_draws(seed, n):
    "The original program's siamese draws: it seeds the global state with seed, seed + 1, ... before each of them"

    def drawn(f):
        nonlocal seed
        torch.manual_seed(seed)
        seed += 1
        return f()[:1]

    category = FULL.split("_")[drawn(lambda: torch.randint(0, 6, (1,))).item()]

    def u():
        return drawn(lambda: torch.rand(n))

    def whole(low, high):
        return drawn(lambda: torch.randint(low, high, (n,)))

    def between():
        return u() * (1.2 - 1 / 1.2) + 1 / 1.2

    draws = {
        "color": lambda: {"brightness": (u() - 0.5,), "saturation": (u() * 2,), "contrast": (u() + 0.5,)},
        "crop": lambda: {"crop": (whole(-4, 5), whole(-4, 5))},
        "cutout": lambda: {"cutout": (whole(0, 33), whole(0, 33), 16)},
        "flip": lambda: {"flip": (u() < 0.5,)},
        "scale": lambda: {"scale": (between(), between())},
        "rotate": lambda: {"rotate": ((u() - 0.5) * 2 * 15 / 180 * math.pi,)},
    }
    return category, draws[category]()


def test_siamese_batches_are_the_original_ones(golden):
    g = golden("dsa_ops")
    with torch.random.fork_rng(devices=[]):
        for seed, index, y in zip(g["siamese.seed"].tolist(), g["siamese.category"].tolist(), g["siamese.y"]):
            category, params = original_draws(seed, 4)
            assert category == FULL.split("_")[index]
            x = g["x"]
            for name, p in params.items():
                x = operations[name](x, *p)
            torch.testing.assert_close(
                x,
                y,
                atol=2e-5 if category in ("scale", "rotate") else 1e-6,
                rtol=0,
                msg=lambda m, category=category, seed=seed: f"{category}, seed {seed}: {m}",
            )


@pytest.mark.parametrize("category", categories)
def test_one_siamese_draw_does_the_same_to_batches_of_3_and_256(category):
    draw = draw_dsa(category, 3, 32, generator(0, category), siamese=True)
    shared = torch.randn(1, 3, 32, 32)
    small, large = shared.repeat(3, 1, 1, 1), torch.cat([torch.randn(255, 3, 32, 32), shared])
    torch.testing.assert_close(apply_dsa(small, draw)[0], apply_dsa(large, draw)[-1], atol=1e-6, rtol=0)
    again = draw_dsa(category, 256, 32, generator(0, category), siamese=True)
    assert torch.equal(apply_dsa(small, draw), apply_dsa(small, again))


@pytest.mark.parametrize("category", categories)
def test_an_ordinary_draw_has_one_category_and_a_parameter_per_image(category):
    draw = draw_dsa(category, 64, 32, generator(0, category))
    assert draw.category == category and draw.n == 64
    for params in draw.params.values():
        for p in params:
            if isinstance(p, torch.Tensor):
                assert p.shape == (64,) and len(p.unique()) > 1 and p.device.type == "cpu"
    y = apply_dsa(torch.randn(1, 3, 32, 32).repeat(64, 1, 1, 1), draw)
    assert any(not torch.equal(y[0], other) for other in y[1:])
    with pytest.raises(InputError, match="64 images"):
        apply_dsa(torch.randn(3, 3, 32, 32), draw)


@pytest.mark.parametrize("siamese", [False, True])
@pytest.mark.parametrize("category", categories)
def test_first_and_second_derivatives(category, siamese):
    draw = draw_dsa(category, 2, 6, generator(0, category), siamese=siamese)
    x = torch.randn(2, 2, 6, 6, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: apply_dsa(z, draw), x)
    assert torch.autograd.gradgradcheck(lambda z: apply_dsa(z, draw).pow(2), x)


@pytest.mark.parametrize("category", categories)
def test_gradient_matching_reaches_the_pixels(category):
    "A gradient with respect to weights, then one of it with respect to pixels: what DSA and trajectory matching do"
    body = ConvNet(3, 2, 16, depth=2, width=4)
    x = torch.randn(4, 3, 16, 16, requires_grad=True)
    loss = body(augment_dsa(x, category, generator(0, "matching"), siamese=True)).pow(2).mean()
    grads = torch.autograd.grad(loss, [*body.parameters()], create_graph=True)
    (pixels,) = torch.autograd.grad(sum(v.pow(2).sum() for v in grads), x)
    assert pixels.isfinite().all() and (pixels != 0).float().mean() > 0.3


@pytest.mark.parametrize("category", categories)
def test_no_value_is_read_back_from_the_device(category):
    "The meta device has no values: reading one would raise"
    x = torch.zeros(5, 3, 32, 32, device="meta")
    for siamese in (False, True):
        assert augment_dsa(x, category, generator(0, "meta"), siamese=siamese).shape == x.shape


@pytest.mark.parametrize("category", categories)
def test_the_input_and_the_global_state_are_left_alone(category):
    x = torch.randn(4, 3, 32, 32)
    copy, before = x.clone(), torch.get_rng_state()
    augment_dsa(x, category, generator(0, "copy"))
    assert torch.equal(x, copy) and torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "size, shift, side, last",
    [(32, 4, 16, 32), (64, 8, 32, 64), (128, 16, 64, 128), (28, 4, 14, 28), (30, 4, 15, 29)],
)
def test_published_ranges(size, shift, side, last):
    g = generator(0, "ranges")
    for p in draw_dsa("crop", 20_000, size, g).params["crop"]:
        assert (p.min(), p.max()) == (-shift, shift)
    rows, cols, drawn_side = draw_dsa("cutout", 20_000, size, g).params["cutout"]
    assert drawn_side == side and (rows.min(), rows.max()) == (0, last) == (cols.min(), cols.max())
    for op, low, high in (("brightness", -0.5, 0.5), ("saturation", 0, 2), ("contrast", 0.5, 1.5)):
        (p,) = draw_dsa("color", 20_000, size, g).params[op]
        assert low <= p.min() < low + 0.01 and high - 0.01 < p.max() <= high
    sx, sy = draw_dsa("scale", 20_000, size, g).params["scale"]
    assert not torch.equal(sx, sy) and 1 / 1.2 <= sx.min() < 0.84 and 1.19 < sx.max() <= 1.2
    (theta,) = draw_dsa("rotate", 20_000, size, g).params["rotate"]
    assert 14.9 < theta.max() / math.pi * 180 <= 15.0001 and -15.0001 <= theta.min() / math.pi * 180 < -14.9
    (flipped,) = draw_dsa("flip", 20_000, size, g).params["flip"]
    assert 0.48 < flipped.float().mean() < 0.52


@pytest.mark.parametrize(
    "name, flips",
    [("cifar10", True), ("fashion-mnist", True), ("digits", False), ("mnist", False), ("svhn", False)],
)
def test_digits_are_not_mirrored(name, flips):
    spec = type("Spec", (), {"name": name})
    assert strategy_for(spec) == (FULL if flips else FULL.replace("flip_", ""))


@pytest.mark.parametrize("strategy", ["", "color_", "color-crop", "colour", None, "color_crop_blur"])
def test_unknown_augmentations_are_refused(strategy):
    with pytest.raises(InputError, match="known: color, crop"):
        parse_strategy(strategy)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("category", categories)
def test_cuda_gives_the_same_images(category):
    draw, x = draw_dsa(category, 8, 32, generator(0, "cuda")), torch.randn(8, 3, 32, 32)
    torch.testing.assert_close(apply_dsa(x.cuda(), draw).cpu(), apply_dsa(x, draw), atol=2e-5, rtol=0)

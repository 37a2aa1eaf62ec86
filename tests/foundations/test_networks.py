"Networks against golden numbers of the original program, and what holds for every registered name."

import ast
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import ddrobust_nb
from ddrobust_nb.foundations.augment import apply_dsa, draw_dsa
from ddrobust_nb.foundations.data import Spec
from ddrobust_nb.foundations.core import InputError, generator
from ddrobust_nb.foundations.networks import (
    ConvNet,
    Network,
    Normalise,
    ResNet,
    Subsampled,
    count_parameters,
    make_network,
    network,
    network_revision,
    _replace_unsafe,
    unsafe_convolution,
    uses_batch_statistics,
)
from ddrobust_nb.training.fit import Recipe, view


def spec(channels=3, size=32, classes=10):
    return Spec(
        name="demo",
        classes=classes,
        size=size,
        channels=channels,
        mean=(0.5, 0.4, 0.3)[:channels],
        std=(0.25, 0.2, 0.3)[:channels],
    )


@pytest.mark.parametrize(
    "case, channels, size, depth", [("c32d3", 3, 32, 3), ("c28d3", 1, 28, 3), ("c64d4", 3, 64, 4)]
)
def test_convnet_computes_what_the_original_does(golden, case, channels, size, depth):
    g = golden("convnet")
    body = ConvNet(channels, 10, size, depth=depth, width=32)
    body.load_state_dict(
        {k.removeprefix(f"{case}.state."): v for k, v in g.items() if k.startswith(f"{case}.state.")}
    )
    x = g[f"{case}.x"].requires_grad_()
    logits, loss = body(x), F.cross_entropy(body(x), g[f"{case}.labels"])
    torch.testing.assert_close(logits, g[f"{case}.logits"], atol=2e-5, rtol=0)
    torch.testing.assert_close(body.embed(x), g[f"{case}.embedding"], atol=2e-5, rtol=0)
    torch.testing.assert_close(loss, g[f"{case}.loss"], atol=1e-5, rtol=0)
    if f"{case}.grad_x" in g:
        (grad,) = torch.autograd.grad(loss, x)
        assert (grad - g[f"{case}.grad_x"]).norm() < 1e-4 * g[f"{case}.grad_x"].norm()


def test_golden_parameter_counts(golden):
    counts = {k.split(".")[-1]: v.item() for k, v in golden("convnet").items() if k.startswith("params.")}
    assert len(counts) == 6
    for key, count in counts.items():
        images, depth, classes = key.split("_")
        channels, size = map(int, images.split("x"))
        with torch.device("meta"):
            assert (
                count_parameters(ConvNet(channels, int(classes[1:]), size, depth=int(depth[1:]))) == count
            ), key


@pytest.mark.parametrize(
    "channels, size, depth, classes, count",
    [
        (1, 28, 3, 10, 317_706),
        (3, 32, 3, 10, 320_010),
        (3, 32, 3, 100, 504_420),
        (3, 64, 4, 200, 857_160),
        (3, 128, 5, 10, 615_690),
        (3, 64, 4, 1000, 2_496_360),
    ],
)
def test_published_parameter_counts_and_features(channels, size, depth, classes, count):
    with torch.device("meta"):
        body, x = ConvNet(channels, classes, size, depth=depth), torch.zeros(2, channels, size, size)
    assert count_parameters(body) == count
    assert body.embed(x).shape == (2, 2048)
    assert body(x).shape == (2, classes)


@pytest.mark.parametrize(
    "stem, classes, count",
    [
        ("small", 10, 11_173_962),
        ("small", 100, 11_220_132),
        ("small", 200, 11_271_432),
        ("imagenet", 1000, 11_689_512),
    ],
)
def test_resnet_parameter_counts(stem, classes, count):
    with torch.device("meta"):
        body = ResNet(3, classes, stem=stem)
    assert count_parameters(body) == count
    assert sum(isinstance(m, torch.nn.BatchNorm2d) for m in body.modules()) == 20


@pytest.mark.parametrize("size", [28, 32, 64, 128])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", [*network, "auto"])
def test_every_network_takes_every_size_on_the_meta_device(name, channels, size):
    s = spec(channels, size)
    net = make_network(name, s, device="meta")
    x = torch.zeros(2, channels, size, size, device="meta")
    assert net(x).shape == (2, 10)
    assert net.body.embed(net.normalise(x)).ndim == 2
    assert net.name in network and net.spec is s


@pytest.mark.parametrize("name", network)
def test_a_seed_means_the_same_weights_whatever_happened_before(name):
    a = make_network(f"{name}-w8", spec(), seed=3)
    torch.rand(5)
    before = torch.get_rng_state()
    b, c = make_network(f"{name}-w8", spec(), seed=3), make_network(f"{name}-w8", spec(), seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values()))
    assert not torch.equal(next(a.body.parameters()), next(c.body.parameters()))


@pytest.mark.parametrize(
    "size, name",
    [
        (8, "ConvNetD3"),
        (28, "ConvNetD3"),
        (32, "ConvNetD3"),
        (33, "ConvNetD4"),
        (64, "ConvNetD4"),
        (65, "ConvNetD5"),
        (128, "ConvNetD5"),
    ],
)
def test_auto_goes_by_size(size, name):
    assert make_network("auto", spec(size=size), device="meta").name == name
    assert make_network("auto-w16", spec(size=size), device="meta").name == f"{name}-w16"


@pytest.mark.parametrize(
    "name", ["convnet", "ConvNetD3-64", "ConvNetD3-w0", "ConvNetD3-w", "", None, "ConvNetD3 -w8"]
)
def test_bad_names_are_refused(name):
    with pytest.raises(InputError, match="ConvNetD3"):
        make_network(name, spec())


@pytest.mark.parametrize(
    "options",
    [
        {"norm": "instancenorm"},
        {"norm": "group", "width": 6},
        {"width": 0},
        {"width": True},
        {"depth": 4},
        {"activation": "tanh"},
        {"pooling": "avg2"},
    ],
)
def test_bad_options_are_refused(options):
    with pytest.raises(InputError):
        make_network("ConvNetD3", spec(), **options)


@pytest.mark.parametrize("norm", ["instance", "batch", "layer", "none"])
@pytest.mark.parametrize("activation", ["relu", "leakyrelu", "gelu"])
@pytest.mark.parametrize("pooling", ["avg", "max", "none"])
def test_options_keep_the_layout_of_names(norm, activation, pooling):
    body = make_network("ConvNetD3-w4", spec(), norm=norm, activation=activation, pooling=pooling).body
    assert body(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    keys = set(body.state_dict())
    assert {"features.0.weight", "features.4.weight", "features.8.weight", "classifier.weight"} <= keys
    assert ("features.1.weight" in keys) == (norm != "none")


def test_nothing_is_computed_in_place():
    for name in network:
        assert not any(
            getattr(m, "inplace", False) for m in make_network(name, spec(), device="meta").modules()
        ), name


def test_imagenet_stem_from_65_pixels_on():
    assert make_network("ResNet18", spec(size=64), device="meta").body.conv1.stride == (1, 1)
    assert make_network("ResNet18", spec(size=65), device="meta").body.conv1.stride == (2, 2)


def test_a_network_normalises_and_a_state_dict_carries_the_constants():
    net = make_network("ConvNetD3-w8", spec())
    x = torch.rand(4, 3, 32, 32)
    z = (x - torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1)) / torch.tensor([0.25, 0.2, 0.3]).view(1, 3, 1, 1)
    torch.testing.assert_close(net(x), net.body(z))
    torch.testing.assert_close(net.denormalise(net.normalise(x)), x)
    other = Network(Normalise((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), ConvNet(3, 10, 32, width=8))
    other.load_state_dict(net.state_dict())
    torch.testing.assert_close(other(x), net(x))  # another memory order, other rounding
    with pytest.raises(InputError, match="3 channels"):
        net(x[:, :1])


@pytest.mark.parametrize(
    "name, size, millions",
    [("ConvNetD3", 32, 50.75), ("ResNet18", 32, 555), ("ResNet18", 64, 2222), ("ResNet18", 224, 1814)],
)
def test_multiplications_per_image(name, size, millions):
    s = spec(size=size, classes=1000 if size == 224 else 10)
    net = make_network(name, s, device="meta")
    with FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 3, size, size, device="meta"))
    assert abs(counter.get_total_flops() / 2e6 - millions) < 0.005 * millions


# ---- memory order on a CPU


@pytest.mark.parametrize("size", [28, 72])
@pytest.mark.parametrize("name", network)
def test_no_network_of_any_width_holds_an_unsafe_convolution(name, size):
    if name.startswith("ConvNet") and size == 72:
        name = "ConvNetD5"
    for width in (1, 4, 8, 12, 15, 16, 17, 64):
        net = make_network(f"{name}-w{width}", spec(size=size), device="meta")
        assert not any(map(unsafe_convolution, net.modules())), width
        replaced = [n for n, m in net.named_modules() if isinstance(m, Subsampled)]
        assert (
            bool(replaced)
            == (name.startswith("ResNet") and width < 16)
            == (network_revision(f"{name}-w{width}", spec(size=size)) == 2)
        ), width


@pytest.mark.parametrize(
    "stride, options", [(2, {}), ((1, 2), {}), ((3, 2), {}), (2, {"padding": "valid"}), (2, {"bias": False})]
)
def test_a_layer_of_a_network_of_somebody_else_is_replaced(stride, options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        conv, x = torch.nn.Conv2d(5, 7, 1, stride=stride, **options), torch.randn(3, 5, 9, 8)
    state, want = conv.state_dict(), conv(x)  # images in the usual order, one thread
    body = _replace_unsafe(torch.nn.Sequential(conv))
    assert type(body[0]) is Subsampled and body[0].state_dict().keys() == state.keys()
    z = x.clone().requires_grad_()
    got = body(z)
    torch.testing.assert_close(got, want)
    direction = torch.linspace(-1, 1, want.numel()).view_as(want)
    y = x.clone().requires_grad_()
    plain = F.conv2d(y, conv.weight, conv.bias, conv.stride)
    for a, b in zip(
        torch.autograd.grad(got, (z, conv.weight), direction),
        torch.autograd.grad(plain, (y, conv.weight), direction),
    ):
        torch.testing.assert_close(a, b)
    assert torch.equal(body(x.to(memory_format=torch.channels_last)), got)


@pytest.mark.parametrize(
    "options", [dict(in_channels=16), dict(kernel_size=3), dict(stride=1), dict(padding=1), dict(groups=2)]
)
def test_layers_that_are_safe_stay(options):
    conv = torch.nn.Conv2d(**{**dict(in_channels=8, out_channels=8, kernel_size=1, stride=2), **options})
    assert type(_replace_unsafe(torch.nn.Sequential(conv))[0]) is torch.nn.Conv2d


def test_the_batch_is_used_by_batch_norm_in_training_only():
    net = make_network("ResNet18-w8", spec())
    assert uses_batch_statistics(net.train()) and not uses_batch_statistics(net.eval())
    net.body.layer3[1].bn2.train()
    assert uses_batch_statistics(net)  # one layer is enough
    assert uses_batch_statistics(torch.nn.BatchNorm2d(3, track_running_stats=False).eval())
    assert uses_batch_statistics(torch.nn.Sequential(torch.nn.BatchNorm1d(3))) and not uses_batch_statistics(
        make_network("ConvNetD3-w8", spec()).train()
    )


TRAINING = """
import sys, torch
torch.set_num_threads(int(sys.argv[1]))
from ddrobust_nb.foundations.data import Spec
from ddrobust_nb.foundations.networks import make_network
for case in sys.argv[2:]:
    name, size, *batches = case.split(",")
    net = make_network(name, Spec("demo", 10, int(size), 3, (0.5,) * 3, (0.25,) * 3)).train()
    for n in map(int, batches):
        x = torch.rand(n, 3, int(size), int(size))
        for images in (x, x.to(memory_format=torch.channels_last)):
            loss = torch.nn.functional.cross_entropy(net(images), torch.arange(n) % 10)
            net.zero_grad()
            loss.backward()
print("trained")
"""


def trains(threads, cases):
    "Steps of training in a process of its own, under glibc's checks of memory where they are there"
    checker = next((str(p) for p in Path("/lib").glob("*/libc_malloc_debug.so.0")), "")
    environment = os.environ | ({"LD_PRELOAD": checker, "MALLOC_CHECK_": "3"} if checker else {})
    done = subprocess.run(
        [sys.executable, "-c", TRAINING, str(threads), *cases],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "trained"), (
        threads,
        cases,
        done.returncode,
        done.stderr[-500:],
    )


def test_narrow_networks_train_on_two_threads():
    trains(2, ["ResNet18-w8,16,3,17", "ResNet18GN-w12,16,3", "ConvNetD3-w8,16,3,17"])


@pytest.mark.slow
@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("size", [16, 28, 32, 72])
def test_all_networks_and_widths_train_on_several_threads(size, threads):
    names = ["ConvNetD5" if size > 64 else "ConvNetD3", "ResNet18", "ResNet18GN"]
    trains(
        threads,
        [
            f"{name}-w{width},{size},2,3,17,29"
            for name in names
            for width in (1, 2, 3, 4, 5, 7, 8, 9, 12, 13, 15, 16, 17, 20, 24, 32)
        ],
    )


# ---- noise does not depend on the memory order


def test_no_draw_depends_on_the_memory_order_of_a_tensor():
    "Draws like a tensor, or into one, follow its order in memory; draws by shape do not"
    forbidden = {
        "rand_like",
        "randn_like",
        "randint_like",
        "uniform_",
        "normal_",
        "bernoulli_",
        "random_",
        "exponential_",
        "cauchy_",
        "log_normal_",
        "geometric_",
        "dropout",
        "Dropout",
    }
    for path in Path(inspect.getfile(ddrobust_nb)).parent.rglob("*.py"):
        used = {
            n.attr
            for n in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(n, ast.Attribute)
        }
        assert not used & forbidden, (path.name, used & forbidden)


@pytest.mark.parametrize("operation", ["flip", "crop", "cutout", "scale", "rotate", "brightness"])
def test_one_augmentation_for_both_memory_orders(operation):
    x = torch.rand(5, 3, 16, 16, generator=generator(0, "images"))
    last = x.to(memory_format=torch.channels_last)
    strategy = "color" if operation == "brightness" else operation
    a, b = (draw_dsa(strategy, len(z), 16, generator(1, "draw")) for z in (x, last))
    torch.testing.assert_close(
        apply_dsa(x, a), apply_dsa(last, b), atol=1e-6 if strategy == "color" else 0, rtol=0
    )  # colours take means


@pytest.mark.parametrize(
    "recipe", [Recipe(pad=2, flip=True), Recipe(crop_min=0.3, mix="mixup"), Recipe(mix="cutmix")]
)
def test_one_view_for_both_memory_orders(recipe):
    x, y = torch.rand(6, 3, 16, 16, generator=generator(0, "images")), torch.arange(6)
    (a, p), (b, q) = (
        view(z, y, recipe, 10, generator(1, "view")) for z in (x, x.to(memory_format=torch.channels_last))
    )
    assert torch.equal(a, b) and torch.equal(p, q)

"""Networks in float16, bfloat16 and float64, and networks that cast inside: attacked with float32 images, judged as they answer by hand."""

import copy
import functools

import pytest
import torch
from torch import nn

from ddrobust_nb.fast import queries
from ddrobust_nb.attacks.checks import model_checks
from ddrobust_nb.attacks.cw import margin
from ddrobust_nb.fast.queries import CountedModel, loss_gradient, passes_before_compiling
from ddrobust_nb.attacks.robustness import check_logits, evaluate
from ddrobust_nb.attacks.attack import AttackConfig, attack
from ddrobust_nb.attacks.autoattack import PARTS
from ddrobust_nb.attacks.running import attack_images
from ddrobust_nb.fast.convolution import WinogradConv2d, with_winograd
from ddrobust_nb.foundations.core import InputError
from ddrobust_nb.foundations.data import as_pixels, specs
from ddrobust_nb.distillers.baselines import embed
from ddrobust_nb.frequency.models import band_accuracy, fourier_heat_map, perturbations
from ddrobust_nb.foundations.networks import Network, make_network
from ddrobust_nb.fast.fused import accelerated, can_fuse
from ddrobust_nb.foundations.predict import accuracy, float_dtypes, input_dtype, predict
from ddrobust_nb.training.fit import Recipe, fit
from tiny import tiny_data

DATA = tiny_data(counts=(20,) * 5, tests=10)
INDEX = torch.arange(50)
X, Y = as_pixels(DATA.test_images), DATA.test_labels


@functools.cache
def trained():
    return fit(
        DATA, network="ConvNetD3-w16", recipe=Recipe(epochs=50, batch=50, lr=0.2, check_every=0), device="cpu"
    ).requires_grad_(False)


def kept():
    return copy.deepcopy(trained())


class Casts(nn.Module):
    "Takes float32, computes in another type, answers in it"

    def __init__(self, net, dtype):
        super().__init__()
        self.net, self.dtype = net.to(dtype), dtype

    def forward(self, x):
        return self.net(x.to(self.dtype))


class Autocast(nn.Module):
    "Weights of float32, computes in another type"

    def __init__(self, net, dtype):
        super().__init__()
        self.net, self.dtype = net, dtype

    def forward(self, x):
        with torch.autocast("cpu", dtype=self.dtype):
            return self.net(x)


class Narrow(nn.Module):
    "Float32 in front, float16 behind, and logits of float32"

    def __init__(self, net):
        super().__init__()
        self.normalise, self.body = net.normalise, net.body.half()

    def forward(self, x):
        return self.body(self.normalise(x).half()).float()


KINDS = {  # How a float32 network becomes another
    "float16": lambda net: net.half(),
    "bfloat16": lambda net: net.bfloat16(),
    "float64": lambda net: net.double(),
    "casts to float16": lambda net: Casts(net, torch.float16),
    "casts to bfloat16": lambda net: Casts(net, torch.bfloat16),
    "autocast to bfloat16": lambda net: Autocast(net, torch.bfloat16),
    "autocast to float16": lambda net: Autocast(net, torch.float16),
    "float16 behind": Narrow,
}
PLAIN = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
OURS = ("fgsm", "pgd", "cw", "apgd-ce", "fab-t")
SLOWER = (
    "apgd-t",
    "square",
    "autoattack",
    "ta:PGD",
    "ta:FAB",
    "pyautoattack:apgd-ce",
    "pyautoattack:square",
    "torchattacks:apgd-t",
)


def made(kind, net=None):
    return KINDS[kind](copy.deepcopy(net or kept())).eval()


def by_hand(kind, net, x):
    "The logits that a user gets: images in the network's own type where it casts nothing itself"
    with torch.no_grad():
        return net(x.to(PLAIN.get(kind, torch.float32)))


def named(text, eps="16/255"):
    backend, _, name = ("", "", text) if text.startswith("ta:") else text.rpartition(":")
    return AttackConfig(
        name,
        eps,
        2 if name.startswith("ta:") else None,
        preset="aa-quick" if name in (*PARTS, "autoattack") else "",
        backend=backend,
    )


@pytest.mark.parametrize(
    "name, kind",
    [
        *((name, kind) for name in OURS for kind in KINDS),
        *((name, kind) for name in SLOWER for kind in ("float16", "float64")),
    ],
)
def test_flags_are_the_answers_by_hand(name, kind):
    few = 3 if "autoattack" in name or "square" in name else 8
    net, x, y, config = made(kind), X[:few], Y[:few], named(name)
    types = float_dtypes(net)
    out = attack_images(net, x, y, config)
    assert out.images.dtype == torch.float32 and (out.images - x).abs().max() <= config.eps_value + 1e-6
    assert torch.equal(out.flags, by_hand(kind, net, out.images).argmax(1) == y)
    assert float_dtypes(net) == types


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ("fgsm", "pgd"))
def test_flags_are_those_of_the_widened_network(name, kind):
    "Save where the margin is within the rounding"
    net, config = made(kind), named(name, "8/255")
    wide = copy.deepcopy(net).float()
    if isinstance(net, (Casts, Autocast)):
        wide = wide.net
    if isinstance(net, Narrow):
        wide = Network(wide.normalise, wide.body).eval()
    ours, truth = attack_images(net, X, Y, config), attack_images(wide, X, Y, config)
    with torch.no_grad():
        rounding = (by_hand(kind, net, ours.images).float() - wide(ours.images)).abs().max()
    with torch.no_grad():
        clear = margin(wide(truth.images), Y).abs() > 4 * rounding
    assert clear.float().mean() > 0.8 and truth.flags.any() and not truth.flags.all()
    assert torch.equal(ours.flags[clear], truth.flags[clear])


@pytest.mark.parametrize("kind", ("float16", "casts to float16", "autocast to float16", "float16 behind"))
def test_a_network_that_is_sure_keeps_its_gradient(kind):
    "The gradient of its loss is too small for float16 on most images"
    sure = kept()
    with torch.no_grad():
        sure.body.classifier.weight.mul_(50)
        sure.body.classifier.bias.mul_(50)
    right = predict(sure, X, "cpu") == Y
    net, x, y = made(kind, sure), X[right], Y[right]

    def loss(z):
        return nn.functional.cross_entropy(z.float(), y, reduction="none")

    def without(model):
        return int((loss_gradient(model, x, loss)[2].flatten(1).abs().amax(1) == 0).sum())

    alone = without(lambda x: net(x.half() if kind == "float16" else x))
    assert alone > without(sure) + 5, "else this network says nothing"
    assert without(CountedModel(net, y)) <= without(sure)
    ours, truth = (attack_images(model, x, y, named("pgd")).flags for model in (net, sure))
    assert int((ours != truth).sum()) <= 2


@pytest.mark.parametrize("kind", KINDS)
def test_who_else_asks(kind):
    net = made(kind)
    right = by_hand(kind, net, X).argmax(1) == Y
    assert accuracy(net, DATA.test_images, Y, "cpu") == right.double().mean().item()
    check_logits(net, DATA, "cpu")
    [e] = evaluate(net, DATA, [AttackConfig("uniform", "0/255")], n_test=None, device="cpu")
    assert torch.equal(
        e.flags,
        by_hand(kind, net, as_pixels(DATA.test_images[e.index])).argmax(1) == DATA.test_labels[e.index],
    )
    checks = model_checks(net, X, Y, INDEX, "8/255", device="cpu")
    assert all(c.ok for c in checks), [c.text for c in checks if not c.ok]
    bands = band_accuracy(net, X[:20], Y[:20], radii=[4])
    assert bands["whole"].tolist() == [right[:20].double().mean().item()]
    assert fourier_heat_map(net, X[:4], Y[:4], step=4).clean == 1 - right[:4].double().mean().item()
    assert perturbations(net, X[:4], Y[:4], "fgsm@8/255")["fgsm@8/255"].dtype == torch.float32


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_probabilities_are_found_out_in_narrow_types(dtype):
    net = nn.Sequential(kept(), nn.Softmax(1)).to(dtype).eval()
    assert [c.code for c in model_checks(net, X, Y, INDEX, "8/255", device="cpu") if not c.ok][:1] == [
        "logits"
    ]


def test_features_of_a_network_in_float16():
    net, half = kept(), kept().half()
    torch.testing.assert_close(
        embed(half, DATA.test_images[:8], "cpu").float(),
        embed(net, DATA.test_images[:8], "cpu"),
        atol=0.02,
        rtol=0.02,
    )


TORN = {  # One part in another type
    "classifier": lambda net: net.body.classifier.half(),
    "first layer": lambda net: net.body.features[0].bfloat16(),
    "statistics": lambda net: net.body.features[5].double(),
}


@pytest.mark.parametrize("part", TORN)
def test_a_network_that_takes_no_type_is_refused(part):
    net = kept()
    TORN[part](net)
    calls = (
        lambda: attack_images(net, X, Y, named("pgd")),
        lambda: attack_images(net, X, Y, named("pyautoattack:square")),
        lambda: predict(net, X, "cpu"),
        lambda: evaluate(net, DATA, [named("fgsm")], n_test=20, device="cpu"),
        lambda: model_checks(net, X, Y, INDEX, "8/255"),
        lambda: band_accuracy(net, X, Y),
    )
    for call in calls:
        with pytest.raises(
            InputError, match="takes images in none of the types float32.*model.float"
        ) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_the_type_that_a_network_takes():
    net = kept()
    flat = nn.Flatten().eval()
    assert [input_dtype(m, X) for m in (net, copy.deepcopy(net).half(), made("casts to float16"), flat)] == [
        torch.float32,
        torch.float16,
        torch.float32,
        torch.float32,
    ]
    assert input_dtype(net, X.double()) == torch.float32 and input_dtype(flat, X.double()) == torch.float64

    class Picky(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(192, 5).half()

        def forward(self, x):
            assert x.dtype == torch.float16, "float16 only"
            return self.last(x.flatten(1))

    picky = Picky().eval()
    assert input_dtype(picky, X) == torch.float16 and predict(picky, X, "cpu").shape == (50,)
    with pytest.raises(InputError, match="do not have 3 channels"):
        predict(copy.deepcopy(net).half(), X[:, :1], "cpu")


def test_double_stays_double():
    "Images and network of float64: our attacks compute in it; all else in float32"
    seen = []

    @attack
    def noting(model, x, y, config):
        seen.append((x.dtype, model(x).dtype))
        return x

    try:
        for net, x in (
            (kept().double(), X.double()),
            (kept().double(), X),
            (kept(), X.double()),
            (kept().half(), X.double()),
        ):
            assert attack_images(net, x[:4], Y[:4], AttackConfig("noting")).images.dtype == x.dtype
    finally:
        del attack["noting"]
    assert seen == [(torch.float64, torch.float64)] + [(torch.float32, torch.float32)] * 3
    for name in ("ta:PGD", "pyautoattack:apgd-t", "torchattacks:square"):
        out = attack_images(kept().double(), X[:6].double(), Y[:6], named(name))
        assert out.images.dtype == torch.float64 and torch.equal(out.images, out.images.float().double())


def test_fast_ways_are_for_float32(monkeypatch):
    monkeypatch.setenv("DDROBUST_COMPILE", "always")
    monkeypatch.setattr(queries, "accelerated", lambda *a: pytest.fail("a fast way was taken"))
    cpu = torch.device("cpu")
    for kind in ("float16", "bfloat16", "float64", "casts to float16", "float16 behind"):
        assert passes_before_compiling(made(kind), cpu) == torch.inf
        assert attack_images(made(kind), X[:4], Y[:4], named("fgsm")).flags.shape == (4,)
    with pytest.raises(pytest.fail.Exception):
        attack_images(kept(), X[:4], Y[:4], named("fgsm"))


def test_what_is_swept_is_a_plain_network_of_float32():
    net = make_network("ConvNetD3-w64", specs["cifar10"]).eval()

    class Override(Network):
        def forward(self, x):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return super().forward(x)

    other = Override(net.normalise, net.body, net.name, net.spec).eval()
    assert can_fuse(net, "cpu") and not any(
        can_fuse(m, "cpu")
        for m in (
            copy.deepcopy(net).half(),
            copy.deepcopy(net).bfloat16(),
            copy.deepcopy(net).double(),
            other,
        )
    )
    assert passes_before_compiling(other, torch.device("cpu")) == torch.inf
    for dtype, count in ((torch.float32, 2), (torch.float64, 2), (torch.float16, 0), (torch.bfloat16, 0)):
        assert (
            sum(isinstance(m, WinogradConv2d) for m in with_winograd(copy.deepcopy(net).to(dtype)).modules())
            == count
        )
    assert not [name for name, m in accelerated(net, "cpu").named_modules() if m.training], (
        "as the network: in evaluation mode"
    )


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int16])
def test_labels_of_any_whole_number_type_are_checked_and_counted(dtype):
    net, x, y, index = kept(), X, Y, INDEX
    plain = [(c.code, c.ok, c.text) for c in model_checks(net, x, y, index, "2/255")]
    assert [(c.code, c.ok, c.text) for c in model_checks(net, x, y.to(dtype), index, "2/255")] == plain
    assert accuracy(net, x, y.to(dtype)) == accuracy(net, x, y)


def test_labels_of_another_number_of_images_are_refused():
    net, x, y, index = kept(), X, Y, INDEX
    for ask in (lambda: accuracy(net, x, y[:-1]), lambda: model_checks(net, x, y[:-1], index, "2/255")):
        with pytest.raises(InputError, match="labels"):
            ask()

"A file of somebody else gives the accuracy that its network really has, or a question."

import copy
import dataclasses

import pytest
import torch
from foreign.model_files import (
    DIALECTS,
    PREFIXES,
    SPACES,
    WRAPPERS,
    coloured,
    data,
    plain,
    trained,
    with_constants,
)
from safetensors.torch import save_file
from torch import nn

from ddrobust_nb.foreign.layers import read_layers
from ddrobust_nb.attacks.paired_test import mcnemar
from ddrobust_nb.foreign.models import decide, given_network, habits, load_model, parse_normalise
from ddrobust_nb.foundations.core import InputError
from ddrobust_nb.foundations.data import make_data
from ddrobust_nb.foundations.networks import make_network
from ddrobust_nb.foundations.predict import accuracy

DC = (data().spec.mean, data().spec.std)
LARGE = dataclasses.replace(data().spec, size=32)


def test_accuracy(net):
    return accuracy(net, data().test_images, data().test_labels, "cpu")


test_accuracy.__test__ = False


def written(path, state):
    torch.save(state, path)
    return path


# ---- which network


@pytest.mark.parametrize(
    "name",
    (
        "ConvNetD3-w8",
        "ConvNetD1-w4",
        "ConvNetD5-w4",
        "ConvNetD2-w8-norm=batch",
        "ConvNetD3-w4-norm=none",
        "ConvNetD2-w4-norm=layer",
        "ConvNetD2-w2-pooling=none",
        "ConvNetD3",
        "ResNet18-w4",
        "ResNet18GN-w4",
        "ResNet18-w4-stem=imagenet",
    ),
)
def test_the_network_is_inferred_from_every_dialect(name):
    net = make_network(name, LARGE)
    kind = name.split("-")[0].split("D")[0].removesuffix("GN")
    for dialect, write in DIALECTS[kind].items():
        reading = read_layers(write(plain(net)), LARGE)
        assert reading.name == name, dialect
        fresh = make_network(reading.name, LARGE, seed=1)
        fresh.body.load_state_dict(reading.tensors)
        x = torch.rand(4, 3, 32, 32)
        torch.testing.assert_close(fresh.eval()(x), net.eval()(x), rtol=0, atol=0)


def test_a_chain_without_identities_counts_its_layers_otherwise():
    "The DC family leaves out what is switched off: with norm none the second convolution is features.3"
    net = make_network("ConvNetD3-w4-norm=none", data().spec)
    theirs = nn.Sequential()
    for d in range(3):
        theirs.extend([copy.deepcopy(net.body.features[4 * d]), nn.ReLU(inplace=True), nn.AvgPool2d(2)])
    state = {f"features.{name}": tensor for name, tensor in theirs.state_dict().items()}
    assert "features.3.weight" in state
    state |= {f"classifier.{name}": tensor for name, tensor in net.body.classifier.state_dict().items()}
    reading = read_layers(state, data().spec)
    assert reading.name == "ConvNetD3-w4-norm=none" and set(reading.variants) == {
        "ConvNetD3-w4-norm=none-pooling=max",
        "ConvNetD3-w4",
        "ConvNetD3-w4-pooling=max",
    }
    torch.testing.assert_close(reading.tensors["features.4.weight"], state["features.3.weight"])


def test_convolutions_without_bias_and_plain_sequentials():
    layers = [nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2)]
    layers += [nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2)]
    theirs = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 10)).eval()
    reading = read_layers(theirs.state_dict(), data().spec)
    assert reading.name == "ConvNetD2-w4-norm=batch" and reading.notes
    net = make_network(reading.name, data().spec).eval()
    net.body.load_state_dict(reading.tensors)
    x = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(net.body(x), theirs(x))


def lenet():
    return dict.fromkeys(["features.0.weight", "features.3.weight"], torch.zeros(6, 3, 5, 5)) | {
        f"fc_{i}.weight": torch.zeros(4, 4) for i in (1, 2, 3)
    }


def grown(change):
    state = plain(make_network("ResNet18-w4", data().spec))
    return state | change(state)


REFUSED = {
    "LeNet": (lenet(), "it holds a LeNet"),
    "MLP": ({f"fc_{i}.weight": torch.zeros(4, 4) for i in (1, 2, 3)}, "an MLP or a LeNet"),
    "ViT": (
        {"cls_token": torch.zeros(1, 1, 4), "blocks.0.attn.qkv.weight": torch.zeros(4, 4)},
        "vision transformer",
    ),
    "WRN": (
        {"conv1.weight": torch.zeros(4, 3, 3, 3), "block1.layer.0.conv1.weight": torch.zeros(4, 4, 3, 3)},
        "WideResNet",
    ),
    "ResNet34": (
        grown(lambda s: {k.replace("layer1.1", "layer1.2"): v for k, v in s.items() if "layer1.1" in k}),
        r"blocks",
    ),
    "ResNet50": (grown(lambda s: {"layer1.0.conv3.weight": torch.zeros(4, 4, 1, 1)}), "bottlenecks"),
    "ResNet_AP": (
        grown(lambda s: {"layer2.0.downsample.2.weight": torch.zeros(8)}),
        "average pooling in its shortcuts",
    ),
    "100 classes": (
        plain(make_network("ConvNetD3-w4", dataclasses.replace(data().spec, classes=100))),
        "100 classes",
    ),
    "grey": (
        plain(
            make_network("ConvNetD3-w4", dataclasses.replace(data().spec, channels=1, mean=(0,), std=(1,)))
        ),
        "1 channels",
    ),
    "64 pixels": (
        plain(make_network("ConvNetD3-w4", dataclasses.replace(data().spec, size=64))),
        "images of 16 pixels do not give",
    ),
    "widths": (
        {
            "features.0.weight": torch.zeros(4, 3, 3, 3),
            "features.3.weight": torch.zeros(8, 4, 3, 3),
            "classifier.weight": torch.zeros(10, 8),
        },
        "equal 3x3 blocks",
    ),
    "global pooling": (
        plain(make_network("ConvNetD3-w4", data().spec)) | {"classifier.weight": torch.zeros(10, 4)},
        "averages over all positions",
    ),
    "one tensor": ({"x": torch.zeros(1)}, "does not fit the networks here"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_networks_are_refused_by_name(tmp_path, case):
    state, say = REFUSED[case]
    with pytest.raises(InputError, match=say) as error:
        load_model(written(tmp_path / "x.pth", state), data())
    assert any(way in str(error.value) for way in ("network='module:function'", "set dataset"))


def test_a_named_network_has_to_fit(tmp_path):
    file = written(tmp_path / "x.pth", plain(make_network("ConvNetD3-w4", data().spec)))
    with pytest.raises(
        InputError, match="do not fit the network ResNet18: their layers are those of ConvNetD3-w4"
    ):
        load_model(file, data(), network="ResNet18")
    assert load_model(file, data(), network="ConvNetD3-w4", normalise="dc").name == "ConvNetD3-w4"
    assert load_model(file, data(), network="auto-w4", normalise="dc").name == "ConvNetD3-w4"


# ---- accuracy: what must hold


@pytest.mark.parametrize(
    "prefix, given", [*((prefix, "dc") for prefix in PREFIXES), ("", "auto"), ("module._orig_mod.", "auto")]
)
def test_convnet_of_the_dc_family(tmp_path, prefix, given):
    net = trained("ConvNetD3-w16")
    right = test_accuracy(with_constants(net, DC))
    assert 0.4 < right < 0.99
    file = written(tmp_path / "x.pth", {prefix + name: tensor for name, tensor in plain(net).items()})
    found = given_network(file, data(), normalise=given)
    assert (found.name, found.habit.name) == ("ConvNetD3-w16", "dc")
    assert test_accuracy(found.net) == pytest.approx(right, abs=0.001)


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("half", (False, True))
def test_convnet_in_every_wrapper_and_in_half_precision(tmp_path, wrapper, half):
    net = trained("ConvNetD3-w16")
    state = {name: tensor.half() if half else tensor for name, tensor in plain(net).items()}
    by_hand = copy.deepcopy(net)
    by_hand.body.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    right = test_accuracy(with_constants(by_hand, DC))
    found = given_network(written(tmp_path / "x.pth", WRAPPERS[wrapper](state)), data(), normalise="dc")
    assert test_accuracy(found.net) == pytest.approx(right, abs=0.001)
    assert all(p.dtype == torch.float32 for p in found.net.parameters())


IN_ANY_SPACE = [("half", "torchvision"), ("bytes", "torchvision"), ("half", "kuangliu")]
IN_ANY_SPACE += [
    pytest.param(*case, marks=pytest.mark.slow)
    for case in (("dc", "torchvision"), ("pixels", "torchvision"), ("dc", "DC family"))
]


@pytest.mark.parametrize("space, dialect", IN_ANY_SPACE)
def test_resnet_trained_in_any_space_gives_its_accuracy_or_a_question(tmp_path, space, dialect):
    net = trained("ResNet18-w16", space)
    right = test_accuracy(with_constants(net, SPACES[space] or DC))
    assert right > 0.4
    file = written(tmp_path / "x.pth", {"net": DIALECTS["ResNet18"][dialect](plain(net))})
    assert test_accuracy(given_network(file, data(), normalise=space).net) == pytest.approx(right, abs=1e-9)
    try:
        found = given_network(file, data())
    except InputError as question:
        assert "set normalise to one of" in str(question) and space in str(question)
        assert space == "dc" and dialect == "torchvision"  # whose two deviations can hardly be told apart
        return
    assert test_accuracy(found.net) >= right - 0.02
    assert space == "dc" or found.habit.name == space


def test_wrong_constants_would_have_been_far_off():
    "The trial is needed: with the wrong constants these accuracies are others"
    net = trained("ResNet18-w16", "bytes")
    assert test_accuracy(with_constants(net, DC)) < test_accuracy(with_constants(net, SPACES["bytes"])) - 0.2


def test_a_file_with_constants_needs_no_trial(tmp_path):
    net = trained("ResNet18-w16", "half")
    save_file(net.state_dict(), tmp_path / "x.safetensors")
    found = given_network(tmp_path / "x.safetensors", data())
    assert (found.decided, found.trial, found.name) == ("the file", None, "ResNet18-w16")
    assert test_accuracy(found.net) == test_accuracy(net)
    found = given_network(tmp_path / "x.safetensors", data(), normalise="bytes")
    assert found.habit.name == "bytes" and found.decided == "you"


def test_too_few_training_images_are_asked(tmp_path):
    few = coloured(n_train=200)
    file = written(tmp_path / "x.pth", plain(trained("ConvNetD3-w16")))
    with pytest.raises(InputError, match="at least 1,000 training images, cifar10 has 200: .*normalise="):
        load_model(file, few)
    assert load_model(file, few, normalise="dc").name == "ConvNetD3-w16"


def test_an_untrained_network_is_never_decided(tmp_path):
    file = written(tmp_path / "x.pth", plain(make_network("ResNet18-w4", data().spec)))
    with pytest.raises(InputError, match="cannot be told: .* set normalise to one of"):
        load_model(file, data())


@pytest.mark.slow
def test_four_groups_and_maximum_pooling_are_told_apart_by_trying(tmp_path):
    net = trained("ConvNetD2-w16-norm=group-pooling=max", epochs=4)
    found = given_network(written(tmp_path / "x.pth", plain(net)), data())
    assert found.name == "ConvNetD2-w16-norm=group-pooling=max"
    assert test_accuracy(found.net) == pytest.approx(test_accuracy(net), abs=0.02)


# ---- modules and import paths


def test_any_module_is_copied_and_widened():
    body = copy.deepcopy(trained("ResNet18-w16", "half").body).half().train()
    before = {name: tensor.clone() for name, tensor in body.state_dict().items()}
    found = given_network(body, data())
    assert found.habit.name == "half" and body.training and body.fc.weight.dtype == torch.float16
    assert all(torch.equal(before[name], tensor) for name, tensor in body.state_dict().items())
    own = copy.deepcopy(trained("ConvNetD3-w16")).train()
    net = load_model(own, data(), device="cpu")
    assert own.training and not net.training and net.name == "ConvNetD3-w16"


def test_an_import_path_that_the_caller_gives(tmp_path, monkeypatch):
    (tmp_path / "own_nets.py").write_text(
        "from torch import nn\n"
        "def small(spec): return nn.Sequential(nn.Flatten(), nn.Linear(spec.channels * spec.size ** 2, spec.classes))\n"
        "def none(): return 3\n"
        "def fails(): raise ValueError('x')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    module = nn.Sequential(nn.Flatten(), nn.Linear(768, 10))
    file = written(
        tmp_path / "x.pth", {"state_dict": {f"module.{k}": v for k, v in module.state_dict().items()}}
    )
    net = load_model(file, data(), network="own_nets:small", normalise="pixels", device="cpu")
    x = torch.rand(3, 3, 16, 16)
    torch.testing.assert_close(net(x), module(x))
    for path, say in (
        ("own_nets:none", "returns int"),
        ("own_nets:fails", "makes no network"),
        ("own_nets:x", "cannot be imported"),
    ):
        with pytest.raises(InputError, match=say):
            load_model(file, data(), network=path)
    other = written(tmp_path / "y.pth", nn.Linear(768, 10).state_dict())
    with pytest.raises(InputError, match="do not fit the network own_nets:small"):
        load_model(other, data(), network="own_nets:small", normalise="pixels")


# ---- small parts


@pytest.mark.parametrize(
    "value", ("", "x", "1,2/3", "0.5/0", "0.5/-1", "nan/1", "0.5", ((0.1,), ("a",)), 3, None)
)
def test_normalisations_that_mean_nothing(value):
    if value == "":
        return  # as auto
    with pytest.raises(InputError, match="normalise must be auto, one of dc, pixels"):
        parse_normalise(value, data().spec)


def test_one_number_stands_for_all_channels():
    assert parse_normalise("0.5/0.25", data().spec).mean == (0.5,) * 3
    assert parse_normalise("0.1,0.2,0.3/1,1,1", data().spec).std == (1.0,) * 3
    assert len({habit.name for habit in habits(data().spec)}) == len(habits(data().spec))


def test_mcnemar_is_exact_and_symmetric():
    a, b = torch.tensor([True] * 9 + [False]), torch.tensor([False] * 6 + [True] * 4)
    assert mcnemar(a, b) == mcnemar(b, a) == pytest.approx(2 * (1 + 7) / 2**7)
    assert mcnemar(a, a) == 1.0


def test_decisions_ask_rather_than_guess():
    "Of two equally good candidates none is taken, unless the names of the layers speak for the dataset's constants"
    from ddrobust_nb.foreign.models import Candidate, Trial

    right = torch.arange(1000) % 3 > 0
    lines = tuple(Candidate("ConvNetD3", habit, right) for habit in habits(data().spec)[:3])
    assert decide(Trial(lines), "torchvision", data().spec)[0] is None
    chosen, why = decide(Trial(lines), "DC family", data().spec)
    assert chosen.habit.name == "dc" and "pixels 66.6%" in why
    worse = dataclasses.replace(lines[0], right=torch.arange(1000) % 2 > 0)
    assert decide(Trial((lines[1], worse)), "DC family", data().spec)[0].habit.name == "pixels"
    nothing = dataclasses.replace(lines[0], right=torch.arange(1000) % 10 == 0)
    assert "at chance" in decide(Trial((nothing,)), "DC family", data().spec)[1]


def test_labels_of_another_order_are_not_taken_for_a_normalisation(tmp_path):
    shifted = make_data(
        data().spec,
        data().train_images,
        (data().train_labels + 3) % 10,
        data().test_images,
        (data().test_labels + 3) % 10,
    )
    file = written(tmp_path / "x.pth", plain(trained("ResNet18-w16", "half")))
    with pytest.raises(InputError, match="cannot be told"):
        load_model(file, shifted)


# ---- grey images


def test_the_dc_family_pads_grey_images_by_three():
    "Its ConvNets pad the first convolution of grey images by 3, also at 32 pixels; the shapes are those of padding 1"
    grey = dataclasses.replace(data().spec, channels=1, size=32, mean=(0.5,), std=(0.25,))
    reading = read_layers(plain(make_network("ConvNetD3-w4-padding=3", grey)), grey)
    assert "ConvNetD3-w4-padding=3" in (reading.name, *reading.variants)
    mnist = dataclasses.replace(grey, size=28)
    assert not any(
        "padding" in name for name in read_layers(plain(make_network("ConvNetD3-w4", mnist)), mnist).variants
    )


@pytest.mark.slow
def test_padding_is_found_by_trying(tmp_path):
    from ddrobust_nb.foundations.datasets import load_data
    from ddrobust_nb.training.fit import Recipe, fit

    digits = load_data("digits")
    recipe = Recipe(epochs=3, lr=0.05, batch=64, check_every=0)
    net = fit(digits, network="ConvNetD3-w8-padding=3", recipe=recipe, device="cpu")
    right = accuracy(net, digits.test_images, digits.test_labels)
    found = given_network(written(tmp_path / "x.pth", plain(net)), digits)
    assert accuracy(found.net, digits.test_images, digits.test_labels) >= right - 0.02


# ---- real images


@pytest.fixture(scope="module")
def cifar10(data_root):
    from ddrobust_nb.foundations.datasets import load_data

    return load_data("cifar10", str(data_root))


@pytest.fixture(scope="module")
def small_convnet(cifar10):
    "Trained once on 2,000 real images"
    from ddrobust_nb.training.fit import Recipe, fit

    chosen = torch.arange(0, len(cifar10.train_labels), len(cifar10.train_labels) // 2000)
    few = dataclasses.replace(
        cifar10, train_images=cifar10.train_images[chosen], train_labels=cifar10.train_labels[chosen]
    )
    recipe = Recipe(epochs=6, lr=0.02, batch=64, check_every=0)
    return fit(few, network="ConvNetD3-w16", recipe=recipe, device="cpu", seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("case", ("plain", "module.", "model_state_dict", "half"))
def test_a_convnet_of_the_dc_family_on_real_images(tmp_path, cifar10, small_convnet, case):
    "Accuracy on all real test images within 0.1 points of the direct computation, constants given and found"
    net = small_convnet
    state = {name: tensor.half().float() if case == "half" else tensor for name, tensor in plain(net).items()}
    by_hand = copy.deepcopy(net)
    by_hand.body.load_state_dict(state)
    mean, std = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2023, 0.1994, 0.2010])
    with torch.no_grad():
        x = (cifar10.test_images.float() / 255 - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
        answers = torch.cat([by_hand.body.eval()(part).argmax(1) for part in x.split(500)])
    right = (answers == cifar10.test_labels).double().mean().item()
    written_state = {
        f"module.{k}" if case == "module." else k: v.half() if case == "half" else v for k, v in state.items()
    }
    file = written(tmp_path / "x.pth", {case: written_state} if case == "model_state_dict" else written_state)
    assert right > 0.3
    for normalise in ("dc", "auto"):
        found = given_network(file, cifar10, normalise=normalise)
        assert accuracy(found.net, cifar10.test_images, cifar10.test_labels) == pytest.approx(
            right, abs=0.001
        ), found.decided

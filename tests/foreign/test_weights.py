"State dicts in every wrapper, with every prefix, in every container: the same tensors, and a sentence for what was left out."

from collections import OrderedDict

import pytest
import torch
from foreign.model_files import PREFIXES, WRAPPERS, data, plain
from safetensors.torch import save_file

from ddrobust_nb.foreign.weights import read_weights_file, split_constants, strip_prefixes
from ddrobust_nb.foundations.core import InputError
from ddrobust_nb.foundations.networks import make_network


@pytest.fixture(scope="module")
def net():
    return make_network("ConvNetD3-w4-norm=batch", data().spec)


def same(found, expected):
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("prefix", PREFIXES)
def test_wrappers_and_prefixes(tmp_path, net, wrapper, prefix):
    state = plain(net)
    torch.save(
        WRAPPERS[wrapper]({prefix + name: tensor for name, tensor in state.items()}), tmp_path / "model.pth"
    )
    weights = read_weights_file(tmp_path / "model.pth")
    same(weights.tensors, state)
    text = " ".join(weights.notes)
    assert all(part in text for part in prefix.split("."))
    assert wrapper in ("nothing", "list") or "the weights are its entry" in text


def test_what_is_left_out_is_named(tmp_path, net):
    state = plain(net)
    torch.save(
        {"model": state, "model_ema": state, "optimizer": {"state": {}}, "epoch": 5}, tmp_path / "a.pth"
    )
    notes = read_weights_file(tmp_path / "a.pth").notes
    assert (
        notes[0] == "the weights are its entry 'model'"
        and notes[1] == "left out: model_ema, optimizer, epoch"
    )
    assert read_weights_file(f"{tmp_path / 'a.pth'}#model_ema").notes[0].endswith("'model_ema'")
    with pytest.raises(InputError, match="no weights named 'x': it has model, model_ema"):
        read_weights_file(f"{tmp_path / 'a.pth'}#x")


def test_a_hash_in_the_name_of_a_file_is_no_entry(tmp_path, net):
    torch.save(plain(net), tmp_path / "run#3.pth")
    same(read_weights_file(tmp_path / "run#3.pth").tensors, plain(net))


@pytest.mark.parametrize("container", ("torch", "torch old", "safetensors"))
def test_missing_counters_are_filled_whatever_the_container(tmp_path, net, container):
    "torch.load keeps a version in the state dict, safetensors does not, and load_state_dict asks it: we do not"
    state = net.body.state_dict()
    bare = OrderedDict(
        (name, tensor.contiguous()) for name, tensor in state.items() if "num_batches" not in name
    )
    bare._metadata = state._metadata
    file = tmp_path / "model"
    if container == "safetensors":
        save_file(dict(bare), file)
    else:
        torch.save(bare, file, _use_new_zipfile_serialization=container == "torch")
    weights = read_weights_file(file)
    assert set(weights.tensors) == set(state) and "missing counters of batch norm filled in" in weights.notes


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float64))
def test_other_floats_become_float32(tmp_path, net, dtype):
    state = {name: t.to(dtype) if t.is_floating_point() else t for name, t in plain(net).items()}
    torch.save(state, tmp_path / "half.pth")
    weights = read_weights_file(tmp_path / "half.pth")
    same(weights.tensors, {name: t.float() if t.is_floating_point() else t for name, t in state.items()})
    assert any(str(dtype)[6:] in note for note in weights.notes)


@pytest.mark.parametrize("value", (float("nan"), float("inf"), 1e300))
def test_weights_that_are_not_finite_in_float32_are_refused(tmp_path, net, value):
    state = plain(net)
    state["features.4.bias"] = state["features.4.bias"].double()
    state["features.4.bias"][1] = value
    torch.save(state, tmp_path / "nan.pth")
    with pytest.raises(InputError, match=r"NaN or infinite values \(first in features.4.bias\)"):
        read_weights_file(tmp_path / "nan.pth")


@pytest.mark.parametrize(
    "content, say",
    (
        ({"images": torch.zeros(2, 3, 8, 8), "labels": torch.arange(2)}, "as distilled"),
        (torch.zeros(3, 3), "one tensor of shape"),
        ([torch.zeros(3), torch.zeros(4)], "trajectories"),
        ({"epoch": 3, "args": {"lr": 1.0}}, "no state dict"),
        ({}, "no state dict"),
        (
            {"teacher": {"a.weight": torch.zeros(1)}, "student": {"a.weight": torch.zeros(1)}},
            "several networks",
        ),
        ({"a.weight": torch.zeros(2, dtype=torch.complex64), "b.weight": torch.zeros(2)}, "complex64"),
    ),
)
def test_files_without_weights(tmp_path, content, say):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(InputError, match=say):
        read_weights_file(tmp_path / "x.pt")


def test_a_pickled_network_is_refused_without_running_it(tmp_path, net):
    torch.save(net.body, tmp_path / "whole.pth")
    with pytest.raises(InputError, match="state_dict"):
        read_weights_file(tmp_path / "whole.pth")


@pytest.mark.parametrize("form", ("ours", "robustbench", "sequential", "beside", "bytes"))
def test_constants_in_the_file(tmp_path, net, form):
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.25])
    state, expected = plain(net), plain(net)
    if form == "ours":
        state = {"normalise.mean": mean.view(1, 3, 1, 1), "normalise.std": std.view(1, 3, 1, 1)}
        state |= {f"body.{name}": tensor for name, tensor in expected.items()}
    elif form == "robustbench":
        state |= {"mu": mean.view(1, 3, 1, 1), "sigma": std.view(1, 3, 1, 1)}
    elif form == "sequential":
        state = {"0.mean": mean, "0.std": std} | {f"1.{name}": tensor for name, tensor in expected.items()}
    elif form == "beside":
        state = {"model": state, "mean": mean.tolist(), "std": std.tolist()}
    else:
        state = {"net": state, "mean": (255 * mean).tolist(), "std": (255 * std).tolist()}
    torch.save(state, tmp_path / "x.pth")
    weights = read_weights_file(tmp_path / "x.pth")
    same(weights.tensors, expected)
    torch.testing.assert_close(torch.tensor(weights.constants), torch.stack([mean, std]), rtol=0, atol=1e-6)


def test_statistics_of_norms_are_no_constants():
    state = {"bn.running_mean": torch.zeros(3), "bn.running_var": torch.ones(3), "loss.mean": torch.zeros(7)}
    assert split_constants(state) == (state, None)


def test_a_head_beside_its_backbone_is_kept_and_a_loss_is_not():
    names = [f"backbone.conv{i}.weight" for i in range(9)] + ["fc.weight", "fc.bias", "criterion.centers"]
    state, taken, left_out = strip_prefixes(dict.fromkeys(names))
    assert taken == "backbone" and left_out == ("criterion.centers",)
    assert {"fc.weight", "fc.bias", "conv0.weight"} <= set(state)

"Networks that would normalise single pixels are refused, whatever their name, before anything is trained."

import pytest
import torch
from torch import nn

from ddrobust_nb.foundations.core import InputError
from ddrobust_nb.foundations.data import Spec
from ddrobust_nb.foundations.depth import single_pixel_norms
from ddrobust_nb.foundations.networks import make_network, network, parse_network
from ddrobust_nb.results.plan import check_network


def spec(size):
    return Spec("demo", classes=4, size=size, channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.mark.parametrize("name", [*network, "ConvNetD1", "ConvNetD2-norm=group", "ResNet18GN-stem=imagenet"])
def test_made_networks_answer_differently_to_different_images(name):
    "For every registered network and every small size: refused in a sentence, or two images get two answers"
    refused = []
    for size in (1, 2, 3, 4, 8, 9, 12, 16, 28, 32, 64):
        try:
            net = make_network(f"{name.split('-')[0]}-w8" + name[len(name.split("-")[0]) :], spec(size))
        except InputError as error:
            assert f"images of {size} pixels" in str(error)
            refused.append(size)
            continue
        images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            answers = net.eval()(images)
        assert (answers[0] - answers[1]).abs().max() > 1e-4, (name, size)
    assert 64 not in refused or "imagenet" in name
    assert 1 not in refused or sorted(refused) == refused


@pytest.mark.parametrize("device", ("cpu", "meta"))
def test_the_refusal_names_network_layer_and_size(device):
    message = "ResNet18GN-w8 is too deep for images of 8 pixels: layer4.0.bn1 .* images of 9 pixels or more"
    with pytest.raises(InputError, match=message):
        make_network("ResNet18GN-w8", spec(8), device=device)
    make_network("ResNet18GN-w8", spec(9), device=device)
    make_network("ResNet18-w8", spec(8), device=device)  # batch norm has the other images


def test_planning_refuses_it_too():
    from tiny import tiny_data

    with pytest.raises(InputError, match="too deep for images of 8 pixels"):
        check_network("ResNet18GN-w8", tiny_data(size=8))


def test_looking_leaves_no_hooks_and_no_random_numbers_behind():
    body = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(4, 4), nn.AdaptiveAvgPool2d(1), nn.InstanceNorm2d(4)
    )
    assert single_pixel_norms(body, torch.zeros(2, 1, 8, 8)) == ["3"]
    assert not any(module._forward_pre_hooks for module in body.modules())
    before = torch.get_rng_state()
    make_network("ResNet18GN-w4", spec(20))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "name, options",
    (
        ("ConvNetD3-w16", dict(width=16)),
        ("ConvNetD2-norm=batch-w4", dict(width=4, norm="batch")),
        ("ResNet18-stem=imagenet", dict(stem="imagenet")),
        ("ConvNetD3-padding=3", dict(padding=3)),
    ),
)
def test_a_name_holds_its_options(name, options):
    assert parse_network(name, spec(32))[1] == options
    made = make_network(name, spec(32), device="meta")
    assert parse_network(made.name, spec(32))[1] == options
    assert make_network(made.name, spec(32), device="meta").name == made.name


@pytest.mark.parametrize(
    "name, say",
    (
        ("ConvNetD3-w4-w8", "width twice"),
        ("ConvNetD3-width=4", "width twice or in full"),
        ("ConvNetD3-norm=", "is not a name"),
        ("ConvNetD3-norm=x", "norm"),
        ("ConvNetD3-depth=2", "unknown option"),
        ("ConvNetD0", "unknown network"),
        ("ConvNetD3-w6-norm=group", "multiple of 4"),
        ("ConvNetD3-padding=9", "padding must be"),
    ),
)
def test_names_that_mean_nothing(name, say):
    with pytest.raises(InputError, match=say):
        make_network(name, spec(32), device="meta")

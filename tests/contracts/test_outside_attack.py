"An attack in a file outside the package is found, run, counted, checked, priced and labelled, with no other line changed."

import importlib.util

import pytest
import torch

from ddrobust_nb.attacks.attack import attack, check_attack_name, group_configs, parse_attacks
from ddrobust_nb.attacks.checks import not_weaker
from ddrobust_nb.attacks.robustness import evaluate, work_per_survivor
from ddrobust_nb.attacks.running import attack_group
from ddrobust_nb.foundations.core import InputError
from ddrobust_nb.foundations.data import as_pixels
from ddrobust_nb.foundations.networks import make_network
from ddrobust_nb.results.report import attack_label
from tiny import tiny_data

FILE = """from ddrobust_nb.attacks.attack import attack


@attack(label="Fading", shares="eps", one_step=True, not_weaker_than=("uniform",))
def fade(model, x, y, configs):
    "Moves every pixel towards grey"
    model(x)  # shared by all eps
    for config in configs:
        change = (0.5 - x).clamp(-config.eps_value, config.eps_value)
        yield x + change
"""


@pytest.fixture
def fade(tmp_path):
    "The attack of a file that somebody else wrote"
    path = tmp_path / "fade.py"
    path.write_text(FILE, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("fade", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module.fade
    attack.pop("fade", None)


@pytest.fixture(scope="module")
def world():
    data = tiny_data(counts=(6, 6, 6, 6), tests=5)
    return make_network("ConvNetD3-w8", data.spec).eval(), data


def test_it_is_registered(fade):
    assert attack["fade"] is fade
    check_attack_name("fade")
    assert (fade.short, fade.label, fade.has_steps) == ("FADE", "Fading", False)
    with pytest.raises(InputError, match="did you mean 'fade'"):
        check_attack_name("fdae")


def test_it_gives_images(fade, world):
    net, data = world
    x = as_pixels(data.test_images)
    right = net(x).argmax(1)
    adv = fade(net, x, right, eps="8/255")
    assert (adv - x).abs().max() <= 8 / 255 + 1e-6
    assert torch.equal(adv, x + (0.5 - x).clamp(-8 / 255, 8 / 255))


def test_one_run_serves_all_eps(fade, world):
    net, data = world
    x = as_pixels(data.test_images)
    right = net(x).argmax(1)
    [group] = group_configs(parse_attacks("fade@8/255,fade@2/255"))
    first, second = attack_group(net, x, right, group)
    n = len(x)
    assert (first.forwards, second.forwards) == (n + n + n, n), "is it right, the shared pass, two verdicts"


def test_it_is_evaluated_as_text(fade, world):
    net, data = world
    small, large = evaluate(net, data, "fade@2/255,fade@64/255", device="cpu")
    x = as_pixels(data.test_images)
    for evaluation in (small, large):
        eps = evaluation.config.eps_value
        answers = net(x + (0.5 - x).clamp(-eps, eps)).argmax(1)
        right = net(x).argmax(1) == data.test_labels
        assert torch.equal(evaluation.flags, right & (answers == data.test_labels))


def test_it_is_priced_and_compared(fade):
    fading, noise = parse_attacks("fade@2/255,uniform@2/255")
    assert work_per_survivor([fading], classes=10) > 0
    assert not_weaker(fading, noise) == ("strength", 0.1)


def test_it_is_labelled(fade):
    assert attack_label("fade") == "Fading"
    assert parse_attacks("fade@2/255")[0].label == "FADE"


def test_without_it_rows_keep_their_name():
    "Rows of somebody who has the attack are tabled by somebody who has not"
    assert attack_label("fade") == "fade"
    with pytest.raises(InputError, match="unknown attack 'fade'"):
        parse_attacks("fade@2/255")


def test_too_few_results_are_found_out(world):
    "A shared run must yield one result for each setting"
    net, data = world

    @attack(shares="eps")
    def miscounts(model, x, y, configs):
        yield x

    group = parse_attacks("miscounts@2/255@10,miscounts@8/255@10")
    x = as_pixels(data.test_images)
    try:
        with pytest.raises(RuntimeError, match="yielded 1 of 2 results"):
            attack_group(net, x, net(x).argmax(1), group)
    finally:
        del attack["miscounts"]

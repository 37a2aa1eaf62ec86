"Whole evaluations: groups, resuming, work ahead, cost."

import copy

import pytest
import torch
from attack_worlds import ordered
from attack_worlds import smooth_world as world
from tiny import tiny_data
from torch import nn

from ddrobust_nb.attacks import apgd as apgd_module
from ddrobust_nb.attacks import fab as fab_module
from ddrobust_nb.attacks import running
from ddrobust_nb.attacks import square as square_module
from ddrobust_nb.attacks.attack import (
    AttackConfig,
    attack_list,
    group_configs,
    parse_attacks,
)
from ddrobust_nb.attacks.autoattack import PARTS, autoattack_flags
from ddrobust_nb.attacks.robustness import (
    Evaluation,
    ModelEvaluation,
    evaluate,
    expected_cost,
    parts_of,
    run_group,
    work_per_survivor,
)
from ddrobust_nb.attacks.running import (
    attack_images,
)
from ddrobust_nb.fast.queries import (
    CountedModel,
)
from ddrobust_nb.foundations.core import InputError
from ddrobust_nb.foundations.data import Spec, as_pixels, make_data


@pytest.mark.parametrize("right", ((False, True), (True, False), (False, False)))
def test_evaluate_on_images_in_the_order_of_their_classes(right):
    net, x, y, there = ordered(right, each=128)
    spec = Spec("ordered", 4, 12, 1, (0.5,), (0.25,))
    data = make_data(spec, x[:4], torch.arange(4), (x * 255).round().byte(), y)
    with torch.no_grad():
        there = net(as_pixels(data.test_images)).argmax(1) == y
    for e in evaluate(net, data, parse_attacks("pgd@0/255@2,cw@0/255@2,fgsm@0/255"), device="cpu"):
        assert torch.equal(e.flags, there) and (e.config.attack == "fgsm" or torch.equal(e.always, there))


@pytest.fixture(scope="module")
def cell():
    "Data of four classes and a model that is right on most of it"
    from ddrobust_nb.training.fit import Recipe, fit

    data = tiny_data((12, 13, 14, 12), tests=20)
    return data, fit(
        data, network="ConvNetD3-w8", recipe=Recipe(epochs=15, batch=16, check_every=0), device="cpu"
    )


GRID = "fgsm@4/255,fgsm@16/255,pgd@8/255@3,pgd@8/255@6,apgd-ce@8/255,apgd-t@8/255,fab-t@8/255,square@8/255,fab-t@16/255,aa-quick@4/255,aa-quick@8/255,aa-quick@16/255"


def test_an_evaluation_is_its_attacks(cell):
    data, net = cell
    configs = parse_attacks(GRID, "aa-quick")
    found = evaluate(net, data, configs, n_test=40, device="cpu")
    assert [e.config for e in found] == configs
    alone = [evaluate(net, data, [t], n_test=40, device="cpu")[0] for t in configs]
    assert all(torch.equal(a.flags, b.flags) for a, b in zip(found, alone))
    by = {str(e.config): e for e in found}
    parts = {name: by[f"{name}@8/255"].flags for name in PARTS}
    assert (
        torch.equal(by["aa-quick@8/255"].flags, autoattack_flags(parts))
        and 0 < by["aa-quick@8/255"].robust < 1
    )
    assert (
        all(e.always is None or (e.always <= e.flags).all() for e in found)
        and by["pgd@8/255@6"].always is not None
    )
    assert sum(e.gradients for e in found) < sum(e.gradients for e in alone)


def test_no_autoattack_without_its_parts(cell):
    data, net = cell
    configs = parse_attacks("apgd-ce@8/255,apgd-t@8/255,fab-t@8/255,square@8/255,aa-quick@8/255", "aa-quick")
    run = ModelEvaluation(net, data, configs, n_test=20, device="cpu")
    for group in run.groups:
        run.add(e for e in run.attack(group) if e.config.attack != "fab-t")
    with pytest.raises(InputError, match="fab-t missing"):
        run.results()


@pytest.mark.parametrize(
    "text",
    ("pgd@8/255@3,pgd@8/255@6", "fab-t@4/255,fab-t@8/255", "square@8/255", "aa-quick@4/255,aa-quick@8/255"),
)
def test_killed_and_resumed(cell, text, monkeypatch):
    data, net = cell
    monkeypatch.setattr(running, "chunk_size", lambda *a: 16)
    monkeypatch.setenv("DDROBUST_AUTOSAVE", "0")
    [group] = group_configs(parse_attacks(text, "aa-quick"))

    def run(**options):
        return run_group(
            net, data.test_images, data.test_labels, torch.arange(60), group, device="cpu", **options
        )

    whole, states = run(), []

    def stop(state):
        states.append(copy.deepcopy(state))
        if len(states) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(save=stop)
    assert 0 < states[-1]["done"] < 60
    for a, b in zip(whole, run(state=states[-1])):
        assert torch.equal(a.flags, b.flags) and (a.gradients, a.forwards) == (b.gradients, b.forwards)


def test_the_rent_is_paid_once(monkeypatch):
    "What the model has had goes from chunk to chunk and from attack to attack, in a resumed run as in a whole one: it is compiled at the same image"
    data, told = tiny_data(counts=(12,) * 4, tests=15), []
    net = nn.Sequential(nn.Flatten(), nn.Linear(data.test_images[0].numel(), 4)).eval()
    monkeypatch.setattr(
        running,
        "CountedModel",
        lambda model, y, passes: told.append(passes) or CountedModel(model, y, passes),
    )
    monkeypatch.setattr(running, "chunk_size", lambda *_: 16)
    monkeypatch.setenv("DDROBUST_AUTOSAVE", "0")
    states, configs = [], parse_attacks("pgd@8/255@5")

    def run(**options):
        return run_group(
            net,
            data.test_images,
            data.test_labels,
            torch.arange(60),
            configs,
            device="cpu",
            passes=7,
            **options,
        )

    whole = run(save=states.append)
    per_chunk, told[:] = list(told), []
    assert len(per_chunk) == 4 and per_chunk[0] == 7 and sorted(set(per_chunk)) == per_chunk
    assert per_chunk[-1] < 7 + whole[0].passes <= per_chunk[-1] + 16 * 18
    run(state=states[1])
    assert told == per_chunk[2:]
    told[:] = []
    evaluate(net, data, parse_attacks("fgsm@8/255,pgd@8/255@5,square@8/255", "aa-quick"), device="cpu")
    first = told[::4]
    assert first[0] == 0 < first[1] <= first[2]  # equal where what was expected is what it took


def test_a_winter_known_beforehand_is_not_rented(monkeypatch):
    "Attacks that go on after their first class, or their first squares, say what lies ahead; nothing is expected of what breaks at once"
    seen = {}
    for name, module in (("apgd-t", apgd_module), ("fab-t", fab_module), ("square", square_module)):
        monkeypatch.setattr(
            module,
            "expect_passes",
            lambda model, passes, name=name: seen.setdefault(name, []).append(int(passes)),
        )
        net, x, y = world(n=40)
        for eps in ("1/255", "255/255"):
            seen.pop(name, None)
            flags = attack_images(net, x, y, AttackConfig(name, eps, preset="aa-quick")).flags
            survivors = int(flags.sum())
            if eps == "255/255":
                assert survivors == 0 and (name not in seen or max(seen[name]) < 2000)
            else:
                assert (
                    survivors > 0
                    and max(seen[name])
                    >= survivors * {"apgd-t": 2 * 30, "fab-t": 2 * 40, "square": 250}[name]
                )


def test_the_cost_is_known_beforehand(cell):
    "For an image that survives everything the count is exact"
    data, net = cell
    for t in parse_attacks(
        "pgd@0/255@6,apgd-ce@0/255,apgd-t@0/255,fab-t@0/255,square@0/255,aa-quick@0/255", "aa-quick"
    ):
        (e,) = evaluate(net, data, [t], n_test=20, device="cpu")
        n, said = int(e.flags.sum()), work_per_survivor([t], 4)
        did = (3 * e.gradients + (e.forwards - e.gradients)) / n
        if t.attack not in ("square", "autoattack"):
            assert abs(did - said) <= 0.12 * said + 4, str(t)
        else:
            assert did <= 1.12 * said + 4, str(t)  # at eps 0 no candidate of Square is new
    cost = expected_cost(net, data, attack_list("paper"), n_test=40, device="cpu")
    assert 0 < cost.seconds <= cost.most and "if every image survived" in str(cost)


def test_evaluations_know_their_parts():
    t = AttackConfig("autoattack", "1/255", preset="aa-paper", backend="torchattacks")
    assert [str(p) for p in parts_of(t)] == [f"torchattacks:{part}@1/255" for part in PARTS] and {
        p.preset for p in parts_of(t)
    } == {"aa-paper"}
    assert Evaluation(AttackConfig("fgsm"), torch.arange(2), torch.tensor([True, False])).robust == 0.5


def test_what_is_no_dataset_or_returns_no_logits_is_refused():
    "One sentence, no AttributeError"

    class Pair(torch.nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :3], None

    with pytest.raises(InputError, match="data must be a dataset"):
        evaluate(Pair().eval(), "digits", "fgsm")
    with pytest.raises(InputError, match="must return one tensor of logits"):
        evaluate(Pair().eval(), tiny_data(), "fgsm", n_test=9, device="cpu")

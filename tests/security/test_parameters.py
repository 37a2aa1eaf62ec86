"Parameters that nobody means: one sentence, at once, and nothing is written"

import re

import pytest

from ddrobust_nb.all import table
from ddrobust_nb.attacks.attack import AttackConfig, parse_attack, ready_to_run, write_size
from ddrobust_nb.foundations.core import InputError, check_choice, check_int, shown
from ddrobust_nb.foundations.data import digits
from ddrobust_nb.foundations.outside import check_plain
from ddrobust_nb.results import limits
from ddrobust_nb.results.parameters import PARAMETERS
from ddrobust_nb.results.plan import plan_cell, summary
from ddrobust_nb.results.report import results_table
from ddrobust_nb.training.distiller import distiller, own_options

HUGE = 10**5000
SMALL = dict(
    network="ConvNetD3-w4", distill_network="ConvNetD3-w4", n_test=10, n_models=1, attacks="fgsm@8/255"
)


@pytest.fixture(scope="module")
def data():
    return digits()


@pytest.fixture
def plan(tmp_path, data):
    "Plans a small cell with some parameters"

    def plan_with(**given):
        return plan_cell(data=data, **{**SMALL, "store": str(tmp_path / "store"), **given})

    return plan_with


def refusal(plan, **given):
    "The sentence by which a plan is refused"
    with pytest.raises(InputError) as caught:
        plan(**given)
    text = str(caught.value)
    assert "\n" not in text and 20 < len(text) < 900
    return text


WRONG = [
    HUGE,
    -HUGE,
    float("nan"),
    float("inf"),
    10**30,
    [HUGE],
    {"a": HUGE},
    {"a": [[[[[[[[1]]]]]]]]},
    "x" * 10**6,
]


@pytest.mark.parametrize("name", [name for name in PARAMETERS if name != "store"])
@pytest.mark.parametrize("value", WRONG, ids=shown)
def test_no_parameter_ends_in_a_traceback(plan, name, value):
    assert name in refusal(plan, **{name: value})


@pytest.mark.parametrize("method", list(distiller))
@pytest.mark.parametrize("value", WRONG[:-1], ids=shown)
def test_no_option_ends_in_a_traceback(plan, method, value):
    for option in own_options(method):
        given = dict(method=method, options={option: value}, network="auto", distill_network="auto")
        assert option in refusal(plan, **given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (dict(options={"iterations": 10**15}), "distilling would send"),
        (dict(method="dc", options={"outer": 10**14}, ipc=1), "distilling would send"),
        (dict(options={"iterations": 1e30}), "must be a finite number from"),
        (dict(options={"lr_img": 1e308}), "lr_img must be a finite number"),
        (dict(attacks="pgd@8/255@1000000000000000"), "the attacks would send"),
        (dict(attacks="pgd@8/255@" + "9" * 31), "steps must be a whole number from 1"),
        (dict(network="ResNet18-w4096"), "ResNet18-w4096 needs at least"),
        (dict(network="ResNet18GN-w4096"), "ResNet18GN-w4096 needs at least"),
        (dict(distill_network="ResNet18-w3000"), "ResNet18-w3000 needs at least"),
        (dict(attacks=",".join(["fgsm@8/255"] * 100_000)), "at most 100000 letters, got 1099999"),
        (
            dict(method="mtt", options={"n_experts": 10**9}),
            "n_experts must be a whole number from 1 to 10000",
        ),
        (dict(seed=10**14), "seed must be a whole number from 0 to 10000000000000"),
        (dict(out="/"), "no folder of its own"),
        (dict(out="~"), "no folder of its own"),
        (dict(network="ConvNetD3-w" + "9" * 30), "from 1 to 4096"),
        (dict(network="ConvNetD3-w" + "9" * 5000), "at most 4096 letters"),
    ],
    ids=shown,
)
def test_absurd_sizes_are_refused_with_their_number(plan, monkeypatch, given, words):
    monkeypatch.setattr(limits, "memory_of_machine", lambda device: 64 * 2**30)
    assert words in refusal(plan, **given)


def test_large_but_possible_sizes_are_planned(plan, monkeypatch):
    "A long distillation, many steps and a wide network are somebody's experiment"
    monkeypatch.setattr(limits, "memory_of_machine", lambda device: 64 * 2**30)
    for given in (
        dict(options={"iterations": 200_000}),
        dict(attacks="pgd@8/255@10000"),
        dict(network="ResNet18-w256"),
        dict(seed=123_456_789),
    ):
        plan(**given)


@pytest.mark.parametrize("name", ["results.json", "cell.json", "flags.safetensors"])
def test_a_folder_where_a_file_will_be_written(plan, tmp_path, name):
    (tmp_path / "out" / name).mkdir(parents=True)
    assert name in refusal(plan, out=str(tmp_path / "out"))


def test_a_value_is_shown_on_one_short_line():
    for value in (HUGE, [HUGE], "x\n" * 1000, {"a": {"b": "c" * 500}}, b"\0" * 500, object(), None, 1.5):
        assert len(shown(value)) <= 60 and "\n" not in shown(value)
    assert shown("text") == "'text'" and shown(5) == "5" and "5001 digits" in shown(HUGE)


def test_checks_show_what_they_refuse():
    for check in (
        lambda: check_int("ipc", HUGE, 1, 10),
        lambda: check_choice("select", HUGE, ("last",)),
        lambda: check_choice("select", "x" * 10**6, ("last",)),
        lambda: write_size("eps", "9" * 5000 + "/255"),
        lambda: ready_to_run([AttackConfig(attack="pgd", eps="8/255", steps=HUGE)]),
    ):
        with pytest.raises(InputError) as caught:
            check()
        assert len(str(caught.value)) < 900


def test_plain_values_pass():
    check_plain("options", {"a": [1, 2.5, None, True, "text"], "b": {"c": -(2**53)}})


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0.5/255", "1/510"),
        ("4./255", "4/255"),
        (".5/255", "1/510"),
        ("8.0/255", "8/255"),
        ("2.55/255", "1/100"),
    ],
)
def test_eps_as_the_field_writes_it(text, size):
    assert write_size("eps", text) == size and parse_attack(f"pgd@{text}@10").eps == size
    assert parse_attack(f"pgd@{text}@10") == parse_attack(f"pgd@{size}@10")


def test_no_rows_make_an_empty_table():
    assert len(results_table([])) == len(table([])) == 0


def test_none_means_the_attacks_of_the_protocol(plan):
    "And the plan that is shown names them"
    for neutral in (None, "", "auto"):
        cell = plan(attacks=neutral)
        assert cell.configs == plan(attacks="quick").configs
        assert all(str(config) in summary(cell) for config in cell.configs)
    assert not plan(attacks="none").configs
    assert re.search("attacks: 0 settings .* none", summary(plan(attacks="none")))


def test_a_network_of_somebody_else_has_no_size_that_we_know(data):
    "A card may name any network; that alone refuses nothing"
    assert limits.size_of("NoSuchNet", data.spec) == limits.NetworkSize()
    known = limits.size_of("ConvNetD3-w16", data.spec)
    assert known.parameters > 1000 and known.work >= limits.LEAST_WORK


def test_none_from_a_terminal_means_the_attacks_of_the_protocol(plan):
    "As papermill reads `-p attacks None`; in quotes it is a text, and no attack has that name"
    from papermill.cli import _resolve_type

    assert _resolve_type("None") is None
    assert plan(attacks=_resolve_type("None")).key == plan(attacks="auto").key
    with pytest.raises(InputError, match="unknown attack 'None': did you mean 'none'"):
        plan(attacks="None")

"Settings and their short forms, named lists, and which settings share a run."

import pytest
from attack_worlds import needs_torchattacks

from ddrobust_nb.attacks.attack import (
    AttackConfig,
    at_eps,
    attack_list,
    group_configs,
    parse_attacks,
)
from ddrobust_nb.attacks.autoattack import PARTS
from ddrobust_nb.foundations.core import InputError


@pytest.mark.parametrize(
    "text, say",
    (
        ("pgd@-1/255", "between 0 and 1"),
        ("pgd@2", "between 0 and 1"),
        ("pgd@x", "a fraction"),
        ("pgd@2/0", "a fraction"),
        ("pgd@2/255@0", "steps must be"),
        ("pgd@2/255@1.5", "whole number"),
        ("pgd@2/255@5@3", "NAME"),
        ("@2/255", "NAME"),
        ("fgsm,", "NAME"),
        ("pdg", "did you mean 'pgd'"),
        ("fgsm@2/255@3", "one step"),
        ("square@2/255@100", "preset"),
        ("ta:PGF", "did you mean 'PGD'"),
        ("ta:CW", "not bounded by eps"),
        ("ta:", "torchattacks"),
        ("headlin", "did you mean 'headline'"),
        ("aa-fast", "unknown attack"),
        ("ta", "unknown"),
        ("PGD", "did you mean"),
    ),
)
def test_bad_grammar(text, say):
    with pytest.raises(InputError, match=say):
        attack_list(text)


def test_named_lists():
    rows = [(t.attack, t.eps, t.steps) for t in attack_list("paper")]
    assert len(rows) == len(set(rows)) == 33
    assert [sum(r[0] == name for r in rows) for name in ("fgsm", "pgd", "cw", *PARTS, "autoattack")] == [
        3,
        5,
        5,
        4,
        4,
        4,
        4,
        4,
    ]
    assert {t.preset for t in attack_list("paper")} == {"", "aa-paper"} and {
        t.alpha for t in attack_list("paper") if t.alpha
    } == {"2/255"}
    assert {t.eps for t in attack_list("quick", "digits")} == {"8/255", "32/255"} and {
        t.eps for t in attack_list("quick", "cifar10")
    } == {"2/255", "8/255"}
    assert attack_list("auto", protocol="full") == attack_list("headline") and attack_list("none") == []
    assert len(attack_list("aa-quick@1/255,aa-quick@1/255")) == 1
    assert [t.attack for t in attack_list("headline")] == ["fgsm", "pgd", "cw", "autoattack"] and {
        t.preset for t in attack_list("headline")
    } == {"", "aa-standard"}


@pytest.mark.parametrize("k", (1, 2, 3, 4, 8, 32))
def test_eps_is_exact(k):
    assert (
        AttackConfig("pgd", f"{k}/255").eps_value == k / 255 and AttackConfig("pgd", f"{k}/255").eps_255 == k
    )
    assert AttackConfig("pgd", round(k / 255, 10)).eps == f"{k}/255" == AttackConfig("pgd", k / 255).eps


def test_short_form_goes_round():
    needs_torchattacks()
    for config in attack_list(
        "fgsm@3/255,pgd@0.03@7,cw@8/255@1,aa-quick@2/255,ta:VMIFGSM@4/255@5,torchattacks:aa-paper@1/255,pyautoattack:fab-t@1/255"
    ):
        preset = config.preset or "aa-standard"
        assert parse_attacks(str(config), preset) == [config]
    assert at_eps(AttackConfig("pgd", "4/255"), "32/255").alpha == "8/255" and at_eps(
        AttackConfig("fgsm"), "8/255"
    ) == AttackConfig("fgsm", "8/255")


def test_what_shares_a_run():
    runs = [[str(t) for t in run] for run in group_configs(attack_list("paper"))]
    assert (
        ["fgsm@2/255", "fgsm@4/255", "fgsm@8/255"] in runs
        and ["pgd@2/255@5", "pgd@2/255@10"] in runs
        and ["pgd@8/255@10"] in runs
    )
    for name in (*PARTS, "aa-paper"):
        assert [f"{name}@{k}/255" for k in (1, 2, 3, 4)] in runs
    assert sum(map(len, runs)) == 33
    assert len(group_configs(parse_attacks("pyautoattack:fab-t@1/255,pyautoattack:fab-t@2/255"))) == 2, (
        "a library shares nothing"
    )

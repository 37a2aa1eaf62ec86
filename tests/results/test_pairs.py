"Two cells compared image by image: from their rows, in Python and by the command."

from dataclasses import replace

import pytest
import torch
from result_rows import ROW
from scipy.stats import binomtest

from ddrobust_nb.attacks.paired_test import mcnemar
from ddrobust_nb.foundations.core import InputError
from ddrobust_nb.grid.command import command
from ddrobust_nb.results.pairs import compare_rows, pairs_notes, pairs_table, rows_at
from ddrobust_nb.results.rows import digest_of_index, flags_to_hex, write_results

N = 40
CLEAN = torch.arange(N) < 36
ROBUST = {"a": torch.arange(N) < 20, "b": (torch.arange(N) < 30) & (torch.arange(N) >= 2)}


def rows(name, models=1, **changes):
    "Rows of some models that are right on the same images"
    robust = ROBUST[name]
    row = replace(
        ROW,
        method=name,
        n=N,
        flags=flags_to_hex(robust),
        clean_flags=flags_to_hex(CLEAN),
        clean_n=CLEAN.double().mean().item(),
        robust=robust.double().mean().item(),
        index_digest=digest_of_index(torch.arange(N)),
        **changes,
    )
    return [replace(row, seed=seed, model_key=f"{name}{seed}", key=f"{name}{seed}") for seed in range(models)]


def test_counts_and_the_exact_test():
    "Ten images only the second gets right, two only the first"
    clean, attacked = compare_rows(rows("a"), rows("b"))
    assert clean.a.clean and clean.comparison.difference == 0 and clean.tests == [1.0]
    assert attacked.tests == [binomtest(2, 12).pvalue]
    assert sorted(attacked.differing) == [0, 1, *range(20, 30)]
    line = pairs_table([clean, attacked]).iloc[1]
    assert (line["first %"], line["second %"], line["only first %"], line["only second %"]) == (50, 70, 5, 25)


def test_one_test_for_each_pair_of_models():
    "Two models against three: two pairs"
    _, attacked = compare_rows(rows("a", models=2), rows("b", models=3))
    assert attacked.tests == [mcnemar(ROBUST["a"], ROBUST["b"])] * 2
    assert pairs_table([attacked]).iloc[0]["models"] == "2 and 3"


def test_what_differs_is_named():
    notes = pairs_notes(compare_rows(rows("a"), rows("b", ipc=10)))
    assert notes[:2] == ["They differ in method: 'a' and 'b'.", "They differ in ipc: 1 and 10."]


@pytest.mark.parametrize(
    "change",
    [
        {"eps": "2/255", "eps_255": 2.0},
        {"index_digest": "0" * 16},
        {"data_fingerprint": "0" * 16},
        {"attack": "pgd", "steps": 10},
    ],
)
def test_only_the_same_images_under_the_same_attack(change):
    "Another attack leaves the clean lines; other images leave nothing"
    first = rows("a")
    others = [replace(row, **change) for row in rows("b")]
    if "attack" in change or "eps" in change:
        assert [pair.a.clean for pair in compare_rows(first, others)] == [True]
    else:
        with pytest.raises(InputError, match="have no line in common"):
            compare_rows(first, others)


def test_rows_without_flags_are_refused():
    with pytest.raises(InputError, match="hold no flags"):
        compare_rows(rows("a"), [replace(row, flags="", clean_flags="") for row in rows("b")])


def test_the_command(tmp_path, capsys):
    "Two folders of finished cells"
    for name in ROBUST:
        write_results(rows(name), tmp_path / name)
    assert command(["compare", str(tmp_path / "a"), str(tmp_path / "b" / "results.json")]) == 0
    printed = capsys.readouterr().out
    assert "-20.0" in printed and "They differ in method: 'a' and 'b'." in printed
    with pytest.raises(InputError, match="there is nothing at"):
        command(["compare", str(tmp_path / "a"), str(tmp_path / "c")])


def test_the_baseline_of_a_cell_is_left_out_and_equal_models_are_named():
    "Rows of random images beside a method are no experiment of their own here"
    baseline = [replace(row, method="random") for row in rows("a")]
    pairs = compare_rows(rows("b") + baseline, rows("b") + baseline)
    assert {(pair.a["method"], pair.b["method"]) for pair in pairs} == {("b", "b")}
    assert pairs_notes(pairs)[0] == "Both are the same models."
    assert len(compare_rows(baseline, rows("b"))) == 2  # A cell of random images is one


def test_a_cell_is_found_by_its_name(tmp_path):
    write_results(rows("a"), tmp_path / "cells" / "tiny-a-ipc1-0123")
    assert len(rows_at("tiny-a-ipc1-0123", store=str(tmp_path))) == 1

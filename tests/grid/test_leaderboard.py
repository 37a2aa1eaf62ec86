"The leaderboard: only equal conditions share a place, and impossible submissions are named."

import json
from dataclasses import asdict, replace

import pytest

from ddrobust_nb.attacks.checks import CheckCode
from ddrobust_nb.grid.leaderboard import check_submission, standings
from ddrobust_nb.grid.tables import (
    rows_of_store,
)
from ddrobust_nb.results.store import write_json


def test_only_equal_conditions_share_a_place(undisturbed):
    rows = rows_of_store(undisturbed[0])
    apart = [replace(r, protocol="full") for r in rows if r.method == "random"] + [
        r for r in rows if r.method == "dm"
    ]
    assert (
        set(standings(apart)["place"]) == {1}
        and set(standings(rows)["place"]) == {1, 2}
        or len({r.robust for r in rows}) == 1
    )


def test_a_submission_is_checked(undisturbed, tmp_path):
    rows = [r for r in rows_of_store(undisturbed[0]) if r.method == "dm"]

    def submit(rows, **card):
        write_json(
            tmp_path / "card.json", dict(method="dm", authors="A. Body", source="https://example.org") | card
        )
        write_json(tmp_path / "results.json", [asdict(r) for r in rows])
        return check_submission(tmp_path)

    assert submit(rows) == []
    assert "lacks authors" in submit(rows, authors=" ")[0]
    assert "begins with http" in submit(rows, source="javascript:x")[0]
    assert "the card says 'other'" in submit(rows, method="other")[0]
    assert "above the clean accuracy" in " ".join(submit([replace(rows[0], robust=1.0)]))
    assert "not possible with 20 images" in " ".join(submit([replace(rows[0], robust=0.123)]))
    assert "drop_rate is" in submit([replace(rows[0], drop_rate=0.987)])[0]
    assert "holds no rows" in submit([])[0]
    assert "`strength` says" in submit([replace(rows[0], warnings=("strength",))])[0]
    assert submit([replace(rows[0], warnings=("saturation",))]) == []
    invented = submit([replace(row, warnings=("saturation", "weak")) for row in rows[:2]])
    assert len(invented) == 1 and "warnings name weak, but the codes of self-checks are range" in invented[0]
    assert all(str(code) in invented[0] for code in CheckCode)


@pytest.mark.parametrize(
    "what, text",
    [
        (dict(eps_255=1.0), "eps_255 must be"),
        (dict(eps_255=None), "eps_255 must be"),
        (dict(steps=0), "steps must be 1"),
        (dict(steps=-3), "steps must be 1"),
        (dict(n_clean=-1), "n_clean must be"),
        (dict(n=0), "n must be"),
        (dict(n=200_000), "the test set has"),
        (dict(severity=9), "severity"),
        (dict(origin="made up"), "origin must be"),
        (dict(flags="zz"), "flags"),
        (dict(flags="ff"), "flags"),
        (dict(flags="f" * 6), "flags say"),
    ],
)
def test_rows_that_cannot_be_are_named(undisturbed, tmp_path, what, text):
    row = asdict(next(r for r in rows_of_store(undisturbed[0]) if r.method == "dm" and r.robust < 1))
    write_json(tmp_path / "card.json", dict(method="dm", authors="A. Body", source="https://example.org"))
    write_json(tmp_path / "results.json", [row | what])
    assert text in " ".join(check_submission(tmp_path))


def test_one_model_cannot_have_two_results(undisturbed, tmp_path):
    row = asdict(next(r for r in rows_of_store(undisturbed[0]) if r.method == "dm"))
    write_json(tmp_path / "card.json", dict(method="dm", authors="A. Body", source="https://example.org"))
    write_json(
        tmp_path / "results.json",
        [row, row | dict(robust=0.05, drop_rate=1 - 0.05 / row["clean_n"], flags="")],
    )
    assert "another row of the same model" in " ".join(check_submission(tmp_path))


@pytest.mark.parametrize(
    "what",
    [
        dict(ipc=[1]),
        dict(steps="x"),
        dict(preset=None),
        dict(n=1e19),
        dict(alpha="1/0"),
        dict(drop_rate="0.5"),
        dict(set_seed={}),
        dict(n=0),
        dict(n=-3),
        dict(ipc=0),
        dict(robust="1"),
        dict(clean=2.0),
        dict(data_fingerprint=None),
        dict(warnings=3),
        dict(versions=7),
        dict(n=10**400),
        dict(alpha=[]),
        dict(norm=5),
        dict(commit={}),
        dict(clean_n=-0.5),
        dict(unknown_field=1),
    ],
)
def test_a_strange_submission_is_answered_in_sentences(undisturbed, tmp_path, what):
    row = asdict(next(r for r in rows_of_store(undisturbed[0]) if r.method == "dm"))
    write_json(tmp_path / "card.json", dict(method="dm", authors="A. Body", source="https://example.org"))
    (tmp_path / "results.json").write_text(json.dumps([row | what]))
    wrong = check_submission(tmp_path)
    assert (wrong or what == dict(preset=None)) and all("\n" not in w for w in wrong)

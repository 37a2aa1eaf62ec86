"The packaged tables of the paper: every printed number is found by one question, and by that one only."

import csv
import itertools
from collections import Counter
from decimal import Decimal
from importlib.resources import files

import pandas as pd
import pytest

from ddrobust_nb.foundations.core import InputError
from ddrobust_nb.results.paper import (
    PAPER_ATTACK_NAMES,
    PAPER_DATASET_NAMES,
    PAPER_METHOD_NAMES,
    paper_anomalies,
    paper_cell,
    paper_claims,
    paper_drop_rates,
    paper_recovered,
    paper_results,
    paper_row,
    paper_settings,
    paper_table,
)

COUNTS = {
    "I": 465,
    "II": 30,
    "III": 180,
    "VI": 372,
    "VII": 558,
    "VIII": 558,
    **dict.fromkeys(("IX", "X", "XI", "XII", "XIII"), 465),
    "XIV": 144,
    "XV": 216,
    "XVI": 216,
    **dict.fromkeys(("XVII", "XVIII", "XIX", "XX", "XXI"), 180),
    "XXII": 90,
    "XXIII": 85,
}
OTHERS = {"IV": 72, "V": 30, "XXVIII": 30, "XXIV": 105, "XXV": 105, "XXVI": 63, "XXVII": 7}
# Of the numbers as printed, added up when they were copied from the paper: one wrong digit in a file changes its sum
SUMS = {
    "I": "6532.23",
    "VI": "4934.25",
    "VII": "5192.45",
    "VIII": "5018.81",
    "IX": "5779.62",
    "X": "5996.10",
    "XI": "5781.65",
    "XII": "5839.94",
    "XIII": "7369.82",
    "II": "226.11",
    "III": "3964.00",
    "XIV": "2708.00",
    "XV": "2934.00",
    "XVI": "2838.00",
    "XVII": "3349.40",
    "XVIII": "3413.20",
    "XIX": "3348.80",
    "XX": "3387.60",
    "XXI": "4687.60",
    "XXII": "149.470",
    "XXIII": "319.147",
    "IV": "40.0464",
    "V": "1330.71",
    "XXVIII": "1329.59",
}


def packaged(name):
    with (files("ddrobust_nb") / "paper_data" / f"{name}.csv").open(encoding="utf-8") as f:
        return list(csv.DictReader(f))


def ours(names):
    return {theirs: name for name, theirs in names.items()}


def question(row):
    "The arguments of paper_cell that lead to a row of results.csv, written here apart from the package's own tables of names"

    def number(text):
        return int(text) if text else None

    ipc = None if row["ipc"] == "whole" else int(row["ipc"])
    return (
        row["dataset"].lower().replace("-", ""),
        row["method"].lower(),
        ipc,
        row["attack"].lower(),
        number(row["eps_255"]),
        number(row["steps"]),
    )


def test_every_table_has_its_rows():
    assert Counter(paper_results()["table"]) == COUNTS and len(COUNTS | OTHERS) == 28
    for name, n in (COUNTS | OTHERS).items():
        assert len(paper_table(name)) == n and set(paper_table(name)["table"]) == {name}


@pytest.mark.parametrize("name", SUMS)
def test_the_numbers_of_every_table_add_up(name):
    assert sum(map(Decimal, paper_table(name)["printed"])) == Decimal(SUMS[name])


def test_a_table_that_is_not_in_the_paper():
    for name in ("XXIX", "4", "iv", 4, None):
        with pytest.raises(InputError, match="unknown table .*known: I, II, III, IV, IX, V, .*XXVIII$"):
            paper_table(name)
    with pytest.raises(InputError, match="known: XXIV, XXV, XXVI, XXVII$"):
        paper_settings("I")


def test_every_row_is_found_by_its_question():
    rows = packaged("results")
    assert len(rows) == 6139
    for row in rows:
        found = paper_row(*question(row))
        assert row["table"] in found.tables and found.network == row["model"]
        digits = len(row["value"].partition(".")[2])
        assert abs(100 * found.value - float(row["value"])) <= (
            0.5001 * 10**-digits if row["table"] == "II" else 1e-9
        ), row
        assert paper_cell(*question(row)) == found.value


def test_every_row_is_found_by_no_other_question():
    "All questions that can be put together from the paper's settings: the tables they return add up to the printed rows, each once"
    found = Counter()
    settings = [
        ("none", None, None),
        *(
            (a, e, s)
            for a in PAPER_ATTACK_NAMES
            if a != "none"
            for e in (1, 2, 3, 4, 8)
            for s in ((5, 10) if a in ("pgd", "cw") else (None,))
        ),
    ]
    for dataset, method, ipc, (attack, eps, steps) in itertools.product(
        PAPER_DATASET_NAMES, PAPER_METHOD_NAMES, (None, 1, 5, 10, 30, 50), settings
    ):
        row = paper_row(dataset, method, ipc, attack, eps, steps)
        if row:
            found.update((t, dataset, method, ipc, attack, eps, steps) for t in row.tables)
    assert max(found.values()) == 1 and sum(found.values()) == 6139
    assert Counter(cell[0] for cell in found) == COUNTS

    def steps_of(q):
        return None if q[3] == "fgsm" else q[5]

    assert set(found) == {
        (row["table"], *question(row)[:5], steps_of(question(row))) for row in packaged("results")
    }


def test_the_frame_agrees_with_the_file_row_by_row():
    for row, tidy in zip(packaged("results"), paper_results().astype(object).itertuples(), strict=True):
        assert row["value"] == tidy.printed and float(row["value"]) == pytest.approx(
            100 * tidy.value, abs=1e-9
        )
        values = [None if pd.isna(v) else v for v in (tidy.ipc, tidy.eps_255, tidy.steps)]
        assert (tidy.dataset, tidy.method, values[0], tidy.attack, *values[1:]) == question(row)
        assert tidy.network == row["model"] and 0 <= tidy.value <= 1


def test_the_mixing_tables():
    for row, tidy in zip(
        packaged("mixing"), [*paper_table("V").itertuples(), *paper_table("XXVIII").itertuples()], strict=True
    ):
        assert (row["table"], row["mixed_method"].lower(), row["value"]) == (
            tidy.table,
            tidy.method,
            tidy.printed,
        )


def test_the_frequency_table():
    table = paper_table("IV")
    assert list(table.columns) == [
        "table",
        "dataset",
        "method",
        "ipc",
        "band",
        "threshold",
        "value",
        "printed",
    ]
    for row, tidy in zip(packaged("frequency_similarity"), table.itertuples(), strict=True):
        assert (
            row["dataset"].lower().replace("-", ""),
            row["method"].lower(),
            int(row["ipc"]),
            row["band"],
            row["similarity"],
        ) == (tidy.dataset, tidy.method, tidy.ipc, tidy.band, tidy.printed)
        assert tidy.value == float(row["similarity"]) and 0 < tidy.value < 1 and tidy.threshold == 4
    assert len(table.drop_duplicates(["dataset", "method", "ipc", "band"])) == 72 and not table.isna().any(
        axis=None
    )


def test_the_settings_are_tables_too():
    for name in ("XXIV", "XXV", "XXVI", "XXVII"):
        pd.testing.assert_frame_equal(paper_table(name), paper_settings(name))
    lost = sum((paper_table(name)["value"] == "").sum() for name in ("XXIV", "XXV", "XXVI", "XXVII"))
    assert len(packaged("hyperparameters")) == 280 and lost == 93


def test_drop_rates():
    "Each against the printed strings, in decimals and apart from the package's own reading"
    rates, expected = paper_drop_rates(), []
    rows = packaged("results") + [dict(row, method=row["mixed_method"], ipc="") for row in packaged("mixing")]
    clean = {
        (row["table"], row["dataset"], row["method"], row["ipc"]): Decimal(row["value"])
        for row in rows
        if row["attack"] == "none"
    }
    for row in rows:
        if row["attack"] != "none":
            expected.append(
                (
                    row["table"],
                    row["attack"].lower(),
                    clean[row["table"], row["dataset"], row["method"], row["ipc"]],
                    Decimal(row["value"]),
                )
            )
    assert len(rates) == len(expected) == 5002
    for (table, attack, before, after), tidy in zip(expected, rates.itertuples(), strict=True):
        assert (table, attack) == (tidy.table, tidy.attack) and (tidy.clean, tidy.robust) == pytest.approx(
            (float(before) / 100, float(after) / 100), abs=1e-9
        )
        assert tidy.drop_rate == pytest.approx(float((before - after) / before), abs=1e-9)
    odd = rates[rates["drop_rate"] < 0]
    assert odd[["table", "dataset", "method", "ipc", "attack", "eps_255"]].values.tolist() == [
        ["XII", "cifar100", "dc", 1, "fab-t", 4.0]
    ]
    assert rates["drop_rate"].max() <= 1 and rates["drop_rate"].iloc[0] == pytest.approx(0.255970, abs=1e-6)


def test_anomalies_claims_and_recovered():
    odd = paper_anomalies()
    assert odd["level"].value_counts().to_dict() == {
        "noise": 64,
        "note": 37,
        "wrong_setting": 30,
        "likely_typo": 5,
        "suspect": 4,
        "format": 3,
    }
    for row, tidy in zip(packaged("anomalies"), odd.astype(object).itertuples(), strict=True):
        assert (row["table"], row["value"], row["other_value"], row["check"], row["why"]) == (
            tidy.table,
            tidy.printed,
            tidy.other_value,
            tidy.check,
            tidy.why,
        )
        if row["table"] not in ("IV", "V", "XXVIII"):
            assert question(row) == tuple(
                None if pd.isna(v) else v
                for v in (tidy.dataset, tidy.method, tidy.ipc, tidy.attack, tidy.eps_255, tidy.steps)
            )
    cell = ["table", "dataset", "method", "ipc", "attack", "eps_255", "steps", "printed"]
    assert (
        len(
            odd[odd["table"] != "IV"].merge(
                pd.concat([paper_results(), paper_table("V"), paper_table("XXVIII")]), on=cell
            )
        )
        == 142
    )  # every cell is printed there
    claims = paper_claims()
    assert (
        list(claims.columns) == ["claim", "holds", "evidence"]
        and Counter(claims["holds"]) == {"yes": 9, "partly": 6}
        and (claims["evidence"].str.len() > 20).all()
    )
    found = paper_recovered()
    assert (
        Counter(found["status"]) == {"upstream": 31, "found": 17, "not found": 14, "inferred": 4}
        and (found["source"] != "").all()
    )
    assert ((found["value"] == "") == (found["status"] == "not found")).all()


@pytest.mark.parametrize(
    "cell, value",
    [
        (("cifar10", "dc", 1, "none"), 0.2973),
        (("cifar10", "dc", 1, "fgsm", 2), 0.2212),
        (("imagenette", "mtt", 1, "autoattack", 1), 0.294),
        (("imagenette", "mtt", 1, "autoattack", 2), 0.166),
        (("cifar10", "dsa", 50, "pgd", 2, 10), 0.1481),
    ],
)
def test_values_read_from_the_paper(cell, value):
    assert paper_cell(*cell) == pytest.approx(value, abs=1e-9)


def test_where_two_tables_differ_in_digits_the_longer_one_is_given():
    row = paper_row("imagenet1k", "sre2l", 1, "autoattack", 2)
    assert (row.printed, row.table, row.tables) == ("0.014", "XXII", ("XXII", "II"))
    assert paper_row("cifar10", "dm", 1, "pgd", 2, 10).table == "VII"


def test_numbers_may_come_from_a_data_frame():
    import numpy as np

    expected = paper_cell("cifar10", "dm", 10, "pgd", 2, 10)
    assert paper_cell("cifar10", "dm", 10.0, "pgd", np.float64(2), np.int64(10)) == expected
    assert paper_cell("cifar10", "whole", float("nan"), "autoattack", 255 * (2 / 255), pd.NA) == paper_cell(
        "cifar10", "whole", "whole", "autoattack", 2
    )
    for row in paper_table("XXII").itertuples():
        assert paper_cell(
            row.dataset, row.method, row.ipc, row.attack, row.eps_255, row.steps
        ) == pytest.approx(row.value, abs=1e-9)


def test_every_anomaly_that_matters_stands_with_its_cell():
    said = 0
    for row in packaged("anomalies"):
        if row["table"] in ("IV", "V", "XXVIII"):
            continue
        note = paper_row(*question(row)).note
        assert (row["why"] in note) == (row["level"] not in ("noise", "format"))
        said += row["why"] in note
    assert said == 30 + 4 + 4 + 16
    assert paper_row("cifar10", "dm", 10, "fgsm", 2).note == ""


@pytest.mark.parametrize(
    "cell",
    [
        ("digits", "dm", 1, "pgd", 8, 10),
        ("folder:/data/birds", "dm", 1, "none"),
        ("cifar10", "random", 1, "none"),
        ("cifar10", "unknown", None, "none"),
        ("cifar10", "dm", None, "none"),
        ("cifar10", "whole", 10, "none"),
        ("cifar10", "dm", 2, "none"),
        ("cifar10", "dm", 1, "pgd", 3, 10),
        ("cifar10", "dm", 1, "pgd", 2, 20),
        ("cifar10", "dm", 1, "fgsm", 2, 10),
        ("cifar10", "dm", 1, "autoattack", 8),
        ("imagenette", "dm", 1, "none"),
        ("cifar10", "dm", 1, "apgd-ce", 2, 10),
        ("cifar10", "dm", 1, "ta:TIFGSM", 8, 10),
    ],
)
def test_what_the_paper_has_not_is_none(cell):
    assert paper_cell(*cell) is None and paper_row(*cell) is None


@pytest.mark.parametrize(
    "cell, message",
    [
        (("cifar", "dm", 1, "none"), "unknown dataset 'cifar'"),
        (("cifar10", "dmm", 1, "none"), "unknown method 'dmm': did you mean 'dm'"),
        (("cifar10", "dm", 1, "pgdd", 2, 10), "unknown attack 'pgdd': did you mean 'pgd'"),
        ((10, "dm", 1, "none"), "unknown dataset 10"),
        (("digits", "dmm", 1, "none"), "unknown method"),
        (("digits", "dm", 1, "pgdd"), "unknown attack"),
        (("digits", "dm", "ten", "none"), "ipc must be"),
        (("cifar10", "dm", 0, "none"), "ipc must be"),
        (("cifar10", "dm", True, "none"), "ipc must be"),
        (("cifar10", "dm", float("inf"), "none"), "ipc must be"),
        (("cifar10", ["dm"], 1, "none"), "unknown method"),
        (("cifar10", "dm", 1, None), "an attack is named"),
        (("cifar10", "dm", 1, "pgd", None, 10), "needs eps_255: the paper has 2, 4, 8"),
        (("cifar10", "dm", 1, "cw", 2), "needs steps"),
        (("cifar10", "dm", 1, "pgd", "2/255", 10), "2 for 2/255"),
        (("cifar10", "dm", 1, "pgd", 2 / 255, 10), "2 for 2/255"),
        (("cifar10", "dm", 1, "pgd", 2, 2.5), "steps must be"),
        (("cifar10", "dm", 1, "clean", 2), "leave both out"),
    ],
)
def test_questions_without_sense_are_errors(cell, message):
    with pytest.raises(InputError) as error:
        paper_cell(*cell)
    assert message in str(error.value)


def test_a_registered_name_is_known_and_has_no_cell(monkeypatch):
    from ddrobust_nb.foundations.datasets import dataset
    from ddrobust_nb.training.distiller import distiller

    monkeypatch.setitem(dataset, "birds", None)
    monkeypatch.setitem(distiller, "mine", None)
    for name in dataset:
        assert paper_cell(name, "mine", 1, "none") is None
    assert paper_cell("birds", "dm", 1, "none") is None


def test_frames_are_the_callers_own():
    frame = paper_results()
    frame["value"] = 0
    assert paper_results()["value"].max() > 0.8 and paper_table()["value"].max() > 0.8
    for read in (
        paper_claims,
        paper_recovered,
        paper_anomalies,
        paper_drop_rates,
        lambda: paper_table("IV"),
        lambda: paper_table("XXIV"),
        lambda: paper_settings("XXVI"),
    ):
        frame = read()
        frame[frame.columns[0]] = "changed"
        assert "changed" not in set(read()[frame.columns[0]])

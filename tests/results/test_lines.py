"Lines of tables: nothing averaged that does not belong together, nothing counted twice."

from collections import defaultdict
from dataclasses import asdict, fields, replace

import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from result_rows import row_fields

from ddrobust_nb.foundations.core import InputError
from ddrobust_nb.grid.leaderboard import standings
from ddrobust_nb.results.columns import caption_of, cell_columns
from ddrobust_nb.results.lines import (
    CONDITION,
    IDENTITY,
    RECORDED,
    best_of,
    compare_lines,
    deviation,
    experiments_of,
    lines_of,
    spread_of,
)
from ddrobust_nb.results.report import footnotes, plot_rows, results_table
from ddrobust_nb.results.rows import Result, flags_to_hex, digest_of, results_frame

PLAIN = row_fields(
    dataset="digits",
    method="dm",
    set_key="k0",
    best=False,
    attack="pgd",
    backend="",
    eps="8/255",
    eps_255=8.0,
    eps_unit="pixel value",
    random_start=True,
    n_clean=500,
    clean=0.8,
    clean_last=0.8,
    clean_best=0.8,
    n=100,
    clean_n=0.8,
    drop_rate=0.375,
    warnings=(),
    data_fingerprint="f0",
    index_digest="i0",
    origin="distilled",
    labels="hard",
    options={"iterations": 60},
    options_digest="o0",
    recipe={"epochs": 300},
    recipe_digest="r0",
    source_model="",
    control_of="",
    adversarial="",
    corruption="",
    flags="",
    clean_flags="",
    model_key="m0",
    key="a0",
    format=2,
)


def row(**what):
    return Result(**(PLAIN | what))


def attacked(rows):
    return [line for line in lines_of(rows) if not line.clean]


# ---- three lists


def test_every_field_stands_in_exactly_one_list():
    listed = [*CONDITION, *IDENTITY, *RECORDED]
    assert sorted(listed) == sorted(f.name for f in fields(Result)) and len(set(listed)) == len(listed)


OTHER = dict(
    ipc=2,
    n_clean=501,
    eps_255=16.0,
    steps=5,
    alpha="1/255",
    random_start=False,
    n=50,
    severity=3,
    options={"iterations": 20},
)


@pytest.mark.parametrize("name", [*CONDITION, *IDENTITY])
def test_rows_that_differ_in_a_condition_or_an_identity_are_two_lines(name):
    other = row(**{name: OTHER.get(name, "another"), "model_key": "m1", "seed": 1})
    lines = attacked([row(), other])
    expected = 1 if name in ("options", "recipe") else 2  # these two are compared by their digests
    assert len(lines) == expected and (expected == 1 or [line.models for line in lines] == [1, 1])


@pytest.mark.parametrize("name", RECORDED)
def test_what_is_recorded_splits_nothing(name):
    value = {"warnings": ("noise",), "best": True}.get(
        name,
        1
        if name in ("seed", "set_seed", "format")
        else "x"
        if isinstance(PLAIN[name], str) or PLAIN[name] is None
        else 0.25,
    )
    assert len(attacked([row(), row(**{"model_key": "m1", "seed": 1, name: value})])) == 1


CHANGES = {
    name: [PLAIN[name], OTHER.get(name, "another")]
    for name in (*CONDITION, *IDENTITY)
    if name not in ("options", "recipe")
}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(
            st.fixed_dictionaries({}, optional={n: st.sampled_from(v) for n, v in CHANGES.items()}),
            st.integers(0, 3),
            st.booleans(),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_no_line_mixes_two_groups_and_models_are_distinct_keys(drawn):
    rows = []
    for change, seed, twice in drawn:
        made = row(**{**change, "seed": seed, "model_key": f"model {seed}", "robust": seed / 4})
        rows += [made] * (2 if twice else 1)
    groups = defaultdict(set)
    for r in rows:
        groups[tuple(getattr(r, n) for n in CHANGES)].add(r.model_key)
    lines = attacked(rows)
    found = {tuple(line[n] for n in CHANGES): set(line.all("model_key")) for line in lines}
    assert found == groups and all(
        line.models == len(found[tuple(line[n] for n in CHANGES)]) for line in lines
    )
    assert results_table(rows).query("attack != 'clean'")["models"].sum() == sum(map(len, groups.values()))
    assert all(spread_of(line).mean == pytest.approx(sum(line.values) / line.models) for line in lines)


def test_two_ways_to_write_a_size_are_one_condition():
    assert len(attacked([row(), row(alpha="4/510", eps="16/510", model_key="m1")])) == 1


# ---- models and sets


def test_a_row_given_twice_is_one_model():
    rows = [row(seed=s, model_key=f"m{s}") for s in (0, 1)]
    assert attacked(rows * 3)[0].models == 2 and standings(rows * 2)["models"].tolist() == [2]


def test_an_old_and_a_new_row_of_one_model_are_one():
    new = row(flags="ff", n=8, robust=0.25)
    (line,) = attacked([replace(new, flags="", model_key=""), new])
    assert line.models == 1 and line["flags"] == "ff"


def test_models_of_one_seed_on_two_sets_are_two():
    (line,) = attacked([row(model_key="", set_key="k0"), row(model_key="", set_key="k1", set_seed=1)])
    assert (line.models, line.sets) == (2, 2)


def test_several_sets_have_a_spread_of_their_own():
    values = {("k0", 0): 0.50, ("k0", 1): 0.54, ("k1", 0): 0.60, ("k1", 1): 0.64}
    rows = [
        row(set_key=k, set_seed=int(k[1]), seed=s, model_key=f"{k}{s}", robust=v)
        for (k, s), v in values.items()
    ]
    t = results_table(rows).query("attack != 'clean'").iloc[0]
    assert (t["accuracy %"], t["models"], t["sets"], t["± over sets"]) == ("57.00 ± 2.83", 4, 2, "7.07")
    assert "sets" not in results_table(rows[:2]).columns
    assert "students of one set" in footnotes(rows)[0]


@pytest.mark.parametrize(
    "values, sets, students, between",
    [
        ([], [], None, None),
        ([0.5], ["a"], None, None),
        ([0.5, None], ["a", "a"], None, None),
        ([0.5, 0.7], ["a", "b"], None, 0.1414),
        ([1.0, 1.0], ["a", "a"], 0.0, None),
    ],
)
def test_deviation_on_the_ends(values, sets, students, between):
    d = deviation(values, sets)
    assert (d.students, d.sets) == (students, pytest.approx(between, abs=1e-4) if between else None)


def test_the_best_of_several_sets_is_the_best():
    rows = [
        row(set_key="k0", best=True, clean=0.7, robust=0.4),
        row(set_key="k1", set_seed=1, model_key="m1", best=True, clean=0.9, robust=0.3),
    ]
    assert best_of(attacked(rows)[0]) == 0.3


# ---- what was given


@pytest.mark.parametrize(
    "change, together",
    [
        ({}, False),  # the cards name one seed, the contents differ
        (dict(set_seed=1), True),
        (dict(set_seed=1, options_digest="o1"), False),
        (dict(set_seed=1, method="mtt"), False),
    ],
)
def test_two_given_sets(change, together):
    a, b = (
        row(origin="given set"),
        row(**{**dict(origin="given set", set_key="k1", model_key="m1"), **change}),
    )
    assert len(attacked([a, b])) == (1 if together else 2)


@pytest.mark.parametrize("what", [dict(options=None, options_digest=""), dict(method="unknown")])
def test_files_without_a_card_are_experiments_of_their_own(what):
    rows = [row(origin="given set", set_key=f"k{i}", set_seed=i, model_key=f"m{i}", **what) for i in (0, 1)]
    assert len(attacked(rows)) == 2
    t = results_table(rows)
    assert t["from"].nunique() == 2 and t["models"].tolist() == [1] * 4


def test_two_checkpoints_of_one_network_are_two_lines():
    rows = [
        row(
            origin="given model",
            set_key="",
            set_seed=None,
            options=None,
            options_digest="",
            recipe=None,
            recipe_digest="",
            labels="",
            method="unknown",
            model_key=f"c{i}",
            robust=i / 4,
        )
        for i in (1, 2)
    ]
    assert len(attacked(rows)) == 2 and sorted(
        results_table(rows).query("attack != 'clean'")["accuracy %"]
    ) == [
        "25.00",
        "50.00",
    ]
    named = [
        replace(r, method="dm", options={}, options_digest="o0", set_seed=0, seed=i)
        for i, r in enumerate(rows)
    ]
    assert len(attacked(named)) == 1 and len(attacked([replace(r, seed=0) for r in named])) == 2


def test_old_sets_of_one_seed_and_two_contents_are_two_lines():
    rows = [row(origin="", options=None, options_digest="", set_key=k, model_key="") for k in ("k0", "k1")]
    assert len(attacked(rows)) == 2 and len(attacked([rows[0], replace(rows[1], set_seed=1)])) == 1


def test_given_and_distilled_here_are_two_lines():
    rows = [row(), row(origin="given set", model_key="m1")]
    assert set(results_table(rows)["from"]) == {"distilled", "given set"}


# ---- columns and captions


@pytest.mark.parametrize(
    "change, column, texts",
    [
        (dict(dataset="cifar10"), "dataset", {"digits", "cifar10"}),
        (dict(data_fingerprint="f1"), "data", {"f0", "f1"}),
        (dict(protocol="full"), "protocol", {"quick", "full"}),
        (dict(select="best_test"), "checkpoint", {"last", "best_test"}),
        (dict(network="ResNet18"), "network", {"ConvNetD3", "ResNet18"}),
        (dict(distill_network="ResNet18"), "distilled with", {"ConvNetD3", "ResNet18"}),
        (dict(labels="soft"), "labels", {"hard", "soft"}),
        (
            dict(options={"iterations": 20}, options_digest="o1"),
            "options",
            {"iterations 60", "iterations 20"},
        ),
        (dict(options=None, options_digest=""), "options", {"recorded", "not recorded"}),
        (dict(recipe={"epochs": 5}, recipe_digest="r1"), "training", {"epochs 300", "epochs 5"}),
        (dict(origin=""), "from", {"distilled", "not recorded"}),
        (dict(alpha="1/255"), "step size", {"–", "2/255", "1/255"}),
        (dict(random_start=False), "random start", {"–", "yes", "no"}),
        (dict(index_digest="i1"), "which images", {"–", "i0", "i1"}),
        (dict(norm="L2"), "norm", {"–", "Linf", "L2"}),
    ],
)
def test_a_column_appears_where_lines_of_one_method_differ(change, column, texts):
    t = results_table([row(), row(**{"model_key": "m1", **change})])
    assert set(t[column]) == texts and set(t[t["attack"] != "clean"]["models"]) == {1}
    usual = {
        "method",
        "ipc",
        "attack",
        "eps",
        "accuracy %",
        "95 % interval",
        "drop rate %",
        "best model %",
        "paper %",
        "images",
        "models",
    }
    assert set(results_table([row(), row(model_key="m1")]).columns) == usual
    assert set(t.columns) == usual | {column}


def test_methods_may_have_other_options():
    rows = [
        row(),
        row(
            method="dc",
            options={"outer": 5},
            options_digest="o9",
            recipe_digest="r9",
            recipe={"augment": ""},
            model_key="m1",
        ),
    ]
    assert not {"options", "training"} & set(results_table(rows).columns)


def test_options_may_change_with_the_images_per_class():
    "Presets differ between one image per class and ten: that is no difference between lines of one method"
    rows = [
        row(),
        row(
            ipc=10,
            options={"iterations": 20},
            options_digest="o1",
            recipe={"epochs": 1},
            recipe_digest="r1",
            model_key="m1",
        ),
    ]
    assert not {"options", "training"} & set(results_table(rows).columns) and not {
        "options",
        "training",
    } & set(standings(rows).columns)


def test_steps_of_a_library_attack_are_told():
    t = results_table([row(attack="ta:TIFGSM", steps=s, model_key=f"m{s}") for s in (1, 50)])
    assert t.query("attack != 'clean'")["attack"].tolist() == ["ta:TIFGSM, 1 step", "ta:TIFGSM, 50 steps"]


def test_a_caption_says_what_is_the_same():
    assert caption_of(lines_of([row()])) == "digits, ConvNetD3, protocol quick, checkpoint last"
    assert "digits" not in caption_of(lines_of([row(), row(dataset="cifar10")]))


def test_bars_of_two_experiments_are_two():
    rows = [
        row(seed=s, model_key=f"{d}{s}", dataset=d, robust=r)
        for d, r in (("digits", 0.5), ("cifar10", 0.1))
        for s in (0, 1)
    ]
    axes = plot_rows(rows).axes[0]
    assert sorted({round(p.get_height(), 6) for p in axes.patches}) == [10, 50, 80]
    assert {t.get_text() for t in axes.get_legend().get_texts()} == {"dm, digits", "dm, cifar10"}


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [row()],
        [
            row(
                attack="none",
                robust=None,
                eps="",
                eps_255=None,
                steps=None,
                alpha=None,
                drop_rate=None,
                random_start=None,
            )
        ],
        [row(robust=0.0, clean=0.0, clean_n=0.0, drop_rate=None)],
        [row(robust=1.0, clean=1.0, clean_n=1.0, drop_rate=0.0)],
    ],
    ids=["none", "one", "clean", "0 %", "100 %"],
)
def test_tables_and_figures_on_the_ends(rows):
    assert len(results_table(rows)) == len(lines_of(rows)) and isinstance(footnotes(rows), list)
    plot_rows(rows)
    assert len(standings(rows)) == len(attacked(rows))


# ---- the leaderboard


@pytest.mark.parametrize(
    "change",
    [
        dict(n=10, index_digest="i1"),
        dict(data_fingerprint="f1"),
        dict(alpha="1/255000"),
        dict(steps=1),
        dict(random_start=False),
        dict(backend="torchattacks"),
        dict(norm="L2"),
        dict(preset="aa-quick"),
        dict(index_digest="i1"),
        dict(n_clean=400),
    ],
)
def test_only_equal_conditions_are_ranked(change):
    board = standings([row(), row(**{"method": "mine", "robust": 0.9, "model_key": "m1", **change})])
    assert board["place"].tolist() == [1, 1] and board["condition"].nunique() == 2


def test_equal_conditions_are_ranked():
    board = standings(
        [
            row(),
            row(method="mine", robust=0.9, model_key="m1"),
            row(method="also", robust=0.9, model_key="m2"),
        ]
    )
    assert board["condition"].nunique() == 1 and dict(zip(board["method"], board["place"])) == {
        "mine": 1,
        "also": 1,
        "dm": 3,
    }


def test_experiments_of_one_method_are_ranked_apart():
    board = standings(
        [row(), row(options={"iterations": 20}, options_digest="o1", robust=0.9, model_key="m1")]
    )
    assert board["place"].tolist() == [1, 2] and board["options"].tolist() == [
        "iterations 20",
        "iterations 60",
    ]


# ---- comparisons


def flagged(method, p, **what):
    g = torch.Generator().manual_seed(hash(p) % 1000)
    return [
        row(
            method=method,
            seed=s,
            model_key=f"{method}{s}",
            flags=flags_to_hex(torch.rand(100, generator=g) < p),
            clean_flags=flags_to_hex([True] * 100),
            **what,
        )
        for s in range(3)
    ]


def test_a_comparison_is_that_of_the_flags():
    a, b = attacked(flagged("dm", 0.9)), attacked(flagged("dc", 0.2))
    found = compare_lines(a[0], b[0])
    assert found.clear and found.models == (3, 3) and found.images == 100 and found.difference > 0.5


@pytest.mark.parametrize(
    "change, text",
    [
        (dict(dataset="cifar10"), "dataset"),
        (dict(steps=1), "steps"),
        (dict(index_digest="i9"), "index_digest"),
        (dict(network="ResNet18"), "network"),
    ],
)
def test_unequal_conditions_are_not_compared(change, text):
    a, b = attacked(flagged("dm", 0.9)), attacked(flagged("dc", 0.2, **change))
    with pytest.raises(InputError, match=text):
        compare_lines(a[0], b[0])


def test_rows_without_flags_are_not_compared():
    with pytest.raises(InputError, match="hold no flags"):
        compare_lines(attacked([row()])[0], attacked(flagged("dc", 0.2))[0])


def test_frames_and_rows_give_the_same_lines():
    rows = [row(seed=s, model_key=f"m{s}", steps=k) for s in (0, 1) for k in (None, 10)]
    a, b = lines_of(rows), lines_of(results_frame(rows))
    assert [(x.clean, x.models, x.values) for x in a] == [(x.clean, x.models, x.values) for x in b]
    assert (
        len(experiments_of(results_frame(rows))) == 2
        and isinstance(cell_columns(a), dict)
        and asdict(rows[0])
        and isinstance(digest_of({}), str)
        and isinstance(results_frame(rows), pd.DataFrame)
    )


# ---- what a fresh pair of eyes found


def test_real_images_are_one_set_beside_every_method():
    "Their key names the network of the method beside them, although none chose them"

    def random(key, seed=0, set_seed=0, robust=0.5):
        return row(
            method="random",
            distill_network="",
            options={},
            options_digest="",
            set_key=key,
            model_key=f"{key}{seed}",
            seed=seed,
            set_seed=set_seed,
            robust=robust,
        )

    (line,) = attacked([random("a"), random("b"), random("b", robust=0.5)])
    assert (line.models, line.sets) == (1, 1)
    (line,) = attacked(
        [random("a", robust=0.6), random("b", robust=0.6), random("a", seed=100, set_seed=1, robust=0.7)]
    )
    assert (line.models, line.sets, spread_of(line).mean) == (2, 2, pytest.approx(0.65))


@pytest.mark.parametrize(
    "change",
    [
        dict(select="best_test"),
        dict(network="ResNet18"),
        dict(recipe_digest="r1"),
        dict(labels="soft"),
        dict(protocol="full"),
    ],
)
def test_an_old_row_is_named_after_the_model_of_its_own_line(change):
    new, other = row(model_key="K1"), row(model_key="K2", **change)
    old = replace(new, model_key="")
    for rows in ([old, new, other], [old, other, new], [other, old, new], [new, other, old]):
        assert [line.models for line in attacked(rows)] == [1, 1]


def test_bars_of_two_settings_have_two_places_and_two_labels():
    changes = [
        {},
        dict(alpha="1/255"),
        dict(random_start=False),
        dict(n=50, index_digest="i1"),
        dict(norm="L2"),
        dict(attack="ta:TIFGSM", steps=5),
        dict(attack="ta:TIFGSM", steps=10),
        dict(severity=2),
    ]
    axes = plot_rows([row(model_key=f"m{i}", **change) for i, change in enumerate(changes)]).axes[0]
    labels = [t.get_text() for t in axes.get_xticklabels()]
    assert len(labels) == len(set(labels)) == 1 + len(changes)
    assert len({round(p.get_x() + p.get_width() / 2, 3) for p in axes.patches}) == 1 + len(changes)
    axes = plot_rows([row(), row(alpha="4/510", eps="16/510", method="dc", model_key="m1")]).axes[0]
    assert len(axes.get_xticks()) == 2  # one size, written in two ways


def test_legends_name_the_images_per_class_where_they_differ():
    axes = plot_rows([row(), row(ipc=10, model_key="m1")]).axes[0]
    assert {t.get_text() for t in axes.get_legend().get_texts()} == {"dm, ipc 1", "dm, ipc 10"}


@pytest.mark.parametrize(
    "change, column",
    [
        (dict(random_start=False), "random start"),
        (dict(norm="L2"), "norm"),
        (dict(severity=2), "severity"),
        (dict(source_model="s"), "made on"),
    ],
)
def test_standings_say_what_tells_conditions_apart(change, column):
    board = standings([row(), row(model_key="m1", **change)])
    assert board["condition"].nunique() == 2 and board[column].nunique() == 2


def test_a_given_set_that_does_not_say_its_size_is_no_whole_training_set():
    assert set(results_table([row(origin="given set", ipc=None)])["ipc"]) == {"–"} and set(
        results_table([row(origin="whole", method="whole", ipc=None)])["ipc"]
    ) == {"all"}

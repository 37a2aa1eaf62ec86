"Result rows: what a row holds, what a stranger's file may hold, and what rows of older versions mean."

import json
from dataclasses import MISSING, asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from ddrobust_nb.foundations.core import InputError
from ddrobust_nb.foundations.data import specs
from ddrobust_nb.training.distilled import DistilledSet, save_set
from ddrobust_nb.training.distiller import distiller
from ddrobust_nb.training.protocols import PROTOCOLS, protocol_for, recipe_for
from ddrobust_nb.results.keys import LATER, recipe_fields, attack_config_fields
from ddrobust_nb.results.reading import ALIASES, first_recipe, read_results, row_from
from ddrobust_nb.results.rows import (
    ROW_FORMAT,
    Result,
    digest_of,
    digest_of_index,
    flags_from_hex,
    flags_to_hex,
    grey_levels,
    normal_options,
    normal_recipe,
    write_results,
)
from ddrobust_nb.training.fit import Recipe

SETS = Path(__file__).resolve().parents[2] / "nbs" / "sets"
FIRST = json.loads((SETS / "cifar10-dm-ipc1" / "results.json").read_text())  # Rows of the first format


def old(**what):
    "A row of the first format, as such a cell left it"
    return FIRST[1] | what


def in_folder(folder, rows, cell=None):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(rows))
    if cell is not None:
        (folder / "cell.json").write_text(json.dumps(cell))
    return folder


CELL = dict(
    method="dm",
    ready="",
    checkpoint="",
    protocol="quick",
    dataset="cifar10",
    ipc=1,
    options={"iterations": 5},
    recipe=vars(Recipe(epochs=7, augment="color")),
)


# ---- flags


@given(st.lists(st.booleans(), min_size=1, max_size=300))
def test_flags_survive(flags):
    text = flags_to_hex(torch.tensor(flags))
    assert len(text) == 2 * -(-len(flags) // 8)
    assert flags_from_hex(text, len(flags)).tolist() == flags


@pytest.mark.parametrize("text, n", [("f", 8), ("fff", 8), ("ff", 9), ("ffff", 8), ("zz", 8)])
def test_flags_of_another_number_are_refused(text, n):
    with pytest.raises(InputError):
        flags_from_hex(text, n)


def test_an_index_is_its_positions_in_their_order():
    assert (
        digest_of_index(range(5))
        == digest_of_index(torch.arange(5))
        == digest_of_index(np.arange(5, dtype=np.int32))
    )
    assert len({digest_of_index(i) for i in (range(5), range(6), [1, 0, 2, 3, 4], range(1, 6))}) == 4


# ---- one form for options and recipes


@pytest.mark.parametrize(
    "a, b, same",
    [
        (dict(lr=1), dict(lr=1.0), True),
        (dict(keep=(0, 8)), dict(keep=[0, 8]), True),
        (dict(x=None), {}, True),
        (dict(network="A"), dict(network="B"), True),
        (dict(backprop="stored", n=1), dict(backprop="adjoint", n=1), True),
        (dict(groups=2), dict(groups=10), True),
        (dict(f={"keep": (0, 8.0)}), dict(f={"keep": [0, 8]}), True),
        (dict(lr=1), dict(lr=1.5), False),
        (dict(x=False), dict(x=0), False),
        (dict(x=""), {}, False),
        (dict(keep=[0, 8]), dict(keep=[8, 0]), False),
    ],
)
def test_options_that_mean_the_same_have_one_digest(a, b, same):
    assert (digest_of(normal_options(a)) == digest_of(normal_options(b))) is same


def test_what_is_unknown_is_not_the_same_as_nothing():
    assert (
        digest_of(None) == "" != digest_of({})
        and normal_options(None) is None
        and normal_recipe(None) is None
    )


def test_a_recipe_may_gain_a_field():
    assert normal_recipe(vars(Recipe())) == {}
    assert normal_recipe(vars(Recipe(epochs=7)) | dict(a_field_to_come=None)) == dict(epochs=7)


def test_keys_name_every_field():
    "A field of a recipe or an attack is written out, or stands in `LATER` with the value that everything had before"
    assert set(recipe_fields(Recipe())) | set(LATER["recipe"]) == {f.name for f in fields(Recipe)}
    from ddrobust_nb.attacks.attack import AttackConfig

    assert set(attack_config_fields(AttackConfig("pgd"))) | set(LATER["threat"]) == {
        f.name for f in fields(AttackConfig)
    }


def test_a_later_field_changes_a_key_only_where_it_is_not_as_before(monkeypatch):
    from types import SimpleNamespace
    from ddrobust_nb.results import keys

    monkeypatch.setitem(keys.LATER, "recipe", {"averaged": False})
    plain, averaged = (SimpleNamespace(**vars(Recipe()), averaged=a) for a in (False, True))
    assert recipe_fields(plain) == vars(Recipe()) and recipe_fields(averaged) == vars(Recipe()) | dict(
        averaged=True
    )


# ---- rows of the first format


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_frozen_rules_are_those_that_made_the_first_rows(protocol):
    "Compared with today's rules, from which they were copied; from the day these change, this test keeps to what they were"
    for spec in specs.values():
        for method in distiller:
            for ipc in (1, 5, 10, 30, 50) if method != "whole" else (None,):
                now = recipe_for(protocol_for(protocol, spec), method, spec, ipc)
                assert first_recipe(
                    protocol, method=method, dataset=spec.name, ipc=ipc, select=now.select
                ) == vars(now), (
                    protocol,
                    spec.name,
                    method,
                    ipc,
                )


def test_old_names_are_read(tmp_path):
    (row,) = read_results(in_folder(tmp_path, [old(any_iterate=0.25, carry=0.125)]))
    assert (row.worst_iterate, row.carry_over_eps, row.format) == (0.25, 0.125, ROW_FORMAT)
    assert set(ALIASES.values()) <= {f.name for f in fields(Result)} and not set(ALIASES) & {
        f.name for f in fields(Result)
    }


def test_old_rows_keep_every_number():
    "All reference rows: what the file says is what the row says"
    for file in SETS.glob("*/results.json"):
        for was, row in zip(json.loads(file.read_text()), read_results(file), strict=True):
            if was.get("format", 1) > 1:
                continue
            for name, value in was.items():
                if name == "distill_network" and was["method"] in ("random", "kmeans", "whole"):
                    continue  # they choose images without one
                now = getattr(row, ALIASES.get(name, name))
                assert now == (tuple(value) if name == "warnings" else value), (file, name)


def test_the_recipe_of_an_old_row_is_that_of_its_cell(tmp_path):
    (row,) = read_results(in_folder(tmp_path / "a", [old()], CELL))
    assert normal_recipe(row.recipe) == dict(epochs=7, augment="color") and row.origin == "distilled"
    (row,) = read_results(in_folder(tmp_path / "b", [old()]))
    assert normal_recipe(row.recipe) == {"augment": "color_crop_cutout_flip_scale_rotate"}
    (row,) = read_results(in_folder(tmp_path / "c", [old(protocol="my own")]))
    assert row.recipe is None and row.recipe_digest == ""


def test_a_baseline_has_its_own_options_and_the_training_of_its_cell(tmp_path):
    beside_dc = [old(method="dc"), old(method="random")]
    dc, random = read_results(in_folder(tmp_path / "a", beside_dc, CELL | dict(method="dc")))
    assert random.options == {} and dc.options is None and random.recipe == dc.recipe == CELL["recipe"]
    dc, random = read_results(in_folder(tmp_path / "b", beside_dc))
    assert random.recipe["augment"] == "" == dc.recipe["augment"]  # students of DC see no augmentation
    (alone,) = read_results(in_folder(tmp_path / "c", [old(method="random")]))
    assert alone.recipe["augment"] != ""


def test_the_card_of_the_set_says_the_options(tmp_path):
    folder = in_folder(tmp_path, [old(method="dm"), old(method="dm", set_seed=1)], CELL)
    dset = DistilledSet(
        specs["cifar10"],
        torch.zeros(10, 3, 32, 32),
        torch.arange(10),
        "dm",
        1,
        0,
        dict(network="ConvNetD3", iterations=9),
    )
    save_set(dset, folder / "set-dm")
    first, second = read_results(folder)
    assert (
        first.options == dict(iterations=9)
        and first.labels == "hard"
        and second.options is None
        and second.options_digest == ""
    )


def test_soft_labels_and_teachers_of_old_sets(tmp_path):
    for name, labels, teacher, kind in (
        ("soft", torch.full((10, 10), 0.1), None, "soft"),
        ("taught", torch.arange(10), dict(key="k"), "teacher"),
    ):
        folder = in_folder(tmp_path / name, [old()], CELL)
        save_set(
            DistilledSet(
                specs["cifar10"], torch.zeros(10, 3, 32, 32), labels, "dm", 1, 0, {}, teacher=teacher
            ),
            folder / "set-dm",
        )
        assert read_results(folder)[0].labels == kind


@pytest.mark.parametrize(
    "cell, row, origin",
    [
        (CELL | dict(ready="d1"), {}, "given set"),
        (CELL | dict(checkpoint="c1" * 32), {}, "given model"),
        (CELL, {}, "distilled"),
        (None, {}, ""),
        (
            CELL | dict(ready="d1"),
            dict(method="random"),
            "distilled",
        ),  # the random images beside a given set were drawn here
        (None, dict(set_key=""), "given model"),
        (None, dict(method="whole", ipc=None), "whole"),
        (None, dict(method="whole", ipc=None, dataset="imagenet1k", network="ResNet18"), "published"),
        (None, dict(method="mix:none"), "whole"),
        (None, dict(method="mix:dm"), ""),
    ],
)
def test_where_old_rows_came_from(tmp_path, cell, row, origin):
    assert read_results(in_folder(tmp_path, [old(**row)], cell))[0].origin == origin


def test_old_rows_of_two_checkpoints_are_of_two_models(tmp_path):
    (a,) = read_results(in_folder(tmp_path / "a", [old(set_key="")], CELL | dict(checkpoint="a" * 64)))
    (b,) = read_results(in_folder(tmp_path / "b", [old(set_key="")], CELL | dict(checkpoint="b" * 64)))
    (c,) = read_results(in_folder(tmp_path / "c", [old(set_key="", robust=0.125)]))
    (d,) = read_results(in_folder(tmp_path / "d", [old(set_key="", robust=0.25)]))
    assert a.model_key == "a" * 16 and len({r.model_key for r in (a, b, c, d)}) == 4


def test_which_images_old_rows_are_of(tmp_path):
    (whole,) = read_results(in_folder(tmp_path / "a", [old(n=10_000)]))
    assert whole.index_digest == digest_of_index(range(10_000))
    (other,) = read_results(in_folder(tmp_path / "b", [old(n=77)]))
    assert other.index_digest == ""
    save_file({"index": torch.arange(3, 80)}, in_folder(tmp_path / "b", [old(n=77)]) / "flags.safetensors")
    assert read_results(tmp_path / "b")[0].index_digest == digest_of_index(range(3, 80))


def test_the_frozen_indices_are_those_of_the_code():
    from ddrobust_nb.attacks.robustness import attacked_index
    from ddrobust_nb.foundations.datasets import load_data
    from ddrobust_nb.results.reading import FIRST_INDEX

    digits = load_data("digits")
    assert FIRST_INDEX[digits.fingerprint, 100] == digest_of_index(attacked_index(digits, 100))


# ---- files of strangers

NEW = asdict(row_from(read_results(SETS / "cifar10-dm-ipc1")[0].__dict__))

WRONG = [
    ("ipc", [1]),
    ("steps", "x"),
    ("preset", {}),
    ("n", 1e19),
    ("n", 10**400),
    ("drop_rate", "0.5"),
    ("set_seed", {}),
    ("best", 1),
    ("clean", True),
    ("clean", None),
    ("robust", float("inf")),
    ("warnings", "noise"),
    ("warnings", [1]),
    ("options", []),
    ("recipe", "quick"),
    ("dataset", 3),
    ("seed", 0.5),
    ("flags", 7),
    ("format", 3),
    ("format", "2"),
    ("format", True),
    ("format", 0),
]


@pytest.mark.parametrize("name, value", WRONG, ids=lambda v: str(v)[:12])
def test_a_value_of_the_wrong_kind_is_one_sentence(tmp_path, name, value):
    text = json.dumps([NEW | {name: value}])
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(InputError) as e:
        read_results(tmp_path)
    no_json = value in (float("inf"), 10**400)  # refused before there are rows
    assert name in str(e.value) and "\n" not in str(e.value) and ("row 0" in str(e.value)) != no_json


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "[3]", "[null]", '"rows"', "7", "[[]]", '[{"format": 2}]']
)
def test_files_that_hold_no_rows(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(InputError, match="not a list of result rows"):
        read_results(tmp_path)


@pytest.mark.parametrize("name", ["cell.json", "set-dm/set.json", "model-dm-seed0.json", "flags.safetensors"])
@pytest.mark.parametrize("text", ["", "[]", "{" * 5000, "null"])
def test_what_lies_beside_old_rows_may_be_damaged(tmp_path, name, text):
    folder = in_folder(tmp_path, [old()])
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    (row,) = read_results(folder)
    assert row.robust == old()["robust"]


def test_a_row_round_trips(tmp_path):
    row = replace(
        row_from(NEW),
        options={"a": [1, 2]},
        options_digest=digest_of({"a": [1, 2]}),
        recipe={"lr": 0.5},
        recipe_digest=digest_of({"lr": 0.5}),
        flags="ff",
        warnings=("noise",),
        random_start=False,
    )
    write_results([row], tmp_path)
    assert read_results(tmp_path) == [row]
    assert {f.name for f in fields(Result) if f.default is MISSING} >= {"dataset", "clean", "robust"}


@pytest.mark.parametrize("a, b", [("2/255", "4/510"), ("0.5", "1/2"), (None, ""), (float("nan"), None)])
def test_sizes_are_compared_as_numbers(a, b):
    assert grey_levels(a) == grey_levels(b)


# ---- what a fresh pair of eyes found


@pytest.mark.parametrize(
    "what",
    [
        dict(alpha="x"),
        dict(alpha="1/0"),
        dict(alpha="nan"),
        dict(alpha="9" * 5000),
        dict(alpha="-2/255"),
        dict(eps="x"),
    ],
)
def test_sizes_that_are_none_are_one_sentence(tmp_path, what):
    (tmp_path / "results.json").write_text(json.dumps([NEW | what]))
    with pytest.raises(InputError, match="must be a fraction"):
        read_results(tmp_path)


def test_a_digest_is_that_of_the_options(tmp_path):
    "Rows cannot borrow the line of others by writing down their digest"
    (tmp_path / "results.json").write_text(
        json.dumps([NEW | dict(options={"a": 99}), NEW | dict(recipe={"lr": 7.0})])
    )
    one, two = read_results(tmp_path)
    assert (
        one.options_digest == digest_of({"a": 99}) != NEW["options_digest"]
        and two.recipe_digest == digest_of({"lr": 7}) != NEW["recipe_digest"]
    )


@pytest.mark.parametrize(
    "name, card",
    [
        *(("cell.json", CELL | dict(recipe=recipe)) for recipe in ("quick", [1], {"lr": float("nan")})),
        *(
            ("set-dm/set.json", dict(method="dm", seed=0, config={}) | card)
            for card in (
                dict(seed=[1]),
                dict(method={}),
                dict(config="x"),
                dict(config=[1]),
                dict(config={"lr": float("nan")}),
            )
        ),
        *(
            ("model-dm-seed0.json", dict(method="dm", seed=0, key="k") | card)
            for card in (dict(seed=[0]), dict(method=[0]), dict(key=5), dict(key=None))
        ),
    ],
)
def test_a_card_with_odd_values_counts_as_saying_nothing(tmp_path, name, card):
    folder = in_folder(tmp_path, [old()])
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(card))
    assert read_results(folder)[0].robust == old()["robust"]


@pytest.mark.parametrize(
    "what",
    [
        dict(set_seed={}),
        dict(seed=[1]),
        dict(n=20.5, n_clean=20.5),
        dict(n="x", n_clean="x"),
        dict(n=None, n_clean=None),
        dict(n=-5, n_clean=-5),
    ],
)
def test_odd_old_rows_are_one_sentence(tmp_path, what):
    with pytest.raises(InputError, match="row 0"):
        read_results(in_folder(tmp_path, [old(**what)]))


def test_an_old_row_of_absurdly_many_images_takes_no_memory(tmp_path):
    assert read_results(in_folder(tmp_path, [old(n=10**13, n_clean=10**13)]))[0].index_digest == ""

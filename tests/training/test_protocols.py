"Presets and recipes against the paper's printed hyper-parameters, and against the functions they are for."

from dataclasses import fields, replace

import pytest

from ddrobust_nb.foundations.data import specs
from ddrobust_nb.training.protocols import (
    PROTOCOLS,
    preset_options,
    preset_rows,
    read_presets,
    recipe_for,
)
from ddrobust_nb.results.paper import paper_settings
from ddrobust_nb.training.fit import Recipe, lr_at

LOST = ("lr_img", "lr_lr", "lr_student")  # In the paper's text
SRE2L = ("sre2l", "sre2l_hard", "random_teacher")
IPCS = (1, 5, 10, 30, 50)
DATASETS = {"CIFAR-10": "cifar10", "CIFAR-100": "cifar100", "TinyImageNet": "tinyimagenet"}
COLUMNS = dict(
    synthetic_steps="syn_steps",
    expert_epochs="expert_span",
    max_start_epoch="max_start",
    batch_size_syn="batch_syn",
    pixel_lr="lr_img",
    step_lr="lr_lr",
    starting_synthetic_lr="lr_student",
)


@pytest.mark.parametrize("table, method", [("XXIV", "mtt"), ("XXV", "tesla")])
def test_trajectory_presets_are_those_of_the_paper(table, method):
    "Every printed value, and a source that says so where the text lost it"
    rows = paper_settings(table)
    assert len(rows) == 105
    for row in rows.itertuples():
        value, source = preset_rows("paper", method, DATASETS[row.dataset], int(row.ipc))[COLUMNS[row.name]]
        if COLUMNS[row.name] in LOST:
            assert row.value == "" and source.startswith(f"lost in the paper's Table {table}")
        else:
            assert source == f"paper, Table {table}" and value == (
                None if row.value == "-" else int(row.value)
            ), (row.dataset, row.ipc, row.name)


def test_sre2l_presets_are_those_of_the_paper():
    rows = paper_settings("XXVI")

    def value(dataset, name, ipc=None):
        return rows[
            (rows.dataset == dataset) & (rows.name == name) & (rows.ipc == ipc if ipc else rows.ipc.isna())
        ].value.item()

    for theirs, ours in DATASETS.items():
        o = preset_options("paper", "sre2l", ours, 10)
        for name, option in {
            "recover: base learning rate": "lr_img",
            "recover: recovery iteration": "iterations",
            "recover: temperature": "temperature",
            "recover: (label lost)": "a_bn",
        }.items():
            assert float(value(theirs, name)) == o[option], (ours, option)
        for ipc in IPCS:
            r = recipe_for(PROTOCOLS["paper"], "sre2l", specs[ours], ipc)
            for name, field in {
                "base learning rate": "lr",
                "momentum": "momentum",
                "weight decay": "weight_decay",
                "training epoch": "epochs",
            }.items():
                assert float(value(theirs, f"validate: {name}")) == getattr(r, field), (ours, field)
            assert (
                int(value(theirs, "validate: batch size", ipc)) == r.batch
                and r.optimiser == value(theirs, "validate: optimizer").lower()
                and r.schedule == "cosine"
            )


def test_the_recipe_of_all_other_methods_is_that_of_the_paper():
    said = paper_settings("XXVII").set_index("name").value
    for method in ("dsa", "dm", "mtt", "tesla", "random"):
        r = recipe_for(PROTOCOLS["paper"], method, specs["cifar10"], 10)
        assert (r.batch, r.lr, r.momentum, r.weight_decay, r.optimiser) == (
            int(said["training batch size"]),
            float(said["learning rate"]),
            float(said["momentum"]),
            float(said["weight decay"]),
            said["optimizer"].lower(),
        )
        assert (
            r.epochs - 1 == int(said["training epochs"])
            and [lr_at(r, e) for e in (499, 500)] == pytest.approx([0.01, 0.001])
            and not r.learned_lr
        )
    assert recipe_for(PROTOCOLS["paper"], "dc", specs["cifar10"], 10).augment == ""


def test_a_set_and_what_stands_beside_it_are_trained_alike():
    for protocol in PROTOCOLS.values():
        for spec in specs.values():
            for ipc in IPCS:
                assert len({recipe_for(protocol, m, spec, ipc) for m in SRE2L}) == 1
                assert len({recipe_for(protocol, m, spec, ipc) for m in ("dsa", "dm", "random")}) == 1


def test_every_row_names_what_exists():
    protocols, options = {*PROTOCOLS, "*"}, {f.name for f in fields(Recipe)}
    for row in read_presets():
        assert row.protocol in protocols and row.dataset in (*specs, "*") and row.ipc in (*IPCS, "*")
        assert row.source and row.part in ("distil", "train")
        if row.part == "train":
            assert row.name in options and replace(Recipe(), **{row.name: row.value})
    printed = [row for row in read_presets() if row.name == "syn_steps" and row.source.startswith("paper")]
    assert len(printed) == 2 * len(DATASETS) * len(IPCS)


def test_a_cut_is_never_called_published():
    "What quick sets lower than the paper says so"
    for row in read_presets():
        if (
            row.part == "distil"
            and row.protocol == "quick"
            and row.name
            in (
                "iterations",
                "n_experts",
                "expert_images",
                "squeeze_epochs",
                "squeeze_images",
                "syn_steps",
            )
        ):
            assert row.source.startswith("ours"), (row.method, row.name)

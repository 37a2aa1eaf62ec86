"The alarms of a set and its card, and a set of others in a cell of the benchmark."

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from published_sets import (
    CLASSES,
    FOREIGN,
    IPC,
    LABELS,
    PIXELS,
    SPEC,
    class_folders,
    dc,
    dd_ranking,
    normalised,
    tiny_world,
)

from ddrobust_nb.attacks.checks import CheckCode
from ddrobust_nb.foreign.set_card import sanity_training, set_card, set_checks, write_set_card
from ddrobust_nb.foreign.sets import load_set
from ddrobust_nb.foundations.core import InputError, generator
from ddrobust_nb.foundations.data import make_data
from ddrobust_nb.foundations.datasets import dataset
from ddrobust_nb.results.plan import plan_cell, summary
from ddrobust_nb.results.cell_rows import run_stages, write_out
from ddrobust_nb.training.distilled import DistilledSet


def colours(n, seed):
    "Images with a colour for each class: easy to learn"
    g = generator(seed, "colours")
    y = torch.arange(n) % CLASSES
    centres = torch.rand(CLASSES, 3, 1, 1, generator=generator(0, "centres"))
    x = 0.7 * centres[y] + 0.3 * torch.rand(n, 3, 8, 8, generator=g)
    return x, y


@pytest.fixture(scope="module")
def world():
    x, y = colours(200, 1)
    test, truth = colours(80, 2)
    return make_data(SPEC, (x * 255).byte(), y, (test * 255).byte(), truth)


@pytest.fixture
def easy():
    x, y = colours(16, 3)
    order = y.argsort(stable=True)
    return DistilledSet(SPEC, x[order], y[order], ipc=4)


def failed(checks):
    return {check.code for check in checks if not check.ok}


def test_a_sound_set_raises_no_alarm(world, easy):
    trained = sanity_training(easy, world, work=1600, n=80, device="cpu")
    assert not failed([*set_checks(easy), *trained.checks]) and trained.accuracy > 0.8


def test_each_alarm(world, easy):
    nan = replace(easy, images=easy.images.masked_fill(easy.images > 0.8, torch.nan))
    assert failed(set_checks(nan)) == {CheckCode.FINITE}
    far = replace(easy, images=(easy.images - 0.5) / 0.1)
    assert failed(set_checks(far)) == {CheckCode.OUTSIDE}
    assert failed(set_checks(replace(easy, ipc=5))) == {CheckCode.IPC}
    uneven = replace(easy, labels=easy.labels.clone().index_fill(0, torch.tensor([0]), 1), ipc=None)
    assert failed(set_checks(uneven)) == {CheckCode.IPC}
    turned = replace(easy, labels=(easy.labels + 1) % CLASSES)
    found = failed(sanity_training(turned, world, work=1600, n=80, device="cpu").checks)
    assert CheckCode.PERMUTED in found
    noise = replace(easy, images=torch.rand(16, 3, 8, 8, generator=generator(0, "noise")))
    assert CheckCode.CHANCE in failed(sanity_training(noise, world, work=800, n=80, device="cpu").checks)


def test_order_of_class_folders(tmp_path):
    many = replace(SPEC, classes=12, class_names=())
    class_folders(tmp_path, PIXELS.repeat(2, 1, 1, 1)[:12], torch.arange(12), "{}")
    assert failed(set_checks(load_set(tmp_path, many))) == {CheckCode.CLASS_ORDER}


def test_card(tmp_path, world, easy):
    torch.save({"<script>alert(1)</script>": normalised(), "labels": LABELS}, tmp_path / "x.pt")
    dset = load_set(tmp_path / "x.pt", tiny_world(), method="mine")
    card = set_card(dset, world, device="cpu", work=80)
    page = card._repr_html_()
    assert "<script>" not in page and "&lt;script&gt;" in page and "<img" in page
    folder = write_set_card(card, tmp_path / "card")
    kept = json.loads((folder / "set_card.json").read_text())
    assert kept["facts"]["colour space of the file"] == "normalised:dc" and kept["facts"]["method"] == "mine"
    assert {check["code"] for check in kept["checks"]} >= {"finite", "outside", "ipc", "chance", "permuted"}
    assert "<script>" not in (folder / "set_card.html").read_text()


# In a cell


@pytest.fixture
def cell_of(tmp_path, world, monkeypatch):
    "Plan a cell of `tiny` with a given set"
    monkeypatch.setitem(dataset, "tiny", lambda root=None: world)
    usual = dict(
        dataset="tiny", network="ConvNetD2-w8", attacks="fgsm@8/255", n_test=20, n_models=1, device="cpu"
    )

    def plan(**given):
        cell = plan_cell(**usual | dict(store=str(tmp_path / "store")) | given)
        return replace(cell, recipe=replace(cell.recipe, epochs=30, check_every=0))

    return plan


def test_cell_with_a_set_of_others(tmp_path, cell_of, easy):
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (SPEC.mean, SPEC.std))
    path = dc(tmp_path, (easy.images - mean) / std, easy.labels)
    cell = cell_of(distilled=str(path), space="normalised:dc", method="dc")
    assert (cell.method, cell.ipc) == ("dc", 4)
    torch.testing.assert_close(cell.source.dset.images, easy.images, rtol=0, atol=1e-6)
    assert "results of DC, DSA or DM" in summary(cell) and "#3 is taken" in summary(cell)
    done = run_stages(cell)
    codes = {check.code for check in done.checks[0]}
    assert codes >= {CheckCode.CHANCE, CheckCode.PERMUTED, CheckCode.OUTSIDE, CheckCode.IPC}
    write_out(done)
    assert (cell.out / "card-dc" / "set_card.html").is_file()
    again = cell_of(distilled=f"{path}#3", space="normalised:dc", method="dc")
    assert again.key == cell.key != cell_of(distilled=f"{path}#1", space="normalised:dc", method="dc").key


def test_doubtful_sets_warn_in_the_row(tmp_path, cell_of, easy):
    path = dd_ranking(tmp_path, easy.images, (easy.labels + 1) % CLASSES)
    done = run_stages(cell_of(distilled=str(path), space="pixels", n_models=1))
    assert "permuted" in done.rows[0].warnings


def test_cells_that_are_refused(tmp_path, cell_of):
    path = str(dd_ranking(tmp_path, normalised(), LABELS))
    for given, sentence in (
        (dict(space="pixels"), "none was given"),
        (dict(labels="logits"), "none was given"),
        (dict(factor=2), "none was given"),
        (dict(distilled=path, space="normalised:dc", ipc=50), "not 50 per class"),
        (dict(distilled=path, space="normalised:nobody"), "names no constants"),
        (dict(distilled=path, space="normalised:dc", labels="hot"), "one of hard"),
        (dict(distilled=path, space="normalised:dc", factor=0), "factor must be"),
        (dict(distilled=path, space="normalised:dc", factor="2"), "factor must be"),
        (dict(distilled=path, space=1), "space must be text"),
        (dict(distilled=f"{path}#2", space="normalised:dc"), "one set"),
    ):
        with pytest.raises(InputError, match=sentence):
            cell_of(**given)
    assert cell_of(distilled=path, space="normalised:dc", ipc=IPC).ipc == IPC


# The real pair


@pytest.mark.slow
def test_published_set_of_dc_in_run_cell(tmp_path, data_root):
    "The notebook itself, from the file to the accuracy on the test images of CIFAR-10"
    file = FOREIGN / "DC_CIFAR10_IPC1_images.pt"
    if not file.is_file():
        pytest.skip("the published pair of DC is not here")
    given = dict(distilled=file, dataset="cifar10", method="dc", n_models=1, attacks="none", device="cpu")
    given |= dict(store=tmp_path / "store", out=tmp_path / "out", data_root=data_root)
    command = [sys.executable, "-m", "papermill", "run_cell.ipynb", str(tmp_path / "done.ipynb")]
    for name, value in given.items():
        command += ["-p", name, str(value)]
    nbs = Path(__file__).resolve().parents[2] / "nbs"
    subprocess.run(command, cwd=nbs, check=True, stdin=subprocess.DEVNULL, capture_output=True)
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    (row,) = [row for row in rows if row["method"] == "dc"]
    assert row["clean"] > 0.24 and row["ipc"] == 1 and "chance" not in row["warnings"]
    facts = json.loads((tmp_path / "out" / "card-dc" / "set_card.json").read_text())["facts"]
    assert facts["colour space of the file"] == "normalised:dc"

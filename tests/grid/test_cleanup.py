"Garbage is what no cell names, and nothing else is removed."

import json
import shutil
from collections import Counter

import pytest
from grid_runs import FOUR, results

from ddrobust_nb.foundations.core import InputError
from ddrobust_nb.grid.cleanup import find_garbage, remove_garbage
from ddrobust_nb.grid.plan import plan_grid
from ddrobust_nb.results.store import locked, write_json


def test_garbage_is_what_no_cell_names(undisturbed, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(undisturbed[0], store)
    assert len(find_garbage(store, older_than=0)) == 0
    plan = plan_grid(FOUR, store=store, device="cpu")
    shutil.rmtree(
        plan.cells[0].out
    )  # its distilled set, model and evaluations are garbage now, the random ones are not
    (store / "distil" / "mine").mkdir(), (store / "distil" / "mine" / "x.txt").write_text("x")
    (tmp_path / "precious").mkdir(), (tmp_path / "precious" / "x.txt").write_text("x")
    (store / "train" / "0123456789abcdef").symlink_to(tmp_path / "precious")
    found = find_garbage(store, older_than=0)
    assert Counter(p.split("/")[0] for p in found["path"]) == {"distil": 1, "train": 1, "attack": 2} and set(
        found["what"]
    ) == {"artefact without a cell"}
    assert len(find_garbage(store)) == 0  # a week has not passed
    remove_garbage(store, older_than=0)
    assert (
        (store / "distil" / "mine" / "x.txt").exists()
        and (tmp_path / "precious" / "x.txt").exists()
        and (store / "train" / "0123456789abcdef").is_symlink()
    )
    assert len(results(store, FOUR[1:])) == 4


def test_nothing_is_removed_while_a_card_says_nothing(undisturbed, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(undisturbed[0], store)
    card = next(store.glob("cells/*/cell.json"))
    write_json(card, {k: v for k, v in json.loads(card.read_text()).items() if k != "artefacts"})
    with pytest.raises(InputError, match="nothing was removed"):
        remove_garbage(store, older_than=0)


def test_what_is_being_made_is_no_garbage(tmp_path, undisturbed):
    store = tmp_path / "store"
    shutil.copytree(undisturbed[0], store)
    plan = plan_grid(FOUR, store=store, device="cpu")
    shutil.rmtree(plan.cells[0].out)
    key = find_garbage(store, older_than=0)["path"].iloc[0].split("/")
    with locked(plan.store, *key):
        assert len(find_garbage(store, older_than=0)) == 3

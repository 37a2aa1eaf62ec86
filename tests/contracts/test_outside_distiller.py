"""A distiller in one file outside the package is planned, priced, run, resumed and labelled like those inside.

Nothing in the package names it. `outside_method.py` beside this file is the whole method."""

import importlib.util
from pathlib import Path

import pytest
import torch

from ddrobust_nb.foundations.core import InputError
from ddrobust_nb.foundations.datasets import dataset
from ddrobust_nb.grid.cost import cell_stages, estimate_cost
from ddrobust_nb.grid.plan import plan_grid
from ddrobust_nb.results import store as store_module
from ddrobust_nb.results.cell_rows import artefacts, run_stages
from ddrobust_nb.results.stages import distil_cell
from ddrobust_nb.results.store import Store
from ddrobust_nb.results.styles import method_label, method_styles
from ddrobust_nb.training.distiller import distiller, uses_network
from tiny import measured, tiny_cell, tiny_data

FILE = Path(__file__).with_name("outside_method.py")
NAME = "noisy_means"
SPEED = 1e-6  # Seconds per pass


class Killed(BaseException):
    "Ends a run in the middle"


@pytest.fixture
def method():
    "The method of the file, registered for one test"
    spec = importlib.util.spec_from_file_location("outside_method", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield distiller[NAME]
    del distiller[NAME]


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setitem(dataset, "tiny", lambda root: tiny_data())
    torch.set_num_threads(1)
    return Store(tmp_path / "store")


def outside_cell(store, **given):
    return tiny_cell(store, method=NAME, attacks="fgsm@8/255", n_models=1, **given)


def cost_of(store, monkeypatch):
    "The bill of one cell, at a given speed"
    monkeypatch.setattr("ddrobust_nb.grid.cost.seconds_per_pass", lambda *args: SPEED)
    block = dict(method=NAME, ipc=1, dataset="tiny", attacks="fgsm@8/255", n_test=9)
    plan = plan_grid([block], store=store.root, device="cpu")
    assert not [cell.error for cell in plan.cells if cell.error]
    return estimate_cost(plan)


def test_it_is_planned_and_priced(method, store, monkeypatch):
    "Its set and its prerequisite cost what it declares"
    cell = outside_cell(store, ipc=2, options={"noise": 0.5})
    assert cell.options == {"noise": 0.5}
    passes = {stage: n for stage, _, n, _ in cell_stages(cell)}
    assert passes["means"] == len(tiny_data().train_labels) and passes["distil"] == 2 * 3
    cost = cost_of(store, monkeypatch)
    assert cost.seconds > 0 and "not known" not in str(cost)


def test_without_passes_its_time_is_not_known(method, store, monkeypatch):
    "It is never priced at nothing in silence"
    monkeypatch.setattr(method, "passes", None)
    cost = cost_of(store, monkeypatch)
    assert "time is not known" in str(cost)
    assert cost.lines["note"].str.contains(f"{NAME} declares no passes").any()


def test_it_runs_into_rows(method, store):
    "Each stage leaves its artefact, and the prerequisite is made once"
    done = run_stages(outside_cell(store))
    assert {row.method for row in done.rows} == {NAME}
    stages = {place.partition("/")[0] for place in artefacts(done.cell)}
    assert stages == {"means", "distil", "train", "attack"}
    assert all((store.root / place / "card.json").is_file() for place in artefacts(done.cell))
    run_stages(outside_cell(store, seed=1))
    assert len([f for f in (store.root / "means").iterdir() if f.is_dir()]) == 1


def test_a_killed_run_resumes_to_the_same_bits(method, store, tmp_path, monkeypatch):
    "Killed after two of three images, then run again"
    saved = []
    save_state = store_module.save_state

    def save_and_die(store, stage, key, state):
        save_state(store, stage, key, state)
        saved.append(len(state["done"]))
        if len(saved) == 2:
            raise Killed

    monkeypatch.setattr(store_module, "save_state", save_and_die)
    with pytest.raises(Killed):
        distil_cell(outside_cell(store))
    resumed = run_stages(outside_cell(store))
    assert saved == [1, 2, 3]
    whole = run_stages(outside_cell(Store(tmp_path / "another")))
    assert torch.equal(resumed.distilled.dset.images, whole.distilled.dset.images)
    assert measured(resumed.rows) == measured(whole.rows)


def test_it_makes_its_prerequisite_itself_where_there_is_no_store(method):
    "A direct call, and one with an option that cannot be"
    data = tiny_data()
    dset = method(data, 1, noise=0.0)
    first = data.train_images[data.per_class[0]].float().div(255).mean(0)
    torch.testing.assert_close(dset.images[0], first)
    with pytest.raises(InputError, match="did you mean 'noise'"):
        method(data, 1, nois=0.0)


def test_it_has_a_label_and_a_look(method):
    assert method_label(NAME) == "Noisy means" == method.label
    styles = method_styles([*distiller])
    assert len({(style.colour, style.marker) for style in styles.values()}) == len(styles)
    assert uses_network(NAME)


def test_it_is_gone_afterwards():
    "So that the other tests see the package's methods alone"
    assert NAME not in distiller

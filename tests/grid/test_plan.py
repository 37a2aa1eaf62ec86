"Plans of grids: every number of the paper is planned once, and a wrong cell does not spoil the others."

from collections import Counter

import pandas as pd
import pytest
from grid_runs import TINY

from ddrobust_nb.foundations.core import InputError
from ddrobust_nb.grid.cleanup import find_garbage
from ddrobust_nb.grid.plan import expand_blocks, plan_grid
from ddrobust_nb.grid.tables import (
    rows_of_store,
)
from ddrobust_nb.results.paper import paper_results, paper_table
from ddrobust_nb.results.store import write_json


@pytest.fixture
def paper_plan(away):
    return plan_grid("all", store=away, device="cpu")


def test_every_number_of_the_paper_is_planned_once(paper_plan):
    "Each row of the benchmark tables belongs to one planned cell and one of its settings; no planned cell is without a row"
    assert not [c.error for c in paper_plan.cells if c.error]
    offered = Counter()
    for c in (c for c in paper_plan.cells if not c.mixing):
        at = (c.cell.dataset, c.cell.method, c.cell.ipc, c.cell.network)
        offered.update(
            [(*at, "none", None, None), *((*at, t.attack, t.eps_255, t.steps) for t in c.cell.configs)]
        )
    assert set(offered.values()) == {1}

    def number(value, kind):
        return None if pd.isna(value) else kind(value)

    used = set()
    for r in paper_results().itertuples():
        want = (
            r.dataset,
            r.method,
            number(r.ipc, int),
            r.network,
            r.attack,
            number(r.eps_255, float),
            number(r.steps, int),
        )
        assert offered[want] == 1, f"{want} of Table {r.table} is not planned"
        used.add(want[:4])
    assert {k[:4] for k in offered} == used


def test_every_number_of_the_mixing_tables_is_planned_once(paper_plan):
    runs = {c.cell.dataset: c.mixing for c in paper_plan.cells if c.mixing}
    for name in ("V", "XXVIII"):
        for r in paper_table(name).itertuples():
            run = runs[r.dataset]
            assert list(run.sets).count(r.method) == 1 and run.cell.network == r.network
            assert r.attack == "none" or [t.attack for t in run.cell.configs].count(r.attack) == 1
    assert sum(bool(c.mixing) for c in paper_plan.cells) == len(runs) == 2


def test_products_and_exclusions():
    assert len(expand_blocks([dict(a=[1, 2], b=[3, 4, 5])])) == 6
    assert expand_blocks([dict(a=[1, 2]), dict(a=2)]) == [dict(a=1), dict(a=2)]
    assert expand_blocks([dict(a=[1, 2], b=[3, 4])], exclude=[dict(a=1, b=3), dict(b=4, a=[2])]) == [
        dict(a=1, b=4),
        dict(a=2, b=3),
    ]
    assert expand_blocks([dict(options={"x": [1, 2]})]) == [
        dict(options={"x": [1, 2]})
    ]  # a list inside an option is a value


def test_two_ways_to_say_the_same_are_one_cell(tmp_path):
    plan = plan_grid(
        [dict(method="dm", ipc=1), dict(method="dm", ipc=1, seed=0, protocol="quick")],
        store=tmp_path,
        device="cpu",
    )
    assert len(plan.cells) == 1


def test_one_wrong_cell_does_not_spoil_the_others(tmp_path):
    plan = plan_grid([dict(TINY, method=["dm", "dmm"], ipc=[1, 9999])], store=tmp_path, device="cpu")
    assert [bool(c.key) for c in plan.cells] == [True, False, False, False]
    assert "did you mean 'dm'" in plan.cells[2].error and "smallest class" in plan.cells[1].error


@pytest.mark.parametrize(
    "grid, text",
    [
        ("tabel1", "did you mean 'table1'"),
        ([dict(metod="dm")], "did you mean 'method'"),
        ([dict(method=[])], "method has no values"),
        ([dict(store="x")], "belongs to the whole grid"),
        ([dict(notebook="run_cel")], "did you mean 'run_cell'"),
        ({"method": "dm"}, "list of blocks"),
        (7, "list of blocks"),
    ],
)
def test_bad_grids(tmp_path, grid, text):
    with pytest.raises(InputError, match=text):
        plan_grid(grid, store=tmp_path)


def test_a_newer_store_is_left_alone(tmp_path):
    write_json(tmp_path / "store" / "store.json", {"format": 99})
    plan = plan_grid([dict(TINY, method="dm", ipc=1)], store=tmp_path / "store", device="cpu")
    assert "has format 99, this version knows 1: upgrade" in plan.cells[0].error
    with pytest.raises(InputError, match="format 99"):
        rows_of_store(tmp_path / "store")
    with pytest.raises(InputError, match="format 99"):
        find_garbage(tmp_path / "store")
    assert [p.name for p in (tmp_path / "store").iterdir()] == ["store.json"]


def test_a_dataset_that_cannot_be_had_is_asked_for_once(tmp_path, monkeypatch):
    from ddrobust_nb.grid import plan as module

    asked = []

    def refuse(name, root):
        asked.append(name)
        raise InputError("no such data")

    monkeypatch.setattr(module, "load_data", refuse)
    plan = plan_grid([dict(method=["dm", "random"], ipc=[1, 2])], store=tmp_path, device="cpu")
    assert asked == ["digits"] and [c.error for c in plan.cells] == ["no such data"] * 4

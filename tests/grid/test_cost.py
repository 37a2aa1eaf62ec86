"What a grid costs: known before anything starts, and shared work counted once."

import pytest

from ddrobust_nb.grid.command import command
from ddrobust_nb.grid.cost import all_stages, cell_stages, estimate_cost
from ddrobust_nb.grid.plan import plan_grid
from ddrobust_nb.grid.run import shared_work


@pytest.mark.parametrize(
    "name",
    [
        "demo",
        "mixing",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("table1", "subsets", "imagenet1k", "all")),
    ],
)
def test_what_a_named_grid_costs_is_said_before_anything_is_there(away, capsys, name):
    assert command(["run", name, "--dry-run", "--store", str(away), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    plan = plan_grid(name, store=away, device="cpu")
    assert (
        f"{len(plan.cells)} cells, {len(plan.cells)} with something to do: about" in printed
        and "nothing was started" in printed
    )
    assert not away.exists()


def test_experts_are_paid_for_once(tmp_path):
    "MTT and TESLA at two IPCs read the same two experts; so do both IPCs of SRe2L its teacher"
    plan = plan_grid("demo", store=tmp_path, device="cpu")
    parts, sets, needs = shared_work(plan, plan.cells)
    assert len(parts) == 3 and not sets
    assert sorted(len(n) for n in needs.values()) == [0] * 6 + [1] * 2 + [2] * 4
    keys = [s[:2] for c in plan.cells for s in all_stages(c.cell)]
    cost = estimate_cost(
        plan,
        speed={
            (n, c.cell.data.spec): 1.0 for c in plan.cells for n in (c.cell.network, c.cell.distill_network)
        },
    )
    once = {s[:2]: s[2] for c in plan.cells for s in all_stages(c.cell)}
    assert len(keys) > len(once) and cost.lines["seconds"].sum() == pytest.approx(sum(once.values()))


SMALL = dict(
    network="ConvNetD3-w8", distill_network="ConvNetD3-w8", n_test=20, n_models=2, attacks="fgsm@8/255"
)


def work_of(tmp_path, *blocks):
    "Stages to do per cell, and seconds in all, at one second per pass"
    plan = plan_grid([SMALL | block for block in blocks], store=tmp_path, device="cpu")
    speed = {("ConvNetD3-w8", plan.cells[0].cell.data.spec): 1.0}
    lines = estimate_cost(plan, speed=speed).lines
    return list(lines["to do"]), lines["seconds"].sum(), plan


def test_random_images_beside_a_method_are_counted(tmp_path):
    "Two models of the method and two of random images, each attacked"
    todo, seconds, plan = work_of(tmp_path, dict(method="dm", ipc=1))
    own = sum(work.passes for work in cell_stages(plan.cells[0].cell))
    _, baseline, _ = work_of(tmp_path, dict(method="random", ipc=1))
    assert todo == ["2 distil, 4 train, 4 attack"]
    assert baseline > 0 and seconds == pytest.approx(own + baseline)


def test_cells_share_their_random_images(tmp_path):
    "Two methods of one recipe, the baseline itself as a cell, and another ipc, which needs other images"
    todo, _, _ = work_of(tmp_path, dict(method=["dm", "dsa"], ipc=1))
    assert todo == ["2 distil, 4 train, 4 attack", "1 distil, 2 train, 2 attack"]
    todo, _, _ = work_of(tmp_path, dict(method=["random", "dm"], ipc=1))
    assert todo == ["1 distil, 2 train, 2 attack", "1 distil, 2 train, 2 attack"]
    todo, _, _ = work_of(tmp_path, dict(method="dm", ipc=[1, 2]))
    assert todo == ["2 distil, 4 train, 4 attack"] * 2


def test_the_whole_dataset_and_random_itself_have_no_baseline(tmp_path):
    todo, _, plan = work_of(tmp_path, dict(method="random", ipc=1), dict(method="whole"))
    assert todo[0] == "1 distil, 2 train, 2 attack"
    for planned in plan.cells:
        assert all_stages(planned.cell) == cell_stages(planned.cell)

"What a grid costs: known before anything starts, and shared work counted once."

import pytest

from ddrobust_nb.grid.command import command
from ddrobust_nb.grid.cost import cell_stages, estimate_cost
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
    keys = [s[:2] for c in plan.cells for s in cell_stages(c.cell)]
    cost = estimate_cost(
        plan,
        speed={
            (n, c.cell.data.spec): 1.0 for c in plan.cells for n in (c.cell.network, c.cell.distill_network)
        },
    )
    once = {s[:2]: s[2] for c in plan.cells for s in cell_stages(c.cell)}
    assert len(keys) > len(once) and cost.lines["seconds"].sum() == pytest.approx(sum(once.values()))

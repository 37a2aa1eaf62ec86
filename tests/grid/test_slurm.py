"The exported array script: every value is quoted, and a task runs one cell."

import json
import os
import subprocess
import sys

import pytest
from grid_runs import TINY

from ddrobust_nb.foundations.core import InputError
from ddrobust_nb.grid.machines import Machines
from ddrobust_nb.grid.notebook import is_done
from ddrobust_nb.grid.plan import plan_grid
from ddrobust_nb.grid.slurm import array_script, run_listed

NASTY = "a store; touch x $(touch y) `touch z` 'q\" end"


def test_the_array_script_quotes_every_value(tmp_path):
    "Executed by bash with a stand-in for Python: the path arrives whole, and nothing in it is run"
    place = tmp_path / NASTY
    place.mkdir()
    plan = plan_grid([dict(TINY, method=["dm", "random"], ipc=1)], store=place / "store", device="cpu")
    script = array_script(
        plan,
        place / "grid; touch w.sh",
        Machines(engine="slurm", workers=1, threads=1, gpus=0, partition="p", account="a"),
    )
    fake = tmp_path / "python"
    fake.write_text("#!/bin/bash\nprintf '%s\\n' \"$@\"\n"), fake.chmod(0o755)
    script.write_text(script.read_text().replace(sys.executable, str(fake)))
    subprocess.run(
        ["bash", str(script)], env=dict(os.environ, SLURM_ARRAY_TASK_ID="1"), cwd=tmp_path, check=True
    )
    assert (place / "grid; touch w.1.log").read_text().splitlines() == [
        "-m",
        "ddrobust_nb.grid.command",
        "cell",
        str(place / "grid; touch w.cells.json"),
        "1",
    ]
    assert not {p.name for p in tmp_path.iterdir()} & {"w", "x", "y", "z"}
    listed = json.loads((place / "grid; touch w.cells.json").read_text())
    assert [c["given"]["method"] for c in listed] == ["dm", "random"] and listed[0]["common"]["store"] == str(
        place / "store"
    )


@pytest.mark.parametrize(
    "wrong, text",
    [
        (dict(partition="p; touch x"), "partition must be a name"),
        (dict(account="$(x)"), "account must be a name"),
        (dict(walltime="1h; x"), "walltime must be like"),
        (dict(engine="pbs"), "engine"),
        (dict(workers=0), "workers"),
    ],
)
def test_bad_machines(tmp_path, wrong, text):
    plan = plan_grid([dict(TINY, method="random", ipc=1)], store=tmp_path / "store", device="cpu")
    with pytest.raises(InputError, match=text):
        array_script(plan, tmp_path / "g.sh", Machines(**{"engine": "slurm", **wrong}))
    assert not (tmp_path / "g.sh").exists()


def test_a_listed_cell_runs(tmp_path):
    plan = plan_grid([dict(TINY, method="random", ipc=1)], store=tmp_path / "store", device="cpu")
    array_script(plan, tmp_path / "g.sh", Machines(engine="slurm"))
    assert run_listed(tmp_path / "g.cells.json", 0).state == "done" and is_done(plan.cells[0].out)
    assert run_listed(tmp_path / "g.cells.json", 0).seconds == 0
    with pytest.raises(InputError, match="no cell 1"):
        run_listed(tmp_path / "g.cells.json", 1)

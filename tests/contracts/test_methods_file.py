"""One file outside the package brings a distiller and an attack: planned, priced, run, killed and resumed, tabled, coloured and drawn.

`own_methods.py` beside this file is all there is of them; no module of the package names them."""

from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from ddrobust_nb.attacks.attack import attack
from ddrobust_nb.foundations.core import InputError
from ddrobust_nb.foundations.datasets import load_data
from ddrobust_nb.grid.command import command
from ddrobust_nb.grid.cost import estimate_cost
from ddrobust_nb.grid.plan import plan_grid
from ddrobust_nb.results.cell_rows import run_stages
from ddrobust_nb.results.methods import FILES, code_of, load_methods
from ddrobust_nb.results.mixing_run import plan_mixing
from ddrobust_nb.results.plan import plan_cell
from ddrobust_nb.results.reading import read_results
from ddrobust_nb.results.report import plot_rows, results_table
from ddrobust_nb.results.sources import needed_parts
from ddrobust_nb.results.stages import attack_key
from ddrobust_nb.results.styles import method_styles
from ddrobust_nb.training.distiller import distiller
from test_run_cell import NOTEBOOK, killed_when, papermill
from tiny import measured

FILE = Path(__file__).with_name("own_methods.py")
ATTACKS = "push@4/255,push@8/255,fgsm@8/255"
SMALL = dict(
    ipc=2,
    options={"rounds": 10},
    network="ConvNetD3-w4",
    attacks=ATTACKS,
    n_test=20,
    n_models=1,
    device="cpu",
)


@pytest.fixture(autouse=True)
def nothing_is_left():
    "The registries as they were"
    before = [dict(kept) for kept in (distiller, attack, FILES)]
    yield
    for kept, values in zip((distiller, attack, FILES), before):
        kept.clear()
        kept.update(values)


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


def planned(store, digits, file=FILE, **given):
    usual = SMALL | dict(method="drift", methods=str(file), store=str(store))
    return plan_cell(data=digits, **usual | given)


def test_a_name_is_unknown_without_its_file(tmp_path, digits):
    with pytest.raises(InputError, match="unknown method 'drift'"):
        planned(tmp_path, digits, methods="")
    with pytest.raises(InputError, match="unknown attack 'push'"):
        plan_cell(data=digits, attacks="push", store=str(tmp_path))


def test_planned_with_its_digest_in_its_keys_alone(tmp_path, digits):
    plain = dict(
        data=digits, method="random", attacks="fgsm@8/255,pgd@8/255", device="cpu", store=str(tmp_path)
    )
    before = plan_cell(**plain)
    cell = planned(tmp_path, digits)
    after = plan_cell(**plain, methods=str(FILE))
    assert (cell.method, cell.options) == ("drift", {"rounds": 10})
    assert (before.key, before.set_key, before.model_keys) == (after.key, after.set_key, after.model_keys)
    assert [attack_key(before, "m", c) for c in before.configs] == [
        attack_key(after, "m", c) for c in after.configs
    ]
    ours = code_of("distiller", "drift")
    assert ours == code_of("attack", "push") and not code_of("attack", "fgsm")
    assert [part.config for part in needed_parts(cell).values()] == [{"of": "all images"} | ours]


def test_another_version_of_the_file_has_other_keys(tmp_path, digits):
    copy = tmp_path / "mine.py"
    copy.write_text(FILE.read_text())
    first = planned(tmp_path, digits, copy)
    keys = [first.key, first.set_key, attack_key(first, "m", first.configs[0]), *needed_parts(first)]
    assert load_methods(str(FILE)) is load_methods(str(copy)), "a copy is the same file"
    copy.write_text(FILE.read_text().replace("0.2 *", "0.3 *"))
    second = planned(tmp_path, digits, copy)
    changed = [second.key, second.set_key, attack_key(second, "m", second.configs[0]), *needed_parts(second)]
    assert not set(keys) & set(changed)
    assert attack_key(first, "m", first.configs[2]) == attack_key(second, "m", second.configs[2])


@pytest.mark.parametrize(
    "contents, message",
    (
        (FILE.read_text() + "\n", "registers 'drift', which is the name of another method"),
        ("import no_such_module", "cannot be loaded .ModuleNotFoundError"),
        ("def f(:", "cannot be loaded .SyntaxError"),
        ("x = 1", "registers no method"),
        (
            FILE.read_text().replace("def drift", "def dm"),
            "registers 'dm', which is the name of another method",
        ),
        (
            FILE.read_text().replace("def push", "def pgd").replace("def drift", "def another"),
            "registers 'pgd', which is the name of another attack",
        ),
    ),
)
def test_refused_files_change_nothing(contents, message, tmp_path):
    load_methods(str(FILE))
    before = dict(distiller), dict(attack), dict(FILES)
    bad = tmp_path / "bad.py"
    bad.write_text(contents)
    with pytest.raises(InputError, match=message):
        load_methods(str(bad))
    assert (dict(distiller), dict(attack), dict(FILES)) == before


def test_what_is_no_python_file(tmp_path):
    for file in (tmp_path, tmp_path / "absent.py", Path(__file__).with_name("own_methods.txt")):
        with pytest.raises(InputError, match="is not a Python file"):
            load_methods(str(file))


def test_priced(tmp_path, capsys):
    block = {name: value for name, value in SMALL.items() if name not in ("device", "options")} | dict(
        method="drift"
    )
    plan = plan_grid([block], store=tmp_path, device="cpu", methods=str(FILE))
    (planned_cell,) = plan.cells
    assert planned_cell.error == "" and plan.common["methods"] == str(FILE)
    cost = estimate_cost(
        plan, speed={(planned_cell.cell.network, planned_cell.cell.data.spec): 1e-6} | Speed()
    )
    assert cost.seconds > 0 and list(cost.lines["note"]) == [""]
    blocks = '[{"method": "drift", "network": "ConvNetD3-w8", "attacks": "push", "n_models": 1}]'
    arguments = [
        "run",
        blocks,
        "--methods",
        str(FILE),
        "--store",
        str(tmp_path),
        "--dry-run",
        "--device",
        "cpu",
    ]
    assert command(arguments) == 0 and "drift" in capsys.readouterr().out


class Speed(dict):
    "A millionth of a second per pass, whatever the network"

    def __contains__(self, network):
        return True

    def __missing__(self, network):
        return 1e-6


def test_mixed_in(tmp_path, digits):
    run = plan_mixing(
        data=digits, sets="none,drift", attacks="push", methods=str(FILE), device="cpu", store=str(tmp_path)
    )
    assert run.cells["drift"].method == "drift" and str(run.cell.configs[0]) == "push@2/255"


def test_run_killed_and_resumed(tmp_path, digits, monkeypatch):
    "papermill, a kill in the middle of distilling, papermill again: the rows of an undisturbed run"
    log, store, out = tmp_path / "log", tmp_path / "store", tmp_path / "out"
    monkeypatch.setenv("DRIFT_LOG", str(log))
    given = dict(method="drift", ipc=2, methods=FILE, network="ConvNetD3-w4", attacks=ATTACKS, n_test=20)
    given |= dict(n_models=1, device="cpu", store=store, out=out)
    arguments = [NOTEBOOK.name, tmp_path / "run.ipynb", "-y", "options: {rounds: 10}"]
    for name, value in given.items():
        arguments += ["-p", name, value]

    def three_rounds_done():
        return log.is_file() and len(log.read_text()) > 3

    assert killed_when(three_rounds_done, *arguments)
    done = papermill(*arguments, DDROBUST_AUTOSAVE="0")
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(log.read_text()) in (10, 11), "the rounds that were saved are not done again"
    rows = [row for row in read_results(out) if row.method == "drift"]
    monkeypatch.delenv("DRIFT_LOG")
    calm = run_stages(planned(tmp_path / "calm", digits))
    assert measured(rows) == measured(calm.rows)
    shown(read_results(out))


def shown(rows):
    "Tabled, coloured and drawn"
    load_methods(str(FILE))
    table = results_table(rows)
    assert {"drift", "random"} <= set(table["method"]) and "Push" in set(table["attack"])
    styles = method_styles(["dm", "random", "drift"])
    assert styles["drift"].label == "Drift" and len({style.colour for style in styles.values()}) == 3
    plt.close(plot_rows(rows))
    assert {row.stages for row in rows if row.method == "drift"} == {"means 1, distil 3, train 2, attack 3"}
    near, far, _ = [row for row in rows if row.method == "drift"]
    assert (near.gradients, far.gradients > 0) in ((near.gradients, False), (0, True)), (
        "one gradient serves both"
    )

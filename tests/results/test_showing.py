"The last second of a cell: whatever cannot be shown costs a line, never the rows, the notebook or the state."

import ast
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd
import pytest
from IPython.display import HTML, Markdown
from papermill.exceptions import PapermillExecutionError
from PIL import Image

from ddrobust_nb.foundations.core import InputError
from ddrobust_nb.grid import notebook as notebook_module
from ddrobust_nb.grid import run as run_module
from ddrobust_nb.grid.plan import plan_grid
from ddrobust_nb.grid.notebook import (
    UNSHOWN_FILE,
    CellReport,
    first_unshown,
    has_rows,
    is_done,
    run_notebook,
    run_one,
)
from ddrobust_nb.grid.run import GridOutcome, run_grid
from ddrobust_nb.grid.status import cell_state, status_line
from ddrobust_nb.grid.tables import rows_of_plan
from ddrobust_nb.results import showing
from ddrobust_nb.results.reading import read_results
from ddrobust_nb.results.showing import NotShown, as_display, error_line, show_or_explain, text_or_explain


@pytest.fixture(autouse=True)
def no_figure_is_open():
    "What other tests have left open does not count here"
    plt.close("all")


@pytest.fixture
def user(monkeypatch):
    "As a user runs it: tests are strict by themselves"
    monkeypatch.delenv("DDROBUST_STRICT", raising=False)


def figure():
    return plt.subplots(figsize=(1, 1))[0]


def half_drawn():
    fig, ax = plt.subplots()
    ax.bar(0, 100, yerr=[[1], [-1e-14]])
    return fig


class Broken:
    "Fails only when a notebook asks how it looks"

    def __init__(self, name):
        setattr(type(self), name, self.fail)

    def fail(self, *_):
        raise KeyError("no such column")


# ---- what is shown


def test_tables_text_and_figures_come_out_as_a_notebook_would_show_them(user, tmp_path):
    table = pd.DataFrame({"a": [1]})
    assert show_or_explain(lambda: table, "table").data == {
        "text/plain": repr(table),
        "text/html": table._repr_html_(),
    }
    assert show_or_explain(lambda: Markdown("*x*"), "text").data["text/markdown"] == "*x*"
    assert show_or_explain(lambda: HTML("<b>x</b>"), "text").data["text/html"] == "<b>x</b>"
    assert (
        show_or_explain(lambda: {"dm": 1}, "numbers").data == {"text/plain": "{'dm': 1}"}
        and repr(as_display("x")) == "'x'"
    )
    shown = show_or_explain(figure, "training", tmp_path)
    assert shown.data["image/png"].startswith(b"\x89PNG") and (
        tmp_path / "figures" / "training.png"
    ).read_bytes().startswith(b"\x89PNG")
    assert not plt.get_fignums(), "pyplot keeps nothing, and nothing is shown twice"
    assert sorted(p.name for p in (tmp_path / "figures").iterdir()) == ["training.png"]


def test_a_notebook_displays_it(user):
    from IPython.core.formatters import DisplayFormatter

    formats, _ = DisplayFormatter().format(show_or_explain(figure, "training"))
    assert formats["image/png"].startswith(b"\x89PNG") and formats["text/plain"] == "figure"


@pytest.mark.parametrize(
    "make",
    [
        half_drawn,
        lambda: 1 / 0,
        lambda: {}["robust"],
        lambda: [][0],
        lambda: Broken("_repr_html_"),
        lambda: Broken("_repr_png_"),
        lambda: Broken("__repr__"),
        lambda: (_ for _ in ()).throw(MemoryError()),
        lambda: (_ for _ in ()).throw(InputError("n must be 1 or more\nsecond line")),
    ],
)
def test_what_fails_is_a_line(make, user, tmp_path, monkeypatch):
    kept = figure()
    with pytest.warns(NotShown) as heard:
        line = show_or_explain(make, "robustness", tmp_path)
    text = line.data["text/plain"]
    assert (
        text.startswith("robustness could not be shown (")
        and "\n" not in text
        and len(text) < 320
        and [str(w.message) for w in heard] == [text]
    )
    assert set(line.data) == {"text/plain", "text/markdown"} and not list(tmp_path.rglob("*.png"))
    assert plt.get_fignums() == [kept.number], "what was begun is closed, what was there stays"
    plt.close(kept)
    monkeypatch.setenv("DDROBUST_STRICT", "1")
    with pytest.raises(Exception):  # noqa: B017 - each of the cases raises another
        show_or_explain(make, "robustness", tmp_path)
    assert not plt.get_fignums()


def test_text(user, monkeypatch):
    assert text_or_explain(lambda: "clean 98.0", "the table") == "clean 98.0"
    with pytest.warns(NotShown):
        assert text_or_explain(lambda: 1 / 0, "the table").startswith(
            "the table could not be shown (ZeroDivisionError: "
        )
    monkeypatch.setenv("DDROBUST_STRICT", "1")
    with pytest.raises(ZeroDivisionError):
        text_or_explain(lambda: 1 / 0, "the table")


def test_the_command_ends_with_what_became_of_the_cells(user, tmp_path, monkeypatch, capsys):
    "Also where the table of their rows cannot be made"
    from ddrobust_nb.grid import command as module

    plan = plan_grid([dict(method="random", ipc=1)], store=tmp_path / "store", device="cpu")
    monkeypatch.setattr(
        module, "run_grid", lambda plan, machines: GridOutcome(plan, {0: "done"}, {}, {0: "a note"})
    )
    monkeypatch.setattr(module, "rows_of_plan", lambda plan: [None])
    with pytest.warns(NotShown, match="the table could not be shown"):
        assert (
            module.command(
                [
                    "run",
                    '[{"method": "random", "ipc": 1}]',
                    "--store",
                    str(plan.store.root),
                    "--device",
                    "cpu",
                ]
            )
            == 0
        )
    said = capsys.readouterr().out
    assert "the table could not be shown (" in said and "1 done" in said and "a note" in said


def test_interruptions_pass(user):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        show_or_explain(interrupted, "robustness")


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        PermissionError(13, "Permission denied"),
        ValueError("embedded null byte"),
    ],
)
def test_a_figure_that_cannot_be_kept_is_still_shown(error, user, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(showing, "replacing", fail)
    with pytest.warns(NotShown, match="training could not be kept .*rows, models and flags are not affected"):
        shown = show_or_explain(figure, "training", tmp_path)
    assert "image/png" in shown.data
    monkeypatch.setenv("DDROBUST_STRICT", "1")
    with pytest.raises(type(error)):
        show_or_explain(figure, "training", tmp_path)


def test_a_folder_that_is_a_file(user, tmp_path):
    (tmp_path / "figures").write_text("in the way")
    with pytest.warns(NotShown, match="could not be kept"):
        assert "image/png" in show_or_explain(figure, "training", tmp_path).data


def test_a_full_disk_leaves_the_figure_of_before(user, tmp_path, monkeypatch):
    show_or_explain(figure, "training", tmp_path)
    before = (tmp_path / "figures" / "training.png").read_bytes()

    def half(self, data):
        self.open("wb").write(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.warns(NotShown):
        show_or_explain(lambda: plt.subplots(figsize=(2, 2))[0], "training", tmp_path)
    assert [p.name for p in (tmp_path / "figures").iterdir()] == ["training.png"] and (
        tmp_path / "figures" / "training.png"
    ).read_bytes() == before


@pytest.mark.parametrize(
    "error, said",
    [
        (ValueError("a\nb"), "ValueError: a"),
        (ValueError(), "ValueError"),
        (KeyError("x"), "KeyError: 'x'"),
        (ValueError("x" * 999), "ValueError: " + "x" * 188),
    ],
)
def test_reasons(error, said):
    assert error_line(error) == said


# ---- the run notebooks

NBS = Path(__file__).resolve().parents[2] / "nbs"


@pytest.mark.parametrize("name", ["run_cell", "run_mixing"])
def test_nothing_is_drawn_before_the_rows_are_written_and_nothing_unguarded_after(name):
    cells = [
        c
        for c in json.loads((NBS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
        if c["cell_type"] == "code"
    ]
    sources = ["".join(c["source"]) for c in cells]
    (written,) = [i for i, s in enumerate(sources) if "= write_" in s]

    def draws(s):
        return [
            n.func.id
            for n in ast.walk(ast.parse(s))
            if isinstance(n, ast.Call)
            and isinstance(n.func, ast.Name)
            and n.func.id.startswith(("plot_", "show_"))
            and n.func.id != "show_or_explain"
        ]

    assert not [s for s in sources[: written + 1] if draws(s)]
    assert sum(map(len, map(draws, sources[written + 1 :]))) >= 3
    for source in sources[written:]:
        tree = ast.parse(source)
        guarded = {
            id(n)
            for call in ast.walk(tree)
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "show_or_explain"
            for n in ast.walk(call)
        }
        guarded |= {id(n) for f in ast.walk(tree) if isinstance(f, ast.Lambda) for n in ast.walk(f)}
        loose = [
            n.func.id
            for n in ast.walk(tree)
            if isinstance(n, ast.Call) and id(n) not in guarded and isinstance(n.func, ast.Name)
        ]
        assert set(loose) <= {
            "display",
            "Markdown",
            "finish_cell",
            "attack_cell",
            "write_out",
            "finish_mixing",
            "write_mixing",
        }, source


# ---- a grid


def executes(*, rows=None, raises=None, out=None):
    "A stand-in for papermill: writes rows, then stops or comes to its end"

    def execute(notebook, going, **options):
        Path(going).write_text("{}")
        if rows is not None:
            (out / "results.json").write_text(json.dumps(rows))
        if raises is not None:
            raise raises

    return execute


IN_A_CELL = PapermillExecutionError(
    7,
    7,
    "plot_rows(rows)",
    "ValueError",
    "'yerr' must not contain negative values",
    ["\x1b[31mValueError\x1b[0m"],
)


@pytest.mark.parametrize(
    "error", [IN_A_CELL, RuntimeError("Kernel died"), OSError(28, "No space left on device")]
)
def test_an_error_after_the_rows_is_no_failure(error, tmp_path, monkeypatch):
    for _ in range(2):  # at each repetition
        monkeypatch.setattr("papermill.execute_notebook", executes(rows=[1], raises=error, out=tmp_path))
        said = run_notebook("run_cell.ipynb", {}, tmp_path)
        assert said.state == "done" and "the rows are there" in said.note and not said.error
        assert has_rows(tmp_path) and not is_done(tmp_path) and (tmp_path / "failed.ipynb").is_file()
    monkeypatch.setattr("papermill.execute_notebook", executes(rows=[1], out=tmp_path))
    assert run_notebook("run_cell.ipynb", {}, tmp_path) == CellReport(
        state="done", seconds=pytest.approx(0, abs=60)
    )
    assert is_done(tmp_path) and sorted(p.name for p in tmp_path.iterdir()) == [
        "results.json",
        "run_cell.ipynb",
    ], "mended, and the report is gone"


# ---- what a notebook that came to its end could not show


def displayed(make, what="robustness", folder=None):
    "The outputs that Jupyter keeps of `display(show_or_explain(...))`: the line, and the warning as text"
    with pytest.warns(NotShown) as heard:
        shown = show_or_explain(make, what, folder)
    stderr = "".join(f"/a/b.py:3: NotShown: {w.message}\n  display(show_or_explain(plot))\n" for w in heard)
    data = {mime: text.splitlines(True) for mime, text in shown.data.items() if isinstance(text, str)}
    return [
        dict(output_type="stream", name="stderr", text=stderr.splitlines(True)),
        dict(output_type="display_data", data=data),
    ]


def shows(outputs, out):
    "A stand-in for papermill whose notebook writes its rows and has these outputs; counts how often it is executed"

    def execute(notebook, going, **options):
        execute.times += 1
        Path(going).write_text(
            json.dumps(dict(cells=[dict(cell_type="markdown"), dict(cell_type="code", outputs=outputs)]))
        )
        (out / "results.json").write_text("[]")

    execute.times = 0
    return execute


WELL = [
    dict(output_type="display_data", data={"text/plain": ["figure"], "image/png": "iVBO"}),
    dict(output_type="stream", name="stdout", text="could not be shown (never)"),
]


def test_a_line_in_place_of_a_figure_is_found(user, tmp_path):
    def nb(*outputs):
        return dict(cells=[dict(outputs=[]), dict(outputs=[*outputs])])

    assert first_unshown({}) == first_unshown(nb(*WELL)) == ""
    warned, line = displayed(half_drawn)
    for found in (warned, line):
        assert first_unshown(nb(*WELL, found)).startswith("robustness could not be shown (ValueError: ")
    assert (
        first_unshown(nb(displayed(lambda: {}["robust %"], "the table")[1]))
        == "the table could not be shown (KeyError: 'robust %')"
    )
    (tmp_path / "figures").write_text("in the way")
    outputs = displayed(figure, "training", tmp_path)
    assert first_unshown(nb(outputs[1])) == "", "the figure itself is shown"
    assert first_unshown(nb(*outputs)).startswith("training could not be kept (")


@pytest.mark.parametrize(
    "make, what", [(half_drawn, "robustness"), (lambda: {}["robust"], "the table"), (figure, "training")]
)
def test_what_was_not_shown_is_mended_by_the_next_run(make, what, user, tmp_path, monkeypatch):
    plan = plan_grid([dict(method="random", ipc=1)], store=tmp_path / "store", device="cpu")
    (c,) = plan.cells
    c.out.mkdir(parents=True)
    (c.out / "figures").write_text("in the way")  # keeps a figure from being kept
    outputs = displayed(make, what, c.out)
    (c.out / "figures").unlink()

    def run(wait=False):
        return run_one("run_cell.ipynb", {}, str(c.out), str(plan.store.root), c.key, wait)

    monkeypatch.setattr("papermill.execute_notebook", execute := shows(outputs, c.out))
    for times in (1, 2):  # each run tries it once more
        said = run()
        assert (
            said.state == "done"
            and f"{what} could not be " in said.note
            and "affected" not in said.note
            and execute.times == times
        )
        assert (c.out / UNSHOWN_FILE).is_file() and has_rows(c.out) and not is_done(c.out)
        assert (
            cell_state(c, plan.store) == ("done", said.note)
            and status_line(plan) == "1 done"
            and rows_of_plan(plan) == []
        )
    assert run(wait=True).note == said.note and execute.times == 2, (
        "what another run has just left is not executed again"
    )
    notebook_module.write_failure(c.out, "RuntimeError: out of memory")
    assert cell_state(c, plan.store)[0] == "done" and "out of memory" in cell_state(c, plan.store)[1], (
        "the last attempt is what is said"
    )
    monkeypatch.setattr("papermill.execute_notebook", execute := shows(WELL, c.out))
    report = run()
    assert report == CellReport(state="done", seconds=report.seconds) and execute.times == 1
    assert is_done(c.out) and sorted(p.name for p in c.out.iterdir()) == ["results.json", "run_cell.ipynb"], (
        "the mark is gone"
    )
    assert cell_state(c, plan.store) == ("done", "") and run().state == "done" and execute.times == 1


def test_a_grid_executes_a_cell_with_a_mark_once(tmp_path, monkeypatch):
    plan = plan_grid([dict(method="random", ipc=[1, 2])], store=tmp_path / "store", device="cpu")
    for c in plan.cells:
        c.out.mkdir(parents=True)
        for name in ("run_cell.ipynb", "results.json"):
            (c.out / name).write_text("[]")
    (plan.cells[1].out / UNSHOWN_FILE).write_text('{"line": "robustness could not be shown (ValueError)"}')
    given = []
    monkeypatch.setattr(run_module, "_run", lambda outcome, todo, *rest: given.append(todo))
    run_grid(plan)
    assert given == [[1]]
    (plan.cells[0].out / UNSHOWN_FILE).write_text("damaged")
    assert "cannot be read" in cell_state(plan.cells[0], plan.store)[1] and not is_done(plan.cells[0].out)


def test_a_full_disk_does_not_hide_what_was_not_shown(user, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(notebook_module, "write_json", full)
    monkeypatch.setattr("papermill.execute_notebook", shows(displayed(half_drawn), tmp_path))
    said = run_notebook("run_cell.ipynb", {}, tmp_path)
    assert (
        said.state == "done" and "No space left" in said.note and has_rows(tmp_path) and not is_done(tmp_path)
    )


def test_an_error_before_the_rows_is_one(tmp_path, monkeypatch):
    monkeypatch.setattr("papermill.execute_notebook", executes(raises=IN_A_CELL, out=tmp_path))
    said = run_notebook("run_cell.ipynb", {}, tmp_path)
    assert said.state == "failed" and said.error.startswith("ValueError: 'yerr'")
    (tmp_path / "results.json").write_text("[1]")  # rows of an earlier run do not excuse this one
    assert run_notebook("run_cell.ipynb", {}, tmp_path).state == "failed"
    monkeypatch.setattr(
        "papermill.execute_notebook", executes(raises=RuntimeError("Kernel died"), out=tmp_path)
    )
    with pytest.raises(RuntimeError):
        run_notebook("run_cell.ipynb", {}, tmp_path)


def test_rows_that_are_cut_short_are_no_rows(tmp_path, monkeypatch):
    def execute(notebook, going, **options):
        Path(going).write_text("{}")
        (tmp_path / "results.json").write_text('[{"clean": 0.5}, {"cl')
        raise IN_A_CELL

    monkeypatch.setattr("papermill.execute_notebook", execute)
    assert run_notebook("run_cell.ipynb", {}, tmp_path).state == "failed"


def test_what_a_grid_says_of_it(tmp_path):
    plan = plan_grid([dict(method="random", ipc=[1, 2])], store=tmp_path / "store", device="cpu")
    first, second = plan.cells
    for c in plan.cells:
        c.out.mkdir(parents=True)
    (first.out / "results.json").write_text("[]")
    assert cell_state(first, plan.store) == (
        "done",
        "the rows are there, the notebook stopped after them (it was interrupted): the next run mends it from the store",
    )
    notebook_module.write_failure(first.out, "ValueError: negative")
    notebook_module.write_failure(second.out, "ValueError: negative")
    assert (
        cell_state(first, plan.store)[0] == "done"
        and "(ValueError: negative)" in cell_state(first, plan.store)[1]
    )
    assert (
        cell_state(second, plan.store) == ("failed", "ValueError: negative")
        and status_line(plan) == "1 done, 1 failed"
    )
    assert rows_of_plan(plan) == []
    outcome = GridOutcome(plan, {0: "done", 1: "failed"}, {1: "E"}, {0: "N"})
    assert "N" in outcome._repr_html_() and "E" in outcome._repr_html_()


def test_a_view_that_fails_does_not_stop_a_grid():
    def watch(outcome):
        raise ValueError("no display")

    with pytest.warns(NotShown, match="the grid goes on"):
        run_module._notify(watch, None)
    seen = []
    run_module._notify(seen.append, 7), run_module._notify(None, 7)
    assert seen == [7]


# ---- a real notebook


def two_colours(folder, per_class=24):
    "A folder of dark and of light images, which every network tells apart"
    for half in ("train", "test"):
        for k, name in enumerate(("dark", "light")):
            (place := folder / half / name).mkdir(parents=True)
            for i in range(per_class):
                Image.new("L", (8, 8), 30 + 180 * k + i).save(place / f"{i}.png")
    return f"folder:{folder}"


@pytest.mark.slow
def test_a_real_cell_at_both_ends_and_its_notebook_mended(tmp_path, monkeypatch):
    "48 images: all right without attack, all right within 1/255, none right within 1. The figure cannot be kept at first, and errors are raised as in the tests: that stops the notebook after the rows"
    out, store = tmp_path / "out", tmp_path / "store"
    given = dict(
        method="random",
        dataset=two_colours(tmp_path / "images"),
        ipc=1,
        network="ConvNetD3-w8",
        n_models=1,
        n_test=48,
        attacks="fgsm@1/255,pgd@1@20",
        device="cpu",
        store=str(store),
        out=str(out),
    )
    monkeypatch.setenv("DDROBUST_STRICT", "1")
    out.mkdir()
    (out / "figures").write_text("in the way")
    said = run_notebook(str(NBS / "run_cell.ipynb"), given, str(out))
    assert (
        said.state == "done"
        and "the rows are there" in said.note
        and (out / "failed.ipynb").is_file()
        and not is_done(out)
    )
    rows = read_results(out)
    assert [(r.attack, r.n, r.clean, r.robust) for r in rows] == [
        ("fgsm", 48, 1.0, 1.0),
        ("pgd", 48, 1.0, 0.0),
    ]
    kept = {
        p: p.stat().st_mtime_ns
        for p in store.rglob("*")
        if p.is_file() and ".lock" not in p.name and "locks" not in str(p)
    }
    monkeypatch.delenv("DDROBUST_STRICT")
    for obstacle in (
        True,
        False,
    ):  # the user's way round: the figure is shown, its file is missing; then nothing is in the way
        if not obstacle:
            (out / "figures").unlink()
        said = run_notebook(str(NBS / "run_cell.ipynb"), given, str(out))
        assert (
            said.state == "done"
            and ("could not be kept" in said.note) == obstacle
            and not (out / "failed.json").exists()
        )
        assert is_done(out) != obstacle and (out / UNSHOWN_FILE).exists() == obstacle
        outputs = [
            o for c in json.loads((out / "run_cell.ipynb").read_text())["cells"] for o in c.get("outputs", [])
        ]
        assert sum("image/png" in o.get("data", {}) for o in outputs) >= 4 and not [
            o for o in outputs if o["output_type"] == "error"
        ]
        assert (out / "figures" / "robustness.png").is_file() != obstacle
    assert read_results(out) == rows
    assert {p: p.stat().st_mtime_ns for p in kept} == kept, "nothing was made again"

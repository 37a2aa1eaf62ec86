"Rows and tables of grids: each experiment has a line of its own, and no mean is taken over experiments."

import json
import re
import shutil
from dataclasses import MISSING, asdict, fields, replace

import pandas as pd
import pytest
from grid_runs import ROOT, TINY
from PIL import Image

from ddrobust_nb.foundations.core import InputError
from ddrobust_nb.grid.command import command
from ddrobust_nb.grid.leaderboard import standings
from ddrobust_nb.grid.plan import plan_grid
from ddrobust_nb.grid.tables import (
    escape_latex,
    export_rows,
    rows_of_cells,
    rows_of_plan,
    rows_of_store,
)
from ddrobust_nb.results.cell_rows import baseline_cell, run_stages, write_out
from ddrobust_nb.results.compare import cell_text
from ddrobust_nb.results.finding import find_rows
from ddrobust_nb.results.lines import lines_of
from ddrobust_nb.results.paper import paper_table
from ddrobust_nb.results.reading import read_results
from ddrobust_nb.results.report import results_table
from ddrobust_nb.results.rows import Result, digest_of, normal_recipe, write_results


def fields_of(line):
    "How many columns a line of a LaTeX table fills"
    return sum(
        int(m.group(1)) if (m := re.match(r"\\multicolumn\{(\d+)\}", part)) else 1
        for part in line.removesuffix(r" \\").split(" & ")
    )


@pytest.mark.parametrize("name", ["I", "III", "VII", "XXIII"])
def test_tables_in_the_layout_of_the_paper(away, monkeypatch, name):
    "Every line of the LaTeX fills every column; ours stands in its cell, and no cell of the paper is lost"
    from ddrobust_nb.grid import tables as module

    found = find_rows(ROOT / "nbs" / "sets")
    monkeypatch.setattr(module, "find_rows", lambda *places: found)
    one = json.dumps([dict(method="dm", ipc=1)])
    for end in ("tex", "md", "csv"):
        assert (
            command(
                ["table", one, "--layout", name, "--to", str(away.parent / f"t.{end}"), "--store", str(away)]
            )
            == 0
        )
    cells, tex = pd.read_csv(away.parent / "t.csv"), (away.parent / "t.tex").read_text()
    assert len(cells) == len(paper_table(name)) and (name != "I" or cells["ours"].notna().any())
    lines = [line for line in tex.splitlines() if line.endswith(r"\\")]
    assert len({fields_of(line) for line in lines}) == 1 and fields_of(lines[0]) == len(
        re.search(r"tabular\}\{([lr]+)\}", tex)[1]
    )
    for text in map(cell_text, cells[~cells["missing"]].astype({"printed": str}).to_dict("records")):
        assert escape_latex(text.split(" | ")[1]) in tex
    assert (
        tex.count("{") == tex.count("}")
        and "footnotesize" in tex
        and "Paper | ours" in (away.parent / "t.md").read_text()
    )


def test_a_layout_that_is_not_there(away):
    with pytest.raises(InputError, match="table of the paper"):
        command(["table", json.dumps([dict(method="dm", ipc=1)]), "--layout", "V", "--store", str(away)])


def test_rows_come_out_as_they_went_in(undisturbed, tmp_path):
    rows = rows_of_store(undisturbed[0])
    back = pd.read_csv(export_rows(rows, tmp_path / "r.csv"))
    assert len(back) == len(rows) == 8 and back["robust"].tolist() == [r.robust for r in rows]
    assert export_rows(rows, tmp_path / "r.md").read_text().count("\n|") == 1 + 12
    assert r"\toprule" in export_rows(rows, tmp_path / "r.tex").read_text()


def test_random_images_trained_in_two_ways_are_not_averaged(tmp_path):
    "DC's students see no augmentation: the random images beside it are another experiment than those beside DM and DSA"
    given = [
        r
        for r in read_results(ROOT / "nbs" / "sets" / "cifar10-random-ipc1")
        if r.set_seed == 0 and r.attack == "pgd"
    ]
    plain = given[0].recipe | dict(augment="")
    other = [
        replace(
            r,
            key=f"other {r.key}",
            model_key=f"other {r.seed}",
            recipe=plain,
            recipe_digest=digest_of(normal_recipe(plain)),
            clean=r.clean / 2,
            robust=r.robust / 2,
        )
        for r in given
    ]
    for name, beside in (("dm", given), ("dsa", given), ("dc", other)):
        (tmp_path / name).mkdir()
        write_results(
            [replace(r, method=name, key=f"{name} {r.key}", model_key=f"{name} {r.seed}") for r in given]
            + beside,
            tmp_path / name,
        )
    students = len({r.seed for r in given})
    both = results_table(rows_of_cells([tmp_path / n for n in ("dm", "dsa")]))
    assert "training" not in both and both.query("method == 'random' and attack == 'clean'")[
        "models"
    ].tolist() == [students]
    rows = rows_of_cells([tmp_path / n for n in ("dm", "dsa", "dc")])
    lines = results_table(rows).query("attack == 'clean'")
    assert (
        set(lines["models"]) == {students}
        and lines["method"].tolist().count("random") == 2
        and len(lines) == 5
    )
    assert set(lines[lines["method"] == "random"]["training"]) == {
        "augment none",
        "augment color_crop_cutout_flip_scale_rotate",
    }
    board = standings(rows)
    assert len(board) == 5 * len({(r.eps, r.attack) for r in given}) and board["condition"].nunique() == len(
        {(r.eps, r.attack) for r in given}
    )


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    "One store with cells that differ in one thing each, run with three epochs and made into finished cells: the plan, and what `ddrobust table` prints of it"
    place = tmp_path_factory.mktemp("many")
    for top, colour in (("a", 40), ("b", 200)):  # two folders of one name
        for split, n in (("train", 3), ("test", 3)):
            for c in range(4):
                folder = place / top / "photos" / split / f"class{c}"
                folder.mkdir(parents=True)
                for i in range(n):
                    Image.new("RGB", (32, 32), (colour + 10 * i, 60 * c, 20 * i)).save(folder / f"{i}.png")
    tiny = dict(TINY, attacks="fgsm@8/255")
    random = dict(tiny, method="random", ipc=1)
    blocks = [
        random,
        random,
        dict(random, n_test=30),
        dict(random, protocol="full"),
        dict(random, seed=1),
        dict(tiny, method="dm", ipc=1, options={"iterations": 2, "batch_real": 4}),
        dict(tiny, method="dm", ipc=1, options={"iterations": 3, "batch_real": 4}),
        *(dict(random, dataset=f"folder:{place}/{top}/photos", n_test=12) for top in "ab"),
    ]
    plan = plan_grid(blocks, store=place / "store", device="cpu")
    for c in plan.cells:
        cell = replace(c.cell, recipe=replace(c.cell.recipe, epochs=3, check_every=3))
        write_out(*(run_stages(one) for one in (cell, baseline_cell(cell)) if one))
        (c.out / "run_cell.ipynb").write_text("{}")
    return plan, blocks, place / "store"


def test_every_experiment_of_a_grid_has_a_line_of_its_own(many, capsys):
    "Two datasets, a swept option, a swept n_test, two protocols, two folders of one name, a repeated block and a second seed"
    plan, blocks, store = many
    assert len(plan.cells) == 8  # the repeated block is one cell
    rows = rows_of_plan(plan)
    assert command(["table", json.dumps(blocks), "--store", str(store), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    t = results_table(rows)
    clean = t[t["attack"] == "clean"]
    described = [
        tuple(line)
        for line in clean[["method", "dataset", "data", "protocol", "options"]].itertuples(index=False)
    ]
    assert len(set(described)) == len(clean) == 6, "a line per experiment, each told from the others"
    digits = clean[(clean["dataset"] == "digits") & (clean["method"] == "random")]
    assert sorted(zip(digits["protocol"], digits["models"])) == [("full", 1), ("quick", 2)], (
        "seeds 0 and 1 are two models; the rows beside dm and those of n_test 30 add none"
    )
    assert sorted(
        t[
            (t["method"] == "random")
            & (t["protocol"] == "quick")
            & (t["dataset"] == "digits")
            & (t["attack"] == "FGSM")
        ]["images"]
    ) == [20, 30]
    assert sorted(clean[clean["method"] == "dm"]["options"]) == ["iterations 2", "iterations 3"]
    folders = clean[clean["dataset"].str.startswith("folder:")]
    assert folders["data"].nunique() == 2 == len(folders)
    for text in ("iterations 2", "iterations 3", "full", "quick", *folders["data"]):
        assert text in printed


def test_no_number_of_a_grid_is_a_mean_over_experiments(many):
    rows = rows_of_plan(many[0])
    for line in lines_of(rows):
        mine = [
            r
            for r in rows
            if r.model_key in set(line.all("model_key"))
            and r.data_fingerprint == line["data_fingerprint"]
            and r.protocol == line["protocol"]
        ]
        assert (
            len(
                {
                    (r.dataset, r.data_fingerprint, r.method, r.protocol, r.options_digest, r.recipe_digest)
                    for r in mine
                }
            )
            == 1
        )
        assert line.values == [
            getattr(
                next(
                    r
                    for r in mine
                    if r.model_key == k and (line.clean or (r.attack, r.n) == (line["attack"], line["n"]))
                ),
                line.column,
            )
            for k in line.all("model_key")
        ]


def test_running_a_cell_again_joins_its_old_rows(many, tmp_path):
    "The same cell, its rows once as the first format had them and once as they are now: one line, no model more"
    c = many[0].cells[5]
    shutil.copytree(c.out, tmp_path / "old")
    new = [
        replace(row, recipe_changes="") for row in read_results(c.out)
    ]  # In those days it could not be changed
    gone = {f.name for f in fields(Result) if f.default is not MISSING} - {"backend"}
    first = [
        {n: v for n, v in asdict(r).items() if n not in gone}
        | dict(
            worst_iterate=r.worst_iterate,
            carry=r.carry_over_eps,
            distill_network=r.distill_network or "ConvNetD3-w8",
        )
        for r in new
    ]
    (tmp_path / "old" / "results.json").write_text(json.dumps(first))
    old = read_results(tmp_path / "old")
    assert {r.method for r in old} == {"dm", "random"} and all(r.flags == "" for r in old)
    assert [(line.models, line.values) for line in lines_of(old + new)] == [
        (line.models, line.values) for line in lines_of(new)
    ]
    assert [(line.models, line.values) for line in lines_of(old)] == [
        (line.models, line.values) for line in lines_of(new)
    ]

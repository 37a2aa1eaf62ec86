"Ours beside the paper's: what may stand there, what must not, and the files of the analysis pages."

import json
import statistics
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from page_runs import run_page
from result_rows import row_fields
from matplotlib.backends.backend_agg import FigureCanvasAgg

from ddrobust_nb.attacks.metrics import wilson
from ddrobust_nb.foundations.core import InputError
from ddrobust_nb.results.compare import (
    MARKS,
    beside_paper,
    difference_table,
    drop_rates,
    notes_on,
    printed_layout,
    setting_label,
)
from ddrobust_nb.results.finding import describe_rows, find_rows, page_rows
from ddrobust_nb.results.drawing import draw_table, plot_drop_rates
from ddrobust_nb.results.keeping import FIGURES, figure_kind, files_of, keep_figure, keep_table
from ddrobust_nb.results.paper import PAPER_DATASET_NAMES, PAPER_METHOD_NAMES, paper_drop_rates, paper_table
from ddrobust_nb.results.rows import Result, write_results
from ddrobust_nb.results.styles import method_label
from ddrobust_nb.results.styles import method_styles

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "nbs" / "analysis").glob("*.ipynb"))
ACCURACY = [
    "I",
    "II",
    "III",
    "VI",
    "VII",
    "VIII",
    "IX",
    "X",
    "XI",
    "XII",
    "XIII",
    "XIV",
    "XV",
    "XVI",
    "XVII",
    "XVIII",
    "XIX",
    "XX",
    "XXI",
    "XXII",
    "XXIII",
]


def row(**more):
    "A result row: DM, CIFAR-10, one image per class, under PGD as in Table I, protocol paper"
    plain = row_fields(
        method="dm",
        set_key="s",
        best=False,
        protocol="paper",
        select="best_test",
        attack="pgd",
        backend="",
        clean=0.28,
        clean_n=0.28,
        n=10_000,
        robust=0.2,
    )
    plain |= more
    plain["drop_rate"] = (
        (plain["clean_n"] - plain["robust"]) / plain["clean_n"] if plain["robust"] is not None else None
    )
    return Result(**plain | {"key": more.get("key", repr(sorted(more.items(), key=str)))})


def five(**more):
    return [
        row(**dict(seed=i, best=i == 2, clean=0.28 + i / 100, robust=0.2 + i / 100) | more) for i in range(5)
    ]


AA = dict(attack="autoattack", steps=None, alpha=None)


@pytest.fixture
def plant(tmp_path):
    "Rows on disk, read back; with a `cell.json` beside them where one is given"

    def planted(*rows, card=None, place="cell"):
        (folder := tmp_path / place).mkdir(exist_ok=True, parents=True)
        write_results(rows, folder)
        if card is not None:
            (folder / "cell.json").write_text(card if isinstance(card, str) else json.dumps(card))
        return find_rows(tmp_path)

    return planted


def cell(beside, attack="pgd", **more):
    "The one row of a table, for DM on CIFAR-10 with one image per class unless said otherwise"
    wanted = dict(dataset="cifar10", method="dm", ipc=1, attack=attack) | more
    found = beside
    for name, value in wanted.items():
        found = found[found[name].isna() if value is None else found[name] == value]
    assert len(found) == 1
    return found.iloc[0]


# Which rows may stand beside the paper's


def test_mean_spread_interval_and_difference(plant):
    rows, values = plant(*five()), [0.2 + i / 100 for i in range(5)]
    got = cell(beside_paper(paper_table("I"), rows))
    low, high = wilson(statistics.mean(values), 10_000)
    for name, expected in dict(
        value=0.182,
        ours=statistics.mean(values),
        sd=statistics.stdev(values),
        best=0.22,
        low=low,
        high=high,
        difference=statistics.mean(values) - 0.182,
        difference_low=low - 0.182,
        difference_high=high - 0.182,
    ).items():
        assert got[name] == pytest.approx(expected, abs=1e-9), name
    assert (got["models"], got["n"], got["protocol"], got["letter"], got["network_ours"], got["missing"]) == (
        5,
        10_000,
        "paper",
        "",
        "ConvNetD3",
        False,
    )


def test_clean_accuracy_counts_each_model_once(plant):
    rows = plant(
        *five(),
        *five(attack="fgsm", steps=1, alpha=None),
        *five(attack="none", steps=None, alpha=None, eps_255=None, robust=None),
        *five(set_seed=1),
    )
    got = cell(beside_paper(paper_table("I"), rows), "none")
    assert (got["models"], got["n"], got["letter"]) == (10, 10_000, "")
    assert got["ours"] == pytest.approx(0.30) and got["best"] == pytest.approx(0.30)


def test_a_cell_without_attack_has_only_clean_accuracy(plant):
    beside = beside_paper(
        paper_table("I"), plant(*five(attack="none", steps=None, alpha=None, eps_255=None, robust=None))
    )
    assert list(beside.loc[~beside["missing"], "attack"]) == ["none"]


@pytest.mark.parametrize("preset", ["aa-quick", "aa-standard"])
def test_only_the_papers_autoattack_stands_beside_it(plant, preset):
    rows = plant(*five(**AA, preset=preset))
    beside = beside_paper(paper_table("I"), rows)
    assert cell(beside, "autoattack")["missing"] and beside.attrs["left_out"] == {f"preset {preset}": 5}
    assert f"5 (preset {preset})" in " ".join(notes_on(beside))
    rows = plant(
        *five(**AA, preset=preset),
        *five(**AA, preset="aa-paper", robust=0.11),
        *five(attack="apgd-t", preset=preset, steps=None, alpha=None),
    )
    assert cell(beside_paper(paper_table("I"), rows), "autoattack")["ours"] == pytest.approx(0.11)
    assert beside_paper(paper_table("XI"), rows).query("attack == 'apgd-t'")["missing"].all()


@pytest.mark.parametrize(
    "more, why",
    [
        (dict(network="ResNet18"), "another network"),
        (dict(network="ConvNetD3-w64"), "another network"),
        (dict(alpha="1/255"), "another step size"),
        (dict(**AA, preset="aa-paper", backend="torchattacks"), "run by torchattacks"),
        (dict(**AA, preset="aa-paper", backend="pyautoattack"), "run by pyautoattack"),
    ],
)
def test_what_is_left_out_is_counted(plant, more, why):
    beside = beside_paper(paper_table("I"), plant(*five(**more)))
    assert beside.loc[beside["attack"] != "none", "missing"].all()
    assert beside.attrs["left_out"][why] == (
        10 if why == "another network" else 5
    )  # with clean accuracy, which needs the network too
    beside = beside_paper(
        paper_table("I"),
        plant(
            *five(**more), *five(attack="fgsm", steps=1, **{k: v for k, v in more.items() if k == "network"})
        ),
    )
    assert beside.attrs["left_out"][why] == (15 if why == "another network" else 5)  # of five models


@pytest.mark.parametrize(
    "more",
    [
        dict(steps=20),
        dict(eps_255=3.0),
        dict(ipc=2),
        dict(method="random"),
        dict(dataset="digits"),
        dict(attack="ta:PGD"),
        dict(ipc=None),
    ],
)
def test_what_the_paper_has_not_meets_nothing(plant, more):
    beside = beside_paper(paper_table("I"), plant(*five(**more)))
    assert beside.loc[beside["attack"] != "none", "missing"].all() and beside.attrs["left_out"] == {}


def test_whole_meets_whole(plant):
    got = cell(
        beside_paper(
            paper_table("I"), plant(*five(method="whole", ipc=None, set_seed=None, distill_network="none"))
        ),
        method="whole",
        ipc=None,
    )
    assert (got["models"], got["letter"]) == (5, "")


def test_one_run_per_cell_the_nearest_to_the_paper(plant):
    rows = plant(
        *five(protocol="quick", select="last", robust=0.1),
        *five(protocol="full", select="last", robust=0.3),
        *five(protocol="quick", select="last", eps_255=8.0, robust=0.04),
    )
    auto = beside_paper(paper_table("VII"), rows)
    assert [
        cell(auto, steps=10, eps_255=e)[name] for e in (2, 8) for name in ("ours", "protocol", "letter")
    ] == pytest.approx([0.3, "full", "f", 0.04, "quick", "q"])
    quick = beside_paper(paper_table("VII"), rows, "quick")
    assert (
        cell(quick, steps=10, eps_255=2)["ours"] == pytest.approx(0.1)
        and quick.attrs["left_out"]["protocol full"] == 10
    )
    assert beside_paper(paper_table("VII"), rows, "paper")["missing"].all()
    with pytest.raises(InputError, match="did you mean 'paper'"):
        beside_paper(paper_table("VII"), rows, "papper")


def test_of_two_runs_the_one_with_most_images_and_no_model_of_the_other(plant):
    rows = plant(*five(n=500, robust=0.5), *five(robust=0.2)[:2])
    got = cell(beside_paper(paper_table("I"), rows))
    assert (got["ours"], got["models"], got["n"], got["letter"]) == (pytest.approx(0.2), 2, 10_000, "p")


def test_a_changed_run_comes_after_an_unchanged_one(plant):
    rows = plant(*five(select="last", robust=0.5), *five(n=500, robust=0.2))
    got = cell(beside_paper(paper_table("I"), rows))
    assert (got["ours"], got["n"], got["select"]) == (pytest.approx(0.2), 500, "best_test")


CARD = dict(
    method="dm",
    dataset="cifar10",
    ipc=1,
    protocol="paper",
    ready="",
    checkpoint="",
    options={"iterations": 20000},
)


@pytest.mark.parametrize(
    "rows, card",
    [
        (five(n=200), None),
        (five()[:4], None),
        (five(select="last"), None),
        (five(distill_network="ConvNetD4"), None),
        (five(), CARD | {"ready": "x"}),
        (five(), CARD | {"checkpoint": "x"}),
        (five(), CARD | {"options": {"iterations": 5}}),
        (five()[:3] + five(set_seed=1)[:3], None),
    ],
)
def test_a_reduced_run_is_never_shown_as_the_papers(plant, rows, card):
    rows = plant(*rows, card=card)
    assert cell(beside_paper(paper_table("I"), rows))["letter"] == "p"
    fig = plot_drop_rates(beside_paper(*drop_rates(paper_table("I"), rows)).query("attack == 'pgd'"), "PGD")
    assert fig.legends[0].get_texts()[-1].get_text() == "ours (paper, reduced)"
    plt.close(fig)


def test_a_whole_run_has_no_mark(plant):
    assert cell(beside_paper(paper_table("I"), plant(*five(), card=CARD)))["letter"] == ""
    beside = beside_paper(paper_table("I"), plant(*five(), card=CARD))
    assert (
        printed_layout(beside).loc[("DM", "1"), ("CIFAR-10", "PGD 2/255, 10 steps")] == "18.20 | 22.00 ± 1.58"
    )


def test_quick_is_marked_wherever_it_is_shown(plant):
    rows = plant(*five(protocol="quick", select="last", n=200))
    beside = beside_paper(paper_table("I"), rows)
    assert (
        printed_layout(beside).loc[("DM", "1"), ("CIFAR-10", "PGD 2/255, 10 steps")]
        == "18.20 | 22.00 ± 1.58 q"
    )
    assert list(difference_table(beside)["ours %"].str[-2:]) == [" q", " q"]
    assert (
        any(MARKS["q"] in note for note in notes_on(beside)) and "2 of protocol quick" in notes_on(beside)[1]
    )
    fig = plot_drop_rates(beside_paper(*drop_rates(paper_table("I"), rows)).query("attack == 'pgd'"), "PGD")
    assert "ours (quick)" in [t.get_text() for t in fig.legends[0].get_texts()]
    plt.close(fig)
    assert "Quick" in describe_rows(rows)


def test_table_3_compares_at_the_true_eps(plant):
    aa = [
        row(
            **AA,
            dataset="imagenette",
            method="mtt",
            network="ConvNetD5",
            distill_network="ConvNetD5",
            preset="aa-paper",
            eps_255=e,
            robust=e / 10,
        )
        for e in (1.0, 2.0)
    ]
    rows = plant(*aa)
    auto = dict(dataset="imagenette", method="mtt", attack="autoattack")
    got = cell(beside_paper(paper_table("III"), rows), **auto)
    assert (got["eps_255"], got["printed"], got["ours"], got["noted"]) == (
        1.0,
        "29.40",
        pytest.approx(0.1),
        True,
    )
    assert cell(beside_paper(paper_table("XVII"), rows), **auto, eps_255=2.0)["ours"] == pytest.approx(0.2)
    table = printed_layout(beside_paper(paper_table("III"), rows))
    assert (
        table.loc[("ImageNette", "1"), "AutoAttack 1/255"].startswith("29.40*")
        and table.loc[("ImageNette", "1"), "AutoAttack 2/255"] == ""
    )
    assert table.loc[("ImageNette", "all"), "AutoAttack 2/255"] == "17.60 | –"


# Rows


def test_no_rows():
    rows = find_rows("/nowhere")
    assert (
        len(rows) == 0
        and rows.attrs["places"] == {"/nowhere": None}
        and "No rows of ours" in describe_rows(rows)
        and "no such folder" in describe_rows(rows)
    )
    for name in ACCURACY:
        beside = beside_paper(paper_table(name), rows)
        assert (
            beside["missing"].all()
            and len(beside) == len(paper_table(name))
            and printed_layout(beside).map(lambda t: t == "" or t.endswith(" | –")).all(axis=None)
        )
    assert len(difference_table(beside)) == 0
    assert beside_paper(*drop_rates(paper_table("I"), rows))["missing"].all()


def test_a_row_found_twice_is_one(plant):
    once = plant(*five())
    assert len(plant(*five(), place="copy/of the cell")) == len(once) == 5


def test_a_model_evaluated_twice_counts_once(plant):
    rows = plant(*five(), *(row(**dict(vars(r), key=f"again {r.seed}", robust=0.9)) for r in five()))
    got = cell(beside_paper(paper_table("I"), rows))
    assert len(rows) == 10 and (got["models"], got["ours"]) == (5, pytest.approx(0.22))


@pytest.mark.parametrize(
    "file, text",
    [
        ("results.json", "[{"),
        ("results.json", "{}[]"),
        ("results.json", '["row"]'),
        ("results.json", '[{"dataset": "cifar10"}]'),
        ("cell.json", "{"),
        ("cell.json", "[]"),
        ("cell.json", "{}"),
    ],
)
def test_a_damaged_file_is_named(plant, tmp_path, file, text):
    plant(*five())
    (tmp_path / "cell" / file).write_text(text)
    with pytest.raises(InputError) as error:
        find_rows(tmp_path)
    assert f"cell/{file}" in str(error.value) or (text == "{}" and "cell/" in str(error.value))


def test_a_value_of_the_wrong_kind_is_named(plant, tmp_path):
    plant(*five())
    file = tmp_path / "cell" / "results.json"
    file.write_text(file.read_text().replace('"ipc": 1,', '"ipc": "one",'))
    with pytest.raises(InputError, match="results.json"):
        find_rows(tmp_path)


def test_the_parameters_of_a_page(tmp_path, plant):
    plant(*five(), place="a")
    plant(*five(seed=9)[:1], place="store/cells/b")
    assert [
        len(page_rows(*args))
        for args in (
            (f"{tmp_path}/a",),
            (f"{tmp_path}/a , {tmp_path}/store",),
            ("", f"{tmp_path}/store"),
            ("", ""),
        )
    ] == [5, 6, 1, 0]
    with pytest.raises(InputError, match="store must be text"):
        page_rows("", 3)


# Layout


def place_of(labels, names):
    "The label of a row or column whose levels have these names"
    key = tuple(f"IPC {labels[name]}" if names == ["ipc"] else labels[name] for name in names)
    return key if len(key) > 1 else key[0]


@pytest.mark.parametrize("name", ACCURACY)
def test_every_number_stands_in_its_place(name):
    beside = beside_paper(paper_table(name), find_rows())
    for how in ((), (["setting"], ["ipc"])):
        if how and name not in ("XXII", "XXIII"):
            continue
        table = printed_layout(beside, *how)
        for line in beside.itertuples():
            labels = dict(
                dataset=PAPER_DATASET_NAMES[line.dataset],
                method=method_label(line.method),
                ipc="all" if pd.isna(line.ipc) else str(line.ipc),
                setting=setting_label(line.attack, line.eps_255, line.steps),
            )
            row = place_of(labels, list(table.index.names))
            column = place_of(labels, list(table.columns.names))
            assert table.loc[row, column].split(" | ")[0].rstrip("*") == line.printed
        assert (table != "").sum().sum() == len(beside)


def test_the_order_is_the_papers():
    table = printed_layout(beside_paper(paper_table("I"), find_rows()))
    assert list(table.index) == [
        *((m, i) for m in ("DC", "DSA", "DM", "MTT", "TESLA", "SRe2L") for i in ("1", "5", "10", "30", "50")),
        ("Whole", "all"),
    ]
    settings = ["clean", "FGSM 2/255", "PGD 2/255, 10 steps", "CW 2/255, 10 steps", "AutoAttack 2/255"]
    assert list(table.columns) == [
        (d, s) for d in ("CIFAR-10", "CIFAR-100", "TinyImageNet") for s in settings
    ]
    table = printed_layout(beside_paper(paper_table("XV"), find_rows()))
    assert list(table.index[:7]) == [("ImageNette", i) for i in ("1", "5", "10", "30", "50", "all")] + [
        ("ImageWoof", "1")
    ]


def test_drop_rates_are_those_of_the_tables(plant):
    lost, mine = drop_rates(paper_table("I"), plant(*five(n=400, robust=0.07)))
    expected = paper_drop_rates().query("table == 'I'")["drop_rate"]
    assert list(lost["value"]) == pytest.approx(list(expected)) and len(lost) == 372
    got = cell(beside_paper(lost, mine))
    low, high = wilson(0.75, 112)  # 28 % of 400 images were right
    assert (got["ours"], got["low"], got["high"]) == pytest.approx((0.75, low, high)) and got["n"] == 400


def test_every_method_has_a_style_of_its_own():
    names = [m for m in PAPER_METHOD_NAMES if m != "whole"]
    styles = method_styles(names).values()
    for field in ("label", "colour", "marker"):
        assert len({getattr(style, field) for style in styles}) == len(names)


def test_a_method_that_was_added_keeps_its_colour_and_shares_it_with_none():
    by_itself = method_styles(["my_method"])["my_method"]
    others = [f"method_{i}" for i in range(40)]
    for names in (["dm", "my_method"], [*PAPER_METHOD_NAMES, "random", "my_method"]):
        assert method_styles(names)["my_method"] == by_itself
    styles = method_styles([*PAPER_METHOD_NAMES, "random", "my_method", *others])
    looks = {(style.colour, style.marker) for name, style in styles.items()}
    assert len(looks) == len(styles)
    several = method_styles([*PAPER_METHOD_NAMES, "random", "my_method", *others[:7]])
    assert len({style.colour for style in several.values()}) == len(several)


# Files


def test_the_list_is_what_lies_in_paper_figures():
    folder = ROOT / "paper_figures"
    there = {
        p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name != ".gitkeep"
    }
    wanted = {file for name in FIGURES for file in files_of(name)}
    assert there == wanted, f"missing: {sorted(wanted - there)}; not in the list: {sorted(there - wanted)}"


def test_kinds():
    assert {
        end
        for name in FIGURES
        for end in [Path(f).suffix for f in files_of(name)]
        if figure_kind(name) == "figure"
    } == {".png", ".svg"}
    assert {Path(f).suffix for name in FIGURES if figure_kind(name) == "table" for f in files_of(name)} == {
        ".csv",
        ".png",
    }


@pytest.mark.parametrize(
    "name, table",
    [
        (f"tables-{folder}/table-{i}", ACCURACY[i - (1 if i < 4 else 3)])
        for folder, numbers in dict(main=(1, 2, 3), small=range(6, 14), imagenet=range(14, 24)).items()
        for i in numbers
    ],
)
def test_the_kept_tables_are_up_to_date(name, table, tmp_path):
    "Those in paper_figures are what the reference rows give today; else: make figures"
    assert FIGURES[name].startswith(f"Table {table}:")
    keep_table(
        name,
        beside_paper(paper_table(table), find_rows(ROOT / "nbs" / "sets")),
        tmp_path,
        draw_table(pd.DataFrame({"a": [1]})),
    )
    pd.testing.assert_frame_equal(
        pd.read_csv(tmp_path / f"{name}.csv"), pd.read_csv(ROOT / "paper_figures" / f"{name}.csv")
    )


def test_only_names_of_the_list_are_kept(tmp_path):
    frame, fig = pd.DataFrame({"a": [1]}), plt.figure()
    for keep, thing, name, said in (
        (keep_table, frame, "tables-main/table-9", "unknown figure or table"),
        (keep_figure, fig, "figure-3", "did you mean 'drop-rate/figure-3'"),
        (keep_table, frame, "drop-rate/figure-3", "keep it with keep_figure"),
        (keep_figure, fig, "tables-main/table-1", "keep it with keep_table"),
    ):
        for folder in (tmp_path, ""):
            with pytest.raises(InputError, match=said):
                keep(name, thing, folder)
    assert not list(tmp_path.rglob("*"))


def test_nothing_is_written_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plt.close("all")
    frame, fig = pd.DataFrame({"a": [1]}), plt.figure()
    assert keep_table("tables-main/table-1", frame) is frame and keep_figure("drop-rate/figure-3", fig) is fig
    assert not list(tmp_path.rglob("*")) and not plt.get_fignums()


def test_files_are_whole_or_not_there(tmp_path):
    fig, _ = plt.subplots()
    fig.savefig = lambda file, **_: (
        (file if hasattr(file, "write") else open(file, "wb")).write(b"half") and 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        keep_figure("drop-rate/figure-3", fig, tmp_path)
    with pytest.raises(ZeroDivisionError):
        keep_table("tables-main/table-1", pd.DataFrame({"a": [1]}), tmp_path, fig)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["table-1.csv"]
    plt.close(fig)


def test_the_same_figure_gives_the_same_files(tmp_path):
    beside = beside_paper(*drop_rates(paper_table("I"), find_rows())).query("attack == 'pgd'")
    for place in "ab":
        keep_figure("drop-rate/figure-3", plot_drop_rates(beside, "PGD"), tmp_path / place)
    for end in ("svg", "png"):
        assert (tmp_path / "a" / f"drop-rate/figure-3.{end}").read_bytes() == (
            tmp_path / "b" / f"drop-rate/figure-3.{end}"
        ).read_bytes()
    assert b"<dc:date>" not in (tmp_path / "a" / "drop-rate/figure-3.svg").read_bytes()


def test_a_drawn_table_shows_every_text(tmp_path):
    fig = draw_table(printed_layout(beside_paper(paper_table("I"), find_rows())), "title", ["a note"])
    shown = [t.get_text() for t in fig.axes[0].texts]
    for text in (
        "title",
        "a note",
        "CIFAR-100",
        "TinyImageNet",
        "SRe2L",
        "Whole",
        "all",
        "29.73 | –",
        "1.74 | –",
    ):
        assert text in shown
    assert shown.count("DC") == 1 and sum(t.endswith("| –") for t in shown) == 465
    fig.savefig(tmp_path / "t.png")
    inside, renderer = fig.bbox, FigureCanvasAgg(fig).get_renderer()
    boxes = [t.get_window_extent(renderer) for t in fig.axes[0].texts if t.get_text()]
    assert all(
        inside.x0 <= b.x0 and b.x1 <= inside.x1 and inside.y0 <= b.y0 and b.y1 <= inside.y1 for b in boxes
    ), "nothing is cut off"
    body = [
        (t, b)
        for t, b in zip([t for t in fig.axes[0].texts if t.get_text()], boxes)
        if t.get_text().endswith("| –")
    ]
    lines = {}
    for t, b in body:
        lines.setdefault(round(t.get_position()[1], 3), []).append(b)
    assert all(
        left.x1 <= right.x0
        for line in lines.values()
        for left, right in zip(sorted(line, key=lambda b: b.x0), sorted(line, key=lambda b: b.x0)[1:])
    ), "no two overlap"


# The pages

MINE = {
    "10_main": "tables-main",
    "15_small": "tables-small",
    "20_imagenet": "tables-imagenet",
    "50_settings": "settings",
    "60_drop_rate": "drop-rate",
}


def cells(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))["cells"]


def shown(path):
    "Everything a reader of an executed page sees below its code"
    outputs = [o for c in cells(path) for o in c.get("outputs", [])]
    assert not [o for o in outputs if o["output_type"] == "error"]
    return "\n".join(
        "".join(text) for o in outputs for text in o.get("data", {}).values() if not isinstance(text, dict)
    )


def test_every_page_has_the_same_parameters():
    assert set(MINE) <= {p.stem for p in PAGES}
    for page in (p for p in PAGES if p.stem in MINE):
        (found,) = [c for c in cells(page) if "parameters" in c["metadata"].get("tags", [])]
        assert [
            (line.split(" = ")[0], line.split(" = ")[1].split("  #")[0])
            for line in "".join(found["source"]).splitlines()
        ] == [("rows: str", '"../sets"'), ("store: str", '""'), ("figures: str", '""')]


@pytest.mark.parametrize(
    "name", [name if name == "50_settings" else pytest.param(name, marks=pytest.mark.slow) for name in MINE]
)  # drawing takes long
def test_a_page_without_rows(name, tmp_path):
    said = run_page(
        ROOT / "nbs" / "analysis" / f"{name}.ipynb",
        rows=str(tmp_path / "nowhere"),
        store=str(tmp_path),
        figures=str(tmp_path / "figures"),
    )
    assert "No rows of ours" in said and "no such folder" in said
    there = {
        p.relative_to(tmp_path / "figures").as_posix()
        for p in (tmp_path / "figures").rglob("*")
        if p.is_file()
    }
    assert there == {
        file for figure in FIGURES if figure.startswith(MINE[name] + "/") for file in files_of(figure)
    }
    for file in there:
        if file.endswith(".csv") and name != "50_settings":
            assert pd.read_csv(tmp_path / "figures" / file)["missing"].all()


PLANTED = [
    *five(protocol="quick", select="last", n=200, eps="2/255"),
    *five(protocol="quick", select="last", **AA, preset="aa-quick"),
    row(dataset="imagenette", method="mtt", network="ConvNetD5", distill_network="ConvNetD5", robust=0.1234),
]
SEEN = {
    "10_main": ["18.20 | 22.00 ± 1.58 q", "18.60 | 12.34 p", "preset aa-quick", "not the paper's experiment"],
    "15_small": ["18.20 | 22.00 ± 1.58 q", "preset aa-quick"],
    "20_imagenet": ["18.60 | 12.34 p"],
    "50_settings": ["lost (1000 upstream) | 1000", "1000 | 1001"],
    "60_drop_rate": ["31.96 | 21.43 ± 5.65 q"],
}


@pytest.mark.parametrize("name", MINE)
def test_a_page_with_rows(name, tmp_path, plant):
    plant(*PLANTED, place="store/cells/one")
    said = run_page(
        ROOT / "nbs" / "analysis" / f"{name}.ipynb",
        rows="",
        store=str(tmp_path / "store"),
    )
    assert "11 rows of ours" in said
    for text in SEEN[name]:
        assert text in said, text
    assert not (tmp_path / "figures").exists()


def test_a_kept_page_shows_no_error_and_both_numbers():
    "The outputs in the repository"
    for name in MINE:
        assert "rows of ours" in shown(ROOT / "nbs" / "analysis" / f"{name}.ipynb")

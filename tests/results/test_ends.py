"Figures, tables and whole cells at the ends: none right, all right, one image, one model, no attacks, nothing measured."

import warnings
from dataclasses import replace
from types import SimpleNamespace

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from ddrobust_nb.attacks.checks import attack_checks
from ddrobust_nb.attacks.fgsm import show_adversarial
from ddrobust_nb.attacks.metrics import wilson
from ddrobust_nb.attacks.robustness import Evaluation, attacked_index
from ddrobust_nb.foundations.core import InputError
from ddrobust_nb.foundations.data import image_grid
from ddrobust_nb.training.distilled import DistilledSet, show_images, show_set
from ddrobust_nb.frequency.models import HeatMap, plot_bands, plot_heat_map, plot_perturbations
from ddrobust_nb.frequency.similarity import components_by_svd
from ddrobust_nb.frequency.spectra import show_spectra
from ddrobust_nb.grid.leaderboard import standings
from ddrobust_nb.foundations.networks import make_network
from ddrobust_nb.results.cell_rows import Finished, rows_of, write_out
from ddrobust_nb.results.plan import plan_cell
from ddrobust_nb.results.stages import Distilled, Trained
from ddrobust_nb.results.finding import find_rows
from ddrobust_nb.results.drawing import draw_table, plot_drop_rates
from ddrobust_nb.results.mixing_table import mixing_table, plot_differences
from ddrobust_nb.results.report import check_table, footnotes, plot_rows, plot_training, results_table
from ddrobust_nb.results.reading import read_results
from ddrobust_nb.results.rows import results_frame
from ddrobust_nb.results.showing import show_or_explain
from ddrobust_nb.training.fit import History
from result_rows import ROW
from tiny import NETWORK, tiny_data

SIZES = (48, 100, 200, 500, 10_000)  # Attacked images


@pytest.fixture(autouse=True)
def nothing_left_open():
    plt.close("all")
    yield
    plt.close("all")


# ---- whole cells, from made-up flags to what is shown


def finished(n, right, store, attacks="fgsm@8/255,aa-quick@8/255", models=2, clean=True):
    "A finished cell of which every attack leaves all or no images right"
    data = tiny_data((4, 4, 4, 4), tests=n // 4)
    cell = plan_cell(
        method="random",
        ipc=1,
        dataset="tiny",
        data=data,
        network=NETWORK,
        attacks=attacks,
        n_test=n,
        n_models=models,
        device="cpu",
        store=str(store),
    )
    net = make_network(NETWORK, data.spec, device="cpu").eval()
    index, flags, share = attacked_index(data, n), torch.full((n,), right), float(clean)
    trained = [
        Trained(
            net,
            seed,
            torch.full((n,), clean),
            share,
            share,
            History([1, 2], [0.5, 0.0], [0.0, share]),
            f"{seed:016x}",
        )
        for seed in range(models)
    ]
    evaluations = [
        [Evaluation(t, index, flags, gradients=n, forwards=n) for t in cell.configs] for _ in trained
    ]
    checks = [attack_checks(es, clean=m.right) for es, m in zip(evaluations, trained)]
    dset = DistilledSet(data.spec, torch.rand(4, 3, 8, 8), torch.arange(4), "random", 1)
    distilled = Distilled(dset, "d" * 16)
    return Finished(
        cell, distilled, trained, evaluations, checks, rows_of(cell, distilled, trained, evaluations, checks)
    )


def all_of_it(done, rows, folder):
    "Everything that run_cell.ipynb shows of a cell; errors are raised"
    histories = {f"seed {m.seed}": m.history for m in done.models}
    assert (
        "image/png" in show_or_explain(lambda: plot_rows(rows), "robustness", folder).data
        and (folder / "figures" / "robustness.png").is_file()
    )
    drawn(plot_training(histories))
    for make in (lambda: results_table(rows), lambda: check_table([done]), lambda: standings(rows)):
        assert "text/html" in show_or_explain(make, "a table").data
    assert footnotes(rows)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("clean, right", [(True, True), (False, False)])
def test_a_cell_at_the_end(n, clean, right, tmp_path):
    done = finished(n, right, tmp_path / "store", clean=clean)
    assert write_out(done) == done.rows
    rows = read_results(done.cell.out)
    assert (
        {r.robust for r in rows} == {float(right)}
        and {r.clean for r in rows} == {float(clean)}
        and {r.n for r in rows} == {n}
    )
    assert {r.drop_rate for r in rows} == {None if not clean else 0.0 if right else 1.0}
    all_of_it(done, rows, done.cell.out)
    shown = results_table(rows)
    none, everything = f"0.0 to {100 * wilson(0, n)[1]:.1f}", f"{100 * wilson(1, n)[0]:.1f} to 100.0"
    assert list(shown["95 % interval"]) == [
        everything if clean else none,
        *[everything if right else none] * (len(shown) - 1),
    ]
    found = find_rows(done.cell.out.parent)
    assert len(found) == len(rows)


@pytest.mark.parametrize("models, clean", [(1, True), (3, False)])
def test_a_cell_without_attacks(models, clean, tmp_path):
    done = finished(100, False, tmp_path / "store", attacks="none", models=models, clean=clean)
    write_out(done)
    rows = read_results(done.cell.out)
    assert [(r.attack, r.robust, r.drop_rate, r.steps) for r in rows] == [("none", None, None, None)] * models
    drawn(plot_rows(rows)), results_table(rows), check_table([done]), standings(rows)


def test_error_bars_are_never_negative():
    "What broke at 2,544 of the first 10,000 n: the figure with all right"
    for n in (48, 60, 500):
        for share in (0.0, 1.0):
            rows = [replace(ROW, n=n, n_clean=n, clean=share, clean_n=share, robust=share)]
            (ax,) = plot_rows(rows).axes
            whiskers = [
                c.errorbar.lines[2][0].get_segments()[0][:, 1]
                for c in ax.containers
                if getattr(c, "errorbar", None)
            ]
            ends = 100 * wilson(share, n)[0], 100 * wilson(share, n)[1]
            assert len(whiskers) == 2 and all(
                tuple(w) == pytest.approx(ends, abs=1e-12) and w.min() >= 0 and w.max() <= 100
                for w in whiskers
            )


def test_a_bar_of_nothing_is_left_out():
    rows = [
        replace(ROW, robust=None, drop_rate=None),
        replace(ROW, attack="pgd", steps=10, robust=1.0),
        replace(ROW, attack="pgd", steps=10, robust=None, seed=1),
    ]
    (ax,) = plot_rows(rows).axes
    bars = [p for p in ax.patches if p.get_height() > 0]
    assert [round(b.get_height()) for b in bars] == [80, 100], (
        "clean, PGD of the one model that has a number; no FGSM"
    )


# ---- the figure functions, one by one


def img(n, value=None, channels=3):
    return torch.rand(n, channels, 8, 8) if value is None else torch.full((n, channels, 8, 8), float(value))


def drawn(fig):
    "It can also be written"
    import io

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fig.savefig(io.BytesIO(), format="png", dpi=20)
    return fig


@pytest.mark.parametrize("n, value, channels", [(1, None, 3), (1, 0, 1), (2, 1, 1)])
def test_images_of_one_value(n, value, channels):
    x = img(n, value, channels)
    for f in (
        show_images,
        lambda x: show_adversarial(x, x),
        show_spectra,
        lambda x: plot_perturbations({"pgd": x}),
    ):
        drawn(f(x) or plt.gcf())
    assert components_by_svd(x, 3)._repr_png_().startswith(b"\x89PNG") and image_grid(x).size[0] == 9 * n - 1


@pytest.mark.parametrize(
    "labels", [torch.zeros(1).long(), torch.tensor([2]), None, torch.full((1, 3), 1 / 3)]
)
def test_sets_of_one_image(labels):
    dset = DistilledSet(tiny_data().spec, img(1), labels)
    assert dset._repr_png_().startswith(b"\x89PNG") and "1 images" in repr(dset)


def test_classes_further_out_than_the_figure():
    "A set that has none of the first ten classes shows what it has"
    spec = replace(tiny_data().spec, classes=30)
    drawn(show_set(DistilledSet(spec, img(3), torch.tensor([20, 21, 22]))))
    assert len(show_set(DistilledSet(spec, img(3), torch.tensor([9, 21, 22]))).axes) == 10
    drawn(show_set(DistilledSet(spec, img(1), torch.tensor([0])), rows=1, classes=1))


def test_no_images():
    nothing = img(0)
    for f in (
        show_images,
        image_grid,
        lambda x: show_adversarial(x, x),
        lambda x: show_set(DistilledSet(tiny_data().spec, x, torch.zeros(0).long())),
    ):
        with pytest.raises(InputError, match="no images to show"):
            f(nothing)
    for f in (show_spectra, lambda x: plot_perturbations({"pgd": x})):
        with pytest.raises(InputError, match="at least one image"):
            f(nothing)
    assert "0 images" in repr(DistilledSet(tiny_data().spec, nothing, torch.zeros(0).long()))
    assert components_by_svd(img(1), 0)._repr_png_() is None


@pytest.mark.parametrize("error", (0.0, 1.0, float("nan")))
def test_heat_maps_at_the_ends(error):
    sides = list(range(-4, 4))
    one = HeatMap(
        torch.full((8, 8), error, dtype=torch.float64), sides, sides, error, {"norm": 4.0, "step": 1}
    )
    drawn(plot_heat_map(one)), (plot_heat_map({"a": one, "b": one})), repr(one)


@pytest.mark.parametrize("share", (0.0, 1.0, float("nan")))
def test_bands_at_the_ends(share):
    columns = dict.fromkeys(("low", "high", "flipped low", "flipped high", "whole"), [share])
    one = pd.DataFrame({"radius": [4.0], **columns, "parts": ["clipped"]})
    drawn(plot_bands(one)), (plot_bands({"a": one, "b": one}))


@pytest.mark.parametrize(
    "f, nothing",
    [(plot_heat_map, {}), (plot_bands, {}), (plot_bands, pd.DataFrame()), (plot_perturbations, {})],
)
def test_nothing_to_compare(f, nothing):
    with pytest.raises(InputError, match="there are no .* to draw"):
        f(nothing)


@pytest.mark.parametrize(
    "history",
    [
        History(),
        History([1], [0.0], [1.0]),
        History([1], [float("nan")], [float("nan")]),
        History([1, 2], [9e9, 0.0], [0.0, 0.0]),
    ],
)
def test_training_curves_at_the_ends(history):
    drawn(plot_training({"one": history})), (plot_training({"a": history, "b": History()}))


@pytest.mark.parametrize("n, models, clean, robust", [(1, 1, 0.0, 0.0), (48, 3, 1.0, 1.0), (60, 1, 1.0, 0.0)])
def test_rows_at_the_ends(n, models, clean, robust):
    "Of a cell, and of a mixing; a control without partner seeds and a set without `none` among them"
    fgsm = replace(
        ROW,
        n=n,
        n_clean=n,
        clean=clean,
        clean_n=clean,
        clean_last=clean,
        clean_best=clean,
        robust=robust,
        drop_rate=(clean - robust) / clean if clean else None,
    )
    rows = [
        replace(r, method=m, seed=s, best=s == 0, key=f"{m}{s}{r.attack}")
        for m in ("dm", "random")
        for s in range(models)
        for r in (
            fgsm,
            replace(fgsm, attack="pgd", steps=10, alpha="2/255"),
            replace(fgsm, attack="square", preset="aa-quick", steps=None),
        )
    ]
    (
        drawn(plot_rows(rows)),
        results_table(rows),
        footnotes(rows),
        standings(rows),
        check_table([SimpleNamespace(cell=SimpleNamespace(method="dm"), models=[], checks=[])]),
    )
    mixed = [
        replace(
            r,
            method="mix:dm" if r.method == "dm" else "mix:none",
            ipc=1 if r.method == "dm" else None,
            protocol="mixing: 1",
        )
        for r in rows
    ]
    alone, apart = (
        [r for r in mixed if r.method == "mix:dm"],
        [replace(r, seed=r.seed + 100 * (r.method == "mix:none")) for r in mixed],
    )
    for some in (mixed, alone, apart):
        mixing_table(some)
    plot_differences(mixed), plot_differences(alone if clean else apart)


@pytest.mark.parametrize("rows", ["whole", "no attack"])
def test_fields_that_may_be_none(rows):
    whole = replace(
        ROW,
        method="whole",
        ipc=None,
        steps=None,
        drop_rate=None,
        clean=0.0,
        clean_n=0.0,
        robust=0.0,
        warnings=("noise",),
    )
    some = (
        [whole]
        if rows == "whole"
        else [
            replace(
                ROW,
                attack="none",
                preset="",
                norm="",
                eps="",
                eps_255=None,
                steps=None,
                alpha=None,
                robust=None,
                drop_rate=None,
            )
        ]
    )
    drawn(plot_rows(some)), results_table(some), footnotes(some), standings(some), results_frame(some)


BESIDE = dict(
    dataset="cifar10",
    method="dm",
    ipc=1,
    value=0.5,
    missing=False,
    ours=0.5,
    low=0.4,
    high=0.6,
    protocol="quick",
    letter="q",
)


@pytest.mark.parametrize(
    "more",
    [
        {},
        dict(missing=True, ours=np.nan, low=np.nan, high=np.nan),
        dict(ours=0.0, low=0.0, high=0.1),
        dict(ours=1.0, low=0.9, high=1.0),
        dict(value=np.nan),
        dict(value=0.0),
        dict(value=1.0),
        dict(method="whole", ipc=None),
        dict(ours=np.nan, low=np.nan, high=np.nan),
    ],
)
def test_drop_rates_at_the_ends(more):
    drawn(plot_drop_rates(pd.DataFrame([BESIDE | more]).astype({"ipc": "Int64"}), "drop rates"))


def test_no_drop_rates():
    with pytest.raises(InputError, match="no cells to draw"):
        plot_drop_rates(pd.DataFrame([BESIDE]).iloc[:0])


@pytest.mark.parametrize(
    "frame",
    [
        pd.DataFrame({"a": []}),
        pd.DataFrame({"a": [None]}),
        pd.DataFrame({"a": [float("nan")], "b": [""]}),
        pd.DataFrame({"a": [0.0, 1.0]}),
        pd.DataFrame(index=pd.Index(["x"], name="i")),
        pd.DataFrame({"a": [1.0]}, index=pd.MultiIndex.from_tuples([("x", 1)], names=["p", "q"])),
    ],
)
def test_small_tables(frame):
    drawn(draw_table(frame, "a table", ["a note"]))


def test_a_table_of_nothing():
    with pytest.raises(InputError, match="no columns"):
        draw_table(pd.DataFrame())

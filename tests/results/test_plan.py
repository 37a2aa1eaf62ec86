"Result rows: every field, tables whose numbers are counted again, and the same rows from two empty stores."

import json
import urllib.error
from dataclasses import asdict, fields, replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.stats import binomtest
from torchvision.models import resnet18

from ddrobust_nb.foundations.core import InputError, generator
from ddrobust_nb.foundations.data import as_pixels, make_data, specs
from ddrobust_nb.foundations.datasets import dataset
from ddrobust_nb.training.distilled import load_own_set
from ddrobust_nb.results.cell_rows import baseline_cell, rows_of, run_stages, write_out
from ddrobust_nb.results.columns import caption_of
from ddrobust_nb.results.lines import lines_of
from ddrobust_nb.results.stages import attack_cell
from ddrobust_nb.results.plan import plan_cell, summary
from ddrobust_nb.results.sources import published
from ddrobust_nb.results.stages import distil_cell, train_cell
from ddrobust_nb.results.report import (
    check_table,
    footnotes,
    print_report,
    paper_text,
    mean_and_sd,
    results_table,
)
from ddrobust_nb.results.reading import read_results
from ddrobust_nb.results.rows import Result, results_frame, write_results
from result_rows import ROW
from tiny import NETWORK, measured, same_results, tiny_cell, tiny_data

FIELDS = """dataset method ipc set_seed set_key distill_network network seed best protocol select attack preset norm eps eps_255 steps alpha n_clean clean clean_last
clean_best n clean_n robust drop_rate gradients forwards seconds peak_mb device versions commit data_fingerprint warnings key backend worst_iterate carry_over_eps
format model_key origin options options_digest recipe recipe_digest labels random_start training_way stages flags clean_flags index_digest eps_unit distances_digest
distance_median source_model control_of adversarial corruption severity recipe_changes""".split()


def four_classes():
    return tiny_data((12, 13, 14, 12))  # AutoAttack needs four


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(dataset, "tiny", lambda root: four_classes())


# ---- the row and its file


def test_fields():
    assert [f.name for f in fields(Result)] == FIELDS


def test_rows_survive_the_disk(tmp_path):
    rows = [
        ROW,
        replace(
            ROW,
            method="whole",
            ipc=None,
            drop_rate=None,
            clean_n=0.0,
            steps=None,
            warnings=("noise", "monotone"),
        ),
        replace(ROW, dataset="folder:жук", clean=1 / 3, key="ä b"),
    ]
    path = write_results(rows, tmp_path / "ein Ordner – жук")
    assert path.name == "results.json" and read_results(path) == read_results(path.parent) == rows
    raw = json.loads(path.read_text(encoding="utf-8"))
    assert (
        [list(r) for r in raw] == [FIELDS] * 3
        and raw[2]["clean"] == 1 / 3
        and raw[1]["ipc"] is None
        and raw[1]["warnings"] == ["noise", "monotone"]
    )


def test_a_row_that_is_no_number_is_not_written(tmp_path):
    with pytest.raises(ValueError):
        write_results([replace(ROW, robust=float("nan"))], tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "[1]", '[{"dataset": "digits"}]', '[{"warnings": []}]', "[{]"])
def test_files_that_hold_no_rows(text, tmp_path):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(InputError, match="results.json is not a list of result rows"):
        read_results(tmp_path)


def test_no_file(tmp_path):
    with pytest.raises(InputError, match="no results at"):
        read_results(tmp_path)


# ---- tables

CLEAN, FGSM, PGD = (0.80, 0.85, 0.78), (0.50, 0.55, 0.45), (0.31, 0.34, 0.25)


def three_models(**change):
    "Three models, the second the best, under two attacks"

    def row(i, values, **what):
        numbers = dict(
            seed=i,
            best=i == 1,
            clean=CLEAN[i],
            clean_n=CLEAN[i],
            robust=values[i],
            drop_rate=(CLEAN[i] - values[i]) / CLEAN[i],
        )
        return replace(ROW, **{**numbers, **what, **change})

    return [r for i in range(3) for r in (row(i, FGSM), row(i, PGD, attack="pgd", steps=10, alpha="2/255"))]


def stated(values):
    return f"{100 * np.mean(values):.2f} ± {100 * np.std(values, ddof=1):.2f}"


def interval(values, n):
    low, high = binomtest(round(np.mean(values) * n), n).proportion_ci(0.95, method="wilson")
    return f"{100 * low:.1f} to {100 * high:.1f}"


def test_numbers_of_a_table():
    t = results_table(three_models()).set_index("attack")
    assert list(t.index) == ["clean", "FGSM", "PGD, 10 steps"] and set(t["models"]) == {3}
    assert list(t["accuracy %"]) == [stated(CLEAN), stated(FGSM), stated(PGD)]
    assert list(t["95 % interval"]) == [interval(CLEAN, 500), interval(FGSM, 100), interval(PGD, 100)]
    drops = [[(c - v) / c for c, v in zip(CLEAN, values)] for values in (FGSM, PGD)]
    assert list(t["drop rate %"])[1:] == [stated(d) for d in drops]
    assert list(t["best model %"]) == ["85.00", "55.00", "34.00"]
    assert list(t["images"]) == [500, 100, 100] and list(t["eps"])[1:] == ["8/255"] * 2


def test_methods_do_not_mix():
    rows = three_models() + three_models(method="random", robust=0.1) + three_models(method="whole", ipc=None)
    t = results_table(rows)
    assert (
        list(dict.fromkeys(zip(t["method"], t["ipc"]))) == [("dm", 1), ("random", 1), ("whole", "all")]
        and len(t) == 9
    )
    assert list(t["accuracy %"][3:6])[1:] == ["10.00 ± 0.00"] * 2 and t["accuracy %"][0] == stated(CLEAN)


def test_eps_steps_and_presets_do_not_mix():
    rows = (
        three_models()
        + three_models(eps="4/255", eps_255=4.0)
        + three_models(attack="autoattack", preset="aa-quick", steps=None, alpha=None)
        + three_models(attack="autoattack", preset="aa-standard", steps=None, alpha=None)
    )
    t = results_table([*rows, *(replace(r, steps=5) for r in three_models() if r.attack == "pgd")])
    assert sorted(t["attack"]) == sorted(
        [
            "clean",
            "FGSM",
            "PGD, 10 steps",
            "FGSM",
            "PGD, 10 steps",
            "AutoAttack [aa-quick, reduced]",
            "AutoAttack [aa-standard]",
            "PGD, 5 steps",
        ]
    )


def test_what_a_table_does_without():
    one = [replace(ROW, best=True, drop_rate=None, clean_n=0.0, robust=0.0)]
    t = results_table(one).set_index("attack")
    assert (
        t.loc["FGSM", "accuracy %"] == "0.00"
        and t.loc["FGSM", "drop rate %"] == "–"
        and t.loc["clean", "models"] == 1
    )
    nothing = results_table(
        [
            replace(
                ROW,
                attack="none",
                preset="",
                norm="",
                eps="",
                eps_255=None,
                steps=None,
                robust=None,
                drop_rate=None,
                best=True,
            )
        ]
    )
    assert list(nothing["attack"]) == ["clean"] and nothing["accuracy %"][0] == "80.00"
    parts = three_models() + three_models(attack="square", preset="aa-quick", steps=None, alpha=None)
    assert len(results_table(parts, parts=False)) == 3 and len(results_table(parts)) == 4


def test_the_paper_stands_beside_only_where_it_has_the_cell():
    t = results_table(three_models(dataset="cifar10", eps="2/255", eps_255=2.0)).set_index("attack")
    assert t.loc["clean", "paper %"].startswith("26.75") and t.loc["FGSM", "paper %"] != "–"
    assert set(results_table(three_models())["paper %"]) == {"–"}
    assert paper_text("cifar10", "unknown", 1, "none") == "–"


def test_spread():
    assert (
        mean_and_sd([0.123456]) == "12.35"
        and mean_and_sd([]) == mean_and_sd([None, float("nan")]) == "–"
        and mean_and_sd([0.5, None, 0.7]) == stated([0.5, 0.7])
    )


@pytest.mark.parametrize(
    "change, has, has_not",
    [
        (
            {},
            ["Protocol full", "checkpoint: last", "All self-checks hold"],
            ["upper bound", "cut down", "star"],
        ),
        (dict(protocol="quick"), ["Quick is cut down"], []),
        (dict(attack="autoattack", preset="aa-quick", steps=None), ["aa-quick", "upper bound"], []),
        (dict(attack="autoattack", preset="aa-standard", steps=None), [], ["upper bound"]),
        (dict(warnings=("noise", "eps0")), ["Self-checks that fired: eps0, noise"], ["All self-checks hold"]),
        (dict(dataset="cifar10"), ["star"], []),
    ],
)
def test_footnotes(change, has, has_not):
    notes = "\n".join(footnotes([ROW, replace(ROW, **change)]))
    for text in has:
        assert text in notes
    for text in has_not:
        assert text not in notes


# ---- a cell that is run


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    "The same cell twice, from two empty stores, and what it left in `out`"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(dataset, "tiny", lambda root: four_classes())
        torch.set_num_threads(1)
        cells = [
            tiny_cell(
                tmp_path_factory.mktemp("store"),
                attacks="fgsm@8/255,pgd@8/255@3,apgd-ce@8/255,apgd-t@8/255,fab-t@8/255,square@8/255,aa-quick@8/255",
                n_models=3,
                n_test=12,
            )
            for _ in range(2)
        ]
        return [(run_stages(c), run_stages(baseline_cell(c))) for c in cells]


def test_two_empty_stores_give_the_same_rows(ran):
    for a, b in zip(*ran):
        same_results(a, b)
    assert measured(ran[0][0].rows) != measured(ran[0][1].rows)


def test_a_row_for_each_model_and_setting(ran):
    rows = ran[0][0].rows
    assert [(r.seed, r.attack) for r in rows] == [
        (s, a)
        for s in range(3)
        for a in ("fgsm", "pgd", "apgd-ce", "apgd-t", "fab-t", "square", "autoattack")
    ]
    assert len({r.key for r in rows}) == len(rows) == 21
    for r in rows:
        assert (r.dataset, r.method, r.ipc, r.network, r.distill_network, r.n_clean, r.n) == (
            "tiny",
            "dm",
            1,
            NETWORK,
            NETWORK,
            24,
            12,
        )
        assert (
            (r.steps is None) == (r.attack not in ("fgsm", "pgd"))
            and r.preset == ("" if r.steps else "aa-quick")
            and (r.norm, r.eps, r.eps_255) == ("Linf", "8/255", 8.0)
        )
        assert r.seconds > 0 and r.peak_mb > 0 and r.device == "cpu" and r.gradients + r.forwards > 0
        assert (
            r.drop_rate == pytest.approx((r.clean_n - r.robust) / r.clean_n)
            if r.clean_n
            else r.drop_rate is None
        )
        assert "torch " in r.versions and r.set_key == ran[0][0].distilled.key


def test_numbers_come_from_the_flags(ran):
    f, data = ran[0][0], four_classes()
    rows = iter(f.rows)
    for model, evaluations in zip(f.models, f.evaluations):
        for e in evaluations:
            r = next(rows)
            assert (r.robust, r.clean_n, r.clean) == tuple(
                pytest.approx(x.double().mean().item()) for x in (e.flags, model.right[e.index], model.right)
            )
            assert torch.bincount(data.test_labels[e.index]).tolist() == [3, 3, 3, 3]
        by_name = {e.config.attack: e.flags for e in evaluations}
        parts = torch.stack([by_name[p] for p in ("apgd-ce", "apgd-t", "fab-t", "square")]).all(0)
        assert (
            torch.equal(by_name["autoattack"], parts)
            and not (parts & ~model.right[evaluations[0].index]).any()
        )


def test_the_best_model_is_the_one_of_highest_clean_accuracy(ran):
    f = ran[0][0]
    clean = [m.clean for m in f.models]
    assert [r.best for r in f.rows] == [
        m == clean.index(max(clean)) for m in range(3) for _ in range(7)
    ] and len(set(clean)) > 1


def test_what_a_cell_leaves(ran, tmp_path):
    finished = [replace(f, cell=replace(f.cell, out=tmp_path / "ein Ausgang – жук")) for f in ran[0]]
    rows = write_out(*finished)
    out = finished[0].cell.out
    assert rows == finished[0].rows + finished[1].rows == read_results(out) and len(results_frame(rows)) == 42
    flags = load_file(out / "flags.safetensors")
    for r in rows:
        assert flags[r.key].double().mean().item() == pytest.approx(r.robust)
    assert torch.equal(flags["index"], finished[0].evaluations[0][0].index)
    assert (
        torch.equal(load_own_set(out / "set-dm").images, finished[0].distilled.dset.images)
        and len(list(out.glob("model-*.safetensors"))) == 6
    )
    assert not check_table(finished).empty and len(results_table(rows)) == 16
    assert json.loads((out / "cell.json").read_text(encoding="utf-8"))["key"] == finished[0].cell.key


def test_a_set_and_a_model_go_in_again(ran, tmp_path, capsys):
    f = replace(ran[0][0], cell=replace(ran[0][0].cell, out=tmp_path))
    write_out(f)
    usual = dict(
        dataset="tiny",
        network=NETWORK,
        attacks="fgsm@8/255",
        n_test=12,
        device="cpu",
        store=str(tmp_path / "store"),
    )
    cell = plan_cell(distilled=str(tmp_path / "set-dm"), n_models=1, **usual)
    again = run_stages(replace(cell, recipe=f.cell.recipe))
    assert (
        (cell.method, cell.ipc) == ("dm", 1)
        and measured(again.rows)[0]["clean"] == f.rows[0].clean
        and again.rows[0].robust == f.rows[0].robust
    )
    model = plan_cell(checkpoint=str(tmp_path / "model-dm-seed1.safetensors"), **usual)
    (row,) = run_stages(model).rows
    assert (row.method, row.ipc, row.clean, row.robust) == ("dm", 1, f.rows[7].clean, f.rows[7].robust)
    print_report(tmp_path)
    assert "AutoAttack [aa-quick, reduced]" in capsys.readouterr().out


def test_rows_without_an_attack(tmp_path):
    f = run_stages(tiny_cell(tmp_path, attacks="none"))
    assert [(r.attack, r.seed, r.robust, r.drop_rate, r.eps, r.eps_255, r.steps, r.n) for r in f.rows] == [
        ("none", s, None, None, "", None, None, 9) for s in (0, 1)
    ]
    assert [r.clean for r in f.rows] == [m.clean for m in f.models] and len(results_table(f.rows)) == 1
    write_out(replace(f, cell=replace(f.cell, out=tmp_path / "out")))
    assert read_results(tmp_path / "out") == f.rows


def test_whole_has_no_ipc(tmp_path):
    cell = tiny_cell(tmp_path, method="whole", n_models=1)
    f = run_stages(cell)
    assert (
        cell.ipc is None
        and f.distilled.dset.ipc is None
        and {r.ipc for r in f.rows} == {None}
        and {r.method for r in f.rows} == {"whole"}
    )
    assert (
        baseline_cell(cell) is None
        and set(results_table(f.rows)["ipc"]) == {"all"}
        and len(f.distilled.dset) == 51
    )
    write_out(f)
    assert [asdict(r) for r in read_results(cell.out)] == [asdict(r) for r in f.rows]


def test_which_checkpoint_is_attacked(tmp_path):
    rows = {s: run_stages(tiny_cell(tmp_path, n_models=1, select=s)).rows[0] for s in ("last", "best_test")}
    assert all(r.select == s for s, r in rows.items())
    assert (rows["last"].clean, rows["best_test"].clean) == (
        rows["last"].clean_last,
        rows["best_test"].clean_best,
    )
    for field in ("clean_last", "clean_best", "set_key"):
        assert getattr(rows["last"], field) == getattr(rows["best_test"], field)


def test_an_out_folder_of_another_cell_is_refused(tmp_path):
    f = run_stages(tiny_cell(tmp_path / "store", n_models=1, attacks="none", out=str(tmp_path / "out")))
    write_out(f)
    tiny_cell(tmp_path / "store", n_models=1, attacks="none", out=str(tmp_path / "out"))
    with pytest.raises(InputError, match="holds another cell .tiny, dm, ipc 1"):
        tiny_cell(tmp_path / "store", n_models=1, attacks="none", ipc=2, out=str(tmp_path / "out"))


# ---- published weights


def imagenet(size=66):
    g, labels = generator(0, "imagenet"), torch.arange(1000)

    def images():
        return torch.randint(256, (1000, 3, size, size), dtype=torch.uint8, generator=g)

    return make_data(replace(specs["imagenet1k"], size=size), images(), labels, images(), labels)


@pytest.fixture
def hub(tmp_path):
    usual = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path / "hub"))
    yield tmp_path / "hub" / "checkpoints"
    torch.hub.set_dir(usual)


def test_whole_of_imagenet_is_the_published_model(monkeypatch, tmp_path, hub):
    monkeypatch.setitem(dataset, "imagenet1k", lambda root: imagenet())
    cell = plan_cell(
        method="whole", dataset="imagenet1k", attacks="none", store=str(tmp_path / "store"), device="cpu"
    )
    assert (
        (cell.network, cell.n_models) == ("ResNet18", 1)
        and "IMAGENET1K_V1" in summary(cell)
        and "epochs" not in summary(cell)
    )

    def unreachable(*a, **k):
        raise urllib.error.URLError("no network")

    with monkeypatch.context() as m:
        m.setattr(torch.hub, "download_url_to_file", unreachable)
        with pytest.raises(
            InputError,
            match="connect to the network once, put the file to .*resnet18-f37072fd.pth, or give a model",
        ):
            run_stages(cell)
    torch.manual_seed(0)
    theirs = resnet18()
    hub.mkdir(parents=True, exist_ok=True)
    torch.save(theirs.state_dict(), hub / "resnet18-f37072fd.pth")
    done = run_stages(cell)
    x = as_pixels(cell.data.test_images[:8])
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (cell.data.spec.mean, cell.data.spec.std))
    with torch.no_grad():
        torch.testing.assert_close(done.models[0].model(x), theirs.eval()((x - mean) / std))
    (hub / "resnet18-f37072fd.pth").unlink()
    (again,) = train_cell(cell, distil_cell(cell))  # it is kept in the store
    assert (again.key, again.clean) == (done.rows[0].model_key, done.rows[0].clean) and torch.equal(
        again.right, done.models[0].right
    )
    assert done.rows[0].ipc is None and done.rows[0].origin == "published"
    with pytest.raises(InputError, match="one set of published weights"):
        plan_cell(method="whole", dataset="imagenet1k", attacks="none", store=str(tmp_path), n_models=2)


def test_every_other_whole_is_trained():
    for spec in (specs["cifar10"], specs["imagenette"]):
        assert published("whole", spec, "ResNet18") == ""
    assert (
        published("sre2l", specs["imagenet1k"], "ResNet18")
        == published("whole", specs["imagenet1k"], "ConvNetD5")
        == ""
    )
    assert published("whole", replace(specs["imagenet1k"], size=64), "ResNet18") == ""  # another stem


# ---- what was given


def given_cell(place, **given):
    usual = dict(
        dataset="tiny", network=NETWORK, attacks="fgsm@8/255", n_test=12, device="cpu", store=str(place)
    )
    cell = plan_cell(**usual | given)
    return replace(cell, recipe=replace(cell.recipe, epochs=2, lr=0.1, check_every=2, check_n=0))


def test_two_given_sets_are_two_lines(tmp_path):
    rows = []
    for i in (0, 1):
        images = torch.rand(4, 3, 8, 8, generator=generator(i, "given"))
        save_file({"images": images, "labels": torch.arange(4)}, tmp_path / f"{i}.safetensors")
        done = run_stages(
            given_cell(
                tmp_path / "store",
                distilled=str(tmp_path / f"{i}.safetensors"),
                method="mine",
                ipc=1,
                n_models=2,
            )
        )
        assert {(r.origin, r.options_digest, r.labels) for r in done.rows} == {("given set", "", "hard")}
        rows += done.rows
    t = results_table(rows)
    assert t["from"].nunique() == 2 and set(t["models"]) == {2} and len(t) == 4


def test_two_given_models_are_two_lines_and_those_of_one_cell_are_one(tmp_path):
    cell = given_cell(tmp_path / "store", method="random", ipc=1, n_models=2)
    done = run_stages(cell)
    write_out(done)
    rows = []
    for model in sorted(cell.out.glob("model-*.safetensors")):
        bare = tmp_path / model.name
        bare.write_bytes(model.read_bytes())  # without its card
        found = run_stages(given_cell(tmp_path / "store", checkpoint=str(bare))).rows
        assert {(r.origin, r.set_key, r.recipe) for r in found} == {("given model", "", None)}
        rows += found
    t = results_table(rows)
    assert t["from"].nunique() == 2 and set(t["models"]) == {1} and len(t) == 4
    known = [
        r
        for model in sorted(cell.out.glob("model-*.safetensors"))
        for r in run_stages(given_cell(tmp_path / "store", checkpoint=str(model))).rows
    ]
    t = results_table(known)  # their cards name one method, one set and two seeds
    assert set(t["models"]) == {2} and len(t) == 2 and {r.seed for r in known} == {0, 1}
    assert [r.robust for r in known] == [r.robust for r in rows] == [r.robust for r in done.rows]


def test_a_method_whose_card_forgets_its_network_is_still_told_by_it(tmp_path):
    "Sets of two networks are two experiments, whatever the card of a new method says"
    rows = [r for n in ("ConvNetD3-w8", "ConvNetD3-w16") for r in _forgetful(tmp_path, n)]
    assert (
        {r.distill_network for r in rows} == {"ConvNetD3-w8", "ConvNetD3-w16"}
        and set(results_table(rows)["models"]) == {2}
        and len(results_table(rows)) == 4
    )


def _forgetful(place, name):
    cell = given_cell(
        place / "store",
        method="dm",
        ipc=1,
        distill_network=name,
        options=dict(iterations=1, batch_real=4),
        n_models=2,
    )
    made = distil_cell(cell)
    forgotten = replace(
        made, dset=replace(made.dset, config={k: v for k, v in made.dset.config.items() if k != "network"})
    )
    models = train_cell(cell, made)
    return rows_of(cell, forgotten, models, attack_cell(cell, models), [[] for _ in models])


# ---- a recipe of your own


def test_an_own_recipe_is_trained_by_recorded_and_kept_apart(tmp_path):
    "Another key, a row that says it, and lines that never meet"
    own, of_protocol = (
        run_stages(tiny_cell(tmp_path, n_models=1, **given)) for given in ({"recipe": {"momentum": 0}}, {})
    )
    assert own.cell.key != of_protocol.cell.key and own.cell.model_keys != of_protocol.cell.model_keys
    assert {row.recipe_changes for row in own.rows} == {"momentum 0.0"}
    assert {row.recipe_changes for row in of_protocol.rows} == {""}
    lines = lines_of(own.rows + of_protocol.rows)
    assert len(lines) == 2 * len(lines_of(own.rows))
    assert "momentum 0.0" in str(results_table(own.rows + of_protocol.rows))
    assert "but recipe with momentum 0.0" in caption_of(lines_of(own.rows))
    assert "recipe changed (momentum 0.0)" in " ".join(footnotes(own.rows))
    assert "recipe changed" not in " ".join(footnotes(of_protocol.rows))


def test_a_recipe_that_says_what_the_protocol_says_changes_nothing():
    same = plan_cell(recipe={"epochs": plan_cell().recipe.epochs})
    assert (same.key, same.own_recipe) == (plan_cell().key, "")


def test_an_own_step_size_replaces_the_learned_one():
    assert plan_cell(method="mtt", protocol="full").recipe.learned_lr
    assert not plan_cell(method="mtt", protocol="full", recipe={"lr": 0.02}).recipe.learned_lr


@pytest.mark.parametrize(
    "given, message",
    [
        ({"recipe": {"epoch": 3}}, "did you mean 'epochs'"),
        ({"recipe": {"select": "last"}}, "use the parameter select"),
        ({"recipe": [1]}, "must be a mapping"),
        ({"recipe": {"lr": float("nan")}}, "lr must be a finite number"),
        ({"recipe": {"epochs": 2.5}}, "epochs"),
        ({"recipe": {"decay_every": 0}}, "decay_every"),
        ({"method": "sre2l", "recipe": {"flip": True}}, "leave flip out"),
        ({"checkpoint": "model.safetensors", "recipe": {"lr": 0.1}}, "nothing is trained"),
    ],
)
def test_recipes_that_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        plan_cell(**given)

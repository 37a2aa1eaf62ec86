"Mixing: what is in a batch, that nothing else is changed, resuming, labels of every kind, what is refused; and run_mixing.ipynb as a user runs it."

import ast
import hashlib
import inspect
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from ddrobust_nb.mixing import mix as mixing
from ddrobust_nb.foundations.augment import crop, augment_dsa, draw_shifts
from ddrobust_nb.foundations.core import InputError, generator
from ddrobust_nb.foundations.data import as_pixels
from ddrobust_nb.foundations.datasets import dataset
from ddrobust_nb.distillers.baselines import random
from ddrobust_nb.training.distilled import save_set
from ddrobust_nb.mixing.mix import (
    MIX_VERSION,
    card_augment,
    mixing_control,
    mix,
    distilled_batch,
    mixed_index,
    mixing_recipe,
    distilled_share,
    show_batch,
)
from ddrobust_nb.foundations.networks import Normalise, make_network
from ddrobust_nb.results.mixing_run import MIXING_PARAMETERS, train_mixed, mixed_sets, plan_mixing
from ddrobust_nb.results.mixing_table import mixing_rows, mixing_table, paper_mixing, plot_differences
from ddrobust_nb.results.report import results_table
from ddrobust_nb.results.reading import read_results
from ddrobust_nb.results.rows import Result, digest_of, results_frame
from ddrobust_nb.training.fit import Recipe, batches, fit
from test_device import waits
from test_run_cell import NBS, cells, command, environment, finished, source, tagged
from test_versions import PACKAGE, Code
from tiny import NETWORK, as_stored, global_randomness, scramble, tiny_data

NOTEBOOK = NBS / "run_mixing.ipynb"
RECIPE = Recipe(epochs=3, lr=0.05, schedule="cosine", pad=1, flip=True, check_every=1, check_n=0)
STRATEGY = "color_crop_cutout_flip_scale_rotate"


@pytest.fixture(scope="module")
def data():
    return tiny_data()  # 39 images: with 8 a batch four full ones and one of 7


@pytest.fixture(scope="module")
def dset(data):
    return replace(random(data, 2), method="dm", config=dict(augment=STRATEGY))


def run(data, dset=None, n_distilled=2, seed=0, recipe=RECIPE, network=NETWORK, **options):
    return mix(
        data,
        dset,
        n_real=8,
        n_distilled=n_distilled if dset else 0,
        network=network,
        seed=seed,
        recipe=recipe,
        device="cpu",
        **options,
    )


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture
def batches_seen(monkeypatch):
    "What reaches the body of the network in training: [(images, labels)]"
    seen, plain = [], F.cross_entropy

    def spy(z, y, *args, **options):
        seen.append((z.detach().clone(), y.clone()))
        return plain(z, y, *args, **options)

    monkeypatch.setattr(mixing.TrainingRun.__init__.__globals__["F"], "cross_entropy", spy)
    return seen


# ---- what is in a batch


def test_every_batch_has_the_ratio(data, dset, batches_seen):
    run(data, dset, n_distilled=2)
    assert [len(y) for _, y in batches_seen] == 3 * [10, 10, 10, 10, 7 + 2], (
        "7 of 8 real images: round(1.75) of 2 distilled ones"
    )
    batches_seen.clear()
    run(data, dset, n_distilled=4)
    assert [len(y) for _, y in batches_seen] == 3 * [12, 12, 12, 12, 7 + 4], "round(3.5)"


@pytest.mark.parametrize(
    "n, n_real, n_distilled, want",
    [(128, 128, 16, 16), (80, 128, 16, 10), (16, 128, 16, 2), (3, 128, 16, 0), (7, 8, 24, 21), (1, 1, 5, 5)],
)
def test_share(n, n_real, n_distilled, want):
    assert distilled_share(n, n_real, n_distilled) == want


@pytest.mark.parametrize("n, count", [(10, 3), (10, 10), (10, 16), (10, 25), (100, 16), (1, 4)])
def test_the_walk_shows_all_equally_often(n, count):
    whole = mixed_index(n, 0, count * n, 7)
    assert torch.bincount(whole, minlength=n).tolist() == [count] * n
    assert torch.equal(torch.cat([mixed_index(n, count * i, count, 7) for i in range(n)]), whole), (
        "in steps or at once"
    )
    for r in range(count):
        assert len(set(whole[r * n : (r + 1) * n].tolist())) == n, "each round is a permutation"
    if n > 3:
        assert not torch.equal(whole[:n], whole[n : 2 * n]) and not torch.equal(
            whole, mixed_index(n, 0, count * n, 8)
        )


def test_a_batch_by_hand(data, dset, monkeypatch):
    "Real images padded, cropped and mirrored; distilled ones under their augmentation; one after the other, in normalised units"
    seen = []

    class Spy(torch.nn.Module):
        def __init__(self, body):
            super().__init__()
            self.body = body

        def forward(self, z):
            seen.append(z.detach().clone())
            return self.body(z)

    def spied(*args, **options):
        net = make_network(*args, **options)
        net.body = Spy(net.body)
        return net

    monkeypatch.setattr(mixing, "make_network", spied)
    recipe = replace(RECIPE, pad=2, flip=False, epochs=2)
    run(data, dset, recipe=replace(recipe, check_every=0))
    normalise, step = Normalise(data.spec.mean, data.spec.std), 0
    for epoch in range(2):
        for b, index in enumerate(batches(39, replace(recipe, batch=8), 0, epoch)):
            x = crop(
                as_pixels(data.train_images[index]),
                *draw_shifts(len(index), -2, 2, generator(0, "view", epoch, b)),
            )
            first = epoch * 10 + b * 2
            z = augment_dsa(
                normalise(dset.images[mixed_index(6, first, 2, 0)]),
                STRATEGY,
                generator(0, "mixed view", first),
            )
            torch.testing.assert_close(seen[step], torch.cat([normalise(x), z]), rtol=0, atol=0)
            step += 1
    assert len(seen) == step == 10


def test_labels_go_with_their_images(data, dset, batches_seen):
    run(data, dset, n_distilled=5, recipe=replace(RECIPE, epochs=1))
    index, theirs = (
        batches(39, replace(RECIPE, batch=8), 0, 0)[0],
        dset.labels[mixed_index(6, 0, 5, 0)].tolist(),
    )
    assert (
        batches_seen[0][1].tolist() == data.train_labels[index].tolist() + theirs and theirs != theirs[::-1]
    )


# ---- nothing else is changed


@pytest.mark.parametrize("network", [NETWORK, "ResNet18-w4"])
def test_without_distilled_images_it_is_fit(network, data):
    a = run(data, network=network, test=data)
    b = fit(data, network=network, recipe=replace(RECIPE, batch=8), device="cpu", test=data)
    assert same(a, b) and (a.history.accuracy, a.history.loss, a.history.epochs) == (
        b.history.accuracy,
        b.history.loss,
        b.history.epochs,
    )
    assert not same(a, run(data, network=network, seed=1))


def test_distilled_images_change_it(data, dset):
    plain, mixed = run(data), run(data, dset)
    assert (
        not same(plain, mixed)
        and not same(mixed, run(data, dset, n_distilled=3))
        and not same(mixed, run(data, dset, augment=""))
    )
    assert same(mixed, run(data, dset, augment=STRATEGY)) and not same(
        mixed, run(data, replace(dset, images=1 - dset.images))
    )


def test_a_seed_means_the_same_bits_and_touches_nothing_global(data, dset):
    scramble(1)
    before, images = global_randomness(), dset.images.clone()
    first = run(data, dset, test=data)
    assert global_randomness() == before and torch.equal(dset.images, images)
    scramble(2)
    again = run(data, dset, test=data)
    assert (
        same(first, again)
        and first.history.accuracy == again.history.accuracy
        and not same(first, run(data, dset, seed=1))
    )


@pytest.mark.parametrize("mixed", [True, False])
def test_resuming_at_every_step(mixed, data, dset, monkeypatch):
    chosen = dset if mixed else None
    want = run(data, chosen, test=data)
    monkeypatch.setenv("DDROBUST_AUTOSAVE", "0")
    states = []
    assert (
        same(want, run(data, chosen, test=data, save=lambda s: states.append(as_stored(s))))
        and len(states) == 15
    )
    for i, state in enumerate(states):
        got = run(data, chosen, test=data, state=state)
        assert same(want, got) and (got.history.accuracy, got.history.loss) == (
            want.history.accuracy,
            want.history.loss,
        ), f"resumed after step {i + 1}"


def test_a_version_rises_with_the_code():
    "As tests/results/test_versions.py for the other stages; that of `train` stands in the key as well"
    code = Code(PACKAGE)
    text = json.dumps(
        {k: v for k, v in code.hashes(["mixing.mix.mix"]).items() if k.startswith("mixing.")}, sort_keys=True
    )
    assert (MIX_VERSION, hashlib.sha256(text.encode()).hexdigest()[:8]) == (1, "a8247a93"), (
        "raise MIX_VERSION where a number can change, and record both here"
    )


def test_no_loop_waits_for_the_device():
    hot = {"_add_distilled", "distilled_batch", "mixed_index", "join_labels", "distilled_share"}
    tree = ast.parse(Path(mixing.__file__).read_text(encoding="utf-8"))
    functions = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name in hot]
    assert {f.name for f in functions} == hot and not waits("\n".join(map(ast.unparse, functions)), "mixing")


# ---- labels


def test_soft_labels(data, dset, batches_seen):
    soft = replace(dset, labels=torch.full((6, 3), 0.2) + 0.4 * F.one_hot(dset.labels, 3))
    net = run(data, soft, recipe=replace(RECIPE, epochs=1))
    y = batches_seen[0][1]
    assert (
        y.shape == (10, 3)
        and torch.equal(y[:8].max(1).values, torch.ones(8))
        and torch.equal(y[8:].sort(1).values, torch.tensor([[0.2, 0.2, 0.6]] * 2).sort(1).values)
    )
    assert not same(net, run(data, dset, recipe=replace(RECIPE, epochs=1)))
    one = replace(RECIPE, epochs=1, labels="hard")
    assert same(run(data, soft, recipe=one), run(data, dset, recipe=one)), "labels='hard': their classes"
    half = replace(soft, labels=soft.labels.half())
    assert run(data, half, recipe=replace(RECIPE, epochs=1)) is not None


def test_one_hot_labels_are_classes(data, dset):
    a, b = run(data, dset), run(data, replace(dset, labels=F.one_hot(dset.labels, 3).float()))
    for p, q in zip(a.parameters(), b.parameters()):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-5)


def test_mixed_views_of_real_images(data, dset, batches_seen):
    "CutMix makes probabilities of the real labels, and so of all"
    run(data, dset, recipe=replace(RECIPE, epochs=1, mix="cutmix"))
    assert batches_seen[0][1].shape == (10, 3) and set(batches_seen[0][1][8:].flatten().tolist()) == {
        0.0,
        1.0,
    }


def test_a_set_that_only_a_teacher_labels(data, dset):
    relabelled = replace(dset, teacher=dict(key="0" * 16))
    with pytest.raises(InputError, match="labels='hard'"):
        run(data, relabelled)
    assert same(run(data, relabelled, recipe=replace(RECIPE, labels="hard")), run(data, dset))
    for recipe in (RECIPE, replace(RECIPE, labels="hard")):
        with pytest.raises(InputError, match="labels"):
            run(data, replace(relabelled, labels=None), recipe=recipe)


def test_augmentation_of_the_card(dset):
    assert (
        card_augment(dset) == STRATEGY
        and card_augment(replace(dset, config={})) == ""
        and card_augment(dset, "crop") == "crop"
    )
    with pytest.raises(InputError, match="did you mean 'flip'"):
        card_augment(dset, "flipp")
    normalise = Normalise((0.5,) * 3, (0.25,) * 3)
    z, y = distilled_batch(dset.images, dset.labels, 3, 5, "", 0, normalise)
    assert torch.equal(z, normalise(dset.images[mixed_index(6, 3, 5, 0)])) and len(y) == 5


# ---- the control


def test_the_control_has_as_many_real_images(data, dset):
    chance = mixing_control(data, dset, seed=3)
    assert (
        len(chance) == len(dset)
        and torch.equal(chance.images, random(data, 2, seed=3).images)
        and card_augment(chance) == STRATEGY
    )
    assert (
        card_augment(mixing_control(data, dset, augment="crop")) == "crop"
        and card_augment(mixing_control(data, replace(dset, config={}))) == ""
    )
    assert not same(run(data, dset), run(data, chance))
    with pytest.raises(InputError, match="smallest class"):
        mixing_control(
            data, replace(dset, images=dset.images.repeat(9, 1, 1, 1), labels=dset.labels.repeat(9))
        )


# ---- what is refused


@pytest.mark.parametrize(
    "change, says",
    [
        (dict(dset=None, n_distilled=4), "no set to take them from"),
        (dict(n_distilled=0), "leave the set out"),
        (dict(n_distilled=-1), "n_distilled must be"),
        (dict(n_distilled=1.5), "n_distilled must be"),
        (dict(n_real=0), "n_real must be"),
        (dict(n_real=True), "n_real must be"),
        (dict(dset="a path"), "use load_set"),
        (dict(n_real=1000, n_distilled=2), "none at all in batches of 39"),
        (dict(augment="colour"), "did you mean 'color'"),
        (dict(network="ResNet17"), "did you mean 'ResNet18'"),
        (dict(recipe=replace(RECIPE, lr=-1)), "lr must be"),
        (dict(device="tpu9"), "device"),
    ],
)
def test_refused(change, says, data, dset):
    given = dict(dset=dset, n_real=8, n_distilled=2, network=NETWORK, recipe=RECIPE, device="cpu") | change
    with pytest.raises(InputError, match=says):
        mix(data, given.pop("dset"), **given)


@pytest.mark.parametrize("other", [dict(size=16), dict(channels=1), dict(counts=(5, 5))])
def test_sets_of_other_data_are_refused(other, data):
    theirs = random(tiny_data(**other), 2)
    with pytest.raises(InputError, match="both must be of the same data"):
        run(data, theirs)
    with pytest.raises(InputError, match="both must be of the same data"):
        run(data, test=tiny_data(**other))
    with pytest.raises(InputError, match="both must be of the same data"):
        run(data, replace(random(data, 2), spec=replace(data.spec, name="another")))


def test_bad_sets_are_refused(data, dset):
    for bad, says in (
        (replace(dset, labels=dset.labels + 3), "labels must lie in 0..2"),
        (replace(dset, images=dset.images * float("nan")), "not numbers"),
        (replace(dset, labels=None), "no labels"),
    ):
        with pytest.raises(InputError, match=says):
            run(data, bad)


def test_a_diverging_training_stops(data, dset):
    with pytest.raises(ArithmeticError, match="smaller lr"):
        run(data, dset, recipe=replace(RECIPE, lr=1e20))


def test_the_recipe_is_that_of_the_page(data):
    r = mixing_recipe(data.spec)
    assert (
        r.epochs,
        r.lr,
        r.schedule,
        r.momentum,
        r.weight_decay,
        r.batch,
        r.pad,
        r.flip,
        r.augment,
        r.select,
    ) == (200, 0.1, "cosine", 0.9, 5e-4, 128, 4, True, "", "last")
    defaults = {k: p.default for k, p in inspect.signature(mix).parameters.items()}
    assert (defaults["n_real"], defaults["n_distilled"], defaults["network"]) == (128, 16, "ResNet18")
    with pytest.raises(InputError, match="epochs"):
        mixing_recipe(data.spec, 0)


def test_a_picture(data, dset):
    assert len(show_batch(data, dset).axes) == 2 and len(show_batch(data, None).axes) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_mixes_what_a_cpu_mixes(data, dset):
    a, b, c = (
        mix(data, dset, n_real=8, n_distilled=2, network=NETWORK, recipe=RECIPE, device=d)
        for d in ("cpu", "cuda", "cuda")
    )
    assert same(b, c)
    for p, q in zip(a.parameters(), b.parameters()):
        torch.testing.assert_close(p, q.cpu(), atol=1e-3, rtol=0)


# ---- a run


@pytest.fixture(scope="module")
def enrolled(data):
    dataset["tiny"] = lambda root=None: data
    yield
    del dataset["tiny"]


SMALL = dict(
    dataset="tiny",
    network=NETWORK,
    epochs=2,
    n_real=8,
    n_distilled=2,
    n_models=2,
    attacks="pgd,cw",
    eps="8/255",
    steps=2,
    n_test=9,
    device="cpu",
)


def test_sets_of_a_run(data, dset, enrolled, tmp_path):
    "Folders, the control of the first of them, and `none`, in the order asked for"
    for name, change in (("a b", {}), ("teacher's", dict(teacher=dict(key="0"), method="sre2l", config={}))):
        save_set(replace(dset, **change), tmp_path / name)
    planned = plan_mixing(
        **SMALL, sets=f"random,none,{tmp_path / 'a b'},{tmp_path}/teacher's", store=str(tmp_path / "store")
    )
    parts = mixed_sets(planned)
    assert [(p.name, p.augment, p.cell.recipe.labels) for p in parts] == [
        ("random", STRATEGY, "auto"),
        ("none", "", "auto"),
        ("dm", STRATEGY, "auto"),
        ("sre2l", "", "hard"),
    ]
    assert (
        torch.equal(parts[0].distilled.dset.images, random(data, 2).images)
        and parts[1].distilled.dset is None
        and not (tmp_path / "store").exists()
    )
    alone = mixed_sets(plan_mixing(**SMALL, sets="none,random", ipc=3, store=str(tmp_path / "store")))
    assert len(alone[1].distilled.dset) == 9 and alone[1].augment == STRATEGY


def test_networks_are_kept_by_all_that_decides_them(enrolled, tmp_path):
    def key(sets="none,random", part=1, seed=0, **change):
        planned = plan_mixing(**SMALL | dict(sets=sets, epochs=1, ipc=2, store=str(tmp_path)) | change)
        return train_mixed(planned, mixed_sets(planned)[part], seed).key

    first = key()
    assert (
        key()
        == first
        == key(sets="random", part=0)
        == key(attacks="fgsm")
        == key(n_models=1)
        == key(n_test=12)
    )
    others = [
        key(seed=1),
        key(part=0),
        key(n_distilled=3),
        key(n_real=9),
        key(epochs=2),
        key(lr=0.05),
        key(augment="crop"),
        key(n_train=9),
        key(network="ConvNetD3-w4"),
        key(ipc=3),
    ]
    assert len({first, *others}) == len(others) + 1
    assert key(part=0, n_distilled=3) == key(part=0) == key(part=0, augment="crop"), (
        "nothing mixed in: nothing of it matters"
    )


@pytest.mark.parametrize(
    "change, says",
    [
        (dict(sets=""), "sets must be a list"),
        (dict(sets="none,nune"), "did you mean 'none'"),
        (dict(sets="none,none"), "twice"),
        (dict(sets=5), "sets must be text.*-r sets 5"),
        (dict(sets="whole"), "unknown set"),
        (dict(epochs=0), "epochs"),
        (dict(n_real=0), "n_real"),
        (dict(n_distilled=0), "n_distilled"),
        (dict(n_train=2), "n_train must be"),
        (dict(n_train=1000), "n_train must be"),
        (dict(n_models=0), "n_models"),
        (dict(lr="high"), "lr must be"),
        (dict(attacks="pgdd"), "did you mean 'pgd'"),
        (dict(eps="9"), "between 0 and 1"),
        (dict(steps=0), "steps"),
        (dict(protocol="fast"), "protocol"),
        (dict(ipc=13), "smallest class"),
        (dict(n_epochs=3), "did you mean 'epochs'"),
        (dict(out=7), "out must be text"),
        (dict(attacks=["pgd"]), "attacks must be text"),
    ],
)
def test_plans_that_cannot_be(change, says, enrolled, tmp_path):
    with pytest.raises(InputError, match=says):
        plan_mixing(**SMALL | dict(sets="none,random", store=str(tmp_path / "store")) | change)
    assert not (tmp_path / "store").exists()


def row(method, seed, clean, robust, **more):
    usual = dict.fromkeys(Result.__dataclass_fields__) | dict(
        dataset="cifar10",
        method=f"mix:{method}",
        ipc=None if method == "none" else 10,
        set_seed=0,
        set_key=method,
        network="ResNet18",
        seed=seed,
        best=seed == 0,
        protocol="mixing: 1 epochs, 10 images, 8 + 1",
        select="last",
        attack="pgd",
        preset="",
        norm="Linf",
        eps="2/255",
        eps_255=2.0,
        steps=10,
        n_clean=100,
        clean=clean,
        clean_n=clean,
        n=50,
        robust=robust,
        warnings=(),
        key="",
    )
    return Result(**usual | more)


def test_differences_are_paired_by_seed():
    rows = [
        row("none", 0, 0.5, 0.2),
        row("none", 1, 0.7, 0.4),
        row("dm", 1, 0.71, 0.43),
        row("dm", 0, 0.52, 0.21),
        row("dm", 2, 0.9, 0.9),
    ]
    t = mixing_table(rows + [replace(rows[0], method="dm")]).set_index(["mixed in", "measured"])
    assert (
        t.loc[("dm", "clean"), "less none, points"] == "+1.50 ± 0.71"
        and t.loc[("dm", "PGD, 10 steps, eps 2/255"), "less none, points"] == "+2.00 ± 1.41"
    )
    assert (
        t.loc[("none", "clean"), "less none, points"] == "–"
        and t.loc[("none", "clean"), "accuracy %"] == "60.00 ± 14.14"
    )
    assert (
        t.loc[("dm", "clean"), "models"] == 3
        and t.loc[("none", "clean"), "images"] == 100
        and t.loc[("dm", "PGD, 10 steps, eps 2/255"), "images"] == 50
    )
    assert (
        t.loc[("dm", "clean"), "paper V %"] == "93.45 (+0.13)"
        and t.loc[("none", "PGD, 10 steps, eps 2/255"), "paper XXVIII %"] == "63.53"
    )
    assert len(t) == 4 and len(plot_differences(rows).axes) == 2
    one = mixing_table(rows[:3] + [row("dm", 7, 0.9, 0.9)]).set_index(["mixed in", "measured"])
    assert (
        one.loc[("dm", "clean"), "less none, points"] == "+1.00" and one.loc[("dm", "clean"), "models"] == 2
    ), "seed 7 has no partner"


def test_runs_are_never_averaged():
    rows = [
        row(m, 0, c, 0.1, protocol=p)
        for m, c, p in (
            ("none", 0.5, "mixing: a"),
            ("dm", 0.6, "mixing: a"),
            ("none", 0.8, "mixing: b"),
            ("dm", 0.7, "mixing: b"),
        )
    ]
    t = mixing_table(rows)
    assert t[t["measured"] == "clean"]["less none, points"].tolist() == ["–", "+10.00", "–", "-10.00"] and t[
        "training"
    ].unique().tolist() == ["a", "b"]
    assert mixing_table([]).empty and mixing_rows([]).empty


def two(change, clean=(0.5, 0.6), robust=(0.2, 0.3), **usual):
    "`none` and `dm`, as they are and with a change"
    usual = (
        dict(
            recipe=LR,
            alpha="2/255",
            random_start=True,
            data_fingerprint="1bea",
            index_digest="1d0",
            adversarial="",
            model_key="",
        )
        | usual
    )
    return [
        row(m, 0, c, r, **usual | more)
        for more in ({}, change)
        for m, c, r in zip(("none", "dm"), clean, robust)
    ]


LR = dict(epochs=10, lr=0.1, labels="auto")


def twins(t):
    return t.drop(columns=["accuracy %", "less none, points", "models"]).duplicated().sum()


@pytest.mark.parametrize(
    "change, says",
    [
        (dict(recipe=LR | dict(lr=0.05)), ["a, lr 0.1", "a, lr 0.05"]),
        (dict(recipe=LR | dict(lr=0.01)), ["a, lr 0.1", "a, lr 0.01"]),
        (
            dict(recipe=LR | dict(weight_decay=0.0, flip=True)),
            ["a, weight_decay 0.0005, flip no", "a, weight_decay 0, flip yes"],
        ),
        (dict(recipe=None), ["a, recipe recorded", "a, recipe not recorded"]),
        (dict(adversarial="pgd"), ["a, trained against none", "a, trained against pgd"]),
        (dict(n_clean=50), ["a, test images 100", "a, test images 50"]),
        (dict(select="best_test"), ["a, checkpoint last", "a, checkpoint best_test"]),
        (dict(data_fingerprint="ffff"), ["a, data 1bea", "a, data ffff"]),
    ],
)
def test_trainings_of_one_text_are_told_apart(change, says):
    "Never averaged, never of one text, and each set has the `none` of its own training"
    rows = two(change, protocol="mixing: a")
    rows[3] = replace(rows[3], clean=0.7)
    for given in (rows, results_frame(rows)):
        t = mixing_table(given)
        assert (
            len(t) == 8
            and t["training"].unique().tolist() == says
            and not twins(t)
            and (t["models"] == 1).all()
        )
        assert t[t["measured"] == "clean"]["less none, points"].tolist() == ["–", "+10.00", "–", "+20.00"]
    assert [len(a.lines) for a in plot_differences(rows).axes] == [3, 3]


def test_labels_of_distilled_images_and_looking_make_no_training():
    rows = two({})[:2]
    rows[1] = replace(rows[1], recipe=LR | dict(labels="hard", check_n=5, momentum=0.9))
    t = mixing_table(rows)
    assert (
        len(t) == 4
        and "training" not in t
        and t["less none, points"].tolist() == ["–", "–", "+10.00", "+10.00"]
    )


@pytest.mark.parametrize(
    "change, says",
    [
        (dict(alpha="1/255"), ["step size 2/255", "step size 1/255"]),
        (dict(alpha="1/510"), ["step size 2/255", "step size 0.5/255"]),
        (dict(n=20), ["images 50", "images 20"]),
        (dict(random_start=False), ["random start yes", "random start no"]),
        (dict(index_digest="2d0"), ["which images 1d0", "which images 2d0"]),
        (dict(source_model="aa"), ["made on none", "made on aa"]),
        (dict(norm="L2"), ["norm Linf", "norm L2"]),
        (dict(backend="pyautoattack"), ["by none", "by pyautoattack"]),
    ],
)
def test_measures_of_one_text_are_told_apart(change, says):
    rows = two(change)
    rows[3] = replace(rows[3], robust=0.4)
    for given in (rows, results_frame(rows)):
        t = mixing_table(given)
        attacked = t[t["measured"] != "clean"]
        assert (
            attacked["measured"].unique().tolist() == [f"PGD, 10 steps, eps 2/255, {text}" for text in says]
            and len(attacked) == 4
            and not twins(t)
        )
        assert (t["models"] == 1).all() and len(t) == 6
    assert [a.get_title().split(", ")[-1] for a in plot_differences(rows).axes] == ["clean", *says]


@pytest.mark.parametrize(
    "change",
    [
        dict(eps="4/510"),
        dict(eps="4/510", alpha="4/510"),
        dict(eps="2/255", eps_255=2.0000000001),
        dict(alpha=f"{2 / 255:.12f}"),
    ],
)
def test_sizes_are_compared_as_numbers(change):
    rows = two({})[:2]
    rows[1] = replace(rows[1], **change)
    for given in (rows, results_frame(rows)):
        t = mixing_table(given)
        assert t["measured"].tolist() == ["clean", "PGD, 10 steps, eps 2/255"] * 2 and t[
            "less none, points"
        ].tolist() == ["–", "–", "+10.00", "+10.00"]
    far = mixing_table([rows[0], replace(rows[1], eps="2.1/255", eps_255=2.1)])
    assert far["less none, points"].tolist() == ["–", "–", "+10.00", "–"]
    steps = mixing_table(rows + [replace(r, alpha="1/255") for r in rows])["measured"].unique().tolist()
    assert steps == ["clean", *(f"PGD, 10 steps, eps 2/255, step size {size}/255" for size in (2, 1))], (
        "one size, one text"
    )


@pytest.mark.parametrize(
    "change, says",
    [
        (dict(options=dict(iterations=500)), ["dm, iterations 200", "dm, iterations 500"]),
        (dict(labels="soft"), ["dm, labels hard", "dm, labels soft"]),
        (dict(set_key="ffff"), ["dm, key dm", "dm, key ffff"]),
        (dict(options=None), ["dm, options recorded", "dm, options not recorded"]),
        (dict(control_of="mtt"), ["dm, control of none", "dm, control of mtt"]),
        (dict(set_seed=1), ["dm", "dm"]),
        (dict(ipc=1), ["dm", "dm"]),
    ],
)
def test_sets_of_one_text_are_told_apart(change, says):
    usual = dict(options=dict(iterations=200), options_digest=digest_of(dict(iterations=200)), labels="hard")
    none, dm, *_ = two({}, **usual)
    other = replace(dm, **change, options_digest=digest_of(change.get("options", none.options)))
    t = mixing_table([none, dm, other])
    assert (
        t[t["measured"] == "clean"]["mixed in"].tolist() == ["none", *says]
        and len(t) == 6
        and not twins(t)
        and (t["models"] == 1).all()
    )


def test_a_model_counts_once():
    "Named by its key, and by its seed where a row of the first format has none"
    none, dm, *_ = two({}, model_key="a")
    more = [
        dm,
        replace(dm, key="copy"),
        replace(dm, model_key=""),
        replace(dm, seed=1, model_key="b", clean=0.8),
        replace(dm, seed=1, model_key=""),
        replace(dm, seed=2, model_key="", clean=0.7),
        replace(dm, seed=2, model_key=""),
    ]
    for rows in ([none, *more], [none, *reversed(more)]):
        t = mixing_table(rows).set_index(["mixed in", "measured"])
        assert (
            t.loc[("dm", "clean"), "models"] == 3 and t.loc[("dm", "clean"), "less none, points"] == "+10.00"
        )
    assert (
        mixing_table([none, *more]).set_index(["mixed in", "measured"]).loc[("dm", "clean"), "accuracy %"]
        == "70.00 ± 10.00"
    )


def test_a_fact_that_is_missing_is_called_none():
    fgsm = row("dm", 0, 0.5, 0.2, attack="fgsm", steps=None)
    for rows in ([fgsm, replace(fgsm, steps=1)], results_frame([fgsm, replace(fgsm, steps=1)])):
        assert mixing_table(rows)["measured"].tolist() == [
            "clean",
            "FGSM, eps 2/255, steps none",
            "FGSM, eps 2/255, steps 1",
        ]


def test_the_reference_rows_look_as_before():
    t = mixing_table(read_results(NBS / "sets" / "mixing-cifar10"))
    assert list(t) == [
        "mixed in",
        "ipc",
        "set",
        "measured",
        "accuracy %",
        "less none, points",
        "models",
        "images",
        "paper V %",
        "paper XXVIII %",
    ]
    assert t["mixed in"].tolist() == ["none"] * 3 + ["dm"] * 3 + ["random"] * 3 and (t["models"] == 3).all()
    assert (
        t["measured"].tolist()
        == ["clean", "PGD, 10 steps, eps 2/255", "CW (margin), 10 steps, eps 2/255"] * 3
    )
    assert t["less none, points"].tolist() == ["–"] * 3 + [
        "-0.40 ± 1.68",
        "+1.20 ± 3.49",
        "+0.93 ± 3.35",
        "+1.66 ± 0.61",
        "-0.67 ± 2.42",
        "-0.60 ± 2.03",
    ]


def test_what_the_paper_printed():
    assert paper_mixing("cifar100", "mtt", "cw") == {"V": (0.0486, -0.0019), "XXVIII": (0.0526, 0.0021)}
    assert paper_mixing("cifar10", "none", "none") == {"V": (0.9332, 0.0), "XXVIII": (0.9332, 0.0)}
    assert paper_mixing("cifar10", "random", "pgd") == paper_mixing("digits", "dm", "none") == {}


# ---- the notebook


def test_parameters_of_the_notebook_are_those_of_the_package():
    (cell,) = [c for c in cells(NOTEBOOK) if "parameters" in c["metadata"].get("tags", [])]
    found = {
        n.target.id if isinstance(n, ast.AnnAssign) else n.targets[0].id: ast.literal_eval(n.value)
        for n in ast.parse(source(cell)).body
    }
    assert found == MIXING_PARAMETERS and list(found) == list(MIXING_PARAMETERS)
    assert all(len(line.split("  # ", 1)[1]) > 15 for line in source(cell).splitlines())


def test_no_logic_in_the_notebook():
    for cell in cells(NOTEBOOK):
        if cell["cell_type"] == "code":
            assert not [
                n for n in ast.walk(ast.parse(source(cell))) if isinstance(n, (ast.FunctionDef, ast.ClassDef))
            ]


def papermill(*arguments):
    return subprocess.run(
        command(*arguments),
        cwd=NBS,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_run_mixing(tmp_path):
    "papermill in the folder of the notebook: values arrive in the rows, the table stands at the end, nothing is computed twice"
    before = NOTEBOOK.read_bytes()
    values = dict(
        sets="none,sets/digits-dm-ipc1/set-dm,random",
        network="ConvNetD3-w8",
        n_train=40,
        epochs=2,
        lr=0.05,
        n_real=16,
        n_distilled=4,
        n_models=2,
        attacks="pgd,cw,fgsm@4/255",
        eps="8/255",
        steps=2,
        n_test=20,
        seed=3,
        device="cpu",
        store=tmp_path / "störe",
        out=tmp_path / "out ü",
    )
    arguments = [x for name, value in values.items() for x in ("-p", name, value)]
    done = papermill(NOTEBOOK.name, tmp_path / "done.ipynb", *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    assert NOTEBOOK.read_bytes() == before and finished(tmp_path / "done.ipynb")
    rows = read_results(tmp_path / "out ü")
    assert [(r.method, r.ipc, r.set_seed, r.seed) for r in rows[::3]] == [
        ("mix:none", None, None, 300),
        ("mix:none", None, None, 301),
        *(("mix:" + m, 1, s, seed) for m, s in (("dm", 0), ("random", 3)) for seed in (300, 301)),
    ]
    assert [(r.attack, r.eps, r.steps) for r in rows[:3]] == [
        ("pgd", "8/255", 2),
        ("cw", "8/255", 2),
        ("fgsm", "4/255", 1),
    ]
    for r in rows:
        assert (r.dataset, r.network, r.protocol, r.select, r.n, r.n_clean, r.device) == (
            "digits",
            "ConvNetD3-w8",
            "mixing: 2 epochs, 40 images, 16 + 4",
            "last",
            20,
            500,
            "cpu",
        )
    assert len(results_table(rows)) == 3 * 4 and len(mixing_table(rows)) == 3 * 4
    assert {p.name for p in (tmp_path / "out ü").iterdir()} == {
        "results.json",
        "flags.safetensors",
        "cell.json",
        "figures",
    }
    said = json.dumps([c.get("outputs", []) for c in cells(tmp_path / "done.ipynb")])
    assert (
        "less none, points" in said
        and "paper XXVIII %" in said
        and "are lost" in said
        and "Traceback" not in said
        and "stderr" not in said
    )
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "störe").rglob("*") if p.is_file()}
    again = plan_mixing(
        **values
        | {n: str(values[n]) for n in ("store", "out")}
        | dict(sets=values["sets"].replace("sets/", f"{NBS}/sets/"))
    )
    models = [train_mixed(again, p, s) for p in mixed_sets(again) for s in (300, 301)]
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "störe").rglob("*") if p.is_file()} == kept, (
        "all from the store"
    )
    assert [m.clean for m in models] == [r.clean for r in rows[::3]]
    assert tagged(tmp_path / "done.ipynb", "injected-parameters")


def test_a_misspelt_parameter(tmp_path):
    done = papermill(
        NOTEBOOK.name, tmp_path / "bad.ipynb", "-p", "set", "none", "-p", "store", tmp_path / "store"
    )
    assert (
        done.returncode == 1
        and done.stderr.rstrip()
        .splitlines()[-1]
        .startswith("InputError: unknown parameter 'set': did you mean 'sets'")
        and not (tmp_path / "store").exists()
    )

"Bad input: one clear line, before any work, nothing written; and damage in the store is named and mended."

import json
import os
import shutil
import tempfile
import warnings
from dataclasses import asdict, replace
import functools
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ddrobust_nb.attacks.robustness import evaluate
from ddrobust_nb.attacks.attack import AttackConfig, attack
from ddrobust_nb.attacks.autoattack import PARTS
from ddrobust_nb.foundations.core import InputError
from ddrobust_nb.foundations.data import Spec, as_pixels, make_data
from ddrobust_nb.foundations.datasets import load_data
from ddrobust_nb.training.distilled import save_set
from ddrobust_nb.training.distiller import distiller
from ddrobust_nb.foundations.networks import make_network
from ddrobust_nb.results import plan as cell_module
from ddrobust_nb.results import stages as stages_module
from ddrobust_nb.results.cell_rows import run_stages, write_out
from ddrobust_nb.results.parameters import PARAMETERS
from ddrobust_nb.results.plan import plan_cell
from ddrobust_nb.results.stages import distil_cell
from ddrobust_nb.results.reading import read_results
from ddrobust_nb.results.store import DamagedArtefact, Store, cached
from ddrobust_nb.training.fit import Recipe, fit

TINY = dict(
    network="ConvNetD3-w4", distill_network="ConvNetD3-w4", n_test=10, n_models=1, attacks="fgsm@8/255"
)


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    "No settings of this machine"
    for name in ("DDROBUST_STORE", "DDROBUST_DATA", "DDROBUST_AUTOSAVE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def data():
    return load_data("digits")


@pytest.fixture
def store(tmp_path):
    return tmp_path / "störe mit Blank"


def one_line(say, call):
    "The call is refused with one line that says it"
    with pytest.raises(InputError, match=say) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and "\0" not in text and 20 < len(text) < 700, text


def refused(store, say, /, **given):
    "So is this plan, and nothing has been written"
    one_line(say, lambda: plan_cell(**{"store": str(store), **given}))
    assert not store.exists()


def accepted(store, /, **given):
    "The plan of good parameters; planning writes nothing"
    cell = plan_cell(store=str(store), **given)
    assert not store.exists()
    return cell


# Parameters: names and choices


@pytest.mark.parametrize(
    "given, say",
    (
        (dict(methd="dm"), "unknown parameter 'methd': did you mean 'method'"),
        (dict(Method="dm"), "did you mean 'method'"),
        (dict(n_tests=10), "did you mean 'n_test'"),
        (dict(stor="x"), "did you mean 'store'"),
        (dict(zzz=1), "unknown parameter 'zzz': known: attacks, checkpoint"),
        (dict(method="DM"), "unknown method 'DM': did you mean 'dm'"),
        (dict(method="dmm"), "did you mean 'dm'"),
        (dict(method="herdin"), "did you mean 'herding'"),
        (dict(method="xyzzy"), "unknown method 'xyzzy': known: .*dm"),
        (dict(method="unknown"), "unknown method 'unknown'"),
        (dict(method=""), "method"),
        (dict(dataset="cifar"), "unknown dataset 'cifar': did you mean 'cifar10'"),
        (dict(dataset="Digits"), "did you mean 'digits'"),
        (dict(dataset=" digits"), "did you mean 'digits'"),
        (dict(dataset="digits "), "did you mean 'digits'"),
        (dict(dataset=""), "unknown dataset"),
        (dict(dataset="folder"), "did you mean 'folder:/path'"),
        (dict(network="convnetd3"), "unknown network 'convnetd3': did you mean 'ConvNetD3'"),
        (dict(network="ResNet"), "did you mean 'ResNet18'"),
        (dict(network="VGG"), "unknown network 'VGG': known"),
        (dict(network="ConvNetD3-w0"), "write NAME or NAME-wWIDTH"),
        (dict(network="ConvNetD3 "), "network"),
        (dict(distill_network="ConvNetD33"), "unknown network .*did you mean 'ConvNetD3'"),
        (dict(network="ConvNetD3-w99999999"), "width"),
        (dict(protocol="quik"), "unknown protocol 'quik': did you mean 'quick'"),
        (dict(protocol="Paper"), "did you mean 'paper'"),
        (dict(select="best"), "unknown select 'best': did you mean 'best_val'"),
        (dict(select="Last"), "did you mean 'last'"),
    ),
)
def test_unknown_names(store, given, say):
    refused(store, say, **given)


# Parameters: numbers


@pytest.mark.parametrize(
    "given, say",
    (
        *(
            (dict(ipc=v), "ipc must be a whole number from 1 to 124 .*smallest class of digits")
            for v in (0, -1, 1.5, 1.0, True, "1", None, 125, [1])
        ),
        *((dict(method="whole", ipc=v), "ipc must be") for v in (0, -1, 1.5, True, "many")),
        *(
            (dict(n_models=v), "n_models must be a whole number from 1 to 100")
            for v in (0, -1, 1.5, True, "2", 101)
        ),
        *((dict(n_test=v), "n_test must") for v in (0, -3, 9, 501, 1.5, True, "10", "all")),
        *((dict(seed=v), "seed must be a whole number from 0") for v in (-1, 1.5, True, "a", None)),
    ),
)
def test_numbers(store, given, say):
    refused(store, say, **given)


@pytest.mark.parametrize(
    "attacks, say",
    (
        ("fgsm@-1/255", "eps must be between 0 and 1"),
        ("fgsm@2", "between 0 and 1"),
        ("fgsm@256/255", "between 0 and 1"),
        ("pgd@1.01@3", "between 0 and 1"),
        ("pgd@8/255@0", "steps must be a whole number from 1"),
        ("pgd@8/255@-1", "steps"),
        ("pgd@8/255@1.5", "whole number"),
        ("fgsm@8/255@2", "one step"),
        ("aa-quick@8/255@3", "steps"),
        ("fgsm@nan", "a fraction"),
        ("fgsm@8/0", "a fraction"),
        ("pgd@", "cannot be read"),
        ("@", "cannot be read"),
        (",", "cannot be read"),
        ("fgsm,,pgd", "cannot be read"),
        ("pgd@8/255@10@3", "NAME"),
        ("   ", "empty"),
        ("quick,fgsm", "write it by itself"),
        ("quick@8/255", "write it by itself"),
        ("fgs", "unknown attack 'fgs': did you mean 'fgsm'"),
        ("FGSM", "did you mean 'fgsm'"),
        ("headlin", "did you mean 'headline'"),
        ("fgsm;pgd", "unknown attack"),
        ("fgsm\npgd", "unknown attack"),
        ("ta:tifgsm", "did you mean 'TIFGSM'"),
        ("ta:CW", "not bounded by eps"),
        ("fgsm@٢/255", "a fraction"),
        ("fgsm@1_0/255", "a fraction"),
        ("fgsm@1e-99999", "eps"),
        (8, "must be text.*-r attacks 8"),
        (0.03, "-r attacks 0.03"),
        (["fgsm"], "must be text"),
    ),
)
def test_attacks(store, attacks, say):
    refused(store, say, attacks=attacks)


@pytest.mark.parametrize(
    "device, say",
    (
        ("cuda:77", "not on this machine"),
        ("gpu", "not known: use auto, cpu, cuda"),
        ("CPU", "not known"),
        ("meta", "not known"),
        ("xla", "not known"),
        (0, "must be text"),
    ),
)
def test_device(store, device, say):
    refused(store, say, device=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
@pytest.mark.parametrize("device", ("cuda", "cuda:0"))
def test_no_cuda(store, device):
    refused(store, "device 'cuda.*' is not on this machine", device=device)


@pytest.mark.parametrize(
    "name",
    ("method", "dataset", "data_root", "network", "protocol", "distilled", "checkpoint", "store", "out"),
)
@pytest.mark.parametrize("value", (5, 1.5, True, ["x"]))
def test_text_is_text(store, name, value):
    refused(store, f"{name} must be text, got", **{name: value})


FOLDERS = ("data_root", "distilled", "checkpoint", "out")  # of which one may be called auto


@pytest.mark.parametrize(
    "value, name",
    [
        (value, name)
        for value in (None, "", "auto")
        for name in (
            "network",
            "distill_network",
            "attacks",
            "select",
            "device",
            "n_test",
            "n_models",
            *FOLDERS,
        )
        if value != "auto" or name not in FOLDERS
    ],
)
def test_nothing_means_the_protocol_s_value(store, name, value):
    "None, 'auto' and '' take the protocol's value"
    assert accepted(store, **{name: value}).key == accepted(store).key


# Options


@pytest.mark.parametrize(
    "options, say",
    (
        ({"iteration": 5}, "unknown option of dm 'iteration': did you mean 'iterations'"),
        ({"seed": 3}, "unknown option of dm 'seed'"),
        ({"state": {}}, "unknown option"),
        ({1: 2}, "unknown option"),
        *(({"iterations": v}, "iterations must be a whole number") for v in ("many", -1, 1.5, None, "5")),
        ({"iterations": True}, "iterations"),
        *(({"batch_real": v}, "batch_real must be a whole number from 1 to 124") for v in (0, -4, 125, "8")),
        *(({"lr_img": v}, "lr_img must be") for v in (-1, 0, "1", float("nan"), float("inf"), None)),
        ({"lr_img": True}, "lr_img"),
        *(({"momentum": v}, "momentum must be") for v in (-1, "a", 1.5, float("nan"), None)),
        *(({"init": v}, "init") for v in ("zeros", 1, None)),
        *(({"augment": v}, "augment") for v in ("foo", "color_foo", 3, None)),
        ("iterations=5", "options must be a mapping"),
        ([], "options must be a mapping"),
        (5, "options must be a mapping"),
    ),
)
def test_options(store, options, say):
    refused(store, say, options=options)


@pytest.mark.parametrize(
    "method, options, say",
    (
        ("random", {"iterations": 3}, "random has no options of its own"),
        ("whole", {"a": 1}, "no options"),
        ("herding", {"epoch": 3}, "did you mean 'epochs'"),
        *(("herding", {"epochs": v}, "epochs must be a whole number from 1") for v in (0, "a", 1.5)),
    ),
)
def test_options_of_other_methods(store, method, options, say):
    refused(store, say, method=method, options=options)


def test_good_options(store):
    "Values at the edge of what is allowed are taken, and arrive"
    for options in (
        {"iterations": 0},
        {"batch_real": 124},
        {"lr_img": 1e-3},
        {"momentum": 0},
        {"init": "noise"},
        {"augment": ""},
        {"augment": "color_crop"},
    ):
        assert options.items() <= accepted(store, options=options).options.items()
    assert accepted(store, options={"lr_img": 1}).key == accepted(store, options={"lr_img": 1.0}).key, (
        "the same number"
    )


@pytest.mark.parametrize(
    "method, given",
    (
        ("dm", dict(init="noise")),
        ("kmeans", dict(seed=2**40)),
        ("dm", dict(seed=10**13)),
        ("random", dict(seed=10**13)),
    ),
)
def test_what_is_planned_runs(store, method, given):
    "A plan that was accepted does not fail in its first stage"
    options = {"iterations": 1, "batch_real": 2} if method == "dm" else {}
    seed = given.pop("seed", 0)
    cell = accepted(store, method=method, seed=seed, options=options | given, **TINY)
    assert len(distil_cell(cell).dset) == 10


# Where things are


@pytest.mark.parametrize("name", ("store", "out"))
@pytest.mark.parametrize(
    "place",
    ("file", "file/below", "/dev/null", "/proc/ddrobust", "x" * 300, "nul\0byte", "~nobody-of-this-name/x"),
)
def test_unwritable(store, tmp_path, monkeypatch, name, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("precious")
    refused(store, f"^{name}\\b", **{name: place})
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize("dataset", ("digits", "cifar10"))
@pytest.mark.parametrize(
    "place, say",
    (
        ("missing", "does not exist"),
        ("empty", "is empty"),
        ("file", "is a file, not a folder"),
        ("nul\0byte", "not a path"),
        ("x" * 300, "data_root"),
        ("~nobody-of-this-name/x", "data_root"),
    ),
)
def test_data_root(store, tmp_path, dataset, place, say):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    refused(
        store,
        say,
        dataset=dataset,
        data_root=str(tmp_path / place) if place in ("missing", "empty", "file") else place,
    )


def as_nobody(call):
    "What an ordinary user is told: root may read and write everything, so root steps down in a child"
    if os.geteuid():
        return call()
    read, write = os.pipe()
    if not (child := os.fork()):
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            try:
                said = f"no error: {call()}"
            except BaseException as e:
                said = f"{type(e).__name__}: {e}"
            os.write(write, said.encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, encoding="utf-8") as file:
        said = file.read()
    os.waitpid(child, 0)
    return said


@pytest.mark.parametrize(
    "name, mode",
    [
        ("store", 0o555),
        ("out", 0o555),
        *((name, 0o000) for name in ("store", "out", "data_root", "distilled", "checkpoint", "dataset")),
    ],
)
def test_no_rights(name, mode):
    "Folders of somebody else: readable only where something is to be written, and closed"
    folder = Path(tempfile.mkdtemp())
    try:
        (folder / "closed").mkdir()
        (folder / "closed" / "x.safetensors").write_bytes(b"x")
        (folder / "closed").chmod(mode)
        folder.chmod(0o755)
        inside = {
            "store": "closed/new",
            "out": "closed/new",
            "distilled": "closed/x.safetensors",
            "checkpoint": "closed/x.safetensors",
        }.get(name, "closed")
        value = str(folder / inside)
        given = (
            {"store": str(folder / "no"), name: value}
            if name != "dataset"
            else {"dataset": f"folder:{value}"}
        )
        if name == "data_root":
            given["dataset"] = "cifar10"
        load_once()

        def call():
            if name in ("distilled", "checkpoint"):
                return cell_module.identify({name: value}, load_once())
            if name == "dataset":
                return load_data(f"folder:{value}")
            return plan_cell(**given)

        if os.geteuid():
            with pytest.raises(InputError) as caught:
                call()
            said = f"InputError: {caught.value}"
        else:
            said = as_nobody(call)
        assert said.startswith("InputError: ") and "\n" not in said and str(folder) in said, said
        assert {p.name for p in folder.iterdir()} == {"closed"}
    finally:
        (folder / "closed").chmod(0o755)
        shutil.rmtree(folder)


@cache
def load_once():
    "Digits, loaded before the process forks"
    return load_data("digits")


# Folders of images


def folder_of(path, classes=("äpfel rot", "birnen"), n=4, size=16):
    "A small image-folder tree"
    noise = torch.Generator().manual_seed(0)
    for half in ("train", "test"):
        for k, name in enumerate(classes):
            (path / half / name).mkdir(parents=True)
            for i in range(n):
                pixels = (torch.rand(size, size, generator=noise) * 127 + 128 * k).byte().numpy()
                Image.fromarray(pixels).save(path / half / name / f"bild {i}.png")
    return path


def damage_one_class(path):
    shutil.rmtree(path / "train" / "birnen")
    shutil.rmtree(path / "test" / "birnen")


def damage_empty_class(path):
    [f.unlink() for f in (path / "train" / "birnen").iterdir()]


def damage_empty_test_class(path):
    [f.unlink() for f in (path / "test" / "birnen").iterdir()]


def damage_broken(path):
    (path / "train" / "birnen" / "bild 1.png").write_bytes(b"no image")


def damage_cut(path):
    (f := path / "test" / "birnen" / "bild 1.png").write_bytes(f.read_bytes()[:-40])


def damage_zero(path):
    (path / "test" / "birnen" / "bild 1.png").write_bytes(b"")


def damage_half(path):
    shutil.rmtree(path / "test" / "birnen")


def damage_no_test(path):
    shutil.rmtree(path / "test")


def damage_dangling(path):
    (path / "train" / "birnen" / "x.png").symlink_to("/nowhere/x.png")


def damage_loop(path):
    (path / "train" / "birnen" / "loop").symlink_to(path / "train" / "birnen")


def damage_constant(path):
    [Image.new("L", (16, 16), 7).save(f) for f in path.rglob("*.png")]


@pytest.mark.parametrize(
    "damage, say",
    (
        (damage_one_class, "1 class folder: at least two"),
        (damage_empty_class, "class 'birnen' has no images in .*train"),
        (damage_empty_test_class, "class 'birnen' has no images in .*test"),
        (damage_broken, "bild 1.png' is not a readable image"),
        (damage_cut, "bild 1.png' is not a readable image"),
        (damage_zero, "not a readable image"),
        (damage_half, "class 'birnen' is in only one"),
        (damage_no_test, "no folder 'test'"),
        (damage_dangling, "x.png' cannot be read"),
        (damage_loop, "cannot be read"),
        (damage_constant, "one grey value|the same|deviation"),
    ),
)
def test_bad_folder(store, tmp_path, damage, say):
    path = folder_of(tmp_path / "bilder ö")
    damage(path)
    refused(store, say, dataset=f"folder:{path}")


@pytest.mark.parametrize("name", ("folder:", "folder:/nowhere", "folder: x"))
def test_no_folder(store, name):
    refused(store, "folder", dataset=name)


def test_folder_limits(store, tmp_path):
    path = folder_of(tmp_path / "bilder")
    refused(store, "ipc must be a whole number from 1 to 4", dataset=f"folder:{path}", ipc=5)
    refused(store, "n_test must be between 2 .* and 8", dataset=f"folder:{path}", n_test=9)
    refused(store, "n_test must be between 2 .* and 8", dataset=f"folder:{path}", n_test=1)


def test_a_small_folder_runs(store, tmp_path):
    "Four images a class, fewer than any preset's batch of real images: the preset gives way, an explicit value does not"
    folder = f"folder:{folder_of(tmp_path / 'bilder')}"
    refused(
        store,
        "APGD-T needs at least 4 classes, folder:bilder has 2: choose other attacks",
        dataset=folder,
    )
    cell = accepted(store, dataset=folder, attacks="fgsm@2/255,pgd@2/255@10")
    assert 1 <= cell.options["batch_real"] <= 4 and cell.n_test == 8
    refused(
        store,
        "batch_real must be a whole number from 1 to 4",
        dataset=folder,
        attacks="fgsm",
        options={"batch_real": 64},
    )


def short(cell):
    return replace(cell, recipe=replace(cell.recipe, epochs=3, check_every=1))


def test_blanks_and_letters(tmp_path):
    "Store, out and data under paths with blanks and letters beyond ASCII"
    path, store, out = folder_of(tmp_path / "dätä ☃ 1" / "bilder ö"), tmp_path / "störe 2", tmp_path / "øut 3"
    cell = short(
        plan_cell(
            dataset=f"folder:{path}",
            data_root=str(path.parent),
            store=str(store),
            out=str(out),
            ipc=2,
            options={"iterations": 1, "batch_real": 2},
            **{**TINY, "n_test": 4},
        )
    )
    rows = write_out(run_stages(cell))
    assert [asdict(r) for r in read_results(out)] == [asdict(r) for r in rows] and rows[0].n == 4
    assert {p.name for p in store.iterdir()} == {"distil", "train", "attack", "store.json", ".locks"}
    again = plan_cell(
        distilled=str(out / "set-dm"), dataset=f"folder:{path}", store=str(store), **{**TINY, "n_test": 4}
    )
    assert (again.method, again.ipc) == ("dm", 2)


# Ready sets and models


@pytest.fixture
def ready(tmp_path, data):
    "A distilled set on disk"
    return save_set(distiller["random"](data, 2, seed=3), tmp_path / "sét")


def test_ready_set(store, ready):
    cell = accepted(store, distilled=str(ready))
    assert (cell.method, cell.ipc) == ("random", 2)
    named = accepted(store, distilled=str(ready / "set.safetensors"), method="dm", ipc=2)
    assert (named.method, named.ipc) == ("dm", 2), "what is said counts"
    assert accepted(store, distilled=str(ready), method="unknown").method == "unknown"


@pytest.mark.parametrize(
    "given, say",
    (
        *((dict(ipc=v), "ipc must be") for v in (0, -1, 1.5, True, "x")),
        (dict(method="two words"), "method names what made the set"),
        (dict(method="../x"), "method names what made the set"),
        (dict(method=""), "method"),
        (dict(options={"iterations": 3}), "options"),
        (dict(dataset="cifr10"), "did you mean 'cifar10'"),
        (dict(checkpoint="/nowhere.safetensors"), "checkpoint"),
    ),
)
def test_ready_set_and_other_parameters(store, ready, given, say):
    refused(store, say, **{"distilled": str(ready), **given})


@pytest.mark.parametrize("name", ("distilled", "checkpoint"))
@pytest.mark.parametrize(
    "path", ("/nowhere", ".", "/dev/null", "nul\0byte", "x" * 300, "~nobody-of-this-name/x", " ")
)
def test_no_such_file(store, tmp_path, monkeypatch, name, path):
    monkeypatch.chdir(tmp_path)
    refused(store, name.removesuffix("led"), **{name: path})


def test_not_safetensors(store, tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "x.pt")
    (tmp_path / "y.safetensors").write_text("hello")
    save_file({"x": torch.zeros(1)}, tmp_path / "z.safetensors")
    refused(store, "does not fit the networks here", checkpoint=str(tmp_path / "x.pt"))
    refused(store, "no container that is known here", checkpoint=str(tmp_path / "y.safetensors"))
    refused(store, r"the images have shape \[1\]", distilled=str(tmp_path / "z.safetensors"))
    refused(store, "does not fit the networks here", checkpoint=str(tmp_path / "z.safetensors"))
    refused(store, "give its file as checkpoint", normalise="pixels")


SPECS = {
    "cifar10": Spec("cifar10", 10, 32, 3, (0.5,) * 3, (0.2,) * 3),
    "mnist": Spec("mnist", 10, 28, 1, (0.1,), (0.3,)),
    "usps": Spec("usps", 10, 32, 1, (0.1,), (0.3,)),
    "five": Spec("digits", 5, 32, 1, (0.3,), (0.3,)),
    "colour": Spec("digits", 10, 32, 3, (0.3,) * 3, (0.3,) * 3),
}


@pytest.mark.parametrize("name", SPECS)
def test_set_of_another_dataset(store, tmp_path, data, name):
    spec = SPECS[name]
    other = replace(
        distiller["random"](data, 1),
        spec=spec,
        images=torch.rand(spec.classes, spec.channels, spec.size, spec.size),
        labels=torch.arange(spec.classes),
    )
    refused(store, "dataset is digits", distilled=str(save_set(other, tmp_path / "set")))


CHANGES = {
    "no number": (dict(images=torch.full((10, 1, 32, 32), torch.nan)), "not numbers"),
    "no images": (
        dict(images=torch.zeros(0, 1, 32, 32), labels=torch.zeros(0, dtype=torch.int64)),
        "n from 1 on|no images",
    ),
    "shape": (dict(images=torch.zeros(10, 1, 16, 32)), "must have shape"),
    "flat": (dict(images=torch.zeros(10, 1024)), "must have shape"),
    "labels too large": (dict(labels=torch.arange(10) + 1), r"0\.\.9"),
    "negative labels": (dict(labels=torch.arange(10) - 1), r"0\.\.9"),
    "few labels": (dict(labels=torch.arange(9)), "labels"),
    "one label": (dict(labels=torch.tensor(3)), "labels"),
    "float labels": (dict(labels=torch.arange(10).float()), "labels"),
    "labels that are no number": (dict(labels=torch.full((10, 10), torch.nan)), "probabilities"),
    "logits": (dict(labels=torch.eye(10) * 5 - 1), "probabilities"),
    "other classes": (dict(labels=torch.ones(10, 7) / 7), "labels"),
    "teacher": (dict(labels=None, teacher={"key": "0" * 16}), "teacher"),
    "whole numbers": (dict(images=torch.ones(10, 1, 32, 32, dtype=torch.int64)), "images"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_impossible_set(store, tmp_path, data, name):
    change, say = CHANGES[name]
    refused(
        store, say, distilled=str(save_set(replace(distiller["random"](data, 1), **change), tmp_path / "set"))
    )


@pytest.mark.parametrize(
    "card, say",
    (
        ("{", "is not JSON"),
        ("[1]", "card"),
        ("", "is not JSON"),
        (dict(foo=3), "foo"),
        (dict(spec=None), "spec"),
        (dict(spec={"name": "digits"}), "spec"),
        (dict(space="normalised"), "space: pixels"),
        (dict(ipc="x"), "ipc"),
        (dict(ipc=-3), "ipc"),
        (dict(method=5), "method"),
        (dict(method="../../evil"), "method"),
        (dict(seed="x"), "seed"),
    ),
)
def test_bad_card(store, ready, card, say):
    file = ready / "set.json"
    file.write_text(card if isinstance(card, str) else json.dumps(json.loads(file.read_text()) | card))
    refused(store, say, distilled=str(ready))


def test_set_without_a_card(store, ready):
    "It says neither method nor ipc: unknown and null, never the defaults; and it is trained like any small set, not like a whole training set"
    (ready / "set.json").unlink()
    cell = accepted(store, distilled=str(ready))
    assert (cell.method, cell.ipc) == ("unknown", None)
    assert cell.recipe == accepted(store, distilled=str(ready), ipc=2).recipe
    assert "None" not in cell.out.name


def test_labels_belong_to_the_key(store, tmp_path, data):
    "The same images with other labels are another set: nothing of the first may be found for the second"
    hard = distiller["random"](data, 1)
    soft = replace(hard, labels=torch.full((10, 10), 0.1))
    cells = [
        accepted(store, distilled=str(save_set(dset, tmp_path / name)), **TINY)
        for name, dset in (("hard", hard), ("soft", soft))
    ]
    assert cells[0].key != cells[1].key and distil_cell(cells[0]).key != distil_cell(cells[1]).key


def model_file(path, data, network="ConvNetD3-w4", **card):
    "A model as `write_out` leaves it"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in make_network(network, data.spec).state_dict().items()}, path)
    if card:
        path.with_suffix(".json").write_text(json.dumps(card | {"network": network}))
    return str(path)


def test_checkpoint(store, tmp_path, data, monkeypatch):
    "A ready model is attacked: nothing is distilled, nothing trained; method, ipc and network are those of its card"
    for name in ("dm", "random"):
        refusing = functools.wraps(distiller[name])(lambda *a, **k: pytest.fail("a set was distilled"))
        monkeypatch.setitem(distiller, name, refusing)
    monkeypatch.setattr(stages_module, "fit", lambda *a, **k: pytest.fail("a model was trained"))
    file = model_file(
        tmp_path / "mödel 1.safetensors", data, dataset="digits", method="dm", ipc=1, seed=0, key="k"
    )
    cell = accepted(store, checkpoint=file, n_test=10, attacks="fgsm@8/255")
    assert (cell.method, cell.ipc, cell.network, cell.n_models) == ("dm", 1, "ConvNetD3-w4", 1)
    rows = run_stages(cell).rows
    assert [(r.method, r.ipc, r.network, r.attack) for r in rows] == [("dm", 1, "ConvNetD3-w4", "fgsm")]
    bare = accepted(
        tmp_path / "other",
        checkpoint=model_file(tmp_path / "bare.safetensors", data),
        network="ConvNetD3-w4",
        n_test=10,
        attacks="none",
    )
    assert [(r.method, r.ipc) for r in run_stages(bare).rows] == [("unknown", None)]


@pytest.mark.parametrize(
    "given, card, say",
    (
        (
            dict(network="ConvNetD3-w8"),
            {},
            "do not fit the network ConvNetD3-w8: .* set network=ConvNetD3-w4",
        ),
        (dict(network="ResNet18"), {}, "do not fit"),
        (dict(network="no_such:net"), {}, "cannot be imported"),
        (dict(normalise="zca"), {}, "normalise must be auto, one of dc"),
        (dict(network="ConvNetD3-w4"), dict(normalise={"mean": 1}), "normalise.mean must be a list"),
        *((dict(network="ConvNetD3-w4", ipc=v), {}, "ipc must be") for v in (0, -1, "a", 1.5)),
        (dict(network="ConvNetD3-w4"), dict(dataset="cifar10"), "cifar10"),
        (dict(network="ConvNetD3-w4"), "[1]", "card"),
        (dict(network="ConvNetD3-w4"), "{", "JSON|card"),
        (dict(network="ConvNetD3-w4"), dict(method=["x"]), "method|card"),
        (dict(network="ConvNetD3-w4"), dict(ipc="y"), "ipc|card"),
        (dict(network="ConvNetD3-w4", n_models=3), {}, "n_models"),
        (dict(network="ConvNetD3-w4", options={"iterations": 2}), {}, "options"),
        (dict(network="ConvNetD3-w4", method="two words"), {}, "method names what made the set"),
    ),
)
def test_bad_checkpoint(store, tmp_path, data, given, card, say):
    file = model_file(tmp_path / "model.safetensors", data)
    if card:
        Path(file).with_suffix(".json").write_text(card if isinstance(card, str) else json.dumps(card))
    refused(store, say, checkpoint=file, **given)


@pytest.mark.parametrize("content", ('{"key": "zzz", "name": "another"}', "[1]", "{", None))
def test_out_of_another_cell(store, tmp_path, content):
    (out := tmp_path / "out").mkdir()
    if content is None:
        (out / "cell.json").mkdir()
    else:
        (out / "cell.json").write_text(content)
    refused(store, "^out", out=str(out))


def test_nothing_is_planned_on_the_way(store, monkeypatch):
    "Refusing draws no network and reads no data when a word alone is wrong"
    monkeypatch.setattr(cell_module, "load_data", lambda *a: pytest.fail("data were read"))
    monkeypatch.setattr(cell_module, "make_network", lambda *a, **k: pytest.fail("a network was made"))
    for given in (
        dict(methd=1),
        dict(method="x"),
        dict(protocol="x"),
        dict(select="x"),
        dict(attacks="x"),
        dict(device="x"),
        dict(seed=-1),
        dict(n_models=0),
        dict(n_test=0),
        dict(store="/dev/null"),
    ):
        refused(store, ".", **given)


def test_every_parameter_is_checked(store):
    "No parameter takes a value of a strange kind"
    for name in PARAMETERS:
        refused(store, name, **{name: object()})


# Function calls

NAMES = ("uniform", "fgsm", "pgd", "cw", *PARTS, "autoattack")


@pytest.fixture(scope="module")
def world(data):
    net = make_network("ConvNetD3-w4", data.spec).eval()
    return net, as_pixels(data.test_images[:12]), data.test_labels[:12]


@pytest.mark.parametrize("name", NAMES)
def test_every_attack_refuses(world, data, name):
    "The public function of each attack, not only the one entrance that all share"
    net, x, y = world
    preset = "aa-quick" if name in (*PARTS, "autoattack") else ""
    two = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1024, 2)).eval()
    for say, args in (
        ("un-normalised", (net, x * 2 - 1, y)),
        ("un-normalised", (net, x * 255, y)),
        ("as_pixels", (net, data.test_images[:12], y)),
        ("NaN", (net, x * torch.nan, y)),
        ("need at least 11 logits", (net, x, y * 0 + 10)),
        ("0 or more", (net, x, y - 10)),
        ("model returns 2", (two, x, y)),
        ("training mode", (make_network("ConvNetD3-w4", data.spec).train(), x, y)),
    ):
        one_line(say, partial(attack[name], *args, "8/255", preset=preset))
    one_line("eps must be", lambda: attack[name](net, x, y, AttackConfig("pgd")))


def test_evaluate_refuses(world, data):
    net, wide = world[0], torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1024, 11)).eval()

    def run(model=net, of=data, configs="fgsm", **more):
        return evaluate(model, of, configs, **{"n_test": 10, **more})

    one_line("training mode", lambda: run(make_network("ConvNetD3-w4", data.spec).train()))
    for n in (0, 9, 501, "10", 1.5):
        one_line("n_? ?.*must be", partial(run, n_test=n))
    one_line("seed", lambda: run(seed=-1))
    wrong = make_data(data.spec, data.train_images, data.train_labels, data.test_images, data.test_labels + 5)
    one_line("logits", lambda: run(of=wrong, n_test=None))
    one_line("11 logits.*10 classes|10 classes.*11", lambda: run(wide))
    one_line("or a list of AttackConfig", lambda: run(configs=["fgsm@8/255"]))
    one_line("or a list of AttackConfig", lambda: run(configs=AttackConfig("fgsm")))
    one_line("did you mean 'fgsm'", lambda: run(configs="fgms@8/255"))


@pytest.mark.parametrize("name", [n for n in CHANGES if n != "labels that are no number"])
@pytest.mark.parametrize("looking", (False, True))
def test_fit_refuses(data, name, looking):
    "A set that cannot be trained on is refused before the first step"
    dset = replace(distiller["random"](data, 1), **CHANGES[name][0])
    one_line(
        "images|labels|numbers",
        lambda: fit(dset, network="ConvNetD3-w4", recipe=Recipe(epochs=2), test=data if looking else None),
    )


@pytest.mark.parametrize(
    "change",
    (
        dict(lr=-1),
        dict(lr="a"),
        dict(momentum=-1),
        dict(epochs=0),
        dict(batch=0),
        dict(order="x"),
        dict(augment="foo"),
        dict(check_every=-1),
        dict(check_n=3),
        dict(labels="x"),
        dict(select="best_test"),
    ),
)
def test_recipe(data, change):
    test = None if change == dict(select="best_test") else data
    one_line(
        next(iter(change)) + "|augment|^n must",
        lambda: fit(
            distiller["random"](data, 1),
            network="ConvNetD3-w4",
            recipe=Recipe(**{"epochs": 1, **change}),
            test=test,
        ),
    )


def test_fit_refuses_other_test_images(data):
    small = make_data(
        Spec("small", 10, 16, 1, (0.5,), (0.2,)),
        data.train_images[..., :16, :16],
        data.train_labels,
        data.test_images[..., :16, :16],
        data.test_labels,
    )
    one_line(
        "test",
        lambda: fit(
            distiller["random"](data, 1), network="ConvNetD3-w4", recipe=Recipe(epochs=1), test=small
        ),
    )


@pytest.mark.parametrize(
    "given",
    (
        dict(ipc=0),
        dict(ipc=1.5),
        dict(ipc=True),
        dict(ipc=125),
        {},
        dict(ipc=1, seed=-1),
        dict(ipc=1, itr=1),
        dict(ipc=1, iterations=-1),
        dict(ipc=1, batch_real=125),
        dict(ipc=1, lr_img=0),
        dict(ipc=1, lr_img=float("inf")),
        dict(ipc=1, momentum=-1),
        dict(ipc=1, momentum="a"),
        dict(ipc=1, init="z"),
        dict(ipc=1, augment="z"),
        dict(ipc=1, network="Conv"),
        dict(ipc=1, device="cuda:77"),
    ),
)
def test_dm_refuses(data, given):
    one_line(
        ".",
        lambda: distiller["dm"](
            data, **{"network": "ConvNetD3-w4", "iterations": 1, "batch_real": 2, **given}
        ),
    )


# Damage in the store


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    "A finished tiny cell: its store and rows"
    store = tmp_path_factory.mktemp("finished") / "store"
    return store, run_stages(tiny_cell(store)).rows


def tiny_cell(store):
    return short(plan_cell(store=str(store), options={"iterations": 1, "batch_real": 2}, **TINY))


def same(rows):
    return [{k: v for k, v in asdict(r).items() if k not in ("seconds", "peak_mb", "commit")} for r in rows]


def cut(file):
    file.write_bytes(file.read_bytes()[:-7])


def flip(file):
    file.write_bytes(bytes([*file.read_bytes()[:-1], file.read_bytes()[-1] ^ 1]))


def remove(file):
    file.unlink()


def garble(file):
    file.write_bytes(b"\xff{")


def unlist(file):
    file.write_text(json.dumps(json.loads(file.read_text()) | {"files": {}}))


def misname(file):
    file.write_text(json.dumps(json.loads(file.read_text()) | {"key": "0" * 16}))


def retype(file):
    file.write_text(json.dumps(json.loads(file.read_text()) | {"files": ["x"]}))


@pytest.mark.parametrize(
    "stage, name, harm",
    (
        ("distil", "set.safetensors", flip),
        ("distil", "set.json", remove),
        ("distil", "card.json", garble),
        ("distil", "card.json", unlist),
        ("distil", "card.json", misname),
        ("distil", "card.json", retype),
        ("train", "last.safetensors", cut),
        ("train", "training.json", garble),
        ("train", "card.json", remove),
        ("attack", "flags.safetensors", flip),
        ("attack", "evaluation.json", cut),
    ),
)
def test_damage_is_named_and_mended(finished, tmp_path, stage, name, harm):
    store, rows = finished
    shutil.copytree(store, tmp_path / "store")
    (folder,) = (tmp_path / "store" / stage).iterdir()
    harm(folder / name)
    with pytest.warns(DamagedArtefact) as said:
        again = run_stages(tiny_cell(tmp_path / "store")).rows
    assert [f"{stage}/{folder.name}" in str(w.message) and name in str(w.message) for w in said] == [True], (
        "one warning, which names it"
    )
    assert same(again) == same(rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DamagedArtefact)
        assert same(run_stages(tiny_cell(tmp_path / "store")).rows) == same(rows), "mended"


def test_a_file_in_place_of_an_artefact(tmp_path):
    "Odd things where a folder should be: named and replaced"
    (tmp_path / "distil").mkdir()

    def put(how):
        how(tmp_path / "distil" / "k")
        with pytest.warns(DamagedArtefact, match="distil/k"):
            return cached(
                Store(tmp_path),
                "distil",
                "k",
                {},
                lambda state, save: "made",
                lambda v, f: (f / "x").write_text(v),
                lambda f: (f / "x").read_text(),
            )

    assert put(lambda p: p.write_text("a file")) == "made"
    shutil.rmtree(tmp_path / "distil" / "k")
    assert put(lambda p: p.symlink_to("/nowhere")) == "made"


def test_a_damaged_state_is_dropped(tmp_path):
    from ddrobust_nb.results.store import state_path

    state_path(Store(tmp_path), "train", "k").parent.mkdir()
    state_path(Store(tmp_path), "train", "k").write_bytes(b"half a file")
    seen = []
    with pytest.warns(DamagedArtefact, match="train/k.state"):
        cached(
            Store(tmp_path),
            "train",
            "k",
            {},
            lambda state, save: seen.append(state),
            lambda v, f: (f / "x").write_text("x"),
            lambda f: None,
        )
    assert seen == [None] and not state_path(Store(tmp_path), "train", "k").exists()

"""Training and distillation leave the device alone: nothing in their loops waits for it or copies from it.

The source is read, not run, so this holds without a GPU. Every function of these files counts as called in a loop, except those named below with the reason, and these may
not be called in a loop either; of a function that is a whole run (a distiller, or one with a progress bar) only its loops count. At a look (`if look`, `if due`: now and then)
and where a state is saved, everything may be read."""

import ast
from pathlib import Path

import pytest
import torch

import ddrobust_nb
from ddrobust_nb.foundations.data import as_pixels
from ddrobust_nb.training.distilled import DistilledSet
from ddrobust_nb.training.distiller import own_options
from ddrobust_nb.distillers.sre2l import squeeze, teacher_config
from ddrobust_nb.foundations.networks import make_network
from ddrobust_nb.training.fit import Recipe, fit, weights_key
from test_distillers import WORKING, distil
from tiny import NETWORK, tiny_data

PACKAGE = Path(ddrobust_nb.__file__).parent
SCANNED = [
    PACKAGE / "training" / "fit.py",
    PACKAGE / "foundations" / "predict.py",
    PACKAGE / "fast" / "queries.py",
    *sorted((PACKAGE / "distillers").glob("[!_]*.py")),
    *(PACKAGE / "attacks" / f"{name}.py" for name in ("fgsm", "pgd", "cw", "apgd", "fab", "square")),
]
WAITS = {
    "item",
    "cpu",
    "cuda",
    "numpy",
    "tolist",
    "synchronize",
    "nonzero",
}  # Methods that wait for the device
CASTS = {"float", "int", "bool"}  # Of a tensor they wait as well,
TRUTHS = {"isfinite", "isnan", "any", "all", "equal", "allclose"}  # and so does `if` of one of these
LOOKS = {"look", "due", "should_check"}  # What guards a look

COLD = {
    "predict": {
        "predict": "test images, at a look and at the end",
        "accuracy": "at a look and at the end",
    },
    "fit": {
        "weights": "at a look, at a save and at the end",
        "weights_key": "once per teacher",
        "state": "at a save",
        "_look": "at a look",
        "_mean_loss": "at a look",
        "_finish": "at the end",
        "relabelling": "before the run",
        "_training_part": "before the run",
        "check_recipe": "before the run",
    },
    "baselines": {
        "kmeans": "on the CPU",
        "nearest_distinct": "on the CPU",
        "herd": "once a class",
    },
    "images": {"check_loss": "at a look"},
    "dc": {"_state": "at a save", "pixels": "at a look and at the end"},
    "dm": {"_state": "at a save"},
    "mtt": {
        "train_expert": "copies the weights once an epoch",
        "add_snapshot": "copies the weights once an epoch",
        "_open_expert": "before the run",
        "_read_card": "before the run",
        "_check_snapshots": "before the run",
        "__init__": "before the run",
        "state": "at a save",
        "_check_finite": "at a look",
    },
    "sre2l": {
        "squeeze": "before the run",
        "_check_loss": "at a look",
        "state": "at a save",
        "images": "at a save and after each piece",
        "pixels": "at a look and at the end",
        "as_jpeg": "at the end",
        "_labels_of": "at the end",
    },
    "queries": {"__init__": "once per chunk", "passes_before_compiling": "once per chunk"},
    "fgsm": {"show_adversarial": "a picture"},
    "apgd": {"remaining": "at a look", "apgd_t_rows": "asks between two targets which images are left"},
    "fab": {"fab_t": "asks between two targets which images are left"},
    "square": {
        "own_luck": "on the CPU, before the search",
        "square_rows": "luck is drawn on the CPU, before the search",
        "_ask": "looks which candidates are new, never on a GPU",
        "_with_stripes": "before the search",
        "_worthwhile": "at a look",
    },
}
ALLOWED_CALLS = {
    ("sre2l", "_recover_step", "images"),
    ("square", "_try_squares", "_ask"),
    ("square", "square_search", "_with_stripes"),
}  # After each piece; see there; before the loop


def waits(source, file="fit"):  # noqa: C901 - one branch for each kind of node
    "What hot code of a file reads from the device: [(line, function, what)]"
    found, cold = [], {name for names in COLD.values() for name in names}

    def visit(node, function, hot):
        is_function = isinstance(node, ast.FunctionDef)
        ends_the_run = isinstance(node, ast.Raise)
        if ends_the_run or (is_function and node.name in COLD.get(file, {})):
            return
        if is_function:
            function = node.name
            hot = not whole_run(node)
        elif isinstance(node, (ast.For, ast.While)):
            hot = True
        elif isinstance(node, (ast.If, ast.IfExp)) and names(node.test) & LOOKS:
            for part in hot_branch(node):
                visit(part, function, hot)
            return
        what = wait_of(node, cold) if hot else None
        if what and not is_allowed(file, function, what):
            found.append((node.lineno, function, what))
        if isinstance(node, ast.Call) and names(node.func) & {"autosave"}:
            return  # what is made for a save
        for child in ast.iter_child_nodes(node):
            visit(child, function, hot)

    visit(ast.parse(source), "", False)
    return found


def is_allowed(file, function, what):
    "Whether a call may wait there"
    return (file, function, what.strip(".()")) in ALLOWED_CALLS


def hot_branch(node):
    "What runs in every pass of `if look: ... else: ...`"
    is_negated = isinstance(node.test, ast.UnaryOp)
    part = node.body if is_negated else node.orelse
    return part if isinstance(part, list) else [part]


def names(node):
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


def whole_run(function):
    "A distiller, or a function with a progress bar or that calls the one of `fit`: called once, and the loop is in it"
    return bool(
        {"distiller", "progress", "train_epochs", "_match_all", "recover"}
        & set.union(names(function), *map(names, function.decorator_list))
    )


def drawn(node):
    "Whether this is `torch.rand...(..., generator=...)`: drawn on the CPU"
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr.startswith("rand")
        and any(k.arg == "generator" for k in node.keywords)
    )


def wait_of(node, cold):
    "What a piece of code reads from the device, None for nothing"
    if isinstance(node, (ast.If, ast.IfExp, ast.While, ast.Assert)):
        return next(
            (
                f"{n.func.attr}() in a condition"
                for n in ast.walk(node.test)
                if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute) and n.func.attr in TRUTHS
            ),
            None,
        )
    if not isinstance(node, ast.Call):
        return None
    f, first = node.func, node.args[0] if node.args else None
    name = f.attr if isinstance(f, ast.Attribute) else f.id if isinstance(f, ast.Name) else ""
    if isinstance(f, ast.Attribute) and name in WAITS and not drawn(f.value):
        return f".{name}()"
    if (
        isinstance(f, ast.Attribute)
        and name == "to"
        and isinstance(first, ast.Constant)
        and first.value == "cpu"
    ):
        return ".to('cpu')"
    if isinstance(f, ast.Name) and name in CASTS and not isinstance(first, ast.Constant):
        return f"{name}()"
    return f"{name}()" if name in cold else None


@pytest.mark.parametrize("path", SCANNED, ids=lambda p: p.stem)
def test_no_loop_waits_for_the_device(path):
    found = waits(path.read_text(encoding="utf-8"), path.stem)
    assert not found, "\n".join(f"{path.name}:{line} in {function}: {what}" for line, function, what in found)


PLANTED = """
@distiller
def some(data, ipc, *, iterations=10, watch=None, save=None):
    z = start(data).to(device)
    for it in range(iterations):
        loss = step(z)
        look = it % 20 == 0
        if look and watch: watch(it, loss.item(), z.cpu())
        bar.step(note=f"{float(loss)}" if look else "")
        HERE
        autosave(lambda: dict(images=z.cpu()))
    return z.cpu()

def step(z):
    z = z.roll(torch.randint(4, (2,), generator=g).tolist(), (2, 3))
    THERE
    return z.sum()
"""


@pytest.mark.parametrize(
    "code, what",
    [
        ("total += loss.item()", ".item()"),
        ("kept.append(z.detach().cpu())", ".cpu()"),
        ("x = x.cuda()", ".cuda()"),
        ("x = z.numpy()", ".numpy()"),
        ("y = z.tolist()", ".tolist()"),
        ("x = z.to('cpu')", ".to('cpu')"),
        ("total += float(loss)", "float()"),
        ("torch.cuda.synchronize()", ".synchronize()"),
        ("f = lambda: loss.item()", ".item()"),
        ("if not torch.isfinite(loss): stop()", "isfinite() in a condition"),
        ("if not look: loss.item()", ".item()"),
        ("kept = weights(net)", "weights()"),
        ("for k in range(3): z[k].item()", ".item()"),
        ("def inner(): return z.item()", ".item()"),
    ],
)
def test_the_scan_sees_what_it_is_for(code, what):
    assert not waits(PLANTED.replace("HERE", "pass").replace("THERE", "pass"))
    assert [w for _, _, w in waits(PLANTED.replace("THERE", "pass").replace("HERE", code))] == [what]
    assert [w for _, _, w in waits(PLANTED.replace("THERE", code).replace(" HERE", " pass"))] == [what]


def test_what_is_excused_exists():
    "Else a function that was renamed would leave its excuse to the next of that name"
    for file, functions in COLD.items():
        source = next(p for p in SCANNED if p.stem == file).read_text(encoding="utf-8")
        assert set(functions) <= {
            n.name for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef)
        }, file


def test_nothing_is_put_on_a_gpu_by_name():
    "Devices are arguments: `x.to(device)`, so that the same code runs everywhere"
    for path in sorted(PACKAGE.rglob("*.py")):
        for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (
                isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute) and n.func.attr == "cuda"
            ), f"{path.name}:{n.lineno}: .cuda()"


# ---- on a GPU: what tests/distillers/test_distillers.py and tests/training/test_fit.py do not ask

GPU = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"))
DEVICES = [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=GPU)]
SHORT = Recipe(epochs=3, batch=6, check_every=0)


@pytest.fixture(scope="module")
def data():
    return tiny_data()


def relabelled(data):
    "A set that a teacher labels, and the teacher"
    teacher = make_network("ResNet18-w8", data.spec, seed=5)
    how = dict(
        key=weights_key(teacher.state_dict()),
        temperature=4.0,
        teacher_bn="eval",
        pad=0,
        crop_min=0.4,
        flip=True,
        mix="cutmix",
    )
    return DistilledSet(
        data.spec, as_pixels(data.train_images[:12]), data.train_labels[:12], teacher=how
    ), teacher


def close(a, b):
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p.cpu(), q.cpu(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("device", DEVICES[1:])
def test_a_teacher_labels_alike_everywhere(device, data):
    dset, teacher = relabelled(data)
    a, b, c = (
        fit(dset, network=NETWORK, recipe=SHORT, device=d, teacher=teacher) for d in ("cpu", device, device)
    )
    close(a, b)
    assert all(torch.equal(p, q) for p, q in zip(b.parameters(), c.parameters()))


@pytest.mark.parametrize("device", DEVICES)
def test_compiled_training_is_the_same_training(device, data, monkeypatch):
    dset, teacher = relabelled(data)
    nets = []
    for rule in ("never", "always"):
        monkeypatch.setenv("DDROBUST_COMPILE", rule)
        nets.append(fit(dset, network=NETWORK, recipe=SHORT, device=device, teacher=teacher))
    close(*nets)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "name", sorted(n for n in WORKING if "iterations" in own_options(n) and n != "sre2l_hard")
)
def test_a_compiled_distiller_gives_the_same_set(name, device, data, monkeypatch):
    monkeypatch.setenv("DDROBUST_COMPILE", "never")
    teacher = {"teacher": [squeezed(name, data)]} if name in ("sre2l", "random_teacher") else {}
    sets = []
    for rule in ("never", "always"):
        monkeypatch.setenv("DDROBUST_COMPILE", rule)
        sets.append(distil(name, data, device=device, **teacher).images)
    torch.testing.assert_close(*sets, atol=1e-4, rtol=0)


def squeezed(name, data):
    "One teacher for both: trained on images this small, it answers a nudge of 1e-7 with 1e-3 after four steps, compiled or not"
    options = {**own_options(name), "squeeze_epochs": 2, "squeeze_batch": 20}
    return squeeze(data, teacher_config(data, "ResNet18-w8", options)[0], device="cpu")

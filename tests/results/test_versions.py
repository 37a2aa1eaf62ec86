"""The code behind a stage may change its numbers only together with its version, else a store would hand out results of the old code as those of the new.

`stage_versions.json` holds, for each stage, its version and a hash of every definition that its results depend on: all that is reached from the
stage's function by following names, registered functions included. Comments, docstrings, annotations and the words of errors do not count.
After a change: `python tests/results/test_versions.py --record`."""

import ast
import functools
import hashlib
import json
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGE, RECORD = HERE.parents[1] / "ddrobust_nb", HERE / "stage_versions.json"
ROOTS = dict(
    expert=["distillers.mtt.train_expert", "distillers.mtt.expert_configs"],
    teacher=["distillers.sre2l.squeeze", "distillers.sre2l.teacher_config"],
    distil=["results.stages.distil_cell"],
    train=["results.stages.train_one", "results.stages.fetch_published"],
    attack=["results.stages.attack_one", "results.stages.load_checkpoint"],
)
ASIDE = (
    "results.store.",
    "results.keys.VERSIONS",
    "foundations.data.subsets",  # which images a dataset has; they enter keys by their fingerprint
    "foundations.core.progress",
    "foundations.core.Autosave",
    "foundations.core.InputError",
    "foundations.core.unknown_name",
    "foundations.core.shown",
    "foundations.data.grid_html",
    "foundations.outside.",
    "training.distilled.describe",
)  # No number depends on these
WORDING = {"annotation", "returns", "type_comment", "type_params", "kind", "ctx"}


parse = functools.cache(ast.parse)


# ---- what a stage depends on


class Code:
    "The definitions of a package, by qualified name without the package: `train.fit`"

    def __init__(self, package):
        self.package, self.nodes, self.names, self.enrolled, trees = package.name, {}, {}, {}, {}
        for path in sorted(package.rglob("*.py")):
            parts = path.relative_to(package).with_suffix("").parts
            trees[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = (
                parse(path.read_text(encoding="utf-8")),
                parts[:-1],
            )
        self.modules = set(trees)
        for module, (tree, folder) in trees.items():
            self.names[module] = {k: v for node in ast.walk(tree) for k, v in self.imported(node, folder)}
        for module, (tree, _) in trees.items():
            for node in tree.body:
                self.define(module, node)
        for module, (tree, _) in trees.items():
            for node in tree.body:
                self.attach(module, node)

    def imported(self, node, folder):
        "(local name, qualified name) of what an import takes from the package"
        if not isinstance(node, ast.ImportFrom):
            return
        source = (node.module or "").split(".") if node.module else []
        if node.level:
            source = [*folder[: len(folder) - node.level + 1], *source]
        elif source[:1] == [self.package]:
            source = source[1:]
        else:
            return
        for a in node.names:
            yield a.asname or a.name, ".".join([*source, a.name])

    def define(self, module, node):
        "Functions, classes and variables"
        targets = (
            node.targets
            if isinstance(node, ast.Assign)
            else [node.target]
            if isinstance(node, (ast.AnnAssign, ast.AugAssign))
            else []
        )
        names = (
            [node.name]
            if hasattr(node, "name")
            else [
                n.id
                for t in targets
                for n in ast.walk(t)
                if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
            ]
        )
        for name in names:
            self.names[module][name] = f"{module}.{name}"
            self.nodes.setdefault(f"{module}.{name}", []).append((module, node))

    def attach(self, module, node):
        """What is decorated with a variable belongs to it: it is enrolled in a registry. A method that is patched into a class
        belongs to the class. Other statements belong to what they mention"""
        patched = any(
            isinstance(d, ast.Name) and d.id == "patch" for d in getattr(node, "decorator_list", ())
        )
        if patched and not node.name.startswith(("_repr", "show")):
            owner = self.resolve(module, node.args.args[0].annotation)
            self.nodes[owner].append((module, node))
        for d in getattr(node, "decorator_list", ()):
            owner = next((self.resolve(module, n) for n in ast.walk(d) if isinstance(n, ast.Name)), None)
            if owner in self.nodes and not hasattr(self.nodes[owner][0][1], "name"):
                self.enrolled.setdefault(owner, []).append(f"{module}.{node.name}")
        if hasattr(node, "name") or isinstance(node, (ast.Import, ast.ImportFrom)):
            return
        targets = getattr(node, "targets", []) or [getattr(node, "target", None)] * (
            not isinstance(node, ast.For)
        )
        targets = [
            t
            for target in targets
            for t in (
                target.elts
                if isinstance(target, ast.Tuple) and all(isinstance(e, ast.Attribute) for e in target.elts)
                else [target]
            )
        ]
        if any(
            isinstance(t, (ast.Name, ast.Tuple)) or isinstance(t, ast.Attribute) and "_repr" in t.attr
            for t in targets
        ):
            return
        attributes = [
            t.value for t in targets if isinstance(t, ast.Attribute)
        ]  # `dm.check = ...` belongs to dm alone
        for n in attributes or ast.walk(node):
            if (
                isinstance(n, ast.Name)
                and (owner := self.resolve(module, n)) in self.nodes
                and (module, node) not in self.nodes[owner]
            ):
                self.nodes[owner].append((module, node))

    def resolve(self, module, node):
        "The qualified name of a name, or of an attribute of a module"
        if isinstance(node, ast.Name):
            return self.names[module].get(node.id)
        if isinstance(node, ast.Attribute) and (of := self.resolve(module, node.value)) in self.modules:
            return f"{of}.{node.attr}"

    def reached(self, roots):
        "Every definition that the roots depend on"
        for root in roots:
            assert root in self.nodes, (
                f"{root} is gone: tell ROOTS in {Path(__file__).name} which function makes this stage"
            )
        found, todo = set(), [*roots]
        while todo:
            name = todo.pop()
            if name in found or name not in self.nodes or name.startswith(ASIDE):
                continue
            found.add(name)
            todo += self.enrolled.get(name, [])
            for module, node in self.nodes[name]:
                todo += [q for n in meaningful(node) if (q := self.resolve(module, n))]
        return found

    def hashes(self, roots):
        return {name: self.hash_of(name) for name in sorted(self.reached(roots))}

    def hash_of(self, name):
        text = ascii([canonical(node) for _, node in self.nodes[name]])
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def versions(self):
        ((_, node),) = self.nodes["results.keys.VERSIONS"]
        return ast.literal_eval(node.value)


def parts(node):
    "(field, value) of all that decides what a node does"
    if isinstance(node, ast.Raise):
        return [("exc", node.exc.func if isinstance(node.exc, ast.Call) else node.exc)]
    fields = {k: v for k, v in ast.iter_fields(node) if k not in WORDING and v is not None and v != []}
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None:
        fields["body"] = node.body[1:]
    return fields.items()


def meaningful(node):
    "A node and all nodes below it that decide what it does"
    yield node
    for _, value in parts(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from meaningful(child)


def canonical(node):
    "Plain lists and texts: the same under every version of Python"
    if isinstance(node, list):
        return [canonical(n) for n in node]
    return (
        [type(node).__name__, *([k, canonical(v)] for k, v in parts(node))]
        if isinstance(node, ast.AST)
        else ascii(node)
    )


# ---- against the record


def read(record):
    return json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}


def now(package=PACKAGE):
    code = Code(package)
    versions = code.versions()
    assert versions.keys() == ROOTS.keys(), (
        f"stages are {sorted(versions)}: bring ROOTS in {Path(__file__).name} in line"
    )
    return {stage: dict(version=versions[stage], code=code.hashes(roots)) for stage, roots in ROOTS.items()}


def complaint(stage, was, new, same_results=False):
    "What stands against recording a stage"
    if new["version"] < was["version"]:
        return f"the version of {stage} fell from {was['version']} to {new['version']}: a number that was used is never used again"
    changed = sorted(n for n, h in was["code"].items() if new["code"].get(n) != h)
    if new["version"] > was["version"] or same_results or not changed:
        return ""
    return (
        f"the code behind stage {stage} changed, its version ({was['version']}) did not: {', '.join(changed)}.\n"
        f"If any result can change: raise {stage} in VERSIONS (nbs/results/15_keys.ipynb), export, then `python tests/results/test_versions.py --record`.\n"
        f"If provably none can (a refactoring): `python tests/results/test_versions.py --record --same-results`."
    )


def check(stage, was, new):
    assert was, f"stage {stage} is not recorded: `python tests/results/test_versions.py --record`"
    if said := complaint(stage, was, new):
        raise AssertionError(said)
    assert was == new, (
        f"stage {stage} is recorded as version {was['version']} with {len(was['code'])} definitions and is now {new['version']} with {len(new['code'])}: `python tests/results/test_versions.py --record`"
    )


def write(package=PACKAGE, record=RECORD, same_results=False):
    "Record what is now; refused as a whole when something stands against it"
    was, new = read(record), now(package)
    said = [
        s for stage in new if stage in was and (s := complaint(stage, was[stage], new[stage], same_results))
    ]
    if said:
        sys.exit("\n".join(["nothing recorded:", *said]))
    record.write_text(json.dumps(new, indent=1) + "\n", encoding="utf-8")
    return {stage: (n["version"], len(n["code"])) for stage, n in new.items()}


if __name__ == "__main__":
    if "--record" not in sys.argv or set(sys.argv[1:]) - {"--record", "--same-results"}:
        sys.exit("usage: python tests/results/test_versions.py --record [--same-results]")
    print(write(same_results="--same-results" in sys.argv))
    sys.exit()


# ---- the tests

import pytest  # noqa: E402 (recording needs nothing but Python)


@pytest.mark.parametrize("stage", ROOTS)
def test_a_version_rises_with_the_code(stage):
    check(stage, read(RECORD).get(stage), now()[stage])


def test_what_a_stage_depends_on():
    found = {stage: set(n["code"]) for stage, n in now().items()}
    everywhere = {
        "foundations.core.derive_seed",
        "foundations.networks.ConvNet",
        "foundations.networks.ResNet18",
        "foundations.networks.Normalise",
        "foundations.networks.make_network",
        "foundations.data.as_pixels",
    }
    training = {
        "training.fit.fit",
        "training.fit.lr_at",
        "training.fit._step",
        "training.fit.Recipe",
        "foundations.augment.apply_dsa",
        "foundations.augment.brightness",
        "foundations.augment.rotate",
    }
    for stage, names in found.items():
        assert everywhere <= names, stage
    assert (
        training
        | {
            "distillers.baselines.random",
            "distillers.baselines.kmeans",
            "distillers.baselines.herd",
            "distillers.dm.dm_loss",
            "distillers.dm._dm_step",
        }
        <= found["distil"]
    )
    assert (
        training | {"results.stages.write_model", "training.fit._finish", "foundations.data.test_subset"}
        <= found["train"]
    )
    assert {
        "attacks.pgd.ascend",
        "attacks.cw.margin_loss",
        "attacks.fgsm.fgsm",
        "attacks.autoattack.run_part",
        "attacks.running.unit_noise",
        "attacks.attack.AttackConfig",
        "attacks.attack.AA_PRESETS",
        "attacks.robustness.run_group",
        "foundations.data.test_subset",
    } <= found["attack"]
    for names in found.values():
        assert not {
            n
            for n in names
            if n.startswith(
                ("results.report", "frequency", "results.store", "results.paper", "results.doctables")
            )
        }
    assert not any(n.startswith("attacks.") for n in found["distil"] | found["train"]) and not any(
        n.startswith("distillers.") for n in found["train"] | found["attack"]
    )
    assert {
        "distillers.dc._step",
        "distillers.dc.rows_apart",
        "distillers.mtt.adjoint",
        "distillers.mtt.train_expert",
        "distillers.tesla.tesla",
        "distillers.sre2l._recover_step",
    } <= found["distil"]
    assert (
        training <= found["expert"] & found["teacher"]
        and "distillers.mtt.adjoint" not in found["expert"]
        and "distillers.sre2l.recover" not in found["teacher"]
    )
    assert not any(
        n in names
        for names in found.values()
        for n in ("training.distilled.show_set", "foundations.data.digits", "foundations.data.image_grid")
    )


@pytest.fixture
def copy(tmp_path):
    "A copy of the package with its own record, and a function that edits a module of it"
    package, record = tmp_path / "ddrobust_nb", tmp_path / "record.json"
    shutil.copytree(
        PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__", "paper_data", "preset_data")
    )
    write(package, record)

    def edit(module, old, new):
        path = package / f"{module}.py"
        text = path.read_text(encoding="utf-8")
        assert old in text, f"{old!r} is no longer in {module}: choose another line for this test"
        path.write_text(text.replace(old, new), encoding="utf-8")

    def failing():
        bad, was, new = {}, read(record), now(package)
        for stage in ROOTS:
            try:
                check(stage, was.get(stage), new[stage])
            except AssertionError as e:
                bad[stage] = str(e)
        return bad

    return package, record, edit, failing


def test_words_do_not_matter(copy):
    _, _, edit, failing = copy
    edit("training/fit", '"Learning rate in one epoch"', '"The rate"')
    edit("training/fit", "epoch: int,  # From 0", "epoch,  # Counted from nought")
    edit("foundations/core", "is not on this machine", "is elsewhere")
    edit("results/report", "def print_report(", "def print_report_of(")
    assert failing() == {}


@pytest.mark.parametrize(
    "module, old, new, stages",
    [
        ("training/fit", "momentum: float = 0.9\n", "momentum: float = 0.8\n", "expert teacher distil train"),
        (
            "training/fit",
            'generator(seed, "order", epoch)',
            'generator(seed, "orders", epoch)',
            "expert teacher distil train",
        ),
        (
            "foundations/augment",
            "return x + per_image(shift, x)",
            "return x - per_image(shift, x)",
            "expert teacher distil train",
        ),
        ("distillers/dm", ".mean(1)", ".sum(1)", "distil"),
        ("distillers/dm", "momentum: float = 0.5", "momentum: float = 0.4", "distil"),
        ("attacks/pgd", ".sign()", ".tanh()", "attack"),
        ("attacks/attack", "queries=300", "queries=301", "attack"),
        ("foundations/networks", "nn.AvgPool2d(2)", "nn.AvgPool2d(3)", "expert teacher distil train attack"),
        ("foundations/core", '"/".join', '"-".join', "expert teacher distil train attack"),
        ("results/stages", 'folder / "right.safetensors"', 'folder / "flags.safetensors"', "train"),
    ],
)
def test_a_change_is_noticed_where_it_counts(module, old, new, stages, copy):
    _, _, edit, failing = copy
    edit(module, old, new)
    bad = failing()
    assert set(bad) == set(stages.split())
    assert all(
        module.replace("/", ".") in text and "raise" in text and "--record" in text for text in bad.values()
    )


def test_recording(copy):
    package, record, edit, failing = copy
    before = record.read_text()
    edit("attacks/pgd", ".sign()", ".tanh()")
    with pytest.raises(SystemExit, match="nothing recorded:\nthe code behind stage attack changed"):
        write(package, record)
    assert record.read_text() == before
    versions = now(package)
    cell = (package / "results" / "keys.py").read_text(encoding="utf-8")
    raised = {s: n["version"] + (s == "attack") for s, n in versions.items()}
    (package / "results" / "keys.py").write_text(
        "\n".join(
            f"VERSIONS = {raised!r}" if line.startswith("VERSIONS = ") else line for line in cell.splitlines()
        ),
        encoding="utf-8",
    )
    assert "--record" in failing()["attack"] and set(failing()) == {"attack"}
    assert write(package, record)["attack"][0] == raised["attack"] and failing() == {}
    (package / "results" / "keys.py").write_text(cell, encoding="utf-8")
    with pytest.raises(SystemExit, match="never used again"):
        write(package, record)
    with pytest.raises(SystemExit, match="never used again"):
        write(package, record, same_results=True)


def test_a_refactoring_says_so(copy):
    package, record, edit, failing = copy
    edit("training/fit", "def lr_at(", "def unused(): pass\n\ndef lr_at(")
    assert failing() == {}
    edit("training/fit", "momentum: float = 0.9", "momentum: float = 9 / 10")
    with pytest.raises(SystemExit, match="same-results"):
        write(package, record)
    write(package, record, same_results=True)
    assert failing() == {}


def test_a_new_distiller_is_recorded_but_changes_nothing(copy):
    package, record, edit, failing = copy
    (package / "distillers" / "new.py").write_text(
        "from .baselines import random\nfrom ..training.distiller import distiller\n\n@distiller\ndef new(data, ipc, *, seed=0): return random(data, ipc, seed=seed)\n"
    )
    assert list(failing()) == ["distil"] and "VERSIONS" not in failing()["distil"]
    write(package, record)
    assert failing() == {} and "distillers.new.new" in read(record)["distil"]["code"]

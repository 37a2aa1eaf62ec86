"""Distillers and attacks are named in their own notebooks and in the registries, and nowhere else in the package.

So a method that is added in one file is planned, priced, tabled and drawn like all others. The names and labels of all
registered methods are looked for among the string constants of the package; `ALLOWED` lists who may name them, and why."""

import ast
import importlib
import pkgutil
from dataclasses import dataclass
from pathlib import Path

import pytest

import ddrobust_nb
from ddrobust_nb.attacks.attack import attack
from ddrobust_nb.training.distiller import distiller

PACKAGE = Path(ddrobust_nb.__file__).parent
CHAPTERS = (
    "foundations",
    "fast",
    "attacks",
    "training",
    "distillers",
    "frequency",
    "mixing",
    "foreign",
    "results",
    "grid",
)

ANY = "*"
AUTOATTACK = "AutoAttack is the conjunction of these parts"
PRESETS = "presets: data, a row for each method and dataset"
BASELINE = "one constant each, for what is not a method like the others"
PAPER = "the paper's data: what its tables call the methods"
NAMED_GRID = "named grids"
DEFAULT = "the command's default"
HISTORY = "frozen rules for rows that were written before a field existed"
OTHER = "another thing of the same name"
CONSTANTS = "means and deviations are named after the project that published them"

ALLOWED = {  # Module, definition (or ANY): reason
    ("attacks.attack", "AUTOATTACK"): BASELINE,
    ("attacks.attack", "OVERWRITTEN"): OTHER,  # A folder
    ("attacks.autoattack", ANY): AUTOATTACK,
    ("attacks.checks", "CheckCode"): OTHER,
    ("training.distiller", "RANDOM"): BASELINE,
    ("training.distiller", "WHOLE"): BASELINE,
    ("training.protocols", ANY): PRESETS,
    ("results.paper", ANY): PAPER,
    ("frequency.models", "BAND_COLUMNS"): OTHER,  # The whole of a spectrum
    ("frequency.models", "plot_bands"): OTHER,
    ("results.reading", "FIRST_NOT_AUGMENTED"): HISTORY,
    ("results.reading", "FIRST_LEARNED_LR"): HISTORY,
    ("results.reading", "FIRST_RELABELLED"): HISTORY,
    ("results.reading", "FIRST_WHOLE"): HISTORY,
    ("results.reading", "FIRST_BASELINES"): HISTORY,
    ("results.reading", "FIRST_WITHOUT_NETWORK"): HISTORY,
    ("results.reading", "FIRST_WITHOUT_OPTIONS"): HISTORY,
    ("results.reading", "FIRST_HARD"): HISTORY,
    ("results.reading", "_first_origin"): HISTORY,
    ("results.reading", "_first_options"): HISTORY,
    ("results.reading", "_first_labels"): HISTORY,
    ("results.rows", "ORIGINS"): OTHER,  # Where a set or a model comes from
    ("results.sources", "WholeTraining"): OTHER,
    ("results.mixing_run", "_part"): OTHER,  # A whole training set
    ("grid.plan", "SIX"): NAMED_GRID,
    ("grid.plan", "PAPER_METHODS"): NAMED_GRID,
    ("grid.plan", "GRIDS"): NAMED_GRID,
    ("grid.plan", "paper_blocks"): NAMED_GRID,
    ("foreign.space", ANY): CONSTANTS,
    ("foreign.models", ANY): CONSTANTS,
    ("foreign.sets", "dd_ranking"): CONSTANTS,
    ("results.parameters", "PARAMETERS"): DEFAULT,
}


@dataclass(frozen=True)
class Literal:
    "A string constant that names a method"

    module: str  # Without the package's name
    definition: str  # Name of the definition or of the variable at the top level of the module
    line: int
    value: str

    @property
    def allowed(self):
        "Whether this place may name methods"
        return (self.module, self.definition) in ALLOWED or (self.module, ANY) in ALLOWED

    def __str__(self):
        return f"{self.module}, line {self.line}, in {self.definition}: {self.value!r}"


def import_all():
    "Import every module, so that all methods are registered"
    for module in pkgutil.walk_packages(ddrobust_nb.__path__, "ddrobust_nb."):
        importlib.import_module(module.name)


def owners():
    "Name or label of each registered method -> the module that registers it, without the package's name"
    import_all()
    found = {}
    for registry in (distiller, attack):
        for name, entry in registry.items():
            home = entry.__module__.removeprefix("ddrobust_nb.")
            found[name] = home
            if label := getattr(entry, "label", ""):
                found[label] = home
    return found


def name_of(statement):
    "The name that a statement at the top level of a module defines"
    if isinstance(statement, ast.Assign):
        return ast.unparse(statement.targets[0])
    if isinstance(statement, ast.AnnAssign):
        return ast.unparse(statement.target)
    return getattr(statement, "name", type(statement).__name__)


def literals(path, methods):
    "The string constants of a file that name a method of another module"
    module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        definition = name_of(statement)
        if definition == "__all__":
            continue
        for node in ast.walk(statement):
            is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
            if is_text and methods.get(node.value, module) != module:
                yield Literal(module=module, definition=definition, line=node.lineno, value=node.value)


def chapter_literals(chapter, methods):
    "All such constants in a chapter"
    for path in sorted((PACKAGE / chapter).rglob("*.py")):
        yield from literals(path, methods)


@pytest.fixture(scope="module")
def methods():
    "The registered methods by name and label"
    return owners()


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_no_method_is_named_elsewhere(chapter, methods):
    "Lists of methods, and what is special about one, come from the registry"
    forbidden = [literal for literal in chapter_literals(chapter, methods) if not literal.allowed]
    assert not forbidden, "\n".join(map(str, forbidden))


def test_every_chapter_is_searched():
    "A new folder of the package has to be listed"
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders - set(CHAPTERS) <= {"explore"}


def test_the_search_finds_names(tmp_path, monkeypatch, methods):
    "A name in a comparison, in a key or as a label; not in a sentence, nor as part of another word"
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path)
    (tmp_path / "topic").mkdir()
    file = tmp_path / "topic" / "page.py"
    file.write_text("def price(name):\n    'Of dm'\n    return name == 'dm' or {'pgd': 1}.get('dm-like')\n")
    found = list(chapter_literals("topic", methods))
    assert [(literal.line, literal.value) for literal in found] == [(3, "dm"), (3, "pgd")]
    assert str(found[0]) == "topic.page, line 3, in price: 'dm'"

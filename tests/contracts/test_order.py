"""The chapters of nbs/ build on each other: a module imports from earlier chapters and, in its own, from lower numbers.

The order is read from the notebooks, the imports from the package, those inside functions included. Examples on a
page may use later chapters; what a page exports may not."""

import ast
import json
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "ddrobust_nb"
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
    "explore",
)
ABOVE_ALL = ("ddrobust_nb", "ddrobust_nb.all")  # They give what all chapters export, and import on demand


@dataclass(frozen=True, order=True)
class Position:
    "Where a module comes in the order of import"

    chapter: int
    notebook: str  # Its name begins with its number


@dataclass(frozen=True)
class Import:
    "That one module imports another"

    by: str
    of: str
    line: int

    def __str__(self):
        return f"{self.by} (line {self.line}) imports {self.of}"


def exported_to(notebook):
    "The module that a notebook is exported to, or None"
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        found = re.search(r"^#\|\s*default_exp\s+(\S+)", "".join(cell["source"]), flags=re.M)
        if found and cell["cell_type"] == "code":
            return f"ddrobust_nb.{found[1]}"
    return None


def positions():
    "Each module of the package with its position"
    found = {}
    for notebook in sorted((ROOT / "nbs").rglob("*.ipynb")):
        module = exported_to(notebook)
        if module:
            found[module] = Position(CHAPTERS.index(notebook.parent.name), notebook.name)
    return found


def file_of(module):
    "The file of a module"
    return ROOT / (module.replace(".", "/") + ".py")


def modules_named(node, module):
    "The modules that an import statement in a module may read"
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    package = module.split(".")[: -node.level] if node.level else []
    source = ".".join([*package, *(node.module or "").split(".")]).rstrip(".")
    inside = [f"{source}.{alias.name}" for alias in node.names]
    return [source, *inside]


def imports(module, known):
    "What a module imports of the known ones"
    found = []
    for node in ast.walk(ast.parse(file_of(module).read_text(encoding="utf-8"))):
        for name in modules_named(node, module):
            if name in known:
                found.append(Import(by=module, of=name, line=node.lineno))
    return found


def public(module):
    "The names in `__all__` of a module"
    for node in ast.parse(file_of(module).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return []


ORDER = positions()


def test_every_module_comes_from_a_notebook():
    "No file of an earlier layout is left over"
    files = [path for path in PACKAGE.rglob("*.py") if path.name not in ("__init__.py", "_modidx.py")]
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files}
    assert modules - set(ABOVE_ALL) == set(ORDER) - set(ABOVE_ALL)


def test_two_notebooks_never_share_a_number():
    "Their order would be that of their names"
    numbers = defaultdict(list)
    for notebook in (ROOT / "nbs").glob("*/*.ipynb"):
        numbers[notebook.parent.name, notebook.name[:2]].append(notebook.name)
    assert not [names for names in numbers.values() if len(names) > 1]


@pytest.mark.parametrize("module", sorted(set(ORDER) - set(ABOVE_ALL)))
def test_imports_run_one_way(module):
    "From earlier chapters, and from lower numbers; so there are no circles"
    backward = [found for found in imports(module, ORDER) if ORDER[found.of] >= ORDER[module]]
    assert not backward, "\n".join(map(str, backward))


def test_public_names_mean_one_thing():
    "No two modules export the same name"
    homes = defaultdict(list)
    for module in sorted(set(ORDER) - set(ABOVE_ALL)):
        for name in public(module):
            homes[name].append(module)
    assert not {name: found for name, found in homes.items() if len(found) > 1}

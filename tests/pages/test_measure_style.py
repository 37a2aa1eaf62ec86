"tools/measure_style.py: each count rises by a deliberate offence, and a clean notebook breaks no limit."

import importlib.util
import json
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).resolve().parents[2] / "tools" / "measure_style.py"
SPEC = importlib.util.spec_from_file_location("measure_style", FILE)
style = importlib.util.module_from_spec(SPEC)
sys.modules["measure_style"] = style
SPEC.loader.exec_module(style)

PROSE = "You add two numbers with `add`. Your result is their sum."
CLEAN = [
    ("markdown", PROSE),
    ("code", "#| export\ndef add(a, b):\n    'The sum'\n    return a + b"),
    ("code", "add(1, 2)"),
]


def exported(source):
    "An exported cell"
    return ("code", "#| export\n" + source)


def write(root, cells, path="nbs/topic/01_add.ipynb"):
    "Write a notebook of (kind, source) pairs"
    raw = []
    for number, (kind, source) in enumerate(cells):
        raw.append({"cell_type": kind, "id": f"c{number}", "source": source.splitlines(keepends=True)})
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"cells": raw}), encoding="utf-8")


@pytest.fixture
def tally(tmp_path):
    "A function that counts over the clean notebook with more cells behind it"

    def counted(*cells):
        write(root=tmp_path, cells=[*CLEAN, *cells])
        notebooks = style.read_notebooks(tmp_path)
        modules = style.read_modules(root=tmp_path, notebooks=notebooks)
        return style.measure(notebooks=notebooks, modules=modules)

    return counted


def test_clean(tally, tmp_path, capsys):
    "Nothing is found in a clean notebook, and the command is content with it"
    clean = tally()
    assert not any(clean.places[row] for row in clean.places if row != "you")
    assert (clean.public, clean.shown, clean.count("you")) == (1, 1, 2)
    assert clean.cell_lines == [3] and clean.function_lines == [3]
    assert style.main(["--check"], root=tmp_path) == 0
    assert "all limits are kept" in capsys.readouterr().out


LONG_BODY = "\n".join(["    x += 1"] * 45)
ELIFS = "".join(f"elif x == {n}: pass\n" for n in range(3))

OFFENCES = [
    ("long cells", "\n".join(["x = 1"] * 46), 1),
    ("long cells", "\n".join(["x = 1", ""] * 45), 0),
    ("crowded cells", "def f(): pass\ndef g(): pass", 1),
    ("crowded cells", "SIZE = 3\ndef f(): pass\ndef _g(): pass", 0),
    ("long lines", "x = " + " + ".join(["value"] * 20), 1),
    ("long lines", f"x = '{'a' * 120}'", 0),
    ("long lines", f"x = f'{{y}}{'a' * 120}'", 0),
    ("long lines", f"x = '''a\n{'a' * 120}'''", 0),
    ("long lines", "x = 'a' + " + " + ".join(["value"] * 20), 1),
    ("long lines", f"# data\nx = [\n{'1, ' * 60}\n]", 0),
    ("long lines", f"x = [   # data\n{'1, ' * 60}\n]", 0),
    ("many tokens", "x = [" + "1," * 20 + "]", 1),
    ("many tokens", "x = [\n" + "1,\n" * 20 + "]", 0),
    ("packed", "a, b = f(x), g(y)", 1),
    ("packed", "a, b = x, g(y)", 0),
    ("packed", "a, b = x.y, -1", 0),
    ("packed", "a, b = f(x)", 0),
    ("nested", "[[x for x in y] for y in z]", 1),
    ("nested", "[[f(u for u in x) for x in y] for y in z]", 2),
    ("nested", "[x for y in z for x in y]", 0),
    ("picked", "[a, b][x > y]", 1),
    ("picked", "(a, b)[x]", 1),
    ("picked", "(a, b)[-1]", 0),
    ("long functions", f"def _f(x):\n{LONG_BODY}", 1),
    ("positional", "Cell(a, b, c, d)", 1),
    ("positional", "Cell(a, b, c, d=d)", 0),
    ("positional", "cell(a, b, c, d)", 0),
    ("positional", "nn.Sequential(a, b, c, d)", 0),
    ("chains", f"if x: pass\n{ELIFS}", 1),
    ("chains", "if x: pass\nelif y: pass\nelse:\n    if z: pass\n    elif u: pass", 0),
    ("dialect", "told = wished = 1", 2),
    ("dialect", "def _f(told): return told", 1),
    ("dialect", "x.healed\nf(alone=1)", 2),
    ("dialect", "told_of = 'told'", 0),
]


@pytest.mark.parametrize("row, source, count", OFFENCES)
def test_code(tally, row, source, count):
    "An offence in an exported cell is counted, and what only looks like one is not"
    assert tally(exported(source)).count(row) == count


def test_only_exported_code_is_measured(tally):
    "In examples only the dialect counts"
    found = tally(("code", "told, b = f(x), g(y)\n[a, b][x > y]"))
    assert (found.count("packed"), found.count("picked"), found.count("dialect")) == (0, 0, 1)


def test_shown(tally):
    "A definition is shown by an example that names it, within three cells of code"
    define = exported("def late(): pass")
    other = ("code", "1 + 1")
    use = ("code", "late()")
    assert tally(define, other, PAGE, other, use).count("not shown") == 0
    assert tally(define, other, other, other, use).count("not shown") == 1
    assert tally(define, ("code", "from topic import late")).count("not shown") == 1
    assert tally(define, exported("late()")).count("not shown") == 1
    assert tally(use, define).count("not shown") == 1


PAGE = ("markdown", "More prose")

TEXTS = [
    ("you", "Yours, and you'll see.", 2),
    ("we", "We think our way leads us there.", 3),
    ("for example", "For\nexample this, e.g. that, such as these; say, those. To say so.", 4),
    ("whoever", "Whoever knows. Nobody and whatever.", 3),
    ("stands", "It stands and lies. Understand the standard stand-in.", 2),
    ("stands", "`stands` <b title='lies'>x</b> [x](lies.html)\n\n| stands |\n\n```python\nstands\n```", 0),
]


@pytest.mark.parametrize("family, text, count", TEXTS)
def test_words(tally, family, text, count):
    "Words are found whole, in prose alone"
    assert tally(("markdown", text)).count(family) == tally().count(family) + count


def test_words_of_prose(tally):
    "Code, link addresses and tables are no prose"
    before = tally().prose_words
    text = "A [short link](http://a.b/c_(d)) isn't `code`.\n\n| no | prose |"
    after = tally(("markdown", text)).prose_words
    assert after - before == 4


def test_magics(tally):
    "A cell with magics is skipped"
    found = tally(("code", "%time told = 1"), ("code", "!ls"))
    assert found.skipped == 2 and found.count("dialect") == 0


def test_long_notebooks(tmp_path):
    "Over 90 cells are too many, but for analysis and run_*; stored sets and checkpoints are not read"
    many = [PAGE] * 91
    for path in ("topic/a", "analysis/b", "run_c", "sets/d", ".ipynb_checkpoints/e"):
        write(root=tmp_path, cells=many, path=f"nbs/{path}.ipynb")
    notebooks = style.read_notebooks(tmp_path)
    assert {notebook.chapter for notebook in notebooks} == {"topic", "analysis", "root"}
    found = style.measure(notebooks=notebooks, modules=[])
    assert [place.path for place in found.places["long notebooks"]] == ["nbs/topic/a.ipynb"]


def test_long_modules(tally, tmp_path):
    "Over 600 lines are too many, and a module belongs to its notebook's chapter"
    package = tmp_path / "ddrobust_nb"
    package.mkdir()
    for name in ("add", "_modidx"):
        (package / f"{name}.py").write_text("x = 1\n" * 601)
    assert tally(("code", "#| default_exp add")).count("long modules") == 1
    modules = style.read_modules(root=tmp_path, notebooks=style.read_notebooks(tmp_path))
    assert [module.chapter for module in modules] == ["topic"]


def test_command(tmp_path, capsys):
    "A broken limit ends in status 1, with its name; --list tells the place; --chapter looks elsewhere"
    write(root=tmp_path, cells=CLEAN)
    write(root=tmp_path, cells=[exported("[a, b][x > y]")], path="nbs/other/02_bad.ipynb")
    assert style.main(["--check", "--list"], root=tmp_path) == 1
    printed = capsys.readouterr().out
    assert "indexing by booleans: 1, none wanted" in printed
    assert "nbs/other/02_bad.ipynb#c0 line 2" in printed
    assert style.main(["--check", "--chapter", "topic"], root=tmp_path) == 0
    assert style.main([], root=tmp_path) == 0
    with pytest.raises(SystemExit, match="there is no chapter none"):
        style.main(["--chapter", "none"], root=tmp_path)


RATES = [
    ("nested comprehensions", exported("[[x for x in y] for y in z]")),
    ("public definitions shown soon", exported("def hidden(): pass")),
    ('"whoever"', ("markdown", "Whoever")),
    ('"stands"', ("markdown", "It lies there.")),
    ('"you"', ("markdown", "word " * 500)),
]


@pytest.mark.parametrize("name, cell", RATES)
def test_rates(tally, name, cell):
    "Each limit on a rate can be broken, alone"
    assert style.broken_limits(tally()) == []
    broken = style.broken_limits(tally(cell))
    assert len(broken) == 1 and broken[0].startswith(name)

"""Measure how the notebooks read, as code and as prose: python tools/measure_style.py

    --chapter NAME   only one folder of nbs/ ("root" is nbs/ itself)
    --list           also print the places behind each row, as path#cell-id name
    --check          print one line for each limit that is broken, and exit with status 1 if there is one

Code is what the exported cells hold, without blank lines and `#|` directives; cells with IPython magics
are skipped. Dialect names are looked for in every code cell. Prose is the markdown, without code, tables,
tags and link addresses.
"""

import argparse
import ast
import io
import json
import re
import statistics
import sys
import tokenize
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# ---------------------------------------------------------------- what is counted

WORDS = {
    "you": ("you", "your", "yours", "yourself"),
    "we": ("we", "our", "us"),
    "for example": ("for example", "for instance", "e.g.", "such as", "say,"),
    "whoever": ("whoever", "nobody", "whatever", "whichever", "whoso"),
    "stands": ("stands", "stand", "stood", "lies", "lie", "lay"),
}
DIALECT = (
    "told",
    "said",
    "wished",
    "healed",
    "carried",
    "alone",
    "meeting",
    "untouched",
    "why_not",
    "few",
    "usual",
    "lighter",
    "wide",
    "mark",
)
VARIADIC = ("Sequential", "Compose", "Path")  # Capitalised callees that take any number of equal things

MAX_CHARS = 110
MAX_TOKENS = 40
MAX_CELL = 45
MAX_FUNCTION = 45
MAX_MODULE = 600  # Of a distiller any number: one method is one page
MAX_CELLS = 90
MAX_POSITIONAL = 3
MAX_CHAIN = 3
WINDOW = 3  # Code cells in which a definition has to be shown
MIN_SHOWN = 90  # Percent
MAX_NESTED = 2  # Per 1,000 lines; the real value must be below
MAX_DIALECT_WORDS = 0.3
MIN_YOU = 5

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DEFINITIONS = (*FUNCTIONS, ast.ClassDef)
IMPORTS = (ast.Import, ast.ImportFrom)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
BLANK_TOKENS = (
    tokenize.NEWLINE,
    tokenize.NL,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.COMMENT,
    tokenize.ENDMARKER,
)


# ---------------------------------------------------------------- records


@dataclass(frozen=True)
class Place:
    "Where something was found"

    path: str
    cell: str
    name: str

    def __str__(self):
        where = f"{self.path}#{self.cell}" if self.cell else self.path
        return f"{where} {self.name}".rstrip()


@dataclass
class Cell:
    "A cell that is not empty; `tree` is None for markdown and for code that is not plain Python"

    path: str
    id: str
    kind: str
    source: str
    tree: ast.Module = None

    @property
    def exported(self):
        "Whether nbdev copies this cell into the package"
        return self.kind == "code" and bool(re.search(r"^#\|\s*export", self.source, flags=re.M))

    def place(self, name):
        "This cell as the place of something"
        return Place(path=self.path, cell=self.id, name=name)


@dataclass
class Notebook:
    "A notebook, the folder it lies in, and the module it is exported to"

    path: str
    chapter: str
    cells: list
    module: str = None

    @property
    def code_cells(self):
        "The cells of code, in their order"
        return [cell for cell in self.cells if cell.kind == "code"]


@dataclass
class Module:
    "A file of the package and its number of lines"

    path: str
    chapter: str
    lines: int


@dataclass
class Line:
    "One line of exported code"

    number: int
    text: str
    tokens: int = 0
    string_chars: int = 0
    data: bool = False

    @property
    def too_long(self):
        "Whether the line is over the limit for another reason than a string or a table of data"
        if self.data or len(self.text) <= MAX_CHARS:
            return False
        without_strings = len(self.text) - self.string_chars
        return self.string_chars == 0 or without_strings > MAX_CHARS


@dataclass
class Tally:
    "All that was counted over some notebooks"

    cell_lines: list = field(default_factory=list)
    line_chars: list = field(default_factory=list)
    function_lines: list = field(default_factory=list)
    public: int = 0
    shown: int = 0
    deepest: int = 0
    longest_chain: int = 0
    skipped: int = 0
    prose_words: int = 0
    places: dict = field(default_factory=lambda: defaultdict(list))

    def add(self, row, place):
        "Note a place for a row"
        self.places[row].append(place)

    def count(self, row):
        "How many places a row has"
        return len(self.places[row])

    def per_lines(self, row, lines):
        "Places of a row per so many exported lines; None without lines"
        total = len(self.line_chars)
        return lines * self.count(row) / total if total else None

    def per_words(self, family):
        "Words of a family per 1,000 words of prose; None without prose"
        return 1000 * self.count(family) / self.prose_words if self.prose_words else None

    def shown_percent(self):
        "Percent of the public definitions that are shown soon; None without definitions"
        return 100 * self.shown / self.public if self.public else None

    def prose_per_line(self):
        "Words of prose per exported line; None without lines"
        return self.prose_words / len(self.line_chars) if self.line_chars else None


# ---------------------------------------------------------------- reading


def parsed(source):
    "The syntax tree of a cell, or None where it holds magics"
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError):
        return None


def read_cell(raw, path, number):
    "A cell of the notebook's JSON as a record"
    source = raw["source"]
    if isinstance(source, list):
        source = "".join(source)
    is_code = raw["cell_type"] == "code"
    return Cell(
        path=path,
        id=raw.get("id", str(number)),
        kind=raw["cell_type"],
        source=source,
        tree=parsed(source) if is_code else None,
    )


def module_name(cells):
    "The module that `#| default_exp` names, or None"
    for cell in cells:
        found = re.search(r"^#\|\s*default_exp\s+(\S+)", cell.source, flags=re.M)
        if found and cell.kind == "code":
            return found[1]
    return None


def read_notebook(file, root):
    "A notebook without its empty cells"
    path = file.relative_to(root).as_posix()
    folder = file.parent.relative_to(root / "nbs").as_posix()
    raw_cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    cells = [read_cell(raw=raw, path=path, number=number) for number, raw in enumerate(raw_cells)]
    cells = [cell for cell in cells if cell.source.strip()]
    return Notebook(
        path=path,
        chapter="root" if folder == "." else folder,
        cells=cells,
        module=module_name(cells),
    )


def read_notebooks(root):
    "All notebooks of nbs/, without checkpoints and stored sets"
    notebooks = []
    for file in sorted((root / "nbs").rglob("*.ipynb")):
        folders = file.relative_to(root / "nbs").parts[:-1]
        if ".ipynb_checkpoints" in folders or folders[:1] == ("sets",):
            continue
        notebooks.append(read_notebook(file=file, root=root))
    return notebooks


def read_modules(root, notebooks):
    "The files of the package; each belongs to the chapter of the notebook that writes it"
    package = root / "ddrobust_nb"
    chapters = {notebook.module: notebook.chapter for notebook in notebooks}
    modules = []
    for file in sorted(package.rglob("*.py")):
        if file.name == "_modidx.py":
            continue
        name = ".".join(file.relative_to(package).with_suffix("").parts)
        modules.append(
            Module(
                path=file.relative_to(root).as_posix(),
                chapter=chapters.get(name, "root"),
                lines=len(file.read_text(encoding="utf-8").splitlines()),
            )
        )
    return modules


# ---------------------------------------------------------------- lines and tokens


def whole_strings(tokens):
    "The tokens, with an f-string as one token in every version of Python"
    start_kind = getattr(tokenize, "FSTRING_START", None)
    end_kind = getattr(tokenize, "FSTRING_END", None)
    opening = None
    depth = 0
    for token in tokens:
        if token.type == start_kind:
            opening = opening if depth else token
            depth += 1
        elif token.type == end_kind:
            depth -= 1
            if depth == 0:
                yield opening._replace(type=tokenize.STRING, end=token.end)
        elif depth == 0:
            yield token


def add_string(lines, token):
    "Add a string's characters to each line that it covers"
    for number in range(token.start[0], token.end[0] + 1):
        if number not in lines:
            continue
        first = token.start[1] if number == token.start[0] else 0
        last = token.end[1] if number == token.end[0] else len(lines[number].text)
        lines[number].string_chars += last - first


def mark_data(lines, tree, number):
    "Mark the lines of the statement that a `# data` comment is on or above"
    for statement in tree.body:
        if statement.lineno - 1 <= number <= statement.end_lineno:
            for covered in range(statement.lineno, statement.end_lineno + 1):
                if covered in lines:
                    lines[covered].data = True


def is_code_line(text):
    "Whether a line is neither blank nor a directive"
    return bool(text.strip()) and not text.lstrip().startswith("#|")


def code_lines(cell):
    "The code lines of a cell, with what their tokens tell"
    lines = {}
    for number, text in enumerate(cell.source.splitlines(), start=1):
        if is_code_line(text):
            lines[number] = Line(number=number, text=text.rstrip())
    for token in whole_strings(tokenize.generate_tokens(io.StringIO(cell.source).readline)):
        number = token.start[0]
        if token.type == tokenize.STRING:
            add_string(lines=lines, token=token)
        if token.type == tokenize.COMMENT and token.string.strip() == "# data":
            mark_data(lines=lines, tree=cell.tree, number=number)
        if token.type not in BLANK_TOKENS and number in lines:
            lines[number].tokens += 1
    return list(lines.values())


def count_lines(cell, tally):
    "The length of the cell and of its lines"
    lines = code_lines(cell)
    if lines:
        tally.cell_lines.append(len(lines))
    if len(lines) > MAX_CELL:
        tally.add("long cells", cell.place(f"{len(lines)} lines"))
    for line in lines:
        tally.line_chars.append(len(line.text))
        if line.too_long:
            tally.add("long lines", cell.place(f"line {line.number}: {len(line.text)} characters"))
        if line.tokens > MAX_TOKENS:
            tally.add("many tokens", cell.place(f"line {line.number}: {line.tokens} tokens"))


# ---------------------------------------------------------------- definitions


def public_names(tree):
    "The public functions and classes that a cell defines, each once"
    names = []
    for node in tree.body:
        if isinstance(node, DEFINITIONS) and not node.name.startswith("_") and node.name not in names:
            names.append(node.name)
    return names


def used_names(tree):
    "All names and attributes that code reads or writes, imports aside"
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.Attribute):
            names.add(node.attr)
    return names


def shows(cell, name):
    "Whether a cell is an example that names the definition"
    if cell.exported or cell.tree is None:
        return False
    only_imports = all(isinstance(node, IMPORTS) for node in cell.tree.body)
    return not only_imports and name in used_names(cell.tree)


def count_definitions(notebook, tally):
    "How many public definitions there are, together in a cell or not shown soon"
    cells = notebook.code_cells
    for number, cell in enumerate(cells):
        if not cell.exported or cell.tree is None:
            continue
        names = public_names(cell.tree)
        if len(names) > 1:
            tally.add("crowded cells", cell.place(", ".join(names)))
        following = cells[number + 1 : number + 1 + WINDOW]
        for name in names:
            tally.public += 1
            if any(shows(cell=later, name=name) for later in following):
                tally.shown += 1
            else:
                tally.add("not shown", cell.place(name))


# ---------------------------------------------------------------- syntax


def is_simple(node):
    "Whether a value is a name, a constant (with or without a sign) or an attribute"
    if isinstance(node, ast.UnaryOp):
        node = node.operand
    return isinstance(node, (ast.Name, ast.Constant, ast.Attribute))


def is_packed(node):
    "Whether this is `a, b = f(x), g(y)`: one assignment that computes several things"
    if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Tuple):
        return False
    if not isinstance(node.targets[0], (ast.Tuple, ast.List)):
        return False
    computed = [value for value in node.value.elts if not is_simple(value)]
    return len(computed) >= 2


def comprehension_depth(node):
    "How deep comprehensions are nested in this node; 1 for a plain one"
    inner = max((comprehension_depth(child) for child in ast.iter_child_nodes(node)), default=0)
    return inner + isinstance(node, COMPREHENSIONS)


def is_picked(node):
    "Whether this is `[a, b][x > y]`: an element of a literal, chosen by a computed index"
    if not isinstance(node, ast.Subscript) or not isinstance(node.value, (ast.List, ast.Tuple)):
        return False
    index = node.slice
    if isinstance(index, ast.UnaryOp) and isinstance(index.op, ast.USub):
        index = index.operand
    return not isinstance(index, (ast.Constant, ast.Slice))


def callee(node):
    "The last name of what a call calls, or nothing"
    if isinstance(node.func, ast.Name):
        return node.func.id
    return node.func.attr if isinstance(node.func, ast.Attribute) else ""


def is_positional_record(node):
    "Whether a call builds a record from more than three positional arguments"
    if not isinstance(node, ast.Call) or len(node.args) <= MAX_POSITIONAL:
        return False
    name = callee(node)
    return name[:1].isupper() and name not in VARIADIC


def chain_length(node):
    "The number of conditions in an if/elif chain that begins here"
    length = 1
    while len(node.orelse) == 1 and isinstance(node.orelse[0], ast.If):
        following = node.orelse[0]
        if following.col_offset != node.col_offset:  # An if within else
            break
        node = following
        length += 1
    return length


def count_function(node, cell, tally):
    "The length of a function, without its decorators"
    length = node.end_lineno - node.lineno + 1
    tally.function_lines.append(length)
    if length > MAX_FUNCTION:
        tally.add("long functions", cell.place(f"{node.name}: {length} lines"))


def count_node(node, cell, tally):
    "All counts that look at one node of the syntax tree"
    where = cell.place(f"line {getattr(node, 'lineno', 0)}")
    if isinstance(node, FUNCTIONS):
        count_function(node=node, cell=cell, tally=tally)
    if is_packed(node):
        tally.add("packed", where)
    if is_picked(node):
        tally.add("picked", where)
    if is_positional_record(node):
        tally.add("positional", cell.place(f"{callee(node)}: {len(node.args)} positional arguments"))
    if isinstance(node, COMPREHENSIONS):
        depth = comprehension_depth(node)
        tally.deepest = max(tally.deepest, depth)
        if depth > 1:
            tally.add("nested", where)
    if isinstance(node, ast.If):
        length = chain_length(node)
        tally.longest_chain = max(tally.longest_chain, length)
        if length > MAX_CHAIN:
            tally.add("chains", cell.place(f"line {node.lineno}: {length} conditions"))


def node_names(node):
    "The names that a node of the syntax tree introduces or uses"
    for attribute in ("id", "attr", "arg", "name", "asname"):
        name = getattr(node, attribute, None)
        if isinstance(name, str):
            yield name


def count_dialect(cell, tally):
    "The dialect names of a cell, each once"
    found = set()
    for node in ast.walk(cell.tree):
        found.update(node_names(node))
    for name in DIALECT:
        if name in found:
            tally.add("dialect", cell.place(name))


# ---------------------------------------------------------------- prose


def prose(markdown):
    "The words that a reader reads: no code, tables, tags and link addresses"
    text = re.sub(r"^[ \t]*(```|~~~).*?(^[ \t]*\1[^\n]*$|\Z)", " ", markdown, flags=re.M | re.S)
    text = re.sub(r"(`+).+?\1", " ", text, flags=re.S)
    text = re.sub(r"^[ \t]*\|.*$", " ", text, flags=re.M)
    text = re.sub(r"<!--.*?-->|</?[A-Za-z][^<>]*>", " ", text, flags=re.S)
    text = re.sub(r"\]\([^()]*(\([^()]*\)[^()]*)*\)", "] ", text)
    text = re.sub(r"^\[[^\]]+\]:.*$", " ", text, flags=re.M)
    return re.sub(r"https?://\S+", " ", text)


def word_pattern(words):
    "A pattern that finds whole words (not stand-in), in either case and over line ends"
    escaped = [re.escape(word).replace(r"\ ", r"\s+") for word in words]
    return re.compile(r"(?<!\w)(?:" + "|".join(escaped) + r")(?!-?\w)", flags=re.I)


PATTERNS = {family: word_pattern(words) for family, words in WORDS.items()}


def count_prose(cell, tally):
    "The words of a markdown cell, and those of each family"
    text = prose(cell.source)
    tally.prose_words += len(re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", text))
    for family, pattern in PATTERNS.items():
        for found in pattern.finditer(text):
            word = " ".join(found[0].split())
            tally.add(family, cell.place(word))


# ---------------------------------------------------------------- counting


def count_cell(cell, tally):
    "All counts that look at one cell"
    if cell.kind == "markdown":
        count_prose(cell=cell, tally=tally)
    if cell.kind != "code":
        return
    if cell.tree is None:
        tally.skipped += 1
        return
    count_dialect(cell=cell, tally=tally)
    if cell.exported:
        count_lines(cell=cell, tally=tally)
        for node in ast.walk(cell.tree):
            count_node(node=node, cell=cell, tally=tally)


def may_be_long(notebook):
    "Whether the limit on cells leaves this notebook alone"
    return notebook.chapter == "analysis" or Path(notebook.path).name.startswith("run_")


def measure(notebooks, modules):
    "All counts over some notebooks and modules"
    tally = Tally()
    for notebook in notebooks:
        count_definitions(notebook=notebook, tally=tally)
        for cell in notebook.cells:
            count_cell(cell=cell, tally=tally)
        length = len(notebook.cells)
        if length > MAX_CELLS and not may_be_long(notebook):
            tally.add("long notebooks", Place(path=notebook.path, cell="", name=f"{length} cells"))
    for module in modules:
        is_of_distillers = "distillers" in Path(module.path).parts
        if module.lines > MAX_MODULE and not is_of_distillers:
            tally.add("long modules", Place(path=module.path, cell="", name=f"{module.lines} lines"))
    return tally


# ---------------------------------------------------------------- the table


def spread(values):
    "Median, 90th percentile and largest value"
    if not values:
        return "-"
    p90 = max(values)
    if len(values) > 1:
        p90 = statistics.quantiles(values, n=10, method="inclusive")[8]
    return f"{statistics.median(values):.0f}/{p90:.0f}/{max(values)}"


def decimal(value, digits=1):
    "A number, or a dash where there is none"
    return "-" if value is None else f"{value:.{digits}f}"


@dataclass
class Row:
    "A row of the table: how it is written, and the key of the places behind it"

    label: str
    text: Callable
    places: str = None


def count_row(label, places):
    "A row that counts places"
    return Row(label=label, text=lambda tally: str(tally.count(places)), places=places)


def word_row(label, family):
    "A row of words per 1,000 words of prose"
    return Row(label=label, text=lambda tally: decimal(tally.per_words(family)), places=family)


def shown_text(tally):
    "Percent of the definitions shown, and how many there are"
    return f"{decimal(tally.shown_percent(), digits=0)} % of {tally.public}"


def tokens_text(tally):
    "Lines with many tokens, and their percent"
    return f"{tally.count('many tokens')} ({decimal(tally.per_lines('many tokens', lines=100))} %)"


def nested_text(tally):
    "Nested comprehensions per 1,000 lines, and the deepest"
    return f"{decimal(tally.per_lines('nested', lines=1000))} ({tally.deepest})"


ROWS = [
    Row(label="code lines in exported cells", text=lambda tally: str(len(tally.line_chars))),
    Row(label="exported cell, lines", text=lambda tally: spread(tally.cell_lines)),
    count_row(label=f"exported cells over {MAX_CELL} lines", places="long cells"),
    count_row(label="exported cells with several public definitions", places="crowded cells"),
    Row(label="words of prose per exported line", text=lambda tally: decimal(tally.prose_per_line())),
    Row(label=f"public definitions shown within {WINDOW} cells", text=shown_text, places="not shown"),
    Row(label="characters a line", text=lambda tally: spread(tally.line_chars)),
    count_row(label=f"lines over {MAX_CHARS} characters", places="long lines"),
    Row(label=f"lines over {MAX_TOKENS} tokens", text=tokens_text, places="many tokens"),
    Row(
        label="tuple assignments with two computed sides, per 100 lines",
        text=lambda tally: decimal(tally.per_lines("packed", lines=100)),
        places="packed",
    ),
    Row(label="nested comprehensions per 1,000 lines (deepest)", text=nested_text, places="nested"),
    count_row(label="indexing by booleans", places="picked"),
    Row(label="function, lines", text=lambda tally: spread(tally.function_lines)),
    count_row(label=f"functions over {MAX_FUNCTION} lines", places="long functions"),
    count_row(label="records built by position", places="positional"),
    Row(label="longest if/elif chain", text=lambda tally: str(tally.longest_chain), places="chains"),
    Row(label="words of prose", text=lambda tally: str(tally.prose_words)),
    word_row(label='per 1,000 words: "you"', family="you"),
    word_row(label='per 1,000 words: "we"', family="we"),
    word_row(label='per 1,000 words: "for example" and the like', family="for example"),
    word_row(label='per 1,000 words: "whoever" and the like', family="whoever"),
    word_row(label='per 1,000 words: "stands", "lies"', family="stands"),
    count_row(label=f"modules over {MAX_MODULE} lines", places="long modules"),
    count_row(label=f"notebooks over {MAX_CELLS} cells (not analysis, run_*)", places="long notebooks"),
    count_row(label="dialect names, once a cell", places="dialect"),
    Row(label="cells skipped (magics)", text=lambda tally: str(tally.skipped)),
]


def table(tallies):
    "The table: a column for each chapter, and one for all"
    lines = [["", *tallies]]
    for row in ROWS:
        lines.append([row.label, *map(row.text, tallies.values())])
    widths = [max(map(len, column)) for column in zip(*lines)]
    written = []
    for line in lines:
        label = line[0].ljust(widths[0])
        values = [value.rjust(width) for value, width in zip(line[1:], widths[1:])]
        written.append("  ".join([label, *values]))
    return "\n".join(written)


def word_lists():
    "The lists that the counts of words rest on"
    lines = [f"{family}: {' | '.join(words)}" for family, words in WORDS.items()]
    lines.append("dialect names: " + " | ".join(DIALECT))
    lines.append("calls that build no record: " + " | ".join(VARIADIC))
    return "\n".join(lines)


def place_lists(tally):
    "The places behind each row"
    lines = []
    for row in ROWS:
        places = tally.places.get(row.places, [])
        if places:
            heading = "public definitions not shown soon" if row.places == "not shown" else row.label
            lines.append(f"\n== {heading}: {len(places)}")
            lines.extend(str(place) for place in places)
    return "\n".join(lines)


# ---------------------------------------------------------------- the limits

NO_PLACES = {
    "long lines": f"lines over {MAX_CHARS} characters",
    "long functions": f"functions over {MAX_FUNCTION} lines",
    "long cells": f"exported cells over {MAX_CELL} lines",
    "crowded cells": "exported cells with several public definitions",
    "long modules": f"modules over {MAX_MODULE} lines",
    "long notebooks": f"notebooks over {MAX_CELLS} cells",
    "dialect": "dialect names",
    "picked": "indexing by booleans",
    "positional": "records built by position",
}


def broken_rates(tally):
    "A line for each limit on a rate that is broken; a rate that does not exist breaks none"
    broken = []
    nested = tally.per_lines("nested", lines=1000)
    if nested is not None and nested >= MAX_NESTED:
        broken.append(f"nested comprehensions: {nested:.1f} per 1,000 lines, below {MAX_NESTED} wanted")
    shown = tally.shown_percent()
    if shown is not None and shown < MIN_SHOWN:
        broken.append(f"public definitions shown soon: {shown:.1f} %, {MIN_SHOWN} % wanted")
    for family in ("whoever", "stands"):
        rate = tally.per_words(family)
        if rate is not None and rate >= MAX_DIALECT_WORDS:
            broken.append(f'"{family}": {rate:.2f} per 1,000 words, below {MAX_DIALECT_WORDS} wanted')
    you = tally.per_words("you")
    if you is not None and you <= MIN_YOU:
        broken.append(f'"you": {you:.1f} per 1,000 words, over {MIN_YOU} wanted')
    return broken


def broken_limits(tally):
    "A line for each limit that is broken"
    broken = []
    for row, label in NO_PLACES.items():
        if tally.count(row):
            broken.append(f"{label}: {tally.count(row)}, none wanted")
    return broken + broken_rates(tally)


# ---------------------------------------------------------------- the command


def options(arguments):
    "The command line"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chapter", help='only this folder of nbs/; "root" is nbs/ itself')
    parser.add_argument("--list", action="store_true", help="print the places behind each row")
    parser.add_argument("--check", action="store_true", help="exit with status 1 if a limit is broken")
    return parser.parse_args(arguments)


def of_chapter(items, chapter):
    "The notebooks or modules of one chapter"
    return [item for item in items if item.chapter == chapter]


def measure_chapters(notebooks, modules, chapters):
    "The counts of each chapter, by its name"
    tallies = {}
    for chapter in chapters:
        tallies[chapter] = measure(
            notebooks=of_chapter(notebooks, chapter),
            modules=of_chapter(modules, chapter),
        )
    return tallies


def main(arguments=None, root=ROOT):
    "Print the table; the exit status is 1 when limits are checked and broken"
    chosen = options(arguments)
    notebooks = read_notebooks(root)
    modules = read_modules(root=root, notebooks=notebooks)
    chapters = sorted({notebook.chapter for notebook in notebooks})
    if chosen.chapter and chosen.chapter not in chapters:
        sys.exit(f"there is no chapter {chosen.chapter}; there are " + ", ".join(chapters))
    if chosen.chapter:
        tallies = measure_chapters(notebooks=notebooks, modules=modules, chapters=[chosen.chapter])
        overall = tallies[chosen.chapter]
    else:
        overall = measure(notebooks=notebooks, modules=modules)
        tallies = measure_chapters(notebooks=notebooks, modules=modules, chapters=chapters)
        tallies["all"] = overall
    print(table(tallies))
    print("\n" + word_lists())
    if chosen.list:
        print(place_lists(overall))
    if not chosen.check:
        return 0
    broken = broken_limits(overall)
    print("\n" + "\n".join(broken or ["all limits are kept"]))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())

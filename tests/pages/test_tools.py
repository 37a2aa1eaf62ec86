"The scripts in tools/ must notice what they are there to notice. Each runs in a project of its own."

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture
def project(tmp_path):
    "A git checkout with one tracked, one untracked and one ignored file, and the tools; its path holds a blank"
    root = tmp_path / "a checkout"
    shutil.copytree(TOOLS, root / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in {
        ".gitignore": "ignored.txt\n",
        "kept.txt": "1",
        "loose.txt": "1",
        "ignored.txt": "1",
    }.items():
        (root / name).write_text(text)
    for command in ("init -q", "add tools .gitignore kept.txt"):
        subprocess.run(["git", *command.split()], cwd=root, check=True)
    return root


def run(root, tool, *args):
    return subprocess.run([sys.executable, f"tools/{tool}", *args], cwd=root, capture_output=True, text=True)


@pytest.mark.parametrize(
    "command, code, said",
    [
        ("true", 0, "ok"),
        ("touch kept.txt", 0, "ok"),
        ("cp kept.txt ignored.txt", 0, "ok"),
        ("cp tools/check_tree.py kept.txt", 1, "changed: kept.txt"),
        ("cp tools/check_tree.py loose.txt", 1, "changed: loose.txt"),
        ("rm kept.txt", 1, "gone: kept.txt"),
        ("cp kept.txt fresh.txt", 1, "new: fresh.txt"),
        ("false", 1, "FAILED: false"),
    ],
)
def test_check_tree(project, command, code, said):
    done = run(project, "check_tree.py", "step", command)
    assert done.returncode == code and said in done.stdout


def test_check_tree_without_git(project):
    shutil.rmtree(project / ".git")
    done = run(project, "check_tree.py", "step", "true")
    assert done.returncode == 1 and "git checkout" in done.stderr


def test_readme(project):
    def code(source, *datas):
        outputs = [dict(output_type="display_data", data=data) for data in datas]
        return dict(cell_type="code", source=source, outputs=outputs)

    cells = [
        dict(
            cell_type="markdown",
            source="# T\n\n[a](foundations/10_core.ipynb#x) ![p](images/p.png) [l](../LICENSE) [w](https://a.b/c)\n\n```bash\n[a](b)\n```",
        ),
        code("#| hide\nsecret"),
        code("#| echo: false\nplot()", {"text/html": "<style>s</style><table>1</table>"}),
        code("shown()", {"image/png": "AAAA", "text/plain": "Figure"}, {"text/markdown": "**m**"}),
    ]
    (project / "nbs").mkdir()
    (project / "nbs" / "index.ipynb").write_text(json.dumps(dict(cells=cells)))
    assert "make export" in run(project, "make_readme.py", "--check").stderr
    assert run(project, "make_readme.py").returncode == 0
    text = (project / "README.md").read_text()
    for part in (
        "[a](nbs/foundations/10_core.ipynb#x) ![p](nbs/images/p.png) [l](LICENSE) [w](https://a.b/c)",
        "[a](b)",
        "<table>1</table>",
        "shown()",
        "**m**",
    ):
        assert part in text
    for part in ("secret", "plot", "style", "AAAA", "Figure"):
        assert part not in text
    assert run(project, "make_readme.py", "--check").returncode == 0
    (project / "README.md").write_text(text + "by hand")
    assert run(project, "make_readme.py", "--check").returncode == 1


# ---- the export

SETTINGS = """[DEFAULT]
repo = demo
lib_name = demo
lib_path = demo
nbs_path = nbs
doc_path = _docs
version = 0.1.0
min_python = 3.10
user = somebody
author = Some Body
author_email = somebody@example.org
description = A project for tests
license = mit
copyright = 2026
keywords = test
audience = Developers
language = English
status = 3
git_url = https://github.com/%(user)s/%(repo)s
doc_host = https://%(user)s.github.io
doc_baseurl = /%(repo)s
branch = main
title = demo
custom_sidebar = True
recursive = True
put_version_in_init = True
update_pyproject = False
"""


def write_notebook(path, module, code):
    "A notebook that exports one cell into a module"
    sources = [f"#| default_exp {module}", f"#| export\n{code}"]
    cells = [
        dict(cell_type="code", id=f"c{i}", execution_count=None, metadata={}, outputs=[], source=[source])
        for i, source in enumerate(sources)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)))


def package_files(root):
    "The text of every file of the package"
    folder = root / "demo"
    return {
        p.relative_to(folder).as_posix(): p.read_text()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and "__pycache__" not in p.parts
    }


@pytest.fixture
def exported(project):
    "A project of two notebooks, exported once; one file of its package was written by hand"
    (project / "settings.ini").write_text(SETTINGS)
    write_notebook(project / "nbs" / "low" / "10_base.ipynb", "low.base", "two = 2")
    write_notebook(
        project / "nbs" / "high" / "10_top.ipynb",
        "high.top",
        "from demo.low.base import two\nfour = two * two",
    )
    (project / "demo" / "data").mkdir(parents=True)
    (project / "demo" / "data" / "table.csv").write_text("a,b\n")
    (project / "demo" / "by_hand.py").write_text("five = 5\n")
    done = run(project, "export.py")
    assert done.returncode == 0, done.stderr
    return project


def test_an_export_is_what_nbdev_writes(exported):
    files = package_files(exported)
    assert files["by_hand.py"] == "five = 5\n" and files["data/table.csv"] == "a,b\n"
    assert "from ..low.base import two" in files["high/top.py"] and "__init__.py" in files
    subprocess.run(["nbdev_export"], cwd=exported, check=True)
    assert package_files(exported) == files
    assert not list(exported.glob("_export_*"))


def test_a_module_whose_notebook_is_gone_disappears(exported):
    shutil.rmtree(exported / "nbs" / "high")
    assert run(exported, "export.py").returncode == 0
    files = package_files(exported)
    assert not [name for name in files if name.startswith("high")] and "low/base.py" in files
    assert {"by_hand.py", "data/table.csv"} <= set(files)


@pytest.mark.parametrize(
    "code, reason",
    [
        ("from demo.low.base import three", "cannot import name 'three'"),
        ("four = two(", "SyntaxError"),
        ("four = 1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_failed_export_changes_nothing(exported, code, reason):
    before = package_files(exported)
    write_notebook(exported / "nbs" / "low" / "10_base.ipynb", "low.base", "two = 3")
    write_notebook(exported / "nbs" / "high" / "10_top.ipynb", "high.top", code)
    done = run(exported, "export.py")
    assert done.returncode == 1 and reason in done.stderr and "demo/ is as it was" in done.stderr
    assert package_files(exported) == before and not list(exported.glob("_export_*"))


# ---- addresses of pages


def load_builder():
    "tools/build_docs.py as a module"
    spec = importlib.util.spec_from_file_location("build_docs", TOOLS / "build_docs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_address_that_existed_leads_to_a_page():
    "The committed table names a notebook that there is for each page that the site ever had"
    builder = load_builder()
    moved = builder.moved_pages()
    notebooks = [p.relative_to(builder.NBS) for p in builder.NBS.rglob("*.ipynb")]
    pages = {p.with_name(re.sub(r"^\d+[a-z]?_", "", p.stem) + ".html").as_posix() for p in notebooks}
    assert len(moved) == 71 and moved["results/cell.html"] == "results/plan.html"
    assert not [new for new in moved.values() if new not in pages]
    assert not [old for old, new in moved.items() if old != new and old in pages]


def test_a_moved_page_redirects(tmp_path):
    builder = load_builder()
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "page.html").write_text("<p>here</p>")
    (tmp_path / "taken.html").write_text("<p>another page</p>")
    moved = {
        "old/page.html": "new/page.html",
        "new/page.html": "new/page.html",
        "lost.html": "new/nowhere.html",
        "taken.html": "new/page.html",
    }
    faults = builder.write_redirects(tmp_path, moved=moved, site="https://example.org/site")
    assert [fault.split(":")[0] for fault in faults] == ["lost.html", "taken.html"]
    text = (tmp_path / "old" / "page.html").read_text()
    for part in (
        'content="0; url=../new/page.html"',
        '<link rel="canonical" href="https://example.org/site/new/page.html">',
        'This page has moved to <a href="../new/page.html">new/page.html</a>.',
    ):
        assert part in text
    assert (tmp_path / "new" / "page.html").read_text() == "<p>here</p>" and not (
        tmp_path / "lost.html"
    ).exists()
    config = dict(site="https://example.org/site", blob="https://example.org/blob")
    assert builder.broken_links(tmp_path, config) == ([], 1)

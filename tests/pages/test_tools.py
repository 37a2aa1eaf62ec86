"The scripts in tools/ must notice what they are there to notice. Each runs in a project of its own."

import json
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
    code = lambda source, *datas: dict(
        cell_type="code", source=source, outputs=[dict(output_type="display_data", data=d) for d in datas]
    )
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

"What installing the package brings, and what it must leave alone. No network: every requirement is a tiny stand-in wheel."

import ast
import base64
import hashlib
import shutil
import subprocess
import sys
import venv
import zipfile
from configparser import ConfigParser
from dataclasses import replace
from email.parser import Parser
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement

from ddrobust_nb.attacks import attack as threat_module
from ddrobust_nb.attacks.attack import AttackConfig, OverwritesRobustBench, attack_list
from ddrobust_nb.attacks.running import attack_images
from ddrobust_nb.foundations.core import InputError
from ddrobust_nb.results import cell_rows as rows_module
from ddrobust_nb.results import plan as cell_module
from ddrobust_nb.results.cell_rows import run_stages, write_out
from ddrobust_nb.results.plan import plan_cell
from ddrobust_nb.results.reading import read_results

ROOT = Path(__file__).resolve().parents[2]


# ---- the wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    "The wheel of this checkout, built in a copy of what it is made of"
    source = tmp_path_factory.mktemp("source")
    for name in ("settings.ini", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(
        ROOT / "ddrobust_nb", source / "ddrobust_nb", ignore=shutil.ignore_patterns("__pycache__")
    )
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "bdist_wheel"], cwd=source, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (made,) = (source / "dist").glob("*.whl")
    return made


@pytest.fixture(scope="module")
def requirements(wheel):
    "The requirements that are written in the wheel"
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        metadata = Parser().parsestr(archive.read(name).decode())
    return [Requirement(text) for text in metadata.get_all("Requires-Dist")]


def asked(requirements, extra=""):
    "Name -> requirement, as an installation with this extra asks for them"
    return {r.name: r for r in requirements if r.marker is None or r.marker.evaluate({"extra": extra})}


def test_torchattacks_is_an_extra(requirements):
    assert "torchattacks" not in asked(requirements)
    for extra in ("torchattacks", "dev"):
        assert str(asked(requirements, extra)["torchattacks"].specifier) == "==3.3.0"
    assert set(asked(requirements, "torchattacks")) == {*asked(requirements), "torchattacks"}


def test_everything_else_is_asked_for(requirements):
    "What settings.ini lists, and nothing beside it"
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    listed = {Requirement(text).name for text in config["DEFAULT"]["requirements"].split()}
    assert set(asked(requirements)) == listed and {"torch", "pyautoattack", "papermill"} <= listed
    assert "torchattacks" in config["DEFAULT"]["torchattacks_requirements"]


# ---- beside RobustBench


def stand_in(folder, name, version, files):
    "A wheel that holds these files and asks for nothing"
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    files = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }

    def digest(text):
        return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()

    record = [f"{path},sha256={digest(text)},{len(text)}" for path, text in files.items()] + [
        f"{info}/RECORD,,"
    ]
    with zipfile.ZipFile(folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
        archive.writestr(f"{info}/RECORD", "\n".join(record) + "\n")


def lowest(requirement):
    "A version that a requirement accepts: the one it names, else 1.0"
    named = [s.version for s in requirement.specifier if s.operator in ("==", ">=")]
    return named[0] if named else "1.0"


@pytest.fixture(scope="module")
def beside_robustbench(wheel, requirements, tmp_path_factory):
    "An environment with a stand-in RobustBench, wheels for everything, and a function that installs"
    home = tmp_path_factory.mktemp("environment")
    (wheels := home / "wheels").mkdir()
    for r in asked(requirements, "torchattacks").values():
        ours = {f"{r.name.replace('-', '_')}_stand_in.py": ""}
        theirs = {
            "torchattacks/__init__.py": "",
            "robustbench/utils.py": "torchattacks",
            "autoattack/square.py": "torchattacks",
        }
        stand_in(wheels, r.name, lowest(r), theirs if r.name == "torchattacks" else ours)
    stand_in(
        wheels, "robustbench", "1.1", {"robustbench/__init__.py": "", "robustbench/utils.py": "RobustBench"}
    )
    stand_in(wheels, "autoattack", "0.1", {"autoattack/square.py": "its authors"})
    shutil.copy(wheel, wheels)
    venv.create(home / "venv")
    python = home / "venv" / "bin" / "python"
    site = next((home / "venv").rglob("site-packages"))

    def install(*what):
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "pip",
                "--python",
                str(python),
                "install",
                "-q",
                "--no-index",
                "--no-compile",
                "--disable-pip-version-check",
                "--find-links",
                str(wheels),
                *what,
            ],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr

    install("robustbench", "autoattack")

    def theirs():
        return {
            p.relative_to(site).as_posix(): p.read_text()
            for top in ("robustbench", "autoattack")
            for p in sorted((site / top).rglob("*.py"))
        }

    return SimpleNamespace(install=install, site=site, theirs=theirs)


def test_installing_us_leaves_robustbench_alone(beside_robustbench):
    before = beside_robustbench.theirs()
    assert before == {
        "robustbench/__init__.py": "",
        "robustbench/utils.py": "RobustBench",
        "autoattack/square.py": "its authors",
    }
    beside_robustbench.install("ddrobust_nb")
    assert (beside_robustbench.site / "ddrobust_nb" / "foundations" / "core.py").is_file() and (
        beside_robustbench.site / "torch_stand_in.py"
    ).is_file()
    assert beside_robustbench.theirs() == before and not (beside_robustbench.site / "torchattacks").exists()
    beside_robustbench.install(
        "ddrobust_nb[torchattacks]"
    )  # the stand-ins show the fault: the extra overwrites both
    changed = beside_robustbench.theirs()
    assert changed["robustbench/utils.py"] == changed["autoattack/square.py"] == "torchattacks"


# ---- without torchattacks


def imported(tree):
    "Top-level names of the modules that are imported when a file is"
    for node in tree.body:
        for inner in ast.walk(node) if isinstance(node, (ast.If, ast.Try, ast.With)) else [node]:
            if isinstance(inner, ast.Import):
                yield from (a.name.split(".")[0] for a in inner.names)
            if isinstance(inner, ast.ImportFrom) and not inner.level:
                yield inner.module.split(".")[0]


def test_no_module_imports_torchattacks():
    "Only functions do, when they are called"
    modules = {p: ast.parse(p.read_text(encoding="utf-8")) for p in (ROOT / "ddrobust_nb").rglob("*.py")}
    assert not [p.name for p, tree in modules.items() if "torchattacks" in imported(tree)]
    inside = [
        p.name
        for p, tree in modules.items()
        if "torchattacks" in {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    ]
    assert inside == ["autoattack.py"]


@pytest.fixture
def without(monkeypatch):
    "A machine without torchattacks"
    real = threat_module.version

    def version(name):
        if name == "torchattacks":
            raise threat_module.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setitem(sys.modules, "torchattacks", None)
    monkeypatch.setattr(threat_module, "version", version)
    rows_module.versions.cache_clear()
    cell_module._configs.cache_clear()
    yield
    rows_module.versions.cache_clear()


def test_a_whole_cell_without_torchattacks(without, tmp_path):
    small = dict(
        options=dict(iterations=1, batch_real=4),
        network="ConvNetD3-w8",
        distill_network="ConvNetD3-w8",
        n_models=1,
        n_test=20,
        device="cpu",
    )
    cell = plan_cell(
        attacks="fgsm@8/255,apgd-ce@8/255,pyautoattack:apgd-ce@8/255",
        store=str(tmp_path / "store"),
        out=str(tmp_path / "out"),
        **small,
    )
    write_out(run_stages(replace(cell, recipe=replace(cell.recipe, epochs=1))))
    rows = read_results(tmp_path / "out")
    assert [r.attack for r in rows] == ["fgsm", "apgd-ce", "apgd-ce"]
    assert {r.versions for r in rows} == {rows_module.versions()}
    assert "torchattacks" not in rows[0].versions and "pyautoattack 0.2.0" in rows[0].versions


@pytest.mark.parametrize(
    "attacks", ("ta:TIFGSM@8/255", "fgsm,ta:PGD", "torchattacks:aa-paper@1/255", "torchattacks:square@8/255")
)
def test_what_needs_it_is_refused_while_planning(without, attacks, tmp_path):
    "Before a store is opened, and with the command that helps"
    with pytest.raises(InputError, match=r"pip install 'ddrobust_nb\[torchattacks\]'"):
        attack_list(attacks)
    with pytest.raises(InputError, match="which is not installed"):
        plan_cell(attacks=attacks, store=str(tmp_path / "store"))
    assert not (tmp_path / "store").exists()


def test_what_needs_it_is_refused_in_python(without):
    "Threats are values that old rows are read into; running them is refused"
    for config in (AttackConfig("ta:PGD"), AttackConfig("square", backend="torchattacks")):
        with pytest.raises(InputError, match="which is not installed"):
            attack_list([config])
        with pytest.raises(InputError, match="which is not installed"):
            attack_images(*world(), config)


def world():
    import torch

    return torch.nn.Flatten().eval(), torch.rand(2, 1, 2, 2), torch.tensor([0, 1])


@pytest.mark.parametrize("beside", (["robustbench"], ["autoattack"], ["robustbench", "autoattack"]))
def test_robustbench_beside_it_is_named(beside, monkeypatch, recwarn):
    def version(name):
        if name in beside:
            return "1.1"
        raise threat_module.PackageNotFoundError(name)

    monkeypatch.setattr(threat_module, "version", version)
    monkeypatch.setattr(threat_module.importlib.util, "find_spec", lambda name: object())
    attack_list("paper")
    assert not recwarn.list, "no attack of the library, no word"
    for text in ("ta:PGD", "torchattacks:square"):
        with pytest.warns(
            OverwritesRobustBench,
            match=" and ".join(f"{name} 1.1" for name in beside)
            + " in this environment.*robustbench .25.*autoattack .11",
        ):
            attack_list(text)

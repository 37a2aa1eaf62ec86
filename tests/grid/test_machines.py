"Machines of others: cores that were granted, names that lead nowhere, no home folder, another Python's kernel"

import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ddrobust_nb.foundations.core import InputError
from ddrobust_nb.grid import machines as module
from ddrobust_nb.grid.machines import Machines, granted_cores, parsl_config, reachable_address, usable_cores
from ddrobust_nb.grid.notebook import run_notebook
from ddrobust_nb.grid.run import _private_folder

# ---- cores


def python(code, *before, **changed):
    "What a program prints in a process of its own; None removes a variable"
    environment = {k: v for k, v in (os.environ | changed).items() if v is not None}
    done = subprocess.run(
        [*before, sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs affinity")
def test_a_process_that_is_bound_to_one_core_has_slots_for_one():
    code = """import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from ddrobust_nb.grid.machines import Machines
print(Machines(gpus=0).slots, Machines(workers=3, gpus=0).slots)"""
    assert python(code) == "(1, 1, 0) (3, 1, 0)"


@pytest.mark.parametrize("granted, right", [(1.5, 1), (0.3, 1), (2.0, 2), (math.inf, 6), (100, 6)])
def test_slots_follow_what_a_container_is_granted(monkeypatch, granted, right):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    monkeypatch.setattr(os, "process_cpu_count", lambda: 6, raising=False)
    monkeypatch.setattr(module, "granted_cores", lambda: granted)
    assert usable_cores() == right and Machines(gpus=0).slots == (right, 1, 0)
    assert Machines(workers=2, gpus=0).slots == (2, max(1, right // 2), 0)


def groups(tmp_path, own, **quotas):
    for name, text in quotas.items():
        file = tmp_path / name.replace("__", "/").replace("CPU", "cpu.max")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (tmp_path / "own").write_text(own)
    return granted_cores(tmp_path, tmp_path / "own")


def test_quotas_of_control_groups(tmp_path):
    "Version 2: the smallest of a group and those above it; in a container the group is the top"
    assert groups(tmp_path / "a", "0::/", CPU="150000 100000") == 1.5
    assert groups(tmp_path / "b", "0::/", CPU="max 100000") == math.inf
    assert groups(tmp_path / "c", "0::/x/y", x__CPU="200000 100000", x__y__CPU="max 100000") == 2
    assert groups(tmp_path / "d", "0::/x/y", x__CPU="800000 100000", x__y__CPU="100000 50000") == 2
    assert groups(tmp_path / "e", "0::/gone", CPU="300000 100000") == 3
    for junk in ("", "x y", "1", "100000 0", "-1 100000"):
        assert groups(tmp_path / f"f{len(junk)}", "0::/", CPU=junk) == math.inf
    assert granted_cores(tmp_path, tmp_path / "no such file") == math.inf


def test_quotas_of_the_first_version(tmp_path):
    def first(own, quota, place):
        folder = tmp_path / "cpu,cpuacct" / place
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cpu.cfs_quota_us").write_text(quota)
        (folder / "cpu.cfs_period_us").write_text("100000")
        (tmp_path / "own").write_text(f"9:memory:/m\n4:cpu,cpuacct:{own}\n1:name=systemd:/s\n0::/\n")
        return granted_cores(tmp_path, tmp_path / "own")

    assert first("/docker/1", "-1", "docker/1") == math.inf
    assert first("/docker/1", "250000", "docker/1") == 2.5
    assert first("/docker/1", "150000", "docker") == 1.5


# ---- the address


@pytest.fixture
def names(monkeypatch):
    "Names that lead to addresses"
    known = {"debian": "127.0.1.1", "node7": "10.1.2.3", "localhost": "127.0.0.1"}

    def look(name):
        if name in known:
            return known[name]
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "gethostbyname", look)
    return monkeypatch


@pytest.mark.parametrize("name, text", [("debian", "leads to 127.0.1.1"), ("nowhere", "is not known here")])
def test_a_host_name_that_leads_nowhere_asks_for_the_address(names, name, text):
    names.setattr(socket, "gethostname", lambda: name)
    with pytest.raises(InputError, match=text) as caught:
        parsl_config(Machines(engine="slurm", workers=1, threads=1), Path("parsl"))
    assert repr(name) in str(caught.value) and "give address the IP address" in str(caught.value)
    config = parsl_config(Machines(engine="slurm", workers=1, threads=1, address="10.9.8.7"), Path("parsl"))
    assert config.executors[0].address == "10.9.8.7"
    assert parsl_config(Machines(workers=1, threads=1), Path("parsl")).executors[0].address == "127.0.0.1"


def test_a_name_as_address(names):
    config = parsl_config(Machines(engine="slurm", workers=1, threads=1, address="node7"), Path("parsl"))
    assert config.executors[0].address == "10.1.2.3" == reachable_address("node7")
    for name in ("node8", "localhost", "a" * 80, "\u00e4..b", "10.0.0", "10.0.0.300"):
        with pytest.raises(InputError, match="give address the IP address"):
            reachable_address(name)
    assert reachable_address("127.0.0.1") == "127.0.0.1"  # said outright: all on one machine


# ---- no home, no name

NOBODY = 54321  # A user id without a name
AS_NOBODY = f"""import os, sys
from ddrobust_nb.foundations import datasets
from ddrobust_nb.results.cell_rows import run_stages
from ddrobust_nb.results.plan import plan_cell
import torch, tempfile
given = dict(dataset="digits", method="random", ipc=1, n_models=1, n_test=20, network="ConvNetD3-w8",
    distill_network="ConvNetD3-w8", attacks="fgsm@8/255", device="cpu", recipe=dict(epochs=3))
os.environ["HOME"] = "/tmp"
run_stages(plan_cell(**given, store=tempfile.mkdtemp()))  # imports everything as root
del os.environ["HOME"]
folder = tempfile.mkdtemp(); os.chmod(folder, 0o777); os.chdir(folder)
os.setgroups([]), os.setgid({NOBODY}), os.setuid({NOBODY})
try:
    os.path.expanduser("~") == "~" or sys.exit("there is a home")
    rows = run_stages(plan_cell(**given, store=folder + "/store")).rows
    print(len(rows), datasets.find_root() == datasets.Path(folder).resolve() / "ddrobust-data")
finally:
    os.chdir("/")
"""


@pytest.mark.skipif(not hasattr(os, "setuid") or os.geteuid() != 0, reason="changes the user id")
def test_a_user_without_name_and_home_runs_a_cell():
    gone = dict.fromkeys(("DDROBUST_DATA", "DDROBUST_STORE", "USER", "LOGNAME", "USERNAME", "LNAME"))
    assert python(AS_NOBODY, DDROBUST_COMPILE="never", DDROBUST_AUTOSAVE="0", **gone) == "1 True"


def test_without_a_home_slurm_asks_for_a_folder(monkeypatch, tmp_path):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(InputError, match="no home folder: give folder"):
        _private_folder(Machines(engine="slurm"))
    assert _private_folder(Machines(engine="slurm", folder=str(tmp_path))).parent == tmp_path


# ---- another Python


def kernel(monkeypatch, tmp_path, program):
    "The kernel `python3`, as somebody installed it for another Python"
    folder = tmp_path / "jupyter" / "kernels" / "python3"
    folder.mkdir(parents=True)
    listed = dict(argv=[str(program), "-m", "ipykernel_launcher", "-f", "{connection_file}"])
    (folder / "kernel.json").write_text(json.dumps(listed | dict(display_name="x", language="python")))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    return folder


def notebook(tmp_path):
    cells = [dict(cell_type="code", id="a", metadata={}, source="1 + 1", outputs=[], execution_count=None)]
    spec = dict(kernelspec=dict(name="python3", display_name="python3", language="python"))
    file = tmp_path / "run_cell.ipynb"
    file.write_text(json.dumps(dict(cells=cells, metadata=spec, nbformat=4, nbformat_minor=5)))
    return str(file)


def test_a_kernel_of_another_python_is_named(monkeypatch, tmp_path):
    "One that has no ipykernel, and one that is gone"
    other = tmp_path / "other" / "bin" / "python"
    folder = kernel(monkeypatch, tmp_path, other)
    report = run_notebook(notebook(tmp_path), {}, str(tmp_path / "gone"))
    assert report.state == "failed" and "FileNotFoundError" in report.error
    other.parent.mkdir(parents=True)
    other.write_text("#!/bin/sh\necho No module named ipykernel >&2\nexit 1\n"), other.chmod(0o755)
    report = run_notebook(notebook(tmp_path), {}, str(tmp_path / "dies"))
    assert report.state == "failed" and "before replying" in report.error
    for part in (str(other), sys.executable, f"remove {folder}"):
        assert part in report.error
    assert "\n" not in report.error and (tmp_path / "dies" / "failed.json").is_file()


def test_the_own_kernel_that_dies_is_tried_again(monkeypatch, tmp_path):
    "By an absolute path in the same folder: this Python"
    import papermill

    kernel(monkeypatch, tmp_path, sys.executable)

    def dies(*a, **k):
        raise RuntimeError("Kernel died before replying to kernel_info")

    monkeypatch.setattr(papermill, "execute_notebook", dies)
    with pytest.raises(RuntimeError, match="before replying"):
        run_notebook(notebook(tmp_path), {}, str(tmp_path / "out"))


def test_a_kernel_of_another_python_that_works_is_not_blamed(monkeypatch, tmp_path):
    "It died later: killed, and therefore tried again"
    import papermill

    kernel(monkeypatch, tmp_path, "/opt/other/bin/python")

    def dies(*a, **k):
        raise RuntimeError("Kernel died")

    monkeypatch.setattr(papermill, "execute_notebook", dies)
    with pytest.raises(RuntimeError, match="Kernel died"):
        run_notebook(notebook(tmp_path), {}, str(tmp_path / "out"))

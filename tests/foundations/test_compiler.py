"A compiler that is there and does not work: found out once, then everything runs in plain PyTorch with one warning."

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ddrobust_nb.foundations import compiling
from ddrobust_nb.foundations.data import specs
from ddrobust_nb.foundations.compiling import (
    NotCompiled,
    compiled,
    compiled_static,
    compiler_error,
    compiler_trouble,
    cpp_compiler,
)
from ddrobust_nb.foundations.networks import make_network

pytestmark = pytest.mark.skipif(not cpp_compiler(), reason="no C++ compiler")


# ---- what is found out, and how often


@pytest.fixture
def attempts(monkeypatch):
    "The devices for which something tiny was compiled; nothing is known before or after"
    devices = []
    monkeypatch.setattr(compiling, "_compile_something", devices.append)
    compiler_trouble.cache_clear()
    yield devices
    compiler_trouble.cache_clear()


def test_a_compiler_is_tried_once_and_only_for_work_that_is_worth_it(attempts, monkeypatch):
    monkeypatch.delenv("DDROBUST_COMPILE", raising=False)
    net = make_network("ConvNetD3", specs["cifar10"])
    assert compiled(net.body, net, passes=100) is net.body and attempts == []
    assert compiled(net.body, net, passes=10**7) is not net.body and compiled_static(net.body) is not net.body
    assert attempts == ["cpu"]


def test_each_kind_of_device_is_tried(attempts):
    (
        compiled_static(torch.sin, "cpu"),
        compiled_static(torch.sin, torch.device("cuda:0")),
        compiled_static(torch.sin, "cuda"),
    )
    assert attempts == ["cpu", "cuda"]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("no headers"),
        OSError(30, "Read-only file system"),
        ImportError("built.so: failed to map segment"),
        AttributeError("a part of PyTorch has another name"),
    ],
)
def test_whatever_is_raised_leads_to_plain_pytorch(error, attempts, monkeypatch):
    def raises(device):
        raise error

    monkeypatch.setattr(compiling, "_compile_something", raises)
    for _ in range(2):  # known by now, and still told
        with pytest.warns(NotCompiled, match="torch.compile does not work here") as seen:
            assert compiled_static(torch.sin) is torch.sin
        assert str(error) in str(seen[0].message)


def test_an_interruption_is_no_reason(attempts, monkeypatch):
    def stops(device):
        raise KeyboardInterrupt

    monkeypatch.setattr(compiling, "_compile_something", stops)
    with pytest.raises(KeyboardInterrupt):
        compiled_static(torch.sin)


@pytest.mark.parametrize(
    "text, line",
    [
        (
            "C++ compile error\n\nCommand:\ng++ -Werror x.cpp\n\nOutput:\nIn file included from x.cpp:1:\nx.cpp:3:10: fatal error: Python.h: No such file\n",
            "x.cpp:3:10: fatal error: Python.h: No such file",
        ),
        (
            "C++ compile error\n\nOutput:\nld: cannot find -lgomp\ncollect2: error: ld returned 1",
            "ld: cannot find -lgomp",
        ),
        ("\n  killed\n", "killed"),
        ("", "no reason was given"),
        ("error: " + "x" * 1000, "error: " + "x" * 293),
    ],
)
def test_one_line_says_why(text, line):
    assert compiler_error(text) == line


# ---- whole processes

PROGRAM = """
import json, os, sys, warnings
from dataclasses import replace
import torch
from ddrobust_nb.foundations.data import specs
from ddrobust_nb.foundations.networks import make_network
from ddrobust_nb.fast.fused import accelerated
sys.path.insert(0, {tests!r})
from tiny import tiny_data
from ddrobust_nb.training.fit import Recipe, fit

torch.set_num_threads(1)
seen = []
warnings.showwarning = lambda message, category, *_: seen.append((category.__name__, str(message)))
warnings.simplefilter("always")
def trained():
    net = fit(tiny_data(), network="ConvNetD3-w8", recipe=Recipe(epochs=1, check_every=0), device="cpu")
    return torch.cat([p.detach().flatten() for p in net.parameters()])
weights = trained()
os.environ["DDROBUST_COMPILE"] = "never"
same = torch.equal(weights, trained())
asked = {{}}
for name in ("ConvNetD3-w16", "ResNet18-w8"):
    net = make_network(name, specs["cifar10"]).eval().requires_grad_(False)
    fast, x = accelerated(net, "cpu"), torch.rand(3, 3, 32, 32)
    asked[name] = type(fast).__name__, (fast(x) - net(x)).abs().max().item()
print(json.dumps(dict(same=same, asked=asked, seen=seen)))
"""

BROKEN = {  # What the script does before it hands over to the compiler, the line of the warning, and which way ConvNets are asked
    "no headers of Python": (
        "case \"$*\" in *include/python*) echo 'main.cpp:1:10: fatal error: Python.h: No such file or directory' >&2; exit 1;; esac",
        "Python.h",
        "FusedConvNet",
    ),
    "no OpenMP": (
        "case \"$*\" in *-fopenmp*) echo 'ld: cannot find -lgomp' >&2; exit 1;; esac",
        "cannot find -lgomp",
        "Network",
    ),
    "no back end": (
        'case "$*" in *--version*) ;; *) echo "g++: fatal error: cannot execute \'cc1plus\'" >&2; exit 1;; esac',
        "cannot execute 'cc1plus'",
        "Network",
    ),
    "nothing works": ("echo 'error: wrong architecture' >&2; exit 1", "", "Network"),
}


def answer(folder, environment):
    "What the program prints, in a process of its own"
    import json

    program = PROGRAM.format(tests=str(Path(__file__).resolve().parents[1]))
    settings = (
        os.environ
        | {
            "DDROBUST_COMPILE": "always",
            "DDROBUST_QUIET": "1",
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "cache"),
        }
        | environment
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=settings, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def check_plain(said, reason, way):
    "Uncompiled results, and a warning that says why in one line"
    told = [message for category, message in said["seen"] if category == "NotCompiled"]
    assert said["same"] and told and all(reason in m and "\n" not in m for m in told if "torch.compile" in m)
    assert any("torch.compile does not work here" in m for m in told)
    kinds = {name: kind for name, (kind, _) in said["asked"].items()}
    assert kinds == {"ConvNetD3-w16": way, "ResNet18-w8": "Network"}
    assert all(apart < 1e-4 for _, apart in said["asked"].values())


def broken(way, folder):
    script = folder / "g++"
    script.write_text(
        f'#!/bin/sh\n{BROKEN[way][0]}\nexec {compiling.shutil.which("g++") or cpp_compiler()} "$@"\n'
    )
    script.chmod(0o755)
    return answer(folder, {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "CXX": str(script)})


QUICK = "no back end"  # The cheapest of them


@pytest.mark.parametrize(
    "way", [QUICK, *(pytest.param(way, marks=pytest.mark.slow) for way in BROKEN if way != QUICK)]
)
def test_a_compiler_that_does_not_work(way, tmp_path):
    check_plain(broken(way, tmp_path), *BROKEN[way][1:])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no folder that not even root can write")
def test_a_folder_for_compiled_code_that_cannot_be_written(tmp_path):
    check_plain(answer(tmp_path, {"TORCHINDUCTOR_CACHE_DIR": "/proc"}), "/proc", "FusedConvNet")


@pytest.mark.slow
def test_a_compiler_that_works_is_used_and_leaves_nothing_behind(tmp_path):
    said = answer(tmp_path, {})
    assert said["seen"] == [] and {kind for kind, _ in said["asked"].values()} == {
        "FusedConvNet",
        "OptimizedModule",
    }
    before = compiling.compiler_trouble.cache_info()
    compiling._compile_something("cpu")  # beside the folder's own files, only for a moment
    folder = Path(torch._inductor.codecache.cache_dir())
    assert before == compiling.compiler_trouble.cache_info() and not list(folder.glob("tmp*/*"))

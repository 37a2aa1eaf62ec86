"`from ddrobust_nb.all import *` gives what a user explores with; `import ddrobust_nb as ddr` gives the same, lazily"

import subprocess
import sys

import pytest
import torch

import ddrobust_nb as ddr
from ddrobust_nb import all as everything
from ddrobust_nb.attacks.attack import attack
from ddrobust_nb.foundations.core import InputError
from ddrobust_nb.results.report import results_table
from ddrobust_nb.training.distiller import distiller
from ddrobust_nb.results.rows import example_row
from tiny import tiny_data

EXPECTED = (
    "load_data make_network fit evaluate AttackConfig load_set save_set show table plan_cell run_stages "
    "band_share show_spectra fourier_heat_map similarity distiller attack dataset network predict accuracy"
).split()


def run(program):
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_all_gives_what_a_user_explores_with():
    namespace = {}
    exec("from ddrobust_nb.all import *", namespace)
    assert set(EXPECTED) <= set(namespace)
    assert len(everything.__all__) == len(set(everything.__all__))


@pytest.mark.parametrize("registry", [distiller, attack], ids=["distillers", "attacks"])
def test_every_method_is_there(registry):
    for name, method in registry.items():
        assert getattr(everything, name.replace("-", "_")) is method


def test_no_module_of_python_is_hidden():
    assert not set(everything.__all__) & set(sys.stdlib_module_names)
    assert ddr.random is distiller["random"]


def test_the_prefix_gives_the_same():
    assert all(getattr(ddr, name) is getattr(everything, name) for name in everything.__all__)
    assert set(everything.__all__) <= set(dir(ddr))
    assert ddr.foundations.data.Spec is everything.Spec
    assert isinstance(ddr.__version__, str)
    with pytest.raises(AttributeError, match="no attribute 'load_dat'"):
        _ = ddr.load_dat


def test_importing_the_package_is_quick_and_imports_no_chapter():
    program = """
import sys, time, torch
start = time.perf_counter()
import ddrobust_nb
seconds = time.perf_counter() - start
print(seconds, len([name for name in sys.modules if name.startswith("ddrobust_nb.")]))
"""
    seconds, modules = run(program).split()
    assert float(seconds) < 0.5 and int(modules) == 0


def test_a_first_name_imports_what_it_needs():
    assert run("import ddrobust_nb as ddr; print(ddr.load_data('digits').spec.name)") == "digits"
    assert run("from ddrobust_nb import load_data; print(load_data.__name__)") == "load_data"
    assert (
        run("from ddrobust_nb import foundations; print(foundations.__name__)") == "ddrobust_nb.foundations"
    )


def test_show_and_table_take_what_a_user_has():
    data = tiny_data(counts=(6, 6, 6, 6), tests=3)
    net = ddr.make_network("ConvNetD3-w8", data.spec).eval()
    x = ddr.as_pixels(data.test_images)
    assert ddr.show(x).size == ddr.show(data.test_images).size
    assert ddr.show(x[0]).size[0] == x.shape[-1]
    assert ddr.show(data) is data
    assert ddr.show(ddr.DistilledSet(data.spec, x[:4], torch.arange(4))) is not None
    evaluations = ddr.evaluate(net, data, "fgsm@8/255", n_test=12, device="cpu")
    assert ddr.show(evaluations).equals(ddr.table(evaluations))
    assert ddr.table(evaluations[0]).index.tolist() == ["fgsm@8/255"]
    assert len(ddr.show([example_row()])) > 0


@pytest.mark.parametrize("thing", [3, "digits", None, torch.zeros(3)])
def test_show_refuses_what_it_cannot_draw(thing):
    with pytest.raises(InputError):
        ddr.show(thing)


def test_an_empty_list_is_an_empty_table():
    assert ddr.table([]).empty and results_table([]).empty and len(ddr.show([])) == 0

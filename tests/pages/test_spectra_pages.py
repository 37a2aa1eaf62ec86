"The pages about spectra: with sets, without them, with CIFAR-10 and without."

import shutil
from pathlib import Path

import pytest
import torch
from page_runs import run_page
from PIL import Image

from ddrobust_nb.foundations.core import generator
from ddrobust_nb.results.keeping import FIGURES, files_of

ANALYSIS = Path(__file__).resolve().parents[2] / "nbs" / "analysis"
KEPT = {
    "30_similarity": ["similarity/table-4"],
    "70_band_energy": ["band-energy/figure-4", "band-energy/figure-5"],
    "80_images": ["images-spectra/figure-6"],
}


def files_wanted(page):
    "The files that a page keeps where it has all it needs"
    return {file for figure in KEPT[page] for file in files_of(figure)}


def run(page, tmp_path, **parameters):
    "What a page shows, and the files it leaves"
    figures = tmp_path / "figures"
    text = run_page(ANALYSIS / f"{page}.ipynb", figures=str(figures), **parameters)
    files = {str(file.relative_to(figures)) for file in figures.rglob("*") if file.is_file()}
    return text, files


@pytest.fixture
def no_data(tmp_path, monkeypatch):
    "A folder without any dataset, which is where datasets are looked for"
    folder = tmp_path / "empty"
    (folder / "something").mkdir(parents=True)
    monkeypatch.setenv("DDROBUST_DATA", str(folder))
    return folder


@pytest.fixture(scope="module")
def few_images(tmp_path_factory):
    "A folder with a CIFAR-10 of noise: 50 training and 200 test images for each of ten classes"
    root = tmp_path_factory.mktemp("data")
    g = generator(0, "few images")
    for half, n in (("train", 50), ("test", 200)):
        for label in range(10):
            folder = root / "cifar10" / half / str(label)
            folder.mkdir(parents=True)
            for number, pixels in enumerate(
                torch.randint(256, (n, 32, 32, 3), dtype=torch.uint8, generator=g)
            ):
                Image.fromarray(pixels.numpy()).save(folder / f"{number}.png", compress_level=1)
    return root


@pytest.mark.parametrize("page", KEPT)
def test_without_sets_and_without_data(page, tmp_path, no_data):
    "Each page says what it lacks, and keeps only what it can"
    text, files = run(page, tmp_path, sets=str(no_data))
    assert ("CIFAR-10 is not here" in text) == (page != "80_images")
    assert ("Missing: " in text) == (page != "30_similarity")
    assert files == (files_wanted(page) if page != "80_images" else set())
    if page == "30_similarity":
        assert "0.7862" in text and "not run" in text  # the paper's numbers


@pytest.mark.parametrize("page", ["70_band_energy", "80_images"])
def test_with_sets_and_without_data(page, tmp_path, no_data):
    "The sets alone fill the figures"
    text, files = run(page, tmp_path)
    assert files == files_wanted(page)
    assert files <= {file for figure in FIGURES for file in files_of(figure)}
    assert "Missing: " not in text
    if page == "70_band_energy":
        assert "DM at 1 image per class has very little low-frequency energy" in text
        assert "cannot be decided here" not in text


MISSING = {
    "70_band_energy": "Missing: dc at 10.",
    "80_images": "Missing: DC, 10 per class, least high frequency; DC, 10 per class, most high frequency.",
}


@pytest.mark.parametrize("page, message", MISSING.items())
def test_one_set_is_missing(page, message, tmp_path, no_data):
    "The page names it and draws the others"
    without = shutil.ignore_patterns("cifar10-dc-ipc10")
    shutil.copytree(ANALYSIS.parent / "sets", tmp_path / "sets", ignore=without)
    text, files = run(page, tmp_path, sets=str(tmp_path / "sets"))
    assert message in text and files == files_wanted(page)
    if page == "70_band_energy":
        assert text.count("cannot be decided here") >= 2


@pytest.mark.parametrize("page", ["30_similarity", "70_band_energy"])
def test_with_few_images(page, tmp_path, few_images):
    "Everything that a page does with real images, on some that take no time"
    text, files = run(page, tmp_path, data_root=str(few_images))
    assert "CIFAR-10 is here: 500 training images" in text and files == files_wanted(page)
    assert "CIFAR-10 is not here" not in text


@pytest.mark.slow
@pytest.mark.parametrize("page", ["30_similarity", "70_band_energy"])
def test_with_real_images(page, tmp_path, data_root):
    "The whole of CIFAR-10"
    text, files = run(page, tmp_path, data_root=str(data_root))
    assert "CIFAR-10 is here" in text and files == files_wanted(page)

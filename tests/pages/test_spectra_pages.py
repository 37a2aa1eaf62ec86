"The pages about spectra: with sets, without them, with CIFAR-10 and without."

import shutil
from pathlib import Path

import papermill
import pytest

from ddrobust_nb.results.keeping import FIGURES, files_of

ANALYSIS = Path(__file__).resolve().parents[2] / "nbs" / "analysis"
KEPT = {
    "30_similarity": ["similarity/table-4"],
    "70_band_energy": ["band-energy/figure-4", "band-energy/figure-5"],
    "80_images": ["images-spectra/figure-6"],
}


def run(page, tmp_path, **parameters):
    "What the page says, and the files it leaves"
    nb = papermill.execute_notebook(
        ANALYSIS / f"{page}.ipynb",
        None,
        dict(figures=str(tmp_path / "figures"), **parameters),
        cwd=ANALYSIS,
        progress_bar=False,
    )
    said = [
        o.get("data", {}).get("text/markdown", "")
        + o.get("data", {}).get("text/html", "")
        + o.get("data", {}).get("text/plain", "")
        for c in nb.cells
        for o in c.get("outputs", [])
    ]
    return "\n".join(said), {
        str(f.relative_to(tmp_path / "figures")) for f in (tmp_path / "figures").rglob("*") if f.is_file()
    }


@pytest.mark.parametrize("page", KEPT)
def test_without_sets_and_without_data(page, tmp_path, monkeypatch):
    (tmp_path / "empty" / "something").mkdir(parents=True)
    monkeypatch.setenv("DDROBUST_DATA", str(tmp_path / "empty"))
    said, files = run(page, tmp_path, sets=str(tmp_path / "empty"))
    assert ("CIFAR-10 is not here" in said) == (page != "80_images") and ("Missing: " in said) == (
        page != "30_similarity"
    )
    want = {f for name in KEPT[page] for f in files_of(name)} if page != "80_images" else set()
    assert files == want
    if page == "30_similarity":
        assert "0.7862" in said and "not run" in said  # the paper's numbers


@pytest.mark.parametrize("page", ["70_band_energy", "80_images"])
def test_with_sets_and_without_data(page, tmp_path, monkeypatch):
    (tmp_path / "empty" / "something").mkdir(parents=True)
    monkeypatch.setenv("DDROBUST_DATA", str(tmp_path / "empty"))
    said, files = run(page, tmp_path)
    assert (
        files
        == {f for name in KEPT[page] for f in files_of(name)}
        <= {f for name in FIGURES for f in files_of(name)}
    )
    assert "Missing: " not in said
    if page == "70_band_energy":
        assert (
            "DM at 1 image per class has very little low-frequency energy" in said
            and "cannot be decided here" not in said
        )


@pytest.mark.parametrize(
    "page, missing",
    [
        ("70_band_energy", "Missing: dc at 10."),
        (
            "80_images",
            "Missing: DC, 10 per class, least high frequency; DC, 10 per class, most high frequency.",
        ),
    ],
)
def test_one_set_is_missing(page, missing, tmp_path, monkeypatch):
    (tmp_path / "empty" / "something").mkdir(parents=True)
    monkeypatch.setenv("DDROBUST_DATA", str(tmp_path / "empty"))
    shutil.copytree(
        ANALYSIS.parent / "sets", tmp_path / "sets", ignore=shutil.ignore_patterns("cifar10-dc-ipc10")
    )
    said, files = run(page, tmp_path, sets=str(tmp_path / "sets"))
    assert missing in said and files == {f for name in KEPT[page] for f in files_of(name)}
    if page == "70_band_energy":
        assert said.count("cannot be decided here") >= 2


@pytest.mark.slow
@pytest.mark.parametrize("page", ["30_similarity", "70_band_energy"])
def test_with_real_images(page, tmp_path, data_root):
    said, files = run(page, tmp_path, data_root=str(data_root))
    assert "CIFAR-10 is here" in said and files == {f for name in KEPT[page] for f in files_of(name)}

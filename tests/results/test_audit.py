"The audit page as a reader runs it: every claim's verdict is computed again, and its files appear."

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from ddrobust_nb.results.paper import paper_anomalies, paper_claims

NOTEBOOK = Path(__file__).resolve().parents[2] / "nbs" / "analysis" / "90_audit.ipynb"


def papermill(folder):
    "The page, run in a folder of its own with `figures` set; it needs nothing but the package"
    shutil.copy(NOTEBOOK, folder)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DDROBUST_")} | {
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "agg",
    }
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "papermill",
            NOTEBOOK.name,
            "ran.ipynb",
            "-p",
            "figures",
            "kept",
            "--no-progress-bar",
        ],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    "The folder of files that the page keeps"
    folder = tmp_path_factory.mktemp("audit")
    ran = papermill(folder)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return folder / "kept"


def table(kept, name):
    return pd.read_csv(kept / "audit" / f"{name}.csv", dtype=str, keep_default_na=False)


def test_every_verdict_is_that_of_the_list(kept):
    packaged, computed = paper_claims(), table(kept, "claims")
    assert len(computed) == 15
    assert (
        computed["claim"].tolist() == packaged["claim"].tolist()
        and computed["computed"].tolist() == packaged["holds"].tolist()
    )
    assert set(computed["agrees"]) == {"True"}


def test_the_numbers_are_those_of_the_evidence(kept):
    for (_, row), evidence in zip(table(kept, "claims").iterrows(), paper_claims()["evidence"], strict=True):
        assert row["sentences"] and all(sentence in evidence for sentence in row["sentences"].split("; ")), (
            row["claim"]
        )
    left = table(kept, "claims").set_index("claim")["numbers not computed"]
    assert left[left != ""].tolist() == ["1000, 224, 18, 10, 128"]  # classes, pixels and a network: settings
    assert table(kept, "claims").loc[[0, 3, 5, 13, 14], "counts"].tolist() == [
        "218/300 pairs",
        "283/360 cells",
        "192/360 cells",
        "47/48 steps",
        "177/186 cells",
    ]


def test_every_anomaly_is_found_again(kept):
    listed, found = paper_anomalies(), table(kept, "anomalies")
    ways = found[["with margins", "without margins", "rules of this page"]] == "True"
    assert found["printed"].tolist() == listed["printed"].tolist() and ways.any(axis=1).all()
    assert ways.sum().tolist() == [37, 104, 39]
    assert Counter(found.loc[ways["with margins"], "level"]) == {
        "wrong_setting": 30,
        "likely_typo": 4,
        "suspect": 3,
    }


def test_the_files(kept):
    assert sorted(str(p.relative_to(kept)) for p in kept.rglob("*") if p.is_file()) == [
        "audit/anomalies.csv",
        "audit/anomalies.png",
        "audit/claims.csv",
        "audit/claims.png",
    ]


def test_without_a_folder_nothing_is_written():
    "The default is no folder: the page can be read and run without leaving anything"
    (first,) = [
        c
        for c in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
        if "parameters" in c["metadata"].get("tags", [])
    ]
    assert "".join(first["source"]).startswith('figures: str = ""')

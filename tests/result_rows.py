"Rows that tests of results start from: the example of the page of rows, with other values where a test needs them"

from dataclasses import asdict

from ddrobust_nb.results.rows import example_row


def row_fields(**changes):
    "The fields of a row, as a dictionary"
    return asdict(example_row()) | changes


ROW = example_row(
    dataset="digits",
    method="dm",
    protocol="full",
    attack="fgsm",
    set_key="a" * 16,
    best=False,
    eps="8/255",
    eps_255=8.0,
    steps=1,
    alpha=None,
    n_clean=500,
    clean=0.8,
    clean_last=0.8,
    clean_best=0.9,
    n=100,
    clean_n=0.8,
    drop_rate=0.375,
    device="cpu",
    versions="demo 1",
    data_fingerprint="d" * 16,
    key="k",
)

"""A key says what a stored result is. Keys of results that would come out the same must never change, or stores are computed again for nothing.

`stage_keys.json` holds the keys of many cells on stand-in data, as this code makes them, and those that older code made where numbers changed in between.
After a change of numbers that was meant (a raised version, a revision of one case): `python tests/results/test_keys.py --record` puts the new key before the old one."""

import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import pytest  # noqa: E402
import torch  # noqa: E402

from ddrobust_nb.foundations.data import Data, specs  # noqa: E402
from ddrobust_nb.training.distiller import distiller  # noqa: E402
from ddrobust_nb.grid.plan import placeholder_data  # noqa: E402
from ddrobust_nb.results.plan import plan_cell  # noqa: E402
from ddrobust_nb.results.sources import needed_parts  # noqa: E402
from ddrobust_nb.results.stages import attack_key  # noqa: E402
from ddrobust_nb.results.mixing_run import mixing_config, plan_mixing  # noqa: E402

RECORD = HERE / "stage_keys.json"


def shape_of(name):
    "A dataset's shape, with a fixed fingerprint and without its images"
    if name != "digits":
        return placeholder_data(name)
    labels = torch.arange(1797) % 10
    return Data(
        specs[name],
        torch.empty(1297, 1, 32, 32, dtype=torch.uint8, device="meta"),
        labels[:1297],
        torch.empty(500, 1, 32, 32, dtype=torch.uint8, device="meta"),
        labels[:500],
        "digits, not here",
    )


def planned(store, data, **given):
    return plan_cell(data=data, dataset=data.spec.name, device="cpu", store=str(store), **given)


def keys_of(cell, attacks=False):
    "The keys of all that a cell makes; of its models the first"
    found = {
        "parts": list(needed_parts(cell)),
        "set": cell.set_key,
        "model": cell.model_keys[0],
        "cell": cell.key,
    }
    if attacks:
        found["attacks"] = {str(t): attack_key(cell, cell.model_keys[0], t) for t in cell.configs}
    return found


def plain_cases(store):
    "Every method under every protocol"
    for dataset in ("digits", "cifar10", "tinyimagenet", "imagenet1k"):
        data = shape_of(dataset)
        methods = [m for m in distiller if dataset != "imagenet1k" or m in ("sre2l", "dm", "tesla", "whole")]
        for protocol in ("quick", "full", "paper"):
            for method in methods:
                for ipc in (1, 10) if method != "whole" else (1,):
                    cell = planned(store, data, method=method, ipc=ipc, protocol=protocol)
                    yield (
                        f"{dataset}, {method}, ipc {ipc}, {protocol}",
                        keys_of(cell, attacks=method == "dm" and ipc == 1 and dataset != "imagenet1k"),
                    )


def special_cases(store):
    "Options, networks and attacks that are not the usual ones"
    data = shape_of("cifar10")
    cases = {
        "options": dict(method="dm", options=dict(iterations=5, lr_img=1, init="noise", augment="")),
        "frequency": dict(method="dc", options=dict(frequency={"keep": [0, 8]})),
        "mtt, stored gradient": dict(method="mtt", options=dict(backprop="stored", iterations=3)),
        "sre2l, groups and jpeg": dict(method="sre2l", options=dict(groups=2, pixels="jpeg")),
        "dm with batch norm": dict(method="dm", distill_network="ResNet18"),
        "dm with batch norm, narrow": dict(method="dm", distill_network="ResNet18-w8"),
        "dm attacked on a narrow ResNet18": dict(method="dm", network="ResNet18-w8"),
        "dm attacked on ResNet18": dict(method="dm", network="ResNet18"),
        "width": dict(method="dm", network="ConvNetD3-w64", distill_network="ConvNetD3-w32"),
        "seed, select, n_test, n_models": dict(
            method="dm", seed=7, select="best_test", n_test=50, n_models=1
        ),
        "attacks": dict(
            method="random",
            attacks="fgsm@1/255,pgd@12/255@7,cw@0.1@3,ta:TIFGSM@8/255,pyautoattack:aa-standard@1/255,square@2/255,uniform@2/255",
        ),
    }
    for name, given in cases.items():
        yield name, keys_of(planned(store, data, **given), attacks=True)


def given_cases(store):
    "A ready set, and mixtures"
    data = shape_of("cifar10")
    from safetensors.torch import save_file

    folder = Path(store) / "given"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {"images": torch.full((10, 3, 32, 32), 0.25), "labels": torch.arange(10)}, folder / "set.safetensors"
    )
    yield (
        "a given set",
        keys_of(
            planned(
                store, data, method="other", ipc=1, distilled=str(folder / "set.safetensors"), space="pixels"
            ),
            attacks=True,
        ),
    )
    run = plan_mixing(
        data=data,
        dataset="cifar10",
        sets="none,dm,random",
        ipc=10,
        n_train=1000,
        device="cpu",
        store=str(store),
    )
    yield "mixing", {"run": run.cell.key, "set": run.cells["dm"].key, "config": sorted(mixing_config(run))}


def all_keys(store):
    return {name: keys for cases in (plain_cases, special_cases, given_cases) for name, keys in cases(store)}


def read():
    return json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else {}


def record(now):
    "The newest first; what was before stays as history"
    was = read()
    for name, keys in now.items():
        history = was.setdefault(name, [])
        if not history or history[0] != keys:
            history.insert(0, keys)
    RECORD.write_text(
        "{\n" + ",\n".join(f"{json.dumps(n)}: {json.dumps(h)}" for n, h in was.items()) + "\n}\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    import tempfile

    if sys.argv[1:] != ["--record"]:
        sys.exit("usage: python tests/results/test_keys.py --record")
    with tempfile.TemporaryDirectory() as place:
        record(all_keys(place))
    sys.exit()


# ---- the tests


@pytest.fixture(scope="module")
def now(tmp_path_factory):
    return all_keys(tmp_path_factory.mktemp("store"))


def test_keys_are_those_of_the_record(now):
    recorded = {name: history[0] for name, history in read().items() if name in now}
    changed = {name: (recorded.get(name), keys) for name, keys in now.items() if recorded.get(name) != keys}
    assert not changed, (
        f"keys changed, so stores would be computed again: {list(changed)}; if the numbers were meant to change: python tests/results/test_keys.py --record"
    )


def test_no_case_is_lost(now):
    assert set(read()) == set(now)

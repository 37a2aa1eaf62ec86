"A model of somebody else in a cell: the same numbers as by hand, in the key whatever decides them, and old keys as they were."

import json
from dataclasses import replace

import pytest
import torch
from foreign.model_files import coloured, data, plain, renamed, trained, with_constants
from safetensors.torch import save_file
from tiny import tiny_data

from ddrobust_nb.foundations.core import InputError
from ddrobust_nb.foundations.networks import make_network
from ddrobust_nb.foundations.predict import accuracy
from ddrobust_nb.results.plan import plan_cell, summary
from ddrobust_nb.results.cell_rows import run_stages, write_out
from ddrobust_nb.results.stages import attack_key
from ddrobust_nb.results.store import sha256_of

HALF = ((0.5,) * 3, (0.5,) * 3)


def planned(tmp_path, file, with_data=None, **given):
    usual = dict(attacks="fgsm@2/255", n_test=50, device="cpu", store=str(tmp_path / "store"))
    return plan_cell(data=with_data or data(), dataset="cifar10", checkpoint=str(file), **usual | given)


def test_a_resnet_in_half_space_from_file_to_rows(tmp_path):
    net = trained("ResNet18-w16", "half")
    state = {f"module.{name}": tensor for name, tensor in plain(net).items()}
    torch.save(
        {"net": renamed(state, (r"downsample\.", "shortcut."), (r"\bfc\.", "linear.")), "acc": 90.0},
        tmp_path / "ckpt.pth",
    )
    cell = planned(tmp_path, tmp_path / "ckpt.pth")
    assert (cell.network, cell.source.reading.habit.name) == ("ResNet18-w16", "half")
    assert "half ((x - 0.5) / 0.5, in [-1,1])" in summary(cell) and "left out: acc" in summary(cell)
    done = run_stages(cell)
    right = accuracy(with_constants(net, HALF), data().test_images, data().test_labels)
    assert {row.clean for row in done.rows} == {right} and done.rows[0].network == "ResNet18-w16"
    assert not {"chance", "permuted"} & set(done.rows[0].warnings)
    write_out(done)
    [model] = cell.out.glob("model-*.safetensors")
    again = planned(tmp_path, model)  # what a cell leaves is read back without a trial
    assert again.source.reading.trial is None and run_stages(again).rows[0].clean == right


def test_old_checkpoints_keep_their_keys(tmp_path):
    "Our own files, and bodies under the constants of the dataset, are stored under the digest of the file alone"
    net = make_network("ConvNetD3-w4", tiny_data(counts=(400, 400, 400)).spec)
    save_file(net.state_dict(), tmp_path / "own.safetensors")
    save_file(plain(net), tmp_path / "body.safetensors")
    for name, given in (("own", {}), ("body", dict(network="ConvNetD3-w4", normalise="dc"))):
        file = tmp_path / f"{name}.safetensors"
        cell = planned(tmp_path, file, tiny_data(), n_test=9, **given)
        assert cell.model_keys == [sha256_of(file)[:16]]
        assert cell.source.fingerprints() == dict(ready="", checkpoint=sha256_of(file))


def test_what_decides_the_numbers_is_in_the_key(tmp_path):
    file = tmp_path / "x.pth"
    torch.save({"model": plain(trained("ConvNetD3-w16")), "ema": plain(trained("ConvNetD3-w16"))}, file)
    cells = [
        planned(tmp_path, file, normalise="dc"),
        planned(tmp_path, file, normalise="half"),
        planned(tmp_path, file, normalise="0.5/0.25"),
        planned(tmp_path, f"{file}#ema", normalise="dc"),
        planned(tmp_path, file, normalise="dc", network="ConvNetD3-w16-norm=group"),
    ]
    assert (
        len({cell.key for cell in cells})
        == len({attack_key(c, c.model_keys[0], c.configs[0]) for c in cells})
        == len(cells)
    )
    assert planned(tmp_path, file, normalise="dc").key == cells[0].key
    assert planned(tmp_path, file).key == cells[0].key  # found to be the same by a trial


def test_the_code_behind_an_import_path_is_in_the_key(tmp_path, monkeypatch):
    import importlib

    code = "from torch import nn\ndef net(spec): return nn.Sequential(nn.Flatten(), nn.Linear(768, 10))\n"
    (tmp_path / "their_nets.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    torch.save({"1.weight": torch.randn(10, 768), "1.bias": torch.zeros(10)}, tmp_path / "x.pth")
    given = dict(network="their_nets:net", normalise="pixels")
    cell = planned(tmp_path, tmp_path / "x.pth", **given)
    row = run_stages(cell).rows[0]
    assert row.network == "their_nets:net" and row.robust <= row.clean_n
    (tmp_path / "their_nets.py").write_text(code + "# changed\n")
    importlib.invalidate_caches()
    assert planned(tmp_path, tmp_path / "x.pth", **given).key != cell.key


def test_no_card_can_name_code(tmp_path):
    file = tmp_path / "x.safetensors"
    save_file(plain(trained("ConvNetD3-w16")), file)
    file.with_suffix(".json").write_text(json.dumps(dict(network="os:getcwd")))
    with pytest.raises(InputError, match="only you can name code"):
        planned(tmp_path, file)


def test_a_card_can_tell_the_normalisation(tmp_path):
    file = tmp_path / "x.safetensors"
    save_file(plain(trained("ResNet18-w16", "half")), file)
    card = dict(network="ResNet18-w16", normalise=dict(mean=[0.5] * 3, std=[0.5] * 3))
    file.with_suffix(".json").write_text(json.dumps(card))
    cell = planned(tmp_path, file, coloured(n_train=100))
    assert cell.source.reading.decided == "the card"


def test_what_cannot_be_decided_is_asked_before_any_work(tmp_path):
    file = tmp_path / "x.pth"
    torch.save(plain(trained("ResNet18-w16", "half")), file)
    with pytest.raises(InputError, match="^checkpoint .*normalise=dc or pixels"):
        planned(tmp_path, file, coloured(n_train=100))
    assert not list((tmp_path / "store").glob("*/*"))


def test_permuted_labels_and_chance_are_in_the_rows(tmp_path):
    shifted = replace(data(), test_labels=(data().test_labels + 1) % 10)
    file = tmp_path / "x.pth"
    torch.save(plain(trained("ResNet18-w16", "half")), file)
    done = run_stages(planned(tmp_path, file, shifted, normalise="half"))
    assert {"chance", "permuted"} <= set(done.rows[0].warnings)
    assert not any(row.clean > 0.1 for row in done.rows)

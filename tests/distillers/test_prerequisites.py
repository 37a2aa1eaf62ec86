"What is made once and read by many: expert trajectories and teachers, through the store and through a cell."

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from ddrobust_nb.foundations.core import InputError
from ddrobust_nb.foundations.datasets import dataset
from ddrobust_nb.training.distilled import load_own_set, save_set
from ddrobust_nb.training.distiller import distiller
from ddrobust_nb.training.protocols import PROTOCOLS, recipe_for
from ddrobust_nb.results.cell_rows import finish_cell, run_stages, write_out
from ddrobust_nb.results.stages import attack_cell
from ddrobust_nb.results.keys import VERSIONS
from ddrobust_nb.results.stages import distil_cell, prerequisite_parts, train_cell
from ddrobust_nb.results.store import DamagedArtefact, Store
from tiny import NETWORK, tiny_cell, tiny_data

PATHS = dict(
    iterations=2, syn_steps=2, expert_span=1, max_start=2, n_experts=2, expert_batch=8, expert_images=None
)
TEACHER = dict(iterations=2, squeeze_epochs=1, squeeze_batch=8, squeeze_images=None)
TEACHES = "ResNet18-w8"


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setitem(dataset, "tiny", lambda root: tiny_data())
    torch.set_num_threads(1)
    return Store(tmp_path / "store")


def paths_cell(store, method="mtt", seed=0, ipc=1, **options):
    return tiny_cell(store, method=method, seed=seed, ipc=ipc, options=PATHS | options)


def teacher_cell(store, method="sre2l", **given):
    options = {k: v for k, v in TEACHER.items() if k != "iterations" or method != "random_teacher"}
    return tiny_cell(
        store,
        **dict(
            method=method,
            network=TEACHES,
            distill_network=TEACHES,
            attacks="fgsm@8/255",
            n_models=1,
            options=options,
        )
        | given,
    )


def times(store, stage):
    return {p: p.stat().st_mtime_ns for p in (store.root / stage).glob("*/part.safetensors")}


def test_experts_are_trained_once_for_all_sets(store):
    "Another seed, IPC, method or gradient reads the same paths; they lie in the store one by one"
    first = distil_cell(paths_cell(store))
    made = times(store, "expert")
    assert len(made) == 2
    keys = {first.key}
    for cell in (
        paths_cell(store, seed=1),
        paths_cell(store, ipc=2),
        paths_cell(store, "tesla"),
        paths_cell(store, "tesla", gradient="exact"),
        paths_cell(store, syn_steps=3),
    ):
        keys.add(distil_cell(cell).key)
    assert times(store, "expert") == made and len(keys) == 6


@pytest.mark.parametrize(
    "change",
    [
        dict(max_start=3),
        dict(expert_span=2),
        dict(expert_batch=9),
        dict(expert_lr=0.02),
        dict(augment=""),
        dict(expert_images=12),
    ],
)
def test_what_changes_an_expert_changes_its_key(change, store):
    plain, other = prerequisite_parts(paths_cell(store)), prerequisite_parts(paths_cell(store, **change))
    assert not set(plain) & set(other) and len(other) == 2


def test_more_experts_keep_those_there_are(store):
    two, three = prerequisite_parts(paths_cell(store)), prerequisite_parts(paths_cell(store, n_experts=3))
    assert list(three)[:2] == list(two) and len(three) == 3


def test_from_the_store_or_made_on_the_way_is_the_same_set(store):
    cell = paths_cell(store)
    alone = distiller["mtt"](cell.data, 1, network=NETWORK, device="cpu", **cell.options)
    assert torch.equal(distil_cell(cell).dset.images, alone.images)
    taught = teacher_cell(store)
    alone = distiller["sre2l"](taught.data, 1, network=TEACHES, device="cpu", **taught.options)
    assert (
        torch.equal(distil_cell(taught).dset.images, alone.images)
        and distil_cell(taught).dset.teacher == alone.teacher
    )


def test_a_damaged_expert_is_named_and_trained_again(store):
    want = distil_cell(paths_cell(store)).dset.images
    part = sorted(times(store, "expert"))[0]
    good, raw = load_file(part)["snapshots"], bytearray(part.read_bytes())
    raw[-5] ^= 255
    part.write_bytes(raw)
    with pytest.warns(DamagedArtefact, match="expert/.*part.safetensors differs"):
        parts = prerequisite_parts(paths_cell(store))
    assert torch.equal(load_file(next(p for p in parts.values() if p == part))["snapshots"], good)
    assert torch.equal(distil_cell(paths_cell(store)).dset.images, want)


@pytest.mark.parametrize("stage, cell", [("expert", paths_cell), ("teacher", teacher_cell)])
def test_a_new_version_of_what_is_read_is_a_new_set(stage, cell, store, monkeypatch):
    before = distil_cell(cell(store)).key
    monkeypatch.setitem(VERSIONS, stage, VERSIONS[stage] + 1)
    assert distil_cell(cell(store)).key != before


def test_a_method_that_reads_nothing_makes_nothing(store):
    assert prerequisite_parts(tiny_cell(store)) == {} and not (store.root / "expert").exists()


def test_one_teacher_for_three_methods(store):
    cells = [teacher_cell(store, m) for m in ("sre2l", "sre2l_hard", "random_teacher")]
    made = [distil_cell(c) for c in cells]
    assert len(times(store, "teacher")) == 1
    assert torch.equal(made[0].dset.images, made[1].dset.images) and not torch.equal(
        made[0].dset.images, made[2].dset.images
    )
    assert [m.dset.teacher is None for m in made] == [False, True, False] == [m.teacher is None for m in made]
    assert made[0].dset.teacher == made[2].dset.teacher


def test_a_cell_with_a_teacher_from_end_to_end_and_in_again(store, tmp_path, capsys):
    cell = teacher_cell(store)
    done = run_stages(cell)
    write_out(done)
    folder = cell.out / "set-sre2l"
    assert sorted(p.name for p in folder.iterdir()) == ["set.json", "set.safetensors", "teacher.safetensors"]
    again = teacher_cell(store, distilled=str(folder), options={}, out=str(tmp_path / "again"))
    assert again.source.dset.teacher == done.distilled.dset.teacher
    other = run_stages(again)
    for a, b in zip(done.models, other.models):
        assert all(torch.equal(v, b.model.state_dict()[k]) for k, v in a.model.state_dict().items())
    assert [(r.method, r.robust) for r in other.rows] == [("sre2l", r.robust) for r in done.rows]


def test_a_teacher_above_the_set_is_found(store):
    "One folder up for the sets of a cell; two up, by the key of its weights, for several cells"
    cell = teacher_cell(store)
    made = distil_cell(cell)
    folder = save_set(made.dset, store.root / "sets" / "ipc1" / "seed0")
    weights = {k: v.contiguous() for k, v in made.teacher.state_dict().items()}
    shared = folder.parent.parent / "teachers" / f"{made.dset.teacher['key']}.safetensors"
    for file in (shared, folder.parent / "teacher.safetensors"):
        file.parent.mkdir(exist_ok=True)
        save_file(weights, file)
        assert teacher_cell(store, distilled=str(folder), options={}).source.teacher == str(file)


def test_a_set_without_its_teacher_is_refused_before_any_work(store):
    made = distil_cell(teacher_cell(store))
    folder = save_set(made.dset, store.root / "alone")
    with pytest.raises(InputError, match="teacher"):
        teacher_cell(store, distilled=str(folder), options={})


def test_a_set_with_another_teacher_is_refused(store):
    made = distil_cell(teacher_cell(store))
    folder = save_set(made.dset, store.root / "wrong")
    state = {k: v.clone() for k, v in made.teacher.state_dict().items()}
    state["body.fc.bias"] += 1
    save_file(state, folder / "teacher.safetensors")
    cell = teacher_cell(store, distilled=str(folder), options={})
    with pytest.raises(InputError, match="give the teacher it was made with"):
        train_cell(cell, distil_cell(cell))
    save_file({"x": torch.zeros(1)}, folder / "teacher.safetensors")
    with pytest.raises(InputError, match="is not a ResNet18-w8"):
        distil_cell(cell)


def test_the_learned_step_size_is_used_and_kept(store):
    cell = paths_cell(store, lr_lr=1e-3)
    made = distil_cell(cell)
    assert (
        made.dset.lr != cell.options["lr_student"]
        and recipe_for(PROTOCOLS["full"], "mtt", cell.data.spec, 1).learned_lr
    )
    folder = save_set(made.dset, store.root / "set")
    assert load_own_set(folder).lr == made.dset.lr == json.loads((folder / "set.json").read_text())["lr"]


def test_half_precision_on_disk_is_single_in_memory(store):
    dset = distil_cell(tiny_cell(store)).dset
    again = load_own_set(save_set(dset, store.root / "half", dtype=torch.float16))
    assert again.images.dtype == torch.float32 and torch.equal(again.images, dset.images.half().float())
    assert load_file(store.root / "half" / "set.safetensors")["images"].dtype == torch.float16


def test_rows_of_a_taught_cell(store):
    cell = teacher_cell(store)
    distilled = distil_cell(cell)
    models = train_cell(cell, distilled)
    rows = finish_cell(cell, distilled, models, attack_cell(cell, models)).rows
    assert {(r.method, r.network, r.distill_network) for r in rows} == {("sre2l", TEACHES, TEACHES)}

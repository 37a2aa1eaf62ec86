"Every published format, whole and damaged: pixels equal to 1e-6 and labels equal, or one sentence."

import json
import os
from dataclasses import replace

import pytest
import torch
from published_sets import (
    CLASSES,
    FOREIGN,
    IPC,
    LABELS,
    MEAN,
    PIXELS,
    SPEC,
    STD,
    TENSORS,
    class_folders,
    dc,
    dictionary,
)
from published_sets import dd_ranking, in_parts, mtt, normalised, tiny_world
from safetensors.torch import load_file

from ddrobust_nb.foreign.sets import digest_of_set, export_set, load_set, set_writer
from ddrobust_nb.foreign.space import fit_whitening
from ddrobust_nb.foundations.core import InputError, generator
from ddrobust_nb.foundations.data import specs
from ddrobust_nb.training.distilled import DistilledSet, load_own_set, save_set

SPACE = f"normalised:{','.join(map(str, MEAN))}/{','.join(map(str, STD))}"


@pytest.fixture(scope="module")
def world():
    return tiny_world()


def is_right(dset, images=PIXELS, labels=LABELS):
    torch.testing.assert_close(dset.images, images, rtol=0, atol=1e-6)
    assert dset.images.dtype == torch.float32 and dset.images.is_contiguous()
    assert torch.equal(dset.labels, labels) and dset.labels.dtype == torch.int64
    return True


def one_sentence(error, *words):
    text = str(error.value)
    assert "\n" not in text and len(text) < 700, text
    for word in words:
        assert word in text, text


@pytest.mark.parametrize("write", TENSORS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("source", ["data", "spec"])
def test_every_format_of_tensors(tmp_path, world, write, source):
    path = write(tmp_path, normalised(), LABELS.clone())
    dset = load_set(path, world if source == "data" else SPEC)
    assert is_right(dset)
    assert (dset.ipc, dset.reading["space"]) == (IPC, "normalised:dc")
    assert digest_of_set(dset.images, dset.labels) == dset.reading["sha256"]


@pytest.mark.parametrize("write", TENSORS, ids=lambda f: f.__name__)
def test_pixels_and_bytes(tmp_path, world, write):
    (tmp_path / "floats").mkdir()
    assert is_right(load_set(write(tmp_path / "floats", PIXELS.clone(), LABELS), world))
    (tmp_path / "bytes").mkdir()
    dset = load_set(write(tmp_path / "bytes", PIXELS * 255, LABELS), world)
    assert is_right(dset) and dset.reading["space"] == "bytes"


@pytest.mark.parametrize(
    "kind", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float32, torch.float16]
)
def test_labels_of_any_number_type(tmp_path, world, kind):
    assert is_right(load_set(dd_ranking(tmp_path, normalised(), LABELS.to(kind)), world))


def test_labels_as_tables(tmp_path, world):
    one_hot = torch.nn.functional.one_hot(LABELS, CLASSES)
    for k, table in enumerate((one_hot, one_hot.half(), one_hot - 0.25, one_hot.view(CLASSES, IPC, CLASSES))):
        (tmp_path / str(k)).mkdir()
        assert is_right(load_set(dd_ranking(tmp_path / str(k), normalised(), table), world))
    logits = 3 * torch.randn(len(LABELS), CLASSES, generator=generator(0, "logits"))
    path = dd_ranking(tmp_path, normalised(), logits.softmax(1).half())
    torch.testing.assert_close(load_set(path, world).labels, logits.softmax(1), rtol=0, atol=2e-3)
    path = dd_ranking(tmp_path, normalised(), logits)
    with pytest.raises(InputError) as error:
        load_set(path, world)
    one_sentence(error, "labels='logits'", "labels='hard'")
    torch.testing.assert_close(load_set(path, world, labels="logits").labels, logits.softmax(1))
    assert torch.equal(load_set(path, world, labels="hard").labels, logits.argmax(1))
    with pytest.raises(InputError, match="does not fit"):
        load_set(path, world, labels="probabilities")
    with pytest.raises(InputError, match="one of hard"):
        load_set(path, world, labels="soft")


def test_several_sets(tmp_path, world):
    path = dc(tmp_path, normalised(), LABELS)
    assert any("#3 is taken" in note for note in load_set(path, world).reading["notes"])
    assert is_right(load_set(f"{path}#1", world), PIXELS.flip(3))
    for number in ("#0", "#4", "#999999"):
        with pytest.raises(InputError) as error:
            load_set(f"{path}{number}", world)
        one_sentence(error, "3 sets")
    with pytest.raises(InputError) as error:
        load_set(f"{dictionary(tmp_path, normalised(), LABELS)}#2", world)
    one_sentence(error, "one set")
    odd = tmp_path / "odd#2"
    odd.mkdir()
    assert is_right(load_set(mtt(odd, normalised(), LABELS), world))


def test_step_size_and_method(tmp_path, world):
    dset = load_set(dd_ranking(tmp_path, normalised(), LABELS), world, method="mtt", ipc=IPC)
    assert (dset.lr, dset.method, dset.ipc) == (pytest.approx(0.02), "mtt", IPC)
    with pytest.raises(InputError) as error:
        load_set(tmp_path / "images.pt", world, ipc=50)
    one_sentence(error, "8 images", "not 50 per class")


DAMAGED = {
    "no images": (lambda x, y: (x[:0], y[:0]), "there are none"),
    "another size": (lambda x, y: (torch.rand(8, 3, 16, 16), y), "tiny needs [n, 3, 8, 8]"),
    "another number of channels": (lambda x, y: (x[:, :1], y), "tiny needs [n, 3, 8, 8]"),
    "fewer labels": (lambda x, y: (x, y[:-1]), "expected are 8 classes or a table [8, 4]"),
    "a table of other classes": (lambda x, y: (x, torch.rand(8, 7)), "a table [8, 4]"),
    "labels beyond the classes": (lambda x, y: (x, y + 2), "the labels reach from 2 to 5"),
    "labels from one": (lambda x, y: (x, y + 1), "count from 1"),
    "negative labels": (lambda x, y: (x, y - 1), "reach from -1"),
    "labels with fractions": (lambda x, y: (x, y + 0.5), "fractions"),
    "NaN images": (lambda x, y: (x.masked_fill(x > 1, torch.nan), y), "NaN or infinite"),
    "infinite images": (lambda x, y: (x.masked_fill(x > 1, torch.inf), y), "NaN or infinite"),
    "NaN labels": (lambda x, y: (x, y.float().masked_fill(y == 1, torch.nan)), "not numbers"),
    "complex images": (lambda x, y: (x + 0j, y), "complex"),
    "whole numbers that are no bytes": (lambda x, y: ((x * 1000).int(), y), "expected are 0 to 255"),
    "constant images": (lambda x, y: (torch.full_like(x, 3.0), y), "say space="),
}


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("write", [dc, dd_ranking, dictionary], ids=lambda f: f.__name__)
def test_damaged_sets(tmp_path, world, write, damage):
    change, sentence = DAMAGED[damage]
    x, y = change(normalised(), LABELS.clone())
    if write is dd_ranking and not (x.is_floating_point() or x.is_complex()):
        x = x.float()  # only floats can ask for a gradient
        sentence = "say space="
    with pytest.raises(InputError) as error:
        load_set(write(tmp_path, x, y), world)
    one_sentence(error, sentence)


@pytest.mark.parametrize("write", TENSORS, ids=lambda f: f.__name__)
def test_truncated_files(tmp_path, world, write):
    path = write(tmp_path, normalised(), LABELS)
    for file in path.iterdir() if path.is_dir() else [path]:
        os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(InputError) as error:
        load_set(path, world)
    one_sentence(error)


def test_half_precision(tmp_path, world):
    half = normalised().half()
    dset = load_set(dictionary(tmp_path, half, LABELS), world)
    assert is_right(
        dset,
        (half.double() * torch.tensor(STD).view(1, 3, 1, 1) + torch.tensor(MEAN).view(1, 3, 1, 1))
        .float()
        .clamp(dset.images.min()),
    )


def test_images_without_labels(tmp_path, world):
    torch.save(normalised(), tmp_path / "tensor.pt")
    with pytest.raises(InputError) as error:
        load_set(tmp_path / "tensor.pt", world)
    one_sentence(error, "labels='sorted'", "2 of each")
    assert is_right(load_set(tmp_path / "tensor.pt", world, labels="sorted"))
    torch.save(normalised()[:7], tmp_path / "tensor.pt")
    with pytest.raises(InputError, match="7 images cannot be the same number"):
        load_set(tmp_path / "tensor.pt", world, labels="sorted")
    torch.save(normalised().view(CLASSES, IPC, 3, 8, 8), tmp_path / "tensor.pt")
    assert is_right(load_set(tmp_path / "tensor.pt", world, labels="sorted"))


def test_parts_must_fit(tmp_path, world):
    in_parts(tmp_path, normalised(), LABELS)
    (tmp_path / "labels_best_1.pt").unlink()
    with pytest.raises(InputError) as error:
        load_set(tmp_path, world)
    one_sentence(error, "do not fit together")


# Folders of images


@pytest.mark.parametrize("name", ["new{:03d}", "{}", "class_{}"])
def test_class_folders(tmp_path, world, name):
    dset = load_set(class_folders(tmp_path, PIXELS, LABELS, name), world)
    assert torch.equal(dset.labels, LABELS) and dset.reading["space"] == "bytes"
    torch.testing.assert_close(dset.images, (PIXELS * 255).round() / 255, rtol=0, atol=1e-6)


def test_class_folders_by_the_names_of_the_classes(tmp_path, world):
    reverse = replace(SPEC, class_names=("dog", "cat", "bee", "ant"))
    for k, name in enumerate(reverse.class_names):
        class_folders(tmp_path, PIXELS[2 * k : 2 * k + 2], torch.zeros(2), name)
    dset = load_set(tmp_path, reverse)
    wanted = torch.cat([(PIXELS[2 * k : 2 * k + 2] * 255).round() / 255 for k in (3, 2, 1, 0)])
    assert torch.equal(dset.labels, torch.tensor([3, 3, 2, 2, 1, 1, 0, 0]))
    torch.testing.assert_close(dset.images, wanted, rtol=0, atol=1e-6)


def test_numbers_that_sort_otherwise_as_text(tmp_path):
    many = replace(SPEC, classes=12, class_names=())
    class_folders(tmp_path, PIXELS.repeat(2, 1, 1, 1)[:12], torch.arange(12), "{}")
    dset = load_set(tmp_path, many)
    by_text = sorted(range(12), key=str)
    assert dset.labels.tolist() == by_text  # files in the order of the text, labels are the numbers
    assert any("order of their numbers" in note for note in dset.reading["notes"])


def test_soft_labels_beside_folders(tmp_path, world):
    table = torch.rand(8, CLASSES, generator=generator(0, "soft")).softmax(1)
    torch.save(table, class_folders(tmp_path, PIXELS, LABELS) / "soft_labels.pt")
    torch.testing.assert_close(load_set(tmp_path, world).labels, table, rtol=0, atol=1e-6)
    torch.save(table[:5], tmp_path / "soft_labels.pt")
    with pytest.raises(InputError, match="one row for each of the 8 images"):
        load_set(tmp_path, world)


def test_damaged_folders(tmp_path, world):
    folder = class_folders(tmp_path, PIXELS, LABELS)
    picture = next((folder / "new000").iterdir())
    picture.write_bytes(picture.read_bytes()[:40])
    with pytest.raises(InputError) as error:
        load_set(folder, world)
    one_sentence(error, picture.name)
    for file in (folder / "new000").iterdir():
        file.unlink()
    with pytest.raises(InputError, match="'new000' .* has no images"):
        load_set(folder, world)
    (folder / "new000").rmdir()
    with pytest.raises(InputError, match="3 class folders"):
        load_set(folder, world)


def test_folders_of_another_size(tmp_path):
    class_folders(tmp_path, PIXELS, LABELS)
    with pytest.raises(InputError, match="8 x 8 pixels, large has 16 x 16"):
        load_set(tmp_path, replace(SPEC, name="large", size=16))


# Collages


@pytest.mark.parametrize("factor", [2, 3])
def test_collages_are_cut(tmp_path, factor):
    size = 12
    spec = replace(SPEC, size=size)
    side = size // factor
    small = [
        torch.rand(CLASSES, 3, 1, 1, generator=generator(k, "part")).expand(-1, -1, side, side)
        for k in range(factor**2)
    ]
    rows = [torch.cat(small[r * factor : (r + 1) * factor], 3) for r in range(factor)]
    torch.save((torch.cat(rows, 2), torch.arange(CLASSES)), tmp_path / "data.pt")
    with pytest.raises(InputError, match="say factor="):
        load_set(tmp_path / "data.pt", spec, space="pixels")
    dset = load_set(tmp_path / "data.pt", spec, space="pixels", factor=factor)
    wanted = torch.stack(small, 1)[..., :1, :1].expand(-1, -1, -1, size, size).flatten(0, 1)
    torch.testing.assert_close(dset.images, wanted, rtol=0, atol=1e-6)
    assert torch.equal(dset.labels, torch.arange(CLASSES).repeat_interleave(factor**2))
    assert dset.ipc == 1 and load_set(tmp_path / "data.pt", spec, space="pixels", factor=1).ipc == 1


def test_cut_as_idc_does_it(tmp_path):
    "The formula of IDC's decoder, written here a second time"
    spec = replace(SPEC, size=7)
    x = torch.rand(CLASSES, 3, 7, 7, generator=generator(0, "idc"))
    padded = torch.nn.functional.pad(x, (0, 1, 0, 1), value=0.5)
    up = torch.nn.Upsample(size=7, mode="bilinear")
    pieces = [up(padded[:, :, i : i + 4, j : j + 4]) for i in (0, 4) for j in (0, 4)]
    torch.save((x, torch.arange(CLASSES)), tmp_path / "data.pt")
    dset = load_set(tmp_path / "data.pt", spec, space="pixels", factor=2)
    torch.testing.assert_close(dset.images, torch.stack(pieces, 1).flatten(0, 1), rtol=0, atol=1e-6)
    with pytest.raises(InputError, match="from 1 to 8"):
        load_set(tmp_path / "data.pt", spec, factor=0)


# Spaces


@pytest.mark.parametrize("scale", [0.85, 1.0, 1.15])
def test_constants_are_told_apart(tmp_path, scale):
    "CIFAR-10 divided by .2023 or by .2470: found by the contrast, at any contrast near that of the data"
    mean, std = (
        torch.tensor(v).view(1, 3, 1, 1) for v in ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    )
    noise = torch.randn(20, 3, 8, 8, generator=generator(0, "cifar"))
    x = torch.nn.functional.interpolate(noise, size=32, mode="bilinear")
    x = (x / x.std((0, 2, 3), keepdim=True)) * std * scale + mean
    for name, divisor in {"dc": (0.2023, 0.1994, 0.2010), "data": (0.2470, 0.2435, 0.2616)}.items():
        torch.save(
            ((x - mean) / torch.tensor(divisor).view(1, 3, 1, 1), torch.arange(20) % 10), tmp_path / "x.pt"
        )
        try:
            found = load_set(tmp_path / "x.pt", "cifar10")
        except InputError as error:
            assert "normalised:dc" in str(error) and "normalised:data" in str(error)
            continue
        assert found.reading["space"] == f"normalised:{name}" or scale != 1.0
        exact = load_set(tmp_path / "x.pt", "cifar10", space=f"normalised:{name}")
        torch.testing.assert_close(exact.images, x, rtol=0, atol=1e-6)


def test_spaces_that_are_said(tmp_path, world):
    path = dictionary(tmp_path, normalised(), LABELS)
    assert is_right(load_set(path, world, space=SPACE))
    assert is_right(load_set(path, world, space="normalised"))
    for space in (
        "normalised:nobody",
        "normalised:1,2/3,4",
        "normalised:1,1,1/0,0,0",
        "normalised:",
        "lab",
        "zca:1",
    ):
        with pytest.raises(InputError) as error:
            load_set(path, world, space=space)
        one_sentence(error, "space")


def whitened(world):
    "Kornia's formula by a singular value decomposition, as MTT calls it on pixels"
    x = world.train_images.double().flatten(1) / 255
    mean = x.mean(0)
    u, s, _ = torch.linalg.svd((x - mean).T @ (x - mean) / (len(x) - 1))
    matrix = u @ torch.diag(1 / torch.sqrt(s + 0.1)) @ u.T
    return ((PIXELS.double().flatten(1) - mean) @ matrix).view_as(PIXELS).float()


def test_whitened_sets(tmp_path, world):
    path = dictionary(tmp_path, whitened(world), LABELS)
    torch.testing.assert_close(load_set(path, world, space="zca").images, PIXELS, rtol=0, atol=1e-5)
    given = load_set(path, SPEC, space="zca", whitening=fit_whitening(world.train_images))
    torch.testing.assert_close(given.images, PIXELS, rtol=0, atol=1e-5)
    with pytest.raises(InputError, match="without the training images of tiny"):
        load_set(path, SPEC, space="zca")
    with pytest.raises(InputError, match="read as zca.*normalised:half"):
        load_set(path, world)  # here both fit


def test_whitened_cifar_is_recognised(tmp_path):
    x = 0.235 * torch.randn(10, 3, 32, 32, generator=generator(0, "white"))
    torch.save((x, torch.arange(10)), tmp_path / "x.pt")
    with pytest.raises(InputError, match="are whitened .* without the training images of cifar10"):
        load_set(tmp_path / "x.pt", "cifar10")


# Writers


@pytest.fixture
def lazy(world):
    "A set whose tensors are views of every kind"
    x = PIXELS.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    negative = torch.imag((x + 1j * x).conj())  # a view whose sign is applied later
    assert not x.is_contiguous() and negative.is_neg()
    labels = torch.stack([LABELS, LABELS], 1)[:, 0]
    return DistilledSet(SPEC, negative, labels, ipc=IPC, lr=0.02), -PIXELS


@pytest.mark.parametrize("form", ["with_card", "safetensors"])
def test_writers_of_pixels_keep_views(tmp_path, lazy, form):
    dset, images = lazy
    folder = export_set(dset, tmp_path / "out", form)
    tensors = load_file(next(folder.glob("*.safetensors")))
    assert torch.equal(tensors["images"], images) and torch.equal(tensors["labels"], LABELS)


@pytest.mark.parametrize("form", list(set_writer))
@pytest.mark.parametrize("soft", [False, True])
def test_what_is_written_is_read(tmp_path, world, form, soft):
    labels = (
        torch.rand(8, CLASSES, generator=generator(0, "table")) + 3 * torch.nn.functional.one_hot(LABELS)
    ).softmax(1)
    dset = DistilledSet(SPEC, PIXELS.mT.contiguous().mT, labels if soft else LABELS, ipc=IPC, lr=0.02)
    folder = export_set(dset, tmp_path / "out", form)
    asked = dict(labels="logits") if soft and form == "dd_ranking" else {}
    again = load_set(folder, world, **asked)
    torch.testing.assert_close(again.images, PIXELS, rtol=0, atol=1 / 500 if form == "png_folders" else 1e-6)
    torch.testing.assert_close(again.labels, labels if soft else LABELS, rtol=0, atol=1e-6)
    with pytest.raises(InputError, match="not an empty folder"):
        export_set(dset, folder, form)


def test_logits_for_dd_ranking(tmp_path):
    "A perfect student has no loss: softmax of what is written is the label"
    table = torch.rand(8, CLASSES, generator=generator(0, "table")).softmax(1)
    folder = export_set(DistilledSet(SPEC, PIXELS, table), tmp_path / "out", "dd_ranking")
    written = torch.load(folder / "labels.pt", weights_only=True)
    torch.testing.assert_close(written.softmax(1), table, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        torch.load(folder / "images.pt", weights_only=True), normalised(), rtol=0, atol=1e-5
    )


def test_reading_is_kept(tmp_path, world):
    dset = load_set(dd_ranking(tmp_path, normalised(), LABELS), world)
    again = load_own_set(save_set(dset, tmp_path / "own"))
    assert again.reading == json.loads(json.dumps(dset.reading)) and torch.equal(again.images, dset.images)
    plain = save_set(DistilledSet(SPEC, PIXELS, LABELS), tmp_path / "plain")
    assert "reading" not in json.loads((plain / "set.json").read_text())


def test_places_and_sources(tmp_path, world):
    with pytest.raises(InputError, match="no distilled set at"):
        load_set(tmp_path / "nothing", world)
    with pytest.raises(InputError, match="give the file with the images"):
        load_set(tmp_path, world)
    with pytest.raises(InputError, match="say of which dataset"):
        load_set(mtt(tmp_path, normalised(), LABELS))
    with pytest.raises(InputError, match="cifar10"):
        load_set(tmp_path, "cifar")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(InputError, match="no container"):
        load_set(tmp_path / "text.pt", world)
    torch.save({"state_dict": {"conv.weight": torch.zeros(3)}}, tmp_path / "model.pt")
    with pytest.raises(InputError, match="'state_dict'.*no images"):
        load_set(tmp_path / "model.pt", world)


# The real pair


def test_real_pair_of_dc():
    "Recognised as normalised with DC's constants; pixels as un-normalised by hand"
    file = FOREIGN / "DC_CIFAR10_IPC1_images.pt"
    if not file.is_file():
        pytest.skip("the published pair of DC is not here")
    dset = load_set(file, "cifar10")
    raw = torch.load(file, weights_only=True)
    std = torch.tensor([0.2023, 0.1994, 0.2010]).view(1, 3, 1, 1)
    by_hand = raw * std + torch.tensor([0.4914, 0.4822, 0.4465]).view(1, 3, 1, 1)
    torch.testing.assert_close(dset.images, by_hand, rtol=0, atol=1e-6)
    assert torch.equal(dset.labels, torch.arange(10)) and dset.ipc == 1
    assert dset.reading["space"] == "normalised:dc" and dset.spec == specs["cifar10"]


def saved(tmp_path, content):
    "A file with this content"
    torch.save(content, tmp_path / "set.pt")
    return tmp_path / "set.pt"


@pytest.mark.parametrize("largest", [1, 16, 127])
def test_whole_numbers_that_may_not_be_bytes_are_asked_about(tmp_path, world, largest):
    "Sixteen grey levels, as scikit-learn's digits have them, are no dark bytes; told that they are bytes, we believe it"
    path = saved(tmp_path, {"images": (PIXELS * largest).round().to(torch.uint8), "labels": LABELS})
    with pytest.raises(InputError) as error:
        load_set(path, world)
    one_sentence(error, "bytes go up to 255", "say space='bytes'")
    assert load_set(path, world, space="bytes").images.max() <= largest / 255 + 1e-6


@pytest.mark.parametrize("lr", [float("nan"), float("inf"), -1.0, 0.0])
def test_step_sizes_that_no_training_can_use(tmp_path, world, lr):
    path = saved(tmp_path, {"images": normalised(), "labels": LABELS, "lr": torch.tensor(lr)})
    with pytest.raises(InputError) as error:
        load_set(path, world)
    one_sentence(error, "the step size that comes with the images")


def test_a_list_of_parts_of_one_set_is_asked_about(tmp_path, world):
    "Steps of DD hold all classes each; parts hold different ones"
    order = LABELS.argsort(stable=True)
    images = normalised()[order]
    labels = LABELS[order]
    half = int((labels < CLASSES // 2).sum())
    path = saved(tmp_path, [(images[:half], labels[:half]), (images[half:], labels[half:])])
    with pytest.raises(InputError) as error:
        load_set(path, world)
    one_sentence(error, "no class in common", "join them")


def test_a_space_is_text(tmp_path, world):
    with pytest.raises(InputError, match="space must be text"):
        load_set(saved(tmp_path, {"images": normalised(), "labels": LABELS}), world, space=3)

"Data: the bundled digits, pixels, and subsets of test images"

import pytest
import torch

from ddrobust_nb.foundations.data import Spec, as_pixels, make_data, test_subset as subset_of
from ddrobust_nb.foundations.datasets import load_data
from image_trees import error


def test_digits_are_the_same_everywhere():
    data = load_data("digits")
    assert data.train_images.shape == (1297, 1, 32, 32) and data.train_images.dtype == torch.uint8
    assert data.train_labels.dtype == torch.int64 and torch.bincount(data.test_labels).tolist() == [50] * 10
    assert data.fingerprint == "79023f95ba69ecd9"
    assert int(data.train_images.min()) == 0 and int(data.train_images.max()) == 255
    rows = {x.numpy().tobytes() for x in data.train_images}
    from sklearn.datasets import load_digits

    assert len(rows & {x.numpy().tobytes() for x in data.test_images}) <= 1797 - len(
        {x.tobytes() for x in load_digits().images}
    )


def test_repr_is_short_and_has_pictures():
    data = load_data("digits")
    assert "1,297 training and 500 test images" in repr(data) and len(repr(data)) < 300
    assert "data:image/png;base64," in data._repr_html_()


def test_per_class_and_training():
    data = load_data("digits")
    assert all((data.train_labels[index] == c).all() for c, index in enumerate(data.per_class))
    assert sorted(torch.cat(data.per_class).tolist()) == list(range(1297))
    assert data.training()[0] is data.train_images and data.training()[1] is data.train_labels


def test_as_pixels():
    x = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(as_pixels(x), torch.arange(256).float() / 255)
    assert as_pixels(torch.tensor([1.5], dtype=torch.float64)).item() == 1.5
    error(lambda: as_pixels(torch.tensor([True])))


# ---- test subsets


@pytest.mark.parametrize("seed", [0, 1])
def test_subsets_are_balanced_nested_and_fixed(seed):
    data = load_data("digits")
    whole = subset_of(data, 500, seed)
    assert sorted(whole.tolist()) == list(range(500))
    for n in (10, 11, 99, 100, 499):
        part = subset_of(data, n, seed)
        counts = torch.bincount(data.test_labels[part], minlength=10)
        assert torch.equal(part, whole[:n]) and counts.max() - counts.min() <= 1
    assert torch.equal(subset_of(data, 30, seed), subset_of(data, 30, seed))
    assert not torch.equal(subset_of(data, 30, seed), subset_of(data, 30, seed + 1))


@pytest.mark.parametrize("n", [0, -1, 9, 501, 10.0, True, "100", None])
def test_bad_subset_sizes(n):
    assert "from 10 to 500" in error(lambda: subset_of(load_data("digits"), n))


def test_subset_of_an_uneven_test_set():
    labels = torch.tensor([0] * 2 + [1] * 7 + [2] * 5)
    images = torch.zeros(14, 1, 8, 8, dtype=torch.uint8)
    data = make_data(Spec("uneven", 3, 8, 1, (0.5,), (0.5,)), images, labels, images, labels)
    assert sorted(subset_of(data, 14).tolist()) == list(range(14))
    assert torch.bincount(labels[subset_of(data, 6)]).tolist() == [2, 2, 2]
    assert torch.bincount(labels[subset_of(data, 10)]).tolist() == [2, 4, 4]

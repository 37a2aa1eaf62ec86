"Views and mixes: the crops, boxes and mixes of ordinary training"

import pytest
import torch

from ddrobust_nb.foundations import views
from ddrobust_nb.foundations.core import InputError, seeded


def test_resized_crops_are_those_of_torchvision():
    from torchvision.transforms.functional import resized_crop as original

    x = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    boxes = views.draw_boxes(16, 32, 0.08, torch.Generator().manual_seed(1))
    got = views.resized_crop(x, *boxes)
    for i, box in enumerate(zip(*(v.tolist() for v in boxes))):
        torch.testing.assert_close(got[i], original(x[i], *box, [32, 32], antialias=False), atol=1e-5, rtol=0)
    whole = [torch.tensor([v]) for v in (0, 0, 32, 32)]
    torch.testing.assert_close(views.resized_crop(x, *whole), x)


@pytest.mark.parametrize("size, smallest", [(32, 0.08), (32, 0.4), (8, 1e-6), (32, 1.0)])
def test_boxes_have_the_distribution_of_torchvision(size, smallest):
    from torchvision.transforms import RandomResizedCrop

    n = 3000
    ours = torch.stack(views.draw_boxes(n, size, smallest, torch.Generator().manual_seed(0))).double()
    with seeded(0, "theirs"):
        theirs = (
            torch.tensor(
                [
                    RandomResizedCrop.get_params(torch.empty(1, size, size), (smallest, 1.0), (3 / 4, 4 / 3))
                    for _ in range(n)
                ]
            )
            .double()
            .T
        )
    top, left, height, width = ours
    assert (
        (ours[:2] >= 0).all()
        and (height > 0).all()
        and (top + height <= size).all()
        and (left + width <= size).all()
    )
    error = theirs.std(1).maximum(torch.tensor(1e-9)) * (2 / n) ** 0.5
    assert ((ours.mean(1) - theirs.mean(1)).abs() < 4 * error + 1e-6).all()
    torch.testing.assert_close(ours.std(1), theirs.std(1), rtol=0.1, atol=0.05)


def test_mixes():
    x, labels = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3
    for seed in range(30):

        def g(seed=seed):
            return torch.Generator().manual_seed(seed)

        cut, mixup = views.draw_mix("cutmix", 6, 16, g()), views.draw_mix("mixup", 6, 16, g())
        mixed = views.apply_mix(x, cut)
        own = (mixed == x).all(1)
        assert torch.equal(
            mixed[:, :, cut.box[0] : cut.box[2], cut.box[1] : cut.box[3]],
            x[cut.order][:, :, cut.box[0] : cut.box[2], cut.box[1] : cut.box[3]],
        )
        moved = cut.order != torch.arange(6)
        assert (
            (own.double().mean((1, 2))[moved] == cut.share).all()
            and own[~moved].all()
            and 0 <= cut.share <= 1
        )
        torch.testing.assert_close(
            views.apply_mix(x, mixup), mixup.share * x + (1 - mixup.share) * x[mixup.order]
        )
        y = views.mix_labels(labels, cut, 3)
        torch.testing.assert_close(y.sum(1), torch.ones(6))
        assert torch.equal(y.argmax(1)[~moved], labels[~moved])
        assert torch.equal(
            views.apply_mix(x[:1], views.draw_mix("cutmix", 1, 16, g())), x[:1]
        )  # nobody to mix with
    with pytest.raises(InputError, match="did you mean 'cutmix'"):
        views.draw_mix("cutmx", 4, 16, torch.Generator())

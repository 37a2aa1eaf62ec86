"Training: the schedule of the original program, labels of every kind, resuming at any step, and what must not be passed over."

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from ddrobust_nb.training import fit as train
from ddrobust_nb.foundations.core import InputError
from ddrobust_nb.foundations.data import as_pixels, make_data, specs, validation_index
from ddrobust_nb.foundations.data import test_subset as subset_of
from ddrobust_nb.distillers.baselines import random
from ddrobust_nb.foundations.networks import make_network
from ddrobust_nb.training.protocols import PROTOCOLS, recipe_for
from ddrobust_nb.foundations.predict import accuracy, predict
from ddrobust_nb.training.fit import Recipe, batches, fit, lr_at, training_labels
from tiny import NETWORK, as_stored, global_randomness, scramble, tiny_data

PAPER = Recipe(epochs=1001, decay_every=500, order="sorted")
FEW = Recipe(
    epochs=3,
    batch=4,
    lr=0.05,
    decay_every=2,
    check_every=1,
    check_n=0,
    augment="color_crop_cutout_flip_scale_rotate",
)


@pytest.fixture(scope="module")
def data():
    return tiny_data()


@pytest.fixture(scope="module")
def few(data):
    return random(data, 2)  # 6 images: batches of 4 and 2


def run(dset, recipe=FEW, seed=0, **options):
    return fit(dset, network=NETWORK, seed=seed, recipe=recipe, device="cpu", **options)


def same(a, b):
    "The same bits in two networks, or two sets of weights"
    a, b = (x if isinstance(x, dict) else x.state_dict() for x in (a, b))
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ---- the schedule


@pytest.mark.parametrize("n", [10, 500])
def test_learning_rates_of_the_original(golden, n):
    g = {k.removeprefix(f"n{n}."): v for k, v in golden("lr_trace").items() if k.startswith(f"n{n}.")}
    assert [lr_at(PAPER, e) for e in range(PAPER.epochs)] == g["lr_per_epoch"].tolist()
    sizes = [len(b) for b in batches(n, PAPER, 0, 0)]
    assert sizes == g["batch_sizes"].tolist() and len(sizes) == g["steps_per_epoch"]
    per_step = [lr_at(PAPER, e) for e in range(PAPER.epochs) for _ in batches(n, PAPER, 0, e)]
    assert per_step == g["lr_per_step"].tolist() and len(per_step) == g["steps"]


def test_fit_runs_the_schedule_it_announces(golden, monkeypatch, data):
    "The rates that the optimiser really has, step by step"
    rates = []

    def step(run, *_):
        rates.extend(group["lr"] for group in run.opt.param_groups)
        run.batch, run.seen = run.batch + 1, run.seen + 1

    monkeypatch.setattr(train, "_step", step)
    whole = replace(
        data,
        train_images=torch.zeros(500, 3, 8, 8, dtype=torch.uint8),
        train_labels=torch.zeros(500, dtype=torch.int64),
    )
    run(whole, PAPER)
    assert rates == golden("lr_trace")["n500.lr_per_step"].tolist()


def test_the_protocol_called_paper_is_that_schedule():
    recipe = recipe_for(PROTOCOLS["paper"], "dm", specs["cifar10"], 10)
    assert (
        recipe.epochs,
        recipe.decay_every,
        recipe.order,
        recipe.select,
        recipe.batch,
        recipe.momentum,
        recipe.weight_decay,
        recipe.lr,
    ) == (1001, 500, "sorted", "best_test", 256, 0.9, 5e-4, 0.01)
    assert (recipe.check_every, recipe.check_n) == (1, 0)


@pytest.mark.parametrize(
    "classes, steps", [(10, (1, 1, 1, 2, 2)), (100, (1, 2, 4, 12, 20)), (200, (1, 4, 8, 24, 40))]
)
def test_steps_per_epoch(classes, steps):
    for ipc, want in zip((1, 5, 10, 30, 50), steps):
        assert len(batches(classes * ipc, Recipe(), 0, 0)) == want


def test_without_a_given_epoch_the_rate_falls_once_at_half():
    rates = [lr_at(Recipe(epochs=10), e) for e in range(10)]
    assert rates == [0.01] * 5 + [0.01 * 0.1] * 5
    assert lr_at(Recipe(epochs=1), 0) == 0.01


def test_order():
    shuffled, stored = Recipe(batch=4), Recipe(batch=4, order="sorted")

    def order(recipe, seed, epoch):
        return torch.cat(batches(10, recipe, seed, epoch)).tolist()

    assert order(stored, 0, 0) == order(stored, 1, 5) == list(range(10))
    seen = [order(shuffled, seed, epoch) for seed in (0, 1) for epoch in range(3)]
    assert all(sorted(s) == list(range(10)) for s in seen) and len({tuple(s) for s in seen}) == 6
    assert order(shuffled, 1, 2) == seen[-1]


# ---- one step


def by_hand(data, dset, recipe, seed=0, reset=False):
    "SGD written out: weight decay, momentum, a rate that falls; `reset` forgets the momentum when it does"
    net = make_network(NETWORK, data.spec, seed=seed).train()
    velocity, before = [torch.zeros_like(p) for p in net.parameters()], None
    for epoch in range(recipe.epochs):
        lr = lr_at(recipe, epoch)
        if reset and lr != before:
            velocity = [torch.zeros_like(v) for v in velocity]
        before = lr
        for index in batches(len(dset), recipe, seed, epoch):
            loss = F.cross_entropy(net(dset.images[index]), dset.labels[index])
            for p, g, v in zip(net.parameters(), torch.autograd.grad(loss, list(net.parameters())), velocity):
                v.mul_(recipe.momentum).add_(g + recipe.weight_decay * p.detach())
                p.data -= lr * v
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def test_momentum_is_kept_when_the_rate_falls(data, few):
    recipe = replace(FEW, augment="", epochs=6, decay_every=3, weight_decay=0.01)
    got = torch.cat([p.detach().flatten() for p in run(few, recipe).parameters()])
    torch.testing.assert_close(got, by_hand(data, few, recipe), atol=1e-5, rtol=0)
    assert (got - by_hand(data, few, recipe, reset=True)).abs().max() > 1e-4


def test_a_step_leaves_nothing_on_the_cpu(data, few):
    "On a device without numbers: a tensor forgotten on the CPU is an error there as it is on a GPU"
    going = train.TrainingRun(make_network(NETWORK, data.spec, device="meta").train(), FEW, "meta")
    for _ in range(2):
        train._step(going, FEW, few.images, few.labels, torch.tensor([0, 3]), 0)
    assert going.loss.device.type == "meta" and going.batch == 2


# ---- labels


def test_one_hot_labels_are_classes(few):
    soft = replace(few, labels=F.one_hot(few.labels, 3).float())
    for a, b in zip(run(few).parameters(), run(soft).parameters()):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_soft_labels_are_used_unless_hard_ones_are_asked_for(few):
    soft = replace(few, labels=0.6 * F.one_hot(few.labels, 3) + 0.4 / 3)
    assert not same(run(few), run(soft))
    assert same(run(few), run(soft, replace(FEW, labels="hard")))
    assert same(run(few), run(few, replace(FEW, labels="hard")))
    assert torch.equal(training_labels(soft.labels, FEW), soft.labels)


def test_what_soft_labels_teach(few):
    "Equal probabilities leave nothing to tell classes apart by"
    recipe = Recipe(epochs=150, lr=0.2, batch=64, check_every=0, weight_decay=0)
    undecided = torch.full((6, 3), 1 / 3)
    torch.testing.assert_close(
        run(replace(few, labels=undecided), recipe)(few.images).softmax(1), undecided, atol=0.02, rtol=0
    )
    assert (run(few, recipe)(few.images).softmax(1).gather(1, few.labels[:, None]) > 0.9).all()


@pytest.mark.parametrize("labels", ["auto", "hard"])
def test_labels_of_a_teacher_are_refused(labels, few):
    with pytest.raises(InputError, match="teacher"):
        run(replace(few, labels=None, teacher={"key": "0" * 16}), replace(FEW, labels=labels))


# ---- what is looked at and kept


def test_last_and_best(data, few):
    recipe = replace(FEW, epochs=12, decay_every=12, lr=0.3, augment="")
    last, best = (run(few, replace(recipe, select=s), test=data) for s in ("last", "best_test"))
    h = last.history
    assert h.epochs == list(range(12)) and len(h.loss) == len(h.accuracy) == 12
    assert (
        same(h.last, last)
        and same(best.history.best, best)
        and same(h.best, best)
        and same(best.history.last, last)
    )
    assert accuracy(last, data.test_images, data.test_labels, "cpu") == h.accuracy[-1]
    assert accuracy(best, data.test_images, data.test_labels, "cpu") == max(h.accuracy)
    first = h.accuracy.index(max(h.accuracy))
    assert first < 11 and h.accuracy[-1] < max(h.accuracy), "this case cannot tell the two apart"
    assert same(best, run(few, replace(recipe, epochs=first + 1), test=data))
    assert not last.training and not best.training


def test_the_first_of_equal_looks_is_kept(data, few, monkeypatch):
    "As the original does: later ones have to be better"
    seen = iter([0.1, 0.5, 0.2, 0.5])
    monkeypatch.setattr(train, "accuracy", lambda *_: next(seen))
    recipe = replace(FEW, epochs=4, decay_every=4)
    best = run(few, replace(recipe, select="best_test"), test=data)
    assert same(best, run(few, replace(recipe, epochs=2))) and not same(best, run(few, recipe))


def test_looking_changes_nothing(data, few):
    assert same(run(few), run(few, test=data)) and same(
        run(few), run(few, replace(FEW, check_every=0), test=data)
    )


def test_how_often_and_at_how_many(data, few):
    assert run(few, replace(FEW, epochs=7, check_every=3), test=data).history.epochs == [2, 5, 6]
    h = run(few, replace(FEW, epochs=2, check_n=6), test=data)
    index = subset_of(data, 6)
    assert accuracy(h, data.test_images[index], data.test_labels[index], "cpu") == h.history.accuracy[-1]
    assert run(few).history.epochs == [] and same(run(few).history.best, run(few).history.last)


def test_the_loss_noted_is_the_mean_over_images(data, few):
    "Seen without steps: at a rate of 0 it is the loss of the first weights, batches of unequal size included"
    net, recipe = make_network(NETWORK, data.spec, seed=0), replace(FEW, lr=0.0, augment="")
    with torch.no_grad():
        want = F.cross_entropy(net(few.images), few.labels).item()
    assert run(few, recipe, test=data).history.loss == pytest.approx([want] * 3, abs=1e-5)


@pytest.mark.parametrize(
    "change, says",
    [
        (dict(epochs=0), "epochs"),
        (dict(epochs=1.5), "epochs"),
        (dict(batch=0), "batch"),
        (dict(order="random"), "order"),
        (dict(labels="soft"), "labels"),
        (dict(select="best"), "did you mean 'best_val'"),
        (dict(select="best_test"), "test=data"),
        (dict(augment="colour"), "did you mean 'color'"),
    ],
)
def test_recipes_that_cannot_be(change, says, few):
    with pytest.raises(InputError, match=says):
        run(few, replace(FEW, **change))


def test_best_needs_looks(data, few):
    with pytest.raises(InputError, match="check_every of 1 or more"):
        run(few, replace(FEW, select="best_test", check_every=0), test=data)


def test_what_is_not_there(few):
    for device in ["tpu9", *([] if torch.cuda.is_available() else ["cuda"])]:
        with pytest.raises(InputError, match="device"):
            fit(few, network=NETWORK, device=device)
    with pytest.raises(InputError, match="did you mean 'ConvNetD3'"):
        fit(few, network="ConvNetD33", device="cpu")


# ---- seeds and interruptions


def test_a_seed_means_the_same_bits_and_touches_nothing_global(data, few):
    scramble(1)
    before = global_randomness()
    first = run(few, test=data)
    assert global_randomness() == before
    scramble(2)
    again = run(few, test=data)
    assert (
        same(first, again)
        and first.history.accuracy == again.history.accuracy
        and first.history.loss == again.history.loss
    )
    assert not same(first, run(few, seed=1)) and not same(first, run(few, replace(FEW, augment="")))


def test_the_set_is_left_alone(few):
    images, labels = few.images.clone(), few.labels.clone()
    run(few)
    assert (
        torch.equal(images, few.images) and torch.equal(labels, few.labels) and not few.images.requires_grad
    )


@pytest.mark.parametrize("select", ["last", "best_test"])
def test_resuming_at_every_step(select, data, few, monkeypatch):
    recipe = replace(FEW, select=select)
    want = run(few, recipe, test=data)
    monkeypatch.setenv("DDROBUST_AUTOSAVE", "0")
    states = []
    assert same(want, run(few, recipe, test=data, save=lambda s: states.append(as_stored(s))))
    assert len(states) == 6  # 3 epochs of 2 steps
    for i, state in enumerate(states):
        later = []
        got = run(few, recipe, test=data, state=state, save=later.append)
        assert same(want, got) and len(later) == 5 - i, f"resumed after step {i + 1}"
        for name in ("epochs", "loss", "accuracy"):
            assert getattr(got.history, name) == getattr(want.history, name), (i, name)
        assert same(got.history.best, want.history.best) and same(got.history.last, want.history.last)


def test_images_that_are_read_when_they_are_needed(data):
    "A folder of images trains as the same images in memory do"

    class Lazy:
        def __init__(self, x):
            self.x, self.shape, self.dtype = x, x.shape, x.dtype

        def __len__(self):
            return len(self.x)

        def __getitem__(self, i):
            return self.x[i]

    lazy = replace(data, train_images=Lazy(data.train_images), test_images=Lazy(data.test_images))
    a, b = run(data, replace(FEW, epochs=1), test=data), run(lazy, replace(FEW, epochs=1), test=lazy)
    assert same(a, b) and a.history.accuracy == b.history.accuracy
    assert torch.equal(predict(a, lazy.test_images, "cpu", batch=5), a(as_pixels(data.test_images)).argmax(1))


# ---- numbers that are none


def test_a_diverging_training_stops(data, few):
    with pytest.raises(ArithmeticError, match="smaller lr"):
        run(few, replace(FEW, lr=1e20), test=data)


@pytest.mark.parametrize("change", [{}, dict(check_every=0)])
def test_a_diverging_training_stops_where_nobody_looks(change, few):
    with pytest.raises(ArithmeticError, match="smaller lr"):
        run(few, replace(FEW, lr=1e20, **change))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_trains_what_a_cpu_trains(data, few):
    a, b, c = (fit(few, network=NETWORK, recipe=FEW, device=d, test=data) for d in ("cpu", "cuda", "cuda"))
    assert same(b, c)
    for p, q in zip(a.parameters(), b.parameters()):
        torch.testing.assert_close(p, q.cpu(), atol=1e-3, rtol=0)


# ---- what teachers and their students need


def test_cosine():
    r = Recipe(epochs=200, lr=0.1, schedule="cosine")
    net = torch.nn.Linear(1, 1)
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 200)
    for epoch in range(200):
        assert lr_at(r, epoch) == pytest.approx(opt.param_groups[0]["lr"], abs=1e-12)
        opt.step(), theirs.step()


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
@pytest.mark.parametrize("decay_norms", [True, False])
def test_one_step_of_each_optimiser_by_hand(optimiser, decay_norms, data, few):
    recipe = Recipe(
        epochs=1,
        batch=6,
        lr=0.01,
        weight_decay=0.3,
        optimiser=optimiser,
        decay_norms=decay_norms,
        order="sorted",
        check_every=0,
    )
    net = make_network(NETWORK, data.spec)
    F.cross_entropy(net(few.images), few.labels).backward()
    want = {}
    for k, p in net.named_parameters():
        decay = 0.3 if decay_norms or p.ndim > 1 else 0.0
        if optimiser == "sgd":
            want[k] = p - 0.01 * (p.grad + decay * p)
        else:
            want[k] = p * (1 - 0.01 * decay) - 0.01 * p.grad / (p.grad.abs() + 1e-8)
    got = dict(run(few, recipe).named_parameters())
    for k, v in want.items():
        torch.testing.assert_close(got[k], v, rtol=1e-3, atol=2e-5)


def test_the_step_size_that_came_with_the_set(few):
    learned, plain = replace(few, lr=0.05), replace(FEW, augment="")
    assert same(run(learned, replace(plain, learned_lr=True, lr=0.5)), run(few, plain))
    assert same(run(few, replace(plain, learned_lr=True)), run(few, plain)) and same(
        run(learned, plain), run(few, plain)
    )


def test_views_are_seeded_and_resumed(few, monkeypatch):
    monkeypatch.setenv("DDROBUST_AUTOSAVE", "0")
    r, states = replace(FEW, augment="", pad=1, crop_min=0.5, flip=True, mix="mixup", schedule="cosine"), []
    want = run(few, r, save=lambda s: states.append(as_stored(s)))
    assert (
        same(want, run(few, r))
        and same(want, run(few, r, state=states[2]))
        and not same(want, run(few, r, seed=1))
    )
    for field, off in dict(pad=0, crop_min=1.0, flip=False, mix="").items():
        assert not same(want, run(few, replace(r, **{field: off}))), field


def test_padding_is_black(data):
    x = torch.ones(64, 3, 8, 8)
    seen, _ = train.view(x, None, Recipe(pad=2), 3, torch.Generator().manual_seed(0))
    assert set(seen.unique().tolist()) == {0.0, 1.0} and seen.mean() < 0.95


@pytest.mark.parametrize(
    "field, value",
    [
        ("optimiser", "adam"),
        ("schedule", "linear"),
        ("pad", -1),
        ("pad", 1.5),
        ("crop_min", 1.5),
        ("crop_min", "1"),
        ("flip", 1),
        ("mix", "cutout"),
        ("learned_lr", "yes"),
        ("decay_norms", 0),
    ],
)
def test_new_fields_are_checked(field, value, few):
    with pytest.raises(InputError, match=field):
        run(few, replace(FEW, **{field: value}))


@pytest.mark.parametrize("name", ["best_val", "best_test"])
def test_what_a_checkpoint_is_chosen_by(name):
    "Held-out training images never meet the network, and with them no test image has a say"
    data = tiny_data(counts=(12, 13, 14))
    recipe = replace(FEW, select=name, check_every=1)
    one_class = torch.zeros_like(data.test_labels)
    other_tests = make_data(
        data.spec, data.train_images, data.train_labels, 255 - data.test_images, one_class
    )
    nets = [run(data, recipe, test=test) for test in (data, other_tests)]
    same = nets[0].history.accuracy == nets[1].history.accuracy
    assert same == (name == "best_val")


def test_a_whole_training_set_is_trained_on_without_the_held_out_images():
    "Other pixels in those images change the choice only, never the last weights"
    data = tiny_data(counts=(12, 13, 14))
    held_out = validation_index(data)
    assert torch.bincount(data.train_labels[held_out]).tolist() == [1, 1, 1]
    images = data.train_images.clone()
    images[held_out] = 255 - images[held_out]
    changed = make_data(data.spec, images, data.train_labels, data.test_images, data.test_labels)
    a, b = (run(d, replace(FEW, select="best_val", check_every=1), test=d) for d in (data, changed))
    assert all(torch.equal(a.history.last[k], b.history.last[k]) for k in a.history.last)
    a, b = (run(d, FEW, test=d) for d in (data, changed))
    assert not all(torch.equal(a.history.last[k], b.history.last[k]) for k in a.history.last)

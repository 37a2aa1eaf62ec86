"Trajectory matching: golden numbers of the original programs, three ways to one gradient, experts that fit, sets that resume."

import json

import pytest
import torch
from safetensors.torch import save_file

from ddrobust_nb.foundations.augment import strategy_for
from ddrobust_nb.foundations.core import InputError, derive_seed
from ddrobust_nb.foundations.data import specs
from ddrobust_nb.distillers.baselines import random
from ddrobust_nb.training.distiller import class_balanced, distiller, own_options, prepare
from ddrobust_nb.distillers.mtt import (
    EXPERTS,
    SMALLEST_LR,
    Matching,
    Step,
    Student,
    Trajectories,
    adjoint,
    expert_configs,
    flat,
    load_experts,
    mtt,
    squared,
    stored,
    stretch,
    student_steps,
    train_expert,
    unflat,
)
from ddrobust_nb.distillers.tesla import released, tesla
from ddrobust_nb.foundations.networks import make_network
from ddrobust_nb.training.fit import Recipe, fit
from tiny import NETWORK, as_stored, tiny_data

SMALL = dict(n_experts=2, max_start=2, expert_span=1, expert_batch=8)
QUICK = dict(network=NETWORK, device="cpu", iterations=4, syn_steps=3, lr_img=0.01, **SMALL)
METHODS = ("mtt", "tesla")


@pytest.fixture(scope="module")
def data():
    return tiny_data()


@pytest.fixture(scope="module")
def parts(data):
    return prepare([EXPERTS], data, NETWORK, vars(Matching(**SMALL)), device="cpu")[0]["experts"]


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


# ---- against the original programs


@pytest.fixture(params=["full", "chunk"])
def original(golden, request):
    "One case of both golden files: a student, what a gradient takes, and the numbers by name"
    m, t, key = golden("mtt"), golden("tesla"), request.param
    steps = [Step(row[row >= 0]) for row in m[f"{key}.indices"]]
    numbers = {k.removeprefix(f"{key}."): v for g in (m, t) for k, v in g.items() if k.startswith(key)}
    student = Student(make_network("ConvNetD3-w8", specs["cifar10"]))
    return student, (m["start"], m["target"], m["syn"], m["labels"], m["lr"], steps), numbers


@pytest.mark.parametrize("gradients", [stored, adjoint])
def test_loss_and_gradients_of_mtt(original, gradients):
    student, case, want = original
    loss, images, lr = gradients(student, *case)
    assert relative(loss, want["loss"]) < 1e-5
    assert relative(images, want["grad_syn"]) < 5e-4 and relative(images, want["grad_syn_bptt"]) < 5e-4
    assert relative(lr, want["grad_lr"]) < 5e-4


def test_what_the_program_of_tesla_computes(original):
    student, case, want = original
    loss, images, lr = released(student, *case)
    assert relative(loss, want["loss"]) < 1e-5
    assert (
        relative(images, want["grad_syn_official"]) < 5e-4 and relative(lr, want["grad_lr_official"]) < 5e-4
    )
    exact = adjoint(student, *case)[1]
    assert abs(torch.cosine_similarity(images.flatten(), exact.flatten(), dim=0) - want["cosine"]) < 1e-4


# ---- one gradient, several ways, in double precision


def problem(n=9, steps=5, batch=4, lr=0.3, augment=True, soft=False, seed=0):
    "A student far from its target, in double precision"
    spec, g = tiny_data().spec, torch.Generator().manual_seed(seed)
    net = make_network(NETWORK, spec, seed=seed).double()
    start = flat(net.body)
    target = start + 0.05 * torch.randn(len(start), generator=g, dtype=torch.double)
    labels = torch.randn(n, 3, generator=g, dtype=torch.double).softmax(1) if soft else torch.arange(n) % 3
    images = torch.randn(n, 3, 8, 8, generator=g, dtype=torch.double)
    return Student(net), (
        start,
        target,
        images,
        labels,
        torch.tensor(lr, dtype=torch.double),
        student_steps(n, steps, batch, strategy_for(specs["cifar10"]) if augment else "", 8, seed),
    )


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("batch", [None, 4, 1])
def test_the_recursion_is_back_propagation(batch, soft):
    for seed in range(6):  # several augmentations
        student, case = problem(batch=batch, soft=soft, seed=seed)
        for a, b in zip(adjoint(student, *case), stored(student, *case)):
            assert relative(a, b) < 1e-12


def test_the_gradient_is_the_slope():
    student, (start, target, images, labels, lr, steps) = problem()

    def loss(images, lr):
        return adjoint(student, start, target, images, labels, lr, steps)[0]

    _, d_images, d_lr = adjoint(student, start, target, images, labels, lr, steps)
    way = torch.randn(images.shape, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    h = 1e-8  # small: at the kinks of ReLU gradients jump
    torch.testing.assert_close(
        (loss(images + h * way, lr) - loss(images - h * way, lr)) / (2 * h),
        (d_images * way).sum(),
        rtol=1e-4,
        atol=0,
    )
    torch.testing.assert_close(
        (loss(images, lr + h) - loss(images, lr - h)) / (2 * h), d_lr, rtol=1e-4, atol=0
    )


@pytest.mark.parametrize("gradients", [stored, adjoint, released])
def test_a_student_that_stays_has_a_loss_of_one(gradients):
    student, case = problem(lr=0.0)
    loss, images, lr = gradients(student, *case)
    assert loss == 1 and not images.any() and torch.isfinite(lr)


@pytest.mark.parametrize("batch", [None, 4])
def test_released_is_half_of_the_gradient_with_parameters_held(batch):
    student, case = problem(batch=batch)
    start, target, images, labels, lr, steps = case
    images, lr, theta, total = images.clone().requires_grad_(), lr.clone().requires_grad_(), start, 0
    for step in steps:  # twice backwards, in one graph
        theta = theta.detach().requires_grad_()
        (g,) = torch.autograd.grad(
            student.loss(theta, step(images), labels[step.index]), theta, create_graph=True
        )
        theta, total = theta - lr * g, total + g
    held = squared(start - lr * total, target) / squared(start, target)
    (d_images,) = torch.autograd.grad(held, images, retain_graph=True)
    _, half, slope = released(student, *case)
    assert relative(2 * half, d_images) < 1e-12
    (d_lr,) = torch.autograd.grad(squared(start - lr * total.detach(), target) / squared(start, target), lr)
    assert relative(slope, d_lr) < 1e-12


def test_released_nears_the_gradient_as_the_student_moves_less():
    def cosine(lr, steps):
        student, case = problem(lr=lr, steps=steps, batch=None)
        return torch.cosine_similarity(
            released(student, *case)[1].flatten(), adjoint(student, *case)[1].flatten(), dim=0
        ).item()

    assert cosine(0.3, 1) == pytest.approx(1, abs=1e-12)  # nothing to hold
    far, near, nearer = cosine(1.0, 10), cosine(0.01, 10), cosine(0.0001, 10)
    assert far < near < nearer < 1 and nearer > 0.9999


def test_products_of_the_student_are_those_of_autograd():
    student, (theta, target, x, y, _, _) = problem()
    v = target - theta
    t, z = theta.clone().requires_grad_(), x.clone().requires_grad_()
    (g,) = torch.autograd.grad(student.loss(t, z, y), t, create_graph=True)
    hv, dx = torch.autograd.grad(g @ v, (t, z))
    got = student.bend(theta, x, y, v)
    for a, b in zip((*got, student.pull(theta, x, y, v), student.gradient(theta, x, y)), (g, hv, dx, dx, g)):
        assert relative(a, b) < 1e-12


@pytest.mark.slow
def test_compiled_is_the_same(monkeypatch):
    student, case = problem(batch=None)
    case = [t.float() if torch.is_tensor(t) and t.is_floating_point() else t for t in case]
    net = make_network(NETWORK, tiny_data().spec)
    want = adjoint(Student(net), *case), released(Student(net), *case)
    monkeypatch.setenv("DDROBUST_COMPILE", "always")
    got = adjoint(Student(net), *case), released(Student(net), *case)
    for a, b in zip(sum(got, ()), sum(want, ())):
        assert relative(a, b) < 1e-4


# ---- parameters and steps


@pytest.mark.parametrize("name", ["ConvNetD3-w8", "ResNet18GN-w8"])
def test_parameters_as_one_vector_and_back(name):
    body = make_network(name, tiny_data(size=16).spec).body
    theta = flat(body)
    for key, p in body.named_parameters():
        assert torch.equal(unflat(body, theta)[key], p)
    with torch.no_grad():
        next(body.parameters()).zero_()
    assert not torch.equal(theta, flat(body)), "a copy, which training does not change"


def test_batches_of_the_student():
    steps = student_steps(10, 9, 4, "color_crop", 8, seed=3)
    assert [len(s.index) for s in steps] == [2, 4, 4] * 3
    for i in (0, 3, 6):
        assert sorted(torch.cat([s.index for s in steps[i : i + 3]]).tolist()) == list(
            range(10)
        )  # each image once, then again
    assert [s.index.tolist() for s in steps[:3]] != [s.index.tolist() for s in steps[3:6]]
    assert {s.draw.category for s in steps} == {"color", "crop"} and all(
        s.draw.n == len(s.index) for s in steps
    )
    assert all(len(s.index) == 10 for s in student_steps(10, 3, None, "", 8, seed=0))


def test_every_expert_once_before_any_comes_again():
    drawn = [stretch(5, 3, seed=1, it=it) for it in range(60)]
    for i in range(0, 60, 5):
        assert sorted(e for e, _ in drawn[i : i + 5]) == list(range(5))
    assert {t for _, t in drawn} == {0, 1, 2} and drawn[:5] != drawn[5:10]
    assert drawn != [stretch(5, 3, seed=2, it=it) for it in range(60)]


# ---- experts


def test_snapshots_are_those_of_plain_training_and_differ(data, parts):
    snapshots, config = parts[1]["snapshots"], expert_configs(data, NETWORK, vars(Matching(**SMALL)))[1]
    assert (
        snapshots.shape == (3, len(flat(make_network(NETWORK, data.spec).body)))
        and snapshots.dtype == torch.float32
    )
    assert (torch.cdist(snapshots, snapshots) + torch.eye(3) > 1e-3).all()
    assert not torch.equal(parts[0]["snapshots"], snapshots)
    recipe = Recipe(
        epochs=2,
        lr=0.01,
        decay_every=99,
        momentum=0,
        weight_decay=0,
        batch=8,
        augment=strategy_for(data.spec),
        check_every=0,
    )
    net = fit(data, network=NETWORK, seed=derive_seed(1, "expert"), recipe=recipe, device="cpu")
    assert torch.equal(snapshots[2], flat(net.body))
    assert json.loads(bytes(parts[1]["card"].tolist())) == dict(
        config, dataset="tiny", fingerprint=data.fingerprint
    )


def test_a_longer_expert_begins_like_a_shorter_one(data, parts):
    options = vars(Matching(**{**SMALL, "n_experts": 1, "max_start": 4}))
    made, _ = prepare([EXPERTS], data, NETWORK, options, device="cpu")
    (longer,) = made["experts"]
    assert torch.equal(longer["snapshots"][:3], parts[0]["snapshots"])


def test_configurations_of_experts_name_what_matters_and_nothing_else(data):
    base = expert_configs(data, NETWORK, vars(Matching(**SMALL)))
    same = dict(
        iterations=7,
        syn_steps=9,
        batch_syn=2,
        lr_img=1.0,
        lr_lr=1.0,
        lr_student=1.0,
        momentum=0.0,
        init="noise",
        n_experts=1,
    )
    assert expert_configs(data, NETWORK, vars(Matching(**{**SMALL, **same}))) == base[:1]
    assert (
        expert_configs(data, NETWORK, vars(Matching(**{**SMALL, "augment": strategy_for(data.spec)}))) == base
    )
    for option, value in dict(
        expert_span=2, expert_batch=4, expert_lr=0.1, expert_images=9, augment=""
    ).items():
        assert expert_configs(data, NETWORK, vars(Matching(**{**SMALL, option: value})))[0] != base[0], option
    assert mtt.prerequisites == tesla.prerequisites == (EXPERTS,)
    assert json.loads(json.dumps(base)) == base


def test_experts_of_fewer_images(data):
    few = class_balanced(data, 10, "subset")
    assert torch.bincount(few.train_labels).tolist() == [3, 3, 3]
    assert class_balanced(data, None, "subset") is data and len(
        class_balanced(data, 1000, "subset").train_labels
    ) == len(data.train_labels)
    config = expert_configs(data, NETWORK, vars(Matching(**{**SMALL, "expert_images": 9})))[0]
    assert not torch.equal(
        train_expert(data, config)["snapshots"], train_expert(data, dict(config, images=None))["snapshots"]
    )


def test_an_expert_interrupted_anywhere(data, parts, monkeypatch):
    monkeypatch.setenv("DDROBUST_AUTOSAVE", "0")
    config, states = expert_configs(data, NETWORK, vars(Matching(**SMALL)))[0], []
    train_expert(data, config, save=lambda s: states.append(as_stored(s)))
    assert len(states) > 6
    for state in states:
        assert torch.equal(train_expert(data, config, state=state)["snapshots"], parts[0]["snapshots"])


def test_experts_that_diverge_name_their_knob(data):
    with pytest.raises(ArithmeticError, match="expert_lr"):
        prepare([EXPERTS], data, NETWORK, vars(Matching(**SMALL, expert_lr=1e30)), device="cpu")


def write(parts, folder):
    for i, part in enumerate(parts):
        (folder / f"{i}").mkdir(), save_file(part, folder / f"{i}" / "part.safetensors")
    return load_experts(folder)


@pytest.mark.parametrize("name", METHODS)
def test_experts_from_memory_or_from_files_or_made_here(name, data, parts, tmp_path):
    made, given = distiller[name](data, 1, **QUICK), distiller[name](data, 1, experts=parts, **QUICK)
    read = distiller[name](data, 1, experts=write(parts, tmp_path), **QUICK)
    assert (
        torch.equal(made.images, given.images)
        and torch.equal(made.images, read.images)
        and made.lr == given.lr == read.lr
    )
    assert made.config == given.config == read.config


def spoilt(part, **changes):
    card = dict(json.loads(bytes(part["card"].tolist())), **changes)
    return dict(part, card=torch.tensor(list(json.dumps(card).encode()), dtype=torch.uint8))


@pytest.mark.parametrize("name", METHODS)
def test_experts_that_do_not_fit_are_refused_before_any_work(name, data, parts, tmp_path):
    def save(state):
        raise AssertionError("work was done")

    part, snapshots = parts[0], parts[0]["snapshots"]
    hole = snapshots.clone()
    hole[-1, 3] = float("nan")
    (tmp_path / "e").mkdir()
    bad = {
        "there are no experts": [],
        "holds 'snapshots'": [{"weights": snapshots}],
        "use experts of the same network": [{"snapshots": snapshots[:, 1:]}],
        "is of ConvNetD3-w9": [spoilt(part, network="ConvNetD3-w9")],
        "was trained on other .0123.": [spoilt(part, dataset="other", fingerprint="0123")],
        "train longer or lower max_start": [{"snapshots": snapshots[:2]}],
        "not numbers at epoch 2": [part, {"snapshots": hole}],
        "copies of one another": [{"snapshots": snapshots[:1].repeat(3, 1)}],
    }
    for says, experts in bad.items():
        with pytest.raises(InputError, match=says):
            distiller[name](data, 1, experts=experts, save=save, **QUICK)
    files = write(parts, tmp_path / "e")
    whole = files[1].read_bytes()
    for damaged in (whole[:-100], b"", b"text"):
        files[1].write_bytes(damaged)
        with pytest.raises(InputError, match="not a readable safetensors file"):
            distiller[name](data, 1, experts=files, save=save, **QUICK)
    with pytest.raises(InputError, match="no .safetensors file"):
        load_experts(tmp_path / "nowhere")


def test_a_file_is_read_by_slice(data, parts, tmp_path):
    (tmp_path / "e").mkdir()
    paths = Trajectories(write(parts, tmp_path / "e"), make_network(NETWORK, data.spec), data, 2)
    assert not any(torch.is_tensor(p.snapshots) for p in paths.paths)
    both = paths, Trajectories(parts, make_network(NETWORK, data.spec), data, 2)
    assert all(p.snapshot(1, 1).storage_offset() == 0 for p in both), (
        "a piece of a larger tensor, which compiled code refuses"
    )
    for expert, part in enumerate(parts):
        for epoch, want in enumerate(part["snapshots"]):
            assert torch.equal(paths.snapshot(expert, epoch), want)


# ---- the distillers


def test_the_loop_of_mtt_by_hand(data, parts):
    "Written again the slow way: one graph for all, momentum by hand"
    o, seed = Matching(**SMALL, iterations=3, syn_steps=3, lr_img=0.02, lr_lr=1e-5, lr_student=0.05), 4
    dset = mtt(data, 2, seed=seed, network=NETWORK, device="cpu", experts=parts, **vars(o))
    net, y = make_network(NETWORK, data.spec), torch.arange(3).repeat_interleave(2)
    z, lr, speed = net.normalise(random(data, 2, seed=seed).images), torch.tensor(o.lr_student), [0, 0]
    for it in range(3):
        expert, t = stretch(2, o.max_start, seed, it)
        start, goal = (parts[expert]["snapshots"][e] for e in (t, t + o.expert_span))
        steps = student_steps(6, 3, None, strategy_for(data.spec), 8, derive_seed(seed, "student", it))
        _, *grads = stored(Student(net), start, goal, z, y, lr, steps)
        speed = [o.momentum * v + g for v, g in zip(speed, grads)]
        z, lr = z - o.lr_img * speed[0], lr - o.lr_lr * speed[1]
    torch.testing.assert_close(dset.images, net.denormalise(z), atol=1e-5, rtol=1e-5)
    assert dset.lr == pytest.approx(lr.item(), rel=1e-5) and dset.lr != o.lr_student


def test_the_two_ways_of_mtt_and_the_exact_tesla_make_one_set(data, parts):
    one, two = (mtt(data, 2, backprop=b, experts=parts, **QUICK) for b in ("adjoint", "stored"))
    torch.testing.assert_close(one.images, two.images, atol=1e-4, rtol=1e-4)
    exact = tesla(data, 2, gradient="exact", experts=parts, **QUICK)
    assert torch.equal(one.images, exact.images) and one.lr == exact.lr
    half = tesla(data, 2, experts=parts, **QUICK)
    assert not torch.equal(exact.images, half.images)


@pytest.mark.parametrize("name", METHODS)
def test_the_step_size_stops_above_zero(name, data, parts):
    dset = distiller[name](data, 1, experts=parts, **QUICK, lr_lr=1e3)
    assert dset.lr >= SMALLEST_LR and dset.config["smallest_lr"] == SMALLEST_LR
    pushed = [
        distiller[name](data, 1, experts=parts, **{**QUICK, "iterations": n}, lr_lr=1e3).lr
        for n in range(1, 6)
    ]
    assert pytest.approx(SMALLEST_LR, rel=1e-6) in pushed, "this test should have met the bound"


@pytest.mark.parametrize("name", METHODS)
def test_divergence_names_the_knobs(name, data, parts):
    with pytest.raises(ArithmeticError, match="lr_img, lr_lr or lr_student, or fewer syn_steps"):
        distiller[name](data, 1, experts=parts, **{**QUICK, "iterations": 22, "lr_img": 1e30})


def test_soft_labels_are_what_the_expert_sees(data, parts):
    last = []
    tesla(
        data,
        2,
        labels="soft",
        experts=parts,
        watch=lambda it, loss, images: last.append((it, images)),
        **{**QUICK, "iterations": 3},
    )
    dset = tesla(data, 2, labels="soft", experts=parts, **QUICK)
    assert last[-1][0] == 2 and dset.labels.shape == (6, 3) and dset.labels.dtype == torch.float32
    expert, t = stretch(2, 2, 0, 3)  # of the last iteration; images as they were before it
    net = make_network(NETWORK, data.spec)
    want = Student(net).logits(parts[expert]["snapshots"][t + 1], net.normalise(last[-1][1])).softmax(1)
    torch.testing.assert_close(dset.labels, want, atol=1e-5, rtol=1e-5)
    assert torch.equal(
        tesla(data, 2, labels="soft", experts=parts, **{**QUICK, "iterations": 0}).labels,
        torch.eye(3).repeat_interleave(2, 0),
    )


@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_resumed_within_experts_and_within_images(labels, data, monkeypatch):
    "From every state that was ever saved: first of the experts, then of the images beside the finished experts"
    want = tesla(data, 1, labels=labels, batch_syn=2, **QUICK)
    monkeypatch.setenv("DDROBUST_AUTOSAVE", "0")
    states = []
    tesla(data, 1, labels=labels, batch_syn=2, save=lambda s: states.append(as_stored(s)), **QUICK)
    assert {len(s["parts"]) for s in states} == {0, 1, 2} and sum("iteration" in s for s in states) == 4
    for state in states:
        again = tesla(data, 1, labels=labels, batch_syn=2, state=state, **QUICK)
        assert (
            torch.equal(again.images, want.images)
            and torch.equal(again.labels, want.labels)
            and again.lr == want.lr
        )


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    "option, value, says",
    [
        ("syn_steps", 0, "syn_steps must be a whole number from 1"),
        ("expert_span", 0, "expert_span"),
        ("max_start", 0, "max_start"),
        ("n_experts", 0, "n_experts"),
        ("expert_batch", 0, "expert_batch"),
        ("batch_syn", 4, "batch_syn must be a whole number from 1 to 3 .the images of the set"),
        ("batch_syn", 0, "batch_syn"),
        ("expert_images", 2, "expert_images must be a whole number from 3"),
        ("lr_img", 0, "lr_img must be a number above 0"),
        ("lr_lr", -1e-7, "lr_lr"),
        ("lr_student", "1", "lr_student"),
        ("expert_lr", True, "expert_lr"),
        ("momentum", 1, "momentum"),
        ("init", "reel", "did you mean 'real'"),
        ("augment", "colour", "did you mean 'color'"),
        ("network", "ResNet18-w8", "use ConvNetD3 or ResNet18GN"),
    ],
)
def test_what_cannot_be(name, option, value, says, data):
    with pytest.raises(InputError, match=says):
        distiller[name](data, 1, **{**QUICK, option: value})


def test_choices_of_each(data):
    for name, option, near in (
        ("mtt", "backprop", "stored"),
        ("tesla", "gradient", "released"),
        ("tesla", "labels", "soft"),
    ):
        with pytest.raises(InputError, match=f"did you mean '{near}'"):
            distiller[name](data, 1, **QUICK, **{option: near[:-1]})
    assert set(own_options("mtt")) ^ set(own_options("tesla")) == {"backprop", "gradient", "labels"}


def test_images_get_nearer_to_where_experts_lead():
    data = tiny_data((30, 30, 30), size=16)
    options = dict(
        network=NETWORK,
        device="cpu",
        n_experts=1,
        max_start=1,
        expert_span=2,
        expert_batch=10,
        expert_lr=0.1,
        syn_steps=5,
        lr_student=0.2,
        lr_img=30.0,
        augment="",
        backprop="stored",
    )
    losses = {}
    mtt(data, 1, iterations=41, watch=lambda it, loss, images: losses.update({it: loss}), **options)
    assert losses[40] < 0.8 * losses[0], losses

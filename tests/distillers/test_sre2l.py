"SRe2L: golden numbers of the original program, groups, views, labels of a teacher, and what is refused."

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ddrobust_nb.foundations.core import InputError, generator
from ddrobust_nb.foundations.data import specs
from ddrobust_nb.distillers.baselines import random
from ddrobust_nb.training.distiller import class_balanced, distiller, own_options
from ddrobust_nb.distillers.sre2l import (
    _Recovery,
    _recover_step,
    as_jpeg,
    batch_norms,
    bn_distances,
    bn_inputs,
    lr_recover,
    recover_loss,
    recover_view,
    squeeze,
    sre2l,
)
from ddrobust_nb.foundations.networks import Normalise, make_network
from ddrobust_nb.training.fit import Recipe, fit, frozen, labeller, soft_loss, view, weights, weights_key
from tiny import as_stored, tiny_data

NETWORK = "ResNet18-w8"
SHORT = dict(network=NETWORK, device="cpu", squeeze_epochs=2, squeeze_batch=20, iterations=6)
STUDENT = Recipe(epochs=3, batch=4, lr=0.05, schedule="cosine", check_every=0)


@pytest.fixture(scope="module")
def data():
    return tiny_data()


@pytest.fixture(scope="module")
def part(data):
    torch.set_num_threads(1)  # as in the tests, which compare bits
    return squeeze(data, dict(network=NETWORK, seed=0, epochs=2, lr=0.1, batch=20, images=None), device="cpu")


@pytest.fixture(scope="module")
def teacher(data, part):
    return frozen(NETWORK, data.spec, part)


def made(data, part, ipc=2, **options):
    return sre2l(data, ipc, **{**SHORT, "teacher": [part], **options})


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ---- against the original program


class Golden(nn.Module):
    def __init__(self):
        super().__init__()
        for i, n in enumerate((3, 16, 16), 1):
            (
                setattr(self, f"conv{i}", nn.Conv2d(n, 16, 3, padding=1, bias=False)),
                setattr(self, f"bn{i}", nn.BatchNorm2d(16)),
            )
        self.fc = nn.Linear(16, 10)

    def forward(self, x):
        for i in (1, 2, 3):
            x = F.relu(getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x)))
        return self.fc(x.mean((2, 3)))


@pytest.fixture
def case(golden):
    g, body = golden("sre2l"), Golden().eval().requires_grad_(False)
    body.load_state_dict({k.removeprefix("state."): v for k, v in g.items() if k.startswith("state.")})
    return g, body


@pytest.mark.parametrize("a_bn, name", [(0.01, "rbn0.01"), (1.0, "rbn1")])
@pytest.mark.parametrize("roll, kind", [((0, 0), "nojit"), ((3, 1), "jit")])
def test_loss_and_gradient_of_the_original(a_bn, name, roll, kind, case):
    g, body = case
    x = g["x"].clone().requires_grad_()
    with bn_inputs(body) as seen:
        loss = recover_loss(
            body, seen, x.roll(roll, (2, 3))[None], g["targets"][None], a_bn=a_bn, first_bn=10.0
        )
    (grad,) = torch.autograd.grad(loss, x)
    assert abs(loss - g[f"{kind}.{name}.loss"]) <= 1e-5 * loss
    assert (grad - g[f"{kind}.{name}.grad_x"]).norm() <= 1e-4 * grad.norm()


@pytest.mark.parametrize("roll, kind", [((0, 0), "nojit"), ((3, 1), "jit")])
def test_every_layer_of_the_original(roll, kind, case):
    g, body = case
    with bn_inputs(body) as seen, torch.no_grad():
        logits = body(g["x"].roll(roll, (2, 3)))
    r = bn_distances(seen)[:, 0]
    torch.testing.assert_close(r, g[f"{kind}.r_layers"], rtol=1e-5, atol=0)
    torch.testing.assert_close(r.sum() + 9 * r[0], g[f"{kind}.r_bn_total"], rtol=1e-5, atol=0)
    torch.testing.assert_close(F.cross_entropy(logits, g["targets"]), g[f"{kind}.ce"], rtol=1e-5, atol=0)


def test_schedule_and_clip_of_the_original(golden):
    g, spec = golden("sre2l"), specs["cifar10"]
    torch.testing.assert_close(
        torch.tensor([lr_recover(0.25, it, 1000) for it in range(1000)], dtype=torch.float64),
        g["recover_lr"],
        rtol=1e-12,
        atol=1e-15,
    )
    norm = Normalise(spec.mean, spec.std)
    low, high = (norm(torch.full_like(norm.mean, v)) for v in (0.0, 1.0))
    torch.testing.assert_close(g["clip.in"].clamp(low, high), g["clip.out"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("t", [1, 20, 30])
def test_divergence_of_the_original(t, golden):
    g = golden("sre2l")
    student = g["kl.student_logits"].clone().requires_grad_()
    loss = soft_loss(student, g["kl.teacher_logits"], t)
    (grad,) = torch.autograd.grad(loss, student)
    assert abs(loss - g[f"kl.T{t}.loss"]) <= 1e-6
    assert (grad - g[f"kl.T{t}.grad"]).norm() <= 1e-4 * grad.norm()


def test_the_gradient_falls_with_the_temperature():
    g = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(256, 10, generator=g).requires_grad_(), torch.randn(256, 10, generator=g)
    size = [torch.autograd.grad(soft_loss(student, teacher, t), student)[0].norm() for t in (1, 20)]
    assert 200 < size[0] / size[1] < 450


# ---- statistics


def test_nothing_to_gain_where_the_statistics_agree(teacher):
    "Running statistics replaced by those of the batch itself, layer by layer"
    net, x = (
        frozen(NETWORK, teacher.spec, weights(teacher)),
        torch.randn(6, 3, 8, 8, generator=generator(0, "x")),
    )
    for i in range(len(batch_norms(net))):  # a layer's input depends on the layers before
        with bn_inputs(net.body) as seen, torch.no_grad():
            net.body(x)
        norm, z = seen[i]
        norm.running_var.copy_(z.var((0, 2, 3), correction=0)), norm.running_mean.copy_(z.mean((0, 2, 3)))
    with bn_inputs(net.body) as seen:
        net.body(x)
    assert len(seen) == len(batch_norms(net)) == 20 and bn_distances(seen).max() < 1e-4
    x = x.clone().requires_grad_()
    with bn_inputs(net.body) as seen:
        recover_loss(net.body, seen, x[None], torch.arange(6)[None] % 3, a_bn=1.0, first_bn=10.0).backward()
    assert torch.isfinite(x.grad).all()


def test_groups_are_what_each_would_be_alone(teacher):
    g = generator(0, "groups")
    x, y = torch.randn(4, 3, 3, 8, 8, generator=g), torch.arange(3).expand(4, 3)

    def loss_of(x, y):
        x = x.clone().requires_grad_()
        with bn_inputs(teacher.body) as seen:
            loss = recover_loss(teacher.body, seen, x, y, a_bn=0.1, first_bn=10.0, tv=0.01, l2=0.01)
        return loss.item(), torch.autograd.grad(loss, x)[0]

    together, grad = loss_of(x, y)
    alone = [loss_of(x[i : i + 1], y[i : i + 1]) for i in range(4)]
    assert together == pytest.approx(sum(loss for loss, _ in alone), rel=1e-5)
    torch.testing.assert_close(grad, torch.cat([d for _, d in alone]), rtol=1e-4, atol=1e-6)
    assert loss_of(x.flatten(0, 1)[None], y.reshape(1, -1))[0] * 4 != pytest.approx(
        together, rel=1e-3
    )  # one large group is another loss


def test_groups_change_only_rounding(data, part):
    a, b = (made(data, part, 3, groups=n, iterations=2, jitter=2).images for n in (1, 3))
    assert (a - b).abs().mean() < 1e-3


def test_hooks_are_gone(teacher):
    with pytest.raises(KeyError):
        with bn_inputs(teacher.body):
            raise KeyError
    assert not any(m._forward_pre_hooks for m in teacher.modules())


def test_total_variation_and_norm_by_hand(teacher):
    x, y = torch.randn(1, 3, 3, 8, 8, generator=generator(0, "tv")), torch.arange(3)[None]

    def loss_of(**terms):
        with bn_inputs(teacher.body) as seen:
            return recover_loss(teacher.body, seen, x, y, a_bn=0.0, first_bn=1.0, **terms)

    z = x[0]
    tv = sum(
        d.norm()
        for d in (
            z[..., 1:] - z[..., :-1],
            z[..., 1:, :] - z[..., :-1, :],
            z[..., 1:, 1:] - z[..., :-1, :-1],
            z[..., 1:, :-1] - z[..., :-1, 1:],
        )
    )
    torch.testing.assert_close(loss_of(tv=0.5) - loss_of(), 0.5 * tv, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        loss_of(l2=0.5) - loss_of(), 0.5 * z.flatten(1).norm(dim=1).mean(), rtol=1e-4, atol=1e-4
    )


# ---- recovery


def test_recovery_is_the_loop_of_the_paper(data, part, teacher):
    "Written again the slow way, one image per class at a time, rolled and clamped"
    low, high = (teacher.normalise(torch.full((1, 3, 1, 1), v)) for v in (0.0, 1.0))
    start, steps, want = torch.randn(2, 3, 3, 8, 8, generator=generator(5, "noise")), 3, []
    for i in range(2):
        x = start[i].clone().requires_grad_()
        opt = torch.optim.Adam([x], lr=0.25, betas=(0.5, 0.9), eps=1e-8)
        for it in range(steps):
            opt.param_groups[0]["lr"] = lr_recover(0.25, it, steps)
            rolls = torch.randint(3, (2,), generator=generator(5, "recover", i, 0, it)).tolist()
            with bn_inputs(teacher.body) as seen:
                logits = teacher.body(x.roll(rolls, (2, 3)))
            r = sum(
                (10 if layer == 0 else 1)
                * (
                    (z.var((0, 2, 3), correction=0) - m.running_var).norm()
                    + (z.mean((0, 2, 3)) - m.running_mean).norm()
                )
                for layer, (m, z) in enumerate(seen)
            )
            opt.zero_grad()
            (F.cross_entropy(logits, torch.arange(3)) + 0.01 * r).backward()
            opt.step()
            with torch.no_grad():
                x.clamp_(low, high)
        want.append(x.detach())
    got = made(data, part, 2, seed=5, iterations=steps, jitter=2).images.unflatten(0, (3, 2)).transpose(0, 1)
    error = (got - teacher.denormalise(torch.stack(want))).abs()
    assert (
        error.mean() < 1e-4 and (error > 1e-2).float().mean() < 0.01
    )  # Adam may turn a rounded zero into a step


def test_pixels_stay_in_range_and_labels_in_order(data, part):
    for pixels in ("float", "jpeg"):
        dset = made(data, part, 2, pixels=pixels, lr_img=5.0)
        assert (
            0 <= dset.images.min() and dset.images.max() <= 1 and dset.labels.tolist() == [0, 0, 1, 1, 2, 2]
        )
    assert torch.equal(dset.images, dset.images.mul(255).round() / 255)


def test_the_loss_falls_and_the_teacher_agrees(data, part, teacher):
    seen = []
    dset = made(data, part, 2, iterations=100, watch=lambda *v: seen.append(v))
    assert [it for it, _, _ in seen] == [0, 20, 40, 60, 80, 99] and seen[-1][1] < 0.75 * seen[0][1]
    assert torch.equal(seen[-1][2], dset.images)
    assert (teacher(dset.images).argmax(1) == dset.labels).float().mean() > 0.6


def test_many_classes_are_taken_in_pieces(data, part):
    "Two classes, then the third; two ids, then the third: four pieces"
    dset = made(data, part, 3, classes_per_batch=2, groups=2, iterations=2)
    assert not torch.equal(dset.images, made(data, part, 3, iterations=2).images)
    net, o = (
        frozen(NETWORK, data.spec, part),
        {**own_options("sre2l"), "classes_per_batch": 2, "groups": 2, "iterations": 2},
    )
    run = _Recovery(data, 3, net, 0, torch.device("cpu"), o)
    assert run.total == 8 and run.pieces == [
        (slice(a, b), slice(c, d)) for a, b in ((0, 2), (2, 3)) for c, d in ((0, 2), (2, 3))
    ]


@pytest.mark.parametrize("options", [dict(classes_per_batch=2, groups=1), dict(crop_min=0.3)])
def test_resumed_in_any_piece(options, data, part, monkeypatch):
    monkeypatch.setenv("DDROBUST_AUTOSAVE", "0")
    states, o = [], dict(iterations=3, **options)
    want = made(data, part, 2, save=lambda s: states.append(as_stored(s)), **o)
    for state in states:
        assert torch.equal(made(data, part, 2, state=state, **o).images, want.images), state["done"]


def test_one_view_per_group():
    x = torch.rand(2, 3, 3, 16, 16, generator=generator(0, "x"))

    def draws():
        return [generator(0, "g", i) for i in range(2)]

    rolled = recover_view(x, draws(), 4)
    for images, out, g in zip(x, rolled, draws()):
        shift = torch.randint(5, (2,), generator=g).tolist()
        assert torch.equal(out, images.roll(shift, (2, 3)))
    cropped = recover_view(x[:, :1].expand(2, 3, 3, 16, 16), draws(), 0, 0.2)
    assert torch.equal(cropped[:, 0], cropped[:, 1]) and not torch.equal(
        cropped[0], cropped[1]
    )  # one draw for all images of a group
    assert torch.equal(recover_view(x, draws(), 0), x)


def test_a_step_leaves_nothing_on_the_cpu(data):
    net = make_network(NETWORK, data.spec, device="meta").eval().requires_grad_(False)
    run = _Recovery(data, 2, net, 0, torch.device("meta"), {**own_options("sre2l"), "crop_min": 0.5})
    run.images = lambda: run.z
    with bn_inputs(net.body) as seen:
        loss = _recover_step(run, lambda x, y: recover_loss(net.body, seen, x, y, a_bn=0.1, first_bn=10.0))
    assert loss.device.type == "meta" and run.x.grad.device.type == "meta"


def test_part_of_the_training_set(data):
    part = class_balanced(data, 20, "squeeze")
    assert (
        torch.bincount(part.train_labels).tolist() == [6, 6, 6]
        and class_balanced(data, None, "squeeze") is data
    )
    assert torch.equal(part.train_images, class_balanced(data, 20, "squeeze").train_images)


def test_jpeg_of_grey_and_colour():
    for channels in (1, 3):
        x = torch.full((2, channels, 16, 16), 0.5)
        assert as_jpeg(x).shape == x.shape and (as_jpeg(x) - 0.5).abs().max() < 0.02


# ---- labels of the teacher


def test_relabelling_leaves_the_teacher_alone(data, part):
    for bn in ("eval", "batch"):
        net = frozen(NETWORK, data.spec, part)
        dset = made(data, part, 2, teacher_bn=bn)
        fit(dset, network=NETWORK, recipe=STUDENT, device="cpu", teacher=net)
        assert same(weights(net), part) and not net.training and not any(m.training for m in net.modules())


def test_batch_statistics_are_those_of_the_batch(teacher):
    x = torch.rand(6, 3, 8, 8, generator=generator(0, "x"))
    net = make_network(NETWORK, teacher.spec)
    net.load_state_dict(teacher.state_dict())
    with torch.no_grad():
        want = net.train()(x)
    torch.testing.assert_close(labeller(teacher, "batch")(x), want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(labeller(teacher)(x), teacher(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mix", ["cutmix", "mixup", ""])
def test_training_on_relabelled_views_by_hand(mix, data, part, teacher):
    "The same draws, then labels of the whole batch as the student sees it"
    dset, r = made(data, part, 2, relabel_mix=mix, temperature=4.0), replace(STUDENT, epochs=1, batch=6)
    seen = replace(r, crop_min=0.08, flip=True, mix=mix)
    net = make_network(NETWORK, data.spec).train()
    order = torch.randperm(6, generator=generator(0, "order", 0))
    x, _ = view(dset.images[order], None, seen, 3, generator(0, "view", 0, 0))
    F.kl_div(F.log_softmax(net(x) / 4, 1), F.softmax(teacher(x) / 4, 1), reduction="batchmean").backward()
    opt = torch.optim.SGD(net.parameters(), lr=r.lr, momentum=0.9, weight_decay=5e-4)
    opt.step()
    got = fit(dset, network=NETWORK, recipe=r, device="cpu", teacher=teacher)
    for k, v in weights(got).items():
        torch.testing.assert_close(v, weights(net)[k], rtol=1e-4, atol=1e-5)


def test_an_interrupted_student_ends_like_any_other(data, part, teacher, monkeypatch):
    monkeypatch.setenv("DDROBUST_AUTOSAVE", "0")
    dset, states = made(data, part), []

    def student(**kw):
        return weights(
            fit(
                dset,
                network=NETWORK,
                recipe=replace(STUDENT, optimiser="adamw", decay_norms=False),
                device="cpu",
                teacher=teacher,
                **kw,
            )
        )

    want = student(save=lambda s: states.append(as_stored(s)))
    for i in (0, 2, 4):
        assert same(want, student(state=states[i]))


def test_the_right_teacher_or_classes(data, part, teacher):
    dset = made(data, part)
    with pytest.raises(InputError, match="give it as teacher="):
        fit(dset, network=NETWORK, recipe=STUDENT, device="cpu")
    with pytest.raises(InputError, match="give the teacher it was made with"):
        fit(
            dset,
            network=NETWORK,
            recipe=STUDENT,
            device="cpu",
            teacher=make_network(NETWORK, data.spec, seed=9),
        )
    hard = fit(dset, network=NETWORK, recipe=replace(STUDENT, labels="hard"), device="cpu")
    plain = fit(replace(dset, teacher=None), network=NETWORK, recipe=STUDENT, device="cpu")
    assert same(weights(hard), weights(plain))
    for key in ("temperature", "mix"):
        with pytest.raises(InputError, match=f"{key} missing"):
            fit(
                replace(dset, teacher={k: v for k, v in dset.teacher.items() if k != key}),
                recipe=STUDENT,
                device="cpu",
                teacher=teacher,
            )
    for wrong in (dict(temperature=0), dict(mix="cut"), dict(teacher_bn="train"), dict(crop_min=2)):
        with pytest.raises(InputError):
            fit(
                replace(dset, teacher={**dset.teacher, **wrong}),
                recipe=STUDENT,
                device="cpu",
                teacher=teacher,
            )


def test_the_teacher_sees_what_a_dsa_student_sees(data, part, teacher, monkeypatch):
    dset = made(data, part)
    a, b = (
        weights(fit(dset, network=NETWORK, recipe=replace(STUDENT, augment=s), device="cpu", teacher=teacher))
        for s in ("", "color_crop")
    )
    assert not same(a, b)


# ---- the ablations


def test_three_sets_one_teacher(data, part):
    sets = {
        n: distiller[n](
            data,
            2,
            **{k: v for k, v in SHORT.items() if k in {**own_options(n), "network": 0, "device": 0}},
            teacher=[part],
        )
        for n in ("sre2l", "sre2l_hard", "random_teacher")
    }
    assert torch.equal(sets["sre2l"].images, sets["sre2l_hard"].images) and torch.equal(
        sets["random_teacher"].images, random(data, 2).images
    )
    assert (
        sets["sre2l"].teacher == sets["random_teacher"].teacher
        and sets["sre2l"].teacher["key"] == weights_key(part)
        and sets["sre2l_hard"].teacher is None
    )
    configs = [
        distiller[n].prerequisites[0].configs(data, NETWORK, {**own_options(n), "squeeze_epochs": 7})
        for n in sets
    ]
    assert (
        configs[0]
        == configs[1]
        == configs[2]
        == [dict(network=NETWORK, seed=0, epochs=7, lr=0.1, batch=128, images=None)]
    )


def test_upstream_by_hand_or_by_itself(data, part, tmp_path):
    from safetensors.torch import save_file

    save_file(part, tmp_path / "teacher.safetensors")
    alone = sre2l(data, 2, **SHORT)
    for teacher in (part, tmp_path / "teacher.safetensors"):
        dset = made(data, teacher)
        assert (
            torch.equal(dset.images, alone.images)
            and dset.teacher == alone.teacher
            and dset.config == alone.config
        )


# ---- what is refused


@pytest.mark.parametrize("network", ["ConvNetD3-w8", "ResNet18GN-w8"])
@pytest.mark.parametrize("name", ["sre2l", "sre2l_hard", "random_teacher"])
def test_networks_without_batch_norm(name, network):
    data = tiny_data(size=16)  # Smaller ones would be too small for a ResNet18 with group norm
    with pytest.raises(InputError, match="has none: use ResNet18"):
        distiller[name](data, 1, network=network, device="cpu")


@pytest.mark.parametrize(
    "option, value",
    [
        ("squeeze_epochs", 0),
        ("squeeze_lr", 0),
        ("squeeze_batch", 1),
        ("squeeze_images", 37),
        ("squeeze_images", 5),
        ("lr_img", -1.0),
        ("lr_img", "1"),
        ("a_bn", -0.1),
        ("a_bn", float("nan")),
        ("groups", 0),
        ("jitter", -1),
        ("crop_min", 0),
        ("crop_min", 1.5),
        ("pixels", "png"),
        ("temperature", 0),
        ("relabel_mix", "cutout"),
        ("teacher_bn", "train"),
        ("relabel_crop", None),
    ],
)
def test_sre2l_refuses(option, value, data):
    with pytest.raises(InputError, match=option):
        sre2l(data, 1, **{**SHORT, option: value})


def test_a_diverging_run_stops_and_says_why(data, part):
    with pytest.raises(ArithmeticError, match="smaller lr_img or a_bn"):
        made(data, part, a_bn=3e38)
    with pytest.raises(ArithmeticError, match="smaller squeeze_lr"):
        sre2l(data, 2, **{**SHORT, "squeeze_lr": 1e30})


def test_one_image_per_batch_and_batch_norm(data, part, teacher):
    "Maps of one pixel have no statistics; larger ones do"
    with pytest.raises(InputError, match="leave a batch of one image"):
        fit(
            made(data, part), network=NETWORK, recipe=replace(STUDENT, batch=1), device="cpu", teacher=teacher
        )
    larger = tiny_data(size=32)
    fit(random(larger, 1), network=NETWORK, recipe=replace(STUDENT, epochs=1, batch=1), device="cpu")


@pytest.mark.parametrize("batch", [1, 5])  # 6 images: the last batch has one
def test_one_image_per_batch_and_a_teacher_that_asks_the_batch(batch, data, part, teacher):
    "The student has no batch norm, its teacher labels with the statistics of the batch"
    recipe = replace(STUDENT, batch=batch)
    with pytest.raises(InputError, match="leave a batch of one image, which the batch norm of ResNet18-w8"):
        fit(
            made(data, part, 2, teacher_bn="batch"),
            network="ConvNetD3-w8",
            recipe=recipe,
            device="cpu",
            teacher=teacher,
        )
    fit(made(data, part, 2), network="ConvNetD3-w8", recipe=recipe, device="cpu", teacher=teacher)

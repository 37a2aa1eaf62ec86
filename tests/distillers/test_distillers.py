"One contract for every registered distiller; then distribution matching: golden numbers, its parts, and what is refused."

import pytest
import torch

from ddrobust_nb.foundations.augment import strategy_for
from ddrobust_nb.foundations.core import InputError, derive_seed
from ddrobust_nb.foundations.data import as_pixels, specs
from ddrobust_nb.distillers.baselines import embed, random
from ddrobust_nb.training.distilled import hard_labels, load_own_set, save_set
from ddrobust_nb.training.distiller import balanced, distiller, own_options
from ddrobust_nb.distillers.images import real_batch, start_images
from ddrobust_nb.distillers.dm import PIECE, _dm_step, dm, dm_loss
from ddrobust_nb.distillers.dsa import augment_pair
from ddrobust_nb.foundations.networks import ConvNet, make_network
from ddrobust_nb.training.protocols import read_presets
from tiny import NETWORK, as_stored, global_randomness, scramble, tiny_data

CHOOSING = {"random", "kmeans"}  # No network, no steps, no device
METHODS = sorted(set(distiller) - {"whole"})
WORKING = sorted(set(METHODS) - CHOOSING)
SHORT = dict(
    iterations=4,
    epochs=2,
    batch_real=6,
    outer=2,
    inner=2,
    squeeze_epochs=2,
    squeeze_batch=20,
    syn_steps=3,
    max_start=2,
    expert_span=1,
    n_experts=2,
    expert_batch=8,
)  # Options that make any method quick, where it has them


@pytest.fixture(scope="module")
def data():
    return tiny_data()


def distil(name, data, ipc=2, **options):
    short = {k: v for k, v in SHORT.items() if k in own_options(name)}
    if "n_experts" in short:
        short["lr_img"] = 0.01  # experts that hardly move make large gradients
    network = (
        "ResNet18-w8" if "squeeze_epochs" in short else NETWORK
    )  # a method that reads the statistics of batch norm
    return distiller[name](data, ipc, **{"network": network, "device": "cpu", **short, **options})


def same(a, b):
    return torch.equal(a.images, b.images) and (
        a.labels is b.labels is None or torch.equal(a.labels, b.labels)
    )


# ---- the contract


@pytest.mark.parametrize("ipc", [1, 2, 12])
@pytest.mark.parametrize("name", METHODS)
def test_a_set_is_what_was_asked_for(name, ipc, data):
    dset = distil(name, data, ipc, seed=3)
    assert dset.images.shape == (3 * ipc, 3, 8, 8) and dset.images.dtype == torch.float32
    assert (
        torch.isfinite(dset.images).all()
        and not dset.images.requires_grad
        and dset.images.device.type == "cpu"
    )
    assert (dset.method, dset.ipc, dset.seed, dset.spec, len(dset)) == (name, ipc, 3, data.spec, 3 * ipc)
    assert dset.labels.dtype == (torch.int64 if dset.labels.ndim == 1 else torch.float32)
    assert torch.bincount(hard_labels(dset), minlength=3).tolist() == [ipc] * 3


def test_whole_is_the_training_set(data):
    dset = distiller["whole"](data)
    assert dset.ipc is None and dset.method == "whole"
    assert torch.equal(dset.images, data.train_images) and torch.equal(dset.labels, data.train_labels)


@pytest.mark.parametrize("name", sorted(CHOOSING | {"herding"}))
def test_images_that_are_chosen_are_of_their_class_and_not_twice(name, data):
    dset = distil(name, data, 5)
    for k, c in enumerate(data.per_class):
        own = {x.numpy().tobytes() for x in as_pixels(data.train_images[c])}
        chosen = {x.numpy().tobytes() for x in dset.images[dset.labels == k]}
        assert len(chosen) == 5 and chosen <= own


@pytest.mark.parametrize("name", METHODS)
def test_the_card_names_every_option(name, data):
    "Else two sets could not be told apart by what is stored with them"
    assert set(own_options(name)) - {"watch"} <= set(distil(name, data).config)


@pytest.mark.parametrize("name", METHODS)
def test_a_seed_means_the_same_bits_and_touches_nothing_global(name, data):
    scramble(1)
    before = global_randomness()
    first = distil(name, data, 3)
    assert global_randomness() == before
    scramble(2)
    assert same(first, distil(name, data, 3))
    assert any(
        not torch.equal(first.images, distil(name, data, 3, seed=s).images) for s in (1, 2, 3)
    )  # a choice may coincide once


@pytest.mark.parametrize("name", [*METHODS, "whole"])
def test_the_data_are_left_alone(name):
    data, fresh = tiny_data(), tiny_data()
    dset = distil(name, data, None if name == "whole" else 2)
    if name != "whole":
        dset.images.zero_()
    for field in ("train_images", "train_labels", "test_images", "test_labels"):
        assert torch.equal(getattr(data, field), getattr(fresh, field)), field


@pytest.mark.parametrize("ipc", [0, -1, 1.5, True, "1", None, 13])
@pytest.mark.parametrize("name", METHODS)
def test_ipc_that_cannot_be(name, ipc, data):
    with pytest.raises(InputError, match="ipc must be a whole number from 1 to 12") as caught:
        distil(name, data, ipc)
    assert repr(ipc) in str(caught.value)


@pytest.mark.parametrize("name", [*METHODS, "whole"])
def test_unknown_options_name_the_nearest(name, data):
    for option in ["seed", *own_options(name)]:
        misspelt = option[:-1] + option[-1] * 3
        with pytest.raises(InputError, match=f"{misspelt!r}: did you mean {option!r}"):
            distiller[name](data, 1, **{misspelt: 1})
    for seed in (-1, 0.5, True, None):
        with pytest.raises(InputError, match="seed must be a whole number"):
            distiller[name](data, 1, seed=seed)


@pytest.mark.parametrize("name", METHODS)
def test_an_interrupted_run_ends_like_any_other(name, data, monkeypatch):
    want = distil(name, data)
    monkeypatch.setenv("DDROBUST_AUTOSAVE", "0")
    states = []
    assert same(want, distil(name, data, save=lambda s: states.append(as_stored(s))))
    if name in CHOOSING:
        return
    assert len(states) >= 2, "a method that works in steps has to save them"
    for i in sorted({0, len(states) // 2, len(states) - 1}):
        later = []
        assert same(want, distil(name, data, state=states[i], save=later.append)), (
            f"resumed from save {i + 1} of {len(states)}"
        )
        assert len(later) == len(states) - 1 - i, "what was done is done again"


@pytest.mark.parametrize("name", WORKING)
def test_a_crash_between_two_saves_costs_only_what_was_not_saved(name, data, monkeypatch):
    monkeypatch.setenv("DDROBUST_AUTOSAVE", "0")
    kept = []

    def save(state):
        if kept:
            raise KeyboardInterrupt
        kept.append(as_stored(state))

    with pytest.raises(KeyboardInterrupt):
        distil(name, data, save=save)
    assert same(distil(name, data), distil(name, data, state=kept[0]))


@pytest.mark.parametrize("name", WORKING)
def test_what_is_not_there_is_refused_before_any_work(name, data):
    def save(state):
        raise AssertionError("work was done")

    for device in ["tpu9", *([] if torch.cuda.is_available() else ["cuda", "cuda:0"])]:
        with pytest.raises(InputError, match="device"):
            distil(name, data, device=device, save=save)
    with pytest.raises(InputError, match="did you mean 'ConvNetD3'"):
        distil(name, data, network="ConvNetD33", save=save)
    for option in {"iterations", "epochs", "batch_real"} & set(own_options(name)):
        for value in (-1, 2.5, True):
            with pytest.raises(InputError, match=f"{option} must be a whole number"):
                distil(name, data, save=save, **{option: value})


@pytest.mark.parametrize("name", [*METHODS, "whole"])
def test_a_set_survives_the_disk(name, data, tmp_path):
    dset = distil(name, data, None if name == "whole" else 2)
    again = load_own_set(save_set(dset, tmp_path / "ein Satz – жук"))
    assert same(dset, again) and again.images.dtype == dset.images.dtype
    for field in ("spec", "method", "ipc", "seed", "config", "lr", "teacher"):
        assert getattr(dset, field) == getattr(again, field), field
    assert repr(dset) == repr(again)


@pytest.mark.parametrize("name", METHODS)
def test_grey_images_and_two_classes(name):
    dset = distil(name, tiny_data((12, 12), channels=1, size=12))
    assert dset.images.shape == (4, 1, 12, 12) and torch.isfinite(dset.images).all()


def test_presets_name_options_that_exist():
    for row in read_presets():
        if row.part == "distil":
            assert row.name in {*own_options(row.method), "network"}, (row.method, row.name)
        assert row.dataset in (*specs, "*") and row.source


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", WORKING)
def test_a_gpu_gives_the_set_of_a_cpu(name, data):
    cpu, gpu, again = (distil(name, data, device=d) for d in ("cpu", "cuda", "cuda"))
    assert gpu.images.device.type == "cpu" and torch.equal(gpu.images, again.images)
    torch.testing.assert_close(gpu.images, cpu.images, atol=1e-3, rtol=0)


# ---- distribution matching against the original program


@pytest.fixture
def case(golden):
    "The golden network, and its batches by class"
    g = golden("dm")
    body = ConvNet(3, 10, 32, width=16).requires_grad_(False)
    body.load_state_dict({k.removeprefix("state."): v for k, v in g.items() if k.startswith("state.")})
    return g, body, g["real"], g["syn"].unflatten(0, (2, 2)).requires_grad_()


def test_loss_and_gradient_of_the_original(case):
    g, body, real, syn = case
    loss = dm_loss(body, real, syn)
    (grad,) = torch.autograd.grad(loss, syn)
    assert abs(loss - g["loss"]) <= 1e-5 * g["loss"]
    assert (grad.flatten(0, 1) - g["grad_syn"]).norm() <= 1e-5 * g["grad_syn"].norm()


def test_mean_features_of_the_original(case):
    g, body, real, syn = case
    with torch.no_grad():
        for x, want in ((real, g["mean_embed_real"]), (syn, g["mean_embed_syn"])):
            torch.testing.assert_close(
                torch.stack([body.embed(c).mean(0) for c in x]), want, atol=1e-5, rtol=1e-5
            )


# ---- its parts


def pair(classes=3, n=6, ipc=2, channels=3, size=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(classes, n, channels, size, size, generator=g), torch.randn(
        classes, ipc, channels, size, size, generator=g
    )


def test_one_forward_pass_or_one_per_class(data):
    body, (real, syn) = make_network(NETWORK, data.spec).body.requires_grad_(False), pair()

    def loop(s):
        return sum((body.embed(r).mean(0) - body.embed(x).mean(0)).pow(2).sum() for r, x in zip(real, s))

    a, b = syn.clone().requires_grad_(), syn.clone().requires_grad_()
    one, many = dm_loss(body, real, a), loop(b)
    torch.testing.assert_close(one, many, atol=0, rtol=1e-6)
    one.backward(), many.backward()
    torch.testing.assert_close(a.grad, b.grad, atol=1e-7, rtol=1e-5)


def test_loss_is_zero_where_there_is_nothing_to_learn(data):
    body, (real, syn) = make_network(NETWORK, data.spec).body, pair()
    assert dm_loss(body, real, real.clone()) == 0
    twice = real.repeat(1, 2, 1, 1, 1)  # the mean counts, not the number of images
    torch.testing.assert_close(dm_loss(body, twice, real), torch.tensor(0.0), atol=1e-9, rtol=0)
    assert dm_loss(body, real, syn) > 0


# ---- batch norm: all real images in one pass


def with_batch_norm(kind, spec):
    "A body in training mode whose batch norm uses the batch"
    if kind == "resnet":
        return make_network("ResNet18-w4", spec).body
    body = make_network(NETWORK, spec, norm="batch").body
    if kind == "one layer":
        body.eval().features[5].train()
    if kind == "no running statistics":
        for i in (1, 5, 9):
            body.features[i] = torch.nn.BatchNorm2d(8, track_running_stats=False).eval()
    return body


@pytest.mark.parametrize("kind", ["convnet", "resnet", "one layer", "no running statistics"])
@pytest.mark.parametrize("n", [1, 43, 50])  # 3, 129 and 150 images; 128 make a piece
def test_batch_norm_sees_all_images_at_once(kind, n, data):
    body, (real, syn) = with_batch_norm(kind, data.spec).requires_grad_(False), pair(n=n)
    unequal = dm_loss(body, real, syn)
    assert unequal > 0 and dm_loss(body, real, real.clone()) < 1e-6 * unequal
    with torch.no_grad():
        a, b = (
            body.embed(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(1) for x in (real, syn)
        )  # the formula, each set in one pass
    torch.testing.assert_close(unequal, (a - b).pow(2).sum(), rtol=1e-5, atol=0)
    torch.testing.assert_close(dm_loss(body, real.flip(0), syn.flip(0)), unequal, rtol=1e-4, atol=0)


def test_with_batch_norm_the_size_of_a_piece_does_not_matter_and_nothing_moves(data, monkeypatch):
    body, (real, syn) = with_batch_norm("resnet", data.spec), pair(n=11)
    before, syn = {k: v.clone() for k, v in body.state_dict().items()}, syn.requires_grad_()
    losses = []
    for size in (1, 7, 128):
        monkeypatch.setitem(PIECE, "cpu", size)
        losses.append(dm_loss(body, real, syn))
    assert len({loss.item() for loss in losses}) == 1
    losses[-1].backward()
    assert syn.grad.abs().sum() > 0 and all(torch.equal(v, before[k]) for k, v in body.state_dict().items())


@pytest.mark.parametrize("network", [NETWORK, "ResNet18GN-w16", "frozen"])
def test_pieces_stay_where_images_are_treated_alone(network):
    spec = tiny_data(size=16).spec
    body = with_batch_norm("resnet", spec).eval() if network == "frozen" else make_network(network, spec).body
    real, syn = pair(n=50, size=16)
    seen = []
    body.conv1.register_forward_hook(lambda m, x, y: seen.append(len(x[0]))) if hasattr(
        body, "conv1"
    ) else body.features[0].register_forward_hook(lambda m, x, y: seen.append(len(x[0])))
    loss = dm_loss(body, real, syn)
    assert seen == [128, 22, 6]
    with torch.no_grad():
        target = (
            torch.cat([body.embed(x) for x in real.flatten(0, 1).split(128)]).unflatten(0, (3, 50)).mean(1)
        )
    assert loss == (body.embed(syn.flatten(0, 1)).unflatten(0, (3, 2)).mean(1) - target).pow(2).sum()


def test_only_what_changed_has_a_revision():
    data = tiny_data(size=16)

    def config(method, **options):
        return distil(method, data, **options).config

    assert config("dm", network="ResNet18-w16", iterations=0)["revision"] == 2 and "revision" not in config(
        "dm"
    )
    assert config("dc", network="ResNet18GN-w4", iterations=0)["revision"] == 2
    for method, network in (
        ("dc", "ResNet18GN-w16"),
        ("dm", "ResNet18GN-w16"),
        ("random", "ResNet18-w4"),
        ("kmeans", "ResNet18-w4"),
    ):
        assert "revision" not in config(
            method, network=network, **({"iterations": 0} if method in ("dc", "dm") else {})
        ), method
    assert dm.revision(data, "ResNet18-w8", {}) == distiller["herding"].revision(data, "ResNet18-w8", {}) == 2


def test_features_are_not_taken_in_several_passes_where_batch_norm_would_notice(data):
    net = make_network("ResNet18-w4", data.spec)
    with pytest.raises(InputError, match="call model.eval"):
        embed(net.train(), data.train_images, "cpu")
    assert torch.equal(
        embed(net.eval(), data.train_images, "cpu", batch=39)[:2], embed(net, data.train_images[:2], "cpu")
    )


def test_no_gradient_reaches_the_real_images(data):
    body, (real, syn) = make_network(NETWORK, data.spec).body.requires_grad_(False), pair()
    real.requires_grad_(), syn.requires_grad_()
    dm_loss(body, real, syn).backward()
    assert real.grad is None and syn.grad.abs().sum() > 0


def test_one_augmentation_for_both_batches_of_a_class():
    "The same image in both batches stays the same; other classes get another augmentation"
    strategy, differ = strategy_for(specs["cifar10"]), 0
    for seed in range(40):
        real, syn = pair(size=16)
        syn[:, 1], real[:, 4] = real[:, 0], real[0, 4]  # shared within a class, and one image common to all
        before = real.clone()
        a, b = augment_pair(real, syn, strategy, seed)
        assert torch.equal(real, before) and (a.shape, b.shape) == (real.shape, syn.shape)
        assert torch.equal(b[:, 1], a[:, 0]), seed
        differ += not torch.equal(a[0, 4], a[1, 4])
        again = augment_pair(real, syn, strategy, seed)
        assert torch.equal(a, again[0]) and torch.equal(b, again[1])
    assert differ > 20
    assert augment_pair(real, syn, "", 0)[1] is syn


def test_augmentation_lets_the_gradient_through():
    real, syn = pair(size=16)
    syn.requires_grad_()
    for seed in range(12):
        (grad,) = torch.autograd.grad(
            augment_pair(real, syn, strategy_for(specs["cifar10"]), seed)[1].pow(2).sum(), syn
        )
        assert torch.isfinite(grad).all() and (grad.flatten(2).abs().sum(2) > 0).all()


def test_real_batches_hold_each_image_once_and_in_its_class(data):
    for n in (1, 12):
        batch = real_batch(data, n, seed=5)
        assert batch.shape == (3, n, 3, 8, 8)
        for c, images in zip(data.per_class, batch):
            own = {x.numpy().tobytes() for x in as_pixels(data.train_images[c])}
            seen = {x.numpy().tobytes() for x in images}
            assert len(seen) == n and seen <= own
    assert torch.equal(batch, real_batch(data, 12, seed=5)) and not torch.equal(
        batch, real_batch(data, 12, seed=6)
    )


def test_where_the_images_start(data):
    net = make_network(NETWORK, data.spec)
    real = start_images(data, 2, "real", 0, net.normalise)
    torch.testing.assert_close(net.denormalise(real.flatten(0, 1)), random(data, 2).images, atol=1e-6, rtol=0)
    noise = start_images(data, 2, "noise", 0, net.normalise)
    assert (
        real.shape == noise.shape == (3, 2, 3, 8, 8) and abs(noise.mean()) < 0.2 and 0.8 < noise.std() < 1.2
    )
    assert not torch.equal(noise, start_images(data, 2, "noise", 1, net.normalise))
    with pytest.raises(InputError, match="did you mean 'real'"):
        start_images(data, 2, "reel", 0, net.normalise)


@pytest.mark.parametrize("augment", ["", "auto"])
def test_dm_is_the_loop_of_the_paper(augment, data):
    "Written again the slow way: a class at a time, momentum by hand"
    steps, lr, momentum, ipc = 3, 2.0, 0.5, 2
    strategy = strategy_for(data.spec) if augment else ""
    norm = make_network(NETWORK, data.spec)
    z, velocity = start_images(data, ipc, "real", 7, norm.normalise), 0
    for it in range(steps):
        here = derive_seed(7, "dm", it)
        body = make_network(NETWORK, data.spec, seed=here).body  # a new untrained network for each step
        z = z.detach().requires_grad_()
        real, syn = augment_pair(
            torch.stack([norm.normalise(x) for x in real_batch(data, 6, here)]), z, strategy, here
        )
        loss = sum(
            (body.embed(real[c]).mean(0).detach() - body.embed(syn[c]).mean(0)).pow(2).sum() for c in range(3)
        )
        (grad,) = torch.autograd.grad(loss, z)
        velocity = momentum * velocity + grad
        z = z - lr * velocity
    got = dm(
        data,
        ipc,
        seed=7,
        network=NETWORK,
        iterations=steps,
        batch_real=6,
        lr_img=lr,
        momentum=momentum,
        augment=augment,
        device="cpu",
    )
    torch.testing.assert_close(got.images, norm.denormalise(z.detach().flatten(0, 1)), atol=1e-5, rtol=1e-5)
    assert torch.equal(got.labels, balanced(data, ipc))


def test_dm_without_steps_is_its_start(data):
    torch.testing.assert_close(
        dm(data, 2, network=NETWORK, iterations=0, batch_real=6).images,
        random(data, 2).images,
        atol=1e-6,
        rtol=0,
    )


def test_dm_brings_features_nearer():
    "On networks it has not seen"
    data, name = tiny_data(size=16), "ConvNetD3-w16"
    made = {
        n: dm(data, 1, network=name, iterations=n, batch_real=12, augment="", device="cpu") for n in (0, 60)
    }

    def distance(images):
        nets = [make_network(name, data.spec, seed=1000 + i) for i in range(4)]
        real = torch.cat([as_pixels(data.train_images[c[:12]]) for c in data.per_class])

        def shaped(net, x):
            return net.normalise(x).unflatten(0, (3, -1))

        with torch.no_grad():
            return sum(dm_loss(net.body, shaped(net, real), shaped(net, images)) for net in nets)

    assert distance(made[60].images) < 0.85 * distance(made[0].images)


@pytest.mark.parametrize(
    "option, value, says",
    [
        (
            "batch_real",
            13,
            "batch_real must be a whole number from 1 to 12 .the images of the smallest class of tiny",
        ),
        ("batch_real", 0, "batch_real"),
        ("lr_img", 0, "lr_img"),
        ("lr_img", -1.0, "lr_img"),
        ("lr_img", "1", "lr_img"),
        ("init", "zeros", "init"),
        ("augment", "colour_crop", "did you mean 'color'"),
    ],
)
def test_dm_refuses(option, value, says, data):
    with pytest.raises(InputError, match=says):
        distil("dm", data, **{option: value})


def test_a_diverging_dm_stops_and_says_why(data):
    with pytest.raises(ArithmeticError, match="smaller lr_img"):
        distil("dm", data, lr_img=1e30, iterations=42)


@pytest.mark.parametrize("augment", [""] + [f"{op}" for op in strategy_for(specs["cifar10"]).split("_")])
def test_a_step_of_dm_leaves_nothing_on_the_cpu(augment, data):
    "On a device without numbers: a tensor forgotten on the CPU is an error there as it is on a GPU"
    z = torch.zeros(3, 2, 3, 8, 8, device="meta").requires_grad_()
    optimiser = torch.optim.SGD([z], lr=1.0, momentum=0.5)
    net = make_network(NETWORK, data.spec, device="meta").requires_grad_(False)
    loss = _dm_step(data, z, net, optimiser, 0, batch_real=4, strategy=augment, seed=0)
    assert loss.device.type == "meta" and loss.shape == () and z.grad.device.type == "meta"

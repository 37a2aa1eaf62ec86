"Gradient matching: distances and gradients of the original program, four ways to one number, the two loops, and what DSA changes."

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call, grad, jvp

from ddrobust_nb.foundations.augment import augment_dsa as augmented, strategy_for
from ddrobust_nb.foundations.core import InputError, derive_seed, generator
from ddrobust_nb.foundations.data import specs
from ddrobust_nb.training.distiller import balanced, distiller
from ddrobust_nb.distillers.dc import (
    LOOPS,
    all_at_once,
    distances,
    gradient_of,
    largest_distance,
    loops,
    match_of,
    matched_weights,
    matcher,
    matching_step,
    one_by_one,
    rows_apart,
    stacked,
    train_between,
)
from ddrobust_nb.distillers.images import class_batch, start_images
from ddrobust_nb.distillers.dsa import siamese
from ddrobust_nb.foundations.networks import ConvNet, make_network
from test_distillers import distil, same
from tiny import NETWORK, as_stored, tiny_data

METHODS = ["dc", "dsa"]
WAYS = {"one by one": one_by_one, "together": all_at_once}


@pytest.fixture(scope="module")
def data():
    return tiny_data()


# ---- against the original program


@pytest.fixture
def case(golden):
    "The golden network, and its batches by class"
    g = golden("dc")
    body = ConvNet(3, 10, 32, width=16).requires_grad_(False)
    body.load_state_dict({k.removeprefix("state."): v for k, v in g.items() if k.startswith("state.")})
    return g, body, g["real"], g["syn"].unflatten(0, (2, 2)), torch.arange(2)[:, None]


def flat(gradients):
    return torch.stack([torch.cat([t.flatten() for t in g.values()]) for g in gradients])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("distance", distances)
def test_distance_and_gradient_of_the_original(distance, way, case):
    g, body, real, syn, y = case
    params, gradient = matched_weights(body, distance), gradient_of(body)
    targets = stacked([gradient(params, x, y[k].expand(8)) for k, x in enumerate(real)])
    grads, d = WAYS[way](match_of(body, distance))(params, targets, syn, y.repeat(1, 2))
    want, tolerance = (
        g[f"{distance}.grad_syn"].unflatten(0, (2, 2)),
        max(2e-4, 10 * g[f"{distance}.grad_syn_relerr32"].item()),
    )
    torch.testing.assert_close(d, g[f"{distance}.per_class"], rtol=1e-5, atol=0)
    assert abs(d.sum() - g[f"{distance}.total"]) <= 1e-5 * g[f"{distance}.total"]
    assert (grads - want).norm() <= tolerance * want.norm()


def test_gradients_and_layers_of_the_original(case):
    g, body, real, syn, y = case
    everything, gradient = dict(body.named_parameters()), gradient_of(body)
    pairs = [
        (gradient(everything, real[k], y[k].expand(8)), gradient(everything, syn[k], y[k].expand(2)))
        for k in range(2)
    ]
    for side, want in enumerate((g["grad_real"], g["grad_net_syn"])):
        assert (flat([p[side] for p in pairs]) - want).norm() <= 1e-5 * want.norm()
    layers = torch.stack([torch.stack([rows_apart(a[n], b[n]) for n in everything]) for a, b in pairs])
    torch.testing.assert_close(layers, g["ours.per_layer"], rtol=1e-5, atol=1e-5)


# ---- the distance


@pytest.mark.parametrize("shape", [(20, 30), (20, 5, 3, 3), (20, 6, 7)])
def test_rows_apart(shape):
    a, b = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).double()
    assert abs(rows_apart(a, a)) < 1e-5 and abs(rows_apart(a, -a) - 40) < 1e-5
    assert abs(rows_apart(a, b) - 20) < 5
    assert (
        abs(rows_apart(a, 10 * b) - rows_apart(a, b)) < 1e-5
        and rows_apart(a[0, 0].flatten(), b[0, 0].flatten()) == 0
    )
    assert (
        abs(rows_apart(torch.cat([a, a]), torch.cat([b, a])) - rows_apart(a, b)) < 1e-5
    )  # a plain sum over rows


def test_eps_is_in_the_product_of_the_norms():
    a = F.normalize(torch.randn(20, 30, dtype=torch.float64), dim=1) * 1e-3
    assert abs(rows_apart(a, a) / 20 - 0.5) < 1e-6


def test_a_row_of_zeros_is_no_accident():
    a, b = torch.randn(3, 4), torch.randn(3, 4)
    b[1] = 0
    b.requires_grad_()
    rows_apart(a, b).backward()
    assert torch.isfinite(b.grad).all()


def test_which_weights_count():
    body = make_network("ConvNetD3", specs["cifar10"]).body
    assert largest_distance(matched_weights(body, "ours"), "ours") == 394 and all(
        p.ndim > 1 for p in matched_weights(body, "ours").values()
    )
    assert (
        len(matched_weights(body, "mse")) == len(matched_weights(body, "cos")) == len(list(body.parameters()))
    )


# ---- four ways to one number


def double_backward(body, params, target, x, y, apart):
    params, x = {n: p.clone().requires_grad_() for n, p in params.items()}, x.clone().requires_grad_()
    g = torch.autograd.grad(
        F.cross_entropy(functional_call(body, params, x), y), list(params.values()), create_graph=True
    )
    return torch.autograd.grad(apart(target, dict(zip(params, g))), x)[0]


def forwards(body, params, target, x, y, apart):
    v = grad(lambda g: apart(target, g))(gradient_of(body)(params, x, y))
    return jvp(lambda p: grad(lambda x: F.cross_entropy(functional_call(body, p, x), y))(x), (params,), (v,))[
        1
    ]


@pytest.mark.parametrize("ipc", [1, 4])
@pytest.mark.parametrize("network", ["ConvNetD3-w8", "ResNet18GN-w8"])
@pytest.mark.parametrize("distance", distances)
def test_loop_vmap_jvp_and_double_backward_agree(distance, network, ipc):
    spec, g = tiny_data(size=16).spec, torch.Generator().manual_seed(1)
    body = make_network(network, spec).double().body.requires_grad_(False)
    params, y = matched_weights(body, distance), torch.arange(3)[:, None].repeat(1, ipc)
    real, x = (torch.randn(3, n, 3, 16, 16, generator=g, dtype=torch.float64) for n in (6, ipc))
    targets = [gradient_of(body)(params, real[k], y[k, :1].expand(6)) for k in range(3)]
    match = match_of(body, distance)
    a, b = (way(match)(params, stacked(targets), x, y)[0] for way in (one_by_one, all_at_once))
    c, d = (
        torch.stack([f(body, params, targets[k], x[k], y[k], distances[distance]) for k in range(3)])
        for f in (double_backward, forwards)
    )
    for other in (b, c, d):
        assert (other - a).norm() < 1e-9 * a.norm()


def test_two_images_go_together_three_one_by_one(data, monkeypatch):
    monkeypatch.setenv("DDROBUST_COMPILE", "never")
    net = make_network(NETWORK, data.spec)
    assert ["one_by_one" in matcher(net, "ours", ipc, 10**12).__qualname__ for ipc in (1, 2, 3)] == [
        False,
        False,
        True,
    ]


@pytest.mark.slow
def test_compiled_is_the_same_function(monkeypatch):
    monkeypatch.setenv("DDROBUST_COMPILE", "always")
    spec, g = tiny_data().spec, torch.Generator().manual_seed(1)
    net = make_network(NETWORK, spec).double().requires_grad_(False)
    params, y = matched_weights(net.body, "ours"), torch.arange(3)[:, None].repeat(1, 2)
    real, x = (torch.randn(3, n, 3, 8, 8, generator=g, dtype=torch.float64) for n in (6, 2))
    fast, slow = matcher(net, "ours", 2, 0), all_at_once(match_of(net.body, "ours"))
    for seed in (0, 1):  # other weights in the same place
        net.load_state_dict(make_network(NETWORK, spec, seed=seed).double().state_dict())
        targets = stacked([gradient_of(net.body)(params, real[k], y[k, :1].expand(6)) for k in range(3)])
        (a, d), (b, e) = (f(params, targets, x, y) for f in (fast, slow))
        assert (a - b).norm() < 1e-10 * b.norm() and (d - e).norm() < 1e-10 * e.norm()


@pytest.mark.parametrize("strategy", ["", *strategy_for(specs["cifar10"]).split("_")])
def test_the_gradient_reaches_the_images_through_augmentation(strategy):
    "More classes than go at a time; against automatic differentiation of the whole thing"
    data = tiny_data((3,) * 12)
    net = make_network(NETWORK, data.spec).double().requires_grad_(False)
    params, gradient = matched_weights(net.body, "ours"), gradient_of(net.body)
    z = torch.randn(
        12, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    ).requires_grad_()

    def pair(x, seed, k):
        return siamese(x, strategy, seed, k)

    matching_step(
        data, net, gradient, all_at_once(match_of(net.body, "ours")), params, z, 5, batch_real=3, pair=pair
    )
    total = 0
    for k in range(12):
        y, real = torch.full((3,), k), net.normalise(class_batch(data, k, 3, 5).double())
        ps = {n: p.clone().requires_grad_() for n, p in params.items()}
        g = torch.autograd.grad(
            F.cross_entropy(functional_call(net.body, ps, pair(z[k], 5, k)), y[:2]),
            list(ps.values()),
            create_graph=True,
        )
        total = total + distances["ours"](gradient(params, pair(real, 5, k), y), dict(zip(ps, g)))
    (want,) = torch.autograd.grad(total, z)
    assert (z.grad - want).norm() < 1e-6 * want.norm()


# ---- the loops


def test_table_of_loops():
    assert LOOPS == {
        1: (1, 1),
        5: (5, 10),
        10: (10, 50),
        20: (20, 25),
        30: (30, 20),
        40: (40, 15),
        50: (50, 10),
    }
    assert [loops(n) for n in (1, 4, 5, 9, 29, 500)] == [(1, 1), (1, 1), (5, 10), (5, 10), (20, 25), (50, 10)]
    assert loops(10, outer=2) == (2, 50) and loops(10, inner=0) == (10, 0)


@pytest.mark.parametrize("method", METHODS)
def test_the_card_has_the_numbers_that_were_used(method, data):
    config = distiller[method](data, 5, network=NETWORK, device="cpu", iterations=0, batch_real=6).config
    assert (config["outer"], config["inner"]) == (5, 10)
    assert config.get("augment") == (None if method == "dc" else strategy_for(data.spec))


def gradient_by_hand(net, strategy, seed, k, x, **kw):
    "Of one class, by autograd"
    loss = F.cross_entropy(net.body(siamese(x, strategy, seed, k)), torch.full((len(x),), k))
    return torch.autograd.grad(loss, list(net.parameters()), **kw)


@pytest.mark.parametrize("method", METHODS)
def test_is_the_program_of_the_paper(method, data):
    "Written again the slow way: a class at a time, double backward, an optimiser for the network, momentum by hand"
    steps, c, ipc = (
        2,
        dict(outer=3, inner=2, batch_real=6, batch_train=4, lr_img=0.3, momentum=0.5, lr_net=0.05),
        2,
    )
    norm, strategy = make_network(NETWORK, data.spec), "" if method == "dc" else strategy_for(data.spec)
    z, velocity, y, seen = start_images(data, ipc, "real", 7, norm.normalise), 0, balanced(data, ipc), []
    for it in range(steps):
        net = make_network(NETWORK, data.spec, seed=derive_seed(7, "network", it))
        sgd = torch.optim.SGD(net.parameters(), lr=c["lr_net"])
        for turn in range(c["outer"]):
            here, total = derive_seed(7, "matching", it * c["outer"] + turn), 0
            z = z.detach().requires_grad_()
            for k in range(3):
                real_images = net.normalise(class_batch(data, k, 6, here))
                real = [g.detach() for g in gradient_by_hand(net, strategy, here, k, real_images)]
                synthetic = gradient_by_hand(net, strategy, here, k, z[k], create_graph=True)
                total = total + sum(map(rows_apart, real, synthetic))
            velocity = c["momentum"] * velocity + torch.autograd.grad(total, z)[0]
            z = (z - c["lr_img"] * velocity).detach()
            seen.append(total.item() / 3 / largest_distance(matched_weights(net.body, "ours"), "ours"))
            if turn == c["outer"] - 1:
                continue
            for epoch in range(c["inner"]):
                for b, index in enumerate(
                    torch.randperm(6, generator=generator(here, "order", epoch)).split(c["batch_train"])
                ):
                    x = z.flatten(0, 1)[index]
                    if strategy:
                        x = augmented(x, strategy, generator(here, "train", epoch, b))
                    sgd.zero_grad()
                    F.cross_entropy(net.body(x), y[index]).backward()
                    sgd.step()
    looks = []
    got = distiller[method](
        data,
        ipc,
        seed=7,
        network=NETWORK,
        device="cpu",
        iterations=steps,
        watch=lambda *look: looks.append(look),
        **c,
    )
    torch.testing.assert_close(got.images, norm.denormalise(z.flatten(0, 1)), atol=1e-4, rtol=1e-4)
    assert [step for step, *_ in looks] == [0, 5] and [d for _, d, _ in looks] == pytest.approx(
        [seen[0], seen[5]], rel=1e-4
    )
    assert torch.equal(looks[-1][2], got.images)


def test_training_between_steps_moves_all_weights(data):
    net = make_network(NETWORK, data.spec).requires_grad_(False)
    before = {n: p.clone() for n, p in net.body.named_parameters()}
    z = start_images(data, 4, "real", 0, net.normalise).flatten(0, 1)
    train_between(net, gradient_of(net.body), z, balanced(data, 4), 0, inner=3, batch_train=5, lr_net=0.1)
    norms_undo = {
        f"features.{i}.bias" for i in (0, 4, 8)
    }  # a constant added before a normalisation has no gradient
    for n, p in net.body.named_parameters():
        assert n in norms_undo or not torch.equal(p, before[n]), n


def test_at_one_image_per_class_no_network_is_trained(data, monkeypatch):
    def run(**kw):
        return distil("dc", data, 1, **{"outer": None, "inner": None} | kw)

    def forbidden(*args, **kw):
        raise AssertionError("a network was trained")

    trained = run(outer=2, inner=2)
    monkeypatch.setattr("ddrobust_nb.distillers.dc.train_between", forbidden)
    assert (
        same(run(), run(lr_net=5.0, batch_train=1))
        and same(run(), run(outer=1, inner=7))
        and not same(run(), trained)
    )
    with pytest.raises(AssertionError, match="was trained"):
        run(outer=2)


@pytest.mark.parametrize("method", METHODS)
def test_resume_inside_the_training_of_a_network(method, data, monkeypatch):
    monkeypatch.setenv("DDROBUST_AUTOSAVE", "0")
    run, states = lambda **kw: distil(method, data, 2, iterations=2, outer=3, inner=2, **kw), []
    want = run(save=lambda s: states.append(as_stored(s)))
    assert [s["iteration"] for s in states] == [1, 2, 3, 4, 5, 6] and ["net" in s for s in states] == [
        True,
        True,
        False,
    ] * 2
    for s in states:
        assert same(want, run(state=s))


# ---- what DSA changes


def test_dsa_without_augmentation_is_dc(data):
    assert same(distil("dc", data), distil("dsa", data, augment=""))
    assert not same(distil("dc", data), distil("dsa", data))


def test_one_transform_for_a_batch_of_3_and_one_of_256():
    strategy, differ = strategy_for(specs["cifar10"]), 0
    g = torch.Generator().manual_seed(0)
    many = torch.randn(256, 3, 16, 16, generator=g)
    few = torch.cat([many[:1], torch.randn(2, 3, 16, 16, generator=g)])
    for seed in range(20):
        a, b = siamese(many, strategy, seed, 4), siamese(few, strategy, seed, 4)
        assert torch.equal(a[0], b[0])
        differ += not torch.equal(a, siamese(many, strategy, seed, 5))
    assert differ > 10


def test_augmentation_of_training_differs_from_image_to_image():
    x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)).expand(6, -1, -1, -1)
    out = augmented(x, "rotate", generator(0, "train", 0, 0))
    assert len({o.numpy().tobytes() for o in out}) == 6


# ---- what it is for, and what is refused


@pytest.mark.parametrize("method", METHODS)
def test_gradients_come_nearer(method):
    "On networks that it has not seen"
    data, name = tiny_data(size=16), "ConvNetD3-w16"
    made = [
        distil(
            method, data, 1, network=name, iterations=n, outer=1, batch_real=12, lr_img=1.0, init="noise"
        ).images
        for n in (0, 15)
    ]

    def apart(images):
        total = 0
        for seed in range(4):
            net = make_network(name, data.spec, seed=1000 + seed).requires_grad_(False)
            z = net.normalise(images).unflatten(0, (3, 1)).requires_grad_()
            total += matching_step(
                data,
                net,
                gradient_of(net.body),
                all_at_once(match_of(net.body, "ours")),
                matched_weights(net.body, "ours"),
                z,
                0,
                batch_real=12,
            )
        return total

    assert apart(made[1]) < 0.85 * apart(made[0])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "option, value, says",
    [
        (
            "batch_real",
            13,
            "batch_real must be a whole number from 1 to 12 .the images of the smallest class of tiny",
        ),
        ("batch_real", 0, "batch_real"),
        ("batch_train", 0, "batch_train"),
        ("outer", 0, "outer must be a whole number from 1"),
        ("inner", -1, "inner must be a whole number from 0"),
        ("inner", 1.5, "inner"),
        ("lr_img", 0, "lr_img"),
        ("lr_net", -1.0, "lr_net"),
        ("lr_net", True, "lr_net"),
        ("momentum", 1, "momentum"),
        ("momentum", "0", "momentum"),
        ("init", "zeros", "init"),
        ("distance", "cosine", "distance"),
        ("network", "ResNet18-w8", "BatchNorm.*ConvNetD3 or ResNet18GN"),
    ],
)
def test_refuses(method, option, value, says, data):
    def save(state):
        raise AssertionError("work was done")

    with pytest.raises(InputError, match=says):
        distil(method, data, save=save, **{option: value})


def test_dsa_refuses_unknown_operations(data):
    with pytest.raises(InputError, match="did you mean 'color'"):
        distil("dsa", data, augment="colour_crop")


@pytest.mark.parametrize("method", METHODS)
def test_a_diverging_run_stops_and_says_why(method, data):
    with pytest.raises(ArithmeticError, match=f"loss of {method} is .* smaller lr_img$"):
        distil(method, data, 1, outer=1, lr_img=1e30, iterations=42)
    with pytest.raises(ArithmeticError, match="smaller lr_img or lr_net"):
        distil(method, data, lr_net=1e30, iterations=42)


def test_resnet18_with_group_norm_can_match():
    assert torch.isfinite(
        distil("dc", tiny_data(size=16), 1, network="ResNet18GN-w8", iterations=2).images
    ).all()


@pytest.mark.parametrize("strategy", ["", *strategy_for(specs["cifar10"]).split("_")])
def test_a_step_leaves_nothing_on_the_cpu(strategy, data):
    "On a device without numbers: a tensor forgotten on the CPU is an error there as it is on a GPU"
    net = make_network(NETWORK, data.spec, device="meta").requires_grad_(False)
    params, gradient = matched_weights(net.body, "ours"), gradient_of(net.body)

    def pair(x, seed, k):
        return siamese(x, strategy, seed, k)

    for ipc in (2, 3):
        z = torch.zeros(3, ipc, 3, 8, 8, device="meta").requires_grad_()
        d = matching_step(
            data, net, gradient, matcher(net, "ours", ipc, 0), params, z, 0, batch_real=4, pair=pair
        )
        assert d.device.type == "meta" and d.shape == () and z.grad.device.type == "meta"

"""Public functions that are given a network leave it, and the global state, as they were, or refuse it before they touch it.

The functions are found by inspection: every exported name with a parameter that is named like a network. A new one makes
`test_every_function_has_its_place` fail until it is called here, or has its line in `NO_NETWORK` with what it takes instead."""

import copy
import importlib
import inspect
import pkgutil

import pytest
import torch
from torch import nn

import ddrobust_nb
from ddrobust_nb.attacks import apgd, autoattack, checks, fab, fgsm, pgd, robustness, square
from ddrobust_nb.fast import queries
from ddrobust_nb.attacks import running
from ddrobust_nb.attacks.attack import Attack, AttackConfig, attack
from ddrobust_nb.foundations.core import InputError
from ddrobust_nb.foundations.data import as_pixels
from ddrobust_nb.distillers.baselines import embed
from ddrobust_nb.training.distilled import DistilledSet
from ddrobust_nb.distillers import dc, dm, mtt, sre2l, tesla
from ddrobust_nb.frequency import models as frequency
from ddrobust_nb.foundations.compiling import compiled, worth_compiling
from ddrobust_nb.foundations.networks import Network, count_parameters, make_network
from ddrobust_nb.fast import convolution
from ddrobust_nb.foreign import models as foreign_models
from ddrobust_nb.foundations import depth, networks
from ddrobust_nb.foundations import predict as predict_page
from ddrobust_nb.fast import fused
from ddrobust_nb.training import fit as train
from tiny import global_randomness, scramble, tiny_data

NAMED = {"model", "models", "net", "nets", "teacher", "body", "student", "network", "placed"}

NO_NETWORK = {  # What the parameter is instead
    "attacks.metrics.Comparison": "a number of models",
    "training.distilled.DistilledSet": "what the card says of a teacher",
    "distillers.dc.check_separate": "a name",
    "distillers.mtt.match": "a name",
    "distillers.sre2l.sre2l": "a list with a dict of weights",
    "distillers.sre2l.sre2l_hard": "as sre2l",
    "distillers.sre2l.random_teacher": "as sre2l",
    "training.protocols.Protocol": "a number of models",
    "results.plan.Cell": "names, and a path to a teacher",
    "results.drawing.TableLayout": "a record of places and sizes",
    "results.sources.GivenSet": "a path to a teacher",
    "results.stages.write_model": "a network that was trained just now; it is read back from its files",
    "results.stages.Distilled": "a record; the teacher is stored in it",
    "results.stages.Trained": "a record; the model is stored in it",
    "results.cell_rows.Finished": "a record of records",
    "results.stages.attack_key": "the key of a model",
    "results.stages.attack_one": "a record; the model goes to evaluate",
    "results.stages.attack_cell": "records; each goes to attack_one",
    "results.stages.check_one": "a record; the model goes to model_checks",
    "results.cell_rows.rows_of": "records; no model is asked",
    "results.cell_rows.fields_of_model": "a record; no model is asked",
    "results.cell_rows.fields_of_attack": "a record; no model is asked",
    "results.cell_rows.fields_without_attack": "a record; no model is asked",
    "results.cell_rows.finish_cell": "records; each goes to check_one",
    "results.lines.Deviation": "a number of models",
    "results.lines.ComparedRow": "the name of a model",
    "results.reading.CellFiles": "keys of models",
    "results.mixing_run.finish_mixing": "trained runs, that nothing is asked of",
    "training.fit.soft_loss": "logits",
    "foreign.layers.fill_body": "a network that is filled: it is meant to change",
    "foreign.models.GivenNetwork": "a record; the network is stored in it",
    "results.stages.given_checks": "a record; the model goes to predict",
}


def is_name(p):
    "Whether a parameter is the name of a network"
    return p.name == "network" and (p.annotation is str or isinstance(p.default, str))


def exported():
    "(name without the package, object) of everything that the modules of the package export"
    for found in pkgutil.walk_packages(ddrobust_nb.__path__, "ddrobust_nb."):
        if (
            found.name.endswith("_modidx") or found.name == "ddrobust_nb.all"
        ):  # which gives what the others export
            continue
        module = importlib.import_module(found.name)
        for name in getattr(module, "__all__", []):
            yield f"{found.name.removeprefix('ddrobust_nb.')}.{name}", getattr(module, name)


def takes_a_network(thing):
    if not callable(thing) or isinstance(thing, dict):
        return False
    try:
        parameters = inspect.signature(thing).parameters.values()
    except ValueError:
        return False
    return any(p.name in NAMED and not is_name(p) for p in parameters)


# ---- the networks

DATA = tiny_data(counts=(6, 6, 6, 6), tests=3)
X, Y, INDEX = as_pixels(DATA.test_images), DATA.test_labels, torch.arange(12)
EPS, CPU = torch.full((12, 1, 1, 1), 0.02), torch.device("cpu")
CARD = dict(temperature=4.0, teacher_bn="batch", pad=0, crop_min=1.0, flip=False, mix="")
RECOVER = dict(
    iterations=2,
    lr_img=0.1,
    a_bn=0.01,
    first_bn=10.0,
    tv=0.0,
    l2=0.0,
    jitter=1,
    crop_min=None,
    groups=2,
    classes_per_batch=4,
)


def small(norm="batch"):
    "A network with a dropout, with gradients, frozen parameters and a hook that are the caller's own"
    net = make_network("ConvNetD3-w8", DATA.spec, norm=norm)
    net.body.classifier = nn.Sequential(nn.Dropout(0.4), net.body.classifier)
    net(X).logsumexp(1).sum().backward()
    net.body.features[0].weight.requires_grad_(False)
    net.body.features[0].bias.grad = None
    net.body.register_forward_hook(lambda *_: None)
    return net


def in_training():
    return small().train()


def frozen_norms():
    "In training, but batch norm is frozen, as for fine-tuning"
    net = small().train()
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eval().requires_grad_(False)
    return net


def dropout_left_on():
    net = small().eval()
    net.body.classifier[0].train()
    return net


def ready():
    return small().eval()


def snapshot(net):
    "All that a call could change"
    hooks = (
        "_forward_hooks",
        "_forward_pre_hooks",
        "_backward_hooks",
        "_backward_pre_hooks",
        "_state_dict_hooks",
    )
    return dict(
        modules=[
            (name, id(m), type(m), m.training, *(len(getattr(m, h)) for h in hooks))
            for name, m in net.named_modules()
        ],
        parameters=[
            (name, id(p), p.dtype, p.device, p.requires_grad, p.detach().clone())
            for name, p in net.named_parameters()
        ],
        gradients=[None if p.grad is None else (id(p.grad), p.grad.clone()) for p in net.parameters()],
        buffers=[(name, id(b), b.dtype, b.device, b.clone()) for name, b in net.named_buffers()],
        generators=global_randomness(),
        settings=(
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch.backends.cudnn.allow_tf32,
            torch.backends.cuda.matmul.allow_tf32,
        ),
    )


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return a == b


def changed(before, net):
    "What is not as it was"
    return [what for what, now in snapshot(net).items() if not same(before[what], now)]


# ---- the calls


def entered(manager):
    with manager:
        pass


def quick(name):
    parts = (*autoattack.PARTS, "autoattack")
    return AttackConfig(name, "4/255", preset="aa-quick") if name in parts else AttackConfig(name, "4/255")


def relabelled(net):
    "A set whose card asks for this network's labels"
    card = CARD | dict(key=train.weights_key(net.state_dict()))
    return DistilledSet(DATA.spec, X[:4], torch.arange(4), "sre2l", 1, teacher=card)


def path_of(net):
    one = mtt.flat(net.body)
    return {"snapshots": torch.stack([one, one + 1])}


def luck(ids):
    return square.own_luck(0, INDEX[ids], 5, 3)


def first(z):
    return z[:, 0]


def recovered(net):
    images, labels = net.normalise(X).unflatten(0, (3, 4)), torch.arange(4).expand(3, -1)
    with sre2l.bn_inputs(net.body) as seen:
        return sre2l.recover_loss(net.body, seen, images, labels, a_bn=0.01, first_bn=10.0)


def classwise(net):
    "Real and synthetic images of each class"
    z = net.normalise(X).unflatten(0, (4, 3))
    return z, z[:, :2].clone().requires_grad_()


def matching_step(net):
    gradient, match, params = (
        dc.gradient_of(net.body),
        dc.matcher(net, "ours", 2, 10),
        dc.matched_weights(net.body, "ours"),
    )
    return dc.matching_step(DATA, net, gradient, match, params, classwise(net)[1], 0, batch_real=3)


def student_of(net):
    start = mtt.flat(net.body)
    return (
        mtt.Student(net),
        start,
        start + 0.1,
        net.normalise(X),
        Y,
        torch.tensor(0.1),
        mtt.student_steps(12, 2, 6, "", 8, 0),
    )


def without_target(net):
    student, start, _, *rest = student_of(net)
    return student, start, *rest


def fuse(net):
    with pytest.raises(InputError, match="can be fused"):
        fused.FusedConvNet(net)


DOES_NOT_ASK = {  # Looks at the network, or copies it: any mode will do
    "foundations.networks.uses_batch_statistics": lambda net: networks.uses_batch_statistics(net),
    "distillers.dm.statistics_kept": lambda net: entered(dm.statistics_kept(net)),
    "fast.queries.passes_before_compiling": lambda net: queries.passes_before_compiling(net, CPU),
    "fast.queries.expect_passes": lambda net: queries.expect_passes(net, 5),
    "attacks.running.leaving_no_trace": lambda net: entered(running.leaving_no_trace(net)),
    "attacks.running.attack_type": lambda net: running.attack_type(net, X, AttackConfig("fgsm")),
    "attacks.running.place_model": lambda net: running.place_model(net, "cpu"),
    "attacks.autoattack.ThreeChannels": lambda net: autoattack.ThreeChannels(net),
    "fast.convolution.with_winograd": lambda net: convolution.with_winograd(net),
    "distillers.dc.matched_weights": lambda net: dc.matched_weights(net.body, "ours"),
    "distillers.dc.gradient_of": lambda net: dc.gradient_of(net.body),
    "distillers.dc.match_of": lambda net: dc.match_of(net.body, "ours"),
    "distillers.dc.matcher": lambda net: dc.matcher(net, "ours", 1, 10),
    "distillers.mtt.flat": lambda net: mtt.flat(net),
    "distillers.mtt.unflat": lambda net: mtt.unflat(net, mtt.flat(net)),
    "distillers.mtt.Trajectories": lambda net: mtt.Trajectories([path_of(net)], net, DATA, 1),
    "distillers.mtt.Student": lambda net: mtt.Student(net),
    "distillers.sre2l.batch_norms": lambda net: sre2l.batch_norms(net),
    "distillers.sre2l.bn_inputs": lambda net: entered(sre2l.bn_inputs(net)),
    "foundations.networks.Network": lambda net: Network(net.normalise, net.body, net.name, net.spec),
    "foundations.compiling.compiled": lambda net: compiled(first, net, 10),
    "foundations.networks.count_parameters": lambda net: count_parameters(net),
    "foundations.compiling.worth_compiling": lambda net: worth_compiling(net, 10),
    "training.fit.TrainingRun": lambda net: train.TrainingRun(net, train.Recipe(), "cpu"),
    "training.fit.set_objective": lambda net: train.set_objective(
        train.TrainingRun(net, train.Recipe(), "cpu"), train.Recipe(), None, None, 12, CPU
    ),
    "training.fit.check_batch_of_one": lambda net: train.check_batch_of_one(net, 13, train.Recipe(batch=12)),
    "foreign.models.given_network": lambda net: foreign_models.given_network(net.body, DATA, normalise="dc"),
    "foreign.models.load_model": lambda net: foreign_models.load_model(net, DATA, device="cpu"),
    "foundations.depth.single_pixel_norms": lambda net: depth.single_pixel_norms(net.body, X),
    "fast.fused.FusedConvNet": fuse,
    "fast.fused.accelerated": lambda net: fused.accelerated(net, "cpu"),
    "fast.fused.can_fuse": lambda net: fused.can_fuse(net, "cpu"),
    "training.fit.fit": lambda net: train.fit(
        relabelled(net), network="ConvNetD3-w8", recipe=train.Recipe(epochs=1), teacher=net, device="cpu"
    ),
    "foundations.predict.float_dtypes": lambda net: predict_page.float_dtypes(net),
    "foundations.predict.input_dtype": lambda net: predict_page.input_dtype(net, X.double()),
    "training.fit.labeller": lambda net: [train.labeller(net, bn)(X) for bn in ("eval", "batch")],
    "foundations.predict.preserve_state": lambda net: entered(predict_page.preserve_state(net)),
    "training.fit.relabelling": lambda net: train.relabelling(relabelled(net), net, train.Recipe()),
    "training.fit.weights": lambda net: train.weights(net),
}
STEPS = {  # A distiller's step on an untrained network of its own, which is in training mode and has neither running statistics nor dropout
    "distillers.dc.matching_step": lambda net: matching_step(net),
    "distillers.dc.train_between": lambda net: dc.train_between(
        copy.deepcopy(net), dc.gradient_of(net.body), X, Y, 0, inner=1, batch_train=6, lr_net=0.1
    ),  # it trains what it is given
    "distillers.dm.dm_loss": lambda net: dm.dm_loss(net.body, *classwise(net)),
    "distillers.mtt.stored": lambda net: mtt.stored(*student_of(net)),
    "distillers.mtt.walk": lambda net: mtt.walk(*without_target(net)),
    "distillers.mtt.adjoint": lambda net: mtt.adjoint(*student_of(net)),
    "distillers.tesla.released": lambda net: tesla.released(*student_of(net)),
}
ASKS = {  # Asks the network: one in training mode is refused
    "attacks.apgd.apgd": lambda net: apgd.apgd(net, X, Y, 0.02, 2, X - 0.5, lambda z, i: z[:, 0]),
    "attacks.apgd.apgd_ce_rows": lambda net: apgd.apgd_ce_rows(net, X, Y, EPS, "aa-quick", 0, INDEX),
    "attacks.apgd.apgd_t_rows": lambda net: apgd.apgd_t_rows(net, X, Y, EPS, "aa-quick", 0, INDEX),
    "attacks.autoattack.run_part": lambda net: autoattack.run_part(
        apgd.apgd_ce_rows, net, X, Y, torch.ones(1, 12, dtype=torch.bool), [quick("apgd-ce")], 0, INDEX
    ),
    "attacks.autoattack.pyautoattack_part": lambda net: autoattack.pyautoattack_part(
        "square", net, 4, quick("square"), 0, CPU
    ),
    "attacks.autoattack.torchattacks_part": lambda net: autoattack.torchattacks_part(
        "square", net, 4, quick("square"), 0, CPU
    ),
    "attacks.checks.answer_checks": lambda net: checks.answer_checks(net, X),
    "attacks.checks.gradient_checks": lambda net: checks.gradient_checks(net, X, Y),
    "attacks.checks.model_checks": lambda net: checks.model_checks(net, X, Y, INDEX, "4/255"),
    "attacks.checks.path_checks": lambda net: checks.path_checks(net, X, Y, INDEX, "4/255", Y == 0),
    "attacks.checks.unbounded_check": lambda net: checks.unbounded_check(net, X, Y, INDEX, Y == 0),
    "attacks.fab.fab": lambda net: fab.fab(net, X, Y, (Y + 1) % 4, 2),
    "attacks.fgsm.pixel_gradient": lambda net: fgsm.pixel_gradient(net, X, Y),
    "attacks.pgd.ascend": lambda net: list(pgd.ascend(net, X, Y, [AttackConfig("pgd", steps=2)], X - 0.5)),
    "fast.queries.CountedModel": lambda net: queries.CountedModel(net, Y)(X),
    "fast.queries.loss_gradient": lambda net: queries.loss_gradient(net, X, first),
    "attacks.robustness.check_logits": lambda net: robustness.check_logits(net, DATA, "cpu"),
    "attacks.robustness.evaluate": lambda net: robustness.evaluate(
        net, DATA, [AttackConfig("fgsm"), AttackConfig("pgd", steps=2)], device="cpu"
    ),
    "attacks.robustness.expected_cost": lambda net: robustness.expected_cost(
        net, DATA, [AttackConfig("fgsm")], device="cpu"
    ),
    "attacks.robustness.ModelEvaluation": lambda net: robustness.ModelEvaluation(
        net, DATA, "fgsm", device="cpu"
    ),
    "attacks.robustness.run_group": lambda net: robustness.run_group(
        net, DATA.test_images, Y, INDEX, [AttackConfig("fgsm")], device="cpu"
    ),
    "attacks.square.square_rows": lambda net: square.square_rows(net, X, Y, EPS, "aa-quick", 0, INDEX),
    "attacks.square.square_search": lambda net: square.square_search(
        net, X, Y, 0.02, 5, True, torch.ones(12, 3, 1, 8, dtype=torch.bool), luck
    ),
    "attacks.running.as_one_batch": lambda net: list(
        running.as_one_batch(apgd.apgd_ce_rows, net, X, Y, [quick("apgd-ce")], 0, INDEX)
    ),
    "attacks.running.attack_chunks": lambda net: list(running.attack_chunks(net, X, Y, AttackConfig("fgsm"))),
    "attacks.running.attack_images": lambda net: running.attack_images(
        net, X, Y, AttackConfig("cw", steps=2)
    ),
    "attacks.running.attack_group": lambda net: running.attack_group(net, X, Y, [AttackConfig("fgsm")]),
    "attacks.running.check_model": lambda net: running.check_model(net),
    "attacks.running.classified_right": lambda net: running.classified_right(net, X, Y),
    "attacks.running.run_chunk": lambda net: running.run_chunk(
        attack["fgsm"], net, X, Y, [AttackConfig("fgsm")], seed=0, index=INDEX
    ),
    "distillers.baselines.embed": lambda net: embed(net, DATA.test_images, "cpu"),
    "distillers.sre2l.recover": lambda net: sre2l.recover(DATA, 1, net, RECOVER),
    "distillers.sre2l.recover_loss": lambda net: recovered(net),
    "frequency.models.ask_model": lambda net: entered(frequency.ask_model(net, X, Y)),
    "frequency.models.band_accuracy": lambda net: frequency.band_accuracy(net, X, Y),
    "frequency.models.fourier_heat_map": lambda net: frequency.fourier_heat_map(net, X, Y, step=4),
    "frequency.models.perturbations": lambda net: frequency.perturbations(net, X, Y, "fgsm@4/255"),
    "foundations.predict.accuracy": lambda net: predict_page.accuracy(net, DATA.test_images, Y, "cpu"),
    "foundations.predict.check_eval": lambda net: predict_page.check_eval(net),
    "foundations.predict.predict": lambda net: predict_page.predict(net, DATA.test_images, "cpu"),
}


# ---- the tests


def attacked(net, entry):
    "A registered attack, called by hand"
    if entry is autoattack.reference:
        config = AttackConfig("apgd-ce", "4/255", preset="aa-quick", backend="pyautoattack")
        return entry.run(net, X, Y, config)
    if entry is autoattack.ta:
        return entry.run(net, X, Y, AttackConfig("ta:PGD", "4/255", 2))
    return entry(net, X, Y, "4/255", preset="aa-quick" if entry.has_preset else "")


FOUND = dict(exported())
ATTACKS = {
    name: (lambda net, entry=thing: attacked(net, entry))
    for name, thing in FOUND.items()
    if isinstance(thing, Attack)
}


def test_every_function_has_its_place():
    found = {name for name, thing in FOUND.items() if takes_a_network(thing)}
    places = [NO_NETWORK, STEPS, DOES_NOT_ASK, ASKS, ATTACKS]
    assert not found - {name for place in places for name in place}, (
        "new: call it here, or write down why not"
    )
    assert not {name for place in places for name in place} - set(FOUND), "gone"
    assert sum(map(len, places)) == len({name for place in places for name in place}), "in two places"


@pytest.mark.parametrize("make", (in_training, frozen_norms, dropout_left_on))
@pytest.mark.parametrize("name", [*ASKS, *ATTACKS])
def test_a_network_in_training_mode_is_refused(name, make):
    scramble(1)
    net = make()
    before = snapshot(net)
    with pytest.raises(InputError, match="in training mode.*call model.eval\\(\\) first") as caught:
        (ASKS | ATTACKS)[name](net)
    assert "\n" not in str(caught.value)
    assert not changed(before, net)


@pytest.mark.parametrize("name", [*ASKS, *ATTACKS])
def test_a_network_in_evaluation_mode_stays_as_it_was(name):
    scramble(2)
    net = ready()
    before = snapshot(net)
    (ASKS | ATTACKS)[name](net)
    assert not changed(before, net)


@pytest.mark.parametrize("make", (in_training, frozen_norms, dropout_left_on, ready))
@pytest.mark.parametrize("name", DOES_NOT_ASK)
def test_what_only_looks_takes_any_mode(name, make):
    scramble(3)
    net = make()
    before = snapshot(net)
    DOES_NOT_ASK[name](net)
    assert not changed(before, net)


@pytest.mark.parametrize("name", STEPS)
def test_a_step_of_a_distiller_changes_images_alone(name):
    scramble(5)
    net = make_network("ConvNetD3-w8", DATA.spec)
    net(X).sum().backward()
    before = snapshot(net)
    STEPS[name](net)
    assert not changed(before, net)


class Restless(nn.Module):
    "Draws numbers and counts its answers, in evaluation mode too"

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(192, 4)
        self.register_buffer("answers", torch.zeros(()))

    def forward(self, x):
        self.answers += 1
        return self.last((x + 0.01 * torch.randn_like(x)).flatten(1))


@pytest.mark.parametrize(
    "name",
    (
        "foundations.predict.predict",
        "foundations.predict.accuracy",
        "foundations.predict.input_dtype",
        "attacks.running.attack_images",
        "attacks.checks.answer_checks",
        "attacks.robustness.evaluate",
        "frequency.models.band_accuracy",
    ),
)
def test_what_a_network_does_by_itself_is_put_back(name):
    net = Restless().eval()
    scramble(4)
    before = snapshot(net)
    (ASKS | DOES_NOT_ASK)[name](net)
    assert not changed(before, net)


def test_buffers_that_share_their_memory():
    "A constant that was expanded cannot be written to"
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 4)).eval()
    net.register_buffer("one", torch.ones(1).expand(5))
    before = snapshot(net)
    assert predict_page.predict(net, DATA.test_images, "cpu").shape == (12,)
    running.attack_images(net, X, Y, AttackConfig("fgsm"))
    assert not changed(before, net)


def test_the_snapshot_sees_everything():
    "Each of these changes must be seen, else the tests above say nothing"
    changes = dict(
        mode=lambda net: net.body.features[1].train(),
        buffer=lambda net: net.body.features[1].running_mean.add_(1),
        weight=lambda net: net.body.features[4].weight.data.mul_(2),
        frozen=lambda net: net.requires_grad_(False),
        gradient=lambda net: net.body.features[4].weight.grad.zero_(),
        lost=lambda net: net.zero_grad(),
        type=lambda net: net.half(),
        hook=lambda net: net.body.register_forward_pre_hook(lambda *_: None),
        layer=lambda net: setattr(net.body, "classifier", nn.Identity()),
        draw=lambda net: torch.rand(1),
    )
    for name, change in changes.items():
        net = ready()
        before = snapshot(net)
        assert not changed(before, net)
        change(net)
        assert changed(before, net), name


def test_the_accuracy_that_was_wrong():
    "A trained network in training mode had another accuracy, and 60 other buffers"
    data = tiny_data(counts=(12, 12, 12), tests=20)
    net = make_network("ResNet18-w16", data.spec).train()
    before = snapshot(net)
    with pytest.raises(InputError, match="training mode"):
        predict_page.accuracy(net, data.test_images, data.test_labels, "cpu")
    assert not changed(before, net)
    by_hand = net.eval()(as_pixels(data.test_images)).argmax(1) == data.test_labels
    assert (
        predict_page.accuracy(net, data.test_images, data.test_labels, "cpu")
        == by_hand.double().mean().item()
    )


def test_no_images_have_no_accuracy():
    net = ready()
    assert predict_page.predict(net, DATA.test_images[:0], "cpu").shape == (0,)
    with pytest.raises(InputError, match="at least one image"):
        predict_page.accuracy(net, DATA.test_images[:0], Y[:0], "cpu")

"How any attack is run: chunks, noise, work, refused input, broken attacks, and no trace left."

import random
import sys

import numpy as np
import pytest
import torch
from attack_worlds import LIBRARY, OURS, Scale, ordered, quick
from attack_worlds import dropout_world as world
from torch import nn

from ddrobust_nb.attacks.attack import (
    AttackConfig,
    attack,
    group_configs,
    parse_attacks,
)
from ddrobust_nb.attacks.autoattack import PARTS
from ddrobust_nb.attacks.checks import model_checks
from ddrobust_nb.attacks.robustness import run_group
from ddrobust_nb.attacks.running import (
    attack_chunks,
    attack_group,
    attack_images,
    leaving_no_trace,
    unit_noise,
)
from ddrobust_nb.foundations.core import InputError


@pytest.mark.parametrize(
    "name, right",
    [
        *(
            (name, right)
            for name in (*OURS, "apgd-ce", "fab-t")
            for right in ((False, True), (True, False), (False, True, False), (False, False))
        ),
        *((name, (False, True)) for name in ("apgd-t", "square", "autoattack")),
    ],
)
def test_a_batch_without_a_right_image(name, right):
    "As in a test set in the order of its classes: no flag is lost, and what is told of the iterates is told of all"
    net, x, y, there = ordered(right)
    out = attack_images(net, x, y, quick(name, "1/255"), batch=4)
    whole = attack_images(net, x, y, quick(name, "1/255"), batch=64)
    assert torch.equal(out.flags, whole.flags) and not out.flags[~there].any()
    assert (out.always is not None) == (name in ("pgd", "cw"))
    if out.always is not None:
        assert (
            torch.equal(out.always, whole.always)
            and not out.always[~there].any()
            and out.always.any() == any(right)
        )
    attack_misclassified = attack_images(net, x, y, quick(name, "0/255"), batch=4, attack_misclassified=True)
    assert torch.equal(attack_misclassified.flags, there) and (
        attack_misclassified.always is None or torch.equal(attack_misclassified.always, there)
    )
    assert torch.equal(
        attack_images(net, x, y, quick(name, "1/255"), batch=4, right=there).flags, out.flags
    ), "what is right is known"


@pytest.mark.parametrize("public", (attack["pgd"], attack["cw"], attack["fgsm"]))
@pytest.mark.parametrize("right", ((False, True), (True, False), (False, False)))
def test_public_functions_on_images_in_the_order_of_their_classes(public, right):
    "With the batch that they choose by themselves; library attacks have the same one"
    net, x, y, there = ordered(right, each=128)
    config = public.config("0/255")
    assert torch.equal(public(net, x, y, "0/255"), x)
    assert torch.equal(attack_images(net, x, y, config).flags, there)
    assert torch.equal(attack_images(net, x, y, AttackConfig("ta:PGD", "0/255", 2)).flags, there)
    assert attack_images(net, x[:0], y[:0], config).always is None or attack_images(
        net, x[:0], y[:0], config
    ).always.shape == (0,)


def test_what_tells_says_so_of_every_chunk_and_of_none():
    net, x, y, there = ordered((False, True))
    for name in ("pgd", "cw"):
        chunks = [
            outs[0].always.tolist()
            for _, outs in attack_chunks(net, x, y, AttackConfig(name, "0/255"), batch=4)
        ]
        assert chunks == [[False] * 4, [True] * 4]
        [nothing] = run_group(net, x, y, torch.arange(0), [AttackConfig(name)], device="cpu")
        assert nothing.flags.shape == nothing.always.shape == (0,)


@pytest.mark.parametrize("right", ((False, True), (True, False), (False, False)))
@pytest.mark.parametrize("declared", (False, True))
def test_any_attack_that_tells(right, declared):
    "Declared or not; only where nothing at all was attacked, an attack that is not declared has told nothing"

    @attack(shares="steps", tells_worst_iterate=declared)
    def telling(model, x, y, configs):
        for _ in configs:
            yield x, torch.arange(len(x)) % 2 == 0

    net, x, y, there = ordered(right)
    try:
        outs = attack_group(net, x, y, [AttackConfig("telling", "1/255", steps) for steps in (1, 2)], batch=4)
    finally:
        del attack["telling"]
    for out in outs:
        assert torch.equal(out.flags, there)
        if declared or any(right):
            assert torch.equal(out.always, there & (torch.arange(8) % 2 == 0))
        else:
            assert out.always is None


def test_sharing_changes_nothing():
    "Each threat of a run gets what it would get alone, and the work adds up to less"
    net, x, y = world(n=40)
    for text in (
        "fgsm@2/255,fgsm@8/255",
        "pgd@4/255@3,pgd@4/255@7",
        "cw@4/255@3,cw@4/255@7",
        "fab-t@2/255,fab-t@6/255",
        "aa-quick@2/255,aa-quick@4/255,aa-quick@8/255",
    ):
        [run] = group_configs(parse_attacks(text, "aa-quick"))
        shared, alone = attack_group(net, x, y, run), [attack_images(net, x, y, t) for t in run]
        assert all(torch.equal(a.flags, b.flags) for a, b in zip(shared, alone)), text
        assert sum(a.gradients for a in shared) < sum(b.gradients for b in alone), text


def test_noise_belongs_to_the_image():
    whole = unit_noise((5, 2, 3, 3), range(5), 0, "pgd")
    assert torch.equal(whole[3:4], unit_noise((1, 2, 3, 3), [3], 0, "pgd")) and whole.abs().max() <= 1
    assert len({tuple(u.flatten().tolist()) for u in whole}) == 5, "five images, five starts"
    for other in (
        unit_noise((5, 2, 3, 3), range(5), 1, "pgd"),
        unit_noise((5, 2, 3, 3), range(5), 0, "cw"),
        unit_noise((5, 2, 3, 3), range(5), 0, "pgd", 1),
    ):
        assert not torch.equal(whole, other)


def test_work_is_counted():
    "Ten images, eight of them right: each is asked once before, and once for the verdict"
    net, x, y = world(n=10)

    def work(config, **options):
        out = attack_images(net, x, y, config, **options)
        return out.gradients, out.forwards

    assert work(AttackConfig("fgsm")) == (8, 10 + 16)
    assert work(AttackConfig("pgd", steps=5)) == (5 * 8, 10 + 6 * 8)
    assert work(AttackConfig("cw", steps=7)) == (7 * 8, 10 + 8 * 8)
    assert work(AttackConfig("pgd", steps=5), attack_misclassified=True) == (50, 10 + 60)
    assert work(AttackConfig("fgsm"), right=torch.zeros(10).bool()) == (0, 0), "told beforehand"


def test_chunks_cover_everything_once():
    net, x, y = world(n=30)
    seen = torch.cat([where for where, _ in attack_chunks(net, x, y, AttackConfig("fgsm"), batch=7)])
    assert sorted(seen.tolist()) == list(range(30))


def state_of(net):
    "Everything an attack might change"
    return (
        [m.training for m in net.modules()],
        [p.requires_grad for p in net.parameters()],
        [p.grad for p in net.parameters()],
        {k: v.clone() for k, v in net.state_dict().items()},
        torch.get_rng_state(),
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.backends.cudnn.allow_tf32,
    )


def same_state(a, b):
    "Compare two such states"
    assert a[:2] == b[:2] and a[5:] == b[5:] and torch.equal(a[4], b[4])
    assert all(g is h for g, h in zip(a[2], b[2])), "gradients on parameters"
    assert all(torch.equal(v, b[3][k]) for k, v in a[3].items()), "weights or buffers"


@pytest.mark.parametrize("name", (*OURS, *LIBRARY))
@pytest.mark.parametrize("mode", (torch.enable_grad, torch.no_grad, torch.inference_mode))
def test_no_trace(name, mode):
    net, x, y = world(n=8)
    next(net.parameters()).requires_grad_(False)
    before = state_of(net)
    with mode():
        attack_images(net, x, y, quick(name))
    same_state(before, state_of(net))


def test_no_trace_after_an_exception():
    net, x, y = world(n=8)
    before = state_of(net)

    @attack
    def vandal(model, x, y, config):
        model.train()
        model(x.requires_grad_()).sum().backward()
        model.model[1].running_mean += 1
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        torch.set_default_dtype(torch.float64)
        raise KeyboardInterrupt

    try:
        with pytest.raises(KeyboardInterrupt):
            attack_images(net, x.requires_grad_(), y, AttackConfig("vandal"))
    finally:
        del attack["vandal"]
    same_state(before, state_of(net))


def test_a_tracer_stays():
    "Coverage tools trace: neither attacks nor checks may switch that off (a reference library does)"
    net, x, y = world(n=8)
    mine, before = lambda *a: None, sys.gettrace()
    sys.settrace(mine)
    try:
        for name in (*OURS, *PARTS):
            attack_images(net, x, y, quick(name))
        model_checks(net, x, y, torch.arange(len(x)), "8/255", device="cpu")
        assert sys.gettrace() is mine
    finally:
        sys.settrace(before)


def test_existing_gradients_stay():
    net, x, y = world(n=8)
    net(x).sum().backward()
    grads = [p.grad.clone() for p in net.parameters()]
    attack_images(net, x, y, quick("fab-t"))
    assert all(torch.equal(g, p.grad) for g, p in zip(grads, net.parameters()))


def test_leaving_no_trace_restores_a_replaced_buffer():
    net, _, _ = world()
    kept = net[1].running_mean
    with leaving_no_trace(net):
        net[1].running_mean = kept + 1
    assert net[1].running_mean is kept


def refused(say, **change):
    "The call with one thing changed is refused, in one line that says why"
    net, x, y = world(n=6)
    given = dict(model=net, x=x, y=y, config=AttackConfig("pgd"))
    with pytest.raises(InputError, match=say) as caught:
        attack_images(**{**given, **change})
    assert "\n" not in str(caught.value)


class Detach(nn.Module):
    "Cut the gradient"

    def forward(self, x):
        return x.detach()


@pytest.mark.parametrize(
    "say, change",
    (
        ("un-normalised", lambda net, x, y: dict(x=x * 2 - 1)),
        ("un-normalised", lambda net, x, y: dict(x=x * 255)),
        ("as_pixels", lambda net, x, y: dict(x=(x * 255).byte())),
        ("float32", lambda net, x, y: dict(x=x.half())),
        ("NaN", lambda net, x, y: dict(x=x.clone().index_fill_(0, torch.tensor([2]), torch.nan))),
        ("four dimensions", lambda net, x, y: dict(x=x[:, 0])),
        ("must be a tensor", lambda net, x, y: dict(x=x.numpy())),
        ("labels must be 0 or more", lambda net, x, y: dict(y=y - 20)),
        ("labels up to 10 need at least 11 logits", lambda net, x, y: dict(y=y * 0 + 10)),
        (r"shape \[6\]", lambda net, x, y: dict(y=y[:5])),
        ("whole numbers", lambda net, x, y: dict(y=y.float())),
        ("whole numbers", lambda net, x, y: dict(y=y.tolist())),
        ("training mode", lambda net, x, y: dict(model=net.train())),
        ("training mode .first: 1", lambda net, x, y: dict(model=(net[1].train(), net)[1])),
        ("torch module", lambda net, x, y: dict(model=lambda x: net(x))),
        (
            "at least 2 logits|up to",
            lambda net, x, y: dict(model=nn.Sequential(nn.Flatten(), nn.Linear(144, 1)).eval()),
        ),
        (r"logits \[n, classes\]", lambda net, x, y: dict(model=net[:4].eval())),
        ("NaN or infinite logits", lambda net, x, y: dict(model=nn.Sequential(net, Scale(torch.nan)).eval())),
        ("carry no gradient", lambda net, x, y: dict(model=nn.Sequential(net, Detach()).eval())),
        ("seed must be", lambda net, x, y: dict(seed=-1)),
        ("index of length 6", lambda net, x, y: dict(index=[1, 2])),
        ("batch must be", lambda net, x, y: dict(batch=0)),
        ("not on this machine|not known", lambda net, x, y: dict(device="cuda:77")),
    ),
)
def test_refused(say, change):
    refused(say, **change(*world(n=6)))


def test_rounding_errors_are_forgiven():
    "Normalising and back gives -3e-8 on black pixels: no reason to crash, and nothing outside [0,1] comes back"
    net, x, y = world(n=6)
    x[0] = -3e-8
    out = attack_images(net, x, y, AttackConfig("pgd"))
    assert out.images.min() >= 0


@pytest.mark.parametrize("name", OURS)
def test_a_broken_attack_is_found_out(name, monkeypatch):
    net, x, y = world(n=6)

    def broken_by(change):
        def bare(model, x, y, configs):
            return iter([change(x)]) if attack[name].shares else change(x)

        return bare

    for change in (lambda x: x + 0.2, lambda x: x * torch.nan, lambda x: x[:3], lambda x: x.double()):
        monkeypatch.setattr(attack[name], "bare", broken_by(change))
        with pytest.raises(RuntimeError, match="the attack is broken"):
            attack_images(net, x, y, AttackConfig(name))


@pytest.mark.parametrize("name", (*OURS, *PARTS))
def test_batches_hardly_matter_in_single_precision(golden_world, name):
    net, x, y, _ = golden_world
    sizes = (7, 32, len(x))
    runs = [attack_images(net, x, y, quick(name, "4/255"), batch=batch).flags for batch in sizes]
    assert (
        all(
            (run != runs[0]).double().mean() <= 0.005
            and abs(run.double().mean() - runs[0].double().mean()) <= 0.004
            for run in runs[1:]
        )
        or max(int((run != runs[0]).sum()) for run in runs) <= 1
    )

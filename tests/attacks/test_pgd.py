"PGD, FGSM and CW against golden numbers; PGD without a bound."

import pytest
import torch
from attack_worlds import dropout_world as world

from ddrobust_nb.attacks.attack import (
    AttackConfig,
)
from ddrobust_nb.attacks.running import (
    attack_images,
)


@pytest.mark.parametrize("eps", (2, 4, 8))
def test_golden_fgsm_pgd_cw(golden_world, eps):
    net, x, y, g = golden_world

    def grey(images):
        return (images * 255).round().to(torch.uint8)

    out = attack_images(net, x, y, AttackConfig("fgsm", f"{eps}/255"), attack_misclassified=True)
    assert (grey(out.images) == g[f"fgsm.eps{eps}"]).float().mean() >= 0.999
    assert torch.equal(out.flags, g[f"fgsm.eps{eps}.robust"].bool())
    for name in ("pgd", "cw"):
        for steps in (5, 10):
            out = attack_images(
                net,
                x,
                y,
                AttackConfig(name, f"{eps}/255", steps=steps, alpha="2/255", random_start=False),
                attack_misclassified=True,
            )
            assert (grey(out.images) == g[f"{name}{steps}.eps{eps}"]).float().mean() >= 0.98, (name, steps)
            assert (out.flags != g[f"{name}{steps}.eps{eps}.robust"].bool()).sum() <= 1, (name, steps)


def test_unbounded_attack_reaches_zero():
    net, x, y = world()
    assert not attack_images(net, x, y, AttackConfig("pgd", 1.0, steps=50, alpha="0.1")).flags.any()

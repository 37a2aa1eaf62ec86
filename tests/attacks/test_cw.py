"The margin loss."

import torch
from attack_worlds import Scale
from attack_worlds import dropout_world as world
from torch import nn

from ddrobust_nb.attacks.attack import (
    AttackConfig,
)
from ddrobust_nb.attacks.cw import margin_loss
from ddrobust_nb.attacks.fgsm import fgsm
from ddrobust_nb.attacks.running import (
    attack_images,
)


def test_margin_loss():
    z = torch.tensor([[5.0, 2.0, 1.0], [-30.0, 30.0, 0.0], [0.0, -2000.0, -3000.0]], requires_grad=True)
    loss = margin_loss(z, torch.tensor([0, 0, 0]))
    assert loss.tolist() == [-53.0, 0.0, -2050.0]
    assert torch.autograd.grad(loss.sum(), z)[0].tolist() == [[-1, 1, 0], [0, 0, 0], [-1, 1, 0]]


def test_margin_survives_saturation():
    net, x, y = world()
    with torch.no_grad():
        y = net(x).argmax(1)
    loud = nn.Sequential(net, Scale(1e4)).eval()
    left = {
        name: attack_images(loud, x, y, AttackConfig(name, "8/255")).flags.float().mean()
        for name in ("pgd", "cw")
    }
    assert left["cw"] < left["pgd"] - 0.3
    still = (fgsm(loud, x, y, eps="8/255") == x).flatten(1).all(1)
    assert still.float().mean() > 0.3, (
        "cross-entropy has no gradient left on many images, and they show it by not moving"
    )

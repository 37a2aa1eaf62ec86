"FGSM against its golden numbers and a library."

import torch
from attack_worlds import dropout_world as world
from attack_worlds import needs_torchattacks

from ddrobust_nb.attacks.attack import (
    AttackConfig,
)
from ddrobust_nb.attacks.fgsm import fgsm, pixel_gradient
from ddrobust_nb.attacks.running import (
    attack_images,
)


def test_golden_network(golden_world):
    net, x, y, g = golden_world
    with torch.no_grad():
        z = net(x)
    torch.testing.assert_close(z, g["logits"], rtol=0, atol=1e-4)
    assert torch.equal(z.argmax(1) == y, g["clean_correct"].bool())
    gradient = pixel_gradient(net, x[:16], y[:16])
    assert (gradient - g["grad16"]).norm() / g["grad16"].norm() < 1e-4


def test_same_as_torchattacks():
    needs_torchattacks()
    net, x, y = world()
    assert torch.equal(
        fgsm(net, x, y, eps="8/255"),
        attack_images(net, x, y, AttackConfig("ta:FGSM", "8/255")).images,
    )

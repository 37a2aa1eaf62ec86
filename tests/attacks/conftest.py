"The network and the images of the golden file"

import pytest
from torch import nn

from ddrobust_nb.foundations.networks import ConvNet, Normalise


class Golden(nn.Module):
    "The small trained network of the golden file"

    def __init__(self, state):
        super().__init__()
        self.normalise = Normalise(
            state["state.mu"].flatten().tolist(), state["state.sigma"].flatten().tolist()
        )
        self.body = ConvNet(3, 10, 32, width=32)
        self.body.load_state_dict(
            {k.removeprefix("state.net."): v for k, v in state.items() if k.startswith("state.net.")}
        )

    def forward(self, x):
        return self.body(self.normalise(x))


@pytest.fixture
def golden_world(golden):
    "Model, images, labels and the golden file"
    g = golden("attacks")
    return Golden(g).eval(), g["images"].float() / 255, g["labels"], g

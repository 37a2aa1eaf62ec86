"The plain implementations on the page nbs/speed/10_distillers.ipynb are the published algorithms: they pass the same golden files as ours. Speed itself is measured there, never asserted."

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from ddrobust_nb.foundations.networks import ConvNet

PAGE = Path(__file__).resolve().parents[2] / "nbs" / "speed" / "10_distillers.ipynb"


@pytest.fixture(scope="module")
def naive():
    "The names defined by the cells of the page that begin with `# naive:`"
    cells = [
        "".join(c["source"])
        for c in json.loads(PAGE.read_text(encoding="utf-8"))["cells"]
        if c["cell_type"] == "code"
    ]
    names = {}
    for source in cells:
        if source.startswith("# naive:"):
            exec(compile(source, str(PAGE), "exec"), names)
    return names


def convnet(state=None, width=16):
    "The golden ConvNet, with the golden weights where there are any"
    net = ConvNet(3, 10, 32, width=width)
    if state:
        net.load_state_dict({k.removeprefix("state."): v for k, v in state.items() if k.startswith("state.")})
    return net


def near(got, want, tolerance):
    assert (got - want).norm() <= tolerance * want.norm(), ((got - want).norm() / want.norm()).item()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_dm(layout, naive, golden):
    g = golden("dm")
    net = convnet(g).requires_grad_(False).to(memory_format=layout)
    syn = g["syn"].unflatten(0, (2, 2)).requires_grad_()
    assert naive["naive_dm"](net, g["real"], syn) == pytest.approx(g["loss"].item(), rel=1e-5)
    near(syn.grad.flatten(0, 1), g["grad_syn"], 1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_dc(layout, naive, golden):
    g = golden("dc")
    net, syn = convnet(g).to(memory_format=layout), g["syn"].unflatten(0, (2, 2)).requires_grad_()
    assert naive["naive_dc"](net, g["real"], syn) == pytest.approx(g["ours.total"].item(), rel=1e-5)
    near(syn.grad.flatten(0, 1), g["ours.grad_syn"], 2e-4)


def trajectory(g, kind):
    "Arguments of the two trajectory matchers, from a golden file"
    steps = [row[row >= 0] for row in g[f"{kind}.indices"]]
    return dict(
        net=convnet(width=8),
        start=g["start"],
        target=g["target"],
        syn=g["syn"].clone().requires_grad_(),
        labels=g["labels"],
        lr=g["lr"].clone().requires_grad_(),
        steps=steps,
    )


@pytest.mark.parametrize("kind", ["full", "chunk"])
def test_mtt(kind, naive, golden):
    g = golden("mtt")
    args = trajectory(g, kind)
    assert naive["naive_mtt"](**args) == pytest.approx(g[f"{kind}.loss"].item(), rel=1e-5)
    near(args["syn"].grad, g[f"{kind}.grad_syn"], 5e-4)
    near(args["lr"].grad, g[f"{kind}.grad_lr"], 5e-4)


@pytest.mark.parametrize("kind", ["full", "chunk"])
def test_tesla(kind, naive, golden):
    g = golden("tesla")
    args = trajectory(g, kind)
    assert naive["naive_tesla"](**args) == pytest.approx(g[f"{kind}.loss"].item(), rel=1e-5)
    near(args["syn"].grad, g[f"{kind}.grad_syn_official"], 5e-4)
    near(args["lr"].grad, g[f"{kind}.grad_lr_official"], 5e-4)


class Three(nn.Module):
    "The network of the golden recovery: three convolutions with batch norm"

    def __init__(self, state):
        super().__init__()
        for i, channels in enumerate((3, 16, 16), 1):
            (
                setattr(self, f"conv{i}", nn.Conv2d(channels, 16, 3, padding=1, bias=False)),
                setattr(self, f"bn{i}", nn.BatchNorm2d(16)),
            )
        self.fc = nn.Linear(16, 10)
        self.load_state_dict(
            {k.removeprefix("state."): v for k, v in state.items() if k.startswith("state.")}
        )

    def forward(self, x):
        for i in (1, 2, 3):
            x = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x)).relu()
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("roll", [(0, 0), (3, 1)])
@pytest.mark.parametrize("a_bn", ["0.01", "1"])
def test_sre2l(roll, a_bn, naive, golden):
    g, prefix = golden("sre2l"), ("jit" if any(roll) else "nojit")
    net = Three(g).eval().requires_grad_(False)
    hooks = [naive["NaiveHook"](m) for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    x = g["x"].clone().requires_grad_()
    loss = naive["naive_recover"](net, hooks, x.roll(roll, (2, 3)), g["targets"], float(a_bn))
    loss.backward()
    assert loss.item() == pytest.approx(g[f"{prefix}.rbn{a_bn}.loss"].item(), rel=1e-5)
    near(x.grad, g[f"{prefix}.rbn{a_bn}.grad_x"], 1e-4)
    near(torch.stack([h.distance for h in hooks]), g[f"{prefix}.r_layers"], 1e-5)

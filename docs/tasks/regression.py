"""Regression: a network predicts a curve and the deviation of the noise around it.

python docs/tasks/regression.py --activation DiTAC --options '{"a": -3, "b": 3}'
"""

import argparse
import json
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

import activations
from activations import parameter_groups, penalty, replace_activations, set_progress

parser = argparse.ArgumentParser()
parser.add_argument("--activation", default="CosLU", help="a class of `activations`")
parser.add_argument("--options", type=json.loads, default={}, help='its arguments: {"alpha": 2}')
parser.add_argument("--steps", type=int, default=1000)
options = parser.parse_args()
torch.manual_seed(0)


def batch(count: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers in [-2, 2], and sin(3 x) with a noise that grows with x."""
    x = 4 * torch.rand(count, 1) - 2
    return x, torch.sin(3 * x) + 0.05 * (x + 3) * torch.randn_like(x)


class Curve(nn.Module):
    """The mean and the deviation at each x."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.hidden = nn.Sequential(
            nn.Linear(1, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
        )
        self.mean, self.deviation = nn.Linear(width, 1), nn.Linear(width, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Two columns of numbers."""
        x = self.hidden(x)
        return self.mean(x), F.softplus(self.deviation(x)) + 1e-3  # an output: it stays


model = Curve()
make = partial(getattr(activations, options.activation), **options.options)
report = replace_activations(model, make)
print(report)

groups = parameter_groups(model)
groups[-1]["lr"] = 3e-3  # what activations learn, at a rate of its own
optimizer = torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.01)
losses = []
for step in range(options.steps):
    set_progress(model, min(1, 2 * step / options.steps))
    x, y = batch()
    mean, deviation = model(x)
    loss = F.gaussian_nll_loss(mean, y, deviation**2) + penalty(model)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
    if step % 200 == 0 or step + 1 == options.steps:
        print(f"step {step}: loss {losses[-1]:.3f}")
set_progress(model, 1.0)

for call in report:
    print(f"{call.name}: {call.new} -> {model.get_submodule(call.name)}")
for x in (-1.5, 0.0, 1.5):
    mean, deviation = (value.item() for value in model(torch.tensor([[x]])))
    print(f"x = {x:4}: mean {mean:.2f}, deviation {deviation:.2f}")

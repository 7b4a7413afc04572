"""Generation: a variational autoencoder draws digits, trained on scikit-learn's 1797 images.

python docs/tasks/generation.py --activation CosLU
"""

import argparse
import json
from functools import partial

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import activations
from activations import parameter_groups, penalty, replace_activations, set_progress

parser = argparse.ArgumentParser()
parser.add_argument("--activation", default="CosLU", help="a class of `activations`")
parser.add_argument("--options", type=json.loads, default={}, help='its arguments: {"alpha": 2}')
parser.add_argument("--steps", type=int, default=300)
options = parser.parse_args()
torch.manual_seed(0)
IMAGES = torch.tensor(load_digits().images).float()[:, None] / 16  # (N, 1, 8, 8) in [0, 1]


class Autoencoder(nn.Module):
    """Images to eight numbers and back."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(),
            nn.Flatten(), nn.Linear(256, 16),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Linear(8, 256), nn.ReLU(), nn.Unflatten(1, (64, 2, 2)),
            nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(32, 1, 4, 2, 1),
            nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The images drawn anew, and how far their numbers are from standard normal ones."""
        mean, log_variance = self.encoder(images).chunk(2, 1)
        code = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        distance = (mean**2 + log_variance.exp() - 1 - log_variance).sum(1) / 2
        return self.decoder(code), distance


model = Autoencoder()
make = partial(getattr(activations, options.activation), **options.options)
report = replace_activations(model, make, example_input=IMAGES[:2])
print(report)

optimizer = torch.optim.AdamW(parameter_groups(model), lr=3e-3, weight_decay=0.01)
losses = []
for step in range(options.steps):
    set_progress(model, min(1, 2 * step / options.steps))
    images = IMAGES[torch.randint(len(IMAGES), (128,))]
    drawn, distance = model(images)
    difference = F.binary_cross_entropy(drawn, images, reduction="none").flatten(1).sum(1)
    loss = (difference + distance).mean() + penalty(model)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
    if step % 50 == 0 or step + 1 == options.steps:
        print(f"step {step}: loss {losses[-1]:.2f}")
set_progress(model, 1.0)

for call in report:
    print(f"{call.name}: {call.new} -> {model.get_submodule(call.name)}")
with torch.no_grad():  # four new digits
    new = model.decoder(torch.randn(4, 8))[:, 0]
print(*("".join(" .:*#"[int(4.99 * x)] * 2 for x in row) for row in torch.cat([*new], 1)), sep="\n")

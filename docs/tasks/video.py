"""Video: torchvision's R3D-18 tells in which of four directions a square moves.

python docs/tasks/video.py --activation DSReLU --options '{"a": 2, "b": 0.5, "normalized": true}'
"""

import argparse
import json
from functools import partial

import torch
from torch.nn import functional as F
from torchvision.models.video import r3d_18

import activations
from activations import parameter_groups, penalty, replace_activations, set_progress

parser = argparse.ArgumentParser()
parser.add_argument("--activation", default="CosLU", help="a class of `activations`")
parser.add_argument("--options", type=json.loads, default={}, help='its arguments: {"alpha": 2}')
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--size", type=int, default=32, help="side of the frames in pixels")
options = parser.parse_args()
torch.manual_seed(0)
FRAMES = 8


def batch(count: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips (N, 3, T, H, W), and the direction of each."""
    clips, labels = (
        0.5 * torch.randn(count, 3, FRAMES, *[options.size] * 2),
        torch.arange(count) % 4,
    )
    for clip, label in zip(clips, labels.tolist(), strict=True):
        for time in range(FRAMES):
            place = (time if label % 2 else FRAMES - time) * options.size // 12
            rows, columns = (slice(place, place + 8), slice(12, 20))[:: 1 if label < 2 else -1]
            clip[:, time, rows, columns] += 3
    return clips, labels


model = r3d_18(weights=None, num_classes=4)
make = partial(getattr(activations, options.activation), **options.options)
report = replace_activations(model, make)
print(*str(report).splitlines()[:4], "...", *report.remarks(), sep="\n")
print(f"{len(report)} calls have a {options.activation} of their own")

optimizer = torch.optim.SGD(parameter_groups(model), lr=0.01, momentum=0.9, weight_decay=1e-4)
losses = []
for step in range(options.steps):
    set_progress(model, min(1, 2 * step / options.steps))
    clips, labels = batch()
    loss = F.cross_entropy(model(clips), labels) + penalty(model)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
    if step % 5 == 0 or step + 1 == options.steps:
        print(f"step {step}: loss {losses[-1]:.3f}")
set_progress(model, 1.0)

for call in (report[0], report[-1]):
    print(f"{call.name}: {call.new} -> {model.get_submodule(call.name)}")

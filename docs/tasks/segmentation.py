"""Segmentation: torchvision's FCN-ResNet-50 finds squares (1) and bars (2) in noise.

python docs/tasks/segmentation.py --activation CosLU
"""

import argparse
import json
from functools import partial

import torch
from torch.nn import functional as F
from torchvision.models.segmentation import fcn_resnet50

import activations
from activations import parameter_groups, penalty, replace_activations, set_progress

parser = argparse.ArgumentParser()
parser.add_argument("--activation", default="CosLU", help="a class of `activations`")
parser.add_argument("--options", type=json.loads, default={}, help='its arguments: {"alpha": 2}')
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--size", type=int, default=64, help="side of the images in pixels")
options = parser.parse_args()
torch.manual_seed(0)


def batch(count: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, 3, H, W), and the class of each pixel (N, H, W)."""
    size, third = options.size, options.size // 3
    images, classes = torch.randn(count, 3, size, size), torch.zeros(count, size, size).long()
    for image, found in zip(images, classes, strict=True):
        (top, left), row = torch.randint(0, size - third, (2,)).tolist(), third // 2
        image[:, top : top + third, left : left + third] += 3
        found[top : top + third, left : left + third] = 1
        image[:, row : row + 4] -= 3
        found[row : row + 4] = 2
    return images, classes


model = fcn_resnet50(weights=None, weights_backbone=None, num_classes=3, aux_loss=True)
make = partial(getattr(activations, options.activation), **options.options)
report = replace_activations(model, make, example_input=batch()[0])  # the auxiliary head's ReLU too
print(*str(report).splitlines()[:4], "...", *report.remarks(), sep="\n")
print(f"{len(report)} calls have a {options.activation} of their own")

optimizer = torch.optim.AdamW(parameter_groups(model), lr=1e-3, weight_decay=0.01)
losses = []
for step in range(options.steps):
    set_progress(model, min(1, 2 * step / options.steps))
    images, classes = batch()
    scores = model(images)
    loss = F.cross_entropy(scores["out"], classes) + 0.5 * F.cross_entropy(scores["aux"], classes)
    loss = loss + penalty(model)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
    if step % 5 == 0 or step + 1 == options.steps:
        print(f"step {step}: loss {losses[-1]:.3f}")
set_progress(model, 1.0)

for call in (report[0], report[-1]):
    print(f"{call.name}: {call.new} -> {model.get_submodule(call.name)}")

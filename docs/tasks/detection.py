"""Detection: torchvision's RetinaNet finds squares (1) and bars (2) in noise.

python docs/tasks/detection.py --activation CosLU
"""

import argparse
import json
from functools import partial

import torch
from torchvision.models.detection import retinanet_resnet50_fpn

import activations
from activations import parameter_groups, penalty, replace_activations, set_progress

parser = argparse.ArgumentParser()
parser.add_argument("--activation", default="CosLU", help="a class of `activations`")
parser.add_argument("--options", type=json.loads, default={}, help='its arguments: {"alpha": 2}')
parser.add_argument("--steps", type=int, default=30)
parser.add_argument("--size", type=int, default=96, help="side of the images in pixels")
options = parser.parse_args()
torch.manual_seed(0)


def batch(count: int = 4) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    """Images (3, H, W), and the boxes (left, top, right, bottom) and classes of each."""
    images, targets = [], []
    for label in torch.randint(1, 3, (count,)).tolist():
        image, (width, height) = (
            torch.rand(3, *[options.size] * 2) / 2,
            ((32, 32), (48, 16))[label - 1],
        )
        left, top = (int(torch.randint(options.size - side, ())) for side in (width, height))
        image[:, top : top + height, left : left + width] += 0.5
        box = torch.tensor([[left, top, left + width, top + height]]).float()
        images.append(image)
        targets.append({"boxes": box, "labels": torch.tensor([label])})
    return images, targets


size = {"min_size": options.size, "max_size": options.size}  # else images grow to 800 pixels
model = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3, **size)
make = partial(getattr(activations, options.activation), **options.options)
report = replace_activations(model, make, example_input=batch(2))  # images and targets
print(*str(report).splitlines()[:4], "...", *report.remarks(), sep="\n")
print(f"{len(report)} sites have a {options.activation} of their own")

optimizer = torch.optim.AdamW(parameter_groups(model), lr=3e-4, weight_decay=0.01)
losses = []
for step in range(options.steps):
    set_progress(model, min(1, 2 * step / options.steps))
    parts = model(*batch())
    loss = sum(parts.values()) + penalty(model)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
    optimizer.step()
    losses.append(loss.item())
    if step % 5 == 0 or step + 1 == options.steps:
        print(f"step {step}: loss {losses[-1]:.3f}")
set_progress(model, 1.0)

for call in (report[0], report[-1]):
    print(f"{call.name}: {call.new} -> {model.get_submodule(call.name)}")

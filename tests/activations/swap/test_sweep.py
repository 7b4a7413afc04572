"""The swap on every network of torchvision and on one of each of timm's families.

Each call gets a module that computes what was there before, chosen by this file from the old one's
name; outputs must agree to 1e-5 in both modes. What each call computes together with the module
around it is then tried on numbers: a square around it, for example, was part of the old activation.
"""

import copy
from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.models._registry import _module_to_models
from torch import nn
from torch.nn import functional as F
from torchvision.models import detection, optical_flow, segmentation, video

from activations import replace_activations

FUNCTIONS = {
    "relu": F.relu, "relu6": F.relu6, "silu": F.silu, "swish": F.silu, "gelu": F.gelu, "mish": F.mish,
    "hardswish": F.hardswish, "hardswishme": F.hardswish, "leakyrelu": lambda x: F.leaky_relu(x, 0.01),
    "elu": F.elu, "tanh": torch.tanh, "quickgelu": lambda x: x * torch.sigmoid(1.702 * x),
    "gelutanh": lambda x: F.gelu(x, approximate="tanh"),
}  # fmt: skip


class Twin(nn.Module):
    def __init__(self):
        super().__init__()
        self.functions = [torch.clone]

    def forward(self, x):
        return self.functions[0](x)


def tensors(output):
    if isinstance(output, torch.Tensor):
        return [output]
    parts = output.values() if isinstance(output, dict) else output
    return [tensor for part in parts if part is not None for tensor in tensors(part)]


def check(network: nn.Module, *inputs: Any, example_input: Any = None):
    before = copy.deepcopy(network)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    report = replace_activations(network, Twin, example_input=example_input)
    after = network.state_dict()
    replaced = tuple(f"{call.key[0]}." for call in report if call.function is None)
    kept = {name: value for name, value in state.items() if not name.startswith(replaced)}
    assert all(torch.equal(value, after[name]) for name, value in kept.items())
    for call in report:
        old = before.get_submodule(call.key[0]) if call.function is None else None
        twin = network.get_submodule(call.name)
        name = call.old.lower().replace("_", "")
        # what carries options or parameters of its own is taken as it was
        own = old is not None and vars(old).keys() - vars(nn.Module()).keys()
        plain = not own or (name in FUNCTIONS and own <= {"inplace", "approximate"})
        if old is not None and (not plain or getattr(old, "approximate", "none") != "none"):
            kept = copy.deepcopy(old)
            kept.inplace = False  # pyright: ignore[reportArgumentType]
            twin.functions[0] = kept  # pyright: ignore[reportArgumentType, reportIndexIssue]
        elif call.function is not None and call.function.kwargs:
            kwargs = call.function.kwargs
            twin.functions[0] = lambda x, name=call.old, kwargs=kwargs: getattr(F, name)(  # pyright: ignore[reportArgumentType, reportIndexIssue]
                x, **kwargs
            )
        else:
            twin.functions[0] = FUNCTIONS[name]  # pyright: ignore[reportIndexIssue]
    for training in (False, True):
        outputs = []
        for model in (before, network):
            torch.manual_seed(1)
            with torch.no_grad():
                outputs.append(tensors(model.train(training)(*inputs)))
        for old, new in zip(*outputs, strict=True):
            torch.testing.assert_close(new, old, rtol=1e-5, atol=1e-6, equal_nan=True)

    check_functions(network)


def check_functions(network: nn.Module):
    """No module around a swapped call makes another function of it than a multiple of it."""
    for module in network.modules():
        if isinstance(module, Twin):
            module.functions = [torch.sin]  # pyright: ignore[reportAttributeAccessIssue]
    for name, module in network.eval().named_modules():
        values = [*module.parameters(), *module.buffers()]
        holds = not isinstance(module, Twin) and any(isinstance(m, Twin) for m in module.modules())
        if any(hasattr(part, "running_mean") for part in module.modules()):
            continue  # it scales the input by what it has seen
        if not holds or any(value.dim() > 1 and value.numel() > 1 for value in values):
            continue
        channels = max((value.numel() for value in values), default=4)
        x = torch.randn(64, channels, 1, 1)
        try:
            with torch.no_grad():
                y = module(x)
                again = module(x.roll(1, 0)).roll(-1, 0)
                other = torch.cat([x[:, :1], x[:, 1:] + 1], 1)
                mixes = not torch.allclose(module(other)[:, :1], y[:, :1])  # it normalises
        except Exception:  # it takes no such tensor
            continue
        if y.shape == x.shape and torch.allclose(y, again) and not mixes:
            terms = torch.stack([torch.ones_like(x), x.sin()], -1).flatten(1, 3).movedim(1, 0)
            target = y.flatten(1).T[..., None]
            fit = torch.linalg.lstsq(terms, target).solution
            torch.testing.assert_close(terms @ fit, target, rtol=0, atol=1e-3, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("name", torchvision.models.list_models(module=torchvision.models))
def test_torchvision(name: str):
    large = name == "inception_v3"
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    network = torchvision.models.get_model(name, **options)
    check(network, torch.randn(2, 3, *[299 if large else 224] * 2))


@pytest.mark.slow
@pytest.mark.parametrize("name", torchvision.models.list_models(module=segmentation))
def test_segmentation(name: str):
    options = {} if name.startswith("lraspp") else {"aux_loss": True}
    network = torchvision.models.get_model(name, weights_backbone=None, **options)
    check(network, torch.randn(2, 3, 64, 96))


@pytest.mark.slow
@pytest.mark.parametrize("name", torchvision.models.list_models(module=video))
def test_video(name: str):
    size = (112, 112) if name.endswith("_18") else (224, 224)
    check(torchvision.models.get_model(name), torch.randn(2, 3, 16, *size))


@pytest.mark.slow
@pytest.mark.parametrize("name", torchvision.models.list_models(module=optical_flow))
def test_optical_flow(name: str):
    pair = torch.randn(2, 3, 128, 128), torch.randn(2, 3, 128, 128)
    check(torchvision.models.get_model(name), *pair, example_input=pair)


@pytest.mark.slow
@pytest.mark.parametrize("name", torchvision.models.list_models(module=detection))
def test_detection(name: str):
    network: Any = torchvision.models.get_model(name, weights_backbone=None)
    if not name.startswith("ssd"):
        network.transform.min_size, network.transform.max_size = (128,), 256
    (network.roi_heads if "rcnn" in name else network).score_thresh = 0.0
    images = [torch.rand(3, 96, 128), torch.rand(3, 96, 128)]
    target = {
        "boxes": torch.tensor([[10.0, 10.0, 60.0, 60.0]]),
        "labels": torch.tensor([1]),
        "masks": torch.ones(1, 96, 128, dtype=torch.uint8),
        "keypoints": 60 * torch.rand(1, 17, 3),
    }
    batch = images, [target, target]
    check(network, *batch, example_input=batch)


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(_module_to_models))
def test_timm(family: str):
    sizes = {}
    for name in sorted(_module_to_models[family]):
        with torch.device("meta"):
            try:
                sizes[name] = sum(p.numel() for p in timm.create_model(name).parameters())
            except Exception:  # it cannot be built without numbers, or needs another package
                sizes[name] = 10**9
        if sizes[name] < 6e6:
            break
    network = timm.create_model(min(sizes, key=sizes.__getitem__))
    check(network, torch.randn(2, *network.pretrained_cfg["input_size"]))  # pyright: ignore[reportArgumentType, reportCallIssue, reportIndexIssue]

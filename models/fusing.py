"""`compile: auto`: whether fused activations save more time in a training than their compilation.

The choice follows from the configuration and the machine alone: a measurement would decide equal
runs differently, and so would a look at what happens to be compiled already.
"""

import math
import os
import shutil
import sys
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import nn

from activations import Activation, SwapReport
from activations.fusion.blocks import least
from activations.torch_private import count_operations

# Seconds on one thread of an AMD EPYC (Zen 4), from the files in results/bench
SAVED = 0.25e-9  # by each operation of a formula and its derivative, for one element: step.json
SAVED_SMALL = 0.4e-9  # where a tensor is too small for blocks: step-small.json
FIRST, EACH = 5.5, 4.0  # the compiler's start, and each function: start.json, step.json
GPU_STEPS = 100  # from here on a GPU, where a whole tensor is walked over for each operation
_COMPILERS = {"darwin": "clang++", "win32": "cl"}


class Estimate(NamedTuple):
    """What fusing saves and costs in a training, or in several, in seconds.

    Attributes:
        saved: in all steps.
        cost: of the compilation; 0 if nothing can be fused.
        steps: optimizer steps, of the shortest training.
    """

    saved: float
    cost: float
    steps: float

    def plus(self, other: "Estimate") -> "Estimate":
        """Of both trainings."""
        steps = min(self.steps, other.steps)
        return Estimate(self.saved + other.saved, self.cost + other.cost, steps)

    def decide(self, device: str) -> tuple[str, str]:
        """`activations` or `off`, and the line that says why; "" where nothing can be fused."""
        if not self.cost:
            return "off", ""
        steps = f"{self.steps:,.0f} step{'s' * (self.steps != 1)}"
        steps = steps if self.steps < math.inf else "an open number of steps"
        told, pays = f"{steps}, and on a GPU it pays from {GPU_STEPS}", self.steps >= GPU_STEPS
        if device == "cpu":
            pays = self.saved > self.cost
            verb = "save" if pays else "would save"
            told = f"{steps} {verb} about {self.saved:,.0f} s"
            told += f", compilation takes about {self.cost:.0f} s"
        elif device != "cuda":
            pays, told = False, f"there are no fused kernels for {device}"
        if pays and (missing := _missing(device)):
            pays, told = False, f"{told}, but there is no {missing}"
        mode = "activations" if pays else "off"
        return mode, f"compile: auto -> {mode}: {told}"


def estimate(
    network: nn.Module,
    swapped: SwapReport,
    batch_size: int,
    steps: float,
    batches: float,
) -> Estimate:
    """What fusing the activations of a training saves and costs, in float32 as in bfloat16.

    Args:
        network: whose activations they are.
        swapped: the calls, with the shapes of a batch of two.
        batch_size: of a process.
        steps: optimizer steps that are left.
        batches: forward and backward passes that are left.
    """
    kinds, seconds = dict[Any, int](), 0.0
    for call in swapped:
        fused = set[nn.Module]()
        for module in network.get_submodule(call.name).modules():
            if module in fused or not isinstance(module, Activation):
                continue
            if expression := module.expression():
                fused.update(module.modules())  # one kernel computes what it combines
                kind = expression.formula, expression.constants
                if kind not in kinds:
                    kinds[kind] = _operations(module, len(call.shape))
                elements = math.prod(call.shape) // 2 * batch_size
                each = SAVED if elements >= least() else SAVED_SMALL
                seconds += each * kinds[kind] * elements * call.times
    cost = FIRST + EACH * len(kinds) if kinds else 0.0
    saved = seconds / torch.get_num_threads()
    return Estimate(saved * batches if saved else 0.0, cost, steps)


def _operations(module: Activation, rank: int) -> int:
    """Of the formula of `module` and of its derivative, as torch calls them."""
    shape = [1009, *[1] * (rank - 1)]  # no table has as many elements
    if module.num_parameters > 1:
        shape[module.channel_dim] = module.num_parameters
    own = [each for each in module.parameters(recurse=False) if each.requires_grad]
    device = next((each.device for each in (*module.parameters(), *module.buffers())), None)
    x = torch.zeros(shape, device=device, requires_grad=True)
    return count_operations(module.function, x, own)


def _missing(device: str) -> str:
    """What the compiler for `device` needs and is not here."""
    if device == "cuda":
        return "" if find_spec("triton") else "triton: pip install triton"
    name = os.environ.get("CXX") or _COMPILERS.get(sys.platform, "g++")
    return "" if shutil.which(name) else f"C++ compiler {name}: install it, or set CXX"

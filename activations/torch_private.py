"""What this project needs of torch that torch does not promise to keep, in one place.

`tests/activations/test_torch_private.py` has a test for each part, so that a new version of torch
fails there by name. `fusion/lowering.py` holds what concerns Inductor's own passes, and
`swap/rewrite.py` what concerns the code objects of CPython.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.fx import GraphModule
from torch.utils._python_dispatch import TorchDispatchMode


def is_intercepted() -> bool:
    """Whether something traces, transforms or intercepts operations."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.maybe_current_level() is not None  # pyright: ignore
        or forward_ad._current_level >= 0
    )


def is_batched(grad: Tensor) -> bool:
    """Whether `grad` is a batch of gradients: `torch.func.vmap`, or `is_grads_batched`."""
    return is_intercepted() or torch._C._functorch.is_legacy_batchedtensor(grad)  # pyright: ignore


def is_exporting() -> bool:
    """Whether `torch.export` or the older exporter to ONNX reads the network."""
    older = torch.jit.is_tracing() and torch.onnx.is_in_onnx_export()  # pyright: ignore
    return torch.compiler.is_exporting() or older


def compile_once(function: Callable[..., Any], limit: int, **options: Any) -> Callable[..., Any]:
    """`torch.compile` of a whole function that may have up to `limit` variants.

    Beyond Dynamo's own limit of 8 it would run without compilation and not say so. torch 2.12 takes
    the limit as an argument; before, it is a setting, here of the calls of this function alone.
    """
    known = inspect.signature(torch.compile).parameters
    wanted = {"recompile_limit": limit, "isolate_recompiles": True}
    accepted: Any = {name: value for name, value in wanted.items() if name in known}
    compiled = torch.compile(function, fullgraph=True, dynamic=True, **options, **accepted)
    if "recompile_limit" in accepted:
        return compiled

    def call(*inputs: Any) -> Any:
        with torch._dynamo.config.patch(recompile_limit=limit):
            return compiled(*inputs)

    return call


def operations(function: Callable[..., Any], inputs: Sequence[Tensor]) -> GraphModule:
    """The operations of torch that `function` calls for inputs like these.

    Autograd and `torch.func` are resolved.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    with torch.autocast("cpu", enabled=False):
        return make_fx(function)(*inputs)


class _Counter(TorchDispatchMode):
    """Counts the operations whose result has `size` elements and memory of its own."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.count = size, 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.numel() == self.size:
            self.count += not (func.is_view or func is torch.ops.aten.detach.default)
        return result


def count_operations(
    function: Callable[[Tensor], Tensor], x: Tensor, parameters: Sequence[Tensor]
) -> int:
    """How many operations of torch compute `function` and its gradients, for all elements of `x`.

    Args:
        function: elementwise.
        x: that requires a gradient.
        parameters: for which it has gradients too.
    """
    with torch.enable_grad(), _Counter(x.numel()) as counter:
        y = function(x)
        torch.autograd.grad(y, [x, *parameters], torch.ones_like(y), allow_unused=True)
    return counter.count


def lacks_compiler(error: BaseException) -> bool:
    """Whether a compilation failed because there is no compiler for the device."""
    return "InvalidCxxCompiler" in str(error) or "TritonMissing" in str(error)


def take_unchecked(table: Tensor, index: tuple[Tensor, ...]) -> Tensor:
    """`table[index]` without the check that the indices are in range."""
    return torch.ops.aten._unsafe_index(table, list(index))


def is_compiled(module: nn.Module) -> bool:
    """Whether `torch.compile` or `module.compile()` made one program of `module`."""
    return hasattr(module, "_orig_mod") or module._compiled_call_impl is not None


def has_hooks(module: nn.Module) -> bool:
    """Whether hooks of a forward or backward pass are registered on `module`."""
    return any(hooks_of(module))


_HOOKS = [
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_backward_pre_hooks", "_backward_hooks"),
]


def hooks_of(module: nn.Module) -> list[dict[int, Any]]:
    """The tables of the hooks on `module` that a forward or backward pass calls."""
    return [getattr(module, name) for name in _HOOKS]


def move_hooks(old: nn.Module, new: nn.Module) -> None:
    """Give the hooks of `old` to `new`; their handles still remove them."""
    for name in _HOOKS:
        hooks = getattr(old, name)  # the handles know this table
        hooks.update(getattr(new, name))
        setattr(old, name, type(hooks)())
        setattr(new, name, hooks)
    new._is_full_backward_hook = old._is_full_backward_hook


def copy_hooks(old: nn.Module, new: nn.Module) -> None:
    """Give the hooks of `old` to `new` too; their handles remove them from `old` alone."""
    for mine, others in zip(hooks_of(new), hooks_of(old), strict=True):
        mine.update(others)
    new._is_full_backward_hook = old._is_full_backward_hook


def leave_fast_path(owner: nn.Module) -> None:
    """Let torch's transformer encoder call its activation also where no gradient is needed."""
    if isinstance(owner, nn.TransformerEncoderLayer):
        owner.activation_relu_or_gelu = 0
    elif isinstance(owner, nn.TransformerEncoder):
        owner.use_nested_tensor = False

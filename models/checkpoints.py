"""Checkpoints: what is safe to open, and the network that a checkpoint describes."""

import math
import os
import pkgutil
import re
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from inspect import Parameter, signature
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from activations.functions.formula import parse

# importing a module runs its code: for a checkpoint only these are imported
# of timm and torchvision what builds layers and optimizers: their networks fetch weights
TRUSTED = ("torch.nn", "torch.optim", "activations", "timm.layers", "timm.models.layers",
           "timm.optim", "timm.scheduler", "torchvision.ops",
           "lightning.pytorch.cli.ReduceLROnPlateau")  # fmt: skip
FACTORIES: dict[str, type] = {
    "activation": nn.Module,
    "activation_by_site": nn.Module,
    "optimizer": Optimizer,
    "lr_scheduler": LRScheduler,
}
DEFAULT_OPTIMIZER = "models.classifier._sgd"  # the one function that a checkpoint may name
# modules whose functions an option may be: the last holds BackboneFinetuning's own default
FUNCTIONS = ("torchvision.transforms", "models.classifier",
             "lightning.pytorch.callbacks.finetuning")  # fmt: skip
INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"  # by which Lightning makes factories
SMALLEST = {"num_classes": 1, "in_channels": 1, "image_size": 1, "dims": 1,
            "side_size": 0, "activation_weight_decay": 0}  # fmt: skip
LARGEST, LONGEST = 2**13, 2**22  # pixels of a side, samples of a signal
_OF_WEIGHTS = ("pretrained", "checkpoint_path", "activation_from", "weights", "weights_backbone")
PLAIN = (bool, int, float, str, type(None))


def read_file(path: str | Path, option: str = "--ckpt_path") -> Any:
    """The content of a file of `torch.save`: tensors and plain data; no code of it is run.

    Raises:
        FileNotFoundError: there is no such file.
        PermissionError: it may not be read.
        ValueError: the file is damaged, or holds more than data. A changed bit is noticed by the
            checksums that `torch.save` writes and `torch.load` does not compare.
    """
    path = Path(path)
    if not path.is_file():
        kind = ", which is no file" if path.exists() else ""
        raise FileNotFoundError(f"no weights at {str(path)!r}{kind} ({option})")
    if path.suffix == ".json":
        raise ValueError(
            f"{str(path)!r} describes an exported network and is no checkpoint: give the folder of "
            f"its run with {option}"
        )
    path.open("rb").close()  # what may not be read is not damaged
    try:
        if not path.stat().st_size:
            raise ValueError("it is empty")
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if changed := archive.testzip():
                    raise ValueError(f"the checksum of {changed!r} is wrong")
                # torch leaves out a folder, and takes what lies in memory for its numbers
                if each := next((m for m in archive.infolist() if not _is_stored(m)), None):
                    raise ValueError(f"{each.filename!r} is no stored file")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if code := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise ValueError(
                f"{str(path)!r} names the code {code[1]!r}, which was not run: give a file that "
                f"holds data alone with {option}"
            ) from error
        reason = "no file of torch.save"
        if isinstance(error, ValueError | RuntimeError):  # torch's other errors fill a page
            reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{str(path)!r} cannot be read as weights, it is damaged or of another kind "
            f"({reason[:200]}): give another file with {option}, such as an earlier checkpoint"
        ) from error


def _is_stored(member: zipfile.ZipInfo) -> bool:
    """Whether a part of a file of `torch.save` is as that writes it."""
    return member.compress_type == zipfile.ZIP_STORED and not member.external_attr & 0x10


def read_checkpoint(
    path: str | Path,
    options: Mapping[str, Parameter],
    trust: Sequence[str] = (),
    replaced: Iterable[str] = (),
) -> dict[str, Any]:
    """The content of a checkpoint of :class:`models.Classifier`, whose classes are trusted.

    Args:
        path: the file.
        options: arguments of the classifier, with their types.
        trust: packages, besides torch's own and this project's, from which it may name classes.
        replaced: arguments that are not taken from the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or of another program, names code that is not trusted, or
            stores an option of the wrong type.
    """
    content, name, replaced = read_file(path), str(path), set(replaced)
    if not isinstance(content, dict) or "pytorch-lightning_version" not in content:
        raise ValueError(
            f"{name!r} is no checkpoint of this program, which would name its network: if it holds "
            "weights, start from them with --model.checkpoint_path, and name the network"
        )
    state: Any = content.get("state_dict")
    stored: Any = content.get("hyper_parameters", {})
    ours = (
        isinstance(state, dict)
        and isinstance(stored, dict)
        and all(isinstance(value, Tensor) and _is_whole(value) for value in state.values())
        and any(str(key).startswith("backbone.") for key in state)
        and {*options, *replaced, "_instantiator"}.issuperset(stored)
        and stored.get("_instantiator", INSTANTIATOR) == INSTANTIATOR
        and content.get("hparams_name", "kwargs") == "kwargs"
        # as Lightning before 0.8 and OmegaConf store options
        and {"hparams", "module_arguments", "hparams_type"}.isdisjoint(content)
    )
    if not ours:
        raise ValueError(
            f"{name!r} is a checkpoint of another program, not of this classifier: give one of "
            "this program with --ckpt_path, or start from its weights with --model.checkpoint_path"
        )
    kept = {key: stored[key] for key in stored.keys() - replaced}
    check_options(kept, state, name, options, trust)
    return content


def check_options(
    stored: Mapping[str, Any],
    state: Mapping[str, Tensor],
    source: str,
    options: Mapping[str, Parameter],
    trust: Sequence[str] = (),
) -> None:
    """Raise ValueError if stored options name untrusted code or have a wrong type or size.

    Args:
        stored: the options by name.
        state: the weights that are stored with them, none of which a network exceeds.
        source: the file, for messages.
        options: the arguments that they are, with their types.
        trust: packages from which they may name classes, too.
    """
    check_stored(stored, source, trust)
    sizes = [side for value in state.values() for side in value.shape]
    widest = max(sizes, default=0)
    side = LONGEST if stored.get("dims") == 1 else LARGEST
    most = dict.fromkeys(("num_classes", "in_channels", "side_size"), widest)
    most |= {"dims": 2, "image_size": side}
    for option, value in stored.items():
        hint = options[option].annotation if option in options else Any
        least, why = SMALLEST.get(option, -math.inf), ""
        if not _fits(value, hint):
            why = f"a value of another type, {str(value)[:80]!r}"
        elif isinstance(value, int | float) and not value >= least:
            why = f"{value}, not at least {least}"
        elif isinstance(value, int | float) and value > most.get(option, math.inf):
            why = f"{value}, more than {most[option]}"
        if why:
            raise ValueError(
                f"{source!r} stores as {option} {why}: it is damaged, give another checkpoint, "
                "such as an earlier one"
            )


def check_stored(stored: Mapping[str, Any], source: str, trust: Sequence[str] = ()) -> None:
    """Raise ValueError if stored options name anything but trusted classes where these belong.

    The names are compared before anything is imported, and what they lead to afterwards.
    """
    packages = (*TRUSTED, *trust)
    for option, value in stored.items():
        if asked := next(_weights_asked(value, option), ""):
            raise ValueError(f"{source!r} asks for other weights ({asked}), none are read for it")
        kind, names = FACTORIES.get(option), list[str]()
        for name in _names(value, option, source):  # before what follows in the option is read
            if kind is None:
                raise ValueError(
                    f"{source!r} names {name[:80]!r} in {option}, where no class belongs"
                )
            if not _inside(name, packages):
                raise _untrusted(source, name, option, name)
            names.append(name)
        for name in names:
            try:
                thing = pkgutil.resolve_name(name)
            except (ImportError, AttributeError) as error:
                raise ValueError(f"{source!r} names {name[:80]!r} as {option}: {error}") from error
            if not isinstance(thing, type) or not issubclass(thing, kind or object):
                raise ValueError(
                    f"{source!r} names {name[:80]!r} as {option}, which is no such class"
                )
            origin = f"{thing.__module__}.{thing.__qualname__}"
            if not _inside(origin, packages):
                raise _untrusted(source, name, option, origin)


def _weights_asked(value: Any, name: str) -> Iterator[str]:
    """The options, at any depth, with which a class would read or fetch weights."""
    if name in _OF_WEIGHTS and (isinstance(value, str) or value is True) and value:
        yield name
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _weights_asked(inner, str(key))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _weights_asked(inner, "")


def check_given(value: Any, option: str) -> None:
    """Raise ValueError if a parsed option of the command line names a function, at any depth.

    A class is accepted unless it is Python's own: the parser has compared it with the option's
    type. Functions are accepted from torchvision's transforms alone, and where a class itself has
    them as its defaults.
    """
    thing = value if callable(value) and not isinstance(value, os.PathLike) else None
    if isinstance(value, dict):
        name, usual = value.get("class_path"), dict[str, Any]()
        if isinstance(name, str) and "." in name:
            thing = pkgutil.resolve_name(name)
            with suppress(TypeError, ValueError):  # no signature
                usual = {n: p.default for n, p in signature(thing).parameters.items()}
        for key, inner in value.items():
            if key == "init_args" and isinstance(inner, dict):
                inner = {n: v for n, v in inner.items() if v is None or v is not usual.get(n)}
            check_given(inner, option if key == "init_args" else f"{option}.{key}")
    elif isinstance(value, list | tuple):
        for inner in value:
            check_given(inner, option)
    if thing is None:
        return
    module = str(getattr(thing, "__module__", None))
    if isinstance(thing, type):
        accepted = module.partition(".")[0] not in sys.stdlib_module_names
    else:  # the classifier's own default optimizer is a function too
        accepted = _inside(module, FUNCTIONS)
    if not accepted:
        shown = f"{module}.{getattr(thing, '__qualname__', type(thing).__name__)}"
        raise ValueError(f"--{option} cannot be {shown}: name a class that is made for this option")


def describe(factory: Any) -> Any:
    """A class, or a partial of one, as the command line stores it: `class_path` and `init_args`.

    Raises:
        ValueError: `factory` cannot be named, such as a lambda or a local class.
    """
    if isinstance(factory, PLAIN):
        return factory
    if isinstance(factory, os.PathLike):
        return os.fspath(factory)
    if isinstance(factory, list | tuple):
        return [describe(each) for each in factory]
    if isinstance(factory, dict):
        return {key: describe(each) for key, each in factory.items()}
    given = factory.keywords if isinstance(factory, partial) else {}
    made = factory.func if isinstance(factory, partial) else factory
    if not isinstance(made, type) or (isinstance(factory, partial) and factory.args):
        shown = getattr(made, "__qualname__", type(made).__qualname__)
        raise ValueError(f"{shown} is no class, nor a partial of one with named arguments")
    path = f"{made.__module__}.{made.__qualname__}"
    if made.__module__ == "__main__" or "<" in path or pkgutil.resolve_name(path) is not made:
        raise ValueError(f"{path} cannot be imported")
    return {"class_path": path, "init_args": describe(given)}


def factory(stored: Any) -> Any:
    """What :func:`describe` has described, whose names :func:`check_stored` has found trusted."""
    if isinstance(stored, list | tuple):
        return [factory(each) for each in stored]
    if not isinstance(stored, Mapping):
        return stored
    if "class_path" not in stored:
        return {key: factory(each) for key, each in stored.items()}
    given = {**(stored.get("init_args") or {}), **(stored.get("dict_kwargs") or {})}
    return partial(pkgutil.resolve_name(stored["class_path"]), **factory(given))


def check_complete(content: Mapping[str, Any], source: str, given: Iterable[str]) -> None:
    """Raise ValueError if a checkpoint lacks an argument that is not `given` either."""
    for name, reason in content.get("not_stored", {}).items():
        if name not in given:
            raise ValueError(f"{source!r} lacks its {name} ({reason}): give it, {name}=...")


def check_fits(network: nn.Module, content: Mapping[str, Any], source: str) -> None:
    """Raise ValueError if the weights of a checkpoint do not fit `network`."""
    own, state = (
        {key: value for key, value in each.items() if key.startswith("backbone.")}
        for each in (network.state_dict(), content["state_dict"])
    )
    wrong = [name for name in own.keys() & state.keys() if own[name].shape != state[name].shape]
    lost = [*(own.keys() ^ state.keys()), *wrong]
    if not lost:
        return
    for name, what in {"num_classes": "classes", "side_size": "numbers beside each sample"}.items():
        stored = content.get("hyper_parameters", {}).get(name)
        given = getattr(network, "hparams", {}).get(name, stored)
        if (stored or 0) != (given or 0):
            raise ValueError(
                f"{source!r} was trained on {stored or 'no'} {what}, the data have "
                f"{given or 'none'}: give the data that it knows, or start from its weights with "
                "--model.checkpoint_path"
            )
    raise ValueError(
        f"{source!r} is of another network, {len(lost)} of its tensors do not fit, such as "
        f"{min(lost)}: choose the backbone, the activation and the data that it was trained with"
    )


def _names(value: Any, option: str, source: str, key: str = "") -> Iterator[str]:
    """The names of classes in a stored option, at any depth.

    A text may also be read as YAML or as the name of a file of options: such texts are refused.
    """
    if isinstance(value, Mapping):
        given = [value.get(name) or {} for name in ("init_args", "dict_kwargs")]
        if "class_path" in value and not (
            isinstance(value["class_path"], str) and all(isinstance(g, Mapping) for g in given)
        ):
            raise ValueError(f"{source!r} has {str(value)[:80]!r} in {option}, which is no class")
        # the name of a class comes before its arguments
        for name, inner in sorted(value.items(), key=lambda item: item[0] != "class_path"):
            if str(name).startswith("__"):
                raise ValueError(f"{source!r} has the reserved name {str(name)[:80]!r} in {option}")
            yield from _names(inner, option, source, str(name))
    elif isinstance(value, list | tuple | set):
        for inner in value:
            yield from _names(inner, option, source, key)
    elif isinstance(value, str):
        factory = option in FACTORIES
        if factory and key == "formula":
            try:
                parse(value)
            except ValueError as error:
                raise ValueError(f"{source!r} has in {option}: {error}") from error
            return
        unclear = not re.fullmatch(r"[\w.+/-]*", value) or os.path.isfile(value)
        if "class_path" in value or (factory and unclear):
            raise ValueError(f"{source!r} has {value[:80]!r} in {option}, which is no class")
        dotted = "." in value and all(part.isidentifier() for part in value.split("."))
        if (key == "class_path" or (factory and dotted)) and value != DEFAULT_OPTIMIZER:
            yield value
    elif not isinstance(value, PLAIN) or key == "class_path":
        raise ValueError(f"{source!r} has a {type(value).__name__} in {option}")


def _is_whole(value: Tensor) -> bool:
    """Whether a tensor has as many numbers in the file as its shape says."""
    return value.numel() * value.itemsize <= value.untyped_storage().nbytes()


def _fits(value: Any, hint: Any) -> bool:
    """Whether a stored value is of an option's type; classes are stored by name."""
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return any(_fits(value, each) for each in inner)
    if kind is Literal:
        return isinstance(value, str) and value in inner
    if kind is list:
        return isinstance(value, list | tuple) and all(_fits(each, inner[0]) for each in value)
    if kind is dict:
        return isinstance(value, Mapping) and all(_fits(each, inner[1]) for each in value.values())
    if kind is Callable:
        return isinstance(value, str | Mapping)
    if isinstance(value, bool):  # an integer to Python
        return kind in (bool, Any)
    return kind is Any or isinstance(value, (int, float) if kind is float else kind)


def _inside(path: str, packages: Sequence[str]) -> bool:
    """Whether a dotted name is one of `packages` or within one; no part of it may be `__x__`."""
    return "__" not in path and any(f"{path}.".startswith(f"{name}.") for name in packages)


def _untrusted(source: str, name: str, option: str, origin: str) -> ValueError:
    return ValueError(
        f"{source!r} names {name[:80]!r} as {option}, which is neither torch's nor this project's: "
        f"if it may run on this machine, add --trust {origin[:80].partition('.')[0]}"
    )

"""Train, validate, test or predict: `python train.py fit --help`."""

import difflib
import logging
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from inspect import signature
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import yaml
from jsonargparse import get_loader, set_loader, set_parsing_settings
from jsonargparse.typing import register_type
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import distributed, nn

import activations
import datamodules
from activations import parameter_groups
from activations.files import check_writable, is_full, replacing, system_error
from callbacks import (
    ActivationMonitor,
    ActivationSchedule,
    BestCheckpoint,
    LastCheckpoint,
    PredictionWriter,
    best_path,
    finish,
    run_summary,
)
from models import Classifier, DivergedError
from models.checkpoints import check_complete, check_fits, check_given, read_checkpoint

ROOT = Path(__file__).resolve().parent
BASE = {"default_config_files": [str(ROOT / "configs/base.yaml")]}
CRASH, SLIP, DIVERGED = 1, 2, 3  # exit codes; Python's own for a crash is 1, too
MISTAKES = (ValueError, TypeError, OSError, RuntimeError, ArithmeticError, ImportError)
MISTAKES += (MisconfigurationException,)
register_type(torch.device)  # an option of some callbacks, to be written in config.yaml
set_parsing_settings(instantiate_subclass_spec_in_any=False)
# Lightning 2.6 calls what torch deprecates, and advertises litlogger; users can change neither.
warnings.filterwarnings("ignore", message=".*LeafSpec")
logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
    lambda record: "litlogger" not in record.getMessage()
)
# Texts that jsonargparse does not promise; tests/test_slips.py fails when one has changed
KEY = re.compile(r'key "([\w.]+)"')
CLASS = re.compile(r"given class_path '([\w.]+)':\s*(.*)")
PACKAGE = re.compile(r"Requirement '([\w-]+).*not met|No module named '(\w+)'")
VALUE = re.compile(r"(?:Given value|Got value|dot import path string): ?(.*)")
OPTION = re.compile(r"(?:unrecognized arguments|ambiguous option): --?([\w.+-]+)")
UNKNOWN = re.compile(r"(?:does not accept option|Option) '([\w.]+)'")
NESTED = re.compile(r"NestedArg\(key='([\w.]+)'")
REQUIRED = re.compile(r"arguments are required: ([\w., ]+)")
NO_CLASS = "Dict must include a class_path"
TYPES = re.compile(
    r"(?:Subtypes: \[|Expected an? (?=<|typing|coll))(.*?)(?:\]$|\. Got|$)", re.MULTILINE
)
KINDS = {
    "NoneType": "null",
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "list": "a list",
    "Iterable": "a list",
    "dict": "a mapping {name: value}",
    "timedelta": "a time such as 00:12:00:00",
    "Callable": "a class",
    "Union": "",
}


class Parser(LightningArgumentParser):
    """Prints one message for a mistake on the command line, not pages of usage."""

    def add_class_arguments(self, theclass: Any, nested_key: Any = None, **options: Any) -> Any:
        """Add all but what the swap sets itself: the device and the dtype of the activations."""
        if theclass is Classifier:
            options["skip"] = {"activation.init_args.device", "activation.init_args.dtype"}
        return super().add_class_arguments(theclass, nested_key, **options)

    def format_help(self, *args: Any, **more: Any) -> str:
        """Show the default optimizer by what it is, not as a function's address."""
        default = "SGD lr 0.1, momentum 0.9, weight_decay 1e-4"
        return re.sub(
            r"<function\s+_sgd\s+at\s+0x\w+>", default, super().format_help(*args, **more)
        )

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Print one sentence for `message`, and exit with status 2."""
        parser = _inner(ex) or self
        sys.stderr.write(
            f"train.py: error: {explain(message, parser)}\nOptions: python train.py fit --help\n"
        )
        sys.exit(SLIP)


def explain(message: str, parser: Any = None) -> str:
    """One sentence for an error of jsonargparse or of a library: option, value, what is accepted.

    Args:
        message: the text of the error.
        parser: the parser of the options, or of the class, that the error is about.
    """
    key, value = KEY.search(message), VALUE.search(message)
    option = f"--{key[1]}" if key else "a value"
    given = value[1].strip() if value else ""
    packages = {"model.activation": activations, "data": datamodules}
    if own_class := re.search(r"class_path='([\w.]+)'", given):
        given = own_class[1]
    if needed := PACKAGE.search(message):
        name = needed[1] or needed[2]
        if needed[1] or not key:
            return f"{name} is not installed: pip install {name}"
        return f"{option}: there is no module {name!r}; name a class, or give its full path"
    if needed := REQUIRED.search(message):
        if needed[1].rpartition(".")[2] == "data":
            return "--data is missing: choose a data set, such as --data Digits"
        return f"the class needs arguments that are not given: {needed[1]}"
    if message.startswith("Unexpected config"):
        return f"a file of -c holds no mapping {{name: value}}: {_line(message[18:], 60)!r}"
    if "codec can't decode" in message:
        return f"a file of options is no text in UTF-8: {_line(message)}"
    if nested := NESTED.search(given):
        return f"{option} has no option {nested[1]!r}: give {_accepted(message)}"
    if key and given and (package := packages.get(key[1])) and re.fullmatch(r"\w+", given):
        known = [name for name in package.__all__ if _is_choice(getattr(package, name))]
        close = difflib.get_close_matches(given, known, n=3, cutoff=0.4) or known
        example = f"torch.nn.{given if hasattr(nn, given) else 'GELU'}"
        return (
            f"unknown {option} {given!r}; the nearest: {', '.join(close)}. Other classes "
            f"need a full path, such as {'my_data.Mine' if key[1] == 'data' else example}"
        )
    if key and NO_CLASS in message:
        return (
            f"{option} has arguments but no class: name the class first, such as "
            f"{option} {'SGD' if key[1].endswith('optimizer') else 'NAME'} {option}.lr 0.05"
        )
    if wrong := OPTION.match(message) or UNKNOWN.search(message):
        return _unknown(message, wrong[1], parser)
    if found := CLASS.search(message):
        name = found[1].rpartition(".")[2]
        problem = _line(re.split(r"\n\s*- Expected|Given value", message[found.start(2) :])[0])
        return f"{name}: {problem}"
    if "Unable to load config" in message or "parsing config" in message:
        reason = message.rpartition("  - ")[2] if "  - " in message else message
        reason = re.sub(r'Parser key "[\w.]+":|Problems? parsing config[^:]*:', "", reason)
        if key:
            return f"{option} is neither a file of options nor {{name: value}}: {_line(reason)}"
        return f"a file of -c cannot be read: {_line(reason)}"
    if key and ("Expected a" in message or "mport path" in message):
        paths = {path.rpartition(".")[2]: path for path in _subclasses(parser, option)}
        same = [path for path in _subclasses(parser, option) if path.endswith(f".{given}")]
        close = [paths[name] for name in difflib.get_close_matches(given, paths, n=3)]
        near = f"; the nearest: {', '.join(same or close)}" if same or close else ""
        shown = _line(given, 60)
        return f"{option} {shown!r} does not fit: give {_accepted(message)}{near}"
    return re.sub(r'^Parser key "([\w.]+)":\s*', r"--\1: ", _line(message))


def _unknown(message: str, name: str, parser: Any) -> str:
    """The sentence for an option that does not exist, with the options of nearly that name."""
    given = [a.partition("=")[0] for a in sys.argv if a.startswith("--")]
    full = next((a[2:] for a in given if a.endswith(f".{name}")), name)
    text = str(parser.format_help()) if parser else ""
    known: list[str] = re.findall(r"--([\w.]+)", text)
    known = [each for each in known if not each.endswith(".help")]
    known = sorted({*known, *(["model.optimizer.lr"] if "trainer.max_epochs" in known else [])})
    last = name.rpartition(".")[2]
    close = [k for k in known if k.endswith(f".{last}")] if "." in name or len(known) > 60 else []
    close = close or difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if full != name:  # an argument of a class
        close = [f"{full.removesuffix(name)}{each}" for each in close]
    dashes = "" if full == name and len(known) <= 60 else "--"  # a file names no option of a class
    near = ", ".join(f"{dashes}{each}" for each in close)
    if match := OPTION.match(message):
        return f"{message}; the nearest: {near}" if near else f"no option {match[0]}"
    nearest = f"; the nearest: {near}" if near else ""
    return f"{dashes}{full} is not accepted: there is no such option{nearest}"


def _accepted(message: str) -> str:
    """What an option takes, from the types in `message`."""
    found: list[str] = []
    types = TYPES.search(message)
    for kind in _split(types[1]) if types else []:
        if choices := re.match(r"typing\.Literal\[(.*)\]", kind):
            found += [each.strip(" '") for each in choices[1].split(",")]
            continue
        name = re.sub(r"<class '(.*)'>", r"\1", kind).partition("[")[0].rpartition(".")[2]
        found.append(KINDS.get(name, f"a class of the kind {name}" if name else ""))
    if not found and (kind := re.search(r"subclass of (\w+)", message)):
        found.append(f"a class of the kind {kind[1]}")
    *most, last = dict.fromkeys(filter(None, found)) or ["the name of a class, or its full path"]
    return f"{', '.join(most)} or {last}" if most else last


def _split(types: str) -> Iterator[str]:
    """The parts between the commas of a list that are in no brackets."""
    depth, start = 0, 0
    for position, letter in enumerate(types):
        depth += (letter == "[") - (letter == "]")
        if letter == "," and not depth:
            yield types[start:position].strip()
            start = position + 1
    yield types[start:].strip()


def _subclasses(parser: Any, option: str) -> list[str]:
    """The paths of classes that the help of `option` lists."""
    text = parser.format_help() if parser else ""
    section = re.search(rf"\n  {re.escape(option)} .*?(?=\n  --|\Z)", text, re.DOTALL)
    names = "".join((section[0] if section else "").split()).partition("knownsubclasses:")[2]
    return names.rstrip(")").split(",")


def _line(text: str, most: int = 300) -> str:
    """`text` on one line, cut to `most` characters."""
    words = " ".join(text.split())
    return words if len(words) <= most else f"{words[:most]}..."


def _inner(error: BaseException | None) -> Any:
    """The innermost parser that `error` passed through: that of the class with the wrong option."""
    parser = None
    for frame, _ in traceback.walk_tb(error.__traceback__ if error else None):
        owner = frame.f_locals.get("self")
        parser = owner if isinstance(owner, Parser) else parser
    return getattr(error, "subcommand_parser", None) or parser


def _read_yaml(text: str) -> Any:
    """Read YAML; refuse a key that is there twice, and aliases that make a small file huge."""
    if "\n" in text or "&" in text:
        root = yaml.compose(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        if root and _size(root, {}) > 10_000:
            raise yaml.YAMLError("more than 10,000 values: no file of options is so large")
    return _plain_yaml(text)


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values `node` has when its aliases are written out."""
    if id(node) not in known:
        known[id(node)] = 1  # an alias of what it is in
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in parts]
            if twice := [key for key, count in Counter(map(str, keys)).items() if count > 1]:
                line = node.start_mark.line + 1
                raise yaml.YAMLError(f"{twice[0]!r} is there twice in the mapping at line {line}")
            parts = [value for _, value in parts]
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]


_plain_yaml = get_loader("yaml")
set_loader("yaml", _read_yaml, (yaml.YAMLError,))


class SaveConfig(SaveConfigCallback):
    """Writes config.yaml into the folder of a training run."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write nothing unless `fit` runs with a logger: only then the run has a folder."""
        if stage != "fit" or not trainer.loggers or not (folder := trainer.log_dir):
            return
        file, self.config = Path(folder) / "config.yaml", self.config.clone()
        here = Path(self.config.get("ckpt_path") or "").resolve()
        if here.is_relative_to(file.parent.resolve()):  # the run goes on in its folder
            self.config.ckpt_path = None
        elif trainer.strategy.broadcast(file.exists()):
            raise ValueError(
                f"{folder} holds another run: resume it with --ckpt_path "
                f"{folder}/checkpoints/last.ckpt, or choose another version or name of the logger"
            )
        self.overwrite = True
        with replacing(file) if trainer.is_global_zero else nullcontext(file) as unfinished:
            self.config_filename = unfinished.name
            super().setup(trainer, pl_module, stage)


class Progress(TQDMProgressBar):
    """A bar in a terminal; elsewhere, such as in a log file, one line an epoch.

    Args:
        refresh_rate: steps between two updates; for each update the CPU waits for the GPU.
    """

    def __init__(self, refresh_rate: int = 20) -> None:
        super().__init__(refresh_rate)
        if not sys.stdout.isatty():
            self.disable()

    def enable(self) -> None:
        """Show the bar in a terminal; Lightning's finders of a rate or a batch size call this."""
        if sys.stdout.isatty():
            super().enable()

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Add the training loss; logged with `prog_bar=True` it would be read at every step."""
        loss = trainer.callback_metrics.get("train/loss")
        shown = {} if loss is None else {"train/loss": loss.item()}
        return shown | super().get_metrics(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the epoch's line if there is no bar."""
        if not self.is_disabled:
            super().on_train_epoch_end(trainer, pl_module)
        elif trainer.is_global_zero and not sys.stdout.isatty():
            metrics = self.get_metrics(trainer, pl_module).items()
            found = [f"{name} {value:.4g}" for name, value in metrics if isinstance(value, float)]
            print(f"epoch {trainer.current_epoch}: {', '.join(found)}", flush=True)


class CLI(LightningCLI):
    """The model is always Classifier; data, activation, optimizer and callbacks are chosen."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Only the one asked for, if it is known: each takes a quarter of a second to set up."""
        known = LightningCLI.subcommands()
        for skipped in known.values():  # with weights_only: false a file could run code
            skipped.add("weights_only")
        return {name: known[name] for name in sys.argv[1:2] if name in known} or known

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link the data's properties to the model, and add the callbacks that are always on."""
        for name in ("num_classes", "in_channels", "image_size", "dims"):
            parser.link_arguments(f"data.{name}", f"model.{name}", apply_on="instantiate")
        parser.add_lightning_class_args(BestCheckpoint, "checkpoint")
        parser.add_lightning_class_args(LastCheckpoint, "last_checkpoint")
        parser.add_lightning_class_args(ActivationSchedule, "schedule")
        parser.add_lightning_class_args(ActivationMonitor, "monitor")
        parser.add_lightning_class_args(PredictionWriter, "predictions")
        parser.add_lightning_class_args(Progress, "progress")
        self.callback_keys = [*getattr(self, "callback_keys", ()), parser.callback_keys]
        parser.add_argument(
            "--test_after_fit", type=bool, default=False, help="Test the best checkpoint after fit."
        )

        parser.add_argument(
            "--trust",
            action="append",
            type=str,
            default=[],
            help="A package whose classes a checkpoint may name; can be repeated.",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Check the checkpoint before Lightning takes options from it, which imports classes."""
        super().parse_arguments(parser, args)
        subcommand, self.checkpoint = str(self.config.subcommand), None
        config = self.config[subcommand]
        path = config.ckpt_path
        if path in (None, "", "best", "last", "hpc", "registry"):
            return
        known = read_checkpoint(path, signature(Classifier).parameters, config.trust)
        if subcommand == "fit" and "optimizer_states" not in known:
            raise ValueError(
                f"{str(path)!r} holds weights alone, from which no run can be resumed: start a new "
                "one from them with --model.checkpoint_path"
            )
        default = self._parser(subcommand).get_defaults().model
        given = {name for name, value in config.model.items() if value != default.get(name)}
        unused = set[str]() if subcommand == "fit" else {"optimizer", "lr_scheduler"}
        check_complete(known, str(path), given | unused)
        self.checkpoint = known

    def before_instantiate_classes(self) -> None:
        """Check the command, and name the run's folder <data>-<backbone>-<activation>."""
        config = self.config[str(self.subcommand)]
        path = config.ckpt_path
        if self.subcommand != "fit" and path is None:
            raise ValueError(f"{self.subcommand} needs trained weights: --ckpt_path best.ckpt")
        if path is not None and not path:
            raise ValueError("--ckpt_path is empty: name a file, or leave the option out")
        for name in ("trainer", "model"):
            if config[name] is None:
                raise ValueError(f"{name}: null leaves no options: name some, or leave it out")
        for name, value in config.items():
            if isinstance(value, int) and abs(value) >= 2**63:
                raise ValueError(f"--{name} {value} is too large: give a number below 2**63")
        for name in ("checkpoint", "last_checkpoint"):
            if config[name].monitor == "":
                raise ValueError(f"--{name}.monitor is empty: name a metric, such as val/acc")
        for option in ("model", "data", "trainer"):
            check_given(config.as_dict().get(option), option)
        trainer, off = config.trainer, set[str]()
        for name in ("accumulate_grad_batches", "check_val_every_n_epoch", "val_check_interval"):
            if isinstance(given := trainer[name], int | float) and given <= 0:
                raise ValueError(f"--trainer.{name} must be above 0, got {given}")
        if trainer.barebones:  # takes none of these
            trainer.logger, trainer.log_every_n_steps = False, 0
            off |= {"checkpoint", "last_checkpoint", "progress", "monitor"}
        if trainer.enable_checkpointing is False or trainer.fast_dev_run:
            off |= {"checkpoint", "last_checkpoint"}
        callbacks = trainer.callbacks or []
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        own_bar = any("ProgressBar" in each.class_path for each in callbacks)
        if trainer.enable_progress_bar is False or own_bar:
            off.add("progress")
        for keys in self.callback_keys:
            keys[:] = [name for name in keys if name not in off]
        arguments = getattr(trainer.logger, "init_args", None)
        if arguments is not None and arguments.get("name", "") is None:
            chosen = (config.data, config.model.activation)
            data, activation = (getattr(c, "class_path", "own").rpartition(".")[2] for c in chosen)
            arguments.name = f"{data}-{config.model.backbone.replace('/', '_')}-{activation}"
        self.given = trainer.clone()  # as config.yaml will have it
        if str(getattr(trainer.logger, "class_path", "")).endswith(".TensorBoardLogger"):
            self._choose_folder(config, arguments)

    def _choose_folder(self, config: Any, arguments: Any) -> None:
        """A resumed run goes on in its own folder, and its tests are inside; others have none."""
        path = Path(config.ckpt_path or "").absolute()
        run, last = path.parent.parent, f"{config.last_checkpoint.filename}.ckpt"
        if self.subcommand in ("validate", "predict"):
            config.trainer.logger = False  # all that they tell is printed, or in a file
        elif path.parent.name != "checkpoints" or not (run / "config.yaml").is_file():
            return
        elif self.subcommand == "test":
            arguments.save_dir, arguments.name = os.path.relpath(run), ""
            arguments.version = "test"
        elif path.name == last and config.last_checkpoint.dirpath is None:
            arguments.save_dir = os.path.relpath(run.parent.parent)
            arguments.name, arguments.version = run.parent.name, run.name

    def after_instantiate_classes(self) -> None:
        """Refuse a checkpoint or a folder that does not serve, and too many processes."""
        self.config[str(self.subcommand)].trainer = self.given
        if self.trainer.loggers or self.subcommand == "fit":
            folders = [logger.save_dir for logger in self.trainer.loggers if logger.save_dir]
            for folder in folders or [self.trainer.default_root_dir]:
                check_writable(Path(folder))
        if self.subcommand == "fit":
            try_optimizer(self.model)
        if self.checkpoint:
            path = self.config[str(self.subcommand)].ckpt_path
            check_fits(self.model, self.checkpoint, str(path))
            self.checkpoint = None
        cores, asked = os.cpu_count() or 1, self.trainer.num_devices
        if isinstance(self.trainer.accelerator, CPUAccelerator) and asked > cores:
            raise ValueError(
                f"--trainer.devices {asked}: no GPU is in use here, and the CPU has {cores} cores; "
                f"ask for at most {cores}"
            )

    def before_fit(self) -> None:
        """With `--test_after_fit true`, check that there is something to test, before training."""
        if not is_overridden("train_dataloader", self.datamodule, LightningDataModule):
            raise ValueError(
                f"--data {type(self.datamodule).__name__} has no train_dataloader: choose a data "
                "set, such as Digits, or add the method"
            )
        if self.config[str(self.subcommand)].test_after_fit:
            if not is_overridden("test_dataloader", self.datamodule, LightningDataModule):
                raise ValueError(
                    f"--test_after_fit: {type(self.datamodule).__name__} has no test_dataloader; "
                    "leave the option out, or add the method"
                )
            self.datamodule.will_test = True

    def after_fit(self) -> None:
        """Test the best checkpoint, if asked to, and print results and paths."""
        trainer, config = self.trainer, self.config[str(self.subcommand)]
        finished = finish(trainer, self.model)
        if config.test_after_fit:
            # without a checkpoint, as in a fast_dev_run, the weights at the end are tested
            path = best_path(trainer) or None
            trainer.test(self.model, datamodule=self.datamodule, ckpt_path=path, verbose=False)
        summary = run_summary(trainer, "test" if config.test_after_fit else "val")
        if trainer.is_global_zero:
            print(f"{summary}{finished}")


def try_optimizer(model: Classifier) -> None:
    """Make the optimizer for small tensors, and take one step.

    Raises:
        ValueError: it refuses its arguments, or needs what this training does not give, such as a
            closure (LBFGS) or sparse gradients (SparseAdam).
    """
    groups = parameter_groups(
        nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), activations.CosLU()),
        activation_weight_decay=model.activation_weight_decay,
    )
    for parameter in (each for group in groups for each in group["params"]):
        parameter.grad = torch.ones_like(parameter)
    try:
        model.optimizer(groups).step()
    except Exception as error:
        raise ValueError(f"--model.optimizer cannot work here: {_line(str(error))}") from error


def _is_choice(thing: Any) -> bool:
    bases = (activations.Activation, datamodules.ImageDataModule)
    return isinstance(thing, type) and issubclass(thing, bases) and thing not in bases


def main(args: list[str] | None = None) -> None:
    """Run the command line `args`, by default this program's own; README lists the exit codes.

    Errors that this project raises are printed without traceback.
    """
    own, handlers = sys.argv, {}
    for each in own[1:] if args is None else args:
        if (file := Path(each.rpartition("=")[2])).is_fifo():  # reading it would wait for ever
            sys.stderr.write(f"train.py: error: {str(file)!r} is a pipe, not a file\n")
            sys.exit(SLIP)
    if args is not None:
        sys.argv = [str(ROOT / "train.py"), *args]  # processes of several GPUs start by it too
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            handlers[number] = signal.signal(number, _leave)
    try:
        CLI(
            Classifier,
            LightningDataModule,
            save_config_callback=SaveConfig,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            parser_class=Parser,
            parser_kwargs=dict.fromkeys(CLI.subcommands(), BASE),
        )
    except MISTAKES as error:
        # before the first batch, a library that refuses its arguments refuses the user's options
        file = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        refused = isinstance(error, MisconfigurationException) or not _begun(error)
        refused |= file.parent.parts[-3:] == ("lightning", "pytorch", "callbacks")
        mistake = next(_raised_here(error), error if refused else None)
        system = system_error(error)
        full = system is not None and is_full(system)
        if not (mistake or full) or os.environ.get("SUPPLE_TRACEBACK"):
            raise
        text = str(mistake)
        if mistake is error and next(_raised_here(error), None) is None:
            text = explain(text) or f"{type(error).__name__} without a message"
        if full and mistake in (None, error):
            text = f"{system}: make room there, or choose another folder"
        sys.stderr.write(f"train.py: error: {text} [SUPPLE_TRACEBACK=1 shows the traceback]\n")
        diverged = isinstance(mistake, DivergedError)
        sys.exit(CRASH if full else DIVERGED if diverged else SLIP)
    finally:
        sys.argv = own
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()  # else its threads may end the interpreter by abort


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _begun(error: BaseException) -> bool:
    """Whether a batch had been run when `error` was raised."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        trainer: Any = frame.f_locals.get("self")
        if isinstance(trainer, Trainer) and hasattr(trainer, "fit_loop"):  # else half made
            fit = trainer.fit_loop.epoch_loop
            others = (fit.val_loop, trainer.validate_loop, trainer.test_loop, trainer.predict_loop)
            return any(loop.batch_progress.current.ready for loop in (fit, *others))
    return False


def _raised_here(error: BaseException | None) -> Iterator[BaseException]:
    """Of `error` and its causes, those that this project raised."""
    while error:
        if frames := traceback.extract_tb(error.__traceback__):
            file = Path(frames[-1].filename)
            if file.is_relative_to(ROOT) and "site-packages" not in file.parts:
                yield error
        error = error.__cause__ or error.__context__


if __name__ == "__main__":
    main()

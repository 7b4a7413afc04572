"""Train, validate, test, predict or export: `python train.py fit --help`."""
# ruff: noqa: E402

import gc

gc.disable()  # imports make a million objects that stay: looking for garbage is a quarter of them
import json
import logging
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import suppress
from inspect import signature
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar, Literal, cast

import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    LearningRateFinder,
    WeightAveraging,
)
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import distributed
from torch.nn.modules.batchnorm import _BatchNorm

from activations.files import check_writable, is_full, naming, replacing, system_error
from callbacks import (
    ActivationMonitor,
    ActivationSchedule,
    BestCheckpoint,
    HeadFirst,
    LastCheckpoint,
    PredictionWriter,
    Progress,
    Results,
    best_path,
    finish,
    run_details,
    run_results,
    run_summary,
)
from callbacks.lightning_private import callbacks_of, forget_averages, spawns
from callbacks.machine import keep_memory
from callbacks.record import run_folder
from datamodules import *  # noqa: F403 - so that its classes have short names
from models import Classifier, DivergedError
from models.checkpoints import (
    check_complete,
    check_fits,
    check_given,
    read_checkpoint,
    read_file,
)
from models.network import find, has_ended
from options import SLIP, Parser, explain, parsable, parse_yaml

gc.enable()
gc.freeze()  # nor is it looked for among them later

ROOT = Path(__file__).resolve().parent
BASE = {"default_config_files": [str(ROOT / "configs/base.yaml")]}
ABOUT = (
    "Train, validate and test networks and predict with them. A trained network becomes files for "
    "other programs by one more command: python train.py export --help"
)
SPLITTING = (DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy)
TYPED_PLACE = re.compile(
    r"--trainer\.(?:logger\.)?(?:init_args\.)?(save_dir|name|version|default_root_dir)\b"
)
TESTED = "data.yaml"  # in the folder of a test: its weights and data
_SPLITS = ("protocol", "split_seed", "val_fraction", "test_fraction", "val_records",
           "test_records", "patient")  # fmt: skip
_OF_SWAP = {"share": "site", "match": False, "include": "*", "exclude": None,
            "include_kinds": None}  # fmt: skip
UNDECIDING = {"batch_size", "eval_batch_size", "workers", "cache_dir", "download"}
CRASH, DIVERGED = 1, 3  # exit codes; Python's own for a crash is 1, too
MISTAKES = (ValueError, TypeError, OSError, RuntimeError, ArithmeticError, ImportError)
MISTAKES += (MisconfigurationException,)
# Lightning 2.6 calls what torch deprecates, and advertises litlogger; users can change neither.
warnings.filterwarnings("ignore", message=".*LeafSpec")
# of a test: the weights in the checkpoint are the averaged ones
warnings.filterwarnings("ignore", message="You're using the WeightAveraging callback, but loading")
logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
    lambda record: "litlogger" not in record.getMessage()
)


class SaveConfig(SaveConfigCallback):
    """Writes config.yaml into the folder of a training run."""

    written = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a folder that holds another run, before anything of it is touched.

        Nothing is written yet: until its first batch a run may be refused, and leaves no folder.
        """
        folder = run_folder(trainer) if trainer.loggers and stage == "fit" else None
        here = Path(self.config.get("ckpt_path") or "").resolve()
        if folder is None or here.is_relative_to(folder.resolve()):
            return
        if trainer.strategy.broadcast((folder / "config.yaml").exists()):
            raise ValueError(
                f"{folder} holds another run: resume it with --ckpt_path "
                f"{folder}/checkpoints/last.ckpt, or choose another version or name of the logger"
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to replace the last checkpoint of another run."""
        here = Path(self.config.get("ckpt_path") or "").resolve()
        for each in callbacks_of(trainer, LastCheckpoint):
            other = each.path.exists() and each.path.resolve().parent != here.parent
            if trainer.strategy.broadcast(other):
                raise ValueError(
                    f"{each.path} is of another run: resume it with --ckpt_path {each.path}, or "
                    "choose another --last_checkpoint.dirpath"
                )

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Write it, if there is a logger: only then the run has a folder."""
        folder = run_folder(trainer) if trainer.loggers and not self.written else None
        self.written = True
        if folder is None:
            return
        file, self.config = folder / "config.yaml", self.config.clone()
        here = Path(self.config.get("ckpt_path") or "").resolve()
        if here.is_relative_to(folder.resolve()):  # the run goes on in its folder
            self.config.ckpt_path = None
        if trainer.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
            with replacing(file) as unfinished:
                name = str(unfinished.absolute())
                self.parser.save(
                    self.config, name, skip_none=False, overwrite=True, multifile=False
                )


class CountingTrainer(Trainer):
    """Lightning's Trainer, for which 1 is one batch and 1.0 are all.

    `typing` may give back `float | int` for `int | float`, by which the parser read 1 as 1.0.
    """

    def __init__(
        self,
        *args: Any,
        limit_train_batches: int | float | None = None,
        limit_val_batches: int | float | None = None,
        limit_test_batches: int | float | None = None,
        limit_predict_batches: int | float | None = None,
        overfit_batches: int | float = 0.0,
        **kwargs: Any,
    ) -> None:
        limits = {name: value for name, value in locals().items() if name.endswith("_batches")}
        super().__init__(*args, **limits, **kwargs)


class CLI(LightningCLI):
    """The model is always Classifier; data, activation, optimizer and callbacks are chosen."""

    claimed: ClassVar[list[Path]] = []  # the new folder of a run, and those that it is in

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Only the one asked for, if it is known: each takes a quarter of a second to set up."""
        known = LightningCLI.subcommands()
        for skipped in known.values():  # with weights_only: false a file could run code
            skipped.add("weights_only")
        return {name: known[name] for name in sys.argv[1:2] if name in known} or known

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link the data's properties to the model, and add the callbacks that are always on."""
        for name in ("num_classes", "in_channels", "image_size", "dims", "side_size"):
            parser.link_arguments(f"data.{name}", f"model.{name}", apply_on="instantiate")
        parser.add_lightning_class_args(BestCheckpoint, "checkpoint")
        parser.add_lightning_class_args(LastCheckpoint, "last_checkpoint")
        parser.add_lightning_class_args(ActivationSchedule, "schedule")
        parser.add_lightning_class_args(ActivationMonitor, "monitor")
        parser.add_lightning_class_args(PredictionWriter, "predictions")
        parser.add_lightning_class_args(Progress, "progress")
        parser.add_lightning_class_args(Results, "results")
        self.callback_keys = [*getattr(self, "callback_keys", ()), parser.callback_keys]
        parser.add_argument(
            "--test_after_fit",
            type=bool | Literal["last", "best", "both"],
            default=False,
            help="Test the last weights, the best checkpoint (true), or both after fit.",
        )

        cast(Parser, parser).add_trust()

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Check the checkpoint before Lightning takes options from it, which imports classes."""
        Parser.source = ""
        super().parse_arguments(parser, args)
        subcommand, self.checkpoint = str(self.config.subcommand), None
        config = self.config[subcommand]
        path = config.ckpt_path
        if path in ("best", "last", "registry") or (path == "hpc" and subcommand != "fit"):
            what = "run that shall go on" if subcommand == "fit" else "run"
            raise ValueError(
                f"--ckpt_path {path}: name the file or the folder of the {what}, such as "
                "--ckpt_path runs/NAME/version_0/checkpoints/last.ckpt"
            )
        if path in (None, "", "hpc"):
            return
        if Path(path).is_dir():  # of a run
            place = expanded(config.last_checkpoint.dirpath or Path(path, "checkpoints"))
            last = Path(place, f"{config.last_checkpoint.filename}.ckpt")
            path = config.ckpt_path = str(last if subcommand == "fit" else find(path))
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
        self.checkpoint, Parser.source = known, str(path)

    def before_instantiate_classes(self) -> None:
        """Check the command, and name the run's folder <data>-<backbone>-<activation>."""
        Parser.source = ""
        config = self.config[str(self.subcommand)]
        path = config.ckpt_path
        if self.subcommand != "fit" and path is None:
            raise ValueError(f"{self.subcommand} needs trained weights: --ckpt_path best.ckpt")
        if path is not None and not path:
            raise ValueError("--ckpt_path is empty: name a file, or leave the option out")
        for name in ("trainer", "model"):
            if config[name] is None:
                raise ValueError(f"{name}: null leaves no options: name some, or leave it out")
        if self.checkpoint:  # the parser read the class names in it as YAML; a fit takes them anew
            config.model.data = None
        for name, value in config.items():
            if isinstance(value, int) and abs(value) >= 2**63:
                raise ValueError(f"--{name} {value} is too large: give a number below 2**63")
        for name in ("checkpoint", "last_checkpoint"):
            if config[name].monitor == "":
                raise ValueError(f"--{name}.monitor is empty: name a metric, such as val/acc")
        for option in ("model", "data", "trainer"):
            check_given(config.as_dict().get(option), option)
        named = config.model.activation or config.model.activation_by_site
        for name, usual in _OF_SWAP.items():
            if self.subcommand == "fit" and not named and config.model[name] != usual:
                rank_zero_warn(
                    f"--model.{name} has no effect without --model.activation: the network keeps "
                    "its own activations"
                )
        trainer, off = config.trainer, set[str]()
        for name in ("accumulate_grad_batches", "check_val_every_n_epoch", "val_check_interval"):
            if isinstance(given := trainer[name], int | float) and given <= 0:
                raise ValueError(f"--trainer.{name} must be above 0, got {given}")
        if trainer.barebones:  # takes none of these
            trainer.logger, trainer.log_every_n_steps = False, 0
            off |= {"checkpoint", "last_checkpoint", "progress", "monitor", "results"}
        if trainer.enable_checkpointing is False or trainer.fast_dev_run:
            off |= {"checkpoint", "last_checkpoint"}
        callbacks = trainer.callbacks or []
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        for each in callbacks:  # a training by batches of that size begins before it fails
            first_size = (each.get("init_args") or {}).get("init_val")
            if isinstance(first_size, int) and first_size < 1:
                name = each.class_path.rpartition(".")[2]
                raise ValueError(f"{name}: init_val must be an integer >= 1, got {first_size}")
        own_bar = any("ProgressBar" in each.class_path for each in callbacks)
        if trainer.enable_progress_bar is False or own_bar:
            off.add("progress")
        for keys in self.callback_keys:
            keys[:] = [name for name in keys if name not in off]
        chosen = (config.data, config.model.activation)
        data, activation = (getattr(c, "class_path", "own").rpartition(".")[2] for c in chosen)
        name = f"{data}-{config.model.backbone.replace('/', '_')}-{activation}"
        given = trainer.logger
        loggers: list[Any] = given if isinstance(given, list) else [given]
        of_loggers = [each.init_args for each in loggers if getattr(each, "init_args", None)]
        places = [(trainer, "default_root_dir"), *((each, "save_dir") for each in of_loggers)]
        places += [(config[name], "dirpath") for name in ("checkpoint", "last_checkpoint")]
        for options, option in places:  # loggers do so, checkpoints do not
            if isinstance(place := options.get(option), str | os.PathLike):
                options[option] = expanded(place)
        for each in of_loggers:
            if trainer.default_root_dir and each.get("save_dir") == "runs":
                each.save_dir = str(trainer.default_root_dir)  # as Lightning's own logger does
            if each.get("name", "") is None:
                each.name = name
        self.given = trainer.clone()  # as config.yaml will have it
        first = next(iter(loggers), None)  # in its folder are the files of the run
        path, arguments = str(getattr(first, "class_path", "")), getattr(first, "init_args", None)
        if path.endswith(".TensorBoardLogger"):
            self._choose_folder(config, arguments)
        run = Path(config.ckpt_path or "").absolute().parent.parent
        changed = other_splits(run, config.data) if self.subcommand in ("test", "validate") else []
        if changed:
            rank_zero_warn(
                f"the {'test' if self.subcommand == 'test' else 'validation'} set may hold samples "
                "on which the network was trained, since these options of the data were others "
                f"then: {'; '.join(changed)}"
            )
        own = path.endswith((".TensorBoardLogger", ".CSVLogger")) and self.subcommand == "fit"
        claims = not (trainer.fast_dev_run or cast(Any, rank_zero_only).rank)
        if own and claims and arguments and arguments.version is None:
            save_dir = Path(arguments.save_dir)
            there = [each for each in (save_dir, *save_dir.parents) if each.exists()]
            path = claim(save_dir, str(arguments.name or ""))
            arguments.version = path.name
            CLI.claimed = [each for each in (path, *path.parents) if each not in there]

    tested: Any = None  # the data of a test inside a run

    def _choose_folder(self, config: Any, arguments: Any) -> None:
        """A resumed run goes on in its own folder, and its tests are inside; others have none."""
        path = Path(config.ckpt_path or "").absolute()
        run, last = path.parent.parent, f"{config.last_checkpoint.filename}.ckpt"
        typed = {found[1] for word in sys.argv if (found := TYPED_PLACE.match(word))}
        if self.subcommand in ("validate", "predict"):
            config.trainer.logger = False  # all that they tell is printed, or in a file
        elif path.parent.name != "checkpoints" or not (run / "config.yaml").is_file():
            return
        elif self.subcommand == "test":
            if not typed:
                arguments.save_dir, arguments.name = os.path.relpath(run), ""
                self.tested = about_test(path, config.data)
                arguments.version = folder_of_test(run, self.tested)
        elif path.name == last and config.last_checkpoint.dirpath is None:
            if is_elsewhere(run.resolve(), arguments, typed):
                return
            arguments.save_dir = os.path.relpath(run.parent.parent)
            arguments.name, arguments.version = run.parent.name, run.name

    def after_instantiate_classes(self) -> None:
        """Refuse data, a checkpoint or a folder that does not serve, and too many processes."""
        for name in ("num_classes", "in_channels", "image_size"):
            if getattr(self.datamodule, name, None) is None:
                raise ValueError(
                    f"--data {type(self.datamodule).__name__} has no {name}, by which the network "
                    "is built: give the class this attribute (docs/tutorials/own_modules.md), or "
                    "choose a data set, such as Digits"
                )
        self.config[str(self.subcommand)].trainer = self.given
        callbacks: list[Any] = cast(Any, self.trainer).callbacks
        callbacks[:] = [
            HeadFirst(like=each) if type(each) is BackboneFinetuning else each for each in callbacks
        ]
        if self.subcommand == "fit" and self.checkpoint:
            self._leave_out_finders(callbacks, self.checkpoint)
        if self.trainer.loggers or self.subcommand == "fit":
            folders = [logger.save_dir for logger in self.trainer.loggers if logger.save_dir]
            for folder in folders or [self.trainer.default_root_dir]:
                check_writable(Path(folder))
        if self.subcommand == "fit":
            self.model.try_optimizer(self.trainer.strategy.root_device)
            self._check_averages_and_norms()
        if self.checkpoint:
            path = self.config[str(self.subcommand)].ckpt_path
            check_fits(self.model, self.checkpoint, str(path))
            self._compare_data(self.checkpoint.get("hyper_parameters", {}).get("data") or {})
            self.checkpoint = None
        if isinstance(self.trainer.strategy, SPLITTING):
            raise ValueError(
                f"--trainer.strategy: {type(self.trainer.strategy).__name__} splits parameters "
                "among processes, whose norms and learned functions are then not known: choose ddp"
            )
        if spawns(self.trainer):
            raise ValueError(
                f"--trainer.strategy {self.config[str(self.subcommand)].trainer.strategy}: its "
                "processes keep their results to themselves: choose the one without spawn or fork, "
                "such as ddp"
            )
        cores, asked = os.cpu_count() or 1, self.trainer.num_devices
        if isinstance(self.trainer.accelerator, CPUAccelerator) and asked > cores:
            raise ValueError(
                f"--trainer.devices {asked}: no GPU is in use here, and the CPU has {cores} cores; "
                f"ask for at most {cores}"
            )

    def _leave_out_finders(self, callbacks: list[Any], known: dict[str, Any]) -> None:
        """Let a resumed run go on with what was found; the finders would train it anew."""
        state = known.get(type(self.datamodule).__qualname__) or {}
        for each in list(callbacks):
            if isinstance(each, LearningRateFinder):
                callbacks.remove(each)
                rank_zero_info("LearningRateFinder is left out: the checkpoint has the rate")
            elif isinstance(each, BatchSizeFinder) and isinstance(state.get("size"), int):
                callbacks.remove(each)
                size = state["size"] // self.trainer.world_size
                self.datamodule.batch_size = size
                rank_zero_info(f"BatchSizeFinder is left out: it had found a batch_size of {size}")

    def _check_averages_and_norms(self) -> None:
        """Refuse what Lightning would do without a word: lose averages, or drop activations."""
        config = self.config[str(self.subcommand)]
        for name in ("checkpoint", "last_checkpoint"):
            if callbacks_of(self.trainer, WeightAveraging) and config[name].save_weights_only:
                raise ValueError(
                    f"--{name}.save_weights_only would store the weights of the training, not the "
                    "averaged ones that are validated and tested: leave it out"
                )
        modules = self.model.backbone.named_modules()
        norms = [name for name, m in modules if isinstance(m, _BatchNorm) and any(m.children())]
        if norms and config.trainer.sync_batchnorm and self.trainer.world_size > 1:
            raise ValueError(
                f"--trainer.sync_batchnorm would drop the activations that are part of {norms[0]} "
                f"and {len(norms) - 1} other normalisations: leave it out"
            )

    def _compare_data(self, known: dict[str, Any]) -> None:
        """Warn if samples are prepared in another way than for training, of which `known` tells."""
        mine = getattr(self.datamodule, "description", None) or {}
        both = (known.keys() & mine.keys()) - {"name", "lead", "step"}
        changed = [
            f"{key} {known[key]}, now {mine[key]}" for key in both if known[key] != mine[key]
        ]
        beats = all("representation" in each for each in (known, mine))
        if beats and ("window" in known) != ("window" in mine):
            cut = [f"window {each.get('window', '(beats came cut out)')}" for each in (known, mine)]
            changed.append(", now ".join(cut))
        if changed:
            rank_zero_warn(
                f"the network was trained on other data: {'; '.join(sorted(changed))}. Give the "
                "options of the training with --data, unless you want to know what that does"
            )

    def before_fit(self) -> None:
        """With `--test_after_fit`, check that there is something to test, before training."""
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
        """Test what was asked for, write the results, and print them with the paths."""
        trainer, asked = self.trainer, self.config[str(self.subcommand)].test_after_fit
        finished = finish(trainer, self.model)
        results = callbacks_of(trainer, Results)
        forget_averages(trainer)
        chosen = {False: [], True: ["best"], "both": ["last", "best"]}.get(asked, [asked])
        if "best" in chosen and not best_path(trainer) and not vars(trainer).get("fast_dev_run"):
            rank_zero_warn(
                "no best checkpoint was saved (no epoch was validated, checkpoint.save_top_k is 0, "
                "or trainer.enable_checkpointing false): the last weights are tested"
            )
            chosen = ["last"]
        lines = [run_results(trainer, "val")] if not chosen else []
        for which in chosen:
            self.model.tested = which if len(chosen) > 1 else ""
            for each in results:
                each.testing = which
            # without a checkpoint, as in a fast_dev_run, the weights at the end are tested
            path = best_path(trainer) or None if which == "best" else None
            if path:
                read_file(path)  # its checksums, which Lightning does not compare
            trainer.test(self.model, datamodule=self.datamodule, ckpt_path=path, verbose=False)
            if path and not has_ended(self.model.backbone):
                rank_zero_warn(
                    "the best checkpoint is of the middle of a schedule: its functions are not yet "
                    "what they become. --test_after_fit last tests those"
                )
            lines += [run_results(trainer, "test", self.model.tested), *run_details(trainer)]
        for each in results:
            each.write("ok", "", trainer)
        summary = run_summary(trainer, lines)
        if trainer.is_global_zero:
            print(f"{summary}{finished}")

    def before_test(self) -> None:
        """Note of which weights and data the test is."""
        folder = run_folder(self.trainer) if self.trainer.loggers else None  # all must ask for it
        if folder and self.tested and self.trainer.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
            with replacing(folder / TESTED) as unfinished:
                unfinished.write_text(yaml.safe_dump(self.tested, sort_keys=False))

    def after_test(self) -> None:
        """Print what the data report besides the metrics."""
        for each in callbacks_of(self.trainer, Results):
            if each.report and self.trainer.is_global_zero:
                print(each.report)


def is_elsewhere(run: Path, arguments: Any, typed: set[str]) -> bool:
    """Whether a logger's options that were typed name another folder than that of a run."""
    place = Path(arguments.save_dir)
    if "name" in typed and (place / (arguments.name or "")).resolve() != run.parent:
        return True
    # without its own option the name is made of others, which a checkpoint may know better
    places = (place, place / (arguments.name or ""), place / run.parent.name)
    placed = typed & {"save_dir", "default_root_dir"} and "name" not in typed
    if placed and run.parent not in (each.resolve() for each in places):
        return True
    number = str(arguments.version).removeprefix("version_")
    return "version" in typed and number != run.name.removeprefix("version_")


def about_test(checkpoint: Path, data: Any) -> dict[str, Any]:
    """Which weights are tested on what: options that decide nothing are left out."""
    spec = json.loads(json.dumps(data.as_dict(), default=str))
    options = {n: v for n, v in (spec.get("init_args") or {}).items() if n not in UNDECIDING}
    if isinstance(root := options.get("root"), str):
        options["root"] = os.path.abspath(os.path.expanduser(root))
    return {"checkpoint": checkpoint.name, "data": {**spec, "init_args": options}}


def expanded(place: str | os.PathLike[str]) -> str:
    """A path with the variables and the home that it names."""
    return os.path.expandvars(os.path.expanduser(place))


def other_splits(run: Path, data: Any) -> list[str]:
    """The options by which a data set is divided that are not those of a run on the same set."""
    with suppress(OSError, yaml.YAMLError, KeyError, TypeError, AttributeError):
        known = parse_yaml((run / "config.yaml").read_text())["data"]
        mine = data.as_dict()
        if known["class_path"].rpartition(".")[2] != mine["class_path"].rpartition(".")[2]:
            return []
        old, new = known.get("init_args") or {}, mine.get("init_args") or {}
        return [
            f"{name} {old[name]}, now {new[name]}"
            for name in _SPLITS
            if name in old.keys() & new.keys() and plain(old[name]) != plain(new[name])
        ]
    return []


def plain(value: Any) -> Any:
    """A value as YAML and the command line have it alike."""
    return list(value) if isinstance(value, tuple) else value


def folder_of_test(run: Path, tested: dict[str, Any]) -> str:
    """The name of the folder in `run` for a test: one of other weights or data keeps its own."""
    number = 0
    while (run / (name := f"test_{number}" if number else "test")).exists():
        with suppress(OSError, yaml.YAMLError):
            if parse_yaml((run / name / TESTED).read_text()) == tested:
                break
        number += 1
    return name


def claim(save_dir: Path, name: str) -> Path:
    """Make `version_<n>` in `save_dir/name`, with the next free n: a folder for this run alone."""
    folder = save_dir / name
    found = (each.name.removeprefix("version_") for each in folder.glob("version_*"))
    number = max((int(each) for each in found if each.isdecimal()), default=-1)
    while True:
        number += 1
        with naming(save_dir), suppress(FileExistsError):
            (path := folder / f"version_{number}").mkdir(parents=True)
            return path


def main(args: list[str] | None = None, cli: type[CLI] = CLI) -> None:
    """Run the command line `args`, by default this program's own; README lists the exit codes.

    Errors that this project raises are printed without traceback.

    Args:
        args: what is typed after `python train.py`.
        cli: the class that runs it.
    """
    own, handlers = sys.argv, {}
    for each in own[1:] if args is None else args:
        file = Path(each.rpartition("=")[2])
        with suppress(OSError, ValueError):  # such as of a word that is too long for a name
            if file.is_fifo():  # reading it would wait for ever
                sys.stderr.write(f"train.py: error: {str(file)!r} is a pipe, not a file\n")
                sys.exit(SLIP)
    program, words = (own[0], own[1:]) if args is None else (str(ROOT / "train.py"), args)
    sys.argv = [program, *parsable(words)]  # processes of several GPUs start by it too
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            handlers[number] = signal.signal(number, _leave)
    try:
        if sys.argv[1:2] == ["predict"] and any(
            word.partition("=")[0] == "--predictions.input" for word in sys.argv
        ):
            import predict  # only here, as `export`

            predict.main(sys.argv[2:])
            return
        if sys.argv[1:2] == ["export"]:
            import export  # only here: the copy of the code that a study runs has no such file

            export.main(sys.argv[2:])
            return
        keep_memory()
        cli(
            Classifier,
            LightningDataModule,
            save_config_callback=SaveConfig,
            trainer_class=CountingTrainer,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            parser_class=Parser,
            parser_kwargs={"description": ABOUT, **dict.fromkeys(CLI.subcommands(), BASE)},
        )
    except MISTAKES as error:
        # before the first batch, a library that refuses its arguments refuses the user's options
        part = _part_of_lightning(error)
        refused = isinstance(error, MisconfigurationException) or not _begun(error) or bool(part)
        mistake = next(_raised_here(error), error if refused else None)
        system = system_error(error)
        full = system is not None and is_full(system)
        if not (mistake or full) or os.environ.get("SUPPLE_TRACEBACK"):
            raise
        text = str(mistake)
        if mistake is error and next(_raised_here(error), None) is None:
            text = explain(text) or f"{type(error).__name__} without a message"
            text = f"{part}: {text}" if part and part not in text else text
        if full and str(error).startswith("cannot write"):  # names the file
            text = str(error)
        elif full and mistake in (None, error):
            text = f"{system}: make room there, or choose another folder"
        sys.stderr.write(f"train.py: error: {text} [SUPPLE_TRACEBACK=1 shows the traceback]\n")
        diverged = isinstance(mistake, DivergedError)
        sys.exit(CRASH if full else DIVERGED if diverged else SLIP)
    finally:
        with suppress(OSError):  # if nothing was written the run has not begun
            for folder in CLI.claimed:
                folder.rmdir()
        CLI.claimed = []
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


def _part_of_lightning(error: BaseException) -> str:
    """The class of Lightning's callback or logger that called what has failed; "" for others."""
    name = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        parts = Path(frame.f_code.co_filename).parent.parts
        if "lightning" in parts and parts[-1] in ("callbacks", "loggers"):
            name = type(frame.f_locals.get("self")).__name__
        elif "lightning" in parts and "loops" in parts:
            name = ""  # a training inside, as BatchSizeFinder runs it
    return name


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

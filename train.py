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
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import distributed, nn

import activations
import datamodules
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

ROOT = Path(__file__).resolve().parent
BASE = {"default_config_files": [str(ROOT / "configs/base.yaml")]}
CRASH, SLIP, DIVERGED = 1, 2, 3  # exit codes; Python's own for a crash is 1, too
MISTAKES = (ValueError, TypeError, OSError, RuntimeError, DivergedError, MisconfigurationException)
# Lightning 2.6 calls what torch deprecates, and advertises litlogger; users can change neither.
warnings.filterwarnings("ignore", message=".*LeafSpec")
logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
    lambda record: "litlogger" not in record.getMessage()
)
# Texts that jsonargparse does not promise; tests/test_train.py fails when one has changed
KEY = re.compile(r'key "([\w.]+)"')
VALUE = re.compile(r"(?:Given value|dot import path string): (\S+)")
OPTION = re.compile(r"(?:unrecognized arguments|ambiguous option): (--[\w.]+)")
NO_CLASS = "Dict must include a class_path"


class Parser(LightningArgumentParser):
    """Prints one message for a mistake on the command line, not pages of usage."""

    def add_class_arguments(self, theclass: Any, nested_key: Any = None, **options: Any) -> Any:
        """Add all but what the swap sets itself: the device and the dtype of the activations."""
        if theclass is Classifier:
            options["skip"] = {"activation.init_args.device", "activation.init_args.dtype"}
        return super().add_class_arguments(theclass, nested_key, **options)

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Print `message` with a remedy and exit with status 2."""
        key, value = KEY.search(message), VALUE.search(message)
        packages = {"model.activation": activations, "data": datamodules}
        if key and value and (package := packages.get(key[1])) and "." not in value[1]:
            known = [name for name in package.__all__ if _is_choice(getattr(package, name))]
            close = difflib.get_close_matches(value[1], known, n=3, cutoff=0.4) or known
            example = f"torch.nn.{value[1] if hasattr(nn, value[1]) else 'GELU'}"
            message = (
                f"unknown --{key[1]} {value[1]!r}; the nearest: {', '.join(close)}. Other classes "
                f"need a full path, such as {'my_data.Mine' if key[1] == 'data' else example}"
            )
        elif key and NO_CLASS in message:
            message = (
                f"--{key[1]} has arguments but no class: name the class first, such as "
                f"--{key[1]} {'SGD' if key[1].endswith('optimizer') else 'NAME'} --{key[1]}.lr 0.05"
            )
        elif option := OPTION.match(message):
            known = {"--model.optimizer.lr", *re.findall(r"--[\w.]+", self.format_help())}
            last = "." + option[1].strip("-").rpartition(".")[2]
            close = [name for name in sorted(known) if name.endswith(last)]
            close = close or difflib.get_close_matches(option[1], known, n=3, cutoff=0.6)
            message += f"; the nearest: {', '.join(close)}" if close else ""
        sys.stderr.write(f"train.py: error: {message}\nOptions: python train.py fit --help\n")
        sys.exit(SLIP)


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

    def before_instantiate_classes(self) -> None:
        """Check the command, and name the run's folder <data>-<backbone>-<activation>."""
        config = self.config[str(self.subcommand)]
        path = config.ckpt_path
        if self.subcommand != "fit" and path is None:
            raise ValueError(f"{self.subcommand} needs trained weights: --ckpt_path best.ckpt")
        if path not in (None, "best", "last", "hpc", "registry") and not Path(path).exists():
            raise FileNotFoundError(f"no checkpoint {str(path)!r} (--ckpt_path)")
        trainer, off = config.trainer, set[str]()
        if trainer.barebones:  # takes none of these
            trainer.logger, trainer.log_every_n_steps = False, 0
            off |= {"checkpoint", "last_checkpoint", "progress", "monitor"}
        if trainer.enable_checkpointing is False or trainer.fast_dev_run:
            off |= {"checkpoint", "last_checkpoint"}
        own_bar = any("ProgressBar" in each.class_path for each in trainer.callbacks or [])
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
        """Refuse a folder that cannot be written, and more processes than a CPU has cores."""
        self.config[str(self.subcommand)].trainer = self.given
        if self.trainer.loggers or self.subcommand == "fit":
            folders = [logger.save_dir for logger in self.trainer.loggers if logger.save_dir]
            for folder in folders or [self.trainer.default_root_dir]:
                check_writable(Path(folder))
        cores, asked = os.cpu_count() or 1, self.trainer.num_devices
        if isinstance(self.trainer.accelerator, CPUAccelerator) and asked > cores:
            raise ValueError(
                f"--trainer.devices {asked}: no GPU is in use here, and the CPU has {cores} cores; "
                f"ask for at most {cores}"
            )

    def before_fit(self) -> None:
        """With `--test_after_fit true`, check that there is something to test, before training."""
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


def _is_choice(thing: Any) -> bool:
    bases = (activations.Activation, datamodules.ImageDataModule)
    return isinstance(thing, type) and issubclass(thing, bases) and thing not in bases


def main(args: list[str] | None = None) -> None:
    """Run the command line `args`, by default this program's own; README lists the exit codes.

    Errors that this project raises are printed without traceback.
    """
    own, handlers = sys.argv, {}
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
        lightnings = error if isinstance(error, MisconfigurationException) else None
        mistake = next(_raised_here(error), lightnings)
        system = system_error(error)
        full = system is not None and is_full(system)
        if not (mistake or full) or os.environ.get("SUPPLE_TRACEBACK"):
            raise
        mistake = mistake or f"{system}: make room there, or choose another folder"
        sys.stderr.write(f"train.py: error: {mistake} [SUPPLE_TRACEBACK=1 shows the traceback]\n")
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

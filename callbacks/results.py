"""What a run that has ended leaves: `results.json` and `test.npz`."""

import hashlib
import json
import math
import statistics
import sys
import time
from collections.abc import Sized
from contextlib import suppress
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DistributedSampler

from activations.files import replacing
from activations.groups import learned_values

from .checkpoints import BestCheckpoint, has_diverged
from .lightning_private import callbacks_of
from .machine import code, commit, machine, now
from .record import run_folder

SCHEMA = 1
FILE, TEST = "results.json", "test.npz"
# options that do not decide the result: whole parts, and paths at any depth
_PARTS = {"ckpt_path", "last_checkpoint", "monitor", "predictions", "progress", "seed_everything",
          "test_after_fit", "trust"}  # fmt: skip
_PATHS = {"default_root_dir", "dirpath", "download", "logger", "root"}


class Results(Callback):
    """Writes `results.json` and `test.npz` into the folder of a run when it has ended.

    `results.json` appears last and whole: a run without it has not ended. Its status is ok,
    diverged, or failed with the message of the error; a run that a signal stopped has none, and
    one that is resumed loses the old one until it ends again. `test.npz` holds for each test sample
    its position `index`, its `label`, the `probability` of each class, and its `group`, such as the
    record of a heart beat, where the data name one. With `--test_after_fit both`, `probability`
    is that of the last weights, `probability_best` that of the best. Data that report more on a
    test, as heart beats do, have tables of their own beside it, such as `test_aami.csv`.

    Attributes:
        epochs: for each epoch its number, metrics, and trained images for each second.
        tests: last, best -> test metrics.
        learned: name -> values of what the activations learned, as the functions use them, of the
            last weights.
        report: what the data report on the last test; "" for nothing.
    """

    def __init__(self) -> None:
        self.epochs: list[dict[str, Any]] = []
        self.tests: dict[str, dict[str, float]] = {}
        self.learned: dict[str, Any] = {}
        self.testing = "best"
        self.report = ""
        self._spent = {"fit_s": 0.0, "cpu_s": 0.0}
        self._samples: dict[str, dict[str, np.ndarray]] = {}
        self._batches: list[tuple[Any, ...]] = []
        self._about: dict[str, Any] = {}
        self._folder: Path | None = None
        self._clock = self._processor = 0.0
        self._images, self._training = 0, [0.0, 0.0]  # seconds, since when
        self._trained = 0  # samples of an epoch
        self._validated = False  # in this epoch
        self._begun = False  # whether a batch has been trained

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run adds to; also of an epoch that it goes on with."""
        spent = self._training[0] + time.perf_counter() - self._training[1]
        return {
            "epochs": self.epochs,
            "train_samples": self._trained,
            "epoch": {"images": self._images, "seconds": spent, "validated": self._validated},
            **self._time(),
        }

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """A test of the best checkpoint does not go back to its epoch."""
        if trainer.state.fn != "fit":
            checkpoint["callbacks"].pop(self.state_key, None)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the epochs and the time of the run that is resumed."""
        self.epochs = list(state_dict["epochs"])
        self._trained = state_dict.get("train_samples", 0)
        self._spent = {name: state_dict[name] for name in self._spent}
        epoch = state_dict.get("epoch", {})
        self._images, self._training[0] = epoch.get("images", 0), epoch.get("seconds", 0.0)
        self._validated = epoch.get("validated", False)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the run's folder."""
        folder = run_folder(trainer)
        self._folder = folder if trainer.loggers and trainer.is_global_zero else None
        self.tests, self._samples, self.report, self._begun = {}, {}, "", False
        self._clock, self._processor = time.perf_counter(), time.process_time()
        self._about = {
            "start": now(),
            "parameters": sum(each.numel() for each in pl_module.parameters()),
            "trained_parameters": sum(
                each.numel() for each in pl_module.parameters() if each.requires_grad
            ),
        }
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)

    def on_train_start(self, *args: Any, **kwargs: Any) -> None:
        """Start the clock of an epoch that a resumed run goes on with."""
        self._training[1] = time.perf_counter()

    def on_train_epoch_start(self, *args: Any, **kwargs: Any) -> None:
        """Start the clock of the epoch."""
        self._images, self._training = 0, [0.0, time.perf_counter()]
        self._validated = False

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        """From now on the folder has no results until this run ends; before, it may be refused."""
        if not self._begun:
            self._begin()

    def _begin(self) -> None:
        self._begun = True
        if self._folder:
            written = [self._folder.glob(name) for name in ("test_*.csv", "confusion*.png")]
            for file in chain([self._folder / FILE, self._folder / TEST], *written):
                file.unlink(missing_ok=True)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Count the images."""
        images = batch[0] if isinstance(batch, list | tuple) else batch
        self._images += len(images) * trainer.world_size

    def on_validation_start(self, *args: Any, **kwargs: Any) -> None:
        """Stop the clock of the epoch."""
        self._training[0] += time.perf_counter() - self._training[1]

    def on_validation_end(self, *args: Any, **kwargs: Any) -> None:
        """Let the clock of the epoch go on."""
        self._training[1] = time.perf_counter()
        self._validated = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the metrics."""
        seconds = self._training[0] + time.perf_counter() - self._training[1]
        kept = [each for each in self.epochs if each["epoch"] < trainer.current_epoch]
        metrics = _numbers(trainer.callback_metrics)
        if not self._validated:  # those of an earlier epoch
            metrics = {name: v for name, v in metrics.items() if not name.startswith("val/")}
        speed = {"images_per_s": self._images / max(seconds, 1e-9)}
        self.epochs = [*kept, {"epoch": trainer.current_epoch, **metrics, **speed}]
        loader: Any = trainer.train_dataloader
        order, size = (getattr(loader, name, None) for name in ("sampler", "batch_size"))
        order = order.dataset if isinstance(order, DistributedSampler) else order
        known, limit = self._images, trainer.limit_train_batches
        if isinstance(order, Sized):
            # the last batch of an epoch may be left out, of other samples each time
            whole = isinstance(limit, float) and limit == 1  # the number 1 is one batch
            some = trainer.num_training_batches * (size or 0) * trainer.world_size or self._images
            known = len(order) if whole else min(len(order), int(some))
        self._trained = max(known, self._trained)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the learned values, and stop the clock."""
        if not self._begun:  # a resumed run that was at its end
            self._begin()
        learned = learned_values(getattr(pl_module, "backbone", pl_module))
        self.learned = {name: value.tolist() for name, value in learned.items()}
        self._spent, self._clock = self._time(), 0.0
        self._about["machine"] = machine(pl_module.device.type)
        self._about["compiled"] = getattr(pl_module, "compiled", None)
        self._about["peak_memory_mb"] = _peak_memory()
        if pl_module.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(pl_module.device)
            self._about["peak_gpu_memory_mb"] = round(peak / 1e6, 1)

    def on_test_start(self, *args: Any, **kwargs: Any) -> None:
        """Forget earlier samples."""
        self._batches = []

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Keep the probabilities."""
        if not isinstance(outputs, dict) or outputs.get("label") is None:
            return
        count = len(outputs["label"])
        index = outputs["index"]
        if index is None:  # Lightning deals the samples out to the processes in turn
            start, step = sum(len(each[1]) for each in self._batches), trainer.world_size
            index = torch.arange(count) * step + start * step + trainer.global_rank
        arrays = (index, outputs["label"], outputs["probability"])
        self._batches.append(tuple(each.cpu().numpy() for each in arrays))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather the samples of all processes."""
        self.tests[self.testing] = _numbers(trainer.callback_metrics, "test")
        parts: list[Any] = [self._batches]
        if trainer.world_size > 1:
            parts = [None] * trainer.world_size
            torch.distributed.all_gather_object(parts, self._batches)
        batches = [batch for part in parts for batch in part]
        if not batches:
            return
        index, label, probability = (
            np.concatenate(column) for column in zip(*batches, strict=True)
        )
        order = np.argsort(index, kind="stable")
        samples = {"index": index, "label": label, "probability": probability}
        found = self._samples[self.testing] = {name: v[order] for name, v in samples.items()}
        describe = getattr(getattr(trainer, "datamodule", None), "describe", lambda index: {})
        groups = [describe(int(each)).get("record") for each in found["index"]]
        if None not in groups:
            found["group"] = np.array(groups)
        self._report(trainer, found)

    def _report(self, trainer: Trainer, found: dict[str, np.ndarray]) -> None:
        """Keep what the data report on a test, and write its tables."""
        make = getattr(getattr(trainer, "datamodule", None), "test_report", lambda *_: None)
        report = make(found["label"], found["probability"].argmax(1), found.get("group"))
        folder = run_folder(trainer) if trainer.loggers else None  # all processes must ask for it
        self.report = report.text if report else ""
        if not (report and folder and trainer.is_global_zero):
            return
        which = f"_{self.testing}" if len(self._samples) > 1 else ""  # as in test.npz
        files = {folder / f"test_{name}{which}.csv": t for name, t in report.tables.items()}
        for file, table in files.items():
            with replacing(file) as unfinished:
                table.to_csv(unfinished, float_format="%.6f")
        self.report += f"\n{'tables':<12} {', '.join(map(str, files))}"

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: Any) -> None:
        """Write what ended the run; nothing if a signal did."""
        if isinstance(exception, Exception) and self._folder and self._begun:
            if self._clock:
                self.on_fit_end(trainer, pl_module)
            diverged = has_diverged(exception)
            with suppress(OSError):  # of a full disk the error itself tells
                self.write("diverged" if diverged else "failed", str(exception), trainer)

    def write(self, status: str, message: str, trainer: Trainer) -> None:
        """Write the files, if the run has a folder.

        Raises:
            OSError: a file cannot be written.
        """
        if not self._folder:
            return
        if self._samples:
            first, *others = self._samples
            arrays = self._samples[first] | {
                f"probability_{name}": self._samples[name]["probability"] for name in others
            }
            with replacing(self._folder / TEST) as unfinished, unfinished.open("wb") as file:
                np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]
        config = _read(self._folder / "config.yaml")
        speeds = [each["images_per_s"] for each in self.epochs[1:] or self.epochs]
        content = {
            "schema": SCHEMA,
            "status": status,
            "message": message,
            "config": config,
            "config_sha256": config_sha256(config),
            "seed": (config or {}).get("seed_everything"),
            "command": sys.argv,
            "commit": commit().removesuffix("+"),
            "dirty": commit().endswith("+"),
            "code": code(),
            "versions": {name: version(name) for name in ("torch", "lightning", "timm", "numpy")},
            "threads": torch.get_num_threads(),
            "processes": trainer.world_size,
            **self._about,
            "train_samples": self._trained or None,
            "test_labels": _digest(self._samples),
            "end": now(),
            **{name: round(seconds, 3) for name, seconds in self._spent.items()},
            "images_per_s": statistics.median(speeds) if speeds else None,
            "epochs": self.epochs,
            "best": self._best(trainer),
            "test": self.tests,
            "learned": self.learned,
        }
        with replacing(self._folder / FILE) as unfinished:
            unfinished.write_text(json.dumps(_finite(content), indent=1, allow_nan=False))

    def _best(self, trainer: Trainer) -> dict[str, Any] | None:
        """The epoch whose validation was best, and its value; there may be several in an epoch."""
        for callback in callbacks_of(trainer, BestCheckpoint):
            score, file = callback.best_model_score, Path(callback.best_model_path)
            if callback.monitor and score is not None and file.is_file():
                stored = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
                return {"epoch": stored["epoch"], callback.monitor: float(score)}
            known = [e for e in self.epochs if math.isfinite(e.get(callback.monitor, math.nan))]
            if known:
                choose = max if callback.mode == "max" else min
                best = choose(known, key=lambda each: each[callback.monitor])
                return {"epoch": best["epoch"], callback.monitor: best[callback.monitor]}
        return None

    def _time(self) -> dict[str, float]:
        """Seconds of training, and of the processor, with those of the run that was resumed."""
        if not self._clock:
            return self._spent
        now = (time.perf_counter() - self._clock, time.process_time() - self._processor)
        return {n: old + new for (n, old), new in zip(self._spent.items(), now, strict=True)}


def _digest(samples: dict[str, dict[str, np.ndarray]]) -> str | None:
    """The first 12 digits of the SHA-256 of the test labels in their order, as 64-bit integers."""
    for each in samples.values():
        return hashlib.sha256(each["label"].astype("<i8").tobytes()).hexdigest()[:12]
    return None


def config_sha256(config: dict[str, Any] | None) -> str:
    """The SHA-256 of the options that decide a result: without paths, logger, seed and pictures."""

    def kept(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: kept(each) for name, each in value.items() if name not in _PATHS}
        return [kept(each) for each in value] if isinstance(value, list) else value

    parts = {name: each for name, each in (config or {}).items() if name not in _PARTS}
    text = json.dumps(kept(parts), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def read_results(folder: str | Path) -> list[dict[str, Any]]:
    """The results of all runs in a folder, one flat row a run: `pandas.DataFrame(read_results(x))`.

    Args:
        folder: is searched at any depth.

    Returns:
        For each run its folder, status, data, backbone, activation, seed, test metrics (such as
        `last test/acc`), last validation metrics, time, code, commit and machine, in the order of
        the folders' names. A `results.json` that cannot be read has the status `unreadable`.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"no such folder: {root}")
    return [_row(file, root) for file in sorted(root.rglob(FILE))]


def _row(file: Path, root: Path) -> dict[str, Any]:
    row: dict[str, Any] = {"run": file.parent.relative_to(root).as_posix()}
    try:
        content = json.loads(file.read_text())
        config = content["config"] or {}
        model = config.get("model", {})
        data, activation = (_name(each) for each in (config.get("data"), model.get("activation")))
        row |= {name: content[name] for name in ("status", "message", "seed")}
        row |= {"data": data, "backbone": model.get("backbone"), "activation": activation}
        row |= {"max_epochs": config.get("trainer", {}).get("max_epochs")}
        row |= {f"{at} {n}": v for at, found in content["test"].items() for n, v in found.items()}
        last = {name: value for each in content["epochs"] for name, value in each.items()}
        row |= {name: value for name, value in last.items() if name.startswith(("val/", "train/"))}
        names = ("fit_s", "cpu_s", "images_per_s", "parameters", "config_sha256", "code", "commit")
        row |= {name: content.get(name) for name in (*names, "dirty", "start", "end")}
        row |= {"processor": content.get("machine", {}).get("processor")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        row |= {"status": "unreadable", "message": f"{type(error).__name__}: {error}"}
    return row


def _name(spec: Any) -> str | None:
    """The class of an option, without its module."""
    path = spec.get("class_path") if isinstance(spec, dict) else spec
    return path.rpartition(".")[2] if path else None


def _numbers(metrics: Any, stage: str = "") -> dict[str, float]:
    """The metrics as numbers; of one stage, those of its classes (`test_f1/N`) too."""
    chosen = {name: value for name, value in metrics.items() if name.startswith(stage)}
    return {name: float(value) for name, value in chosen.items()}


def _finite(value: Any) -> Any:
    """`value` with None for numbers that JSON does not know."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value


def _read(file: Path) -> dict[str, Any] | None:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(file.read_text(), loader) if file.is_file() else None


def _peak_memory() -> float | None:
    """The most memory that the process has had, in MB."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e6 if sys.platform == "darwin" else 1e3), 1)

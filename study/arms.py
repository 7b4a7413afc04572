"""The arms of a study as train.py makes them; asked before anything is locked or trained."""

import io
import logging
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import EarlyStopping, Timer

from .runs import Run, Study, write_base
from .spec import BUDGET, OFF, SpecError, flatten

if TYPE_CHECKING:
    import train


def check_arms(
    study: Study, metrics: dict[str, str] | None = None, lengths: Sequence[int] = ()
) -> tuple[str, str]:
    """Build data and model of each arm in each cell.

    Args:
        study: its spec alone is used.
        metrics: field of the spec -> metric, of a search; by default those of a study.
        lengths: epochs of its trainings, of a search; by default those of the budget.

    Returns:
        What `compile: auto` is, in all runs alike, and the line that says why. It is what pays for
        one seed of all arms together: the next ones find the kernels compiled. A search, whose
        functions are new in each run, does not compile.

    Raises:
        SpecError: an option, a name or a value is not accepted, or data are not there; there is no
            such metric; the last epoch has no validation; or an arm would be trained longer or on
            other data than the baseline.
    """
    spec, arms = study.spec, [study.spec["baseline"], *study.spec["arms"]]
    asked = metrics or {
        "metric.name": spec["metric"]["name"],
        **({"tune.metric": spec["tune"]["metric"]} if spec["tune"] else {}),
    }
    grid = (spec["tune"] or {}).get("grid", {})
    total, device = None, "cpu"
    for cell in study.cells:
        first: dict[str, Any] = {}
        planned = None
        for arm in dict.fromkeys(arms):
            run = study.run("verdict", arm, cell, study.seeds[0], 0)
            found = built(replace(run, compiled="auto"))
            if cell == 0 and (arm == arms[0] or any("activation" in n for n in grid)):
                for setting in range(1, len(study.settings)):
                    built(study.run("tune", arm, cell, study.seeds[0], setting))
            chosen = (f"test/{name}" for name in getattr(found.datamodule, "f1_over", {}))
            measured = {*found.model.test_metrics.keys(), *chosen, "test/loss"}
            # less is better, which a study knows of losses alone; the other tells of the data
            known = sorted(measured - {"test/ece", "test/acc_majority"})
            for field, metric in asked.items():
                stage, _, name = metric.partition("/")
                if f"test/{name}" not in known:
                    there = ", ".join(each.replace("test", stage, 1) for each in known)
                    raise SpecError(f"{field} {metric!r} is none of these data's: {there}")
            for each in vars(found.trainer)["callbacks"]:
                if isinstance(each, EarlyStopping | Timer):
                    raise SpecError(
                        f"arm {arm}: {type(each).__name__} ends trainings early, which gives arms "
                        "unequal budgets: leave it out"
                    )
            every = found.trainer.check_val_every_n_epoch or 1
            for epochs in lengths or [max(found.trainer.max_epochs or 0, 0)]:
                if epochs % every:
                    raise SpecError(
                        f"trainer.check_val_every_n_epoch {every}: the last of {epochs} epochs has "
                        "no validation; give a divisor of the epochs"
                    )
            chooses = bool(spec["tune"] or spec["metric"]["at"] == "best" or metrics)
            if chooses and arm == arms[0] and _unvalidated(found):  # all arms have the same data
                what = "metric" if metrics else "tune" if spec["tune"] else "metric.at best"
                raise SpecError(
                    f"{what} needs a validation, and there is none (data.val_fraction 0 or "
                    "trainer.limit_val_batches 0): keep samples for validation"
                )
            options = flatten(found.config.fit.as_dict())
            budget = {name: each for name, each in options.items() if name.startswith(BUDGET)}
            first = first or budget
            for name in first.keys() | budget.keys():
                if first.get(name) != budget.get(name):
                    raise SpecError(
                        f"arms.{arm}: {name} is {budget.get(name)}, the baseline's is "
                        f"{first.get(name)}: arms need equal budgets and data"
                    )
            if found.model.compile_mode == "auto" and not metrics:
                trainer, size = found.trainer, getattr(found.datamodule, "batch_size", 1)
                if found.model.estimate(trainer, size, 1).cost:  # reading the data takes time
                    planned = planned or _planned(found)
                    more = found.model.estimate(trainer, size, planned)
                    total = total.plus(more) if total else more
                    device = trainer.strategy.root_device.type
    return total.decide(device) if total else (OFF, "")


def _unvalidated(made: "train.CLI") -> bool:
    """Whether the trainings have no validation; data that may be without one are read."""
    if getattr(made.datamodule, "val_fraction", None) == 0:
        with quiet():
            made.datamodule.prepare_data()
            made.datamodule.setup("fit")
        if not len(getattr(made.datamodule, "val_indices", [0])):
            return True
    return made.trainer.limit_val_batches == 0


def length(made: "train.CLI") -> dict[str, int]:
    """Batches of an epoch, and epochs; the data are read."""
    trainer, batches = made.trainer, len(made.datamodule.train_dataloader())
    limit = trainer.limit_train_batches  # a number of batches, or a share
    if limit is not None:
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    steps = max(1, math.ceil(batches / trainer.accumulate_grad_batches))  # of the optimizer
    ends = [math.ceil(trainer.max_steps / steps)] if trainer.max_steps > 0 else []
    epochs = trainer.max_epochs or 0
    return {"batches": batches, "epochs": min([*ends, epochs] if epochs > 0 else ends, default=1)}


def _planned(made: "train.CLI") -> float:
    """Optimizer steps of a training."""
    with quiet():
        made.datamodule.prepare_data()
        made.datamodule.setup("fit")
    each, trainer = length(made), made.trainer
    steps = each["epochs"] * math.ceil(each["batches"] / trainer.accumulate_grad_batches)
    return steps if trainer.max_steps < 0 else min(steps, trainer.max_steps)


def built(run: Run) -> "train.CLI":
    """The command line of a run that ends before the training: data, model and trainer are made.

    Raises:
        SpecError: an option, a name or a value is not accepted, or data are not there.
    """
    import train

    found: list[train.CLI] = []

    class Built(train.CLI):
        """Ends before the training."""

        def before_fit(self) -> None:
            super().before_fit()
            found.append(self)
            raise SystemExit(0)

    with tempfile.TemporaryDirectory() as folder, quiet() as told:
        words = [f"--model.compile={run.compiled}", *write_base(Path(folder), run.base)]
        words += run.arguments
        try:
            train.main(["fit", *words, "--trainer.logger=false"], cli=Built)
        except SystemExit as left:
            if left.code:
                text = told.getvalue().partition("error: ")[2].partition("\n")[0]
                raise SpecError(f"arm {run.arm}: {text.partition(' [SUPPLE_')[0]}") from None
    return found[0]


@contextmanager
def quiet() -> Iterator[io.StringIO]:
    """Nothing is printed; what goes to stderr is in the text."""
    loggers = [logging.getLogger(f"lightning.{name}") for name in ("pytorch", "fabric")]
    levels, told = [logger.level for logger in loggers], io.StringIO()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with redirect_stderr(told), redirect_stdout(io.StringIO()):
            yield told
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

"""Whether train.py accepts the arms of a study: asked before anything is locked or trained."""

import io
import logging
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from .runs import Study, arguments, write_base
from .spec import SpecError


def check_arms(study: Study) -> None:
    """Build data and model of each arm in each cell.

    Raises:
        SpecError: an option, a name or a value is not accepted, or data are not there; or the test
            has no such metric.
    """
    import train

    class Built(train.CLI):
        """Ends before the training."""

        def before_fit(self) -> None:
            super().before_fit()
            raise SystemExit(0)

        def after_instantiate_classes(self) -> None:
            super().after_instantiate_classes()
            metrics.update({*self.model.test_metrics.keys(), "test/loss"})

    metrics, wanted = set[str](), study.spec["metric"]["name"]
    loggers = [logging.getLogger(f"lightning.{name}") for name in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    for cell in range(len(study.spec["cells"])):
        for arm in study.spec["arms"]:
            run = study.run("verdict", arm, cell, study.seeds[0], 0)
            told = io.StringIO()
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            try:
                with (
                    tempfile.TemporaryDirectory() as folder,
                    redirect_stderr(told),
                    redirect_stdout(io.StringIO()),
                ):
                    words = [*write_base(Path(folder), run.base), *arguments(run.options, run.seed)]
                    train.main(["fit", *words, "--trainer.logger=false"], cli=Built)
            except SystemExit as left:
                if left.code:
                    text = told.getvalue().partition("error: ")[2].partition("\n")[0]
                    raise SpecError(f"arm {arm}: {text.partition(' [SUPPLE_')[0]}") from None
            finally:
                for logger, level in zip(loggers, levels, strict=True):
                    logger.setLevel(level)
            if wanted not in metrics:
                raise SpecError(
                    f"metric.name {wanted!r} is none of this test's: {', '.join(sorted(metrics))}"
                )

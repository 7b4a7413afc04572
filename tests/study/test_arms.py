"""What train.py would not accept is told before a study is locked."""

from pathlib import Path
from typing import Any

import pytest

from study import __main__ as program
from study.arms import check_arms
from study.runs import Study
from study.spec import SpecError, check

from .made import small

RELU = {"model.activation": "torch.nn.ReLU"}


def tried(**changes: Any) -> None:
    check_arms(Study(Path("none"), {"spec": check(small(**changes))}))


def test_a_good_one_is_accepted_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    tried()
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"arms": {"ReLU": RELU, "X": {"model.activation": "CosLUU"}}}, "arm X: .*CosLU"),
        ({"arms": {"ReLU": RELU, "X": {"model.shape": "model"}}}, "arm X: .*--model.shape"),
        ({"cells": [{"data": "Digitz"}]}, "arm ReLU: .*datamodules.Digits"),
        ({"cells": [{"data": "Digits", "model.backbone": "resnet9"}]}, "nearest: resnet8"),
        ({"budget": {"trainer.max_epochs": "many"}}, "trainer.max_epochs"),
        (
            {"metric": {"name": "test/f2"}},
            "metric.name 'test/f2' is none of these data's: test/acc, ",
        ),
        (
            {
                "tune": {
                    "grid": {"model.label_smoothing": [0.1]},
                    "seeds": [900],
                    "metric": "val/accuracy",
                }
            },
            "tune.metric 'val/accuracy' is none of these data's: val/acc, ",
        ),
        # argparse takes the beginning of an option's name
        ({"arms": {"ReLU": RELU, "X": {"trainer.accum": 2}}}, "equal budgets"),
    ],
)
def test_a_slip_is_one_sentence(changes: dict[str, Any], told: str):
    with pytest.raises(SpecError, match=told) as error:
        tried(**changes)
    assert "\n" not in str(error.value)


def test_a_slip_locks_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["run", "--data", "Digits", "--activations", "CosLUU", "--dir", str(tmp_path / "a")]
    assert program.main(words) == 2
    assert capsys.readouterr().err.startswith("python -m study: error: arm CosLUU: ")
    assert not (tmp_path / "a" / "spec.lock.yaml").exists()

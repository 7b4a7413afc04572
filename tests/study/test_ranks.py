"""Ranks over cells: the worked example and the table of critical values of Demsar 2006."""

from pathlib import Path

import numpy as np
import pytest

from study.ranks import rank_blocks, ranks
from study.runs import Study
from study.spec import check, lock
from tests.study.made import answer, small

# table 6: AUC of C4.5, with m, cf, and both tuned, on 14 data sets
TABLE = np.array([
    [0.763, 0.768, 0.771, 0.798], [0.599, 0.591, 0.590, 0.569], [0.954, 0.971, 0.968, 0.967],
    [0.628, 0.661, 0.654, 0.657], [0.882, 0.888, 0.886, 0.898], [0.936, 0.931, 0.916, 0.931],
    [0.661, 0.668, 0.609, 0.685], [0.583, 0.583, 0.563, 0.625], [0.775, 0.838, 0.866, 0.875],
    [1.000, 1.000, 1.000, 1.000], [0.940, 0.962, 0.965, 0.962], [0.619, 0.666, 0.614, 0.669],
    [0.972, 0.981, 0.9751, 0.975], [0.957, 0.978, 0.946, 0.970],
])  # fmt: skip
# table 5a: critical values of Nemenyi's test at 5%, for 2 to 10 classifiers
CRITICAL = (1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164)


def test_the_worked_example():
    found = ranks(TABLE)
    np.testing.assert_allclose(found.mean, [3.143, 2.000, 2.893, 1.964], atol=6e-4)
    assert found.critical == pytest.approx(1.25, abs=0.01)
    assert 0.01 < found.p < 0.05  # 9.28 without ties; the 5% value of chi2(3) is 7.81
    assert found.pairs[0, 1] == pytest.approx(found.pairs[1, 0])
    assert (found.pairs[np.abs(found.mean[:, None] - found.mean) < 1.25] > 0.05).all()


@pytest.mark.parametrize("arms", [*range(3, 11)])
def test_critical_values_are_those_of_the_table(arms: int):
    values = np.random.default_rng(arms).normal(size=(9, arms))
    expected = CRITICAL[arms - 2] * np.sqrt(arms * (arms + 1) / (6 * 9))
    assert ranks(values).critical == pytest.approx(expected, rel=5e-4)


def test_a_false_alarm_is_as_rare_as_it_says():
    rng = np.random.default_rng(0)
    found = [ranks(rng.normal(size=(12, 4))).p for _ in range(400)]
    assert 0.02 < np.mean(np.array(found) < 0.05) < 0.08


def test_a_study_with_several_cells_has_ranks(tmp_path: Path):
    networks = ("resnet8", "resnet14", "resnet20")
    cells = [{"data": "Digits", "model.backbone": name} for name in networks]
    lock(tmp_path, check(small(cells=cells)))
    study = answer(Study.read(tmp_path), {"ReLU": 90, "SiLU": 92, "CosLU": 85})
    text = "\n".join(block.markdown for block in rank_blocks(study))
    assert "| SiLU | 1.00 |" in text
    assert "| ReLU | 2.00 |  |" in text
    assert "| CosLU | 3.00 |" in text
    assert "They decide nothing here" in text
    lock(tmp_path / "few", check(small(cells=cells[:2])))
    few = answer(Study.read(tmp_path / "few"), {"ReLU": 90, "SiLU": 92, "CosLU": 85})
    assert rank_blocks(few) == []

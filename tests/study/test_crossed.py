"""The line on new images: its metrics against scikit-learn, its interval against simulation."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from study.crossed import METRICS, accuracy, auroc, macro_f1, new_images
from study.verdict import Kind, Rules

RULES = Rules(0.3, (20,))


def outputs(count: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    scores = np.eye(classes)[labels] + rng.gumbel(size=(count, classes))
    scores = np.round(np.exp(scores) / np.exp(scores).sum(1, keepdims=True), 2)  # with ties
    return labels, scores, rng.integers(0, 4, (3, count)).astype(float)


def test_metrics_are_those_of_scikit_learn():
    labels, scores, weights = outputs(200, 5)
    predicted = scores.argmax(1)
    for row, *found in zip(
        weights,
        accuracy(labels, predicted, weights),
        macro_f1(labels, scores, weights),
        METRICS["f1_nsvf"](labels, scores, weights),
        auroc(labels, scores, weights),
        auroc((labels == 2).astype(int), scores[:, 2], weights),
        strict=True,
    ):
        f1 = [
            f1_score(labels, predicted, average="macro", sample_weight=row, labels=classes)
            for classes in (range(5), range(4))
        ]
        areas = [roc_auc_score(labels == k, scores[:, k], sample_weight=row) for k in range(5)]
        expected = [accuracy_score(labels, predicted, sample_weight=row), *f1]
        assert found == pytest.approx([*expected, np.mean(areas), areas[2]])


def test_a_class_without_samples_has_no_part():
    labels, predicted = np.array([0, 0, 1, 1]), np.array([0, 0, 1, 2])
    weights = np.ones((1, 4))
    f1 = f1_score(labels, predicted, average="macro", labels=[0, 1])
    assert macro_f1(labels, predicted, weights, (0, 1, 3)) == pytest.approx(f1)


def studies(images: int, seeds: int, groups: int, spread: float, count: int):
    """Equal functions on all images there are; each arm is good at other groups of images."""
    rng = np.random.default_rng(0)
    member = np.arange(images) % groups
    for _ in range(count):
        skill = rng.normal(0, spread, (2, 1, groups))[..., member] + rng.normal(2, 2, images)
        chance = 1 / (1 + np.exp(-skill - rng.normal(0, 0.05, (2, seeds, 1))))
        right = rng.random(chance.shape) < chance
        yield member, right.astype(int)


@pytest.mark.parametrize(
    ("images", "seeds", "groups", "spread", "forgotten"),
    [
        (400, 20, 400, 1.0, 0.18),
        pytest.param(400, 5, 400, 1.0, 0.05, marks=pytest.mark.slow),
        pytest.param(600, 20, 30, 0.5, 0.3, marks=pytest.mark.slow),
    ],
)
def test_equal_functions_differ_in_5_percent_of_studies(
    images: int, seeds: int, groups: int, spread: float, forgotten: float
):
    count, told, naive = 150, 0, 0
    for member, right in studies(images, seeds, groups, spread, count):
        labels = np.ones(images, int)
        found = new_images(labels, right[0], right[1], RULES, 0.05, groups=member, replicates=150)
        told += found.low > 0 or found.high < 0
        naive += stats.ttest_rel(right[1].mean(1), right[0].mean(1)).pvalue < 0.05
        assert found.difference == pytest.approx(100 * (right[1].mean() - right[0].mean()))
    assert told <= stats.binom.ppf(0.9985, count, 0.05)  # three errors
    assert naive >= forgotten * count  # the seeds alone say too much


def test_the_test_sets_deviation_is_that_of_its_images():
    """Two runs that always agree, but for images that one arm knows: p (1 - p) / I, exactly."""
    images, seeds = 1000, 6
    labels = np.ones(images, int)
    base, arm = np.zeros((seeds, images), int), np.zeros((seeds, images), int)
    arm[:, :300] = 1
    found = new_images(labels, base, arm, RULES, 0.05, replicates=2000)
    expected = 100 * np.sqrt(0.3 * 0.7 / images)
    assert found.test_deviation == pytest.approx(expected, rel=0.06)  # three errors of 2,000
    assert found.seed_deviation == 0
    half = stats.t.isf(0.025, images - 1) * found.test_deviation
    assert (found.low, found.high) == pytest.approx((30 - half, 30 + half))
    grouped = new_images(labels, base, arm, RULES, 0.05, groups=np.arange(images) // 100)
    assert grouped.groups == 10
    assert grouped.test_deviation == pytest.approx(100 * np.sqrt(0.3 * 0.7 / 9), rel=0.13)


def test_at_a_strict_level_the_interval_of_few_seeds_is_wide_enough():
    """18 arms, 5 seeds, level 0.0125 / 18: images that move half as much as the seeds' mean."""
    level, seeds, images, rng = 0.0125 / 18, 5, 400, np.random.default_rng(0)
    share = 0.5 + rng.normal(0, 0.05, (2, 1000, seeds))
    narrow = missed = 0
    for base, arm in zip(*share, strict=True):
        right = (rng.random((2, 1, images)) < np.stack([base, arm])[..., None]).astype(int)
        found = new_images(np.ones(images, int), right[0], right[1], RULES, level, replicates=20)
        seen = 100 * (right[1].mean(1) - right[0].mean(1))
        alone = stats.t.isf(level / 2, seeds - 1) * seen.std(ddof=1) / seeds**0.5
        narrow += found.high - found.low < 2 * alone * (1 - 1e-12)
        missed += found.low > 0 or found.high < 0
    assert narrow == 0
    assert missed <= stats.binom.ppf(0.9985, len(share[0]), level)


def test_the_sentence_tells_a_test_set_that_is_too_small():
    labels, base = np.ones(100, int), np.zeros((5, 100), int)
    arm = base.copy()
    arm[:, :30] = 1
    names = ("CosLU", "ReLU")
    found = new_images(labels, base, arm, RULES, 0.05, names=names)
    assert found.kind is Kind.BETTER
    assert found.coarse
    text = found.sentence()
    assert text.startswith("CosLU against ReLU on new images of this kind: BETTER: +30.00 points [")
    assert "over 5 paired seeds and 100 images" in text
    assert (
        f"moves by {found.test_deviation:.2f} points (standard deviation), more than half" in text
    )
    same = new_images(labels, base, base, RULES, 0.05, names=names)
    assert (same.kind, same.coarse, same.low) == (Kind.EQUIVALENT, False, 0)
    loss = Rules(0.3, (20,), higher_is_better=False)
    assert new_images(labels, base, arm, loss, 0.05).kind is Kind.WORSE


def test_what_cannot_be_resampled_is_refused():
    labels, runs = np.ones(4, int), np.ones((3, 4), int)
    with pytest.raises(ValueError, match="1 and 3 runs do not make"):
        new_images(labels, runs, runs[:1], RULES, 0.05)
    with pytest.raises(ValueError, match="4 images in 1 groups"):
        new_images(labels, runs, runs, RULES, 0.05, groups=[0, 0, 0, 0])

"""False verdicts and power of the rules, in simulation and in splits of values."""

import math

import numpy as np
import pytest
from scipy import stats

from study.judge import Found, Noise, Splits, judge, simulate, splits, within
from study.levels import spending_levels
from study.verdict import Decisions, Rules, Runs

RULES = Rules(0.3)


def false(found: Decisions, true: np.ndarray, margin: float) -> float:
    """The share of studies with a verdict that is not true."""
    wrong = (
        ((found.kind == 1) & (true <= 0))
        | ((found.kind == 2) & (true >= 0))
        | ((found.kind == 3) & (np.abs(true) >= margin))
    )
    return float(wrong.any(1).mean())


@pytest.mark.parametrize("arms", [1, 4])
def test_relu_against_relu(arms: int):
    found = judge(Noise.alike(0.25, arms), RULES)
    assert found.studies == 2000
    assert found.false <= 0.05 * 2000
    assert found.passed
    assert found.power[0.5].better >= 0.95
    assert f"{found.false / 20:.1f}% of 2000 simulated studies of equal arms" in found.sentence()
    assert "(at most 5%)" in found.sentence()


@pytest.mark.parametrize("correlation", [-0.3, 0.0, 0.6])
@pytest.mark.parametrize("margin", [1e-6, 0.15, 0.3])
@pytest.mark.parametrize("arms", [1, 4])
def test_alpha_holds_at_every_margin_and_correlation(arms: int, margin: float, correlation: float):
    rules, studies = Rules(margin), 20_000
    found = simulate(Noise.alike(0.25, arms, correlation), 0, rules, studies, seed=1)
    assert false(found, np.zeros(arms), margin) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / studies)
    if arms == 1 and margin < 0.1:  # all of alpha is spent
        assert false(found, np.zeros(1), margin) > 0.05 - 3 * math.sqrt(0.05 * 0.95 / studies)


@pytest.mark.parametrize(
    ("looks", "deviation"), [((20,), 0.05), ((5, 8, 12, 20), 0.05), ((5, 8, 12, 20), 0.3)]
)
def test_alpha_holds_where_holm_fails(looks: tuple[int, ...], deviation: float):
    """Arms that differ by the margin itself are told from 0, and can still be "equivalent"."""
    rules, studies, true = Rules(0.3, looks), 20_000, np.array([0.3] * 8 + [0])
    noise = Noise(0.01, np.array([deviation] * 8 + [2.0]), np.zeros(9))
    found = simulate(noise, true, rules, studies)
    assert false(found, true, 0.3) < 0.05

    class Holm(Rules):
        def levels(self, hypotheses: int) -> np.ndarray:
            return np.array([Rules.levels(self, hypotheses - j)[:, 0] for j in range(9)]).T

    full = false(simulate(noise, true, Holm(0.3, looks), studies), true, 0.3)
    assert full > 0.05 + 3 * math.sqrt(0.05 * 0.95 / studies)


def test_mixed_truths_with_a_shared_baseline():
    rng, studies = np.random.default_rng(0), 10_000
    for seed in range(6):
        true = rng.choice([0, 0.1, 0.3, -0.3, 0.6], 5)
        noise = Noise(0.25, rng.choice([0.1, 0.25, 1.0], 5), rng.uniform(-0.5, 0.8, 5))
        share = false(simulate(noise, true, RULES, studies, seed), true, 0.3)
        assert share < 0.05 + 3 * math.sqrt(0.05 * 0.95 / studies)


def test_heavy_tails_make_fewer_false_verdicts():
    normal, heavy = (
        false(simulate(Noise.alike(1), 0, RULES, 20_000, 2, tails), np.zeros(1), 0.3)
        for tails in (None, 3)
    )
    assert heavy < normal


def test_figures_of_the_specification():
    """Deviation 0.25, margin 0.3: what equal arms and differences of 0.3 and 0.5 become."""
    error = 3 * math.sqrt(0.25 / 20_000) + 0.005  # and the rounding of the figures

    def share(correlation: float, difference: float) -> Found:
        noise = Noise.alike(0.25, 1, correlation)
        return Found.of(simulate(noise, difference, RULES, 20_000), RULES)

    assert share(0, 0).equivalent == pytest.approx(0.81, abs=error)
    assert share(0.5, 0).equivalent == pytest.approx(0.97, abs=error)
    assert share(0, 0.3).better == pytest.approx(0.90, abs=error)
    assert share(0, 0.5).better == pytest.approx(1.0, abs=error)


def test_noise_is_simulated_as_it_was_measured():
    rng = np.random.default_rng(0)
    base = rng.normal(90, 0.5, 4000)
    arm = (
        80 + 0.6 * 2 * (base - 90) + rng.normal(0, 0.8 * 1.0, 4000)
    )  # deviation 1, correlation 0.6
    noise = Noise.measured(Runs("ReLU", base), [Runs("CosLU", arm), Runs("new", base * math.nan)])
    assert noise.baseline == pytest.approx(0.5, rel=0.05)
    assert noise.arms == pytest.approx([1.0, 0.5], rel=0.05)
    assert noise.correlations == pytest.approx([0.6, 0.0], abs=0.05)
    with pytest.raises(ValueError, match="3 are the fewest"):
        Noise.measured(Runs("ReLU", base[:2]), [])


def test_splits_of_equal_values():
    found = splits(np.random.default_rng(0).normal(90, 0.25, 40), RULES)
    assert (found.values, found.count) == (40, 1000)
    assert found.false <= 0.06 * 1000
    assert "random splits of 40 runs" in found.sentence()
    with pytest.raises(ValueError, match="a split takes 60 finite values, there are 40"):
        splits(np.arange(40.0), RULES, arms=2)


def test_how_far_splits_depend_on_each_other():
    """Sets of values are independent: the variance of their shares says what a set is worth."""
    rules, sets, count = Rules(0.1), 150, 100
    made = [splits(np.random.default_rng(k).normal(size=40), rules, 1, count, k) for k in range(2)]
    rng = np.random.default_rng(9)
    shares = []
    for _ in range(sets):
        values = rng.normal(size=40)
        order = rng.permuted(np.tile(np.arange(40), (count, 1)), axis=1)
        taken = values[order].reshape(count, 2, 20)
        shares.append(told(taken[:, 1] - taken[:, 0], rules).mean())
    p, v = np.mean(shares), np.var(shares, ddof=1)
    for each in made:
        assert each.independent < count
        assert each.independent == pytest.approx(p * (1 - p) / v, rel=0.5)


def told(differences: np.ndarray, rules: Rules) -> np.ndarray:
    """Which studies of one arm have a difference at a look."""
    found, done = np.zeros(len(differences), bool), np.zeros(len(differences), bool)
    for n, level in zip(rules.looks, spending_levels(rules.looks, rules.alpha), strict=True):
        x = differences[:, :n]
        half = stats.t.isf(level / 2, n - 1) * x.std(1, ddof=1) / math.sqrt(n)
        inside, differs = np.abs(x.mean(1)) + half < rules.margin, np.abs(x.mean(1)) > half
        found |= ~done & differs & ~inside
        done |= inside | differs
    return found


def test_a_rule_that_is_broken_is_noticed():
    assert within(100, 2000, 0.05)
    assert not within(150, 2000, 0.05)


@pytest.mark.parametrize(
    ("false", "words"),
    [(50, "(at most 5%)"), (63, "(5%, and what chance adds)"), (150, "(MORE THAN 5%)")],
)
def test_splits_say_what_their_share_means(false: int, words: str):
    found = Splits(Rules(margin=0.3, looks=(5,)), 10, 1, 1000, false, 589.4)
    assert words in found.sentence()
    assert found.sentence().endswith("as much as 589 independent studies")

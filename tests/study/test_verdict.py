"""The verdict against scipy, statsmodels and simulation; the figures of the specification."""

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import ttost_paired

from study.levels import spending_levels
from study.power import chances, pairing, pairs_needed, smallest_difference
from study.verdict import DECIDED, Kind, Rules, Runs, Verdict, decide, family

LOOKS = (5, 8, 12, 20)
TABLE = {  # simulated with 200,000 studies
    1: (0.0125, 0.0101, 0.0138, 0.0262),
    2: (0.0065, 0.0047, 0.0065, 0.0123),
    3: (0.0043, 0.0031, 0.0042, 0.0080),
    4: (0.0033, 0.0023, 0.0031, 0.0060),
    6: (0.0022, 0.0016, 0.0019, 0.0039),
    9: (0.0014, 0.0011, 0.0012, 0.0025),
}


@pytest.mark.parametrize("hypotheses", TABLE)
def test_levels_are_those_of_the_specification(hypotheses: int):
    levels = spending_levels(LOOKS, 0.05, hypotheses)
    assert levels[0] == pytest.approx(0.0125 / hypotheses, rel=1e-9)  # exact
    for level, simulated, share in zip(
        levels, TABLE[hypotheses], np.diff((0, *LOOKS)) / 20, strict=True
    ):
        error = level / math.sqrt(200_000 * 0.05 / hypotheses * share)
        assert abs(level - simulated) < 3 * error + 5e-5  # its last digit is rounded


@pytest.mark.parametrize(("looks", "hypotheses"), [(LOOKS, 1), ((5, 6, 9, 24), 1), ((7, 9), 3)])
def test_each_look_spends_its_part_of_alpha(looks: tuple[int, ...], hypotheses: int):
    studies = 400_000
    rng, alive = np.random.default_rng(1), np.ones(studies, bool)
    total, squares = np.zeros(studies), np.zeros(studies)
    for before, n, level in zip(
        (0, *looks), looks, spending_levels(looks, 0.05, hypotheses), strict=False
    ):
        new = rng.standard_normal((n - before, studies), dtype=np.float32)
        total, squares = total + new.sum(0), squares + (new**2).sum(0)
        t = total / np.sqrt(n) / np.sqrt((squares - total**2 / n) / (n - 1))
        told = alive & (2 * stats.t.sf(np.abs(t), n - 1) < level)
        alive &= ~told
        planned = 0.05 / hypotheses * (n - before) / looks[-1]
        assert told.mean() == pytest.approx(planned, abs=3 * math.sqrt(planned / studies))


def test_levels_fall_with_every_half_hypothesis():
    levels = [spending_levels(LOOKS, 0.05, k / 2) for k in range(2, 20)]
    assert (np.diff(levels, axis=0) < 0).all()


@pytest.mark.parametrize(
    ("looks", "message"), [((4, 8), "5 pairs or more"), ((5, 5), "must increase"), ((), "increase")]
)
def test_looks_that_cannot_be(looks: tuple[int, ...], message: str):
    with pytest.raises(ValueError, match=message):
        Rules(0.3, looks)


@pytest.mark.parametrize(("margin", "alpha"), [(0, 0.05), (-1, 0.05), (math.nan, 0.05), (1, 1.0)])
def test_rules_that_cannot_be(margin: float, alpha: float):
    with pytest.raises(ValueError, match=r"must be (above|between) 0"):
        Rules(margin, alpha=alpha)


@pytest.mark.parametrize("seed", range(60))
def test_one_look_is_the_paired_t_test_and_tost(seed: int):
    rng = np.random.default_rng(seed)
    n, shift = int(rng.integers(5, 30)), rng.normal(0, 0.5)
    base = rng.normal(90, 1, n)
    arm = base + shift + rng.normal(0, rng.uniform(0.1, 1), n)
    [found] = family(Runs("base", base), [Runs("arm", arm)], Rules(0.4, (n,)))
    test = stats.ttest_rel(arm, base)
    bounds = test.confidence_interval(0.95)
    assert found.interval is not None
    assert found.interval[:4] == pytest.approx(
        (n, np.mean(arm - base), bounds.low, bounds.high), rel=1e-6
    )
    # two one-sided tests of 2.5% each are the interval of 95%
    if ttost_paired(arm, base, -0.4, 0.4)[0] < 0.025:
        assert found.kind is Kind.EQUIVALENT
    elif test.pvalue < 0.05:
        assert found.kind is (Kind.BETTER if test.statistic > 0 else Kind.WORSE)
    else:
        assert found.kind is Kind.UNDECIDED


@pytest.mark.parametrize(
    ("t", "more", "less"),
    [
        ((9, 9, 9, 2.9), 1, 0),  # p = 0.018 is below 0.05 / 2.5
        ((9, 9, 9, 2.5), 0, 1),  # p = 0.034 is not
        ((9, 9, 3, 1.5), 1, 0),
        ((9, 9, 2.8, 2.7), 0, 2),
        ((3, 2.9, 2.8, 2.7), 0, 0),
    ],
)
def test_step_down_lies_between_bonferroni_and_holm(t: tuple[float, ...], more: int, less: int):
    noise = np.random.default_rng(0).normal(size=(4, 10))
    noise = (noise - noise.mean(1)[:, None]) / noise.std(1, ddof=1)[:, None]
    arms = noise + np.array(t)[:, None] / math.sqrt(10)
    p = stats.ttest_1samp(arms, 0, axis=1)[1]
    named = [Runs(str(k), arm) for k, arm in enumerate(arms)]
    found = family(Runs("ReLU", np.zeros(10)), named, Rules(1e-9, (10,)))
    told = np.array([each.kind is Kind.BETTER for each in found])
    strict, loose = (multipletests(p, 0.05, method)[0] for method in ("bonferroni", "holm"))
    assert (strict <= told).all()
    assert (told <= loose).all()
    assert ((strict < told).sum(), (told < loose).sum()) == (more, less)


def plain(differences: np.ndarray, rules: Rules) -> list[tuple[str, int]]:
    """A study read in plain words: (K, pairs) differences to kind and look of each arm."""
    count = len(differences)
    found, told = [("undecided", 0)] * count, 0
    for number, n in enumerate(rules.looks, 1):
        again = True
        while again:
            again, steps = False, 0
            level = spending_levels(rules.looks, rules.alpha, count - min(told, count - 1) / 2)
            for k, row in enumerate(differences):
                if found[k][1]:
                    continue
                bounds = stats.ttest_1samp(row[:n], 0).confidence_interval(1 - level[number - 1])
                zero = bounds.low <= 0 <= bounds.high
                if -rules.margin < bounds.low and bounds.high < rules.margin:
                    found[k] = ("equivalent", number)
                elif not zero:
                    found[k] = ("better" if bounds.low > 0 else "worse", number)
                steps += found[k][1] > 0 and not zero
            told, again = told + steps, steps > 0
    return found


def test_decisions_equal_those_of_a_plain_reading():
    rules, rng = Rules(0.3), np.random.default_rng(3)
    true = rng.choice([0.0, 0.3, -0.6], (40, 3, 1))
    differences = true + rng.normal(0, 0.35, (40, 3, 20))
    means = np.stack([differences[..., :n].mean(-1) for n in LOOKS], -1)
    deviations = np.stack([differences[..., :n].std(-1, ddof=1) for n in LOOKS], -1)
    found = decide(means, deviations, np.ones((1, 1, 4), bool), rules)
    kinds = set()
    for kind, look, study in zip(found.kind, found.look, differences, strict=True):
        expected = plain(study, rules)
        assert [(DECIDED[a].value, int(b) + 1) for a, b in zip(kind, look, strict=True)] == expected
        kinds |= {each for each, _ in expected}
    assert kinds == {"better", "worse", "equivalent", "undecided"}


def test_an_arm_gains_from_another_that_is_told():
    """p = 0.03 is not below 0.025 of two arms, but below 0.05 / 1.5."""
    base, rules, rng = np.zeros(10), Rules(1e-9, (10,)), np.random.default_rng(0)
    noise = rng.normal(size=10)
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    weak = noise + stats.t.isf(0.015, 9) / math.sqrt(10)
    strong, none = noise + 5, noise
    told = family(Runs("ReLU", base), [Runs("a", weak), Runs("b", strong)], rules)
    alone = family(Runs("ReLU", base), [Runs("a", weak), Runs("b", none)], rules)
    assert [each.kind for each in told] == [Kind.BETTER, Kind.BETTER]
    assert alone[0].kind is Kind.UNDECIDED
    assert [round(each.interval.level, 4) for each in told if each.interval] == [0.0333, 0.025]


PAIRS = {  # of the specification: pairs for 80% power, K = 1 and the worst case of K = 4
    0.25: ((15, 21), (8, 11), (5, 7), (3, 4)),
    0.35: ((27, 38), (13, 19), (7, 9), (4, 5)),
    0.5: ((52, 73), (24, 35), (10, 15), (5, 7)),
    1.0: ((199, 282), (90, 128), (34, 48), (10, 15)),
}


@pytest.mark.parametrize("deviation", PAIRS)
def test_pairs_needed_are_those_of_the_specification(deviation: float):
    for difference, expected in zip((0.2, 0.3, 0.5, 1.0), PAIRS[deviation], strict=True):
        found = [pairs_needed(difference, deviation, level) for level in (0.05, 0.0125)]
        assert tuple(found) == expected


def test_pairs_for_equivalence_follow_the_interval():
    """The specification's 8, 14, 25, 97 are of TOST at 5%, whose interval has 90%; 25 is 26."""
    for deviation, tost, worst, own in (
        (0.25, 8, 12, 10),
        (0.35, 14, 20, 17),
        (0.5, 26, 38, 32),
        (1.0, 97, 141, 119),
    ):
        found = [pairs_needed(0, deviation, a, 0.3, "equivalent") for a in (0.1, 0.025, 0.05)]
        assert found == [tost, worst, own]


def test_power_is_that_of_statsmodels():
    for n, effect, level in ((5, 1.0, 0.01), (20, 0.5, 0.05), (8, 2.0, 0.003), (100, 0.1, 0.2)):
        found = chances(effect, 1.0, n, level)
        expected = TTestPower().power(effect, n, level)
        assert found.better + found.worse == pytest.approx(expected, rel=1e-3)
        least = TTestPower().solve_power(None, n, level, 0.8)
        assert smallest_difference(n, 3.0, level) == pytest.approx(3 * least, rel=1e-3)


@pytest.mark.parametrize(("difference", "deviation"), [(0.0, 0.3), (0.25, 0.2), (0.4, 0.5)])
def test_chances_of_each_verdict_are_those_of_simulation(difference: float, deviation: float):
    n, level, margin, studies = 9, 0.04, 0.3, 100_000
    x = np.random.default_rng(0).normal(difference, deviation, (studies, n))
    mean, half = x.mean(1), stats.t.isf(level / 2, n - 1) * x.std(1, ddof=1) / math.sqrt(n)
    inside = np.abs(mean) + half < margin
    shares = [((mean > half) & ~inside).mean(), ((mean < -half) & ~inside).mean(), inside.mean()]
    for found, share in zip(chances(difference, deviation, n, level, margin), shares, strict=True):
        assert found == pytest.approx(share, abs=3 * math.sqrt(max(share, 1e-4) / studies))


def test_pairing_gains_what_the_specification_says():
    rng, n = np.random.default_rng(0), 20
    x, y = rng.normal(size=(2, n))
    x, y = x - x.mean(), y - y.mean()
    y -= x * (x @ y) / (x @ x)
    x, y = x / x.std(), y / y.std()
    found = pairing(x, 0.58 * x + math.sqrt(1 - 0.58**2) * y)
    assert found == pytest.approx((0.58, 0.19, 0.81, 47.6), abs=0.01 * 2)
    assert math.isinf(pairing(x, x).unpaired)


def runs(name: str, *values: float, **status: tuple[str, ...]) -> Runs:
    return Runs(name, np.array(values, float), **status)


def of(differences: list[float], margin: float = 0.3, higher_is_better: bool = True) -> Verdict:
    base = 90 + np.arange(len(differences)) % 7
    arm = Runs("CosLU", base + np.array(differences))
    rules = Rules(margin, higher_is_better=higher_is_better)
    return family(Runs("ReLU", base), [arm], rules)[0]


UP, FLAT = [0.9, 1.1, 1.0, 0.8, 1.2], [0.02, -0.03, 0.01, 0.0, -0.01]


def test_a_sentence_for_each_kind():
    assert of([-each for each in UP]).sentence() == (
        "CosLU: WORSE than ReLU: -1.00 points [-1.31, -0.69] over 5 paired seeds"
    )
    assert of(UP).sentence().startswith("CosLU: BETTER than ReLU: +1.00 points [+0.69, +1.31]")
    assert of(FLAT).sentence() == (
        "CosLU: EQUIVALENT to ReLU within 0.3 points: +0.00 points [-0.04, +0.04] over 5 paired seeds"
    )
    assert of([each / 10 for each in UP]).sentence().endswith("seeds, real but below the margin")
    assert of(UP[:4]).sentence() == (
        "CosLU: NO VERDICT against ReLU: 4 of the 5 paired seeds that the first look needs"
    )
    assert of([0.0] * 5).sentence() == "CosLU: IDENTICAL to ReLU in all 5 paired seeds"
    same = of([0.5] * 5)
    assert same.kind is Kind.UNDECIDED
    assert same.sentence().endswith("all differences are the same, which a t test cannot judge")


def test_an_undecided_sentence_says_what_it_takes():
    seen = of([1.6, -0.2, 0.9, 0.1, 1.1])
    assert seen.kind is Kind.UNDECIDED
    levels = spending_levels(LOOKS)
    deviation, power = np.std([1.6, -0.2, 0.9, 0.1, 1.1], ddof=1), []
    for n, level in zip(LOOKS, levels, strict=True):
        power.append(TTestPower().power(0.7 / deviation, n, level))
    assert seen.needed == 15  # the look at 20 is the first with 80% power
    assert power[2] < 0.8 <= power[3]
    assert seen.sentence().endswith("seeds; needs 15 more if the truth is as seen")
    far = of([2.0, -2.0, 1.5, -1.0, 0.5])
    assert far.needed is None
    spread = np.std([2.0, -2.0, 1.5, -1.0, 0.5], ddof=1)
    least = TTestPower().solve_power(None, 20, levels[-1], 0.8) * spread
    assert f"beyond the last look if the truth is as seen; the smallest difference that 20 pairs find in 80% of studies is {least:.2f} points" in far.sentence()  # fmt: skip
    last = of([2.0, -2.0, 1.5, -1.0, 0.5] * 4)
    assert "beyond" not in last.sentence()
    assert "the smallest difference that 20 pairs find" in last.sentence()


def test_a_decision_stands_and_later_pairs_are_shown():
    later = [0.3, -0.5, 0.2]
    first, both = of(UP), of(UP + later)
    assert (both.kind, both.look, both.interval) == (first.kind, 1, first.interval)
    assert [each.n for each in both.history] == [5, 8]
    bounds = stats.ttest_1samp(UP + later, 0).confidence_interval(1 - spending_levels(LOOKS)[1])
    assert both.sentence() == (
        f"{first.sentence()} (decided there; by now +0.62 points [{bounds.low:+.2f}, "
        f"{bounds.high:+.2f}] over 8 paired seeds)"
    )
    between = of([*UP, -9, 9])  # between looks nothing is read
    assert (between.sentence(), between.history) == (first.sentence(), first.history)


@pytest.mark.parametrize("seed", range(10))
def test_what_a_look_says_is_never_taken_back(seed: int):
    rng = np.random.default_rng(seed)
    base = rng.normal(90, 0.25, 20)
    arms = base + rng.choice([0, 0.3, 0.8], (3, 1)) + rng.normal(0, 0.4, (3, 20))
    said = {}
    for n in (5, 8, 12, 20):
        seen = np.where(np.arange(20) < n, arms, np.nan)
        named = [Runs(str(k), row) for k, row in enumerate(seen)]
        for k, found in enumerate(family(Runs("ReLU", base), named, Rules(0.3))):
            if k in said:
                assert (found.kind, found.look, found.interval) == said[k]
            elif found.look:
                said[k] = (found.kind, found.look, found.interval)
                assert found.interval
                assert found.interval.n == n
    assert said


def test_a_loss_is_better_when_it_is_lower():
    found = of([-each for each in UP], higher_is_better=False)
    assert found.kind is Kind.BETTER
    assert "BETTER than ReLU: -1.00 points [-1.31, -0.69]" in found.sentence()


def test_diverged_runs_make_an_arm_unstable_whatever_it_had_shown():
    base = Runs("ReLU", np.full(8, 90.0) + np.arange(8))
    values = base.values + np.array([*UP, 1.0, 1.0, 1.0])
    values[6:] = np.nan
    arm = Runs("CosLU", values, ("ok",) * 6 + ("diverged",) * 2)
    found = family(base, [arm], Rules(0.3))[0]
    assert found.fisher == pytest.approx(stats.fisher_exact([[2, 6], [0, 8]])[1])
    assert (found.kind, found.diverged, found.ended) == (Kind.UNSTABLE, 2, 8)
    assert found.sentence() == (
        "CosLU: UNSTABLE against ReLU: 2 of 8 runs diverged, 0 of 8 of ReLU "
        "(Fisher's exact test: p = 0.47); +1.00 points over 6 pairs that ended"
    )
    other = family(arm, [Runs("SiLU", base.values)], Rules(0.3))[0]
    assert other.kind is Kind.WORSE  # decided before its baseline diverged


def test_a_verdict_stands_when_the_baseline_diverges_later():
    base = Runs("ReLU", np.array([*np.arange(90.0, 96.0), np.nan]), ("ok",) * 6 + ("diverged",))
    values = np.arange(90.0, 97.0) + np.array([*UP, np.nan, np.nan])
    found = family(base, [Runs("CosLU", values)], Rules(0.3))[0]
    assert (found.kind, found.look) == (Kind.BETTER, 1)
    assert found.sentence().endswith("(decided before 1 of 7 runs of ReLU diverged)")
    values[2] = values[2] - 9  # undecided
    assert family(base, [Runs("CosLU", values)], Rules(0.3))[0].kind is Kind.UNSTABLE


def test_identical_pairs_are_those_of_the_look():
    base = Runs("ReLU", np.arange(7.0))
    arm = Runs("CosLU", np.array([0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 7.0]))
    found = family(base, [arm], Rules(0.3))[0]
    assert found.sentence() == "CosLU: IDENTICAL to ReLU in all 5 paired seeds"


def test_failed_runs_hold_back_looks_that_are_not_yet_read():
    base = Runs("ReLU", np.arange(8.0))
    values = base.values + np.array([1.6, -0.2, 0.9, 0.1, 1.1, 1.0, 1.0, 1.0])
    values[2] = np.nan
    failed = tuple("failed" if k == 2 else "ok" for k in range(8))
    found = family(base, [Runs("CosLU", values, failed)], Rules(0.3))[0]
    assert found.sentence() == (
        "CosLU: HELD BACK against ReLU: a run of pair 3 failed; `status` names its folder: delete "
        "it, and it is run again"
    )
    values = base.values + np.array([*UP, 1.0, 1.0, np.nan])
    late = Runs("CosLU", values, ("ok",) * 7 + ("failed",))
    assert family(base, [late], Rules(0.3))[0].kind is Kind.BETTER  # as of the first look
    missing = Runs("CosLU", values)  # not failed, but still to run
    assert missing.status[-1] == "missing"
    assert [each.n for each in family(base, [missing], Rules(0.3))[0].history] == [5]


def test_a_failed_arm_does_not_loosen_the_others():
    rng, rules = np.random.default_rng(0), Rules(1e-9, (10,))
    noise = rng.normal(size=10)
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    weak, strong = noise + stats.t.isf(0.015, 9) / math.sqrt(10), noise + 5
    lost = Runs(
        "b", np.where(np.arange(10) == 4, np.nan, strong), ("ok",) * 4 + ("failed",) + ("ok",) * 5
    )
    found = family(Runs("ReLU", np.zeros(10)), [Runs("a", weak), lost], rules)
    assert [each.kind for each in found] == [Kind.UNDECIDED, Kind.HELD]


def test_each_cell_has_its_own_baseline():
    one, two = Runs("ReLU", np.arange(5.0)), Runs("ReLU", 50 + np.arange(5.0))
    arms = [Runs("CosLU", base.values + np.array(UP)) for base in (one, two)]
    assert [each.kind for each in family([one, two], arms, Rules(0.3))] == [Kind.BETTER] * 2


def test_bad_runs_are_refused():
    with pytest.raises(ValueError, match="ok, but has no value"):
        runs("CosLU", 1.0, math.inf, status=("ok", "ok"))
    with pytest.raises(ValueError, match="unknown status 'fine'"):
        runs("CosLU", 1.0, status=("fine",))
    with pytest.raises(ValueError, match="CosLU has 1 seeds and ReLU 2"):
        family(runs("ReLU", 1.0, 2.0), [runs("CosLU", 1.0)], Rules(0.3))
    with pytest.raises(ValueError, match="2 arms, 2 baselines, 1 hypotheses"):
        family(runs("ReLU", 1.0), [runs("a", 1.0), runs("b", 1.0)], Rules(0.3), 1)

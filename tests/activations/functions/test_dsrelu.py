"""DSReLU's schedule against the numbers of the paper and of the authors' code."""

import math

import pytest
import torch

from activations import DSReLU, Scheduled, set_progress


def test_slopes_of_the_paper():
    module = DSReLU()
    assert module.slope_at(0.5) == pytest.approx((11.4301 + 0.1763) / 2, abs=1e-4)
    assert module.slope_at(0) == pytest.approx(11.4301 - 0.07586 * (11.4301 - 0.1763), abs=1e-3)
    assert module.slope_at(1) == pytest.approx(1.03, abs=0.005)


def test_slopes_of_the_code_cross_one_at_0873():
    module = DSReLU(a=math.tan(math.radians(75)), b=math.tan(math.radians(30)))
    assert module.slope_at(0) == pytest.approx(3.49, abs=0.005)
    assert module.slope_at(0.873) == pytest.approx(1, abs=1e-3)


def test_normalized_meets_both_ends():
    module = DSReLU(a=3.0, b=0.5, k=7.0, normalized=True)
    assert module.slope_at(0) == pytest.approx(3.0)
    assert module.slope_at(1) == pytest.approx(0.5)


def test_a_step_like_slope():
    for normalized in (True, False):
        module = DSReLU(a=3.0, b=0.5, k=5000.0, normalized=normalized)
        assert [module.slope_at(t) for t in (0, 0.4, 0.5, 0.6, 1)] == [3, 3, 1.75, 0.5, 0.5]


def test_progress_changes_the_buffer_in_place_and_is_stored():
    module = DSReLU()
    assert isinstance(module, Scheduled)
    buffer = module.slope
    assert set_progress(torch.nn.Sequential(module, torch.nn.ReLU(), DSReLU()), 0.6) == 2
    assert module.slope is buffer
    assert buffer.item() == pytest.approx(module.slope_at(0.6))
    fresh = DSReLU()
    fresh.load_state_dict(module.state_dict())
    assert fresh.slope.item() == buffer.item()


@pytest.mark.parametrize("progress", [-0.1, 1.001, math.nan])
def test_progress_out_of_range(progress: float):
    with pytest.raises(ValueError, match="progress must lie in"):
        DSReLU().set_progress(progress)


def test_steepness_must_be_positive():
    with pytest.raises(ValueError, match="k must be > 0, got -1"):
        DSReLU(k=-1.0)

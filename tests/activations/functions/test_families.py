"""What single families promise beyond the tests of every row."""

import copy
import inspect
import math
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import activations as A
from activations.functions.ditac import basis, covariance, knot_basis
from tests.cases import flow

X = torch.linspace(-6, 6, 1201)


@pytest.mark.parametrize(
    ("module", "known", "tolerance"),
    [
        (A.CosLU(alpha=0), F.silu, 1e-6),
        (A.SinLU(alpha=0), F.silu, 1e-6),
        (A.DELU(), A.HELU(), 0),
        (A.ReLUN(), lambda x: x.clamp(0, 1), 0),
        (A.ShiLU(beta=0), F.relu, 0),
        (A.ScaledSoftSign(), F.softsign, 1e-7),
        (A.LinComb([nn.ReLU]), F.relu, 0),
        (A.NormLinComb([nn.GELU], [0.3]), F.gelu, 1e-6),
        (A.FReLU(), partial(F.leaky_relu, negative_slope=0.01), 0),
        (A.FReLU(1, 0), F.relu, 0),
        (A.APA(1, 1), torch.sigmoid, 1e-6),
        (A.APA(1e-4, 0.8), lambda x: torch.exp(-torch.exp(-0.8 * x)), 1e-3),
        (A.AGLU(1, 1), F.silu, 1e-6),
        (A.EvenCubicReLU(), F.relu, 0),
        (A.Swish(), F.silu, 1e-6),
        (A.ACONC(), F.silu, 1e-6),
        (A.PELU(), F.elu, 1e-6),
        (A.Snake(), lambda x: x + 1 - x.cos(), 1e-5),
        (A.Snake(alpha=1), lambda x: x + x.sin() ** 2, 1e-5),
        (A.Snake(alpha=0), lambda x: x, 0),
        (A.BSpline(pieces=6), F.relu, 1e-6),
        (A.DiTAC(theta="zero"), F.gelu, 2e-6),
        (A.DiTAC(theta="zero", variant="leaky"), partial(F.leaky_relu, negative_slope=0.01), 2e-6),
        (A.DSReLU(1, 1, negative_slope=0), F.relu, 0),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_it_equals_at_initialisation(module: nn.Module, known: Any, tolerance: float):
    torch.testing.assert_close(module(X), known(X), rtol=tolerance, atol=tolerance)


def test_a_spline_is_as_exact_as_its_numbers():
    x, spline = torch.linspace(-3, 3, 301, dtype=torch.float64), A.BSpline(10).double()
    with torch.no_grad():
        spline.values.normal_()
        knots = np.linspace(-3, 3, 11)
        expected = np.interp(x.numpy(), knots, spline.values[0].numpy())
        np.testing.assert_allclose(spline(x).numpy(), expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize(
    ("module", "error"), [(A.Polynomial(5), 0.03), (A.Rational(), 1e-3), (A.Fourier(2), 0.03)]
)
def test_series_start_near_silu(module: A.Activation, error: float):
    x = torch.linspace(-3, 3, 301)
    assert (module(x) - F.silu(x)).abs().max() < error


@pytest.mark.parametrize("module", [A.Polynomial(20), A.Rational(26, 2)], ids=repr)
def test_high_degrees_start_near_silu(module: A.Activation):
    x = torch.linspace(-3, 3, 301, dtype=torch.float64)
    assert (module.double()(x) - F.silu(x)).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("gain", "module"),
    [
        (1.363, A.CosLU()),
        (1.344, A.DELU()),
        (1.969, A.ReLUN()),
        (1.354, A.EELU(2)),
        (1.997, A.AGLU(0.5, 0.5)),
        (1.677, A.Swish()),
    ],
)
def test_second_moments_of_the_literature(gain: float, module: A.Activation):
    x = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    density = torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    moment = torch.trapezoid(module.double()(x) ** 2 * density, x)
    assert moment.item() ** -0.5 == pytest.approx(gain, abs=0.0015)


@pytest.mark.parametrize(
    ("module", "x", "slope"),
    [
        (A.DELU(), 0.0, 0.5),
        (A.HELU(), 1e-6, 1.5),
        (A.FReLU(0.7, 0.2), 0.0, 0.7),
        (A.FReLU(0.7, 0.2), -1e-6, 0.2),
        (A.PELU(0.6, 0.3), 0.0, 2.0),
        (A.ReLUN(1.5), 1.5, 0.0),
        (A.ReLUN(1.5), 1.4999, 1.0),
    ],
)
def test_kinks_are_where_the_paper_puts_them(module: A.Activation, x: float, slope: float):
    point = torch.tensor([x], requires_grad=True)
    module(point).sum().backward()
    assert point.grad is not None
    assert point.grad.item() == pytest.approx(slope, abs=1e-4)


@pytest.mark.parametrize(
    ("module", "name", "bound"),
    [
        (A.ReLUN(), "n", 0.0),
        (A.ScaledSoftSign(), "beta", 1e-4),
        (A.APA(1, 1), "lambd", 1e-4),
        (A.AGLU(1, 1), "lambd", 1e-4),
        (A.PELU(), "a", 0.1),
        (A.PELU(), "b", 0.1),
    ],
)
def test_gradients_live_below_the_bound(module: A.Activation, name: str, bound: float):
    parameter = getattr(module, name)
    with torch.no_grad():
        parameter.fill_(bound - 3)
    y = module(X)
    assert y.isfinite().all()
    right, left = (
        torch.autograd.grad(y[side].sum(), parameter, retain_graph=True)[0]
        for side in (X > 0.5, X < -0.5)
    )
    assert right.isfinite()
    assert left.isfinite()
    assert right.abs() + left.abs() > 0
    with torch.no_grad():
        value = module(X).clone()
        parameter.fill_(bound)
        torch.testing.assert_close(module(X), value)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("repeats", [1, 3, 4])
def test_fused_lslu_is_evaluation_mode(dims: int, repeats: int):
    torch.manual_seed(1)
    module = A.LSLU(5, theta=0.7, omega=-0.1, repeats=repeats, dims=dims)
    x = torch.randn(4, 5, *[11, 9, 4][:dims])
    for _ in range(3):
        module(x)  # moves the running statistics
    nn.init.uniform_(module.norm.weight, 0.5, 2)
    nn.init.uniform_(module.norm.bias)
    fused = module.fuse()
    assert not any(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in fused.modules())
    torch.testing.assert_close(fused(x), module.eval()(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fused.fuse()(x), fused(x), rtol=0, atol=0)


FIELDS = [np.array([0.9, -0.4, 0.7, 0.3]), np.array([1.5, 2, 1, 0.5]), np.array([-2.0, 0, -1, 0])]


@pytest.mark.parametrize("inner", FIELDS, ids=str)
def test_cpab_is_the_flow(inner: np.ndarray):
    velocities = np.concatenate([[0], inner, [0]])
    x = np.linspace(0, 1, 1001)
    closed = A.cpab(torch.from_numpy(x), torch.from_numpy(velocities)[None])[0].numpy()
    assert np.abs(closed - flow(x, velocities, steps=20_000)).max() < 1e-6
    assert (np.diff(closed) > 0).all()
    assert (closed[0], closed[-1]) == (0, 1)
    back = A.cpab(torch.from_numpy(closed), -torch.from_numpy(velocities)[None])[0].numpy()
    assert np.abs(back - x).max() < 1e-9  # the flow of -v undoes it


def test_cpab_gradient():
    torch.manual_seed(2)
    x = torch.rand(7, dtype=torch.float64)
    v = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(2, 1, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda v: A.cpab(x, torch.cat([zero, v, zero], 1)), (v,))


def test_cpab_basis_spans_the_continuous_fields_with_zero_ends():
    b = basis(6)
    assert b.shape == (12, 5)
    torch.testing.assert_close(b.T @ b, torch.eye(5, dtype=torch.float64))
    field = (b @ torch.randn(5, dtype=torch.float64)).view(6, 2)
    knots = torch.arange(7) / 6
    left, right = (field[:, 0] * k + field[:, 1] for k in (knots[:-1], knots[1:]))
    torch.testing.assert_close(right[:-1], left[1:])
    assert max(left[0].abs(), right[-1].abs()) < 1e-12
    assert torch.linalg.matrix_rank(knot_basis(6)) == 5


def test_ditac_prior_and_penalty():
    torch.manual_seed(0)
    sigma = covariance(10, 5.0, 2.0)
    module = A.DiTAC(theta="prior", num_parameters=20_000, table=2)
    drawn = module.theta.detach().double()
    torch.testing.assert_close(drawn.T @ drawn / len(drawn), sigma, rtol=0.1, atol=20)
    small = A.DiTAC(theta="prior", penalty_weight=0.3)
    theta = small.theta.detach().double()[0]
    expected = 0.3 * theta @ torch.linalg.solve(sigma, theta)
    model = nn.Sequential(small, A.CosLU(), A.DiTAC(theta="zero"))
    torch.testing.assert_close(A.penalty(model), expected.float(), rtol=1e-4, atol=1e-4)
    assert A.penalty(nn.Sequential(A.CosLU(), A.DiTAC(penalty_weight=0))) == 0.0


def test_the_classifier_adds_the_penalty(monkeypatch: pytest.MonkeyPatch):
    from models import Classifier

    torch.manual_seed(0)
    model = Classifier("resnet8", activation=partial(A.DiTAC, theta="prior", table=64)).eval()
    monkeypatch.setattr(model, "log", lambda *args, **kwargs: None)
    monkeypatch.setattr(
        Classifier,
        "trainer",
        SimpleNamespace(optimizers=[torch.optim.SGD(A.parameter_groups(model), 1)], global_step=0),
    )
    x, y = torch.randn(2, 3, 32, 32), torch.tensor([1, 2])
    loss = model.training_step((x, y), 0)
    expected = F.cross_entropy(model(x), y) + A.penalty(model.backbone)
    torch.testing.assert_close(loss, expected)


def test_ditacs_table_error_is_as_stated():
    module = A.DiTAC(theta="zero", table=2048).double()
    with torch.no_grad():
        module.theta.copy_(torch.tensor([[3.0, -2, 1, 0, 2, -1, 0.5, 1, -3]]))
    x = torch.linspace(-0.499, 1.999, 20_001, dtype=torch.float64)
    velocities = module.theta.detach() @ module.knots
    exact = -0.5 + 2.5 * A.cpab((x + 0.5) / 2.5, velocities)[0]
    h = x[1] - x[0]
    curvature = (exact[2:] - 2 * exact[1:-1] + exact[:-2]).abs().max() / h**2
    error = (module.transform(x) - exact).abs().max()
    assert error <= 1.05 * (2.5 / 2048) ** 2 * curvature / 8
    assert error < 1e-4


@pytest.mark.parametrize(
    "module",
    [
        A.Polynomial(6, True),
        A.Rational(6, 5, True),
        A.Rational(2, 4, True),
        A.Fourier(4, progressive=True),
    ],
    ids=["Polynomial", "Rational-6-5", "Rational-2-4", "Fourier"],
)
def test_progressive_terms_never_make_a_jump(module: Any):
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.9)
    x = torch.linspace(-2, 2, 41)
    used = []
    for step in range(41):
        before = module(x)
        module.set_progress(step / 40)
        used.append(module.unlocked.item())
        # the rational's powers are regrouped; the other two must not move by a bit
        rounding = 1e-6 if isinstance(module, A.Rational) else 0
        torch.testing.assert_close(module(x), before, rtol=rounding, atol=rounding)
        optimizer.zero_grad()
        (module(x) - x.sin()).square().mean().backward()
        optimizer.step()
    assert used == sorted(used)
    assert used[0] == module.basic
    assert used[-1] == module.number_of_terms
    steps = [used.count(level) for level in dict.fromkeys(used)]
    assert len(steps) == module.number_of_terms - module.basic + 1
    assert max(steps) - min(steps) <= 2  # equal shares of the training
    for name, parameter in module.named_parameters():
        assert (parameter != 0).all(), name  # every term came to life
    with pytest.raises(ValueError, match="progress must lie in"):
        module.set_progress(1.2)


def test_mixtures_hold_learned_members_of_their_own():
    factory = partial(A.LinComb, [partial(A.CosLU, beta=0.5), nn.Tanh])
    first, second = factory(), factory()
    assert first.members[0] is not second.members[0]
    assert set(A.shape_parameters(first)) == {"weights", "members.0.alpha", "members.0.beta"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: A.DiTAC(cells=-3), "cells must be an integer >= 2, got -3"),
        (lambda: A.DiTAC(a=2.0, b=2.0), "a must be < b, got 2.0 and 2.0"),
        (lambda: A.DiTAC(variant="wide"), "variant must be gelu, leaky, ge or inf, got 'wide'"),  # pyright: ignore[reportArgumentType]
        (lambda: A.DiTAC(theta="one"), "theta must be prior or zero, got 'one'"),  # pyright: ignore[reportArgumentType]
        (lambda: A.DiTAC(penalty_weight=-1.0), "penalty_weight must be >= 0, got -1.0"),
        (lambda: A.DiTAC(length=0.0), "length must be > 0, got 0.0"),
        (lambda: A.LinComb([]), r"members must be a list such as \[torch.nn.ReLU\], got \[\]"),
        (lambda: A.LinComb(nn.ReLU), "members must be a list such as .*, got <class"),  # pyright: ignore[reportArgumentType]
        (lambda: A.LinComb([nn.ReLU], 0.5), "1 members need as many weights, got 0.5"),  # pyright: ignore[reportArgumentType]
        (lambda: A.LinComb([nn.ReLU], ["x"]), "weights must be a finite number, got 'x'"),  # pyright: ignore[reportArgumentType]
        (lambda: A.EELU(True), "variant must be 1, 2, 3 or 4, got True"),
        (lambda: A.LSLU(dims=True), "dims must be 1, 2 or 3, got True"),
        (lambda: A.CosLU(num_parameters=True), "num_parameters must be an integer >= 1, got True"),
        (lambda: A.CosLU(num_parameters=1.5), "num_parameters must be an integer >= 1, got 1.5"),  # pyright: ignore[reportArgumentType]
        (lambda: A.Fourier(progressive=1), "progressive must be False or True, got 1"),  # pyright: ignore[reportArgumentType]
        (
            lambda: A.CosLU(dtype=torch.int64),
            "dtype must be None, .* or torch.float64, got torch.int64",
        ),
        (lambda: A.CosLU(device="xyz"), "device must be .*, got 'xyz': Expected one of cpu"),
        (lambda: A.CosLU(device=3.5), "device must be .*, got 3.5: "),  # pyright: ignore[reportArgumentType]
        (
            lambda: A.LinComb([nn.ReLU], [1.0, 2.0]),
            r"1 members need as many weights, got \[1.0, 2.0\]",
        ),
        (lambda: A.Polynomial(0), "degree must be an integer >= 1, got 0"),
        (lambda: A.Rational(0), "m must be an integer >= 1, got 0"),
        (lambda: A.Rational(3, 0), "n must be an integer >= 1, got 0"),
        (lambda: A.Fourier(0), "harmonics must be an integer >= 1, got 0"),
        (lambda: A.Fourier(omega=-1.0), "omega must be > 0, got -1.0"),
        (lambda: A.BSpline(pieces=0), "pieces must be an integer >= 1, got 0"),
        (lambda: A.BSpline(low=1.0, high=-1.0), "low must be < high, got 1.0 and -1.0"),
        (lambda: A.EELU(5), "variant must be 1, 2, 3 or 4, got 5"),
        (lambda: A.APA(lambd=0.0), "lambd must be > 0, got 0.0"),
        (lambda: A.PELU(a=0.05), "a must be >= 0.1, got 0.05"),
        (lambda: A.ReLUN(n=-1.0), "n must be >= 0, got -1.0"),
        (lambda: A.ScaledSoftSign(beta=-1.0), "beta must be > 0, got -1.0"),
        (lambda: A.LSLU(dims=4), "dims must be 1, 2 or 3, got 4"),
        (lambda: A.DynamicReLU(reduction=0), "reduction must be an integer >= 1, got 0"),
        (lambda: A.DynamicReLU(4)(torch.zeros(2, 3)), r"DynamicReLU has channels=4.*\(2, 3\)"),
        (lambda: A.Formula("x * sigmod(x)"), "no function 'sigmod'; the nearest: sigmoid"),
        (lambda: A.Formula("x * beta"), "needs a value of 'beta': constants="),
        (lambda: A.Formula("x", {"beta": 1.0}), "the formula 'x' has no constant 'beta'"),
        (lambda: A.Formula("2 * 3"), r"the formula '2 \* 3' has no x in it"),
        (lambda: A.Formula("max(x)"), "max takes 2 values, got 1"),
        (lambda: A.Formula("x if x else 0"), "'x if x else 0' is no formula of x, such as"),
        (lambda: A.Formula("x.__class__"), "'x.__class__' is no formula of x"),
        (lambda: A.Formula("__import__('os')"), "no function '__import__'"),
        (lambda: A.Formula("x" + "**x" * 10**5), "is no formula of x"),
        (lambda: A.Formula("x * forward", {"forward": 1.0}), "'forward' cannot name a constant"),
        (lambda: A.FReLU(a=float("inf")), "a must be a finite number, got inf"),
    ],
)
def test_bad_arguments_are_named(make: Any, message: str):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("member", [nn.ReLU(), 3, lambda: 3])
def test_members_must_be_factories(member: Any):
    with pytest.raises(TypeError, match=r"a member must be a factory such as torch.nn.ReLU"):
        A.LinComb([member])


def test_gallery_draws_every_activation(tmp_path, monkeypatch: pytest.MonkeyPatch):
    from activations import gallery

    kinds = {type(module) for _, module in gallery.samples()}
    public = {getattr(A, name) for name in A.__all__}
    assert kinds == {k for k in public if isinstance(k, type) and issubclass(k, A.Activation)} - {
        A.Activation
    }
    monkeypatch.setattr("sys.argv", ["activations", str(tmp_path / "g.png")])
    gallery.main()
    assert (tmp_path / "g.png").read_bytes()[:4] == b"\x89PNG"
    monkeypatch.setattr("sys.argv", ["activations"])
    with pytest.raises(SystemExit, match="usage: python -m activations"):
        gallery.main()


@pytest.mark.parametrize(
    ("module", "x", "value", "slope"),
    [
        (A.EvenCubicReLU(), 7.1e12, 7.1e12, 1.0),
        (A.ACONC(3.0, 0.5), -1.5e38, -7.5e37, 0.5),
        (A.AGLU(0.1, 1.0), 1e38, 1e38, 1.0),
        (A.AGLU(0.5, 1.0), 1.1e38, 1.1e38, 1.0),
        (A.PELU(1.0, 1000.0), -5000.0, math.expm1(-5), math.exp(-5) / 1000),
        (A.PELU(1.0, 0.1), -3e38, -1.0, 0.0),
        (A.Swish(2.0), -3e38, 0.0, 0.0),
    ],
)
def test_far_points(module: A.Activation, x: float, value: float, slope: float):
    point = torch.tensor([x], requires_grad=True)
    y = module(point)
    (3 * y).sum().backward()
    assert point.grad is not None
    assert y.item() == pytest.approx(value, rel=1e-5)
    assert point.grad.item() == pytest.approx(3 * slope, rel=1e-4)
    for parameter in module.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("x", [3.0, -1e7, 1e8, 1e11, -1e18])
def test_progressive_rational_far_out(x: float, dtype: torch.dtype):
    module = A.Rational(progressive=True).to(dtype)
    a, b = (p.detach().double()[0] for p in (module.numerator, module.denominator))
    point = torch.tensor([x], dtype=dtype, requires_grad=True)
    y = module(point)
    y.sum().backward()
    wide = torch.tensor([x], dtype=torch.float64, requires_grad=True)
    true = (a[0] + a[1] * wide + a[2] * wide**2) / (1 + (b[0] * wide).abs())
    true.sum().backward()
    torch.testing.assert_close(y.double(), true, rtol=1e-5, atol=0)
    torch.testing.assert_close(point.grad.double(), wide.grad, rtol=1e-4, atol=0)  # pyright: ignore[reportOptionalMemberAccess]


@pytest.mark.parametrize("m", range(1, 10))
@pytest.mark.parametrize("n", range(1, 10))
def test_rational_starts_near_silu_for_any_degrees(m: int, n: int):
    x = torch.linspace(-3, 3, 301, dtype=torch.float64)
    error = (A.Rational(m, n).double()(x) - F.silu(x)).abs().max()
    assert error < {1: 0.9, 2: 0.15, 3: 0.15}.get(m, 0.04)


def test_ditac_does_not_depend_on_who_came_first():
    basis.cache_clear()
    covariance.cache_clear()
    knot_basis.cache_clear()
    with torch.device("meta"):
        empty = A.DiTAC()
    module = A.DiTAC(theta="prior")
    assert module.knots.device.type == "cpu"
    assert module.knots.data_ptr() != A.DiTAC().knots.data_ptr()
    empty = empty.to_empty(device="cpu")
    empty.load_state_dict(module.state_dict())
    assert torch.equal(empty(X), module(X))


def test_members_of_another_dtype():
    mixture = A.LinComb([nn.PReLU, nn.ReLU])
    for dtype in (torch.half, torch.bfloat16, torch.double):
        x = torch.randn(2, 3, dtype=dtype)
        assert mixture.to(dtype)(x).dtype == dtype


def test_members_of_a_mixture_leave_its_input():
    mixture = A.LinComb([partial(nn.ReLU, inplace=True), nn.Hardtanh])
    x = torch.linspace(-3, 3, 13)
    kept = x.clone()
    torch.testing.assert_close(mixture(x), (F.relu(x) + F.hardtanh(x)) / 2)
    assert torch.equal(x, kept)


@pytest.mark.parametrize("slope", [20.0, 90.0])
def test_ditac_goes_on_as_a_line_however_steep(slope: float):
    module = A.DiTAC(variant="inf")
    field = torch.zeros(len(module.knots[0]) if module.knots.dim() > 1 else 11).double()
    field[1] = slope / 10
    theta = torch.linalg.lstsq(module.knots.double().T, field[:, None]).solution[:, 0]
    with torch.no_grad():
        module.theta.copy_(theta.to(module.theta).expand_as(module.theta))
    exact = copy.deepcopy(module).double()
    x = torch.tensor([0.7, 2.0, 3.0, 5.0], requires_grad=True)
    wide = x.detach().double().requires_grad_()
    y, expected = module(x), exact(wide)
    torch.testing.assert_close(y.double(), expected, rtol=1e-3, atol=1e-4)
    (found,) = torch.autograd.grad(y.sum(), x)
    (wanted,) = torch.autograd.grad(expected.sum(), wide)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-2, atol=1e-3)


def test_hooks_of_members_are_called_for_large_inputs():
    mixture, called = A.LinComb([A.CosLU, nn.Tanh]), list[int]()
    mixture.members[0].register_full_backward_hook(lambda *_: called.append(1))
    for count in (100, 2**18):
        mixture(torch.randn(count, requires_grad=True)).sum().backward()
    assert len(called) == 2


def test_the_pieces_of_a_spline_are_computed_in_float32():
    spline = A.BSpline().to(torch.bfloat16)
    with torch.no_grad():
        spline.values.add_(torch.randn(spline.values.shape, generator=torch.manual_seed(3)))
    x = torch.linspace(-3, 3, 401).to(torch.bfloat16)
    exact = copy.deepcopy(spline).double()(x.double())
    torch.testing.assert_close(spline(x), exact.to(torch.bfloat16), rtol=2**-8, atol=1e-6)


def test_a_subclass_has_the_arguments_of_its_own():
    class Steep(A.CosLU):
        def __init__(self, gain: float) -> None:
            super().__init__(alpha=gain)

    class Same(A.CosLU):
        pass

    assert list(inspect.signature(Steep).parameters) == ["gain"]
    assert inspect.signature(Same) == inspect.signature(A.CosLU)
    assert Steep(3.0).alpha.item() == 3


def test_parameters_in_half_precision_are_combined_in_float32():
    plain, half = (
        A.EvenCubicReLU(beta=1e-4, gamma=1e-3),
        A.EvenCubicReLU(beta=1e-4, gamma=1e-3).half(),
    )
    with torch.no_grad():
        for parameter, rounded in zip(plain.parameters(), half.parameters(), strict=True):
            parameter.copy_(rounded)
    x = torch.tensor([-3000.0, -30.0, 2.0]).half()
    assert torch.equal(half(x), plain(x.float()).half())


def test_a_penalty_is_not_computed_in_half_precision():
    torch.manual_seed(0)
    module = A.DiTAC(theta="prior")
    plain = module.penalty()
    with torch.autocast("cpu", torch.bfloat16):
        found = module.penalty()
    torch.testing.assert_close(found, plain, rtol=1e-6, atol=0)


def test_a_slope_that_hardly_bends_is_a_line():
    found = [A.DSReLU(a=2.0, b=0.5, k=1e-17, normalized=True).slope_at(t) for t in (0, 0.25, 1)]
    assert found == pytest.approx([2.0, 1.625, 0.5])
    usual = A.DSReLU(a=2.0, b=0.5, k=3.0, normalized=True)
    first, at, last = (1 / (1 + math.exp(-3 * (t - 0.5))) for t in (0, 0.2, 1))
    assert usual.slope_at(0.2) == pytest.approx(2 - 1.5 * (at - first) / (last - first))


def test_a_mixture_starts_its_members_anew_as_they_begin():
    mixture = A.LinComb([lambda: A.DynamicReLU(channels=8), nn.ReLU])
    x = torch.randn(4, 8, 3, 3)
    fresh = mixture(x)
    with torch.no_grad():
        for parameter in mixture.parameters():
            parameter += 1
    mixture.reset_parameters()
    torch.testing.assert_close(mixture(x), fresh)

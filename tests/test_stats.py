"""Error bars against series whose autocorrelation time is known."""

import math

import numpy as np
import pytest
from scipy.signal import lfilter

from qernel.errors import InputError
from qernel.stats import Estimate, blocked_error, estimate, format_uncertainty, jackknife, walker_blocks


def ar1(steps: int, walkers: int, rho: float, seed: int) -> np.ndarray:
    """x_t = ρ x_{t−1} + √(1 − ρ²) ξ_t, stationary, mean 0, variance 1, τ = (1 + ρ)/(2(1 − ρ))."""
    rng = np.random.default_rng(seed)
    start = rng.standard_normal((1, walkers))
    noise = math.sqrt(1 - rho**2) * rng.standard_normal((steps, walkers))
    return np.asarray(lfilter([1.0], [1.0, -rho], noise, axis=0, zi=rho * start)[0])


def known_tau(rho: float) -> float:
    return (1 + rho) / (2 * (1 - rho))


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9, 0.97])
def test_ar1_autocorrelation_time(rho):
    x = ar1(2000, 64, rho, seed=1)
    e = estimate(x)
    assert e.tau == pytest.approx(known_tau(rho), rel=0.1)
    assert e.variance == pytest.approx(1.0, rel=0.1)
    assert e.ess == pytest.approx(x.size / (2 * e.tau))
    assert e.error == pytest.approx(math.sqrt(2 * known_tau(rho) / x.size), rel=0.1)
    assert e.error == pytest.approx(blocked_error(x), rel=0.2)
    assert e.mean == pytest.approx(x.mean())
    assert abs(e.mean) < 5 * e.error
    assert e.r_hat < 1.05


@pytest.mark.parametrize(("steps", "walkers", "rho"), [(4000, 1, 0.9), (500, 16, 0.9), (40, 256, 0.8), (1000, 4, 0.0)])
@pytest.mark.parametrize("method", ["estimate", "blocking"])
def test_coverage_of_one_sigma_intervals(steps, walkers, rho, method):
    """68 % of 200 runs; the bounds are five binomial sigmas away, and the seed is fixed."""
    inside = 0
    for seed in range(200):
        x = ar1(steps, walkers, rho, seed=1000 + seed) + 3.0
        error = estimate(x).error if method == "estimate" else blocked_error(x)
        inside += abs(x.mean() - 3.0) < error
    assert 0.52 < inside / 200 < 0.85


def test_many_chains_shorter_than_their_autocorrelation():
    """50 sweeps of chains with τ = 50 still give an honest error, because the chains are compared with each other."""
    errors, means = [], []
    for seed in range(40):
        x = ar1(50, 200, 0.98, seed=seed)
        errors.append(estimate(x).error)
        means.append(x.mean())
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.4)


def test_stuck_chains_count_once_each():
    values = np.random.default_rng(0).standard_normal(30)
    e = estimate(np.tile(values, (500, 1)))
    assert e.ess == pytest.approx(30, rel=0.02)
    assert e.error == pytest.approx(values.std(ddof=1) / math.sqrt(30), rel=0.02)
    assert e.r_hat > 1e3


def test_chains_with_different_means_raise_r_hat_and_the_error():
    x = ar1(1000, 8, 0.5, seed=3)
    apart = x + np.arange(8)
    assert estimate(x).r_hat < 1.02
    assert estimate(apart).r_hat > 1.5
    assert estimate(apart).error > 10 * estimate(x).error


def test_drift_raises_r_hat():
    x = ar1(1000, 8, 0.5, seed=3)
    assert estimate(x + np.linspace(0, 4, 1000)[:, None]).r_hat > 1.1


@pytest.mark.parametrize("derived", ["ratio", "difference", "variance"])
def test_coverage_of_derived_quantities(derived):
    """68 % of 200 runs, for correlated series with autocorrelation, from groups of walkers as blocks."""
    quantity = {
        "ratio": lambda m: m["a"] / m["b"],
        "difference": lambda m: m["a"] - m["b"],
        "variance": lambda m: m["a2"] - m["a"] ** 2,
    }[derived]
    exact = {"ratio": 1.5, "difference": 1.0, "variance": 0.25}[derived]
    inside = 0
    for seed in range(200):
        common, other = ar1(60, 64, 0.9, seed=2 * seed), ar1(60, 64, 0.5, seed=2 * seed + 1)
        a, b = 3.0 + 0.5 * common, 2.0 + 0.3 * common + 0.3 * other
        blocks = {name: walker_blocks(x)[0] for name, x in (("a", a), ("b", b), ("a2", a**2))}
        value, error = jackknife(quantity, blocks)
        inside += abs(value - exact) < error
    assert 0.52 < inside / 200 < 0.85


def test_jackknife_of_a_mean_is_the_standard_error():
    x = np.random.default_rng(0).standard_normal((40, 3))
    value, error = jackknife(lambda m: m["x"], {"x": x})
    np.testing.assert_allclose(value, x.mean(0))
    np.testing.assert_allclose(error, x.std(0, ddof=1) / math.sqrt(40))


def test_jackknife_of_a_ratio_is_the_propagated_error():
    a, b = np.random.default_rng(1).normal([[5.0], [3.0]], 0.2, (2, 400))
    _, error = jackknife(lambda m: m["a"] / m["b"], {"a": a, "b": b})
    covariance = np.cov(a, b) / 400
    relative = covariance[0, 0] / 25 + covariance[1, 1] / 9 - 2 * covariance[0, 1] / 15
    assert error == pytest.approx(5 / 3 * math.sqrt(relative), rel=0.02)


def test_jackknife_of_unequal_blocks():
    """Blocks of one and of four walkers: the error is that of the weighted mean."""
    errors, means = [], []
    weights = np.array([1.0, 4.0] * 10)
    for seed in range(300):
        x = np.random.default_rng(seed).standard_normal(20) / np.sqrt(weights)
        value, error = jackknife(lambda m: m["x"], {"x": x}, weights)
        errors.append(error)
        means.append(value)
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(means), rel=0.1)
    assert np.std(means) == pytest.approx(1 / math.sqrt(50), rel=0.1)


def test_jackknife_refuses_and_admits_ignorance():
    assert math.isnan(jackknife(lambda m: m["x"], {"x": np.ones(1)})[1])
    for blocks in ({}, {"x": np.ones(0)}, {"x": np.ones(3), "y": np.ones(2)}):
        with pytest.raises(InputError, match="blocks of lengths"):
            jackknife(lambda m: m["x"], blocks)
    with pytest.raises(InputError, match="weights"):
        jackknife(lambda m: m["x"], {"x": np.ones(2)}, np.zeros(2))


def test_independent_of_the_order_in_which_walkers_are_gathered():
    """Walkers computed in chunks of any size or order give the same numbers."""
    x = ar1(333, 24, 0.8, seed=4) - 105.0
    reference = estimate(x)
    for order in (np.arange(24)[::-1], np.random.default_rng(1).permutation(24)):
        gathered = np.concatenate([x[:, order[k : k + 5]] for k in range(0, 24, 5)], axis=1)
        e = estimate(gathered)
        for name in Estimate.__dataclass_fields__:
            assert getattr(e, name) == pytest.approx(getattr(reference, name), rel=1e-9), name


def test_long_series_are_transformed_in_chunks():
    """More samples than one transform takes: same γ, so same τ as in parts."""
    x = ar1(70_000, 40, 0.5, seed=5)
    assert estimate(x).tau == pytest.approx(known_tau(0.5), rel=0.03)


def test_scale_and_shift():
    x = ar1(400, 8, 0.8, seed=6)
    a, b = estimate(x), estimate(-7.0 * x + 1e6)
    assert b.error == pytest.approx(7 * a.error, rel=1e-6)
    assert b.tau == pytest.approx(a.tau, rel=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (2, 1), (3, 2), (4, 1), (100, 3)])
@pytest.mark.parametrize("value", [0.0, 0.1, -105.3])
def test_constant_series(shape, value):
    e = estimate(np.full(shape, value))
    assert e.mean == value
    assert e.tau == 0.5
    if math.prod(shape) > 1:
        assert e.error == 0.0
        assert e.variance == 0.0
        assert e.ess == math.prod(shape)
        assert blocked_error(np.full(shape, value)) == 0.0
    else:
        assert math.isnan(e.error)
        assert math.isnan(blocked_error(np.full(shape, value)))


@pytest.mark.parametrize("shape", [(1, 2), (2, 1), (2, 2), (3, 1), (5, 1), (7, 3)])
def test_short_series_are_answered(shape):
    e = estimate(np.random.default_rng(0).standard_normal(shape))
    assert e.error > 0
    assert e.tau >= 0.5
    assert math.isnan(e.r_hat) == (shape[0] < 4)


def test_one_sweep_is_the_usual_standard_error():
    x = np.random.default_rng(0).standard_normal((1, 50))
    assert estimate(x).error == pytest.approx(x.std(ddof=1) / math.sqrt(50))


def test_anticorrelation_is_not_credited():
    assert estimate(ar1(2000, 8, -0.6, seed=7)).tau == 0.5


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_samples_spoil_everything(bad):
    x = ar1(50, 4, 0.5, seed=8)
    x[20, 2] = bad
    e = estimate(x)
    assert all(math.isnan(getattr(e, name)) for name in Estimate.__dataclass_fields__)
    assert str(e) == "nan"


def test_single_precision_series_are_summed_in_double():
    x = (ar1(200, 50, 0.5, seed=9) * 1e-3 - 105.0).astype(np.float32)
    assert estimate(x).mean == pytest.approx(x.astype(np.float64).mean(), abs=1e-12)


def test_empty_series_is_refused():
    with pytest.raises(InputError, match="at least one sample"):
        estimate(np.zeros((0, 4)))


@pytest.mark.parametrize(
    ("mean", "error", "text"),
    [
        (-105.3123, 0.04, "-105.31(4)"),
        (-105.3123, 0.0123, "-105.312(12)"),
        (-105.3123, 0.0096, "-105.312(10)"),
        (-105.3123, 0.0196, "-105.31(2)"),
        (0.0, 0.5, "0.0(5)"),
        (-0.003, 0.5, "0.0(5)"),
        (1234.56, 3.4, "1235(3)"),
        (1234.56, 1.26, "1234.6(1.3)"),
        (1234.56, 23.0, "1230(20)"),
        (1234.56, 123.0, "1230(120)"),
        (2.0, 0.0, "2(0)"),
        (-105.25, 0.0, "-105.25(0)"),
        (1.5, math.nan, "1.5(nan)"),
        (1.5, math.inf, "1.5(inf)"),
        (math.nan, 0.1, "nan"),
        (math.nan, math.nan, "nan"),
        (-math.inf, 0.1, "-inf"),
        (1.5e-12, 3e-14, "1.50(3)e-12"),
        (6.02214e23, 4e18, "6.02214(4)e+23"),
        (0.999, 0.96, "1.0(1.0)"),
    ],
)
def test_compact_notation(mean, error, text):
    assert format_uncertainty(mean, error) == text


@pytest.mark.parametrize("mean", [0.0, 5e-324, -1e-300, 1.0, -99.999, 1e15, 1.7e308])
@pytest.mark.parametrize("error", [5e-324, 1e-300, 1e-17, 0.0999, 0.95, 9.96, 1e15, 1.7e308])
def test_compact_notation_never_fails(mean, error):
    assert "(" in format_uncertainty(mean, error)


def test_negative_error_is_refused():
    with pytest.raises(InputError, match=r"error = -0\.1"):
        format_uncertainty(1.0, -0.1)

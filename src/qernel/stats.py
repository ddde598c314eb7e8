"""Mean, error bar, autocorrelation time, R̂ and effective sample size: the one estimator behind every number shown.

Console, log, result files and report all call `estimate`. It sees the samples of one coupling as an array
[steps, walkers]: successive sweeps of independent chains.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from qernel.errors import InputError, require

Series = Float[np.ndarray, "steps walkers"] | Float[jax.Array, "steps walkers"]
Autocovariance = Float[np.ndarray, " lags"]


@dataclass(frozen=True)
class Estimate:
    """What a series of samples says about an expectation value. `str()` gives the compact form -105.31(4).

    Everything is NaN if any sample is not finite: a broken series has no mean.
    """

    mean: float
    """average over all sweeps and walkers, in the unit of the series"""
    error: float
    """standard error of the mean (one sigma), autocorrelation included; NaN for a single sample"""
    tau: float
    """integrated autocorrelation time τ = ½ + Σ_{t≥1} ρ(t) in sweeps; ½ for independent samples, never less"""
    r_hat: float
    """split-R̂ over the walkers: near 1 when all chains agree; NaN for fewer than 4 sweeps"""
    ess: float
    """effective number of independent samples, n·m / (2τ)"""
    variance: float
    """variance of a single sample, in the squared unit of the series"""

    def __str__(self) -> str:
        return format_uncertainty(self.mean, self.error)


def estimate(series: Series) -> Estimate:
    """Mean of a series with an error bar that knows about autocorrelation. This is THE estimator of QERNEL.

    With x_tj sweep t of n and walker j of m, x̄ the mean over everything, and the autocovariance averaged over walkers

        γ(t) = 1/(n m) Σ_j Σ_s (x_sj − x̄)(x_{s+t,j} − x̄),      ρ(t) = γ(t)/γ(0),

        τ = ½ + Σ_{t≥1} ρ(t),     ESS = n m / (2τ),     σ² = γ(0)·ESS/(ESS − 1),     error = √(σ²·2τ/(n m)),

    the sum over t cut off by Geyer's initial monotone positive sequence, doi:10.1214/ss/1177011137: pairs
    γ(2k) + γ(2k+1) are added while positive, none counting more than the one before. The factor ESS/(ESS − 1) is
    Bessel's n/(n − 1) for correlated samples. Two consequences of centring on the mean of all walkers instead of each
    chain's own: short chains do not bias τ downwards, and walkers that disagree about the mean (stuck chains) enlarge
    the error up to the spread of m independent numbers. Anticorrelated series are not credited: τ ≥ ½.

    R̂ is the split-R̂ of doi:10.1201/b16018, section 11.4: each chain is halved, and with W the mean variance within
    the halves of length h and B/h the variance of their means, R̂ = √((h−1)/h + B/(h W)).

    Args:
        series: real samples [steps, walkers] of one coupling; walkers must be independent chains.

    Raises:
        InputError: if the series is empty.
    """
    x = _as_samples(series)
    n, m = x.shape
    if not np.isfinite(x).all():
        return Estimate(*([math.nan] * 6))
    # A zero-variance state differs from its mean by rounding only; centring on a sample first keeps γ(0) exact.
    offset = x[0, 0]
    shift = float((x - offset).mean())
    x = x - offset - shift
    mean = float(offset + shift)
    if n * m == 1:
        return Estimate(mean, math.nan, 0.5, math.nan, 1.0, math.nan)
    gamma = _autocovariance(x)
    if gamma[0] == 0.0 or not (x != x[0, 0]).any():
        return Estimate(mean, 0.0, 0.5, 1.0 if n >= 4 else math.nan, float(n * m), 0.0)
    tau = max(0.5, _geyer_sum(gamma) / gamma[0] - 0.5)
    ess = n * m / (2 * tau)
    # ESS = 1 (one chain that never moved on) leaves no information on the spread: an infinite error says so.
    variance = float(gamma[0] * ess / (ess - 1)) if ess > 1 else math.inf
    return Estimate(mean, math.sqrt(variance / ess), float(tau), _split_r_hat(x), float(ess), variance)


def blocked_error(series: Series) -> float:
    """Standard error by blocking, doi:10.1063/1.457480: an independent check of `estimate`, used in its tests.

    Neighbouring sweeps are averaged in pairs again and again; at block length b the naive error s_b of the mean of all
    blocks and walkers grows until blocks are independent. The block length is the shortest with b³ > 2 n m (s_b/s_1)⁴
    (doi:10.1103/PhysRevE.83.066706), or the longest that leaves two blocks in all. NaN for a single sample or one that
    is not finite.

    Args:
        series: real samples [steps, walkers] of one coupling.

    Raises:
        InputError: if the series is empty.
    """
    x = _as_samples(series)
    x = x - x[0, 0]
    total = x.size
    naive = error = math.sqrt(x.var(ddof=1) / total) if total > 1 else math.nan
    length = 1
    while naive > 0 and length**3 <= 2 * total * (error / naive) ** 4 and x.shape[0] // 2 * x.shape[1] >= 2:
        half = x.shape[0] // 2
        x = x[-2 * half :].reshape(half, 2, -1).mean(axis=1)
        length *= 2
        # Odd blocks are left out when pairing; the mean is still one of all the samples.
        error = math.sqrt(x.var(ddof=1) * length / total)
    return error


def jackknife(
    f: Callable[[dict[str, np.ndarray]], Any], blocks: dict[str, np.ndarray], weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Value and standard error of a quantity derived from means: ratios, differences, variances, products.

    `blocks` has the averages x_b of each series over the same B independent blocks, and `f` takes the means of all
    series by name. Every correlation between the series within a block is accounted for. With weights m_b (samples in
    a block), M = Σ m_b and h_b = M/m_b,

        θ = f(Σ_b m_b x_b/M),     θ_b = f(mean without block b),     θ̃_b = h_b θ − (h_b − 1) θ_b,

        error² = (1/B) Σ_b (θ̃_b − Σ_a θ̃_a/B)²/(h_b − 1),

    doi:10.1023/A:1008800423698; for equal blocks the usual (B − 1)/B Σ_b (θ_b − θ̄)². Blocks must be independent:
    groups of walkers (`walker_blocks`), or stretches of time much longer than τ. To first order in the errors it
    agrees with their propagation: error²(a/b) = (a/b)² (σ_a²/a² + σ_b²/b² − 2 σ_ab/ab), error²(a − b) = σ_a² + σ_b² −
    2 σ_ab. The relative uncertainty of the error itself is about 1/√(2(B − 1)).

    Args:
        f: means by name → array (real); the blocks' axis is gone from its arguments.
        blocks: averages [blocks, …] by name.
        weights: samples of each block, [blocks]; equal if left out.

    Returns:
        θ and its error, of the shape of f's result; the error is NaN for a single block.

    Raises:
        InputError: if there is no series or no block, or their numbers differ.
    """
    counts = {len(x) for x in blocks.values()}
    if len(counts) != 1 or 0 in counts:
        raise InputError(f"blocks of lengths {sorted(counts)}: must be at least one, as many in every series")
    n = counts.pop()
    m = np.ones(n) if weights is None else np.asarray(weights, float)
    require(m.shape == (n,) and bool((m > 0).all()), "weights", m, f"{n} positive numbers")
    sums = {name: np.tensordot(m, x, 1) for name, x in blocks.items()}
    value = np.asarray(f({name: x / m.sum() for name, x in sums.items()}))
    if n == 1:
        return value, np.full(value.shape, math.nan)

    def without(b: int) -> np.ndarray:
        return np.asarray(f({name: (sums[name] - m[b] * x[b]) / (m.sum() - m[b]) for name, x in blocks.items()}))

    h = (m.sum() / m).reshape(-1, *[1] * value.ndim)
    pseudo = h * value - (h - 1) * np.stack([without(b) for b in range(n)])
    return value, np.asarray(np.sqrt(np.mean((pseudo - pseudo.mean(0)) ** 2 / (h - 1), axis=0)))


def walker_blocks(series: np.ndarray, groups: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Averages of a series [steps, …, walkers] over `groups` groups of chains, [groups, …], and their weights [groups].

    Chains are independent, so these are blocks for `jackknife` whatever the autocorrelation time.
    """
    parts = np.array_split(np.asarray(series, float), min(groups, series.shape[-1]), axis=-1)
    return np.stack([p.mean((0, -1)) for p in parts]), np.array([p.shape[-1] * p.shape[0] for p in parts], float)


def format_uncertainty(mean: float, error: float) -> str:
    """Compact notation of a value and its error: -105.31(4) means −105.31 ± 0.04.

    The error is shown to one digit, or two where the first is a 1 (a rounding of 0.14 to 0.1 would lose 30 %). An exact
    value reads 1.5(0), an unknown error 1.5(nan), and very large or small numbers 1.50(3)e-12.

    Raises:
        InputError: if the error is negative.
    """
    require(not error < 0, "error", error, "at least 0")
    if not math.isfinite(mean):
        return str(float(mean))
    if not math.isfinite(error):
        return f"{mean:.10g}({float(error)})"
    if error <= 1e-17 * abs(mean):  # below the last bit of the mean
        return f"{mean:.10g}(0)"
    # Decimals, because 10.0**k overflows or underflows at the ends of the range of floats.
    value, spread = Decimal(mean), Decimal(error)
    exponent = max(value, spread, key=abs).adjusted()
    if -5 < exponent < 9:
        return _fixed_point(value, spread)
    return f"{_fixed_point(value.scaleb(-exponent), spread.scaleb(-exponent))}e{exponent:+03d}"


def _fixed_point(mean: Decimal, error: Decimal) -> str:
    """Mean and error in fixed-point notation; error > 0."""
    leading = error.adjusted()
    decimals = (2 if error.scaleb(-leading) < Decimal("1.95") else 1) - 1 - leading
    if decimals <= 0:
        text, shown = f"{round(mean, decimals):.0f}", f"{round(error, decimals):.0f}"
    else:
        text, shown = f"{mean:.{decimals}f}", f"{error:.{decimals}f}"
        if float(shown) < 1:
            shown = shown.replace(".", "").lstrip("0")
    return f"{text.lstrip('-') if float(text) == 0 else text}({shown})"


def _as_samples(series: Series) -> np.ndarray:
    """The series in double precision, [steps, walkers]."""
    x = np.asarray(series, dtype=np.float64)
    if x.ndim != 2 or x.size == 0:
        raise InputError(f"series of shape {x.shape}: must be [steps, walkers] with at least one sample")
    return x


def _autocovariance(x: np.ndarray) -> Autocovariance:
    """γ(t) for t = 0 … n − 1 of centred samples [steps, walkers], averaged over walkers (normalised by n·m)."""
    n, m = x.shape
    padded = 1 << (2 * n - 1).bit_length()
    power = np.zeros(padded // 2 + 1)
    chunk = max(1, 2**21 // padded)  # walkers per transform: 32 MiB of work space however many samples there are
    for start in range(0, m, chunk):
        power += (np.abs(np.fft.rfft(x[:, start : start + chunk], padded, axis=0)) ** 2).sum(axis=1)
    gamma = np.fft.irfft(power, padded)[:n] / (n * m)
    gamma[0] = np.mean(x**2)
    return gamma


def _geyer_sum(gamma: Autocovariance) -> float:
    """Σ of γ(2k) + γ(2k+1) over Geyer's initial monotone positive sequence."""
    even = gamma[: gamma.size // 2 * 2]
    pairs = even.reshape(-1, 2).sum(axis=1) if even.size else gamma
    negative = np.flatnonzero(pairs <= 0)
    kept = pairs[: negative[0]] if negative.size else pairs
    return float(np.minimum.accumulate(kept).sum()) if kept.size else 0.0


def _split_r_hat(x: np.ndarray) -> float:
    """Split-R̂ of samples [steps, walkers]; NaN for fewer than 4 sweeps, inf for frozen chains that differ."""
    half = x.shape[0] // 2
    if half < 2:
        return math.nan
    chains = np.concatenate([x[:half], x[-half:]], axis=1)
    within = float(chains.var(axis=0, ddof=1).mean())
    between = float(chains.mean(axis=0).var(ddof=1))
    if within == 0:
        return math.inf if between > 0 else 1.0
    return math.sqrt((half - 1) / half + between / within)

"""Is there a sharp transition along λ, and where? Two branches against one smooth curve, with an interval for λ_c.

For each quantity of a scan the candidates of `branches` are fitted: smooth ones (a polynomial; a crossover or a peak of
w ≥ 3h, h the distance of the couplings) and narrow ones (jump, kink or peak of w < 3h). Two criteria have to agree:

* ΔBIC = min over smooth − min over narrow of the BIC, doi:10.1214/aos/1176344136; positive where narrow is better;
* p, the share of parametric bootstrap samples of a smooth curve whose ΔBIC is as large. ΔBIC is the log of the
  likelihood ratio with the choice of degree, λ_c and w inside, all of which is repeated for every sample; λ_c exists
  in one hypothesis only, so no χ² distribution can be had from a table (doi:10.1093/biomet/74.1.33), and the ratio is
  bootstrapped (doi:10.2307/2347790). p = (1 + number as large)/(1 + samples), never zero (doi:10.2202/1544-6115.1585),
  and the largest for the best smooth curve and all other smooth families whose BIC is within 2 of it.

A transition needs p ≤ 0.05 and ΔBIC > 2, its absence p > 0.05 and ΔBIC ≤ 2; the rest is undecided.

Error bars of neural energies know the noise of the sampling, not that the wavefunction is better at one λ than at
the next. So a scatter s common to all couplings is added, σ_i² → σ_i² + s², with χ² of the best curve equal to its
number of degrees of freedom (doi:10.6028/jres.087.022), or s = 0 if it is below already; and every fit may scale
the result, down to the sampling noise at most (`LeastSquares.bic`), because s is known from few points.

λ_c: the couplings at which the profile of the BIC is less than a threshold above its minimum. Thresholds for 68 and
95 % are quantiles of the same difference, at the true λ_c, in bootstrap samples of the best narrow curve. Between two
couplings the likelihood of a sharp jump is constant: its interval is never narrower than their distance, and that of a
rounded one neither, for what looks like rounding on one coupling may be a branch that is no polynomial.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from qernel.branches import Fit, Kind, LeastSquares, curves
from qernel.cell import FloatArray
from qernel.errors import require
from qernel.likelihood_ratio import (
    STRONG,
    WEAK,
    best,
    delta_bic,
    extra_scatter,
    inflation,
    largest_jump,
    p_value,
    plausible,
    refined,
    replicas,
)

Verdict = Literal["jump", "kink", "peak", "none", "undecided"]
Number = tuple[float, float]
"""value and standard error"""
Range = tuple[float, float]

LEVEL = 0.05
"""of p, below which the smooth curve is given up"""
MOST_POINTS, MOST_DRAWS = 400, 500_000
"""couplings, and bootstrap samples times couplings: memory grows with their square, and with them"""
MIN_POINTS = 8
"""couplings: with fewer, two straight branches of three couplings each leave no freedom to test them"""


@dataclass(frozen=True)
class Place:
    """Where a transition is: estimate and intervals of λ_c, and how far it is rounded."""

    lam_c: float
    interval_68: Range
    interval_95: Range
    width: float
    """w in λ of a transition visibly rounded, 0 where a sharp one fits as well"""


@dataclass(frozen=True, eq=False)
class Finding:
    """What one quantity says. Values in its own unit, totals over the electrons."""

    quantity: str
    verdict: Verdict
    reason: str
    """the verdict in words, with what is missing where it is undecided"""
    lam: FloatArray
    value: FloatArray
    error: FloatArray
    p: Number | None = None
    """p-value of the smooth curve, and its Monte Carlo error"""
    delta_bic: float | None = None
    """BIC of the best smooth curve minus that of the best narrow one"""
    scatter: float = 0.0
    """s, what the error bars leave out"""
    smooth: Fit | None = None
    narrow: Fit | None = None
    place: Place | None = None
    jump: Number | None = None
    """right minus left branch at λ_c; of a peak its height"""
    slope_change: Number | None = None
    """the same of the derivatives by λ"""
    searched: Range | None = None
    """where λ_c may lie for both branches to have three couplings"""


def examine(
    quantity: str,
    lam: FloatArray,
    value: FloatArray,
    error: FloatArray,
    kinds: Sequence[Kind] = ("jump", "kink"),
    samples: int = 999,
    seed: int = 1,
) -> Finding:
    """Compare one smooth curve with two branches, see the module.

    Args:
        quantity: a name, for the result.
        lam: couplings λ [points], in any order, all different.
        value: the quantity [points].
        error: its standard errors [points], at least 0.
        kinds: narrow features to look for.
        samples: of the bootstrap.
        seed: of the bootstrap; same seed, same result.

    Raises:
        InputError: if values or errors are not finite, errors negative, couplings equal, or `samples` below 19.
    """
    order = np.argsort(lam)
    lam, value, error = (np.asarray(x, float)[order] for x in (lam, value, error))
    _check(quantity, lam, value, error, samples)
    nothing = Finding(quantity, "undecided", "", lam, value, error)
    if len(lam) < MIN_POINTS:
        return replace(nothing, reason=_needed(lam))
    # A state known exactly has no error at all; rounding is one.
    error = np.maximum(error, 1e-9 * max(float(np.max(np.abs(value))), 1e-300))
    candidates = curves(lam, kinds)
    model = LeastSquares(lam, error, candidates)
    scatter = extra_scatter(model, value)
    if scatter > 0:
        total = np.sqrt(error**2 + scatter**2)
        model = LeastSquares(lam, total, candidates, float(np.mean((error / total) ** 2)))
    model = refined(model, value)
    bic = model.bic(value[:, None])[:, 0]
    smooth, narrow = (best(model, bic, value, mask) for mask in (~model.narrow, model.narrow))
    rng = np.random.default_rng([seed, *quantity.encode()])
    found = float(delta_bic(model, value[:, None])[0])
    p = max(p_value(model, null, found, samples, rng) for null in plausible(model, bic, value))
    searched = [c for c in candidates if c.narrow]
    result = replace(
        nothing,
        p=(p, float(np.sqrt(p * (1 - p) / samples))),
        delta_bic=found,
        scatter=scatter,
        smooth=smooth,
        narrow=narrow,
        searched=(min(c.low for c in searched), max(c.high for c in searched)),
    )
    if p <= LEVEL and found > WEAK:
        return _located(result, model, bic, samples, rng)
    return _not_found(result, model)


def _needed(lam: FloatArray) -> str:
    """What a scan of too few couplings lacks."""
    text = f"{len(lam)} couplings; at least {MIN_POINTS} are needed, three on either side of a transition"
    return f"{text}: `qernel scan` with --lam {lam[0]:g} {lam[-1]:g} 12, say" if len(lam) > 1 else text


def _check(quantity: str, lam: FloatArray, value: FloatArray, error: FloatArray, samples: int) -> None:
    require(
        lam.shape == value.shape == error.shape, quantity, value.shape, f"as many values and errors as λ, {lam.shape}"
    )
    for name, x in (("lam", lam), (quantity, value), (f"{quantity}_error", error)):
        bad = np.flatnonzero(~np.isfinite(x))
        require(len(bad) == 0, name, x[bad[:1]], "finite at every coupling")
    require(bool(np.all(error >= 0)), f"{quantity}_error", error.min() if len(error) else 0, "at least 0")
    same = lam[:-1][np.diff(lam) <= 0]
    require(len(same) == 0, "lam", same[:1], "different for every coupling")
    require(samples >= 19, "samples", samples, "at least 19")
    require(len(lam) <= MOST_POINTS, "lam", f"{len(lam)} couplings", f"at most {MOST_POINTS}")
    require(len(lam) * samples <= MOST_DRAWS, "samples", samples, f"at most {MOST_DRAWS} over the number of couplings")


def _located(result: Finding, model: LeastSquares, bic: FloatArray, samples: int, rng: np.random.Generator) -> Finding:
    """The finding with λ_c, its intervals, and the sizes."""
    assert result.narrow is not None
    curve = result.narrow.curve
    mine = np.array([c.kind == curve.kind and c.narrow for c in model.curves])
    low, high = (np.array([getattr(c, end) for c in model.curves])[mine] for end in ("low", "high"))
    at_truth = (low <= curve.centre) & (curve.centre <= high)
    sampled = model.bic(replicas(model, result.narrow, samples, rng))[mine]
    above = sampled[at_truth].min(axis=0) - sampled.min(axis=0)
    profile = bic[mine] - bic[mine].min()
    sharp = np.array([c.width == 0 for c in model.curves])[mine]
    # Narrower than h/2 a step moves the two couplings beside it only, and so does a branch that is no polynomial.
    rounded = curve.kind == "peak" or (curve.width > curve.spacing / 2 and bool(profile[sharp].min() > STRONG))
    around = _neighbours(model.lam, curve.centre)
    intervals = []
    for share in (0.68, 0.95):
        inside = profile <= np.quantile(above, share, method="higher")
        ends = float(low[inside].min()), float(high[inside].max())
        if curve.kind == "jump":
            ends = min(ends[0], around[0]), max(ends[1], around[1])
        intervals.append(ends)
    place = Place(curve.centre, intervals[0], intervals[1], curve.width if rounded else 0.0)
    r = inflation(model, result.narrow)
    jump, slope = (_scaled(result.narrow.difference(order), r) for order in (0, 1))
    if curve.kind == "jump":
        # Branches of unequal slope differ by another amount at the other end of the interval of λ_c.
        spread = slope[0] * (place.interval_68[1] - place.interval_68[0]) / np.sqrt(12)
        jump = jump[0], float(np.hypot(jump[1], spread))
    assert curve.kind != "polynomial"
    how = f"{curve.kind}, rounded over Δλ = {place.width:.2g}" if rounded else curve.kind
    return replace(
        result,
        verdict=curve.kind,
        reason=f"{how} at λ_c = {place.lam_c:.4g}",
        place=place,
        jump=None if curve.kind == "kink" else jump,
        slope_change=None if curve.kind == "peak" else slope,
    )


def _neighbours(lam: FloatArray, x: float) -> Range:
    """The two couplings around x."""
    k = int(np.clip(np.searchsorted(lam, x), 1, len(lam) - 1))
    return float(lam[k - 1]), float(lam[k])


def _scaled(number: Number, r: float) -> Number:
    return number[0], r * number[1]


def _not_found(result: Finding, model: LeastSquares) -> Finding:
    """ "none" if both criteria say so, with the largest jump that would go unseen; "undecided" if they disagree."""
    assert result.p is not None
    assert result.delta_bic is not None
    assert result.smooth is not None
    assert result.narrow is not None
    assert result.searched is not None
    if result.p[0] <= LEVEL or result.delta_bic > WEAK:  # not both
        curve, lam = result.narrow.curve, model.lam
        a, b = _neighbours(lam, curve.centre)
        near = f"{max(lam[0], 3 * a - 2 * b):.4g} and {min(lam[-1], 3 * b - 2 * a):.4g}"
        why = (
            f"BIC and bootstrap disagree about a {curve.kind} near λ = {curve.centre:.4g}; more couplings between "
            f"{near}, or smaller errors, would decide"
        )
        return replace(result, verdict="undecided", reason=why)
    low, high = result.searched
    text = f"no sharp transition between λ = {low:.4g} and {high:.4g}"
    if any(c.kind == "jump" for c in model.curves):
        text += f"; a jump there is smaller than {largest_jump(model, result.smooth, result.value, low, high):.2g}"
    return replace(result, verdict="none", reason=text)

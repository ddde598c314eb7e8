"""The statistics behind a transition: extra scatter, replicas of a fit, and the bootstrap of a likelihood ratio.

Throughout, `value` [points] is one measured curve, `model` the candidates for it, and `bic` [curves] theirs.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import brentq

from qernel.branches import Curve, Fit, Kind, LeastSquares, finer, fit
from qernel.cell import FloatArray

WEAK, STRONG = 2.0, 6.0
"""differences of BIC up to which evidence is not worth a mention, and from which it is strong; the scale of
doi:10.1080/01621459.1995.10476572"""


def extra_scatter(model: LeastSquares, value: FloatArray) -> float:
    """s ≥ 0 with Σ (y_i − f(λ_i))²/(σ_i² + s²) = points − parameters for the curve of lowest BIC.

    0 if the sum is no larger for s = 0. The estimate of Paule and Mandel, doi:10.6028/jres.087.022.
    """
    curve = model.curves[int(np.argmin(model.bic(value[:, None])))]
    freedom = len(value) - curve.parameters

    def excess(s: float) -> float:
        return fit(curve, model.lam, value, np.sqrt(model.error**2 + s**2)).chi2 - freedom

    if excess(0.0) <= 0:
        return 0.0
    # χ² falls like 1/s², so that this end is beyond the root.
    end = 2 * float(np.max(model.error) * np.sqrt(1 + excess(0.0) / freedom)) + float(np.ptp(value))
    return float(brentq(excess, 0.0, end))


def refined(model: LeastSquares, value: FloatArray) -> LeastSquares:
    """The same candidates and, around the best smooth and the best narrow one, a finer grid of λ_0 and w."""
    bic = model.bic(value[:, None])[:, 0]
    extra: list[Curve] = []
    for mask in (model.narrow, ~model.narrow):
        extra += finer(model.curves[int(np.argmin(np.where(mask, bic, np.inf)))])
    return model.joined(extra) if extra else model


def plausible(model: LeastSquares, bic: FloatArray, value: FloatArray) -> list[Fit]:
    """The best smooth curve, and the best of each other family and degree that is about as good."""
    best: dict[tuple[Kind, int], int] = {}
    for i in np.flatnonzero(~model.narrow)[np.argsort(bic[~model.narrow], kind="stable")]:
        best.setdefault((model.curves[i].kind, model.curves[i].degree), int(i))
    lowest = min(bic[i] for i in best.values())
    return [fit(model.curves[i], model.lam, value, model.error) for i in best.values() if bic[i] <= lowest + WEAK]


def p_value(model: LeastSquares, null: Fit, found: float, samples: int, rng: np.random.Generator) -> float:
    """Share of samples of a smooth curve with at least the ΔBIC found."""
    ratios = delta_bic(model, replicas(model, null, samples, rng))
    return (1 + int(np.sum(ratios >= found))) / (1 + samples)


def best(model: LeastSquares, bic: FloatArray, value: FloatArray, mask: np.ndarray) -> Fit:
    """The fit of lowest BIC among the curves of a mask [curves]."""
    curve = model.curves[int(np.argmin(np.where(mask, bic, np.inf)))]
    return fit(curve, model.lam, value, model.error)


def delta_bic(model: LeastSquares, y: FloatArray) -> FloatArray:
    """Lowest BIC of the smooth curves minus that of the narrow ones, [sets], for data `y` [points, sets]."""
    bic = model.bic(y)
    delta: FloatArray = bic[~model.narrow].min(axis=0) - bic[model.narrow].min(axis=0)
    return delta


def inflation(model: LeastSquares, f: Fit) -> float:
    """r of a fit, r² = max(floor, χ²/dof)."""
    return float(np.sqrt(max(model.floor, f.chi2 / (len(model.lam) - f.curve.parameters))))


def replicas(model: LeastSquares, f: Fit, samples: int, rng: np.random.Generator) -> FloatArray:
    """Data sets [points, samples] around a fitted curve, with the noise that the best of all curves leaves."""
    return f(model.lam)[:, None] + model.error[:, None] * rng.normal(size=(len(model.lam), samples))


def largest_jump(model: LeastSquares, smooth: Fit, value: FloatArray, low: float, high: float) -> float:
    """The largest jump between two couplings within [low, high] that two standard errors allow.

    The jump is added to the best smooth curve, f(λ) + J·θ(λ − λ_0), all coefficients free; max over λ_0 of |J| + 2σ_J.
    """
    lam, r = model.lam, inflation(model, smooth)
    limits = []
    for k in [k for k in range(1, len(lam)) if low <= lam[k - 1] and lam[k] <= high]:
        step = (np.arange(len(lam)) >= k).astype(float)
        design = np.column_stack([smooth.curve.columns(lam, smooth.scale), step]) / model.error[:, None]
        q, upper = np.linalg.qr(design)
        # The last coefficient alone: R is triangular.
        limits.append((abs(q[:, -1] @ (value / model.error)) + 2 * r) / abs(upper[-1, -1]))
    return float(max(limits))

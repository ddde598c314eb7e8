"""Curves of a quantity against λ, smooth or on two branches, and the least squares of thousands of them at once.

With x = λ − λ_0, s(x) = tanh(x/w) and s(x) = sign(x) for w = 0, the families are

    polynomial    Σ_m a_m x^m
    jump          Σ_m (a_m + b_m s) x^m,  m ≥ 0       two branches that differ by 2 b_0 at λ_0
    kink          the same with b_0 = 0               two branches that meet in λ_0
    peak          Σ_m a_m x^m + b (1 + x²/w²)⁻²        b ≥ 0

The last is the fidelity susceptibility of two levels that cross with a gap, in units of its height. All are linear but
for λ_0 and w, which run over a grid: w in units of the distance h between the two couplings around λ_0. A feature with
w < 3h (a tanh rises from 10 to 90 % within 2.2 w) counts as narrow, anything broader, and every polynomial, as smooth.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal

import numpy as np

from qernel.cell import FloatArray

Kind = Literal["polynomial", "jump", "kink", "peak"]

MAX_DEGREE = 7
"""of the smooth polynomial"""
BRANCH_DEGREES = (1, 2, 3)
MIN_BRANCH = 2
"""couplings a branch must have beyond its degree: a straight one has three, more than it has parameters"""
NARROW = (0.35, 0.7, 1.2, 2.0)
"""widths w/h of a rounded transition"""
BROAD = (3.0, 3.75, 4.7, 5.9, 7.3, 9.2)
"""widths w/h of a crossover"""
_CHUNK = 2**22  # numbers in one block of the projections: 32 MiB


@dataclass(frozen=True)
class Curve:
    """One member of a family, up to its linear coefficients."""

    kind: Kind
    degree: int
    """of the polynomial, or of each branch"""
    centre: float
    """λ_0; of a polynomial the middle of the range"""
    low: float
    high: float
    """the λ_0 this curve stands for: between two couplings for a sharp jump, whose likelihood is constant there"""
    spacing: float = 0.0
    """distance h of the couplings around λ_0"""
    width: float = 0.0
    """w in units of λ"""

    @property
    def narrow(self) -> bool:
        """A feature that the grid does not resolve as smooth: w < 3h."""
        return self.kind != "polynomial" and self.width < BROAD[0] * self.spacing * (1 - 1e-9)

    @property
    def linear(self) -> int:
        """Number of linear coefficients."""
        extra = {"polynomial": 0, "jump": self.degree + 1, "kink": self.degree, "peak": 1}
        return self.degree + 1 + extra[self.kind]

    @property
    def parameters(self) -> int:
        """Coefficients, λ_0 and w."""
        return self.linear + (self.kind != "polynomial") + (self.width > 0)

    def columns(self, lam: FloatArray, scale: float) -> FloatArray:
        """Basis functions at `lam` [points], as [points, linear]; powers of (λ − λ_0)/scale."""
        return _columns(self.kind, self.degree, np.asarray(lam, float) - self.centre, np.array([self.width]), scale)


def _columns(kind: Kind, degree: int, x: FloatArray, width: FloatArray, scale: float) -> FloatArray:
    """Basis functions of curves of one family, [..., points, linear], at x = λ − λ_0 [..., points], w [..., 1]."""
    powers = (x[..., None] / scale) ** np.arange(degree + 1)
    if kind == "polynomial":
        return powers
    w = np.where(width > 0, width, 1.0)
    if kind == "peak":
        return np.concatenate([powers, ((1 + (x / w) ** 2) ** -2)[..., None]], axis=-1)
    step = np.where(width > 0, np.tanh(x / w), np.sign(x))
    return np.concatenate([powers, step[..., None] * powers[..., 0 if kind == "jump" else 1 :]], axis=-1)


def most_parameters(points: int) -> int:
    """Parameters a curve through so many points may have: no more than one above half their number."""
    return (points + 2) // 2


def curves(lam: FloatArray, kinds: Sequence[Kind]) -> tuple[Curve, ...]:
    """All candidates for couplings `lam` [points] in ascending order: polynomials, and the `kinds` at every λ_0 and w.

    λ_0 lies where each branch keeps its degree plus 2 couplings at least.
    """
    return _curves(tuple(map(float, lam)), tuple(kinds))


@lru_cache(maxsize=8)
def _curves(lam: tuple[float, ...], kinds: tuple[Kind, ...]) -> tuple[Curve, ...]:
    n, middle = len(lam), (lam[0] + lam[-1]) / 2
    found = [Curve("polynomial", p, middle, middle, middle) for p in range(MAX_DEGREE + 1)]
    for kind in kinds:
        for degree in BRANCH_DEGREES:
            for i in range(degree + MIN_BRANCH - 1, n - degree - MIN_BRANCH):
                found += _in_interval(kind, degree, lam[i], lam[i + 1], lam[-1] - lam[0])
    return tuple(c for c in found if c.parameters <= most_parameters(n))


def _in_interval(kind: Kind, degree: int, low: float, high: float, span: float) -> list[Curve]:
    """Curves of one family with λ_0 between two neighbouring couplings."""
    h = high - low
    widths = [w * h for w in (*NARROW, *BROAD) if w * h <= span / 2 or w in NARROW]
    found = []
    if kind == "jump":
        found.append(Curve(kind, degree, (low + high) / 2, low, high, h))
    elif kind == "kink":
        found += _row(kind, degree, low, high, h, 0.0, 8)
    for w in widths:
        found += _row(kind, degree, low, high, h, w, 4 if w < BROAD[0] * h * (1 - 1e-9) else 2)
    return found


def _row(kind: Kind, degree: int, low: float, high: float, h: float, width: float, count: int) -> list[Curve]:
    edges = np.linspace(low, high, count + 1)
    return [Curve(kind, degree, float(a + b) / 2, float(a), float(b), h, width) for a, b in pairwise(edges)]


def finer(curve: Curve) -> list[Curve]:
    """Curves around one candidate, on a finer grid of λ_0 and w and on the same side of the narrow ones."""
    if curve.kind == "polynomial" or (curve.kind == "jump" and curve.width == 0):
        return []
    widths = [curve.width * f for f in (0.8, 0.9, 1.0, 1.1, 1.25)] if curve.width else [0.0]
    reach = curve.high - curve.low
    near = _row(curve.kind, curve.degree, curve.low - reach, curve.high + reach, curve.spacing, curve.width, 9)
    for w in widths:
        near += _row(curve.kind, curve.degree, curve.low, curve.high, curve.spacing, w, 9)
    return [c for c in near if c.narrow == curve.narrow]


class LeastSquares:
    """Weighted fits of many curves to many data sets over the same couplings.

    Attributes:
        curves: the candidates.
        narrow: which of them are narrow, [curves].
        penalty: of the BIC of each, [curves].
    """

    def __init__(self, lam: FloatArray, error: FloatArray, candidates: Sequence[Curve], floor: float = 1.0) -> None:
        """Couplings and standard errors [points]; `floor` is the least factor r² of `bic`."""
        self.lam, self.error, self.floor = lam, error, floor
        self.curves = list(candidates)
        self.narrow = np.array([c.narrow for c in self.curves])
        self.penalty = np.empty(len(self.curves))
        # Rows span the columns of each curve over σ; of a peak the last one counts only if its height is positive.
        self._q = np.zeros((len(self.curves), MAX_DEGREE + 1, len(lam)))
        self._peak = np.full(len(self.curves), -1)
        families: dict[tuple[Kind, int], list[int]] = {}
        for i, c in enumerate(self.curves):
            families.setdefault((c.kind, c.degree), []).append(i)
        for (kind, degree), members in families.items():
            self._add(kind, degree, np.array(members))

    def _add(self, kind: Kind, degree: int, members: np.ndarray) -> None:
        """Orthonormal rows and penalties of the curves of one family."""
        mine = [self.curves[i] for i in members]
        centre, width = np.array([c.centre for c in mine])[:, None], np.array([c.width for c in mine])[:, None]
        design = _columns(kind, degree, self.lam - centre, width, float(np.ptp(self.lam))) / self.error[:, None]
        q, r = np.linalg.qr(design)
        sign = np.sign(np.diagonal(r, axis1=1, axis2=2))
        self._q[members, : q.shape[-1]] = np.swapaxes(q * sign[:, None, :], 1, 2)
        if kind == "peak":
            self._peak[members] = q.shape[-1] - 1
        count = np.full(len(mine), mine[0].linear) + (kind != "polynomial") + (width[:, 0] > 0)
        self.penalty[members] = _penalty(kind, count, self.narrow[members], len(self.lam))

    def joined(self, candidates: Sequence[Curve]) -> LeastSquares:
        """The same with further curves."""
        both, extra = copy(self), LeastSquares(self.lam, self.error, candidates, self.floor)
        both.curves = [*self.curves, *extra.curves]
        for name in ("narrow", "penalty", "_q", "_peak"):
            setattr(both, name, np.concatenate([getattr(self, name), getattr(extra, name)]))
        return both

    def chi2(self, y: FloatArray) -> FloatArray:
        """χ² = Σ_i (y_i − f(λ_i))²/σ_i² of every curve, [curves, sets], for data `y` [points, sets]."""
        z = (y - np.average(y, axis=0, weights=self.error**-2)) / self.error[:, None]
        total = np.sum(z**2, axis=0)
        chi2: FloatArray = np.empty((len(self.curves), y.shape[1]))
        width = self._q.shape[1]
        step = max(1, _CHUNK // (width * y.shape[1]))
        for start in range(0, len(self.curves), step):
            part = slice(start, start + step)
            q = self._q[part]
            projected = (q.reshape(-1, len(self.lam)) @ z).reshape(len(q), width, -1)
            peaks = np.flatnonzero(self._peak[part] >= 0)
            column = self._peak[part][peaks]
            projected[peaks, column] = np.maximum(projected[peaks, column], 0.0)
            chi2[part] = total - np.sum(projected**2, axis=1)
        return np.maximum(chi2, 0.0)

    def bic(self, y: FloatArray) -> FloatArray:
        """Bayesian information criterion of every curve, [curves, sets], for data `y` [points, sets].

        −2 log L + penalty with every σ_i multiplied by the r that maximises the likelihood, r² = max(floor, χ²/n):

            −2 log L = χ²/r² + n log r²        (constants left out)
        """
        n, chi2 = len(self.lam), self.chi2(y)
        r2 = np.maximum(self.floor, chi2 / n)
        bic: FloatArray = chi2 / r2 + n * np.log(r2) + self.penalty[:, None]
        return bic


def _penalty(kind: Kind, parameters: np.ndarray, narrow: np.ndarray, points: int) -> FloatArray:
    """Penalty of the BIC (doi:10.1214/aos/1176344136): log n for each parameter that is known to O(1/√n), [curves].

    The place of a jump is known to O(1/n), one of the m = n − 1 intervals between two couplings: with equal weight for
    each it costs −2 log(1/m), about twice as much (the modified BIC for change points,
    doi:10.1111/j.1541-0420.2006.00662.x). A narrow peak likewise. The place of a kink, and that of a broad feature, is
    an ordinary parameter.
    """
    one_of_many = narrow & (kind in ("jump", "peak"))
    place = np.where(one_of_many, 2 * np.log(points - 1) - np.log(points), 0.0)
    penalty: FloatArray = parameters * np.log(points) + place
    return penalty


@dataclass(frozen=True)
class Fit:
    """A curve with its coefficients."""

    curve: Curve
    coefficients: FloatArray
    covariance: FloatArray
    """of the coefficients, for the errors given"""
    chi2: float
    scale: float

    def __call__(self, lam: FloatArray) -> FloatArray:
        """Values at `lam` [points]."""
        values: FloatArray = self.curve.columns(lam, self.scale) @ self.coefficients
        return values

    def difference(self, order: int) -> tuple[float, float]:
        """Difference of the branches at λ_0 in their derivative of that order (0 or 1), and its standard error.

        Of a peak (order 0) the height. Zero for what the family does not have.
        """
        first = {"polynomial": 99, "jump": 0, "kink": 1, "peak": 0}[self.curve.kind]
        column = self.curve.degree + 1 + order - first
        if order < first or column >= len(self.coefficients):
            return 0.0, 0.0
        factor = 1.0 if self.curve.kind == "peak" else 2.0 / self.scale**order
        return factor * float(self.coefficients[column]), factor * float(np.sqrt(self.covariance[column, column]))


def fit(curve: Curve, lam: FloatArray, y: FloatArray, error: FloatArray) -> Fit:
    """Weighted least squares of one curve to values `y` [points] with standard errors `error` [points]."""
    scale = float(lam[-1] - lam[0])
    q, r = np.linalg.qr(curve.columns(lam, scale) / error[:, None])
    inverse = np.linalg.inv(r)
    coefficients = inverse @ (q.T @ (y / error))
    rest = y - curve.columns(lam, scale) @ coefficients
    return Fit(curve, coefficients, inverse @ inverse.T, float(np.sum((rest / error) ** 2)), scale)

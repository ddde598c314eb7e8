"""Where the ground state changes its total momentum: the crossing of the energies of two sets of sectors.

A family model is one smooth function of λ and goes through a first-order transition as a superposition of both phases.
If these differ in total momentum, the superposition can be taken apart exactly (`observables/projected.py`), and the
energies of the parts cross where the levels do, however rounded everything else is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from qernel.cell import FloatArray
from qernel.stats import format_uncertainty

if TYPE_CHECKING:
    import xarray

NEEDED = ("momentum_probability", "momentum_energy", "momentum_interaction", "momentum_dE_dlam")
SHARE = 0.05
"""probability from which a sector belongs to the state at an end of the scan, and a set of sectors is used at a λ"""
FEWEST = 3
"""couplings at which both sides must be seen"""

Number = tuple[float, float]


@dataclass(frozen=True)
class Crossing:
    """A level crossing; numbers with their standard errors, energies in E0, total, right minus left of the crossing."""

    left: list[str]
    """total momenta of the state at small λ"""
    right: list[str]
    lam_c: Number
    interaction: Number
    """jump of the interaction energy at λ_c"""
    slope: Number
    """jump of dE/dλ at λ_c"""
    couplings: int
    """at which both sides were seen"""


def find(dataset: xarray.Dataset, samples: int = 999, seed: int = 1) -> Crossing | str:
    """The crossing, or in words why there is none to be seen.

    With p_S = Σ_{K in S} p_K and E_S = Σ_{K in S} p_K E_K/p_S for the sectors S of either end, E_right − E_left is
    fitted by a line in λ, weighted by the errors, over the couplings where both p_S are at least `SHARE`; λ_c is its
    root. Errors are the spread of the same for `samples` draws of all energies within their errors. The sectors of one
    coupling are taken as independent, which they nearly are: a walker is mostly in one of them.
    """
    if any(name not in dataset for name in NEEDED):
        return "not in this scan: the energies of the total momenta (--observables momentum_energy)"
    if len(np.unique(dataset["lam"].values)) < dataset.sizes["coupling"]:
        return "the energies of the total momenta cannot be compared: more than λ varies in this scan"
    order = np.argsort(dataset["lam"].values)
    lam = np.asarray(dataset["lam"].values, float)[order]
    p = np.asarray(dataset["momentum_probability"].values, float)[order]
    left, right = p[0] >= SHARE, p[-1] >= SHARE
    labels = [str(x) for x in dataset["sector"].values]
    names = [[label for label, inside in zip(labels, side, strict=True) if inside] for side in (left, right)]
    if np.any(left & right):
        shared = ", ".join(set(names[0]) & set(names[1]))
        return f"both ends of the scan hold the total momentum {shared}: nothing changes that symmetry keeps apart"
    both = (p[:, left].sum(1) >= SHARE) & (p[:, right].sum(1) >= SHARE)
    if both.sum() < FEWEST:
        return (
            f"the total momentum changes from {', '.join(names[0])} to {', '.join(names[1])}, but both are seen at "
            f"{both.sum()} couplings only (needed: {FEWEST}): scan more densely there"
        )
    rng = np.random.default_rng(seed)
    gaps = {name: _gap(dataset, name, order, p, left, right, both, rng, samples) for name in NEEDED[1:]}
    gap, error = gaps["momentum_energy"]
    lines = _line(lam[both], gap, error)
    roots = -lines[0] / lines[1]
    if not lam[both][0] <= roots[0] <= lam[both][-1]:
        return f"the energies of {', '.join(names[0])} and {', '.join(names[1])} do not cross where both are seen"
    jumps = [_line(lam[both], *gaps[name]) for name in NEEDED[2:]]
    found = [_number(a + b * roots) for a, b in jumps]
    return Crossing(names[0], names[1], _number(roots), found[0], found[1], int(both.sum()))


def _gap(
    dataset: xarray.Dataset,
    name: str,
    order: np.ndarray,
    p: FloatArray,
    left: np.ndarray,
    right: np.ndarray,
    both: np.ndarray,
    rng: np.random.Generator,
    samples: int,
) -> tuple[FloatArray, FloatArray]:
    """Right minus left, [1 + samples, couplings]: as measured, then drawn within the errors; and its errors."""
    value = np.asarray(dataset[name].values, float)[order][both]
    error = np.asarray(dataset[f"{name}_error"].values, float)[order][both]
    weight = np.where(np.isfinite(value), p[both], 0.0)
    value, error = np.nan_to_num(value), np.nan_to_num(error)
    sign = np.zeros_like(weight)
    for side, s in ((left, -1.0), (right, 1.0)):
        sign[:, side] = s * weight[:, side] / weight[:, side].sum(1, keepdims=True)
    sigma = np.sqrt(((sign * error) ** 2).sum(1))
    middle = (sign * value).sum(1)
    drawn = middle + sigma * rng.standard_normal((samples, len(middle)))
    return np.concatenate([middle[None], drawn]), sigma


def _line(x: FloatArray, y: FloatArray, error: FloatArray) -> FloatArray:
    """Intercept and slope of weighted fits to y [samples, couplings], [2, samples]."""
    design = np.stack([np.ones_like(x), x], 1) / error[:, None]
    return np.linalg.lstsq(design, (y / error).T, rcond=None)[0]


def _number(x: FloatArray) -> Number:
    return float(x[0]), float(x[1:].std(ddof=1))


def words(crossing: Crossing | str) -> str:
    """One sentence."""
    if isinstance(crossing, str):
        return crossing
    return (
        f"total momentum {', '.join(crossing.left)} to the left, {', '.join(crossing.right)} to the right: their "
        f"energies cross at λ_c = {format_uncertainty(*crossing.lam_c)}, where E_int changes by "
        f"{format_uncertainty(*crossing.interaction)} E0 and dE/dλ by {format_uncertainty(*crossing.slope)} E0"
    )

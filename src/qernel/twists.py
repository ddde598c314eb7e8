"""Twists of a twist average: a Monkhorst-Pack grid over the supercell's Brillouin zone, reduced by time reversal.

    θ_n = Σ_i (2 n_i − M − 1)/(2M) B_i,    n_i = 1 … M,

B_i the supercell's reciprocal vectors (doi:10.1103/PhysRevB.13.5188): the mean over the M² twists is exact for every
function of the zone without plane waves exp(iR·θ) of supercell vectors R = m1 T1 + m2 T2 ≠ 0 whose m1 and m2 are both
multiples of M. Twist averaging: arXiv:cond-mat/0101339.

All potentials here are real and there is no magnetic field, so the conjugate of an eigenstate at θ is one at −θ with
the same energy and density: one of each pair is enough, with twice the weight. θ and θ + B are the same boundary
condition. A network is not told so: it sees θ in 1/a_M, and its states at θ, −θ and θ + B are different
approximations of states that are equal up to conjugation. So it is asked where it was trained, if any of them is there.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from qernel.cell import Cell, FloatArray, IntArray, lattice_points, reduce_basis
from qernel.errors import InputError, require
from qernel.family import Family

NAMES = ("twist_1", "twist_2")

MOST = 100
"""twists along each reciprocal vector at most"""


class Twists(NamedTuple):
    """Twists and the share of the zone each stands for."""

    vectors: FloatArray
    """θ, [twists, 2], 1/a_M"""
    weights: FloatArray
    """[twists], their sum is 1"""


def monkhorst_pack(points: int) -> IntArray:
    """The grid in units of B_i/(2M), M = `points`: odd integers for even M, even ones (with 0) for odd M, [M², 2]."""
    q = 2 * np.arange(1, points + 1) - points - 1
    return np.stack(np.meshgrid(q, q, indexing="ij"), -1).reshape(-1, 2)


def twist_average(family: Family, points: int) -> Twists:
    """The twists of a points × points grid that are to be sampled, with their weights.

    Of all twists equal by time reversal and by the supercell's reciprocal lattice one is taken: inside the family's
    range if there is one there, and of those the shortest.

    Raises `InputError` for an impossible number of points, or a family that was not trained over both twists.
    """
    require(1 <= points <= MOST, "--twists", points, f"a whole number from 1 to {MOST}")
    check_trained(family)
    grid, period = monkhorst_pack(points), 2 * points
    pairs = np.stack([grid % period, -grid % period], 1)
    # Of a twist and its opposite the one that comes first in lexicographic order stands for both.
    code = pairs @ np.array([period, 1])
    first = np.take_along_axis(pairs, code.argmin(1)[:, None, None], 1)[:, 0]
    unique, counts = np.unique(first, axis=0, return_counts=True)
    index = [family.names.index(n) for n in NAMES]
    low, high = (bound[index] for bound in family.bounds())
    vectors = np.stack([_representative(x / period @ family.cell.reciprocal, family.cell, low, high) for x in unique])
    vectors[np.abs(vectors) < 1e-12] = 0.0  # rounding
    return Twists(vectors, counts / points**2)


def check_trained(family: Family) -> None:
    """Raise `InputError`, with the options of `qernel train` that would help, unless both twists vary in the family."""
    ranges = [getattr(family, name) for name in NAMES]
    if all(r is not None and r[0] < r[1] for r in ranges):
        return
    x, y = (math.ceil(100 * float(v)) / 100 for v in np.abs(zone_corners(family.cell)).max(0))
    raise InputError(
        "--twists: twist_1 and twist_2 do not both vary in this family; train one with "
        f"--family.twist_1 {-x:g} {x:g} POINTS --family.twist_2 0 {y:g} POINTS"
    )


def _representative(theta: FloatArray, cell: Cell, low: FloatArray, high: FloatArray) -> FloatArray:
    """Of ±θ + B the one nearest to the box from `low` to `high`, of several the shortest."""
    middle, basis = (low + high) / 2, reduce_basis(cell.reciprocal)
    shells = lattice_points(basis, 2.001 * float(np.linalg.norm(basis, axis=1).max()))
    found = []
    for sign in (1, -1):
        away = np.linalg.solve(basis.T, sign * theta - middle)
        found.append(middle + (away - np.rint(away)) @ basis + shells)
    x = np.concatenate(found)
    outside = np.linalg.norm(np.clip(np.maximum(low - x, x - high), 0, None), axis=1)
    # Ties are broken by position, so that the choice does not depend on rounding.
    order = np.lexsort((-x[:, 0].round(9), -x[:, 1].round(9), np.linalg.norm(x, axis=1).round(9), outside.round(9)))
    return x[order[0]]


def zone_corners(cell: Cell) -> FloatArray:
    """Corners of the supercell's first Brillouin zone, [6, 2], 1/a_M; for a rectangle two of them twice."""
    b1, b2 = reduce_basis(cell.reciprocal)
    if b1 @ b2 > 0:
        b2 = -b2
    # The six vectors whose bisectors bound the zone, around the circle; a corner is on the bisectors of neighbours.
    around = np.array([b1, b1 + b2, b2, -b1, -b1 - b2, -b2])
    pairs = zip(around, np.roll(around, -1, axis=0), strict=True)
    return np.stack([np.linalg.solve(np.stack(p), [0.5 * v @ v for v in p]) for p in pairs])

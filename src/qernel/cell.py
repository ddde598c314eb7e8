"""Moiré lattices, supercells, their reciprocal lattices and momenta. Lengths in a_M, numpy only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qernel.errors import require

FloatArray = NDArray[np.floating]
IntArray = NDArray[np.integer]


MOST_CELLS = 10_000
"""moiré cells of a supercell"""


@dataclass(frozen=True)
class Cell:
    """A supercell T_i = Σ_j M_ij a_j of the moiré lattice, with period |a_j| = 1.

    Raises `InputError` for an unknown lattice or a singular supercell matrix.
    """

    lattice: Literal["triangular", "square"] = "triangular"
    """moiré lattice: a1 = (1, 0) and a2 = (1/2, √3/2) or (0, 1)"""
    supercell: tuple[tuple[int, int], tuple[int, int]] = ((3, 0), (0, 3))
    """integer matrix M, rows are the supercell vectors in units of a1, a2"""

    def __post_init__(self) -> None:
        require(self.lattice in ("triangular", "square"), "cell.lattice", self.lattice, "triangular or square")
        m = np.array(self.supercell)
        require(
            m.shape == (2, 2) and np.issubdtype(m.dtype, np.integer),  # integers beyond 64 bits are objects
            "cell.supercell",
            self.supercell,
            "a 2x2 matrix of integers",
        )
        most = max(abs(int(x)) for row in self.supercell for x in row)
        require(most <= MOST_CELLS, "cell.supercell", self.supercell, f"of entries up to {MOST_CELLS} in size")
        det = int(m[0, 0] * m[1, 1] - m[0, 1] * m[1, 0])
        require(det != 0, "cell.supercell", self.supercell, "a non-singular matrix")
        require(
            abs(det) <= MOST_CELLS, "cell.supercell", self.supercell, f"a matrix of at most {MOST_CELLS} moiré cells"
        )

    @cached_property
    def moire_vectors(self) -> FloatArray:
        """Rows a1, a2, [2, 2]."""
        a2 = (0.5, math.sqrt(3) / 2) if self.lattice == "triangular" else (0.0, 1.0)
        return np.array([(1.0, 0.0), a2])

    @cached_property
    def vectors(self) -> FloatArray:
        """Rows T1, T2 of the supercell, [2, 2]."""
        return np.array(self.supercell) @ self.moire_vectors

    @cached_property
    def moire_reciprocal(self) -> FloatArray:
        """Rows b_i with a_i · b_j = 2π δ_ij, [2, 2], 1/a_M."""
        return 2 * np.pi * np.linalg.inv(self.moire_vectors).T

    @cached_property
    def reciprocal(self) -> FloatArray:
        """Rows B_i with T_i · B_j = 2π δ_ij, [2, 2], 1/a_M."""
        return 2 * np.pi * np.linalg.inv(self.vectors).T

    @cached_property
    def n_cells(self) -> int:
        """Number of moiré cells |det M|."""
        m = self.supercell
        return abs(m[0][0] * m[1][1] - m[0][1] * m[1][0])

    @cached_property
    def area(self) -> float:
        """Area of the supercell, a_M²."""
        return self.n_cells * abs(float(np.linalg.det(self.moire_vectors)))

    @cached_property
    def reduced_vectors(self) -> FloatArray:
        """A Lagrange-reduced basis of the supercell lattice, [2, 2]: shortest vectors."""
        return reduce_basis(self.vectors)

    @cached_property
    def potential_wavevectors(self) -> FloatArray:
        """The g_j of the moiré potential, [3 or 2, 2]: 4π/√3 (0, 1) and its rotations by 120°, or b1, b2."""
        if self.lattice == "square":
            return self.moire_reciprocal
        angles = np.pi / 2 + np.arange(3) * 2 * np.pi / 3
        return 4 * np.pi / math.sqrt(3) * np.stack([np.cos(angles), np.sin(angles)], axis=1)

    @cached_property
    def translations(self) -> FloatArray:
        """The n_cells moiré translations inside the supercell, [n_cells, 2], the null one first."""
        return coset_representatives(np.array(self.supercell)) @ self.moire_vectors

    @cached_property
    def momentum_labels(self) -> IntArray:
        """Integers (i, j), [n_cells, 2]: k = (i b1 + j b2)/d, with d = `momentum_denominator`.

        These are the supercell's reciprocal vectors modulo the moiré ones: total momenta and
        Bloch momenta are both labelled by them, Γ first.
        """
        d = self.momentum_denominator
        # B = (M^-1)^T b, so a supercell reciprocal vector n B has moiré coordinates n M^-T.
        inverse_t = np.rint(np.linalg.inv(np.array(self.supercell)).T * d).astype(int)
        # n and n' differ by a moiré reciprocal vector if n − n' is an integer combination of the columns of M.
        n = coset_representatives(np.array(self.supercell).T)
        return np.unique((n @ inverse_t) % d, axis=0)

    @cached_property
    def momentum_denominator(self) -> int:
        """The smallest d for which every momentum is (i b1 + j b2)/d."""
        m = np.array(self.supercell)
        adjugate_gcd = math.gcd(*(int(x) for x in np.abs(m).ravel()))
        return self.n_cells // math.gcd(adjugate_gcd, self.n_cells)

    @cached_property
    def momenta(self) -> FloatArray:
        """Cartesian momenta of `momentum_labels`, [n_cells, 2], 1/a_M."""
        return self.momentum_labels / self.momentum_denominator @ self.moire_reciprocal

    @cached_property
    def distance_wavevectors(self) -> tuple[FloatArray, FloatArray]:
        """(G [3, 2], w [3]): |r|² = Σ_k w_k (G_k·r)², w_k ≥ 0, G_k in the supercell's reciprocal lattice.

        From the obtuse superbase (Selling) of the supercell. The periodic distance
        d(r)² = Σ_k 2 w_k (1 − cos G_k·r) is smooth, vanishes only on lattice points and is |r|² + O(r⁴).
        """
        t1, t2 = self.reduced_vectors
        if t1 @ t2 > 0:
            t2 = -t2
        t3 = -t1 - t2
        b1, b2 = 2 * np.pi * np.linalg.inv(np.stack([t1, t2])).T
        # With s_i = b_i·r/2π: |r|² = −(t1·t2)(s1 − s2)² − (t2·t3) s2² − (t1·t3) s1².
        g = np.stack([b1 - b2, b2, b1])
        w = -np.array([t1 @ t2, t2 @ t3, t1 @ t3]) / (4 * np.pi**2)
        return g, np.clip(w, 0.0, None)


def reduce_basis(vectors: FloatArray) -> FloatArray:
    """Lagrange (Gauss) reduction of a 2D basis, rows: |t1| ≤ |t2| ≤ |t2 ± t1|."""
    a, b = np.array(vectors, dtype=float)
    while True:
        if a @ a > b @ b + 1e-12:
            a, b = b, a
        shift = round(float(a @ b / (a @ a)))
        if shift == 0 or abs(a @ b) <= 0.5 * (a @ a) * (1 + 1e-9):
            return np.stack([a, b])
        b = b - shift * a


def coset_representatives(m: IntArray) -> IntArray:
    """Integer points n, [|det M|, 2], one for each class of Z² modulo the rows of M, (0, 0) first.

    They lie in the parallelogram of the rows, n = s M with 0 ≤ s < 1. In integers: exact for any shape of it.
    """
    (a, b), (c, d) = ([int(x) for x in row] for row in m)
    det = a * d - b * c
    # Every class has one point of a rectangle: the rows generate (g, ·) and (0, |det|/g).
    g = math.gcd(a, c)
    points = np.stack(np.meshgrid(np.arange(g), np.arange(abs(det) // g), indexing="ij"), -1).reshape(-1, 2)
    s = points @ np.array([[d, -b], [-c, a]])  # times det
    points = points - (s // det) @ np.array([[a, b], [c, d]])
    return points[np.lexsort((points[:, 1], points[:, 0], (points**2).sum(1)))]


def lattice_points(vectors: FloatArray, radius: float) -> FloatArray:
    """All lattice vectors n1 t1 + n2 t2 with length ≤ radius, [n, 2], ordered by length, origin first."""
    reduced = reduce_basis(vectors)
    reach = np.ceil(radius * np.linalg.norm(np.linalg.inv(reduced), axis=0)).astype(int) + 1
    grid = np.meshgrid(np.arange(-reach[0], reach[0] + 1), np.arange(-reach[1], reach[1] + 1), indexing="ij")
    points = np.stack(grid, -1).reshape(-1, 2) @ reduced
    length = np.linalg.norm(points, axis=1)
    keep = length <= radius * (1 + 1e-12)
    order = np.lexsort((points[keep, 1].round(9), points[keep, 0].round(9), length[keep].round(9)))
    return points[keep][order]


def half_space(points: FloatArray) -> FloatArray:
    """One of each pair ±G, without the origin."""
    x, y = points.round(9).T
    return points[(y > 0) | ((y == 0) & (x > 0))]

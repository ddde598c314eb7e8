"""Averages that do not depend on which state of a degenerate level one has.

Translations, the rotations and reflections that leave λW and the twist alone, and time reversal commute with H. By
Schur's lemma an operator that commutes with all of them has one expectation in every state of an irreducible level, in
mixtures of them too. |ρ_k|² and n(k) commute with the translations, so it is enough to average them over the star of k,
and densities over translations and rotations. Levels that meet by accident are not covered.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from qernel.bands import concrete
from qernel.cell import Cell, FloatArray, IntArray
from qernel.errors import require
from qernel.hamiltonian import Hamiltonian


class Symmetries(NamedTuple):
    """Rotations and reflections about the origin that commute with H, alone or together with time reversal."""

    rotations: FloatArray
    """R [operations, 2, 2]: r → R r"""
    signs: FloatArray
    """s [operations]: k → s R k; −1 with time reversal"""

    @property
    def momentum(self) -> FloatArray:
        """s R, [operations, 2, 2]: n(k) averaged over them is the same in a whole level."""
        return self.signs[:, None, None] * self.rotations

    @property
    def structure(self) -> FloatArray:
        """± R, [operations, 2, 2], for S(k) = S(−k)."""
        return np.concatenate([self.momentum, -self.momentum])


def symmetries(h: Hamiltonian) -> Symmetries:
    """Those of the lattice's point group that keep the supercell, λW and, modulo its reciprocal lattice, the twist.

    Time reversal takes θ to −θ. Raises `InputError` unless the couplings are those of one Hamiltonian.
    """
    lam, _, twist = concrete(h)
    points = np.random.default_rng(0).uniform(-1, 1, (100, 2))

    def potential(r: FloatArray) -> FloatArray:
        return lam * np.asarray(h.potential(jnp.asarray(r), h))

    here = potential(points)
    kept, signs = [], []
    for r in _point_group(h.cell):
        change = np.abs(potential(points @ r.T) - here).max()
        if not _integer(h.cell.vectors @ r.T, h.cell.vectors) or change > 1e-9 * (1 + np.abs(here).max()):
            continue
        for s in (1, -1):
            if _integer(s * r @ twist - twist, h.cell.reciprocal):
                kept.append(r)
                signs.append(s)
    return Symmetries(np.array(kept), np.array(signs, float))


def stars(k: FloatArray, operations: FloatArray) -> IntArray:
    """Number of the star that each of k [m, 2] belongs to, [m]; −1 where a part of the star is not among them."""
    images = np.einsum("gij,mj->gmi", operations, np.asarray(k, float))
    distance = np.linalg.norm(images[:, :, None] - k, axis=-1)
    found = np.where(distance.min(-1) < 1e-6, distance.argmin(-1), -1)
    _, number = np.unique(found.min(0), return_inverse=True)
    return np.asarray(number - (found.min() < 0))


def star_average(values: FloatArray, star: IntArray) -> FloatArray:
    """Means over the stars, [..., stars], of values [..., m] with the numbers of `stars`; −1 is left out."""
    member = star[:, None] == np.arange(star.max() + 1)
    return np.asarray(values @ (member / member.sum(0)))


def symmetrised_map(density: FloatArray, cell: Cell, operations: Symmetries) -> FloatArray:
    """Average of binned maps [..., bins, bins] over the moiré translations and the operations.

    Bins are no bins any more when rotated, so the mean over each bin of the rotated Fourier series is taken, up to the
    largest |q| below half the bins along either supercell vector: finer detail is cut off. To compare two maps treat
    both in this way.

    Raises `InputError` unless the translations fit the bins.
    """
    bins = density.shape[-1]
    d = cell.momentum_denominator
    require(bins % d == 0, "bins", bins, f"a multiple of {d}, so that moiré translations fit")
    limit = np.pi * (bins - 1) / np.linalg.norm(cell.vectors, axis=1).max()
    n = np.stack(np.meshgrid(*2 * [np.arange(bins) - bins // 2], indexing="ij"), -1).reshape(-1, 2)
    q = n @ cell.reciprocal
    n = n[(np.linalg.norm(q, axis=1) <= limit * (1 + 1e-9)) & _whole(q @ cell.moire_vectors.T / (2 * np.pi))]
    window = np.sinc(n / bins).prod(1) * np.exp(1j * np.pi * n.sum(1) / bins)  # means over bins, from their centres
    series = np.fft.fft2(density)[..., n[:, 0], n[:, 1]] / window
    rotated = (n @ cell.reciprocal) @ operations.rotations @ np.linalg.inv(cell.reciprocal)
    place = np.zeros((bins, bins), int)
    place[n[:, 0], n[:, 1]] = np.arange(len(n))
    at = place[tuple(np.moveaxis(np.rint(rotated).astype(int), -1, 0))]
    full = np.zeros(density.shape, complex)
    full[..., n[:, 0], n[:, 1]] = series[..., at].mean(-2) * window
    return np.asarray(np.fft.ifft2(full).real)


def _point_group(cell: Cell) -> FloatArray:
    """Rotations and reflections of the moiré lattice, [12 or 8, 2, 2]."""
    fold = 6 if cell.lattice == "triangular" else 4
    angle = 2 * np.pi * np.arange(fold) / fold
    c, s = np.cos(angle), np.sin(angle)
    turns = np.stack([np.stack([c, -s], -1), np.stack([s, c], -1)], 1)
    return np.concatenate([turns, turns * np.array([-1.0, 1.0])])


def _whole(x: FloatArray) -> np.ndarray:
    """Whether x [..., n] are integers, [...]."""
    return np.asarray(np.abs(x - np.rint(x)).max(-1) < 1e-6)


def _integer(vectors: FloatArray, basis: FloatArray) -> bool:
    """Whether vectors [..., 2] are integer combinations of the rows of the basis."""
    return bool(_whole(vectors @ np.linalg.inv(basis)).all())

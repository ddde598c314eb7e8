"""Coulomb interaction of charges confined to a plane, periodic in two dimensions.

With a neutralising background (zero mean) and splitting parameter α, for r ≠ 0,

    w(r) = Σ_T erfc(α|r + T|)/|r + T| + (2π/A) Σ_{G≠0} f(G) cos(G·r) − 2√π/(αA),
    f(G) = erfc(G/2α)/G − 2/(G (exp(2Gd) + 1)),
    ξ    = lim_{r→0} w(r) − 1/r          (the Madelung constant; ½ξ per electron),

the second part of f being the screening by two grounded gates at distance d above and below
(2π/q → 2π tanh(qd)/q); d = ∞ is the bare sum. Bonsall and Maradudin, doi:10.1103/PhysRevB.15.1959.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erfc as jax_erfc
from jaxtyping import Array, Float
from scipy.special import erfc

from qernel.cell import Cell, FloatArray, half_space, lattice_points
from qernel.types import Electrons, PerWalker


@dataclass(frozen=True, eq=False)
class Ewald:
    """Tables of one supercell: images T, wavevectors G (one of each ±pair) with weights, and ξ."""

    alpha: float
    images: FloatArray
    wavevectors: FloatArray
    weights: FloatArray
    constant: float
    madelung: float
    to_fraction: FloatArray
    basis: FloatArray


@lru_cache(maxsize=64)
def ewald_tables(
    cell: Cell, gate: float | None = None, tolerance: float = 1e-10, n_electrons: int = 2, alpha: float | None = None
) -> Ewald:
    """Build the tables; the truncation error of w is below about `tolerance`/a_M.

    `alpha` is chosen to make the sum over `n_electrons` electrons cheapest unless given; results do
    not depend on it. `gate` is the gate distance d in a_M.
    """
    if alpha is None:
        scale = 1 / math.sqrt(cell.area)
        candidates = [_tables(cell, gate, tolerance, a * scale) for a in np.arange(1.6, 6.1, 0.4)]
        pairs = n_electrons * (n_electrons - 1) / 2
        # An erfc with its square root costs about ten times a sine-cosine.
        return min(candidates, key=lambda e: 10 * pairs * len(e.images) + 4 * n_electrons * len(e.wavevectors))
    return _tables(cell, gate, tolerance, alpha)


def _tables(cell: Cell, gate: float | None, tolerance: float, alpha: float) -> Ewald:
    reach = math.sqrt(-math.log(tolerance)) + 0.3
    basis = cell.reduced_vectors
    corner = 0.5 * float(max(np.linalg.norm(basis[0] + basis[1]), np.linalg.norm(basis[0] - basis[1])))
    cutoff = reach / alpha
    images = lattice_points(cell.vectors, cutoff + corner)
    # Keep an image only if some r of the reduced parallelogram comes within the cutoff of it.
    grid = np.stack(np.meshgrid(*[np.linspace(-0.5, 0.5, 41)] * 2), -1).reshape(-1, 2) @ basis
    nearest = np.linalg.norm(grid[:, None] + images[None], axis=-1).min(axis=0)
    images_pair = images[nearest <= cutoff + np.linalg.norm(basis, axis=1).max() / 40]

    g_max = 2 * alpha * reach
    if gate is not None:
        g_max = max(g_max, -math.log(tolerance) / (2 * gate))
    g = half_space(lattice_points(cell.reciprocal, g_max))
    length = np.linalg.norm(g, axis=1)
    f = erfc(length / (2 * alpha)) / length
    if gate is not None:
        f = f - 2 / (length * (np.exp(np.minimum(2 * length * gate, 700)) + 1))
    weights = 2 * (2 * np.pi / cell.area) * f
    constant = -2 * math.sqrt(math.pi) / (float(alpha) * cell.area)
    t = np.linalg.norm(lattice_points(cell.vectors, cutoff)[1:], axis=1)
    madelung = float((erfc(alpha * t) / t).sum() + weights.sum() + constant - 2 * alpha / math.sqrt(math.pi))
    return Ewald(float(alpha), images_pair, g, weights, constant, madelung, np.linalg.inv(basis), basis)


def pair_interaction(electrons: Electrons, tables: Ewald) -> PerWalker:
    """Σ_{i<j} w(r_ij) + ½ N ξ, in units of u E0. Each pair is visited once."""
    n = electrons.shape[-2]
    dtype = electrons.dtype
    self_energy = 0.5 * n * tables.madelung
    if n == 1:
        return jnp.full(electrons.shape[:-2], self_energy, dtype)
    i, j = np.triu_indices(n, 1)
    r = electrons[..., i, :] - electrons[..., j, :]
    s = r @ jnp.asarray(tables.to_fraction, dtype)
    r = (s - jnp.round(s)) @ jnp.asarray(tables.basis, dtype)
    real = jnp.zeros(r.shape[:-1], dtype)
    for image in tables.images:  # a handful; a loop keeps the memory at one array of pairs
        d = jnp.sqrt(jnp.sum((r + jnp.asarray(image, dtype)) ** 2, axis=-1))
        real = real + jax_erfc(tables.alpha * d) / d
    phase = electrons @ jnp.asarray(tables.wavevectors.T, dtype)
    structure = jnp.cos(phase).sum(-2) ** 2 + jnp.sin(phase).sum(-2) ** 2
    # Σ_{i<j} cos G·r_ij = ½(|ρ_G|² − N)
    reciprocal = 0.5 * (structure - n) @ jnp.asarray(tables.weights, dtype)
    pairs = n * (n - 1) / 2
    return real.sum(-1) + reciprocal + pairs * tables.constant + self_energy


def fourier_weight(q: Float[Array, "*any"] | FloatArray, cell: Cell, gate: float | None = None) -> FloatArray:
    """Fourier coefficient w_q = (1/A)∫w(r) exp(−iq·r) = 2π tanh(qd)/(A q), 0 at q = 0. q: |q| in 1/a_M."""
    q = np.asarray(q)
    safe = np.where(q > 1e-9, q, 1.0)
    screening = 1.0 if gate is None else np.tanh(safe * gate)
    return np.where(q > 1e-9, 2 * np.pi / (cell.area * safe) * screening, 0.0)


__all__ = ["Ewald", "ewald_tables", "fourier_weight", "pair_interaction"]

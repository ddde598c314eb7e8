"""Pair correlation factor with the 2D cusps, a random-phase long range, and amplitudes conditioned on c.

    J = Σ_{i<j} [−s_ij β exp(−d_ij/β) + Σ_m a_m cos(G_m·r_ij)],

d the periodic distance of `Cell.distance_wavevectors`. The slope s_ij at contact is u for unlike and u/3 for like
spins (the 2D cusp conditions, where H has −½∇² and +u/r). The a_m start from the random-phase approximation
(Gaskell; in 2D doi:10.1103/PhysRevB.39.5005), less what the first term has at G_m.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qernel.cell import Cell, FloatArray, half_space, lattice_points
from qernel.ewald import fourier_weight
from qernel.hamiltonian import Hamiltonian
from qernel.layers import Linear
from qernel.types import Electrons, Key, PerWalker


@dataclass(frozen=True)
class PairTables:
    """Constants of the pair factor: G_m [shells, 2], periodic distance (G [3, 2], w [3]), cusp slopes/u [pairs].

    They follow from the first four fields, by which tables are compared (so that equal models share compiled code).
    """

    cell: Cell
    n_up: int
    n_down: int
    shells: int
    wavevectors: FloatArray = field(compare=False)
    distance: tuple[FloatArray, FloatArray] = field(compare=False)
    cusp: FloatArray = field(compare=False)


class Jastrow(eqx.Module):
    """The pair factor J, real, [*batch]."""

    log_range: Float[Array, ""]
    amplitudes: Float[Array, " shells"]
    response: Linear | None
    tables: PairTables = eqx.field(static=True)

    def __init__(self, key: Key, h: Hamiltonian, shells: int, n_embed: int, *, dtype: str):
        density = h.n_electrons / h.cell.area
        beta = 0.5 / np.sqrt(np.pi * density)
        g = _shortest(h, shells)
        spin = np.r_[np.ones(h.n_up), -np.ones(h.n_down)]
        i, j = np.triu_indices(h.n_electrons, 1)
        cusp = np.where(spin[i] == spin[j], 1 / 3, 1.0)
        self.tables = PairTables(h.cell, h.n_up, h.n_down, shells, g, h.cell.distance_wavevectors, cusp)
        self.log_range = jnp.asarray(np.log(beta), dtype)
        mean_cusp = float(cusp.mean()) if len(cusp) else 1 / 3
        start = random_phase(h, g) - _cusp_components(h, g, beta, mean_cusp)
        self.amplitudes = jnp.asarray(start if h.n_electrons > 1 else 0 * start, dtype)
        self.response = Linear(key, n_embed, shells + 1, scale=0.0, bias=False, dtype=dtype) if n_embed else None

    def __call__(self, electrons: Electrons, u: Float[Array, ""], embedding: Float[Array, " n_embed"]) -> PerWalker:
        n = electrons.shape[-2]
        if n == 1:
            return jnp.zeros(electrons.shape[:-2], electrons.dtype)
        beta, amplitudes = self.at(embedding)
        dtype = electrons.dtype
        i, j = np.triu_indices(n, 1)
        r = electrons[..., i, :] - electrons[..., j, :]
        g, w = self.tables.distance
        d = jnp.sqrt(jnp.square(jnp.sin(r @ jnp.asarray(g.T / 2, dtype))) @ jnp.asarray(4 * w, dtype))
        short = -u * beta * (jnp.exp(-d / beta) @ jnp.asarray(self.tables.cusp, dtype))
        phase = electrons @ jnp.asarray(self.tables.wavevectors.T, dtype)
        structure = jnp.square(jnp.cos(phase).sum(-2)) + jnp.square(jnp.sin(phase).sum(-2))
        return short + 0.5 * (structure - n) @ amplitudes

    def at(self, embedding: Float[Array, " n_embed"]) -> tuple[Float[Array, ""], Float[Array, " shells"]]:
        """Range β and amplitudes a_m at one coupling."""
        log_range, amplitudes = self.log_range, self.amplitudes
        if self.response is not None:
            change = self.response(embedding)
            log_range, amplitudes = log_range + change[0], amplitudes + change[1:]
        return jnp.exp(log_range), amplitudes

    def derivatives(
        self, electrons: Electrons, u: Float[Array, ""], embedding: Float[Array, " n_embed"]
    ) -> tuple[PerWalker, Electrons, PerWalker]:
        """J, its gradient [*batch, N, 2] and its Laplacian over all coordinates, in closed form."""
        n, dtype = electrons.shape[-2], electrons.dtype
        if n == 1:
            zero = jnp.zeros(electrons.shape[:-2], dtype)
            return zero, jnp.zeros_like(electrons), zero
        beta, amplitudes = self.at(embedding)
        slope = np.zeros((n, n))
        slope[np.triu_indices(n, 1)] = self.tables.cusp
        slopes = jnp.asarray(slope + slope.T, dtype)
        r = electrons[..., :, None, :] - electrons[..., None, :, :]
        g, w = (jnp.asarray(x, dtype) for x in self.tables.distance)
        half = r @ g.T / 2
        sin, cos = jnp.sin(half), jnp.cos(half)
        # d² = Σ 4w sin², with an arbitrary value where an electron meets itself (its slope is 0).
        d2 = jnp.square(sin) @ (4 * w) + jnp.eye(n, dtype=dtype)
        d = jnp.sqrt(d2)
        grad_d2 = (sin * cos) @ (4 * w[:, None] * g)
        curvature = jnp.square(cos) - jnp.square(sin)
        lap_d2 = curvature @ (2 * w * jnp.sum(g * g, -1))
        grad_d = grad_d2 / (2 * d[..., None])
        squared = jnp.sum(grad_d * grad_d, -1)
        lap_d = lap_d2 / (2 * d) - squared / d
        short = u * slopes * jnp.exp(-d / beta)  # f = −s β exp(−d/β): f' = s exp(−d/β), f'' = −f'/β
        value = -0.5 * beta * jnp.sum(short, (-2, -1))
        gradient = jnp.sum(short[..., None] * grad_d, -2)
        laplacian = jnp.sum(short * (lap_d - squared / beta), (-2, -1))
        # Σ_m ½ a_m (|ρ_m|² − N), ρ_m = Σ_i exp(iG_m·r_i)
        g = jnp.asarray(self.tables.wavevectors, dtype)
        phase = electrons @ g.T
        sin, cos = jnp.sin(phase), jnp.cos(phase)
        rho_c, rho_s = cos.sum(-2), sin.sum(-2)
        structure = jnp.square(rho_c) + jnp.square(rho_s) - n
        value = value + 0.5 * structure @ amplitudes
        gradient = gradient + (rho_s[..., None, :] * cos - rho_c[..., None, :] * sin) @ (amplitudes[:, None] * g)
        laplacian = laplacian - structure @ (amplitudes * jnp.sum(g * g, -1))
        return value, gradient, laplacian


def _shortest(h: Hamiltonian, count: int) -> FloatArray:
    """The `count` shortest supercell reciprocal vectors, one of each ±pair."""
    scale = np.sqrt(4 * np.pi**2 / h.cell.area)
    return half_space(lattice_points(h.cell.reciprocal, scale * (2 + np.sqrt(2 * count))))[:count]


def random_phase(h: Hamiltonian, g: FloatArray) -> FloatArray:
    """RPA amplitudes: cos(G·r) coefficient −(2/A) a(G), 2ρ a = −1/S0 + (1/S0² + 4ρ v_G/G²)^½, at the given G."""
    rho = h.n_electrons / h.cell.area
    q = np.linalg.norm(g, axis=1)
    inverse_s0 = np.zeros_like(q)
    for n in (h.n_up, h.n_down):
        if n:
            x = np.minimum(q / (2 * np.sqrt(4 * np.pi * n / h.cell.area)), 1.0)
            inverse_s0 += n / h.n_electrons / (2 / np.pi * (np.arcsin(x) + x * np.sqrt(1 - x * x)))
    v = float(h.u) * fourier_weight(q, h.cell, h.gate) * h.cell.area
    a = (np.sqrt(inverse_s0**2 + 4 * rho * v / q**2) - inverse_s0) / (2 * rho)
    return -2 / h.cell.area * a


def _cusp_components(h: Hamiltonian, g: FloatArray, beta: float, cusp: float) -> FloatArray:
    """cos(G·r) coefficients of −s β exp(−d/β), by quadrature over the supercell."""
    s = np.stack(np.meshgrid(*[np.arange(128) / 128] * 2), -1).reshape(-1, 2)
    r = s @ h.cell.vectors
    vectors, w = h.cell.distance_wavevectors
    d = np.sqrt(np.sin(r @ vectors.T / 2) ** 2 @ (4 * w))
    value = -float(h.u) * cusp * beta * np.exp(-d / beta)
    return 2 * np.cos(g @ r.T) @ value / len(r)

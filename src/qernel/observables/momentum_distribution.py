"""The momentum distribution n(k) and the one-body density matrix, by displacing one electron at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from qernel.cell import Cell, FloatArray, lattice_points
from qernel.family import Family
from qernel.observables.interface import Means, Quantity, Record, Summed, Sweep, Values
from qernel.start import Point, Start


@dataclass(frozen=True)
class MomentumDistribution(Summed):
    """n(k) = ⟨c†_k c_k⟩ in the plane waves exp(ik·r)/√A of k = G + θ, G in the supercell's reciprocal lattice.

        n(k) = Σ_i ⟨ e^{−ik·s_i} ψ(… r_i + s_i …)/ψ(R) ⟩,      γ(s) = (1/N) Σ_i ⟨ ψ(… r_i + s …)/ψ(R) ⟩,

    each s_i uniform over the supercell (doi:10.1103/PhysRev.138.A442), so that the variance is at most N whatever the
    state. Σ_k n(k) over all k is N. The density matrix γ(s) is averaged over the place of the electron, γ(0) = 1 and
    γ(s) = (1/N) Σ_k n(k) e^{ik·s}: where s passes a supercell vector T its phase grows by θ·T. It is given as means
    over squares of s. Spins: n of both together, and of each if there are both. Takes N values of ψ.
    """

    every: int = 5
    shells: float = 2.0
    """largest |G| in units of the shortest moiré reciprocal vector"""
    squares: int = 9
    """bins of s along each supercell vector, odd: the middle one is centred on s = 0"""

    def wavevectors(self, cell: Cell) -> FloatArray:
        """G, [k, 2], 1/a_M."""
        return _wavevectors(cell, self.shells)

    def evaluate(self, sweep: Sweep, tables: tuple[()]) -> Values:
        """Contributions of every walker to n(k), [couplings, walkers, k], and γ(s), [couplings, walkers, squares²]."""
        family, n = sweep.config.family, sweep.walkers.shape[-2]
        fraction = sweep.uniform(n, 2) - 0.5
        shifts = fraction @ jnp.asarray(family.cell.vectors, fraction.dtype)

        def some(both: Float[Array, "chunk both 2"], points: Point) -> Values:
            r, s = jnp.split(both, 2, axis=1)
            square = self.square_of(s, family.cell)
            base = jax.vmap(sweep.model)(r, points)

            def displaced(sums: Values, i: Array) -> tuple[Values, None]:
                value = jax.vmap(sweep.model)(r.at[:, i].add(s[:, i]), points)
                more = self.contributions(jnp.exp(value - base), s[:, i], square[:, i], points.twist, family)
                of_spin: dict[str, Any] = {"": 1.0, "_up": i < family.n_up, "_down": i >= family.n_up}
                return {k: x + of_spin.get(k[1:], 1.0) * more[k[0]] for k, x in sums.items()}, None

            names = ["n", "n_up", "n_down"] if family.n_up and family.n_down else ["n"]
            zero = {k: jnp.zeros((len(r), len(self.wavevectors(family.cell))), r.dtype) for k in names}
            zero["g"] = jnp.zeros((len(r), self.squares**2), base.dtype)
            sums: Values = jax.lax.scan(displaced, zero, jnp.arange(n))[0]
            return sums

        values: Values = sweep.each(some, jnp.concatenate([sweep.walkers, shifts], -2))
        return values

    def square_of(self, s: Float[Array, "*batch 2"], cell: Cell) -> Int[Array, "*batch"]:
        """Number of the square that s lies in."""
        fraction = s @ jnp.asarray(np.linalg.inv(cell.vectors), s.dtype) + 0.5
        index = jnp.floor(fraction * self.squares).astype(int).clip(0, self.squares - 1)
        return index[..., 0] * self.squares + index[..., 1]

    def contributions(self, ratio: Array, s: Array, square: Array, twist: Array, family: Family) -> Values:
        """Re e^{−ik·s} ψ'/ψ, "n" [chunk, k], and squares²/N·ψ'/ψ in the square of s, "g" [chunk, squares²]."""
        k = jnp.asarray(self.wavevectors(family.cell), s.dtype)
        phase = s @ k.T + jnp.sum(s * twist, -1, keepdims=True)
        n = ratio.real[:, None] * jnp.cos(phase) + ratio.imag[:, None] * jnp.sin(phase)
        inside = square[:, None] == jnp.arange(self.squares**2)
        return {"n": n, "g": jnp.where(inside, ratio[:, None] * (self.squares**2 / family.n_electrons), 0)}

    def finalise(self, record: Record, start: Start, couplings: FloatArray) -> dict[str, Quantity]:
        """`momentum_distribution` [couplings, G], with `_up` and `_down`; `density_matrix_re`, `_im` [couplings, s, s].

        Coordinates G_x, G_y in 1/a_M (k = G + θ), s1 and s2 as fractions of the supercell vectors.
        """
        g = self.wavevectors(start.family.cell)
        axes: dict[str, Any] = {"G_x": ("G", g[:, 0]), "G_y": ("G", g[:, 1])}
        out = {}
        for name in sorted(record.sums.totals):
            if name != "g":
                text = f"momentum distribution n(G + theta) {name[2:]}".strip()
                value, error = record.sums.derived(itemgetter(name))
                out[f"momentum_distribution{name[1:]}"] = Quantity(value, error, "1", text, ("G",), axes)
        middle = (np.arange(self.squares) + 0.5) / self.squares - 0.5
        axes = {"s1": ("s1", middle), "s2": ("s2", middle)}
        for part in ("real", "imag"):

            def matrix(m: Means, part: str = part) -> FloatArray:
                values: FloatArray = getattr(m["g"], part).reshape(-1, self.squares, self.squares)
                return values

            text = f"one-body density matrix, {part} part, means over squares of s"
            value, error = record.sums.derived(matrix)
            out[f"density_matrix_{part[:2]}"] = Quantity(value, error, "1", text, ("s1", "s2"), axes)
        return out


@cache
def _wavevectors(cell: Cell, shells: float) -> FloatArray:
    shortest = np.linalg.norm(lattice_points(cell.moire_reciprocal, 4 * math.pi)[1])
    return lattice_points(cell.reciprocal, shells * float(shortest) * (1 + 1e-9))

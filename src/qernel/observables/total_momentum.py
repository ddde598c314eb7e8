"""The probability of every total momentum: which sector of exact diagonalisation a state belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from qernel.cell import Cell, FloatArray
from qernel.observables.interface import Quantity, Record, Summed, Sweep, Values
from qernel.start import Point, Start


@dataclass(frozen=True)
class TotalMomentum(Summed):
    """p_K = ⟨ψ|P_K|ψ⟩/⟨ψ|ψ⟩, P_K = (1/n) Σ_a exp(−i(K + Nθ)·a) T_a, (T_a ψ)(R) = ψ(R + a).

    a runs over the n moiré translations of the supercell, K over `Cell.momenta`; Σ_K p_K = 1. A walker's orbit R + a is
    averaged over as a whole, each of its points as likely as |ψ(R + a)|²:

        p_K = ⟨ |Σ_a exp(−i(K + Nθ)·a) ψ(R + a)|² / (n Σ_a |ψ(R + a)|²) ⟩,

    a probability distribution for every single walker, and without any spread for a state of one momentum. Takes n
    values of ψ.
    """

    every: int = 10

    def evaluate(self, sweep: Sweep, tables: tuple[()]) -> Values:
        """p_K of every walker, [couplings, walkers, momenta]."""
        return {"p": probabilities(orbit(sweep), sweep.config.family.cell)}

    def finalise(self, record: Record, start: Start, couplings: FloatArray) -> dict[str, Quantity]:
        """`momentum_probability`, [couplings, sector], in the order of `Cell.momentum_labels`."""
        value, error = record.sums.derived(lambda m: m["p"])
        text = "probability of the total momentum, in units of b1 and b2, N theta not included"
        return {"momentum_probability": Quantity(value, error, "1", text, ("sector",), sectors(start.family.cell))}


def sectors(cell: Cell) -> dict[str, tuple[str, Any]]:
    """Coordinates of the axis of total momenta: labels as in `qernel exact`, and vectors in 1/a_M."""
    labels = [f"({i},{j})/{cell.momentum_denominator}" for i, j in cell.momentum_labels]
    x, y = cell.momenta.T
    return {"sector": ("sector", labels), "total_k_x": ("sector", x), "total_k_y": ("sector", y)}


def orbit(sweep: Sweep) -> Complex[Array, "couplings walkers translations"]:
    """log of exp(−iNθ·a) ψ(R + a) for all moiré translations a, in the order of `Cell.translations`."""
    cell = sweep.config.family.cell

    def some(r: Float[Array, "chunk electrons 2"], points: Point) -> Complex[Array, "chunk translations"]:
        shifts = jnp.asarray(cell.translations, r.dtype)
        values = jax.lax.map(lambda a: jax.vmap(sweep.model)(r + a, points), shifts)
        twist = shifts @ points.twist.T * r.shape[-2]
        return values.T - 1j * twist.T

    log_psi: Array = sweep.each(some)
    return log_psi


def amplitudes(log_psi: Complex[Array, "*walkers translations"], cell: Cell) -> Complex[Array, "*walkers momenta"]:
    """Σ_a exp(−iK·a) ψ_a, with ψ_a of the orbit divided by the largest of them."""
    psi = jnp.exp(log_psi - log_psi.real.max(-1, keepdims=True))
    wave = np.exp(-1j * cell.translations @ cell.momenta.T)
    return psi @ jnp.asarray(wave, psi.dtype)


def probabilities(log_psi: Complex[Array, "*walkers translations"], cell: Cell) -> Float[Array, "*walkers momenta"]:
    """|Σ_a exp(−iK·a) ψ_a|²/(n Σ_a |ψ_a|²) from log ψ on the orbit of every walker."""
    psi = jnp.exp(log_psi - log_psi.real.max(-1, keepdims=True))
    amplitude = amplitudes(log_psi, cell)
    return jnp.abs(amplitude) ** 2 / (cell.n_cells * jnp.sum(jnp.abs(psi) ** 2, -1, keepdims=True))

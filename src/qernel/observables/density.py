"""The electron density over the supercell, and its average over the moiré translations."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qernel.cell import Cell, FloatArray
from qernel.observables.interface import Quantity, Record, Summed, Sweep, Values
from qernel.start import Start
from qernel.types import Walkers


@dataclass(frozen=True)
class Density(Summed):
    """n(r) = ⟨Σ_i δ(r − r_i)⟩ in bins, 1/a_M²: it integrates to N over the supercell."""

    bins: int = 36
    """along each supercell vector"""

    def evaluate(self, sweep: Sweep, tables: tuple[()]) -> Values:
        """Electrons in every bin, [couplings, walkers, bins²]."""
        return {"counts": histogram(sweep.walkers, sweep.config.family.cell, self.bins)}

    def finalise(self, record: Record, start: Start, couplings: FloatArray) -> dict[str, Quantity]:
        """`density`, [couplings, bins, bins], axes the fractions of T1 and T2."""
        cell = start.family.cell
        scale = self.bins**2 / cell.area
        shape = (-1, self.bins, self.bins)
        value, error = record.sums.derived(lambda m: scale * m["counts"].reshape(shape))
        return {"density": Quantity(value, error, "1/a_M^2", "electron density", ("t1", "t2"))}


def histogram(walkers: Walkers, cell: Cell, bins: int) -> Float[Array, "couplings walkers squares"]:
    """Electrons of every walker in every bin of the supercell, [couplings, walkers, bins²]."""
    s = walkers @ jnp.asarray(np.linalg.inv(cell.vectors), walkers.dtype)
    index = jnp.floor((s - jnp.floor(s)) * bins).astype(int).clip(0, bins - 1)
    flat = index[..., 0] * bins + index[..., 1]
    count = jax.vmap(jax.vmap(lambda i: jnp.zeros(bins * bins, walkers.dtype).at[i].add(1)))
    return count(flat)


def density_bins(cell: Cell, at_least: int) -> int:
    """Bins along each supercell vector: a multiple of the momentum denominator, so that moiré translations fit."""
    d = cell.momentum_denominator
    return d * max(1, -(-at_least // d))


def symmetrised(density: FloatArray, cell: Cell) -> FloatArray:
    """Average of a map [bins, bins] over the moiré translations of the supercell."""
    bins = density.shape[0]
    shifts = np.rint(cell.translations @ np.linalg.inv(cell.vectors) * bins).astype(int)
    return np.mean([np.roll(density, tuple(s), axis=(0, 1)) for s in shifts], axis=0)

"""The static structure factor, and the order parameter of the √3×√3 crystal."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qernel.cell import Cell, FloatArray, half_space, lattice_points
from qernel.observables.interface import Quantity, Record, Summed, Sweep, Values
from qernel.start import Start


@dataclass(frozen=True)
class StructureFactor(Summed):
    """S(k) = ⟨|ρ_k|²⟩/N, ρ_k = Σ_i exp(−ik·r_i), at the supercell's wavevectors k ≠ 0; ⟨ρ_k⟩ is not subtracted.

    1 for an ideal gas; of the order of N where the electrons form a crystal. S(−k) = S(k).
    """

    shells: float = 2.0
    """largest |k| in units of the shortest moiré reciprocal vector"""

    def wavevectors(self, cell: Cell) -> FloatArray:
        """One of each pair ±k, [k, 2], 1/a_M."""
        return _wavevectors(cell, self.shells)

    def evaluate(self, sweep: Sweep, tables: tuple[()]) -> Values:
        """|ρ_k|²/N, [couplings, walkers, k]."""
        k = self.wavevectors(sweep.config.family.cell)
        return {"s": sweep.each(lambda r, _: modulation(r, k) / r.shape[-2])}

    def finalise(self, record: Record, start: Start, couplings: FloatArray) -> dict[str, Quantity]:
        """`structure_factor`, [couplings, k], at k and at −k; coordinates k_x and k_y in 1/a_M."""
        k = self.wavevectors(start.family.cell)
        value, error = record.sums.derived(lambda m: np.concatenate([m["s"], m["s"]], axis=-1))
        both = np.concatenate([k, -k])
        axes = {"k_x": ("k", both[:, 0]), "k_y": ("k", both[:, 1])}
        return {"structure_factor": Quantity(value, error, "1", "structure factor <|rho_k|^2>/N", ("k",), axes)}


@dataclass(frozen=True)
class OrderParameter(Summed):
    """m = (1/6) Σ_K ⟨|ρ_K|²⟩/N² over the six corners K, K' of the moiré Brillouin zone, |K| = 4π/3a_M.

    1 for point charges on a √3×√3 superlattice, 1/N for an ideal gas; it does not care where the crystal sits.
    """

    def missing(self, start: Start, couplings: FloatArray) -> str | None:
        """Needs a supercell that holds whole √3×√3 cells."""
        return crystal_missing(start.family.cell)

    def evaluate(self, sweep: Sweep, tables: tuple[()]) -> Values:
        """|ρ_K|²/N² averaged over the corners, [couplings, walkers]."""
        k = half_space(corners())  # |ρ_K| = |ρ_−K|
        return {"m": sweep.each(lambda r, _: modulation(r, k).mean(-1) / r.shape[-2] ** 2)}

    def finalise(self, record: Record, start: Start, couplings: FloatArray) -> dict[str, Quantity]:
        """`order_parameter`, [couplings]."""
        text = "order parameter of the sqrt(3) x sqrt(3) crystal, mean of <|rho_K|^2>/N^2 over K and K'"
        return {"order_parameter": Quantity(*record.sums.derived(lambda m: m["m"]), "1", text)}


def modulation(electrons: Float[Array, "*batch electrons 2"], k: FloatArray) -> Float[Array, "*batch k"]:
    """|ρ_k|² at wavevectors k [k, 2]."""
    phase = electrons @ jnp.asarray(k.T, electrons.dtype)
    return jnp.cos(phase).sum(-2) ** 2 + jnp.sin(phase).sum(-2) ** 2


def corners() -> FloatArray:
    """The six corners K, K' of the triangular moiré Brillouin zone, [6, 2], 1/a_M."""
    root3 = Cell("triangular", ((1, 1), (2, -1)))
    return lattice_points(root3.reciprocal, 4 * math.pi / 3 * 1.001)[1:]


def crystal_missing(cell: Cell) -> str | None:
    """Why the √3×√3 momenta do not belong to this supercell, or None."""
    if cell.lattice != "triangular":
        return f"the {cell.lattice} lattice has no sqrt(3) x sqrt(3) momenta"
    n = corners() @ cell.vectors.T / (2 * np.pi)
    if np.abs(n - np.rint(n)).max() > 1e-6:
        return f"the momenta K and K' do not belong to the supercell {cell.supercell}"
    return None


@cache
def _wavevectors(cell: Cell, shells: float) -> FloatArray:
    shortest = np.linalg.norm(lattice_points(cell.moire_reciprocal, 4 * math.pi)[1])
    return half_space(lattice_points(cell.reciprocal, shells * float(shortest) * (1 + 1e-9)))

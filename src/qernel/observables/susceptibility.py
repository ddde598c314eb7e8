"""The fidelity susceptibility: how fast the state changes with λ."""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from qernel.cell import FloatArray
from qernel.observables.interface import Means, Quantity, Record, Summed, Sweep, Values
from qernel.start import Point, Start

STEP = 1e-3
"""δλ of the finite differences of the orbital tables"""


@dataclass(frozen=True)
class Susceptibility(Summed):
    """χ(λ) = ⟨|O|²⟩ − |⟨O⟩|², O = ∂_λ log ψ, complex: the quantum geometric tensor, doi:10.1103/PhysRevLett.99.100603.

    The fidelity is |⟨ψ_λ|ψ_λ+δ⟩|² = 1 − χ δ² + …; a first-order transition is a peak that narrows, and grows, with the
    sharpness of the state's change. λ reaches ψ through the conditioning and through the tables of the `Point`. ψ is
    differentiated automatically along the tangent of the point. The orbitals come from an eigenvalue solver outside,
    so the tangent is a central difference of step δ, in double precision, with an error of the order of δ².
    """

    every: int = 5
    step: float = STEP
    """δ"""

    def tables(self, start: Start, couplings: FloatArray) -> Point:
        """dP/dλ of the points at couplings [couplings, names]; warns where a step twice as long gives another one."""
        tangent = point_tangent(start, couplings, self.step)
        change = tangent_change(start, couplings, self.step)
        for c, x in zip(couplings, change, strict=True):
            if x > 1e-2:
                warnings.warn(
                    f"susceptibility at λ = {c[0]:g}: the starting orbitals have no derivative there (two steps "
                    f"differ by {100 * x:.0f} %)",
                    stacklevel=6,
                )
        dtype = start.network.dtype
        return jax.tree.map(lambda x: x.astype(dtype), tangent)

    def evaluate(self, sweep: Sweep, tables: Point) -> Values:
        """O and |O|² of every walker, [couplings, walkers]."""

        def one(
            r: Float[Array, "electrons 2"], points: tuple[Point, Point]
        ) -> tuple[Complex[Array, ""], Float[Array, ""]]:
            point, tangent = points
            o = jax.jvp(lambda p: sweep.model(r, p), (point,), (tangent,))[1]
            return o, jnp.abs(o) ** 2

        o, square = sweep.each(jax.vmap(one), points=(sweep.points, tables))
        return {"o": o, "o2": square}

    def finalise(self, record: Record, start: Start, couplings: FloatArray) -> dict[str, Quantity]:
        """`susceptibility`, [couplings]."""

        def chi(m: Means) -> FloatArray:
            spread: FloatArray = m["o2"] - np.abs(m["o"]) ** 2
            return spread

        text = f"fidelity susceptibility Var[d log psi/d lam], tables differentiated with step {self.step:g}"
        return {"susceptibility": Quantity(*record.sums.derived(chi), "1", text)}


def point_tangent(start: Start, couplings: FloatArray, step: float) -> Point:
    """dP/dλ by central differences, in double precision, at couplings [couplings, names]."""
    double = dataclasses.replace(start, network=dataclasses.replace(start.network, dtype="float64"))
    shift = step * np.eye(len(start.family.names))[start.family.names.index("lam")]
    low, high = double.points(couplings - shift), double.points(couplings + shift)
    tangent: Point = jax.tree.map(lambda a, b: (b - a) / (2 * step), low, high)
    return tangent


def tangent_change(start: Start, couplings: FloatArray, step: float) -> FloatArray:
    """Relative change of the orbitals' tangent when the step is doubled, [couplings]."""
    one, two = (point_tangent(start, couplings, s) for s in (step, 2 * step))

    def orbitals(p: Point) -> np.ndarray:
        x = np.asarray(p.orbitals_re) + 1j * np.asarray(p.orbitals_im)
        return x.reshape(len(couplings), -1)

    size = np.linalg.norm(orbitals(one), axis=1)
    # Orbitals that do not depend on λ leave rounding alone.
    change: FloatArray = np.linalg.norm(orbitals(two) - orbitals(one), axis=1) / np.maximum(size, 1e-6)
    return change

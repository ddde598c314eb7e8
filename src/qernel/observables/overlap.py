"""Overlap of the states at neighbouring couplings, and reweighting from one to the other."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qernel.cell import FloatArray
from qernel.hamiltonian import interaction_energy, moire_energy
from qernel.observables.interface import Means, Quantity, Record, Summed, Sweep, Values
from qernel.start import Point, Start
from qernel.types import ComplexPerWalker

SIDES = ("previous", "next")


@dataclass(frozen=True)
class Overlap(Summed):
    """Fidelity F_c = |⟨ψ_c|ψ_c+1⟩|²/(⟨ψ_c|ψ_c⟩⟨ψ_c+1|ψ_c+1⟩) of each coupling of the scan with the one after it.

    Both sides are sampled, which needs no norm and has no bias (arXiv:1808.05232):

        F = ⟨ψ_c+1/ψ_c⟩_c ⟨ψ_c/ψ_c+1⟩_c+1.

    The walkers of c also tell of its neighbour b: with w = |ψ_b/ψ_c|², ⟨A⟩_b = ⟨w A⟩_c/⟨w⟩_c for A = Σ W and the
    interaction energy. The effective share of the samples is ⟨w⟩²/⟨w²⟩ (Kish); below some percent the
    reweighted numbers, and their error bars, are not to be trusted. Takes three values of ψ.
    """

    every: int = 5

    def missing(self, start: Start, couplings: FloatArray) -> str | None:
        """Needs two couplings."""
        return None if len(couplings) > 1 else "one coupling has no neighbour"

    def evaluate(self, sweep: Sweep, tables: tuple[()]) -> Values:
        """Ratios ψ_b/ψ_c, [couplings, walkers, previous and next], w, w², and w times Σ W and interaction energy."""
        here, before, after = (neighbour(sweep.points, step) for step in (0, -1, 1))
        h = sweep.config.family.hamiltonians(sweep.couplings.astype(sweep.walkers.dtype))
        unit = replace(h, lam=jnp.ones_like(h.lam))
        diagonal = jax.vmap(moire_energy)(sweep.walkers, unit), jax.vmap(interaction_energy)(sweep.walkers, h)

        def some(r: Float[Array, "chunk electrons 2"], points: tuple[Point, Point, Point]) -> ComplexPerWalker:
            at, *others = (jax.vmap(sweep.model)(r, p) for p in points)
            return jnp.stack([other - at for other in others], -1)

        # The norms of ψ_b and ψ_c may differ by more than single precision can hold.
        ratio = jnp.exp(sweep.each(some, points=(here, before, after)).astype(complex))
        w = jnp.abs(ratio) ** 2
        a, v = (x[..., None] for x in diagonal)
        return {"ratio": ratio, "w": w, "w2": w**2, "wa": w * a, "wv": w * v}

    def finalise(self, record: Record, start: Start, couplings: FloatArray) -> dict[str, Quantity]:
        """`overlap` [couplings], NaN for the last; `reweighting_ess`, `reweighted_dE_dlam`, `reweighted_interaction`.

        The latter are [couplings, neighbour]: estimates for the previous and the next coupling from the walkers of this
        one, NaN where there is none.
        """
        axes = {"neighbour": ("neighbour", list(SIDES))}

        def fidelity(m: Means) -> FloatArray:
            product = (m["ratio"][:-1, 1] * m["ratio"][1:, 0]).real
            return np.append(product, np.nan)

        def reweighted(name: str) -> tuple[FloatArray, FloatArray]:
            return record.sums.derived(lambda m: inside(m[name] / m["w"]))

        ess = record.sums.derived(lambda m: inside(m["w"] ** 2 / m["w2"]))
        sides = ("neighbour",)
        of = "of the neighbouring coupling from the walkers of this one"
        return {
            "overlap": Quantity(*record.sums.derived(fidelity), "1", "overlap |<psi|psi'>|^2 with the next coupling"),
            "reweighting_ess": Quantity(*ess, "1", "effective share of samples in reweighting", sides, axes),
            "reweighted_dE_dlam": Quantity(*reweighted("wa"), "E0", f"dE/dlam {of}", sides, axes),
            "reweighted_interaction": Quantity(*reweighted("wv"), "E0", f"interaction energy {of}", sides, axes),
        }


def neighbour(points: Point, step: int) -> Point:
    """Points of the coupling that lies `step` further on in the scan; of the coupling itself at the ends."""

    def shifted(x: Array) -> Array:
        return x[np.clip(np.arange(len(x)) + step, 0, len(x) - 1)]

    moved: Point = jax.tree.map(shifted, points)
    return moved


def inside(x: FloatArray) -> FloatArray:
    """[couplings, previous and next] with NaN where there is no neighbour."""
    x = np.array(x, float)
    x[0, 0] = x[-1, 1] = np.nan
    return x

"""How much of a state lies among simple trial states: a control of what its phases are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qernel.cell import FloatArray
from qernel.chunks import map_chunks
from qernel.errors import InputError
from qernel.observables.interface import Means, Quantity, Record, Summed, Sweep, Values
from qernel.slater import Determinants, Tables, draw, log_amplitudes, make_tables
from qernel.start import Point, Start
from qernel.trials import KINDS
from qernel.types import LogPsi

TEXTS = {
    "plane_waves": "plane-wave determinants of lowest kinetic energy",
    "bloch": "determinants of the lowest non-interacting Bloch orbitals",
    "gaussians": "determinants of Gaussians on the potential's minima in the pattern of lowest Coulomb energy",
}


@dataclass(frozen=True)
class TrialStates(Summed):
    """Weight of ψ in the span of trial determinants Φ_i (`trials.py`), S_ij = ⟨Φ_i|Φ_j⟩ being known:

        P = Σ_ij ⟨ψ|Φ_i⟩ (S⁻¹)_ij ⟨Φ_j|ψ⟩/⟨ψ|ψ⟩ = Σ_ij ⟨Φ_i/ψ⟩_ψ (S⁻¹)_ij ⟨Φ_j* ψ/ρ⟩_ρ,    ρ = (1/m) Σ_i |Φ_i|².

    Both sides are sampled (arXiv:1808.05232), ρ without a chain, by `slater.draw`. So no norm enters, there is no bias,
    and the variances are finite for every ψ: E|Φ_i/ψ|² = 1/⟨ψ|ψ⟩, and |Φ_j* ψ/ρ|² ≤ m |ψ|²/ρ. The norm from the
    walkers of ψ alone, by E|Φ/ψ|², has an infinite variance wherever ψ has a node that Φ has not. A ψ that is the only
    trial state itself has no variance. Of the samples

        ess = (∫√ρ|ψ|)²/⟨ψ|ψ⟩ = ⟨√ρ/|ψ|⟩_ψ ⟨|ψ|/√ρ⟩_ρ

    is the effective share (Kish, for the magnitudes of the terms); P ≤ m ess if S = 1. With fewer than about a hundred
    such samples neither P nor its error bar is to be trusted. Takes two values of ψ.
    """

    every: int = 10
    kind: str = "plane_waves"

    def missing(self, start: Start, couplings: FloatArray) -> str | None:
        """Needs trial states, and not too many of them."""
        try:
            self.states(start, couplings)
        except InputError as error:
            return str(error)
        return None

    def states(self, start: Start, couplings: FloatArray) -> list[Determinants]:
        """The determinants at each of the couplings [couplings, names]."""
        return [KINDS[self.kind](start.family.hamiltonian(jnp.asarray(c))) for c in couplings]

    def tables(self, start: Start, couplings: FloatArray) -> Tables:
        """The determinants with their overlaps and what it takes to sample them."""
        twists = np.stack([start.family.hamiltonian(jnp.asarray(c)).twist for c in couplings])
        return make_tables(self.states(start, couplings), twists, start.family.n_up)

    def evaluate(self, sweep: Sweep, tables: Tables) -> Values:
        """Σ_i (Φ_i/ψ)(S⁻¹)_ij and Φ_j* ψ/ρ, [couplings, walkers, determinants], √ρ/|ψ| and |ψ|/√ρ.

        Each walker has one sample of ρ beside it.
        """
        n_up, cell = sweep.config.family.n_up, sweep.config.family.cell
        n = sweep.walkers.shape[-2]
        numbers = jnp.concatenate([sweep.walkers, sweep.uniform(2 * n + 1, 2)], -2)

        def at(of: tuple[Array, Tables]) -> Any:
            # One coupling after the other: every walker would otherwise need tables of its own.
            numbers, t = of

            def one(numbers: Float[Array, "numbers 2"]) -> tuple[Array, Array]:
                r = numbers[:n]
                drawn = draw(t, numbers[n:], n_up, cell).astype(r.dtype)
                log_phi = jax.vmap(lambda r: log_amplitudes(t, r, n_up, cell))(jnp.stack([r, drawn]))
                return jnp.concatenate([r, drawn]), log_phi

            found = map_chunks(lambda x, _: jax.vmap(one)(x), numbers[None], (), sweep.move_chunk)
            return jax.tree.map(lambda x: x[0], found)

        def log_psi(both: Float[Array, "chunk both 2"], points: Point) -> LogPsi:
            return jax.vmap(sweep.model)(both.reshape(-1, 2, n, 2), points)

        places, log_phi = jax.lax.map(at, (numbers, tables))
        # The norm of ψ may be more than single precision can hold.
        log_phi, psi = log_phi.astype(complex), sweep.each(log_psi, places).astype(complex)
        there = (np.arange(log_phi.shape[-1]) < tables.number[:, None])[:, None, None]
        size = jnp.where(there, 2 * log_phi.real, -jnp.inf)
        log_rho = jax.nn.logsumexp(size, axis=-1) - jnp.log(tables.number)[:, None, None]
        apart = psi.real - log_rho / 2
        left = jnp.exp(log_phi[:, :, 0] - psi[:, :, 0, None])
        right = jnp.exp(log_phi[:, :, 1].conj() + (psi - log_rho)[:, :, 1, None])
        return {
            "left": jnp.einsum("cwi,cij->cwj", left, tables.inverse),
            "right": right,
            "left_size": jnp.exp(-apart[..., 0]),
            "right_size": jnp.exp(apart[..., 1]),
        }

    def finalise(self, record: Record, start: Start, couplings: FloatArray) -> dict[str, Quantity]:
        """`trial_…`, P, and `trial_…_ess`, [couplings]."""

        def weight(m: Means) -> FloatArray:
            return np.sum(m["left"] * m["right"], -1).real

        def ess(m: Means) -> FloatArray:
            return m["left_size"] * m["right_size"]

        name, text = f"trial_{self.kind}", TEXTS[self.kind]
        return {
            name: Quantity(*record.sums.derived(weight), "1", f"weight in the span of the {text}"),
            f"{name}_ess": Quantity(*record.sums.derived(ess), "1", f"effective share of samples in {name}"),
        }

"""Energies of the parts of a state that have one total momentum: both sides of a level crossing from one ψ."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from qernel.cell import FloatArray
from qernel.hamiltonian import moire_energy
from qernel.observables.interface import Means, Quantity, Record, Summed, Sweep, Values
from qernel.observables.total_momentum import TotalMomentum, amplitudes, orbit, probabilities, sectors
from qernel.start import Start
from qernel.vmc import measure

LEAST = 0.005
"""probability of a sector below which nothing is said of it"""


@dataclass(frozen=True)
class MomentumEnergy(Summed):
    """E_K = ⟨P_K ψ|H|P_K ψ⟩/⟨P_K ψ|P_K ψ⟩ of every total momentum K that ψ contains; P_K as in `TotalMomentum`.

    H commutes with P_K. So E = Σ_K p_K E_K, each E_K is variational in its own sector, and min_K E_K ≤ E: of a state
    that goes smoothly from one phase to another of other momenta, the projected energies cross where the levels do.
    With the walkers of |ψ|², α_K = (P_K ψ)/ψ and p_K(R) the probability over the orbit of R,

        E_K = Re⟨α_K* E_L⟩/Re⟨α_K⟩,   ⟨V⟩_K = ⟨p_K V⟩/⟨p_K⟩ for V that translations leave alone.

    ⟨|α_K|²⟩ = p_K: the variance is finite. Takes n values of ψ and a local energy.
    """

    every: int = 3

    def evaluate(self, sweep: Sweep, tables: tuple[()]) -> Values:
        """Re α_K, Re α_K* E_L, p_K, p_K V and p_K Σ W of every walker, [couplings, walkers, momenta]."""
        cell = sweep.config.family.cell
        log_psi = orbit(sweep).astype(complex)  # α is large where ψ is small, beyond what single precision can hold
        here = int(np.argmin(np.linalg.norm(cell.translations, axis=1)))
        largest = log_psi.real.max(-1, keepdims=True)
        alpha = amplitudes(log_psi, cell) * jnp.exp(largest - log_psi[..., here : here + 1]) / cell.n_cells
        m = measure(sweep.config, sweep.model, sweep.walkers, sweep.couplings, sweep.points, sweep.chunk)
        h = sweep.config.family.hamiltonians(sweep.couplings.astype(sweep.walkers.dtype))
        w = jax.vmap(moire_energy)(sweep.walkers, replace(h, lam=jnp.ones_like(h.lam)))
        p = probabilities(log_psi, cell)
        energy = (alpha.conj() * m.terms.total[..., None]).real
        return {
            "a": alpha.real,
            "ae": energy,
            "p": p,
            "pv": p * m.terms.interaction[..., None],
            "pw": p * w[..., None],
        }

    def finalise(self, record: Record, start: Start, couplings: FloatArray) -> dict[str, Quantity]:
        """`momentum_energy`, `momentum_interaction`, `momentum_dE_dlam`, [couplings, sector]; NaN where p_K ≤ `LEAST`.

        And `momentum_probability`.
        """
        axes = sectors(start.family.cell)
        probability = TotalMomentum().finalise(record, start, couplings)
        there = probability["momentum_probability"].value > LEAST

        def ratio(above: str, below: str, text: str) -> Quantity:
            def f(m: Means) -> FloatArray:
                with np.errstate(divide="ignore", invalid="ignore"):
                    return m[above] / m[below]

            value, error = (np.where(there, x, np.nan) for x in record.sums.derived(f))
            return Quantity(value, error, "E0", f"{text} of the part of each total momentum", ("sector",), axes)

        return {
            **probability,
            "momentum_energy": ratio("ae", "a", "energy"),
            "momentum_interaction": ratio("pv", "p", "interaction energy"),
            "momentum_dE_dlam": ratio("pw", "p", "dE/dlam"),
        }

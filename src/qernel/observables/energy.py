"""The local energy by term, its variance, the V-score, and dE/dλ."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from qernel import stats
from qernel.cell import FloatArray
from qernel.ewald import ewald_tables
from qernel.family import Family
from qernel.hamiltonian import fourier_components, moire_energy
from qernel.observables.interface import Means, Quantity, Record, Summed, Sweep, Values
from qernel.start import Start
from qernel.stats import Estimate, estimate
from qernel.vmc import measure

TERMS = ("energy", "kinetic", "moire", "interaction", "energy_imag", "kinetic_from_gradient", "kinetic_gap", "w")
"""Series kept: local energy and its terms, E0; Im E_L; ½|∇log ψ|²; the difference of both kinetic energies; Σ W."""


@dataclass(frozen=True)
class Energy(Summed):
    """Local energy E_L = (Hψ)/ψ by term, E0, total over the electrons, and dE/dλ = ⟨Σ W⟩ (Hellmann–Feynman)."""

    keeps_series = True

    def evaluate(self, sweep: Sweep, tables: tuple[()]) -> Values:
        """The `TERMS` of every walker, [couplings, walkers]."""
        m = measure(sweep.config, sweep.model, sweep.walkers, sweep.couplings, sweep.points, sweep.chunk)
        unit = sweep.config.family.hamiltonians(sweep.couplings.astype(sweep.walkers.dtype))
        w = jax.vmap(moire_energy)(sweep.walkers, replace(unit, lam=jnp.ones_like(unit.lam)))
        total, kinetic = m.terms.total, m.kinetic
        gap = kinetic.local.real - kinetic.from_gradient
        terms = (total.real, m.terms.kinetic.real, m.terms.moire, m.terms.interaction, total.imag)
        return dict(zip(TERMS, (*terms, kinetic.from_gradient, gap, w), strict=True))

    def finalise(self, record: Record, start: Start, couplings: FloatArray) -> dict[str, Quantity]:
        """`variance` (E0²) and `v_score`; the terms themselves are `estimates`.

        V = N Var E_L/(E − E_∞)², arXiv:2302.04919, which does not change if H is multiplied by or shifted by a number.
        There E_∞ is the energy at infinite temperature; in the continuum its kinetic part has no bound, so what is
        taken is its potential part, `random_energy`.
        """
        family = start.family
        reference = np.array([random_energy(family, c) for c in couplings])
        energy, imag = (record.series(name).astype(float) for name in ("energy", "energy_imag"))
        middle = energy.mean((0, 2))  # squares are of differences from it, for rounding
        blocks, weights = {}, np.ones(1)
        for name, x in (("e", energy), ("i", imag)):
            x = x - middle[:, None] if name == "e" else x
            blocks[name], weights = stats.walker_blocks(x)
            blocks[name + "2"], _ = stats.walker_blocks(x**2)

        def variance(m: Means) -> FloatArray:
            return m["e2"] - m["e"] ** 2 + m["i2"] - m["i"] ** 2

        def score(m: Means) -> FloatArray:
            return family.n_electrons * variance(m) / (middle + m["e"] - reference) ** 2

        text = "V-score N Var/(E - E_inf)^2, E_inf the mean potential energy of electrons placed at random"
        return {
            "variance": Quantity(*stats.jackknife(variance, blocks, weights), "E0^2", "variance of the local energy"),
            "v_score": Quantity(*stats.jackknife(score, blocks, weights), "1", text),
        }


def estimates(record: Record, couplings: int) -> list[dict[str, Estimate]]:
    """Every term at each of the couplings."""
    out: list[dict[str, Estimate]] = [{} for _ in range(couplings)]
    for name in TERMS:
        series = record.series(name)
        for c, terms in enumerate(out):
            terms[name] = estimate(series[:, c])
    return out


def random_energy(family: Family, coupling: FloatArray) -> float:
    """Mean potential energy N λ W̄ + ½ N u ξ of electrons placed at random, E0: the mean of w over the cell is zero."""
    h = family.hamiltonian(jnp.asarray(coupling))
    n, components = fourier_components(h)
    mean = float(components[(n == 0).all(1)].real.sum())
    madelung = ewald_tables(h.cell, h.gate, h.ewald_tolerance, h.n_electrons).madelung
    return h.n_electrons * (float(h.lam) * mean + 0.5 * float(h.u) * madelung)

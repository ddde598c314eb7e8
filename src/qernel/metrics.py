"""What a training step reports: averages over the walkers, and numbers that tell of its health."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array

from qernel.devices import whole
from qernel.hamiltonian import EnergyTerms
from qernel.laplacian import Kinetic
from qernel.sampling import Sampled
from qernel.spring import SpringInfo
from qernel.types import PerCoupling


class Measured(NamedTuple):
    """Local energies of the walkers by term, [couplings, walkers], and kinetic energy the other way."""

    terms: EnergyTerms
    kinetic: Kinetic


class Metrics(NamedTuple):
    """What a step reports, per coupling [couplings] unless it is one number. Energies in E0, total."""

    energy: np.ndarray
    error: np.ndarray
    variance: np.ndarray
    energy_imag: np.ndarray
    energy_min: np.ndarray
    energy_max: np.ndarray
    """extremes of the walkers' local energies, real part"""
    kinetic: np.ndarray
    moire: np.ndarray
    interaction: np.ndarray
    kinetic_gap: np.ndarray
    """⟨T_L⟩ − ⟨½|∇log ψ|²⟩ over its standard error: a normal variate for a C¹ ψ"""
    acceptance: np.ndarray
    translation_acceptance: np.ndarray
    width: np.ndarray
    moves: np.ndarray
    """all-electron moves before this update"""
    energy_correlation: np.ndarray
    """of the walkers' local energies between successive updates, running mean"""
    min_log_psi: np.ndarray
    update_norm: np.ndarray
    bound: np.ndarray
    fallback: np.ndarray
    condition: np.ndarray
    """of the damped Gram matrix (SPRING)"""


def summarise(
    measured: Measured, sampled: Sampled, width: PerCoupling, info: SpringInfo, moves: Array, correlation: Array
) -> Metrics:
    """Averages over the walkers of each coupling; `error` takes them for independent, which one step's are."""
    terms, kinetic = measured.terms, measured.kinetic
    energy = terms.total.astype(complex)
    root = energy.shape[1] ** 0.5
    gap = kinetic.local.real.astype(float) - kinetic.from_gradient.astype(float)
    summary: dict[str, Any] = {
        "energy": energy.real.mean(1),
        "error": energy.real.std(1, ddof=1) / root,
        "variance": energy.real.var(1) + energy.imag.var(1),
        "energy_imag": energy.imag.mean(1),
        "energy_min": energy.real.min(1),
        "energy_max": energy.real.max(1),
        "kinetic": terms.kinetic.real.astype(float).mean(1),
        "moire": terms.moire.astype(float).mean(1),
        "interaction": terms.interaction.astype(float).mean(1),
        "kinetic_gap": gap.mean(1) / (gap.std(1, ddof=1) / root + 1e-12),
        "acceptance": sampled.acceptance,
        "translation_acceptance": sampled.translation_acceptance,
        "width": width,
        "moves": moves,
        "energy_correlation": correlation,
        "min_log_psi": sampled.log_density.min(1) / 2,
        "update_norm": info.update_norm,
        "bound": info.bound,
        "fallback": info.fallback,
        "condition": info.condition,
    }
    return whole(Metrics(**summary), energy.shape[1])

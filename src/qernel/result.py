"""What was asked of a trained model, and the answer at one coupling vector."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from qernel.cell import FloatArray
from qernel.errors import require
from qernel.observables import DEFAULT, Quantity, check_names
from qernel.stats import Estimate

MOST = 10**12
"""of any number in `Settings`: beyond all that fits into memory, which is another matter (`sizes.py`)"""


@dataclass(frozen=True)
class Settings:
    """What to measure, how long and how finely to sample. Raises `InputError` for impossible values."""

    target_error: float | None = None
    """stop when the error of every energy is below this, E0 (none: 200 sweeps)"""
    walkers: int = 256
    """chains per coupling"""
    moves: int = 10
    """all-electron moves between two measurements"""
    burn_in: int = 500
    """moves before the first measurement"""
    max_sweeps: int = 5000
    """most measurements of each walker"""
    bins: int = 36
    """density bins along each supercell vector; rounded up to fit the moiré cells"""
    seed: int = 1
    walltime: float | None = None
    """seconds within which to stop, after one block of sweeps at least"""
    observables: str | tuple[str, ...] = DEFAULT
    """names as in `observables.NAMES`, or "all"; the energy is always measured"""

    def __post_init__(self) -> None:
        if self.target_error is not None:
            ok = math.isfinite(self.target_error) and self.target_error > 0
            require(ok, "target_error", self.target_error, "a positive energy in E0")
        for name, low in (("walkers", 2), ("moves", 1), ("burn_in", 0), ("max_sweeps", 20), ("bins", 1)):
            require(getattr(self, name) >= low, name, getattr(self, name), f"at least {low}")
            require(getattr(self, name) <= MOST, name, getattr(self, name), f"at most {MOST}")
        require(0 <= self.seed < 2**31, "seed", self.seed, "an integer from 0 to 2147483647")
        check_names(self.observables)


@dataclass(frozen=True)
class Result:
    """What was measured at one coupling vector. Energies in E0, total over the electrons."""

    couplings: dict[str, float]
    n_electrons: int
    e0_mev: float
    energy: Estimate
    kinetic: Estimate
    moire: Estimate
    interaction: Estimate
    energy_imag: Estimate
    kinetic_from_gradient: Estimate
    kinetic_gap: Estimate
    w: Estimate
    """⟨Σ W⟩ = dE/dλ (Hellmann–Feynman)"""
    variance: float
    """of the complex local energy, E0²"""
    acceptance: float
    walkers: int
    sweeps: int
    """measurements of every walker"""
    seconds: float
    outside: list[str]
    """couplings outside the trained range"""
    density: FloatArray | None = field(default=None, repr=False)
    """electrons per a_M², [bins, bins] over the supercell (axes: fractions of T1 and T2), if it was measured"""
    density_error: FloatArray | None = field(default=None, repr=False)
    quantities: dict[str, Quantity] = field(default_factory=dict, repr=False)
    """all else that was measured, by name"""
    skipped: dict[str, str] = field(default_factory=dict, repr=False)
    """observables that do not exist for this system, and why"""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON: each quantity as {"mean", "error"}, with the health of the chains beside; no maps or curves."""

        def pair(mean: float, error: float) -> dict[str, float]:
            return {"mean": mean, "error": error}

        names = ("energy", "kinetic", "moire", "interaction", "energy_imag", "kinetic_from_gradient", "kinetic_gap")
        numbers = {name: q for name, q in self.quantities.items() if not q.dims and name != "variance"}
        return {
            "couplings": self.couplings,
            "n_electrons": self.n_electrons,
            "units": "E0",
            "e0_mev": self.e0_mev,
            **{name: pair(e.mean, e.error) for name in names for e in [getattr(self, name)]},
            "dE_dlam": pair(self.w.mean, self.w.error),
            "variance": self.variance,
            **{name: pair(float(q.value), float(q.error)) for name, q in numbers.items()},
            "tau": self.energy.tau,
            "r_hat": self.energy.r_hat,
            "effective_samples": self.energy.ess,
            "acceptance": self.acceptance,
            "walkers": self.walkers,
            "sweeps": self.sweeps,
            "seconds": self.seconds,
            "outside_trained_range": self.outside,
            "not_measured": self.skipped,
        }

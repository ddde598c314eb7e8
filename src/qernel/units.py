"""meV, nm, effective mass and dielectric constant to the natural units of the code, and back.

Length unit a_M (moiré period), energy unit E0 = ħ²/(m* a_M²). The only file with unit factors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from qernel.errors import require

# ħ²/m_e in meV nm² (CODATA 2018: ħ²/(2 m_e) = 38.0998212 meV nm²) and the Bohr radius in nm.
HBAR2_OVER_ME_MEV_NM2 = 76.19964231
BOHR_NM = 0.0529177210903


MASSES, PERIODS, DIELECTRIC = (1e-6, 1e6), (1e-3, 1e6), (1e-6, math.inf)
"""m*, a_M and ε from and to which all that follows is a number"""
LARGEST = 1e6
"""of angles in degrees, of λ and of θ in 1/a_M; and a thousandth of the largest V0 in meV"""


@dataclass(frozen=True)
class Material:
    """A moiré heterobilayer. The default is WSe2/WS2 with the couplings of arXiv:2502.05383.

    Raises `InputError` unless mass, period and dielectric constant are finite and positive.
    """

    mass: float = 0.35
    """effective mass m* in electron masses"""
    period_nm: float = 8.031
    """moiré period a_M in nm"""
    epsilon: float = 5.0
    """dielectric constant; `inf` switches the interaction off"""
    v0_mev: float = 15.0
    """moiré depth V0 in meV at λ = 1"""
    phi_deg: float = 45.0
    """phase φ of the moiré potential in degrees"""

    def __post_init__(self) -> None:
        for name, (low, high) in (("mass", MASSES), ("period_nm", PERIODS)):
            value = getattr(self, name)
            allowed = f"a positive number, from {low:g} to {high:g}"
            require(bool(low <= value <= high), f"material.{name}", value, allowed)
        allowed = f"a positive number, at least {DIELECTRIC[0]:g} (inf: no interaction)"
        require(bool(self.epsilon >= DIELECTRIC[0]), "material.epsilon", self.epsilon, allowed)
        for name, most in (("v0_mev", 1e3 * LARGEST), ("phi_deg", LARGEST)):
            value = getattr(self, name)
            require(bool(abs(value) <= most), f"material.{name}", value, f"a finite number, at most {most:g} in size")

    @property
    def e0_mev(self) -> float:
        """E0 = ħ²/(m* a_M²) in meV."""
        return HBAR2_OVER_ME_MEV_NM2 / (self.mass * self.period_nm**2)

    @property
    def v0(self) -> float:
        """V0 / E0."""
        return self.v0_mev / self.e0_mev

    @property
    def u(self) -> float:
        """Coulomb coupling u = (a_M / a_0)(m*/ε): e²/(4π ε a_M) in units of E0."""
        return self.period_nm / BOHR_NM * self.mass / self.epsilon

    @property
    def phi(self) -> float:
        """φ in radians."""
        return math.radians(self.phi_deg)

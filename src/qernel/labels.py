"""Names of the couplings for people: symbols, labels of curves and axes."""

from __future__ import annotations

from collections.abc import Sequence

from qernel.cell import FloatArray
from qernel.units import Material

SYMBOLS = {"lam": "λ", "phi_deg": "φ/°", "epsilon": "ε", "period_nm": "a_M/nm", "twist_1": "θ_x", "twist_2": "θ_y"}
TWISTS = ("twist_1", "twist_2")


def coupling_label(names: Sequence[str], values: FloatArray) -> str:
    """For instance "λ = 0.5, ε = 5"."""
    return ", ".join(f"{SYMBOLS[n]} = {v:.6g}" for n, v in zip(names, values, strict=True))


def axis_label(name: str, material: Material) -> str:
    """Of an axis along a coupling, with its unit."""
    return {
        "lam": f"moiré depth λ (units of V₀ = {material.v0_mev:g} meV)",
        "phi_deg": "phase φ of the potential (°)",
        "epsilon": "dielectric constant ε",
        "period_nm": "moiré period a_M (nm)",
        "twist_1": "twist θ_x (1/a_M)",
        "twist_2": "twist θ_y (1/a_M)",
    }[name]

"""What can be measured, by name. How an observable is made: `interface.py`."""

from __future__ import annotations

from collections.abc import Sequence

from qernel.errors import InputError, nearest
from qernel.family import Family
from qernel.observables.density import Density, density_bins
from qernel.observables.energy import Energy
from qernel.observables.interface import Observable, Quantity, Record, Sums, Sweep
from qernel.observables.momentum_distribution import MomentumDistribution
from qernel.observables.overlap import Overlap
from qernel.observables.pair_correlation import PairCorrelation
from qernel.observables.projected import MomentumEnergy
from qernel.observables.router import Router
from qernel.observables.structure_factor import OrderParameter, StructureFactor
from qernel.observables.susceptibility import Susceptibility
from qernel.observables.total_momentum import TotalMomentum
from qernel.observables.trial_states import TrialStates
from qernel.trials import KINDS

DEFAULT = ("energy", "density", "structure_factor", "order_parameter", "pair_correlation")
"""Measured unless others are asked for: what costs little beside the local energy."""


def known(family: Family, bins: int = 36) -> dict[str, Observable]:
    """Every observable by name; `bins`: of the density, rounded up to fit the moiré cells."""
    return {
        "energy": Energy(),
        "density": Density(bins=density_bins(family.cell, bins)),
        "structure_factor": StructureFactor(),
        "order_parameter": OrderParameter(),
        "pair_correlation": PairCorrelation(),
        "momentum_probability": TotalMomentum(),
        "momentum_energy": MomentumEnergy(),
        "susceptibility": Susceptibility(),
        "momentum_distribution": MomentumDistribution(),
        "overlap": Overlap(),
        "router": Router(),
        **{f"trial_{kind}": TrialStates(kind=kind) for kind in KINDS},
    }


NAMES = tuple(known(Family()))


def check_names(names: str | Sequence[str]) -> tuple[str, ...]:
    """The names (or one) in the order of `NAMES`; "all" stands for every one, and the energy is always there.

    Raises `InputError` for an unknown name, with the nearest one.
    """
    names = (names,) if isinstance(names, str) else names
    for name in names:
        if name not in (*NAMES, "all"):
            raise InputError(f"observables = {name}: unknown; {nearest(name, [*NAMES, 'all'])}")
    return tuple(n for n in NAMES if n in names or "all" in names or n == "energy")


__all__ = ["DEFAULT", "NAMES", "Observable", "Quantity", "Record", "Sums", "Sweep", "check_names", "known"]

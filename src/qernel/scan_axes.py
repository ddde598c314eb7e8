"""The couplings of a scan: the product of its axes, and a limit to their number."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from qernel import memory, sizes, twists
from qernel.cell import FloatArray
from qernel.config import Config
from qernel.errors import InputError, require
from qernel.family import COUPLING_NAMES, Family, check_count
from qernel.observables import check_names
from qernel.observables.density import density_bins
from qernel.observables.interface import groups
from qernel.result import Settings

MEASUREMENT = 128
"""bytes of each measurement of each walker: eight series in single precision, twice, and the energy's in double"""

COPIES = 6
"""of the sums over groups of walkers while errors are computed, in double precision"""

Axis = tuple[float, float, float]
"""LOW HIGH POINTS as on the command line"""


@dataclass(frozen=True, eq=False)
class Grid:
    """What to sample, and with which weights to average over twists."""

    couplings: FloatArray
    """[couplings, names]: the product of the axes, the last one fastest; twists are fastest of all"""
    weights: FloatArray | None
    """weights of the twists, [twists], if there is an average over them"""


def scan_grid(config: Config, axes: Mapping[str, Axis], points: int | None, settings: Settings) -> Grid:
    """The couplings of a scan of a family.

    Args:
        config: of the run.
        axes: LOW HIGH POINTS of each coupling that is to have other points than the trained ones.
        points: M of the M × M twists to average over, or None; the twists' trained points are then not used.
        settings: how it will be sampled; the memory needed follows from it.

    Raises:
        InputError: for a coupling that the family does not vary, an impossible axis, a family not trained over twists,
            or more couplings than fit.
    """
    family = config.family
    for name in axes:
        _check_axis(family, name, axes[name])
        require(points is None or name not in twists.NAMES, option(name), "given", "left out beside --twists")
    chosen = None if points is None else twists.twist_average(family, points)
    counts = {n: int(axes[n][2] if n in axes else getattr(family, n)[2]) for n in family.names}
    if chosen is not None:
        counts = {n: k for n, k in counts.items() if n not in twists.NAMES} | {"twists": len(chosen.weights)}
    check_size(config, counts, settings)

    def values(name: str) -> FloatArray:
        low, high, n = axes[name] if name in axes else getattr(family, name)
        return np.linspace(low, high, int(n))

    kept = [n for n in family.names if chosen is None or n not in twists.NAMES]
    rows = np.array(list(itertools.product(*(values(n) for n in kept))))
    if chosen is None:
        return Grid(rows, None)
    # Twists come last in the coupling vector.
    pairs = np.repeat(rows, len(chosen.weights), axis=0), np.tile(chosen.vectors, (len(rows), 1))
    return Grid(np.concatenate(pairs, axis=1), chosen.weights)


def option(name: str) -> str:
    """The option of a coupling: --phi-deg for phi_deg."""
    return "--" + name.replace("_", "-")


def _check_axis(family: Family, name: str, axis: Axis) -> None:
    if name not in family.names:
        known = ", ".join(option(n) for n in COUPLING_NAMES if n in family.names)
        raise InputError(f"{option(name)}: {name} does not vary in this family; axes of its scans: {known}")
    low, high, points = axis
    require(
        1 <= points < math.inf and points == int(points), option(name), axis, "LOW HIGH and a whole number of POINTS"
    )
    require(points > 1 or low == high, option(name), axis, "of more than 1 point, or LOW = HIGH")
    for value in (low, high):
        family.vector(**{name: value})  # a finite number, and positive where it has to be


def check_size(config: Config, counts: Mapping[str, int], settings: Settings) -> None:
    """Raise `InputError` if the product of so many points is more than can be sampled together."""
    check_count("scan", counts)
    total = math.prod(counts.values())
    said = f"{total} couplings ({' × '.join(f'{k} {n}' for n, k in counts.items())})"
    needed, free = total * coupling_bytes(config, settings), memory.budget(config)
    if needed > free:
        fewer = f"fewer points than {int(total * free / needed) + 1}, or less" if total > 1 else "less"
        raise InputError(
            f"scan = {said}: needs about {needed / memory.GIB:.1f} GiB of memory and may take {free / memory.GIB:.1f}; "
            f"{fewer} of --walkers, --max-sweeps or --bins"
        )
    sizes.check_sampling(config, total, settings)


def coupling_bytes(config: Config, settings: Settings) -> float:
    """What is held of each coupling until its errors are computed: series of the energy, and sums of the density."""
    sweeps = settings.max_sweeps if settings.target_error is not None else min(200, settings.max_sweeps)
    series = float(settings.walkers * sweeps * MEASUREMENT)
    if "density" not in check_names(settings.observables):
        return series
    squares = density_bins(config.family.cell, settings.bins) ** 2
    return series + 8.0 * COPIES * groups(settings.walkers) * squares

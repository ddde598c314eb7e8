"""Arrays that exist at the same time, by number: stages that do not fit into the free memory are refused."""

from __future__ import annotations

import math
from typing import NamedTuple

from qernel.errors import InputError
from qernel.hosts import least
from qernel.memory import GIB, available


class Part(NamedTuple):
    """One kind of arrays."""

    size: float
    """bytes"""
    what: str
    fewer: str
    """what to take less of"""


Stage = list[Part]
"""What exists at the same time."""


def require_fit(stages: list[Stage]) -> None:
    """Raise `InputError` if one of the stages needs more than the free memory, naming its largest part."""
    free = least(available())
    for stage in stages:
        total, largest = sum(p.size for p in stage), max(stage)
        if total > free:
            raise InputError(
                f"memory: needs at least {_gib(total)} ({largest.what}: {_gib(largest.size)}), "
                f"{_gib(free)} are free: less of {largest.fewer}"
            )


def plane_waves(cutoff: float, area: float) -> int:
    """About how many reciprocal vectors there are with ½G² ≤ cutoff, of a cell of that area; rather too few."""
    return max(1, int(0.8 * 2 * math.pi * cutoff * area / (4 * math.pi**2)))


def _gib(size: float) -> str:
    return f"{size / GIB:.0f} GiB" if size >= 10 * GIB else f"{size / GIB:.2g} GiB"

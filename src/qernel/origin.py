"""What the header of a checkpoint says of where it comes from: text for people, whatever somebody wrote there."""

from __future__ import annotations

import math
from typing import Any

from qernel.checkpoint import Header
from qernel.errors import shown


def provenance(header: Header) -> dict[str, Any]:
    """Name → short text, and "git" as {"commit": …, "dirty": …} or none."""
    found = header.user.get("provenance")
    table = found if isinstance(found, dict) else {}
    git = table.get("git")
    known = None
    if isinstance(git, dict) and git:
        known = {"commit": shown(git.get("commit", "?")), "dirty": git.get("dirty") is True}
    return {shown(k): v if isinstance(v, bool | int) else shown(v) for k, v in table.items()} | {"git": known}


def seconds(header: Header) -> float:
    """Wall time of the training so far; 0 where the header has none."""
    wall = header.user.get("wall")
    usable = isinstance(wall, int | float) and math.isfinite(wall) and 0 <= wall < 1e12
    return float(wall) if usable else 0.0  # type: ignore[arg-type]

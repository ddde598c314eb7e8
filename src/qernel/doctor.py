"""`qernel doctor`: is this machine fit to compute? Every check in turn, with what to do where something is wrong.

What the machine has is in `doctor_machine.py`, what its device computes in `doctor_numerics.py`. Nothing is left behind
but compiled programs in their cache.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from typing import Any

import jax

from qernel import doctor_machine, doctor_numerics
from qernel.doctor_machine import Check

Source = Callable[[], Check | Iterable[Check]]


def sources() -> tuple[Source, ...]:
    """All checks in order, the quick ones first."""
    return (*doctor_machine.CHECKS, *doctor_numerics.CHECKS)


def run(checks: Iterable[Source] | None = None) -> Iterator[Check]:
    """Every check as soon as it is known, and the time of those that compute. One that raises has failed."""
    jax.config.update("jax_enable_x64", True)
    begin = time.monotonic()
    for source in sources() if checks is None else checks:
        if source is doctor_numerics.free_electrons:
            begin = time.monotonic()
        yield from _guarded(source)
    seconds = time.monotonic() - begin
    yield Check("self-test", f"{seconds:.1f} s", "about 10 s once compiled", value=seconds)


def _guarded(source: Source) -> Iterator[Check]:
    try:
        found = source()
        yield from [found] if isinstance(found, Check) else found
    except Exception as error:  # whatever the libraries of this machine raise
        said = " ".join(str(error).split())[:200]
        advice = "is JAX installed for this machine (README, Install)?"
        yield Check(source.__name__.replace("_", " "), f"{type(error).__name__}: {said}", "to run", "FAILED", advice)


def line(check: Check) -> str:
    """What was checked, verdict, what was found; below it what to do."""
    bound = f" ({check.bound})" if check.bound else ""
    text = f"{check.verdict:8s} {check.name:29s} {check.found}{bound}"
    return text if check.verdict == "ok" else f"{text}\n         → {check.advice}"


def summary(checks: list[Check]) -> str:
    """One line on all of them."""
    failed, warned = (sum(c.verdict == v for c in checks) for v in ("FAILED", "warning"))
    return f"{len(checks)} checks: {failed} failed, {warned} warning(s)"


def failed(checks: list[Check]) -> bool:
    """Whether any failed."""
    return any(c.verdict == "FAILED" for c in checks)


def to_json(checks: list[Check]) -> dict[str, Any]:
    """All of them as plain JSON; a number that is not finite as text."""

    rows = [asdict(c) for c in checks]
    for row in rows:
        if row["verdict"] == "ok":
            del row["advice"]
        if row["value"] is not None and not math.isfinite(row["value"]):
            row["value"] = str(row["value"])
    return {"failed": failed(checks), "checks": rows}

"""Results of `qernel bench` as text and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from typing import Any

import jax
import jaxlib

from qernel.bench import Row
from qernel.bench_machine import Machine, Quantity

LABELS = {
    "local_energy": "Local energy of one network (width 64, 4 layers), against folx and against its own floor",
    "experts": "16 experts, 2 open and 1 shared: all evaluated over only the open ones",
    "step": "Training step, PsiFormer of as many weights (folx) over QERNEL",
    "growth": "Growth with N",
    "limits": "Share of the time that each limit explains",
}


def heading(machine: Machine) -> str:
    """The machine's rates in one line."""
    return (
        f"{machine.name}, {machine.cores} cores, jax {jax.__version__}, jaxlib {jaxlib.__version__}: "
        f"{machine.gemm / 1e9:.0f} Gflop/s in float32 products [rows, 64] × [64, 64], "
        f"{machine.bandwidth / 1e9:.1f} GB/s, {machine.launch * 1e6:.0f} µs a call"
    )


def lines(row: Row) -> Iterable[str]:
    """A result as lines of text."""
    for name, value in row.figures.items():
        number = str(value) if isinstance(value, Quantity) else f"{value:.3g}" if value < 1e4 else f"{value:.0f}"
        yield f"  {row.system:18s} {name.replace('_', ' '):34s} {number}"


def printed(results: Iterable[Machine | Row], say: Callable[[str], Any]) -> Iterator[Machine | Row]:
    """The same results, each printed as soon as it comes, under the heading of its part."""
    part = None
    for result in results:
        if isinstance(result, Machine):
            say(heading(result))
        else:
            if result.part != part:
                part = result.part
                say(f"\n{LABELS[part]}")
            say("\n".join(lines(result)))
        yield result


def as_json(results: Iterable[Machine | Row]) -> dict[str, Any]:
    """{"machine": …, part: {system: {figure: median, "quartiles": {figure: [low, high]}}}}"""
    out: dict[str, Any] = {}
    for r in results:
        if isinstance(r, Machine):
            out["machine"] = asdict(r) | {"jax": jax.__version__, "jaxlib": jaxlib.__version__}
            continue
        entry: dict[str, Any] = {k: v.value if isinstance(v, Quantity) else v for k, v in r.figures.items()}
        entry["quartiles"] = {k: [v.low, v.high] for k, v in r.figures.items() if isinstance(v, Quantity)}
        out.setdefault(r.part, {})[r.system] = entry
    return out

"""Networks against each other, drawn: energy against steps, against seconds, and last energy against weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from qernel import figures
from qernel.bench_compare import Series, at_equal_time, windows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEIGHT = 2.1
"""inches of a row"""
EARLY = 0.2
"""part of the time whose energies may lie above the figure"""


@figures.style()
def draw(all_series: Sequence[Series], hartree_fock: dict[float, float]) -> Figure:
    """A row for each λ, its last panel with a scale of its own. Error bars are one standard error.

    `hartree_fock` has energies by λ, E0, total.
    """
    lams = sorted({s.lam for s in all_series})
    names = list(dict.fromkeys(s.name for s in all_series))
    looks = {name: {**figures.series(k), "ls": "-"} for k, name in enumerate(names)}
    f, axes = figures.figure(figures.PAGE, 0.5 + HEIGHT * len(lams), len(lams), 3)
    for row, lam in zip(axes, lams, strict=True):
        here = [s for s in all_series if s.lam == lam]
        _curves(row[:2], here, looks, hartree_fock.get(lam))
        _last(row[2], here, looks)
        row[0].set_ylabel(f"energy at λ = {lam:g} (E0)")
        for ax in row:
            figures.plain_log(ax.xaxis)
    _legend(f, axes, names)
    return f


def _curves(
    axes: np.ndarray, here: Sequence[Series], looks: dict[str, dict[str, Any]], reference: float | None
) -> None:
    """Energy against steps and against seconds."""
    for ax, x in zip(axes, ([s.numbers for s in here], [s.seconds for s in here]), strict=True):
        for s, own in zip(here, x, strict=True):
            w = windows(s, own)
            middle = [np.sqrt(v.low * v.high) for v in w]
            figures.curve(ax, middle, [v.energy for v in w], [v.error for v in w], looks[s.name], s.name)
        if reference is not None:
            ax.axhline(reference, color=figures.HF, lw=1.0, ls="--", label="Hartree–Fock")
        ends = [own[-1] for own in x]
        ax.set(xscale="log", xlim=(min(ends) * EARLY / 2, max(ends) * 1.05), ylim=limits(here, reference))
    axes[0].set_xlabel("steps")
    axes[1].set_xlabel(f"{_clock(here)} (s)")


def _last(ax: Axes, here: Sequence[Series], looks: dict[str, dict[str, Any]]) -> None:
    """The last energies at equal time against weights."""
    end, last = at_equal_time(here)
    for s, w in zip(here, last, strict=True):
        figures.curve(ax, [s.parameters / 1e3], [w.energy], [w.error], looks[s.name], s.name)
    ax.set(xscale="log", xlabel=f"weights/1000; after {end:.3g} s")
    ax.margins(x=0.15, y=0.15)


def limits(here: Sequence[Series], reference: float | None) -> tuple[float, float]:
    """Of the energies: those after `EARLY` of the time, and the reference; the start is far above."""
    shown = [w.energy for s in here for w in windows(s, s.seconds) if w.low >= EARLY * s.seconds[-1]]
    shown += [] if reference is None else [reference]
    low, high = np.nanmin(shown), np.nanmax(shown)
    room = 0.08 * (high - low) or 1.0
    return float(low - room), float(high + room)


def _clock(here: Sequence[Series]) -> str:
    clocks = {s.clock for s in here}
    return {"wall": "wall time", "processor": "processor time"}[clocks.pop()] if len(clocks) == 1 else "time"


def _legend(f: Figure, axes: np.ndarray, names: Sequence[str]) -> None:
    """One for all panels, above them; the networks first."""
    found: dict[str, Any] = {}
    for ax in axes.flat:
        handles, labels = ax.get_legend_handles_labels()
        found.update(zip(labels, handles, strict=True))
    order = [n for n in names if n in found] + [n for n in found if n not in names]
    f.legend([found[n] for n in order], order, loc="outside upper center", ncols=3)

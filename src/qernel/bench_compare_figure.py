"""Networks against each other, drawn: energy against steps, against seconds, and last energy against weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from qernel import figures
from qernel.bench_compare import Series, Window, at_equal_time, windows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEIGHT = 2.1
"""inches of a row"""


@figures.style()
def draw(all_series: Sequence[Series], hartree_fock: dict[float, float]) -> Figure:
    """A row for each λ; `hartree_fock` has energies by λ, E0, total. Error bars are one standard error."""
    lams = sorted({s.lam for s in all_series})
    names = list(dict.fromkeys(s.name for s in all_series))
    looks = {name: {**figures.series(k), "ls": "-"} for k, name in enumerate(names)}
    f, axes = figures.figure(figures.PAGE, 0.5 + HEIGHT * len(lams), len(lams), 3, sharey="row")
    for row, lam in zip(axes, lams, strict=True):
        here = [s for s in all_series if s.lam == lam]
        end, last = at_equal_time(here)
        _row(row, here, last, looks)
        reference = hartree_fock.get(lam)
        if reference is not None:
            for ax in row:
                ax.axhline(reference, color=figures.HF, lw=1.0, ls="--", label="Hartree–Fock")
        row[0].set_ylim(*limits(here, last, reference))
        row[0].set(ylabel=f"energy at λ = {lam:g} (E0)", xlabel="steps")
        row[1].set_xlabel(f"{_clock(here)} (s)")
        row[2].set_xlabel(f"weights; energy up to {end:.3g} s")
        for ax in row:
            ax.set_xscale("log")
            figures.plain_log(ax.xaxis)
    _legend(f, axes, names)
    return f


def _row(row: np.ndarray, here: Sequence[Series], last: Sequence[Window], looks: dict[str, dict[str, Any]]) -> None:
    """The three panels of one λ."""
    for s, end in zip(here, last, strict=True):
        for ax, x in ((row[0], s.numbers), (row[1], s.seconds)):
            w = windows(s, x)
            middle = [np.sqrt(v.low * v.high) for v in w]
            figures.curve(ax, middle, [v.energy for v in w], [v.error for v in w], looks[s.name], s.name)
        figures.curve(row[2], [s.parameters], [end.energy], [end.error], looks[s.name], s.name)


def limits(here: Sequence[Series], last: Sequence[Window], reference: float | None) -> tuple[float, float]:
    """Of the energies: those of the last eighth of the time or later, and the reference; the start is far above."""
    shown = [w.energy for s in here for w in windows(s, s.seconds) if w.high > s.seconds[-1] / 8]
    shown += [w.energy for w in last] + ([] if reference is None else [reference])
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

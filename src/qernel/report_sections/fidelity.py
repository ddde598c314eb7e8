"""How fast the state changes: fidelity susceptibility, overlap with the next coupling, worth of reweighting."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qernel import figures
from qernel.cell import FloatArray
from qernel.figures import PAGE, curve, legend, series
from qernel.labels import axis_label, coupling_label
from qernel.report_data import RunData
from qernel.report_sections.section import BARS, Drawing, Section, against_coupling, shade_transition

if TYPE_CHECKING:
    import xarray
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEW = 0.05
"""effective share of the samples below which reweighted numbers are not to be trusted"""
REWEIGHTED = ("reweighting_ess", "reweighted_interaction", "reweighted_dE_dlam")


@dataclass(frozen=True, eq=False)
class Steps:
    """Pairs of couplings c, c + 1 of the scan that differ in one coupling alone, the same for all."""

    axis: str
    """that coupling"""
    at: FloatArray
    """its middle in each pair, [pairs]"""
    width: FloatArray
    """its change, [pairs]"""
    first: np.ndarray
    """index c of each pair"""
    labels: list[str]
    """of the other varying couplings"""


def steps(data: RunData) -> Steps | None:
    """Neighbours in the order of the scan; None if no two of them differ in one coupling alone."""
    names = data.config.family.names
    rows = np.stack([data.values(n) for n in names], axis=1)
    moved = np.abs(np.diff(rows, axis=0)) > 1e-9
    single = np.flatnonzero(moved.sum(1) == 1)
    if not len(single):
        return None
    which = moved[single].argmax(1)
    commonest = Counter(which.tolist()).most_common(1)[0][0]
    first = single[which == commonest]
    others = [i for i, n in enumerate(names) if i != commonest and n in data.varying]
    labels = [coupling_label([names[i] for i in others], rows[c, others]) for c in first]
    low, high = rows[first, commonest], rows[first + 1, commonest]
    return Steps(names[commonest], (low + high) / 2, high - low, first, labels)


def fidelity(data: RunData) -> Section | None:
    """χ, 1 − F and the reweighting of neighbours, whichever the scan has."""
    between = steps(data)
    panels: list[Any] = []
    if data.has("susceptibility"):
        panels.append(_susceptibility)
    if between is not None and data.has("overlap"):
        panels.append(_infidelity)
    if between is not None and data.has(*REWEIGHTED):
        panels += [_samples, _reweighted]
    if not panels:
        return None
    f = _draw(data, between, panels)
    caption = (
        "Fidelity susceptibility χ of the couplings, |⟨ψ_λ|ψ_λ+δ⟩|² = 1 − χδ²; infidelity of neighbours, with "
        "1 − exp(−χδ²) from their mean χ where the change is one of λ (crosses); effective share of the samples where "
        "the walkers of one coupling stand for the next; and the interaction energy of the next coupling from them, "
        f"against the one measured there (open marks: below {100 * FEW:.0f} % of the samples, not to trust). {BARS}"
    )
    numbers = None if between is None or len(panels) < 2 else _numbers(data, between)
    drawing = Drawing("fidelity", f, "Fidelity susceptibility and overlaps", caption, numbers)
    uses = ("susceptibility", "overlap", *REWEIGHTED)
    return Section("Change of the state with the coupling", [drawing], uses)


@figures.style()
def _draw(data: RunData, between: Steps | None, panels: list[Any]) -> Figure:
    rows = (len(panels) + 1) // 2
    f, axes = figures.figure(PAGE if len(panels) > 1 else figures.COLUMN, 2.5 * rows, rows, min(2, len(panels)))
    for ax, panel in zip(axes.ravel(), panels, strict=False):
        panel(ax, data, between)
        legend(ax)
    for ax in axes.ravel()[len(panels) :]:
        ax.set_axis_off()
    return f


def _susceptibility(ax: Axes, data: RunData, between: Steps | None) -> None:
    against_coupling(ax, data, data.values("susceptibility"), data.errors("susceptibility"))
    shade_transition(ax, data)
    ax.set(ylabel="fidelity susceptibility χ", ylim=(0, None))


def infidelity(data: RunData, between: Steps) -> tuple[FloatArray, FloatArray, FloatArray]:
    """1 − F of the pairs, its standard error, and 1 − exp(−χδ²) with the mean χ of both ends (NaN unless of λ)."""
    c = between.first
    value, error = 1 - data.values("overlap")[c], data.errors("overlap")[c]
    expected = np.full(len(c), np.nan)
    if between.axis == "lam" and data.has("susceptibility"):
        chi = data.values("susceptibility")
        expected = -np.expm1(-(chi[c] + chi[c + 1]) / 2 * between.width**2)
    return value, error, expected


def _infidelity(ax: Axes, data: RunData, between: Steps) -> None:
    value, error, expected = infidelity(data, between)
    for k, (label, mine) in enumerate(_curves(between)):
        look = series(k)
        curve(ax, between.at[mine], value[mine], error[mine], look, label or "1 − F")
        if np.isfinite(expected[mine]).any():
            ax.plot(
                between.at[mine], expected[mine], "x", color="black", ms=4, label="1 − exp(−χδ²)" if k == 0 else None
            )
    ax.axhline(0, color="#666666", lw=0.8, ls=":")
    _axis(ax, data, between)
    ax.set_ylabel("1 − F with the next coupling")


def reweighted(data: RunData, between: Steps) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Interaction energy per electron of c + 1, from the walkers of c minus the one measured: E0, error, share used."""
    c, n = between.first, data.n
    difference = data.values("reweighted_interaction")[c, 1] - data.values("interaction")[c + 1]
    error = np.hypot(data.errors("reweighted_interaction")[c, 1], data.errors("interaction")[c + 1])
    return difference / n, error / n, data.values("reweighting_ess")[c, 1]


def _samples(ax: Axes, data: RunData, between: Steps) -> None:
    share, error = data.values("reweighting_ess")[between.first, 1], data.errors("reweighting_ess")[between.first, 1]
    for k, (label, mine) in enumerate(_curves(between)):
        curve(ax, between.at[mine], share[mine], error[mine], series(k), label or None)
    ax.axhline(FEW, color="#666666", lw=0.8, ls=":")
    _axis(ax, data, between)
    ax.set(ylabel="effective share of samples", ylim=(0, 1.05))


def _reweighted(ax: Axes, data: RunData, between: Steps) -> None:
    difference, error, share = reweighted(data, between)
    for k, (label, mine) in enumerate(_curves(between)):
        look = {**series(k), "ls": "none"}
        for trusted in (True, False):
            some = mine[(share[mine] >= FEW) == trusted]
            if len(some):
                face = {} if trusted else {"mfc": "white"}
                curve(ax, between.at[some], difference[some], error[some], {**look, **face}, label if trusted else None)
    ax.axhline(0, color="#666666", lw=0.8, ls=":")
    _axis(ax, data, between)
    ax.set_ylabel("E_int reweighted − measured\nper electron (E₀)")


def _curves(between: Steps) -> list[tuple[str, np.ndarray]]:
    """(label, pairs) of each value of the other couplings."""
    return [(x, np.array([i for i, y in enumerate(between.labels) if y == x])) for x in dict.fromkeys(between.labels)]


def _axis(ax: Axes, data: RunData, between: Steps) -> None:
    ax.set_xlabel(axis_label(between.axis, data.config.family.material))
    if between.axis == data.axis:
        shade_transition(ax, data)


def _numbers(data: RunData, between: Steps) -> xarray.Dataset:
    import xarray

    found: dict[str, Any] = {}
    if data.has("overlap"):
        value, error, expected = infidelity(data, between)
        found["infidelity"] = ("pair", value, {"units": "1", "long_name": "1 − F"})
        found["infidelity_error"] = ("pair", error, {"units": "1", "long_name": "standard error of 1 − F"})
        found["infidelity_from_susceptibility"] = ("pair", expected, {"units": "1", "long_name": "1 − exp(−χδ²)"})
    if data.has(*REWEIGHTED):
        difference, error, share = reweighted(data, between)
        words = "interaction energy per electron, reweighted minus measured"
        found["reweighted_difference"] = ("pair", difference, {"units": "E0", "long_name": words})
        found["reweighted_difference_error"] = ("pair", error, {"units": "E0", "long_name": f"standard error, {words}"})
        found["effective_share"] = ("pair", share, {"units": "1"})
    at = {
        "pair_middle": ("pair", between.at),
        "pair_width": ("pair", between.width),
        "pair_first": ("pair", between.first),
    }
    return xarray.Dataset(found, at, {"coupling": between.axis})

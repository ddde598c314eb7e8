"""Energies of the parts of each total momentum: the levels that cross where a rounded state changes its momentum."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qernel import figures, level_crossing
from qernel.cell import FloatArray
from qernel.figures import COLUMN, curve, legend, series
from qernel.report_data import RunData
from qernel.report_sections.section import BARS, Drawing, Section, coupling_axis, text
from qernel.report_sections.total_momentum import symmetric

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

SHARE = 0.02
"""probability of a set of momenta from which its energy is drawn"""


def levels(data: RunData) -> Section | None:
    """E_K − E against the coupling, for momenta that symmetry makes equivalent together."""
    if not data.has("momentum_energy") or len(data.groups) > 1:
        return None
    curves = together(data)
    caption = (
        "Energy of the part of each total momentum (P_K ψ) minus that of the whole state, totals; momenta that "
        "symmetry makes equivalent are averaged with their probabilities. Every part is an upper bound in its sector, "
        "and the lowest of them is the better estimate of the ground state. Drawn from a probability of "
        f"{SHARE:g}. {BARS}"
    )
    found = level_crossing.find(data.dataset)
    words = level_crossing.words(found)
    drawing = Drawing("levels", _draw(data, curves), "Energies by total momentum against the coupling", caption, curves)
    uses = ("momentum_energy", "momentum_interaction", "momentum_dE_dlam")
    return Section("Levels by total momentum", [text(f"{words[0].upper()}{words[1:]}."), drawing], uses)


def together(data: RunData) -> xarray.Dataset:
    """E_S − E and its error for sets S of equivalent momenta, [coupling, momenta]; NaN where hardly any is there."""
    import xarray

    p, e, error = data.values("momentum_probability"), data.values("momentum_energy"), data.errors("momentum_energy")
    shares = symmetric(data)
    labels = [str(x) for x in data.dataset["sector"].values] if shares is None else shares.labels
    member = np.arange(len(labels)) if shares is None else shares.member
    weight = np.where(np.isfinite(e), p, 0.0)
    value, bar = np.full((len(p), len(labels)), np.nan), np.full((len(p), len(labels)), np.nan)
    for s in range(len(labels)):
        w = weight[:, member == s]
        total = w.sum(1)
        there = total >= SHARE
        value[there, s] = mean(w, np.nan_to_num(e[:, member == s]))[there] - data.values("energy")[there]
        bar[there, s] = np.sqrt((w**2 * np.nan_to_num(error[:, member == s]) ** 2).sum(1))[there] / total[there]
    attrs = {"units": "E0", "long_name": "energy of the part of these momenta minus the energy"}
    dims = ("coupling", "momenta")
    return xarray.Dataset({"level": (dims, value, attrs), "level_error": (dims, bar, attrs)}, {"momenta": labels})


def mean(weight: FloatArray, x: FloatArray) -> FloatArray:
    """Weighted mean over the last axis; 0 where there is no weight."""
    total = weight.sum(1)
    out: FloatArray = (weight * x).sum(1) / np.where(total > 0, total, 1.0)
    return out


@figures.style()
def _draw(data: RunData, curves: xarray.Dataset) -> Figure:
    f, axes = figures.figure(COLUMN, 2.8)
    ax, index = axes[0, 0], data.groups[0][1]
    value, error = curves["level"].values, curves["level_error"].values
    for s, label in enumerate(curves["momenta"].values):
        there = index[np.isfinite(value[index, s])]
        if len(there):
            curve(ax, data.x[there], value[there, s], error[there, s], series(s), str(label))
    ax.axhline(0, color=figures.GREY, lw=0.8)
    ax.set_ylabel("E_K − E (E₀)")
    coupling_axis(ax, data)
    legend(ax)
    return f

"""What a section of the report is: text and figures about some variables of a scan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qernel import report_html
from qernel.cell import FloatArray
from qernel.figures import COLUMN, GREY, curve, figure, legend, series
from qernel.labels import axis_label
from qernel.report_data import RunData

if TYPE_CHECKING:
    import xarray
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BARS = "Error bars are one standard error."


@dataclass(frozen=True, eq=False)
class Drawing:
    """A figure: on the page, as a file RUN/figures/NAME.pdf, and its numbers in RUN/report_data.nc."""

    name: str
    figure: Figure
    alternative: str
    """in a few words, for those who cannot see it"""
    caption: str
    data: xarray.Dataset | None = None
    """what is drawn and neither in the scan nor among the references: group NAME of report_data.nc"""


@dataclass(frozen=True, eq=False)
class Section:
    """A part of the page."""

    title: str
    """heading; none if empty"""
    parts: Sequence[str | Drawing]
    """HTML, and figures"""
    uses: tuple[str, ...] = ()
    """variables of the scan that it shows, without those of their errors"""

    @property
    def drawings(self) -> list[Drawing]:
        """Its figures."""
        return [p for p in self.parts if isinstance(p, Drawing)]


def text(*sentences: str) -> str:
    """A paragraph, or a list if there are several."""
    return report_html.sentences(sentences)


def coupling_axis(ax: Axes, data: RunData) -> None:
    """Label of the axis that curves are drawn against."""
    ax.set_xlabel(axis_label(data.axis, data.config.family.material))


def mev_axis(ax: Axes, data: RunData) -> None:
    """A second scale in meV on the right, unless E0 varies within the family."""
    if "period_nm" in data.config.family.names:
        return
    e0 = data.config.family.material.e0_mev
    there: Any = (lambda x: x * e0, lambda x: x / e0)
    right = ax.secondary_yaxis("right", functions=there)
    right.set_ylabel("meV per electron")
    right.spines["right"].set_visible(True)


def against_coupling(ax: Axes, data: RunData, value: FloatArray, error: FloatArray, name: str = "", k: int = 0) -> None:
    """Values [couplings] with error bars, a curve for each group; looks from the k-th on, `name` before its label."""
    for j, (label, index) in enumerate(data.groups):
        curve(ax, data.x[index], value[index], error[index], series(k + j), f"{name} {label}".strip() or None)
    coupling_axis(ax, data)


def only_some(data: RunData) -> str:
    """For a caption: that not all groups have a panel."""
    shown, every = len(data.some_groups()), len(data.groups)
    return f" Shown for {shown} of {every} values of the other couplings." if shown < every else ""


def shade_transition(ax: Axes, data: RunData) -> None:
    """The 95 % interval of λ_c, if the transition analysis gives one."""
    if data.lam_c is not None and data.axis == "lam":
        ax.axvspan(*data.lam_c, color=GREY, alpha=0.3, lw=0, label="λ_c (95 %)")


def shells(length: FloatArray, value: FloatArray, error: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Means over points of equal |k| or |s|: lengths, means and error bars [shells].

    Points of one shell are measured on the same walkers and may rise and fall together, so the error of a mean is taken
    as the mean of the errors, which it never exceeds.
    """
    member = np.unique(np.round(length, 6), return_inverse=True)[1]
    count = np.bincount(member)
    at, mean, bar = (np.bincount(member, weights=x) / count for x in (length, value, error))
    return at, mean, bar


def small(data: RunData, name: str, value: FloatArray, error: FloatArray, ylabel: str, **options: Any) -> Figure:
    """A figure of one column: one quantity [couplings] against the coupling."""
    f, axes = figure(COLUMN, 2.5)
    ax = axes[0, 0]
    against_coupling(ax, data, value, error, name)
    shade_transition(ax, data)
    ax.set(ylabel=ylabel, **options)
    if len(data.groups) > 1 or name or data.lam_c:
        legend(ax)
    return f

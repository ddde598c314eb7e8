"""The look of every figure: sizes of a printed page, curves that differ without colour too, SVG and PDF files."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from qernel.cell import FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

COLUMN, PAGE = 3.4, 7.0
"""widths in inches: one column of a printed page, and both"""
# The first ones are Okabe and Ito's, which everybody can tell apart, without the yellow, which vanishes on white.
MODEL, EXACT, HF, GREY = "#0072B2", "#000000", "#D55E00", "#999999"
SERIES = [MODEL, "#CC79A7", "#009E73", "#E69F00", "#56B4E9", "#661144", "#8C510A", "#8A8A00", "#332288"]
MARKERS = ["o", "s", "^", "v", "D", "P", "X"]
LINES = ["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1))]
"""nine colours, seven markers and five lines: 315 curves before the first looks like another"""
MAP = "viridis"
"""perceptually uniform, from dark to light: grey keeps its order"""
STYLE: Any = {
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.handlelength": 2.4,
    "lines.linewidth": 1.2,
    "errorbar.capsize": 2.0,
    "svg.fonttype": "path",
    "svg.hashsalt": "qernel",
    "pdf.fonttype": 42,
    "savefig.facecolor": "white",
}


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib with the look of the report, and no window system."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        yield


def figure(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, np.ndarray]:
    """A figure in inches and its axes [rows, columns]."""
    from matplotlib.figure import Figure

    f = Figure(figsize=(width, height), layout="constrained")
    return f, f.subplots(rows, columns, squeeze=False, **options)


@style()
def encoded(f: Figure, kind: str) -> bytes:
    """The figure as a file "pdf" (vectors, fonts embedded), "svg" or "png"; parts that are images at 300 per inch."""
    if f.get_layout_engine() is not None:  # once is enough, whatever the number of files
        f.draw_without_rendering()
        f.set_layout_engine(None)
    out = io.BytesIO()
    dates: dict[str, Any] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
    f.savefig(out, format=kind, dpi=300, metadata=dates.get(kind))
    return out.getvalue()


def side_by_side(count: int) -> tuple[float, float]:
    """Widths in inches of a figure of so many maps with a colour bar, and of one map; a single one needs no page."""
    width = COLUMN if count == 1 else PAGE
    return width, (width - 1.0) / (count if count == 1 else max(count, 3))


def series(k: int) -> dict[str, Any]:
    """Look of the k-th of several curves: colour, marker and line."""
    line: Any = LINES[k % len(LINES)]
    return {"color": SERIES[k % len(SERIES)], "marker": MARKERS[k % len(MARKERS)], "ls": line}


def in_order(count: int) -> list[dict[str, Any]]:
    """Looks of `count` curves for growing values: from dark to light, with markers and lines of their own."""
    import matplotlib

    colours = matplotlib.colormaps[MAP](np.linspace(0.0, 0.85, count))
    return [{**series(k), "color": colour} for k, colour in enumerate(colours)]


def curve(ax: Axes, x: Any, y: Any, error: Any, look: dict[str, Any], label: str | None = None, **more: Any) -> None:
    """Points with error bars, in a look of `series` or `in_order`; a thin line joins them."""
    options: dict[str, Any] = {"ms": 3.2, "lw": 0.8, "elinewidth": 1.1, **look, **more}
    ax.errorbar(x, y, error, label=label, **options)


def legend(ax: Axes, most: int = 4, **options: Any) -> None:
    """Names of the curves, if there are any: inside the axes, or above them if there are more than `most`.

    Of more than eight, the first two and some of the others.
    """
    handles, names = ax.get_legend_handles_labels()
    if not names:
        return
    if len(names) > 8:
        kept = sorted({0, 1, *np.rint(np.linspace(2, len(names) - 1, 6)).astype(int).tolist()})
        handles, names = [handles[k] for k in kept], [names[k] for k in kept]
    if len(names) > most:
        options = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncols": 2, "fontsize": 8, **options}
    ax.legend(handles, names, **options)


def plain_log(axis: Axis) -> None:
    """A logarithmic axis with plain numbers, unless they get long; between the powers of ten too where it is short."""

    def text(value: float, _: float) -> str:
        low, high = axis.get_view_interval()
        return f"{value:g}" if low >= 1e-3 and high < 1e5 else f"$10^{{{round(np.log10(value))}}}$"

    def between(value: float, position: float) -> str:
        low, high = axis.get_view_interval()
        first = round(value / 10 ** np.floor(np.log10(value) + 1e-9))
        wanted = (2, 3, 4, 5, 6, 8) if high < 4 * low else (2, 3, 5) if high < 10 * low else (2, 5)
        short = high < 100 * low and low >= 1e-3 and high < 1e5
        return text(value, position) if short and first in wanted else ""

    axis.set_major_formatter(text)
    axis.set_minor_formatter(between)


def outlined(ax: Axes, corners: FloatArray, **options: Any) -> None:
    """A closed polygon [corners, 2]."""
    from matplotlib.patches import Polygon

    ax.add_patch(Polygon(corners, closed=True, fill=False, **{"ec": "#333333", "lw": 0.9, "zorder": 4, **options}))


def bare(ax: Axes) -> None:
    """No ticks, grid or frame: for maps of a plane, with equal scales."""
    ax.set(aspect="equal", xticks=[], yticks=[])
    ax.grid(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_visible(False)

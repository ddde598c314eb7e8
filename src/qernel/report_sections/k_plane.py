"""Functions of a wavevector: curves against |k|, and maps of the k plane with the moiré zone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from qernel import figures
from qernel.cell import Cell, FloatArray, reduce_basis
from qernel.figures import MAP, PAGE, bare, curve, in_order, legend, outlined, plain_log, side_by_side
from qernel.report_data import RunData
from qernel.report_sections.section import shells

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure


def wigner_seitz(vectors: FloatArray) -> FloatArray:
    """Corners of the cell around the origin of the lattice with basis `vectors` [2, 2], anticlockwise, [4 or 6, 2].

    The points nearer to the origin than to any other lattice point: of a reciprocal lattice the first Brillouin zone.
    """
    # Of a reduced basis, only these can have a side.
    near = np.array([(0, 1), (1, 0), (1, 1), (1, -1)]) @ reduce_basis(vectors)
    near = np.concatenate([near, -near])
    # Corners are where two of the lines r·t = |t|²/2 meet inside of all others.
    i, j = np.triu_indices(len(near), 1)
    a = np.stack([near[i], near[j]], axis=1)
    meet = np.abs(np.linalg.det(a)) > 1e-9
    right = 0.5 * (a**2).sum(-1)[meet]
    points = np.linalg.solve(a[meet], right[..., None])[..., 0]
    inside = (points @ near.T <= 0.5 * (near**2).sum(-1) * (1 + 1e-9)).all(1)
    corners = np.unique(points[inside].round(9) + 0.0, axis=0)
    order: FloatArray = corners[np.argsort(np.arctan2(corners[:, 1], corners[:, 0]))]
    return order


def zone_corner_name(cell: Cell) -> str:
    """What the corners of the moiré zone are called."""
    return "K" if cell.lattice == "triangular" else "M"


@figures.style()
def against_length(
    data: RunData, chosen: list[int], k: FloatArray, panels: dict[str, tuple[FloatArray, FloatArray]], label: str
) -> Figure:
    """Curves against |k| at chosen couplings: means over shells with error bars, and every k as a dot.

    Args:
        data: the run, for names and cell.
        chosen: couplings.
        k: wavevectors [k, 2], 1/a_M; or [couplings, k, 2] where they differ.
        panels: title → values and standard errors [couplings, k].
        label: of the vertical axis.
    """
    f, axes = figures.figure(PAGE, 2.9, 1, len(panels), sharey=True)
    k = np.broadcast_to(k, (len(data.x), *k.shape[-2:]))
    for ax, (title, (value, error)) in zip(axes[0], panels.items(), strict=True):
        for look, c in zip(in_order(len(chosen)), chosen, strict=True):
            length = np.linalg.norm(k[c], axis=-1)
            ax.plot(length, value[c], ".", ms=1.5, color=look["color"], alpha=0.5, zorder=1)
            curve(ax, *shells(length, value[c], error[c]), look, data.labels[c])
        _marks(ax, data.config.family.cell)
        ax.set(xlabel="|k| (1/a_M)", title=title)
    axes[0, 0].set_ylabel(label)
    legend(axes[0, -1])
    return f


def _marks(ax: Axes, cell: Cell) -> None:
    """Lengths of the zone's corners and of the moiré reciprocal vectors, named at the upper edge."""
    corner = float(np.linalg.norm(wigner_seitz(cell.moire_reciprocal)[0]))
    shortest = float(np.linalg.norm(reduce_basis(cell.moire_reciprocal)[0]))
    for length, name in ((corner, f"|{zone_corner_name(cell)}|"), (shortest, "|b|")):
        ax.axvline(length, color="#666666", lw=0.7, ls=":", zorder=0)
        ax.annotate(
            name, (length, 1), xycoords=("data", "axes fraction"), ha="left", va="top", fontsize=8, color="#444444"
        )


@figures.style()
def k_map(
    data: RunData, chosen: list[int], k: FloatArray, rows: dict[str, FloatArray], label: str, norm: Normalize
) -> Figure:
    """Maps of the k plane at chosen couplings: every k a cell of the supercell's reciprocal lattice.

    Args:
        data: the run, for names and cell.
        chosen: couplings, a column each.
        k: wavevectors [k, 2] or [couplings, k, 2], 1/a_M.
        rows: title → values [couplings, k], a row each.
        label: of the colour bar.
        norm: of the colours, the same for all.
    """
    from matplotlib.collections import PolyCollection
    from matplotlib.colors import LogNorm

    cell = data.config.family.cell
    tile, zone = wigner_seitz(cell.reciprocal), wigner_seitz(cell.moire_reciprocal)
    k = np.broadcast_to(k, (len(data.x), *k.shape[-2:]))
    width, wide = side_by_side(len(chosen))
    f, axes = figures.figure(width, (wide + 0.25) * len(rows), len(rows), len(chosen))
    for r, (title, values) in enumerate(rows.items()):
        for c, x in enumerate(chosen):
            ax = axes[r, c]
            shown = np.isfinite(values[x])
            options: dict[str, Any] = {"cmap": MAP, "norm": norm, "edgecolors": "face", "linewidths": 0.1}
            tiles = PolyCollection(list(k[x][shown][:, None] + tile), array=values[x][shown], **options)
            ax.add_collection(tiles)
            outlined(ax, zone, ec="white", lw=1.6)
            outlined(ax, zone, ec="black", lw=0.7, ls="--")
            _name_corners(ax, zone, zone_corner_name(cell), text=r == c == 0)
            ax.autoscale_view()
            bare(ax)
            ax.set_title(data.titles[x] if r == 0 else "")
            if c == 0:
                ax.set_ylabel(title)
    bar = f.colorbar(tiles, ax=list(axes.ravel()), label=label, shrink=0.8, aspect=25)
    if isinstance(norm, LogNorm):
        plain_log(bar.ax.yaxis)
    return f


def _name_corners(ax: Axes, zone: FloatArray, name: str, text: bool) -> None:
    """Rings at the corners; one of them is named where there shall be `text`, of a hexagon K and its neighbour K′."""
    for size, ink, width in ((12, "white", 1.4), (12, "black", 0.6)):
        ax.scatter(zone[:, 0], zone[:, 1], s=size, facecolors="none", edgecolors=ink, lw=width, zorder=5)
    if not text:
        return
    first = int(np.argmin(np.abs(np.arctan2(zone[:, 1], zone[:, 0]))))
    names = {first: name, (first + 1) % len(zone): f"{name}′"} if name == "K" else {first: name}
    for n, words in names.items():
        place: Any = {"textcoords": "offset points", "ha": "center", "va": "center", "fontsize": 8, "zorder": 6}
        box: Any = {"boxstyle": "round,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.8}
        away = 9 * zone[n] / np.linalg.norm(zone[n])
        ax.annotate(words, (zone[n, 0], zone[n, 1]), (away[0], away[1]), bbox=box, **place)

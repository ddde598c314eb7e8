"""The electron density over the supercell."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from qernel import figures
from qernel.cell import Cell, FloatArray
from qernel.figures import MAP, bare, outlined, side_by_side
from qernel.report_data import RunData
from qernel.report_sections.section import Drawing, Section

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def density(data: RunData) -> Section | None:
    """Maps at some couplings, as measured and averaged over the moiré translations."""
    if not data.has("density", "density_symmetrised"):
        return None
    chosen = data.chosen()
    errors = []
    for k in chosen:
        mean, error = data.values("density")[k], data.errors("density")[k]
        relative = float(np.mean(error) / np.mean(mean))
        errors.append(
            f"{data.labels[k]}: {100 * relative:.0f} %" if math.isfinite(relative) else f"{data.labels[k]}: unknown"
        )
    caption = (
        "Electron density over the supercell; thin lines are the moiré lattice, circles the minima of the moiré "
        "potential. Above as measured, below averaged over the moiré translations. Mean relative error of a bin as "
        f"measured: {'; '.join(errors)}."
    )
    drawing = Drawing("density", _draw(data, chosen), "Maps of the electron density", caption)
    return Section("Electron density", [drawing], ("density", "density_symmetrised"))


def potential_minima(data: RunData) -> FloatArray:
    """Where the moiré potential is lowest in the supercell, its edges included, [points, 2], a_M."""
    import jax.numpy as jnp

    family, size = data.config.family, 60
    cell = family.cell
    fraction = np.stack(np.meshgrid(np.arange(size), np.arange(size), indexing="ij"), -1).reshape(-1, 2) / size
    points = fraction @ cell.moire_vectors
    h = family.hamiltonian(jnp.asarray(family.vector()))
    lowest = points[int(np.argmin(np.asarray(h.potential(jnp.asarray(points), h))))]
    inside = (lowest + cell.translations) @ np.linalg.inv(cell.vectors)
    inside = inside - np.floor(inside + 1e-9)
    images = np.concatenate([inside + shift for shift in ((0, 0), (1, 0), (0, 1), (1, 1))])
    shown: FloatArray = images[np.all(images < 1 + 1e-9, axis=1)] @ cell.vectors
    return shown


def _lattice_lines(cell: Cell) -> FloatArray:
    """Segments of the moiré lattice that cover the supercell, [segments, 2, 2]."""
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) @ cell.vectors @ np.linalg.inv(cell.moire_vectors)
    low, high = np.floor(corners.min(0)).astype(int), np.ceil(corners.max(0)).astype(int)
    segments = [[[i, low[1]], [i, high[1]]] for i in range(low[0], high[0] + 1)]
    segments += [[[low[0], j], [high[0], j]] for j in range(low[1], high[1] + 1)]
    lines: FloatArray = np.array(segments) @ cell.moire_vectors
    return lines


@figures.style()
def _draw(data: RunData, chosen: list[int]) -> Figure:
    from matplotlib.collections import LineCollection

    cell = data.config.family.cell
    minima = potential_minima(data)
    rows = [data.values("density")[chosen], data.values("density_symmetrised")[chosen]]
    # A few noisy bins of the measured maps should not wash out everything else; a uniform density is in the middle.
    top = max(np.quantile(rows[0], 0.998), rows[1].max(), 2 * data.n / cell.area)
    bins = rows[0].shape[-1]
    edge = np.arange(bins + 1) / bins
    grid = np.stack(np.meshgrid(edge, edge, indexing="ij"), -1) @ cell.vectors
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) @ cell.vectors
    extent = np.ptp(corners, axis=0)
    width, wide = side_by_side(len(chosen))
    f, axes = figures.figure(width, 2 * (wide * extent[1] / extent[0] + 0.2), 2, len(chosen))
    size = 16 / max(1.0, np.sqrt(cell.n_cells) / 3) ** 2
    for r, maps in enumerate(rows):
        for c, (k, values) in enumerate(zip(chosen, maps, strict=True)):
            ax: Axes = axes[r, c]
            image = ax.pcolormesh(grid[..., 0], grid[..., 1], values, cmap=MAP, vmin=0, vmax=top, rasterized=True)
            outlined(ax, corners)
            lines = LineCollection(list(_lattice_lines(cell)), colors="white", lw=0.4, alpha=0.7)
            ax.add_collection(lines, autolim=False)
            lines.set_clip_path(ax.patches[-1])
            ax.scatter(
                minima[:, 0], minima[:, 1], s=size, marker="o", facecolors="none", edgecolors="white", lw=0.6, zorder=3
            )
            bare(ax)
            ax.set_title(data.titles[k] if r == 0 else "")
            if c == 0:
                ax.set_ylabel("as measured" if r == 0 else "symmetrised")
    f.colorbar(image, ax=list(axes.ravel()), label="electron density (1/a_M²)", shrink=0.8, aspect=30)
    return f

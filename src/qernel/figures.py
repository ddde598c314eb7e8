"""The figures of the report, as SVG: energies, slope and density against the couplings, and the training curves."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from qernel.cell import Cell, FloatArray
from qernel.report_data import RunData

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours can be told apart by everybody.
MODEL, EXACT, HF, GREY = "#0072B2", "#000000", "#D55E00", "#999999"
SERIES = [MODEL, "#CC79A7", "#009E73", "#E69F00", "#56B4E9", "#F0E442"]
STYLE: Any = {
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.2,
    "errorbar.capsize": 2.5,
    "svg.fonttype": "path",
    "svg.hashsalt": "qernel",
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


def svg(f: Figure) -> bytes:
    """The figure as an SVG file; images inside it at 200 dots per inch."""
    out = io.BytesIO()
    f.savefig(out, format="svg", dpi=200, bbox_inches="tight", pad_inches=0.05, metadata={"Date": None})
    return out.getvalue()


def lam_axis(ax: Axes, data: RunData) -> None:
    """Label of the λ axis."""
    ax.set_xlabel(f"moiré depth λ (units of V₀ = {data.config.family.material.v0_mev:g} meV)")


def mev_axis(ax: Axes, data: RunData) -> None:
    """A second scale in meV on the right, unless E0 varies within the family."""
    if "period_nm" in data.config.family.names:
        return
    e0 = data.config.family.material.e0_mev
    right = ax.secondary_yaxis("right", functions=(_times(e0), _times(1 / e0)))
    right.set_ylabel("meV per electron")
    right.spines["right"].set_visible(True)


def _times(factor: float) -> Callable[[Any], Any]:
    return lambda x: x * factor


def draw(ax: Axes, data: RunData, name: str, exact: bool = True) -> None:
    """An energy per electron against λ: measured points with error bars, exact and Hartree–Fock lines."""
    y, error = data.values(name) / data.n, data.values(f"{name}_error") / data.n
    groups = data.groups
    for k, (label, index) in enumerate(groups):
        colour, x = SERIES[k % len(SERIES)], data.lam[index]
        for method, text, line, ink in (
            ("exact", f"exact ({data.references.bands} bands)", "-", EXACT),
            ("hartree_fock", "Hartree–Fock", "--", HF),
        ):
            values = data.reference(method, name)[index] / data.n if exact else np.full(len(x), np.nan)
            if not np.all(np.isnan(values)):
                ink = ink if len(groups) == 1 else colour
                ax.plot(x, values, line, marker=".", ms=3, color=ink, lw=1.0, label=text if k == 0 else None, zorder=2)
        text = f"QERNEL {label}".strip()
        ax.errorbar(x, y[index], error[index], fmt="o", ms=3.5, color=colour, lw=1.3, label=text, zorder=3)
    lam_axis(ax, data)
    ax.legend()


@style()
def energy(data: RunData, difference: FloatArray, difference_error: FloatArray) -> bytes:
    """E(λ) per electron, and the difference from the exact one in percent where there is one."""
    compared = not np.all(np.isnan(difference))
    f, axes = figure(10.0 if compared else 6.0, 3.6, 1, 2 if compared else 1)
    draw(axes[0, 0], data, "energy")
    axes[0, 0].set_ylabel("energy per electron (E₀)")
    mev_axis(axes[0, 0], data)
    if compared:
        ax = axes[0, 1]
        ax.axhline(0, color=EXACT, lw=1)
        for k, (label, index) in enumerate(data.groups):
            options: dict[str, Any] = {"fmt": "o", "ms": 3.5, "color": SERIES[k % len(SERIES)], "lw": 1.3}
            ax.errorbar(data.lam[index], difference[index], difference_error[index], label=label or None, **options)
        ax.set_ylabel("(E − E_exact)/|E_exact|  (%)")
        lam_axis(ax, data)
    return svg(f)


@style()
def interaction(data: RunData) -> bytes:
    """Interaction energy per electron against λ."""
    f, axes = figure(7.0, 4.2)
    draw(axes[0, 0], data, "interaction")
    axes[0, 0].set_ylabel("interaction energy per electron (E₀)")
    mev_axis(axes[0, 0], data)
    return svg(f)


@style()
def terms(data: RunData) -> bytes:
    """Kinetic and moiré energy per electron against λ."""
    f, axes = figure(10.0, 3.2, 1, 2)
    for ax, name, text in zip(axes[0], ("kinetic", "moire"), ("kinetic energy", "moiré energy"), strict=True):
        draw(ax, data, name)
        ax.set_ylabel(f"{text} per electron (E₀)")
    return svg(f)


@style()
def slope(data: RunData) -> bytes:
    """dE/dλ = ⟨W⟩ per electron against the finite differences of E(λ)."""
    f, axes = figure(7.0, 3.4)
    ax = axes[0, 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        w = np.where(data.lam != 0, data.reference("exact", "moire") / data.lam, np.nan) / data.n
    for k, (label, index) in enumerate(data.groups):
        colour, x = SERIES[k % len(SERIES)], data.lam[index]
        if not np.all(np.isnan(w[index])):
            ax.plot(x, w[index], ".-", ms=3, color=EXACT, lw=1, label="exact ⟨W⟩" if k == 0 else None)
        y, error = data.values("dE_dlam")[index] / data.n, data.values("dE_dlam_error")[index] / data.n
        ax.errorbar(x, y, error, fmt="o", ms=3.5, color=colour, lw=1.3, label=f"⟨W⟩ {label}".strip())
    if "slope" in data.dataset:
        y, error = data.values("slope") / data.n, data.values("slope_error") / data.n
        options: dict[str, Any] = {"fmt": "s", "ms": 4.5, "mfc": "none", "color": HF, "lw": 1.0}
        ax.errorbar(data.lam, y, error, label="slope of E(λ), finite differences", **options)
    ax.set_ylabel("dE/dλ per electron (E₀)")
    lam_axis(ax, data)
    ax.legend()
    return svg(f)


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


@style()
def density(data: RunData, chosen: list[int]) -> bytes:
    """Density over the supercell at some couplings: as measured, and averaged over the moiré translations."""
    from matplotlib.collections import LineCollection
    from matplotlib.patches import Polygon

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
    width = 2.5 * len(chosen) + 1.0
    f, axes = figure(width, 2 * (2.5 * extent[1] / extent[0] + 0.25), 2, len(chosen))
    size = 30 / max(1.0, np.sqrt(cell.n_cells) / 3) ** 2
    for r, maps in enumerate(rows):
        for c, (k, values) in enumerate(zip(chosen, maps, strict=True)):
            ax: Axes = axes[r, c]
            image = ax.pcolormesh(grid[..., 0], grid[..., 1], values, cmap="viridis", vmin=0, vmax=top, rasterized=True)
            outline = Polygon(corners, closed=True, fill=False, ec="#333333", lw=0.9, zorder=4)
            ax.add_patch(outline)
            lines = LineCollection(list(_lattice_lines(cell)), colors="white", lw=0.4, alpha=0.7)
            ax.add_collection(lines, autolim=False)
            lines.set_clip_path(outline)
            ax.scatter(
                minima[:, 0], minima[:, 1], s=size, marker="o", facecolors="none", edgecolors="white", lw=0.7, zorder=3
            )
            ax.set(aspect="equal", title=data.labels[k] if r == 0 else "", xticks=[], yticks=[])
            ax.grid(False)
            for side in ("left", "bottom"):
                ax.spines[side].set_visible(False)
            if c == 0:
                ax.set_ylabel("as measured" if r == 0 else "symmetrised")
    f.colorbar(image, ax=list(axes.ravel()), label="electron density (1/a_M²)", shrink=0.7, aspect=30)
    return svg(f)


def windows(steps: np.ndarray, values: np.ndarray, average: Callable[..., Any] = np.mean) -> tuple[Any, Any, int]:
    """Averages over successive windows, some dozens of them: (mid steps, averages, steps per window)."""
    length = max(1, min(5, len(steps) // 8), len(steps) // 80)
    parts = [slice(i, i + length) for i in range(0, len(steps) - length + 1, length)]
    return np.array([steps[p].mean() for p in parts]), np.array([average(values[p]) for p in parts]), length


def rms(values: np.ndarray) -> float:
    """Root of the mean square."""
    return float(np.sqrt(np.mean(np.square(values))))


@style()
def training(data: RunData) -> bytes:
    """Energy, variance and health of the training, averaged over windows of steps, one curve for each coupling."""
    import matplotlib

    log, n = data.log, data.n
    couplings = np.unique(log["coupling"])
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.88, len(couplings)))
    f, axes = figure(10.0, 8.2, 3, 2)
    exact = {round(x, 9): e / n for x, e in zip(data.lam, data.reference("exact", "energy"), strict=True)}
    several = len(data.config.family.names) > 1
    for k, colour in zip(couplings, colours, strict=True):
        mine = log["coupling"] == k
        steps, lam = log["step"][mine], log["lam"][mine][0]
        x, y, _ = windows(steps, log["energy"][mine] / n)
        label = f"λ = {lam:.4g}" if len(couplings) <= 10 or k in (couplings[0], couplings[-1]) else None
        axes[0, 0].plot(x, y, color=colour, label=label)
        reference = np.nan if several else exact.get(round(float(lam), 9), np.nan)
        if np.isfinite(reference):
            axes[0, 0].axhline(reference, color=colour, ls=":", lw=0.9)
            axes[0, 1].plot(x, y - reference, color=colour)
        axes[1, 0].plot(x, windows(steps, log["variance"][mine])[1], color=colour)
        axes[1, 1].plot(x, windows(steps, log["kinetic_gap"][mine], rms)[1], color=colour)
        axes[2, 0].plot(x, windows(steps, log["acceptance"][mine])[1], color=colour)
    compared = bool(axes[0, 1].lines)
    axes[0, 0].set(ylabel="energy per electron (E₀)", title="energy; dotted: exact" if compared else "energy")
    f.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=8)
    if compared:
        axes[0, 1].set_yscale("symlog", linthresh=0.01)
        axes[0, 1].axhline(0, color=EXACT, lw=1)
        axes[0, 1].set(ylabel="(E − E_exact) per electron (E₀)", title="distance from the exact energy")
    else:
        axes[0, 1].text(0.5, 0.5, "no exact energy", ha="center", color=GREY, transform=axes[0, 1].transAxes)
    axes[1, 0].set(ylabel="variance (E₀²)", yscale="log", title="variance of the local energy")
    axes[1, 1].axhline(1, color=EXACT, lw=1, ls="--")
    axes[1, 1].set(ylabel="root mean square (σ)", title="difference of the kinetic energies; 1 if healthy")
    axes[2, 0].set(ylabel="accepted share", ylim=(0, 1), title="acceptance of all-electron moves")
    _seconds(axes[2, 1], log)
    for ax in axes.ravel():
        ax.set_xlabel("training step")
    return svg(f)


def _seconds(ax: Axes, log: dict[str, np.ndarray]) -> None:
    """Seconds per step by part; medians over windows, the first step (it compiles) left out."""
    first = (log["coupling"] == log["coupling"][0]) & (log["step"] > log["step"].min())
    names = [name for name in log if name.startswith("seconds_")]
    parts = {name: windows(log["step"][first], log[name][first], np.median) for name in names}
    if names and first.any():
        x = parts[names[0]][0]
        labels = [name.removeprefix("seconds_").replace("_", " ") for name in names]
        colours = [MODEL, "#56B4E9", "#E69F00", HF]
        ax.stackplot(x, *(parts[name][1] for name in names), labels=labels, colors=colours, alpha=0.85)
        handles, texts = ax.get_legend_handles_labels()
        ax.legend(handles[::-1], texts[::-1], fontsize=7, loc="lower left", frameon=True, framealpha=0.9)
    ax.set(ylabel="seconds per step", title="time of a step by its parts", ylim=(0, None))

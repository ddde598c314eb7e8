"""The training curves."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from qernel import figures
from qernel.figures import EXACT, GREY, MAP, PAGE
from qernel.labels import coupling_label
from qernel.report_data import RunData
from qernel.report_sections.section import Drawing, Section, text

if TYPE_CHECKING:
    import xarray
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_NAMES = 10
"""in the legend; of more curves only the first and the last are named"""


def training(data: RunData) -> Section:
    """Energy, variance and health of the training, averaged over windows of steps, one curve for each coupling."""
    if not data.log or not len(data.log["step"]):
        trained = data.checkpoint.step > 0
        words = "The training log is not in this folder." if trained else "No training step was made."
        return Section("Training", [text(words)])
    curves = averaged(data)
    length = int(curves.attrs["steps_per_window"])
    caption = (
        f"One curve for each trained coupling, averaged over {length} step{'s' if length != 1 else ''} per point. The "
        "kinetic energy is measured by the Laplacian and by the squared gradient; their difference in units of its "
        "error has a root mean square of 1 if the wavefunction is continuously differentiable."
    )
    return Section("Training", [Drawing("training", _draw(data, curves), "Training curves", caption, curves)])


def windows(steps: np.ndarray, values: np.ndarray, average: Callable[..., Any] = np.mean) -> tuple[Any, Any, int]:
    """Averages over successive windows, some dozens of them: (mid steps, averages, steps per window)."""
    length = max(1, min(5, len(steps) // 8), len(steps) // 80)
    parts = [slice(i, i + length) for i in range(0, len(steps) - length + 1, length)]
    return np.array([steps[p].mean() for p in parts]), np.array([average(values[p]) for p in parts]), length


def rms(values: np.ndarray) -> float:
    """Root of the mean square."""
    return float(np.sqrt(np.mean(np.square(values))))


CURVES: dict[str, tuple[str, Callable[..., Any], str]] = {
    "energy": ("E0", np.mean, "total energy, mean over a window of steps"),
    "variance": ("E0^2", np.mean, "variance of the local energy, mean over a window"),
    "kinetic_gap": ("1", rms, "difference of the kinetic energies in its errors, root mean square over a window"),
    "acceptance": ("1", np.mean, "acceptance of all-electron moves, mean over a window"),
}


def averaged(data: RunData) -> xarray.Dataset:
    """The curves as drawn, [trained, window]: couplings trained on, and windows of steps."""
    import xarray

    log = data.log
    numbers = np.unique(log["coupling"]).astype(int)
    # A run that was cut off may have logged some couplings one step more often than others.
    shortest = min(int((log["coupling"] == k).sum()) for k in numbers)
    rows = [np.flatnonzero(log["coupling"] == k)[:shortest] for k in numbers]
    found: dict[str, Any] = {}
    for name, (units, average, words) in CURVES.items():
        parts = [windows(log["step"][r], log[name][r], average) for r in rows]
        found[name] = (("trained", "window"), np.stack([p[1] for p in parts]), {"units": units, "long_name": words})
    steps, length = parts[0][0], parts[0][2]
    # The first step compiles.
    later = rows[0][log["step"][rows[0]] > log["step"].min()]
    for name in [n for n in log if n.startswith("seconds_")]:
        x, y, _ = windows(log["step"][later], log[name][later], np.median)
        found[name] = ("later_window", y, {"units": "s", "long_name": "seconds per step, median over a window"})
        found["later_step"] = ("later_window", x, {"long_name": "steps in the middle of the windows without the first"})
    family = data.config.family
    grid = data.config.couplings[numbers]
    axes: dict[str, Any] = {f"trained_{n}": ("trained", grid[:, i]) for i, n in enumerate(family.names)}
    exact = _exact(data, grid)
    words = "exact energy, total; NaN where the scan has none"
    found["exact_energy"] = ("trained", exact, {"units": "E0", "long_name": words})
    return xarray.Dataset(found, {**axes, "step": ("window", steps)}, {"steps_per_window": length})


def _exact(data: RunData, grid: np.ndarray) -> np.ndarray:
    """Exact energy at the couplings trained on [trained, names], from the scan's where it has them."""
    scanned = np.stack([data.values(n) for n in data.config.family.names], axis=1)
    energy = data.reference("exact", "energy")
    found = np.full(len(grid), np.nan)
    for k, row in enumerate(grid):
        same = np.flatnonzero(np.isclose(scanned, row, rtol=1e-12, atol=1e-9).all(1))
        if len(same):
            found[k] = energy[same[0]]
    return found


@figures.style()
def _draw(data: RunData, curves: xarray.Dataset) -> Figure:
    import matplotlib

    n, names = data.n, data.config.family.names
    grid = np.stack([curves[f"trained_{x}"].values for x in names], axis=1)
    shown = [i for i, x in enumerate(names) if np.ptp(grid[:, i]) > 0] or [0]
    colours = matplotlib.colormaps[MAP](np.linspace(0, 0.88, len(grid)))
    f, axes = figures.figure(PAGE, 7.0, 3, 2)
    x = curves["step"].values
    for k, colour in enumerate(colours):
        look: dict[str, Any] = {"color": colour, "lw": 1.0, "ls": figures.LINES[k % len(figures.LINES)]}
        y, reference = curves["energy"].values[k] / n, float(curves["exact_energy"][k]) / n
        named = len(grid) <= MOST_NAMES or k in (0, len(grid) - 1)
        words = coupling_label([names[i] for i in shown], grid[k, shown])
        axes[0, 0].plot(x, y, **look, label=words if named else None)
        if np.isfinite(reference):
            axes[0, 0].axhline(reference, color=colour, ls=":", lw=0.9)
            axes[0, 1].plot(x, y - reference, **look)
        for ax, name in ((axes[1, 0], "variance"), (axes[1, 1], "kinetic_gap"), (axes[2, 0], "acceptance")):
            ax.plot(x, curves[name].values[k], **look)
    compared = bool(axes[0, 1].lines)
    axes[0, 0].set(ylabel="energy per electron (E₀)", title="energy; dotted: exact" if compared else "energy")
    f.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=5)
    if compared:
        axes[0, 1].set_yscale("symlog", linthresh=0.01)
        axes[0, 1].axhline(0, color=EXACT, lw=1)
        axes[0, 1].set(ylabel="E − E_exact per electron (E₀)", title="distance from the exact energy")
    else:
        axes[0, 1].text(0.5, 0.5, "no exact energy", ha="center", color=GREY, transform=axes[0, 1].transAxes)
    axes[1, 0].set(ylabel="variance (E₀²)", yscale="log", title="variance of the local energy")
    figures.plain_log(axes[1, 0].yaxis)
    axes[1, 1].axhline(1, color=EXACT, lw=1, ls="--")
    axes[1, 1].set(ylabel="root mean square (σ)", title="difference of the kinetic energies; 1 if healthy")
    axes[2, 0].set(ylabel="accepted share", ylim=(0, 1), title="acceptance of all-electron moves")
    _seconds(axes[2, 1], curves)
    for ax in axes.ravel():
        ax.set_xlabel("training step")
    return f


def _seconds(ax: Axes, curves: xarray.Dataset) -> None:
    """Seconds per step by part."""
    import matplotlib

    names = [str(name) for name in curves if str(name).startswith("seconds_")]
    if names and curves.sizes["later_window"]:
        labels = [name.removeprefix("seconds_").replace("_", " ") for name in names]
        colours = matplotlib.colormaps[MAP](np.linspace(0.1, 0.95, len(names)))
        parts = [curves[name].values for name in names]
        ax.stackplot(curves["later_step"].values, *parts, labels=labels, colors=colours, ec="white", lw=0.4)
        handles, texts = ax.get_legend_handles_labels()
        ax.legend(handles[::-1], texts[::-1], fontsize=8, loc="lower left", frameon=True, framealpha=0.9)
    ax.set(ylabel="seconds per step", title="time of a step by its parts", ylim=(0, None))

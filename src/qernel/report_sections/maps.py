"""Maps over two couplings, where a scan is a full grid of both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from qernel import figures
from qernel.cell import FloatArray, IntArray
from qernel.figures import MAP, PAGE
from qernel.labels import TWISTS, axis_label
from qernel.report_checks import exact_difference
from qernel.report_data import RunData
from qernel.report_sections.section import Drawing, Section

if TYPE_CHECKING:
    import xarray


def maps(data: RunData) -> Section | None:
    """Energies, order parameter and distance from the exact energy over two couplings; averages where twists vary."""
    found = grid(data)
    if found is None:
        return None
    names, values, index = found
    layers = averaged(quantities(data), index)
    twists = index.shape[-1]
    words = "Over two couplings, per electron; the points lie in the middle of their fields. "
    if twists > 1:
        words += f"Averages over {twists} twists. "
    if "difference" in layers and (layers["difference"][1] < 0).any():
        words += "Rings mark energies below the exact one, or its upper bound. "
    bars = [f"{label} {np.nanmax(error):.2g}" for label, _, error in layers.values() if np.isfinite(error).any()]
    words += f"Largest standard errors: {'; '.join(bars)}."
    drawing = Drawing(
        "maps", _draw(data, names, values, layers), "Maps over two couplings", words, _numbers(names, values, layers)
    )
    return Section("Over two couplings", [drawing])


def grid(data: RunData) -> tuple[list[str], list[FloatArray], IntArray] | None:
    """The two couplings (twists are none of them), their values, and indices into the scan [first, second, twists].

    None unless exactly two vary and every pair of their values is there, at every twist, once.
    """
    names = [n for n in data.varying if n not in TWISTS]
    if len(names) != 2:
        return None
    values, place = zip(*(np.unique(data.values(n).round(9), return_inverse=True) for n in names), strict=True)
    cells = place[0] * len(values[1]) + place[1]
    count = np.bincount(cells, minlength=len(values[0]) * len(values[1]))
    if count.min() != count.max():
        return None
    twists = [data.values(n).round(9) for n in TWISTS if n in data.varying]
    order = np.lexsort((*twists, cells))
    index = order.reshape(len(values[0]), len(values[1]), -1)
    for t in twists:
        if np.ptp(t[index], axis=(0, 1)).max() > 0:
            return None
    points = np.stack([cells, *twists], axis=1)
    return None if len(np.unique(points, axis=0)) < len(points) else (names, list(values), index)


MOST_TICKS = 6
"""couplings that are named one by one"""
Layers = dict[str, tuple[str, FloatArray, FloatArray]]
"""name → label with unit, values and standard errors"""


def quantities(data: RunData) -> Layers:
    """What is drawn, [couplings]."""
    found: Layers = {}
    for name, words in (("energy", "energy"), ("interaction", "interaction energy")):
        label = f"{words} per electron (E₀)"
        found[f"{name}_per_electron"] = (label, data.values(name) / data.n, data.errors(name) / data.n)
    if data.has("order_parameter"):
        found["order_parameter"] = ("order parameter", data.values("order_parameter"), data.errors("order_parameter"))
    difference, _ = exact_difference(data)
    if np.isfinite(difference).any():
        error = 100 * data.errors("energy") / np.abs(data.reference("exact", "energy"))
        found["difference"] = ("(E − E_exact)/|E_exact|  (%)", difference, error)
    return found


def averaged(layers: Layers, index: IntArray) -> Layers:
    """Means over the twists [first, second]; they are measured on chains of their own, so errors add in quadrature."""
    return {
        name: (label, value[index].mean(-1), np.sqrt((error[index] ** 2).sum(-1)) / index.shape[-1])
        for name, (label, value, error) in layers.items()
    }


@figures.style()
def _draw(data: RunData, names: list[str], values: list[FloatArray], layers: Layers) -> Any:
    rows = (len(layers) + 1) // 2
    f, axes = figures.figure(PAGE, 2.6 * rows, rows, 2)
    for ax, (name, (label, value, _)) in zip(axes.ravel(), layers.items(), strict=False):
        image = ax.pcolormesh(values[0], values[1], value.T, cmap=MAP, shading="nearest")
        ax.grid(False)
        for ticks, at in ((ax.set_xticks, values[0]), (ax.set_yticks, values[1])):
            if len(at) <= MOST_TICKS:
                ticks(at, [f"{x:.4g}" for x in at])
        if name == "difference" and (value < 0).any():
            below = np.argwhere(value < 0)
            spots = {"facecolors": "none", "edgecolors": "white", "lw": 1.0, "s": 18}
            ax.scatter(values[0][below[:, 0]], values[1][below[:, 1]], **spots)
        material = data.config.family.material
        ax.set(xlabel=axis_label(names[0], material), ylabel=axis_label(names[1], material))
        f.colorbar(image, ax=ax, label=label)
    for ax in axes.ravel()[len(layers) :]:
        ax.set_axis_off()
    return f


def _numbers(names: list[str], values: list[FloatArray], layers: Layers) -> xarray.Dataset:
    import xarray

    axes = [f"map_{n}" for n in names]
    data: dict[str, Any] = {}
    for name, (label, value, error) in layers.items():
        data[name] = (axes, value, {"long_name": label})
        data[f"{name}_error"] = (axes, error, {"long_name": f"standard error of {label}"})
    return xarray.Dataset(data, dict(zip(axes, values, strict=True)))

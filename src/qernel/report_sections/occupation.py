"""How the electrons spread over single-particle momenta, and how far they are coherent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from qernel import figures
from qernel.cell import Cell, FloatArray, reduce_basis
from qernel.figures import COLUMN, curve, in_order, legend
from qernel.report_data import RunData
from qernel.report_sections.k_plane import against_length, k_map
from qernel.report_sections.section import BARS, Drawing, Section, shells

if TYPE_CHECKING:
    import xarray

SPINS = {"": "both spins", "_up": "spin up", "_down": "spin down"}


def occupation(data: RunData) -> Section | None:
    """n(k) at chosen couplings, against |k| and as maps, and the decay of the one-body density matrix."""
    names = {f"momentum_distribution{s}": words for s, words in SPINS.items() if data.has(f"momentum_distribution{s}")}
    if not names:
        return None
    parts: list[str | Drawing] = [_curves(data, names), _maps(data, names)]
    if data.has("density_matrix_re", "density_matrix_im"):
        parts.append(_matrix(data))
    return Section("Momentum distribution", parts, (*names, "density_matrix_re", "density_matrix_im"))


def wavevectors(data: RunData) -> FloatArray:
    """k = G + θ at each coupling, [couplings, G, 2], 1/a_M."""
    family = data.config.family
    g = np.stack([data.values("G_x"), data.values("G_y")], -1)
    names = [f"twist_{i + 1}" for i in range(2)]
    columns = [
        data.values(n) if n in family.names else np.full(len(data.x), family.twist[i]) for i, n in enumerate(names)
    ]
    k: FloatArray = g[None] + np.stack(columns, -1)[:, None]
    return k


def _curves(data: RunData, names: dict[str, str]) -> Drawing:
    panels = {(w if len(names) > 1 else ""): (data.values(n), data.errors(n)) for n, w in names.items()}
    f = against_length(data, data.chosen(), wavevectors(data), panels, "momentum distribution n(k)")
    caption = (
        "Electrons in the plane wave of k. Marks are means over all k of a length, dots the single ones; dotted lines "
        f"as for the structure factor. {BARS}"
    )
    return Drawing("momentum_distribution", f, "Momentum distribution against the length of k", caption)


@figures.style()
def _maps(data: RunData, names: dict[str, str]) -> Drawing:
    from matplotlib.colors import Normalize

    chosen = data.chosen()
    top = max(float(np.nanmax(data.values(n)[chosen])) for n in names)
    rows = {(w if len(names) > 1 else ""): data.values(n) for n, w in names.items()}
    f = k_map(data, chosen, wavevectors(data), rows, "n(k)", Normalize(0, top, clip=True))
    error = max(float(np.nanmax(data.errors(n)[chosen])) for n in names)
    caption = f"The same in the k plane; dashed is the moiré Brillouin zone. Largest standard error: {error:.2g}."
    return Drawing("momentum_distribution_map", f, "Maps of the momentum distribution", caption)


@figures.style()
def _matrix(data: RunData) -> Drawing:
    re, im = data.values("density_matrix_re"), data.values("density_matrix_im")
    size = np.hypot(re, im)
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = np.hypot(re * data.errors("density_matrix_re"), im * data.errors("density_matrix_im"))
        error = np.where(size > 0, spread / size, 0.0)
    s = np.stack(np.meshgrid(data.values("s1"), data.values("s2"), indexing="ij"), -1)
    length = nearest_length(s @ data.config.family.cell.vectors, data.config.family.cell).ravel()
    f, axes = figures.figure(COLUMN, 2.6)
    chosen = data.chosen()
    for look, c in zip(in_order(len(chosen)), chosen, strict=True):
        curve(axes[0, 0], *shells(length, size[c].ravel(), error[c].ravel()), look, data.labels[c])
    axes[0, 0].set(xlabel="|s| (a_M)", ylabel="one-body density matrix |γ(s)|")
    legend(axes[0, 0])
    caption = (
        "How the one-body density matrix decays with the distance of its arguments; means over squares of s, the first "
        f"around s = 0, where γ = 1. An absolute value is never below its noise. {BARS}"
    )
    return Drawing(
        "density_matrix", f, "Decay of the one-body density matrix", caption, _matrix_dataset(length, size, error)
    )


def nearest_length(s: FloatArray, cell: Cell) -> FloatArray:
    """Distance of s [..., 2] from the nearest image of the origin, a_M."""
    basis = reduce_basis(cell.vectors)
    s = s - np.rint(s @ np.linalg.inv(basis)) @ basis
    images = np.stack(np.meshgrid([-1, 0, 1], [-1, 0, 1], indexing="ij"), -1).reshape(-1, 2) @ basis
    length: FloatArray = np.linalg.norm(s[..., None, :] + images, axis=-1).min(-1)
    return length


def _matrix_dataset(length: FloatArray, size: FloatArray, error: FloatArray) -> xarray.Dataset:
    import xarray

    dims, flat = ("coupling", "displacement"), (len(size), -1)
    words = "absolute value of the one-body density matrix"
    data: dict[str, Any] = {
        "density_matrix_abs": (dims, size.reshape(flat), {"units": "1", "long_name": words}),
        "density_matrix_abs_error": (
            dims,
            error.reshape(flat),
            {"units": "1", "long_name": f"standard error, {words}"},
        ),
    }
    return xarray.Dataset(data, {"displacement_length": ("displacement", length, {"units": "a_M"})})

"""Structure factor and order parameter: is it a crystal?"""

from __future__ import annotations

import numpy as np

from qernel import figures
from qernel.report_data import RunData
from qernel.report_sections.k_plane import against_length, k_map
from qernel.report_sections.section import BARS, Drawing, Section, small


def structure(data: RunData) -> Section | None:
    """S(k) at chosen couplings, against |k| and as maps, and the order parameter against the coupling."""
    parts: list[str | Drawing] = []
    if data.has("structure_factor"):
        parts += [_curves(data), _maps(data)]
    if data.has("order_parameter"):
        parts.append(_order(data))
    return Section("Structure factor and order", parts, ("structure_factor", "order_parameter")) if parts else None


def _curves(data: RunData) -> Drawing:
    k, values = np.stack([data.values("k_x"), data.values("k_y")], -1), data.values("structure_factor")
    panels = {"": (values, data.errors("structure_factor"))}
    f = against_length(data, data.chosen(), k, panels, "structure factor ⟨|ρ_k|²⟩/N")
    caption = (
        "Structure factor: 1 for an ideal gas, of the order of N where the density is modulated. Marks are means over "
        "all k of a length, dots the single ones; dotted lines are the corners of the moiré zone and the shortest "
        f"moiré reciprocal vectors. {BARS}"
    )
    return Drawing("structure_factor", f, "Structure factor against the length of k", caption)


@figures.style()
def _maps(data: RunData) -> Drawing:
    from matplotlib.colors import LogNorm

    k, values = np.stack([data.values("k_x"), data.values("k_y")], -1), data.values("structure_factor")
    chosen = data.chosen()
    shown = values[chosen][np.isfinite(values[chosen]) & (values[chosen] > 0)]
    top = float(shown.max()) if shown.size else 1.0
    norm = LogNorm(max(float(shown.min()) if shown.size else 0.1, top / 1000), top, clip=True)
    f = k_map(data, chosen, k, {"": values}, "structure factor", norm)
    caption = (
        "Structure factor in the k plane, k = 0 left out (there it is N); dashed is the moiré Brillouin zone. Peaks at "
        "K and K′ are those of the √3×√3 crystal. Largest standard error: "
        f"{np.nanmax(data.errors('structure_factor')[chosen]):.2g}."
    )
    return Drawing("structure_factor_map", f, "Maps of the structure factor", caption)


@figures.style()
def _order(data: RunData) -> Drawing:
    value, error = data.values("order_parameter"), data.errors("order_parameter")
    f = small(data, "", value, error, "order parameter ⟨|ρ_K|²⟩/N²")
    f.axes[0].axhline(1 / data.n, color="#666666", lw=0.8, ls=":", label="ideal gas, 1/N")
    figures.legend(f.axes[0])
    caption = (
        "Order parameter of the √3×√3 crystal, mean over K and K′: 1 for point charges in a crystal, 1/N for an ideal "
        f"gas (dotted). {BARS}"
    )
    return Drawing("order_parameter", f, "Order parameter against the coupling", caption)

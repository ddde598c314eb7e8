"""The transition, and the quality of the wavefunction on both sides of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qernel import figures, report_html
from qernel.figures import PAGE, legend, plain_log
from qernel.report_data import RunData
from qernel.report_sections.section import BARS, Drawing, Section, against_coupling, shade_transition, text
from qernel.transition_scan import Analysis, draw, fitted, lines, rows

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure


def transition(data: RunData) -> Section | None:
    """One smooth curve against two branches; none where a scan has too few couplings or varies more than λ."""
    found = data.transition
    if found is None:
        return None
    if isinstance(found, str):
        return Section("Transition", [text(f"No answer: {found}.")])
    words = [f"{line if line.startswith('dE') else line[0].upper() + line[1:]}." for line in lines(found)[::-1]]
    caption = (
        "Each quantity with the best smooth curve (dashed), the best one with a jump, kink or peak narrower than the "
        "distance of the couplings resolves (full), and the 95 % interval of λ_c where both criteria are for it."
    )
    drawing = Drawing("transition", draw(found), "Smooth and two-branch fits against λ", caption, _curves(found))
    return Section("Transition", [text(*words), report_html.table(rows(found)), drawing])


def _curves(found: Analysis) -> xarray.Dataset:
    """The fits as drawn, [quantity, point], in the unit of the quantity (totals), and the intervals of λ_c."""
    import xarray

    curves = [fitted(x) for x in found.findings]
    places = [(np.nan, np.nan) if x.place is None else x.place.interval_95 for x in found.findings]
    return xarray.Dataset(
        {
            "smooth": (("quantity", "point"), np.stack([c[1] for c in curves])),
            "narrow": (("quantity", "point"), np.stack([c[2] for c in curves])),
            "lam_c_low": ("quantity", np.array([p[0] for p in places]), {"long_name": "λ_c, lower end of 95 %"}),
            "lam_c_high": ("quantity", np.array([p[1] for p in places]), {"long_name": "λ_c, upper end of 95 %"}),
            "verdict": ("quantity", [x.verdict for x in found.findings]),
        },
        {"fit_lam": ("point", curves[0][0]), "quantity": [x.quantity for x in found.findings]},
        {"statement": found.statement.text},
    )


def variance(data: RunData) -> Section:
    """Variance of the local energy and V-score: how good the state is on either side."""
    words = (
        "Both vanish for an eigenstate. A wavefunction that knows one side of a transition better than the other has a "
        "step in them, and its λ_c is then drawn to the better side."
    )
    drawing = Drawing("variance", _variance(data), "Variance and V-score against the coupling", f"{words} {BARS}")
    return Section("Variance on both sides", [drawing], ("variance", "v_score"))


@figures.style()
def _variance(data: RunData) -> Figure:
    names = [n for n in ("variance", "v_score") if data.has(n)]
    f, axes = figures.figure(PAGE if len(names) == 2 else figures.COLUMN, 2.6, 1, len(names))
    for ax, name in zip(axes[0], names, strict=True):
        scale = 1 / data.n if name == "variance" else 1.0
        against_coupling(ax, data, scale * data.values(name), scale * data.errors(name))
        shade_transition(ax, data)
        ax.set_ylabel("variance per electron (E₀²)" if name == "variance" else "V-score N Var/(E − E_∞)²")
        positive = bool(np.all(data.values(name) > 0))
        ax.set_yscale("log" if positive else "linear")
        if positive:
            plain_log(ax.yaxis)
        legend(ax)
    return f

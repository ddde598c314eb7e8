"""Weights of simple trial states: what the phases are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qernel import figures
from qernel.figures import COLUMN, legend
from qernel.report_data import RunData
from qernel.report_sections.section import BARS, Drawing, Section, against_coupling, shade_transition

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = {
    "trial_plane_waves": "plane waves",
    "trial_bloch": "Bloch orbitals",
    "trial_gaussians": "localised Gaussians",
}


def trials(data: RunData) -> Section | None:
    """The weight of each kind against the coupling."""
    present = [name for name in KINDS if data.has(name)]
    if not present:
        return None
    caption = (
        "Weight of the state in the span of the lowest determinants of plane waves, of non-interacting Bloch orbitals, "
        f"and of Gaussians localised on the pattern of lowest Coulomb energy and its copies. {BARS}"
    )
    drawing = Drawing("trial_states", _draw(data, present), "Weights of trial states against the coupling", caption)
    return Section("Trial states", [drawing], tuple(n for name in present for n in (name, f"{name}_ess")))


@figures.style()
def _draw(data: RunData, names: list[str]) -> Figure:
    f, axes = figures.figure(COLUMN, 2.8)
    ax = axes[0, 0]
    for k, name in enumerate(names):
        against_coupling(ax, data, data.values(name), data.errors(name), KINDS[name], k * len(data.groups))
    shade_transition(ax, data)
    ax.set_ylabel("weight")
    legend(ax)
    return f

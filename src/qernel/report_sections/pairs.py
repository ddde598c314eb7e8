"""The pair correlation function."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qernel import figures
from qernel.figures import PAGE, in_order, legend
from qernel.report_data import RunData
from qernel.report_sections.section import Drawing, Section

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = {"": "all pairs", "_up_up": "both up", "_up_down": "up and down", "_down_down": "both down"}


def pairs(data: RunData) -> Section | None:
    """g(r) at chosen couplings with error bands, of all pairs and by spin."""
    names = {f"pair_correlation{kind}": words for kind, words in KINDS.items() if data.has(f"pair_correlation{kind}")}
    if not names:
        return None
    caption = (
        "Pair correlation function, 1 for electrons that know nothing of each other (dotted); up to the radius of the "
        "circle inscribed in the supercell. Bands are one standard error."
    )
    drawing = Drawing("pair_correlation", _draw(data, names), "Pair correlation function", caption)
    return Section("Pair correlation", [drawing], tuple(names))


@figures.style()
def _draw(data: RunData, names: dict[str, str]) -> Figure:
    columns = min(2, len(names))
    rows = -(-len(names) // columns)
    f, axes = figures.figure(PAGE, 2.6 * rows, rows, columns, sharey=True)
    r, chosen = data.values("r"), data.chosen()
    for ax, (name, words) in zip(axes.ravel(), names.items(), strict=False):
        for look, c in zip(in_order(len(chosen)), chosen, strict=True):
            value, error = data.values(name)[c], data.errors(name)[c]
            ax.fill_between(r, value - error, value + error, color=look["color"], alpha=0.3, lw=0)
            ax.plot(r, value, **{**look, "ms": 3.2, "lw": 0.9}, markevery=4, label=data.labels[c])
        ax.axhline(1, color="#666666", lw=0.8, ls=":")
        ax.set(xlabel="r (a_M)", title=words if len(names) > 1 else "", xlim=(0, None), ylim=(0, None))
    for ax in axes[:, 0]:
        ax.set_ylabel("pair correlation g(r)")
    for ax in axes.ravel()[len(names) :]:
        ax.set_axis_off()
    legend(axes[0, 0])
    return f

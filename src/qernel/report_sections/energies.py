"""Energies: the tables, E(λ) with its references, its terms, and its slope."""

from __future__ import annotations

from typing import Any

import numpy as np

from qernel import figures, report_html
from qernel.cell import FloatArray
from qernel.figures import COLUMN, EXACT, HF, PAGE, curve, legend, series
from qernel.references import describe
from qernel.report_checks import exact_difference
from qernel.report_data import RunData
from qernel.report_sections.section import BARS, Drawing, Section, coupling_axis, mev_axis
from qernel.report_tables import energy_tables, hartree_fock_table


def energies(data: RunData) -> Section:
    """Tables of the energies, what the references are worth, and figures of energy, interaction and the other terms."""
    parts: list[str | Drawing] = [energy_tables(data), report_html.sentences(describe(data.references))]
    parts += [hartree_fock_table(data)]
    parts += [energy(data), interaction(data), terms(data)]
    uses = ("energy", "kinetic", "moire", "interaction", "tau", "r_hat", "ess", "acceptance", "outside")
    return Section("Energies", parts, uses)


def draw(ax: Any, data: RunData, name: str) -> None:
    """An energy per electron against the coupling: measured points, lines of the exact one and both of Hartree–Fock."""
    y, error = data.values(name) / data.n, data.errors(name) / data.n
    groups = data.groups
    for k, (label, index) in enumerate(groups):
        look, x = series(k), data.x[index]
        for method, text, line, ink in (
            ("exact", f"exact ({data.references.bands} bands)", "-", EXACT),
            ("hartree_fock_liquid", "Hartree–Fock, liquid", ":", HF),
            ("hartree_fock_crystal", "Hartree–Fock, crystal", "--", HF),
        ):
            values = data.reference(method, name)[index] / data.n
            known = ~np.isnan(values)  # perhaps at every other point only
            if known.any():
                ink = ink if len(groups) == 1 else look["color"]
                options: dict[str, Any] = {"marker": ".", "ms": 2.5, "lw": 0.9, "zorder": 2}
                ax.plot(x[known], values[known], line, color=ink, label=text if k == 0 else None, **options)
        curve(ax, x, y[index], error[index], {**look, "ls": "none"}, label or "QERNEL", zorder=3)
    coupling_axis(ax, data)
    legend(ax)


@figures.style()
def energy(data: RunData) -> Drawing:
    """E(λ) per electron, and the difference from the exact one in percent where there is one."""
    exact = data.reference("exact", "energy")
    difference, _ = exact_difference(data)
    compared = not np.all(np.isnan(difference))
    f, axes = figures.figure(PAGE if compared else COLUMN, 2.8, 1, 2 if compared else 1)
    draw(axes[0, 0], data, "energy")
    axes[0, 0].set_ylabel("energy per electron (E₀)")
    mev_axis(axes[0, 0], data)
    if compared:
        ax = axes[0, 1]
        ax.axhline(0, color=EXACT, lw=1)
        for k, (label, index) in enumerate(data.groups):
            error = 100 * data.errors("energy")[index] / np.abs(exact[index])
            curve(ax, data.x[index], difference[index], error, {**series(k), "ls": "none"}, label or None)
        ax.set_ylabel("(E − E_exact)/|E_exact|  (%)")
        coupling_axis(ax, data)
    return Drawing("energy", f, "Energy per electron against the coupling", f"Energy per electron. {BARS}")


@figures.style()
def interaction(data: RunData) -> Drawing:
    """Interaction energy per electron against λ."""
    f, axes = figures.figure(COLUMN, 2.8)
    draw(axes[0, 0], data, "interaction")
    axes[0, 0].set_ylabel("interaction energy per electron (E₀)")
    mev_axis(axes[0, 0], data)
    caption = (
        "Interaction energy per electron. At a first-order transition it falls on two branches with a jump between "
        f"them, while the total energy only changes its slope. {BARS}"
    )
    return Drawing("interaction", f, "Interaction energy per electron against the coupling", caption)


@figures.style()
def terms(data: RunData) -> Drawing:
    """Kinetic and moiré energy per electron against λ."""
    f, axes = figures.figure(PAGE, 2.8, 1, 2)
    for ax, name, words in zip(axes[0], ("kinetic", "moire"), ("kinetic energy", "moiré energy"), strict=True):
        draw(ax, data, name)
        ax.set_ylabel(f"{words} per electron (E₀)")
    return Drawing("terms", f, "Kinetic and moiré energy against the coupling", f"The other two terms. {BARS}")


def slope(data: RunData) -> Section:
    """dE/dλ measured as ⟨W⟩, and by finite differences."""
    words = "dE/dλ measured as ⟨W⟩ (Hellmann–Feynman)"
    if data.has("slope"):
        words += (
            " against the slope of the measured E(λ). The finite differences have an error of their own from the "
            "distance of the points, which the bars leave out"
        )
    drawing = Drawing("slope", _slope(data), "dE/dλ against the coupling", f"{words}.")
    return Section("Slope of the energy", [drawing], ("dE_dlam", "slope"))


def exact_w(data: RunData) -> FloatArray:
    """⟨Σ W⟩ of the exact state, total, E0, [couplings]; NaN at λ = 0, where the moiré energy does not tell."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(data.lam != 0, data.reference("exact", "moire") / data.lam, np.nan)


@figures.style()
def _slope(data: RunData) -> Any:
    f, axes = figures.figure(COLUMN, 2.8)
    ax, w = axes[0, 0], exact_w(data) / data.n
    for k, (label, index) in enumerate(data.groups):
        look, x = series(k), data.x[index]
        if not np.all(np.isnan(w[index])):
            ink = EXACT if len(data.groups) == 1 else look["color"]
            ax.plot(x, w[index], ".-", ms=2.5, color=ink, lw=0.9, label="exact ⟨W⟩" if k == 0 else None)
        y, error = data.values("dE_dlam")[index] / data.n, data.errors("dE_dlam")[index] / data.n
        curve(ax, x, y, error, {**look, "ls": "none"}, label or "⟨W⟩")
    if data.has("slope"):
        y, error = data.values("slope") / data.n, data.errors("slope") / data.n
        look = {"marker": "s", "mfc": "none", "color": HF, "ls": "none"}
        curve(ax, data.x, y, error, look, "slope of E(λ), finite differences", ms=4.5)
    ax.set_ylabel("dE/dλ per electron (E₀)")
    coupling_axis(ax, data)
    legend(ax)
    return f

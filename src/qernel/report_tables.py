"""The result tables of the report: total energies against the references, and the terms of the energy."""

from __future__ import annotations

import math

from qernel import report_html
from qernel.cell import FloatArray
from qernel.labels import SYMBOLS
from qernel.report_checks import exact_difference
from qernel.report_data import RunData
from qernel.tables import averages_columns, text
from qernel.twist_average import averages


def measured(data: RunData, name: str, k: int, scale: float = 1.0) -> str:
    """A measured value with its error, times `scale`."""
    return text(float(data.values(name)[k]) * scale, float(data.values(f"{name}_error")[k]) * scale)


def number(value: float, decimals: int, sign: bool = False) -> str:
    """A plain number; empty for NaN."""
    return "" if math.isnan(value) else f"{value:{'+' if sign else ''}.{decimals}f}"


def energy_tables(data: RunData) -> str:
    """Two tables as HTML: total energies against the references, and the terms per electron."""
    percent, z = exact_difference(data)
    per, every = 1 / data.n, range(len(data.lam))
    mev = data.config.family.material.e0_mev * per
    interaction, interaction_error = data.values("interaction") * per, data.values("interaction_error") * per
    exact_interaction = data.reference("exact", "interaction") * per
    couplings = {SYMBOLS[n]: [f"{x:.6g}" for x in data.values(n)] for n in data.config.family.names}

    def numbers(values: FloatArray, decimals: int, sign: bool = False) -> list[str]:
        return [number(x, decimals, sign) for x in values]

    energies = {
        **couplings,
        "E (E₀)": [measured(data, "energy", k) for k in every],
        "E per electron (E₀)": [measured(data, "energy", k, per) for k in every],
        "E per electron (meV)": [measured(data, "energy", k, mev) for k in every],
        "exact (E₀)": numbers(data.reference("exact", "energy"), 4),
        "difference (%)": numbers(percent, 3, True),
        "difference (σ)": numbers(z, 1, True),
        "Hartree–Fock (E₀)": numbers(data.reference("hartree_fock", "energy"), 4),
        "variance (E₀²)": [f"{x:.3g}" for x in data.values("variance")],
        "τ": numbers(data.values("tau"), 2),
        "R̂": numbers(data.values("r_hat"), 4),
    }
    if "period_nm" in data.config.family.names:  # E₀ differs from row to row
        del energies["E per electron (meV)"]
    differences = zip(interaction - exact_interaction, interaction_error, strict=True)
    terms = {
        **couplings,
        "kinetic": [measured(data, "kinetic", k, per) for k in every],
        "moiré": [measured(data, "moire", k, per) for k in every],
        "interaction": [measured(data, "interaction", k, per) for k in every],
        "exact interaction": numbers(exact_interaction, 4),
        "difference": ["" if math.isnan(d) else text(float(d), float(e)) for d, e in differences],
        "exact total momentum": [s.state if s else "" for s in data.references.exact],
        "effective samples": numbers(data.values("ess"), 0),
        "acceptance": numbers(data.values("acceptance"), 2),
    }
    words = (
        "Numbers in brackets are one standard error in the last digits, autocorrelation included; τ is the "
        "autocorrelation time in measurements. By term, in E₀ per electron, the Madelung term inside the interaction:"
    )
    return report_html.table(energies) + report_html.sentences([words]) + report_html.table(terms)


def hartree_fock_table(data: RunData) -> str:
    """Both branches of Hartree–Fock and how far below the lower one the network is, per electron; empty without any."""
    if all(x is None for x in data.references.hartree_fock):
        return ""
    per, columns = 1 / data.n, {SYMBOLS[n]: [f"{x:.6g}" for x in data.values(n)] for n in data.config.family.names}
    for name, head, scale in (("energy", "E", per), ("interaction", "E_int", per), ("order_parameter", "|ρ_K|/N", 1.0)):
        for branch in ("liquid", "crystal"):
            values = scale * data.reference(f"hartree_fock_{branch}", name)
            columns[f"{head}, {branch}"] = [number(x, 5 if scale == per else 3) for x in values]
    below = (data.reference("hartree_fock", "energy") - data.values("energy")) * per
    errors = data.values("energy_error") * per
    columns["gained by QERNEL"] = [
        "" if math.isnan(b) else text(float(b), float(e)) for b, e in zip(below, errors, strict=True)
    ]
    words = (
        "Both branches of Hartree–Fock, in E₀ per electron, and by how much the energy lies below the lower one; "
        "|ρ_K|/N is the largest √3×√3 density wave of the determinant."
    )
    return report_html.sentences([words]) + report_html.table(columns)


def averages_table(data: RunData) -> str:
    """The means over twists, beside those of the exact energies, as HTML; empty without a twist average."""
    means = averages(data.dataset)
    if means is None:
        return ""
    columns = {SYMBOLS.get(head, head): cells for head, cells in averages_columns(means).items()}
    weighted = data.values("twist_weight") * data.reference("exact", "energy")
    exact = weighted.reshape(means.sizes["coupling"], -1).sum(1)
    difference = 100 * (means["energy"].values - exact) / abs(exact)
    columns["exact energy"] = [number(x, 4) for x in exact]
    columns["difference (%)"] = [number(x, 3, True) for x in difference]
    words = (
        "Totals in E₀. Round brackets: the standard error from sampling these twists. Square brackets: the standard "
        "deviation from twist to twist, which is no statistical error. That the twists are few, and the supercell "
        "small, is in neither."
    )
    return report_html.table(columns) + report_html.sentences([words])

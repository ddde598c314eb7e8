"""One self-contained HTML page about a run: what was run, what came out, and whether to believe it."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np

from qernel import figures, report_html, transition_scan
from qernel.checkpoint import write_atomically
from qernel.hamiltonian import Potential
from qernel.log import duration
from qernel.references import describe
from qernel.report_checks import checks, convergence_sentences, exact_difference
from qernel.report_data import SYMBOLS, RunData, gather
from qernel.report_tables import averages_section, energy_tables, measured, number
from qernel.wavefunction import Wavefunction, make_start


def write_report(
    run: Path, bands: int | None = None, references: bool = True, potential: Potential | None = None
) -> Path:
    """Write RUN/report.html about a trained and scanned run, and return its path.

    Args:
        run: the run folder; it must hold a checkpoint and results.nc.
        bands: bands per momentum of the exact diagonalisation (default: as many as are quick).
        references: compare with exact diagonalisation and Hartree–Fock; kept in RUN/references.json.
        potential: of a run with a one-body potential that is not built in.

    Raises:
        InputError: one line if something is missing, or the exact diagonalisation asked for is impossible.
    """
    data = gather(run, bands, references, potential)
    file = data.folder / "report.html"
    write_atomically(file, lambda p: p.write_text(page(data), encoding="utf-8"))
    return file


def print_summary(
    run: Path, bands: int | None = None, references: bool = True, potential: Potential | None = None
) -> None:
    """A compact table of the result on stdout: λ, energy, exact energy, difference, interaction. As `write_report`."""
    from rich.console import Console
    from rich.table import Table

    data = gather(run, bands, references, potential)
    percent, z = exact_difference(data)
    shown = range(len(data.lam))
    columns = {
        **{SYMBOLS[n]: [f"{x:.6g}" for x in data.values(n)] for n in data.config.family.names},
        "energy": [measured(data, "energy", k) for k in shown],
        "exact" if data.references.exact_converged else "exact (upper bound)": [
            number(x, 4) for x in data.reference("exact", "energy")
        ],
        "difference": ["" if math.isnan(percent[k]) else f"{percent[k]:+.3f} % ({z[k]:+.1f}σ)" for k in shown],
        "interaction": [measured(data, "interaction", k) for k in shown],
    }
    table = Table(title=f"{data.config.name}: N = {data.n}, totals in E0", title_justify="left")
    cells = [values for values in columns.values() if any(values)]
    for head, values in columns.items():
        if any(values):
            table.add_column(head, justify="right")
    for row in zip(*cells, strict=True):
        table.add_row(*row)
    Console(highlight=False).print(table)
    for sentence in convergence_sentences(data):
        print(sentence)


def page(data: RunData) -> str:
    """The whole page."""
    sections = [
        f'<p class="sub">{html.escape(_subtitle(data))}</p>',
        _facts(data),
        "<h2>Is it converged?</h2>",
        report_html.sentences(convergence_sentences(data)),
        _checks(data),
        "<h2>Energies</h2>",
        energy_tables(data),
        report_html.sentences(describe(data.references)),
        averages_section(data),
        _energy_figures(data),
        "<h2>Slope of the energy</h2>",
        _slope(data),
        transition_scan.section(data.dataset),
        "<h2>Electron density</h2>",
        _density(data),
        "<h2>Training</h2>",
        _training(data),
    ]
    return report_html.document(f"QERNEL report: {data.config.name}", "\n".join(sections))


def _subtitle(data: RunData) -> str:
    family = data.config.family
    spin = "spin-polarised" if family.n_down == 0 else f"{family.n_up} up and {family.n_down} down"
    cells = family.cell.n_cells
    return f"{data.n} electrons ({spin}) on {cells} moiré cells, filling ν = {_fraction(data.n, cells)}"


def _fraction(n: int, cells: int) -> str:
    d = math.gcd(n, cells)
    return f"{n // d}/{cells // d}" if cells != d else str(n // d)


def _facts(data: RunData) -> str:
    family, network = data.config.family, data.config.network
    m, (total, active) = family.material, Wavefunction(jax.random.key(0), make_start(family, network)).parameter_count()
    ranges = [
        f"{SYMBOLS[n]} from {low:g} to {high:g} in {k} points" if k > 1 else f"{SYMBOLS[n]} = {low:g}"
        for n in family.names
        for low, high, k in [getattr(family, n)]
    ]
    attention = f"{network.heads} query and {network.kv_heads} key/value heads" if network.heads else "no attention"
    experts = f"{network.experts} experts, at most {network.top_k} open" if network.experts else "no experts"
    film = f"FiLM width {network.film_width}" if network.film_width else "no FiLM"
    gate = "unscreened Coulomb" if family.gate is None else f"Coulomb between gates {family.gate:g} a_M away"
    rows = family.cell.supercell
    wall = float(data.checkpoint.user.get("wall", 0.0))
    attributes = data.dataset.attrs
    return report_html.pairs(
        [
            (
                "Supercell",
                f"{family.cell.lattice}, T1 = {_vector(rows[0])}, T2 = {_vector(rows[1])}, {family.cell.n_cells} cells",
            ),
            (
                "Material",
                f"m* = {m.mass:g} m_e, a_M = {m.period_nm:g} nm, ε = {m.epsilon:g}, V₀ = {m.v0_mev:g} meV, "
                f"φ = {m.phi_deg:g}°; {gate}; twist θ = ({family.twist[0]:g}, {family.twist[1]:g})/a_M",
            ),
            ("In natural units", f"E₀ = ħ²/(m* a_M²) = {m.e0_mev:.5f} meV, v₀ = V₀/E₀ = {m.v0:.5f}, u = {m.u:.5f}"),
            ("Trained on", "; ".join(ranges) + f" ({_count(len(family.grid()), 'coupling')}, one set of weights)"),
            (
                "Network",
                f"{network.layers} layers of width {network.width}, {attention}, {experts}, {film}, "
                f"{network.determinants} determinants, {network.dtype}",
            ),
            ("Parameters", f"{total:,} in total, {active:,} active for one electron"),
            (
                "Training",
                f"{data.checkpoint.step} of {data.config.steps} steps, {type(data.config.optimizer).__name__}, "
                f"{data.config.sampling.walkers} walkers per coupling, {duration(wall)} of wall time",
            ),
            (
                "Scan",
                f"{_count(len(data.lam), 'coupling')} after step {attributes['training_steps']}, "
                f"{attributes['walkers']} chains of {attributes['sweeps']} measurements each",
            ),
            ("Provenance", _provenance(data.checkpoint.user.get("provenance", {}))),
            ("Page made", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")),
        ]
    )


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'s' if n != 1 else ''}"


def _vector(row: Sequence[int]) -> str:
    terms = [f"{abs(x) if abs(x) != 1 else ''} a{i + 1}".strip() for i, x in enumerate(row) if x]
    signs = ["−" if x < 0 else "+" for x in row if x]
    return (("−" if signs[0] == "−" else "") + terms[0]) + "".join(
        f" {s} {t}" for s, t in zip(signs[1:], terms[1:], strict=True)
    )


def _provenance(p: dict[str, Any]) -> str:
    git = p.get("git")
    commit = "not from a git checkout"
    if git:
        commit = f"commit {git['commit'][:12]}" + (" with uncommitted changes" if git["dirty"] else "")
    versions = ", ".join(f"{k} {p[k]}" for k in ("python", "jax", "numpy", "equinox") if k in p)
    device = f"{p.get('devices', '?')} × {p.get('device', '?')} ({p.get('backend', '?')})"
    return (
        f"qernel {p.get('qernel', '?')}, {commit}; {versions}; {device}, {p.get('platform', '?')}; {p.get('time', '?')}"
    )


def _energy_figures(data: RunData) -> str:
    percent, _ = exact_difference(data)
    error = 100 * data.values("energy_error") / np.abs(data.reference("exact", "energy"))
    bars = "Error bars are one standard error."
    return (
        report_html.figure(
            figures.energy(data, percent, error), "Energy per electron against λ", f"Energy per electron. {bars}"
        )
        + report_html.figure(
            figures.interaction(data),
            "Interaction energy per electron against λ",
            "Interaction energy per electron. At a first-order transition it falls on two branches with a jump between "
            f"them, while the total energy only changes its slope. {bars}",
        )
        + report_html.figure(figures.terms(data), "Kinetic and moiré energy against λ", f"The other two terms. {bars}")
    )


def _slope(data: RunData) -> str:
    words = "dE/dλ measured as ⟨W⟩ (Hellmann–Feynman)"
    if "slope" in data.dataset:
        words += (
            " against the slope of the measured E(λ). The finite differences have an error of their own from the "
            "distance of the points, which the bars leave out"
        )
    return report_html.figure(figures.slope(data), "dE/dλ against λ", f"{words}.")


def _density(data: RunData) -> str:
    if "density" not in data.dataset:
        return "<p>The scan did not measure it.</p>"
    order = np.concatenate([index for _, index in data.groups])
    chosen = [int(k) for k in order[np.unique(np.rint(np.linspace(0, len(order) - 1, 4)).astype(int))]]
    errors = []
    for k in chosen:
        mean, error = data.values("density")[k], data.values("density_error")[k]
        relative = float(np.mean(error) / np.mean(mean))
        errors.append(
            f"{data.labels[k]}: {100 * relative:.0f} %" if math.isfinite(relative) else f"{data.labels[k]}: unknown"
        )
    return report_html.figure(
        figures.density(data, chosen),
        "Maps of the electron density",
        "Electron density over the supercell; thin lines are the moiré lattice, circles the minima of the moiré "
        "potential. Above as measured, below averaged over the moiré translations. Mean relative error of a bin as "
        f"measured: {'; '.join(errors)}.",
    )


def _training(data: RunData) -> str:
    if not data.log or not len(data.log["step"]):
        trained = data.checkpoint.step > 0
        return f"<p>{'The training log is not in this folder.' if trained else 'No training step was made.'}</p>"
    steps = data.log["step"][data.log["coupling"] == data.log["coupling"][0]]
    length = figures.windows(steps, steps)[2]
    return report_html.figure(
        figures.training(data),
        "Training curves",
        f"One curve for each trained coupling, averaged over {_count(length, 'step')} per point. The "
        "kinetic energy is measured by the Laplacian and by the squared gradient; their difference in units of its "
        "error has a root mean square of 1 if the wavefunction is continuously differentiable.",
    )


def _checks(data: RunData) -> str:
    rows = []
    for c in checks(data):
        css = "none" if c.status == "no test" else c.status
        rows.append(
            f'<tr><th>{html.escape(c.name)}</th><td class="{css}">{c.status}</td><td>{html.escape(c.text)}</td></tr>'
        )
    return f'<table class="checks"><tbody>{"".join(rows)}</tbody></table>'

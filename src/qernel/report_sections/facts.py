"""What was run, and whether to believe it: the head of the page."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import jax
import numpy as np

from qernel import origin, report_html
from qernel.labels import SYMBOLS
from qernel.log import duration
from qernel.report_checks import checks, convergence_sentences
from qernel.report_data import RunData
from qernel.report_sections.section import Section
from qernel.wavefunction import Wavefunction


def facts(data: RunData) -> Section:
    """System, material, network, training, scan and provenance."""
    return Section("", [f'<p class="sub">{html.escape(_subtitle(data))}</p>', _facts(data)])


def convergence(data: RunData) -> Section:
    """In sentences what has not converged, and the table of all checks."""
    parts = [report_html.sentences(convergence_sentences(data)), _checks(data)]
    uses = ("energy_imag", "kinetic_from_gradient", "kinetic_gap")
    return Section("Is it converged?", parts, uses)


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
    m, (total, active) = family.material, Wavefunction(jax.random.key(0), data.start).parameter_count()
    couplings = data.config.couplings
    ranges = [
        f"{SYMBOLS[n]} from {x[0]:g} to {x[-1]:g} in {len(x)} points" if len(x) > 1 else f"{SYMBOLS[n]} = {x[0]:g}"
        for n, x in zip(family.names, map(np.unique, couplings.T), strict=True)
    ]
    attention = f"{network.heads} query and {network.kv_heads} key/value heads" if network.heads else "no attention"
    experts = f"{network.experts} experts, at most {network.top_k} open" if network.experts else "no experts"
    film = f"FiLM width {network.film_width}" if network.film_width else "no FiLM"
    gate = "unscreened Coulomb" if family.gate is None else f"Coulomb between gates {family.gate:g} a_M away"
    rows = family.cell.supercell
    wall = origin.seconds(data.checkpoint)
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
            ("Trained on", "; ".join(ranges) + f" ({_count(len(couplings), 'coupling')}, one set of weights)"),
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
            *([("Began with the weights of", data.config.parent)] if data.config.parent else []),
            (
                "Scan",
                f"{_count(len(data.lam), 'coupling')} after step {attributes['training_steps']}, "
                f"{attributes['walkers']} chains of {attributes['sweeps']} measurements each",
            ),
            ("Provenance", _provenance(origin.provenance(data.checkpoint))),
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


def _checks(data: RunData) -> str:
    rows = []
    for c in checks(data):
        css = "none" if c.status == "no test" else c.status
        rows.append(
            f'<tr><th>{html.escape(c.name)}</th><td class="{css}">{c.status}</td><td>{html.escape(c.text)}</td></tr>'
        )
    return f'<table class="checks"><tbody>{"".join(rows)}</tbody></table>'

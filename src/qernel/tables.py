"""Tables for people: results in E0 and meV, total and per electron, with error bars."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from qernel.result import Result
from qernel.stats import format_uncertainty

if TYPE_CHECKING:
    import xarray

    from qernel.reference_file import Reference


def _print(table: Table) -> None:
    console = Console(highlight=False)
    # A file or pipe has no width to fit: nothing may be cut off there.
    (console if console.is_terminal else Console(highlight=False, width=160)).print(table)


def text(mean: float, error: float) -> str:
    """Mean and error; at most six decimals, for states whose error is only rounding."""
    return f"{mean:.6f}(0)" if 0 <= error < 1e-7 * max(1.0, abs(mean)) else format_uncertainty(mean, error)


def result_table(result: Result) -> None:
    """One coupling: energies by term, then the health of the chains."""
    couplings = ", ".join(f"{k} = {v:g}" for k, v in result.couplings.items())
    table = Table(title=f"{couplings}, N = {result.n_electrons}", title_justify="left")
    for column in ("", "E0", "E0 per electron", "meV", "meV per electron"):
        table.add_column(column, justify="left" if not column else "right")
    n, mev = result.n_electrons, result.e0_mev
    for name in ("energy", "kinetic", "moire", "interaction"):
        e = getattr(result, name)
        table.add_row(name, *(text(e.mean * s, e.error * s) for s in (1, 1 / n, mev, mev / n)))
    w = result.w
    table.add_row("dE/dλ", *(text(w.mean * s, w.error * s) for s in (1, 1 / n, mev, mev / n)))
    _print(table)
    e = result.energy
    gap, imag = result.kinetic_gap, result.energy_imag
    print(f"variance {result.variance:.4g} E0²; Im E = {imag} E0; kinetic energy two ways differs by {gap} E0")
    for line in quantity_lines(result):
        print(line)
    print(
        f"{result.walkers} chains x {result.sweeps} measurements, τ = {e.tau:.2f}, R̂ = {e.r_hat:.4f}, "
        f"{e.ess:.0f} effective samples, acceptance {result.acceptance:.2f}, {result.seconds:.0f} s"
    )


def quantity_lines(result: Result) -> list[str]:
    """What was measured besides the energy, where it is a number; and the likeliest total momenta."""
    numbers = {n: q for n, q in result.quantities.items() if not q.dims and n != "variance"}
    lines = [f"{n} = {text(float(q.value), float(q.error))} {q.units}".removesuffix(" 1") for n, q in numbers.items()]
    momentum = result.quantities.get("momentum_probability")
    if momentum is not None:
        labels = momentum.coordinates["sector"][1]
        likeliest = [i for i in np.argsort(-momentum.value)[:6] if momentum.value[i] > 0.01]
        shares = [f"{labels[i]} {text(momentum.value[i], momentum.error[i])}" for i in likeliest]
        lines.append(f"total momentum: {', '.join(shares)}")
    return lines


def scan_table(results: list[Result]) -> None:
    """All couplings, a row each, totals in E0."""
    names = list(results[0].couplings)
    table = Table(title=f"N = {results[0].n_electrons}, totals in E0", title_justify="left")
    shown = {"order_parameter": "order", "susceptibility": "χ", "overlap": "overlap"}
    extra = {name: label for name, label in shown.items() if name in results[0].quantities}
    energies = ("energy", "kinetic", "moire", "interaction", "variance", "dE/dλ")
    for column in (*names, *energies, *extra.values(), "τ", "R̂"):
        table.add_column(column, justify="right")
    for r in results:
        terms = [str(getattr(r, t)) for t in ("energy", "kinetic", "moire", "interaction")]
        terms += [f"{r.variance:.3g}", str(r.w)]
        terms += [text(float(r.quantities[n].value), float(r.quantities[n].error)) for n in extra]
        health = [f"{r.energy.tau:.2f}", f"{r.energy.r_hat:.3f}"]
        table.add_row(*(f"{v:g}" for v in r.couplings.values()), *terms, *health)
    _print(table)


def averages_columns(means: xarray.Dataset) -> dict[str, list[str]]:
    """Head → cells of the means over twists of `twist_average.averages`: value(error) [spread], a row each."""
    shown = {"energy": "energy", "kinetic": "kinetic", "moire": "moire", "interaction": "interaction"}
    shown |= {"dE_dlam": "dE/dλ", "order_parameter": "order", "susceptibility": "χ"}
    columns = {str(n): [f"{x:g}" for x in c.values] for n, c in means.coords.items() if c.dims == ("coupling",)}
    for name, head in shown.items():
        if name in means:
            rows = zip(*(means[name + part].values for part in ("", "_error", "_spread")), strict=True)
            columns[head] = [f"{text(x, error)} [{spread:.2g}]" for x, error, spread in rows]
    return columns


def averages_table(means: xarray.Dataset, title: str) -> None:
    """Means over twists, a row for each coupling, totals in E0."""
    columns_table(averages_columns(means), f"{title}, totals in E0")


def columns_table(columns: Mapping[str, Sequence[str]], title: str) -> None:
    """Columns of text under their heads, the first to the left; those with nothing in them are left out."""
    shown = {head: cells for head, cells in columns.items() if any(cells)}
    table = Table(title=title, title_justify="left")
    for k, head in enumerate(shown):
        table.add_column(head, justify="right" if k else "left")
    for row in zip(*shown.values(), strict=True):
        table.add_row(*row)
    _print(table)


def reference_table(data: dict[str, Any], n_electrons: int, title: str) -> None:
    """One or several reference states, totals in E0 and the energy per electron."""
    states = data.get("sectors") or data.get("branches") or [data]
    labels = [k for k in ("sector", "dimension", "start", "order_parameter") if k in states[0]]
    table = Table(title=f"{title}, totals in E0", title_justify="left")
    for column in (*labels, "energy", "kinetic", "moire", "interaction", "energy per electron"):
        table.add_column(column, justify="right")
    for s in states:
        cells = [f"{s[k]:.4f}" if isinstance(s[k], float) else str(s[k]) for k in labels]
        terms = [f"{s[k]:.5f}" for k in ("energy", "kinetic", "moire", "interaction")]
        table.add_row(*cells, *terms, f"{s['energy'] / n_electrons:.5f}")
    _print(table)


def branches_table(lam: Iterable[float], branches: Mapping[Any, Sequence[Reference]], n_electrons: int) -> None:
    """Branches of Hartree–Fock along λ: energies per electron and order parameters, a row for each λ."""
    table = Table(title=f"Hartree-Fock, N = {n_electrons}, E0 per electron", title_justify="left")
    table.add_column("λ", justify="right")
    for start in branches:
        for head in ("E", "E_int", "order"):
            table.add_column(f"{head}, {start}", justify="right")
    for k, x in enumerate(lam):
        cells = []
        for states in branches.values():
            s = states[k]
            cells += [f"{s.energy / n_electrons:.5f}", f"{s.interaction / n_electrons:.5f}", f"{s.order_parameter:.3f}"]
        table.add_row(f"{x:g}", *cells)
    _print(table)

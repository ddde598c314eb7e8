"""The report of a run: a self-contained HTML page, its figures as PDF, and their numbers as one netCDF file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from qernel import figures, report_html
from qernel.files import write_atomically
from qernel.hamiltonian import Potential
from qernel.labels import SYMBOLS
from qernel.report_checks import convergence_sentences, exact_difference
from qernel.report_data import RunData, gather
from qernel.report_files import write_data, write_figures
from qernel.report_sections import Drawing, Section, sections
from qernel.report_tables import measured, number

SCREEN = 1.3
"""size of a figure on the page over that in print"""
PAGE, FIGURES, NUMBERS = "report.html", "figures", "report_data.nc"


def write_report(
    run: Path,
    bands: int | None = None,
    references: bool = True,
    potential: Potential | None = None,
    compare: Sequence[Path] = (),
    given: Path | None = None,
) -> Path:
    """Write RUN/report.html, RUN/figures and RUN/report_data.nc about a trained and scanned run; the page's path.

    Args:
        run: the run folder; it must hold a checkpoint and results.nc.
        bands: bands per momentum of the exact diagonalisation (default: as many as are quick).
        references: compare with exact diagonalisation and Hartree–Fock; kept in RUN/references.json.
        potential: of a run with a one-body potential that is not built in.
        compare: other run folders with results.nc to set beside it.
        given: a file with references, of `qernel hf --out` or of another run.

    Raises:
        InputError: one line if something is missing, the exact diagonalisation asked for is impossible, or a run to
            compare with has nothing in common with this one.
    """
    return write(gather(run, bands, references, potential, compare, given))


def write(data: RunData) -> Path:
    """The same of what was gathered."""
    found = sections(data)
    drawings = [d for s in found for d in s.drawings]
    text = page(data, found)
    write_figures(data.folder / FIGURES, drawings)
    write_data(data.folder / NUMBERS, data, drawings)
    file = data.folder / PAGE
    write_atomically(file, lambda p: p.write_text(text, encoding="utf-8"))
    return file


def page(data: RunData, found: Sequence[Section]) -> str:
    """The whole page."""
    body = "\n".join(_html(s) for s in [*found, _files(found)])
    return report_html.document(f"QERNEL report: {data.config.name}", body)


def _html(section: Section) -> str:
    parts = [_figure(p) if isinstance(p, Drawing) else p for p in section.parts]
    head = [f"<h2>{section.title}</h2>"] if section.title else []
    return "\n".join([*head, *parts])


def _figure(d: Drawing) -> str:
    image, width = figures.encoded(d.figure, "svg"), SCREEN * d.figure.get_figwidth()
    return report_html.figure(image, d.alternative, d.caption, width)


def _files(found: Sequence[Section]) -> Section:
    """Where figures and numbers are."""
    groups = [d.name for s in found for d in s.drawings if d.data is not None]
    besides = f", and the groups {', '.join(groups)} for what those figures show besides" if groups else ""
    words = (
        f"Every figure of this page is a PDF in {FIGURES}/, and can be drawn again from {NUMBERS}: the scan with the "
        f"references beside it{besides}."
    )
    return Section("Figures and numbers as files", [report_html.sentences([words])])


def print_summary(data: RunData) -> None:
    """A compact table of the result on stdout: couplings, energy, exact energy, difference, interaction."""
    from rich.console import Console
    from rich.table import Table

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

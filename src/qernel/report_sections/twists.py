"""Means over twists, where the scan is an average over them."""

from __future__ import annotations

from qernel.report_data import RunData
from qernel.report_sections.section import Section
from qernel.report_tables import averages_table


def twists(data: RunData) -> Section | None:
    """Energies averaged over the twists, beside those of exact diagonalisation averaged alike."""
    table = averages_table(data)
    uses = [str(name) for name in data.dataset if str(name).startswith("averaged_")]
    return Section("Means over twists", [table], (*uses, "twist_weight")) if table else None

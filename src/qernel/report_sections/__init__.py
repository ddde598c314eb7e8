"""The sections of the report, in the order of the page. A new one is a function in a file here, and a line below.

A section reads `RunData` and says which variables of the scan it shows; what none of them shows is drawn by `further`.
"""

from __future__ import annotations

from collections.abc import Callable

from qernel.errors import InputError
from qernel.report_data import RunData
from qernel.report_sections.density import density
from qernel.report_sections.energies import energies, slope
from qernel.report_sections.facts import convergence, facts
from qernel.report_sections.fidelity import fidelity
from qernel.report_sections.further import further, missing
from qernel.report_sections.levels import levels
from qernel.report_sections.maps import maps
from qernel.report_sections.occupation import occupation
from qernel.report_sections.others import other_runs
from qernel.report_sections.pairs import pairs
from qernel.report_sections.router import router
from qernel.report_sections.section import Drawing, Section
from qernel.report_sections.structure import structure
from qernel.report_sections.total_momentum import total_momentum
from qernel.report_sections.training import training
from qernel.report_sections.transition import transition, variance
from qernel.report_sections.trials import trials
from qernel.report_sections.twists import twists

BEFORE: tuple[Callable[[RunData], Section | None], ...] = (
    facts,
    convergence,
    energies,
    twists,
    slope,
    transition,
    variance,
    maps,
    density,
    structure,
    pairs,
    total_momentum,
    levels,
    trials,
    occupation,
    fidelity,
    router,
)
AFTER: tuple[Callable[[RunData], Section | None], ...] = (other_runs, missing, training)
"""around the further quantities"""


def sections(data: RunData) -> list[Section]:
    """All sections that this run has something for.

    Raises `InputError` naming the section where the scan's variables are not those that a scan writes.
    """
    shown = [s for make in BEFORE if (s := _made(make, data)) is not None]
    rest = _made(lambda d: further(d, [name for s in shown for name in s.uses]), data, "further")
    last = [s for make in AFTER if (s := _made(make, data)) is not None]
    return [*shown, *([rest] if rest is not None else []), *last]


def _made(make: Callable[[RunData], Section | None], data: RunData, name: str = "") -> Section | None:
    """A section of a file that may be from anywhere: its variables are known by name, not by axes and coordinates."""
    try:
        return make(data)
    except InputError:
        raise
    except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError) as error:
        why = f"{type(error).__name__}: {error}"
        raise InputError(
            f"{data.folder}: section {name or make.__name__} cannot be made of its files ({why}); "
            f"run `qernel scan {data.folder}` again"
        ) from error


__all__ = ["Drawing", "Section", "sections"]

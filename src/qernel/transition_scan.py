"""The transition of a scan: every quantity of results.nc examined, one statement, a table, JSON, a figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from qernel import figures, level_crossing
from qernel.branches import Fit, Kind
from qernel.cell import FloatArray
from qernel.errors import InputError, nearest, require
from qernel.scan_files import check_curves, check_numbers, read_dataset
from qernel.stats import format_uncertainty
from qernel.transition import MIN_POINTS, Finding, Number, Range, examine
from qernel.twist_average import averages

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

QUANTITIES: dict[str, tuple[str, tuple[Kind, ...]]] = {
    "interaction": ("E_int", ("jump", "kink")),
    "dE_dlam": ("dE/dλ", ("jump", "kink")),
    "order_parameter": ("order parameter", ("jump", "kink")),
    "susceptibility": ("fidelity susceptibility", ("peak",)),
}
"""variable of results.nc: symbol, and what a transition does to it"""
UNITS = {"interaction": "E0", "dE_dlam": "E0", "order_parameter": "1", "susceptibility": "1"}


@dataclass(frozen=True)
class Statement:
    """What all quantities say together."""

    verdict: Literal["sharp", "none", "undecided", "disagreement"]
    text: str
    lam_c: float | None = None
    interval_68: Range | None = None
    interval_95: Range | None = None


@dataclass(frozen=True, eq=False)
class Analysis:
    """Findings in the order of `QUANTITIES`, names that the file does not have, and the statement."""

    findings: list[Finding]
    missing: list[str]
    statement: Statement
    crossing: level_crossing.Crossing | str
    """of the energies of two sets of total momenta, or why there is none to be seen"""


def read_scan(run: Path) -> xarray.Dataset:
    """The dataset of a run folder's results.nc, or of that file itself; of a twist average the means.

    Raises:
        InputError: one line if it is missing, unreadable or not a scan over λ alone.
    """
    file = run / "results.nc" if run.is_dir() else run
    require(file.is_file(), "run", run, "a run folder with results.nc (`qernel scan` writes it), or that file")
    dataset = read_dataset(file)
    try:
        dataset = _means(dataset)
    except ValueError as error:  # of xarray, for a dimension of means without means
        raise InputError(f"{file}: means over twists: {error}") from None
    require("lam" in dataset.coords and dataset["lam"].dims == ("coupling",), "run", run, "a scan over λ")
    check_curves(dataset, file, ["lam", *(n for n in QUANTITIES if n in dataset and f"{n}_error" in dataset)])
    check_numbers(dataset, file)
    others = _others(dataset)
    allowed = "λ alone: one curve at a time; hold the others in the scan, as in --epsilon 5 5 1"
    require(not others, "couplings", ", ".join(["lam", *others]), allowed)
    return dataset


def _means(dataset: xarray.Dataset) -> xarray.Dataset:
    """The means over twists where the scan has them, as a scan; otherwise the scan."""
    found = averages(dataset)
    return dataset if found is None else found


def _others(dataset: xarray.Dataset) -> list[str]:
    """Couplings that vary beside λ."""
    return [str(n) for n, c in dataset.coords.items() if c.dims == ("coupling",) and n != "lam" and np.ptp(c.values)]


def analyse(dataset: xarray.Dataset, quantities: Sequence[str] = (), samples: int = 999, seed: int = 1) -> Analysis:
    """Examine the quantities of a scan against λ.

    Args:
        dataset: with the coordinate lam [coupling] and variables NAME and NAME_error [coupling].
        quantities: names from `QUANTITIES`; by default all that the dataset has.
        samples: of each bootstrap.
        seed: of the bootstraps.

    Raises:
        InputError: for an unknown name, one asked for that the scan lacks, or bad numbers (see `examine`).
    """
    for name in quantities:
        if name not in QUANTITIES:
            raise InputError(f"quantity = {name}: unknown; {nearest(name, list(QUANTITIES))}")
    present = [n for n in QUANTITIES if all(_is_curve(dataset, x) for x in (n, f"{n}_error"))]
    for name in quantities:
        require(name in present, "quantity", name, f"in this scan, with its error: {', '.join(present) or 'none is'}")
    lam = np.asarray(dataset["lam"].values, float)
    findings = [
        examine(
            name,
            lam,
            np.asarray(dataset[name].values, float),
            np.asarray(dataset[f"{name}_error"].values, float),
            QUANTITIES[name][1],
            samples,
            seed,
        )
        for name in present
        if not quantities or name in quantities
    ]
    require(bool(findings), "quantities of the scan", "none", f"at least one of {', '.join(QUANTITIES)}")
    missing = [] if quantities else [n for n in QUANTITIES if n not in present]
    crossing = level_crossing.find(dataset, samples, seed)
    return Analysis(findings, missing, combine(findings), crossing)


def _is_curve(dataset: xarray.Dataset, name: str) -> bool:
    return name in dataset and dataset[name].dims == ("coupling",)


def combine(findings: Sequence[Finding]) -> Statement:
    """One statement, if the quantities that are decided agree on whether there is a transition and on where.

    They agree on λ_c if their 95 % intervals have a point in common. The statement is then that of the quantity with
    the shortest interval: all come from the same walkers, so their likelihoods must not be multiplied.
    """
    found = [f for f in findings if f.place is not None]
    absent = [f for f in findings if f.verdict == "none"]
    open_ones = [f for f in findings if f.verdict == "undecided"]
    rest = "".join(f"; {symbol(f)} is undecided" for f in open_ones)
    if found and absent:
        said = "; ".join(f"{symbol(f)}: {f.reason}" for f in (*found, *absent))
        return Statement("disagreement", f"the quantities disagree: {said}{rest}")
    if found:
        return _common_place(found, rest)
    if absent:
        low, high = (f([r.searched[k] for r in absent if r.searched]) for k, f in ((0, max), (1, min)))
        return Statement("none", f"no sharp transition between λ = {low:.4g} and {high:.4g} in {_listed(absent)}{rest}")
    return Statement("undecided", "undecided: " + "; ".join(f"{symbol(f)}: {f.reason}" for f in open_ones))


def _common_place(found: Sequence[Finding], rest: str) -> Statement:
    places = [f.place for f in found if f.place is not None]
    low, high = max(p.interval_95[0] for p in places), min(p.interval_95[1] for p in places)
    kinds = ", ".join(f"{symbol(f)}: {f.verdict}" for f in found)
    if low > high:
        where = "; ".join(f"{symbol(f)}: {_span(p.interval_95)}" for f, p in zip(found, places, strict=True))
        return Statement("disagreement", f"the quantities disagree about λ_c (95 %): {where}{rest}")
    best = min(places, key=lambda p: (p.interval_95[1] - p.interval_95[0], p.interval_68[1] - p.interval_68[0]))
    rounded = max(p.width for p in places)
    blur = f", rounded over Δλ = {rounded:.2g}" if rounded else ""
    text = (
        f"sharp transition at λ_c = {best.lam_c:.4g} (68 %: {_span(best.interval_68)}, "
        f"95 %: {_span(best.interval_95)}){blur}; {kinds}{rest}"
    )
    return Statement("sharp", text, best.lam_c, best.interval_68, best.interval_95)


def symbol(finding: Finding) -> str:
    """Symbol of a quantity for people."""
    return QUANTITIES[finding.quantity][0]


def _listed(findings: Sequence[Finding]) -> str:
    return ", ".join(symbol(f) for f in findings)


def rows(analysis: Analysis) -> dict[str, list[str]]:
    """The table for people, head → cells: one row for each quantity."""
    f = analysis.findings

    def number(x: Number | None) -> str:
        return "" if x is None else format_uncertainty(*x)

    return {
        "quantity": [symbol(x) for x in f],
        "verdict": [x.verdict for x in f],
        "λ_c": ["" if x.place is None else f"{x.place.lam_c:.4g}" for x in f],
        "68 %": ["" if x.place is None else _span(x.place.interval_68) for x in f],
        "95 %": ["" if x.place is None else _span(x.place.interval_95) for x in f],
        "jump or height": [number(x.jump) for x in f],
        "change of slope": [number(x.slope_change) for x in f],
        "p (smooth)": [number(x.p) for x in f],
        "ΔBIC": ["" if x.delta_bic is None else f"{x.delta_bic:+.1f}" for x in f],
        "extra scatter": [f"{x.scatter:.2g}" for x in f],
    }


def _span(x: Range) -> str:
    return f"{x[0]:.4g} to {x[1]:.4g}"


def lines(analysis: Analysis) -> list[str]:
    """Under the table: why a quantity shows no transition, what the scan lacks, and last the verdict."""
    said = [f"{symbol(f)}: {f.reason}" for f in analysis.findings if f.place is None]
    if analysis.missing:
        said.append(f"not in this scan, left out: {', '.join(analysis.missing)}")
    return [*said, f"levels: {level_crossing.words(analysis.crossing)}", f"verdict: {analysis.statement.text}"]


def to_json(analysis: Analysis) -> dict[str, Any]:
    """Plain values for `--json`; numbers with errors as [value, error], null where there is none."""
    s = analysis.statement
    return {
        "verdict": s.verdict,
        "text": s.text,
        "lam_c": s.lam_c,
        "interval_68": s.interval_68,
        "interval_95": s.interval_95,
        "missing": analysis.missing,
        "level_crossing": analysis.crossing if isinstance(analysis.crossing, str) else asdict(analysis.crossing),
        "quantities": {f.quantity: _finding_json(f) for f in analysis.findings},
    }


def _finding_json(f: Finding) -> dict[str, Any]:
    place = f.place
    return {
        "verdict": f.verdict,
        "reason": f.reason,
        "unit": UNITS[f.quantity],
        "couplings": len(f.lam),
        "lam_c": place and place.lam_c,
        "interval_68": place and place.interval_68,
        "interval_95": place and place.interval_95,
        "width": place and place.width,
        "jump": f.jump,
        "slope_change": f.slope_change,
        "p": f.p,
        "delta_bic": f.delta_bic,
        "extra_scatter": f.scatter,
        "searched": f.searched,
        "smooth": _fit_json(f.smooth),
        "narrow": _fit_json(f.narrow),
    }


def _fit_json(fit: Fit | None) -> dict[str, Any] | None:
    if fit is None:
        return None
    c = fit.curve
    return {"kind": c.kind, "degree": c.degree, "centre": c.centre, "width": c.width, "chi2": fit.chi2}


@figures.style()
def draw(analysis: Analysis) -> Figure:
    """Each quantity with the best smooth curve, the best narrow one and the 95 % interval of λ_c."""
    count = len(analysis.findings)
    columns, lines = min(count, 2), (count + 1) // 2
    f, axes = figures.figure(figures.PAGE if columns == 2 else figures.COLUMN, 2.5 * lines, lines, columns)
    for ax, x in zip(axes.ravel(), analysis.findings, strict=False):
        ax.errorbar(x.lam, x.value, x.error, fmt="o", ms=3, color=figures.MODEL, lw=1.2, zorder=3, label="scan")
        fine, smooth, narrow = fitted(x)
        if x.smooth is not None:
            ax.plot(fine, smooth, "--", color=figures.HF, label="smooth")
        if x.narrow is not None:
            text = f"{x.narrow.curve.kind}, p(smooth) = {x.p[0]:.2g}" if x.p else x.narrow.curve.kind
            ax.plot(fine, narrow, color=figures.EXACT, label=text)
        if x.place is not None:
            ax.axvspan(*x.place.interval_95, color=figures.GREY, alpha=0.3, lw=0, label="λ_c (95 %)")
        unit = " (E₀)" if UNITS[x.quantity] == "E0" else ""
        ax.set(xlabel="moiré depth λ", ylabel=f"{symbol(x)}{unit}", title=x.verdict)
        ax.legend(fontsize=8)
    for ax in axes.ravel()[count:]:
        ax.set_axis_off()
    return f


def fitted(x: Finding, points: int = 400) -> tuple[FloatArray, FloatArray, FloatArray]:
    """The curves as drawn: λ, best smooth and best narrow one [points] each, NaN where there is none or it jumps."""
    fine = np.linspace(x.lam[0], x.lam[-1], points)
    none = np.full(points, np.nan)
    smooth = none if x.smooth is None else x.smooth(fine)
    narrow = none if x.narrow is None else x.narrow(fine)
    if x.narrow is not None and x.narrow.curve.kind == "jump":
        narrow = np.where(np.abs(fine - x.narrow.curve.centre) > np.ptp(fine) / (2 * points), narrow, np.nan)
    return fine, smooth, narrow


def of_scan(dataset: xarray.Dataset) -> Analysis | str | None:
    """The analysis of a scan; in words why it has no answer; None if it has too few couplings or varies more than λ.

    Of a twist average the means are examined.
    """
    dataset = _means(dataset)
    if dataset.sizes["coupling"] < MIN_POINTS or _others(dataset):
        return None
    try:
        return analyse(dataset)
    except InputError as error:
        return str(error)

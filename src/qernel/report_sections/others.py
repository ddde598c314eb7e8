"""Other runs beside this one: differences at common couplings, and other system sizes per electron."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from qernel import figures, report_html
from qernel.cell import FloatArray
from qernel.figures import EXACT, PAGE, curve, series
from qernel.labels import SYMBOLS
from qernel.report_data import RunData
from qernel.report_others import Other
from qernel.report_sections.section import BARS, Drawing, Section, coupling_axis, text
from qernel.tables import text as with_error

if TYPE_CHECKING:
    import xarray
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COMPARED = {"energy": "E", "interaction": "E_int", "order_parameter": "order parameter"}
"""variables whose differences are shown, where both runs have them"""
UNITS = {"energy": "E0", "interaction": "E0", "order_parameter": "1"}


def other_runs(data: RunData) -> Section | None:
    """Tables and figures of the runs given to `--compare`."""
    if not data.others:
        return None
    same = [o for o in data.others if not o.other_size]
    sizes = [o for o in data.others if o.other_size]
    parts: list[str | Drawing] = [text(*(_sentence(data, o) for o in data.others))]
    if same:
        caption = (
            "Energy and interaction energy per electron of each other run, and its order parameter where measured, "
            "minus that of this one at the same coupling. Error bars are one standard error, both runs' in quadrature."
        )
        picture = _draw_differences(data, same)
        drawing = Drawing("other_runs", picture, "Differences of other runs", caption, _differences_dataset(data, same))
        parts += [_table(data, same), drawing]
    if sizes:
        caption = f"Per electron, at other system sizes. {BARS}"
        picture = _draw_sizes(data, sizes)
        parts.append(Drawing("second_size", picture, "Other system sizes", caption, _sizes_dataset(data, sizes)))
    return Section("Other runs beside it", parts)


def _sentence(data: RunData, o: Other) -> str:
    words = ", ".join(o.differs) or "the same configuration"
    if o.other_size:
        return f"{o.name}: N = {o.n} on {o.config.family.cell.n_cells} moiré cells; {words}."
    common = f"{len(o.pairs)} common coupling{'s' if len(o.pairs) != 1 else ''}"
    return f"{o.name}: {words}; {common}."


def difference(data: RunData, o: Other, name: str) -> tuple[FloatArray, FloatArray]:
    """Total of the other run minus that of this one at their common couplings, and its standard error, [common].

    The runs have chains of their own, so the errors add in quadrature.
    """
    here, there = o.pairs.T
    error = np.hypot(data.errors(name)[here], o.values(f"{name}_error")[there])
    return o.values(name)[there] - data.values(name)[here], error


def shared(data: RunData, others: list[Other]) -> list[str]:
    """Variables of `COMPARED` that this run and at least one other have."""
    return [n for n in COMPARED if data.has(n, f"{n}_error") and any(_has(o, n) for o in others)]


def _has(o: Other, name: str) -> bool:
    return name in o.dataset and f"{name}_error" in o.dataset


def _table(data: RunData, others: list[Other]) -> str:
    """A row for each run and common coupling."""
    names = data.config.family.names
    columns: dict[str, list[str]] = {"run": [], **{SYMBOLS[n]: [] for n in names}}
    heads = ("E_other − E (E₀)", "in σ", "E_int,other − E_int (E₀)", "variance, other (E₀²)", "variance, this (E₀²)")
    columns |= {head: [] for head in heads}
    for o in others:
        energy, error = difference(data, o, "energy")
        interaction, interaction_error = difference(data, o, "interaction")
        for j, (here, there) in enumerate(o.pairs):
            columns["run"].append(o.name)
            for n in names:
                columns[SYMBOLS[n]].append(f"{data.values(n)[here]:.6g}")
            z = energy[j] / error[j] if error[j] > 0 else np.nan
            cells = (
                with_error(float(energy[j]), float(error[j])),
                "" if np.isnan(z) else f"{z:+.1f}",
                with_error(float(interaction[j]), float(interaction_error[j])),
                f"{o.values('variance')[there]:.4g}",
                f"{data.values('variance')[here]:.4g}",
            )
            for head, cell in zip(heads, cells, strict=True):
                columns[head].append(cell)
    return report_html.table(columns)


def _panels(count: int) -> tuple[Figure, Any]:
    """A row of panels with room for the legend below."""
    return figures.figure(PAGE, 3.0, 1, count)


@figures.style()
def _draw_differences(data: RunData, others: list[Other]) -> Figure:
    names = shared(data, others)
    f, axes = _panels(len(names))
    for ax, name in zip(axes[0], names, strict=True):
        ax.axhline(0, color=EXACT, lw=1)
        for k, o in enumerate(others):
            if _has(o, name):
                value, error = difference(data, o, name)
                _grouped(ax, data, o, value / _per(data.n, name), error / _per(data.n, name), k)
        symbol = COMPARED[name]
        per = " per electron (E₀)" if UNITS[name] == "E0" else ""
        ax.set_ylabel(f"{symbol}: other − this{per}")
        coupling_axis(ax, data)
        ax.set_xlabel(SYMBOLS[data.axis] if len(names) > 2 else ax.get_xlabel())
    _legend_below(f, axes[0, 0])
    return f


def _grouped(ax: Axes, data: RunData, o: Other, value: FloatArray, error: FloatArray, k: int) -> None:
    """One curve for each group of couplings of this run that the other one shares; one colour and marker per run."""
    place = {int(here): j for j, here in enumerate(o.pairs[:, 0])}
    named = False
    for _, index in data.groups:
        mine = [place[int(c)] for c in index if int(c) in place]
        if mine:
            x = data.x[o.pairs[mine, 0]]
            curve(ax, x, value[mine], error[mine], series(k + 1), None if named else o.label)
            named = True


def _per(n: int, name: str) -> int:
    return n if UNITS[name] == "E0" else 1


@figures.style()
def _draw_sizes(data: RunData, others: list[Other]) -> Figure:
    names = shared(data, others)
    f, axes = _panels(len(names))
    for ax, name in zip(axes[0], names, strict=True):
        for j, (label, index) in enumerate(data.groups):
            value, error = data.values(name) / _per(data.n, name), data.errors(name) / _per(data.n, name)
            words = f"this run, N = {data.n} {label}".strip()
            curve(ax, data.x[index], value[index], error[index], {**series(0), "ls": "-"}, words if j == 0 else None)
        for k, o in enumerate(others):
            if _has(o, name):
                lam = o.values("lam")
                order = np.argsort(lam, kind="stable")
                value, error = o.values(name) / _per(o.n, name), o.values(f"{name}_error") / _per(o.n, name)
                curve(ax, lam[order], value[order], error[order], series(k + 1), f"{o.name}, N = {o.n}")
        unit = " per electron (E₀)" if UNITS[name] == "E0" else ""
        ax.set(xlabel=SYMBOLS["lam"], ylabel=f"{COMPARED[name]}{unit}")
    _legend_below(f, axes[0, 0])
    return f


def _legend_below(f: Figure, ax: Axes) -> None:
    f.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)


def _differences_dataset(data: RunData, others: list[Other]) -> xarray.Dataset:
    """One row for each run and common coupling, differences of totals."""
    import xarray

    rows = "common"
    here = np.concatenate([o.pairs[:, 0] for o in others])
    found: dict[str, Any] = {}
    for name in shared(data, others):
        parts = [
            difference(data, o, name) if _has(o, name) else tuple(np.full((2, len(o.pairs)), np.nan)) for o in others
        ]
        words = f"{name.replace('_', ' ')} of the other run minus that of this one, total"
        found[f"{name}_difference"] = (rows, np.concatenate([p[0] for p in parts]), _attrs(name, words))
        errors = np.concatenate([p[1] for p in parts])
        found[f"{name}_difference_error"] = (rows, errors, _attrs(name, f"standard error, {words}"))
    variance = np.concatenate([o.values("variance")[o.pairs[:, 1]] for o in others])
    found["variance_other"] = (rows, variance, {"units": "E0^2"})
    found["variance"] = (rows, data.values("variance")[here], {"units": "E0^2"})
    axes: dict[str, Any] = {f"common_{n}": (rows, data.values(n)[here]) for n in data.config.family.names}
    axes["common_run"] = (rows, [o.label for o in others for _ in o.pairs])
    return xarray.Dataset(found, axes)


def _sizes_dataset(data: RunData, others: list[Other]) -> xarray.Dataset:
    """One row for each run of another size and its coupling, this run first."""
    import xarray

    runs: list[Any] = [data, *others]
    rows = "point"
    found: dict[str, Any] = {}
    for name in shared(data, others):
        for suffix in ("", "_error"):
            parts = [
                r.values(name + suffix) / _per(r.n, name) if name + suffix in r.dataset else np.full(_count(r), np.nan)
                for r in runs
            ]
            words = f"{'standard error of ' if suffix else ''}{name.replace('_', ' ')}"
            words += " per electron" if UNITS[name] == "E0" else ""
            found[f"{name}{suffix}"] = (rows, np.concatenate(parts), _attrs(name, words))
    axes: dict[str, Any] = {"point_lam": (rows, np.concatenate([r.values("lam") for r in runs]))}
    axes["point_electrons"] = (rows, np.repeat([r.n for r in runs], [_count(r) for r in runs]))
    axes["point_run"] = (rows, np.repeat(["this run", *(o.label for o in others)], [_count(r) for r in runs]).tolist())
    return xarray.Dataset(found, axes)


def _count(run: Any) -> int:
    return int(run.dataset.sizes["coupling"])


def _attrs(name: str, words: str) -> dict[str, str]:
    return {"units": UNITS[name], "long_name": words}

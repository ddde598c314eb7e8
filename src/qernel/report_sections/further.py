"""Whatever else a scan holds: a figure for every quantity that no other section shows, and what it does not hold."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from qernel import figures
from qernel.figures import COLUMN, curve, in_order, legend, series
from qernel.observables import known
from qernel.report_data import RunData
from qernel.report_sections.section import BARS, Drawing, Section, coupling_axis, small, text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_CURVES = 8
"""one for each label of an axis; a longer axis is drawn along itself, at some couplings"""


def further(data: RunData, used: Sequence[str]) -> Section | None:
    """Every variable [couplings] or [couplings, axis] with an error that is not among those `used` already."""
    found = [
        name
        for name in map(str, data.dataset.data_vars)
        if name not in used and f"{name}_error" in data.dataset and _drawable(data, name)
    ]
    if not found:
        return None
    return Section("Further quantities", [_drawing(data, name) for name in found], tuple(found))


def _drawable(data: RunData, name: str) -> bool:
    variable = data.dataset[name]
    return variable.dims[:1] == ("coupling",) and variable.ndim <= 2 and np.issubdtype(variable.dtype, np.floating)


def _drawing(data: RunData, name: str) -> Drawing:
    variable = data.dataset[name]
    words = str(variable.attrs.get("long_name", name.replace("_", " ")))
    caption = f"{words[:1].upper()}{words[1:]}. {BARS}"
    if variable.ndim == 1:
        with figures.style():
            f = small(data, "", data.values(name), data.errors(name), label(data, name))
    else:
        f = by_axis(data, name)
    return Drawing(name, f, f"{name.replace('_', ' ')} against the coupling", caption)


def label(data: RunData, name: str) -> str:
    """Its name with the unit."""
    unit = str(data.dataset[name].attrs.get("units", "1"))
    return name.replace("_", " ") + ("" if unit == "1" else f" ({unit.replace('E0', 'E₀')})")


@figures.style()
def by_axis(data: RunData, name: str) -> Figure:
    """Curves against the coupling, one for each label of the second axis; or along that axis if it is long."""
    value, error = data.values(name), data.errors(name)
    axis = str(data.dataset[name].dims[1])
    marks = data.dataset[axis].values if axis in data.dataset.coords else np.arange(value.shape[1])
    f, axes = figures.figure(COLUMN, 2.8)
    ax = axes[0, 0]
    if len(marks) > MOST_CURVES:
        chosen = data.chosen()
        numbers = np.issubdtype(np.asarray(marks).dtype, np.number)
        x = np.asarray(marks, float) if numbers else np.arange(len(marks))
        for look, c in zip(in_order(len(chosen)), chosen, strict=True):
            curve(ax, x, value[c], error[c], look, data.labels[c])
        ax.set_xlabel(axis.replace("_", " "))
    else:
        groups = data.groups
        for k, mark in enumerate(marks):
            for j, (group, index) in enumerate(groups):
                words = ", ".join(w for w in (str(mark), group) if w)
                curve(ax, data.x[index], value[index, k], error[index, k], series(k * len(groups) + j), words)
        coupling_axis(ax, data)
    ax.set_ylabel(label(data, name))
    legend(ax)
    return f


def missing(data: RunData) -> Section | None:
    """One sentence with the names after `--observables` of what this scan lacks, and why the rest does not exist."""
    reasons: dict[str, str] = json.loads(data.dataset.attrs.get("not_measured", "{}"))
    variables = [str(n) for n in data.dataset.data_vars]
    lacking = []
    for name, observable in known(data.config.family).items():
        if name in reasons or any(v.startswith(name) for v in variables):
            continue
        couplings = np.stack([data.values(n) for n in data.config.family.names], axis=1)
        reason = observable.missing(data.start, couplings)
        if reason is None:
            lacking.append(name)
        else:
            reasons[name] = reason
    words = []
    if lacking:
        words.append(
            f"The scan lacks {', '.join(lacking)}: `qernel scan RUN --observables all` measures everything, names in "
            "place of `all` those alone."
        )
    if reasons:
        absent = "; ".join(f"{name.replace('_', ' ')} ({reason})" for name, reason in reasons.items())
        words.append(f"Not defined for this run: {absent}.")
    return Section("Not in this scan", [text(*words)]) if words else None

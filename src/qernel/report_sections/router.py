"""Which experts the router opens, and whether that depends on the coupling."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qernel import figures
from qernel.cell import FloatArray
from qernel.figures import MAP, PAGE, curve, legend, series
from qernel.labels import SYMBOLS
from qernel.report_data import RunData
from qernel.report_sections.section import BARS, Drawing, Section, coupling_axis, only_some

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def router(data: RunData) -> Section | None:
    """Load per expert and coupling, share of electrons for which it is open, and entropies by layer."""
    if not data.has("router_load"):
        return None
    uses = ("router_load", "router_open", "router_entropy", "router_entropy_electron")
    parts: list[str | Drawing] = []
    for name, words in (("router_load", "share in the gates"), ("router_open", "share of electrons")):
        if data.has(name):
            error = float(np.nanmax(data.errors(name)))
            what = "of the gates of its layer" if name == "router_load" else "of the electrons that it is open for"
            caption = f"Share {what}, for every expert and coupling. Largest standard error: {error:.2g}."
            parts.append(Drawing(name, load_map(data, name, words), f"Experts by coupling: {words}", caption))
    if data.has("router_entropy", "router_entropy_electron"):
        caption = (
            "Entropy of the load of a layer (full), log E (dotted) where all experts are used alike; and that of the "
            "gates of one electron, mean over electrons (open marks): the difference is what the electrons know of "
            f"each other's experts.{only_some(data)} {BARS}"
        )
        parts.append(Drawing("router_entropy", _entropy(data), "Entropy of the experts", caption))
    return Section("Router", parts, uses)


@figures.style()
def load_map(data: RunData, name: str, label: str) -> Figure:
    """A map expert × coupling for each layer, one field for each coupling in the order of the curves."""
    values: FloatArray = data.values(name)
    order = np.concatenate([index for _, index in data.groups])
    layers, experts = values.shape[1:]
    columns = min(4, layers)
    rows = -(-layers // columns)
    f, axes = figures.figure(
        PAGE, 0.6 + rows * (0.6 + 0.13 * min(experts, 16)), rows, columns, sharex=True, sharey=True
    )
    for layer, ax in enumerate(axes.ravel()[:layers]):
        image = ax.pcolormesh(values[order, layer].T, cmap=MAP, vmin=0, vmax=float(np.nanmax(values)))
        ax.grid(False)
        ax.set_xticks(*_fields(data, max(2, 5 // columns)), fontsize=8)
        ax.set(title=f"layer {layer}", yticks=np.arange(0, experts, max(1, experts // 4)) + 0.5)
        ax.set_yticklabels([str(e) for e in range(0, experts, max(1, experts // 4))])
        for edge in np.cumsum([len(index) for _, index in data.groups])[:-1]:
            ax.axvline(edge, color="white", lw=1.2)
    for ax in axes[:, 0]:
        ax.set_ylabel("expert")
    for ax in axes[-1]:
        ax.set_xlabel(SYMBOLS[data.axis] if len(data.groups) == 1 else f"{SYMBOLS[data.axis]} grows in each field")
    for ax in axes.ravel()[layers:]:
        ax.set_axis_off()
    f.colorbar(image, ax=list(axes.ravel()), label=label)
    return f


def _fields(data: RunData, most: int) -> tuple[list[float], list[str]]:
    """Places and names along the couplings: some values, or middle and label of at most so many of several curves."""
    groups = data.groups
    if len(groups) > 1:
        edges = np.cumsum([0, *(len(index) for _, index in groups)])
        named = np.unique(np.rint(np.linspace(0, len(groups) - 1, most)).astype(int))
        return [float(edges[k] + edges[k + 1]) / 2 for k in named], [groups[k][0] for k in named]
    order = groups[0][1]
    ticks = np.unique(np.linspace(0, len(order) - 1, min(len(order), 4)).round().astype(int))
    return [float(t) + 0.5 for t in ticks], [f"{data.x[order[t]]:.4g}" for t in ticks]


@figures.style()
def _entropy(data: RunData) -> Figure:
    load, electron = data.values("router_entropy"), data.values("router_entropy_electron")
    load_error, electron_error = data.errors("router_entropy"), data.errors("router_entropy_electron")
    groups = data.some_groups()
    f, axes = figures.figure(PAGE, 2.6 * len(groups), len(groups), 1, sharex=True)
    for ax, (title, index) in zip(axes[:, 0], groups, strict=True):
        for layer in range(load.shape[1]):
            look, x = series(layer), data.x[index]
            curve(ax, x, load[index, layer], load_error[index, layer], {**look, "ls": "-"}, f"layer {layer}")
            hollow = {**look, "mfc": "white", "ls": "--"}
            curve(ax, x, electron[index, layer], electron_error[index, layer], hollow, f"layer {layer}, one electron")
        experts = data.dataset["router_load"].shape[-1]
        ax.axhline(np.log(experts), color="#666666", lw=0.8, ls=":", label="log E")
        ax.set(ylabel="entropy (nat)", title=title, ylim=(0, None))
    coupling_axis(axes[-1, 0], data)
    legend(axes[0, 0], most=0, loc="center left", bbox_to_anchor=(1.0, 0.5), ncols=1)
    return f

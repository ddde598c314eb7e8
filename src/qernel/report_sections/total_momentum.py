"""The total momentum of the many-body state: which sector of exact diagonalisation it belongs to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from qernel import figures
from qernel.cell import Cell, FloatArray, IntArray
from qernel.figures import PAGE, curve, series
from qernel.hamiltonian import MoirePotential
from qernel.labels import TWISTS
from qernel.report_data import RunData
from qernel.report_sections.section import BARS, Drawing, Section, coupling_axis, only_some, shade_transition

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

MOST = 9
"""curves; the rest is summed up"""


@dataclass(frozen=True, eq=False)
class Shares:
    """Probabilities of sets of total momenta, each set a curve."""

    labels: list[str]
    """[sets]"""
    p: FloatArray
    """[couplings, sets]"""
    error: FloatArray
    """standard errors of single momenta; of sums an upper bound, the sum of the errors, [couplings, sets]"""
    exact: list[int | None]
    """set of the exact ground state at each coupling, if that is known"""
    member: IntArray
    """set of each total momentum, [momenta]"""


def total_momentum(data: RunData) -> Section | None:
    """Probability of every total momentum against the coupling, and of all those that symmetry makes equivalent."""
    if not data.has("momentum_probability"):
        return None
    single = sectors(data)
    caption = (
        "Probability of each total momentum, (i,j)/d meaning (i b₁ + j b₂)/d as in `qernel exact`. A state of one "
        "momentum has a single 1, a superposition of degenerate ones several shares; where states of different "
        f"momentum cross, the momentum changes.{only_some(data)} {BARS}"
    )
    exact = " Crosses: the momentum of the exact ground state, at the probability it has here."
    bound = " Bars of sums are upper bounds, the sum of the single ones."
    drawings = []
    stars = symmetric(data)
    if stars is not None:
        words = (
            "The same summed over momenta that rotations, reflections and time reversal make equivalent: their states "
            f"are degenerate.{bound}"
        )
        words += exact if any(e is not None for e in stars.exact) else ""
        drawings.append(_drawing(data, "total_momentum_stars", stars, words))
        single = replace(single, exact=[None] * len(single.exact))  # one of several, by chance
    caption += exact if any(e is not None for e in single.exact) else ""
    caption += bound if len(single.labels) > MOST else ""
    parts = [_drawing(data, "total_momentum", single, caption), *drawings]
    return Section("Total momentum", parts, ("momentum_probability",))


def sectors(data: RunData) -> Shares:
    """Every total momentum by itself."""
    labels = [str(x) for x in data.dataset["sector"].values]
    states = [None if s is None else s.state for s in data.references.exact]
    exact = [labels.index(s) if s in labels else None for s in states]
    p, error = data.values("momentum_probability"), data.errors("momentum_probability")
    return Shares(labels, p, error, exact, np.arange(len(labels)))


def symmetric(data: RunData) -> Shares | None:
    """Summed over `stars`; None without that symmetry: with a twist, a potential of one's own, or a cell without it."""
    family = data.config.family
    twisted = any(family.twist) or any(np.any(data.values(n)) for n in TWISTS if n in family.names)
    sets = stars(family.cell)
    if twisted or not isinstance(family.potential, MoirePotential) or len(sets) == family.cell.n_cells:
        return None
    every = sectors(data)
    member = {k: s for s, ks in enumerate(sets) for k in ks}
    return Shares(
        [every.labels[ks[0]] + (f" and {len(ks) - 1} more" if len(ks) > 1 else "") for ks in sets],
        np.stack([every.p[:, ks].sum(1) for ks in sets], 1),
        np.stack([every.error[:, ks].sum(1) for ks in sets], 1),
        [None if e is None else member[e] for e in every.exact],
        np.array([member[k] for k in range(len(every.labels))]),
    )


def stars(cell: Cell) -> list[IntArray]:
    """Sets of equivalent total momenta, as indices into `Cell.momenta`, in its order.

    Equivalent under rotations by 60° or 90° (those by 120° and time reversal on the triangular lattice) and reflections
    of the moiré lattice, if they leave the supercell unchanged; θ = 0.
    """
    angle = np.pi / 3 if cell.lattice == "triangular" else np.pi / 2
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    allowed = [r for r in (turn, turn @ turn, -np.eye(2), np.diag([-1.0, 1.0])) if _maps_onto_itself(cell.vectors, r)]
    momenta, b = cell.momenta, cell.moire_reciprocal
    left, found = list(range(len(momenta))), []
    while left:
        star = [left[0]]
        for k in star:  # grows while it is gone through
            for r in allowed:
                fraction = (momenta - momenta[k] @ r.T) @ np.linalg.inv(b)
                (image,) = np.flatnonzero(np.abs(fraction - np.rint(fraction)).max(1) < 1e-6)
                if int(image) not in star:
                    star.append(int(image))
        left = [k for k in left if k not in star]
        found.append(np.sort(star))
    return found


def _maps_onto_itself(vectors: FloatArray, operation: FloatArray) -> bool:
    n = vectors @ operation.T @ np.linalg.inv(vectors)
    return bool(np.abs(n - np.rint(n)).max() < 1e-6)


def _drawing(data: RunData, name: str, shares: Shares, caption: str) -> Drawing:
    shown, others, error = likeliest(shares.p, shares.error)
    f = _draw(data, shares, shown, others, error)
    numbers = None
    if others is not None or name != "total_momentum":
        numbers = _dataset(shares, shown, others, error)
    return Drawing(name, f, "Probabilities of total momenta against the coupling", caption, numbers)


def likeliest(p: FloatArray, error: FloatArray) -> tuple[list[int], FloatArray | None, FloatArray]:
    """Sets to draw, and probability and error bar of all others, [couplings]; None if there are no others.

    Probabilities add up to one, so that of all others is what the drawn ones leave; its error is at most their sum.
    """
    order = np.argsort(-p.max(0), kind="stable")
    if len(order) <= MOST:
        return list(range(len(order))), None, np.zeros(len(p))
    shown = np.sort(order[:MOST])
    return [int(s) for s in shown], 1 - p[:, shown].sum(1), error[:, shown].sum(1)


def _dataset(shares: Shares, shown: list[int], others: FloatArray | None, error: FloatArray) -> xarray.Dataset:
    """The curves as drawn, [coupling, momenta]."""
    import xarray

    p, bars, labels = shares.p[:, shown], shares.error[:, shown], [shares.labels[s] for s in shown]
    if others is not None:
        p, bars, labels = np.c_[p, others], np.c_[bars, error], [*labels, "all others"]
    words = "probability of these total momenta together"
    return xarray.Dataset(
        {
            "probability": (("coupling", "momenta"), p, {"units": "1", "long_name": words}),
            "probability_error": (("coupling", "momenta"), bars, {"units": "1", "long_name": "error, or its bound"}),
        },
        {"momenta": labels},
    )


@figures.style()
def _draw(data: RunData, shares: Shares, shown: list[int], others: FloatArray | None, error: FloatArray) -> Figure:
    groups = data.some_groups()
    f, axes = figures.figure(PAGE, 2.5 * len(groups) + 0.2, len(groups), 1, sharex=True)
    for ax, (title, index) in zip(axes[:, 0], groups, strict=True):
        x = data.x[index]
        for k, s in enumerate(shown):
            curve(ax, x, shares.p[index, s], shares.error[index, s], series(k), shares.labels[s])
        if others is not None:
            look = {"color": figures.GREY, "marker": ".", "ls": "--"}
            curve(ax, x, others[index], error[index], look, "all others")
        known = [(data.x[c], shares.p[c, e]) for c in index for e in [shares.exact[c]] if e is not None]
        if known:
            xs, ps = zip(*known, strict=True)
            ax.plot(xs, ps, "x", color="black", ms=6, lw=0, zorder=5, label="exact ground state")
        shade_transition(ax, data)
        ax.set(ylabel="probability", title=title, ylim=(-0.02, None))
    coupling_axis(axes[-1, 0], data)
    axes[0, 0].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), title="total momentum", fontsize=8)
    return f

"""An exact state's correlations as a labelled dataset, with the variables, axes and units of a scan (`scan.py`)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from qernel import exact_correlations as correlations
from qernel.cell import FloatArray
from qernel.exact import ExactState
from qernel.hamiltonian import Hamiltonian
from qernel.observables import Quantity
from qernel.observables.density import density_bins
from qernel.observables.momentum_distribution import MomentumDistribution
from qernel.observables.pair_correlation import PairCorrelation, inscribed_radius
from qernel.observables.structure_factor import StructureFactor, crystal_missing
from qernel.result import Settings
from qernel.scan import density_maps
from qernel.symmetry import stars, symmetries

if TYPE_CHECKING:
    import xarray

DEGENERATE = 1e-6
"""sectors whose energies differ by no more, E0, belong to one level"""

NONE = np.zeros(0)
"""the error of an exact number"""

TERMS = {
    "energy": "total energy",
    "kinetic": "kinetic energy",
    "moire": "moiré energy λ⟨W⟩",
    "interaction": "interaction energy, Madelung term inside",
}


def quantities(state: ExactState, h: Hamiltonian, bins: int = Settings.bins) -> dict[str, Quantity]:
    """What `scan` measures with its standard settings, by the same names and on the same axes, without errors.

    `structure_factor` [k], `order_parameter`, `pair_correlation` [r], `momentum_distribution` [G], `density_matrix_re`
    and `_im` [s1, s2], `density` and `density_symmetrised` [t1, t2], with `_up`, `_up_down` … where there are both
    spins; `bins` of the density along each supercell vector, rounded up to fit the moiré cells. Wavevectors of one star
    (`symmetry.stars`) have the same number in the coordinates `k_star` and `G_star`.
    """
    return {**_structure(state, h), **_pairs(state, h), **_momentum(state, h), **_density(state, h, bins)}


def to_dataset(h: Hamiltonian, states: ExactState | list[ExactState], bins: int = Settings.bins) -> xarray.Dataset:
    """The lowest of `states` as a dataset with one coupling, λ: its energies in E0 and `quantities`.

    Attributes name the sector, the sectors of the same energy among those given, and the size of the basis.
    """
    import xarray

    several = states if isinstance(states, list) else [states]
    state = min(several, key=lambda s: s.energy)
    data = {
        name: xarray.Variable(("coupling",), [getattr(state, name)], {"units": "E0", "long_name": text})
        for name, text in TERMS.items()
    }
    coords: dict[str, Any] = {"lam": ("coupling", [float(h.lam)])}
    for name, q in quantities(state, h, bins).items():
        labels = {"units": q.units, "long_name": q.text}
        data[name] = xarray.Variable(("coupling", *q.dims), np.asarray(q.value)[None], labels)
        coords |= {axis: (dim, np.asarray(values)) for axis, (dim, values) in q.coordinates.items()}
    attributes: dict[str, Any] = {
        "title": "QERNEL exact diagonalisation",
        "n_up": h.n_up,
        "n_down": h.n_down,
        "n_electrons": h.n_electrons,
        "bands": state.bands.n_bands,
        "dimension": state.dimension,
        "sector": state.label,
        "sectors_of_the_level": json.dumps([s.label for s in several if s.energy - state.energy <= DEGENERATE]),
        "energy_unit": "E0 = hbar^2/(m* a_M^2), total over the electrons",
        "length_unit": "a_M",
        "supercell_vectors": h.cell.vectors.ravel(),
        "twist": np.asarray(h.twist, float),
        **{name: float(getattr(h, name)) for name in ("v0", "phi", "u")},
    }
    return xarray.Dataset(data, coords, attributes)


def _structure(state: ExactState, h: Hamiltonian) -> dict[str, Quantity]:
    half = StructureFactor().wavevectors(h.cell)
    k = np.concatenate([half, -half])
    axes = {"k_x": ("k", k[:, 0]), "k_y": ("k", k[:, 1]), "k_star": ("k", stars(k, symmetries(h).structure))}
    text = "structure factor <|rho_k|^2>/N"
    out = {"structure_factor": Quantity(correlations.structure_factor(state, k), NONE, "1", text, ("k",), axes)}
    if crystal_missing(h.cell) is None:
        text = "order parameter of the sqrt(3) x sqrt(3) crystal, mean of <|rho_K|^2>/N^2 over K and K'"
        m = np.asarray(correlations.order_parameter(state))
        out["order_parameter"] = Quantity(m, NONE, "1", text)
    return out


def _pairs(state: ExactState, h: Hamiltonian) -> dict[str, Quantity]:
    if h.n_electrons == 1:
        return {}
    bins = PairCorrelation().bins
    width = inscribed_radius(h.cell) / bins
    axes = {"r": ("r", width * (np.arange(bins) + 0.5))}
    found = correlations.pair_correlation(state, width * np.arange(bins + 1))
    return {
        f"pair_correlation{name}": Quantity(
            g, NONE, "1", f"pair correlation g(r) {name.replace('_', ' ')}".strip(), ("r",), axes
        )
        for name, g in found.items()
    }


def _momentum(state: ExactState, h: Hamiltonian) -> dict[str, Quantity]:
    observable = MomentumDistribution()
    g = observable.wavevectors(h.cell)
    star = stars(g + np.asarray(h.twist, float), symmetries(h).momentum)
    axes: dict[str, Any] = {"G_x": ("G", g[:, 0]), "G_y": ("G", g[:, 1]), "G_star": ("G", star)}
    out = {
        f"momentum_distribution{name}": Quantity(
            n, NONE, "1", f"momentum distribution n(G + theta) {name[1:]}".strip(), ("G",), axes
        )
        for name, n in correlations.occupations(state, g).items()
    }
    gamma = correlations.one_body_density_matrix(state, observable.squares)
    middle = (np.arange(observable.squares) + 0.5) / observable.squares - 0.5
    axes = {"s1": ("s1", middle), "s2": ("s2", middle)}
    parts: dict[str, FloatArray] = {"real": gamma.real, "imag": gamma.imag}
    for part, values in parts.items():
        text = f"one-body density matrix, {part} part, means over squares of s"
        out[f"density_matrix_{part[:2]}"] = Quantity(values, NONE, "1", text, ("s1", "s2"), axes)
    return out


def _density(state: ExactState, h: Hamiltonian, bins: int) -> dict[str, Quantity]:
    bins = density_bins(h.cell, bins)
    rho = correlations.binned_density(state, bins)
    return {name: q._replace(value=q.value[0]) for name, q in density_maps(rho[None], NONE, h.cell).items()}

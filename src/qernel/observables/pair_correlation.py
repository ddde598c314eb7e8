"""The pair correlation function g(r)."""

from __future__ import annotations

from dataclasses import dataclass
from operator import itemgetter

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qernel.cell import Cell, FloatArray
from qernel.family import Family
from qernel.observables.interface import Quantity, Record, Summed, Sweep, Values
from qernel.start import Start


@dataclass(frozen=True)
class PairCorrelation(Summed):
    """g(r) = A/(N(N−1)) ⟨Σ_{i≠j} δ(r − r_ij)⟩ averaged over rings, r_ij the distance to the nearest image.

    Up to the radius of the circle inscribed in the supercell, where rings are whole. Positions drawn independently of
    each other and uniformly give 1, whatever N. With both spins also for each pair of spins: N(N − 1) is then
    N_σ(N_σ − 1), or 2 N_↑ N_↓.
    """

    bins: int = 40
    """rings of equal width"""

    def missing(self, start: Start, couplings: FloatArray) -> str | None:
        """Needs two electrons."""
        return None if start.family.n_electrons > 1 else "one electron has no pairs"

    def evaluate(self, sweep: Sweep, tables: tuple[()]) -> Values:
        """Ordered pairs in every ring over the number expected of an ideal gas, [couplings, walkers, rings]."""
        family = sweep.config.family
        radius = inscribed_radius(family.cell)
        edges = radius * np.arange(self.bins + 1) / self.bins
        share = np.pi * np.diff(edges**2) / family.cell.area
        chosen = pair_kinds(family)

        def some(r: Float[Array, "chunk electrons 2"], _: object) -> Values:
            i, j = np.triu_indices(r.shape[-2], 1)
            ring = jnp.floor(distances(r[:, i] - r[:, j], family.cell) * (self.bins / radius)).astype(int)
            hit = ring[..., None] == jnp.arange(self.bins)
            counts = {name: hit[:, pairs].sum(1, dtype=r.dtype) for name, pairs in chosen.items()}
            return {name: n / jnp.asarray(len(chosen[name]) * share, r.dtype) for name, n in counts.items()}

        values: Values = sweep.each(some)
        return values

    def finalise(self, record: Record, start: Start, couplings: FloatArray) -> dict[str, Quantity]:
        """`pair_correlation`, [couplings, r], and `pair_correlation_up_up` … where there are both spins."""
        width = inscribed_radius(start.family.cell) / self.bins
        axes = {"r": ("r", width * (np.arange(self.bins) + 0.5))}
        out = {}
        for name in pair_kinds(start.family):
            value, error = record.sums.derived(itemgetter(name))
            text = f"pair correlation g(r) {name.replace('_', ' ')}".strip()
            out[f"pair_correlation{name}"] = Quantity(value, error, "1", text, ("r",), axes)
        return out


def pair_kinds(family: Family) -> dict[str, np.ndarray]:
    """Indices of the pairs i < j to be counted together: all, and those of given spins."""
    i, j = np.triu_indices(family.n_electrons, 1)
    kinds = {"": np.arange(len(i))}
    if family.n_up and family.n_down:
        up = np.arange(family.n_electrons) < family.n_up
        kinds["_up_up"] = np.flatnonzero(up[i] & up[j])
        kinds["_up_down"] = np.flatnonzero(up[i] != up[j])
        kinds["_down_down"] = np.flatnonzero(~up[i] & ~up[j])
    return {name: pairs for name, pairs in kinds.items() if len(pairs)}


def distances(r: Float[Array, "*batch 2"], cell: Cell) -> Float[Array, "*batch"]:
    """Distance to the nearest image: of a reduced basis, one of nine is always the nearest."""
    basis = cell.reduced_vectors
    s = r @ jnp.asarray(np.linalg.inv(basis), r.dtype)
    r = (s - jnp.round(s)) @ jnp.asarray(basis, r.dtype)
    images = np.stack(np.meshgrid([-1, 0, 1], [-1, 0, 1], indexing="ij"), -1).reshape(-1, 2) @ basis
    squares = [jnp.sum((r + jnp.asarray(t, r.dtype)) ** 2, -1) for t in images]
    return jnp.sqrt(jnp.stack(squares).min(0))


def inscribed_radius(cell: Cell) -> float:
    """Radius of the largest circle around a point without any of its images, a_M."""
    return float(np.linalg.norm(cell.reduced_vectors[0])) / 2

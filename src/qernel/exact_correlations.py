"""Correlations of an exact state, defined as in `observables/`, so that a sampled wavefunction can be compared with it.

All electrons enter, whatever bands they may go to: |ρ_k|² = N + Σ_{i≠j} exp(ik·r_ij), and the normal-ordered part is
exact within the bands from the two-body density matrix,

    C(q) = ⟨Σ_{i≠j} exp(iq·r_ij)⟩ = Σ_abcd ρ_ac(q) ρ_bd(−q) ⟨c†_a c†_b c_d c_c⟩,    ρ_ac(q) = ⟨a|exp(iq·r)|c⟩.

Orbitals are finite sums of plane waves, so finitely many C(q) are all there is to know of a pair's distance:

    S(k) = 1 + C(k)/N,    g(r) = Σ_q C(q) exp(−iq·r)/(N(N − 1)),    E_int = ½ u Σ_q w_q C(q) + ½ N u ξ.

`exact.solve` gives one state of one total momentum. Of a degenerate level (the sectors K and K', the six sectors
equivalent to (0,1)/3, a doublet within a sector) another state, or a mixture that a wavefunction without a total
momentum may be, has another S(k), n(k) and density. What all of them share is averaged over the stars of k, over the
translations and over the point group: `symmetry.py`. The order parameter and g(r) on rings are so by definition.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.special import j1

from qernel.bands import ComplexArray, FormFactors
from qernel.cell import Cell, FloatArray, IntArray
from qernel.determinants import Momenta
from qernel.errors import InputError, require
from qernel.exact import ExactState, momentum_distribution, pair_density_matrix
from qernel.observables.pair_correlation import inscribed_radius
from qernel.observables.structure_factor import corners, crystal_missing


def structure_factor(state: ExactState, k: FloatArray) -> FloatArray:
    """S(k) = ⟨|ρ_k|²⟩/N at wavevectors k [m, 2] of the supercell in 1/a_M, returned as [m]; S(0) = N.

    Equal for the states of a degenerate level only once averaged over the star of k (`symmetry.star_average`).

    Raises `InputError` for a k that does not belong to the supercell.
    """
    return 1 + pair_modes(state)[""].at(k) / sum(state.spins)


def order_parameter(state: ExactState) -> float:
    """m = (1/6) Σ_K S(K)/N over the six corners K, K' of the moiré zone; the same in a whole degenerate level.

    Raises `InputError` where the √3×√3 momenta do not belong to the supercell.
    """
    reason = crystal_missing(state.bands.cell)
    if reason is not None:
        raise InputError(f"order parameter: {reason}")
    return float(structure_factor(state, corners()).mean() / sum(state.spins))


def pair_correlation(state: ExactState, edges: FloatArray) -> dict[str, FloatArray]:
    """g averaged over the rings between `edges` [rings + 1] in a_M, [rings]: key "", with both spins "_up_up" … too.

    The mean of exp(−iq·r) over a ring is 2 [r J1(qr)]/(q [r²]), brackets being differences between its edges; up to the
    inscribed radius the nearest image is the only one. The same in a whole degenerate level.

    Raises `InputError` for one electron, and for edges that do not increase from 0 or more to the inscribed radius.
    """
    edges, radius = np.asarray(edges, float), inscribed_radius(state.bands.cell)
    increasing = edges.ndim == 1 and len(edges) > 1 and edges[0] >= 0 and bool(np.all(np.diff(edges) > 0))
    allowed = f"at least two, increasing, from 0 to {radius:.6g}"
    require(increasing and bool(edges[-1] <= radius * (1 + 1e-9)), "edges", edges, allowed)
    require(sum(state.spins) > 1, "n_up + n_down", sum(state.spins), "at least 2 electrons: one has no pairs")
    modes = pair_modes(state)
    q = np.linalg.norm(modes[""].wavevectors, axis=-1).ravel()
    safe = np.where(q > 0, q, 1.0)[:, None]
    disc = np.where(q[:, None] > 0, 2 * edges * j1(safe * edges) / safe, edges**2)
    ring = np.diff(disc, axis=1) / np.diff(edges**2)
    return {name: c.values.ravel() @ ring / c.at(np.zeros((1, 2))) for name, c in modes.items()}


def binned_density(state: ExactState, bins: int) -> FloatArray:
    """n(r) = (1/A) Σ_G ⟨ρ_G⟩ exp(iG·r) averaged over bins along T1 and T2, [bins, bins], 1/a_M²."""
    modes = _density_modes(state)
    n1, n2 = (np.arange(s) - s // 2 for s in modes.values.shape)
    centre = (np.arange(bins) + 0.5) / bins
    wave = [np.exp(2j * np.pi * np.outer(centre, n)) * np.sinc(n / bins) for n in (n1, n2)]
    total = np.einsum("xy,ax,by->ab", modes.values, *wave, optimize=True)
    return np.asarray(total.real) / state.bands.cell.area


def occupations(state: ExactState, g: FloatArray) -> dict[str, FloatArray]:
    """n(G + θ) = ⟨c†c⟩ of plane waves, [m], at G [m, 2] of the supercell: key "", with both spins "_up" and "_down".

    Equal for the states of a degenerate level only once averaged over the star of G + θ.

    Raises `InputError` for a G that does not belong to the supercell.
    """
    b = state.bands
    n = np.einsum("kbxy,skbc,kcxy->skxy", b.coefficients.conj(), state.density_matrix, b.coefficients, optimize=True)
    used = np.any(b.coefficients != 0, axis=1)
    up, down = (Modes.of(b.cell, b.wavevectors[used] - b.twist, x.real[used]).at(g) for x in n)
    both = {"": up + down}
    return both | {"_up": up, "_down": down} if min(state.spins) else both


def one_body_density_matrix(state: ExactState, squares: int) -> ComplexArray:
    """γ(s) = (1/N) Σ_k n(k) exp(ik·s) as means over squares of the fractions s = s1 T1 + s2 T2, [squares, squares]."""
    k, n = momentum_distribution(state)
    phase = k @ state.bands.cell.vectors.T  # along the whole of T1, T2
    middle = (np.arange(squares) + 0.5) / squares - 0.5
    wave = [np.exp(1j * np.outer(middle, x)) * np.sinc(x / (2 * np.pi * squares)) for x in phase.T]
    return np.einsum("k,ak,bk->ab", n / sum(state.spins), *wave)


@dataclass(frozen=True, eq=False)
class Modes:
    """Values on the reciprocal lattice of a supercell, zero outside of a box around the origin."""

    cell: Cell
    values: np.ndarray
    """[2 r1 + 1, 2 r2 + 1], at n1 B1 + n2 B2 with |n_i| ≤ r_i"""

    @classmethod
    def of(cls, cell: Cell, wavevectors: FloatArray, values: np.ndarray) -> Modes:
        """From values [m] at wavevectors [m, 2], each given once."""
        n = _integers(cell, wavevectors)
        reach = np.abs(n).max(0)
        table = np.zeros(2 * reach + 1, values.dtype)
        table[tuple((n + reach).T)] = values
        return cls(cell, table)

    @property
    def wavevectors(self) -> FloatArray:
        """[2 r1 + 1, 2 r2 + 1, 2], 1/a_M."""
        n = [np.arange(s) - s // 2 for s in self.values.shape]
        return np.stack(np.meshgrid(*n, indexing="ij"), -1) @ self.cell.reciprocal

    def at(self, k: FloatArray) -> np.ndarray:
        """Values at wavevectors k [m, 2], [m]."""
        n, reach = _integers(self.cell, k), np.array(self.values.shape) // 2
        inside = np.abs(n) <= reach
        index = np.where(inside, n + reach, 0)
        return np.where(inside.all(1), self.values[index[:, 0], index[:, 1]], 0)


@lru_cache(maxsize=1)  # structure factor and pair correlation are asked for one after the other
def pair_modes(state: ExactState) -> dict[str, Modes]:
    """C(q) at all wavevectors where it is not zero, over all ordered pairs, key "", or those of given spins.

    Keys as in `observables.pair_correlation.pair_kinds`; C(0) is the number of ordered pairs of the kind.
    """
    cell, m = state.bands.cell, state.bands.n_bands
    momenta, factors = Momenta(cell), FormFactors(state.bands, None)
    labels, denominator = cell.momentum_labels, cell.momentum_denominator
    g, grid = pair_density_matrix(state), state.bands.coefficients.shape[2:]
    sums = {spins: np.zeros((momenta.count, *grid)) for spins in ("uu", "ud", "dd")}
    blocks = {spins: x.reshape(momenta.count, momenta.count, m, m, momenta.count, m, m) for spins, x in g.items()}
    for p in range(momenta.count):
        for ka, kc, first, second in factors.products(momenta.subtract[p]):
            q = momenta.subtract[ka, kc]
            umklapp = tuple((labels[ka] - labels[kc] - labels[q]) // denominator)
            for spins, block in blocks.items():
                acdb = block[p, ka, :, :, kc].transpose(0, 2, 3, 1).reshape(m * m, m * m)
                term = np.einsum("xg,xg->g", first, acdb @ second).real  # the imaginary parts cancel in the sum
                sums[spins][q] += np.roll(term.reshape(grid), umklapp, axis=(0, 1))
    sums["ud"] *= 2
    wavevectors = _wavevectors(cell, grid).reshape(-1, 2)
    total = {"": sums["uu"] + sums["ud"] + sums["dd"]}
    if min(state.spins):
        names = {"uu": "_up_up", "ud": "_up_down", "dd": "_down_down"}
        total |= {names[spins]: sums[spins] for spins in names if spins in g}
    return {name: Modes.of(cell, wavevectors, x.ravel()) for name, x in total.items()}


def _density_modes(state: ExactState) -> Modes:
    """⟨ρ_G⟩ = ⟨Σ_i exp(−iG·r_i)⟩."""
    c, cell = state.bands.coefficients, state.bands.cell
    grid = c.shape[2:]
    u = np.fft.ifft2(c) * (grid[0] * grid[1])
    n = np.einsum("kbxy,kbc,kcxy->xy", u.conj(), state.density_matrix.sum(0), u, optimize=True)
    return Modes.of(cell, _wavevectors(cell, grid)[0].reshape(-1, 2), np.fft.fft2(n).ravel() / n.size)


def _wavevectors(cell: Cell, grid: tuple[int, ...]) -> FloatArray:
    """q = k + G for every momentum k and G on the periodic grid of the bands, [k, n1, n2, 2], 1/a_M."""
    n = np.stack(np.meshgrid(*(np.rint(np.fft.fftfreq(s) * s) for s in grid), indexing="ij"), -1)
    return cell.momenta[:, None, None] + n @ cell.moire_reciprocal


def _integers(cell: Cell, k: FloatArray) -> IntArray:
    """(n1, n2) of k = n1 B1 + n2 B2; raises `InputError` if they are not integers."""
    n = np.asarray(k, float) @ cell.vectors.T / (2 * np.pi)
    far = np.abs(n - np.rint(n)).max(initial=0.0)
    require(bool(far < 1e-6), "k", f"a wavevector {far:.2g} away", f"of the supercell {cell.supercell}")
    return np.rint(n).astype(int)

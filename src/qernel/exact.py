"""Exact diagonalisation in a basis of Bloch bands, one total momentum at a time.

The lowest bands of T + λW at each momentum of the supercell span the one-electron space, and all determinants
of it with n_up + n_down electrons and total momentum Σk (modulo the moiré reciprocal lattice) the sector, in
which the lowest state is found by Lanczos. With pair annihilators A_ab = c_b c_a, grouped by the total
momentum P of the pair,

    H = Σ_a ε_a n_a + u Σ_P Σ_{(ab),(cd) ∈ P} V_(ab),(cd) A_ab† A_cd + ½ N u ξ,

V = U_abcd − U_abdc for like spins (a < b, c < d), U_abcd for unlike: small dense matrices between N − 2
electron states. Energies are in E0 and variational in the number of bands.

Where the last band kept is degenerate with one left out (three bands of the reference material at Γ), the
cut through the multiplet is arbitrary: it depends on rounding, and sectors equivalent by the point group may
differ (by up to 0.03 E0 for N = 6 and three bands of WSe2/WS2). One and two bands have no such cut there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from scipy.sparse.linalg import LinearOperator, eigsh

from qernel.bands import CUTOFF, Bands, ComplexArray, FormFactors, concrete, solve_bands
from qernel.cell import FloatArray
from qernel.determinants import Momenta, Pairs, Sector, check_size, dimensions
from qernel.errors import require
from qernel.ewald import ewald_tables
from qernel.hamiltonian import Hamiltonian
from qernel.sizes_reference import check_exact

_DENSE = 300  # below this dimension the matrix is built and diagonalised at once


@dataclass(frozen=True, eq=False)
class ExactState:
    """The lowest state of one total-momentum sector. Energies in E0, totals."""

    energy: float
    kinetic: float
    moire: float
    """λ⟨W⟩"""
    interaction: float
    """with ½ N u ξ; the three terms add up to the energy"""
    sector: int
    """index into `Cell.momentum_labels`"""
    label: str
    """total momentum, e.g. "(0,1)/3" in units of b1, b2 (Nθ not included)"""
    dimension: int
    bands: Bands = field(repr=False)
    density_matrix: ComplexArray = field(repr=False)
    """⟨c†_kb c_kb'⟩ of spin up and spin down, [2, k, band, band]"""
    spins: tuple[int, int]
    """(n_up, n_down)"""
    vector: ComplexArray = field(repr=False)
    """amplitudes of the determinants in the order of `Sector.occupied`, normalised"""


def solve(h: Hamiltonian, bands: int, sector: int, cutoff: float = CUTOFF) -> ExactState:
    """Lowest state of `h` with `bands` bands per momentum in the sector of that index.

    `cutoff` is the kinetic cutoff of the plane waves in E0. Where the lowest level of a sector is
    degenerate, one state of it is returned.

    Raises `InputError` if N does not fit the basis, the sector does not exist or is empty, there are more
    bands than plane waves, a coupling is not finite, or the dimension is beyond reach.
    """
    _check_electrons(h)
    # Sizes first: a refusal should not cost a band structure.
    check_exact(h, bands, cutoff)
    check_size(Momenta(h.cell), bands, h.n_up, h.n_down, sector)
    basis = solve_bands(h, bands, cutoff)
    return _solve(h, basis, _PairInteraction(basis, float(h.u), h.gate), sector)


def solve_all(h: Hamiltonian, bands: int, cutoff: float = CUTOFF) -> list[ExactState]:
    """The lowest state of every sector that is not empty, in the order of `Cell.momentum_labels`.

    Raises `InputError` as `solve` does.
    """
    _check_electrons(h)
    check_exact(h, bands, cutoff)
    momenta = Momenta(h.cell)
    sizes = dimensions(momenta, bands, h.n_up, h.n_down)
    first = int(np.argmax(np.array(sizes, dtype=float)))
    check_size(momenta, bands, h.n_up, h.n_down, first)
    basis = solve_bands(h, bands, cutoff)
    interaction = _PairInteraction(basis, float(h.u), h.gate)
    return [_solve(h, basis, interaction, s) for s, size in enumerate(sizes) if size > 0]


def ground_state(h: Hamiltonian, bands: int, cutoff: float = CUTOFF) -> ExactState:
    """The lowest state over all sectors. Raises `InputError` as `solve` does."""
    return min(solve_all(h, bands, cutoff), key=lambda s: s.energy)


def ground_state_energy(h: Hamiltonian, bands: int, cutoff: float = CUTOFF) -> float:
    """The lowest energy over all sectors, E0. Raises `InputError` as `solve` does."""
    return ground_state(h, bands, cutoff).energy


def density(state: ExactState, points: FloatArray) -> FloatArray:
    """Charge density at Cartesian `points` [..., 2], in 1/a_M²: ∫ over the supercell is N.

    A state of one total momentum has a density with the moiré period.
    """
    flat = np.asarray(points, float).reshape(-1, 2)
    phi = state.bands.orbitals(flat)
    gamma = state.density_matrix.sum(0)
    rho = np.einsum("kbm,kbc,kcm->m", phi.conj(), gamma, phi, optimize=True).real
    return rho.reshape(np.shape(points)[:-1])


def momentum_distribution(state: ExactState) -> tuple[FloatArray, FloatArray]:
    """(p [m, 2], n(p) [m]): mean number of electrons in each plane wave exp(ip·r), both spins. Σ n = N."""
    c = state.bands.coefficients
    n = np.einsum("kbxy,kbc,kcxy->kxy", c.conj(), state.density_matrix.sum(0), c, optimize=True).real
    used = np.any(c != 0, axis=1)
    return state.bands.wavevectors[used], n[used]


def pair_density_matrix(state: ExactState) -> dict[str, ComplexArray]:
    """⟨A_ab† A_cd⟩ = ⟨c†_a c†_b c_d c_c⟩ between ordered pairs of one total momentum, for each kind of spins.

    "uu", "ud" (a, c up; b, d down) and "dd" as far as there are such electrons, each [P, pairs, pairs] with
    P the momentum of the pair and pairs numbered by (k_a, band a, band b), k_b = P − k_a. Σ_ab ⟨A_ab† A_ab⟩ is
    N_σ (N_σ − 1) for like spins and n_up n_down for unlike. Takes a buffer of dimension × N(N − 1)/2 or a few
    times that, like one product with the Hamiltonian.
    """
    sector = Sector(state.bands.cell, state.bands.n_bands, *state.spins, state.sector)
    pairs = Pairs(sector.momenta, state.bands.n_bands)
    removal = sector.removal(2, pairs.index, pairs.width)
    buffer = removal.apply(state.vector)
    shape = sector.momenta.count, pairs.count, pairs.count
    out: dict[str, ComplexArray] = {}
    for spins, p, start, rows, width in removal.blocks:
        block = buffer[start : start + rows * width].reshape(rows, width)
        g = block.conj().T @ block
        out.setdefault(spins, np.zeros(shape, complex))[p] = g if spins == "ud" else pairs.ordered(p, g)
    return out


def supercell_grid(h: Hamiltonian, size: int) -> FloatArray:
    """Cartesian points r_ij = (i T1 + j T2)/size of the supercell, [size, size, 2], a_M."""
    fraction = np.stack(np.meshgrid(np.arange(size), np.arange(size), indexing="ij"), -1) / size
    return fraction @ h.cell.vectors


def to_json(states: ExactState | list[ExactState]) -> dict[str, object]:
    """One state as plain values; of several the lowest, with all of them under "sectors"."""
    if isinstance(states, ExactState):
        return {
            "energy": states.energy,
            "kinetic": states.kinetic,
            "moire": states.moire,
            "interaction": states.interaction,
            "sector": states.label,
            "dimension": states.dimension,
            "units": "E0",
        }
    require(len(states) > 0, "states", states, "at least one state")
    lowest = min(states, key=lambda s: s.energy)
    return {**to_json(lowest), "sectors": [to_json(s) for s in states]}


def _check_electrons(h: Hamiltonian) -> None:
    concrete(h)
    require(h.n_electrons >= 1, "n_up + n_down", h.n_electrons, "at least 1 electron")


class _PairInteraction:
    """The matrices V between pairs of orbitals of one total momentum, made when first asked for."""

    def __init__(self, bands: Bands, u: float, gate: float | None) -> None:
        self.u, self.gate, self.bands = u, gate, bands
        self.momenta = Momenta(bands.cell)
        self.pairs = Pairs(self.momenta, bands.n_bands)
        self._factors: FormFactors | None = None
        self._matrices: dict[tuple[bool, int], ComplexArray] = {}

    def transposed(self, spins: str, p: int) -> ComplexArray:
        """u V^T between the pairs of total momentum index p, [pairs, pairs], E0."""
        key = (spins == "ud", p)
        if key not in self._matrices:
            if self._factors is None:
                self._factors = FormFactors(self.bands, self.gate)
            v = self.u * self._factors.pair_matrix(self.momenta.subtract[p])
            if spins != "ud":
                v = self.pairs.operators(p, v)
            self._matrices[key] = np.ascontiguousarray(v.T)
        return self._matrices[key]


def _solve(h: Hamiltonian, basis: Bands, interaction: _PairInteraction, index: int) -> ExactState:
    sector = Sector(h.cell, basis.n_bands, h.n_up, h.n_down, index)
    diagonal = basis.energies.ravel()[sector.occupied].sum(axis=1)
    interacting = h.n_electrons > 1 and float(h.u) != 0
    pairs = sector.removal(2, interaction.pairs.index, interaction.pairs.width) if interacting else None

    def apply(x: ComplexArray) -> ComplexArray:
        x = x.reshape(-1)
        y = diagonal * x
        if pairs is None:
            return y
        buffer = pairs.apply(x)
        for spins, p, start, rows, width in pairs.blocks:
            block = buffer[start : start + rows * width].reshape(rows, width)
            block[:] = block @ interaction.transposed(spins, p)
        return y + pairs.adjoint(buffer)

    value, vector = _lowest(apply, diagonal)
    madelung = ewald_tables(h.cell, h.gate, h.ewald_tolerance, h.n_electrons).madelung
    energy = value + 0.5 * h.n_electrons * float(h.u) * madelung
    gamma = _density_matrix(sector, vector)
    both = gamma.sum(0)
    kinetic = float(np.einsum("kbc,kbc->", both, basis.kinetic()).real)
    one_body = float(np.einsum("kbb,kb->", both, basis.energies).real)
    i, j = h.cell.momentum_labels[index]
    return ExactState(
        energy=energy,
        kinetic=kinetic,
        moire=one_body - kinetic,
        interaction=energy - one_body,
        sector=index,
        label=f"({i},{j})/{h.cell.momentum_denominator}",
        dimension=sector.dimension,
        bands=basis,
        density_matrix=gamma,
        spins=(h.n_up, h.n_down),
        vector=vector,
    )


def _lowest(apply: Callable[[ComplexArray], ComplexArray], diagonal: FloatArray) -> tuple[float, ComplexArray]:
    n = len(diagonal)
    if n <= _DENSE:
        matrix = np.stack([apply(column) for column in np.eye(n, dtype=complex)], axis=1)
        values, vectors = np.linalg.eigh(matrix)
        return float(values[0]), vectors[:, 0].copy()  # kept, without the others
    rng = np.random.default_rng(0)
    # Weight on the low determinants, noise on all so that no symmetry of the start is conserved.
    start = np.exp(-(diagonal - diagonal.min()) / (np.std(diagonal) + 1e-12)) * (1 + 0.1 * rng.normal(size=n))
    start = start + 0.01 * (rng.normal(size=n) + 1j * rng.normal(size=n))
    operator = LinearOperator((n, n), matvec=apply, dtype=complex)
    values, vectors = eigsh(operator, k=1, which="SA", v0=start, ncv=min(n, 24), tol=1e-9)
    return float(values[0]), vectors[:, 0]


def _density_matrix(sector: Sector, x: ComplexArray) -> ComplexArray:
    """⟨c†_kb c_kb'⟩ for each spin, [2, k, band, band]."""
    m, n_k = sector.n_bands, sector.momenta.count
    band = np.arange(n_k * m) % m
    removal = sector.removal(1, {"u": band, "d": band}, {"u": [m] * n_k, "d": [m] * n_k})
    buffer = removal.apply(x)
    gamma = np.zeros((2, n_k, m, m), complex)
    for spin, k, start, rows, width in removal.blocks:
        block = buffer[start : start + rows * width].reshape(rows, width)
        gamma["ud".index(spin), k] = block.conj().T @ block
    return gamma

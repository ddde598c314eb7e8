"""Starting orbitals of Hartree–Fock: a liquid, a crystal on the potential's minima, noise."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from qernel.bands import ComplexArray, solve_bands
from qernel.cell import Cell, FloatArray, IntArray, lattice_points
from qernel.ewald import fourier_weight
from qernel.fock import Functional, Orbitals
from qernel.hamiltonian import Hamiltonian
from qernel.hf_minimise import orthonormalise


def liquid(f: Functional) -> Orbitals:
    """The lowest orbitals of T + λW: each has a definite momentum, so the density has the moiré period."""
    h = f.h
    most = max(h.n_up, h.n_down)
    per_k = len(f.kinetic) // h.cell.n_cells
    bands = solve_bands(h, max(1, min(per_k - 2, -(-most // h.cell.n_cells) + 3)), f.cutoff)
    used = np.any(bands.coefficients != 0, axis=1)
    # Ties (open shells) go to the first momentum.
    order = np.argsort(bands.energies.ravel().round(8), kind="stable")[:most]
    c = np.zeros((len(f.kinetic), most), complex)
    place = {tuple(n): i for i, n in enumerate(f.index)}
    to_index = np.linalg.inv(h.cell.reciprocal)
    for column, orbital in enumerate(order):
        k, b = divmod(int(orbital), bands.n_bands)
        n = np.rint((bands.wavevectors[k][used[k]] - bands.twist) @ to_index).astype(int)
        c[[place[tuple(x)] for x in n], column] = bands.coefficients[k, b][used[k]]
    return [c[:, :n].copy() for n in (h.n_up, h.n_down)]


def noise(f: Functional, seed: int = 0) -> Orbitals:
    """Random orbitals, smooth on the scale of the electrons' distance."""
    rng = np.random.default_rng(seed)
    damping = 1 / (1 + f.kinetic / (1 + np.median(np.sort(f.kinetic)[: f.h.n_electrons]))) ** 2
    result: Orbitals = []
    for n in (f.h.n_up, f.h.n_down):
        c = rng.normal(size=(2, len(f.kinetic), n))
        result.append(orthonormalise(damping[:, None] * (c[0] + 1j * c[1])))
    return result


def crystal(f: Functional) -> Orbitals:
    """Gaussians on the minima of λW, at the sites of lowest Coulomb energy (`lattice_gas`).

    More electrons of one spin than sites start in the higher shells of the sites.
    """
    h = f.h
    minimum = _minimum(h)
    sites = lattice_gas(h.cell, h.n_electrons)
    # The curvature at a minimum of −2 v0 Σ cos is about 16π² λ v0 on the triangular lattice.
    omega = np.sqrt(16 * np.pi**2 * abs(float(h.lam) * float(h.v0)) + 30.0)
    envelope = np.exp(-f.kinetic / omega)
    result: Orbitals = []
    first = 0
    for n in (h.n_up, h.n_down):
        chosen = sites[first : first + n]
        first += n
        columns = []
        visits: dict[int, int] = {}
        for site in chosen:
            shell = visits.get(int(site), 0)
            visits[int(site)] = shell + 1
            at = minimum + h.cell.translations[site]
            columns.append(_shell(f.wavevectors, shell) * envelope * np.exp(-1j * f.wavevectors @ at))
        c = np.array(columns).T if columns else np.zeros((len(f.kinetic), 0), complex)
        result.append(orthonormalise(c / np.linalg.norm(c, axis=0)))
    return result


def _shell(p: FloatArray, index: int) -> ComplexArray:
    """Polynomial in p of the index-th harmonic-oscillator state: 1, p_x, p_y, p_x², ..."""
    degree = 0
    while index > degree:
        index -= degree + 1
        degree += 1
    return (p[:, 0] ** (degree - index) * p[:, 1] ** index).astype(complex)


def _minimum(h: Hamiltonian) -> FloatArray:
    """Position [2] of the minimum of λW on a fine grid of the moiré cell."""
    size = 96
    fraction = np.stack(np.meshgrid(np.arange(size), np.arange(size), indexing="ij"), -1) / size
    points = (fraction @ h.cell.moire_vectors).reshape(-1, 2)
    with jax.ensure_compile_time_eval():
        values = np.asarray(h.lam * h.potential(jnp.asarray(points), h), float)
    return points[int(np.argmin(values))]


def lattice_gas(cell: Cell, n: int) -> IntArray:
    """Sites [n] (indices of `Cell.translations`) of n point charges of low Coulomb energy.

    Density waves of every wavevector of the supercell and random fillings, each improved by the best
    single moves. Beyond one charge per site all sites are filled first.
    """
    count = cell.n_cells
    full, rest = divmod(n, count)
    sites = np.tile(np.arange(count), full)
    if rest == 0:
        return sites
    energy = site_energies(cell)
    rng = np.random.default_rng(0)
    phase = cell.translations @ cell.momenta.T
    # The offsets break ties on the lattice; fillings of √3×√3 order are among the candidates.
    scores = [np.cos(phase[:, k] + offset) for k in range(1, count) for offset in (0.1, np.pi / 2 + 0.1, np.pi + 0.1)]
    candidates = [np.argsort(-s.round(9), kind="stable")[:rest] for s in scores]
    candidates.sort(key=lambda c: energy[np.ix_(c, c)].sum())
    candidates = candidates[:20] + [rng.permutation(count)[:rest] for _ in range(20)]
    best = min((_improve(energy, c) for c in candidates), key=lambda c: energy[np.ix_(c, c)].sum().round(9))
    return np.concatenate([sites, np.sort(best)])


def site_energies(cell: Cell, gate: float | None = None) -> FloatArray:
    """Coulomb energy between sites for Gaussian charges too narrow to overlap, [cells, cells], 1/a_M."""
    width = 0.12
    q = lattice_points(cell.reciprocal, 5 / width)
    length = np.linalg.norm(q, axis=1)
    weight = fourier_weight(length, cell, gate) * np.exp(-((length * width) ** 2))
    phase = np.exp(1j * cell.translations @ q.T)
    return ((phase * weight) @ phase.conj().T).real


def _improve(energy: FloatArray, chosen: IntArray) -> IntArray:
    """Move one charge at a time to where the energy falls most, until none falls."""
    occupied = np.zeros(len(energy), bool)
    occupied[chosen] = True
    for _ in range(1000):
        field = energy @ occupied
        full, empty = np.flatnonzero(occupied), np.flatnonzero(~occupied)
        gain = field[empty][None] - field[full][:, None] - energy[np.ix_(full, empty)]
        i, j = np.unravel_index(int(np.argmin(gain)), gain.shape) if gain.size else (0, 0)
        if not gain.size or gain[i, j] > -1e-9:
            break
        occupied[full[i]], occupied[empty[j]] = False, True
    return np.flatnonzero(occupied)

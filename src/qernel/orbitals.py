"""One-body start: Bloch orbitals of T + λW per coupling, and the occupations the determinants start from.

An orbital is a Bloch state (k, band) of the moiré cell,

    φ(r) = exp(ik·r) Σ_G c_G exp(iG·r),   Σ_G |c_G|² = 1,   (½|k + θ + G|² + λW) c = ε c,

with k in the supercell's reciprocal lattice; the twist phase exp(iθ·r) is put on by the wavefunction. The gauge
makes the coefficients smooth in the couplings. The occupations come from the band energies alone: the start knows
nothing of interactions or phases.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from qernel.cell import FloatArray, IntArray, lattice_points
from qernel.errors import require
from qernel.hamiltonian import Hamiltonian, fourier_components


@dataclass(frozen=True)
class PlaneWaves:
    """Moiré reciprocal vectors G with ½|G|² ≤ cutoff, ordered by length: integers n, G = n1 b1 + n2 b2."""

    integers: IntArray
    vectors: FloatArray


def plane_waves(h: Hamiltonian, cutoff: float) -> PlaneWaves:
    """All moiré reciprocal vectors up to a kinetic energy of `cutoff` E0."""
    b = h.cell.moire_reciprocal
    vectors = lattice_points(b, np.sqrt(2 * cutoff))
    return PlaneWaves(np.rint(vectors @ np.linalg.inv(b)).astype(int), vectors)


def folded_momenta(h: Hamiltonian) -> FloatArray:
    """The Bloch momenta moved to their shortest equivalents k (|k + θ| smallest), [n_cells, 2]."""
    shifts = lattice_points(h.cell.moire_reciprocal, 3 * float(np.linalg.norm(h.cell.moire_reciprocal, axis=1).max()))
    k = h.cell.momenta[:, None] + shifts
    length = np.linalg.norm(k + np.asarray(h.twist), axis=-1).round(9)
    # Ties are broken by position, so that the choice does not depend on rounding.
    return np.stack([q[np.lexsort((q[:, 1].round(9), q[:, 0].round(9), w))[0]] for q, w in zip(k, length, strict=True)])


def bloch_bands(h: Hamiltonian, momenta: FloatArray, waves: PlaneWaves) -> tuple[FloatArray, np.ndarray]:
    """All bands of T + λW at the given momenta: energies [k, bands], coefficients [k, bands, G]."""
    n, components = fourier_components(h)
    lookup = {tuple(i): c for i, c in zip(n.tolist(), components, strict=True)}
    differences = (waves.integers[:, None] - waves.integers[None]).reshape(-1, 2).tolist()
    size = len(waves.integers)
    potential = float(h.lam) * np.array([lookup.get(tuple(d), 0.0) for d in differences]).reshape(size, size)
    kinetic = 0.5 * ((momenta[:, None] + np.asarray(h.twist) + waves.vectors) ** 2).sum(-1)
    energies, vectors = np.linalg.eigh(potential + kinetic[:, :, None] * np.eye(size))
    return energies, vectors.transpose(0, 2, 1)


def lowest_subsets(energies: list[float], size: int) -> Iterator[tuple[int, ...]]:
    """Subsets of `size` levels in order of their summed energy; `energies` must be ascending."""
    start = tuple(range(size))
    heap = [(sum(energies[:size]), start)]
    seen = {start}
    while heap:
        total, subset = heapq.heappop(heap)
        yield subset
        for i, level in enumerate(subset):
            up = level + 1
            if up < len(energies) and up not in subset:
                child = (*subset[:i], up, *subset[i + 1 :])
                if child not in seen:
                    seen.add(child)
                    heapq.heappush(heap, (total + energies[up] - energies[level], child))


@dataclass(frozen=True)
class Occupations:
    """Which (k, band) states the K determinants start from."""

    momenta: FloatArray
    """momentum of each orbital in use, [orbitals, 2]"""
    momentum_index: IntArray
    """row in `cell.momenta` of each orbital, [orbitals]"""
    band: IntArray
    """band of each orbital, [orbitals]"""
    columns: IntArray | None
    """orbital of each column, [determinants, electrons]; up columns first. None: every column mixes all of them"""


def choose_occupations(family_points: list[Hamiltonian], cutoff: float, determinants: int) -> Occupations:
    """The K starting occupations: lowest non-interacting energies, averaged over the family's points.

    One determinant per degenerate level, that of smallest total momentum, so that K determinants span K
    different levels (and as a rule several total momenta); degenerate partners follow when levels run out.

    Raises `InputError` if there are more electrons of one spin than orbitals.
    """
    h = family_points[0]
    momenta, waves = folded_momenta(h), plane_waves(h, cutoff)
    bands = min(len(waves.integers), 2 + max(h.n_up, h.n_down) // h.cell.n_cells + 1)
    energy = np.mean([bloch_bands(p, momenta, waves)[0][:, :bands] for p in family_points], axis=0)
    order = np.argsort(energy.round(9), axis=None, kind="stable")
    levels = energy.ravel()[order].tolist()
    for spin, n in (("n_up", h.n_up), ("n_down", h.n_down)):
        require(n <= len(levels), f"family.{spin}", n, f"at most {len(levels)}, the orbitals below the cutoff")
    k_of, band_of = np.divmod(order, bands)

    def candidates(n: int) -> list[tuple[float, float, tuple[int, ...]]]:
        found = []
        for subset in itertools.islice(lowest_subsets(levels, n), 60 * determinants):
            total = momenta[k_of[list(subset)]].sum(0)
            total = total - np.rint(total @ h.cell.moire_vectors.T / (2 * np.pi)) @ h.cell.moire_reciprocal
            found.append((round(sum(levels[i] for i in subset), 6), round(float(np.linalg.norm(total)), 6), subset))
        return sorted(found)

    pairs = sorted(
        (eu + ed, ku + kd, (su, sd)) for eu, ku, su in candidates(h.n_up) for ed, kd, sd in candidates(h.n_down)[:60]
    )
    leads = [i == 0 or p[0] - pairs[i - 1][0] > 1e-5 for i, p in enumerate(pairs)]  # the first of each level
    chosen = [p for wanted in (True, False) for p, lead in zip(pairs, leads, strict=True) if lead == wanted]
    chosen = chosen[:determinants]
    require(
        len(chosen) == determinants,
        "network.determinants",
        determinants,
        f"at most {len(chosen)}, the number of different occupations of this system",
    )
    columns = np.array([su + sd for _, _, (su, sd) in chosen])
    used, columns = np.unique(columns, return_inverse=True)
    columns = columns.reshape(determinants, -1)
    return Occupations(momenta[k_of[used]], k_of[used], band_of[used], columns)


def whole_bands(h: Hamiltonian, cutoff: float, bands: int) -> Occupations:
    """Every state of the lowest `bands` bands, for columns that mix them (`mixing.py`).

    Raises `InputError` if there are more electrons of one spin than states, or fewer plane waves than bands.
    """
    cells, waves = h.cell.n_cells, len(plane_waves(h, cutoff).integers)
    require(bands <= waves, "network.bands", bands, f"at most {waves}, the plane waves below the cutoff")
    least = -(-max(h.n_up, h.n_down) // cells)
    require(bands >= least, "network.bands", bands, f"at least {least}: a band of {cells} cells has {cells} states")
    k_of, band_of = np.divmod(np.arange(cells * bands), bands)
    return Occupations(folded_momenta(h)[k_of], k_of, band_of, None)


def orbital_coefficients(h: Hamiltonian, occupations: Occupations, waves: PlaneWaves) -> np.ndarray:
    """Coefficients c of the orbitals in use at one coupling, [orbitals, G] complex, in a smooth gauge.

    The phase makes c real and positive along a fixed vector, the state's own start at a weak potential
    (λ = 0.05 of the same Hamiltonian, itself fixed by its largest component).
    """
    unique, where = np.unique(occupations.momentum_index, return_inverse=True)
    momenta = np.stack([occupations.momenta[occupations.momentum_index == k][0] for k in unique])
    _, vectors = bloch_bands(h, momenta, waves)
    _, weak = bloch_bands(dataclasses.replace(h, lam=0.05), momenta, waves)
    c, reference = vectors[where, occupations.band], weak[where, occupations.band]
    largest = np.take_along_axis(reference, np.abs(reference).round(6).argmax(1)[:, None], 1)
    reference = reference * (np.abs(largest) / largest)
    overlap = (reference.conj() * c).sum(1, keepdims=True)
    # Where a level crossing made the overlap vanish, the largest component fixes the phase instead.
    own = np.take_along_axis(c, np.abs(c).round(6).argmax(1)[:, None], 1)
    pivot = np.where(np.abs(overlap) > 1e-3, overlap, own)
    return c * (np.abs(pivot) / pivot)

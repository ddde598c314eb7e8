"""Energies known without approximation: free electrons, and electrons in the moiré potential alone.

Free electrons fill the lowest plane waves ½|θ + B|² of the supercell, B its reciprocal vectors, for each
spin. One electron needs a plane-wave diagonalisation of T + λW. Energies in E0, totals; the twist may be any.
"""

from __future__ import annotations

import math

import numpy as np

from qernel.bands import CUTOFF, concrete, plane_waves, solve_bands
from qernel.cell import lattice_points, reduce_basis
from qernel.errors import require
from qernel.ewald import ewald_tables
from qernel.hamiltonian import Hamiltonian


def free_electron_energy(h: Hamiltonian) -> float:
    """Ground-state energy of λ = 0 and u = 0: the sum of the lowest ½|θ + B|² for each spin, E0."""
    _, _, twist = concrete(h)
    most = max(h.n_up, h.n_down)
    basis = reduce_basis(h.cell.reciprocal)
    reach = float(np.linalg.norm(basis, axis=1).sum())
    # A circle around any point, larger by `reach` than the one of area `most` cells, holds `most` points.
    radius = math.sqrt(4 * math.pi * most / h.cell.area) + 2 * reach
    nearest = twist - np.rint(twist @ np.linalg.inv(basis)) @ basis
    levels = np.sort(0.5 * ((nearest + lattice_points(h.cell.reciprocal, radius)) ** 2).sum(1))
    return float(levels[: h.n_up].sum() + levels[: h.n_down].sum())


def noninteracting_energy(h: Hamiltonian, cutoff: float = CUTOFF) -> float:
    """Ground-state energy of `h` with u = 0: the lowest orbitals of T + λW are filled for each spin, E0.

    Raises `InputError` if the plane waves up to `cutoff` (E0) do not hold the electrons.
    """
    most = max(h.n_up, h.n_down)
    available = min(len(n) for n in plane_waves(h.cell, concrete(h)[2], cutoff))
    bands = min(available, -(-most // h.cell.n_cells) + 3)
    while True:
        energies = solve_bands(h, bands, cutoff).energies
        levels = np.sort(energies.ravel())
        # Complete once the band above lies higher than the Fermi level everywhere.
        if bands == available or (most <= len(levels) and levels[max(most, 1) - 1] < energies[:, -1].min()):
            break
        bands = min(available, 2 * bands)
    require(most <= len(levels), "electrons of one spin", most, f"at most {len(levels)}, the orbitals of the basis")
    return float(levels[: h.n_up].sum() + levels[: h.n_down].sum())


def one_electron_energy(h: Hamiltonian, cutoff: float = CUTOFF) -> float:
    """Lowest energy of one electron, E0: of T + λW over all momenta of the supercell, plus its ½ u ξ.

    The electron numbers of `h` are not looked at.
    """
    _, u, _ = concrete(h)
    lowest = float(solve_bands(h, 1, cutoff).energies.min())
    return lowest + 0.5 * u * ewald_tables(h.cell, h.gate, h.ewald_tolerance).madelung

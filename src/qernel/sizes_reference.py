"""The least memory of exact diagonalisation and Hartree–Fock, by numbers alone, refused where it is not free."""

from __future__ import annotations

import math

import numpy as np

from qernel.bands import CUTOFF
from qernel.cell import FloatArray
from qernel.determinants import MAX_DIMENSION
from qernel.errors import require
from qernel.hamiltonian import Hamiltonian
from qernel.stages import Part, Stage, plane_waves, require_fit

LANCZOS = 24
"""vectors kept"""


def check_exact(h: Hamiltonian, bands: int, cutoff: float = CUTOFF) -> None:
    """Raise `InputError` if there are more bands than plane waves, or more determinants than can be listed."""
    moire_area = h.cell.area / h.cell.n_cells
    require(bands >= 1, "bands", bands, "at least 1")
    most = 20 + 4 * plane_waves(cutoff, moire_area)  # beyond doubt; `solve_bands` counts them
    require(bands <= most, "bands", bands, f"at most {most}: there are fewer plane waves at a momentum")
    orbitals = h.cell.n_cells * bands
    if max(h.n_up, h.n_down) > orbitals:
        return  # said by `check_size`, with the numbers
    states = math.comb(orbitals, h.n_up) * math.comb(orbitals, h.n_down)
    mean = states // h.cell.n_cells
    # Sectors are of nearly one size; where they are not, all are small.
    allowed = f"at most {MAX_DIMENSION} states; use fewer bands"
    said = mean if mean < 10**15 else f"about {mean:.3g}" if mean < 1e300 else "beyond 1e300"
    require(mean <= 2 * MAX_DIMENSION, "dimension", said, allowed)
    require_fit([exact(h, bands, cutoff, states)])


def exact(h: Hamiltonian, bands: int, cutoff: float, states: int) -> Stage:
    """Of `exact.solve`, with so many determinants in all sectors."""
    momenta, electrons, less = h.cell.n_cells, h.n_electrons, "--bands or electrons"
    orbitals, dimension = momenta * bands, states / momenta
    parts = [
        Part(24.0 * states, f"list of {states} determinants", less),
        Part(16.0 * LANCZOS * dimension, f"Lanczos vectors of {dimension:.0f} determinants", less),
        Part(32.0 * momenta**2, f"sums of {momenta} momenta", "cells"),
    ]
    if electrons == 1 or float(h.u) == 0:
        return parts
    pairs = electrons * (electrons - 1) / 2
    grid = math.prod(2 * s + 3 for s in span(h.cell.moire_vectors, cutoff))
    return [
        *parts,
        Part(40.0 * dimension * pairs, f"pairs of electrons in {dimension:.0f} determinants", less),
        Part(40.0 * orbitals**2, f"pairs of {orbitals} orbitals", less),
        Part(16.0 * (orbitals * bands) ** 2, f"interaction between {orbitals * bands} pairs of orbitals", less),
        Part(16.0 * orbitals**2 * grid, f"form factors of {orbitals} orbitals", less),
    ]


def check_hartree_fock(h: Hamiltonian, cutoff: float) -> None:
    """Raise `InputError` if the orbitals do not fit."""
    require(bool(0 < cutoff <= 1e5), "cutoff", cutoff, "a kinetic energy in (0, 1e5] E0")
    require_fit([hartree_fock(h, cutoff)])


def hartree_fock(h: Hamiltonian, cutoff: float) -> Stage:
    """Of an application of the Fock operator, with the plane waves and the grid."""
    waves, most = plane_waves(cutoff, h.cell.area), max(h.n_up, h.n_down)
    grid = math.prod(2 * s + 1 for s in span(h.cell.vectors, cutoff))
    fields = 3 if float(h.u) else 2
    return [
        Part(100.0 * waves, f"{waves} plane waves", "--cutoff"),
        Part(40.0 * grid, f"grid of {grid} points", "--cutoff"),
        Part(64.0 * h.n_electrons * waves, f"{h.n_electrons} orbitals of {waves} plane waves", "--cutoff or electrons"),
        Part(
            16.0 * fields * most * grid, f"{most} orbitals on a grid of {grid} points, their products", "--cutoff, --n"
        ),
    ]


def span(vectors: FloatArray, cutoff: float) -> list[int]:
    """Differences of plane waves along each reciprocal vector of the cell of these rows; rather too few."""
    return [2 * int(np.sqrt(2 * cutoff) * length / (2 * np.pi)) for length in np.linalg.norm(vectors, axis=1)]

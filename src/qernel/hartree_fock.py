"""Unrestricted Hartree–Fock in plane waves of the supercell, from a liquid, a crystal or a random start.

The best single determinant, without any symmetry imposed: the density may break the moiré translations. At
the low densities of moiré materials the functional has many local minima. The crystal start leads reliably to
the electron crystal on the potential's minima. The liquid start (orbitals of T + λW with a little noise, which
lets an unstable symmetric solution go) leads where the liquid is unstable to one of several states with a
weak or incommensurate modulation, whose energies per electron differ in the third digit with the seed.

    E ≥ the exact energy; energies in E0, totals. Plane waves ½|p|² ≤ cutoff; the default of 2.5 |g| leaves
    1e-4 E0 per electron for λ v0 ≤ 3 and 6e-4 at λ v0 = 4.4 (WSe2/WS2), below 1e-5 at 3.3 |g|.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from qernel import hf_seeds
from qernel.bands import ComplexArray
from qernel.cell import Cell, FloatArray, lattice_points
from qernel.errors import require
from qernel.fock import Functional, Orbitals
from qernel.hamiltonian import Hamiltonian
from qernel.hf_minimise import Minimum, minimise, orthonormalise

Start = Literal["liquid", "crystal", "random"]

CUTOFF = 0.5 * (2.5 * 4 * math.pi / math.sqrt(3)) ** 2
"""Default kinetic cutoff in E0: plane waves up to 2.5 |g|."""

NOISE = 0.03
"""Norm, per orbital, of the random part of a liquid start."""


@dataclass(frozen=True, eq=False)
class HartreeFockState:
    """A stationary determinant. Energies in E0, totals."""

    energy: float
    kinetic: float
    moire: float
    """λ⟨W⟩"""
    interaction: float
    """Hartree, exchange and ½ N u ξ; the three terms add up to the energy"""
    order_parameter: float
    """`order_parameter` of the density"""
    start: str
    converged: bool
    iterations: int
    residual: float
    """norm of (1 − CC†) F C, E0"""
    n_electrons: int
    orbital_energies: tuple[FloatArray, FloatArray] = field(repr=False)
    """occupied eigenvalues of the Fock operator, spin up and down"""
    orbitals: tuple[ComplexArray, ComplexArray] = field(repr=False)
    """plane-wave coefficients [plane waves, n_up] and [plane waves, n_down], eigenstates of the Fock operator"""
    wavevectors: FloatArray = field(repr=False)
    """p of the plane waves, [plane waves, 2], 1/a_M, θ included"""
    density: FloatArray = field(repr=False)
    """charge density [n1, n2] at r = i T1/n1 + j T2/n2, 1/a_M²"""


def hartree_fock(
    h: Hamiltonian,
    start: Start = "liquid",
    cutoff: float = CUTOFF,
    initial: HartreeFockState | None = None,
    tolerance: float = 1e-6,
    max_iterations: int = 300,
    seed: int = 0,
    threads: int | None = None,
) -> HartreeFockState:
    """Minimise the Hartree–Fock energy of `h` from one start.

    Args:
        h: Hamiltonian with concrete couplings.
        start: where to begin; not used if `initial` is given.
        cutoff: kinetic cutoff of the plane waves in E0.
        initial: orbitals to continue from, for instance those of a neighbouring λ; same cell, twist and cutoff.
        tolerance: stop when two iterations in a row lower the energy by less, E0 per electron.
        max_iterations: a state that needs more comes back with `converged` False.
        seed: of the noise in the liquid and random starts.
        threads: of the Fourier transforms; by default all cores up to 8.

    Raises `InputError` for an unknown start, couplings that are not finite, orbitals of another basis, or
    more electrons than plane waves.
    """
    require(start in ("liquid", "crystal", "random"), "start", start, "liquid, crystal or random")
    require(h.n_electrons >= 1, "n_up + n_down", h.n_electrons, "at least 1 electron")
    require(bool(tolerance > 0), "tolerance", tolerance, "a positive energy per electron")
    f = Functional(h, cutoff, min(os.cpu_count() or 1, 8) if threads is None else threads)
    orbitals = _initial(f, start, seed) if initial is None else _continue(f, initial)
    m = minimise(f, orbitals, tolerance * h.n_electrons, max_iterations)
    return _state(f, m, start if initial is None else initial.start)


def branches(
    h: Hamiltonian, starts: Sequence[Start] = ("liquid", "crystal"), cutoff: float = CUTOFF, tolerance: float = 1e-6
) -> list[HartreeFockState]:
    """One state for each start. Raises `InputError` as `hartree_fock` does."""
    require(len(starts) > 0, "starts", starts, "at least one start")
    return [hartree_fock(h, start, cutoff, tolerance=tolerance) for start in starts]


def order_parameter(density: FloatArray, cell: Cell) -> float:
    """Largest |ρ_q|/N over the shortest q of the √3×√3 order, with ρ_q = ∫ρ exp(−iq·r); 1 for point charges.

    These q are the corners ±K of the moiré Brillouin zone. In a supercell without them, all its wavevectors
    up to the first moiré shell that are not moiré reciprocal vectors. `density` [n1, n2] on the supercell.
    """
    components = np.abs(np.fft.fft2(density)) / density.sum()
    q = lattice_points(cell.reciprocal, float(np.linalg.norm(cell.moire_reciprocal, axis=1).max()))[1:]
    fraction = q @ np.linalg.inv(cell.moire_reciprocal)
    q = q[np.abs(fraction - np.rint(fraction)).max(axis=1) > 1e-6]
    corner = 4 * np.pi / 3
    at_corner = np.abs(np.linalg.norm(q, axis=1) - corner) < 1e-6
    if cell.lattice == "triangular":
        # ±K are a third of a sum of reciprocal vectors; other wavevectors of that length are not.
        third = 3 * q @ np.linalg.inv(cell.moire_reciprocal)
        at_corner &= np.abs(third - np.rint(third)).max(axis=1) < 1e-6
        q = q[at_corner] if at_corner.any() else q
    if len(q) == 0:
        return 0.0
    n = np.rint(q @ np.linalg.inv(cell.reciprocal)).astype(int)
    inside = np.all(2 * np.abs(n) < np.array(density.shape), axis=1)
    return float(components[n[inside, 0], n[inside, 1]].max(initial=0.0))


def to_json(states: HartreeFockState | Sequence[HartreeFockState]) -> dict[str, object]:
    """One state as plain values; of several the lowest, with all of them under "branches"."""
    if not isinstance(states, HartreeFockState):
        require(len(states) > 0, "states", states, "at least one state")
        return {**to_json(min(states, key=lambda s: s.energy)), "branches": [to_json(s) for s in states]}
    return {
        "energy": states.energy,
        "kinetic": states.kinetic,
        "moire": states.moire,
        "interaction": states.interaction,
        "order_parameter": states.order_parameter,
        "start": states.start,
        "converged": states.converged,
        "iterations": states.iterations,
        "residual": states.residual,
        "n_electrons": states.n_electrons,
        "units": "E0",
    }


def _initial(f: Functional, start: Start, seed: int) -> Orbitals:
    if start == "crystal":
        return hf_seeds.crystal(f)
    noise = hf_seeds.noise(f, seed)
    if start == "random":
        return noise
    return [orthonormalise(c + NOISE * x) for c, x in zip(hf_seeds.liquid(f), noise, strict=True)]


def _continue(f: Functional, initial: HartreeFockState) -> Orbitals:
    numbers = tuple(c.shape[1] for c in initial.orbitals)
    require(numbers == (f.h.n_up, f.h.n_down), "initial orbitals", numbers, f"{(f.h.n_up, f.h.n_down)}, as in h")
    same = initial.wavevectors.shape == f.wavevectors.shape and np.allclose(initial.wavevectors, f.wavevectors)
    require(same, "initial orbitals", "other plane waves", "of the same cell, twist and cutoff")
    return [orthonormalise(c) for c in initial.orbitals]


def _state(f: Functional, m: Minimum, start: str) -> HartreeFockState:
    energies: list[FloatArray] = []
    orbitals: list[ComplexArray] = []
    for c, g in zip(m.orbitals, f.fock(m.orbitals, m.exchanged), strict=True):
        matrix = c.conj().T @ g
        values, vectors = np.linalg.eigh(0.5 * (matrix + matrix.conj().T)) if c.shape[1] else (np.zeros(0), matrix)
        energies.append(values)
        orbitals.append(c @ vectors)
    density = f.density(m.orbitals) / f.h.cell.area
    return HartreeFockState(
        energy=m.energy.total,
        kinetic=m.energy.kinetic,
        moire=m.energy.moire,
        interaction=m.energy.interaction,
        order_parameter=order_parameter(density, f.h.cell),
        start=start,
        converged=m.converged,
        iterations=m.iterations,
        residual=m.residual,
        n_electrons=f.h.n_electrons,
        orbital_energies=(energies[0], energies[1]),
        orbitals=(orbitals[0], orbitals[1]),
        wavevectors=f.wavevectors,
        density=density,
    )

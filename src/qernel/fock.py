"""The Hartree–Fock energy functional in plane waves, its gradient, and its minimisation.

    E = Σ_i ⟨T + λW⟩_i + ½u Σ_q w_q |ρ_q|² − ½u Σ_σ Σ_ij Σ_q w_q |ρ_ij(q)|² + ½ N u ξ,

ρ_q the Fourier components of the density, ρ_ij those of φ_i* φ_j. Products of orbitals are taken on a
real-space grid fine enough to be exact for the plane waves kept. Lengths in a_M, energies in E0.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import scipy.fft

from qernel.bands import ComplexArray, concrete, plane_waves
from qernel.cell import FloatArray
from qernel.errors import require
from qernel.ewald import ewald_tables, fourier_weight
from qernel.hamiltonian import Hamiltonian
from qernel.sizes_reference import check_hartree_fock

Orbitals = list[ComplexArray]
"""Plane-wave coefficients of the occupied orbitals for spin up and spin down, each [plane waves, electrons]."""


@dataclass(frozen=True)
class Energy:
    """Hartree–Fock energy by term, E0, totals."""

    kinetic: float
    moire: float
    hartree: float
    exchange: float
    madelung: float

    @property
    def interaction(self) -> float:
        """Hartree, exchange and ½ N u ξ."""
        return self.hartree + self.exchange + self.madelung

    @property
    def total(self) -> float:
        """The energy."""
        return self.kinetic + self.moire + self.interaction


class Functional:
    """Plane waves p = θ + n1 B1 + n2 B2 with ½|p|² ≤ cutoff, and the energy of determinants made of them."""

    def __init__(self, h: Hamiltonian, cutoff: float, threads: int = 1) -> None:
        self.h, self.cutoff, self.threads = h, cutoff, threads
        lam, self.u, twist = concrete(h)
        check_hartree_fock(h, cutoff)
        cell = h.cell
        d, to_super = cell.momentum_denominator, np.array(cell.supercell).T
        moire = [label + d * n for label, n in zip(cell.momentum_labels, plane_waves(cell, twist, cutoff), strict=True)]
        # n B = (m / d) b with B = M^-T b
        self.index = np.rint(np.concatenate(moire) @ to_super / d).astype(int)
        self.wavevectors = twist + self.index @ cell.reciprocal
        self.kinetic = 0.5 * (self.wavevectors**2).sum(1)
        for n in (h.n_up, h.n_down):
            require(n <= len(self.kinetic), "N beyond the basis: electrons of one spin", n, f"≤ {len(self.kinetic)}")
        span = self.index.max(0) - self.index.min(0)
        self.shape = tuple(scipy.fft.next_fast_len(int(2 * s + 1)) for s in span)
        self.place = np.ravel_multi_index(tuple((self.index % self.shape).T), self.shape)
        grids = [np.rint(np.fft.fftfreq(s) * s) for s in self.shape]
        q = np.stack(np.meshgrid(*grids, indexing="ij"), -1) @ cell.reciprocal
        self.weight = fourier_weight(np.linalg.norm(q, axis=-1), cell, h.gate)
        fraction = np.stack(np.meshgrid(*(np.arange(s) / s for s in self.shape), indexing="ij"), -1)
        with jax.ensure_compile_time_eval():
            self.potential = lam * np.asarray(h.potential(jnp.asarray(fraction @ cell.vectors), h), float)
        madelung = ewald_tables(cell, h.gate, h.ewald_tolerance, h.n_electrons).madelung
        self.madelung = 0.5 * h.n_electrons * self.u * madelung

    def to_grid(self, c: ComplexArray) -> ComplexArray:
        """Orbitals [plane waves, n] to their periodic parts on the grid, [n, n1, n2], of mean square 1."""
        field = np.zeros((c.shape[1], self.shape[0] * self.shape[1]), complex)
        field[:, self.place] = c.T
        field = field.reshape(-1, *self.shape)
        return scipy.fft.ifft2(field, norm="forward", overwrite_x=True, workers=self.threads)

    def from_grid(self, field: ComplexArray) -> ComplexArray:
        """Plane-wave coefficients [plane waves, n] of fields [n, n1, n2]."""
        c = scipy.fft.fft2(field, norm="forward", workers=self.threads)
        return c.reshape(len(field), field.shape[1] * field.shape[2])[:, self.place].T

    def density(self, orbitals: Orbitals) -> FloatArray:
        """Density on the grid, [n1, n2], of mean N."""
        total = np.zeros(self.shape)
        for c in orbitals:
            total += (np.abs(self.to_grid(c)) ** 2).sum(0)
        return total

    def hartree(self, rho: FloatArray) -> tuple[float, FloatArray]:
        """(½u Σ_q w_q|ρ_q|², the Hartree potential on the grid)."""
        rho_q = scipy.fft.fft2(rho, norm="forward")
        field = scipy.fft.ifft2(self.weight * rho_q, norm="forward").real
        return 0.5 * self.u * float((self.weight * np.abs(rho_q) ** 2).sum()), self.u * field

    def exchange(self, c: ComplexArray) -> ComplexArray:
        """The exchange operator of the orbitals c [plane waves, n] acting on themselves, same shape."""
        if c.shape[1] == 0 or self.u == 0:
            return np.zeros_like(c)
        phi = self.to_grid(c)
        result = np.zeros_like(phi)
        for i in range(len(phi)):
            pairs = scipy.fft.fft2(phi[i:] * phi[i].conj(), overwrite_x=True, workers=self.threads)
            pairs *= self.weight
            v = scipy.fft.ifft2(pairs, overwrite_x=True, workers=self.threads)
            result[i:] += phi[i] * v
            # v_ji = v_ij*: each pair is transformed once
            result[i] += np.einsum("jxy,jxy->xy", phi[i + 1 :], v[1:].conj())
        return -self.u * self.from_grid(result)

    def energy(self, orbitals: Orbitals, exchanged: Orbitals) -> Energy:
        """Energy by term, given the exchange operator's action on the orbitals."""
        rho = self.density(orbitals)
        kinetic = sum(float((self.kinetic[:, None] * np.abs(c) ** 2).sum()) for c in orbitals)
        exchange = sum(0.5 * float(np.vdot(c, w).real) for c, w in zip(orbitals, exchanged, strict=True))
        return Energy(kinetic, float((rho * self.potential).mean()), self.hartree(rho)[0], exchange, self.madelung)

    def fock(self, orbitals: Orbitals, exchanged: Orbitals) -> Orbitals:
        """The Fock operator acting on the occupied orbitals."""
        local = self.potential + self.hartree(self.density(orbitals))[1]
        return [self.one_body(c, local) + w for c, w in zip(orbitals, exchanged, strict=True)]

    def one_body(self, c: ComplexArray, local: FloatArray) -> ComplexArray:
        """(T + local potential on the grid) acting on orbitals c."""
        return self.kinetic[:, None] * c + self.from_grid(local * self.to_grid(c))

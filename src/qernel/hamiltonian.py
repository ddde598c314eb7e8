"""The Hamiltonian of N electrons in a moiré potential, and its energy terms for each walker.

    H/E0 = Σ_i −½∇_i² + λ Σ_i W(r_i) + u Σ_{i<j} w(r_ij) + ½ N u ξ,    W = −2 v0 Σ_j cos(g_j·r + φ)

Lengths in a_M, energies in E0 = ħ²/(m* a_M²). The kinetic term is in `laplacian.py`, w and ξ in `ewald.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qernel.cell import Cell, IntArray
from qernel.ewald import ewald_tables, pair_interaction
from qernel.types import ComplexPerWalker, Electrons, PerElectron, PerWalker


@runtime_checkable
class Potential(Protocol):
    """A one-body potential W(r): any frozen dataclass with this call. λ multiplies it."""

    def __call__(self, r: Electrons, h: Hamiltonian) -> PerElectron:
        """W at positions r [..., 2] in E0; `h` has v0, φ and the cell. Periodic in the moiré cell."""
        ...


@dataclass(frozen=True)
class MoirePotential:
    """W(r) = −2 v0 Σ_j cos(g_j·r + φ) over the first shell (three g_j; two on the square lattice)."""

    def __call__(self, r: Electrons, h: Hamiltonian) -> PerElectron:
        phase = r @ jnp.asarray(h.cell.potential_wavevectors.T, r.dtype) + jnp.asarray(h.phi, r.dtype)
        return -2 * jnp.asarray(h.v0, r.dtype) * jnp.cos(phase).sum(-1)


_STATIC = ("cell", "n_up", "n_down", "gate", "potential", "ewald_tolerance")
_COUPLINGS = ("lam", "v0", "phi", "u", "twist")


@partial(jax.tree_util.register_dataclass, data_fields=_COUPLINGS, meta_fields=_STATIC)
@dataclass(frozen=True)
class Hamiltonian:
    """Physical parameters, in natural units. A pytree: the couplings are data, the rest is static.

    The couplings may carry leading axes (one Hamiltonian per point of a family).
    """

    lam: Float[Array, "*batch"] | float
    """moiré depth λ in units of v0"""
    v0: Float[Array, "*batch"] | float
    """depth unit V0/E0"""
    phi: Float[Array, "*batch"] | float
    """phase φ in radians"""
    u: Float[Array, "*batch"] | float
    """Coulomb coupling; 0 for free electrons"""
    twist: Float[Array, "*batch 2"]
    """θ in 1/a_M: ψ(… r_i + T …) = exp(iθ·T) ψ"""

    cell: Cell = Cell()
    n_up: int = 1
    n_down: int = 0
    gate: float | None = None
    """distance d of two symmetric gates in a_M, or None"""
    potential: Potential = MoirePotential()
    ewald_tolerance: float = 1e-10

    @property
    def n_electrons(self) -> int:
        """N = n_up + n_down."""
        return self.n_up + self.n_down


class EnergyTerms(NamedTuple):
    """Local energy by term, E0, total over electrons; `moire` is λ Σ W, `interaction` has ½Nuξ inside."""

    kinetic: ComplexPerWalker
    moire: PerWalker
    interaction: PerWalker

    @property
    def total(self) -> ComplexPerWalker:
        """E_L = (Hψ)/ψ, complex."""
        return self.kinetic + self.moire + self.interaction


def moire_energy(electrons: Electrons, h: Hamiltonian) -> PerWalker:
    """λ Σ_i W(r_i), E0."""
    return jnp.asarray(h.lam, electrons.dtype) * h.potential(electrons, h).sum(-1)


def interaction_energy(electrons: Electrons, h: Hamiltonian) -> PerWalker:
    """u [Σ_{i<j} w(r_ij) + ½ N ξ], E0."""
    tables = ewald_tables(h.cell, h.gate, h.ewald_tolerance, h.n_electrons)
    return jnp.asarray(h.u, electrons.dtype) * pair_interaction(electrons, tables)


def fourier_components(h: Hamiltonian, max_index: int = 4) -> tuple[IntArray, np.ndarray]:
    """Fourier series of W over the moiré lattice: (integers n [m, 2], W_n [m] complex), E0, λ not included.

    W(r) = Σ_n W_n exp(i (n1 b1 + n2 b2)·r), by FFT of W on a grid of the moiré cell, so that it serves any
    potential. Needs concrete (untraced) couplings of one Hamiltonian.

    Raises `ValueError` if components beyond `max_index` are not negligible.
    """
    size = 6 * max_index
    frac = np.stack(np.meshgrid(np.arange(size), np.arange(size), indexing="ij"), -1) / size
    with jax.ensure_compile_time_eval():
        values = np.asarray(h.potential(jnp.asarray(frac @ h.cell.moire_vectors), h), dtype=float)
    coefficients = np.fft.fft2(values) / size**2
    index = np.rint(np.fft.fftfreq(size) * size).astype(int)
    n = np.stack(np.meshgrid(index, index, indexing="ij"), -1).reshape(-1, 2)
    c = coefficients.reshape(-1)
    scale = np.abs(c).max() + 1e-300
    beyond = np.abs(n).max(axis=1) > max_index
    if np.abs(c[beyond]).max() > 1e-6 * scale:
        raise ValueError("potential has Fourier components beyond max_index; raise max_index")
    keep = ~beyond & (np.abs(c) > 1e-9 * scale)
    return n[keep], c[keep]

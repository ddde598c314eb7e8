"""One electron in the moiré potential: plane waves, Bloch bands and their form factors.

    (T + λW) φ_kb = ε_kb φ_kb,    φ_kb(r) = A^-½ Σ_G C_kb(G) exp(i p·r),    p = θ + k + G,

with G in the moiré reciprocal lattice, k the momenta of `Cell.momenta` and θ the twist. Plane waves
are kept up to a kinetic energy, ½|p|² ≤ cutoff. Lengths in a_M, energies in E0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qernel.cell import Cell, FloatArray, IntArray
from qernel.errors import require
from qernel.ewald import fourier_weight
from qernel.hamiltonian import Hamiltonian, fourier_components

ComplexArray = NDArray[np.complexfloating]

CUTOFF = 288.0
"""Default kinetic cutoff in E0: leaves less than 1e-4 E0 in N = 6 electrons of WSe2/WS2 at λ = 1."""


@dataclass(frozen=True, eq=False)
class Bands:
    """The lowest bands of T + λW at every momentum of the supercell.

    Coefficients lie on a periodic grid of moiré reciprocal vectors, index modulo its size (n1, n2), which is
    large enough for the product of any two orbitals to be free of aliasing.
    """

    cell: Cell
    twist: FloatArray
    """θ [2], 1/a_M"""
    energies: FloatArray
    """ε [k, band], E0"""
    coefficients: ComplexArray
    """C [k, band, n1, n2], normalised"""
    wavevectors: FloatArray
    """p [k, n1, n2, 2], 1/a_M; 0 where there is no plane wave"""

    @property
    def n_bands(self) -> int:
        """Bands per momentum."""
        return self.energies.shape[1]

    @property
    def n_orbitals(self) -> int:
        """Orbitals of one spin; orbital k·n_bands + b is band b at momentum k."""
        return self.energies.size

    def kinetic(self) -> ComplexArray:
        """Kinetic-energy matrices ⟨kb|T|kb'⟩, [k, band, band], E0."""
        t = 0.5 * (self.wavevectors**2).sum(-1)
        return np.einsum("kbxy,kxy,kcxy->kbc", self.coefficients.conj(), t, self.coefficients, optimize=True)

    def orbitals(self, points: FloatArray) -> ComplexArray:
        """φ_kb at `points` [m, 2], returned as [k, band, m], in 1/a_M."""
        values = np.empty((*self.energies.shape, len(points)), complex)
        for k, (c, p) in enumerate(zip(self.coefficients, self.wavevectors, strict=True)):
            used = np.any(c != 0, axis=0)
            values[k] = c[:, used] @ np.exp(1j * p[used] @ points.T)
        return values / np.sqrt(self.cell.area)


def concrete(h: Hamiltonian) -> tuple[float, float, FloatArray]:
    """(λ, u, θ) of one Hamiltonian as numbers; raises `InputError` unless all couplings are finite scalars."""
    for name in ("lam", "v0", "phi", "u"):
        value = np.asarray(getattr(h, name))
        require(value.ndim == 0 and bool(np.isfinite(value)), name, getattr(h, name), "one finite number")
    twist = np.asarray(h.twist, float)
    require(twist.shape == (2,) and bool(np.isfinite(twist).all()), "twist", h.twist, "two finite numbers")
    return float(h.lam), float(h.u), twist


def plane_waves(cell: Cell, twist: FloatArray, cutoff: float) -> list[IntArray]:
    """For each momentum k the integers n [m, 2] of G = n1 b1 + n2 b2 with ½|θ + k + G|² ≤ cutoff."""
    require(bool(0 < cutoff <= 1e5), "cutoff", cutoff, "a kinetic energy in (0, 1e5] E0")
    b = cell.moire_reciprocal
    reach = int(np.ceil(np.sqrt(2 * cutoff) * np.linalg.norm(cell.moire_vectors, axis=1).max() / (2 * np.pi))) + 1
    box = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 2, indexing="ij"), -1).reshape(-1, 2)
    waves = []
    for k in cell.momenta + twist:
        n = box - np.rint(k @ np.linalg.inv(b)).astype(int)
        # The tolerance keeps whole shells together where the cutoff falls on one.
        waves.append(n[0.5 * ((k + n @ b) ** 2).sum(1) <= cutoff * (1 + 1e-9)])
    return waves


def solve_bands(h: Hamiltonian, bands: int, cutoff: float = CUTOFF) -> Bands:
    """Diagonalise T + λW in plane waves at every momentum and keep the lowest `bands`.

    Raises `InputError` for couplings that are not finite, or more bands than plane waves.
    """
    lam, _, twist = concrete(h)
    waves = plane_waves(h.cell, twist, cutoff)
    fewest = min(len(n) for n in waves)
    require(1 <= bands <= fewest, "bands", bands, f"between 1 and {fewest}, the number of plane waves at a momentum")
    stacked = np.concatenate(waves)
    span = stacked.max(0) - stacked.min(0)
    index, w = fourier_components(h)
    reach = int(max(np.abs(index).max(initial=0), span.max()))
    table = np.zeros((2 * reach + 1,) * 2, complex)
    table[index[:, 0], index[:, 1]] = w
    # 2 span + 3: room for the differences of any two plane waves, and one more for umklapp.
    shape = tuple(int(s) for s in 2 * span + 3)
    n_k = len(waves)
    energies = np.empty((n_k, bands))
    coefficients = np.zeros((n_k, bands, *shape), complex)
    wavevectors = np.zeros((n_k, *shape, 2))
    for k, n in enumerate(waves):
        p = twist + h.cell.momenta[k] + n @ h.cell.moire_reciprocal
        difference = n[:, None] - n[None]
        matrix = lam * table[difference[..., 0], difference[..., 1]] + np.diag(0.5 * (p**2).sum(1))
        values, vectors = np.linalg.eigh(matrix)
        energies[k] = values[:bands]
        at = (n[:, 0] % shape[0], n[:, 1] % shape[1])
        coefficients[k, :, at[0], at[1]] = vectors[:, :bands]
        wavevectors[k][at] = p
    return Bands(h.cell, twist, energies, coefficients, wavevectors)


class FormFactors:
    """ρ_ac(q) = ⟨a| exp(iq·r) |c⟩ between all orbitals, and the Coulomb matrix elements made from them."""

    def __init__(self, bands: Bands, gate: float | None) -> None:
        cell, c = bands.cell, bands.coefficients
        shape = c.shape[2:]
        u = np.fft.ifft2(c) * (shape[0] * shape[1])
        self.n_bands = bands.n_bands
        self.labels = cell.momentum_labels
        self.denominator = cell.momentum_denominator
        n_k = len(c)
        grids = (np.rint(np.fft.fftfreq(s) * s) for s in shape)
        g = np.stack(np.meshgrid(*grids, indexing="ij"), -1) @ cell.moire_reciprocal
        q = cell.momenta[:, None, None, None] - cell.momenta[None, :, None, None] + g
        self.weight = fourier_weight(np.linalg.norm(q, axis=-1), cell, gate)
        """w_q [k_a, k_c, n1, n2] with q = k_a − k_c + G"""
        self.rho = np.empty((n_k, n_k, self.n_bands, self.n_bands, *shape), complex)
        """ρ_ac(k_a − k_c + G), [k_a, k_c, a, c, n1, n2]"""
        for k in range(n_k):
            self.rho[k] = np.fft.ifft2(u[k].conj()[None, :, None] * u[:, None])

    def pair_matrix(self, partner: IntArray) -> ComplexArray:
        """U_(ab),(cd) = Σ_q w_q ρ_ac(q) ρ_bd(−q) over the ordered pairs of one total momentum.

        `partner` [k] is the momentum index of b for each momentum index of a. Pairs run over
        (k_a, band a, band b): returned as [n_k·n_bands², n_k·n_bands²], in units of u E0.
        """
        n_k, m = len(partner), self.n_bands
        matrix = np.empty((n_k, m, m, n_k, m, m), complex)
        for ka, kc, first, second in self.products(partner):
            weighted = first * self.weight[ka, kc].ravel()
            block = (weighted @ second.T).reshape(m, m, m, m)  # a, c, d, b
            matrix[ka, :, :, kc] = block.transpose(0, 3, 1, 2)
        return matrix.reshape(n_k * m * m, n_k * m * m)

    def products(self, partner: IntArray) -> Iterator[tuple[int, int, ComplexArray, ComplexArray]]:
        """(k_a, k_c, ρ_ac(q) [a·c, G], ρ_bd(−q) [d·b, G]) with q = k_a − k_c + G, over all momenta k_a and k_c."""
        n_k, m = len(partner), self.n_bands
        for ka in range(n_k):
            kb = partner[ka]
            for kc in range(n_k):
                kd = partner[kc]
                total = self.labels[ka] + self.labels[kb] - self.labels[kc] - self.labels[kd]
                umklapp = total // self.denominator
                # ρ_bd(−q) = conj ρ_db(q), where q = k_d − k_b + G + umklapp.
                second = np.roll(self.rho[kd, kb], tuple(-umklapp), axis=(2, 3)).reshape(m * m, -1)
                yield ka, kc, self.rho[ka, kc].reshape(m * m, -1), second.conj()

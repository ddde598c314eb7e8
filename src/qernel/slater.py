"""Slater determinants in plane waves: their overlaps, their amplitudes, and exact samples of their densities.

    φ_k(r) = exp(iθ·r) Σ_n C_k(n) exp(i(n1 B1 + n2 B2)·r)
    Φ(R) = det φ_c(r_i) of the spins up times that of the spins down, normalised over labelled electrons

B1, B2 belong to the reduced vectors t1, t2 of the supercell; r = x1 t1 + x2 t2 and densities are those of x, over the
unit square. Orbitals need not be orthogonal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Int

from qernel.bands import ComplexArray
from qernel.cell import Cell, FloatArray, IntArray


@dataclass(frozen=True, eq=False)
class Determinants:
    """Determinants at one coupling."""

    coefficients: ComplexArray
    """C_k(n) [orbitals, 2 r1 + 1, 2 r2 + 1], n_i from −r_i to r_i"""
    columns: IntArray
    """orbital of each electron, [determinants, N], up first"""


class Tables(NamedTuple):
    """The same for computing, normalised. May carry a couplings axis; shorter lists are filled up."""

    coefficients: Complex[Array, "*couplings orbitals n1 n2"]
    columns: Int[Array, "*couplings determinants electrons"]
    number: Int[Array, "*couplings"]
    """determinants without those that only fill up"""
    log_norm: Float[Array, "*couplings determinants"]
    inverse: Complex[Array, "*couplings determinants determinants"]
    """(S⁻¹)_ij of the overlaps S_ij = ⟨Φ_i|Φ_j⟩; zero for those that fill up"""
    kernels: Complex[Array, "*couplings determinants two orbitals orbitals"]
    """inverse Gram matrix of the orbitals of each spin, zero for all other orbitals"""
    line: Complex[Array, "*couplings n1 orbitals orbitals"]
    """m_d with ∫dx2 φ_k φ_l* = Σ_d m_d exp(2πi d x1), d ≥ 0, those of d > 0 twice"""
    twist: Float[Array, "*couplings 2"]


def make_tables(sets: list[Determinants], twists: FloatArray, n_up: int) -> Tables:
    """Tables with a couplings axis, one set and one twist [couplings, 2] for each coupling."""
    shape = tuple(max(n) for n in zip(*(s.coefficients.shape for s in sets), strict=True))
    most = max(len(s.columns) for s in sets)
    parts = []
    for s, twist in zip(sets, twists, strict=True):
        c = _filled(s.coefficients, shape)
        log_norm, inverse, kernels = _overlaps(c, s.columns, n_up)
        fill = np.r_[np.arange(len(s.columns)), np.zeros(most - len(s.columns), int)]
        square = np.zeros((most, most), complex)
        square[: len(inverse), : len(inverse)] = inverse
        number = np.array(len(s.columns))
        parts.append((c, s.columns[fill], number, log_norm[fill], square, kernels[fill], _line(c), twist))
    return Tables(*(jnp.asarray(np.stack(x)) for x in zip(*parts, strict=True)))


def overlap_matrix(c: ComplexArray, columns: IntArray, n_up: int) -> ComplexArray:
    """⟨Φ_i|Φ_j⟩ [determinants, determinants] before they are normalised: determinants of overlaps of orbitals."""
    gram = np.einsum("kab,lab->kl", c.conj(), c)
    result = np.ones((len(columns), len(columns)), complex)
    for spin in (columns[:, :n_up], columns[:, n_up:]):
        result *= [np.linalg.det(gram[row[:, None], spin[:, None]]) for row in spin]
    return result


def _overlaps(c: ComplexArray, columns: IntArray, n_up: int) -> tuple[FloatArray, ComplexArray, ComplexArray]:
    """log 1/‖Φ_i‖, the inverse of the normalised overlaps, and the kernels."""
    s = overlap_matrix(c, columns, n_up)
    norm = np.sqrt(np.diag(s).real)
    # What is numerically the same state twice counts once.
    inverse = np.linalg.pinv(s / (norm * norm[:, None]), rcond=1e-8, hermitian=True)
    labelled = math.lgamma(n_up + 1) + math.lgamma(columns.shape[1] - n_up + 1)
    gram = np.einsum("kab,lab->kl", c.conj(), c)
    kernels = np.zeros((len(columns), 2, len(c), len(c)), complex)
    for i, row in enumerate(columns):
        for spin, used in enumerate((row[:n_up], row[n_up:])):
            kernels[i, spin][np.ix_(used, used)] = np.linalg.inv(gram[np.ix_(used, used)])
    return -np.log(norm) - labelled / 2, inverse, kernels


def _line(c: ComplexArray) -> ComplexArray:
    n = c.shape[1]
    m = [np.einsum("kab,lab->kl", c[:, d:], c[:, : n - d].conj()) for d in range(n)]
    return np.stack([m[0], *(2 * x for x in m[1:])])


def _filled(c: ComplexArray, shape: tuple[int, ...]) -> ComplexArray:
    """With zeros around: more orbitals, and more plane waves on all sides."""
    more, *waves = (b - a for a, b in zip(c.shape, shape, strict=True))
    return np.pad(c, [(0, more), *((w // 2, w // 2) for w in waves)])


def wave_integers(wavevectors: FloatArray, cell: Cell) -> IntArray:
    """The integers n of wavevectors n1 B1 + n2 B2, [..., 2]."""
    return np.rint(wavevectors @ cell.reduced_vectors.T / (2 * np.pi)).astype(int)


def reach(k: float, cell: Cell) -> IntArray:
    """Largest |n1| and |n2| of wavevectors not longer than k, [2]."""
    return np.floor(k * np.linalg.norm(cell.reduced_vectors, axis=1) / (2 * np.pi) + 1e-9).astype(int)


def _waves(x: Float[Array, "*any"], n: int) -> Complex[Array, "*any n"]:
    """exp(2πi n x) for n from −(n − 1)/2 to (n − 1)/2."""
    return jnp.exp(2j * np.pi * x[..., None] * (np.arange(n) - n // 2).astype(x.dtype))


def log_amplitudes(
    t: Tables, electrons: Float[Array, "electrons 2"], n_up: int, cell: Cell
) -> Complex[Array, " determinants"]:
    """log Φ_i of all determinants at one place."""
    dtype = jnp.result_type(electrons.dtype, jnp.complex64)
    x = electrons @ jnp.asarray(np.linalg.inv(cell.reduced_vectors), electrons.dtype)
    first, second = (_waves(x[:, d], t.coefficients.shape[1 + d]) for d in (0, 1))
    orbitals = jnp.einsum("ia,kab->ikb", first, t.coefficients.astype(dtype))
    orbitals = jnp.einsum("ikb,ib->ik", orbitals, second)
    up = np.arange(len(electrons)) < n_up
    matrices = jnp.moveaxis(orbitals[:, t.columns], 1, 0) * jnp.asarray(up[:, None] == up, electrons.dtype)
    sign, size = jnp.linalg.slogdet(matrices)
    phase = jnp.sum(electrons @ t.twist.astype(electrons.dtype))
    return jnp.log(sign) + size + t.log_norm.astype(electrons.dtype) + 1j * phase


def draw(t: Tables, uniform: Float[Array, "numbers 2"], n_up: int, cell: Cell) -> Float[Array, "electrons 2"]:
    """One exact sample of Σ_i |Φ_i|²/m, from 2N + 1 rows of numbers in [0, 1); independent of all others.

    |Φ|² is a determinantal point process (arXiv:math/0503110): the next electron has the density v†Kv, v = φ*(r), given
    those so far, and then K ← K − Kvv†K/v†Kv takes it out. First x1, with the density integrated over x2, then x2 given
    x1. Both densities are trigonometric polynomials. Summed over an even grid of more points than the degree such a
    polynomial gives its integral, wherever the grid lies: one point of a grid that is displaced at random, chosen by
    the densities at its points, has exactly that density. Nothing is rejected.
    """
    u = uniform.astype(float)
    which = jnp.minimum((u[-1, 0] * t.number).astype(int), t.number - 1)
    kernels = t.kernels[which]
    _, n1, n2 = t.coefficients.shape

    def one(k: Array, turn: tuple[Array, Array]) -> tuple[Array, Array]:
        i, u = turn
        k = jnp.where(i == n_up, kernels[1], k)
        grid = (jnp.arange(n1) + u[0, 0]) / n1
        harmonics = jnp.einsum("kl,dkl->d", k, t.line)
        density = jnp.exp(2j * np.pi * grid[:, None] * np.arange(n1)) @ harmonics
        x1 = grid[_choose(density.real, u[0, 1])]
        grid = (jnp.arange(n2) + u[1, 0]) / n2
        on_line = jnp.einsum("a,kab->kb", _waves(x1, n1), t.coefficients)
        v = (on_line @ _waves(grid, n2).T).conj()
        kv = k @ v
        density = jnp.sum(v.conj() * kv, 0).real
        at = _choose(density, u[1, 1])
        k = k - jnp.outer(kv[:, at], kv[:, at].conj()) / density[at]
        return k, jnp.stack([x1, grid[at]])

    electrons = t.columns.shape[1]
    turns = jnp.arange(electrons), u[:-1].reshape(electrons, 2, 2)
    x = jax.lax.scan(one, kernels[0], turns)[1]
    return x @ jnp.asarray(cell.reduced_vectors)


def _choose(weights: Float[Array, " points"], u: Float[Array, ""]) -> Int[Array, ""]:
    """A point with probability in proportion to its weight."""
    total = jnp.cumsum(jnp.maximum(weights, 0))
    # Where rounding makes u the total itself, the last point that has any weight.
    return jnp.minimum(jnp.sum(total <= u * total[-1]), jnp.sum(total < total[-1]))

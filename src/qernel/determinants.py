"""Slater determinants of Bloch orbitals in one total-momentum sector, and the removal of electrons from them.

A determinant is a sorted list of n_up orbitals, then a sorted one of n_down; orbital k·n_bands + b is band b
at momentum k. A product of annihilators takes it to exactly one determinant of fewer electrons, so that
operators are tables of positions, found by ranking combinations, and no sparse matrix is stored.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from qernel.bands import ComplexArray
from qernel.cell import Cell, FloatArray, IntArray
from qernel.errors import require

MAX_DIMENSION = 1_000_000


class Momenta:
    """Addition of momentum labels modulo the moiré reciprocal lattice, on their indices."""

    def __init__(self, cell: Cell) -> None:
        labels, d = cell.momentum_labels, cell.momentum_denominator
        position = np.full(d * d, -1)
        position[labels[:, 0] * d + labels[:, 1]] = np.arange(len(labels))

        def table(sign: int) -> IntArray:
            total = (labels[:, None] + sign * labels[None]) % d
            return position[total[..., 0] * d + total[..., 1]]

        self.count = len(labels)
        self.add = table(1)
        self.subtract = table(-1)


def dimensions(momenta: Momenta, n_bands: int, n_up: int, n_down: int) -> list[int]:
    """Number of determinants in each total-momentum sector, exact whatever its size, without listing them."""

    def one_spin(n: int) -> list[int]:
        counts = [[0] * momenta.count for _ in range(n + 1)]
        counts[0][0] = 1
        for k in range(momenta.count):
            for _ in range(n_bands):
                for m in range(n, 0, -1):
                    for q in range(momenta.count):
                        counts[m][momenta.add[q, k]] += counts[m - 1][q]
        return counts[n]

    up, down = one_spin(n_up), one_spin(n_down)
    result = [0] * momenta.count
    for p, q in itertools.product(range(momenta.count), repeat=2):
        result[momenta.add[p, q]] += up[p] * down[q]
    return result


def _binomials(m: int, n: int) -> IntArray:
    return np.array([[math.comb(i, j) for j in range(n + 2)] for i in range(m + 1)])


def _rank(occupied: IntArray, binomials: IntArray) -> IntArray:
    """Position of sorted combinations [..., n] in colexicographic order."""
    rank = np.zeros(occupied.shape[:-1], np.int64)
    for i in range(occupied.shape[-1]):
        rank += binomials[occupied[..., i], i + 1]
    return rank


def _combinations(m: int, n: int, binomials: IntArray) -> IntArray:
    """All sorted combinations of n of m orbitals, [C(m, n), n], at their `_rank`."""
    count = math.comb(m, n)
    flat = itertools.chain.from_iterable(itertools.combinations(range(m), n))
    listed = np.fromiter(flat, np.int16, count * n).reshape(count, n)
    ordered = np.empty_like(listed)
    ordered[_rank(listed, binomials)] = listed
    return ordered


class Pairs:
    """Numbers of the pairs of orbitals of each total momentum P.

    Ordered pairs are numbered by (k_a, band a, band b), as in `FormFactors.pair_matrix`. Like spins have one
    operator A_ab = c_b c_a for each a < b, unlike spins (a up, b down) one for each ordered pair.
    """

    def __init__(self, momenta: Momenta, n_bands: int) -> None:
        m, n_orb = n_bands, momenta.count * n_bands
        self.count = n_orb * m
        """ordered pairs of one total momentum"""
        a, b = np.divmod(np.arange(n_orb * n_orb), n_orb)
        ordered = (a // m) * m * m + (a % m) * m + b % m
        total = momenta.add[a // m, b // m]
        compact = np.zeros(n_orb * n_orb, np.int64)
        self._rows, self._swapped = [], []
        for p in range(momenta.count):
            pairs = np.flatnonzero((total == p) & (a < b))
            compact[pairs] = np.arange(len(pairs))
            self._rows.append(ordered[pairs])
            self._swapped.append(ordered[b[pairs] * n_orb + a[pairs]])
        like = [len(rows) for rows in self._rows]
        self.index = {"uu": compact, "dd": compact, "ud": ordered}
        """number of the operator of spins and orbitals a·n_orbitals + b, for `Sector.removal`"""
        self.width = {"uu": like, "dd": like, "ud": [self.count] * momenta.count}
        """operators of spins at each total momentum"""

    def operators(self, p: int, v: ComplexArray) -> ComplexArray:
        """V_(ab),(cd) − V_(ab),(dc) between the operators of like spins, from V between ordered pairs."""
        rows, swapped = self._rows[p], self._swapped[p]
        return v[np.ix_(rows, rows)] - v[np.ix_(rows, swapped)]

    def ordered(self, p: int, g: ComplexArray) -> ComplexArray:
        """G between ordered pairs of like spins, [count, count], from that between operators: A_ba = −A_ab."""
        rows, swapped = self._rows[p], self._swapped[p]
        full = np.zeros((self.count, self.count), complex)
        full[np.ix_(rows, rows)] = full[np.ix_(swapped, swapped)] = g
        full[np.ix_(rows, swapped)] = full[np.ix_(swapped, rows)] = -g
        return full


class _Space:
    """All determinants with (n_up, n_down) electrons: their momentum and place within its class."""

    def __init__(self, momenta: Momenta, n_bands: int, n_up: int, n_down: int) -> None:
        m = momenta.count * n_bands
        self.binomials = _binomials(m, max(n_up, n_down))
        self.n_up, self.momenta = n_up, momenta
        self.up = _combinations(m, n_up, self.binomials)
        self.down = _combinations(m, n_down, self.binomials)
        up, down = (self._momentum(x, n_bands) for x in (self.up, self.down))
        self.momentum = momenta.add[up[:, None], down[None]].ravel()
        order = np.argsort(self.momentum, kind="stable")
        self.class_size = np.bincount(self.momentum, minlength=momenta.count)
        start = np.cumsum(self.class_size) - self.class_size
        self.place = np.empty(len(order), np.int64)
        self.place[order] = np.arange(len(order)) - start[self.momentum[order]]

    def _momentum(self, occupied: IntArray, n_bands: int) -> IntArray:
        total = np.zeros(len(occupied), np.int64)
        for column in occupied.T:
            total = self.momenta.add[total, column // n_bands]
        return total

    def members(self, momentum: int) -> IntArray:
        """Occupied orbitals of the determinants of one total momentum, [dimension, n_up + n_down]."""
        member = np.flatnonzero(self.momentum == momentum)
        return np.concatenate([self.up[member // len(self.down)], self.down[member % len(self.down)]], axis=1)

    def places(self, occupied: IntArray) -> IntArray:
        """Place of determinants [m, n] within their momentum class."""
        up, down = occupied[:, : self.n_up], occupied[:, self.n_up :]
        return self.place[_rank(up, self.binomials) * len(self.down) + _rank(down, self.binomials)]


@dataclass(frozen=True, eq=False)
class Removal:
    """Where products of annihilators take the determinants of a sector.

    The targets are laid out in one buffer, a sequence of blocks [rest determinants, operators]. Every buffer
    entry belongs to at most one determinant: adding the electrons back is unique.
    """

    position: IntArray
    """buffer position, [dimension, choices of the electrons removed]"""
    sign: FloatArray
    """fermion sign, [choices]"""
    blocks: list[tuple[str, int, int, int, int]]
    """(spins of the electrons removed, their momentum, start, rows, width)"""
    size: int

    def apply(self, x: ComplexArray) -> ComplexArray:
        """A_m |x⟩ for all operators, [size]; x [dimension]."""
        buffer = np.zeros(self.size, complex)
        buffer[self.position] = x[:, None] * self.sign
        return buffer

    def adjoint(self, buffer: ComplexArray) -> ComplexArray:
        """Σ_m A_m† of the buffer [size], [dimension]."""
        return buffer[self.position] @ self.sign


class Sector:
    """The determinants with n_up + n_down electrons of one total momentum.

    Raises `InputError` for a sector that does not exist, is empty or is too large.
    """

    def __init__(self, cell: Cell, n_bands: int, n_up: int, n_down: int, index: int) -> None:
        self.momenta = Momenta(cell)
        self.n_bands, self.n_up, self.n_down, self.index = n_bands, n_up, n_down, index
        check_size(self.momenta, n_bands, n_up, n_down, index)
        self.occupied = _Space(self.momenta, n_bands, n_up, n_down).members(index)
        self.dimension = len(self.occupied)

    def _spins(self, electrons: tuple[int, ...]) -> str:
        return "".join("u" if i < self.n_up else "d" for i in electrons)

    def removal(self, count: int, index: dict[str, IntArray], width: dict[str, list[int]]) -> Removal:
        """Tables of the operators that remove `count` electrons.

        `index` maps spins ("u", "ud", ...) to the place of the operator among those of its momentum, for
        orbital a or a·n_orbitals + b; `width` to the number of operators at each momentum.
        """
        n_k, n_orb = self.momenta.count, self.momenta.count * self.n_bands
        choices = list(itertools.combinations(range(self.n_up + self.n_down), count))
        position = np.empty((self.dimension, len(choices)), np.int64)
        blocks, size = [], 0
        spaces, starts = {}, {}
        for spins in sorted({self._spins(c) for c in choices}):
            space = _Space(self.momenta, self.n_bands, self.n_up - spins.count("u"), self.n_down - spins.count("d"))
            start = np.zeros(n_k, np.int64)
            for p in range(n_k):
                rows = int(space.class_size[self.momenta.subtract[self.index, p]])
                start[p] = size
                if rows and width[spins][p]:
                    blocks.append((spins, p, size, rows, width[spins][p]))
                    size += rows * width[spins][p]
            spaces[spins], starts[spins] = space, start
        for column, chosen in enumerate(choices):
            spins = self._spins(chosen)
            orbitals = self.occupied[:, chosen].astype(np.int64)
            momentum, operator = np.zeros(self.dimension, np.int64), np.zeros(self.dimension, np.int64)
            for orbital in orbitals.T:
                momentum = self.momenta.add[momentum, orbital // self.n_bands]
                operator = operator * n_orb + orbital
            rest = spaces[spins].places(np.delete(self.occupied, chosen, axis=1))
            position[:, column] = starts[spins][momentum] + rest * np.array(width[spins])[momentum]
            position[:, column] += index[spins][operator]
        sign = np.array([(-1.0) ** (sum(c) - count * (count - 1) // 2) for c in choices])
        return Removal(position, sign, blocks, size)


def check_size(momenta: Momenta, n_bands: int, n_up: int, n_down: int, index: int) -> None:
    """Raise `InputError` unless the sector exists, has states, and is small enough to be diagonalised."""
    n_orb = momenta.count * n_bands
    require(
        max(n_up, n_down) <= n_orb,
        "N beyond the basis: electrons of one spin",
        max(n_up, n_down),
        f"at most {n_orb}, the momenta times bands",
    )
    require(0 <= index < momenta.count, "sector", index, f"an index from 0 to {momenta.count - 1}")
    states = dimensions(momenta, n_bands, n_up, n_down)[index]
    require(states > 0, "dimension", states, "positive: the sector is empty, use more bands")
    require(states <= MAX_DIMENSION, "dimension", states, f"at most {MAX_DIMENSION} states; use fewer bands")

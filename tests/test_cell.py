import math

import numpy as np
import pytest

from qernel.cell import Cell, coset_representatives, half_space, lattice_points, reduce_basis
from qernel.errors import InputError

CELLS = [
    Cell(),
    Cell(supercell=((1, 1), (2, -1))),
    Cell(supercell=((2, 1), (-1, 4))),
    Cell(supercell=((0, 2), (3, 1))),
    Cell(supercell=((5, 4), (6, 5))),
    Cell("square", ((3, 0), (0, 2))),
    Cell("square", ((7, 3), (2, 1))),
]


def is_reciprocal(vectors, lattice):
    """Whether every v·t is a multiple of 2π."""
    n = vectors @ lattice.T / (2 * np.pi)
    return np.allclose(n, np.rint(n), atol=1e-9)


@pytest.mark.parametrize("cell", CELLS)
def test_reciprocal_lattices_are_dual(cell):
    np.testing.assert_allclose(cell.vectors @ cell.reciprocal.T, 2 * np.pi * np.eye(2), atol=1e-12)
    np.testing.assert_allclose(cell.moire_vectors @ cell.moire_reciprocal.T, 2 * np.pi * np.eye(2), atol=1e-12)


@pytest.mark.parametrize("cell", CELLS)
def test_momenta_are_the_supercell_wavevectors_modulo_the_moire_ones(cell):
    assert is_reciprocal(cell.momenta, cell.vectors)
    labels = cell.momentum_labels
    assert len(labels) == cell.n_cells
    assert (labels[0] == 0).all()
    assert (labels >= 0).all()
    assert (labels < cell.momentum_denominator).all()
    apart = cell.momenta[:, None] - cell.momenta[None]
    s = apart @ cell.moire_vectors.T / (2 * np.pi)
    same = np.abs(s - np.rint(s)).max(-1) < 1e-9
    assert (same == np.eye(cell.n_cells, dtype=bool)).all()


@pytest.mark.parametrize("cell", CELLS)
def test_denominator_is_the_smallest(cell):
    for d in range(1, cell.momentum_denominator):
        scaled = d * cell.momenta @ cell.moire_vectors.T / (2 * np.pi)
        assert not np.allclose(scaled, np.rint(scaled), atol=1e-9)


@pytest.mark.parametrize(
    ("cell", "denominator", "labels"),
    [
        (Cell(), 3, [(i, j) for i in range(3) for j in range(3)]),
        (Cell(supercell=((1, 1), (2, -1))), 3, [(0, 0), (1, 2), (2, 1)]),
        (Cell("square", ((2, 0), (0, 1))), 2, [(0, 0), (1, 0)]),
        (Cell(supercell=((1, 0), (0, 1))), 1, [(0, 0)]),
    ],
)
def test_known_momentum_labels(cell, denominator, labels):
    """The √3×√3 cell has just Γ and the two corners of the moiré Brillouin zone."""
    assert cell.momentum_denominator == denominator
    assert [tuple(x) for x in cell.momentum_labels.tolist()] == labels


@pytest.mark.parametrize("cell", CELLS)
def test_translations_are_one_of_each_class(cell):
    t = cell.translations
    assert len(t) == cell.n_cells
    np.testing.assert_allclose(t[0], 0)
    n = t @ np.linalg.inv(cell.moire_vectors)
    np.testing.assert_allclose(n, np.rint(n), atol=1e-9)
    s = (t[:, None] - t[None]) @ np.linalg.inv(cell.vectors)
    same = np.abs(s - np.rint(s)).max(-1) < 1e-9
    assert (same == np.eye(cell.n_cells, dtype=bool)).all()


@pytest.mark.parametrize("cell", CELLS)
def test_area_and_reduced_basis(cell):
    assert cell.area == pytest.approx(abs(np.linalg.det(cell.vectors)), rel=1e-12)
    reduced = cell.reduced_vectors
    assert abs(np.linalg.det(reduced)) == pytest.approx(cell.area, rel=1e-12)
    # The same lattice, and shortest vectors of it.
    n = reduced @ np.linalg.inv(cell.vectors)
    np.testing.assert_allclose(n, np.rint(n), atol=1e-9)
    points = lattice_points(cell.vectors, 1.01 * np.linalg.norm(reduced[1]))
    lengths = np.linalg.norm(points, axis=1)
    assert lengths[1] == pytest.approx(np.linalg.norm(reduced[0]))
    independent = np.abs(np.cross(np.c_[points, 0 * lengths], np.r_[reduced[0], 0])[:, 2]) > 1e-9
    assert lengths[independent].min() == pytest.approx(np.linalg.norm(reduced[1]))


def test_potential_wavevectors():
    """g_1 points along y, |g| = 4π/√3, the three sum to 0, and all are moiré reciprocal vectors."""
    cell = Cell()
    g = cell.potential_wavevectors
    np.testing.assert_allclose(g[0], [0, 4 * np.pi / math.sqrt(3)], atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(g, axis=1), 4 * np.pi / math.sqrt(3))
    np.testing.assert_allclose(g.sum(0), 0, atol=1e-12)
    assert is_reciprocal(g, cell.moire_vectors)
    assert is_reciprocal(Cell("square").potential_wavevectors, Cell("square").moire_vectors)


@pytest.mark.parametrize("cell", CELLS)
def test_periodic_distance(cell):
    g, w = cell.distance_wavevectors
    assert (w >= 0).all()
    assert is_reciprocal(g, cell.vectors)
    # Σ_k w_k G_k G_kᵀ = 1 is |r|² at small r, in every direction.
    np.testing.assert_allclose((g.T * w) @ g, np.eye(2), atol=1e-12)

    def distance2(r):
        return (2 * w * (1 - np.cos(r @ g.T))).sum(-1)

    r = np.random.default_rng(0).normal(size=(50, 2))
    small = 1e-3 * r
    np.testing.assert_allclose(distance2(small), (small**2).sum(-1), rtol=1e-3)
    np.testing.assert_allclose(distance2(r + cell.vectors[0] - 2 * cell.vectors[1]), distance2(r), atol=1e-10)
    # It vanishes on lattice points only.
    s = np.stack(np.meshgrid(*[np.arange(24) / 24] * 2), -1).reshape(-1, 2)[1:]
    assert distance2(s @ cell.vectors).min() > 0.1 * (1 / 24) ** 2 * (cell.reduced_vectors[0] ** 2).sum()
    assert distance2(s @ cell.vectors).min() > 1e-4


@pytest.mark.parametrize(
    ("supercell", "message"),
    [
        (((0, 0), (0, 0)), "non-singular"),
        (((1, 2), (2, 4)), "non-singular"),
        (((200, 0), (0, 200)), "at most 10000"),
    ],
)
def test_impossible_supercells_are_refused(supercell, message):
    with pytest.raises(InputError, match=rf"cell\.supercell = .*{message}"):
        Cell(supercell=supercell)


def test_reduce_basis_of_a_very_skew_one():
    skew = np.array([[1.0, 0.0], [1000.4, 1.0]])
    reduced = reduce_basis(skew)
    assert np.linalg.norm(reduced, axis=1) == pytest.approx([1.0, math.hypot(0.4, 1.0)])


@pytest.mark.parametrize("m", [[[3, 0], [0, 3]], [[2, -5], [3, 1]], [[-1, 0], [0, 4]]])
def test_coset_representatives_cover_all_classes(m):
    m = np.array(m)
    points = coset_representatives(m)
    assert len(points) == round(abs(np.linalg.det(m)))
    s = (points[:, None] - points[None]) @ np.linalg.inv(m)
    assert (np.abs(s - np.rint(s)).max(-1) < 1e-9).sum() == len(points)


def test_lattice_points_are_complete_and_half_space_halves_them():
    vectors = Cell(supercell=((5, 4), (6, 5))).vectors
    found = lattice_points(vectors, 4.0)
    n = np.stack(np.meshgrid(*[np.arange(-80, 81)] * 2), -1).reshape(-1, 2) @ vectors
    assert len(found) == (np.linalg.norm(n, axis=1) <= 4.0).sum()
    half = half_space(found)
    assert 2 * len(half) + 1 == len(found)
    both = {tuple(p) for p in np.r_[half, -half].round(6).tolist()}
    assert len(both) == 2 * len(half)

import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erfc

from qernel.cell import Cell, lattice_points
from qernel.ewald import _tables, ewald_tables, fourier_weight, pair_interaction

SMALL = Cell(supercell=((2, 0), (0, 2)))
SKEW = Cell(supercell=((5, 4), (6, 5)))


def total(positions, cell, gate=None, alpha=None):
    """Σ w + ½Nξ by the product's code, positions [N, 2]."""
    tables = ewald_tables(cell, gate, 1e-13, len(positions), alpha)
    return float(pair_interaction(jnp.asarray(positions), tables))


def random_positions(cell, n, seed=0):
    return np.random.default_rng(seed).random((n, 2)) @ cell.vectors


def ewald_pair(r, cell, alpha):
    """w(r) written out with generous sums over all images and all ±G, and ξ from the same sums."""
    t = lattice_points(cell.vectors, 8 / alpha + 2 * np.linalg.norm(cell.vectors, axis=1).sum())
    g = lattice_points(cell.reciprocal, 18 * alpha)[1:]
    q = np.linalg.norm(g, axis=1)
    d = np.linalg.norm(r + t, axis=1)
    long = 2 * np.pi / cell.area * (erfc(q / (2 * alpha)) / q * np.cos(g @ r)).sum()
    return (erfc(alpha * d) / d).sum() + long - 2 * math.sqrt(math.pi) / (alpha * cell.area)


def ewald_self(cell, alpha):
    t = np.linalg.norm(lattice_points(cell.vectors, 8 / alpha)[1:], axis=1)
    q = np.linalg.norm(lattice_points(cell.reciprocal, 18 * alpha)[1:], axis=1)
    long = 2 * np.pi / cell.area * (erfc(q / (2 * alpha)) / q).sum()
    real = (erfc(alpha * t) / t).sum() if len(t) else 0.0
    return real + long - 2 * math.sqrt(math.pi) / (alpha * cell.area) - 2 * alpha / math.sqrt(math.pi)


@pytest.mark.parametrize(
    ("lattice", "constant"),
    [("triangular", -1.1061025865), ("square", -1.1002444204)],
)
@pytest.mark.parametrize("supercell", [((1, 0), (0, 1)), ((3, 0), (0, 2))])
def test_madelung_constants_of_wigner_crystals(lattice, constant, supercell):
    """Energy per electron of the crystal in units of 1/r_s, πr_s² the area of one; also with many per cell."""
    cell = Cell(lattice, supercell)
    r_s = math.sqrt(cell.area / cell.n_cells / math.pi)
    assert total(cell.translations, cell) / cell.n_cells * r_s == pytest.approx(constant, abs=1e-8)


def test_madelung_constant_is_the_limit_of_the_pair_sum():
    tables = ewald_tables(SMALL, None, 1e-13)
    r = 1e-5
    pair = total(np.array([[0.0, 0.0], [r, 0.0]]), SMALL) - tables.madelung
    assert pair - 1 / r == pytest.approx(tables.madelung, abs=1e-5)


@pytest.mark.parametrize("cell", [Cell(), SKEW, Cell("square", ((3, 1), (0, 2)))])
@pytest.mark.parametrize("gate", [None, 0.7])
def test_splitting_parameter_does_not_matter(cell, gate):
    scale = 1 / math.sqrt(cell.area)
    for seed in range(2):
        x = jnp.asarray(random_positions(cell, 5, seed))
        values = [float(pair_interaction(x, _tables(cell, gate, 1e-13, a * scale))) for a in (1.5, 2.6, 4.0, 6.0)]
        assert np.ptp(values) < 1e-8
    madelung = [_tables(cell, gate, 1e-13, a * scale).madelung for a in (1.5, 2.6, 4.0, 6.0)]
    assert np.ptp(madelung) < 1e-8


@pytest.mark.parametrize("gate", [None, 0.7])
def test_periodicity_and_exchange(gate):
    x = random_positions(SKEW, 4)
    moved = x + np.array([[0, 0], [1, 0], [-2, 3], [5, -4]]) @ SKEW.vectors
    assert total(moved, SKEW, gate) == pytest.approx(total(x, SKEW, gate), abs=1e-8)
    assert total(x[::-1], SKEW, gate) == pytest.approx(total(x, SKEW, gate), abs=1e-10)
    assert total(x + np.array([0.37, -1.9]), SKEW, gate) == pytest.approx(total(x, SKEW, gate), abs=1e-8)


def test_shape_of_the_cell_does_not_matter():
    """((3,0),(3,3)) and ((3,0),(6,3)) span the same lattice as ((3,0),(0,3))."""
    x = random_positions(Cell(), 6)
    values = [total(x, Cell(supercell=m)) for m in (((3, 0), (0, 3)), ((3, 0), (3, 3)), ((3, 0), (6, 3)))]
    assert np.ptp(values) < 1e-8


@pytest.mark.parametrize("cell", [Cell(), SKEW, Cell("square", ((1, 2), (3, 0)))])
def test_against_explicit_sum_over_all_pairs(cell):
    x = random_positions(cell, 4, seed=5)
    alpha = 2.0 / math.sqrt(cell.area)
    pairs = sum(ewald_pair(a - b, cell, alpha) for a, b in itertools.combinations(x, 2))
    expected = pairs + 0.5 * len(x) * ewald_self(cell, alpha)
    assert total(x, cell) == pytest.approx(expected, abs=1e-8)


def test_one_electron_has_half_the_madelung_constant():
    tables = ewald_tables(SMALL, None, 1e-13, 1)
    energy = pair_interaction(jnp.zeros((4, 1, 2)), tables)
    np.testing.assert_allclose(np.asarray(energy), 0.5 * tables.madelung)
    assert tables.madelung == pytest.approx(ewald_self(SMALL, 1.1), abs=1e-8)


# Two grounded gates at distance d: images of charge (−1)^n at height 2nd.


def gated_pair(r, cell, gate):
    """w by real-space image charges, minus its mean over the cell, which is 2πd/A (Φ̂ → 2πd as q → 0)."""
    # Screened as exp(−πρ/2d): images beyond 15 d are below 1e-9.
    t = lattice_points(cell.vectors, 15 * gate + 1.5 * np.linalg.norm(cell.vectors, axis=1).max())
    rho = np.linalg.norm(r + t, axis=1)
    far = rho > 1e-12
    n = np.arange(1, 1500)[:, None]

    def images(rho):
        # Averaging consecutive partial sums makes the alternating series converge fast.
        terms = 2 * (-1.0) ** n / np.sqrt(rho**2 + (2 * n * gate) ** 2)
        partial = np.cumsum(terms, axis=0)
        for _ in range(8):
            partial = 0.5 * (partial[1:] + partial[:-1])
        return partial[-1]

    value = images(rho).sum() + (1 / rho[far]).sum()
    return value - 2 * np.pi * gate / cell.area


@pytest.mark.parametrize("cell", [SMALL, Cell("square", ((1, 0), (0, 2)))])
@pytest.mark.parametrize("gate", [0.15, 0.3])
def test_gate_screening_is_the_sum_of_image_charges(cell, gate):
    tables = ewald_tables(cell, gate, 1e-13)
    for r in np.random.default_rng(3).random((3, 2)) @ cell.vectors:
        got = total(np.stack([r, 0 * r]), cell, gate) - tables.madelung
        assert got == pytest.approx(gated_pair(r, cell, gate), abs=1e-7)
    assert tables.madelung == pytest.approx(gated_pair(np.zeros(2), cell, gate), abs=1e-7)


def test_distant_gates_screen_nothing():
    x = random_positions(SMALL, 4)
    bare = total(x, SMALL)
    differences = [abs(total(x, SMALL, gate) - bare) for gate in (0.5, 1.0, 2.0, 8.0)]
    assert differences == sorted(differences, reverse=True)
    assert differences[0] > 1e-2
    assert differences[-1] < 1e-8


def test_fourier_weight_and_zero_mean():
    """The difference of two gate distances is smooth, so that its Fourier integrals converge on a grid; q = 0 is the
    neutralising background."""
    s = np.stack(np.meshgrid(*[np.arange(32) / 32] * 2), -1).reshape(-1, 2)
    r = s @ SMALL.vectors + 1e-3
    x = jnp.asarray(np.stack([r, 0 * r], 1))
    near, far = (ewald_tables(SMALL, d, 1e-13) for d in (0.4, 0.8))
    w = np.asarray(pair_interaction(x, near)) - near.madelung - np.asarray(pair_interaction(x, far)) + far.madelung
    g = lattice_points(SMALL.reciprocal, 8.0)
    q = np.linalg.norm(g, axis=1)
    expected = fourier_weight(q, SMALL, 0.4) - fourier_weight(q, SMALL, 0.8)
    assert expected[0] == 0.0
    np.testing.assert_allclose(np.exp(-1j * g @ r.T) @ w / len(r), expected, atol=1e-8)


@pytest.mark.parametrize(
    ("empty", "per_electron"),
    [
        pytest.param(lambda n: (n[:, 0] - n[:, 1]) % 3 == 0, -1.66151083, id="honeycomb, filling 2/3"),
        pytest.param(lambda n: (n[:, 0] - n[:, 1]) % 3 != 0, -1.21631035, id="triangular, filling 1/3"),
        pytest.param(lambda n: n[:, 0] > 99, -2.10671132, id="filled lattice"),
    ],
)
def test_static_crystals_on_lattice_sites(empty, per_electron):
    """Energies per electron in units of u E0 of charges on the sites of 3×3 moiré cells."""
    cell = Cell()
    n = np.rint(cell.translations @ np.linalg.inv(cell.moire_vectors)).astype(int)
    sites = cell.translations[~empty(n)]
    assert total(sites, cell) / len(sites) == pytest.approx(per_electron, abs=1e-7)


def test_tolerance_is_honoured():
    x = random_positions(Cell(), 6, seed=8)
    exact = total(x, Cell())
    for tolerance in (1e-4, 1e-6, 1e-8):
        value = float(pair_interaction(jnp.asarray(x), ewald_tables(Cell(), None, tolerance, 6)))
        assert abs(value - exact) < 15 * 5 * tolerance


def test_single_precision_walkers():
    """Walkers may be float32; the error is that of their rounding, not more."""
    x = random_positions(Cell(), 6, seed=2)
    tables = ewald_tables(Cell(), None, 1e-10, 6)
    double = float(pair_interaction(jnp.asarray(x), tables))
    single = pair_interaction(jnp.asarray(x, jnp.float32), tables)
    assert float(single) == pytest.approx(double, abs=2e-4)
    # Nothing may promote: the erfc of every pair is what the interaction costs.
    assert single.dtype == jnp.float32


def test_batch_axes():
    tables = ewald_tables(SMALL, None, 1e-10, 3)
    x = jnp.asarray(np.random.default_rng(1).random((2, 5, 3, 2)))
    whole = pair_interaction(x, tables)
    assert whole.shape == (2, 5)
    assert float(whole[1, 3]) == pytest.approx(float(pair_interaction(x[1, 3], tables)), abs=1e-10)

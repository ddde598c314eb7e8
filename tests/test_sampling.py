from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qernel.cell import Cell
from qernel.sampling import adapt_width, metropolis, random_walkers, wrap

UNIT = Cell("square", ((1, 0), (0, 1)))
DOUBLE = Cell("square", ((2, 0), (0, 1)))
STRENGTH = jnp.array([0.0, 2.0])[:, None]


def ring_density(walkers):
    """log|ψ|² = a cos 2πx of one electron, a different a at each coupling."""
    return STRENGTH * jnp.cos(2 * jnp.pi * walkers[..., 0, 0])


run = jax.jit(metropolis, static_argnames=("log_density", "steps", "cell"))


def cell_probabilities(strength, edges):
    x = np.linspace(0, 1, 20001)
    cumulative = np.cumsum(np.exp(strength * np.cos(2 * np.pi * x)))
    return np.diff(np.interp(edges, x, cumulative / cumulative[-1]))


def test_samples_the_density_of_each_coupling():
    """χ² of one position from each of 4000 independent chains; 19 degrees of freedom, 65 is beyond 5σ."""
    walkers = random_walkers(jax.random.key(0), 2, 4000, 1, UNIT, "float64")
    sampled = run(jax.random.key(1), walkers, ring_density, jnp.array([0.3, 0.3]), 60, UNIT)
    edges = np.linspace(0, 1, 21)
    for c, strength in enumerate((0.0, 2.0)):
        x = np.asarray(sampled.walkers[c, :, 0, 0]) % 1
        counts = np.histogram(x, edges)[0]
        expected = 4000 * cell_probabilities(strength, edges)
        assert ((counts - expected) ** 2 / expected).sum() < 65
        # A density that is a little off would be noticed.
        wrong = 4000 * cell_probabilities(strength + 0.4, edges)
        assert ((counts - wrong) ** 2 / wrong).sum() > 65
    np.testing.assert_allclose(sampled.log_density, ring_density(sampled.walkers), atol=1e-12)


def test_acceptance_is_counted_for_each_coupling():
    walkers = random_walkers(jax.random.key(0), 2, 4000, 1, UNIT, "float64")
    sampled = run(jax.random.key(1), walkers, ring_density, jnp.array([0.3, 0.3]), 60, UNIT)
    assert float(sampled.acceptance[0]) == pytest.approx(1.0)
    assert 0.3 < float(sampled.acceptance[1]) < 0.95
    # |ψ|² has the period of the moiré cell here.
    np.testing.assert_allclose(sampled.translation_acceptance, 1.0)


def test_widths_adapt_separately_to_half_acceptance():
    def density(walkers):
        return -jnp.array([1.0, 400.0])[:, None] * jnp.sum(walkers**2, (-1, -2))

    walkers = 0.01 * random_walkers(jax.random.key(0), 2, 300, 2, Cell(), "float64")
    width = jnp.array([0.1, 0.1])
    for i in range(40):
        sampled = run(jax.random.key(i), walkers, density, width, 10, UNIT)
        walkers, width = sampled.walkers - jnp.rint(sampled.walkers), adapt_width(width, sampled.acceptance, Cell())
    np.testing.assert_allclose(sampled.acceptance, 0.5, atol=0.07)
    # The densities differ by a factor of 20 in length (the wider one is bounded by the cell it is wrapped into).
    assert width[0] > 4 * width[1]


def test_width_is_bounded():
    width = jnp.array([1.0, 1e-3])
    for _ in range(200):
        width = adapt_width(width, jnp.array([1.0, 0.0]), Cell())
    np.testing.assert_allclose(width, [1.5, 1e-4])


def half_density(walkers):
    """Two moiré cells of unequal weight, so that translations must be rejected sometimes."""
    return 1.5 * jnp.cos(jnp.pi * walkers[..., 0, 0])


def test_translations_alone_reach_every_copy_with_the_right_weight():
    """Moves too small to matter, all walkers in the first moiré cell: the share of the second is that of |ψ|² at the
    same place modulo the moiré period."""
    x = (jnp.arange(4000) + 0.5) / 4000
    walkers = jnp.stack([x, 0 * x], -1)[None, :, None]
    steps = partial(run, log_density=half_density, width=jnp.array([1e-9]), steps=1, cell=DOUBLE)
    for i in range(30):
        sampled = steps(jax.random.key(i), walkers)
        walkers = sampled.walkers
    got = np.asarray(walkers[0, :, 0, 0])
    np.testing.assert_allclose(np.sort(got % 1), np.sort(np.asarray(x)), atol=1e-6)
    weight = 1 / (1 + np.exp(2 * 1.5 * np.cos(np.pi * np.asarray(x))))
    for part in (slice(0, 1000), slice(1000, 2000), slice(2000, 3000), slice(3000, 4000)):
        p = weight[part]
        sigma = np.sqrt((p * (1 - p)).sum())
        assert abs((got[part] > 1).sum() - p.sum()) < 5 * sigma
    assert 0.1 < float(sampled.translation_acceptance[0]) < 0.95


def test_wrap_brings_electrons_home_and_changes_no_distance():
    cell = Cell(supercell=((2, 1), (-1, 4)))
    r = 10 * jax.random.normal(jax.random.key(0), (3, 7, 2), "float64")
    home = wrap(r, cell)
    s = np.asarray(home) @ np.linalg.inv(cell.vectors)
    assert (s > -1e-12).all()
    assert (s < 1 + 1e-12).all()
    n = np.asarray(home - r) @ np.linalg.inv(cell.vectors)
    np.testing.assert_allclose(n, np.rint(n), atol=1e-9)
    assert np.abs(n).max() >= 1


def test_random_walkers_fill_the_supercell():
    cell = Cell(supercell=((2, 1), (-1, 4)))
    r = random_walkers(jax.random.key(3), 2, 500, 3, cell, "float32")
    assert r.shape == (2, 500, 3, 2)
    assert r.dtype == jnp.float32
    s = np.asarray(r, float).reshape(-1, 2) @ np.linalg.inv(cell.vectors)
    counts = np.histogram2d(*s.T, bins=3, range=[[0, 1], [0, 1]])[0]
    assert counts.sum() == 3000
    # 5σ of a bin of probability 1/9.
    assert np.abs(counts - 3000 / 9).max() < 5 * np.sqrt(3000 * 8 / 81)


def test_same_key_same_chain():
    walkers = random_walkers(jax.random.key(0), 2, 50, 1, UNIT, "float64")
    a, b, c = (run(jax.random.key(k), walkers, ring_density, jnp.array([0.3, 0.3]), 5, UNIT).walkers for k in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert (np.asarray(a) != np.asarray(c)).any()

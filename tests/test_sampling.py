from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from qernel.cell import Cell
from qernel.sampling import TARGET_ACCEPTANCE, Chains, adapt_width, at, metropolis, move, propose, random_walkers, wrap

UNIT = Cell("square", ((1, 0), (0, 1)))
DOUBLE = Cell("square", ((2, 0), (0, 1)))
STRENGTH = jnp.array([0.0, 2.0])[:, None]


def ring_density(walkers):
    """log|ψ|² = a cos 2πx of one electron, a different a at each coupling."""
    return STRENGTH * jnp.cos(2 * jnp.pi * walkers[..., 0, 0])


@partial(jax.jit, static_argnames=("log_density", "steps", "cell"))
def run(key, walkers, log_density, width, steps, cell):
    return metropolis(key, walkers, partial(at, log_density), width, steps, cell)


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


def test_widths_adapt_separately_to_the_target_acceptance():
    def density(walkers):
        return -jnp.array([1.0, 400.0])[:, None] * jnp.sum(walkers**2, (-1, -2))

    walkers = 0.01 * random_walkers(jax.random.key(0), 2, 300, 2, Cell(), "float64")
    width = jnp.array([0.1, 0.1])
    for i in range(40):
        sampled = run(jax.random.key(i), walkers, density, width, 10, UNIT)
        walkers, width = sampled.walkers - jnp.rint(sampled.walkers), adapt_width(width, sampled.acceptance, Cell())
    np.testing.assert_allclose(sampled.acceptance, TARGET_ACCEPTANCE, atol=0.07)
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


DEPTH = jnp.array([0.0, 3.0])[:, None]
PAIR = 2.0


def pair_density(walkers):
    """log|ψ|² = a (cos 2πx_1 + cos 2πx_2) + b cos 2π(x_1 − x_2) of two electrons, another a at each coupling."""
    x = 2 * jnp.pi * walkers[..., 0]
    return DEPTH * jnp.cos(x).sum(-1) + PAIR * jnp.cos(x[..., 0] - x[..., 1])


def pair_probabilities(depth, bins, fine=16):
    """Probability of each bin of (x_1, x_2), [bins, bins], by quadrature."""
    x = 2 * np.pi * (np.arange(bins * fine) + 0.5) / (bins * fine)
    p = np.exp(depth * (np.cos(x)[:, None] + np.cos(x)) + PAIR * np.cos(x[:, None] - x))
    p = p.reshape(bins, fine, bins, fine).sum((1, 3))
    return p / p.sum()


def with_drift(walkers):
    return at(pair_density, walkers)


def without_drift(walkers):
    return Chains(walkers, pair_density(walkers), 0 * walkers)


@pytest.mark.parametrize("density", [with_drift, without_drift])
def test_moves_sample_the_density_with_and_without_drift(density):
    """χ² of both positions of 5000 independent chains over 6 × 6 bins: 35 degrees of freedom, 90 is beyond 5σ."""
    step = jax.jit(lambda key, chains: move(key, chains, jnp.array([0.25, 0.2]), density))
    chains = density(random_walkers(jax.random.key(0), 2, 5000, 2, UNIT, "float64"))
    for i in range(80):
        chains, rate = step(jax.random.key(i), chains)
    assert (np.asarray(rate) < 0.97).all()
    assert (np.asarray(rate) > 0.2).all()
    x = np.asarray(chains.walkers[..., 0]) % 1
    for c, depth in enumerate((0.0, 3.0)):
        counts = np.histogram2d(*x[c].T, bins=6, range=[[0, 1], [0, 1]])[0]
        expected = 5000 * pair_probabilities(depth, 6)
        assert ((counts - expected) ** 2 / expected).sum() < 90
        # A density that is a little off would be noticed.
        wrong = 5000 * pair_probabilities(depth + 0.5, 6)
        assert ((counts - wrong) ** 2 / wrong).sum() > 90
    # What is carried belongs to the walkers carried.
    for carried, fresh in zip(chains, density(chains.walkers), strict=True):
        np.testing.assert_allclose(carried, fresh, atol=1e-12)


def displacement(walkers, s):
    """s² v̄ as in doi:10.1063/1.465195, electron by electron."""
    v = np.asarray(jax.grad(lambda r: pair_density(r).sum() / 2)(walkers))
    v2 = (v**2).sum(-1, keepdims=True)
    return v * (np.sqrt(1 + 2 * s**2 * v2) - 1) / v2


def test_acceptance_ratio_contains_the_drift_both_ways():
    """Against the normal densities of the move and of its reverse."""
    old, width = with_drift(random_walkers(jax.random.key(3), 2, 20, 2, UNIT, "float64")), np.array([0.3, 0.2])
    # Without a field an electron has a drift only by the other one: none has exactly none.
    noise = jax.random.normal(jax.random.key(4), old.walkers.shape)
    new, log_ratio = propose(noise, old, jnp.asarray(width), with_drift)
    a, b, s = np.asarray(old.walkers), np.asarray(new.walkers), width[:, None, None, None]
    np.testing.assert_allclose(b, a + displacement(a, s) + s * np.asarray(noise), atol=1e-12)
    forth = norm.logpdf(b, a + displacement(a, s), s).sum((-1, -2))
    back = norm.logpdf(a, b + displacement(b, s), s).sum((-1, -2))
    change = np.asarray(pair_density(b) - pair_density(a))
    np.testing.assert_allclose(log_ratio, change + back - forth, atol=1e-9)
    assert np.abs(back - forth).max() > 0.5


def test_drift_is_bounded_near_a_node_and_plain_far_from_it():
    old = with_drift(random_walkers(jax.random.key(3), 2, 20, 2, UNIT, "float64"))
    s = 0.1
    noise, width = jnp.zeros_like(old.walkers), jnp.array([s, s])
    for factor, expected in ((1e9, np.sqrt(2) * s), (1e-5, None)):
        drift = factor * old.drift
        pushed = np.asarray(propose(noise, old._replace(drift=drift), width, with_drift)[0].walkers - old.walkers)
        plain = s**2 * np.linalg.norm(np.asarray(drift), axis=-1)
        np.testing.assert_allclose(np.linalg.norm(pushed, axis=-1), expected or plain, rtol=1e-3, atol=1e-12)


def test_walkers_at_a_node_or_where_ψ_is_broken_do_no_harm():
    """log|ψ|² is −∞ or NaN on the other half of the cell: such places are never entered, the rest is sampled."""

    def density(walkers):
        x = walkers[..., 0, 0] % 1
        bad = jnp.where(x > 0.75, jnp.nan, -jnp.inf)
        return jnp.where(x < 0.5, jnp.cos(4 * jnp.pi * x), bad)

    walkers = 0.5 * random_walkers(jax.random.key(0), 2, 500, 1, UNIT, "float64")
    sampled = run(jax.random.key(1), walkers, density, jnp.array([0.2, 0.2]), 20, UNIT)
    x = np.asarray(sampled.walkers[..., 0, 0])
    assert (x < 0.5).all()
    assert np.isfinite(np.asarray(sampled.log_density)).all()
    assert (np.asarray(sampled.acceptance) > 0.2).all()


def test_number_of_moves_may_be_traced():
    """One program for any number; the numbers are those of a program made for it."""
    walkers = random_walkers(jax.random.key(0), 2, 50, 1, UNIT, "float64")
    width, key = jnp.array([0.3, 0.3]), jax.random.key(1)
    traced = jax.jit(lambda steps: metropolis(key, walkers, partial(at, ring_density), width, steps, UNIT))
    for steps in (1, 4):
        a, b = traced(jnp.asarray(steps)), run(key, walkers, ring_density, width, steps, UNIT)
        np.testing.assert_allclose(a.walkers, b.walkers, atol=1e-12)
        np.testing.assert_allclose(a.acceptance, b.acceptance, atol=1e-12)
    assert traced._cache_size() == 1

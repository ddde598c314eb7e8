"""Moves between updates: the rule against its exact minimum, on chains whose correlation is known, and in a run."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qernel.cell import Cell
from qernel.config import Adam, Config, Sampling
from qernel.family import Family
from qernel.pace import LADDER, START, WINDOW, best_moves, correlation, initial, next_pace, other_work
from qernel.presets import EXACT, moire_n6
from qernel.vmc import Vmc

TINY = Config(
    family=Family(n_up=2, cell=Cell(supercell=((1, 1), (2, -1))), lam=(0.5, 1.5, 2)),
    network=replace(EXACT, experts=0, heads=0, jastrow_shells=2, plane_wave_cutoff=60.0),
    sampling=Sampling(walkers=256, burn_in=40),
)


def run_chains(config, per_move, updates, seed=0, jump=None):
    """Paces of Gaussian local energies that forget as per_move^m over m moves; mean and spread differ by coupling."""
    rng = np.random.default_rng(seed)
    couplings, walkers = len(config.family.grid()), config.sampling.walkers
    x = rng.standard_normal((couplings, walkers))
    pace, paces = initial(config), []
    step = jax.jit(lambda pace, energy, t: next_pace(config, pace, energy, t))
    for t in range(updates):
        rho = (per_move if jump is None or t < jump[0] else jump[1]) ** int(pace.moves)
        x = rho * x + np.sqrt(1 - rho**2) * rng.standard_normal(x.shape)
        # The imaginary part and what the couplings differ by must not matter; trends of the energy neither.
        energy = (1 + np.arange(couplings))[:, None] * (x - 0.1 * t) + 1j * rng.standard_normal(x.shape)
        pace = step(pace, jnp.asarray(energy), jnp.asarray(t))
        paces.append(pace)
    return paces


def price(per_move, work, moves):
    """Work per independent sample, τ = ½ + Σ_t ρ(t) summed by brute force."""
    rho = per_move ** float(moves)
    return (moves + work) * (1 + 2 * (rho ** np.arange(1, 5000)).sum())


@pytest.mark.parametrize("per_move", [0.5, 0.9, 0.97])
@pytest.mark.parametrize("walkers", [16, 256])
def test_moves_settle_where_an_independent_sample_costs_least(per_move, walkers):
    """Within a tenth of the least of all numbers of moves, where ten at all times may cost twice as much."""
    config = replace(TINY, sampling=replace(TINY.sampling, walkers=walkers))
    last = run_chains(config, per_move, 8 * WINDOW)[-1]
    work = other_work(config)
    least = min(price(per_move, work, k) for k in range(1, 200))
    assert price(per_move, work, int(last.moves)) < 1.1 * least
    # ρ within five standard errors of a mean over WINDOW updates and 2 couplings.
    rho = per_move ** int(last.moves)
    assert float(last.correlation) == pytest.approx(rho, abs=5 / np.sqrt(2 * walkers * WINDOW / 2) + 0.01)


def test_ten_moves_would_cost_more_where_chains_are_slow():
    work = other_work(TINY)
    settled = int(run_chains(TINY, 0.97, 8 * WINDOW)[-1].moves)
    assert price(0.97, work, 10) > 1.8 * price(0.97, work, settled)


def test_slower_chains_get_more_moves_and_costly_updates_too():
    settled = [int(run_chains(TINY, p, 8 * WINDOW)[-1].moves) for p in (0.3, 0.9, 0.99)]
    assert settled == sorted(settled)
    assert settled[0] < settled[-1]
    cheap, dear = (int(best_moves(jnp.asarray(0.1), jnp.asarray(10), w)) for w in (2.0, 1000.0))
    assert cheap < 10 < dear


def test_moves_follow_when_chains_become_slow():
    paces = run_chains(TINY, 0.6, 16 * WINDOW, jump=(8 * WINDOW, 0.98))
    assert int(paces[8 * WINDOW - 1].moves) < int(paces[-1].moves)
    assert price(0.98, other_work(TINY), int(paces[-1].moves)) < 1.1 * price(0.98, other_work(TINY), 80)


def test_moves_change_only_at_the_end_of_a_window_and_by_two_at_most():
    moves = np.array([int(p.moves) for p in run_chains(TINY, 0.99, 6 * WINDOW)])
    changes = np.flatnonzero(np.diff(moves)) + 1
    assert changes.size >= 2
    assert (changes % WINDOW == 0).all()
    assert (moves[1:] <= 2 * moves[:-1]).all()
    assert moves[0] == START
    assert set(moves) <= set(LADDER.tolist())


def test_a_fixed_number_stays_and_is_told_its_correlation():
    config = replace(TINY, sampling=replace(TINY.sampling, sweeps=7))
    paces = run_chains(config, 0.9, 3 * WINDOW)
    assert {int(p.moves) for p in paces} == {7}
    assert float(paces[-1].correlation) == pytest.approx(0.9**7, abs=0.06)


def test_correlation_is_pearsons_per_coupling():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 50))
    y = 0.5 * x + rng.standard_normal((3, 50)) + 100 * np.arange(3)[:, None]
    expected = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(x, y, strict=True)])
    assert float(correlation(jnp.asarray(x), jnp.asarray(y))) == pytest.approx(expected)
    # A state without variance has nothing to forget.
    assert float(correlation(jnp.ones((2, 5)), jnp.ones((2, 5)))) == 0.0


def test_walkers_near_a_node_do_not_decide():
    """Chains with ρ = 0.8 and one outlier in a hundred, redrawn at each update: without clipping ρ would be 0.03."""
    config = replace(TINY, sampling=replace(TINY.sampling, sweeps=1))
    rng = np.random.default_rng(1)
    x, pace = rng.standard_normal((2, 256)), initial(config)
    for t in range(2 * WINDOW):
        x = 0.8 * x + 0.6 * rng.standard_normal(x.shape)
        spikes = 50 * (rng.random(x.shape) < 0.01)
        pace = next_pace(config, pace, jnp.asarray(x + spikes + 0j), jnp.asarray(t))
    assert 0.4 < float(pace.correlation) < 0.85


def test_work_counts_what_an_update_does():
    n6 = moire_n6()
    twice = replace(n6, sampling=replace(n6.sampling, walkers=128))
    assert other_work(twice) > other_work(n6) > other_work(replace(n6, optimizer=Adam()))
    one = replace(n6, family=replace(n6.family, lam=(1.0, 1.0, 1)))
    assert other_work(one) < other_work(n6)


def test_moves_of_a_run_are_those_made():
    """The number in the state is what the sampler does: with one move per update acceptances are multiples of 1/M."""
    vmc = Vmc(replace(TINY, sampling=Sampling(walkers=8, burn_in=10)))
    state = vmc.init()
    assert int(state.pace.moves) == START

    def sample(moves):
        pace = jnp.asarray(moves)
        return vmc._sample(state.model, state.key, state.walkers, state.width, pace, vmc.points)

    one, five = sample(1), sample(5)
    np.testing.assert_allclose(np.asarray(one.acceptance) * 8 % 1, 0, atol=1e-9)
    np.testing.assert_allclose(np.asarray(five.acceptance) * 40 % 1, 0, atol=1e-9)
    assert (np.asarray(one.walkers) != np.asarray(five.walkers)).any()
    new, metrics, _ = vmc.step(state)
    assert int(metrics.moves) == START
    assert float(metrics.energy_correlation) == 0.0
    _, metrics, _ = vmc.step(new)
    assert 0 < abs(float(metrics.energy_correlation)) < 1


def test_types_stay_so_that_nothing_is_compiled_twice():
    before, energy = initial(TINY), jnp.zeros((2, 256), complex)
    after = next_pace(TINY, before, energy, jnp.zeros((), int))
    for a, b in zip(before[:2], after[:2], strict=True):
        assert (a.dtype, a.weak_type) == (b.dtype, b.weak_type)

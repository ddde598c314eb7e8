"""One training step. The systems are the smallest that compile, in double precision."""

from dataclasses import dataclass, replace
from functools import cache

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from qernel import analytic
from qernel.cell import Cell
from qernel.config import Adam, Config, Sampling
from qernel.family import Family
from qernel.hamiltonian import Hamiltonian
from qernel.presets import EXACT, free_n7, one_electron
from qernel.sampling import TARGET_ACCEPTANCE
from qernel.stats import estimate
from qernel.types import Electrons, PerElectron
from qernel.units import Material
from qernel.vmc import Vmc

SMALL = replace(EXACT, experts=0, heads=0, film_width=0, jastrow_shells=2, plane_wave_cutoff=60.0)
PAIR = Config(
    family=Family(n_up=2, cell=Cell(supercell=((1, 1), (2, -1))), lam=(0.5, 1.5, 2)),
    network=replace(SMALL, film_width=4),
    sampling=Sampling(walkers=128, sweeps=5, burn_in=100),
    seed=5,
)


vmc_of = cache(Vmc)
"""One object for each configuration, so that its functions are compiled once."""


@cache
def trained(config, steps):
    """(states, metrics) of a run; the first state is that after the burn-in."""
    vmc = vmc_of(config)
    states, metrics = [vmc.init()], []
    for _ in range(steps):
        state, measured, seconds = vmc.step(states[-1])
        states.append(state)
        metrics.append(measured)
    assert set(seconds) == {"sampling", "local energy", "gradient", "solve"}
    return states, metrics


def measured(config):
    """(energy, variance) of each coupling at the start, and the mean of each term."""
    vmc = Vmc(config)
    state = vmc.init()
    terms = vmc._measure(state.model, state.walkers, state.couplings, vmc.points).terms
    energy = np.asarray(terms.total)
    return energy.mean(1), np.var(energy, axis=1), [np.asarray(x).mean(1) for x in terms]


def numbers(state):
    kept = (state.model, state.walkers, state.width, state.pace)
    return [np.asarray(x) for x in jax.tree.leaves(eqx.filter(kept, eqx.is_array))]


def plane_wave_energy(h, cutoff=900.0):
    """Lowest energy of one electron of one moiré cell, without the package's band solver."""
    n = np.stack(np.meshgrid(*[np.arange(-9, 10)] * 2), -1).reshape(-1, 2)
    g = n @ h.cell.moire_reciprocal
    keep = 0.5 * (g**2).sum(1) <= cutoff
    g = g[keep]
    matrix = np.diag(0.5 * ((np.asarray(h.twist) + g) ** 2).sum(1)).astype(complex)
    difference = g[:, None] - g[None]
    for wave in h.cell.potential_wavevectors:
        for sign in (1, -1):
            hit = np.linalg.norm(difference - sign * wave, axis=-1) < 1e-6
            matrix[hit] += -float(h.lam) * float(h.v0) * np.exp(1j * sign * float(h.phi))
    return np.linalg.eigvalsh(matrix)[0]


def test_free_electrons_have_no_variance():
    """Generic twist: the start is the exact ground state, and the energy is the sum of the lowest levels."""
    base = free_n7()
    config = replace(base, network=replace(SMALL, jastrow_shells=1), sampling=Sampling(walkers=4, sweeps=2, burn_in=20))
    energy, variance, _ = measured(config)
    h = config.family.hamiltonian(jnp.asarray([0.0]))
    assert variance[0] < 1e-10
    assert complex(energy[0]) == pytest.approx(analytic.free_electron_energy(h), abs=1e-8)


def test_one_electron_has_no_variance():
    """Generic twist, three depths from one set of tables; the self-interaction ½uξ of the torus is inside."""
    base = one_electron()
    config = replace(
        base,
        family=replace(base.family, lam=(0.25, 2.0, 3)),
        network=replace(SMALL, plane_wave_cutoff=900.0),
        sampling=Sampling(walkers=16, sweeps=2, burn_in=40),
    )
    energies, variance, _ = measured(config)
    assert variance.max() < 1e-10
    for energy, lam in zip(energies.real, (0.25, 1.125, 2.0), strict=True):
        h = config.family.hamiltonian(jnp.asarray([lam]))
        assert energy == pytest.approx(analytic.one_electron_energy(h, 900.0), abs=1e-5)
        madelung = -2.10671132 * float(h.u)
        assert energy == pytest.approx(plane_wave_energy(h) + madelung, abs=1e-5)


@dataclass(frozen=True)
class Stripes:
    """A user's potential: a modulation along b1 alone."""

    depth: float = 5.0

    def __call__(self, r: Electrons, h: Hamiltonian) -> PerElectron:
        return -self.depth * jnp.cos(r @ jnp.asarray(h.cell.moire_reciprocal[0], r.dtype))


def test_user_potential_is_solved_exactly_by_the_start_too():
    base = one_electron()
    family = replace(base.family, lam=(1.0, 1.0, 1), potential=Stripes(), material=Material(epsilon=float("inf")))
    config = replace(
        base,
        family=family,
        network=replace(SMALL, plane_wave_cutoff=900.0),
        sampling=Sampling(walkers=200, sweeps=2, burn_in=20),
    )
    energy, variance, (_, moire, interaction) = measured(config)
    assert variance[0] < 1e-10
    assert moire[0] < -1.0
    assert interaction[0] == 0.0
    # Mathieu's equation along b1 (|b1|² = 16π²/3), free motion across it; both shifted by the twist.
    b1 = config.family.cell.moire_reciprocal[0]
    size, theta = np.linalg.norm(b1), np.array([0.3, 0.1])
    along = theta @ b1 / size
    across = theta - along * b1 / size
    m = np.arange(-15, 16)
    matrix = np.diag(0.5 * (along + m * size) ** 2) - 2.5 * (np.eye(31, k=1) + np.eye(31, k=-1))
    assert energy[0].real == pytest.approx(np.linalg.eigvalsh(matrix)[0] + 0.5 * across @ across, abs=1e-6)


def sampled_energy(vmc, state, repeats=20):
    """Mean energy over the couplings at fixed weights, its error, and the variance of the local energy."""
    energies = []
    for i in range(repeats):
        sampled = vmc._sample(state.model, jax.random.key(i), state.walkers, state.width, state.pace.moves, vmc.points)
        state = state._replace(walkers=sampled.walkers)
        terms = vmc._measure(state.model, state.walkers, state.couplings, vmc.points).terms
        energies.append(np.asarray(terms.total.real))
    each = [estimate(np.stack([e[c] for e in energies])) for c in range(len(energies[0]))]
    error = np.sqrt(sum(e.error**2 for e in each)) / len(each)
    return np.mean([e.mean for e in each]), error, np.mean([e.variance for e in each])


def test_a_few_steps_lower_the_energy():
    states, _ = trained(PAIR, 60)
    before, after = (sampled_energy(vmc_of(PAIR), s) for s in (states[0], states[-1]))
    assert before[0] - after[0] > 5 * np.hypot(before[1], after[1])
    assert after[2] < before[2]


def test_metrics_are_consistent():
    _, metrics = trained(PAIR, 60)
    for m in metrics:
        np.testing.assert_allclose(m.energy, m.kinetic + m.moire + m.interaction, rtol=1e-10)
        assert (m.variance > 0).all()
        assert float(m.fallback) == 0.0
        assert 0 < float(m.update_norm) <= PAIR.optimizer.max_norm * (1 + 1e-6)
        assert (np.abs(m.energy_imag) < 6 * np.sqrt(m.variance / PAIR.sampling.walkers)).all()
    # ψ is C¹: both forms of the kinetic energy agree. Steps are correlated: one in four counts, 5σ.
    gap = np.array([m.kinetic_gap for m in metrics])
    assert abs(gap.mean()) < 5 / np.sqrt(len(metrics) / 4)
    # As many moves are accepted as asked for once widths have adapted.
    assert np.abs(metrics[-1].acceptance - TARGET_ACCEPTANCE).max() < 0.25


def test_same_seed_same_numbers_other_seed_other_numbers():
    states, _ = trained(PAIR, 60)
    vmc = vmc_of(PAIR)
    again, _, _ = vmc.step(states[0])
    for a, b in zip(numbers(states[1]), numbers(again), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(numbers(vmc.blank()), numbers(Vmc(PAIR).blank()), strict=True):
        np.testing.assert_array_equal(a, b)
    other = Vmc(replace(PAIR, seed=6)).blank()
    assert (np.asarray(other.walkers) != np.asarray(vmc.blank().walkers)).any()
    assert (np.asarray(other.model.lift.weight) != np.asarray(vmc.blank().model.lift.weight)).any()


def test_order_of_the_couplings_does_not_matter():
    """The same walkers with couplings exchanged: the same update of the weights."""
    states, _ = trained(PAIR, 60)
    vmc, state = vmc_of(PAIR), states[10]
    turned = jax.tree.map(lambda x: x[::-1], (state.walkers, state.couplings, vmc.points))
    updates = []
    for walkers, couplings, points in ((state.walkers, state.couplings, vmc.points), turned):
        measured = vmc._measure(state.model, walkers, couplings, points)
        gradient = vmc._gradient(state.model, walkers, points, measured.terms.total)
        model, _, _ = vmc._update(state.model, gradient, state.optimizer, state.step)
        updates.append(jax.flatten_util.ravel_pytree(eqx.filter(model, eqx.is_inexact_array))[0])
    before = jax.flatten_util.ravel_pytree(eqx.filter(state.model, eqx.is_inexact_array))[0]
    change = updates[0] - before
    assert float(jnp.linalg.norm(change)) > 1e-4
    np.testing.assert_allclose(updates[1] - before, change, atol=1e-7 * float(jnp.abs(change).max()))


def test_adam_step():
    """From a state of the run above, with Adam's own gradient and update."""
    state = trained(PAIR, 60)[0][10]
    vmc = Vmc(replace(PAIR, optimizer=Adam(rate=1e-3)))
    plain = vmc_of(PAIR)
    energy = plain._measure(state.model, state.walkers, state.couplings, plain.points).terms.total
    gradient = vmc._gradient(state.model, state.walkers, plain.points, energy)
    model, _, _ = vmc._update(state.model, gradient, vmc._optimizer_state(state.model), state.step)
    change = np.asarray(model.head.weight - state.model.head.weight)
    # Adam's first step is −rate times the sign of the gradient.
    slope = np.asarray(gradient.head.weight)
    clear = np.abs(slope) > 1e-4
    assert clear.mean() > 0.5
    np.testing.assert_allclose(change[clear], -1e-3 * np.sign(slope[clear]), rtol=1e-3)


def test_moves_stay_in_the_supercell_and_widths_are_positive():
    states, _ = trained(PAIR, 60)
    s = np.asarray(states[-1].walkers) @ np.linalg.inv(PAIR.family.cell.vectors)
    assert (s > -1e-9).all()
    assert (s < 1 + 1e-9).all()
    assert (np.asarray(states[-1].width) > 0).all()
    assert int(states[-1].step) == 60


def test_extra_determinants_do_not_spoil_the_start():
    """Heads are zero at the start: K = 4 is the lead determinant with three others of weight 0.05 each, and its energy
    is that of K = 1 within the errors or 0.2 E0."""
    config = replace(
        PAIR,
        family=Family(n_up=3, lam=(0.5, 1.0, 2)),
        network=replace(SMALL, determinants=4),
        sampling=Sampling(walkers=400, sweeps=10, burn_in=200),
    )
    vmc = Vmc(config)
    four = vmc.init()
    alone = eqx.tree_at(lambda m: m.weights, four.model, four.model.weights.at[0, 1:].set(0.0))
    one = four._replace(model=alone)
    for _ in range(10):
        key, sub = jax.random.split(one.key)
        sampled = vmc._sample(one.model, sub, one.walkers, one.width, one.pace.moves, vmc.points)
        one = one._replace(key=key, walkers=sampled.walkers)
    energy = [
        np.asarray(vmc._measure(s.model, s.walkers, s.couplings, vmc.points).terms.total.real) for s in (one, four)
    ]
    difference = energy[1].mean(1) - energy[0].mean(1)
    sigma = np.sqrt(sum(e.var(1) / 400 for e in energy))
    assert (difference < np.maximum(5 * sigma, 0.2)).all()
    # The others do take part.
    assert np.abs(difference).max() > 0
    assert np.asarray(four.model.weights)[0].tolist() == [1.0, 0.05, 0.05, 0.05]

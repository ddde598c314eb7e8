"""Numbers that are not finite, put into weights, walkers, local energies and the solve: the run heals or stops."""

import os
import signal
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qernel import checkpoint
from qernel.cell import Cell
from qernel.config import Config, Sampling
from qernel.family import Family
from qernel.log import read_log
from qernel.presets import EXACT
from qernel.recovery import REWINDS, TRIES, RunFailed, all_finite, find
from qernel.train import run
from qernel.vmc import Vmc

CONFIG = Config(
    family=Family(n_up=2, cell=Cell(supercell=((1, 1), (2, -1))), lam=(0.5, 1.0, 2)),
    network=replace(EXACT, heads=0, experts=0, jastrow_shells=2, plane_wave_cutoff=40.0),
    sampling=Sampling(walkers=6, sweeps=2, burn_in=4),
    steps=6,
    checkpoint_steps=2,
)
STEP = Vmc.step


def nan_weights(state):
    return state._replace(model=jax.tree.map(lambda x: x * jnp.nan if eqx.is_inexact_array(x) else x, state.model))


def nan_walkers(state, chosen=np.s_[1, 2:4]):
    return state._replace(walkers=state.walkers.at[chosen].set(jnp.nan))


class Injection:
    """Vmc.step with a fault at some step: before it, in what it is given, or after it, in what it returns."""

    def __init__(self, step, before=None, after=None, times=1, energy=False):
        self.step, self.before, self.after, self.left, self.energy = step, before, after, times, energy

    def __call__(self, vmc, state):
        hit = int(state.step) == self.step and self.left > 0
        self.left -= hit
        if hit and self.before:
            state = self.before(state)
        self.given = state
        new, metrics, seconds = STEP(vmc, state)
        if hit and self.energy:
            metrics = metrics._replace(energy=metrics.energy * np.nan)
        return (self.after(new) if hit and self.after else new), metrics, seconds


@pytest.fixture
def train(tmp_path, monkeypatch, capsys):
    """Train with an injection: (final state or the failure, console, log, folder)."""

    def with_fault(injection, config=CONFIG):
        monkeypatch.setattr(Vmc, "step", lambda vmc, state: injection(vmc, state))
        # As if memory had been damaged before the step: the loop, too, sees what the step was given.
        monkeypatch.setattr("qernel.train.find", lambda vmc, _, *rest: find(vmc, injection.given, *rest))
        try:
            end = run(config, tmp_path / "run")
        except RunFailed as failure:
            end = failure
        return end, capsys.readouterr().err, read_log(tmp_path / "run" / "train.csv"), tmp_path / "run"

    return with_fault


def good(folder):
    """Every checkpoint is finite."""
    for path in checkpoint.checkpoints(folder / "checkpoints"):
        assert all(np.isfinite(x).all() for x in checkpoint.load_arrays(path).values() if x.dtype.kind == "f")
    return checkpoint.latest(folder / "checkpoints")


def test_broken_walkers_are_put_anew(train):
    state, console, log, folder = train(Injection(3, before=nan_walkers))
    assert int(state.step) == 6
    assert all_finite((state.model, state.walkers))
    assert "step 3: the energy is not finite at λ = 1; 2 walkers put anew, try 1 of 3" in console
    # The step is made once, and its row says what happened before it.
    np.testing.assert_array_equal(log["step"], np.repeat(np.arange(6), 2))
    np.testing.assert_array_equal(log["refreshed"], [0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0])
    good(folder)


def test_new_walkers_are_copies_of_healthy_ones_of_their_coupling():
    vmc = Vmc(CONFIG)
    walkers = vmc.blank().walkers
    chosen = jnp.zeros((2, 6), bool).at[1, 2:4].set(True)
    new = np.asarray(vmc.put_anew(jax.random.key(1), walkers.at[1, 2:4].set(jnp.nan), chosen))
    old = np.asarray(walkers)
    np.testing.assert_array_equal(new[~np.asarray(chosen)], old[~np.asarray(chosen)])
    for w in (2, 3):
        assert any(np.array_equal(new[1, w], old[1, other]) for other in (0, 1, 4, 5))


def test_a_coupling_without_healthy_walkers_begins_again(train):
    state, console, _, _ = train(Injection(3, before=lambda s: nan_walkers(s, np.s_[1])))
    assert int(state.step) == 6
    assert all_finite(state.walkers)
    assert "6 walkers put anew" in console
    # not six copies of one
    assert len(np.unique(np.asarray(state.walkers[1, :, 0, 0]))) == 6


def test_broken_solve_is_tried_again_with_the_old_weights(train):
    state, console, log, _ = train(Injection(3, after=nan_weights, times=2))
    assert int(state.step) == 6
    assert all_finite(state.model)
    assert "step 3: the update of the weights is not finite; other random numbers, try 2 of 3" in console
    assert len(log["step"]) == 12


def test_broken_energies_of_healthy_walkers_are_tried_again(train):
    state, console, log, _ = train(Injection(3, after=nan_weights, energy=True))
    assert int(state.step) == 6
    assert all_finite(state.model)
    assert "step 3: the energy is not finite at λ = 0.5, 1; other random numbers, try 1 of 3" in console
    assert log["refreshed"].sum() == 0


def test_a_rewound_run_that_is_stopped_is_saved(train):
    """Although its step is lower than that of a checkpoint of the future it left."""
    config = replace(CONFIG, checkpoint_steps=4)

    class DamageAndStop(Injection):
        def __call__(self, vmc, state):
            self.given = state
            if int(state.step) == 5:
                damaged.write_bytes(b"")
                self.given = state = nan_weights(state)
                self.left = 0
            elif self.left == 0 and int(state.step) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return STEP(vmc, state)

    _, _, _, folder = train(Injection(99), replace(config, steps=4))
    damaged = checkpoint.latest(folder / "checkpoints")
    state, console, log, _ = train(DamageAndStop(5), replace(config, steps=6))
    assert "back to step 0" in console
    assert int(state.step) == 3
    assert checkpoint.read_header(good(folder)).step == 3
    np.testing.assert_array_equal(np.unique(log["step"]), [0, 1, 2])


def test_broken_weights_go_back_to_the_last_checkpoint(train):
    state, console, log, folder = train(Injection(3, before=nan_weights))
    assert int(state.step) == 6
    assert "step 3: weights or optimiser are not finite; back to step 2 with other random numbers, 1 of 3" in console
    np.testing.assert_array_equal(log["step"], np.repeat(np.arange(6), 2))
    assert good(folder).name == "step_00000006.safetensors"


def test_tries_then_rewinds_then_a_crash_file_with_the_walkers(train):
    failure, console, log, folder = train(Injection(3, before=nan_walkers, times=10**6))
    assert isinstance(failure, RunFailed)
    assert console.count("put anew, try") == (REWINDS + 1) * TRIES
    assert console.count("back to step 2") == REWINDS
    assert "after 3 rewinds" in str(failure)
    assert good(folder).name == "step_00000002.safetensors"
    np.testing.assert_array_equal(np.unique(log["step"]), [0, 1, 2])
    crash = checkpoint.load_arrays(folder / "checkpoints" / "crash_00000003.safetensors")
    np.testing.assert_array_equal(np.argwhere(crash["broken"]), [[1, 2], [1, 3]])
    assert np.isnan(crash["walkers"][1, 2:4]).all()
    assert np.isfinite(crash["state.walkers"]).all()


def test_a_failed_run_goes_on_from_its_last_checkpoint(train, tmp_path):
    train(Injection(3, before=nan_weights, times=10**6))
    state, console, _, _ = train(Injection(99))
    assert "going on from step 2" in console
    assert int(state.step) == 6


def test_every_rewind_draws_other_random_numbers(train):
    walkers = []

    def see(state):
        walkers.append(np.asarray(state.walkers))
        return nan_weights(state)

    train(Injection(3, before=see, times=10**6))
    assert len(walkers) == REWINDS + 1
    for i in range(REWINDS + 1):
        for j in range(i):
            assert not np.array_equal(walkers[i], walkers[j])


def test_healed_run_equals_itself_after_a_restart(train, tmp_path):
    """Interrupted after a fault: the checkpoint before it meets the same fault and heals in the same way."""
    state, _, log, folder = train(Injection(3, before=nan_walkers))
    for path in checkpoint.checkpoints(folder / "checkpoints"):
        if path.name > "step_00000002":
            path.unlink()
    again, _, log_again, _ = train(Injection(3, before=nan_walkers))
    for a, b in zip(jax.tree.leaves(state.walkers), jax.tree.leaves(again.walkers), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(log["energy"], log_again["energy"])


def test_rewinds_count_anew_after_a_new_checkpoint(train):
    """A fault every other checkpoint, more often than `REWINDS` in all."""
    hits = set()

    class AtOddSteps(Injection):
        def __call__(self, vmc, state):
            step = int(state.step)
            if step % 2 == 1 and step not in hits:
                hits.add(step)
                state = nan_weights(state)
            self.given = state
            return STEP(vmc, state)

    state, console, _, _ = train(AtOddSteps(0), replace(CONFIG, steps=12))
    assert int(state.step) == 12
    assert len(hits) == 6 > REWINDS
    assert console.count("1 of 3") == 6

"""The couplings of a scan: which points its axes make, and what is refused before anything is sampled."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

import states
from qernel import measuring
from qernel.cli import build_parser
from qernel.config import Config
from qernel.errors import InputError
from qernel.evaluate import Settings, initial_chains
from qernel.family import Family
from qernel.presets import preset
from qernel.scan_axes import coupling_bytes, scan_grid
from qernel.twists import twist_average
from qernel.vmc import Vmc

TWO = Config(family=Family(lam=(0.5, 1.5, 3), epsilon=(4.0, 20.0, 5)))
TWISTED = Config(family=Family(lam=(0.5, 1.5, 3), epsilon=(4.0, 8.0, 2), twist_1=(-1.4, 1.4, 3), twist_2=(0.0, 1.3, 2)))
LIGHT = Settings(walkers=2, max_sweeps=20, bins=3)


def grid(config, points=None, **axes):
    return scan_grid(config, axes, points, LIGHT)


def test_without_options_a_scan_is_the_trained_grid():
    for config in (TWO, TWISTED):
        np.testing.assert_array_equal(grid(config).couplings, config.family.grid())
        assert grid(config).weights is None


def test_an_axis_replaces_the_trained_points_of_its_coupling_alone():
    found = grid(TWO, lam=(0.6, 1.2, 4)).couplings
    expected = [(lam, eps) for lam in (0.6, 0.8, 1.0, 1.2) for eps in (4, 8, 12, 16, 20)]
    np.testing.assert_allclose(found, expected)
    np.testing.assert_allclose(grid(TWO, lam=(0.6, 1.2, 4), epsilon=(5, 5, 1)).couplings[:, 1], 5)
    assert len(grid(TWO, lam=(0.6, 1.2, 4), epsilon=(5, 10, 2)).couplings) == 8


def test_twists_are_the_fastest_axis():
    vectors, weights = twist_average(TWISTED.family, 3)
    found = grid(TWISTED, 3, epsilon=(5, 6, 2))
    np.testing.assert_array_equal(found.weights, weights)
    rows = found.couplings.reshape(3, 2, len(weights), 4)
    np.testing.assert_array_equal(rows[..., 2:], np.broadcast_to(vectors, rows[..., 2:].shape))
    np.testing.assert_allclose(rows[..., 0], np.broadcast_to([[[0.5]], [[1.0]], [[1.5]]], rows.shape[:3]))
    np.testing.assert_allclose(rows[..., 1], np.broadcast_to([[5.0], [6.0]], rows.shape[:3]))


@pytest.mark.parametrize(
    ("config", "points", "axes", "message"),
    [
        (TWO, None, {"phi_deg": (45, 60, 2)}, "--phi-deg: phi_deg does not vary in this family; .* --lam, --epsilon$"),
        (TWO, None, {"lam": (0.5, 1, 2.5)}, "--lam = .*must be LOW HIGH and a whole number of POINTS"),
        (TWO, None, {"lam": (0.5, 1, 0)}, "--lam = .*whole number of POINTS"),
        (TWO, None, {"lam": (0.5, 1, float("nan"))}, "--lam = .*whole number of POINTS"),
        (TWO, None, {"lam": (0.5, 1, 1)}, "--lam = .*more than 1 point, or LOW = HIGH"),
        (TWO, None, {"lam": (0.5, float("inf"), 2)}, "lam = inf: must be a finite number"),
        (TWO, None, {"epsilon": (-4, 4, 2)}, "epsilon = -4: must be a positive number"),
        (TWO, None, {"lam": (0, 2, 3000)}, r"scan = 15000 couplings \(3000 lam × 5 epsilon\): must be at most 10000"),
        (TWO, None, {"lam": (0, 2, 1e12)}, "must be at most 10000"),
        (TWO, 2, {}, "--twists: twist_1 and twist_2 do not both vary"),
        (TWISTED, 2, {"twist_1": (0, 1, 2)}, "--twist-1 = given: must be left out beside --twists"),
        (TWISTED, 60, {}, r"scan = 10800 couplings \(3 lam × 2 epsilon × 1800 twists\): must be at most 10000"),
    ],
)
def test_impossible_scans_are_refused_in_one_line(config, points, axes, message):
    with pytest.raises(InputError, match=message) as error:
        grid(config, points, **axes)
    assert "\n" not in str(error.value)


def test_a_scan_that_does_not_fit_into_memory_is_refused():
    settings = Settings(walkers=512, max_sweeps=400, target_error=1e-3)
    small = replace(TWO, memory=15.5 * coupling_bytes(TWO, settings) / 2**30)
    assert len(scan_grid(small, {}, None, settings).couplings) == 15
    with pytest.raises(InputError, match=r"needs about .* GiB of memory and may take .*; fewer points than 16, or"):
        scan_grid(small, {"lam": (0.5, 1.5, 4)}, None, settings)


def test_bytes_of_a_coupling_follow_what_is_held():
    """Twice the walkers, sweeps or squares of the density, twice of what they take."""
    energy = Settings(walkers=64, observables=("energy",), target_error=0.1, max_sweeps=100)
    one = coupling_bytes(TWO, energy)
    assert coupling_bytes(TWO, replace(energy, walkers=128)) == 2 * one
    assert coupling_bytes(TWO, replace(energy, max_sweeps=200)) == 2 * one
    maps = [coupling_bytes(TWO, replace(energy, observables=("density",), bins=b)) - one for b in (18, 36)]
    assert maps[1] == 4 * maps[0] > 0


def test_chains_start_from_the_nearest_trained_coupling():
    """Nearest for the network, which is told log ε: 5 is nearer to 2 than to 11, but not by its ratio."""
    config = states.config(n_up=2, cell=states.TORUS, lam=(1.0, 1.0, 1), epsilon=(2.0, 20.0, 3), walkers=4)
    walkers = jnp.arange(3.0)[:, None, None, None] * jnp.ones((3, 4, 2, 2))
    model = replace(states.model_of(config), trained_walkers=walkers, trained_width=np.array([0.1, 0.2, 0.3]))
    np.testing.assert_allclose(model.trained[:, 1], [2, 11, 20])
    found, width = initial_chains(model, np.array([[1.0, 4.5], [1.0, 5.0], [1.0, 15.0]]), 6)
    assert found.shape == (3, 6, 2, 2)
    np.testing.assert_array_equal(found[:, 0, 0, 0], [0, 1, 2])
    np.testing.assert_allclose(width, [0.1, 0.2, 0.3])


def test_sampling_ends_before_the_time_is_over(monkeypatch):
    """Blocks of 20 sweeps of 7 s each, 30 s: four, and not the one that would end at 35 s. At least one in any case."""
    config = replace(preset("one-electron"), sampling=replace(preset("one-electron").sampling, walkers=4))
    vmc = Vmc(config)
    state, clock = vmc.blank(), [0.0]

    def block(*arguments):
        clock[0] += 7.0
        return real(*arguments)

    real = measuring._next_block
    monkeypatch.setattr(measuring, "_next_block", block)
    monkeypatch.setattr(measuring.time, "monotonic", lambda: clock[0])
    for walltime, sweeps in ((30.0, 80), (1.0, 20)):
        settings = Settings(walkers=4, moves=1, burn_in=0, bins=3, observables=("energy",), walltime=walltime)
        first = state.walkers[:1], state.width[:1], vmc.couplings[:1]
        result = measuring.sample(config, state.model, *first, replace(settings, max_sweeps=200))[0]
        assert result.sweeps == sweeps


def test_options_of_the_command_line():
    words = ["scan", "runs/x", "--lam", "0.5", "1", "3", "--phi-deg", "45", "60", "2", "--twists", "4"]
    options = build_parser().parse_args(words)
    assert options.lam == [0.5, 1, 3]
    assert options.phi_deg == [45, 60, 2]
    assert options.period_nm is None
    assert options.twists == 4


def test_preset_over_depth_and_dielectric_constant():
    config = preset("moire-n3-lam-eps")
    couplings = config.family.grid()
    assert config.family.names == ("lam", "epsilon")
    assert 256 <= len(couplings) * config.sampling.walkers <= 512
    assert config.family.outside(config.family.vector(lam=1.0, epsilon=5.0)) == []

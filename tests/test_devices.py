"""Walkers shared among devices give the numbers of one device: weights, walkers and measurements."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qernel import devices

SCRIPT = """
import json, sys
import jax
from qernel.devices import use_cores
use_cores()
jax.config.update("jax_enable_x64", True)
from dataclasses import replace
import numpy as np
from jax.flatten_util import ravel_pytree
import equinox as eqx
from qernel.cell import Cell
from qernel.config import Config, Sampling
from qernel.evaluate import Model, Settings
from qernel.family import Family
from qernel.memory import Plan
from qernel.presets import EXACT
from qernel.vmc import Vmc

def run(plan, walkers):
    network = replace(EXACT, heads=0, experts=0, jastrow_shells=3, plane_wave_cutoff=40.0)
    family = Family(n_up=2, cell=Cell(supercell=((1, 1), (2, -1))), lam=(0.5, 1.5, 2))
    config = Config(family=family, network=network, sampling=Sampling(walkers=walkers, sweeps=5, burn_in=10), seed=5)
    vmc = Vmc(config, chosen=plan)
    state = vmc.init()
    energies = []
    for _ in range(6):  # longer, and rounding grows as in any chaotic system
        state, metrics, _ = vmc.step(state)
        energies.append(metrics.energy.tolist())
    out = {"weights": ravel_pytree(eqx.filter(state.model, eqx.is_inexact_array))[0].tolist(), "energies": energies,
           "walkers": np.asarray(state.walkers).ravel().tolist(), "width": state.width.tolist(),
           "spread": len(state.walkers.sharding.device_set), "moves": int(state.pace.moves)}
    if plan.score_blocks == 1 and jax.device_count() < 3:  # compiling the scan takes most of the time
        model = Model(config, state.model, vmc.couplings, state.walkers, np.asarray(state.width), 3, {})
        every = Settings(walkers=walkers, max_sweeps=20, burn_in=10, bins=6, observables=("all",))
        r = model.scan(vmc.couplings, every)[0]
        out["scan"] = [r.energy.mean, r.energy.error, r.acceptance, *r.density.ravel().tolist()]
        for name, q in r.quantities.items():
            out["scan " + name] = np.nan_to_num([q.value, q.error]).ravel().tolist()
    return out

plan = Plan(chunk=3, move_chunk=5, score_chunk=3, score_blocks=1)
json.dump({
    "held": run(plan, 12),
    "streamed": run(replace(plan, score_blocks=3), 12),
}, sys.stdout)
"""


def _run(count):
    # Not the threads of the test's own process: every device has one, as in a run.
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "NPROC")}
    environment |= {"JAX_NUM_CPU_DEVICES": str(count), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("given", ["", "--xla_cpu_multi_thread_eigen=true"])
def test_no_operation_is_cut_into_parts_unless_asked_for(monkeypatch, given):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    monkeypatch.setenv("XLA_FLAGS", given)
    devices.use_cores()
    assert os.environ["XLA_FLAGS"] == (given or "--xla_cpu_multi_thread_eigen=false")


ONE_CORE = """
import os, sys
from pathlib import Path

os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
if len(sys.argv) > 1:
    from qernel.cli import main
    sys.exit(main(sys.argv[1:]))
from qernel.devices import use_cores

use_cores()
import jax.numpy as jnp

jnp.ones(3).sum().block_until_ready()
print(sum(x.read_text() == "tf_XLAEigen\\n" for x in Path("/proc/self/task").glob("*/comm")))
"""


def _on_one_core(*arguments, seconds):
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "NPROC")} | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", ONE_CORE, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
def test_the_pool_has_threads_left_for_the_parts_of_an_operation():
    done = _on_one_core(seconds=100)
    assert int(done.stdout) == devices.THREADS, done.stderr


@pytest.mark.slow
def test_a_run_on_one_core_does_not_stand_still(tmp_path):
    """Two threads of the pool, one determinant each, waiting for parts that nobody was left to compute: so it ended
    within five steps."""
    family = ["--family.n_up", "18", "--family.cell.supercell", "3", "3", "-3", "6", "--train_at.lam", "2", "2", "1"]
    network = ["--network.init", "mixed", "--network.determinants", "1", "--network.jastrow_shells", "20"]
    sampling = ["--sampling.walkers", "64", "--sampling.sweeps", "10", "--steps", "40"]
    words = ["train", "moire-n6", *family, *network, *sampling, "--run", str(tmp_path / "run")]
    assert _on_one_core(*words, seconds=400).returncode == 0


@pytest.fixture(scope="module")
def one():
    return _run(1)


@pytest.mark.parametrize("count", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_steps_and_a_scan_are_those_of_one_device(one, count):
    many = _run(count)
    # Twelve walkers of each coupling cannot be shared equally by five devices.
    assert all(v["spread"] == {2: 2, 5: 4}[count] for v in many.values())
    for name, expected in one.items():
        assert expected["spread"] == 1
        assert many[name]["moves"] == expected["moves"]
        assert count > 2 or many[name].keys() == expected.keys()
        for quantity in many[name].keys() - {"spread", "moves"}:
            a, b = np.asarray(many[name][quantity]), np.asarray(expected[quantity])
            np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-8 * np.abs(b).max(), err_msg=f"{name} {quantity}")
    assert {"scan", "scan momentum_distribution", "scan susceptibility", "scan overlap"} <= one["held"].keys()
    # The two ways to hold the scores agree with each other, too.
    np.testing.assert_allclose(many["held"]["weights"], many["streamed"]["weights"], rtol=1e-6, atol=1e-7)


def test_walkers_in_turn_are_the_parts_of_the_devices():
    x = jnp.arange(2 * 12).reshape(2, 12)
    turned = np.asarray(devices.in_turn(x, 3)).reshape(2, 4, 3)
    np.testing.assert_array_equal(turned[:, :, 1], x[:, 4:8])
    np.testing.assert_array_equal(devices.own_turns(devices.in_turn(x, 1)), x)


def test_one_device_changes_nothing():
    x = jnp.arange(24.0).reshape(2, 12)
    assert devices.sharing() == 1
    assert devices.total(x) is x
    assert devices.own_walkers(x) is x
    assert devices.all_columns(x) is x
    np.testing.assert_allclose(devices.mean_of_walkers(x), x.mean(1))
    np.testing.assert_array_equal(devices.own_columns(x[0], 15), jnp.pad(x[0], (0, 3)))
    key = jax.random.key(0)
    draw = devices.own(lambda size: jax.random.normal(key, size), 2, 12, 3)
    np.testing.assert_array_equal(draw, jax.random.normal(key, (2, 12, 3)))

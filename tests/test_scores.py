"""X held and X recomputed block by block are the same X."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from qernel.cell import Cell
from qernel.compiling import compiled
from qernel.config import Config, Sampling
from qernel.family import Family
from qernel.memory import Plan
from qernel.presets import EXACT
from qernel.scores import Held, Streamed, derivatives, score_rows
from qernel.spring import Spring
from qernel.start import make_start
from qernel.vmc import Vmc
from qernel.wavefunction import Wavefunction, log_psi

NETWORK = replace(EXACT, experts=6, top_k=2, jastrow_shells=3, plane_wave_cutoff=40.0)
FAMILY = Family(n_up=3, lam=(0.5, 1.5, 2), twist=(0.31, -0.17), cell=Cell(supercell=((2, 1), (-1, 2))))
PAIR = Config(
    family=Family(n_up=2, cell=Cell(supercell=((1, 1), (2, -1))), lam=(0.5, 1.5, 2)),
    network=replace(NETWORK, experts=0, heads=0),
    sampling=Sampling(walkers=6, sweeps=5, burn_in=5),
    seed=5,
)


@pytest.fixture(scope="module")
def system():
    """(model, walkers, points, rows): sparse experts, two couplings of five walkers."""
    start = make_start(FAMILY, NETWORK)
    model, points = Wavefunction(jax.random.key(1), start), start.points(FAMILY.grid())
    rng = np.random.default_rng(0)
    # Heads that start from zero take part.
    model = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape) if eqx.is_inexact_array(x) else x, model)
    walkers = jnp.asarray(rng.random((2, 5, 3, 2)) @ FAMILY.cell.vectors)
    rows = compiled(score_rows)(model, walkers, points)
    return model, walkers, points, rows


def test_derivatives_against_finite_differences(system):
    model, walkers, points, rows = system
    params, static = eqx.partition(model, eqx.is_inexact_array)
    flat, unravel = ravel_pytree(params)
    direction = jnp.asarray(np.random.default_rng(1).normal(size=flat.size))

    @jax.jit
    def value(t):
        out = log_psi(eqx.combine(unravel(flat + t * direction), static), walkers, points)
        return jnp.stack([out.real, out.imag], -1)

    h = 1e-6
    slope = np.asarray(value(h) - value(-h)) / (2 * h)
    slope = (slope - slope.mean(1, keepdims=True)) / np.sqrt(10)
    np.testing.assert_allclose(rows @ direction, slope.reshape(-1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("chunk", "columns"), [(3, 1), (10, 7), (1, 10_000), (4, None)])
def test_streamed_is_held(system, chunk, columns):
    """Blocks of few and of many columns, chunks that do and do not divide the walkers."""
    model, walkers, points, rows = system
    p = rows.shape[1]
    columns = {1: p // 3, 7: p // 7 + 1, None: p - 1}.get(columns, columns)
    rng = np.random.default_rng(2)
    v, y = jnp.asarray(rng.normal(size=p)), jnp.asarray(rng.normal(size=len(rows)))
    held, streamed = Held(rows), Streamed(model, walkers, points, chunk, columns)
    run = compiled(lambda s: (*s.gram_and_times(v), s.transpose_times(y)))
    for a, b in zip(run(streamed), run(held), strict=True):
        scale = np.abs(b).max()
        assert scale > 1e-3
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12 * scale)
    assert Held(rows.astype("float32")).gram_and_times(v.astype("float32"))[0].dtype == jnp.float64


def test_rows_are_centred_for_each_coupling(system):
    model, walkers, points, rows = system
    np.testing.assert_allclose(rows.reshape(2, 5, 2, -1).mean(1), 0.0, atol=1e-13)
    plain = derivatives(model, walkers[1], jax.tree.map(lambda x: jnp.repeat(x[1:], 5, 0), points))
    expected = (plain - plain.mean(0)) / np.sqrt(10)
    np.testing.assert_allclose(rows.reshape(2, 5, 2, -1)[1], expected, rtol=1e-9, atol=1e-12)


def test_the_bound_is_that_of_the_change_of_log_psi(system):
    """Of all walkers of two couplings, less its mean at each, as log ψ changes when the step is made."""
    model, walkers, points, rows = system
    flat, unravel = ravel_pytree(eqx.filter(model, eqx.is_inexact_array))
    spring = Spring(rate=1.0, max_norm=1e6, max_change=1e-4, damping=1e-6)
    residual = jnp.asarray(np.random.default_rng(3).normal(size=len(rows)))
    change, _, info = spring.update(Held(rows), residual, spring.init(flat.size, "float64"), 0)
    assert float(info.bound) < 1
    moved = eqx.apply_updates(model, unravel(change))
    difference = np.asarray(log_psi(moved, walkers, points) - log_psi(model, walkers, points))
    difference = difference - difference.mean(1, keepdims=True)
    assert np.sqrt(np.mean(np.abs(difference) ** 2)) == pytest.approx(1e-4, rel=1e-2)


def test_a_step_does_not_depend_on_the_plan():
    """Weights after two steps: everything at once, and in small pieces."""
    vmc = Vmc(PAIR)
    changes = []
    for plan in (Plan(12, 12, 12, 1), Plan(5, 7, 3, 4)):
        state, other = vmc.init(), vmc.with_plan(plan)
        for _ in range(2):
            state, _, _ = other.step(state)
        changes.append(ravel_pytree(eqx.filter(state.model, eqx.is_inexact_array))[0])
    start = ravel_pytree(eqx.filter(vmc.blank().model, eqx.is_inexact_array))[0]
    size = float(jnp.linalg.norm(changes[0] - start))
    assert size > 1e-3
    assert float(jnp.linalg.norm(changes[1] - changes[0])) < 1e-9 * size

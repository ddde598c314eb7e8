from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qernel.cell import Cell
from qernel.family import Family
from qernel.laplacian import kinetic_energy, map_chunks, value_gradient_laplacian
from qernel.presets import EXACT
from qernel.wavefunction import Wavefunction, make_start

NETWORK = replace(EXACT, jastrow_shells=3, plane_wave_cutoff=40.0)
FAMILY = Family(n_up=3, lam=(0.5, 1.5, 2), twist=(0.31, -0.17), cell=Cell(supercell=((2, 1), (-1, 2))))


def randomised(model, seed=0, scale=0.3):
    """All weights moved, so that heads and responses that start from zero take part."""
    leaves, structure = jax.tree.flatten(eqx.filter(model, eqx.is_inexact_array))
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    moved = [x + scale * jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
    return eqx.combine(jax.tree.unflatten(structure, moved), model)


def build(family):
    start = make_start(family, NETWORK)
    return randomised(Wavefunction(jax.random.key(1), start)), start.points(family.grid())


def positions(family, shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).random((*shape, family.n_electrons, 2)) @ family.cell.vectors)


@pytest.mark.parametrize(
    "family",
    [FAMILY, replace(FAMILY, n_up=1), replace(FAMILY, n_up=1, n_down=1)],
    ids=["N = 3", "N = 1", "one of each spin"],
)
def test_against_plain_second_derivatives(family):
    model, points = build(family)
    point = jax.tree.map(lambda x: x[1], points)
    n = 2 * family.n_electrons

    def parts(flat):
        value = model(flat.reshape(-1, 2), point)
        return jnp.stack([value.real, value.imag])

    @jax.jit
    def both(r):
        forward = value_gradient_laplacian(model, r, point)
        flat = r.reshape(-1)
        gradient = jax.jacrev(parts)(flat)
        hessian = jax.jacfwd(jax.jacrev(parts))(flat)
        laplacian = jnp.trace(hessian, axis1=1, axis2=2)
        return forward, (parts(flat), gradient, laplacian)

    for r in positions(family, (2,)):
        (value, gradient, laplacian), plain = both(r)
        assert gradient.shape == (n,)
        np.testing.assert_allclose(value, plain[0][0] + 1j * plain[0][1], rtol=1e-10)
        expected = plain[1][0] + 1j * plain[1][1]
        np.testing.assert_allclose(gradient, expected, atol=1e-10 * np.abs(expected).max())
        expected = plain[2][0] + 1j * plain[2][1]
        assert abs(laplacian - expected) < 1e-10 * abs(expected)
        # The test would be empty for a real or a plane-wave state.
        assert abs(expected.imag) > 1e-3
        assert abs(expected.real) > 1e-3


def test_kinetic_energy_and_chunks():
    """Numbers do not depend on the chunk."""
    family = replace(FAMILY, n_up=1)
    model, points = build(family)
    walkers = positions(family, (2, 4), seed=3)
    kinetic = eqx.filter_jit(kinetic_energy)
    whole = kinetic(model, walkers, points)
    assert whole.local.shape == whole.from_gradient.shape == (2, 4)
    for a, b in zip(kinetic(model, walkers, points, 2), whole, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    # ψ has both |ψ| and a phase that vary, so that neither form is trivially the other.
    assert np.abs(whole.local - whole.from_gradient).min() > 1e-3


@pytest.mark.parametrize("chunk", [None, 1, 3, 4, 7, 100])
def test_map_chunks_keeps_order(chunk):
    x = jnp.arange(2 * 7 * 3.0).reshape(2, 7, 3)
    out = map_chunks(lambda r: (r.sum(-1), r[..., 0]), x, chunk)
    np.testing.assert_array_equal(out[0], x.sum(-1))
    np.testing.assert_array_equal(out[1], x[..., 0])

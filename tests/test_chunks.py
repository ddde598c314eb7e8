"""Chunks: any size gives the numbers of all walkers at once, each walker with the point of its own coupling."""

import jax.numpy as jnp
import numpy as np
import pytest

from qernel.chunks import fill_chunks, map_chunks, sum_chunks
from qernel.start import Point

RNG = np.random.default_rng(0)
WALKERS = jnp.asarray(RNG.normal(size=(2, 7, 3, 2)))
NONE = jnp.zeros((2, 1, 1))
POINTS = Point(jnp.asarray([[1.0], [10.0]]), jnp.zeros(2), jnp.zeros((2, 2)), NONE, NONE)
SIZES = [None, 1, 2, 3, 4, 7, 13, 14, 100]


def product(r, points):
    """Distinguishes walkers and couplings: Σ r · c."""
    return r.sum(-1) * points.c


EXPECTED = np.asarray(WALKERS).sum(-1) * np.array([1.0, 10.0])[:, None, None]


@pytest.mark.parametrize("chunk", SIZES)
def test_map_keeps_order_and_couplings(chunk):
    out, first = map_chunks(lambda r, p: (product(r, p), r[:, 0]), WALKERS, POINTS, chunk)
    np.testing.assert_allclose(out, EXPECTED, rtol=1e-14)
    np.testing.assert_array_equal(first, WALKERS[:, :, 0])


@pytest.mark.parametrize("chunk", SIZES)
def test_fill_is_map_with_walkers_in_one_axis(chunk):
    out = fill_chunks(product, WALKERS, POINTS, chunk)
    np.testing.assert_allclose(out, EXPECTED.reshape(14, 3), rtol=1e-14)


@pytest.mark.parametrize("chunk", SIZES)
def test_every_walker_is_summed_once(chunk):
    weights = jnp.asarray(RNG.normal(size=(2, 7)))
    out = sum_chunks(lambda r, p, w: (w @ product(r, p), w.sum()), WALKERS, POINTS, weights, chunk)
    np.testing.assert_allclose(out[0], np.einsum("cw,cwn->n", weights, EXPECTED), rtol=1e-12)
    np.testing.assert_allclose(out[1], weights.sum(), rtol=1e-12)

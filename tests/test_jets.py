"""Every layer's rule against plain second derivatives of that layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qernel.jets import Jet, elementwise, film, linear, own_block, several, spread
from qernel.jets_attention import attention
from qernel.jets_experts import experts, gates
from qernel.layers import Attention, Film, Linear
from qernel.moe import MixtureOfExperts, with_experts

WALKERS, N, WIDTH = 2, 3, 4
KEY = jax.random.key(5)
R = jax.random.normal(jax.random.key(1), (WALKERS, N, 2), "float64")
MIX = 0.7 * jax.random.normal(jax.random.key(2), (2 * N, N * WIDTH), "float64")
OWN = 0.7 * jax.random.normal(jax.random.key(3), (2, WIDTH), "float64")


def everything(r):
    """Features that depend on all electrons, [N, width]."""
    return jnp.sin(r.reshape(-1) @ MIX).reshape(N, WIDTH) + 0.3 * jnp.cos(r @ OWN)


def own(r):
    """Features of the own position alone."""
    return jnp.sin(r @ OWN) + 0.2 * jnp.cos(r @ OWN) ** 2


def jet_of(f):
    """Jet of f: [N, 2] → [N, …] at both walkers, over all 2N coordinates, by jax."""

    def flat(r):
        return f(r.reshape(N, 2))

    r = R.reshape(WALKERS, -1)
    value = jax.vmap(flat)(r)
    jacobian = jnp.moveaxis(jax.vmap(jax.jacfwd(flat))(r), -1, 2)
    laplacian = jnp.trace(jax.vmap(jax.jacfwd(jax.jacrev(flat)))(r), axis1=-2, axis2=-1)
    return Jet(*(x.reshape(WALKERS * N, *x.shape[2:]) for x in (value, jacobian, laplacian)))


def narrow(jet):
    """A jet of own positions with its two columns alone."""
    return jet._replace(jacobian=own_block(jet.jacobian, N))


def check(got, wanted):
    for a, b in zip(got, wanted, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10 * np.abs(b).max())
    assert np.abs(wanted.laplacian).max() > 1e-3


def test_own_positions_spread_over_all_coordinates():
    check(spread(narrow(jet_of(own)), N), jet_of(own))


@pytest.mark.parametrize("inputs", [everything, own])
def test_linear_and_elementwise(inputs):
    layer = Linear(KEY, WIDTH, 5, dtype="float64")
    check(linear(layer, jet_of(inputs)), jet_of(lambda r: layer(inputs(r))))
    check(elementwise(jax.nn.gelu, jet_of(inputs)), jet_of(lambda r: jax.nn.gelu(inputs(r))))


def test_function_of_several_numbers():
    def f(x, y):
        return jnp.exp(x) / (2 + jnp.sin(y) * x)

    x = jet_of(everything)
    first, second = (Jet(*(part[..., i] for part in x)) for i in (0, 1))
    check(several(f, first, second), jet_of(lambda r: f(everything(r)[:, 0], everything(r)[:, 1])))


@pytest.mark.parametrize("n_embed", [0, 3])
def test_modulated_norm(n_embed):
    layer = Film(KEY, n_embed, WIDTH, dtype="float64")
    embedding = jnp.linspace(0.5, -1.0, n_embed)
    both = jnp.broadcast_to(embedding, (WALKERS, n_embed))
    check(film(layer, jet_of(everything), both), jet_of(lambda r: layer(everything(r), embedding)))
    # Two columns only: the same numbers.
    check(spread(film(layer, narrow(jet_of(own)), both), N), jet_of(lambda r: layer(own(r), embedding)))


@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 1), (2, 2), (4, 2), (1, 1)])
def test_attention(heads, kv_heads):
    layer = Attention(KEY, WIDTH, heads, kv_heads, dtype="float64")
    check(attention(layer, jet_of(everything), N), jet_of(lambda r: layer(everything(r))))
    check(attention(layer, narrow(jet_of(own)), N), jet_of(lambda r: layer(own(r))))


@pytest.mark.parametrize(("n", "top_k"), [(0, 1), pytest.param(5, 1, marks=pytest.mark.slow), (5, 2), (2, 2)])
@pytest.mark.parametrize("sparse", [True, False])
def test_experts_and_gates(n, top_k, sparse):
    layer = with_experts(MixtureOfExperts(KEY, WIDTH, 6, n, 7, top_k, dtype="float64"), sparse=sparse)
    every = with_experts(layer, sparse=False)
    check(experts(layer, jet_of(everything)), jet_of(lambda r: every(everything(r))))
    check(spread(experts(layer, narrow(jet_of(own))), N), jet_of(lambda r: every(own(r))))
    if n:
        check(gates(layer, jet_of(everything)), jet_of(lambda r: every.gates(everything(r))))

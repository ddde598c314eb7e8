"""Sorting by expert drops nothing and changes no number."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qernel.dispatch import dispatch, expert_product
from qernel.moe import MixtureOfExperts, with_experts

KEY = jax.random.key(0)

CROWDS = {
    "even": lambda rng, n, e: rng.integers(0, e, n),
    "one expert": lambda rng, n, e: np.full(n, e - 1),
    "two experts": lambda rng, n, e: np.where(np.arange(n) % 3 == 0, 0, e // 2),
}


@pytest.mark.parametrize("crowd", CROWDS)
@pytest.mark.parametrize(("pairs", "experts"), [(1, 1), (1, 16), (7, 3), (64, 16), (1000, 5), (1000, 300)])
def test_every_pair_has_a_row_of_its_own_in_a_block_of_its_expert(crowd, pairs, experts):
    expert = jnp.asarray(CROWDS[crowd](np.random.default_rng(1), pairs, experts))
    layout = dispatch(expert, experts)
    row = np.asarray(layout.row)
    assert len(set(row.tolist())) == pairs
    np.testing.assert_array_equal(np.asarray(layout.pair)[row], np.arange(pairs))
    np.testing.assert_array_equal(np.asarray(layout.expert_of_row)[row], expert)


@pytest.mark.parametrize("crowd", CROWDS)
def test_product_and_its_gradients(crowd):
    rng = np.random.default_rng(2)
    expert = jnp.asarray(CROWDS[crowd](rng, 40, 6))
    x, weight, d_y = (jnp.asarray(rng.normal(size=s)) for s in ((40, 3), (6, 3, 4), (40, 4)))

    def plain(x, weight):
        return jnp.einsum("pn,pnm->pm", x, weight[expert])

    got, pull = jax.vjp(lambda x, w: expert_product(x, expert, w), x, weight)
    wanted, plain_pull = jax.vjp(plain, x, weight)
    np.testing.assert_allclose(got, wanted, rtol=1e-12)
    for a, b in zip(pull(d_y), plain_pull(d_y), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_scores_of_each_walker_are_its_own():
    """Under vmap all walkers share one layout; gradients are still those of each walker."""
    layer = MixtureOfExperts(KEY, 4, 5, 7, 6, 2, dtype="float64")
    x = jax.random.normal(KEY, (3, 2, 5, 4), "float64")

    def score(layer, x):
        def total(routed):
            return jnp.sum(jnp.sin(eqx.tree_at(lambda m: m.routed, layer, routed)(x)))

        return jax.grad(total)(layer.routed)

    got = jax.vmap(jax.vmap(lambda x: score(with_experts(layer, sparse=True), x)))(x)
    wanted = jax.vmap(jax.vmap(lambda x: score(with_experts(layer, sparse=False), x)))(x)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert a.shape[:2] == (3, 2)
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qernel.moe import Experts, MixtureOfExperts, smooth_top_k

KEY = jax.random.key(0)


def hard_top_k(scores, k):
    """What must not be used: gates of the k largest scores, the rest cut off."""
    kth = jnp.sort(scores, axis=-1)[..., -k, None]
    return jnp.where(scores >= kth, jax.nn.sigmoid(scores), 0.0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("experts", "k"), [(2, 1), (4, 2), (8, 2), (8, 7), (16, 8)])
def test_never_more_than_k_gates_are_open(experts, k, dtype):
    rng = np.random.default_rng(experts + k)
    normal = rng.normal(size=(2000, experts))
    pairs = np.repeat(rng.normal(size=(200, experts // 2)), 2, axis=1)
    dominated = np.zeros((1, experts))
    dominated[0, 0] = 20.0
    cases = [normal, 0.1 * normal, 30 * normal, 1e3 * normal, pairs, 1e3 * pairs, 0 * normal[:1], dominated, -dominated]
    gates = np.asarray(jax.jit(smooth_top_k, static_argnums=1)(jnp.asarray(np.concatenate(cases), dtype), k))
    assert np.isfinite(gates).all()
    assert (gates >= 0).all()
    assert (gates < 1 + 1e-6).all()
    assert (gates > 0).sum(-1).max() <= k
    # Sparse but not dead: with scores of order one some gate is open for most tokens.
    assert (gates[:2000] > 0).any(-1).mean() > 0.5


@pytest.mark.parametrize(("experts", "k"), [(4, 2), (8, 7)])
def test_gradient_is_finite_everywhere(experts, k):
    scores = np.random.default_rng(0).normal(size=(50, experts))
    extreme = np.concatenate([scores, 1e3 * scores, 20.0 * np.eye(experts), np.zeros((1, experts))])
    gradient = jax.jit(jax.vmap(jax.grad(lambda s: smooth_top_k(s, k).sum())))(jnp.asarray(extreme, "float32"))
    assert np.isfinite(np.asarray(gradient)).all()


def largest_jump_of_the_slope(gate, h):
    """max over a fine line in score space of |g'(x + h) − g'(x − h)|, with g' by automatic differentiation."""
    start, direction = np.random.default_rng(5).normal(size=(2, 6))

    def g(t):
        return gate(jnp.asarray(start) + t * jnp.asarray(direction), 2) @ jnp.arange(1.0, 7.0)

    slope = jax.jit(jax.vmap(jax.grad(g)))
    x = jnp.linspace(-3, 3, 20001)
    return float(jnp.abs(slope(x + h) - slope(x - h)).max())


def test_gates_are_continuously_differentiable():
    """The change of slope over 2h vanishes with h, across all changes of the active set on the line. The grid is finer
    than h, so that no change is missed."""
    steps = [4e-3, 2e-3, 1e-3]
    jumps = [largest_jump_of_the_slope(smooth_top_k, h) for h in steps]
    assert jumps[0] < 1.0
    assert jumps[1] / jumps[0] == pytest.approx(0.5, abs=0.15)
    assert jumps[2] / jumps[1] == pytest.approx(0.5, abs=0.15)


def test_active_set_changes_on_that_line():
    """Otherwise the test before would prove nothing; and it can fail: hard top-k fails it."""
    start, direction = np.random.default_rng(5).normal(size=(2, 6))
    t = np.linspace(-3, 3, 2001)[:, None]
    open_ = np.asarray(smooth_top_k(jnp.asarray(start + t * direction), 2)) > 0
    changes = (open_[1:] != open_[:-1]).any(-1).sum()
    assert changes >= 3
    jumps = [largest_jump_of_the_slope(hard_top_k, h) for h in (4e-3, 1e-3)]
    assert jumps[1] / jumps[0] > 0.8
    # The derivative by autodiff is the derivative of the function, also beside a change.
    value = jax.jit(lambda t: smooth_top_k(jnp.asarray(start) + t * jnp.asarray(direction), 2))
    slope = jax.jit(jax.jacfwd(value))
    for x in t[:-1][(open_[1:] != open_[:-1]).any(-1), 0]:
        central = (value(x + 1e-5) - value(x - 1e-5)) / 2e-5
        np.testing.assert_allclose(slope(x), central, atol=1e-3)


def test_autodiff_slope_equals_finite_difference_at_random_scores():
    scores = jnp.asarray(np.random.default_rng(6).normal(size=6))
    jacobian = jax.jit(jax.jacfwd(lambda s: smooth_top_k(s, 3)))(scores)
    central = [(smooth_top_k(scores + 1e-5 * e, 3) - smooth_top_k(scores - 1e-5 * e, 3)) / 2e-5 for e in np.eye(6)]
    np.testing.assert_allclose(jacobian, np.stack(central, 1), atol=1e-8)
    # Only differences of scores matter where k < E.
    np.testing.assert_allclose(smooth_top_k(scores + 3.7, 3), smooth_top_k(scores, 3), atol=1e-9)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_derivatives_where_scores_lie_far_apart(k):
    """A shift of all scores moves no gate, and derivatives are those of the values, also below the floor of x."""
    scores = jnp.asarray([[0.3, -5.0, 6.1, -7.5, -2.0, 5.9], [9.0, -9.0, 0.0, -4.0, 9.5, -20.0]])
    np.testing.assert_allclose(smooth_top_k(scores - 3.7, k), smooth_top_k(scores, k), atol=1e-12)
    direction = jnp.asarray(np.random.default_rng(0).normal(size=scores.shape))
    slope = jax.jvp(lambda s: smooth_top_k(s, k), (scores,), (direction,))[1]
    h = 1e-5
    wanted = (smooth_top_k(scores + h * direction, k) - smooth_top_k(scores - h * direction, k)) / (2 * h)
    np.testing.assert_allclose(slope, wanted, atol=1e-9)


call = eqx.filter_jit(lambda f, *x: f(*x))


def layer(experts=5, top_k=2):
    return MixtureOfExperts(KEY, 4, 6, experts, 7, top_k, dtype="float64")


def tokens(seed=1, shape=(3, 5, 4)):
    return jax.random.normal(jax.random.key(seed), shape, "float64")


def test_what_one_walker_gets_never_depends_on_others():
    """Dropless: no capacity is shared, even if every token wants the same expert."""
    moe, x = layer(), tokens()
    crowd = jnp.concatenate([x, jnp.repeat(x[:1], 200, axis=0)])
    np.testing.assert_allclose(call(moe, crowd)[:3], call(moe, x), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(call(moe, x[1]), call(moe, x)[1], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(call(moe, x[:, ::-1]), call(moe, x)[:, ::-1], rtol=1e-12, atol=1e-12)


def test_order_of_the_experts_does_not_matter():
    moe, x = layer(), tokens()
    order = jnp.array([3, 0, 4, 1, 2])
    routed = jax.tree.map(lambda a: a[order], moe.routed)
    shuffled = eqx.tree_at(
        lambda m: (m.routed, m.router.weight, m.router.bias),
        moe,
        (routed, moe.router.weight[:, order], moe.router.bias[order]),
    )
    np.testing.assert_allclose(call(shuffled, x), call(moe, x), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(shuffled.gates(x), moe.gates(x)[..., order], atol=1e-12)
    assert (moe.gates(x) > 0).any()


def test_closed_experts_have_no_influence():
    moe, x = layer(), tokens()
    gates = moe.gates(x)
    closed = gates.at[..., 2].set(0.0)
    changed = eqx.tree_at(lambda e: e.down, moe.routed, moe.routed.down.at[2].set(1e6))
    np.testing.assert_array_equal(changed.dense(x, closed), moe.routed.dense(x, closed))
    assert np.abs(changed.dense(x, closed.at[..., 2].set(0.5)) - moe.routed.dense(x, closed)).max() > 1.0
    for k in (2, 5):
        np.testing.assert_array_equal(changed.sparse(x, closed, k), moe.routed.sparse(x, closed, k))
        np.testing.assert_array_equal(moe.routed.sparse(x, 0 * gates, k), 0.0)
    np.testing.assert_array_equal(moe.routed.dense(x, 0 * gates), 0.0)


def test_experts_are_separate_perceptrons():
    """The one wide matrix product equals a loop over experts."""
    experts = Experts(KEY, 3, 4, 5, dtype="float64")
    x, gates = tokens(), jax.random.uniform(KEY, (3, 5, 3), "float64")
    loop = sum(
        gates[..., e, None] * (jax.nn.gelu(x @ experts.up[e] + experts.up_bias[e]) @ experts.down[e]) for e in range(3)
    )
    np.testing.assert_allclose(call(experts.dense, x, gates), loop, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(call(lambda *x: experts.sparse(*x, 3), x, gates), loop, rtol=1e-12, atol=1e-12)


def test_without_routed_experts_it_is_the_dense_perceptron():
    moe, x = layer(experts=0), tokens()
    assert moe.router is None
    assert moe.routed is None
    dense = moe.shared_down(jax.nn.gelu(moe.shared_up(x)))
    np.testing.assert_allclose(moe(x), dense, rtol=1e-12)


def test_as_many_open_as_there_are_experts_is_allowed():
    gates = smooth_top_k(jnp.asarray([[1.0, -2.0, 0.5]]), 3)
    np.testing.assert_allclose(gates, [[0.5, 0.0, 0.2]])

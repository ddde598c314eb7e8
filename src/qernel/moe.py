"""Mixture of experts for electron tokens: a shared expert, and a sparse router that is C¹ in its scores.

A wavefunction must be continuously differentiable in the electron positions, or the local energy misses
surface terms and the energy is no longer an upper bound. Hard top-k jumps where the k-th and (k+1)-th
score cross. Here expert e of a token with scores s_1 … s_E has the gate

    g_e = t²/(1 + t²),   t = relu(s_e − τ),   τ = (1/p) log[(k + 1) e_{k+1}(x)/e_k(x)],   x_e = exp(p s_e),

where e_k are the elementary symmetric polynomials. Because e_{k+1}/e_k grows with every x_e, it is at
least its value with all but the largest k + 1 scores at −∞ and those levelled to the (k+1)-th, which is
x_(k+1)/(k + 1). So τ ≥ s_(k+1): at most k gates are ever open, for each token by itself, while τ is an
analytic function of the scores and a gate opens with zero slope. Nothing is dropped, no slot overflows,
and what one walker gets never depends on another.
"""

from __future__ import annotations

import copy
import functools
import itertools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qernel.dispatch import expert_product
from qernel.layers import Linear
from qernel.types import Features, Key

SHARPNESS = 4.0
"""p: how closely the threshold τ follows the (k+1)-th score from above."""

SPARSE_FROM = 3
"""Experts per open gate from which tokens are sorted by expert instead of evaluating all: rows of zeros that fill up
blocks and the moving of rows cost about as much as one or two experts."""

FLOOR = 1e-12
"""Share of Σ exp(p s) that every exp(p s) is raised by."""

Scores = Float[Array, "*batch experts"]
Gates = Float[Array, "*batch electrons experts"]


def smooth_top_k(scores: Scores, k: int) -> Scores:
    """Gates in [0, 1), of which at most k are non-zero; C¹ in the scores (see the module's docstring)."""
    return opening(excess(scores, k))


def opening(t: Scores) -> Scores:
    """relu(t)²/(1 + relu(t)²)."""
    t = jnp.maximum(t, 0.0)
    return t * t / (1 + t * t)


def excess(scores: Scores, k: int) -> Scores:
    """s − τ: positive where a gate is open. Without a bound to keep (k = E) τ is 0."""
    if k >= scores.shape[-1]:
        return scores
    # A common shift leaves s − τ unchanged, keeps exp from overflowing and the difference exact.
    scores = scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True))
    return scores - threshold(scores, k)[..., None]


def threshold(scores: Scores, k: int) -> Float[Array, "*batch"]:
    """τ, at least the (k + 1)-th score, for scores whose largest is 0 and k below their number."""
    x = floored(jnp.exp(SHARPNESS * scores))
    # ρ_m = e_m/e_{m−1}, m = 1 … k + 1, taking in one score at a time.
    ratios = [jnp.zeros_like(x[..., 0])] * (k + 1)
    for x_e in jnp.moveaxis(x, -1, 0):
        ratios = [ratios[0] + x_e, *(next_ratio(*pair, x_e) for pair in itertools.pairwise(ratios))]
    return log_ratio(ratios[k], k)


def floored(x: Scores) -> Scores:
    """x_e + floor Σ x: keeps ratios defined, and scales with x, so that a shift of all scores shifts τ exactly."""
    return x + FLOOR * x.sum(-1, keepdims=True)


def next_ratio(low: Array, high: Array, x: Array) -> Array:
    """ρ_m after one more x, from ρ_{m−1} (low) and ρ_m (high) before: nothing in it can underflow."""
    return low * (high + x) / (low + x)


def log_ratio(ratio: Array, k: int) -> Array:
    """τ = (1/p) log[(k + 1) ρ_{k+1}]; the margin keeps k + 1 equal scores closed whatever the rounding."""
    return jnp.log((k + 1) * (1 + 1e-5) * ratio) / SHARPNESS


class Experts(eqx.Module):
    """E perceptrons with one hidden layer, weights stacked on the first axis."""

    up: Float[Array, "experts width hidden"]
    up_bias: Float[Array, "experts hidden"]
    down: Float[Array, "experts hidden width"]

    def __init__(self, key: Key, experts: int, width: int, hidden: int, *, dtype: str):
        k1, k2 = jax.random.split(key)
        self.up = jax.random.normal(k1, (experts, width, hidden), dtype) / width**0.5
        self.up_bias = jnp.zeros((experts, hidden), dtype)
        self.down = jax.random.normal(k2, (experts, hidden, width), dtype) / hidden**0.5

    def dense(self, x: Features, gates: Gates) -> Features:
        """Σ_e g_e down_e(gelu(up_e x)), every expert evaluated (gates of zero remove them exactly)."""
        experts, width, hidden = self.up.shape
        up = self.up.transpose(1, 0, 2).reshape(width, experts * hidden)
        y = jax.nn.gelu(x @ up + self.up_bias.reshape(-1))
        y = y.reshape(*y.shape[:-1], experts, hidden) * gates[..., None]
        return y.reshape(*y.shape[:-2], experts * hidden) @ self.down.reshape(experts * hidden, width)

    def sparse(self, x: Features, gates: Gates, k: int) -> Features:
        """The same number from the k experts of largest gate, for gates of which at most k are open."""
        _, chosen = jax.lax.top_k(jax.lax.stop_gradient(gates), k)
        gate = jnp.take_along_axis(gates, chosen, axis=-1)
        expert = chosen.reshape(-1)
        pairs = jnp.broadcast_to(x[..., None, :], (*chosen.shape, x.shape[-1])).reshape(-1, x.shape[-1])
        h = jax.nn.gelu(expert_product(pairs, expert, self.up) + self.up_bias[expert])
        y = expert_product(h, expert, self.down).reshape(*chosen.shape, -1)
        # Term by term: as one sum over an axis of length k it takes several times longer.
        return functools.reduce(jnp.add, (gate[..., i, None] * y[..., i, :] for i in range(k)))


class MixtureOfExperts(eqx.Module):
    """Shared expert + routed experts: y = shared(x) + Σ_e g_e(x) expert_e(x). arXiv:1701.06538.

    Without routed experts it is the dense perceptron of a PsiFormer block.
    """

    shared_up: Linear
    shared_down: Linear
    router: Linear | None
    routed: Experts | None
    top_k: int = eqx.field(static=True)
    sparse: bool = eqx.field(static=True)
    """whether only the chosen experts of a token are evaluated"""

    def __init__(self, key: Key, width: int, shared: int, experts: int, hidden: int, top_k: int, *, dtype: str):
        k = jax.random.split(key, 4)
        self.shared_up = Linear(k[0], width, shared, dtype=dtype)
        self.shared_down = Linear(k[1], shared, width, dtype=dtype)
        self.router = Linear(k[2], width, experts, scale=1.5, dtype=dtype) if experts else None
        self.routed = Experts(k[3], experts, width, hidden, dtype=dtype) if experts else None
        self.top_k = top_k
        self.sparse = experts >= SPARSE_FROM * top_k

    def gates(self, x: Features) -> Gates:
        """Gate of every routed expert for every token, [*batch, electrons, experts]."""
        assert self.router is not None
        return smooth_top_k(self.router(x), self.top_k)

    def __call__(self, x: Features) -> Features:
        y = self.shared_down(jax.nn.gelu(self.shared_up(x)))
        if self.routed is None:
            return y
        gates = self.gates(x)
        return y + (self.routed.sparse(x, gates, self.top_k) if self.sparse else self.routed.dense(x, gates))


def with_experts(model: Any, *, sparse: bool) -> Any:
    """A copy of the model whose layers evaluate only the chosen experts, or all: the numbers are the same."""

    def change(layer: Any) -> Any:
        if isinstance(layer, MixtureOfExperts):
            layer = copy.copy(layer)
            object.__setattr__(layer, "sparse", sparse)  # a static field: no leaf for eqx.tree_at
        return layer

    return jax.tree.map(change, model, is_leaf=lambda x: isinstance(x, MixtureOfExperts))

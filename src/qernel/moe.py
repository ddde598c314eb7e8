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

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qernel.layers import Linear
from qernel.types import Features, Key

SHARPNESS = 4.0
"""p: how closely the threshold τ follows the (k+1)-th score from above."""

FLOOR = 1e-12
"""Smallest exp(p s) kept apart from 0."""

Scores = Float[Array, "*batch experts"]
Gates = Float[Array, "*batch electrons experts"]


def smooth_top_k(scores: Scores, k: int) -> Scores:
    """Gates in [0, 1), of which at most k are non-zero; C¹ in the scores (see the module's docstring)."""
    if k >= scores.shape[-1]:  # no bound to keep: the threshold is 0
        t = jnp.maximum(scores, 0.0)
        return t * t / (1 + t * t)
    # A common shift leaves s − τ unchanged and keeps exp from overflowing; the floor keeps ratios defined.
    shifted = SHARPNESS * scores
    shifted = shifted - jax.lax.stop_gradient(shifted.max(-1, keepdims=True))
    x = jnp.exp(shifted) + FLOOR
    # ρ_m = e_m/e_{m−1}, taking in one score at a time: ρ_m ← ρ_{m−1}(ρ_m + x)/(ρ_{m−1} + x), which cannot underflow.
    ratios = jnp.zeros((*x.shape[:-1], k + 1), x.dtype)
    for e in range(scores.shape[-1]):
        x_e, low, high = x[..., e, None], ratios[..., :-1], ratios[..., 1:]
        ratios = jnp.concatenate([ratios[..., :1] + x_e, low * (high + x_e) / (low + x_e)], axis=-1)
    # The margin keeps k + 1 equal scores closed whatever the rounding.
    threshold = jnp.log((k + 1) * (1 + 1e-5) * (ratios[..., k:] + FLOOR))
    t = jnp.maximum((shifted - threshold) / SHARPNESS, 0.0)
    return t * t / (1 + t * t)


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

    def __call__(self, x: Features, gates: Gates) -> Features:
        """Σ_e g_e down_e(gelu(up_e x)), every expert evaluated (gates of zero remove them exactly)."""
        experts, width, hidden = self.up.shape
        up = self.up.transpose(1, 0, 2).reshape(width, experts * hidden)
        y = jax.nn.gelu(x @ up + self.up_bias.reshape(-1))
        y = y.reshape(*y.shape[:-1], experts, hidden) * gates[..., None]
        return y.reshape(*y.shape[:-2], experts * hidden) @ self.down.reshape(experts * hidden, width)


class MixtureOfExperts(eqx.Module):
    """Shared expert + routed experts: y = shared(x) + Σ_e g_e(x) expert_e(x). arXiv:1701.06538.

    Without routed experts it is the dense perceptron of a PsiFormer block.
    """

    shared_up: Linear
    shared_down: Linear
    router: Linear | None
    routed: Experts | None
    top_k: int = eqx.field(static=True)

    def __init__(self, key: Key, width: int, shared: int, experts: int, hidden: int, top_k: int, *, dtype: str):
        k = jax.random.split(key, 4)
        self.shared_up = Linear(k[0], width, shared, dtype=dtype)
        self.shared_down = Linear(k[1], shared, width, dtype=dtype)
        self.router = Linear(k[2], width, experts, scale=1.5, dtype=dtype) if experts else None
        self.routed = Experts(k[3], experts, width, hidden, dtype=dtype) if experts else None
        self.top_k = top_k

    def gates(self, x: Features) -> Gates:
        """Gate of every routed expert for every token, [*batch, electrons, experts]."""
        assert self.router is not None
        return smooth_top_k(self.router(x), self.top_k)

    def __call__(self, x: Features) -> Features:
        y = self.shared_down(jax.nn.gelu(self.shared_up(x)))
        return y if self.routed is None else y + self.routed(x, self.gates(x))

"""Jet of self-attention. With P̂_ij = exp(S_ij − log Σ_l exp S_il), the subtracted number held fixed,

    O = Σ_j P̂_ij v_j / Σ_j P̂_ij,   ∂_a P̂ = P̂ ∂_a S,   ΔP̂ = P̂ (ΔS + ∂_a S ∂_a S),

so numerator and denominator share their products: the denominator is the numerator of a value that is 1.

Axes: b walkers × key/value heads, s query heads of the group × electrons, i.e. (q, i), j electrons, a coordinates,
d features of a head. Every product is a matrix product over (b); nothing of size s × a × j is transposed.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qernel.jets import Jet, linear
from qernel.layers import Attention, Linear, softmax


def attention(layer: Attention, x: Jet, electrons: int) -> Jet:
    """Self-attention among the tokens of each walker; the result has all 2N coordinates."""
    groups = layer.heads // layer.kv_heads

    def split(projection: Linear, groups: int) -> Jet:
        """Projected jet by head, [b, (q, i), (a,) d]."""

        def heads(y: Array) -> Array:
            middle = y.shape[1:-1]
            y = y.reshape(-1, electrons, *middle, layer.kv_heads, groups, layer.head_width)
            y = jnp.moveaxis(y, (-3, -2), (1, 2))
            return y.reshape(-1, groups * electrons, *middle, layer.head_width)

        return Jet(*map(heads, linear(projection, x)))

    q = Jet(*(y / math.sqrt(layer.head_width) for y in split(layer.query, groups)))
    k, v = split(layer.key, 1), split(layer.value, 1)
    weight = softmax(jnp.einsum("bsd,bjd->bsj", q.value, k.value))
    out = _first(q, k, v, weight) if x.jacobian.shape[1] < 2 * electrons else _general(q, k, v, weight)

    def joined(y: Array) -> Array:
        middle = y.shape[2:-1]
        y = y.reshape(-1, layer.kv_heads, groups, electrons, *middle, layer.head_width)
        return jnp.moveaxis(y, (1, 2), (-3, -2)).reshape(-1, *middle, layer.heads * layer.head_width)

    return linear(layer.out, Jet(*map(joined, out)))


def _general(q: Jet, k: Jet, v: Jet, weight: Float[Array, "b s j"]) -> Jet:
    b, rows, coordinates, _ = q.jacobian.shape
    n = weight.shape[-1]
    d_k, d_v = (jnp.swapaxes(y.jacobian, 1, 2) for y in (k, v))  # [b, a, j, d]

    def flat(y: Float[Array, "b s a j"]) -> Float[Array, "bs a j"]:
        return y.reshape(b * rows, coordinates, n)

    d_score = flat(jnp.einsum("bsad,bjd->bsaj", q.jacobian, k.value))
    d_score = d_score + flat(jnp.einsum("bsd,bajd->bsaj", q.value, d_k))
    l_score = _l_score(q, k) + 2 * jnp.einsum("bsad,bjad->bsj", q.jacobian, k.jacobian)
    d_weight = weight.reshape(b * rows, 1, n) * d_score
    l_weight = weight * l_score + jnp.sum(d_weight * d_score, 1).reshape(weight.shape)
    d_weight = d_weight.reshape(b, rows, coordinates, n)
    ones = jnp.ones_like(v.value[..., :1])
    top = jnp.einsum("bsaj,bjd->bsad", d_weight, jnp.concatenate([v.value, ones], -1))
    d_top = top[..., :-1] + jnp.einsum("bsj,bjad->bsad", weight, v.jacobian)
    l_top = _l_top(v, weight, l_weight) + 2 * jnp.einsum("bsaj,bajd->bsd", d_weight, d_v)
    return _quotient(weight, v, d_top, top[..., -1], l_top, l_weight)


def _first(q: Jet, k: Jet, v: Jet, weight: Float[Array, "b s j"]) -> Jet:
    """Among tokens that depend on their own position alone: S_ij on r_i and r_j only, so N² and not N³ products."""
    b, rows, n = weight.shape
    from_i = jnp.einsum("bscd,bjd->bsjc", q.jacobian, k.value)
    from_j = jnp.einsum("bsd,bjcd->bsjc", q.value, k.jacobian)
    same = jnp.asarray(np.tile(np.eye(n), (rows // n, 1)), weight.dtype)
    l_own = jnp.einsum("bgicd,bicd->bgi", q.jacobian.reshape(b, -1, *k.jacobian.shape[1:]), k.jacobian)
    l_score = _l_score(q, k) + 2 * same * l_own.reshape(b, rows, 1)
    squared = jnp.sum(from_i**2 + from_j**2 + 2 * same[..., None] * from_i * from_j, -1)
    l_weight = weight * (l_score + squared)
    w_i, w_j = weight[..., None] * from_i, weight[..., None] * from_j
    # Along r_j through weight and value of j; along r_i through all weights of i.
    own = jnp.einsum("bsjc,bjd->bscd", w_i, v.value)[:, :, None]
    d_top = w_j[..., None] * v.value[:, None, :, None] + weight[..., None, None] * v.jacobian[:, None]
    d_top = d_top + same[..., None, None] * own
    d_bottom = w_j + same[..., None] * w_i.sum(2)[:, :, None]
    l_top = _l_top(v, weight, l_weight) + 2 * jnp.einsum("bsjc,bjcd->bsd", w_j + same[..., None] * w_i, v.jacobian)
    d_top, d_bottom = d_top.reshape(b, rows, 2 * n, -1), d_bottom.reshape(b, rows, 2 * n)
    return _quotient(weight, v, d_top, d_bottom, l_top, l_weight)


def _l_score(q: Jet, k: Jet) -> Float[Array, "b s j"]:
    """q̈·k + q·k̈."""
    return jnp.einsum("bsd,bjd->bsj", q.laplacian, k.value) + jnp.einsum("bsd,bjd->bsj", q.value, k.laplacian)


def _l_top(v: Jet, weight: Float[Array, "b s j"], l_weight: Float[Array, "b s j"]) -> Float[Array, "b s d"]:
    """Σ_j ΔP̂ v + P̂ Δv."""
    return jnp.einsum("bsj,bjd->bsd", l_weight, v.value) + jnp.einsum("bsj,bjd->bsd", weight, v.laplacian)


def _quotient(weight: Array, v: Jet, d_top: Array, d_bottom: Array, l_top: Array, l_weight: Array) -> Jet:
    """O = top/bottom at bottom = 1: ∂O = ∂top − O ∂bottom, ΔO = Δtop − O Δbottom − 2 ∂_a bottom ∂_a O."""
    b, rows, coordinates, width = d_top.shape
    out = jnp.einsum("bsj,bjd->bsd", weight, v.value)
    d_top, d_bottom = d_top.reshape(-1, coordinates, width), d_bottom.reshape(-1, coordinates, 1)
    d_out = d_top - out.reshape(-1, 1, width) * d_bottom
    cross = jnp.sum(d_bottom * d_out, 1).reshape(out.shape)
    l_out = l_top - out * l_weight.sum(-1, keepdims=True) - 2 * cross
    return Jet(out, d_out.reshape(b, rows, coordinates, width), l_out)

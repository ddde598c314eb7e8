"""Jet of self-attention, O_i = Σ_j P_ij v_j. With P_ij = exp(S_ij − L_i), L_i = log Σ_j exp S_ij,

    ∂_a P = P (∂_a S − ∂_a L),   ΔP = P (ΔS − ΔL + Σ_a (∂_a S − ∂_a L)²),   ∂_a L = Σ_j P ∂_a S,

and ΔL follows from Σ_j ΔP_ij = 0.

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
    flat_weight = weight.reshape(b * rows, 1, n)
    centred = d_score - d_score @ jnp.swapaxes(flat_weight, 1, 2)
    d_weight = flat_weight * centred
    l_weight = weight * (l_score + jnp.sum(centred**2, 1).reshape(weight.shape))
    l_weight = l_weight - weight * l_weight.sum(-1, keepdims=True)
    d_weight = d_weight.reshape(b, rows, coordinates, n)
    d_out = jnp.einsum("bsaj,bjd->bsad", d_weight, v.value) + jnp.einsum("bsj,bjad->bsad", weight, v.jacobian)
    l_out = _l_out(v, weight, l_weight) + 2 * jnp.einsum("bsaj,bajd->bsd", d_weight, d_v)
    return Jet(jnp.einsum("bsj,bjd->bsd", weight, v.value), d_out, l_out)


def _first(q: Jet, k: Jet, v: Jet, weight: Float[Array, "b s j"]) -> Jet:
    """Among tokens that depend on their own position alone: S_ij on r_i and r_j only, so N² and not N³ products."""
    b, rows, n = weight.shape
    from_i = jnp.einsum("bscd,bjd->bsjc", q.jacobian, k.value)
    from_j = jnp.einsum("bsd,bjcd->bsjc", q.value, k.jacobian)
    same = jnp.asarray(np.tile(np.eye(n), (rows // n, 1)), weight.dtype)[..., None]
    p = weight[..., None]
    # t = ∂ log Σ_j exp S_ij along every r_l; all of it along r_i besides.
    t = p * from_j + same * jnp.sum(p * from_i, 2, keepdims=True)
    t_own = jnp.sum(same * t, 2, keepdims=True)
    l_own = jnp.einsum("bgicd,bicd->bgi", q.jacobian.reshape(b, -1, *k.jacobian.shape[1:]), k.jacobian)
    l_score = _l_score(q, k) + 2 * same[..., 0] * l_own.reshape(b, rows, 1)
    # |∂S_ij − t|² without |t|², which is the same for all j and leaves P alone.
    squared = from_i**2 + from_j**2 + 2 * same * from_i * from_j - 2 * (from_j * t + from_i * t_own)
    l_weight = weight * (l_score + squared.sum(-1))
    l_weight = l_weight - weight * l_weight.sum(-1, keepdims=True)
    value = jnp.einsum("bsj,bjd->bsd", weight, v.value)
    # ∂_l O_i = P_il [∂_l S_il (v_l − O_i) + ∂_l v_l] + (l = i) Σ_j P_ij ∂_i S_ij (v_j − O_i)
    away = v.value[:, None] - value[:, :, None]
    own = jnp.einsum("bsjc,bsjd->bscd", p * from_i, away)[:, :, None]
    d_out = (p * from_j)[..., None] * away[:, :, :, None] + p[..., None] * v.jacobian[:, None]
    d_out = (d_out + same[..., None] * own).reshape(b, rows, 2 * n, -1)
    d_weight = p * (from_j + same * from_i - t)
    l_out = _l_out(v, weight, l_weight) + 2 * jnp.einsum("bsjc,bjcd->bsd", d_weight, v.jacobian)
    return Jet(value, d_out, l_out)


def _l_score(q: Jet, k: Jet) -> Float[Array, "b s j"]:
    """q̈·k + q·k̈."""
    return jnp.einsum("bsd,bjd->bsj", q.laplacian, k.value) + jnp.einsum("bsd,bjd->bsj", q.value, k.laplacian)


def _l_out(v: Jet, weight: Float[Array, "b s j"], l_weight: Float[Array, "b s j"]) -> Float[Array, "b s d"]:
    """Σ_j ΔP v + P Δv."""
    return jnp.einsum("bsj,bjd->bsd", l_weight, v.value) + jnp.einsum("bsj,bjd->bsd", weight, v.laplacian)

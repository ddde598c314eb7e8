"""Building blocks of the trunk: linear maps, FiLM-modulated norm, grouped-query attention.

Everything acts on features [*batch, electrons, width] and keeps electrons on the last-but-one axis.
"""

from __future__ import annotations

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qernel.types import Features, Key

NORM_FLOOR = 1e-5
"""added to the variance of a norm's input"""


class Linear(eqx.Module):
    """y = x W (+ b), W [n_in, n_out] drawn with variance scale²/n_in."""

    weight: Float[Array, "n_in n_out"]
    bias: Float[Array, " n_out"] | None

    def __init__(self, key: Key, n_in: int, n_out: int, *, scale: float = 1.0, bias: bool = True, dtype: str):
        self.weight = scale / math.sqrt(n_in) * jax.random.normal(key, (n_in, n_out), dtype)
        self.bias = jnp.zeros(n_out, dtype) if bias else None

    def __call__(self, x: Float[Array, "*batch n_in"]) -> Float[Array, "*batch n_out"]:
        y = x @ self.weight
        return y if self.bias is None else y + self.bias


class Film(eqx.Module):
    """Feature-wise modulation γ = 1 + W_γ e, β = W_β e of a normalised feature by an embedding e(c).

    FiLM, arXiv:1709.07871. With `n_embed = 0` it is the usual affine layer norm.
    """

    scale: Float[Array, " width"]
    shift: Float[Array, " width"]
    modulation: Linear | None

    def __init__(self, key: Key, n_embed: int, width: int, *, dtype: str):
        self.scale = jnp.ones(width, dtype)
        self.shift = jnp.zeros(width, dtype)
        self.modulation = Linear(key, n_embed, 2 * width, scale=0.1, bias=False, dtype=dtype) if n_embed else None

    def __call__(self, x: Features, embedding: Float[Array, " n_embed"]) -> Features:
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        x = centred * jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + NORM_FLOOR)
        scale, shift = self.modulated(embedding)
        return x * scale + shift

    def modulated(self, embedding: Float[Array, " n_embed"]) -> tuple[Float[Array, " width"], Float[Array, " width"]]:
        """Scale γ and shift β at one coupling."""
        if self.modulation is None:
            return self.scale, self.shift
        d_scale, d_shift = jnp.split(self.modulation(embedding), 2)
        return self.scale + d_scale, self.shift + d_shift


class Attention(eqx.Module):
    """Self-attention among electrons in which `heads` query heads share `kv_heads` keys and values.

    Grouped-query attention, arXiv:2305.13245; kv_heads = heads is plain multi-head attention.
    """

    query: Linear
    key: Linear
    value: Linear
    out: Linear
    heads: int = eqx.field(static=True)
    kv_heads: int = eqx.field(static=True)

    def __init__(self, key: Key, width: int, heads: int, kv_heads: int, *, dtype: str):
        head = width // heads
        k = jax.random.split(key, 4)
        self.query = Linear(k[0], width, width, bias=False, dtype=dtype)
        self.key = Linear(k[1], width, kv_heads * head, bias=False, dtype=dtype)
        self.value = Linear(k[2], width, kv_heads * head, bias=False, dtype=dtype)
        self.out = Linear(k[3], width, width, bias=False, dtype=dtype)
        self.heads, self.kv_heads = heads, kv_heads

    def __call__(self, x: Features) -> Features:
        *batch, n, width = x.shape
        groups = self.heads // self.kv_heads

        def split(y: Features, groups: int) -> Array:
            """[*batch, kv, (group, electron), d]: matrix products without transpositions, also backwards."""
            y = y.reshape(*batch, n, self.kv_heads, groups, self.head_width)
            return jnp.moveaxis(y, -4, -2).reshape(*batch, self.kv_heads, groups * n, self.head_width)

        q = split(self.query(x), groups) / math.sqrt(self.head_width)
        k, v = split(self.key(x), 1), split(self.value(x), 1)
        mixed = softmax(q @ jnp.swapaxes(k, -1, -2)) @ v
        mixed = mixed.reshape(*batch, self.kv_heads, groups, n, self.head_width)
        return self.out(jnp.moveaxis(mixed, -2, -4).reshape(*batch, n, width))

    @property
    def head_width(self) -> int:
        """Features of one head."""
        return self.query.weight.shape[1] // self.heads


def softmax(score: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
    """exp(s)/Σ exp(s), the largest s subtracted first."""
    weight = jnp.exp(score - jax.lax.stop_gradient(score.max(-1, keepdims=True)))
    return weight / weight.sum(-1, keepdims=True)

"""Tokens sorted by expert into padded blocks, so that every block is one matrix product with one expert's weights.

Nothing is dropped and no shape depends on data: P pairs (token, expert) fill at most P/b + E blocks of b rows. Empty
rows are computed and never read. The layout of a batch of walkers is one layout of all their tokens.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float, Int

Pairs = Int[Array, " pairs"]


class Dispatch(NamedTuple):
    """Where the pairs are in the padded layout."""

    row: Pairs
    """row of each pair"""
    pair: Int[Array, " rows"]
    """pair of each row; 0 for an empty row"""
    expert: Int[Array, " blocks"]
    """expert of each block"""

    @property
    def expert_of_row(self) -> Int[Array, " rows"]:
        """Expert of each row."""
        return jnp.repeat(self.expert, self.pair.shape[0] // self.expert.shape[0])


def dispatch(expert: Pairs, experts: int) -> Dispatch:
    """Sort pairs by their expert (0 … experts − 1), each expert's pairs from the start of a block."""
    size = expert.shape[0]
    block = rows_of_block(size, experts)
    blocks = size // block + min(experts, size)
    order = jnp.argsort(expert)  # stable
    count = jnp.sum(expert[:, None] == jnp.arange(experts), 0)
    padded = -(-count // block) * block
    first, first_padded = jnp.cumsum(count) - count, jnp.cumsum(padded) - padded
    of_sorted = expert[order]
    row_of_sorted = first_padded[of_sorted] + jnp.arange(size) - first[of_sorted]
    row = jnp.zeros(size, row_of_sorted.dtype).at[order].set(row_of_sorted)
    pair = jnp.zeros(blocks * block, order.dtype).at[row_of_sorted].set(order)
    ends = jnp.cumsum(padded)
    of_block = jnp.searchsorted(ends, jnp.arange(blocks) * block, side="right")
    return Dispatch(row, pair, jnp.minimum(of_block, experts - 1))


def rows_of_block(pairs: int, experts: int) -> int:
    """A power of two near a quarter of an expert's mean load: small blocks waste little, large ones multiply faster."""
    return 2 ** min(max(round(math.log2(max(pairs / experts / 4, 1))), 2), 6)


def blocked_product(
    x: Float[Array, "rows *middle n"], layout: Dispatch, weight: Float[Array, "experts n m"]
) -> Float[Array, "rows *middle m"]:
    """x_r W[expert of r] for rows in the padded layout; one product a block, over its rows and what they carry."""
    blocks = x.reshape(layout.expert.shape[0], -1, x.shape[-1])
    return (blocks @ weight[layout.expert]).reshape(*x.shape[:-1], weight.shape[-1])


@jax.custom_vjp
def expert_product(
    x: Float[Array, "pairs n"], expert: Pairs, weight: Float[Array, "experts n m"]
) -> Float[Array, "pairs m"]:
    """y_p = x_p W[expert_p]. Under vmap over x and expert it stays one product over all walkers' pairs."""
    return _product(x, expert, weight)


@custom_vmap
def _product(x: Array, expert: Array, weight: Array) -> Array:
    layout = dispatch(expert, weight.shape[0])
    return blocked_product(x[layout.pair], layout, weight)[layout.row]


@_product.def_vmap
def _product_of_all(size: int, batched: list[bool], x: Array, expert: Array, weight: Array) -> tuple[Array, bool]:
    if batched[2]:  # weights of their own for each member: nothing to merge
        axes = tuple(0 if b else None for b in batched)
        return jax.vmap(lambda x, e, w: jnp.einsum("pn,pnm->pm", x, w[e]), axes)(x, expert, weight), True
    x, expert = (y if b else jnp.broadcast_to(y, (size, *y.shape)) for y, b in zip((x, expert), batched, strict=False))
    y = _product(x.reshape(-1, x.shape[-1]), expert.reshape(-1), weight)
    return y.reshape(size, -1, y.shape[-1]), True


def _forward(x: Array, expert: Array, weight: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    return _product(x, expert, weight), (x, expert, weight)


def _backward(saved: tuple[Array, Array, Array], d_y: Array) -> tuple[Array, None, Array]:
    x, expert, weight = saved
    d_x = _product(d_y, expert, weight.swapaxes(1, 2))
    # One product for all experts; under vmap, one for each walker (its scores).
    mine = (expert[:, None] == jnp.arange(weight.shape[0])).astype(x.dtype)
    d_weight = jnp.einsum("pn,pem->enm", x, mine[:, :, None] * d_y[:, None])
    return d_x, None, d_weight


expert_product.defvjp(_forward, _backward)

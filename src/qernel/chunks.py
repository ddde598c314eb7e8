"""Functions of many walkers, evaluated a few at a time: memory is that of one chunk.

A chunk is a number of walkers of any couplings, each with the `Point` of its own coupling. The last chunk is filled up,
so that one compiled program serves all; results do not depend on the chunk but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from qernel.start import Point
from qernel.types import Walkers

OfWalkers = Callable[[Float[Array, "chunk electrons 2"], Any], Any]
"""A function of walkers [chunk, N, 2] and their points [chunk, …]."""


def map_chunks(f: OfWalkers, walkers: Walkers, points: PyTree, chunk: int | None = None) -> Any:
    """Apply f, which returns a pytree of [chunk, …], to all walkers: a pytree of [couplings, walkers, …].

    `points` (a `Point`, or any pytree of arrays) has one entry per coupling; `chunk` counts walkers of all couplings
    together (none: all at once).
    """
    size, index = _chunks(walkers, chunk)
    out = jax.lax.map(lambda i: f(*_chosen(walkers, points, jnp.where(i < size, i, 0))), index)
    return jax.tree.map(lambda y: y.reshape(-1, *y.shape[2:])[:size].reshape(*walkers.shape[:2], *y.shape[2:]), out)


def sum_chunks(
    f: Callable[[Float[Array, "chunk electrons 2"], Point, PyTree], PyTree],
    walkers: Walkers,
    points: Point,
    weights: Any,
    chunk: int | None = None,
) -> Any:
    """Sum over chunks of f(walkers, points, weights), linear in the weights [couplings, walkers]."""
    size, index = _chunks(walkers, chunk)

    def of(i: Int[Array, " chunk"]) -> Any:
        inside = jnp.where(i < size, i, 0)
        return f(*_chosen(walkers, points, inside), jnp.where(i < size, weights.reshape(-1)[inside], 0))

    def add(total: Any, i: Int[Array, " chunk"]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, of(i)), None

    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(of, index[0]))
    return jax.lax.scan(add, zero, index)[0]


def fill_chunks(f: OfWalkers, walkers: Walkers, points: Point, chunk: int | None = None) -> Any:
    """As `map_chunks` for one large array of results, [couplings·walkers, …], written in place: never held twice."""
    size, index = _chunks(walkers, chunk)
    length = index.shape[1]

    def of(start: Int[Array, ""]) -> Array:
        return f(*_chosen(walkers, points, start + jnp.arange(length)))

    def put(k: Int[Array, ""], out: Array) -> Array:
        start = jnp.minimum(k * length, size - length)  # the last chunk repeats some walkers of the one before
        return jax.lax.dynamic_update_slice_in_dim(out, of(start), start, 0)

    one = jax.eval_shape(of, jnp.zeros((), int))
    return jax.lax.fori_loop(0, len(index), put, jnp.zeros((size, *one.shape[1:]), one.dtype))


def _chunks(walkers: Walkers, chunk: int | None) -> tuple[int, Int[Array, "chunks chunk"]]:
    """Number of walkers of all couplings together, and their running numbers by chunk, the last one filled up."""
    size = walkers.shape[0] * walkers.shape[1]
    chunk = size if chunk is None else min(chunk, size)
    return size, jnp.arange(-(-size // chunk) * chunk).reshape(-1, chunk)


def _chosen(walkers: Walkers, points: PyTree, index: Int[Array, " chunk"]) -> tuple[Array, Any]:
    """Walkers of these running numbers (coupling-major), each with the point of its coupling."""
    coupling = index // walkers.shape[1]
    electrons = walkers.reshape(-1, *walkers.shape[2:])[index]
    return electrons, jax.tree.map(lambda x: x[coupling], points)

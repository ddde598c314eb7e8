"""Per-walker derivatives of log ψ with respect to the weights, and what the natural gradient asks of them.

    X: rows (coupling, walker, part), part = log|ψ| or arg ψ; columns as `ravel_pytree(weights)`;
       X = C ∂(log|ψ|, arg ψ)/∂p / √(all walkers),     C: minus the mean over the walkers of each coupling.

X takes 8 bytes for each walker and weight. `Held` computes it once. `Streamed` holds some columns at a time: products
with X are sums over blocks of columns, with the derivatives computed anew for each block; that costs little beside the
Gram matrix, whose operations grow with another factor of the walkers.

Devices that share the walkers compute the rows of their own and then have a part of the columns each, for all walkers:
the Gram matrix is a sum over them. Columns of zeros follow the last weight, so that the parts are equal; walkers are in
the order of `devices.in_turn`.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from qernel.chunks import fill_chunks
from qernel.devices import SPREAD, WHOLE, all_columns, own_columns, own_turns, sharing, to_columns, total
from qernel.gradient import weighted_scores
from qernel.start import Point
from qernel.types import Walkers
from qernel.wavefunction import Wavefunction

Rows = Float[Array, "M P"]


@runtime_checkable
class Scores(Protocol):
    """X, as far as SPRING needs it, on every device at once."""

    def gram_and_times(self, vector: Float[Array, " P"]) -> tuple[Float[Array, "M M"], Float[Array, " M"]]:
        """XXᵀ in float64, and X·vector."""
        ...

    def transpose_times(self, vector: Float[Array, " M"]) -> Float[Array, " P"]:
        """Xᵀ·vector; zeros may follow."""
        ...

    def layout(self) -> Any:
        """How it is spread over the devices, for `devices.on_each`."""
        ...


class Held(eqx.Module):
    """X as one array."""

    rows: Rows

    def gram_and_times(self, vector: Float[Array, " P"]) -> tuple[Float[Array, "M M"], Float[Array, " M"]]:
        return total((gram(self.rows), self.rows @ own_columns(vector, self.rows.shape[1])))

    def transpose_times(self, vector: Float[Array, " M"]) -> Float[Array, " P"]:
        return all_columns(vector @ self.rows)

    def layout(self) -> Any:
        return eqx.tree_at(lambda s: s.rows, self, SPREAD)


class Streamed(eqx.Module):
    """X, `columns` of it at a time."""

    model: Wavefunction
    walkers: Walkers
    points: Point
    chunk: int = eqx.field(static=True)
    columns: int = eqx.field(static=True)

    def gram_and_times(self, vector: Float[Array, " P"]) -> tuple[Float[Array, "M M"], Float[Array, " M"]]:
        blocks = -(-vector.size // self.columns)
        padded = jnp.pad(vector, (0, blocks * self.columns - vector.size)).reshape(blocks, self.columns)
        own = self.columns // sharing()

        def add(sums: tuple[Array, Array], block: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
            number, part = block
            rows = score_rows(self.model, self.walkers, self.points, self.chunk, number * self.columns, self.columns)
            return (sums[0] + gram(rows), sums[1] + rows @ own_columns(part, own)), None

        m = 2 * self.walkers.shape[0] * self.walkers.shape[1] * sharing()
        start = jnp.zeros((m, m), jnp.float64), jnp.zeros(m, vector.dtype)
        return total(jax.lax.scan(add, start, (jnp.arange(blocks), padded))[0])

    def transpose_times(self, vector: Float[Array, " M"]) -> Float[Array, " P"]:
        """One reverse pass: Σ_m (Cᵀ vector)_m ∂_p(log|ψ|, arg ψ)_m needs no derivative of a single walker."""
        v = vector.reshape(self.walkers.shape[0], -1, 2)
        v = own_turns((v - v.mean(1, keepdims=True)) / (v.size / 2) ** 0.5)
        weights = jax.lax.complex(v[..., 0], v[..., 1])
        return ravel_pytree(weighted_scores(self.model, self.walkers, self.points, weights, self.chunk))[0]

    def layout(self) -> Any:
        return eqx.tree_at(lambda s: s.walkers, jax.tree.map(lambda _: WHOLE, self), SPREAD)


def score_rows(
    model: Wavefunction,
    walkers: Walkers,
    points: Point,
    chunk: int | None = None,
    start: Int[Array, ""] | int = 0,
    columns: int | None = None,
) -> Rows:
    """This device's columns of X, or of the block of columns that begins at `start`; `chunk` walkers at a time."""

    def some(electrons: Float[Array, "chunk electrons 2"], points: Point) -> Float[Array, "chunk two columns"]:
        scores = derivatives(model, electrons, points)
        scores = jnp.pad(scores, ((0, 0), (0, 0), (0, -scores.shape[-1] % (columns or sharing()))))
        return scores if columns is None else jax.lax.dynamic_slice_in_dim(scores, start, columns, 2)

    # Chunk by chunk also from walkers to columns: all at once it takes memory and several times as long.
    scores = fill_chunks(lambda r, p: to_columns(some(r, p)), walkers, points, chunk)
    scores = scores.reshape(-1, *scores.shape[2:])
    return centred(scores, len(scores) // walkers.shape[0]).reshape(-1, scores.shape[-1])


def centred(scores: Float[Array, "all two P"], walkers: int) -> Float[Array, "all two P"]:
    """Minus the mean over the `walkers` of each coupling, over √all; row by row, so that it is done in place."""
    # As a product: several times faster than a mean over a middle axis.
    average = jnp.full((1, walkers), 1 / walkers, scores.dtype)
    means = (average @ scores.reshape(-1, walkers, scores[0].size)).reshape(-1, *scores.shape[1:])

    def one(i: Int[Array, ""], x: Array) -> Array:
        return x.at[i].set((x[i] - means[i // walkers]) / len(scores) ** 0.5)

    return jax.lax.fori_loop(0, len(scores), one, scores)


def derivatives(
    model: Wavefunction, electrons: Float[Array, "chunk electrons 2"], points: Point
) -> Float[Array, "chunk two P"]:
    """∂(log|ψ|, arg ψ)/∂p of walkers, each at its own coupling."""
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def one(electrons: Float[Array, "electrons 2"], point: Point) -> tuple[Wavefunction, Wavefunction]:
        def parts(params: Wavefunction) -> tuple[Float[Array, ""], Float[Array, ""]]:
            value = eqx.combine(params, static)(electrons, point)
            return value.real, value.imag

        (re, im), pull = jax.vjp(parts, params)
        one, zero = jnp.ones_like(re), jnp.zeros_like(im)
        # Two pulls in a row: as one batched pull (jacrev) XLA's CPU code is several times slower.
        return pull((one, zero))[0], pull((zero, one))[0]

    # Joined only after the batched pulls: flattening inside them is several times slower.
    leaves = [jnp.stack(pair, 1) for pair in zip(*map(jax.tree.leaves, jax.vmap(one)(electrons, points)), strict=True)]
    return jnp.concatenate([x.reshape(*x.shape[:2], -1) for x in leaves], axis=2)


def gram(rows: Rows) -> Float[Array, "M M"]:
    """XXᵀ, multiplied in the precision of X; docs/precision.md has what that costs."""
    return (rows @ rows.T).astype(jnp.float64)

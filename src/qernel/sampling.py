"""Metropolis sampling of |ψ|², each walker at its own coupling, with a step width per coupling."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from qernel.cell import Cell
from qernel.types import Key, PerCoupling, Samples, Walkers

LogDensity = Callable[[Walkers], Samples]
"""log|ψ|², [couplings, walkers], of walkers [couplings, walkers, N, 2]."""

TARGET_ACCEPTANCE = 0.5


class Sampled(NamedTuple):
    """Result of a number of Metropolis sweeps."""

    walkers: Walkers
    log_density: Samples
    acceptance: PerCoupling
    translation_acceptance: PerCoupling


def random_walkers(key: Key, couplings: int, walkers: int, n_electrons: int, cell: Cell, dtype: str) -> Walkers:
    """Electrons placed uniformly over the supercell."""
    fraction = jax.random.uniform(key, (couplings, walkers, n_electrons, 2), dtype)
    return fraction @ jnp.asarray(cell.vectors, dtype)


def metropolis(
    key: Key,
    walkers: Walkers,
    log_density: LogDensity,
    width: PerCoupling,
    steps: int | Int[Array, ""],
    cell: Cell,
) -> Sampled:
    """`steps` all-electron Gaussian moves of the given width, then one whole-configuration moiré translation.

    Both proposals are symmetric, so |ψ|² is invariant. Translations bring every symmetry copy of a crystal within
    reach. log|ψ|² is always recomputed for the walkers given, never carried across a change of the weights.
    `steps` (at least 1) may be traced: one program then serves any number of moves.
    """
    scale = width[:, None, None, None].astype(walkers.dtype)

    def accept(key: Key, old: Walkers, log_old: Samples, new: Walkers) -> tuple[Walkers, Samples, PerCoupling]:
        log_new = log_density(new)
        log_uniform = jnp.log(jax.random.uniform(key, log_old.shape, log_old.dtype, minval=1e-30))
        ok = log_new - log_old > log_uniform
        return (
            jnp.where(ok[..., None, None], new, old),
            jnp.where(ok, log_new, log_old),
            jnp.mean(ok, axis=1, dtype=width.dtype),
        )

    def move(i: Int[Array, ""], carry: tuple[Walkers, Samples, PerCoupling]) -> tuple[Walkers, Samples, PerCoupling]:
        old, log_old, accepted = carry
        k1, k2 = jax.random.split(jax.random.fold_in(moves, i))
        new = old + scale * jax.random.normal(k1, old.shape, old.dtype)
        walkers, log_new, rate = accept(k2, old, log_old, new)
        return walkers, log_new, accepted + rate

    moves, k1, k2 = jax.random.split(key, 3)
    start = walkers, log_density(walkers), jnp.zeros_like(width)
    walkers, log_value, accepted = jax.lax.fori_loop(0, steps, move, start)
    shifts = jnp.asarray(cell.translations, walkers.dtype)
    shift = shifts[jax.random.randint(k1, walkers.shape[:2], 0, len(cell.translations))]
    walkers, log_value, translated = accept(k2, walkers, log_value, walkers + shift[:, :, None])
    return Sampled(wrap(walkers, cell), log_value, accepted / steps, translated)


def adapt_width(width: PerCoupling, acceptance: PerCoupling, cell: Cell) -> PerCoupling:
    """Widen or narrow the moves towards an acceptance of one half; bounded by the supercell."""
    new = width * jnp.exp(0.2 * (acceptance - TARGET_ACCEPTANCE) / TARGET_ACCEPTANCE)
    return jnp.clip(new, 1e-4, float(np.linalg.norm(cell.reduced_vectors, axis=1).max()) / 2)


def wrap(walkers: Float[Array, "*batch 2"], cell: Cell) -> Float[Array, "*batch 2"]:
    """Bring electrons back into the supercell; |ψ| does not change, its phase by exp(iθ·T)."""
    s = walkers @ jnp.asarray(np.linalg.inv(cell.vectors), walkers.dtype)
    return walkers - jnp.floor(s) @ jnp.asarray(cell.vectors, walkers.dtype)

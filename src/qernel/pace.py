"""How many moves of the electrons between two updates of the weights.

Walkers persist, so their local energies at successive updates are correlated; ρ is that correlation with m moves in
between. For a chain that forgets exponentially it is ρ^(k/m) with k moves, and an update's average over the walkers is
worth (1 − ρ)/(1 + ρ) of one over independent walkers. An update costs k moves, and as much as C moves for local energy,
scores and solve. The number of moves that gives the most independent samples for the work is

    k* = argmin_k (k + C) (1 + ρ^(k/m))/(1 − ρ^(k/m)).

C is counted from sizes, not in seconds: a run gives the same numbers on a busy machine, and after a restart.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from qernel.config import Adam, Config
from qernel.gradient import clip_per_coupling
from qernel.types import ComplexSamples, Samples

WINDOW = 20
"""Updates that ρ is averaged over, and between two changes of the number of moves."""

START = 10
"""Moves before ρ is known."""

LADDER = np.array([2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 65, 80, 100])
"""Numbers of moves to choose from."""


class Pace(NamedTuple):
    """Moves before the next update, and what they are chosen from."""

    moves: Int[Array, ""]
    correlation: Float[Array, ""]
    """ρ, running mean over `WINDOW` updates and all couplings"""
    energy: Samples
    """clipped real parts of the walkers' local energies at the last update"""


def initial(config: Config) -> Pace:
    """Before any update."""
    sweeps, size = config.sampling.sweeps, (len(config.couplings), config.sampling.walkers)
    moves = START if sweeps == "auto" else sweeps
    # Of a definite type, as after an update: everything that takes it would be compiled twice otherwise.
    return Pace(jnp.asarray(moves, int), jnp.zeros(()), jnp.zeros(size, config.network.dtype))


def next_pace(config: Config, pace: Pace, energy: ComplexSamples, step: Int[Array, ""]) -> Pace:
    """The pace after an update; local energies [couplings, walkers] are those it was made from, `step` its number.

    Energies are clipped as for the gradient, because a walker near a node would otherwise decide alone.
    """
    clipped = clip_per_coupling(energy, config.clip).real
    rho = correlation(pace.energy, clipped)
    # A plain mean at first; update 0 has nothing before it.
    weight = 1 / jnp.clip(step, 1, WINDOW)
    mean = jnp.where(step == 0, 0.0, pace.correlation + weight * (rho - pace.correlation))
    if config.sampling.sweeps != "auto":
        return Pace(pace.moves, mean, clipped)
    best = best_moves(mean, pace.moves, other_work(config))
    moves = jnp.where((step > 0) & (step % WINDOW == 0), best, pace.moves)
    mean = jnp.where(moves == pace.moves, mean, correlation_after(mean, pace.moves, moves))
    return Pace(moves, mean, clipped)


def correlation(before: Samples, after: Samples) -> Float[Array, ""]:
    """Pearson's coefficient over the walkers, mean over the couplings; 0 where nothing varies."""
    x, y = (e - e.mean(1, keepdims=True) for e in (before, after))
    size = jnp.sqrt(jnp.sum(x * x, 1) * jnp.sum(y * y, 1))
    return jnp.mean(jnp.where(size > 0, jnp.sum(x * y, 1) / jnp.where(size > 0, size, 1.0), 0.0)).astype(float)


def correlation_after(rho: Float[Array, ""], moves: Int[Array, ""], other: Array) -> Array:
    """ρ^(k/m) for k = `other` moves, ρ for m = `moves`; a ρ that may as well be 0 or 1 is kept off them."""
    return jnp.clip(rho, 0.01, 0.99) ** (other / moves)


def best_moves(rho: Float[Array, ""], moves: Int[Array, ""], other_work: float) -> Int[Array, ""]:
    """k*, from the `LADDER`, at most a factor of two from the `moves` with which ρ was measured."""
    ladder = jnp.asarray(LADDER)
    r = correlation_after(rho, moves, ladder)
    price = (ladder + other_work) * (1 + r) / (1 - r)
    near = (2 * ladder >= moves) & (ladder <= 2 * moves)
    return ladder[jnp.argmin(jnp.where(near, price, jnp.inf))]


def other_work(config: Config) -> float:
    """C: work of an update besides its moves, in moves (an evaluation of ψ and of ∇ψ); fitted to one CPU core.

    In turn the first evaluation and the forward Laplacian in 2N directions, the scores, which for few electrons are
    bound by writing a row of all weights, and the Gram matrix of M = 2 × all walkers such rows. A move, too, uses every
    weight, but N times.
    """
    n = config.family.n_electrons
    local_energy = 1 + 0.5 * (2 * n + 2)
    if isinstance(config.optimizer, Adam):
        return local_energy + 1
    rows = 2 * len(config.couplings) * config.sampling.walkers
    return local_energy + 2 + (70 + 0.2 * rows) / n

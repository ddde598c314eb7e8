"""Metropolis–Hastings sampling of |ψ|², each walker at its own coupling, with a step width per coupling.

All electrons move at once along the drift v = ∇log|ψ| and at random (Langevin proposals, doi:10.1111/1467-9868.00123),

    r' = r + s² v̄(r) + s η,  η ~ N(0, 1),      log A = log|ψ(r')/ψ(r)|² + ½ Σ |η|² − ½ Σ |r − r' − s² v̄(r')|²/s²,

which gives more independent samples per second than Gaussian moves from N = 6 on (docs/benchmarks.md). The drift of an
electron diverges at a node; it is limited as in doi:10.1063/1.465195, v̄ = 2v/(1 + √(1 + 2 s² v²)), to √2/s at most.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from qernel.cell import Cell
from qernel.chunks import map_chunks
from qernel.devices import SPREAD, WHOLE, mean_of_walkers, on_each, own
from qernel.start import Point
from qernel.types import Electrons, Key, PerCoupling, PerWalker, Samples, Walkers
from qernel.wavefunction import Wavefunction

T = TypeVar("T")

LogDensity = Callable[[Float[Array, "*batch electrons 2"]], PerWalker]
"""log|ψ|² of walkers."""

TARGET_ACCEPTANCE = 0.6


class Sampled(NamedTuple):
    """Result of a number of Metropolis sweeps."""

    walkers: Walkers
    log_density: Samples
    acceptance: PerCoupling
    translation_acceptance: PerCoupling


class Chains(NamedTuple):
    """Walkers and what the next move needs to know of them."""

    walkers: Electrons
    log_density: PerWalker
    drift: Electrons
    """v = ∇log|ψ|, 1/a_M"""


Density = Callable[[Walkers], Chains]
"""The chains at walkers [couplings, walkers, N, 2]."""


def random_walkers(key: Key, couplings: int, walkers: int, n_electrons: int, cell: Cell, dtype: str) -> Walkers:
    """Electrons placed uniformly over the supercell."""
    fraction = jax.random.uniform(key, (couplings, walkers, n_electrons, 2), dtype)
    return fraction @ jnp.asarray(cell.vectors, dtype)


def metropolis(
    key: Key,
    walkers: Walkers,
    density: Density,
    width: PerCoupling,
    steps: int | Int[Array, ""],
    cell: Cell,
) -> Sampled:
    """`steps` all-electron Langevin moves of the given width s, then one whole-configuration moiré translation.

    Both leave |ψ|² invariant. Translations bring every symmetry copy of a crystal within reach. log|ψ|² is always
    recomputed for the walkers given, never carried across a change of the weights. `steps` (at least 1) may be traced:
    one program then serves any number of moves.
    """

    shifts = jnp.asarray(cell.translations, walkers.dtype)

    def one(i: Int[Array, ""], carry: tuple[Chains, Samples, Bool[Array, "couplings walkers"]]) -> Any:
        # ψ is evaluated at one place alone, at first for the walkers given and at last for the translated ones: it is
        # the evaluation that takes time to compile.
        old, accepted, _ = carry
        first, last = i == 0, i == steps + 1
        k1, k2, k3 = jax.random.split(jax.random.fold_in(key, i), 3)
        noise = own(partial(jax.random.normal, k1, dtype=walkers.dtype), *walkers.shape)
        chosen = own(lambda size: jax.random.randint(k3, size, 0, len(cell.translations)), *walkers.shape[:2])
        shift = shifts[chosen][:, :, None]
        still = old.walkers + jnp.where(last, shift, 0)
        new = density(jnp.where(first | last, still, proposal(noise, old, width)))
        log_ratio = jnp.where(last, new.log_density - old.log_density, log_acceptance(noise, old, new, width))
        ok = first | accepts(k2, log_ratio)
        return choose(ok, new, old), accepted + jnp.where(first | last, 0, ok), ok

    unknown = Chains(walkers, jnp.zeros(walkers.shape[:2], walkers.dtype), jnp.zeros_like(walkers))
    none = jnp.zeros(walkers.shape[:2], width.dtype)
    chains, accepted, translated = jax.lax.fori_loop(0, steps + 2, one, (unknown, none, none > 0))
    rates = mean_of_walkers(accepted) / steps, mean_of_walkers(translated.astype(width.dtype))
    return Sampled(wrap(chains.walkers, cell), chains.log_density, *rates)


def sample(
    model: Wavefunction,
    points: Point,
    key: Key,
    walkers: Walkers,
    width: PerCoupling,
    steps: int | Int[Array, ""],
    cell: Cell,
    chunk: int | None = None,
) -> Sampled:
    """`metropolis` for |ψ|² on all devices at once, on each of them `chunk` walkers at a time."""

    def share(
        walkers: Walkers, model: Wavefunction, points: Point, key: Key, width: PerCoupling, steps: Any
    ) -> Sampled:
        return metropolis(key, walkers, wave_density(model, points, chunk), width, steps, cell)

    parts: Any = (SPREAD, SPREAD, WHOLE, WHOLE)
    run = on_each(share, walkers.shape[1], (SPREAD, *5 * (WHOLE,)), Sampled(*parts))
    sampled: Sampled = run(walkers, model, points, key, width, jnp.asarray(steps))
    return sampled


def wave_density(model: Wavefunction, points: Point, chunk: int | None = None) -> Density:
    """|ψ|² of walkers at their couplings, `chunk` of them at a time."""

    def some(electrons: Float[Array, "chunk electrons 2"], points: Point) -> Chains:
        return at(lambda r: 2 * jax.vmap(model)(r, points).real, electrons)

    def density(walkers: Walkers) -> Chains:
        chains: Chains = map_chunks(some, walkers, points, chunk)
        return chains

    return density


def at(log_density: LogDensity, walkers: Float[Array, "*batch electrons 2"]) -> Chains:
    """The chains at these walkers."""
    value, pull = jax.vjp(log_density, walkers)
    return Chains(walkers, value, pull(jnp.full_like(value, 0.5))[0])


def move(key: Key, old: Chains, width: PerCoupling, density: Density) -> tuple[Chains, PerCoupling]:
    """One move of all walkers, and the share accepted at each coupling. Without drift it is a Gaussian move."""
    k1, k2 = jax.random.split(key)
    new, log_ratio = propose(jax.random.normal(k1, old.walkers.shape, old.walkers.dtype), old, width, density)
    ok = accepts(k2, log_ratio)
    return choose(ok, new, old), ok.mean(1, dtype=width.dtype)


def propose(noise: Walkers, old: Chains, width: PerCoupling, density: Density) -> tuple[Chains, Samples]:
    """New chains from normal noise η, and log A of the Metropolis–Hastings ratio, [couplings, walkers]."""
    new = density(proposal(noise, old, width))
    return new, log_acceptance(noise, old, new, width)


def proposal(noise: Walkers, old: Chains, width: PerCoupling) -> Walkers:
    """r + s² v̄(r) + s η."""
    s = width[:, None, None, None].astype(noise.dtype)
    return old.walkers + s**2 * limited(old.drift, s) + s * noise


def log_acceptance(noise: Walkers, old: Chains, new: Chains, width: PerCoupling) -> Samples:
    """log A, [couplings, walkers]."""
    s = width[:, None, None, None].astype(noise.dtype)
    # The noise that the reverse move needs.
    back = (old.walkers - new.walkers) / s - s * limited(new.drift, s)
    return new.log_density - old.log_density + 0.5 * jnp.sum(noise**2 - back**2, (-1, -2))


def limited(drift: Walkers, s: Float[Array, "couplings 1 1 1"]) -> Walkers:
    """v̄ of every electron."""
    v2 = jnp.sum(drift * drift, -1, keepdims=True)
    return 2 * drift / (1 + jnp.sqrt(1 + 2 * s**2 * v2))


def accepts(key: Key, log_ratio: Samples) -> Bool[Array, "couplings walkers"]:
    """True with probability min(1, A); never where A is not a number."""
    uniform = own(partial(jax.random.uniform, key, dtype=log_ratio.dtype, minval=1e-30), *log_ratio.shape)
    return jnp.log(uniform) < log_ratio


def choose(ok: Bool[Array, "couplings walkers"], new: T, old: T) -> T:
    """The new chains where accepted, else the old."""
    chosen: T = jax.tree.map(lambda a, b: jnp.where(ok.reshape(*ok.shape, *[1] * (a.ndim - 2)), a, b), new, old)
    return chosen


def adapt_width(width: PerCoupling, acceptance: PerCoupling, cell: Cell) -> PerCoupling:
    """Widen or narrow the moves towards the target acceptance; bounded by the supercell."""
    new = width * jnp.exp(0.2 * (acceptance - TARGET_ACCEPTANCE) / TARGET_ACCEPTANCE)
    return jnp.clip(new, 1e-4, float(np.linalg.norm(cell.reduced_vectors, axis=1).max()) / 2)


def wrap(walkers: Float[Array, "*batch 2"], cell: Cell) -> Float[Array, "*batch 2"]:
    """Bring electrons back into the supercell; |ψ| does not change, its phase by exp(iθ·T)."""
    s = walkers @ jnp.asarray(np.linalg.inv(cell.vectors), walkers.dtype)
    return walkers - jnp.floor(s) @ jnp.asarray(cell.vectors, walkers.dtype)

"""What moves of the electrons are worth: effective samples per second of several proposals, on one trained model.

    table(qernel.load("runs/moire-n6"))

Every contender is a case of one Metropolis–Hastings move of a random subset S of m electrons,

    r' = r + s² v̄(r) + s η,      η ~ N(0, 1),      log A = Δlog|ψ|² + (|s η|² − |r − r' − s² v̄(r')|²)/(2 s²),

with v̄ = 0 (Gaussian) or the drift v = ∇log|ψ| of each electron, limited near nodes as in doi:10.1063/1.465195,

    v̄ = v (√(1 + 2 s² |v|²) − 1)/(s² |v|²)      (Langevin).

Autocorrelation times are those of `stats.estimate`; seconds are of the processor, so that other work on the machine
does not count.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qernel.cell import FloatArray
from qernel.compiling import compiled
from qernel.evaluate import Model, initial_chains
from qernel.sampling import wrap
from qernel.stats import estimate
from qernel.types import Key, PerCoupling, Samples, Walkers
from qernel.vmc import measure
from qernel.wavefunction import Point, Wavefunction, log_psi

TERMS = ("energy", "moire", "interaction")


@dataclass(frozen=True)
class Proposal:
    """How electrons are moved; its width is tuned to the acceptance asked for."""

    acceptance: float
    drift: bool = False
    """Langevin instead of Gaussian moves"""
    electrons: int | None = None
    """electrons moved at a time, chosen at random (none: all)"""

    def __str__(self) -> str:
        kind = "Langevin" if self.drift else "Gaussian"
        return f"{kind}, {self.electrons or 'all'} electrons"


CONTENDERS = (
    *(Proposal(a) for a in (0.5, 0.4, 0.3, 0.23)),
    *(Proposal(a, drift=True) for a in (0.8, 0.7, 0.6, 0.5)),
)


class Chains(NamedTuple):
    """Walkers with what a move needs to know of them."""

    walkers: Walkers
    log_density: Samples
    drift: Walkers


@dataclass(frozen=True)
class Worth:
    """What one proposal achieved, an average over the couplings."""

    proposal: Proposal
    acceptance: float
    width: float
    """a_M"""
    milliseconds: float
    """of the processor, for one move of all walkers"""
    tau: dict[str, float]
    """moves, autocorrelation time of each term, mean over the couplings"""
    per_second: dict[str, float]
    """effective samples of each term per second, all couplings together"""


def table(model: Model, contenders: Sequence[Proposal] = CONTENDERS, **settings: Any) -> str:
    """Markdown table of all contenders; settings as in `effective_samples`."""
    head = "| moves | acceptance | width | ms | " + " | ".join(f"τ({t})" for t in TERMS)
    head += " | " + " | ".join(f"{t}/s" for t in TERMS) + " |"
    lines = [head, "|---" + "|--:" * (3 + 2 * len(TERMS)) + "|"]
    for proposal in contenders:
        w = effective_samples(model, proposal, **settings)
        cells = [str(proposal), f"{w.acceptance:.2f}", f"{w.width:.3f}", f"{w.milliseconds:.1f}"]
        cells += [f"{w.tau[t]:.1f}" for t in TERMS] + [f"{w.per_second[t]:.0f}" for t in TERMS]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def effective_samples(
    model: Model,
    proposal: Proposal,
    couplings: FloatArray | None = None,
    walkers: int = 64,
    sweeps: int = 200,
    moves: int = 4,
    burn_in: int = 300,
    seed: int = 0,
) -> Worth:
    """Effective samples per second of one proposal at couplings [couplings, names] (default: those trained on).

    `sweeps` measurements, `moves` moves apart. τ is in moves; a τ below `moves`/2 would not be seen.
    """
    config = model.config
    couplings = model.trained if couplings is None else couplings
    points = model.points(couplings)
    start, width = initial_chains(model, couplings, walkers)
    chains, key = Chains(start, *_density(model.wavefunction, start, points, proposal.drift)), jax.random.key(seed)

    def advance(chains: Chains, key: Key, width: PerCoupling) -> tuple[Chains, PerCoupling]:
        out: tuple[Chains, PerCoupling] = _advance(model.wavefunction, points, proposal, moves, key, chains, width)
        return out

    rounds = -(-burn_in // moves)
    for i in range(rounds):
        key, sub = jax.random.split(key)
        chains, rate = advance(chains, sub, width)
        width = width * jnp.exp((1.0 if i < rounds // 2 else 0.2) * (rate - proposal.acceptance))
    cost = _cost(lambda: advance(chains, key, width)) / moves
    series, rates = [], []
    for _ in range(sweeps):
        key, sub = jax.random.split(key)
        chains, rate = advance(chains, sub, width)
        chains = chains._replace(walkers=wrap(chains.walkers, config.family.cell))
        terms = _measure(config, model.wavefunction, chains.walkers, jnp.asarray(couplings), points).terms
        series.append(np.stack([np.asarray(x.real, float) for x in (terms.total, terms.moire, terms.interaction)]))
        rates.append(np.asarray(rate))
    x = np.stack(series, 1)  # [terms, sweeps, couplings, walkers]
    found = {name: [estimate(x[i, :, c]) for c in range(x.shape[2])] for i, name in enumerate(TERMS)}
    return Worth(
        proposal,
        float(np.mean(rates)),
        float(width.mean()),
        1e3 * cost,
        {name: moves * float(np.mean([e.tau for e in found[name]])) for name in TERMS},
        {name: sum(e.ess for e in found[name]) / (cost * moves * sweeps) for name in TERMS},
    )


_measure = compiled(measure)


def _cost(run: Callable[[], Any], repeats: int = 7) -> float:
    """Processor seconds of a call, the least of several."""
    seconds = []
    for _ in range(repeats):
        begin = time.process_time()
        jax.block_until_ready(run())
        seconds.append(time.process_time() - begin)
    return min(seconds)


def _density(model: Wavefunction, walkers: Walkers, points: Point, drift: bool) -> tuple[Samples, Walkers]:
    """log|ψ|² [couplings, walkers] and v = ∇log|ψ| [couplings, walkers, N, 2], or 0."""

    def total(r: Walkers) -> tuple[Float[Array, ""], Samples]:
        log_density = 2 * log_psi(model, r, points).real
        return 0.5 * log_density.sum(), log_density

    if not drift:
        return total(walkers)[1], jnp.zeros_like(walkers)
    gradient, log_density = jax.grad(total, has_aux=True)(walkers)
    return log_density, gradient


@compiled
def _advance(
    model: Wavefunction, points: Point, proposal: Proposal, moves: int, key: Key, chains: Chains, width: PerCoupling
) -> tuple[Chains, PerCoupling]:
    """`moves` moves of all walkers; acceptance per coupling."""

    def move(old: Chains, key: Key) -> tuple[Chains, PerCoupling]:
        k1, k2, k3 = jax.random.split(key, 3)
        new, log_ratio = propose(k1, k2, old, width, proposal, lambda r: _density(model, r, points, proposal.drift))
        ok = jnp.log(jax.random.uniform(k3, log_ratio.shape, log_ratio.dtype, minval=1e-30)) < log_ratio
        both = jax.tree.map(lambda a, b: jnp.where(ok.reshape(*ok.shape, *[1] * (a.ndim - 2)), a, b), new, old)
        return both, jnp.mean(ok, axis=1, dtype=width.dtype)

    chains, rates = jax.lax.scan(move, chains, jax.random.split(key, moves))
    return chains, rates.mean(0)


def propose(
    noise: Key,
    subset: Key,
    old: Chains,
    width: PerCoupling,
    proposal: Proposal,
    density: Callable[[Walkers], tuple[Samples, Walkers]],
) -> tuple[Chains, Samples]:
    """New chains and the logarithm of the Metropolis–Hastings ratio, [couplings, walkers]."""
    r = old.walkers
    s = width[:, None, None, None].astype(r.dtype)
    moved = jnp.ones((), r.dtype)
    if proposal.electrons is not None:
        rank = jnp.argsort(jax.random.uniform(subset, r.shape[:-1]), axis=-1)
        moved = (rank < proposal.electrons)[..., None].astype(r.dtype)
    diffusion = moved * s * jax.random.normal(noise, r.shape, r.dtype)
    walkers = r + moved * _displacement(old.drift, s) + diffusion
    new = Chains(walkers, *density(walkers))
    back = r - walkers - moved * _displacement(new.drift, s)
    log_forward, log_back = (-jnp.sum((x / s) ** 2, (-1, -2)) / 2 for x in (diffusion, back))
    return new, new.log_density - old.log_density + log_back - log_forward


def _displacement(drift: Walkers, s: Array) -> Walkers:
    """s² v̄: at most √2 s for an electron, however close to a node."""
    x = 2 * s**2 * jnp.sum(drift**2, -1, keepdims=True)
    return s**2 * drift * 2 / (jnp.sqrt(1 + x) + 1)


__all__ = ["CONTENDERS", "Chains", "Proposal", "Worth", "effective_samples", "propose", "table"]

"""What moves of the electrons are worth: effective samples per second of proposals, on one trained model.

    table(qernel.load("runs/moire-n6"))

The sampler's Langevin moves and, with the drift left out, Gaussian moves, each at several acceptances. Autocorrelation
times are those of `stats.estimate`; seconds are of the processor, so that other work on the machine does not count.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qernel.bench_machine import best
from qernel.cell import FloatArray
from qernel.compiling import compiled
from qernel.evaluate import Model, initial_chains
from qernel.sampling import Chains, move, wave_density, wrap
from qernel.start import Point
from qernel.stats import estimate
from qernel.types import Key, PerCoupling, Walkers
from qernel.vmc import measure
from qernel.wavefunction import Wavefunction, log_psi

TERMS = ("energy", "moire", "interaction")


@dataclass(frozen=True)
class Proposal:
    """How all electrons are moved; the width is tuned to the acceptance asked for."""

    acceptance: float
    drift: bool = True
    """Langevin or, without drift, Gaussian moves"""

    def __str__(self) -> str:
        return "Langevin" if self.drift else "Gaussian"


CONTENDERS = (
    *(Proposal(a, drift=False) for a in (0.5, 0.4, 0.3, 0.23)),
    *(Proposal(a) for a in (0.8, 0.7, 0.6, 0.5)),
)


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
    chains, key = _chains(model.wavefunction, start, points, proposal.drift), jax.random.key(seed)

    def advance(chains: Chains, key: Key, width: PerCoupling) -> tuple[Chains, PerCoupling]:
        out: tuple[Chains, PerCoupling] = _advance(
            model.wavefunction, points, proposal.drift, moves, key, chains, width
        )
        return out

    rounds = -(-burn_in // moves)
    for i in range(rounds):
        key, sub = jax.random.split(key)
        chains, rate = advance(chains, sub, width)
        width = width * jnp.exp((1.0 if i < rounds // 2 else 0.2) * (rate - proposal.acceptance))
    cost = best(lambda: advance(chains, key, width), 7, time.process_time) / moves
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


def _chains(model: Wavefunction, walkers: Walkers, points: Point, drift: bool) -> Chains:
    """The chains at these walkers; without drift it is 0 and costs nothing."""
    if drift:
        return wave_density(model, points)(walkers)
    return Chains(walkers, 2 * log_psi(model, walkers, points).real, jnp.zeros_like(walkers))


@compiled
def _advance(
    model: Wavefunction, points: Point, drift: bool, moves: int, key: Key, chains: Chains, width: PerCoupling
) -> tuple[Chains, PerCoupling]:
    """`moves` moves of all walkers; acceptance per coupling."""

    def one(old: Chains, key: Key) -> tuple[Chains, PerCoupling]:
        return move(key, old, width, lambda r: _chains(model, r, points, drift))

    chains, rates = jax.lax.scan(one, chains, jax.random.split(key, moves))
    return chains, rates.mean(0)

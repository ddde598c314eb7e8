"""How the work of a step is cut to size: walkers treated at once, and how much of the scores is held.

Sizes are estimated from those of the network, with constants fitted to what XLA's compiler reports for the presets. A
program that runs out of memory all the same is repeated with half the sizes, and the run remembers them: numbers depend
on the sizes by rounding, so a run that goes on must keep them to stay the same bit for bit.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import jax
import jax.numpy as jnp

from qernel import hosts
from qernel.config import Config
from qernel.devices import mesh
from qernel.moe import SPARSE_FROM
from qernel.network import Network

T = TypeVar("T")

MIB, GIB = 2**20, 2**30

SHARE = 0.6
"""of the free memory, what a step may take unless the config says otherwise"""

CACHE = 1.5 * MIB
"""bytes of one array of first derivatives up to which CPUs are fastest: a core's cache then keeps it. Measured with
1 MiB of cache a core: with four times as much the local energy takes 1.3 times as long, with less nothing is won"""

MOVE_CACHE = 0.5 * MIB
"""bytes of features and attention weights up to which a move is fastest: 54 electrons take 1.4 times as long when 32
walkers are treated at once as with 8"""

SCORE_CACHE = 24 * MIB
"""bytes of the scores of one chunk of walkers on CPUs; times are even from a quarter to four times of it"""

MOST_BLOCKS = 64
"""blocks of weights at most: where that is not enough it is the Gram matrix that does not fit"""


@dataclass(frozen=True)
class Plan:
    """How the work of a step is cut to size, on each device."""

    chunk: int
    """walkers at once in the local energy"""
    move_chunk: int
    """walkers at once in a move"""
    score_chunk: int
    """walkers at once in derivatives with respect to the weights"""
    score_blocks: int
    """blocks of weights whose scores are computed one after the other; 1: the scores are held"""

    def halved(self) -> Plan | None:
        """Half the memory; none if nothing is left to halve."""
        chunk, moves, scores = (max(1, x // 2) for x in (self.chunk, self.move_chunk, self.score_chunk))
        smaller = Plan(chunk, moves, scores, min(MOST_BLOCKS, 2 * self.score_blocks))
        return None if smaller == self else smaller


def make_plan(config: Config, couplings: int, walkers: int, parameters: int) -> Plan:
    """The plan for `walkers` walkers at each of the couplings and a network of so many parameters."""
    on_cpu, sharing = jax.default_backend() == "cpu", mesh(walkers).size
    # Of each device; those of a CPU have one memory together.
    own = min(sharing, jax.local_device_count())
    network, n, total = config.network, config.family.n_electrons, couplings * walkers // sharing
    limit = budget(config) / (own if on_cpu else 1)
    energy, score = energy_bytes(network, n), score_bytes(network, n, parameters)
    chunk = limit / energy
    score_chunk = move_chunk = limit / 8 / score
    if on_cpu:
        move_chunk = min(move_chunk, MOVE_CACHE / pair_bytes(network, n))
        chunk = min(chunk, CACHE / derivative_bytes(network, n))
        score_chunk = min(score_chunk, SCORE_CACHE / score)
    forced = config.sampling.chunk
    rows = 2 * couplings * walkers
    # Of the rest, one block of columns, and the Gram matrix with its factors and a fallback by eigenvalues.
    free = limit * 7 / 8 - 8 * 8 * rows**2
    blocks = rows * parameters / sharing * itemsize(network) / max(free, 1.0)
    return Plan(
        chunk=forced or _even(total, chunk),
        move_chunk=forced or _even(total, move_chunk),
        score_chunk=forced or _even(total, score_chunk),
        score_blocks=min(MOST_BLOCKS, math.ceil(blocks)),
    )


def describe(plan: Plan, config: Config, couplings: int, parameters: int) -> str:
    """One line on the sizes chosen."""
    blocks = plan.score_blocks
    size = 2 * couplings * config.sampling.walkers * -(-parameters // blocks) * itemsize(config.network)
    held = "scores held" if blocks == 1 else f"scores in {blocks} blocks of weights"
    return (
        f"chunk {plan.chunk} walkers (local energy), {plan.score_chunk} (scores); "
        f"{held}: {_text(size)} of {_text(budget(config))}"
    )


def fitting(run: Callable[[Plan], T], plan: Plan, say: Callable[[str], None]) -> tuple[T, Plan]:
    """run(plan), with half the sizes for as long as it runs out of memory; and the plan that did it."""
    while True:
        try:
            return run(plan), plan
        except jax.errors.JaxRuntimeError as error:
            smaller = plan.halved()
            # One of several processes cannot choose other sizes alone.
            if "RESOURCE_EXHAUSTED" not in str(error) or smaller is None or jax.process_count() > 1:
                raise
            say(f"out of memory with chunks of {plan.chunk} walkers; trying half")
            plan = smaller


def budget(config: Config) -> float:
    """Bytes that a step may take."""
    # Of the host that has least, so that all hosts cut the work to the same sizes.
    return config.memory * GIB if config.memory is not None else SHARE * hosts.least(available())


def available() -> float:
    """Free bytes of the device that computes; of the host, within the limit of its container, if that is the CPU."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    free = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with contextlib.suppress(OSError, ValueError):  # not Linux
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = min(1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit ("max")
        group = Path("/sys/fs/cgroup")
        taken = float((group / "memory.current").read_text())
        files = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        taken -= float(files.get("inactive_file", 0)) + float(files.get("active_file", 0))  # given back when needed
        free = min(free, float((group / "memory.max").read_text()) - taken)
    return max(free, 0.0)


def derivative_bytes(network: Network, electrons: int) -> float:
    """One array of first derivatives of one walker's features: N tokens, 2N coordinates."""
    return 2.0 * electrons**2 * network.width * itemsize(network)


def pair_bytes(network: Network, electrons: int) -> float:
    """Features and attention weights of one walker in one block."""
    return electrons * (network.width + network.heads * electrons) * itemsize(network)


def energy_bytes(network: Network, electrons: int) -> float:
    """Of the local energy, per walker: five arrays of first derivatives of features, expert units and orbitals."""
    return 5 * 2.0 * electrons**2 * (_units(network) + 2 * electrons) * itemsize(network)


def score_bytes(network: Network, electrons: int, parameters: int) -> float:
    """Of the scores, per walker: both parts twice, and what the reverse pass keeps of each layer and determinant."""
    kept = 6 * network.layers * _units(network) * electrons
    pairs = 2 * (network.layers * network.heads + 4 * network.determinants) * electrons**2
    return (4.0 * parameters + kept + pairs) * itemsize(network)


def _units(network: Network) -> int:
    """Features of an electron and units of the experts evaluated for it."""
    evaluated = network.top_k if network.experts >= SPARSE_FROM * network.top_k else network.experts
    return network.width + evaluated * network.expert_width


def itemsize(network: Network) -> int:
    """Bytes of a number of the network."""
    return jnp.dtype(network.dtype).itemsize


def _even(total: int, most: float) -> int:
    """The size of equal parts of `total`, each at most `most` (but at least 1)."""
    return -(-total // -(-total // max(1, min(total, int(most)))))


def _text(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / MIB:.3g} MiB"

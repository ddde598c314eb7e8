"""Sampling a wavefunction and measuring observables: burn-in, then blocks of sweeps until the error bars are small.

A block is one compiled program. In it every device moves its own walkers, evaluates the observables on them and adds
the values up by groups of walkers (`observables/interface.py`); only at its end the devices put their sums together.
"""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array

from qernel import devices, memory, sampling
from qernel.cell import FloatArray
from qernel.compiling import compiled
from qernel.config import Config
from qernel.devices import SPREAD, WHOLE, on_each, place
from qernel.observables import DEFAULT, Observable, Quantity, Record, Sweep, check_names, known
from qernel.observables.energy import estimates
from qernel.observables.interface import Values, group_of, groups, sum_groups
from qernel.result import Result, Settings
from qernel.sampling import adapt_width
from qernel.start import Point, Start
from qernel.stats import estimate
from qernel.types import Key, PerCoupling, Walkers
from qernel.wavefunction import Wavefunction

LENGTH = 20
"""sweeps in a block"""

FEWEST = 60
"""sweeps before an error bar is believed: a chain of few cannot tell its own autocorrelation time"""


MEASURING = 2**30
"""number of the random stream of measurements among those of the moves of a sweep"""


class Block(NamedTuple):
    """One block of sampling; an entry of `series` and `sums` for each observable, empty in one of them."""

    walkers: Walkers
    acceptance: PerCoupling
    series: tuple[Values, ...]
    """[sweeps, couplings, walkers]"""
    sums: tuple[Values, ...]
    """[couplings, groups, …]"""


class Chosen(NamedTuple):
    """The observables of a run of chains, with their tables, and why others are left out."""

    observables: dict[str, Observable]
    tables: tuple[Any, ...]
    skipped: dict[str, str]


def choose(config: Config, start: Start, couplings: FloatArray, settings: Settings) -> Chosen:
    """The observables asked for that exist for this system; warns of others unless they are only there by default."""
    names = check_names(settings.observables)
    everything = known(config.family, settings.bins)
    reasons = {name: everything[name].missing(start, couplings) for name in names}
    skipped = {name: reason for name, reason in reasons.items() if reason is not None}
    if settings.observables != DEFAULT:
        for name, reason in skipped.items():
            warnings.warn(f"{name} is not measured: {reason}", stacklevel=4)
    found = {name: everything[name] for name in names if name not in skipped}
    return Chosen(found, tuple(o.tables(start, couplings) for o in found.values()), skipped)


def sample(
    config: Config,
    model: Wavefunction,
    walkers: Walkers,
    width: PerCoupling,
    couplings: FloatArray,
    settings: Settings,
) -> list[Result]:
    """Measure at couplings [couplings, names], from walkers and widths near equilibrium; a result for each coupling."""
    begin = time.monotonic()
    outside = _outside(config, couplings)
    key = jax.random.key(settings.seed)
    chosen = choose(config, model.start, couplings, settings)
    observables = tuple(chosen.observables.values())
    plan = memory.make_plan(config, len(couplings), settings.walkers, model.parameter_count()[0])
    say = partial(warnings.warn, stacklevel=4)
    whole = partial(place, walkers=settings.walkers)
    walkers, width, tables = place(walkers, settings.walkers, SPREAD), whole(width), whole(chosen.tables)
    wave, points, vectors = whole(model), whole(model.start.points(couplings)), whole(jnp.asarray(couplings))

    for _ in range(-(-settings.burn_in // settings.moves)):
        key, sub = jax.random.split(key)
        arguments = wave, points, sub, walkers, width, settings.moves, config.family.cell
        sampled, plan = memory.fitting(partial(_burn_in, *arguments), plan, say)
        walkers, width = sampled.walkers, adapt_width(width, sampled.acceptance, config.family.cell)

    records = [Record() for _ in observables]
    acceptance: list[np.ndarray] = []
    shortest = math.inf  # the first block is compiled
    while True:
        block_begin = time.monotonic()
        key, sub = jax.random.split(key)
        fixed = config, observables, settings.moves
        run = partial(_next_block, *fixed, wave, walkers, vectors, points, tables, sub, width)
        block, plan = memory.fitting(run, plan, say)
        walkers = block.walkers
        acceptance.append(np.asarray(block.acceptance))
        records = [
            _extended(*r, settings.walkers) for r in zip(records, observables, block.series, block.sums, strict=True)
        ]
        shortest = min(shortest, time.monotonic() - block_begin)
        if _enough(records[0].series("energy"), settings, time.monotonic() - begin + shortest):
            break
    found = dict(zip(chosen.observables, records, strict=True))
    quantities: dict[str, Quantity] = {}
    for name, o in chosen.observables.items():
        quantities |= o.finalise(found[name], model.start, couplings)
    results = _results(config, couplings, found["energy"], quantities, np.mean(acceptance, 0))
    seconds = time.monotonic() - begin
    return [
        replace(r, seconds=seconds, outside=names, skipped=chosen.skipped)
        for r, names in zip(results, outside, strict=True)
    ]


def _outside(config: Config, couplings: FloatArray) -> list[list[str]]:
    """Names of the couplings outside the trained range, with a warning for each."""
    family = config.family
    found = [family.outside(c) for c in couplings]
    for c, names in zip(couplings, found, strict=True):
        for name in names:
            low, high, _ = getattr(family, name)
            value = c[family.names.index(name)]
            warnings.warn(f"{name} = {value:g} is outside the trained range {low:g} to {high:g}", stacklevel=4)
    return found


def _enough(energy: np.ndarray, settings: Settings, next_end: float) -> bool:
    """Whether to stop after series of the energy [sweeps, couplings, walkers]; seconds when another block ends."""
    done = len(energy)
    if done >= settings.max_sweeps or (settings.walltime is not None and next_end > settings.walltime):
        return True
    if settings.target_error is None:
        return done >= min(200, settings.max_sweeps)
    return done >= FEWEST and _worst_error(energy) <= settings.target_error


def _worst_error(energy: np.ndarray) -> float:
    return max(estimate(energy[:, c]).error for c in range(energy.shape[1]))


_sample = compiled(sampling.sample)


def _burn_in(*arguments: Any) -> sampling.Sampled:
    """Moves with the chunk of the plan, the last argument; complete before it returns, or out of memory."""
    *others, plan = arguments
    sampled: sampling.Sampled = jax.block_until_ready(_sample(*others, plan.move_chunk))
    return sampled


def _next_block(*arguments: Any) -> Block:
    """The same for a block of measurements."""
    *others, plan = arguments
    block: Block = jax.block_until_ready(_block(*others, plan.chunk, plan.move_chunk))
    return block


@compiled
def _block(
    config: Config,
    observables: tuple[Observable, ...],
    moves: int,
    model: Wavefunction,
    walkers: Walkers,
    couplings: Array,
    points: Point,
    tables: Any,
    key: Key,
    width: Array,
    chunk: int,
    move_chunk: int,
) -> Block:
    """`LENGTH` sweeps of `moves` moves, each device with its own walkers."""

    def share(
        walkers: Walkers, model: Wavefunction, couplings: Array, points: Point, tables: Any, key: Key, width: Array
    ) -> Block:
        density = sampling.wave_density(model, points, move_chunk)

        def one(carry: tuple[Walkers, Any], turn: tuple[Array, Key]) -> Any:
            walkers, sums = carry
            number, key = turn
            sampled = sampling.metropolis(key, walkers, density, width, moves, config.family.cell)
            own_key = jax.random.fold_in(key, MEASURING)
            here = Sweep(config, model, sampled.walkers, couplings, points, own_key, chunk, move_chunk)
            kept = tuple(
                o.evaluate(here, t) if o.keeps_series else {} for o, t in zip(observables, tables, strict=True)
            )
            sums = tuple(_added(*each, here, number) for each in zip(sums, observables, tables, strict=True))
            return (sampled.walkers, sums), (kept, sampled.acceptance)

        empty = Sweep(config, model, walkers, couplings, points, key, chunk, move_chunk)
        zero = tuple(_zero(o, empty, t) for o, t in zip(observables, tables, strict=True))
        turns = jnp.arange(LENGTH), jax.random.split(key, LENGTH)
        (walkers, sums), (series, acceptance) = jax.lax.scan(one, (walkers, zero), turns)
        return Block(walkers, acceptance.mean(0), series, devices.total(sums))

    parts: Any = (SPREAD, WHOLE, PartitionSpec(None, None, devices.AXIS), WHOLE)
    run = on_each(share, walkers.shape[1], (SPREAD, *6 * (WHOLE,)), Block(*parts))
    block: Block = run(walkers, model, couplings, points, tables, key, width)
    return block


def _zero(observable: Observable, sweep: Sweep, tables: Any) -> Values:
    """Sums of nothing."""
    if observable.keeps_series:
        return {}
    shapes = jax.eval_shape(lambda: sum_groups(observable.evaluate(sweep, tables)))
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


def _added(sums: Values, observable: Observable, tables: Any, sweep: Sweep, number: Array) -> Values:
    """The sums with those of this sweep, if it is one of those that are measured."""
    if observable.keeps_series:
        return sums

    def add(sums: Values) -> Values:
        return jax.tree.map(jnp.add, sums, sum_groups(observable.evaluate(sweep, tables)))

    if observable.every == 1:
        return add(sums)
    added: Values = jax.lax.cond(number % observable.every == 0, add, lambda sums: sums, sums)
    return added


def _extended(record: Record, observable: Observable, series: Values, sums: Values, walkers: int) -> Record:
    """What is kept of an observable, with one more block."""
    if observable.keeps_series:
        return replace(record, blocks=(*record.blocks, {name: np.asarray(x) for name, x in series.items()}))
    measured = -(-LENGTH // observable.every) * np.bincount(group_of(walkers), minlength=groups(walkers))
    return replace(record, sums=record.sums.plus(sums, measured.astype(float)))


def _results(
    config: Config, couplings: FloatArray, energy: Record, quantities: dict[str, Quantity], acceptance: np.ndarray
) -> list[Result]:
    """What was measured, coupling by coupling."""
    family = config.family
    sweeps, _, walkers = energy.series("energy").shape
    results = []
    for c, (vector, terms) in enumerate(zip(couplings, estimates(energy, len(couplings)), strict=True)):
        named = {n: float(x) for n, x in zip(family.names, vector, strict=True)}
        scale = named.get("period_nm", family.material.period_nm)
        here = {name: q.at(c) for name, q in quantities.items()}
        density = here.pop("density", None)
        fields: dict[str, Any] = {
            **terms,
            "density": None if density is None else density.value,
            "density_error": None if density is None else density.error,
        }
        results.append(
            Result(
                couplings=named,
                n_electrons=family.n_electrons,
                e0_mev=family.material.e0_mev * (family.material.period_nm / scale) ** 2,
                variance=terms["energy"].variance + terms["energy_imag"].variance,
                acceptance=float(acceptance[c]),
                walkers=walkers,
                sweeps=sweeps,
                seconds=math.nan,
                outside=[],
                quantities=here,
                **fields,
            )
        )
    return results

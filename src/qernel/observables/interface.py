"""What an observable is: evaluated for each walker, summed for each coupling, finished with error bars.

    evaluate   values of every walker of one sweep, [couplings, walkers, …], on the device that has the walkers
    reduce     `sum_groups`: sums over groups of walkers, added up over the sweeps; their size never grows
    finalise   means, and whatever follows from them, with error bars from the spread between the groups

Walkers are independent chains, so groups of them are independent however slowly the chains move: no autocorrelation
time enters, and an observable with many components needs no record of its own (`stats.jackknife`). Only a few numbers
per walker, such as the energy terms, are kept as series and finished by `stats.estimate`.

A new observable is one file with a frozen dataclass that has the members of `Observable`, and a line in `__init__.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qernel import stats
from qernel.cell import FloatArray
from qernel.chunks import map_chunks
from qernel.config import Config
from qernel.devices import own, own_walkers, sharing
from qernel.start import Point, Start
from qernel.types import Couplings, Key, Walkers
from qernel.wavefunction import Wavefunction

GROUPS = 32
"""Groups of walkers: an error bar is then known to 13 %."""

Values = dict[str, Array]
"""Values of every walker by name, [couplings, walkers, …]."""

Means = dict[str, np.ndarray]
"""Means by name, [couplings, …]."""


@dataclass(frozen=True)
class Sweep:
    """The walkers of one sweep that are on this device, and what there is to know of them."""

    config: Config
    model: Wavefunction
    walkers: Walkers
    couplings: Couplings
    points: Point
    key: Key
    """the same on all devices: draw with `uniform`"""
    chunk: int
    """walkers at once in the local energy"""
    move_chunk: int
    """walkers at once where ψ is evaluated"""

    def each(self, f: Callable[..., Any], walkers: Any = None, points: Any = None) -> Any:
        """f(walkers [chunk, …], points [chunk, …]) of all walkers, some at a time, [couplings, walkers, …]."""
        walkers = self.walkers if walkers is None else walkers
        return map_chunks(f, walkers, self.points if points is None else points, self.move_chunk)

    def uniform(self, *shape: int) -> Float[Array, "couplings walkers ..."]:
        """Random numbers in [0, 1) for every walker, [couplings, walkers, *shape], whatever the devices."""
        dtype = self.walkers.dtype
        return own(lambda size: jax.random.uniform(self.key, size, dtype), *self.walkers.shape[:2], *shape)


class Quantity(NamedTuple):
    """A measured quantity, at all couplings (leading axis) or at one."""

    value: FloatArray
    error: FloatArray
    """one standard error"""
    units: str
    text: str
    """what it is, for people"""
    dims: tuple[str, ...] = ()
    """names of the axes after that of the couplings"""
    coordinates: dict[str, tuple[str, Any]] = {}  # noqa: RUF012
    """name → (axis, values along it)"""

    def at(self, coupling: int) -> Quantity:
        """The same at one of the couplings."""
        return self._replace(value=self.value[coupling], error=self.error[coupling])


@dataclass(frozen=True)
class Sums:
    """Sums over groups of walkers and over the sweeps so far."""

    totals: Means
    """[groups, couplings, …] by name"""
    counts: FloatArray
    """measurements in each group, [groups]"""

    def plus(self, more: dict[str, Any], counts: FloatArray) -> Sums:
        """With the sums of another block, [couplings, groups, …] by name."""
        added: Means = {name: np.moveaxis(np.asarray(x), 1, 0).astype(_wide(x)) for name, x in more.items()}
        old = self.totals or {name: np.zeros_like(x) for name, x in added.items()}
        return Sums({name: old[name] + x for name, x in added.items()}, self.counts + counts)

    def derived(self, f: Callable[[Means], Any]) -> tuple[FloatArray, FloatArray]:
        """f of the means, and its standard error (`stats.jackknife` over the groups)."""
        width = {name: self.counts.reshape(-1, *[1] * (x.ndim - 1)) for name, x in self.totals.items()}
        return stats.jackknife(f, {name: x / width[name] for name, x in self.totals.items()}, self.counts)


@dataclass(frozen=True)
class Record:
    """What was kept of one observable over a whole run of chains."""

    sums: Sums = field(default_factory=lambda: Sums({}, np.zeros(1)))
    blocks: tuple[Means, ...] = ()
    """series of one block after the other, for observables with `keeps_series`"""

    def series(self, name: str) -> np.ndarray:
        """[sweeps, couplings, walkers]"""
        return np.concatenate([block[name] for block in self.blocks])


@runtime_checkable
class Observable(Protocol):
    """Something to be measured. Any frozen dataclass with these members."""

    @property
    def every(self) -> int:
        """Sweeps between two measurements."""
        ...

    @property
    def keeps_series(self) -> bool:
        """Whether the values of every sweep and walker are kept: for a few numbers only."""
        ...

    def missing(self, start: Start, couplings: FloatArray) -> str | None:
        """Why it does not exist for this system, or None."""
        ...

    def tables(self, start: Start, couplings: FloatArray) -> Any:
        """Arrays that `evaluate` needs, with a leading axis of couplings; computed once."""
        ...

    def evaluate(self, sweep: Sweep, tables: Any) -> Values:
        """Values of every walker, [couplings, walkers, …], without any exchange between devices."""
        ...

    def finalise(self, record: Record, start: Start, couplings: FloatArray) -> dict[str, Quantity]:
        """Means and derived quantities with error bars, [couplings, …] by name."""
        ...


@dataclass(frozen=True)
class Summed:
    """What most observables share: measured in every sweep, defined for every system, no tables, no series."""

    every: int = 1
    keeps_series = False

    def missing(self, start: Start, couplings: FloatArray) -> str | None:
        """Always there."""
        return None

    def tables(self, start: Start, couplings: FloatArray) -> Any:
        """None."""
        return ()


def groups(walkers: int) -> int:
    """Number of groups among `walkers` chains."""
    return min(GROUPS, walkers)


def group_of(walkers: int) -> np.ndarray:
    """Group of each of `walkers` chains: neighbours together, sizes differ by one at most."""
    return np.arange(walkers) * groups(walkers) // walkers


def sum_groups(values: Values) -> Values:
    """Sums over the walkers of each group on this device, [couplings, groups, …]."""

    def one(x: Array) -> Array:
        walkers = x.shape[1] * sharing()
        member = jnp.asarray(group_of(walkers)[:, None] == np.arange(groups(walkers)), x.real.dtype)
        return jnp.einsum("wg,cw...->cg...", own_walkers(member[None])[0], x)

    return jax.tree.map(one, values)


def _wide(x: Any) -> type:
    return complex if np.iscomplexobj(x) else float

"""What follows a step whose numbers are not finite: another try, then the last checkpoint, then the end.

The walkers that broke it are put where healthy ones of their coupling are, and the step is made again with other random
numbers, at most `TRIES` times in a row. If that does not help, or the weights themselves are broken, the run goes back
to its last checkpoint and on with other random numbers, at most `REWINDS` times before a new checkpoint. After that it
stops, with the state and the walkers in a crash file. Random numbers follow from those of the state: a run that is
restarted from the same checkpoint meets the same faults and does the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from qernel import checkpoint
from qernel.compiling import compiled
from qernel.hosts import Failed, gathered, lead
from qernel.record import Record, restore
from qernel.types import Chosen
from qernel.vmc import Metrics, TrainState, Vmc

TRIES = 3
REWINDS = 3


class RunFailed(Failed):
    """Training cannot go on; the last good checkpoint is intact."""


class Fault(NamedTuple):
    """What is not finite."""

    what: str
    """in words"""
    broken: Chosen
    """walkers without a finite local energy, [couplings, walkers]"""
    curable: bool
    """by another try from the same weights"""


@dataclass
class Recovery:
    """Faults of a run, and the state that goes on after each."""

    vmc: Vmc
    record: Record
    say: Callable[[str], None]
    tries: int = 0
    """in a row, of the present step"""
    rewinds: int = 0
    """since the last new checkpoint"""
    rewound_from: int = -1
    """the furthest step that a rewind started from"""
    refreshed: np.ndarray = field(init=False)
    """walkers put anew before the present step, [couplings]"""

    def __post_init__(self) -> None:
        self._healthy()

    def passed(self) -> None:
        """A step went well."""
        self._healthy()
        if self.rewinds and self.record.saved is not None and self.record.saved > self.rewound_from:
            self.rewinds = 0

    def after(self, fault: Fault, state: TrainState, new: TrainState) -> TrainState:
        """The state to go on from, where the step from `state` to `new` had a fault.

        Raises `RunFailed` if all has been tried.
        """
        step = int(state.step)
        if fault.curable and self.tries < TRIES:
            self.tries += 1
            self.refreshed += fault.broken.sum(1)
            self.say(f"step {step}: {fault.what}; {self._refreshing(fault)}, try {self.tries} of {TRIES}")
            return refresh(self.vmc, state, new, fault.broken, self.tries)
        if self.rewinds == REWINDS:
            raise RunFailed(
                f"step {step}: {fault.what}, after {REWINDS} rewinds; {self._crash_file(fault, state, new)}"
            )
        return self._rewind(fault, step)

    def _rewind(self, fault: Fault, step: int) -> TrainState:
        restored = restore(self.record.checkpoints, self.vmc)
        self.rewinds, self.rewound_from = self.rewinds + 1, max(step, self.rewound_from)
        back = restored.step
        self.record.rewind(back)
        self._healthy()
        self.say(
            f"step {step}: {fault.what}; back to step {back} with other random numbers, {self.rewinds} of {REWINDS}"
        )
        state = restored.state
        return state._replace(key=jax.random.fold_in(state.key, self.rewinds))

    def _refreshing(self, fault: Fault) -> str:
        number = int(fault.broken.sum())
        return f"{number} walkers put anew" if number else "other random numbers"

    def _crash_file(self, fault: Fault, state: TrainState, new: TrainState) -> str:
        contents = gathered({"state": state, "walkers": new.walkers, "broken": fault.broken})

        def write() -> str:
            try:
                path = checkpoint.save_crash(self.record.checkpoints, int(state.step), contents, self.record.header)
            except OSError as error:
                return f"a crash file could not be written ({error.strerror or error})"
            return f"the state before it, the walkers and which of them are broken are in {path}"

        text: str = lead(write)
        return text

    def _healthy(self) -> None:
        self.tries, self.refreshed = 0, np.zeros(len(self.vmc.couplings), int)


def find(vmc: Vmc, state: TrainState, new: TrainState, metrics: Metrics) -> Fault | None:
    """What is not finite in the step from `state` to `new`, if anything."""
    energies = bool(np.isfinite(metrics.energy).all() and np.isfinite(metrics.energy_imag).all())
    if energies and all_finite((new.model, new.optimizer)):
        return None
    none = np.zeros(new.walkers.shape[:2], bool)
    if not all_finite((state.model, state.optimizer)):
        return Fault("weights or optimiser are not finite", none, curable=False)
    if energies:
        return Fault("the update of the weights is not finite", none, curable=True)
    broken = vmc.broken(state.model, new.walkers)
    where = ", ".join(f"{x:.4g}" for x in vmc.couplings[~np.isfinite(metrics.energy), 0])
    return Fault(f"the energy is not finite at λ = {where}", broken, curable=True)


def refresh(vmc: Vmc, state: TrainState, new: TrainState, broken: Chosen, attempt: int) -> TrainState:
    """The walkers of `new`, those that are broken put anew, with the weights of `state` and other random numbers.

    A coupling without any healthy walker begins again with random ones, and all are equilibrated.
    """
    key, sub = jax.random.split(jax.random.fold_in(state.key, attempt))
    walkers = vmc.put_anew(sub, new.walkers, np.asarray(broken))
    again = vmc.placed(state._replace(key=key, walkers=walkers))
    return vmc.init(again) if broken.all(1).any() else again


@compiled
def _all_finite(leaves: list[jax.Array]) -> jax.Array:
    return jnp.all(jnp.stack([jnp.isfinite(x).all() for x in leaves]))


def all_finite(tree: PyTree) -> bool:
    """No NaN and no infinity in any floating leaf."""
    return bool(_all_finite(jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array))))

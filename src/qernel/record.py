"""What a run leaves on disk while it trains: log rows and checkpoints, in the order that a restart needs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from qernel import checkpoint, hosts
from qernel.log import TrainLog
from qernel.vmc import TrainState, Vmc


class Resumed(NamedTuple):
    """A run as its newest good checkpoint has it."""

    state: TrainState
    step: int
    header: dict[str, Any]
    """what was stored along"""
    path: str
    skipped: list[str]
    """one line per newer file that was damaged"""


def restore(files: Path, vmc: Vmc) -> Resumed:
    """The newest good checkpoint, laid out over the devices. Raises `InputError` as `checkpoint.restore_latest`."""
    blank = vmc.blank()
    # Shapes alone: the first process cannot lay out arrays over devices of the others.
    template = jax.tree.map(lambda x: _shape(x) if isinstance(x, jax.Array) else x, blank)
    found: list[checkpoint.Restored] = []

    def read() -> dict[str, Any]:
        found.append(checkpoint.restore_latest(files, template))
        header = found[0].header
        return {"step": header.step, "header": header.user, "path": str(found[0].path), "skipped": found[0].skipped}

    answer = hosts.lead(read)
    with hosts.file_of_first(found[0].path if found else None) as path:
        state = found[0].state if found else checkpoint.restore(path, template)
    return Resumed(vmc.placed(state), **answer)


def _shape(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=getattr(x, "weak_type", False))


class Record:
    """Log and checkpoints of a run.

    A disk that is full or away does not end a run: rows wait in memory, saving is tried again, and the console says so.
    The log never lags behind a checkpoint. Of several processes only the first writes.
    """

    def __init__(
        self, folder: Path, log: TrainLog | None, keep: int, header: dict[str, Any], say: Callable[[str], None]
    ) -> None:
        """Args: run folder, its log (the first process), checkpoints to keep, header for each, where to complain."""
        self.folder, self.log, self.keep, self.header, self.say = folder, log, keep, header, say
        self.waiting: list[Mapping[str, Any]] = []
        self.problem: str | None = None
        """why the last attempt to write failed"""
        self.saved: int | None = None
        """step of the newest checkpoint of this call"""
        self.saved_at = time.monotonic()

    @property
    def checkpoints(self) -> Path:
        """Their folder."""
        return self.folder / "checkpoints"

    def add(self, rows: list[Mapping[str, Any]]) -> None:
        """Rows for the log: written now, or with the next ones if the disk takes nothing."""
        if self.log is None:
            return
        self.waiting += rows
        try:
            self._flush()
        except OSError as error:
            self.problem = self._complain(error)

    def save(self, state: TrainState, wall: float) -> bool:
        """Rows and a checkpoint of the state, on disk when this returns true. `wall` is the run's time so far in s."""
        state = hosts.gathered(state)
        self.saved_at = time.monotonic()  # or of the attempt
        self.problem = hosts.lead(lambda: self._write(state, wall))
        if self.problem is None:
            self.saved = int(state.step)
        return self.problem is None

    def rewind(self, step: int) -> None:
        """Forget rows of this step and later ones, and checkpoints after it.

        Raises `hosts.Failed` if the disk refuses.
        """
        self.saved = step
        hosts.lead(lambda: self._cut(step))

    def _cut(self, step: int) -> None:
        assert self.log is not None
        self.waiting = [row for row in self.waiting if row["step"] < step]
        try:
            self.log.truncate_after(step - 1)
            checkpoint.discard_after(self.checkpoints, step)
        except OSError as error:
            raise hosts.Failed(f"{self.folder}: cannot be written ({error.strerror or error})") from None

    def _write(self, state: TrainState, wall: float) -> str | None:
        """Rows and checkpoint to disk; the problem if there is one."""
        step = int(state.step)
        try:
            self._flush()
            assert self.log is not None
            self.log.sync()
            checkpoint.save(self.checkpoints, step, state, {**self.header, "wall": wall}, self.keep)
        except OSError as error:
            return self._complain(error)
        if self.problem is not None:
            self.say(f"{self.folder}: can be written again; saved at step {step}")
        return None

    def _flush(self) -> None:
        while self.log is not None and self.waiting:
            self.log.append(self.waiting[0])
            self.waiting.pop(0)

    def _complain(self, error: OSError) -> str:
        problem = error.strerror or str(error)
        if problem != self.problem:
            since = "nothing" if self.saved is None else f"nothing after step {self.saved}"
            self.say(f"{self.folder}: cannot be written ({problem}); going on, {since} is saved yet")
        return problem

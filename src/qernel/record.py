"""What a run leaves on disk while it trains: log rows and checkpoints, in the order that a restart needs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qernel import checkpoint
from qernel.log import TrainLog
from qernel.vmc import TrainState


class Record:
    """Log and checkpoints of a run.

    A disk that is full or away does not end a run: rows wait in memory, saving is tried again, and the console says so.
    The log never lags behind a checkpoint.
    """

    def __init__(self, folder: Path, log: TrainLog, keep: int, header: dict[str, Any], say: Callable[[str], None]):
        """Args: run folder, its open log, checkpoints to keep, header to store with each, where to complain."""
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
        self.waiting += rows
        try:
            self._flush()
        except OSError as error:
            self._complain(error)

    def save(self, state: TrainState, wall: float) -> bool:
        """Rows and a checkpoint of the state, on disk when this returns true. `wall` is the run's time so far in s."""
        step = int(state.step)
        self.saved_at = time.monotonic()  # or of the attempt
        try:
            self._flush()
            self.log.sync()
            checkpoint.save(self.checkpoints, step, state, {**self.header, "wall": wall}, self.keep)
        except OSError as error:
            self._complain(error)
            return False
        if self.problem is not None:
            self.say(f"{self.folder}: can be written again; saved at step {step}")
        self.problem, self.saved = None, step
        return True

    def rewind(self, step: int) -> None:
        """Forget rows of this step and later ones, and checkpoints after it."""
        self.waiting = [row for row in self.waiting if row["step"] < step]
        self.log.truncate_after(step - 1)
        checkpoint.discard_after(self.checkpoints, step)

    def _flush(self) -> None:
        while self.waiting:
            self.log.append(self.waiting[0])
            self.waiting.pop(0)

    def _complain(self, error: OSError) -> None:
        problem = error.strerror or str(error)
        if problem != self.problem:
            since = "nothing" if self.saved is None else f"nothing after step {self.saved}"
            self.say(f"{self.folder}: cannot be written ({problem}); going on, {since} is saved yet")
        self.problem = problem

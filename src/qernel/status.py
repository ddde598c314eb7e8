"""How far a run is, from its folder alone: nothing is computed and nothing is written."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from qernel import checkpoint
from qernel.config import read_config
from qernel.errors import InputError
from qernel.log import duration
from qernel.run_folder import owner


@dataclass(frozen=True)
class Status:
    """How far a run is."""

    run: str
    step: int
    """of the newest checkpoint"""
    steps: int
    """in all"""
    wall: float
    """s, time spent"""
    saved: float
    """s since the newest checkpoint"""
    process: str | None
    """that trains there now"""

    @property
    def finished(self) -> bool:
        """Nothing is left to do."""
        return self.step >= self.steps

    def __str__(self) -> str:
        state = "finished" if self.finished else f"process {self.process} trains" if self.process else "not finished"
        spent, ago = duration(self.wall), duration(self.saved)
        return f"{self.run}: step {self.step} of {self.steps}, {spent} so far, saved {ago} ago; {state}"


def status(run: Path) -> Status:
    """Raises `InputError` if that is not the folder of a run, or has no checkpoint that can be read."""
    config = read_config(run / "config.json")
    problems = []
    for path in reversed(checkpoint.checkpoints(run / "checkpoints")):
        try:
            header = checkpoint.read_header(path)
        except checkpoint.DamagedCheckpoint as error:
            problems.append(str(error))
            continue
        ago = max(0.0, time.time() - path.stat().st_mtime)
        wall = float(header.user.get("wall", 0.0))
        return Status(str(run), header.step, config.steps, wall, ago, owner(run))
    raise InputError(f"no checkpoint in {run}: {'; '.join(problems) or 'not yet'}")

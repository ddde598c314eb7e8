"""When a run ends before its last step: wall time and signals."""

from __future__ import annotations

import math
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from qernel.errors import InputError


@dataclass
class Stop:
    """Why the loop should end, if it should.

    A signal may come at any moment, also between two looks at it: of several processes none ends before all know.
    """

    asked: str | None = None
    """the signal that came to this process"""
    reason: str | None = None
    """what all processes agreed on"""


@dataclass
class Deadline:
    """The end of the wall time: reached as soon as the next step, and saving after it, may not fit in."""

    at: float | None
    """of `time.monotonic`"""
    step: float = 0.0
    """s, the longest step so far"""
    saving: float = 0.0
    """s, the longest save so far"""
    turn: float | None = None
    """s after the first step, which compiles, when another run's turn comes"""
    over: float = math.inf
    """of `time.monotonic`, the end of the turn"""

    def compiled(self) -> None:
        """The first step is done: the turn begins."""
        if self.turn is not None:
            self.over = time.monotonic() + self.turn

    def near(self) -> bool:
        """Should the run end now? With room for a step of twice the longest time and a second more."""
        now = time.monotonic()
        return now >= self.over or (self.at is not None and now + 2 * (self.step + self.saving) + 1.0 > self.at)


@contextmanager
def interruptible() -> Iterator[Stop]:
    """SIGINT and SIGTERM ask the loop to save and stop; a second SIGINT interrupts at once."""
    stop = Stop()

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.asked is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.asked = signal.Signals(number).name

    if threading.current_thread() is not threading.main_thread():
        yield stop  # signals can only be handled by the main thread
        return
    old = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for s, handler in old.items():
            signal.signal(s, handler)


def parse_walltime(text: str) -> float:
    """Seconds from "90s", "9m", "1h30m", "2h" or "hh:mm:ss". Raises `InputError` otherwise."""
    if m := re.fullmatch(r"(\d{1,9}):(\d{1,2}):(\d{1,2})", text):
        seconds = float(int(m[1]) * 3600 + int(m[2]) * 60 + int(m[3]))
    elif m := re.fullmatch(r"(?:(\d{1,9}(?:\.\d*)?)h)?(?:(\d{1,9}(?:\.\d*)?)m)?(?:(\d{1,9}(?:\.\d*)?)s?)?", text):
        hours, minutes, rest = (float(x) if x else 0.0 for x in m.groups())
        seconds = hours * 3600 + minutes * 60 + rest
    else:
        seconds = math.nan
    if not seconds > 0:
        raise InputError(f"walltime = {text}: must be a time such as 90s, 9m, 1h30m or 01:30:00")
    return seconds

"""Networks against each other, from the logs of their training: energies in windows, ratios of times.

What `benchmarks/head_to_head.py` trains, a `Series` describes: one network at one λ. Seconds are those of the steps
alone. Starting, placing walkers and compiling are set-up, which is reported apart and counts for nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from qernel.cell import FloatArray
from qernel.errors import InputError, require, shown
from qernel.stats import estimate

LEAST_STEPS = 40
"""of a series that is compared: a fifth of them, the last window, then has eight"""

FEWEST = 5
"""steps of a window of a curve"""

LAST = 0.8
"""the last window is from this part of the time, or of the steps, to the end"""


@dataclass(frozen=True)
class Series:
    """Training of one network at one λ, step by step."""

    name: str
    lam: float
    electrons: int
    parameters: int
    """weights"""
    active: int
    """weights that an electron meets"""
    laplacian: str
    optimizer: str
    walkers: int
    """at this λ"""
    moves: float
    """of all electrons before an update, mean"""
    clock: str
    """what the seconds are of: wall (accelerators) or processor (all threads of the process)"""
    setup: float
    """s of wall time: start, placing of walkers and compilation, all legs together"""
    seconds: FloatArray
    """s at the end of each step, set-up not counted, [steps]"""
    energy: FloatArray
    """E0, total, mean over the walkers of each step, [steps]"""
    variance: FloatArray
    """E0², of the local energy, [steps]"""

    @property
    def step_seconds(self) -> FloatArray:
        """s of each step, [steps]."""
        return np.diff(self.seconds, prepend=0.0)

    @property
    def numbers(self) -> FloatArray:
        """1, 2 … of each step, [steps]."""
        return np.arange(1.0, len(self.seconds) + 1)

    def to_json(self) -> dict[str, Any]:
        """Plain values, as `from_json` reads them."""
        return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in asdict(self).items()}


def from_json(data: Any, source: object = "series") -> Series:
    """A series from plain values, perhaps of another program. Raises `InputError`, naming `source`, otherwise."""
    names = [f.name for f in fields(Series)]
    require(isinstance(data, dict), str(source), shown(data), "a table of a series")
    missing = [n for n in names if n not in data]
    require(not missing, str(source), missing, f"a series, with {', '.join(names)}")
    try:
        arrays = {n: np.asarray(data[n], float) for n in ("seconds", "energy", "variance")}
        lengths = {n: len(x) for n, x in arrays.items()}
    except (TypeError, ValueError):
        raise InputError(f"{source}: seconds, energy and variance must be lists of numbers") from None
    require(len(set(lengths.values())) == 1, str(source), lengths, "as many seconds as energies and variances")
    return Series(**{n: arrays.get(n, data[n]) for n in names})


def step_times(log: dict[str, np.ndarray], starts: Sequence[int], clock: str) -> tuple[FloatArray, float]:
    """Seconds of each step [steps] by the clock "wall" or "processor", and wall seconds of set-up.

    Args:
        log: columns of one coupling, of `train.csv`.
        starts: steps that a leg of the run began with. They compile: their time is taken to be the median of the
            others, what is beyond it is set-up.
        clock: "wall", from row to row, or "processor", of each step alone.
    """
    wall = np.diff(log["wall"], prepend=0.0)
    times = log["processor"] if clock == "processor" else wall
    first = np.isin(log["step"], list(starts)) | (np.arange(len(wall)) == 0)
    if first.all():
        return np.full(len(wall), math.nan), float(wall.sum())
    seconds = np.where(first, np.median(times[~first]), times)
    return seconds, float(np.sum(wall[first] - np.median(wall[~first])))


@dataclass(frozen=True)
class Window:
    """Mean over the steps of a window, with the error of `stats.estimate`: a drift within it counts as correlation."""

    low: float
    high: float
    steps: int
    energy: float
    error: float
    variance: float


def window(s: Series, x: FloatArray, low: float, high: float) -> Window:
    """The steps whose `x` (numbers or seconds) lies in (low, high]."""
    inside = (x > low) & (x <= high)
    count = int(inside.sum())
    if count == 0:
        return Window(low, high, 0, *3 * (math.nan,))
    e = estimate(s.energy[inside][:, None])
    return Window(low, high, count, e.mean, e.error, float(s.variance[inside].mean()))


def windows(s: Series, x: FloatArray) -> list[Window]:
    """Windows that end at the last `x` over 1, √2, 2 …, one after the other, as long as they hold enough steps."""
    found: list[Window] = []
    high = float(x[-1])
    while True:
        low = high / math.sqrt(2)
        w = window(s, x, low, high)
        if w.steps < FEWEST:
            return found[::-1]
        found.append(w)
        high = low


def last_window(s: Series, x: FloatArray, end: float) -> Window:
    """The last fifth of all that is up to `end`."""
    return window(s, x, LAST * end, end)


def comparable(all_series: Sequence[Series]) -> list[Series]:
    """Those with steps enough to be compared, and times."""
    return [s for s in all_series if len(s.seconds) >= LEAST_STEPS and np.isfinite(s.seconds).all()]


def at_equal_time(all_series: Sequence[Series]) -> tuple[float, list[Window]]:
    """Seconds that all series have reached, and the last window of each up to then."""
    end = min(float(s.seconds[-1]) for s in all_series)
    return end, [last_window(s, s.seconds, end) for s in all_series]


def at_equal_steps(all_series: Sequence[Series]) -> tuple[float, list[Window]]:
    """Steps that all series have made, and the last window of each up to then."""
    end = min(float(len(s.seconds)) for s in all_series)
    return end, [last_window(s, s.numbers, end) for s in all_series]


def median_step(s: Series, blocks: int = 8) -> tuple[float, float]:
    """Median seconds of a step, and its standard error from the medians of successive blocks of steps.

    A slow hour of the machine makes whole blocks slow, so that the error knows of it.
    """
    x = s.step_seconds
    parts = np.array([np.median(p) for p in np.array_split(x, min(blocks, len(x)))])
    error = parts.std(ddof=1) / math.sqrt(len(parts)) if len(parts) > 1 else math.nan
    return float(np.median(x)), float(error)


def time_ratio(slow: Series, fast: Series) -> tuple[float, float]:
    """Median seconds of a step of one over those of the other, and the standard error."""
    (a, da), (b, db) = median_step(slow), median_step(fast)
    return a / b, a / b * math.hypot(da / a, db / b)


def mean_of(values: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Mean of values with errors; the error is no less than their scatter says."""
    x, e = np.array(values).T
    spread = x.std(ddof=1) / math.sqrt(len(x)) if len(x) > 1 else 0.0
    return float(x.mean()), float(max(np.sqrt(np.sum(e**2)) / len(x), spread))

"""What a run tells the world: an append-only CSV log with units, its provenance, and a progress line on stderr."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO, cast

import numpy as np

from qernel.errors import InputError, nearest, require
from qernel.files import write_atomically


class TrainLog:
    """A CSV file that grows by one complete line per `append`, and survives kills and resumes without gap or duplicate.

    Beside `train.csv` lies `train.units.json` with the unit or meaning of every column. Opening an existing log removes
    a last line that a kill left incomplete. One process at a time writes to it.
    """

    def __init__(self, path: Path, columns: Mapping[str, str]) -> None:
        """Open or make the log.

        Args:
            path: the CSV file; its folder is made if missing.
            columns: name → unit or meaning, in the order of the file; "step" must be among them.

        Raises:
            InputError: if the file exists with columns that are not among these, or "step" is missing.
        """
        require("step" in columns, "columns", list(columns), 'a list with "step"')
        self.path = path
        self.columns = tuple(columns)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._repair()
        units = json.dumps(dict(columns), indent=2, ensure_ascii=False) + "\n"
        write_atomically(units_path(path), lambda p: p.write_text(units, encoding="utf-8"))
        self._file = path.open("ab", buffering=0)

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one line and hand it to the operating system. Columns left out stay empty and read as NaN.

        Raises:
            InputError: if the row has an unknown column or no step.
            OSError: if the disk is full; the file then still ends with a complete line.
        """
        for name in row:
            if name not in self.columns:
                raise InputError(f"log {self.path}: no column {name}; {nearest(name, list(self.columns))}")
        require("step" in row, "row", sorted(row), 'a row with a "step"')
        line = _csv_line([_cell(row.get(name)) for name in self.columns])
        end = self._file.seek(0, os.SEEK_END)
        if self._file.write(line) != len(line):
            self._file.truncate(end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def truncate_after(self, step: int) -> int:
        """Drop all rows of steps after `step`, as when a run resumes there; the number of rows dropped.

        The file is rewritten beside itself and renamed, so that a kill leaves the old or the new one.
        """
        lines = _complete_lines(self.path)
        k = self.columns.index("step")
        kept = [x for x in lines[1:] if _step_in(self.path, x, k) <= step]
        dropped = len(lines) - 1 - len(kept)
        if dropped:
            self._file.close()
            write_atomically(self.path, lambda p: p.write_bytes(b"".join([lines[0], *kept])))
            self._file = self.path.open("ab", buffering=0)
        return dropped

    def sync(self) -> None:
        """Bring all rows to disk. Called before a checkpoint is saved, the log never lags behind it."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; the log cannot be appended to afterwards."""
        self._file.close()

    def __enter__(self) -> TrainLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _repair(self) -> None:
        """Make the file end with a complete line; write the header row if there is none."""
        header = _csv_line(list(self.columns))
        lines = _complete_lines(self.path) if self.path.exists() else []
        if not lines:
            write_atomically(self.path, lambda p: p.write_bytes(header))
            return
        if lines[0] != header:
            self._add_columns(lines)
            return
        complete = sum(map(len, lines))
        if complete < self.path.stat().st_size:
            os.truncate(self.path, complete)

    def _add_columns(self, lines: list[bytes]) -> None:
        """Rewrite a log of an earlier version, which lacks some columns; they stay empty in its rows."""
        old, *rows = (_cells(self.path, line) for line in lines)
        if not set(old) <= set(self.columns) or any(len(row) != len(old) for row in rows):
            raise InputError(f"log {self.path}: has columns {','.join(old)}, this run writes {','.join(self.columns)}")
        named = (dict(zip(old, row, strict=True)) for row in rows)
        new = [list(self.columns), *([row.get(name, "") for name in self.columns] for row in named)]
        write_atomically(self.path, lambda p: p.write_bytes(b"".join(map(_csv_line, new))))


def units_path(path: Path) -> Path:
    """The file with the units of the columns of a log: train.csv → train.units.json."""
    return path.with_name(f"{path.stem}.units.json")


def read_log(path: Path) -> dict[str, np.ndarray]:
    """The columns of a log, [rows] each: integers, floats (an empty cell is NaN) or text.

    A last line that is being written, or was cut by a kill, is left out.

    Raises:
        InputError: naming the file, and the line, if it cannot be read or a line has another number of cells.
    """
    try:
        lines = _complete_lines(path)
    except OSError as error:
        raise InputError(f"log {path}: cannot be read ({error.strerror or error})") from None
    if not lines:
        raise InputError(f"log {path}: has no header row")
    names, *rows = (_cells(path, line) for line in lines)
    for number, row in enumerate(rows, start=2):
        if len(row) != len(names):
            raise InputError(f"log {path}: line {number} has {len(row)} cells, the header {len(names)}")
    return {name: _column([row[k] for row in rows]) for k, name in enumerate(names)}


def _complete_lines(path: Path) -> list[bytes]:
    """Lines with their newline; what follows the last newline is left out."""
    return [x + b"\n" for x in path.read_bytes().split(b"\n")[:-1]]


def _csv_line(cells: list[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()


def _cells(path: Path, line: bytes) -> list[str]:
    try:
        return next(csv.reader([line.decode()]), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"log {path}: damaged line ({error})") from None


def _step_in(path: Path, line: bytes, k: int) -> int:
    try:
        return int(_cells(path, line)[k])
    except (IndexError, ValueError):
        text = line.decode(errors="replace").strip()
        raise InputError(f"log {path}: damaged line {text[:60]!r}") from None


def _cell(value: Any) -> str:
    """A number as the shortest text that reads back bit for bit; text on one line."""
    if value is None:
        return ""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, int | float):
        return repr(value)
    return " ".join(str(value).split())


def _column(cells: list[str]) -> np.ndarray:
    for dtype in (np.int64, np.float64):
        try:
            return np.array([dtype(x or "nan") for x in cells], dtype)
        except (ValueError, OverflowError):
            continue
    return np.array(cells)


def provenance() -> dict[str, Any]:
    """Where numbers come from: versions, source commit, devices and UTC time; JSON-like, without the host's name."""
    import jax

    from qernel import __version__

    device = jax.devices()[0]
    return {
        "qernel": __version__,
        "git": git_state(Path(__file__)),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("jax", "jaxlib", "numpy", "equinox")},
        "x64": bool(jax.config.read("jax_enable_x64")),
        "backend": device.platform,
        "device": device.device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "platform": f"{platform.system()} {platform.machine()}",
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def git_state(source: Path) -> dict[str, Any] | None:
    """{"commit": …, "dirty": …} of the checkout that `source` is a tracked file of; None if there is none, or no git.

    Being *tracked* matters: a package installed into a virtual environment inside somebody's repository is not of it.
    """
    package = source.resolve().parent
    # GIT_DIR and its like, set inside git hooks, would point at another repository.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")} | {"GIT_OPTIONAL_LOCKS": "0"}

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(package), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
            env=environment,
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", source.name)
        return {"commit": git("rev-parse", "HEAD"), "dirty": git("status", "--porcelain", "--", ".") != ""}
    except (OSError, subprocess.SubprocessError):
        return None


def progress_line(step: int, total: int, energy_text: str, seconds_per_step: float | None = None) -> str:
    """One line on where a run stands: "step 1200/20000 (6%)  E = -105.31(4)  0.120 s/step  38 min left"."""
    parts = [f"step {step}/{total} ({100 * step // max(total, 1)}%)", energy_text]
    if seconds_per_step is not None:
        parts.append(f"{seconds_per_step:.3g} s/step")
        parts.append(f"{duration(seconds_per_step * max(total - step, 0))} left")
    return "  ".join(part for part in parts if part)


def duration(seconds: float) -> str:
    """A length of time for people: "45 s", "38 min", "2 h 05 min", "3 d 04 h"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} d {hours % 24:02d} h"


class Console:
    """Progress on stderr: one live line on a terminal, elsewhere a plain line at most every `every` seconds."""

    interrupted = False
    """has a signal ended the run?"""

    def __init__(
        self,
        total: int,
        every: float = 30.0,
        stream: io.TextIOBase | TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args: total number of steps, seconds between plain lines, where to write (stderr), what tells the time."""
        from rich.console import Console as RichConsole
        from rich.live import Live

        self._total, self._clock = total, clock
        self._stream = cast(TextIO, sys.stderr if stream is None else stream)
        terminal = self._stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb")
        self._every = 0.1 if terminal else every
        self._start: tuple[int, float] | None = None
        self._last = -float("inf")
        self._live: Live | None = None
        if terminal:
            # No refresh thread: nothing is drawn while a step is interrupted or the process is on its way out.
            rich_console = RichConsole(file=self._stream, highlight=False, markup=False, emoji=False)
            self._live = Live(console=rich_console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)

    def progress(self, step: int, energy_text: str = "") -> None:
        """Tell that `step` steps are done; the first and the last always show, others if enough time has passed."""
        now = self._clock()
        if self._start is None:
            self._start = (step, now)
        elif now - self._last < self._every and step < self._total:
            return
        self._last = now
        done = step - self._start[0]
        line = progress_line(step, self._total, energy_text, (now - self._start[1]) / done if done > 0 else None)
        if self._live is None:
            self._write(line)
            return
        from rich.text import Text

        self._live.start()
        self._live.update(Text(line, no_wrap=True, overflow="ellipsis"), refresh=True)

    def message(self, text: str) -> None:
        """A line that stays, above the progress line."""
        if self._live is not None and self._live.is_started:
            self._live.console.print(text, soft_wrap=True)
        else:
            self._write(text)

    def close(self) -> None:
        """Leave the last progress line standing and give the terminal back."""
        if self._live is not None:
            self._live.stop()

    def __enter__(self) -> Console:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()

"""The folder of a run: who may write to it, and what it says of itself."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from qernel.config import Config, differences, read_config, to_dict
from qernel.errors import InputError
from qernel.files import write_atomically
from qernel.log import provenance

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

FREE = ("steps", "checkpoint_minutes", "checkpoint_steps", "keep")
"""fields of the configuration that may change from call to call; no number depends on them"""


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """The folder, made if missing, for this process alone; a process that ends, however, gives it back.

    Raises `InputError` if it cannot be written, or belongs to another process now.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror})") from None
    try:
        if fcntl is not None:
            _take(lock, folder)
        yield
    finally:
        os.close(lock)


def owner(folder: Path) -> str | None:
    """The process that has the folder now, if any."""
    try:
        with (folder / "lock").open("r+b") as lock:
            if fcntl is None:
                return None
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return None
    except BlockingIOError:
        return _name(folder)
    except OSError:  # no lock there, or no locks at all
        return None


def _name(folder: Path) -> str:
    return (folder / "lock").read_bytes()[:20].decode(errors="replace").strip() or "unknown"


def _take(lock: int, folder: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"{folder}: another process ({_name(folder)}) trains there; wait for it") from None
    except OSError:  # a file system without locks
        return
    with contextlib.suppress(OSError):  # the lock is what counts, not the name in it
        os.ftruncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())


def earlier_config(config: Config, folder: Path) -> Config | None:
    """The configuration of the run the folder holds already, if any.

    Raises `InputError` with the differences if it is another one (all but the `FREE` fields).
    """
    file = folder / "config.json"
    if not file.exists():
        return None
    earlier = read_config(file, config.family.potential)
    changed = changes(to_dict(earlier), to_dict(config))
    if changed:
        raise InputError(f"{folder}: holds another configuration ({'; '.join(changed)}); choose another folder")
    return earlier


def changes(old: dict[str, object], new: dict[str, object]) -> list[str]:
    """Lines "field: old → new" where two plain-JSON configurations define other runs."""
    kept = [{k: v for k, v in x.items() if k not in FREE} for x in (old, new)]
    return differences(kept[0], kept[1])


def describe_run(config: Config, folder: Path) -> None:
    """Write config.json and provenance.json. Raises `InputError` if that fails."""
    try:
        for name, data in (("config.json", to_dict(config)), ("provenance.json", provenance())):
            text = json.dumps(data, indent=2) + "\n"
            write_atomically(folder / name, partial(Path.write_text, data=text))
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror})") from None

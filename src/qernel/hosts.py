"""Several processes, on one host or many, that train one run together.

All of them do the same at the same time; their devices are those of one mesh (`devices.py`). The first alone has the
run folder: it reads, writes and decides, and the others learn of it here. With one process everything here does
nothing. Each function that communicates must be called by all processes, in the same order.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from qernel.errors import InputError

T = TypeVar("T")

HEARTBEAT = 30
"""s without a sign of life after which a process counts as gone; where its connection closes, that is known at once"""

JOINING = 300
"""s to wait for all processes at the start"""


class Failed(RuntimeError):
    """The first process cannot go on, and so no other can."""


def join(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Meet the other processes, before JAX does anything else; what is not given is asked of Slurm, MPI and the like.

    Raises `InputError` if that does not tell, or not all processes come.
    """
    # JAX would take SIGTERM for itself; ours saves and stops (`stopping.py`).
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            initialization_timeout=JOINING,
            heartbeat_timeout_seconds=HEARTBEAT,
        )
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"--coordinator {coordinator}: the processes did not meet ({error})") from None


def first() -> bool:
    """Is this the process that has the run folder?"""
    return jax.process_index() == 0


@contextmanager
def together() -> Iterator[None]:
    """End this process at once where another is gone: what it waits for would never come."""
    try:
        yield
    except (InputError, Failed, KeyboardInterrupt):
        raise
    except Exception as error:
        if jax.process_count() == 1:
            raise
        text = " ".join(str(error).split())[:300]
        print(f"qernel: process {jax.process_index()}: another process is gone, or failed ({text})", file=sys.stderr)
        print("qernel: the last checkpoint is good; start all processes again", file=sys.stderr, flush=True)
        os._exit(1)  # the usual way out waits for the others


def lead(act: Callable[[], Any]) -> Any:
    """What act() returns in the first process, JSON-like, in all of them; its `InputError` and `Failed` as well."""
    if jax.process_count() == 1:
        return act()
    answer: dict[str, Any] = {}
    failure: Exception | None = None
    if first():
        try:
            answer = {"value": act()}
        except (InputError, Failed) as error:
            failure, answer = error, {"error": str(error), "input": isinstance(error, InputError)}
    answer = json.loads(_of_first(json.dumps(answer).encode()))
    if failure is not None:
        raise failure
    if "error" in answer:
        raise (InputError if answer["input"] else Failed)(answer["error"])
    return answer["value"]


def votes(*flags: bool) -> np.ndarray:
    """The flags of every process, [processes, flags]."""
    own = np.array(flags)
    return own[None] if jax.process_count() == 1 else np.asarray(multihost_utils.process_allgather(own))


def least(x: float) -> float:
    """The smallest x of all processes."""
    return x if jax.process_count() == 1 else float(np.min(multihost_utils.process_allgather(np.float64(x))))


def gathered(tree: T) -> T:
    """Arrays that are spread over devices of several processes as ones that each of them has whole."""
    if jax.process_count() == 1:
        return tree

    def whole(x: Any) -> Any:
        if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
            return x
        return multihost_utils.process_allgather(x, tiled=True)

    out: T = jax.tree.map(whole, tree)
    return out


@contextmanager
def file_of_first(path: Path | None) -> Iterator[Path]:
    """A file that the first process can read, for every process to read: only the first needs to give its path."""
    if jax.process_count() == 1:
        assert path is not None
        yield path
        return
    data = _of_first(path.read_bytes() if path is not None and first() else b"")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        copy.write_bytes(data)
        yield copy


def _of_first(data: bytes) -> bytes:
    size = int(multihost_utils.broadcast_one_to_all(np.int64(len(data))))
    padded = np.zeros(size, np.uint8)
    if first():
        padded[:] = np.frombuffer(data, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(padded)).astype(np.uint8).tobytes()

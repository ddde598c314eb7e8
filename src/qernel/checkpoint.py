"""Checkpoints: one safetensors file per saved step; a kill, a full disk or a NaN never costs a good one.

Files are `step_00001234.safetensors`, in the format of `checkpoint_file.py`. One process at a time writes to a folder.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import PyTree

from qernel.checkpoint_file import DamagedCheckpoint, Header, load, read_header, write
from qernel.errors import InputError, require
from qernel.leaves import fill, is_finite, to_arrays

__all__ = ["DamagedCheckpoint", "Header", "read_header"]  # beside what is defined here

_FILE_NAME = re.compile(r"step_(\d{8,})\.safetensors")


@dataclass(frozen=True)
class Restored:
    """A restored state and where it came from."""

    state: PyTree
    path: Path
    header: Header
    skipped: list[str]
    """one line per newer file that was damaged, with its name and the reason"""


def save(folder: Path, step: int, state: PyTree, header: dict[str, Any], keep: int = 3) -> Path:
    """Write `state` to `folder/step_XXXXXXXX.safetensors`; of the steps up to this one the last `keep` files stay.

    The file appears under its name only when complete, on disk and read back; older ones are removed after that.

    Args:
        folder: made if missing.
        step: number of the step, the order of checkpoints.
        state: pytree of arrays, numbers and typed PRNG keys; functions among the leaves are not stored.
        header: JSON-like data to store along.
        keep: how many checkpoints stay, at least 1.

    Raises:
        ValueError: if a floating or complex leaf has a NaN or an infinity (see `save_crash`), a leaf cannot be stored,
            or the header has more than `MAX_HEADER_BYTES` or is not JSON-like.
        OSError: if the disk is full or not writable; what was there before is untouched.
    """
    require(step >= 0, "step", step, "an integer ≥ 0")
    require(keep >= 1, "keep", keep, "at least 1")
    arrays, leaves = to_arrays(state)
    for name, array in arrays.items():
        if not is_finite(array):
            raise ValueError(f"step {step}: {name} is not finite; such a state is never saved as a checkpoint")
    path = folder / f"step_{step:08d}.safetensors"
    write(path, step, arrays, leaves, header)
    # Later files belong to a future that was abandoned or damaged: `discard_after` deals with them.
    for old in [p for p in checkpoints(folder) if _step_of(p) <= step][:-keep]:
        old.unlink(missing_ok=True)
    for leftover in folder.glob(".step_*.safetensors.tmp"):  # of writers that were killed
        leftover.unlink(missing_ok=True)
    return path


def save_crash(folder: Path, step: int, state: PyTree, header: dict[str, Any]) -> Path:
    """Write a broken state, NaN and all, to `folder/crash_XXXXXXXX.safetensors`, never taken for a checkpoint.

    Same format as `save`, same errors but for NaN; `load_arrays` reads it.
    """
    arrays, leaves = to_arrays(state)
    path = folder / f"crash_{step:08d}.safetensors"
    write(path, step, arrays, leaves, header)
    return path


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoint files of a folder by step, oldest first; crash files and leftovers of a killed writer excluded."""
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if _FILE_NAME.fullmatch(p.name) and p.is_file()), key=_step_of)


def latest(folder: Path) -> Path | None:
    """The checkpoint file of the highest step, unchecked; None if there is none."""
    return next(reversed(checkpoints(folder)), None)


def discard_after(folder: Path, step: int) -> list[Path]:
    """Put checkpoints of steps after `step` aside (`….safetensors.discarded`), as when a run goes on from `step`.

    Without it, files of an abandoned future would be taken for the newest at the next start. Returns the new names.
    """
    moved = []
    for path in [p for p in checkpoints(folder) if _step_of(p) > step]:
        moved.append(path.rename(path.with_name(path.name + ".discarded")))
    return moved


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """All leaves of a checkpoint by name, checked against its checksum; typed PRNG keys as their uint32 words.

    Raises `DamagedCheckpoint` (an `InputError`) naming the file and what is wrong with it.
    """
    return load(path)[1]


def restore(path: Path, template: PyTree) -> PyTree:
    """The state saved in `path`, with the structure, array types and devices of `template`.

    Args:
        path: a checkpoint file.
        template: a state of the same structure (or its `jax.eval_shape`). Its leaves say what comes back: jax arrays
            placed on the same devices, numpy arrays, numbers; functions are taken over from it.

    Raises:
        InputError: one line naming the first leaf whose name, shape or dtype differs, or, as `DamagedCheckpoint`, what
            is wrong with the file.
    """
    header, arrays = load(path)
    return fill(path, header.leaves, arrays, template)


def restore_latest(folder: Path, template: PyTree) -> Restored:
    """The newest checkpoint of a folder that is undamaged.

    A good file that does not fit the template is an error, not a reason to go further back: the run has changed.

    Raises:
        InputError: if no undamaged checkpoint is there (the line says why for each), or the newest good one does not
            fit the template.
    """
    skipped: list[str] = []
    for path in reversed(checkpoints(folder)):
        try:
            header, arrays = load(path)
        except DamagedCheckpoint as error:
            skipped.append(str(error))
            continue
        return Restored(fill(path, header.leaves, arrays, template), path, header, skipped)
    why = "; ".join(skipped) if skipped else "no file step_*.safetensors there"
    raise InputError(f"no checkpoint in {folder}: {why}")


def _step_of(path: Path) -> int:
    match = _FILE_NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1])

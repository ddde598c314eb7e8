"""Checks of options that several commands share, before anything long is computed."""

from __future__ import annotations

from pathlib import Path

from qernel.errors import InputError, require


def writable(option: str, file: Path) -> None:
    """Raise `InputError` before a long computation whose result could not be written."""
    require(file.parent.is_dir(), option, file, "in a folder that exists")
    require(not file.is_dir(), option, file, "a file, not a folder")


def own_files(folder: Path) -> None:
    """Raise `InputError` if files of a run folder are links out of it: what is written there would land elsewhere.

    The folder itself may be a link.
    """
    inside = folder.resolve()
    for file in [*folder.glob("*"), *folder.glob("checkpoints/*"), *folder.glob("figures/*")]:
        if file.is_symlink() and not file.resolve().is_relative_to(inside):
            raise InputError(f"{file}: a link to {file.resolve()}, out of the run folder; nothing is written there")


def lam_range(lam: list[float]) -> tuple[float, float, int]:
    """(low, high, points) of --lam X or --lam LOW HIGH POINTS. Raises `InputError` for anything else."""
    given = [lam[0], lam[0], 1] if len(lam) == 1 else lam
    whole = len(given) == 3 and 1 <= given[2] < 2**31 and given[2] == int(given[2])
    require(whole, "--lam", lam, "one λ, or LOW HIGH and a number of POINTS")
    return given[0], given[1], int(given[2])

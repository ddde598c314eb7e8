"""Reading results.nc: a file from elsewhere is a scan with the variables that a scan has, or is refused in one line."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qernel.errors import InputError, require, shown

if TYPE_CHECKING:
    import xarray

GROWTH, LEAST = 100, 2**28
"""Most bytes of arrays for each of the file, and what is allowed any file: one that was never filled is small on disk,
whatever it says its size is."""

REQUIRED = (
    *(f"{n}{e}" for n in ("energy", "kinetic", "moire", "interaction") for e in ("", "_error")),
    *(f"{n}{e}" for n in ("energy_imag", "kinetic_gap", "dE_dlam") for e in ("", "_error")),
    *("variance", "tau", "r_hat", "ess", "acceptance", "outside"),
)
"""what every scan has, [coupling]"""


def read_dataset(file: Path, advice: str = "") -> xarray.Dataset:
    """All of a netCDF file. Raises `InputError` if it cannot be read or says that it is far larger than it is."""
    import xarray

    try:
        most = max(LEAST, GROWTH * file.stat().st_size)
        with xarray.open_dataset(file, engine="h5netcdf") as lazy:
            require(lazy.nbytes <= most, f"{file}: bytes", lazy.nbytes, f"at most {most} for a file of its size")
            return lazy.load()
    except InputError:
        raise
    except Exception as error:  # what HDF5 and its readers say of any bytes
        why = " ".join(str(error).split()) or type(error).__name__
        _forget(error)
        raise InputError(f"{file}: cannot be read ({why}){advice}") from None


def _forget(error: BaseException) -> None:
    """Let go of a reader that failed halfway: h5netcdf's would otherwise complain of itself on stderr, when it ends."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        found: BaseException | None = error
        while found is not None:
            found.__traceback__, found = None, found.__context__
        gc.collect()
    finally:
        sys.unraisablehook = hook


def check_curves(dataset: xarray.Dataset, file: Path, names: Iterable[str], advice: str = "") -> None:
    """Raise `InputError` unless these variables are there, finite or not, as numbers [coupling]."""
    for name in names:
        require(name in dataset.variables, f"{file}: {name}", "missing", f"in a scan{advice}")
        found = dataset[name]
        numbers = found.dtype.kind in "biuf"
        require(found.dims == ("coupling",) and numbers, f"{file}: {name}", _described(found), "numbers [coupling]")
    require(dataset.sizes.get("coupling", 0) > 0, f"{file}: coupling", dict(dataset.sizes), "a dimension of the scan")


def check_numbers(dataset: xarray.Dataset, file: Path) -> None:
    """Raise `InputError` unless every variable of the couplings is of numbers, and its error of the same shape."""
    for name, found in dataset.data_vars.items():
        if found.dims[:1] == ("coupling",):
            require(found.dtype.kind in "biufc", f"{file}: {name}", _described(found), "numbers")
        of = str(name).removesuffix("_error")
        if of != name and of in dataset.data_vars:
            same = found.dims == dataset[of].dims
            require(same, f"{file}: {name}", _described(found), f"of the dimensions of {of}")


def check_scan(dataset: xarray.Dataset, file: Path, couplings: Iterable[str], advice: str = "") -> None:
    """Raise `InputError` unless it has what a report needs of every scan, and finite couplings of these names."""
    names = list(couplings)
    check_curves(dataset, file, (*names, *REQUIRED), advice)
    check_numbers(dataset, file)
    for name in names:
        require(bool(np.isfinite(dataset[name].values).all()), f"{file}: {name}", "not finite", "finite everywhere")
    steps = dataset.attrs.get("training_steps")
    whole = isinstance(steps, int | np.integer) and int(steps) >= 0
    require(whole, f"{file}: training_steps", steps, "the number of steps of the run")


def table(dataset: xarray.Dataset, file: Path, name: str, advice: str = "") -> dict[str, Any]:
    """A JSON table among the attributes. Raises `InputError` if it is none."""
    text = dataset.attrs.get(name, "{}")
    try:
        found = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InputError(f"{file}: {name} = {shown(text)}: must be a table in JSON{advice}")
    return found


def _described(found: xarray.DataArray) -> str:
    return f"{found.dtype}{list(found.dims)}"

"""What the report of a run is made from: its scan, its training log and the reference energies."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qernel import checkpoint, references
from qernel.cell import FloatArray
from qernel.config import Config, differences, from_dict, read_config, to_dict
from qernel.errors import InputError, require
from qernel.hamiltonian import Potential
from qernel.log import read_log
from qernel.references import References

if TYPE_CHECKING:
    import xarray


@dataclass(frozen=True, eq=False)
class RunData:
    """A run, measured."""

    folder: Path
    config: Config
    dataset: xarray.Dataset
    log: dict[str, np.ndarray]
    """columns of train.csv, all empty if nothing was trained"""
    references: References
    checkpoint: checkpoint.Header
    """header of the newest good checkpoint: its step, with "provenance" and "wall" (seconds) in `user`"""

    @property
    def n(self) -> int:
        """Electrons N."""
        return self.config.family.n_electrons

    @property
    def lam(self) -> FloatArray:
        """λ of each coupling of the scan, [couplings]."""
        return self.values("lam")

    def values(self, name: str) -> FloatArray:
        """A variable of the scan as an array."""
        return np.asarray(self.dataset[name].values, dtype=float)

    def reference(self, method: str, name: str) -> FloatArray:
        """A reference value ("exact" or "hartree_fock"; "energy", …) at each coupling, NaN where there is none."""
        states = getattr(self.references, method)
        return np.array([np.nan if s is None else getattr(s, name) for s in states], dtype=float)

    @property
    def labels(self) -> list[str]:
        """Names of the couplings of the scan for people: "λ = 0.5"."""
        names = self.config.family.names
        return [coupling_label(names, row) for row in np.stack([self.values(n) for n in names], axis=1)]

    @property
    def groups(self) -> list[tuple[str, np.ndarray]]:
        """Curves against λ: (label, indices in order of λ), one for each value of the other couplings."""
        others = self.config.family.names[1:]
        if not others:
            return [("", np.argsort(self.lam, kind="stable"))]
        rows = np.stack([self.values(n) for n in others], axis=1)
        curves = []
        for row in np.unique(rows, axis=0):
            index = np.flatnonzero((rows == row).all(axis=1))
            curves.append((coupling_label(others, row), index[np.argsort(self.lam[index], kind="stable")]))
        return curves


SYMBOLS = {"lam": "λ", "phi_deg": "φ/°", "epsilon": "ε", "period_nm": "a_M/nm", "twist_1": "θ_x", "twist_2": "θ_y"}


def coupling_label(names: tuple[str, ...], values: FloatArray) -> str:
    """For instance "λ = 0.5, ε = 5"."""
    return ", ".join(f"{SYMBOLS[n]} = {v:.6g}" for n, v in zip(names, values, strict=True))


def gather(
    run: Path, bands: int | None = None, with_references: bool = True, potential: Potential | None = None
) -> RunData:
    """Read a run folder and compute, or find again, the references of its scan.

    Raises:
        InputError: one line if there is no run, no checkpoint or no scan, or the files do not belong together.
    """
    run = Path(run)
    require(run.is_dir(), "run", run, "an existing run folder")
    require((run / "config.json").is_file(), "run", run, "a run folder with a config.json")
    header = _newest_header(run)
    config = read_config(run / "config.json", potential)
    dataset = _read_scan(run)
    measured = from_dict(json.loads(dataset.attrs["config"]), potential)
    changed = differences({**to_dict(measured), "steps": 0}, {**to_dict(config), "steps": 0})
    if changed:
        raise InputError(f"{run}/results.nc: is of another run ({changed[0]}); run `qernel scan {run}` again")
    family = config.family
    couplings = np.stack([np.asarray(dataset[n].values, float) for n in family.names], axis=1)
    found = references.none(family.n_electrons, len(couplings))
    if with_references:
        say = lambda text: print(text, file=sys.stderr)  # noqa: E731
        found = references.compute(family, couplings, run / "references.json", bands, say)
    log = read_log(run / "train.csv") if (run / "train.csv").exists() else {}
    return RunData(run, config, dataset, log, found, header)


def _newest_header(run: Path) -> checkpoint.Header:
    folder = run / "checkpoints"
    files = checkpoint.checkpoints(folder)
    if not files:
        raise InputError(f"run = {run}: has no checkpoint (looked for {folder}/step_*.safetensors)")
    damage = []
    for file in reversed(files):
        try:
            return checkpoint.read_header(file)
        except checkpoint.DamagedCheckpoint as error:
            damage.append(str(error))
    raise InputError(f"run = {run}: has no undamaged checkpoint ({'; '.join(damage)})")


def _read_scan(run: Path) -> xarray.Dataset:
    import xarray

    file = run / "results.nc"
    if not file.is_file():
        raise InputError(f"run = {run}: has no results.nc; run `qernel scan {run}` first")
    try:
        dataset = xarray.load_dataset(file, engine="h5netcdf")
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read ({error}); run `qernel scan {run}` again") from None
    if "config" not in dataset.attrs or "energy" not in dataset:
        raise InputError(f"{file}: is not a scan of a run; run `qernel scan {run}` again")
    return dataset

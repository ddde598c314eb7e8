"""What the report of a run is made from: its scan, its training log, reference energies and other runs beside it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qernel import checkpoint, references, transition_scan
from qernel.cell import FloatArray
from qernel.config import Config, differences, read_config, to_dict
from qernel.errors import InputError, require, shown
from qernel.hamiltonian import Potential
from qernel.labels import TWISTS, coupling_label
from qernel.log import read_log
from qernel.references import References
from qernel.report_others import Other, config_of, find_others, read_scan
from qernel.start import Start, make_start

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
    others: tuple[Other, ...] = ()
    """other runs to compare with"""

    @property
    def n(self) -> int:
        """Electrons N."""
        return self.config.family.n_electrons

    @property
    def lam(self) -> FloatArray:
        """λ of each coupling of the scan, [couplings]."""
        return self.values("lam")

    @cached_property
    def start(self) -> Start:
        """One-body start of the family's wavefunctions."""
        return make_start(self.config.family, self.config.network)

    def has(self, *names: str) -> bool:
        """Whether the scan has all these variables."""
        return all(n in self.dataset for n in names)

    def values(self, name: str) -> FloatArray:
        """A variable of the scan as an array."""
        return np.asarray(self.dataset[name].values, dtype=float)

    def errors(self, name: str) -> FloatArray:
        """Standard errors of a variable of the scan; NaN if the scan has none."""
        error = f"{name}_error"
        return self.values(error) if error in self.dataset else np.full(self.dataset[name].shape, np.nan)

    def reference(self, method: str, name: str) -> FloatArray:
        """A reference value at each coupling, NaN where there is none.

        `method` is a list of `References`: exact, hartree_fock (the lower branch), hartree_fock_liquid, _crystal.
        """
        states = getattr(self.references, method)
        return np.array([np.nan if s is None else getattr(s, name) for s in states], dtype=float)

    @property
    def labels(self) -> list[str]:
        """Names of the couplings of the scan for people: "λ = 0.5"."""
        names = self.config.family.names
        return [coupling_label(names, row) for row in np.stack([self.values(n) for n in names], axis=1)]

    @property
    def titles(self) -> list[str]:
        """The same for panels side by side: long ones in two lines."""
        return [x.replace(", ", ",\n", 1) if len(x) > 20 else x for x in self.labels]

    @property
    def varying(self) -> tuple[str, ...]:
        """Couplings that differ within the scan."""
        return tuple(n for n in self.config.family.names if np.ptp(self.values(n)) > 1e-9)

    @property
    def axis(self) -> str:
        """The coupling that curves are drawn against: λ, or the first one that varies if λ does not."""
        return next((n for n in self.varying if n not in TWISTS), "lam")

    @property
    def x(self) -> FloatArray:
        """Its values, [couplings]."""
        return self.values(self.axis)

    @property
    def groups(self) -> list[tuple[str, np.ndarray]]:
        """Curves against `axis`: (label, indices in its order), one for each value of the other varying couplings."""
        others = tuple(n for n in self.varying if n != self.axis)
        if not others:
            return [("", np.argsort(self.x, kind="stable"))]
        rows = np.stack([self.values(n) for n in others], axis=1)
        curves = []
        for row in np.unique(rows, axis=0):
            index = np.flatnonzero((rows == row).all(axis=1))
            curves.append((coupling_label(others, row), index[np.argsort(self.x[index], kind="stable")]))
        return curves

    def some_groups(self, most: int = 4) -> list[tuple[str, np.ndarray]]:
        """Groups for panels of their own: `most` of them at equal distances."""
        groups = self.groups
        return [groups[k] for k in np.unique(np.rint(np.linspace(0, len(groups) - 1, most)).astype(int))]

    def chosen(self, most: int = 4) -> list[int]:
        """Couplings to show one by one: `most` of them at equal distances, the ends included."""
        order = np.concatenate([index for _, index in self.groups])
        return [int(k) for k in order[np.unique(np.rint(np.linspace(0, len(order) - 1, most)).astype(int))]]

    @cached_property
    def transition(self) -> transition_scan.Analysis | str | None:
        """Analysis of the scan; in words why it has no answer; None if it varies more than λ or has few couplings."""
        return transition_scan.of_scan(self.dataset)

    @property
    def lam_c(self) -> tuple[float, float] | None:
        """95 % interval of λ_c, if the analysis gives one."""
        found = self.transition
        return found.statement.interval_95 if isinstance(found, transition_scan.Analysis) else None


def gather(
    run: Path,
    bands: int | None = None,
    with_references: bool = True,
    potential: Potential | None = None,
    compare: Sequence[Path] = (),
    given: Path | None = None,
) -> RunData:
    """Read a run folder, and others to compare with, and compute, or find again, the references of its scan.

    `given` is a file that has references already, as of `qernel hf --out`.

    Raises:
        InputError: one line if there is no run, no checkpoint or no scan, the files do not belong together, or another
            run has nothing in common with this one.
    """
    run = Path(run)
    require(run.is_dir(), "run", run, "an existing run folder")
    require((run / "config.json").is_file(), "run", run, "a run folder with a config.json")
    header = _newest_header(run)
    config = read_config(run / "config.json", potential)
    dataset = read_scan(run)
    measured = config_of(dataset, run / "results.nc", potential)
    changed = differences({**to_dict(measured), "steps": 0}, {**to_dict(config), "steps": 0})
    if changed:
        raise InputError(f"{run}/results.nc: is of another run ({changed[0]}); run `qernel scan {run}` again")
    others = find_others(run, config, dataset, compare)
    family = config.family
    couplings = np.stack([np.asarray(dataset[n].values, float) for n in family.names], axis=1)
    found = references.none(family.n_electrons, len(couplings))
    if with_references:
        say = lambda text: print(text, file=sys.stderr)  # noqa: E731
        found = references.compute(family, couplings, run / "references.json", bands, say, given)
    log = _log(run / "train.csv")
    return RunData(run, config, dataset, log, found, header, others)


def _log(file: Path) -> dict[str, np.ndarray]:
    """Columns of the training log, none if there is no log. Raises `InputError` unless they are numbers."""
    log = read_log(file) if file.exists() else {}
    for name in ("step", "coupling", "energy", "variance", "fallback") if log else ():
        require(name in log, f"{file}: {name}", "missing", "a column of the log")
    for name, column in log.items():
        require(column.dtype.kind in "if" or not len(column), f"{file}: {shown(name)}", "text", "a column of numbers")
    return log


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

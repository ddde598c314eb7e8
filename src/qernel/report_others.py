"""Other runs beside the one reported: which couplings they share, and what differs between them in a few words."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qernel.cell import FloatArray, IntArray
from qernel.config import Config, differences, from_dict, to_dict
from qernel.errors import InputError, require
from qernel.hamiltonian import Potential
from qernel.labels import SYMBOLS
from qernel.scan_files import check_scan, read_dataset, table

if TYPE_CHECKING:
    import xarray

MATERIAL = ("phi_deg", "epsilon", "period_nm", "mass", "v0_mev")
"""what the Hamiltonian depends on beside λ, twist and cell: from the scan where it varies, or from the material"""
SILENT = ("name", "steps", "memory", "checkpoint_minutes", "keep", "sampling.chunk")
"""fields of a configuration that do not change what is computed; steps are told by how many were made"""
WORDS: dict[str, Callable[[Any], str]] = {
    "family.n_up": lambda n: f"{n} up",
    "family.n_down": lambda n: f"{n} down",
    "family.cell.supercell": lambda m: f"{m[0][0]}×{m[1][1]} cells" if m[0][1] == m[1][0] == 0 else f"supercell {m}",
    "network.film_width": lambda w: f"FiLM width {w}" if w else "no FiLM",
    "network.experts": lambda n: f"{n} experts" if n else "no experts",
    "network.heads": lambda n: f"{n} heads" if n else "no attention",
    "network.kv_heads": lambda n: f"{n} key/value heads",
    "network.init": lambda x: f"{x} start",
    "optimizer.type": str,
}
"""short words for some fields; any other is told by its name and value"""
MOST_WORDS = 3
"""in a legend"""


@dataclass(frozen=True, eq=False)
class Other:
    """Another run's scan, and the couplings that it shares with the one reported."""

    folder: Path
    name: str
    """of the folder, as short as tells it from the others"""
    config: Config
    dataset: xarray.Dataset
    pairs: IntArray
    """[common, 2]: indices of the same coupling in the reported scan and in this one; none for another system size"""
    differs: tuple[str, ...]
    """what its configuration has else, in short words"""

    @property
    def n(self) -> int:
        """Electrons N."""
        return self.config.family.n_electrons

    @property
    def other_size(self) -> bool:
        """Whether it is of another system size: compared per electron only."""
        return not len(self.pairs)

    @property
    def label(self) -> str:
        """For legends: folder and the first few differences."""
        more = len(self.differs) - MOST_WORDS
        words = ", ".join([*self.differs[:MOST_WORDS], *([f"{more} more"] if more > 0 else [])])
        return f"{self.name} ({words})" if words else self.name

    def values(self, name: str) -> FloatArray:
        """A variable of its scan as an array."""
        return np.asarray(self.dataset[name].values, float)


def read_scan(run: Path) -> xarray.Dataset:
    """The scan of a run folder.

    Raises:
        InputError: one line if it is missing, unreadable or not a scan.
    """
    file, again = run / "results.nc", f"; run `qernel scan {run}` again"
    if not file.is_file():
        raise InputError(f"run = {run}: has no results.nc; run `qernel scan {run}` first")
    dataset = read_dataset(file, again)
    if "config" not in dataset.attrs or "energy" not in dataset:
        raise InputError(f"{file}: is not a scan of a run{again}")
    return dataset


def config_of(dataset: xarray.Dataset, file: Path, potential: Potential | None) -> Config:
    """The configuration that a scan was made with. Raises `InputError` if it has none, or lacks what a scan has."""
    try:
        config = from_dict(table(dataset, file, "config"), potential)
    except InputError as error:
        raise InputError(f"{file}: {error}" if str(file) not in str(error) else str(error)) from None
    check_scan(dataset, file, config.family.names)
    return config


def find_others(run: Path, config: Config, dataset: xarray.Dataset, folders: Sequence[Path]) -> tuple[Other, ...]:
    """The runs to compare with.

    Raises:
        InputError: one line if a folder has no scan, is the run itself or given twice, or has nothing in common with
            it: another Hamiltonian, or the same electrons and cell but no coupling (equal to 1e-9) of this scan.
    """
    paths = [Path(f) for f in folders]
    resolved = [p.resolve() for p in [Path(run), *paths]]
    names = [p.name if [q.name for q in resolved[1:]].count(p.name) == 1 else str(p) for p in resolved[1:]]
    found = []
    for k, (path, name) in enumerate(zip(paths, names, strict=True)):
        require(path.is_dir(), "--compare", path, "an existing run folder")
        require(resolved[k + 1] not in resolved[: k + 1], "--compare", path, "another run, named once")
        found.append(_other(run, config, dataset, path, name))
    return tuple(found)


def _other(run: Path, config: Config, dataset: xarray.Dataset, path: Path, name: str) -> Other:
    theirs = read_scan(path)
    raw = table(theirs, path / "results.nc", "config")
    here = config.family
    potential: Potential = here.potential
    given = raw.get("family")
    same = isinstance(given, dict) and given.get("potential") == json.loads(json.dumps(to_dict(potential)))
    require(same, "--compare", path, f"a run with the potential of {run}")
    other = config_of(theirs, path / "results.nc", potential)
    there = other.family
    require(there.gate == here.gate, "--compare", path, f"a run with the gate distance of {run}, {here.gate}")
    mine, others = coupling_rows(config, dataset), coupling_rows(other, theirs)
    equal = np.isclose(mine[:, None], others[None], rtol=1e-12, atol=1e-9)
    pairs = np.argwhere(equal.all(-1))
    spans = f"({_spans(mine)}), not {_spans(others)}"
    if there.n_electrons == here.n_electrons and there.cell == here.cell:
        require(len(pairs) > 0, "--compare", path, f"a run with a coupling of {run} {spans}")
    else:
        pairs = pairs[:0]
        low, high = (f(mine[:, 0]) for f in (np.min, np.max))
        inside = (others[:, 0] >= low - 1e-9) & (others[:, 0] <= high + 1e-9)
        alike = equal[..., 3:].all(-1).any(0) & inside
        require(
            bool(alike.any()),
            "--compare",
            path,
            f"a run with couplings like those of {run} {spans}",
        )
    return Other(path, name, other, theirs, pairs, _differs(config, dataset, other, theirs))


def coupling_rows(config: Config, dataset: xarray.Dataset) -> FloatArray:
    """λ, θ_x, θ_y and `MATERIAL` of each coupling of a scan, [couplings, 8], whether they vary in it or not."""
    family, n = config.family, dataset.sizes["coupling"]

    def column(name: str, fixed: float) -> FloatArray:
        return np.asarray(dataset[name].values, float) if name in family.names else np.full(n, fixed)

    twist = [column(f"twist_{i + 1}", family.twist[i]) for i in range(2)]
    material = [column(name, getattr(family.material, name)) for name in MATERIAL]
    return np.stack([column("lam", np.nan), *twist, *material], axis=1)


def _spans(rows: FloatArray) -> str:
    """What the couplings are, for one line: "λ 0.25 to 2, ε 5, …"."""
    names = ("λ", "θ_x", "θ_y", "φ", "ε", "a_M", "m*", "V₀")
    low, high = rows.min(0), rows.max(0)
    return ", ".join(
        f"{n} {a:g}" + (f" to {b:g}" if b > a else "")
        for n, a, b in zip(names, low, high, strict=True)
        if n == "λ" or a != 0 or b != 0
    )


def _differs(config: Config, dataset: xarray.Dataset, other: Config, theirs: xarray.Dataset) -> tuple[str, ...]:
    """What the other configuration has else, in short words, the system first."""
    found = []
    for line in differences(to_dict(config), to_dict(other)):
        path, change = line.split(": ", 1)
        new = change.rsplit(" → ", 1)[1]
        # Another kind of optimiser has fields of its own: its name says enough.
        of_kind = path.startswith("optimizer.") and path != "optimizer.type"
        # So does N, which is always given.
        of_size = path == "family.n_up" and config.family.n_down == other.family.n_down
        if path in SILENT or of_size or (of_kind and type(config.optimizer) is not type(other.optimizer)):
            continue
        found.append(_word(path, new))
    steps = int(theirs.attrs["training_steps"])
    return (*found, *([f"{steps} steps"] if steps != int(dataset.attrs["training_steps"]) else []))


def _word(path: str, new: str) -> str:
    try:
        value = ast.literal_eval(new)
    except (ValueError, SyntaxError):
        value = new
    if path in WORDS:
        return WORDS[path](value)
    short = path.rsplit(".", 1)[-1]
    if path.startswith("family.") and short in SYMBOLS and value is not None:
        low, high, points = value
        return f"{SYMBOLS[short]} = {low:g}" + (f" to {high:g} in {points}" if points > 1 else " alone")
    return f"{short.replace('_', ' ')} {value}"

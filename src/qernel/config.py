"""What a run is: one frozen dataclass, saved as JSON beside the results and read back by every command."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from qernel.cell import FloatArray
from qernel.errors import InputError, nearest, require, shown
from qernel.family import Family, Grid
from qernel.hamiltonian import MoirePotential, Potential
from qernel.network import Network
from qernel.spring import Spring

NAME = re.compile(r"\w[\w .,+=()-]{0,99}")
"""names of runs, of which folders are made: no path, nothing a terminal or a page would act upon"""

MOST_STEPS, MOST_MOVES, MOST_WALKERS = 10**9, 10**6, 10**12
"""beyond any run; what fits into memory is another matter (`sizes.py`)"""


@dataclass(frozen=True)
class Adam:
    """First-order fallback optimiser (optax), rate/(1 + t/decay)."""

    rate: float = 2e-3
    """learning rate"""
    decay: float = 2000.0
    """steps after which the rate has halved"""

    def __post_init__(self) -> None:
        for name in ("rate", "decay"):
            require(0 < getattr(self, name) < math.inf, f"optimizer.{name}", getattr(self, name), "positive")


@dataclass(frozen=True)
class Sampling:
    """Markov chains during training."""

    walkers: int = 64
    """walkers per coupling"""
    sweeps: int | Literal["auto"] = "auto"
    """all-electron moves between two updates of the weights; auto: as many as pay, from the measured autocorrelation"""
    burn_in: int = 100
    """moves before the first update"""
    chunk: int | None = None
    """walkers, of all couplings together, treated at once in local energy and scores (none: chosen for the machine)"""

    def __post_init__(self) -> None:
        for name, low, high in (("walkers", 2, MOST_WALKERS), ("burn_in", 0, MOST_STEPS)):
            value = getattr(self, name)
            require(value >= low, f"sampling.{name}", value, f"at least {low}")
            require(value <= high, f"sampling.{name}", value, f"at most {high}")
        if self.sweeps != "auto":
            require(self.sweeps >= 1, "sampling.sweeps", self.sweeps, "at least 1, or auto")
            require(self.sweeps <= MOST_MOVES, "sampling.sweeps", self.sweeps, f"at most {MOST_MOVES}")
        if self.chunk is not None:
            require(1 <= self.chunk <= MOST_WALKERS, "sampling.chunk", self.chunk, "at least 1, or none")


@dataclass(frozen=True)
class Config:
    """Everything that defines a run.

    From call to call the number of steps and what is said of checkpoints may change (`run_folder.FREE`), nothing else.
    """

    name: str = "custom"
    """name of the preset it came from"""
    family: Family = Family()
    train_at: Grid = Grid()
    """couplings to train on, where these are not the family's own"""
    network: Network = Network()
    optimizer: Spring | Adam = field(default_factory=Spring)
    sampling: Sampling = Sampling()
    steps: int = 1000
    """optimisation steps of the run in total"""
    clip: float = 5.0
    """local energies are clipped, for the gradient only, at this many mean absolute deviations"""
    seed: int = 0
    """seed of weights and chains"""
    memory: float | None = None
    """GiB that a step may take (none: six tenths of what is free at the start)"""
    checkpoint_minutes: float = 2.0
    """most minutes between checkpoints"""
    checkpoint_steps: int | None = None
    """most steps between checkpoints (none: minutes alone count)"""
    keep: int = 3
    """checkpoints kept"""
    parent: str = ""
    """run whose weights this one began with: its name, step and checksum (none: fresh weights)"""

    def __post_init__(self) -> None:
        require(bool(NAME.fullmatch(self.name)), "name", self.name, "1 to 100 letters, digits or any of _ .,+=()-")
        plain = self.parent.isprintable() and len(self.parent) <= 300
        require(plain, "parent", self.parent, "at most 300 printable characters")
        require(self.steps >= 0, "steps", self.steps, "at least 0")
        require(self.steps <= MOST_STEPS, "steps", self.steps, f"at most {MOST_STEPS}")
        require(self.clip > 0, "clip", self.clip, "positive")
        require(0 <= self.seed < 2**31, "seed", self.seed, "an integer from 0 to 2147483647")
        require(self.checkpoint_minutes > 0, "checkpoint_minutes", self.checkpoint_minutes, "positive")
        every = self.checkpoint_steps
        require(every is None or every >= 1, "checkpoint_steps", every, "at least 1, or none")
        require(self.memory is None or 0 < self.memory < math.inf, "memory", self.memory, "a positive number of GiB")
        require(self.keep >= 1, "keep", self.keep, "at least 1")
        require(self.keep <= MOST_STEPS, "keep", self.keep, f"at most {MOST_STEPS}")
        if self.network.init == "random":
            # Columns are linear in the features and a constant: with fewer of them the determinant is zero.
            least, n = self.family.n_electrons - 1, self.network.width
            require(n >= least, "network.width", n, f"at least {least} for random orbitals of {least + 1} electrons")
        _ = self.couplings  # refused here rather than later

    @property
    def couplings(self) -> FloatArray:
        """Coupling vectors to train on, [couplings, names]."""
        return self.train_at.of(self.family)


def to_dict(value: Any) -> Any:
    """A dataclass tree as plain JSON values; members of a union carry their class name under "type"."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        out = {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": type(value).__name__, **out} if isinstance(value, Spring | Adam) or callable(value) else out
    if isinstance(value, tuple | list):
        return [to_dict(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def from_dict(data: Any, potential: Potential | None = None) -> Config:
    """Inverse of `to_dict`; unknown or ill-typed fields raise `InputError` with their path.

    A potential that is not built in must be given; its fields are not read from the file.
    """
    config: Config = _build(Config, data, "", potential)
    return config


def _build(kind: Any, data: Any, path: str, potential: Potential | None) -> Any:
    """One value of annotated type `kind` from JSON `data`; `path` names it in errors."""
    if path.endswith("potential"):
        return _potential(data, potential)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        members = typing.get_args(kind)
        if data is None and type(None) in members:
            return None
        words = [o for o in members if typing.get_origin(o) is Literal]
        if words and isinstance(data, str):
            return _plain(words[0], data, path)
        options = [o for o in members if o is not type(None) and o not in words]
        if len(options) > 1:
            require(isinstance(data, dict), path, data, "a table with a type")
            by_name = {o.__name__: o for o in options}
            name = shown(data.get("type", options[0].__name__))
            if name not in by_name:
                raise InputError(f"{path}.type = {name}: {nearest(name, list(by_name))}")
            return _build(by_name[name], {k: v for k, v in data.items() if k != "type"}, path, potential)
        return _build(options[0], data, path, potential)
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, data, path, potential)
    return _plain(kind, data, path)


def _dataclass(kind: Any, data: Any, path: str, potential: Potential | None) -> Any:
    require(isinstance(data, dict), path or "config", data, "a table")
    hints = typing.get_type_hints(kind)
    known = [f.name for f in dataclasses.fields(kind)]
    dot = f"{path}." if path else ""
    for name in data:
        if name not in known:
            raise InputError(f"{dot}{shown(name)}: unknown field; {nearest(str(name), known)}")
    return kind(**{name: _build(hints[name], value, dot + name, potential) for name, value in data.items()})


def _plain(kind: Any, data: Any, path: str) -> Any:
    """Numbers, strings, literals and tuples of them."""
    origin = typing.get_origin(kind)
    if origin is Literal:
        require(data in typing.get_args(kind), path, data, " or ".join(map(str, typing.get_args(kind))))
        return data
    if origin is tuple:
        arguments = typing.get_args(kind)
        require(isinstance(data, list | tuple) and len(data) == len(arguments), path, data, f"{len(arguments)} values")
        return tuple(_plain(k, v, path) for k, v in zip(arguments, data, strict=True))
    if kind is float and data in ("inf", "-inf", "nan"):
        return float(data)
    whole = isinstance(data, int) and not isinstance(data, bool)
    if whole and kind in (int, float):
        require(abs(data) < 2**63, path, data, "a number of less than 64 bits")
    if kind is float and (whole or isinstance(data, float)):
        return float(data)
    if isinstance(data, kind) and (whole or kind is not int):
        return data
    text = f"'{shown(data)}'" if isinstance(data, str) else shown(data)
    raise InputError(f"{path} = {text}: must be of type {kind.__name__}")


def _potential(data: Any, potential: Potential | None) -> Any:
    if potential is not None:
        return potential
    name = data.get("type") if isinstance(data, dict) else data
    if name != "MoirePotential":
        raise InputError(f"family.potential = {shown(name)}: not built in; open this run in Python, pass potential=…")
    return MoirePotential()


def read_config(path: Any, potential: Potential | None = None) -> Config:
    """A config from a JSON file. Raises `InputError`, naming the file, if it cannot be read or does not fit."""
    try:
        with path.open("rb") as file:
            text = file.read(MOST_BYTES + 1)
        require(len(text) <= MOST_BYTES, "config", path, f"a file of at most {MOST_BYTES} bytes")
        data = json.loads(text.decode())
    except OSError as error:
        raise InputError(f"config = {path}: cannot be read ({error.strerror})") from None
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"config = {path}: not valid JSON ({error})") from None
    try:
        return from_dict(data, potential)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


MOST_BYTES = 2**20
"""of a configuration file, which has some three thousand"""


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Lines "field: old → new" where two plain-JSON configs differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(k for k in new if k not in old)]
        return [d for k in keys for d in differences(old.get(k), new.get(k), f"{path}.{k}" if path else k)]
    return [] if old == new else [f"{path}: {old} → {new}"]


def override(config: dict[str, Any], tokens: list[str]) -> dict[str, Any]:
    """A JSON configuration with fields replaced by "--a.b VALUE …" tokens.

    Raises `InputError` for a field that does not exist, with the nearest one.
    """
    if tokens and not tokens[0].startswith("--"):
        raise InputError(f"{tokens[0]}: unexpected; options start with --")
    i = 0
    while i < len(tokens):
        name, _, joined = tokens[i][2:].partition("=")
        values = [joined] if joined else []
        i += 1
        while i < len(tokens) and not tokens[i].startswith("--"):
            values.append(tokens[i])
            i += 1
        require(bool(values), f"--{name}", "", "followed by a value")
        parsed = [_word(v) for v in values]
        _set(config, name, parsed[0] if len(parsed) == 1 else parsed)
    return config


def _set(config: dict[str, Any], name: str, value: Any) -> None:
    path = name.replace("-", "_").split(".")
    table = config
    for depth, part in enumerate(path):
        if not isinstance(table, dict) or part not in table:
            known = [".".join([*path[:depth], k]) for k in table] if isinstance(table, dict) else []
            options = ["--" + k for k in known] + ["--config", "--run", "--steps", "--walltime"]
            raise InputError(
                f"--{shown(name)}: not an option or a field of the configuration; {nearest('--' + name, options)}"
            )
        if depth < len(path) - 1:
            table = table[part]
    old = table[path[-1]]
    if isinstance(old, dict) and "type" in old:
        table[path[-1]] = {"type": value}  # another member of a union, with its defaults
    elif isinstance(old, list) and old and isinstance(old[0], list) and isinstance(value, list):
        row = len(old[0])
        table[path[-1]] = [value[i : i + row] for i in range(0, len(value), row)]
    else:
        table[path[-1]] = value


def _word(text: str) -> Any:
    if text.lower() in ("none", "null"):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text

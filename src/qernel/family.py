"""A family of Hamiltonians: a named coupling vector c ↦ Hamiltonian, and the grid of c to train on."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from qernel.cell import Cell, FloatArray
from qernel.errors import InputError, nearest, require
from qernel.hamiltonian import Hamiltonian, MoirePotential, Potential
from qernel.types import Couplings, CouplingVector
from qernel.units import DIELECTRIC, LARGEST, PERIODS, Material

Range = tuple[float, float, int]
"""(low, high, points): an even grid; (x, x, 1) is a single value."""

COUPLING_NAMES = ("lam", "phi_deg", "epsilon", "period_nm", "twist_1", "twist_2")

LOGARITHMIC = ("epsilon",)
"""Couplings whose logarithm the network is told. With three electrons and ε from 3 to 20 the exact ground state turns
up to 13 times faster (the root of its fidelity susceptibility) at one end of the range than at the other per unit of ε,
12 times per unit of u ∝ 1/ε, but at most 2.2 times per unit of log ε: λ = 0.25, 1 and 2, four bands."""


MOST_COUPLINGS = 10_000
"""of a grid: their starting orbitals are solved for one after the other, some ten milliseconds each"""

NEAREST_GATE = 0.01
"""a_M; the Ewald sum takes wavevectors up to its inverse"""

BOUNDS = {"epsilon": (DIELECTRIC[0], 1 / DIELECTRIC[0]), "period_nm": PERIODS}
"""of the couplings that are positive; of all others ±`LARGEST`"""


@dataclass(frozen=True)
class Family:
    """Couplings that vary over a `Range`, everything else fixed. Coupling names are the field names.

    Raises `InputError` for impossible electron numbers, ranges or twists.
    """

    n_up: int = 3
    """electrons with spin up"""
    n_down: int = 0
    """electrons with spin down"""
    cell: Cell = Cell()
    material: Material = Material()
    lam: Range = (0.25, 2.0, 8)
    """moiré depth λ, in units of V0"""
    phi_deg: Range | None = None
    """phase φ in degrees, if it varies (otherwise the material's)"""
    epsilon: Range | None = None
    """dielectric constant, if it varies"""
    period_nm: Range | None = None
    """moiré period a_M in nm, if it varies; E0 varies with it"""
    twist_1: Range | None = None
    """θ_x in 1/a_M, if it varies"""
    twist_2: Range | None = None
    """θ_y in 1/a_M, if it varies"""
    twist: tuple[float, float] = (0.0, 0.0)
    """Cartesian twist θ in 1/a_M where it does not vary"""
    gate: float | None = None
    """distance of the two gates in a_M (none: unscreened)"""
    potential: Potential = field(default_factory=MoirePotential)

    def __post_init__(self) -> None:
        require(self.n_up >= 0, "family.n_up", self.n_up, "an integer ≥ 0")
        require(self.n_down >= 0, "family.n_down", self.n_down, "an integer ≥ 0")
        require(self.n_electrons >= 1, "family.n_up + n_down", self.n_electrons, "at least 1 electron")
        require(self.n_electrons <= 1000, "family.n_up + n_down", self.n_electrons, "at most 1000 electrons")
        if self.gate is not None:
            allowed = f"a positive distance, from {NEAREST_GATE:g} to {LARGEST:g}"
            require(bool(NEAREST_GATE <= self.gate <= LARGEST), "family.gate", self.gate, allowed)
        allowed = f"two finite numbers, at most {LARGEST:g} in size"
        require(all(abs(t) <= LARGEST for t in self.twist), "family.twist", self.twist, allowed)
        for name in self.names:
            check_range(f"family.{name}", name, getattr(self, name))
        check_count("family", {n: getattr(self, n)[2] for n in self.names})

    @property
    def n_electrons(self) -> int:
        """N = n_up + n_down."""
        return self.n_up + self.n_down

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the couplings in the order of the coupling vector; λ is always the first."""
        return tuple(n for n in COUPLING_NAMES if n == "lam" or getattr(self, n) is not None)

    def grid(self) -> FloatArray:
        """The couplings to train on, [couplings, names]: the product of the ranges."""
        axes = [np.linspace(*getattr(self, name)) for name in self.names]
        return np.array(list(itertools.product(*axes)))

    def bounds(self) -> tuple[FloatArray, FloatArray]:
        """Lowest and highest value of each coupling, [names] each."""
        low, high, _ = zip(*(getattr(self, name) for name in self.names), strict=True)
        return np.array(low, float), np.array(high, float)

    def vector(self, **couplings: float) -> FloatArray:
        """Coupling vector from names, [names]; a coupling left out takes the middle of its range.

        Raises `InputError` for an unknown name or a value that is not finite.
        """
        low, high = self.bounds()
        c = (low + high) / 2
        for name, value in couplings.items():
            if name not in self.names:
                raise InputError(f"{name}: not a coupling of this family; {nearest(name, list(self.names))}")
            check_value(name, name, value)
            c[self.names.index(name)] = value
        return c

    def outside(self, c: FloatArray) -> list[str]:
        """Names of the couplings of c [names] that lie outside the family's range."""
        low, high = self.bounds()
        slack = 1e-9 * (1 + np.abs(high))
        return [n for n, x, a, b, s in zip(self.names, c, low, high, slack, strict=True) if x < a - s or x > b + s]

    def normalise(self, c: CouplingVector) -> CouplingVector:
        """Couplings mapped from their ranges to [−1, 1], the network's input; 0 where low = high.

        Evenly in each coupling, in its logarithm for those of `LOGARITHMIC`.
        """
        log = np.isin(self.names, LOGARITHMIC)
        low, high = (np.log(x, out=np.array(x), where=log) for x in self.bounds())
        half = np.where(high > low, (high - low) / 2, 1.0)
        # The logarithm is of 1 where it is not taken, for its derivative.
        x = jnp.where(log, jnp.log(jnp.where(log, c, 1.0)), c)
        return (x - jnp.asarray((low + high) / 2, c.dtype)) / jnp.asarray(half, c.dtype)

    def hamiltonian(self, c: CouplingVector) -> Hamiltonian:
        """The Hamiltonian at coupling vector c [names]; differentiable and traceable in c."""
        m = self.material
        value = {name: c[i] for i, name in enumerate(self.names)}
        scale = value.get("period_nm", m.period_nm) / m.period_nm
        return Hamiltonian(
            lam=value["lam"],
            v0=m.v0 * scale**2,
            phi=value.get("phi_deg", m.phi_deg) * (math.pi / 180),
            u=dataclasses.replace(m, epsilon=1.0).u * scale / value.get("epsilon", m.epsilon),
            twist=jnp.stack([jnp.asarray(value.get(f"twist_{i + 1}", self.twist[i]), c.dtype) for i in range(2)]),
            cell=self.cell,
            n_up=self.n_up,
            n_down=self.n_down,
            gate=self.gate,
            potential=self.potential,
        )

    def hamiltonians(self, c: Couplings) -> Hamiltonian:
        """One Hamiltonian whose couplings carry the leading axis of c [couplings, names]."""
        h = jax.vmap(self.hamiltonian)(c)
        ones = jnp.ones(c.shape[0], c.dtype)
        return dataclasses.replace(h, **{n: getattr(h, n) * ones for n in ("lam", "v0", "phi", "u")})


@dataclass(frozen=True)
class Grid:
    """Couplings to train on where these are not the family's own: a range instead of the family's, for each name given.

    The family keeps saying what the network can be asked for, and how its input is scaled.
    """

    lam: Range | None = None
    phi_deg: Range | None = None
    epsilon: Range | None = None
    period_nm: Range | None = None
    twist_1: Range | None = None
    twist_2: Range | None = None

    def of(self, family: Family) -> FloatArray:
        """Coupling vectors [couplings, names]. Raises `InputError` for a range outside the family's."""
        given = {n: r for n in COUPLING_NAMES if (r := getattr(self, n)) is not None}
        for name, (low, high, points) in given.items():
            if name not in family.names:
                raise InputError(f"train_at.{name}: not a coupling of this family; {nearest(name, list(family.names))}")
            check_range(f"train_at.{name}", name, (low, high, points))
            bottom, top, _ = getattr(family, name)
            slack = 1e-9 * (1 + abs(top))
            inside = bottom - slack <= low and high <= top + slack
            require(inside, f"train_at.{name}", (low, high), f"within the family's {bottom:g} to {top:g}")
        check_count("train_at", {n: given.get(n, getattr(family, n))[2] for n in family.names})
        return dataclasses.replace(family, **given).grid()


def check_value(field: str, name: str, value: float) -> None:
    """Raise `InputError` unless a coupling of that name can have the value."""
    low, high = BOUNDS.get(name, (-LARGEST, LARGEST))
    allowed = f"a positive number, from {low:g} to {high:g}" if low > 0 else f"a finite number, {low:g} to {high:g}"
    require(bool(low <= value <= high), field, value, allowed)


def check_range(field: str, name: str, chosen: Range) -> None:
    """Raise `InputError` unless it is an even grid of values that a coupling of that name can have."""
    low, high, points = chosen
    require(math.isfinite(low) and math.isfinite(high), field, (low, high), "finite numbers")
    require(low <= high, field, (low, high), "a range with low ≤ high")
    require(points >= 1, field, points, "a range of at least 1 point")
    require(points > 1 or low == high, field, chosen, "more than 1 point, or low = high")
    check_value(field, name, low)
    check_value(field, name, high)


def check_count(field: str, points: Mapping[str, int]) -> None:
    """Raise `InputError` if the product of so many points by name is more than `MOST_COUPLINGS`."""
    total = math.prod(points.values())
    said = f"{total} couplings ({' × '.join(f'{k} {n}' for n, k in points.items())})"
    require(total <= MOST_COUPLINGS, field, said, f"at most {MOST_COUPLINGS}")

"""Exact and Hartree–Fock energies beside a scan, kept in RUN/references.json so that they are computed once.

A kept value is used again only if every number of its Hamiltonian, the number of bands and the plane-wave cutoff are
the ones asked for.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from qernel import __version__, bands, exact, hartree_fock
from qernel.cell import Cell, FloatArray
from qernel.config import to_dict
from qernel.determinants import Momenta, dimensions
from qernel.family import Family
from qernel.files import write_atomically
from qernel.hamiltonian import Hamiltonian

MAX_BANDS = {1: 16, 2: 16}
"""most bands for so many electrons: pairs converge slowly with the bands, and cost nothing"""
MAX_BANDS_OTHERWISE = 6
MAX_DIMENSION = 3000
"""largest sector that is diagonalised without being asked for"""
MAX_ELECTRONS_EXACT = 6
MAX_ELECTRONS_HF = 12
CONVERGED = 0.002
"""most that the last band may have lowered the energy, E0, where the exact energy is called converged"""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Reference:
    """A reference state. Energies in E0, totals."""

    energy: float
    kinetic: float
    moire: float
    interaction: float
    state: str
    """total momentum of the exact state, start of the Hartree–Fock one"""
    converged: bool
    last_band: float | None
    """by how much the last band lowered the energy, E0; none for Hartree–Fock and for a single band"""
    seconds: float


@dataclass(frozen=True)
class References:
    """Reference states at each coupling of a scan; None where there is none."""

    exact: list[Reference | None]
    hartree_fock: list[Reference | None]
    bands: int | None
    """bands per k of the exact diagonalisation, None if there was none"""
    n_electrons: int

    @property
    def exact_converged(self) -> bool:
        """Whether the bands left out matter no more than about 0.002 E0."""
        steps = [x.last_band for x in self.exact if x is not None and x.last_band is not None]
        enough = self.bands is not None and self.bands >= 5 and self.n_electrons <= 3
        return enough and max(steps, default=0.0) <= CONVERGED


def none(n_electrons: int, couplings: int) -> References:
    """No references at all."""
    return References([None] * couplings, [None] * couplings, None, n_electrons)


def choose_bands(cell: Cell, n_up: int, n_down: int) -> int | None:
    """Most bands, up to 6 (16 for N ≤ 2), whose largest sector is quick to diagonalise; None if there are none."""
    if n_up + n_down > MAX_ELECTRONS_EXACT:
        return None
    momenta, best = Momenta(cell), None
    for n_bands in range(1, MAX_BANDS.get(n_up + n_down, MAX_BANDS_OTHERWISE) + 1):
        largest = max(dimensions(momenta, n_bands, n_up, n_down))
        if largest > MAX_DIMENSION:
            break
        best = n_bands if largest > 0 else None
    return best


def compute(
    family: Family, couplings: FloatArray, file: Path, n_bands: int | None = None, say: Say = print
) -> References:
    """References at couplings [couplings, names], from `file` where it has them, and added to it where not.

    Args:
        family: gives the Hamiltonians.
        couplings: coupling vectors.
        file: the JSON file that keeps them.
        n_bands: bands per k of the exact diagonalisation; by default as many as are quick (`choose_bands`).
        say: told once if something has to be computed.

    Raises `InputError` if the exact diagonalisation asked for is impossible.
    """
    chosen = choose_bands(family.cell, family.n_up, family.n_down) if n_bands is None else n_bands
    kept = _read(file)
    exacts: list[Reference | None] = []
    determinants: list[Reference | None] = []
    told = False
    for c in couplings:
        h = family.hamiltonian(jnp.asarray(c))
        for method, wanted, out in (
            ("exact", chosen is not None, exacts),
            ("hartree_fock", family.n_electrons <= MAX_ELECTRONS_HF, determinants),
        ):
            if not wanted:
                out.append(None)
                continue
            question = _question(method, h, chosen)
            found = next((r["answer"] for r in kept if r["question"] == question), None)
            if found is None:
                if not told:
                    say(f"computing exact and Hartree-Fock energies at {len(couplings)} couplings; kept in {file}")
                    told = True
                found = asdict(_exact(h, chosen or 0) if method == "exact" else _hartree_fock(h))
                kept.append({"question": question, "answer": found})
                _write(file, kept)
            out.append(Reference(**found))
    return References(exacts, determinants, chosen, family.n_electrons)


def describe(r: References) -> list[str]:
    """Sentences on how the references were obtained, what they are worth and what they cost."""
    sentences = []
    solved = [x for x in r.exact if x is not None]
    if solved:
        worth = "converged to about 0.002 E₀" if r.exact_converged else "an upper bound of the exact energy"
        text = (
            f"Exact diagonalisation with {r.bands} Bloch band{'s' if r.bands != 1 else ''} per momentum, "
            f"all total-momentum sectors: {worth}."
        )
        steps = [x.last_band for x in solved if x.last_band is not None]
        if steps:
            text += f" The last band lowered the energy by {min(steps):.4f} to {max(steps):.4f} E₀."
        sentences.append(f"{text} It took {sum(x.seconds for x in solved):.1f} s.")
    else:
        sentences.append("No exact diagonalisation: the system is too large for it, or it was not asked for.")
    determinants = [x for x in r.hartree_fock if x is not None]
    if determinants:
        text = (
            "Hartree–Fock: the lower of two unrestricted plane-wave solutions, started from the liquid and from the "
            "crystal; an upper bound."
        )
        failed = sum(not x.converged for x in determinants)
        if failed:
            text += f" {failed} of {len(determinants)} did not converge."
        sentences.append(f"{text} It took {sum(x.seconds for x in determinants):.1f} s.")
    else:
        sentences.append("No Hartree–Fock: the system is too large for it, or it was not asked for.")
    return sentences


def _exact(h: Hamiltonian, n_bands: int) -> Reference:
    begin = time.monotonic()
    state = exact.ground_state(h, n_bands)
    sizes = dimensions(Momenta(h.cell), n_bands - 1, h.n_up, h.n_down) if n_bands > 1 else [0]
    fewer = exact.ground_state_energy(h, n_bands - 1) if max(sizes) > 0 else None
    return Reference(
        energy=state.energy,
        kinetic=state.kinetic,
        moire=state.moire,
        interaction=state.interaction,
        state=state.label,
        converged=True,
        last_band=None if fewer is None else fewer - state.energy,
        seconds=time.monotonic() - begin,
    )


def _hartree_fock(h: Hamiltonian) -> Reference:
    begin = time.monotonic()
    state = hartree_fock.lowest(h, starts=("liquid", "crystal"))
    return Reference(
        energy=state.energy,
        kinetic=state.kinetic,
        moire=state.moire,
        interaction=state.interaction,
        state=state.start,
        converged=state.converged,
        last_band=None,
        seconds=time.monotonic() - begin,
    )


def _question(method: str, h: Hamiltonian, n_bands: int | None) -> dict[str, Any]:
    """Everything a reference depends on, as JSON."""
    numbers = {name: round(float(getattr(h, name)), 12) for name in ("lam", "v0", "phi", "u")}
    question = {
        "method": method,
        "version": __version__,
        **({"bands": n_bands, "cutoff": bands.CUTOFF} if method == "exact" else {"cutoff": hartree_fock.CUTOFF}),
        **numbers,
        "twist": [round(float(t), 12) for t in np.asarray(h.twist)],
        **{name: to_dict(getattr(h, name)) for name in ("cell", "n_up", "n_down", "gate", "potential")},
    }
    plain: dict[str, Any] = json.loads(json.dumps(question))
    return plain


def _read(file: Path) -> list[dict[str, Any]]:
    """Records of an earlier call; none if the file is missing or of another kind."""
    try:
        records = json.loads(file.read_text(encoding="utf-8"))["records"]
        for r in records:
            answer = Reference(**r["answer"])
            numbers = (
                answer.energy,
                answer.kinetic,
                answer.moire,
                answer.interaction,
                answer.last_band,
                answer.seconds,
            )
            if any(not isinstance(x, int | float | None) for x in numbers) or not isinstance(answer.state, str):
                return []
            r["question"]
        return list(records)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []


def _write(file: Path, records: list[dict[str, Any]]) -> None:
    text = json.dumps({"units": "E0, total over the electrons", "records": records}, indent=1) + "\n"
    write_atomically(file, lambda p: p.write_text(text, encoding="utf-8"))

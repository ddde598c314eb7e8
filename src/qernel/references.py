"""Exact and Hartree–Fock energies beside a scan, kept in RUN/references.json so that they are computed once."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp

from qernel import exact
from qernel.cell import Cell, FloatArray
from qernel.determinants import Momenta, dimensions
from qernel.errors import InputError
from qernel.family import Family
from qernel.hamiltonian import Hamiltonian
from qernel.hf_branches import STARTS, follow
from qernel.reference_file import Reference, ReferenceFile, exact_question, existing, hartree_fock_question

MAX_BANDS = {1: 16, 2: 16}
"""most bands for so many electrons: pairs converge slowly with the bands, and cost nothing"""
MAX_BANDS_OTHERWISE = 6
MAX_DIMENSION = 3000
"""largest sector that is diagonalised without being asked for"""
MAX_ELECTRONS_EXACT = 6
MAX_ELECTRONS_HF = 12
"""most electrons whose Hartree–Fock is quick enough to be computed for a report; of more it is read from a file"""
CONVERGED = 0.002
"""most that the last band may have lowered the energy, E0, where the exact energy is called converged"""

Say = Callable[[str], None]


@dataclass(frozen=True)
class References:
    """Reference states at each coupling of a scan; None where there is none."""

    exact: list[Reference | None]
    hartree_fock_liquid: list[Reference | None]
    hartree_fock_crystal: list[Reference | None]
    bands: int | None
    """bands per k of the exact diagonalisation, None if there was none"""
    n_electrons: int

    @property
    def hartree_fock(self) -> list[Reference | None]:
        """The lower of the two branches at each coupling, or the one that is known."""
        pairs = zip(self.hartree_fock_liquid, self.hartree_fock_crystal, strict=True)
        known = ([x for x in pair if x is not None] for pair in pairs)
        return [min(pair, key=lambda x: x.energy, default=None) for pair in known]

    @property
    def exact_converged(self) -> bool:
        """Whether the bands left out matter no more than about 0.002 E0."""
        steps = [x.last_band for x in self.exact if x is not None and x.last_band is not None]
        enough = self.bands is not None and self.bands >= 5 and self.n_electrons <= 3
        return enough and max(steps, default=0.0) <= CONVERGED


def none(n_electrons: int, couplings: int) -> References:
    """No references at all."""
    empty: list[Reference | None] = [None] * couplings
    return References(empty, empty, empty, None, n_electrons)


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
    family: Family,
    couplings: FloatArray,
    path: Path,
    n_bands: int | None = None,
    say: Say = print,
    given: Path | None = None,
) -> References:
    """References at couplings [couplings, names]: those that are kept, and those that are quick to compute.

    Args:
        family: gives the Hamiltonians.
        couplings: coupling vectors.
        path: the JSON file that keeps them; what is computed, or found in `given`, is added to it.
        n_bands: bands per k of the exact diagonalisation; by default as many as are quick (`choose_bands`).
        say: told if something has to be computed.
        given: another such file, of `qernel hf --out` or of another run.

    Raises `InputError` if the exact diagonalisation asked for is impossible, or `given` has nothing for this system.
    """
    chosen = choose_bands(family.cell, family.n_up, family.n_down) if n_bands is None else n_bands
    hamiltonians = [family.hamiltonian(jnp.asarray(c)) for c in couplings]
    if given is not None:
        _take_over(hamiltonians, chosen, existing(given), ReferenceFile(path))
    if family.n_electrons <= MAX_ELECTRONS_HF:
        follow(family, couplings, path, say=say)
    file = ReferenceFile(path)
    liquid, crystal = ([file.find(hartree_fock_question(h, start)) for h in hamiltonians] for start in STARTS)
    found = References(_exact_states(hamiltonians, chosen, file, say), liquid, crystal, chosen, family.n_electrons)
    missing = sum(x is None for x in found.hartree_fock)
    if missing:
        say(f"no Hartree-Fock at {missing} of {len(couplings)} couplings; `qernel hf --out FILE` computes it")
    return found


def _take_over(hamiltonians: list[Hamiltonian], n_bands: int | None, given: ReferenceFile, file: ReferenceFile) -> None:
    """Add to `file` what it lacks and `given` has. Raises `InputError` if `given` has nothing."""
    questions = [hartree_fock_question(h, start) for h in hamiltonians for start in STARTS]
    questions += [exact_question(h, n_bands) for h in hamiltonians if n_bands is not None]
    answers = [(q, found) for q in questions if (found := given.find(q)) is not None]
    if not answers:
        states = f"none of its {len(given.records)} states is of a Hamiltonian of this scan"
        raise InputError(f"--references {given.path}: {states}")
    for question, answer in answers:
        if file.find(question) is None:
            file.add(question, answer)


def _exact_states(
    hamiltonians: list[Hamiltonian], n_bands: int | None, file: ReferenceFile, say: Say
) -> list[Reference | None]:
    if n_bands is None:
        return [None] * len(hamiltonians)
    questions = [exact_question(h, n_bands) for h in hamiltonians]
    if any(file.find(q) is None for q in questions):
        say(f"computing exact energies at {len(hamiltonians)} couplings; kept in {file.path}")
    for h, question in zip(hamiltonians, questions, strict=True):
        if file.find(question) is None:
            file.add(question, _exact(h, n_bands))
    return [file.find(q) for q in questions]


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
    determinants = [x for x in (*r.hartree_fock_liquid, *r.hartree_fock_crystal) if x is not None]
    if determinants:
        text = (
            "Hartree–Fock: two unrestricted plane-wave solutions, the liquid followed upwards in λ and the crystal "
            "downwards, also where they are only metastable; the lower one is an upper bound."
        )
        failed = sum(not x.converged for x in determinants)
        if failed:
            text += f" {failed} of {len(determinants)} did not converge."
        sentences.append(f"{text} It took {sum(x.seconds for x in determinants):.1f} s.")
    else:
        words = "No Hartree–Fock: it was not asked for"
        large = "; for a system of this size, qernel hf --out FILE computes it, and report --references FILE reads it"
        sentences.append(words + (large if r.n_electrons > MAX_ELECTRONS_HF else "") + ".")
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

"""Both branches of Hartree–Fock along λ, each state kept as soon as it is known.

The liquid is followed upwards from the smallest λ, the crystal downwards from the largest: each begins where it is
stable and goes on from the orbitals of its neighbour, so that the curves are those of one state as it changes, also
where it is only metastable, and that all but the first take a fraction of the time. The lower of the two at each λ is
an upper bound of the exact energy.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from qernel.cell import FloatArray
from qernel.family import Family
from qernel.hamiltonian import Hamiltonian
from qernel.hartree_fock import HartreeFockState, Start, hartree_fock
from qernel.log import duration
from qernel.reference_file import Reference, ReferenceFile, hartree_fock_question

STARTS: tuple[Start, Start] = ("liquid", "crystal")

Say = Callable[[str], None]


def follow(
    family: Family, couplings: FloatArray, path: Path, starts: Sequence[Start] = STARTS, say: Say = print
) -> dict[Start, list[Reference]]:
    """Branches at couplings [couplings, names], from the file where it has them, and added to it where not.

    Args:
        family: gives the Hamiltonians.
        couplings: coupling vectors; a branch is followed along λ where all else is equal.
        path: the JSON file that keeps them.
        starts: "liquid", "crystal" or both.
        say: told beforehand what is to be computed, and of every state.

    Raises `InputError` as `hartree_fock` does.
    """
    hamiltonians = [family.hamiltonian(jnp.asarray(c)) for c in couplings]
    file, n = ReferenceFile(path), family.n_electrons
    found = {(s, k): file.find(hartree_fock_question(h, s)) for s in starts for k, h in enumerate(hamiltonians)}
    left = sum(x is None for x in found.values())
    if left:
        say(f"Hartree-Fock, N = {n}: {left} of {len(found)} states to compute ({' and '.join(starts)}); kept in {path}")
    begin, done = time.monotonic(), 0
    for start in starts:
        for chain in chains(couplings, downwards=start == "crystal"):
            before: HartreeFockState | None = None
            neighbour: float | None = None
            # Orbitals are not kept: what is missing is reached from the beginning of its branch once more.
            for k in chain[: 1 + max((i for i, k in enumerate(chain) if found[start, k] is None), default=-1)]:
                h = hamiltonians[k]
                before, reference = _solve(h, start, before, neighbour)
                neighbour = float(h.lam)
                if found[start, k] is not None:
                    say(f"{start} at λ = {neighbour:g}: once more, for its orbitals, {reference.seconds:.1f} s")
                    continue
                found[start, k], done = reference, done + 1
                file.add(hartree_fock_question(h, start), reference)
                say(_line(reference, h, (time.monotonic() - begin) / done * (left - done)))
    return {s: [x for k in range(len(couplings)) if (x := found[s, k]) is not None] for s in starts}


def chains(couplings: FloatArray, downwards: bool) -> list[list[int]]:
    """Indices of couplings that differ in λ (the first column) alone, in its order: one list for each of the others."""
    others: dict[tuple[float, ...], list[int]] = {}
    for k in np.argsort(-couplings[:, 0] if downwards else couplings[:, 0], kind="stable"):
        others.setdefault(tuple(couplings[k, 1:]), []).append(int(k))
    return list(others.values())


def _solve(
    h: Hamiltonian, start: Start, before: HartreeFockState | None, neighbour: float | None
) -> tuple[HartreeFockState, Reference]:
    begin = time.monotonic()
    state = hartree_fock(h, start, initial=before)
    reference = Reference(
        energy=state.energy,
        kinetic=state.kinetic,
        moire=state.moire,
        interaction=state.interaction,
        state=start,
        converged=state.converged,
        last_band=None,
        seconds=time.monotonic() - begin,
        order_parameter=state.order_parameter,
        continued_from=neighbour,
    )
    return state, reference


def _line(r: Reference, h: Hamiltonian, seconds_left: float) -> str:
    n, failed = h.n_electrons, "" if r.converged else ", NOT converged"
    return (
        f"{r.state} at λ = {float(h.lam):g}: E/N = {r.energy / n:.5f}, I/N = {r.interaction / n:.5f}, order "
        f"{r.order_parameter:.3f}, {r.seconds:.1f} s{failed}; about {duration(seconds_left)} left"
    )

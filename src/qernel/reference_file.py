"""Reference states on disk: a JSON file of questions and answers, so that each state is computed once.

A kept state is used again only if every number of its Hamiltonian and of its method is the one asked for.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qernel import __version__, bands, hartree_fock
from qernel.config import to_dict
from qernel.errors import require
from qernel.files import write_atomically
from qernel.hamiltonian import Hamiltonian

Question = dict[str, Any]
Records = list[dict[str, Any]]


@dataclass(frozen=True)
class Reference:
    """A reference state. Energies in E0, totals."""

    energy: float
    kinetic: float
    moire: float
    interaction: float
    state: str
    """total momentum of the exact state; start of the Hartree–Fock one"""
    converged: bool
    last_band: float | None
    """by how much the last band lowered the energy, E0; none for Hartree–Fock and for a single band"""
    seconds: float
    order_parameter: float | None = None
    """`hartree_fock.order_parameter` of its density; none for exact states"""
    continued_from: float | None = None
    """λ whose Hartree–Fock orbitals it began with; none: with those of its start"""


class ReferenceFile:
    """What is kept in one file; nothing if it is missing or of another kind."""

    def __init__(self, path: Path) -> None:
        self.path, self.records = path, _read(path)

    def find(self, question: Question) -> Reference | None:
        """The answer that is kept, if there is one."""
        found = next((r["answer"] for r in self.records if r["question"] == question), None)
        return None if found is None else Reference(**found)

    def add(self, question: Question, answer: Reference) -> None:
        """Keep an answer; the file is replaced in one go."""
        self.records.append({"question": question, "answer": asdict(answer), "made_with": __version__})
        _write(self.path, self.records)


def existing(path: Path) -> ReferenceFile:
    """A file that must be one. Raises `InputError` if it holds no reference states."""
    file = ReferenceFile(path)
    require(bool(file.records), "--references", path, "a file of `qernel hf --out`, or the references.json of a run")
    return file


def exact_question(h: Hamiltonian, n_bands: int) -> Question:
    """What the exact ground state depends on, as JSON."""
    return _question(h, {"method": "exact", "version": __version__, "bands": n_bands, "cutoff": bands.CUTOFF})


def hartree_fock_question(h: Hamiltonian, start: hartree_fock.Start) -> Question:
    """What one branch of Hartree–Fock depends on, as JSON; no version, since it is computed once for many runs."""
    return _question(h, {"method": "hartree_fock", "start": start, "cutoff": hartree_fock.CUTOFF})


def _question(h: Hamiltonian, method: Question) -> Question:
    numbers = {name: round(float(getattr(h, name)), 12) for name in ("lam", "v0", "phi", "u")}
    question = {
        **method,
        **numbers,
        "twist": [round(float(t), 12) for t in np.asarray(h.twist)],
        **{name: to_dict(getattr(h, name)) for name in ("cell", "n_up", "n_down", "gate", "potential")},
    }
    plain: Question = json.loads(json.dumps(question))
    return plain


def _read(file: Path) -> Records:
    """Records of an earlier call; none if the file is missing or of another kind."""
    try:
        records = json.loads(file.read_text(encoding="utf-8"))["records"]
        for r in records:
            answer = asdict(Reference(**r["answer"]))
            if not isinstance(answer.pop("state"), str) or not isinstance(r["question"], dict):
                return []
            if any(not isinstance(x, int | float | None) for x in answer.values()):
                return []
        return list(records)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []


def _write(file: Path, records: Records) -> None:
    text = json.dumps({"units": "E0, total over the electrons", "records": records}, indent=1) + "\n"
    write_atomically(file, lambda p: p.write_text(text, encoding="utf-8"))

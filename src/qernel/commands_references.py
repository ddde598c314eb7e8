"""The commands that ask other methods: exact diagonalisation and Hartree-Fock."""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qernel.errors import InputError, nearest, require
from qernel.options import lam_range, writable

if TYPE_CHECKING:
    from qernel.family import Family
    from qernel.hamiltonian import Hamiltonian


def exact(o: argparse.Namespace) -> int:
    """Exact diagonalisation."""
    from qernel.exact import solve, solve_all, to_json
    from qernel.tables import reference_table

    h = _hamiltonian(o, o.lam)
    if o.correlations is not None:
        require(o.correlations.suffix == ".nc", "--correlations", o.correlations, "a file .nc")
        writable("--correlations", o.correlations)
    states: Any = solve(h, o.bands, o.sector) if o.sector is not None else solve_all(h, o.bands)
    data: Any = to_json(states)
    if o.correlations is not None:
        from qernel.exact_dataset import to_dataset
        from qernel.scan import save_dataset

        save_dataset(to_dataset(h, states), o.correlations)
    if o.json:
        print(json.dumps(data, indent=2))
    else:
        reference_table(data, h.n_electrons, f"exact diagonalisation, {o.bands} bands, λ = {o.lam}")
        if o.correlations is not None:
            print(o.correlations)
    return 0


def hf(o: argparse.Namespace) -> int:
    """Hartree–Fock."""
    import numpy as np

    from qernel.hartree_fock import branches, to_json
    from qernel.tables import reference_table

    known = ["liquid", "crystal", "random"]
    for start in o.starts:
        if start not in known:
            raise InputError(f"--starts = {start}: unknown; {nearest(start, known)}")
    if o.out is not None:
        return _hf_table(o)
    require(len(o.lam) == 1, "--lam", o.lam, "one λ, unless --out FILE is given")
    h = _hamiltonian(o, o.lam[0])
    if o.density is not None:
        require(o.density.suffix == ".npy", "--density", o.density, "a file .npy")
        writable("--density", o.density)
    options = {} if o.cutoff is None else {"cutoff": o.cutoff}
    states = branches(h, starts=tuple(o.starts), **options)
    rho = min(states, key=lambda s: s.energy).density
    low, high, mean = float(rho.min()), float(rho.max()), float(rho.mean())
    density = {"min": low, "max": high, "mean": mean, "units": "1/a_M^2"}
    data: Any = {**to_json(states), "density": density}
    if o.density is not None:
        np.save(o.density, rho)
    if o.json:
        print(json.dumps(data, indent=2))
    else:
        reference_table(data, h.n_electrons, f"Hartree-Fock, λ = {o.lam[0]}")
        print(f"density of the lowest state: {low:.4f} to {high:.4f}, mean {mean:.4f} electrons per a_M²")
    return 0


def _hf_table(o: argparse.Namespace) -> int:
    """Branches along λ into a file, and as a table."""
    from dataclasses import asdict, replace

    import numpy as np

    from qernel.family import check_range
    from qernel.hf_branches import follow
    from qernel.reference_file import ReferenceFile
    from qernel.tables import branches_table

    for option in ("cutoff", "density"):
        require(getattr(o, option) is None, f"--{option}", getattr(o, option), "left out with --out")
    require("random" not in o.starts, "--starts", "random", "liquid, crystal or both, with --out")
    require(o.out.suffix == ".json", "--out", o.out, "a file .json")
    writable("--out", o.out)
    ours = not o.out.exists() or bool(ReferenceFile(o.out).records)
    require(ours, "--out", o.out, "a new file, or one of this command")
    lam = lam_range(o.lam)
    check_range("--lam", "lam", lam)
    family, given = _asked(o)
    family = replace(family, lam=lam)
    depths = np.linspace(*lam)
    couplings = np.stack([family.vector(lam=x, **given) for x in depths])
    say = partial(print, file=sys.stderr, flush=True)
    found = follow(family, couplings, o.out, tuple(dict.fromkeys(o.starts)), say)
    if o.json:
        rows = {
            start: [{"lam": x, **asdict(r)} for x, r in zip(depths, states, strict=True)]
            for start, states in found.items()
        }
        print(json.dumps({**rows, "n_electrons": family.n_electrons, "units": "E0"}, indent=2))
    else:
        branches_table(depths, found, family.n_electrons)
        print(o.out)
    return 0


def _asked(o: argparse.Namespace) -> tuple[Family, dict[str, float]]:
    """The family of a preset or of a run folder with the options given, and the values of those that vary in it."""
    from dataclasses import replace

    from qernel.config import read_config
    from qernel.presets import preset

    folder = Path(o.preset)
    family = (read_config(folder / "config.json") if folder.is_dir() else preset(o.preset)).family
    if o.n is not None:
        family = replace(family, n_up=o.n, n_down=0)
    if o.spin is not None:
        family = replace(family, n_up=o.spin[0], n_down=o.spin[1])
    twist = (None, None) if o.twist is None else tuple(o.twist)
    options = {"phi_deg": o.phi, "epsilon": o.epsilon, "twist_1": twist[0], "twist_2": twist[1]}
    given = {name: value for name, value in options.items() if value is not None}
    material = {name: given[name] for name in ("phi_deg", "epsilon") if name in given}
    family = replace(family, material=replace(family.material, **material))
    if o.twist is not None:
        family = replace(family, twist=(o.twist[0], o.twist[1]))
    return family, {name: value for name, value in given.items() if name in family.names}


def _hamiltonian(o: argparse.Namespace, lam: float) -> Hamiltonian:
    """Of that family at a depth; what varies and is not given is in the middle of its range."""
    import jax.numpy as jnp

    family, given = _asked(o)
    return family.hamiltonian(jnp.asarray(family.vector(lam=lam, **given)))

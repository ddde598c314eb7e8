"""Named runs. A preset is a function that returns a full `Config`."""

from __future__ import annotations

from dataclasses import replace

from qernel.cell import Cell
from qernel.config import Config, Sampling
from qernel.errors import InputError, nearest
from qernel.family import Family
from qernel.network import Network
from qernel.units import Material

EXACT = Network(
    layers=1,
    width=8,
    heads=2,
    kv_heads=1,
    experts=2,
    top_k=1,
    expert_width=8,
    shared_width=8,
    determinants=1,
    film_width=4,
    dtype="float64",
)
"""The smallest network, in double precision, for states whose start is exact."""


SMALL = Network(width=24, expert_width=24, shared_width=24)
"""Enough for two electrons; the step is then as cheap as its Gram matrix."""

DENSE = Network(layers=4, width=16, shared_width=16, experts=0, init="random")
"""For three to eight electrons. Random orbitals, because Bloch orbitals keep a whole family on the side of a transition
that they belong to, and take longer where there is none; no routed experts, because for so few electrons a step costs
as its weights, and those of experts cost more than they bring (docs/settings.md)."""


def moire_n2() -> Config:
    """N = 2 on the three-cell √3×√3 torus; its ground state is at K and K'."""
    return Config(
        name="moire-n2",
        family=Family(n_up=2, cell=Cell(supercell=((1, 1), (2, -1)))),
        network=SMALL,
        sampling=Sampling(walkers=32),
        steps=5_000,
    )


def moire_n3() -> Config:
    """N = 3 on 3×3 cells, filling 1/3: minutes on two CPU cores."""
    return Config(name="moire-n3", family=Family(n_up=3), network=DENSE, sampling=Sampling(walkers=32), steps=10_000)


def moire_n3_lam_eps() -> Config:
    """N = 3 on 3×3 cells over depth and dielectric constant at once.

    ε from 4 to 16, u from 13.3 to 3.3. hBN on both sides gives √(ε_∥ ε_⊥) of 3.9 (fast fields, electrons alone) to
    5.1 (static; doi:10.1038/s41699-018-0050-x); further layers and nearby gates screen more.
    """
    return replace(
        moire_n3(),
        name="moire-n3-lam-eps",
        family=Family(n_up=3, lam=(0.25, 2.0, 6), epsilon=(4.0, 16.0, 4)),
        sampling=Sampling(walkers=16),
    )


def moire_n6() -> Config:
    """N = 6 on 3×3 cells, filling 2/3: the first-order transition in small."""
    return Config(
        name="moire-n6",
        family=Family(n_up=6, lam=(0.25, 2.0, 15)),
        network=DENSE,
        sampling=Sampling(walkers=32),
        steps=10_000,
    )


def moire_n8() -> Config:
    """N = 8 on the twelve-cell 2√3×2√3 torus, filling 2/3: the second size beside `moire-n6`."""
    n6 = moire_n6()
    return replace(n6, name="moire-n8", family=replace(n6.family, n_up=8, cell=Cell(supercell=((2, 2), (4, -2)))))


def moire_n54() -> Config:
    """N = 54 on 9×9 cells, filling 2/3; wants a GPU.

    Couplings close together, because a network changes no faster with λ than it was taught, and mixed orbitals, which
    prefer neither phase (docs/settings.md). `examples/legs.sh` trains λ = 2 first.
    """
    return Config(
        name="moire-n54",
        family=Family(n_up=54, cell=Cell(supercell=((9, 0), (0, 9))), lam=(0.25, 2.0, 32)),
        network=Network(
            width=64,
            kv_heads=1,
            experts=16,
            expert_width=64,
            shared_width=64,
            determinants=2,
            jastrow_shells=40,
            init="mixed",
        ),
        sampling=Sampling(walkers=32),
        steps=50_000,
    )


def moire_n150() -> Config:
    """N = 150 on 15×15 cells, filling 2/3; wants a GPU."""
    n54 = moire_n54()
    return replace(
        n54,
        name="moire-n150",
        family=replace(n54.family, n_up=150, cell=Cell(supercell=((15, 0), (0, 15)))),
        sampling=Sampling(walkers=16),
    )


def free_n7() -> Config:
    """Seven free electrons at a generic twist: the start is exact, the variance zero."""
    family = Family(n_up=7, twist=(0.3, 0.1), lam=(0.0, 0.0, 1), material=Material(epsilon=float("inf")))
    return Config(name="free-n7", family=family, network=EXACT, steps=0)


def one_electron() -> Config:
    """One electron in the moiré potential at a generic twist: the start is exact, the variance zero."""
    family = Family(n_up=1, twist=(0.3, 0.1), cell=Cell(supercell=((1, 0), (0, 1))))
    return Config(name="one-electron", family=family, network=replace(EXACT, plane_wave_cutoff=900.0), steps=0)


PRESETS = {
    "moire-n2": moire_n2,
    "moire-n3": moire_n3,
    "moire-n3-lam-eps": moire_n3_lam_eps,
    "moire-n6": moire_n6,
    "moire-n8": moire_n8,
    "moire-n54": moire_n54,
    "moire-n150": moire_n150,
    "free-n7": free_n7,
    "one-electron": one_electron,
}


def preset(name: str) -> Config:
    """The preset of that name. Raises `InputError` with the nearest name if there is none."""
    if name not in PRESETS:
        raise InputError(f"preset = {name}: unknown; {nearest(name, list(PRESETS))}")
    return PRESETS[name]()

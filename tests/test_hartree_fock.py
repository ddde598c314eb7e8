import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from qernel import analytic, exact, hf_seeds
from qernel.bands import solve_bands
from qernel.cell import Cell
from qernel.errors import InputError
from qernel.fock import Functional
from qernel.hamiltonian import Hamiltonian
from qernel.hartree_fock import CUTOFF, branches, hartree_fock, order_parameter, to_json
from qernel.hf_minimise import orthonormalise
from qernel.units import Material

M = Material()
REFERENCE = json.loads((Path(__file__).parent / "reference" / "wse2_ws2.json").read_text())
TORUS = Cell(supercell=((1, 1), (2, -1)))
FINE = 0.5 * (3.3 * 4 * np.pi / np.sqrt(3)) ** 2


def hamiltonian(n_up=6, n_down=0, lam=1.0, u=M.u, twist=(0.0, 0.0), cell=None, gate=None):
    return Hamiltonian(
        lam=lam,
        v0=M.v0,
        phi=M.phi,
        u=u,
        twist=jnp.array(twist),
        cell=cell or Cell(),
        n_up=n_up,
        n_down=n_down,
        gate=gate,
    )


@pytest.mark.parametrize(("start", "energy"), [("liquid", -17.25161), ("crystal", -17.44289)])
def test_six_electrons_match_the_reference_on_both_branches(start, energy):
    state = hartree_fock(hamiltonian(), start, cutoff=FINE, threads=1)
    assert state.converged
    assert state.energy / 6 == pytest.approx(energy, abs=1e-4)
    assert state.kinetic + state.moire + state.interaction == pytest.approx(state.energy, abs=1e-9)
    assert (state.order_parameter > 0.3) == (start == "crystal")


@pytest.mark.slow
@pytest.mark.parametrize("row", REFERENCE["hartree_fock_n54"]["rows"], ids=str)
def test_crystal_of_54_electrons_matches_the_reference(row):
    v, _, _, energy, interaction = row
    h = hamiltonian(54, lam=v / M.v0, cell=Cell(supercell=((9, 0), (0, 9))))
    state = hartree_fock(h, "crystal")
    assert state.energy / 54 == pytest.approx(energy, abs=1e-4)
    assert state.interaction / 54 == pytest.approx(interaction, abs=1e-3)


def test_lowest_is_the_crystal_and_branches_go_to_json():
    states = branches(hamiltonian(lam=1.2), cutoff=80.0)
    best = min(states, key=lambda s: s.energy)
    assert best.start == "crystal"
    data = json.loads(json.dumps(to_json(states)))
    assert data["energy"] == pytest.approx(best.energy)
    assert [b["start"] for b in data["branches"]] == ["liquid", "crystal"]
    assert data["units"] == "E0"


@pytest.mark.parametrize("spins", [(4, 0), (3, 2)])
@pytest.mark.parametrize("twist", [(0.2, 0.13), (3.0, -2.0)])
def test_without_interaction_it_is_exact(spins, twist):
    h = hamiltonian(*spins, u=0.0, twist=twist)
    state = hartree_fock(h, "random", cutoff=90.0, tolerance=1e-9, threads=1)
    assert state.energy == pytest.approx(analytic.noninteracting_energy(h, 90.0), abs=1e-5)
    free = hamiltonian(*spins, lam=0.0, u=0.0, twist=twist)
    assert hartree_fock(free, "liquid", cutoff=90.0, tolerance=1e-9, threads=1).energy == pytest.approx(
        analytic.free_electron_energy(free), abs=1e-5
    )


@pytest.mark.parametrize("gate", [None, 0.9])
def test_one_electron_is_exact(gate):
    """Hartree and exchange cancel; what is left is the Madelung term."""
    h = hamiltonian(1, twist=(0.1, 0.2), cell=TORUS, gate=gate)
    state = hartree_fock(h, "liquid", cutoff=120.0, tolerance=1e-9, threads=1)
    assert state.energy == pytest.approx(analytic.one_electron_energy(h, 120.0), abs=1e-6)


@pytest.mark.parametrize("spins", [(2, 0), (1, 1)])
def test_not_below_the_exact_energy(spins):
    h = hamiltonian(*spins, cell=TORUS)
    exact_energy = exact.ground_state_energy(h, 14)
    state = min(branches(h), key=lambda s: s.energy)
    assert exact_energy - 2e-3 < state.energy < exact_energy + 3.0


def test_energy_of_a_determinant_is_its_expectation_value_in_exact_diagonalisation():
    """One band per momentum, N = number of momenta: a single determinant for both codes."""
    h = hamiltonian(3, cell=TORUS, twist=(0.2, 0.1), gate=1.3)
    cutoff = 60.0
    state = exact.ground_state(h, 1, cutoff)
    f = Functional(h, cutoff)
    bands = solve_bands(h, 1, cutoff)
    columns = np.zeros((len(f.kinetic), 3), complex)
    for k in range(3):
        used = bands.coefficients[k, 0] != 0
        for p, c in zip(bands.wavevectors[k][used], bands.coefficients[k, 0][used], strict=True):
            columns[np.argmin(np.linalg.norm(f.wavevectors - p, axis=1)), k] = c
    orbitals = [columns, np.zeros((len(columns), 0), complex)]
    energy = f.energy(orbitals, [f.exchange(c) for c in orbitals])
    assert energy.total == pytest.approx(state.energy, abs=1e-8)
    assert energy.kinetic == pytest.approx(state.kinetic, abs=1e-8)
    assert energy.moire == pytest.approx(state.moire, abs=1e-8)


def test_gradient_is_the_derivative_of_the_energy():
    h = hamiltonian(3, 2, cell=TORUS, twist=(0.2, 0.1))
    f = Functional(h, 60.0)
    c, d = hf_seeds.noise(f, 0), hf_seeds.noise(f, 1)

    def energy(t: float) -> float:
        moved = [orthonormalise(x + t * y) for x, y in zip(c, d, strict=True)]
        return f.energy(moved, [f.exchange(x) for x in moved]).total

    gradient = f.fock(c, [f.exchange(x) for x in c])
    tangent = [g - x @ (x.conj().T @ g) for g, x in zip(gradient, c, strict=True)]
    slope = 2 * sum(np.vdot(g, y).real for g, y in zip(tangent, d, strict=True))
    assert (energy(1e-4) - energy(-1e-4)) / 2e-4 == pytest.approx(slope, rel=1e-5)


def test_orbitals_and_density():
    h = hamiltonian(4, 2, twist=(0.2, 0.1))
    state = hartree_fock(h, "crystal", cutoff=80.0, threads=1)
    assert state.density.mean() * h.cell.area == pytest.approx(6, abs=1e-9)
    assert state.density.min() >= 0
    for c, n in zip(state.orbitals, (4, 2), strict=True):
        assert np.allclose(c.conj().T @ c, np.eye(n), atol=1e-10)
    assert [len(e) for e in state.orbital_energies] == [4, 2]
    kinetic = sum((0.5 * (state.wavevectors**2).sum(1)[:, None] * np.abs(c) ** 2).sum() for c in state.orbitals)
    assert kinetic == pytest.approx(state.kinetic, abs=1e-9)


def test_hellmann_feynman_in_the_depth_and_continuation():
    """E is stationary in the orbitals, so dE/dλ = ⟨W⟩ = moire/λ."""
    middle = hartree_fock(hamiltonian(), "crystal", cutoff=80.0, tolerance=1e-9, threads=1)
    step = 0.01
    up, down = (
        hartree_fock(hamiltonian(lam=1 + s), initial=middle, cutoff=80.0, tolerance=1e-9, threads=1)
        for s in (step, -step)
    )
    assert up.start == "crystal"
    assert up.iterations < middle.iterations
    assert (up.energy - down.energy) / (2 * step) == pytest.approx(middle.moire, rel=1e-4)


def test_order_parameter():
    cell = Cell(supercell=((6, 0), (0, 3)))
    fraction = np.stack(np.meshgrid(np.arange(36) / 36, np.arange(36) / 36, indexing="ij"), -1)
    r = fraction @ cell.vectors
    k = (cell.moire_reciprocal[0] + 2 * cell.moire_reciprocal[1]) / 3
    corner = np.array([k, k - cell.moire_reciprocal[1]])
    corner = corner[np.argmin(np.linalg.norm(corner, axis=1))]
    assert order_parameter(1 + 0.4 * np.cos(r @ corner), cell) == pytest.approx(0.2)
    assert order_parameter(1 + 0.4 * np.cos(r @ cell.moire_reciprocal[0]), cell) == pytest.approx(0, abs=1e-12)
    # no K in a 2 x 2 supercell: any other density wave counts
    small = Cell(supercell=((2, 0), (0, 2)))
    wave = 1 + 0.6 * np.cos(fraction @ small.vectors @ small.reciprocal[0])
    assert order_parameter(wave, small) == pytest.approx(0.3)


def test_lattice_gas_finds_the_honeycomb():
    cell = Cell(supercell=((6, 0), (0, 6)))
    empty = np.setdiff1d(np.arange(36), hf_seeds.lattice_gas(cell, 24))
    # the holes of the honeycomb are a √3×√3 lattice: no two nearer than √3
    points = cell.translations[empty]
    images = np.stack(np.meshgrid([-1, 0, 1], [-1, 0, 1]), -1).reshape(-1, 2) @ cell.vectors
    distance = np.linalg.norm(points[:, None, None] - points[None, :, None] + images, axis=-1).min(-1)
    assert (distance + 9 * np.eye(len(points))).min() == pytest.approx(np.sqrt(3))
    assert len(hf_seeds.lattice_gas(cell, 40)) == 40


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"n_up": 0}, {}, "electron"),
        ({"lam": float("nan")}, {}, "lam"),
        ({"n_up": 30, "cell": TORUS}, {"cutoff": 40.0}, "N beyond the basis"),
        ({}, {"cutoff": -1.0}, "cutoff"),
        ({}, {"tolerance": 0.0}, "tolerance"),
    ],
)
def test_impossible_input_is_refused(change, options, message):
    with pytest.raises(InputError, match=message):
        hartree_fock(hamiltonian(**change), **options)


def test_continuation_needs_the_same_basis():
    state = hartree_fock(hamiltonian(2, cell=TORUS), cutoff=60.0, threads=1)
    with pytest.raises(InputError, match="initial orbitals"):
        hartree_fock(hamiltonian(2, cell=TORUS), initial=state, cutoff=CUTOFF)
    with pytest.raises(InputError, match="initial orbitals"):
        hartree_fock(hamiltonian(3, cell=TORUS), initial=state, cutoff=60.0)

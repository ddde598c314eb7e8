import functools
import itertools
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from qernel import analytic, exact
from qernel.bands import solve_bands
from qernel.cell import Cell
from qernel.determinants import Momenta, dimensions
from qernel.errors import InputError
from qernel.ewald import ewald_tables, fourier_weight
from qernel.hamiltonian import Hamiltonian, fourier_components
from qernel.units import Material

M = Material()
REFERENCE = json.loads((Path(__file__).parent / "reference" / "wse2_ws2.json").read_text())
TERMS = ("energy", "kinetic", "moire", "interaction")
TORUS = Cell(supercell=((1, 1), (2, -1)))


def hamiltonian(n_up=3, n_down=0, lam=1.0, u=M.u, twist=(0.0, 0.0), cell=None, phi=M.phi, gate=None):
    return Hamiltonian(
        lam=lam, v0=M.v0, phi=phi, u=u, twist=jnp.array(twist), cell=cell or Cell(), n_up=n_up, n_down=n_down, gate=gate
    )


def against_reference(row, tolerance):
    h = hamiltonian(row["n"], lam=row["lam"])
    labels = [f"({i},{j})/3" for i, j in h.cell.momentum_labels]
    state = exact.solve(h, row["bands"], labels.index(row["sector"]))
    assert state.label == row["sector"]
    assert state.dimension == row["dimension"]
    for term in TERMS:
        assert getattr(state, term) == pytest.approx(row[term], abs=tolerance), term


@pytest.mark.parametrize("row", REFERENCE["exact_match_one_and_two_bands"], ids=str)
def test_one_and_two_bands_match_the_reference(row):
    against_reference(row, 1e-4)


@pytest.mark.parametrize("row", REFERENCE["n3_convergence_4_5_6_bands"][::5], ids=str)
def test_convergence_in_bands_matches_the_reference(row):
    against_reference(row, 0.03)


@pytest.mark.slow
@pytest.mark.parametrize("row", REFERENCE["n6_three_bands"], ids=str)
def test_three_bands_match_the_reference(row):
    against_reference(row, 0.03)


@pytest.mark.parametrize(("epsilon", "row"), [(5.0, {}), (10.0, REFERENCE["n2_three_cell_torus"]["epsilon_10"])])
def test_three_cell_torus(epsilon, row):
    row = row or {
        **REFERENCE["n2_three_cell_torus"],
        "gamma": REFERENCE["n2_three_cell_torus"]["gamma_sector_energy_per_electron"],
    }
    h = hamiltonian(2, u=Material(epsilon=epsilon).u, cell=TORUS)
    gamma, k, k_prime = (s.energy / 2 for s in exact.solve_all(h, 12))
    assert k == pytest.approx(k_prime, abs=1e-8)
    assert k == pytest.approx(row["energy_per_electron"], abs=1e-3)
    assert gamma == pytest.approx(row["gamma"], abs=1e-3)
    assert exact.ground_state_energy(h, 1) / 2 == pytest.approx(row["lowest_band_only"], abs=1e-5)


def test_terms_add_up_and_level_crossing():
    """Two bands, N = 6: the ground state leaves (0,1)/3 for K near λ = 1.06."""
    difference = []
    for lam in (1.055, 1.067):
        liquid, crystal = (exact.solve(hamiltonian(6, lam=lam), 2, s) for s in (1, 5))
        assert (liquid.label, crystal.label) == ("(0,1)/3", "(1,2)/3")
        assert liquid.kinetic + liquid.moire + liquid.interaction == pytest.approx(liquid.energy, abs=1e-9)
        difference.append(liquid.energy - crystal.energy)
    assert difference[0] < 0 < difference[1]


def test_symmetry_equivalent_sectors():
    states = exact.solve_all(hamiltonian(3), 2)
    energies = np.array([s.energy for s in states])
    assert np.ptp(energies[[1, 2, 3, 4, 6, 8]]) < 1e-8
    assert energies[5] == pytest.approx(energies[7], abs=1e-8)


@pytest.mark.parametrize("gate", [None, 0.8])
def test_phase_60_degrees_is_the_hexagonal_potential(gate):
    """φ → φ + 120° is a translation and φ → −φ an inversion; at a twist, so that no multiplet is cut."""
    phases = (np.pi / 3, -np.pi / 3, np.pi)
    energies = [
        exact.ground_state_energy(hamiltonian(2, phi=p, gate=gate, cell=TORUS, twist=(0.2, 0.1)), 3) for p in phases
    ]
    assert np.ptp(energies) < 1e-7


@pytest.mark.parametrize("twist", [(0.0, 0.0), (0.3, 0.17), (2.0, -1.0)])
@pytest.mark.parametrize("spins", [(3, 0), (2, 2), (1, 0)])
def test_free_electrons(twist, spins):
    h = hamiltonian(*spins, lam=0.0, u=0.0, twist=twist)
    assert exact.ground_state_energy(h, 3, cutoff=60.0) == pytest.approx(analytic.free_electron_energy(h), abs=1e-9)


def test_noninteracting_electrons_and_one_electron():
    h = hamiltonian(3, 1, u=0.0, twist=(0.2, 0.4))
    assert exact.ground_state_energy(h, 2) == pytest.approx(analytic.noninteracting_energy(h), abs=1e-9)
    one = hamiltonian(1, twist=(0.2, 0.4))
    assert exact.ground_state_energy(one, 2) == pytest.approx(analytic.one_electron_energy(one), abs=1e-9)


@pytest.mark.parametrize("twist", [(0.11, 0.23), (0.4, -0.3)])  # a band cut is only unique at a twist
@pytest.mark.parametrize("gate", [None, 0.7])
def test_two_electrons_against_first_quantisation(twist, gate):
    """The full two-particle matrix has singlets (even) and triplets (odd)."""
    h = hamiltonian(1, 1, twist=twist, cell=TORUS, gate=gate)
    one, v = brute_force(h, 40.0, 5)
    m = len(one)
    assert m == 15
    matrix = np.kron(one, np.eye(m)) + np.kron(np.eye(m), one) + v.reshape(m * m, m * m)
    i, j = np.divmod(np.arange(m * m), m)
    swap = np.zeros((m * m, m * m))
    swap[j * m + i, i * m + j] = 1
    both = np.linalg.eigvalsh(matrix)[0]
    odd = np.linalg.eigvalsh(matrix + 1e4 * (np.eye(m * m) + swap))[0]
    shift = h.u * ewald_tables(TORUS, gate).madelung
    assert exact.ground_state_energy(h, 5, 40.0) == pytest.approx(both + shift, abs=1e-7)
    polarised = hamiltonian(2, 0, twist=twist, cell=TORUS, gate=gate)
    assert exact.ground_state_energy(polarised, 5, 40.0) == pytest.approx(odd + shift, abs=1e-7)


def brute_force(h, cutoff, bands):
    """T + λW and ⟨ab|w|cd⟩ (a, c electron 1) in the lowest bands, from sums over all plane waves."""
    box = np.stack(np.meshgrid(*[np.arange(-12, 13)] * 2), -1).reshape(-1, 2)
    p = box @ h.cell.reciprocal + np.array(h.twist)
    p = p[0.5 * (p**2).sum(1) <= cutoff]
    index, w = fourier_components(h)
    one = np.diag(0.5 * (p**2).sum(1)).astype(complex)
    for g, c in zip(index @ h.cell.moire_reciprocal, w, strict=True):
        one += h.lam * c * (np.linalg.norm(p[:, None] - p[None] - g, axis=-1) < 1e-8)
    m = len(p)
    v = np.zeros((m,) * 4)
    for a, b, c in itertools.product(range(m), repeat=3):
        d = np.flatnonzero(np.linalg.norm(p[a] + p[b] - p[c] - p, axis=1) < 1e-8)
        v[a, b, c, d] = h.u * fourier_weight(np.linalg.norm(p[a] - p[c], axis=-1, keepdims=True), h.cell, h.gate)[0]
    fraction = (p - np.array(h.twist)) @ np.linalg.inv(h.cell.moire_reciprocal)
    momentum = (fraction + 1e-9) % 1
    orbitals = []
    for k in np.unique(momentum.round(6), axis=0):
        member = np.flatnonzero(np.abs(momentum - k).max(axis=1) < 1e-5)
        vectors = np.linalg.eigh(one[np.ix_(member, member)])[1][:, :bands]
        orbitals.append(np.zeros((m, bands), complex))
        orbitals[-1][member] = vectors
    c = np.concatenate(orbitals, axis=1)
    one = c.conj().T @ one @ c
    return one, np.einsum("pa,qb,pqrs,rc,sd->abcd", c.conj(), c.conj(), v, c, c, optimize=True)


@pytest.mark.parametrize("spins", [(3, 0), (2, 1), (2, 2)])
def test_against_fermion_matrices(spins):
    """Creation and annihilation operators applied one by one to occupation numbers."""
    cell = Cell(supercell=((2, 0), (0, 1)))
    h = hamiltonian(*spins, twist=(0.35, 0.1), cell=cell, phi=0.3)
    lowest = fermions_lowest(*brute_force(h, 40.0, 3), *spins)
    shift = 0.5 * sum(spins) * h.u * ewald_tables(cell).madelung
    assert exact.ground_state_energy(h, 3, 40.0) == pytest.approx(lowest + shift, abs=1e-7)


def fermions_lowest(one, v, n_up, n_down):
    """Lowest energy with the given electron numbers, by applying operator strings to occupation sets."""
    m = len(one)
    states = [
        u + tuple(m + x for x in d)
        for u in itertools.combinations(range(m), n_up)
        for d in itertools.combinations(range(m), n_down)
    ]
    place = {s: i for i, s in enumerate(states)}
    matrix = np.zeros((len(states),) * 2, complex)

    def annihilate(state, x):
        return (-1) ** state.index(x), tuple(y for y in state if y != x)

    def create(state, x):
        return (-1) ** sum(y < x for y in state), tuple(sorted((*state, x)))

    for column, s in enumerate(states):
        for c in s:
            sign, without = annihilate(s, c)
            for a in range(c // m * m, c // m * m + m):
                if a not in without and one[a % m, c % m] != 0:
                    sign2, new = create(without, a)
                    matrix[place[new], column] += sign * sign2 * one[a % m, c % m]
        for c, d in itertools.permutations(s, 2):
            s1, one_less = annihilate(s, c)
            s2, rest = annihilate(one_less, d)  # c_d c_c
            for b, a in np.argwhere(np.abs(v[:, :, c % m, d % m].T) > 1e-12):
                a, b = a + c // m * m, b + d // m * m
                if a == b or a in rest or b in rest:
                    continue
                s3, more = create(rest, b)
                s4, new = create(more, a)  # c†_a c†_b
                matrix[place[new], column] += 0.5 * s1 * s2 * s3 * s4 * v[a % m, b % m, c % m, d % m]
    assert np.abs(matrix - matrix.conj().T).max() < 1e-10
    return np.linalg.eigvalsh(matrix)[0]


def test_both_spins_are_not_above_polarised():
    """S_z = 0 contains every multiplet; two electrons form a singlet lower than the triplet."""
    polarised = exact.ground_state_energy(hamiltonian(2, 0, cell=TORUS), 3)
    unpolarised = exact.ground_state_energy(hamiltonian(1, 1, cell=TORUS), 3)
    swapped = exact.ground_state_energy(hamiltonian(0, 2, cell=TORUS), 3)
    assert unpolarised <= polarised + 1e-9
    assert swapped == pytest.approx(polarised, abs=1e-9)


def test_twist_and_time_reversal():
    """θ → θ + B relabels the momenta only; θ → −θ is time reversal."""
    cell, theta = TORUS, np.array([0.3, 0.2])
    energies = [
        exact.ground_state_energy(hamiltonian(2, twist=t, cell=cell), 4)
        for t in (theta, theta + cell.reciprocal[0], -theta)
    ]
    assert np.ptp(energies) < 1e-7


def test_density_and_momentum_distribution():
    h = hamiltonian(2, 1, twist=(0.3, 0.1))
    state = exact.ground_state(h, 2)
    grid = exact.supercell_grid(h, 60)
    rho = exact.density(state, grid)
    assert rho.shape == (60, 60)
    assert rho.min() > 0
    assert rho.mean() * h.cell.area == pytest.approx(3, abs=1e-9)
    w = h.lam * np.asarray(h.potential(jnp.asarray(grid), h))
    assert (rho * w).mean() * h.cell.area == pytest.approx(state.moire, abs=1e-8)
    p, n = exact.momentum_distribution(state)
    assert n.sum() == pytest.approx(3, abs=1e-9)
    assert (0.5 * (p**2).sum(1) * n).sum() == pytest.approx(state.kinetic, abs=1e-8)
    # ψ(r + T) = exp(iθ·T) ψ(r): every wavevector is θ plus a reciprocal vector of the supercell
    fraction = (p - np.array(h.twist)) @ np.linalg.inv(h.cell.reciprocal)
    assert np.abs(fraction - np.rint(fraction)).max() < 1e-9


def test_more_bands_lower_the_energy():
    energies = [exact.ground_state_energy(hamiltonian(2, 1, cell=TORUS), b) for b in (1, 2, 4, 6)]
    assert np.all(np.diff(energies) < 0)


@pytest.mark.parametrize("spins", [(6, 0), (3, 2), (1, 0)])
def test_sector_dimensions_add_up(spins):
    from math import comb

    sizes = dimensions(Momenta(Cell()), 3, *spins)
    assert sum(sizes) == comb(27, spins[0]) * comb(27, spins[1])


@pytest.mark.parametrize(
    ("change", "bands", "sector", "message"),
    [
        ({"n_up": 10}, 1, 0, "N beyond the basis"),
        ({}, 2, 9, "sector"),
        ({}, 2, -1, "sector"),
        ({}, 500, 0, "bands"),
        ({}, 0, 0, "bands"),
        ({"lam": float("nan")}, 1, 0, "lam"),
        ({"lam": float("inf")}, 1, 0, "lam"),
        ({"n_up": 12}, 6, 0, r"dimension = \d+"),
        ({"n_up": 2, "cell": Cell(supercell=((1, 0), (0, 2)))}, 1, 0, "dimension = 0"),
        ({"n_up": 0}, 1, 0, "electron"),
    ],
)
def test_impossible_input_is_refused(change, bands, sector, message):
    with pytest.raises(InputError, match=message):
        exact.solve(hamiltonian(**change), bands, sector)


def test_json():
    states = exact.solve_all(hamiltonian(2, cell=TORUS), 2)
    data = json.loads(json.dumps(exact.to_json(states)))
    assert data["units"] == "E0"
    assert data["energy"] == min(s["energy"] for s in data["sectors"])
    assert {s["sector"] for s in data["sectors"]} == {"(0,0)/3", "(1,2)/3", "(2,1)/3"}
    one = json.loads(json.dumps(exact.to_json(states[0])))
    assert set(one) == {*TERMS, "sector", "dimension", "units"}
    assert functools.reduce(lambda a, b: a + b, (one[t] for t in TERMS[1:])) == pytest.approx(one["energy"])


def test_band_cut_is_documented_and_harmless_away_from_it():
    """Two bands of the reference material are separated from the third at every momentum."""
    energies = solve_bands(hamiltonian(), 3).energies
    assert (energies[:, 2] - energies[:, 1]).min() > 0.1

"""Correlations of exact states: against wavefunctions on a grid, Wick's theorem, sum rules and sampled determinants."""

from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise

import jax.numpy as jnp
import numpy as np
import pytest

from qernel import exact
from qernel.cell import Cell, lattice_points
from qernel.determinants import Sector
from qernel.errors import InputError
from qernel.ewald import ewald_tables, fourier_weight
from qernel.exact_correlations import (
    binned_density,
    occupations,
    one_body_density_matrix,
    order_parameter,
    pair_correlation,
    pair_modes,
    structure_factor,
)
from qernel.exact_dataset import quantities
from qernel.hamiltonian import Hamiltonian, MoirePotential
from qernel.observables.pair_correlation import inscribed_radius
from qernel.observables.structure_factor import corners
from qernel.symmetry import star_average, stars, symmetries, symmetrised_map
from qernel.units import Material
from states import NETWORK, TORUS, close, config, exact_walkers, finalised, model_of

M = Material()
SMALL = Cell(supercell=((2, 0), (0, 1)))


def hamiltonian(n_up=3, n_down=0, lam=1.0, u=M.u, twist=(0.0, 0.0), cell=None, **others):
    others = {"phi": M.phi, **others}
    return Hamiltonian(
        lam=lam, v0=M.v0, u=u, twist=jnp.array(twist), cell=cell or Cell(), n_up=n_up, n_down=n_down, **others
    )


def grid(cell, size):
    return (np.stack(np.meshgrid(*2 * [np.arange(size) / size], indexing="ij"), -1) @ cell.vectors).reshape(-1, 2)


def wavefunction(state, points):
    """ψ of two electrons up and one down on points³, and the orbitals: determinants written out."""
    phi = state.bands.orbitals(points).reshape(state.bands.n_orbitals, -1)
    amplitude = np.zeros((len(phi),) * 3, complex)
    sector = Sector(state.bands.cell, state.bands.n_bands, 2, 1, state.sector)
    a, b, c = sector.occupied.T
    amplitude[a, b, c] = state.vector / np.sqrt(2)
    amplitude[b, a, c] = -state.vector / np.sqrt(2)
    return np.einsum("abc,ai,bj,cl->ijl", amplitude, phi, phi, phi, optimize=True)


def test_against_the_wavefunction_on_a_grid():
    """|ψ|² has no Fourier components that the grid cannot hold, so sums over it are integrals."""
    h = hamiltonian(2, 1, twist=(0.35, 0.1), cell=SMALL)
    state = exact.solve(h, 2, 1, cutoff=30.0)
    points = grid(h.cell, 10)
    density = np.abs(wavefunction(state, points)) ** 2 * (h.cell.area / len(points)) ** 3
    assert density.sum() == pytest.approx(1, abs=1e-10)
    like, unlike = density.sum(2), density.sum(1)
    k = lattice_points(h.cell.reciprocal, 12.0)[1:]
    wave = np.exp(1j * k @ points.T)
    like, unlike = (np.einsum("ki,ij,kj->k", wave, x, wave.conj()).real for x in (like, unlike))
    expected = {"": 2 * like + 4 * unlike, "_up_up": 2 * like, "_up_down": 4 * unlike}
    modes = pair_modes(state)
    assert set(modes) == set(expected)
    for name, c in expected.items():
        assert np.ptp(c) > 0.2
        np.testing.assert_allclose(modes[name].at(k), c, atol=1e-10, err_msg=name)
    np.testing.assert_allclose(structure_factor(state, k), 1 + expected[""] / 3, atol=1e-10)


SYSTEMS = [
    ({"n_up": 3}, 6, 0),
    ({"n_up": 3, "twist": (0.2, 0.1), "gate": 0.7}, 2, 4),
    ({"n_up": 2, "n_down": 2}, 1, 5),
    ({"n_up": 4, "n_down": 1, "cell": TORUS, "twist": (0.2, 0.1)}, 3, 1),
    ({"n_up": 2, "n_down": 1, "cell": Cell("square", ((2, 1), (-1, 1))), "lam": 0.7, "phi": 0.0}, 3, 2),
]


@pytest.mark.parametrize(("system", "bands", "sector"), SYSTEMS, ids=str)
def test_the_interaction_energy_is_a_sum_over_the_structure_factor(system, bands, sector):
    """E_int = ½ u N Σ_k w_k (S(k) − 1) + ½ N u ξ: as exact as the Hamiltonian's own matrix elements."""
    h = hamiltonian(**system)
    state = exact.solve(h, bands, sector)
    k = lattice_points(h.cell.reciprocal, 60.0)[1:]  # beyond twice the largest plane wave S(k) = 1
    s = structure_factor(state, k)
    n, w = h.n_electrons, fourier_weight(np.linalg.norm(k, axis=1), h.cell, h.gate)
    madelung = ewald_tables(h.cell, h.gate, h.ewald_tolerance, n).madelung
    energy = 0.5 * n * h.u * ((w * (s - 1)).sum() + madelung)
    assert energy == pytest.approx(state.interaction, abs=1e-8)
    assert structure_factor(state, np.zeros((1, 2)))[0] == pytest.approx(n)
    np.testing.assert_allclose(s, structure_factor(state, -k), atol=1e-10)
    assert s.min() > 0


@pytest.mark.parametrize(("system", "bands", "sector"), SYSTEMS[2:4], ids=str)
def test_pair_density_matrix(system, bands, sector):
    h = hamiltonian(**system)
    state = exact.solve(h, bands, sector)
    found = exact.pair_density_matrix(state)
    up, down = h.n_up, h.n_down
    pairs = {"uu": up * (up - 1), "ud": up * down, "dd": down * (down - 1)}
    assert set(found) == {spins for spins, number in pairs.items() if number}
    for spins, g in found.items():
        assert np.einsum("pii->", g).real == pytest.approx(pairs[spins])
        np.testing.assert_allclose(g, g.conj().swapaxes(1, 2), atol=1e-12)
        assert np.linalg.eigvalsh(g).min() > -1e-12
    # Σ_b ⟨c†_a c†_b c_b c_c⟩ over all electrons but one gives back the one-body density matrix of spin up.
    n_k, m = h.cell.n_cells, bands
    blocks = {s: g.reshape(n_k, n_k, m, m, n_k, m, m) for s, g in found.items()}
    traced = sum(np.einsum("pkabkcb->kac", g) for s, g in blocks.items() if s in ("uu", "ud"))
    np.testing.assert_allclose(traced, (h.n_electrons - 1) * state.density_matrix[0], atol=1e-10)


def closed_shell_ring(state, occupied, low, high):
    """g of two spins over one ring by quadrature: n(R)n(R + r) less the exchange hole |γ(R, R + r)|² of like spins."""
    nodes, weights = np.polynomial.legendre.leggauss(12)
    radius, angle = low + (high - low) * (nodes + 1) / 2, 2 * np.pi * np.arange(40) / 40
    shifts = radius[:, None, None] * np.stack([np.cos(angle), np.sin(angle)], -1)
    here = grid(state.bands.cell, 12)
    phi = state.bands.orbitals(here).reshape(state.bands.n_orbitals, -1)
    there = state.bands.orbitals((here[:, None] + shifts.reshape(-1, 2)).reshape(-1, 2))
    there = there.reshape(state.bands.n_orbitals, len(here), -1)
    gamma = [np.einsum("ai,ais->is", phi[x].conj(), there[x]) for x in occupied]
    n_here = [(np.abs(phi[x]) ** 2).sum(0)[:, None] for x in occupied]
    n_there = [(np.abs(there[x]) ** 2).sum(0) for x in occupied]
    pairs = {
        "_up_up": n_here[0] * n_there[0] - np.abs(gamma[0]) ** 2,
        "_up_down": n_here[0] * n_there[1] + n_here[1] * n_there[0],
    }
    n = [len(x) for x in occupied]
    number = {"_up_up": n[0] * (n[0] - 1), "_up_down": 2 * n[0] * n[1]}
    ring = np.repeat(weights * radius, len(angle))
    area = state.bands.cell.area
    return {name: (p.mean(0) @ ring) / ring.sum() * area**2 / number[name] for name, p in pairs.items()}


def test_pair_correlation_of_a_determinant_of_bloch_orbitals():
    """Without interaction at a generic twist: Wick's theorem in real space, orbitals evaluated point by point."""
    h = hamiltonian(2, 1, u=0.0, twist=(0.35, 0.1), cell=TORUS)
    state = min(exact.solve_all(h, 2, cutoff=40.0), key=lambda s: s.energy)
    order = np.argsort(state.bands.energies.ravel())
    occupied = [order[:2], order[:1]]
    assert state.density_matrix[0].trace(axis1=1, axis2=2).real.sum() == pytest.approx(2)
    edges = inscribed_radius(h.cell) * np.array([0.0, 0.15, 0.4, 0.41, 1.0])
    found = pair_correlation(state, edges)
    for i, (low, high) in enumerate(pairwise(edges)):
        expected = closed_shell_ring(state, occupied, low, high)
        for name, value in expected.items():
            assert found[name][i] == pytest.approx(value, abs=1e-9), (name, i)
        assert 3 * found[""][i] == pytest.approx(expected["_up_up"] + 2 * expected["_up_down"], abs=1e-9)
    assert found["_up_up"][0] < 0.1 < 1 < found["_up_down"][0]


def test_free_gas():
    """S(k) = 1 − (occupied pairs of one spin that differ by k)/N, n(k) = 0, 1 or 2, constant density; g_up_down = 1."""
    h = hamiltonian(5, 2, lam=0.0, u=0.0, twist=(0.3, 0.1))
    state = exact.ground_state(h, 1, cutoff=40.0)
    g = lattice_points(h.cell.reciprocal, 8.0)
    order = np.argsort(((g + np.array(h.twist)) ** 2).sum(1))
    occupied = [g[order[:n]] for n in (5, 2)]
    differ = sum((np.linalg.norm((p[:, None] - p)[..., None, :] - g, axis=-1) < 1e-6).sum((0, 1)) for p in occupied)
    np.testing.assert_allclose(structure_factor(state, g[1:]), 1 - differ[1:] / 7, atol=1e-10)
    n = occupations(state, g)
    np.testing.assert_allclose(n["_up"], np.isin(np.arange(len(g)), order[:5]), atol=1e-10)
    np.testing.assert_allclose(n["_down"], np.isin(np.arange(len(g)), order[:2]), atol=1e-10)
    np.testing.assert_allclose(binned_density(state, 6), 7 / h.cell.area, atol=1e-10)
    found = pair_correlation(state, np.linspace(0, inscribed_radius(h.cell), 6))
    np.testing.assert_allclose(found["_up_down"], 1, atol=1e-10)
    assert found["_down_down"][0] < 0.1


def test_like_spins_never_meet_and_rings_add_up():
    state = exact.solve(hamiltonian(3, 1, cell=SMALL, twist=(0.1, 0.2)), 3, 0, cutoff=60.0)
    modes = pair_modes(state)
    assert np.ptp(modes["_up_up"].values) > 1
    assert modes["_up_up"].values.sum() == pytest.approx(0, abs=1e-9)  # g(0) = 0
    assert modes["_up_down"].values.sum() > 0.01
    edges = inscribed_radius(SMALL) * np.linspace(0, 1, 9)
    fine, whole = pair_correlation(state, edges), pair_correlation(state, edges[[0, -1]])
    for name, g in fine.items():
        assert (g * np.diff(edges**2)).sum() / edges[-1] ** 2 == pytest.approx(whole[name][0], abs=1e-11)


def test_density_and_density_matrix_are_means_over_squares():
    h = hamiltonian(2, 1, twist=(0.3, 0.1), cell=TORUS)
    state = exact.solve(h, 2, 0, cutoff=60.0)
    nodes, weights = np.polynomial.legendre.leggauss(10)
    t = ((np.arange(3)[:, None] + (nodes + 1) / 2) / 3).ravel()
    points = np.stack(np.meshgrid(t, t, indexing="ij"), -1) @ h.cell.vectors
    means = np.einsum("aibj,i,j->ab", exact.density(state, points).reshape(3, 10, 3, 10), weights, weights) / 4
    np.testing.assert_allclose(binned_density(state, 3), means, atol=1e-9)
    p, n = exact.momentum_distribution(state)
    s = (points - h.cell.vectors.sum(0) / 2).reshape(-1, 2)
    gamma = (np.exp(1j * s @ p.T) @ n / 3).reshape(3, 10, 3, 10)
    expected = np.einsum("aibj,i,j->ab", gamma, weights, weights) / 4
    np.testing.assert_allclose(one_body_density_matrix(state, 3), expected, atol=1e-9)
    everywhere = occupations(state, lattice_points(h.cell.reciprocal, 13.0))
    assert everywhere[""].sum() == pytest.approx(3, abs=1e-9)
    np.testing.assert_allclose(everywhere[""], everywhere["_up"] + everywhere["_down"])


@cache
def six_sectors():
    h = hamiltonian(3)
    return h, [exact.solve(h, 2, s) for s in (1, 2, 3, 4, 6, 8)]


def test_equivalent_sectors_agree_once_averaged_over_stars():
    h, states = six_sectors()
    ops = symmetries(h)
    k = lattice_points(h.cell.reciprocal, 15.0)
    s = np.array([structure_factor(x, k) for x in states])
    n = np.array([occupations(x, k)[""] for x in states])
    for values, operations in ((s, ops.structure), (n, ops.momentum)):
        assert np.ptp(values, axis=0).max() > 0.05
        star = stars(k, operations)
        assert star.min() == 0
        averaged = star_average(values, star)
        assert np.ptp(averaged, axis=0).max() < 1e-9
        # Six equal weights are a mixture that has the whole symmetry.
        np.testing.assert_allclose(values.mean(0), averaged[0][star], atol=1e-9)
    rho = np.array([binned_density(x, 18) for x in states])
    assert np.ptp(rho, axis=0).max() > 0.02
    assert np.ptp(symmetrised_map(rho, h.cell, ops), axis=0).max() < 1e-5  # detail that six bins cannot tell
    edges = np.linspace(0, inscribed_radius(h.cell), 5)
    for f in (order_parameter, lambda x: pair_correlation(x, edges)[""]):
        assert np.ptp([f(x) for x in states], axis=0).max() < 1e-9
    assert order_parameter(states[0]) == pytest.approx(structure_factor(states[0], corners()).mean() / 3)


@dataclass(frozen=True)
class Tilted:
    """The moiré potential with weak stripes of one direction, that choose a state of a doublet."""

    direction: int

    def __call__(self, r, h):
        stripes = jnp.cos(r @ jnp.asarray(h.cell.moire_reciprocal[self.direction], r.dtype))
        return MoirePotential()(r, h) + 1e-5 * stripes


def test_doublet_within_a_sector():
    """Three electrons of both spins on 2×2 cells: which state of the doublet one gets does not change star averages."""
    h = hamiltonian(2, 1, cell=Cell(supercell=((2, 0), (0, 2))))
    states = [exact.solve(replace(h, potential=Tilted(i)), 1, 0) for i in range(2)]
    assert states[0].energy == pytest.approx(states[1].energy, abs=1e-4)
    k = lattice_points(h.cell.reciprocal, 12.0)
    s = np.array([structure_factor(x, k) for x in states])
    assert np.ptp(s, axis=0).max() > 0.1
    star = stars(k, symmetries(h).structure)
    assert np.ptp(star_average(s, star), axis=0).max() < 1e-4


@pytest.mark.parametrize(
    ("system", "plain", "reversed_"),
    [
        ({}, 6, 6),
        ({"phi": 0.0}, 12, 12),
        ({"lam": 0.0}, 12, 12),
        ({"twist": (0.3, 0.1)}, 1, 0),
        ({"twist": (0.0, 0.3)}, 2, 0),  # the mirror x → −x
        ({"twist": tuple(Cell().reciprocal[0] / 2)}, 2, 2),  # equal to −θ; a mirror along it
        ({"cell": SMALL}, 2, 2),
        ({"cell": Cell("square", ((2, 0), (0, 2))), "phi": 0.0}, 8, 8),
        ({"cell": Cell("square", ((2, 1), (-1, 2))), "phi": 0.0}, 4, 4),
    ],
    ids=str,
)
def test_symmetries(system, plain, reversed_):
    found = symmetries(hamiltonian(**system))
    assert ((found.signs == 1).sum(), (found.signs == -1).sum()) == (plain, reversed_)


def test_stars_that_are_cut_are_left_out():
    cell = Cell()
    k = np.concatenate([lattice_points(cell.reciprocal, 5.0), [[9.0, 0.0]]])
    star = stars(k, symmetries(hamiltonian()).structure)
    assert star[-1] == -1
    assert star[0] == 0
    np.testing.assert_allclose(star_average((k**2).sum(1), star), np.unique((k[:-1] ** 2).sum(1).round(9)))


def test_symmetrised_map_keeps_what_is_symmetric():
    h, states = six_sectors()
    gamma = exact.solve(h, 2, 0)
    rho, ops = binned_density(gamma, 36), symmetries(h)
    np.testing.assert_allclose(symmetrised_map(rho, h.cell, ops), rho, atol=1e-5)  # finer detail is cut off
    once = symmetrised_map(binned_density(states[0], 18), h.cell, ops)
    np.testing.assert_allclose(symmetrised_map(once, h.cell, ops), once, atol=1e-12)
    assert once.mean() * h.cell.area == pytest.approx(3)
    with pytest.raises(InputError, match="multiple of 3"):
        symmetrised_map(np.zeros((10, 10)), h.cell, ops)


def test_sampled_determinant_of_both_spins():
    """Without interaction the start of the network is the exact state: S(k) and g(r) by spin, on the same axes."""
    c = config(
        replace(NETWORK, plane_wave_cutoff=100.0), n_up=2, n_down=1, cell=TORUS, twist=(0.3, 0.1), lam=(0.5, 0.5, 1)
    )
    model = model_of(c)
    h = c.family.hamiltonian(jnp.asarray([0.5]))
    expected = quantities(exact.ground_state(h, 2, cutoff=100.0), h)
    walkers = exact_walkers(model, 2000)
    found = finalised(model, "structure_factor", walkers) | finalised(model, "pair_correlation", walkers)
    assert set(found) == {k for k in expected if k.startswith(("structure", "pair"))}
    for name, q in found.items():
        wanted, here = expected[name], q.at(0)
        assert (q.units, q.text, q.dims) == (wanted.units, wanted.text, wanted.dims)
        for axis, (dim, places) in q.coordinates.items():
            assert wanted.coordinates[axis][0] == dim
            np.testing.assert_array_equal(wanted.coordinates[axis][1], places)
        seen = wanted.value > 0.2  # in the smallest rings there are a few pairs in all
        assert seen.sum() > 20
        rms = close(here._replace(value=here.value[seen], error=here.error[seen]), wanted.value[seen])
        assert 0.6 < rms < 1.5, name


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: structure_factor(s, np.array([[0.1, 0.0]])), "k = a wavevector"),
        (lambda s: order_parameter(s), "do not belong"),
        (lambda s: pair_correlation(s, np.array([0.0, 9.0])), "edges"),
        (lambda s: pair_correlation(s, np.array([0.2, 0.1])), "edges"),
        (lambda s: pair_correlation(s, np.array([0.2])), "edges"),
        (lambda s: occupations(s, np.array([[0.1, 0.0]])), "k = a wavevector"),
    ],
)
def test_impossible_input_is_refused(call, message):
    state = exact.solve(hamiltonian(2, 0, cell=SMALL), 1, 1, cutoff=20.0)
    with pytest.raises(InputError, match=message):
        call(state)


def test_one_electron_has_no_pairs():
    h = hamiltonian(1, 0, cell=TORUS)
    state = exact.solve(h, 1, 0, cutoff=40.0)
    np.testing.assert_allclose(structure_factor(state, lattice_points(TORUS.reciprocal, 9.0)), 1)
    assert order_parameter(state) == pytest.approx(1)
    assert not any(name.startswith("pair") for name in quantities(state, h))
    with pytest.raises(InputError, match="one has no pairs"):
        pair_correlation(state, np.array([0.0, 0.1]))

"""Momentum distribution, susceptibility, overlaps and router against states whose answer is known."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qernel import exact
from qernel.analytic import one_electron_energy
from qernel.bands import solve_bands
from qernel.cell import Cell, lattice_points
from qernel.observables import known
from qernel.observables.interface import Sweep
from qernel.observables.router import gates
from qernel.observables.susceptibility import STEP, point_tangent, tangent_change
from qernel.presets import EXACT
from qernel.units import Material
from qernel.wavefunction import log_psi
from states import FREE, NETWORK, TORUS, close, config, exact_walkers, finalised, ideal, model_of

ONE = config(
    replace(NETWORK, plane_wave_cutoff=200.0),
    n_up=1,
    cell=Cell(supercell=((1, 0), (0, 1))),
    lam=(0.3, 0.7, 2),
    twist=(0.7, 0.4),
)
"""one electron in the potential, at two depths"""


@pytest.fixture(scope="module")
def one_electron():
    model = model_of(ONE)
    return replace(model, trained_walkers=exact_walkers(model, 6000))


def amplitudes(lam):
    """Plane-wave coefficients of the lowest orbital at λ, and its wavevectors G."""
    h = ONE.family.hamiltonian(jnp.asarray([lam]))
    bands = solve_bands(h, 1, 200.0)
    c, p = bands.coefficients[0, 0], bands.wavevectors[0]
    used = c != 0
    return c[used], p[used] - np.array(ONE.family.twist)


def at_wavevectors(found, g, n):
    """Values n at wavevectors g, in the order of `found`; 0 elsewhere."""
    distance = np.linalg.norm(found[:, None] - g[None], axis=-1)
    nearest = distance.argmin(1)
    return np.where(distance.min(1) < 1e-6, n[nearest], 0.0)


def wavevectors(q):
    return np.stack([q.coordinates["G_x"][1], q.coordinates["G_y"][1]], 1)


def test_momentum_distribution_of_the_free_gas_and_sign_of_the_twist():
    """ψ(r + T) = exp(iθ·T) ψ(r): each spin occupies the lowest |B + θ|, where −θ would occupy others."""
    twist = np.array([1.5, 0.7])
    c = config(n_up=2, n_down=1, cell=TORUS, twist=tuple(twist))
    model = model_of(c)
    found = finalised(model, "momentum_distribution", exact_walkers(model, 2000))
    g = wavevectors(found["momentum_distribution"])

    def lowest(n, sign=1):
        energy = ((g + sign * twist) ** 2).sum(1)
        return (energy <= np.sort(energy)[n - 1]).astype(float)

    assert (lowest(2) != lowest(2, -1)).any()
    assert 0.7 < close(found["momentum_distribution"].at(0), lowest(2) + lowest(1)) < 1.3
    close(found["momentum_distribution_up"].at(0), lowest(2))
    close(found["momentum_distribution_down"].at(0), lowest(1))
    assert found["momentum_distribution"].error.max() < 0.06


def test_one_electron_in_the_potential(one_electron):
    """n(G + θ) = |c_G|² and γ(s) = Σ_G |c_G|² exp(i(G + θ)·s)."""
    found = finalised(one_electron, "momentum_distribution")
    for i, lam in enumerate((0.3, 0.7)):
        c, g = amplitudes(lam)
        n = np.abs(c) ** 2
        q = found["momentum_distribution"].at(i)
        assert 0.6 < close(q, at_wavevectors(wavevectors(q), g, n)) < 1.4
        assert q.value.sum() < 1 + 5 * np.sqrt((q.error**2).sum())
        k = (g + np.array(ONE.family.twist)) @ ONE.family.cell.vectors.T  # phase along the whole of T1, T2
        s = found["density_matrix_re"].coordinates["s1"][1]
        square = np.prod(np.sinc(k / (2 * np.pi * len(s))), axis=1)  # mean of a plane wave over a square
        wave = [np.exp(1j * np.outer(s, k[:, d])) for d in range(2)]
        expected = np.einsum("g,ag,bg->ab", n * square, *wave)
        assert abs(expected.imag).max() > 0.05
        assert 0.6 < close(found["density_matrix_re"].at(i), expected.real) < 1.4
        assert 0.6 < close(found["density_matrix_im"].at(i), expected.imag) < 1.4


def test_three_electrons_against_exact_diagonalisation():
    """Without interaction the start is the exact state: n(k) from the density matrix of exact diagonalisation."""
    c = config(replace(NETWORK, plane_wave_cutoff=100.0), n_up=3, cell=TORUS, twist=(0.3, 0.1), lam=(0.5, 0.5, 1))
    model = model_of(c)
    state = exact.ground_state(c.family.hamiltonian(jnp.asarray([0.5])), bands=2, cutoff=100.0)
    p, n = exact.momentum_distribution(state)
    walkers = exact_walkers(model, 3000)
    q = finalised(model, "momentum_distribution", walkers)["momentum_distribution"].at(0)
    expected = at_wavevectors(wavevectors(q) + np.array(c.family.twist), p, n)
    assert 2.5 < expected.sum() <= 3
    assert 0.7 < close(q, expected) < 1.3
    density = finalised(model, "density", walkers, bins=6)["density"].at(0)
    fine = np.stack(np.meshgrid(*2 * [(np.arange(30) + 0.5) / 30], indexing="ij"), -1) @ c.family.cell.vectors
    rho = exact.density(state, fine).reshape(6, 5, 6, 5).mean((1, 3))
    assert 0.6 < close(density, rho) < 1.4
    p_k = finalised(model, "momentum_probability", walkers[:, :200])["momentum_probability"].at(0)
    np.testing.assert_allclose(p_k.value, np.arange(3) == state.sector, atol=1e-9)


def test_susceptibility_of_one_electron(one_electron):
    """1 − |⟨φ(λ − δ)|φ(λ + δ)⟩|² = χ (2δ)², from the plane-wave coefficients."""
    q = finalised(one_electron, "susceptibility")["susceptibility"]
    d = 0.01
    expected = []
    for lam in (0.3, 0.7):
        (low, _), (high, _) = amplitudes(lam - d), amplitudes(lam + d)
        expected.append((1 - abs(np.vdot(low, high)) ** 2) / (2 * d) ** 2)
    assert min(expected) > 0.01
    close(q, np.array(expected))
    assert (q.error / q.value < 0.1).all()


def test_no_susceptibility_without_a_potential():
    c = config(n_up=2, cell=TORUS, twist=(0.3, 0.1), material=Material(epsilon=float("inf"), v0_mev=0.0))
    model = model_of(c)
    q = finalised(model, "susceptibility", ideal(c, 50))["susceptibility"]
    np.testing.assert_allclose(q.value, 0, atol=1e-12)


def test_derivative_of_log_psi_through_conditioning_and_tables():
    """O against a finite difference of log ψ itself, for random weights."""
    network = replace(NETWORK, film_width=4, determinants=2)
    c = config(network, n_up=2, cell=TORUS, lam=(0.5, 1.5, 2), twist=(0.3, 0.1), material=Material())
    model = model_of(c)
    leaves, tree = jax.tree.flatten(eqx.filter(model.wavefunction, eqx.is_inexact_array))
    keys = jax.random.split(jax.random.key(5), len(leaves))
    moved = [x + 0.3 * jax.random.normal(k, x.shape, x.dtype) for x, k in zip(leaves, keys, strict=True)]
    wave = eqx.combine(jax.tree.unflatten(tree, moved), model.wavefunction)
    r = jnp.concatenate([ideal(c, 8), ideal(c, 8, seed=2)])
    observable = known(c.family)["susceptibility"]
    sweep = Sweep(c, wave, r, jnp.asarray(model.trained), model.points(model.trained), jax.random.key(0), 8, 8)
    tables = observable.tables(wave.start, model.trained)
    found = observable.evaluate(sweep, tables)["o"]
    low, high = (log_psi(wave, r, model.points(model.trained + s)) for s in (-1e-4, 1e-4))
    expected = (high - low) / 2e-4
    assert np.abs(expected).max() > 0.1
    phase = np.exp(1j * 2e-4 * np.asarray(found - expected).imag)  # of log ψ modulo 2πi
    np.testing.assert_allclose(phase, 1, atol=1e-6)
    np.testing.assert_allclose(found.real, expected.real, rtol=1e-4, atol=1e-5)


def test_step_of_the_tables():
    """The error of a central difference falls as the square of the step, and is small at the step used."""
    start = model_of(ONE).wavefunction.start
    change = tangent_change(start, np.array([[0.3], [0.7]]), STEP)
    assert change.max() < 1e-4
    coarse = tangent_change(start, np.array([[0.3], [0.7]]), 32 * STEP)
    np.testing.assert_allclose(coarse / change, 32**2, rtol=0.3)
    # λ is mapped from its range of length 0.4 to [−1, 1].
    np.testing.assert_allclose(point_tangent(start, np.array([[0.3]]), STEP).c, 5.0)


def test_overlap_and_reweighting_of_one_electron(one_electron):
    found = finalised(one_electron, "overlap")
    (a, ga), (b, gb) = amplitudes(0.3), amplitudes(0.7)
    np.testing.assert_allclose(ga, gb)
    fidelity = abs(np.vdot(a, b)) ** 2
    assert fidelity < 0.99
    overlap = found["overlap"]
    close(overlap._replace(value=overlap.value[:1], error=overlap.error[:1]), fidelity)
    assert np.isnan(overlap.value[1])
    ess = found["reweighting_ess"]
    assert np.isnan(ess.value[0, 0])
    assert np.isnan(ess.value[1, 1])
    assert 0.2 < ess.value[0, 1] < 1
    energy = [one_electron_energy(ONE.family.hamiltonian(jnp.asarray([x])), 200.0) for x in (0.29, 0.31, 0.69, 0.71)]
    slope = found["reweighted_dE_dlam"]
    for c, n, expected in ((0, 1, (energy[3] - energy[2]) / 0.02), (1, 0, (energy[1] - energy[0]) / 0.02)):
        assert abs(slope.value[c, n] - expected) < 5 * slope.error[c, n]
        assert slope.error[c, n] < 0.1 * abs(expected)
    np.testing.assert_allclose(found["reweighted_interaction"].value[0, 1], 0, atol=1e-9)


def test_overlap_of_a_state_with_itself(one_electron):
    found = finalised(one_electron, "overlap", couplings=np.array([[0.3], [0.3]]))
    np.testing.assert_allclose(found["overlap"].value[0], 1)
    np.testing.assert_allclose(found["reweighting_ess"].value[0, 1], 1)


def test_router_load_and_entropy():
    c = config(
        replace(EXACT, heads=0, layers=2, experts=4, top_k=4), n_up=2, cell=TORUS, lam=(0.5, 1.5, 2), material=FREE
    )
    model = model_of(c)
    walkers = jnp.concatenate([ideal(c, 40), ideal(c, 40, seed=2)])
    found = finalised(model, "router", walkers)
    point = jax.tree.map(lambda x: x[1], model.points(model.trained))
    g = np.asarray(gates(model.wavefunction, walkers[1], point))
    assert g.shape == (40, 2, 2, 4)
    mean = g.mean((0, 2))
    np.testing.assert_allclose(found["router_load"].value[1], mean / mean.sum(-1, keepdims=True))
    np.testing.assert_allclose(found["router_open"].value[1], (g > 0).mean((0, 2)))
    np.testing.assert_allclose(found["router_load"].value.sum(-1), 1)
    assert (found["router_entropy"].value <= np.log(4) + 1e-12).all()
    assert (found["router_entropy_electron"].value <= found["router_entropy"].value + 1e-12).all()
    # All electrons to expert 2: no entropy.
    router = model.wavefunction.blocks.experts.router
    closed = eqx.tree_at(
        lambda m: (m.blocks.experts.router.weight, m.blocks.experts.router.bias),
        model.wavefunction,
        (0 * router.weight, jnp.full_like(router.bias, -1.0).at[:, 2].set(1.0)),
    )
    found = finalised(replace(model, wavefunction=closed), "router", walkers)
    np.testing.assert_allclose(found["router_load"].value, np.broadcast_to(np.arange(4) == 2, (2, 2, 4)), atol=1e-12)
    np.testing.assert_allclose(found["router_entropy"].value, 0, atol=1e-12)


def test_what_does_not_exist_says_why():
    model = model_of(ONE)
    observables, start = known(ONE.family), model.wavefunction.start
    assert "no routed experts" in observables["router"].missing(start, model.trained)
    assert "no pairs" in observables["pair_correlation"].missing(start, model.trained)
    assert "no neighbour" in observables["overlap"].missing(start, model.trained[:1])
    assert "do not belong" in observables["order_parameter"].missing(start, model.trained)
    assert len(lattice_points(ONE.family.cell.reciprocal, 1.0)) == 1

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qernel.cell import Cell
from qernel.family import Family
from qernel.hamiltonian import (
    EnergyTerms,
    Hamiltonian,
    MoirePotential,
    Potential,
    fourier_components,
    interaction_energy,
    moire_energy,
)
from qernel.types import Electrons, PerElectron
from qernel.units import Material

M = Material()


def hamiltonian(cell=None, phi=M.phi, lam=1.0, u=M.u, potential=None, n=3):
    potential = potential or MoirePotential()
    return Hamiltonian(lam, M.v0, phi, u, jnp.zeros(2), cell or Cell(), n_up=n, potential=potential)


@dataclass(frozen=True)
class TwoHarmonics:
    """A user's potential: the moiré one plus a second shell, W = W₁ + s v0 Σ_j cos 2 g_j·r."""

    second: float = 0.3

    def __call__(self, r: Electrons, h: Hamiltonian) -> PerElectron:
        g = jnp.asarray(h.cell.potential_wavevectors.T, r.dtype)
        second = self.second * jnp.asarray(h.v0, r.dtype) * jnp.cos(2 * r @ g).sum(-1)
        return MoirePotential()(r, h) + second


@pytest.mark.parametrize("cell", [Cell(), Cell("square", ((2, 0), (0, 2)))])
def test_potential_has_the_moire_period(cell):
    h = hamiltonian(cell)
    r = np.random.default_rng(0).normal(size=(20, 2))
    w = h.potential(jnp.asarray(r), h)
    for shift in cell.moire_vectors:
        np.testing.assert_allclose(h.potential(jnp.asarray(r + shift), h), w, atol=1e-10)
    # And no smaller one.
    assert np.abs(h.potential(jnp.asarray(r + cell.moire_vectors[0] / 2), h) - w).max() > M.v0


def test_potential_at_high_symmetry_points():
    """The three C3 points of the cell have g_j·r = 0, 2π/3, 4π/3, the same for all j: W = −6 v0 cos(φ + that)."""
    cell = Cell()
    points = np.array([[0, 0], [1 / 3, 1 / 3], [2 / 3, 2 / 3]]) @ cell.moire_vectors
    for phi in np.radians([0.0, 45.0, 60.0]):
        h = hamiltonian(phi=phi)
        w = np.asarray(h.potential(jnp.asarray(points), h))
        phase = points @ cell.potential_wavevectors[0]
        np.testing.assert_allclose(w, -6 * M.v0 * np.cos(phase + phi), atol=1e-10)
    # At φ = 60° two of them are equally deep: the honeycomb lattice of minima.
    low = np.sort(w)
    assert low[1] - low[0] < 1e-10
    assert low[2] - low[1] > M.v0


@pytest.mark.parametrize("potential", [MoirePotential(), TwoHarmonics()])
@pytest.mark.parametrize("cell", [Cell(), Cell("square", ((1, 1), (1, -1)))])
def test_fourier_components_reproduce_the_potential(potential, cell):
    h = hamiltonian(cell, potential=potential)
    n, c = fourier_components(h)
    r = np.random.default_rng(1).normal(size=(30, 2))
    series = np.exp(1j * r @ (n @ cell.moire_reciprocal).T) @ c
    np.testing.assert_allclose(series, h.potential(jnp.asarray(r), h), atol=1e-9)
    # One entry for each ±g of each shell, and a real potential: W_{−n} = W_n*.
    shells = 2 if isinstance(potential, TwoHarmonics) else 1
    assert len(n) == 2 * shells * len(cell.potential_wavevectors)
    table = {tuple(k): v for k, v in zip(n.tolist(), c, strict=True)}
    assert all(abs(table[-a, -b] - v.conjugate()) < 1e-10 for (a, b), v in table.items())


def test_fourier_components_refuse_a_series_that_was_cut():
    @dataclass(frozen=True)
    class Sharp:
        def __call__(self, r: Electrons, h: Hamiltonian) -> PerElectron:
            return jnp.exp(40 * jnp.cos(r @ jnp.asarray(h.cell.potential_wavevectors[0], r.dtype)))

    with pytest.raises(ValueError, match="max_index"):
        fourier_components(hamiltonian(potential=Sharp()))


def test_user_potential_through_the_family():
    """About 20 lines of a user's file are enough: the class above."""
    potential = TwoHarmonics(0.5)
    assert isinstance(potential, Potential)
    family = Family(n_up=2, potential=potential)
    h = family.hamiltonian(jnp.asarray(family.vector(lam=0.7)))
    r = jnp.asarray(np.random.default_rng(2).normal(size=(4, 2, 2)))
    g = Cell().potential_wavevectors
    phase = np.asarray(r) @ g.T
    expected = 0.7 * M.v0 * (-2 * np.cos(phase + M.phi) + 0.5 * np.cos(2 * phase)).sum((-1, -2))
    np.testing.assert_allclose(moire_energy(r, h), expected, atol=1e-9)


def test_moire_energy_is_linear_in_lambda_and_interaction_in_u():
    r = jnp.asarray(np.random.default_rng(3).normal(size=(6, 3, 2)))
    h = hamiltonian(lam=0.8)
    double = replace(h, lam=1.6, u=2 * M.u)
    np.testing.assert_allclose(moire_energy(r, double), 2 * moire_energy(r, h), rtol=1e-12)
    np.testing.assert_allclose(interaction_energy(r, double), 2 * interaction_energy(r, h), rtol=1e-12)
    np.testing.assert_allclose(interaction_energy(r, replace(h, u=0.0)), 0.0)
    alone = sum(h.lam * h.potential(r[:, i : i + 1], h)[:, 0] for i in range(3))
    np.testing.assert_allclose(moire_energy(r, h), alone, rtol=1e-12)


def test_terms_add_up():
    terms = EnergyTerms(jnp.asarray([1.0 + 2.0j]), jnp.asarray([3.0]), jnp.asarray([5.0]))
    assert complex(terms.total[0]) == 9 + 2j


def test_hamiltonian_is_a_pytree_whose_couplings_are_data():
    h = hamiltonian()
    leaves = jax.tree.leaves(h)
    assert len(leaves) == 5
    moved = jax.tree.map(lambda x: 2 * x, h)
    assert (moved.lam, moved.cell, moved.n_up) == (2.0, h.cell, 3)
    r = jnp.asarray(np.random.default_rng(4).normal(size=(3, 2)))
    slope = jax.grad(lambda lam: moire_energy(r, replace(h, lam=lam)).sum())(1.0)
    assert float(slope) == pytest.approx(float(h.potential(r, h).sum()))

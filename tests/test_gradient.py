"""The energy gradient of a complex, current-carrying state against finite differences of an exact integral."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qernel.gradient import clip_per_coupling, energy_gradient, residuals
from qernel.scores import score_rows
from qernel.start import Point
from qernel.wavefunction import Wavefunction

BASE = (0.4, 0.7)
COUPLINGS = np.array([0.5, 1.6])
WALKERS = 600


class Ring(Wavefunction):
    """One particle on a ring, ψ = exp(c a cos x + i b sin x): a is a parameter of the modulus, b of the phase."""

    a: jax.Array
    b: jax.Array

    def __init__(self, a, b):
        self.embed = self.lift = self.blocks = self.head = self.pair = self.factor = None
        self.weights = self.weights_response = self.mixing = self.start = None
        self.a, self.b = jnp.asarray(a, "float64"), jnp.asarray(b, "float64")

    def __call__(self, electrons, point):
        x = electrons[..., 0, 0]
        return jax.lax.complex(point.c[..., 0] * self.a * jnp.cos(x), self.b * jnp.sin(x))


def potential(x, c):
    return 1.3 * c * np.cos(x) + 0.7 * np.cos(2 * x + 0.4)


def points(couplings):
    none = jnp.zeros((len(couplings), 1, 1))
    c = jnp.asarray(couplings)
    return Point(c[:, None], jnp.zeros(len(c)), jnp.zeros((len(c), 2)), none, none)


def walkers(a, couplings):
    """Quantiles of |ψ|² = exp(2 c a cos x): a plain mean over them is the integral, to better than 1e-6."""
    fine = np.linspace(-np.pi, np.pi, 40001)
    out = []
    for c in couplings:
        density = np.exp(2 * c * a * np.cos(fine))
        cumulative = np.concatenate([[0], np.cumsum(0.5 * (density[1:] + density[:-1]))])
        out.append(np.interp((np.arange(WALKERS) + 0.5) / WALKERS, cumulative / cumulative[-1], fine))
    x = np.stack(out)
    return jnp.asarray(np.stack([x, 0 * x], -1)[:, :, None])


def local_energy(a, b, x, c):
    first = -c * a * np.sin(x) + 1j * b * np.cos(x)
    second = -c * a * np.cos(x) - 1j * b * np.sin(x)
    return -0.5 * (second + first**2) + potential(x, c)


def exact_energy(a, b, couplings):
    """Mean over the couplings of ⟨½|ψ'|² + V|ψ|²⟩/⟨|ψ|²⟩ by quadrature."""
    x = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    energies = []
    for c in couplings:
        density = np.exp(2 * c * a * np.cos(x))
        h = 0.5 * ((c * a * np.sin(x)) ** 2 + (b * np.cos(x)) ** 2) + potential(x, c)
        energies.append((density * h).sum() / density.sum())
    return np.mean(energies)


def finite_difference(a, b, couplings, h=1e-4):
    da = exact_energy(a + h, b, couplings) - exact_energy(a - h, b, couplings)
    db = exact_energy(a, b + h, couplings) - exact_energy(a, b - h, couplings)
    return np.array([da, db]) / (2 * h)


def by_rows(a, b, couplings, chunk=None, order=None):
    """2 XᵀΔ for (a, b)."""
    couplings = np.asarray(couplings)[slice(None) if order is None else order]
    r = walkers(a, couplings)
    energy = jnp.asarray(local_energy(a, b, np.asarray(r[..., 0, 0]), couplings[:, None]))
    rows = score_rows(Ring(a, b), r, points(couplings), chunk)
    gradient = 2 * rows.T @ residuals(energy).reshape(-1)
    # Rows run over (coupling, walker, modulus or phase), as the residuals do.
    return np.asarray(gradient), rows.reshape(len(couplings), WALKERS, 2, 2), r, energy


@pytest.mark.parametrize(("a", "b"), [BASE, (0.4, -0.7), (-0.3, 1.1)])
def test_gradient_equals_the_finite_difference_of_the_energy(a, b):
    gradient, _, r, energy = by_rows(a, b, COUPLINGS)
    expected = finite_difference(a, b, COUPLINGS)
    assert np.abs(expected).min() > 0.05
    np.testing.assert_allclose(gradient, expected, rtol=1e-3)
    # The sample is what it claims to be.
    assert float(energy.real.mean()) == pytest.approx(exact_energy(a, b, COUPLINGS), rel=1e-4)
    assert float(jnp.abs(energy.imag.mean(1)).max()) < 1e-4
    # A first-order optimiser gets the same.
    tree = energy_gradient(Ring(a, b), r, points(COUPLINGS), energy)
    np.testing.assert_allclose([tree.a, tree.b], gradient, rtol=1e-10)


def test_both_halves_of_the_rows_are_needed():
    """Force on the modulus from Re E_L, on the phase from Im E_L; one alone gives another number."""
    _, rows, _, energy = by_rows(*BASE, COUPLINGS)
    delta = residuals(energy)
    expected = finite_difference(*BASE, COUPLINGS)
    modulus = 2 * np.einsum("cwp,cw->p", rows[:, :, 0], delta[:, :, 0])
    phase = 2 * np.einsum("cwp,cw->p", rows[:, :, 1], delta[:, :, 1])
    np.testing.assert_allclose(modulus, [expected[0], 0.0], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(phase, [0.0, expected[1]], rtol=1e-3, atol=1e-6)


def test_current_reversal_flips_the_force_on_the_phase_alone():
    forward, backward = by_rows(0.4, 0.7, COUPLINGS)[0], by_rows(0.4, -0.7, COUPLINGS)[0]
    np.testing.assert_allclose(backward, [forward[0], -forward[1]], rtol=1e-9)


def test_mean_is_taken_for_each_coupling():
    """With one mean for all couplings the gradient is another one, and wrong."""
    _, rows, _, energy = by_rows(*BASE, COUPLINGS)
    np.testing.assert_allclose(rows.mean(axis=1), 0.0, atol=1e-12)
    np.testing.assert_allclose(residuals(energy).mean(axis=1), 0.0, atol=1e-12)
    x = np.asarray(walkers(BASE[0], COUPLINGS)[..., 0, 0])
    score = COUPLINGS[:, None] * np.cos(x)
    shared = 2 * ((energy.real - energy.real.mean()) * score).mean()
    assert abs(shared - finite_difference(*BASE, COUPLINGS)[0]) > 0.05


def test_rows_are_the_derivatives_of_log_psi():
    _, rows, r, _ = by_rows(*BASE, COUPLINGS)
    x = np.asarray(r[..., 0, 0])
    modulus, phase = COUPLINGS[:, None] * np.cos(x), np.sin(x)
    scale = 1 / np.sqrt(2 * WALKERS)
    np.testing.assert_allclose(rows[:, :, 0, 0], scale * (modulus - modulus.mean(1, keepdims=True)), atol=1e-12)
    np.testing.assert_allclose(rows[:, :, 1, 1], scale * (phase - phase.mean(1, keepdims=True)), atol=1e-12)
    np.testing.assert_allclose(rows[:, :, 0, 1], 0.0, atol=1e-12)
    np.testing.assert_allclose(rows[:, :, 1, 0], 0.0, atol=1e-12)


@pytest.mark.parametrize("chunk", [7, 600, 1200])
def test_chunks_do_not_matter(chunk):
    whole, chunked = by_rows(*BASE, COUPLINGS)[1], by_rows(*BASE, COUPLINGS, chunk)[1]
    np.testing.assert_allclose(chunked, whole, rtol=1e-12, atol=1e-14)


def test_order_of_the_couplings_does_not_matter():
    order = np.array([1, 0])
    straight, turned = by_rows(*BASE, COUPLINGS), by_rows(*BASE, COUPLINGS, order=order)
    np.testing.assert_allclose(turned[0], straight[0], rtol=1e-12)
    np.testing.assert_allclose(turned[1], straight[1][order], rtol=1e-12, atol=1e-15)


def test_clipping_is_per_coupling_and_keeps_what_is_near():
    rng = np.random.default_rng(0)
    energy = rng.normal(size=(2, 200)) + 1j * rng.normal(size=(2, 200)) + np.array([[0.0], [1000.0]])
    spoiled = energy.copy()
    spoiled[0, 3] = 1e6 - 1e6j
    clipped = np.asarray(clip_per_coupling(jnp.asarray(spoiled), 5.0))
    np.testing.assert_array_equal(clipped[1], energy[1])
    others = np.arange(200) != 3
    np.testing.assert_array_equal(clipped[0, others], energy[0, others])
    # One outlier moves the mean absolute deviation by |x|/200: bound by 5/200 of it.
    assert abs(clipped[0, 3].real) < 0.026 * 1e6
    assert clipped[0, 3].imag < 0
    wide = np.asarray(clip_per_coupling(jnp.asarray(spoiled), 1e9))
    np.testing.assert_array_equal(wide, spoiled)


def test_filter_keeps_the_toy_honest():
    """The toy has exactly its two parameters."""
    assert len(jax.tree.leaves(eqx.filter(Ring(*BASE), eqx.is_inexact_array))) == 2

"""Weights of simple trial states: closed forms, quadrature over all places of two electrons, exact samples."""

import dataclasses
import itertools
from dataclasses import replace
from functools import cache

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qernel import trials
from qernel.bands import solve_bands
from qernel.cell import Cell, lattice_points
from qernel.observables import known
from qernel.presets import preset
from qernel.slater import draw, log_amplitudes, make_tables
from qernel.start import make_start
from qernel.units import Material
from qernel.wavefunction import log_psi
from states import FREE, NETWORK, TORUS, close, config, exact_walkers, finalised, ideal, model_of

TWIST = (0.3, 0.1)
PAIR = {"n_up": 2, "cell": TORUS, "lam": (0.3, 1.2, 2), "twist": TWIST}
FINE = replace(NETWORK, plane_wave_cutoff=120.0)


def hamiltonian(lam=0.5, **family):
    return config(lam=(lam, lam, 1), **family).family.hamiltonian(jnp.asarray([lam]))


def test_the_free_gas_is_its_own_determinant():
    model = model_of(preset("free-n7"))
    found = finalised(model, "trial_plane_waves", ideal(model.config, 50))
    for q in found.values():
        np.testing.assert_allclose(q.value, 1, atol=1e-8)
        np.testing.assert_allclose(q.error, 0, atol=1e-8)


def test_a_superposition_and_an_orthogonal_state():
    """w_0 |lowest⟩ + w_1 |another occupation⟩: the weight is |w_0|²/(|w_0|² + |w_1|²)."""
    c = config(replace(NETWORK, determinants=2), n_up=2, twist=TWIST, cell=TORUS)
    model = model_of(c)
    for weights, expected in (([[1.0, 0.3], [0.0, 0.4]], 0.8), ([[0.0, 1.0], [0.0, 0.0]], 0.0)):
        wave = eqx.tree_at(lambda m: m.weights, model.wavefunction, jnp.asarray(weights))
        here = replace(model, wavefunction=wave)
        q = finalised(here, "trial_plane_waves", exact_walkers(here, 4000))["trial_plane_waves"]
        close(q, expected)
        assert q.error[0] < 0.03


def test_open_shells_that_differ_between_couplings():
    """Two of seven plane waves without twist, one determinant with it; the start is one of them at both."""
    c = config(n_up=2, cell=TORUS, twist_1=(0.0, 0.3, 2))
    model = model_of(c)
    observable = finalised(model, "trial_plane_waves", exact_walkers(model, 4000))
    sizes = [len(trials.plane_waves(c.family.hamiltonian(jnp.asarray(x))).columns) for x in model.trained]
    assert sizes == [6, 1]
    q = observable["trial_plane_waves"]
    close(q, 1.0)
    assert 0 < q.error[0] < 0.1
    assert q.error[1] < 1e-8


@pytest.mark.parametrize(("n_up", "n_down"), [(3, 0), (2, 1)])
def test_bloch_orbitals_against_plane_waves(n_up, n_down):
    """|det ⟨k|φ⟩|² for each spin, from the plane-wave coefficients of the orbitals."""
    c = config(FINE, n_up=n_up, n_down=n_down, cell=TORUS, twist=TWIST, lam=(0.5, 0.5, 1))
    model = model_of(c)
    bands = solve_bands(c.family.hamiltonian(jnp.asarray([0.5])), 4)
    waves = bands.wavevectors[np.any(bands.coefficients != 0, axis=1)]
    lowest = waves[np.argsort((waves**2).sum(1))[:n_up]]
    expected = 1.0
    for n in (n_up, n_down):
        overlaps = np.zeros((n, n), complex)
        for i, orbital in enumerate(np.argsort(bands.energies.ravel())[:n]):
            k, b = divmod(orbital, bands.n_bands)
            for j, p in enumerate(lowest[:n]):
                at = np.linalg.norm(bands.wavevectors[k] - p, axis=-1) < 1e-6
                overlaps[i, j] = bands.coefficients[k, b][at & (bands.coefficients[k, b] != 0)].sum()
        expected *= abs(np.linalg.det(overlaps)) ** 2
    assert 0.2 < expected < 0.95
    walkers = exact_walkers(model, 3000)
    q = finalised(model, "trial_plane_waves", walkers)["trial_plane_waves"]
    close(q, expected)
    assert q.error[0] < 0.05
    same = finalised(model, "trial_bloch", walkers)["trial_bloch"]
    np.testing.assert_allclose(same.value, 1, atol=3e-3)


@cache
def pair(interacting):
    """Two electrons at two depths, with or without a pair factor, and exact walkers."""
    model = model_of(config(FINE, **PAIR, material=Material() if interacting else FREE))
    return replace(model, trained_walkers=exact_walkers(model, 2500))


def grid(size=16):
    fraction = np.stack(np.meshgrid(*2 * [(np.arange(size) + 0.5) / size], indexing="ij"), -1)
    return (fraction @ TORUS.vectors).reshape(-1, 2)


def trial_orbitals(kind, h):
    """Orbitals on the grid [orbitals, points] and pairs of them, from what they are in real space."""
    r, twist = grid(), np.array(TWIST)
    if kind == "plane_waves":
        b = lattice_points(TORUS.reciprocal, 20.0)
        lowest = b[np.argsort(((b + twist) ** 2).sum(1))[:2]]
        return np.exp(1j * (lowest + twist) @ r.T), [(0, 1)]
    if kind == "bloch":
        bands = solve_bands(h, 3)
        return bands.orbitals(r).reshape(9, -1)[np.argsort(bands.energies.ravel())[:2]], [(0, 1)]
    # −2 v0 Σ_j cos(g_j·r + φ) has its minimum at 0 for |φ| < 60°, and there ∇∇ = 2 v0 cos φ Σ_j g_j g_j, Σ = 8π² 1.
    width = np.sqrt(16 * np.pi**2 * float(h.lam * h.v0) * np.cos(float(h.phi)))
    images = lattice_points(TORUS.vectors, 6.0)
    x = r[:, None] - images - TORUS.translations[:, None, None]
    orbitals = (np.exp(1j * images @ twist) * np.exp(-0.5 * width * (x**2).sum(-1))).sum(-1)
    return orbitals, list(itertools.combinations(range(3), 2))


def exact_weight(model, coupling, kind):
    """P and (∫√ρ|ψ|)²/⟨ψ|ψ⟩ by quadrature over the places of both electrons."""
    h = model.config.family.hamiltonian(jnp.asarray(model.trained[coupling]))
    r = grid()
    places = jnp.asarray(np.stack(np.broadcast_arrays(r[:, None], r[None]), -2).reshape(1, -1, 2, 2))
    point = model.points(model.trained[coupling : coupling + 1])
    psi = np.nan_to_num(np.exp(np.asarray(jax.jit(log_psi)(model.wavefunction, places, point)))[0])
    f, pairs = trial_orbitals(kind, h)
    phi = np.array([np.outer(f[a], f[b]) - np.outer(f[b], f[a]) for a, b in pairs]).reshape(len(pairs), -1)
    phi /= np.linalg.norm(phi, axis=1)[:, None]
    psi /= np.linalg.norm(psi)
    b = phi.conj() @ psi
    p = (b.conj() @ np.linalg.solve(phi.conj() @ phi.T, b)).real
    return p, (np.sqrt((np.abs(phi) ** 2).mean(0)) @ np.abs(psi)) ** 2


@pytest.mark.parametrize(
    ("kind", "interacting"), [("gaussians", False), ("plane_waves", True), ("bloch", True), ("gaussians", True)]
)
def test_two_electrons_by_quadrature(kind, interacting):
    model = pair(interacting)
    found = finalised(model, f"trial_{kind}")
    expected = np.array([exact_weight(model, i, kind) for i in range(2)])
    assert (expected[:, 0] < 0.99).all()
    assert 0.003 < found[f"trial_{kind}"].error.max() < 0.05
    for q, exact in zip(found.values(), expected.T, strict=True):
        close(q, exact, floor=1e-3)


@pytest.mark.parametrize(("n_up", "n_down"), [(4, 0), (3, 1)])
def test_samples_are_exact(n_up, n_down):
    """Σ_i exp(iG·r_i) and its square, of independent samples of a determinant of orbitals that overlap.

    With F_G = ⟨φ_k|exp(iG·r)|φ_l⟩ in orthogonal orbitals, mean tr F and mean square |tr F|² + N − tr F F†.
    """
    h = hamiltonian(0.1, n_up=n_up, n_down=n_down, cell=Cell(supercell=((2, 0), (1, 3))), twist=TWIST)
    minimum, omega = trials.well(h)
    sets = trials.gaussians(h)
    one = dataclasses.replace(sets, columns=sets.columns[:1])
    t = make_tables([one], np.array([TWIST]), n_up)
    t = jax.tree.map(lambda x: x[0], t)
    n = n_up + n_down
    uniform = jax.random.uniform(jax.random.key(0), (20_000, 2 * n + 1, 2))
    r = np.asarray(jax.jit(jax.vmap(lambda u: draw(t, u, n_up, h.cell)))(uniform))
    g = lattice_points(h.cell.reciprocal, 6.0)[1:]
    found = np.exp(1j * r @ g.T).sum(1)
    fine = np.stack(np.meshgrid(*2 * [np.arange(60) / 60], indexing="ij"), -1).reshape(-1, 2) @ h.cell.vectors
    images = lattice_points(h.cell.vectors, 9.0)
    at = fine - minimum - h.cell.translations[np.unique(sets.columns)[one.columns[0]]][:, None]
    x = at[:, :, None] - images
    values = np.exp(1j * images @ TWIST) * np.exp(-0.5 * np.einsum("ktai,ij,ktaj->kta", x, omega, x))
    spins = [s for s in (values.sum(-1)[:n_up], values.sum(-1)[n_up:]) if len(s)]
    spins = [np.linalg.qr(s.T)[0] for s in spins]
    assert max(abs(np.vdot(*values.sum(-1)[[0, k]]) / np.vdot(*values.sum(-1)[[0, 0]])) for k in range(1, n)) > 0.05
    for i, wave in enumerate(np.exp(1j * fine @ g.T).T):
        f = [s.conj().T @ (wave[:, None] * s) for s in spins]
        mean, square = sum(map(np.trace, f)), n - sum((abs(x) ** 2).sum() for x in f)
        for values, expected in ((found[:, i], mean), (abs(found[:, i]) ** 2, abs(mean) ** 2 + square)):
            error = values.std() / np.sqrt(len(values))
            assert abs(values.mean() - expected) < 4.5 * error
    assert len(g) >= 10


def test_amplitudes_are_normalised():
    """⟨|Φ_j|²/ρ⟩_ρ = 1, and ⟨Φ_i* Φ_j/ρ⟩_ρ is their overlap; several overlapping determinants, both spins."""
    h = hamiltonian(0.05, n_up=1, n_down=1, cell=TORUS, twist=TWIST)
    t = make_tables([trials.gaussians(h)], np.array([TWIST]), 1)
    t = jax.tree.map(lambda x: x[0], t)
    r = jax.vmap(lambda u: draw(t, u, 1, TORUS))(jax.random.uniform(jax.random.key(0), (8000, 5, 2)))
    phi = np.exp(jax.vmap(lambda r: log_amplitudes(t, r, 1, TORUS))(r))
    assert phi.shape == (8000, 6)
    terms = phi.conj()[:, :, None] * phi[:, None] / (np.abs(phi) ** 2).mean(1)[:, None, None]
    error = terms.std(0) / np.sqrt(len(terms))
    s = np.linalg.inv(t.inverse)
    assert 0.1 < np.abs(s - np.eye(6)).max() < 0.9
    assert (np.abs(terms.mean(0) - s) < 4.5 * error + 1e-9).all()


@pytest.mark.parametrize(("n", "per_class"), [(3, [0, 0, 3]), (6, [0, 3, 3])])
def test_crystals_of_three_by_three_cells(n, per_class):
    """One of the three √3×√3 sublattices, or two of them: a honeycomb."""
    sites = trials.patterns(hamiltonian(n_up=n))
    assert len(sites) == 3
    cell = Cell()
    labels = np.rint(cell.translations @ np.linalg.inv(cell.moire_vectors)).astype(int)
    sublattice = (labels[:, 0] - labels[:, 1]) % 3  # the √3×√3 superlattice has the basis a1 + a2, 2a1 − a2
    for row in sites:
        assert sorted(np.bincount(sublattice[row], minlength=3)) == per_class


def test_crystals_of_other_fillings():
    """Half filling of the triangular lattice: stripes in three directions; of 54 electrons three honeycombs."""
    stripes = trials.patterns(hamiltonian(n_up=8, cell=Cell(supercell=((4, 0), (0, 4)))))
    assert stripes.shape == (6, 8)
    assert trials.patterns(hamiltonian(n_up=54, cell=Cell(supercell=((9, 0), (0, 9))))).shape == (3, 54)
    assert trials.patterns(hamiltonian(n_up=2, n_down=1, cell=TORUS)).tolist() == [[0, 1, 2]]
    checkerboard = trials.patterns(hamiltonian(n_up=2, cell=Cell("square", ((2, 0), (0, 2)))))
    assert checkerboard.shape == (2, 2)


@dataclasses.dataclass(frozen=True)
class Wells:
    """Two equal minima in a cell, or stripes."""

    stripes: bool = False

    def __call__(self, r, h):
        x, y = jnp.moveaxis(r @ jnp.asarray(h.cell.moire_reciprocal.T), -1, 0)
        return -jnp.cos(2 * x) - (0 if self.stripes else jnp.cos(y))


def test_what_is_no_crystal_says_why():
    def reason(kind="gaussians", **family):
        c = config(**{"cell": TORUS, **family})
        return known(c.family)[f"trial_{kind}"].missing(make_start(c.family, c.network), c.family.grid())

    deep = {"lam": (0.5, 0.5, 1)}
    assert reason(n_up=2, **deep) is None
    assert "depth of the potential = 0.0" in reason(n_up=2)
    assert "electrons = 4: must be at most 3" in reason(n_up=4, **deep)
    big = Cell(supercell=((5, 0), (0, 5)))
    assert "patterns with the filling 12/25 = 5200300" in reason(n_up=12, cell=big, **deep)
    assert "minima of the potential in a moiré cell = 2" in reason(n_up=2, potential=Wells(), **deep)
    assert "curvature of the potential" in reason(n_up=2, potential=Wells(stripes=True), **deep)
    assert "determinants of the same lowest energy = 400" in reason("plane_waves", n_up=4, n_down=4)
    assert "crystals of the same classical energy" in reason(
        n_up=4, n_down=4, cell=Cell(supercell=((4, 0), (0, 4))), **deep
    )

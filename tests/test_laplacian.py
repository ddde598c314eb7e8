from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qernel.cell import Cell
from qernel.family import Family
from qernel.laplacian import by_folx, kinetic_energy, value_gradient_laplacian
from qernel.moe import with_experts
from qernel.presets import EXACT
from qernel.start import make_start
from qernel.wavefunction import Wavefunction

NETWORK = replace(EXACT, jastrow_shells=3, plane_wave_cutoff=40.0)
FAMILY = Family(n_up=3, lam=(0.5, 1.5, 2), twist=(0.31, -0.17), cell=Cell(supercell=((2, 1), (-1, 2))))


def randomised(model, seed=0, scale=0.3):
    """All weights moved, so that heads and responses that start from zero take part."""
    leaves, structure = jax.tree.flatten(eqx.filter(model, eqx.is_inexact_array))
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    moved = [x + scale * jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
    return eqx.combine(jax.tree.unflatten(structure, moved), model)


def build(family, network=NETWORK):
    start = make_start(family, network)
    return randomised(Wavefunction(jax.random.key(1), start)), start.points(family.grid())


def positions(family, shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).random((*shape, family.n_electrons, 2)) @ family.cell.vectors)


SPARSE = replace(NETWORK, layers=2, experts=7, top_k=2)
CASES = {
    "N = 3": (FAMILY, replace(NETWORK, layers=3)),
    "N = 1": (replace(FAMILY, n_up=1), NETWORK),
    "one of each spin": (replace(FAMILY, n_up=1, n_down=1), NETWORK),
    "sparse experts": (FAMILY, SPARSE),
    "all experts open": (FAMILY, replace(NETWORK, experts=2, top_k=2)),
    "SlaterNet": (FAMILY, replace(NETWORK, heads=0)),
    "PsiFormer": (FAMILY, replace(NETWORK, layers=2, kv_heads=NETWORK.heads, experts=0, film_width=0)),
    "random orbitals": (FAMILY, replace(NETWORK, init="random")),
    "mixed orbitals": (FAMILY, replace(NETWORK, init="mixed", bands=2)),
}


@pytest.mark.parametrize(("family", "network"), CASES.values(), ids=CASES)
def test_against_plain_second_derivatives(family, network):
    model, points = build(family, network)
    point = jax.tree.map(lambda x: x[1], points)
    r = positions(family, (2,))
    methods = (value_gradient_laplacian, by_folx) if network == NETWORK else (value_gradient_laplacian,)
    jets = [eqx.filter_jit(f)(model, r, jax.tree.map(lambda x: jnp.stack([x, x]), point)) for f in methods]

    every = with_experts(model, sparse=False)  # the sparse product has no second derivatives

    def parts(flat):
        value = every(flat.reshape(-1, 2), point)
        return jnp.stack([value.real, value.imag])

    @jax.jit
    def plain(flat):
        hessian = jax.jacfwd(jax.jacrev(parts))(flat)
        return parts(flat), jax.jacrev(parts)(flat), jnp.trace(hessian, axis1=1, axis2=2)

    for w in range(2):
        expected = [x[0] + 1j * x[1] for x in plain(r[w].reshape(-1))]
        for jet in jets:
            for got, wanted in zip(jet, expected, strict=True):
                assert got[w].shape == wanted.shape
                np.testing.assert_allclose(got[w], wanted, rtol=1e-10, atol=1e-10 * np.abs(wanted).max())
        # The test would be empty for a real or a plane-wave state.
        assert abs(expected[2].imag) > 1e-3
        assert abs(expected[2].real) > 1e-3


def test_single_precision_of_54_electrons():
    """float32 against the same weights and walkers in float64: 1e-4 of the kinetic energy."""
    family = Family(n_up=54, lam=(0.5, 1.5, 2), cell=Cell(supercell=((9, 0), (0, 9))))
    network = replace(NETWORK, layers=2, width=32, heads=4, kv_heads=2, experts=6, top_k=2, dtype="float32")
    start = make_start(family, network)
    single = randomised(Wavefunction(jax.random.key(1), start), scale=0.02)
    point = jax.tree.map(lambda x: x[:1], start.points(family.grid()))
    r = positions(family, (1,)).astype("float32")
    run = eqx.filter_jit(value_gradient_laplacian)
    raised = jax.tree.map(lambda x: x.astype("float64") if eqx.is_inexact_array(x) else x, (single, r, point))
    local = [-0.5 * (x.laplacian + (x.gradient**2).sum(-1)) for x in (run(single, r, point), run(*raised))]
    assert local[0].dtype == "complex64"
    assert local[1].dtype == "complex128"
    np.testing.assert_allclose(local[0], local[1], rtol=1e-4)


def test_kinetic_energy_and_chunks():
    """Numbers do not depend on the chunk."""
    family = replace(FAMILY, n_up=1)
    model, points = build(family)
    walkers = positions(family, (2, 4), seed=3)
    kinetic = eqx.filter_jit(kinetic_energy)
    whole = kinetic(model, walkers, points)
    assert whole.local.shape == whole.from_gradient.shape == (2, 4)
    for a, b in zip(kinetic(model, walkers, points, 2), whole, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    # ψ has both |ψ| and a phase that vary, so that neither form is trivially the other.
    assert np.abs(whole.local - whole.from_gradient).min() > 1e-3

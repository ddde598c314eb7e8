import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qernel.errors import InputError
from qernel.family import LOGARITHMIC, Family
from qernel.units import Material

MANY = Family(
    lam=(0.5, 1.5, 3),
    phi_deg=(45.0, 60.0, 2),
    epsilon=(4.0, 8.0, 2),
    period_nm=(7.0, 9.0, 2),
    twist_1=(0.0, 0.4, 2),
    twist_2=(0.1, 0.1, 1),
)


def test_depth_is_always_the_first_coupling():
    assert Family().names == ("lam",)
    assert Family(twist_2=(0.0, 1.0, 2), phi_deg=(0.0, 60.0, 3)).names == ("lam", "phi_deg", "twist_2")
    assert MANY.names == ("lam", "phi_deg", "epsilon", "period_nm", "twist_1", "twist_2")


def test_grid_is_the_product_of_the_ranges():
    np.testing.assert_allclose(Family(lam=(0.25, 2.0, 8)).grid(), np.linspace(0.25, 2, 8)[:, None])
    grid = MANY.grid()
    assert grid.shape == (3 * 2 * 2 * 2 * 2 * 1, 6)
    assert len(np.unique(grid, axis=0)) == len(grid)
    np.testing.assert_allclose(grid.min(0), MANY.bounds()[0])
    np.testing.assert_allclose(grid.max(0), MANY.bounds()[1])
    np.testing.assert_allclose(Family(lam=(0.7, 0.7, 1)).grid(), [[0.7]])


def test_vector_from_names():
    np.testing.assert_allclose(MANY.vector(lam=0.9, period_nm=8.0), [0.9, 52.5, 6.0, 8.0, 0.2, 0.1])
    np.testing.assert_allclose(Family().vector(), [1.125])


@pytest.mark.parametrize(
    ("couplings", "message"),
    [
        ({"lamb": 1.0}, "lamb: not a coupling of this family; did you mean 'lam'"),
        ({"phi_deg": 50.0}, "phi_deg: not a coupling of this family"),
        ({"lam": math.nan}, "lam = nan: must be a finite number"),
        ({"lam": math.inf}, "lam = inf"),
    ],
)
def test_vector_errors_name_the_coupling(couplings, message):
    with pytest.raises(InputError, match=message):
        Family().vector(**couplings)


def test_vector_refuses_a_negative_period():
    with pytest.raises(InputError, match=r"period_nm = -1\.0: must be a positive number"):
        MANY.vector(period_nm=-1.0)


def test_normalise_maps_the_ranges_to_plus_minus_one():
    low, high = MANY.bounds()
    varies = high > low
    np.testing.assert_allclose(MANY.normalise(jnp.asarray(low)), np.where(varies, -1.0, 0.0))
    np.testing.assert_allclose(MANY.normalise(jnp.asarray(high)), np.where(varies, 1.0, 0.0))
    middle = np.where(np.isin(MANY.names, LOGARITHMIC), np.sqrt(low * high), (low + high) / 2)
    np.testing.assert_allclose(MANY.normalise(jnp.asarray(middle)), 0.0, atol=1e-12)


def test_equal_ratios_of_the_dielectric_constant_are_equal_steps():
    family = Family(lam=(0.0, 2.0, 2), epsilon=(4.0, 16.0, 2))
    np.testing.assert_allclose(family.normalise(jnp.asarray([0.5, 8.0])), [-0.5, 0.0], atol=1e-12)
    slope = jax.jacobian(family.normalise)(jnp.asarray([0.0, 8.0]))
    np.testing.assert_allclose(slope, np.diag([1.0, 1 / (8 * math.log(2))]))


def test_outside():
    family = Family(lam=(0.25, 2.0, 8), phi_deg=(45.0, 60.0, 2))
    assert family.outside(family.vector()) == []
    assert family.outside(family.vector(lam=2.0, phi_deg=45.0)) == []
    assert family.outside(family.vector(lam=2.01)) == ["lam"]
    assert family.outside(family.vector(lam=0.0, phi_deg=61.0)) == ["lam", "phi_deg"]


def test_hamiltonian_of_a_material():
    m = Material()
    h = Family().hamiltonian(jnp.asarray([0.9]))
    assert float(h.lam) == pytest.approx(0.9)
    assert (float(h.v0), float(h.phi), float(h.u)) == pytest.approx((m.v0, m.phi, m.u))
    assert (h.n_up, h.n_down, h.n_electrons) == (3, 0, 3)


def test_varied_couplings_equal_those_of_another_material():
    """A family that varies ε, a_M and φ passes through the materials that have these values."""
    c = MANY.vector(lam=1.2, phi_deg=58.0, epsilon=7.0, period_nm=8.6, twist_1=0.3)
    h = MANY.hamiltonian(jnp.asarray(c))
    m = Material(phi_deg=58.0, epsilon=7.0, period_nm=8.6)
    assert (float(h.v0), float(h.phi), float(h.u)) == pytest.approx((m.v0, m.phi, m.u), rel=1e-12)
    np.testing.assert_allclose(h.twist, [0.3, 0.1])


def test_free_electrons_through_the_dielectric_constant():
    h = Family(material=Material(epsilon=math.inf)).hamiltonian(jnp.asarray([1.0]))
    assert float(h.u) == 0.0


def test_the_dielectric_constant_of_the_material_does_not_matter_where_it_varies():
    for epsilon in (5.0, math.inf):
        h = Family(epsilon=(4.0, 8.0, 2), material=Material(epsilon=epsilon)).hamiltonian(jnp.asarray([1.0, 6.0]))
        assert float(h.u) == pytest.approx(Material(epsilon=6.0).u, rel=1e-12)


def test_traced_and_batched():
    grid = jnp.asarray(MANY.grid())
    batch = jax.jit(MANY.hamiltonians)(grid)
    fixed = Family(twist=(0.3, 0.1)).hamiltonians(jnp.ones((4, 1)))
    assert batch.lam.shape == batch.u.shape == batch.v0.shape == batch.phi.shape == (len(grid),)
    assert batch.twist.shape == (len(grid), 2)
    assert fixed.u.shape == (4,)
    np.testing.assert_allclose(fixed.twist, [[0.3, 0.1]] * 4)
    for i in (0, 17, 46):
        one = MANY.hamiltonian(grid[i])
        for name in ("lam", "v0", "phi", "u", "twist"):
            np.testing.assert_allclose(getattr(batch, name)[i], getattr(one, name), rtol=1e-12)
    slope = jax.jit(jax.grad(lambda c: MANY.hamiltonian(c).u))(grid[0])
    assert float(slope[2]) == pytest.approx(-float(batch.u[0]) / 4.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_up": 0}, r"family\.n_up \+ n_down = 0: must be at least 1 electron"),
        ({"n_up": -1}, r"family\.n_up = -1"),
        ({"n_down": -2}, r"family\.n_down = -2"),
        ({"n_up": 2000}, "at most 1000"),
        ({"lam": (2.0, 0.25, 8)}, r"family\.lam = .*low ≤ high"),
        ({"lam": (math.nan, 1.0, 2)}, r"family\.lam = .*finite"),
        ({"lam": (0.0, 1.0, 0)}, r"family\.lam = 0"),
        ({"lam": (0.0, 1.0, 1)}, r"family\.lam = .*more than 1 point"),
        ({"epsilon": (0.0, 5.0, 2)}, r"family\.epsilon = 0\.0: must be a positive"),
        ({"twist": (math.inf, 0.0)}, r"family\.twist"),
        ({"gate": 0.0}, r"family\.gate = 0\.0"),
        ({"gate": math.nan}, r"family\.gate = nan"),
    ],
)
def test_impossible_families_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        replace(Family(), **fields)

"""Twist averages: the grid of twists, what it integrates, and means over an exactly solvable state."""

from dataclasses import replace
from functools import cache

import jax.numpy as jnp
import numpy as np
import pytest
import xarray

import states
from qernel import exact
from qernel.analytic import noninteracting_energy
from qernel.cell import Cell
from qernel.errors import InputError
from qernel.evaluate import Settings
from qernel.family import Family
from qernel.scan import to_dataset
from qernel.scan_axes import scan_grid
from qernel.transition_scan import read_scan
from qernel.twist_average import averages, with_averages
from qernel.twists import monkhorst_pack, twist_average, zone_corners

TRIANGULAR, SQUARE = Cell(), Cell("square", ((3, 0), (0, 1)))
SKEW = Cell(supercell=((2, 1), (-1, 3)))


def whole(cell, **ranges):
    """A family trained over the whole zone."""
    x, y = (np.abs(zone_corners(cell)).max(0) * 1.001).tolist()
    return Family(cell=cell, twist_1=ranges.get("twist_1", (-x, x, 3)), twist_2=ranges.get("twist_2", (-y, y, 3)))


def full_grid(cell, m):
    """All m² twists, [m², 2]."""
    return monkhorst_pack(m) / (2 * m) @ cell.reciprocal


@pytest.mark.parametrize("cell", [TRIANGULAR, SQUARE, SKEW], ids=["triangular", "square", "skew"])
@pytest.mark.parametrize("m", [1, 2, 3, 4, 7])
def test_plane_waves_of_short_supercell_vectors_are_integrated_exactly(cell, m):
    """Their mean over the zone is zero; the first that is not found to be is that of m times a supercell vector."""
    n = np.stack(np.meshgrid(*[np.arange(-m, m + 1)] * 2, indexing="ij"), -1).reshape(-1, 2)
    waves = np.exp(1j * full_grid(cell, m) @ (n @ cell.vectors).T).mean(0)
    vanish = (n % m != 0).any(1)
    np.testing.assert_allclose(waves[vanish], 0, atol=1e-12)
    np.testing.assert_allclose(np.abs(waves[~vanish]), 1, atol=1e-12)
    reduced = twist_average(whole(cell), m)
    cosines = np.cos(reduced.vectors @ (n @ cell.vectors).T)
    np.testing.assert_allclose(reduced.weights @ cosines, waves.real, atol=1e-12)


@pytest.mark.parametrize("m", [1, 2, 3, 4, 7])
def test_weights_and_pairs(m):
    vectors, weights = twist_average(whole(TRIANGULAR), m)
    assert weights.sum() == pytest.approx(1)
    # Without a twist equal to its own opposite (even m) half are left; with Γ (odd m) one more.
    assert len(weights) == (m * m + m % 2) // 2
    assert (vectors == 0).all(1).sum() == m % 2
    units = lambda x: x @ TRIANGULAR.vectors.T / (2 * np.pi)  # noqa: E731
    for theta in full_grid(TRIANGULAR, m):
        away = np.stack([units(vectors - theta), units(vectors + theta)])
        equal = np.abs(away - np.rint(away)).max(-1) < 1e-9
        assert equal.any(0).sum() == 1
        assert weights[equal.any(0)] == pytest.approx((2 if not equal.all(0).any() else 1) / m**2)


def test_twists_are_taken_where_the_family_was_trained():
    x, y = (np.abs(zone_corners(SKEW)).max(0) * 1.001).tolist()
    for m in (3, 4, 6):
        expected = np.sort(np.linalg.norm(twist_average(whole(SKEW), m).vectors, axis=1))
        for ranges in (
            {"twist_1": (-x, x, 3), "twist_2": (0.0, y, 3)},
            {"twist_1": (0.0, x, 3), "twist_2": (-y, y, 3)},
        ):
            family = whole(SKEW, **ranges)
            vectors, _ = twist_average(family, m)
            assert all(family.outside(family.vector(twist_1=a, twist_2=b)) == [] for a, b in vectors)
            # Half of the zone is enough, and the twists are the shortest ones.
            np.testing.assert_allclose(np.sort(np.linalg.norm(vectors, axis=1)), expected, atol=1e-12)
    b1, b2 = SQUARE.reciprocal.tolist()
    corner = whole(SQUARE, twist_1=(0.0, b1[0], 3), twist_2=(0.0, b2[1], 3))
    vectors, _ = twist_average(corner, 4)
    assert ((vectors > 0) & (vectors < [b1[0], b2[1]])).all()


@pytest.mark.parametrize("cell", [TRIANGULAR, SQUARE, SKEW])
def test_corners_of_the_zone_are_as_far_from_three_lattice_points(cell):
    n = np.stack(np.meshgrid(*[np.arange(-3, 4)] * 2, indexing="ij"), -1).reshape(-1, 2)
    for corner in zone_corners(cell):
        distance = np.sort(np.linalg.norm(n @ cell.reciprocal - corner, axis=1))
        np.testing.assert_allclose(distance[:3], np.linalg.norm(corner))


def test_equal_twists_have_equal_interacting_states():
    """Time reversal and the reciprocal lattice, checked with exact diagonalisation at a potential without symmetry."""
    family = Family(n_up=2, cell=states.TORUS)

    def state(theta):
        h = replace(family, twist=tuple(theta)).hamiltonian(jnp.asarray([0.8]))
        return exact.ground_state(h, 2)

    theta = np.array([0.3, 0.17])
    one, opposite, shifted = (state(t) for t in (theta, -theta, theta + states.TORUS.reciprocal[1]))
    points = np.array([[0.1, 0.2], [0.4, 0.1], [-0.3, 0.5]])
    for other in (opposite, shifted):
        assert other.energy == pytest.approx(one.energy, abs=1e-8)
        assert other.interaction == pytest.approx(one.interaction, abs=1e-6)
        np.testing.assert_allclose(exact.density(other, points), exact.density(one, points), rtol=1e-5)
    assert abs(state([0.0, 0.0]).energy - one.energy) > 0.01


def test_families_without_twists_are_refused():
    line = (
        r"twist_1 and twist_2 do not both vary .*--family\.twist_1 -1\.4 1\.4 POINTS --family\.twist_2 0 1\.21 POINTS"
    )
    for family in (
        Family(),
        Family(twist_1=(-1.0, 1.0, 3)),
        Family(twist_1=(-1.0, 1.0, 3), twist_2=(0.2, 0.2, 1)),
    ):
        with pytest.raises(InputError, match=line):
            twist_average(family, 2)
    for m in (0, -2, 101):
        with pytest.raises(InputError, match=f"--twists = {m}: must be a whole number from 1 to 100"):
            twist_average(whole(TRIANGULAR), m)


CUTOFF, M = 200.0, 4
FILLED = states.config(
    network=replace(states.NETWORK, plane_wave_cutoff=CUTOFF),
    walkers=16,
    n_up=3,
    cell=SQUARE,
    lam=(0.0, 0.3, 2),
    twist_1=(-0.9, 0.9, 2),
    twist_2=(0.0, 2.7, 2),
)
"""Three electrons without interaction in a row of three cells: at every twist they fill k = 0 and ±B1, as the start
does, so it is exact everywhere."""


@cache
def averaged_scan():
    model = states.model_of(FILLED)
    settings = Settings(walkers=16, moves=4, burn_in=80, max_sweeps=40, bins=6)
    grid = scan_grid(FILLED, {}, M, settings)
    results = model.scan(grid.couplings, settings)
    return with_averages(to_dataset(model, results), grid.weights)


def energies(lam):
    """Exact energies at all M² twists, without any reduction."""
    family = replace(FILLED.family, twist_1=None, twist_2=None)
    return np.array(
        [
            noninteracting_energy(replace(family, twist=tuple(t)).hamiltonian(jnp.asarray([lam])), CUTOFF)
            for t in full_grid(SQUARE, M)
        ]
    )


def test_average_of_an_exact_state_is_the_exact_average():
    data = averaged_scan()
    means = averages(data)
    assert data.sizes["coupling"] == 2 * M * M // 2
    assert data["twist_weight"].values.reshape(2, -1).sum(1) == pytest.approx([1, 1])
    np.testing.assert_allclose(means["lam"], [0.0, 0.3])
    for row, (lam, tolerance) in enumerate(((0.0, 1e-10), (0.3, 1e-5))):
        exact_ones = energies(lam)
        assert np.ptp(exact_ones) > 1
        assert float(means["energy"][row]) == pytest.approx(exact_ones.mean(), abs=tolerance)
        assert float(means["energy_error"][row]) < tolerance
        assert float(means["energy_spread"][row]) == pytest.approx(exact_ones.std(), abs=tolerance)
        sampled = data["energy"].values.reshape(2, -1)[row]
        twists = np.stack([data["twist_1"], data["twist_2"]], -1).reshape(2, -1, 2)[row]
        for theta, energy in zip(twists, sampled, strict=True):
            h = replace(FILLED.family, twist_1=None, twist_2=None, twist=tuple(theta)).hamiltonian(jnp.asarray([lam]))
            assert energy == pytest.approx(noninteracting_energy(h, CUTOFF), abs=tolerance)


def test_error_of_an_average_is_that_of_sampling():
    """dE/dλ = ⟨W⟩ has noise: it agrees with the derivative of the exact average, better known than at one twist."""
    data = averaged_scan()
    means, step = averages(data), 1e-3
    slope = (energies(0.3 + step) - energies(0.3 - step)) / (2 * step)
    value, error, spread = (float(means["dE_dlam" + part][1]) for part in ("", "_error", "_spread"))
    assert abs(value - slope.mean()) < 4 * error
    one = data["dE_dlam_error"].values.reshape(2, -1)[1]
    weights = data["twist_weight"].values.reshape(2, -1)[1]
    assert error == pytest.approx(np.sqrt(weights**2 @ one**2))
    assert error < 0.6 * one.mean()
    assert spread > 0.5 * slope.std()


def test_averages_of_maps_and_curves():
    means = averages(averaged_scan())
    assert means["density"].dims == ("coupling", "t1", "t2")
    np.testing.assert_allclose(means["density"].mean(("t1", "t2")), 1.0)
    assert means["pair_correlation"].dims == ("coupling", "r")
    assert means["structure_factor"].dims == ("coupling", "k")
    assert {"structure_factor_error", "structure_factor_spread", "density_symmetrised", "k_x"} <= set(means.variables)
    assert not any(str(n).startswith(("averaged", "energy_imag", "r_hat", "v_score")) for n in means.variables)


def test_a_transition_is_looked_for_in_the_means(tmp_path):
    file = tmp_path / "results.nc"
    averaged_scan().to_netcdf(file, engine="h5netcdf")
    found = read_scan(file)
    assert found.sizes["coupling"] == 2
    xarray.testing.assert_allclose(found["dE_dlam"], averages(averaged_scan())["dE_dlam"])
    plain = averaged_scan().drop_dims("averaged")
    assert averages(plain) is None
    plain.to_netcdf(tmp_path / "plain.nc", engine="h5netcdf")
    with pytest.raises(InputError, match="couplings = lam, twist_1, twist_2: must be λ alone"):
        read_scan(tmp_path / "plain.nc")

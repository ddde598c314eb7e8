"""What is measured, against closed forms: the free gas, an ideal gas of points, one electron in the potential."""

import json
import re
from dataclasses import replace
from functools import cache

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

from qernel.cell import Cell, lattice_points
from qernel.errors import InputError
from qernel.evaluate import Settings
from qernel.hamiltonian import interaction_energy
from qernel.observables import DEFAULT, NAMES, check_names, known
from qernel.observables.pair_correlation import distances, inscribed_radius
from qernel.observables.structure_factor import corners, crystal_missing
from qernel.scan import to_dataset
from qernel.tables import quantity_lines, scan_table
from qernel.units import Material
from states import NETWORK, TORUS, close, config, exact_walkers, finalised, ideal, model_of

FREE_N7 = config(n_up=7, twist=(0.3, 0.1))


@cache
def free_n7():
    return model_of(FREE_N7)


def occupied(family, n):
    """Wavevectors B of the n lowest plane waves exp(i(θ + B)·r)."""
    waves = lattice_points(family.cell.reciprocal, 20.0)
    energy = ((waves + np.array(family.twist)) ** 2).sum(1)
    return waves[np.argsort(energy, kind="stable")[:n]]


@cache
def free_scan():
    """All that the free gas offers, from one run of chains."""
    settings = Settings(walkers=192, max_sweeps=40, moves=6, burn_in=120, bins=6, observables=("all",))
    with pytest.warns(UserWarning, match="is not measured"):
        return free_n7().scan(free_n7().trained, settings)[0]


def test_structure_factor_of_the_free_gas():
    """S(k) = 1 − (pairs of occupied plane waves that differ by k)/N."""
    q = free_scan().quantities["structure_factor"]
    k = np.stack([q.coordinates["k_x"][1], q.coordinates["k_y"][1]], 1)
    p = occupied(FREE_N7.family, 7)
    differences = (p[:, None] - p[None]).reshape(-1, 2)
    expected = 1 - (np.linalg.norm(differences[None] - k[:, None], axis=-1) < 1e-6).sum(1) / 7
    assert expected.min() < 0.6
    assert close(q, expected) == pytest.approx(1, abs=0.35)


def test_pair_correlation_of_the_free_gas():
    """g(r) = N/(N − 1) [1 − |Σ_p exp(ip·r)|²/N²], averaged over a ring."""
    q = free_scan().quantities["pair_correlation"]
    r = q.coordinates["r"][1]
    p, width = occupied(FREE_N7.family, 7), r[1] - r[0]
    fine = (np.arange(10) + 0.5) / 10 - 0.5
    angle = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    radius = r[:, None] + width * fine
    points = radius[..., None, None] * np.stack([np.cos(angle), np.sin(angle)], -1)
    hole = np.abs(np.exp(1j * points @ p.T).sum(-1)).__pow__(2) / 49
    expected = (7 / 6 * (1 - hole).mean(-1) * radius).sum(1) / radius.sum(1)
    assert expected[0] < 0.1
    seen = expected > 0.2  # in the smallest rings there are a few pairs in all
    assert 0.6 < close(q._replace(value=q.value[seen], error=q.error[seen]), expected[seen]) < 1.4
    np.testing.assert_allclose(q.value[~seen], expected[~seen], atol=0.05)


def test_an_ideal_gas_has_no_correlations():
    c = config(n_up=4, n_down=3)
    model, walkers = model_of(c), ideal(c, 4000)
    found = finalised(model, "pair_correlation", walkers)
    assert set(found) == {f"pair_correlation{s}" for s in ("", "_up_up", "_up_down", "_down_down")}
    for q in found.values():
        close(q, 1.0)
    close(finalised(model, "structure_factor", walkers)["structure_factor"], 1.0)
    close(finalised(model, "order_parameter", walkers)["order_parameter"], 1 / 7)
    close(finalised(model, "density", walkers)["density"], 7 / c.family.cell.area)


def test_a_crystal_of_points_is_ordered_wherever_it_sits():
    c = config(n_up=3)
    sites = np.array(Cell(supercell=((1, 1), (2, -1))).vectors)
    crystal = np.array([0 * sites[0], sites[0], 2 * sites[0]])  # one point in each √3×√3 cell of the 3×3 cells
    moved = crystal + np.array([[0.0, 0.0], [0.31, 0.2]])[:, None]
    found = finalised(model_of(c), "order_parameter", jnp.asarray(moved[None]))["order_parameter"]
    np.testing.assert_allclose(found.value, 1.0, rtol=1e-9)
    np.testing.assert_allclose(found.error, 0.0, atol=1e-9)


@pytest.mark.parametrize(
    ("cell", "there"),
    [
        (Cell(), True),
        (TORUS, True),
        (Cell(supercell=((4, 0), (0, 4))), False),
        (Cell("square", ((3, 0), (0, 3))), False),
    ],
)
def test_the_crystal_needs_a_supercell_that_holds_it(cell, there):
    reason = crystal_missing(cell)
    assert (reason is None) == there
    if there:
        k = corners() @ np.linalg.inv(cell.moire_reciprocal)
        np.testing.assert_allclose(3 * k, np.rint(3 * k), atol=1e-9)
        np.testing.assert_allclose(np.linalg.norm(corners(), axis=1), 4 * np.pi / 3)


def test_distances_are_those_of_the_nearest_image():
    cell = Cell(supercell=((3, 1), (-1, 2)))
    r = np.random.default_rng(0).normal(size=(200, 2)) * 4
    images = lattice_points(cell.vectors, 30.0)
    expected = np.linalg.norm(r[:, None] + images, axis=-1).min(1)
    np.testing.assert_allclose(distances(jnp.asarray(r), cell), expected, rtol=1e-9)
    assert inscribed_radius(cell) == pytest.approx(np.linalg.norm(images[1]) / 2)


def test_total_momentum_of_the_free_gas():
    """One determinant of plane waves has one total momentum, for every single walker."""
    result = free_scan()
    q = result.quantities["momentum_probability"]
    cell = FREE_N7.family.cell
    total = occupied(FREE_N7.family, 7).sum(0)
    n = (cell.momenta - total) @ np.linalg.inv(cell.moire_reciprocal)
    sector = int(np.argmin(np.abs(n - np.rint(n)).max(1)))
    assert q.coordinates["sector"][1][0] == "(0,0)/3"
    np.testing.assert_allclose(q.value, np.arange(cell.n_cells) == sector, atol=1e-9)
    np.testing.assert_allclose(q.error, 0, atol=1e-9)


def test_total_momentum_of_a_superposition():
    """Two determinants of different total momenta with weights 1 and w: p = |w_i|² up to the norms, Σ p = 1."""
    c = config(replace(NETWORK, determinants=2), n_up=2, twist=(0.3, 0.1), cell=TORUS)
    model = model_of(c)
    weights = jnp.asarray([[1.0, 0.3], [0.0, 0.4]])  # |w|² = 1 and 0.25
    wave = eqx.tree_at(lambda m: m.weights, model.wavefunction, weights)
    model = replace(model, wavefunction=wave)
    q = finalised(model, "momentum_probability", exact_walkers(model, 4000))["momentum_probability"].at(0)
    assert q.value.sum() == pytest.approx(1, abs=1e-9)
    np.testing.assert_allclose(np.sort(q.value), [0, 0.2, 0.8], atol=5 * q.error.max())
    assert 0 < q.error.max() < 0.02


def test_projected_energies_of_a_superposition():
    """Each part has the energy of its own determinant, though the local energy of the sum is that of neither."""
    c = config(replace(NETWORK, determinants=2), n_up=2, twist=(0.3, 0.1), cell=TORUS)
    model = model_of(c)
    wave = eqx.tree_at(lambda m: m.weights, model.wavefunction, jnp.asarray([[1.0, 0.3], [0.0, 0.4]]))
    model, cell = replace(model, wavefunction=wave), c.family.cell
    walkers = exact_walkers(model, 4000)
    p = finalised(model, "momentum_probability", walkers)["momentum_probability"].at(0)
    found = {name: q.at(0) for name, q in finalised(model, "momentum_energy", walkers).items()}
    # Of three plane waves two are occupied: the three determinants, their momenta and energies.
    waves = occupied(c.family, 3)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        n = (cell.momenta - waves[i] - waves[j]) @ np.linalg.inv(cell.moire_reciprocal)
        sector = int(np.argmin(np.abs(n - np.rint(n)).max(1)))
        energy = 0.5 * sum(np.sum((waves[k] + np.array(c.family.twist)) ** 2) for k in (i, j))
        e = found["momentum_energy"]
        if p.value[sector] > 1e-9:
            assert abs(e.value[sector] - energy) < 5 * e.error[sector]
            assert 0 < e.error[sector] < 0.1 * energy
        else:
            assert np.isnan(e.value[sector])
    assert np.nansum(p.value * found["momentum_dE_dlam"].value) == pytest.approx(0, abs=0.3)


def test_projected_interaction_adds_up():
    """Σ p_K ⟨V⟩_K is ⟨V⟩ of the same walkers where V does not change along an orbit."""
    c = config(replace(NETWORK, determinants=2), n_up=2, twist=(0.3, 0.1), cell=TORUS, material=Material())
    model = model_of(c)
    wave = eqx.tree_at(lambda m: m.weights, model.wavefunction, jnp.asarray([[1.0, 0.3], [0.0, 0.4]]))
    model, walkers = replace(model, wavefunction=wave), ideal(c, 64)
    p = finalised(model, "momentum_probability", walkers)["momentum_probability"].at(0)
    v = finalised(model, "momentum_energy", walkers)["momentum_interaction"].at(0)
    h = c.family.hamiltonian(jnp.asarray(model.trained[0]))
    expected = float(np.mean([interaction_energy(r, h) for r in walkers[0]]))
    assert np.nansum(p.value * v.value) == pytest.approx(expected, rel=1e-6)


def test_energy_of_the_free_gas_has_no_variance():
    result = free_scan()
    assert result.variance < 1e-15
    assert result.quantities["v_score"].value == pytest.approx(0, abs=1e-15)
    assert result.density.sum() * FREE_N7.family.cell.area / result.density.size == pytest.approx(7)
    assert result.density_error.shape == result.density.shape


def test_v_score_does_not_depend_on_the_unit_of_energy():
    """Random walkers of a wrong state: V = N Var/(E − E_∞)² from the series themselves."""
    from qernel.observables.energy import TERMS, Energy, random_energy
    from qernel.observables.interface import Record

    c = config(n_up=2, cell=TORUS, lam=(1.0, 1.0, 1))
    model = model_of(c)
    energy = np.random.default_rng(0).normal(-20, 2.0, (30, 1, 64))
    for scale in (1.0, 3.0):
        series = dict.fromkeys(TERMS, np.zeros_like(energy)) | {"energy": scale * energy}
        found = Energy().finalise(Record(blocks=(series,)), model.wavefunction.start, model.trained)
        assert random_energy(c.family, model.trained[0]) == pytest.approx(0)
        assert found["v_score"].value[0] == pytest.approx(2 * energy.var() / energy.mean() ** 2)
        assert found["v_score"].error[0] == pytest.approx(found["v_score"].value[0] * np.sqrt(2 / energy.size), rel=0.3)
        assert found["variance"].value[0] == pytest.approx(scale**2 * energy.var())


def test_random_electrons_have_the_madelung_energy():
    from qernel.hamiltonian import interaction_energy, moire_energy
    from qernel.observables.energy import random_energy
    from qernel.units import Material

    c = config(n_up=3, cell=TORUS, lam=(1.0, 1.0, 1), material=Material())
    h = c.family.hamiltonian(jnp.asarray([1.0]))
    r = ideal(c, 4000)[0]
    values = np.asarray(interaction_energy(r, h) + moire_energy(r, h))
    assert abs(values.mean() - random_energy(c.family, np.array([1.0]))) < 5 * values.std() / np.sqrt(len(values))


def test_a_scan_writes_all_that_was_measured():
    result = free_scan()
    data = to_dataset(free_n7(), [result])
    for name in ("structure_factor", "order_parameter", "pair_correlation", "momentum_probability", "density"):
        assert name in data, name
        assert f"{name}_error" in data
        assert data[name].attrs["units"]
        assert data[name].attrs["long_name"]
    assert data["structure_factor"].dims == ("coupling", "k")
    assert data["k_x"].dims == ("k",)
    skipped = json.loads(data.attrs["not_measured"])
    assert set(skipped) <= set(NAMES)
    assert json.loads(json.dumps(result.to_json()))["order_parameter"]["error"] > 0


def test_numbers_for_people(capsys):
    lines = quantity_lines(free_scan())
    assert any(re.fullmatch(r"order_parameter = 0\.\d+\(\d+\)", line) for line in lines)
    assert any(re.fullmatch(r"total momentum: \(\d,\d\)/3 1\.000000\(0\)", line) for line in lines)
    scan_table([free_scan()])
    assert "order" in capsys.readouterr().out


def test_names():
    assert check_names(("all",)) == NAMES
    assert check_names(("density",)) == check_names("density") == ("energy", "density")
    assert set(DEFAULT) <= set(NAMES)
    assert tuple(known(FREE_N7.family)) == NAMES
    with pytest.raises(InputError, match="observables = densty: unknown; did you mean 'density'"):
        check_names(("densty",))

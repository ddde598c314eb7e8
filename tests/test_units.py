import dataclasses
import math

import pytest

from qernel.errors import InputError
from qernel.units import Material


def test_reference_material_in_natural_units():
    m = Material()
    assert m.e0_mev == pytest.approx(3.37556, abs=5e-6)
    assert m.v0 == pytest.approx(4.44371, abs=5e-6)
    assert m.u == pytest.approx(10.62347, abs=5e-6)
    assert m.phi == pytest.approx(math.pi / 4, abs=1e-15)


def test_scaling_with_mass_period_and_dielectric_constant():
    m = Material()
    heavy = dataclasses.replace(m, mass=2 * m.mass)
    large = dataclasses.replace(m, period_nm=2 * m.period_nm)
    screened = dataclasses.replace(m, epsilon=2 * m.epsilon)
    assert heavy.e0_mev == pytest.approx(m.e0_mev / 2)
    assert heavy.u == pytest.approx(2 * m.u)
    assert large.e0_mev == pytest.approx(m.e0_mev / 4)
    assert large.v0 == pytest.approx(4 * m.v0)
    assert large.u == pytest.approx(2 * m.u)
    assert screened.u == pytest.approx(m.u / 2)


def test_coulomb_coupling_is_the_charging_energy_over_e0():
    """u E0 = e²/(4π ε₀ ε a_M), with e²/(4π ε₀) = 1439.96455 meV nm: independent of how u is written."""
    m = Material()
    assert m.u * m.e0_mev == pytest.approx(1439.96455 / (m.epsilon * m.period_nm), rel=1e-7)


def test_infinite_dielectric_constant_switches_the_interaction_off():
    assert Material(epsilon=math.inf).u == 0.0


@pytest.mark.parametrize("name", ["mass", "period_nm", "epsilon"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_impossible_material_is_refused_by_name(name, value):
    with pytest.raises(InputError, match=rf"material\.{name} = .*must be a positive number"):
        Material(**{name: value})


@pytest.mark.parametrize(("name", "value"), [("mass", math.inf), ("v0_mev", math.nan), ("phi_deg", math.inf)])
def test_values_that_are_not_finite_are_refused(name, value):
    with pytest.raises(InputError, match=rf"material\.{name} = {value}"):
        Material(**{name: value})


def test_error_is_one_line():
    with pytest.raises(InputError) as error:
        Material(mass=-0.35)
    assert "\n" not in str(error.value)

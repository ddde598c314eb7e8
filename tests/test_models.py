"""The models given away with the source answer on this machine, and with the energies of their cards."""

from pathlib import Path

import numpy as np
import pytest

from qernel import load
from qernel.evaluate import Settings

MODELS = Path(__file__).parents[1] / "models"


def test_six_electrons_on_both_sides_of_the_transition():
    """At or below four bands of exact diagonalisation: -105.7194 at λ = 1 (liquid), -132.8607 at 1.5 (crystal)."""
    model = load(MODELS / "moire-n6")
    couplings = np.array([[1.0], [1.5]])
    settings = Settings(walkers=64, max_sweeps=60, burn_in=60, observables="order_parameter")
    liquid, crystal = model.scan(couplings, settings)
    for result, bound in ((liquid, -105.7194), (crystal, -132.8607)):
        assert result.energy.error < 0.1
        assert bound - 0.5 < result.energy.mean < bound + 5 * result.energy.error
        assert abs(result.kinetic_gap.mean) < 5 * result.kinetic_gap.error
        assert result.variance < 6
    low, high = (r.quantities["order_parameter"] for r in (liquid, crystal))
    assert float(low.value) == pytest.approx(0.11, abs=0.03)
    assert float(high.value) == pytest.approx(0.21, abs=0.03)

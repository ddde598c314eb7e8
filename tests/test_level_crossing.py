"""The crossing of the energies of two sets of total momenta, found in scans of known answer."""

from functools import cache

import jax.numpy as jnp
import numpy as np
import pytest
import xarray

from qernel import exact, level_crossing
from qernel.level_crossing import Crossing, find
from qernel.presets import preset

LABELS = ["(0,0)/3", "(0,1)/3", "(1,1)/3"]


def scan(lam, energies, slopes, interactions, width, errors=0.02, seed=0, centre=1.05):
    """A scan whose state goes from sector 1 to sector 0 over `width`; arrays [couplings, sectors 0 and 1]."""
    rng = np.random.default_rng(seed)
    right = 1 / (1 + np.exp(-(lam - centre) / width))
    p = np.stack([right, 1 - right, 0 * right], 1)
    data = {"momentum_probability": p, "momentum_probability_error": 0 * p}
    for name, x, scale in (("energy", energies, 1), ("dE_dlam", slopes, 10), ("interaction", interactions, 3)):
        full = np.concatenate([x, np.full((len(lam), 1), np.nan)], 1)
        sigma = errors * scale / np.sqrt(np.maximum(p, 1e-3))
        data[f"momentum_{name}"] = np.where(p > 0.005, full + sigma * rng.standard_normal(p.shape), np.nan)
        data[f"momentum_{name}_error"] = np.where(p > 0.005, sigma, np.nan)
    dims = ("coupling", "sector")
    variables = {name: (dims, x) for name, x in data.items()}
    return xarray.Dataset(variables, {"lam": ("coupling", lam), "sector": LABELS})


def lines(lam, lam_c=1.07, slope=-4.5, jump=-1.1):
    """E_0 − E_1 = slope (λ − λ_c)."""
    e = np.stack([-100 + slope * (lam - lam_c), np.full_like(lam, -100.0)], 1)
    w = np.stack([np.full_like(lam, -45.0 + slope), np.full_like(lam, -45.0)], 1)
    v = np.stack([np.full_like(lam, -98.0 + jump), np.full_like(lam, -98.0)], 1)
    return e, w, v


def test_finds_the_crossing_of_a_rounded_state_and_its_error():
    """λ_c does not depend on where the state itself goes over; 68 % of the intervals hold it."""
    lam = np.linspace(0.9, 1.25, 15)
    inside, found = 0, []
    for seed in range(100):
        c = find(scan(lam, *lines(lam), width=0.03, seed=seed), samples=200)
        assert isinstance(c, Crossing)
        assert (c.left, c.right) == ([LABELS[1]], [LABELS[0]])
        found.append((c.lam_c[0] - 1.07) / c.lam_c[1])
        inside += abs(found[-1]) < 1
        assert abs(c.interaction[0] + 1.1) < 5 * c.interaction[1]
        assert abs(c.slope[0] + 4.5) < 5 * c.slope[1]
    assert 0.45 < inside / 100 < 0.88  # five binomial standard errors
    assert abs(np.mean(found)) < 0.5


@cache
def two_bands(lam):
    h = preset("moire-n6").family
    states = [exact.solve(h.hamiltonian(jnp.asarray(h.vector(lam=lam))), 2, s) for s in (0, 1)]
    return [(s.energy, s.moire / lam, s.interaction) for s in states]


def test_exact_levels_of_six_electrons():
    """Two bands: λ_c = 1.061, and E_int falls by about 1.1 E0 (reference values)."""
    inner = np.array([1.0, 1.04, 1.08, 1.12])
    levels = np.moveaxis(np.array([two_bands(x) for x in inner]), 2, 0)
    lam = np.array([0.9, *inner, 1.3])  # at the ends there is one side only, with whatever energy
    padded = [np.concatenate([x[:1], x, x[-1:]]) for x in levels]
    data = scan(lam, *padded, width=0.045, errors=1e-4, centre=1.06)
    c = find(data)
    assert isinstance(c, Crossing)
    assert c.couplings == 4
    assert c.lam_c[0] == pytest.approx(1.061, abs=0.004)
    assert c.interaction[0] == pytest.approx(-1.1, abs=0.15)
    few = find(data.isel(coupling=[0, 2, 3, 5]))
    assert isinstance(few, str)
    assert "scan more densely" in few


def test_says_why_there_is_none():
    lam = np.linspace(0.9, 1.2, 13)
    data = scan(lam, *lines(lam), width=0.03)
    assert "momentum_energy" in find(data.drop_vars("momentum_energy"))
    same = data.copy(deep=True)
    same["momentum_probability"][:] = [1.0, 0.0, 0.0]
    assert "both ends" in find(same)
    apart = scan(lam, *lines(lam, lam_c=3.0), width=0.03)
    assert "do not cross" in find(apart)
    assert level_crossing.words("so") == "so"
    assert "cross at λ_c = 1.0" in level_crossing.words(find(data))

"""One smooth curve or two branches: right on made-up data of every kind, and on exact diagonalisation."""

import json
from dataclasses import replace
from functools import cache

import jax.numpy as jnp
import numpy as np
import pytest
import xarray

from qernel import exact
from qernel.branches import Curve, LeastSquares, curves, fit, most_parameters
from qernel.cli import main
from qernel.errors import InputError
from qernel.presets import preset
from qernel.transition import LEVEL, MIN_POINTS, examine
from qernel.transition_scan import analyse, combine, draw, fitted, of_scan, read_scan
from qernel.twist_average import with_averages
from test_cli import refused

SIGMA = 0.02
CENTRE = 1.06
H16, H21 = 1.75 / 15, 1.75 / 20


def grid(points):
    return np.linspace(0.25, 2.0, points)


def step(lam):
    return (lam > CENTRE).astype(float)


def tanh(lam, width, size):
    return -0.5 * lam - size / 2 * np.tanh((lam - CENTRE) / width)


SMOOTH = {
    "line": lambda lam: -2 * lam,
    "cubic": lambda lam: -2 * lam + (lam - CENTRE) ** 2 - 0.8 * (lam - CENTRE) ** 3,
    "exponential": lambda lam: -97 + 3 * np.exp(-1.3 * lam),
    "crossover": lambda lam: tanh(lam, 4 * H16, 30 * SIGMA),
    "wide crossover": lambda lam: tanh(lam, 6 * H16, 50 * SIGMA),
}
SHARP = {
    "jump": ("jump", lambda lam: -2 * lam - 20 * SIGMA * step(lam)),
    "jump of unequal slopes": ("jump", lambda lam: -2 * lam + 0.5 * lam**2 - (1 + lam - CENTRE) * step(lam)),
    "kink": ("kink", lambda lam: -2 * lam - 3 * np.maximum(lam - CENTRE, 0)),
}


def measured(curve, points, seed, sigma=SIGMA, underestimated=1.0):
    """(λ, values, errors): independent Gaussian noise, error bars that differ by a third from point to point."""
    rng = np.random.default_rng(seed)
    lam, error = grid(points), sigma * rng.uniform(0.7, 1.3, points)
    return lam, curve(lam) + underestimated * error * rng.normal(size=points), error


def verdicts(curve, points, seeds, **options):
    return [
        examine("made up", *measured(curve, points, seed, **options), samples=99, seed=seed) for seed in range(seeds)
    ]


def share(findings, *wanted):
    return np.mean([f.verdict in wanted for f in findings])


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_curves_have_no_transition(name):
    found = verdicts(SMOOTH[name], 16, 20)
    assert share(found, "jump", "kink") <= LEVEL
    assert share(found, "none") >= 0.7
    assert all(f.place is None for f in found if f.verdict in ("none", "undecided"))


def test_error_bars_too_small_by_three_are_no_transition():
    found = verdicts(SMOOTH["cubic"], 16, 20, underestimated=3.0)
    assert share(found, "jump", "kink") <= LEVEL
    scatter = np.median([f.scatter for f in found])
    assert scatter == pytest.approx(np.sqrt(8) * SIGMA, rel=0.3)


@pytest.mark.parametrize("name", SHARP)
def test_sharp_transitions_are_found_where_they_are(name):
    kind, curve = SHARP[name]
    found = verdicts(curve, 16, 12)
    assert share(found, "jump", "kink") >= 0.95
    assert share(found, kind) >= 0.8
    inside = [f.place.interval_95[0] <= CENTRE <= f.place.interval_95[1] for f in found if f.place]
    assert np.mean(inside) >= 0.8
    if kind == "jump":
        around = grid(16)[np.searchsorted(grid(16), CENTRE) + np.array([-1, 0])]
        place = found[0].place
        assert place.interval_68[0] <= around[0] + 1e-12
        assert place.interval_68[1] >= around[1] - 1e-12
        assert place.width == 0


def test_sizes_and_their_errors():
    jumps = [f for f in verdicts(SHARP["jump"][1], 16, 12) if f.verdict == "jump"]
    pulls = [(f.jump[0] + 20 * SIGMA) / f.jump[1] for f in jumps]
    assert np.abs(np.mean(pulls)) < 1
    assert np.sqrt(np.mean(np.square(pulls))) < 2
    kinks = [f for f in verdicts(SHARP["kink"][1], 16, 10) if f.verdict == "kink"]
    assert np.median([f.slope_change[0] for f in kinks]) == pytest.approx(-3, abs=0.5)
    assert kinks[0].jump is None


def test_a_rounded_jump_says_how_far_it_is_rounded():
    found = verdicts(lambda lam: tanh(lam, H21, 50 * SIGMA), 21, 6)
    assert share(found, "jump") == 1
    widths = [f.place.width for f in found]
    assert np.median(widths) == pytest.approx(H21, rel=0.35)
    assert "rounded over Δλ" in found[int(np.argmax(widths))].reason


def test_a_peak_is_found_and_a_hump_is_not():
    lam = grid(21)
    rng = np.random.default_rng(2)
    error = np.full(21, 0.05)
    noise = error * rng.normal(size=21)
    peak = 1 + 0.3 * lam + (1 + ((lam - CENTRE) / H21) ** 2) ** -2
    hump = 1 + 0.3 * lam + (1 + ((lam - CENTRE) / (7 * H21)) ** 2) ** -2
    found = examine("susceptibility", lam, peak + noise, error, ("peak",), 99)
    assert found.verdict == "peak"
    assert found.place.interval_95[0] < CENTRE < found.place.interval_95[1]
    assert found.jump[0] == pytest.approx(1, abs=4 * found.jump[1])
    assert examine("susceptibility", lam, hump + noise, error, ("peak",), 99).verdict == "none"
    dip = examine("susceptibility", lam, noise - peak, error, ("peak",), 99)
    assert dip.verdict != "peak"


def test_too_few_couplings_are_undecided():
    found = examine("made up", *measured(SHARP["jump"][1], MIN_POINTS - 1, 0))
    assert found.verdict == "undecided"
    assert found.reason.startswith(f"7 couplings; at least {MIN_POINTS} are needed")
    assert "--lam 0.25 2 12" in found.reason
    assert examine("made up", *measured(SHARP["jump"][1], MIN_POINTS, 0)).p is not None


def test_same_seed_same_answer_and_any_order():
    lam, y, error = measured(SHARP["jump"][1], 16, 4)
    mixed = np.random.default_rng(0).permutation(16)
    a, b = examine("q", lam, y, error, samples=99), examine("q", lam[mixed], y[mixed], error[mixed], samples=99)
    assert (a.p, a.delta_bic, a.place) == (b.p, b.delta_bic, b.place)
    shifted = examine("q", lam, 1e3 * y - 1e5, 1e3 * error, samples=99)
    assert shifted.delta_bic == pytest.approx(a.delta_bic, abs=1e-4)
    assert shifted.place == a.place


def test_batched_fits_are_the_single_ones():
    lam, y, error = measured(SHARP["jump"][1], 16, 1)
    candidates = curves(lam, ("jump", "kink", "peak"))
    assert max(c.parameters for c in candidates) <= most_parameters(16)
    chi2 = LeastSquares(lam, error, candidates).chi2(y[:, None])[:, 0]
    for k in range(0, len(candidates), 97):
        one = fit(candidates[k], lam, y, error)
        if candidates[k].kind != "peak" or one.difference(0)[0] > 0:
            assert one.chi2 == pytest.approx(chi2[k], rel=1e-8)
            assert np.sum(((y - one(lam)) / error) ** 2) == pytest.approx(one.chi2)


def test_differences_of_the_branches():
    lam = grid(16)
    y = 1 + 2 * lam + (0.5 + 3 * (lam - 1.0)) * (lam > 1.0)
    one = fit(Curve("jump", 1, 1.0, 0.95, 1.06), lam, y, np.ones(16))
    assert one.difference(0)[0] == pytest.approx(0.5)
    assert one.difference(1)[0] == pytest.approx(3)
    assert fit(Curve("polynomial", 1, 1.0, 1.0, 1.0), lam, y, np.ones(16)).difference(0) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"error": -1.0}, "q_error = -1.0: must be at least 0"),
        ({"value": np.nan}, r"q = \[nan\]: must be finite"),
        ({"lam": 0.25}, r"lam = \[0.25\]: must be different"),
        ({"samples": 5}, "samples = 5: must be at least 19"),
    ],
)
def test_bad_numbers_are_refused(change, message):
    lam, y, error = measured(SMOOTH["line"], 16, 0)
    arrays = {"lam": lam, "value": y, "error": error}
    options = {}
    for name, x in change.items():
        if name in arrays:
            arrays[name][5] = x
        else:
            options[name] = x
    with pytest.raises(InputError, match=message):
        examine("q", **arrays, **options)


def dataset(points=16, **quantities):
    lam = grid(points)
    data = {}
    for name, curve in quantities.items():
        _, y, error = measured(curve, points, len(name))
        data |= {name: ("coupling", y), f"{name}_error": ("coupling", error)}
    return xarray.Dataset(data, {"lam": ("coupling", lam)})


def test_quantities_that_agree_make_one_statement():
    curve = SHARP["jump"][1]
    found = analyse(dataset(interaction=curve, dE_dlam=lambda lam: 3 * curve(lam)), samples=99)
    assert found.statement.verdict == "sharp"
    assert found.missing == ["order_parameter", "susceptibility"]
    low, high = found.statement.interval_95
    assert low < CENTRE < high
    assert found.statement.interval_95 in [f.place.interval_95 for f in found.findings]


def test_quantities_that_differ_are_said_to():
    curve = SHARP["jump"][1]
    elsewhere = analyse(dataset(interaction=curve, order_parameter=lambda lam: curve(lam + 0.5)), samples=99)
    assert elsewhere.statement.verdict == "disagreement"
    assert "disagree about λ_c" in elsewhere.statement.text
    absent = analyse(dataset(interaction=curve, dE_dlam=SMOOTH["line"]), samples=99)
    assert absent.statement.verdict == "disagreement"
    assert absent.statement.lam_c is None
    few = examine("susceptibility", *measured(curve, 5, 0))
    jump = [f for f in absent.findings if f.place]
    assert combine([*jump, few]).verdict == "sharp"
    assert "fidelity susceptibility is undecided" in combine([*jump, few]).text
    assert combine([few]).verdict == "undecided"


@cache
def diagonalised(phi, high, points):
    """(λ, E_int, dE/dλ) of the lowest state, N = 6, two bands; sectors (0,0), (0,1) and (1,2) stand for all nine."""
    family = preset("moire-n6").family
    family = replace(family, material=replace(family.material, phi_deg=phi))
    lam = np.linspace(0.25, high, points)
    rows = []
    for x in lam:
        h = family.hamiltonian(jnp.asarray(family.vector(lam=float(x))))
        state = min((exact.solve(h, 2, sector) for sector in (0, 1, 5)), key=lambda s: s.energy)
        rows.append((state.interaction, state.moire / x))
    return lam, *np.array(rows).T


def findings(phi, top, count, sigma):
    """What is found in exact values with made-up errors, by name."""
    lam, *values = diagonalised(phi, top, count)
    rng = np.random.default_rng(7)
    for name, y in zip(("interaction", "dE_dlam"), values, strict=True):
        yield name, examine(name, lam, y + sigma * rng.normal(size=count), np.full(count, sigma), samples=199)


@pytest.mark.parametrize("sigma", [0.02, 0.1])
def test_exact_diagonalisation_jumps_at_45_degrees(sigma):
    for name, found in findings(45.0, 2.0, 15, sigma):
        assert found.verdict == "jump"
        assert found.place.interval_95[0] < 1.061 < found.place.interval_95[1]
        assert found.place.interval_95[1] - found.place.interval_95[0] < 0.15
        if name == "interaction":
            assert found.jump[0] == pytest.approx(-1.1, abs=3 * found.jump[1])


@pytest.mark.slow
@pytest.mark.parametrize("sigma", [0.02, 0.1])
def test_exact_diagonalisation_is_smooth_at_60_degrees(sigma):
    for _, found in findings(60.0, 3.0, 12, sigma):
        assert found.verdict == "none"
        assert "no sharp transition between λ = 0.75 and 2.5" in found.reason


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    curve = SHARP["jump"][1]
    dataset(interaction=curve, dE_dlam=curve).to_netcdf(folder / "results.nc", engine="h5netcdf")
    return folder


def test_command_prints_a_table_and_a_verdict(capsys, run):
    figure = run / "transition.pdf"
    assert main(["transition", str(run), "--samples", "99", "--figure", str(figure)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[-1].startswith("verdict: sharp transition at λ_c = 1.0")
    assert out[-2].startswith("levels: not in this scan")
    assert out[-3] == "not in this scan, left out: order_parameter, susceptibility"
    assert figure.read_bytes().startswith(b"%PDF")


def test_command_writes_json(capsys, run):
    call = ["transition", str(run / "results.nc"), "--samples", "99", "--json", "--quantity", "interaction"]
    assert main(call) == 0
    first = capsys.readouterr().out
    data = json.loads(first)
    assert data["verdict"] == "sharp"
    assert list(data["quantities"]) == ["interaction"]
    assert data["quantities"]["interaction"]["narrow"]["kind"] == "jump"
    assert data["interval_95"] == data["quantities"]["interaction"]["interval_95"]
    assert main(call) == 0
    assert capsys.readouterr().out == first


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--quantity", "interacton"], "quantity = interacton: unknown; did you mean 'interaction'"),
        (["--quantity", "susceptibility"], "quantity = susceptibility: must be in this scan"),
        (["--samples", "3"], "samples = 3: must be at least 19"),
        (["--seed", "-1"], "--seed = -1: must be at least 0"),
        (["--figure", "fits.txt"], "--figure = fits.txt: must be a file .pdf, .png, .svg"),
        (["--figure", "nowhere/fits.pdf"], "--figure = nowhere/fits.pdf: must be in a folder that exists"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_command_refuses(capsys, run, options, message):
    assert message in refused(capsys, run, "transition", run, *options)


def test_command_refuses_what_is_no_scan(capsys, tmp_path):
    assert "must be a run folder with results.nc" in refused(capsys, tmp_path, "transition", tmp_path)
    (tmp_path / "results.nc").write_bytes(b"no netCDF")
    assert "cannot be read" in refused(capsys, tmp_path, "transition", tmp_path)
    two = dataset(interaction=SMOOTH["line"]).assign_coords(epsilon=("coupling", np.arange(16.0)))
    two.to_netcdf(tmp_path / "two.nc", engine="h5netcdf")
    assert "couplings = lam, epsilon: must be λ alone" in refused(capsys, tmp_path, "transition", tmp_path / "two.nc")


def test_of_a_twist_average_the_means_are_examined(tmp_path):
    """The jump is at every other twist only, and twice as large as in the means."""
    curve, one = SHARP["jump"][1], dataset(interaction=SMOOTH["line"])
    two = one.isel(coupling=np.repeat(np.arange(16), 2))
    shift = curve(one["lam"].values) - SMOOTH["line"](one["lam"].values)
    two["interaction"] = ("coupling", two["interaction"].values + np.stack([2 * shift, 0 * shift], 1).ravel())
    two = two.assign_coords(twist_1=("coupling", np.tile([0.2, 0.4], 16)))
    for name in ("interaction", "interaction_error"):
        two[name].attrs = {"units": "E0", "long_name": name}
    found = with_averages(two, np.array([0.5, 0.5]))
    found.to_netcdf(tmp_path / "results.nc", engine="h5netcdf")
    means = read_scan(tmp_path)
    np.testing.assert_allclose(means["lam"], one["lam"])
    np.testing.assert_allclose(means["interaction"], one["interaction"] + shift, atol=1e-12)
    np.testing.assert_allclose(means["interaction_error"], one["interaction_error"] / np.sqrt(2))
    assert analyse(means, samples=99).statement.verdict == "sharp"
    assert of_scan(found).statement.text.startswith("sharp transition at λ_c = 1.0")
    assert of_scan(two) is None


def test_what_the_report_is_told(run):
    found = of_scan(read_scan(run))
    assert found.statement.text.startswith("sharp transition at λ_c = 1.0")
    (finding,) = [f for f in found.findings if f.quantity == "interaction"]
    lam, smooth, narrow = fitted(finding)
    left = np.isfinite(narrow) & (lam < 1.0)
    assert narrow[left] == pytest.approx(SHARP["jump"][1](lam[left]), abs=10 * SIGMA)
    assert np.isnan(narrow).any()  # the jump is not drawn as a slope
    assert np.isfinite(smooth).all()
    assert of_scan(dataset(7, interaction=SMOOTH["line"])) is None
    broken = dataset(interaction=SMOOTH["line"])
    broken["interaction_error"][3] = np.nan
    assert of_scan(broken).startswith("interaction_error")
    few = analyse(dataset(5, interaction=SMOOTH["line"]))
    assert len(draw(few).axes) == 1

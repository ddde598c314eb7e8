"""Sections, figures and files of the report: what they draw is what the scan holds, and geometry is right."""

import re
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
import xarray

from qernel import exact, figures
from qernel.cell import Cell
from qernel.family import Family
from qernel.observables import Quantity
from qernel.observables.structure_factor import StructureFactor, corners
from qernel.presets import EXACT
from qernel.report import write_report
from qernel.report_data import gather
from qernel.report_sections import sections
from qernel.report_sections.fidelity import infidelity, steps
from qernel.report_sections.further import missing
from qernel.report_sections.k_plane import wigner_seitz
from qernel.report_sections.levels import together
from qernel.report_sections.maps import averaged, grid, maps, quantities
from qernel.report_sections.occupation import nearest_length
from qernel.report_sections.section import shells
from qernel.report_sections.structure import structure
from qernel.report_sections.total_momentum import likeliest, stars, total_momentum
from qernel.report_sections.transition import transition, variance
from qernel.transition_scan import analyse
from runs import CONFIG, FAMILY, make_run, number, results

CELL = FAMILY.cell
START = replace(CONFIG, steps=0)
NK = "momentum_distribution"
MAPS = ("density", "structure_factor_map", "momentum_distribution_map", "router_load", "router_open")
AXES = {
    "k": {"k_x": ("k", [1.0, -1.0, 3.0]), "k_y": ("k", [0.0, 0.0, 2.0])},
    "G": {"G_x": ("G", [0.0, 2.0, -2.0]), "G_y": ("G", [0.0, 0.0, 0.0])},
    "r": {"r": ("r", np.linspace(0.05, 0.8, 6))},
    "sector": {"sector": ("sector", ["(0,0)/3", "(1,2)/3", "(2,1)/3"])},
    "neighbour": {"neighbour": ("neighbour", ["previous", "next"])},
    "trial": {"trial": ("trial", ["liquid", "crystal"])},
    "s1": {"s1": ("s1", [-1 / 3, 0.0, 1 / 3]), "s2": ("s2", [-1 / 3, 0.0, 1 / 3])},
    "layer": {"layer": ("layer", [0])},
}


def quantity(value, *dims):
    """A quantity at one coupling, with errors of a hundredth and the axes above."""
    value = np.asarray(value, float)
    axes = {name: x for d in dims for name, x in AXES.get(d, {}).items()}
    return Quantity(value, np.full(value.shape, 0.01), "1", "made up", dims, axes)


def measured(lam):
    """One of everything that a scan of two electrons can hold."""
    return {
        "variance": quantity(0.2 + lam),
        "v_score": quantity(0.01 * lam),
        "structure_factor": quantity([1.0, 1.0, 1.5 * lam], "k"),
        "order_parameter": quantity(0.3 * lam),
        "pair_correlation": quantity(np.linspace(0, 1, 6), "r"),
        "momentum_probability": quantity([0.2, 0.5, 0.3], "sector"),
        "momentum_energy": quantity([-30.0, -31.0, -32.0], "sector"),
        "momentum_interaction": quantity([-33.0, -33.0, np.nan], "sector"),
        "momentum_dE_dlam": quantity([-15.0, -15.0, -15.0], "sector"),
        "susceptibility": quantity(0.4),
        "momentum_distribution": quantity([0.9, 0.5, 0.6], "G"),
        "density_matrix_re": quantity(0.5 * np.ones((3, 3)), "s1", "s2"),
        "density_matrix_im": quantity(np.zeros((3, 3)), "s1", "s2"),
        "overlap": quantity(np.exp(-0.4 * 0.5**2)),
        "reweighting_ess": quantity([0.9, 0.8], "neighbour"),
        "reweighted_dE_dlam": quantity([-15.0, -15.0], "neighbour"),
        "reweighted_interaction": quantity([-33.0, -33.0], "neighbour"),
        "router_load": quantity([[0.25, 0.75]], "layer", "expert"),
        "router_open": quantity([[0.5, 1.0]], "layer", "expert"),
        "router_entropy": quantity([0.5], "layer"),
        "router_entropy_electron": quantity([0.4], "layer"),
        "trial_plane_waves": quantity(0.5),
        "trial_plane_waves_ess": quantity(0.6),
        "trial_bloch": quantity(0.4),
        "trial_gaussians": quantity(0.1),
        "trial_overlap": quantity([0.1 * lam, 0.2 * lam], "trial"),
        "compressibility": quantity(2.0 * lam),
    }


def with_quantities(config=START, only=None):
    made = []
    for r in results(config):
        every = measured(r.couplings["lam"])
        made.append(replace(r, quantities={n: q for n, q in every.items() if only is None or n in only}))
    return made


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"), CONFIG, with_quantities(CONFIG))


@pytest.fixture(scope="module")
def page(run):
    return write_report(run, bands=3).read_text()


@pytest.fixture(scope="module")
def data(run, page):
    return gather(run, bands=3)


@pytest.fixture(scope="module")
def found(data):
    return sections(data)


@pytest.fixture(scope="module")
def drawings(found):
    return {d.name: d for s in found for d in s.drawings}


def test_every_variable_of_the_scan_has_a_section(data, page, found):
    heads = re.findall("<h2>(.*?)</h2>", page)
    for head in (
        "Variance on both sides",
        "Electron density",
        "Structure factor and order",
        "Pair correlation",
        "Total momentum",
        "Levels by total momentum",
        "Trial states",
        "Momentum distribution",
        "Change of the state with the coupling",
        "Router",
        "Further quantities",
        "Training",
    ):
        assert heads.count(head) == 1
    assert "Not in this scan" not in heads
    used = [name for s in found for name in s.uses]
    assert sorted(used) == sorted(set(used))
    shown = {str(n) for n in data.dataset.data_vars if not str(n).endswith("_error")}
    assert shown - set(used) == set()


def test_unknown_quantities_are_drawn_by_the_labels_of_their_axis(found):
    rest = next(s for s in found if s.title == "Further quantities")
    assert [d.name for d in rest.drawings] == ["trial_overlap", "compressibility"]
    ax = rest.drawings[0].figure.axes[0]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["liquid", "crystal"]
    curves = [line.get_ydata() for line in ax.lines if len(line.get_xdata()) == 3 and line.get_linestyle() != "None"]
    assert curves == [pytest.approx([0.05, 0.1, 0.15]), pytest.approx([0.1, 0.2, 0.3])]


def test_what_a_scan_lacks_is_one_sentence(tmp_path):
    made = with_quantities(only=("structure_factor", "router_load"))
    data = gather(make_run(tmp_path, START, made), with_references=False)
    (text,) = missing(data).parts
    assert text.count("<p>") == 1
    assert (
        "The scan lacks order_parameter, pair_correlation, momentum_probability, momentum_energy, susceptibility, "
        "momentum_distribution, overlap, trial_plane_waves, trial_bloch, trial_gaussians: "
        "`qernel scan RUN --observables all`" in text
    )


def test_what_does_not_exist_is_not_recommended(tmp_path):
    one = Family(n_up=1, cell=Cell(supercell=((1, 0), (0, 1))))
    config = replace(START, network=replace(EXACT, experts=0), family=one)
    data = gather(make_run(tmp_path, config), with_references=False)
    (text,) = missing(data).parts
    lacks = re.search(r"The scan lacks (.*?):", text)[1].split(", ")
    assert lacks[:5] == ["structure_factor", "momentum_probability", "momentum_energy", "susceptibility", NK]
    assert "overlap" in lacks
    for reason in ("router (the network has no routed experts)", "pair correlation (one electron has no pairs)"):
        assert reason in text


def test_every_figure_is_a_pdf_for_print(run, page, drawings):
    files = {f.stem: f.read_bytes() for f in (run / "figures").glob("*.pdf")}
    assert sorted(files) == sorted(drawings)
    assert page.count("<figure>") == len(drawings)
    for name, content in files.items():
        assert b"/FontFile2" in content, name
        assert b"/Type3" not in content, name
        (width,) = re.findall(rb"/MediaBox \[ 0 0 ([\d.]+) ", content)
        assert float(width) in (pytest.approx(72 * 3.4), pytest.approx(72 * 7.0)), name
        if name not in MAPS:  # a map may be an image, and its colour bar is
            assert b"/Subtype /Image" not in content, name


def test_all_figures_can_be_drawn_again_from_one_file(run, data, page, drawings):
    kept = xarray.load_dataset(run / "report_data.nc", engine="h5netcdf")
    scan = xarray.load_dataset(run / "results.nc", engine="h5netcdf")
    assert kept[list(scan.data_vars)].drop_attrs().identical(scan.drop_attrs())
    h = FAMILY.hamiltonian(jnp.asarray([1.0]))
    assert kept["exact_energy"].values[1] == pytest.approx(exact.ground_state_energy(h, 3), abs=1e-9)
    assert kept["exact_energy"].units == "E0"
    assert (kept["hartree_fock_energy"].values > kept["exact_energy"].values).all()
    with xarray.open_datatree(run / "report_data.nc", engine="h5netcdf") as tree:
        groups = set(tree.children)
        training = tree["training"].to_dataset().load()
    assert groups == {name for name, d in drawings.items() if d.data is not None}
    # 240 steps, three to a point.
    assert training.attrs["steps_per_window"] == 5
    mine = data.log["energy"][data.log["coupling"] == 2]
    assert training["energy"].values[2] == pytest.approx(mine.reshape(-1, 5).mean(1))
    assert training["trained_lam"].values == pytest.approx([0.5, 1.0, 1.5])
    assert training["exact_energy"].values == pytest.approx(kept["exact_energy"].values)


def test_curves_differ_without_colour_and_maps_keep_their_order_in_grey():
    looks = [(s["marker"], str(s["ls"])) for s in map(figures.series, range(35))]
    assert len(set(looks)) == 35
    import matplotlib

    with figures.style():
        rgb = matplotlib.colormaps[figures.MAP](np.linspace(0, 1, 100))[:, :3]
    assert (np.diff(rgb @ [0.2126, 0.7152, 0.0722]) > 0).all()


@pytest.mark.parametrize("seed", range(4))
def test_zone_is_what_is_nearest_to_the_origin(seed):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(2, 2))
    zone = wigner_seitz(vectors)
    x, y = zone.T
    area = 0.5 * abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)))
    assert area == pytest.approx(abs(np.linalg.det(vectors)), rel=1e-6)
    n = np.stack(np.meshgrid(np.arange(-50, 51), np.arange(-50, 51)), -1).reshape(-1, 2)
    distance = np.linalg.norm(zone[:, None] - n @ vectors, axis=-1)
    assert distance.min(1) == pytest.approx(np.linalg.norm(zone, axis=1))
    assert (np.sum(distance < distance.min(1, keepdims=True) + 1e-6, axis=1) >= 3).all()


def test_corners_of_the_moire_zone_are_the_momenta_of_the_crystal():
    zone, k = wigner_seitz(CELL.moire_reciprocal), corners()
    assert len(zone) == 6
    assert np.linalg.norm(zone[:, None] - k, axis=-1).min(1) == pytest.approx(0, abs=1e-6)
    assert len(wigner_seitz(Cell("square").moire_reciprocal)) == 4


def test_shell_means_are_those_of_the_lengths():
    k = StructureFactor().wavevectors(Cell())
    k = np.concatenate([k, -k])
    length = np.linalg.norm(k, axis=1)
    at, mean, error = shells(length, np.exp(-length), 0.1 * length)
    assert mean == pytest.approx(np.exp(-at))
    assert error == pytest.approx(0.1 * at)
    assert len(at) == len(np.unique(length.round(6))) < len(length)


def test_distance_to_the_nearest_image():
    cell = Cell(supercell=((1, 0), (3, 1)))  # rows far from reduced: a parallelogram that hides nearer images
    s = np.random.default_rng(0).uniform(-0.5, 0.5, (200, 2)) @ cell.vectors
    n = np.stack(np.meshgrid(np.arange(-9, 10), np.arange(-9, 10)), -1).reshape(-1, 2)
    assert nearest_length(s, cell) == pytest.approx(np.linalg.norm(s[:, None] - n @ cell.vectors, axis=-1).min(1))


def test_stars_are_the_degenerate_sectors_of_exact_diagonalisation():
    h = Family(n_up=3).hamiltonian(jnp.asarray([1.0]))
    energies = np.array([s.energy for s in exact.solve_all(h, 2)])
    sets = stars(h.cell)
    assert sorted(map(len, sets)) == [1, 2, 6]
    assert sorted(np.concatenate(sets)) == list(range(9))
    for star in sets:
        assert np.ptp(energies[star]) < 1e-6
    assert np.diff(np.sort([energies[s[0]] for s in sets])).min() > 1e-3


def test_stars_need_the_symmetry_of_the_supercell():
    assert sorted(map(len, stars(Cell(supercell=((3, 0), (0, 1)))))) == [1, 2]  # k and −k alone
    assert sorted(map(len, stars(Cell("square", ((2, 0), (0, 2)))))) == [1, 1, 2]


def test_levels_of_equivalent_momenta_are_averaged(data):
    """K and K' together: (0.5 E_K + 0.3 E_K')/0.8."""
    curves = together(data)
    assert list(curves["momenta"].values) == ["(0,0)/3", "(1,2)/3 and 1 more"]
    energy = data.values("energy")
    np.testing.assert_allclose(curves["level"][:, 0], -30 - energy)
    np.testing.assert_allclose(curves["level"][:, 1], -(0.5 * 31 + 0.3 * 32) / 0.8 - energy)
    np.testing.assert_allclose(curves["level_error"][:, 1], 0.01 * np.hypot(0.5, 0.3) / 0.8)


def test_the_least_likely_momenta_are_summed_up():
    p = np.random.default_rng(0).dirichlet(np.arange(1, 13), size=4)
    shown, others, error = likeliest(p, np.full(p.shape, 0.01))
    assert len(shown) == 9
    left = [s for s in range(12) if s not in shown]
    assert others == pytest.approx(p[:, left].sum(1))
    assert error == pytest.approx(0.09)
    assert max(p[:, s].max() for s in left) <= min(p[:, s].max() for s in shown)
    assert likeliest(p[:, :9], p[:, :9])[1] is None


def test_exact_ground_state_is_marked_among_the_stars(data):
    single, star = total_momentum(data).drawings
    assert star.name == "total_momentum_stars"
    # K and K' of the three-cell torus are equivalent: 0.5 + 0.3; the ground state of two electrons is there.
    assert star.data["probability"].values == pytest.approx(np.tile([0.2, 0.8], (3, 1)))
    crosses = [line for line in star.figure.axes[0].lines if line.get_marker() == "x"]
    assert [list(c.get_ydata()) for c in crosses] == [pytest.approx([0.8] * 3)]
    assert not [line for line in single.figure.axes[0].lines if line.get_marker() == "x"]


def test_fidelity_of_displaced_gaussians_is_what_their_susceptibility_says(tmp_path):
    # Gaussians of width 1 displaced by λ: F = exp(−(λ − λ')²/4) and χ = 1/4, at any distance.
    lam = np.linspace(0.5, 1.5, 3)
    made = []
    for r, x, y in zip(results(START), lam, [*lam[1:], np.nan], strict=True):
        q = {"susceptibility": quantity(0.25), "overlap": quantity(np.exp(-((y - x) ** 2) / 4))}
        made.append(replace(r, quantities=q))
    data = gather(make_run(tmp_path, START, made), with_references=False)
    between = steps(data)
    assert (between.axis, between.at.tolist()) == ("lam", [0.75, 1.25])
    value, error, expected = infidelity(data, between)
    assert value == pytest.approx(expected, abs=1e-12)
    assert value == pytest.approx(1 - np.exp(-1 / 16))
    assert error == pytest.approx(0.01)


def test_neighbours_are_pairs_that_differ_in_one_coupling(tmp_path):
    config = replace(START, family=replace(FAMILY, lam=(0.5, 1.5, 2), epsilon=(4.0, 6.0, 3)))
    between = steps(gather(make_run(tmp_path, config), with_references=False))
    assert (between.axis, between.at.tolist()) == ("epsilon", [4.5, 5.5, 4.5, 5.5])
    assert between.labels == ["λ = 0.5"] * 2 + ["λ = 1.5"] * 2


def two_couplings(tmp_path, **family):
    """A scan over λ and ε whose energies are λ + 10 ε + 100 θ_x, out of order if asked for."""
    config = replace(START, family=replace(FAMILY, lam=(0.5, 1.5, 3), epsilon=(4.0, 6.0, 2), **family))
    made = []
    for r in results(config):
        c = r.couplings
        made.append(replace(r, energy=number(c["lam"] + 10 * c["epsilon"] + 100 * c.get("twist_1", 0.0), 0.2)))
    return make_run(tmp_path, config, made)


def test_maps_over_two_couplings(tmp_path):
    data = gather(two_couplings(tmp_path), with_references=False)
    shuffled = np.random.default_rng(0).permutation(6)
    data = replace(data, dataset=data.dataset.isel(coupling=shuffled))
    names, values, index = grid(data)
    assert names == ["lam", "epsilon"]
    assert index.shape == (3, 2, 1)
    wanted = (values[0][:, None] + 10 * values[1]) / 2
    (drawing,) = maps(data).drawings
    kept = drawing.data
    assert kept["energy_per_electron"].values == pytest.approx(wanted)
    assert kept["energy_per_electron_error"].values == pytest.approx(0.1)
    assert kept["map_lam"].values == pytest.approx([0.5, 1.0, 1.5])
    mesh = drawing.figure.axes[0].collections[0]
    assert np.asarray(mesh.get_array()).reshape(2, 3) == pytest.approx(wanted.T)
    assert drawing.figure.axes[0].get_ylabel() == "dielectric constant ε"


def test_maps_average_over_twists_and_need_a_full_grid(tmp_path):
    data = gather(two_couplings(tmp_path, twist_1=(0.0, 0.3, 4)), with_references=False)
    _, values, index = grid(data)
    assert index.shape == (3, 2, 4)
    _, value, error = averaged(quantities(data), index)["energy_per_electron"]
    assert value == pytest.approx((values[0][:, None] + 10 * values[1] + 15) / 2)
    assert error == pytest.approx(0.1 / 2)
    assert grid(replace(data, dataset=data.dataset.isel(coupling=slice(0, 23)))) is None
    twice = np.r_[np.arange(23), 0]  # as many points, one of them double
    assert grid(replace(data, dataset=data.dataset.isel(coupling=twice))) is None
    every = replace(data, dataset=data.dataset.isel(coupling=data.dataset["epsilon"].values == 4.0))
    assert grid(every) is None


def test_curves_are_drawn_against_the_coupling_that_varies(tmp_path):
    config = replace(START, family=replace(FAMILY, lam=(1.0, 1.0, 1), epsilon=(4.0, 6.0, 3)))
    data = gather(make_run(tmp_path, config), with_references=False)
    assert data.axis == "epsilon"
    (curve,) = data.groups
    assert data.x[curve[1]].tolist() == [4.0, 5.0, 6.0]
    assert variance(data).drawings[0].figure.axes[0].get_xlabel() == "dielectric constant ε"


def test_variance_shows_where_the_transition_is(tmp_path):
    config = replace(START, family=replace(FAMILY, lam=(0.5, 1.5, 16)))
    made = [
        replace(r, interaction=number(-33.0 - (r.couplings["lam"] > 1.03), 0.01), quantities=measured(1.0))
        for r in results(config)
    ]
    data = gather(make_run(tmp_path, config, made), with_references=False)
    data.__dict__["transition"] = analyse(data.dataset, ["interaction"], samples=99)
    low, high = data.lam_c
    assert low < 1.03 < high < low + 0.2
    for section in (variance(data), structure(data)):
        (band,) = section.drawings[-1].figure.axes[0].patches
        assert (band.get_x(), band.get_x() + band.get_width()) == (pytest.approx(low), pytest.approx(high))
    fits = transition(data).drawings[0].data
    assert fits["lam_c_low"].values == pytest.approx([low])
    right = fits["narrow"].values[0][fits["fit_lam"].values > 1.1]
    assert right == pytest.approx(-34.0, abs=0.05)


@pytest.mark.parametrize(
    ("limits", "wanted"),
    [
        ((35, 81), ["40", "50", "60", "80"]),
        ((0.25, 2), ["0.3", "0.5", "1", "2"]),
        ((0.04, 3), ["0.05", "0.1", "0.2", "0.5", "1", "2"]),
        ((200, 3e5), ["$10^{3}$", "$10^{4}$", "$10^{5}$"]),
    ],
    ids=str,
)
def test_logarithmic_axes_have_plain_numbers(limits, wanted):
    f, axes = figures.figure(3.4, 2.6)
    ax = axes[0, 0]
    ax.set(yscale="log", ylim=limits)
    figures.plain_log(ax.yaxis)
    f.draw_without_rendering()
    ticks = [*ax.yaxis.get_major_ticks(), *ax.yaxis.get_minor_ticks()]
    shown = [t for t in ticks if limits[0] <= t.get_loc() <= limits[1] and t.label1.get_text()]
    assert [t.label1.get_text() for t in sorted(shown, key=lambda t: t.get_loc())] == wanted

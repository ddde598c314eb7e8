"""Other runs beside a report: differences at common couplings, other sizes, what is refused, and words for it all."""

import json
from dataclasses import replace

import numpy as np
import pytest
import xarray

from qernel.cell import Cell
from qernel.config import Adam
from qernel.hamiltonian import MoirePotential
from qernel.report import write_report
from qernel.report_data import gather
from qernel.report_others import find_others
from qernel.report_sections import other_runs
from qernel.report_sections.others import difference
from qernel.stats import format_uncertainty
from runs import CONFIG, FAMILY, make_run, number, results
from test_cli import refused

START = replace(CONFIG, steps=0)
TWICE = replace(START, family=replace(FAMILY, n_up=4, cell=Cell(supercell=((2, 2), (2, -1)))))


def shifted(config, shift, error):
    """Results of a run whose energies and interaction energies lie above those of `results` by shift(λ)."""
    out = []
    for r in results(config):
        up = shift(r.couplings["lam"])
        moved = {n: number(getattr(r, n).mean + up, error) for n in ("energy", "interaction")}
        out.append(replace(r, variance=0.7, **moved))
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "this", START)


def other(run, name, config, **options):
    """Another run folder beside it."""
    return make_run(run.parent / name, config, **options)


def compared(run, *folders):
    return gather(run, with_references=False, compare=folders)


def test_differences_at_the_couplings_of_both(run):
    denser = replace(START, family=replace(FAMILY, lam=(0.5, 1.5, 5)))
    folder = other(run, "denser", denser, made=shifted(denser, lambda lam: 0.25 * (1 + lam), 0.03))
    page = write_report(run, references=False, compare=[folder]).read_text()
    data = compared(run, folder)
    (found,) = data.others
    assert found.pairs.tolist() == [[0, 0], [1, 2], [2, 4]]
    for name in ("energy", "interaction"):
        value, error = difference(data, found, name)
        assert value == pytest.approx([0.375, 0.5, 0.625])
        assert error == pytest.approx(np.hypot(0.01, 0.03))
    assert f"<td>{format_uncertainty(0.375, np.hypot(0.01, 0.03))}</td>" in page
    kept = xarray.load_dataset(run / "report_data.nc", engine="h5netcdf", group="other_runs")
    assert kept["energy_difference"].values == pytest.approx([0.375, 0.5, 0.625])
    assert kept["energy_difference_error"].values == pytest.approx(np.hypot(0.01, 0.03))
    assert kept["common_lam"].values == pytest.approx([0.5, 1.0, 1.5])
    assert kept["variance_other"].values == pytest.approx(0.7)
    (drawing,) = other_runs(data).drawings
    for ax, words in zip(drawing.figure.axes, ("E: other − this", "E_int: other − this"), strict=True):
        x, y = ax.lines[1].get_data()
        assert (x.tolist(), y.tolist()) == ([0.5, 1.0, 1.5], pytest.approx([0.1875, 0.25, 0.3125]))
        assert ax.get_ylabel().startswith(words)


def test_couplings_are_equal_within_a_billionth(run):
    near = replace(START, family=replace(FAMILY, lam=(0.5 + 5e-10, 1.5 + 5e-9, 2)))
    (found,) = compared(run, other(run, "near", near)).others
    assert found.pairs.tolist() == [[0, 0]]


def test_a_coupling_that_varies_in_one_run_only_is_compared_with_the_material_of_the_other(run):
    wide = replace(START, family=replace(FAMILY, epsilon=(2.5, 5.0, 2)))
    folder = other(run, "wide", wide)
    (found,) = compared(run, folder).others
    assert found.pairs.tolist() == [[0, 1], [1, 3], [2, 5]]
    (back,) = compared(folder, run).others
    assert back.pairs.tolist() == [[1, 0], [3, 1], [5, 2]]


def test_another_size_is_compared_per_electron(run):
    made = [replace(r, energy=number(-100.0, 0.4)) for r in results(TWICE)]
    folder = other(run, "twice", TWICE, made=made)
    data = compared(run, folder)
    (found,) = data.others
    assert found.other_size
    section = other_runs(data)
    assert [d.name for d in section.drawings] == ["second_size"]
    assert "twice: N = 4 on 6 moiré cells" in section.parts[0]
    mine, theirs = section.drawings[0].figure.axes[0].lines[0], section.drawings[0].figure.axes[0].lines[3]
    assert mine.get_ydata() == pytest.approx([-14.35, -18.1, -22.25])
    assert theirs.get_ydata() == pytest.approx(-25.0)
    numbers = section.drawings[0].data
    assert numbers["point_electrons"].values.tolist() == [2] * 3 + [4] * 3
    assert numbers["energy_error"].values == pytest.approx([0.005] * 3 + [0.1] * 3)


def test_what_differs_is_said_in_short_words(run):
    network = replace(START.network, film_width=0, width=16)
    folder = other(run, "control", replace(START, network=network, seed=3, optimizer=Adam(), memory=2.0, steps=12))
    (found,) = compared(run, folder).others
    assert found.differs == ("width 16", "no FiLM", "Adam", "seed 3", "12 steps")
    assert found.label == "control (width 16, no FiLM, Adam, 2 more)"
    alone = replace(START, family=replace(FAMILY, lam=(1.0, 1.0, 1)))
    (found,) = compared(run, other(run, "alone", alone)).others
    assert found.label == "alone (λ = 1 alone)"
    assert compared(run, other(run, "again", START)).others[0].label == "again"


def test_folders_of_the_same_name_are_told_apart(run):
    one, two = (other(run, f"{x}/crystal", START) for x in "ab")
    found = compared(run, one, two).others
    assert [o.name for o in found] == [str(one), str(two)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lam": (0.6, 1.4, 2)}, "a run with a coupling of"),
        ({"gate": 3.0}, "a run with the gate distance of"),
        ({"material": replace(FAMILY.material, mass=0.4)}, "a run with a coupling of"),
        ({"n_up": 4, "cell": TWICE.family.cell, "lam": (2.0, 3.0, 2)}, "a run with couplings like those of"),
        ({"n_up": 4, "cell": TWICE.family.cell, "epsilon": (2.0, 3.0, 2)}, "a run with couplings like those of"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_runs_with_nothing_in_common_are_refused(capsys, run, tmp_path, changes, message):
    folder = make_run(tmp_path / "other", replace(START, family=replace(FAMILY, **changes)))
    said = refused(capsys, run, "report", run, "--no-references", "--compare", folder)
    assert f"--compare = {folder}: must be {message} {run}" in said


def test_folders_that_cannot_be_compared_are_refused(capsys, run, tmp_path):
    again = other(run, "again", START)
    for folders, message in (
        ([tmp_path / "nowhere"], "must be an existing run folder"),
        ([tmp_path], "has no results.nc; run `qernel scan"),
        ([run], "must be another run, named once"),
        ([again, run.parent / "this/../again"], "must be another run, named once"),
    ):
        assert message in refused(capsys, tmp_path, "report", run, "--no-references", "--compare", *folders)


def test_another_potential_is_refused(run, tmp_path):
    folder = make_run(tmp_path / "other", START)
    file = folder / "results.nc"
    scan = xarray.load_dataset(file, engine="h5netcdf")
    config = json.loads(scan.attrs["config"])
    assert config["family"]["potential"] == {"type": MoirePotential.__name__}
    config["family"]["potential"] = {"type": "Stripes", "depth": 10.0}
    scan.assign_attrs(config=json.dumps(config)).to_netcdf(file, engine="h5netcdf")
    data = gather(run, with_references=False)
    with pytest.raises(ValueError, match="a run with the potential of"):
        find_others(run, data.config, data.dataset, [folder])

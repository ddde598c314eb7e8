"""The report of a run folder made up here: what it shows, what it warns of, what it refuses."""

import re
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import xarray

from qernel import checkpoint, exact, hartree_fock, references
from qernel.errors import InputError
from qernel.presets import preset
from qernel.references import choose_bands
from qernel.report import print_summary, write_report
from qernel.report_checks import checks, convergence_sentences, drift, not_converged
from qernel.report_data import gather
from qernel.report_tables import averages_table
from qernel.scan import save_dataset
from qernel.stats import format_uncertainty
from qernel.twist_average import with_averages
from runs import CONFIG, ENERGY, FAMILY, make_run, number, results


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"), fall={2: 2.0})


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return write_report(run, bands=3).read_text()


def test_page_needs_nothing_from_outside(page: str) -> None:
    assert "http" not in page
    assert "<script" not in page
    assert "<link" not in page
    assert "url(" not in page
    sources = re.findall(r'(?:src|href)="([^"]*)', page)
    assert len(sources) == 7
    assert all(s.startswith("data:image/svg+xml;base64,") for s in sources)
    assert len(page) < 4_000_000


def test_page_tells_what_was_run(page: str) -> None:
    for words in (
        "made-up",
        "filling ν = 2/3",
        "T1 = a1 + a2, T2 = 2 a1 − a2",
        "ε = 5",
        "3.37556 meV",
        "u = 10.62347",
        "commit 0123456789ab with uncommitted changes",
        "240 of 240 steps",
        "2 min of wall time",
    ):
        assert words in page


def test_page_has_every_energy_with_its_error(page: str) -> None:
    mev = FAMILY.material.e0_mev
    for e in ENERGY.values():
        for scale in (1, 1 / 2, mev / 2):
            assert f"<td>{format_uncertainty(e * scale, 0.01 * scale)}</td>" in page


def test_page_compares_with_references(page: str) -> None:
    h = FAMILY.hamiltonian(jax.numpy.asarray([1.0]))
    assert f"<td>{exact.ground_state_energy(h, 3):.4f}</td>" in page
    assert f"<td>{min(s.energy for s in hartree_fock.branches(h)):.4f}</td>" in page
    assert "gained by QERNEL" in page
    assert "3 Bloch bands per momentum" in page
    assert "upper bound" in page


def test_only_the_coupling_that_has_not_converged_is_named(run: Path) -> None:
    reasons = not_converged(gather(run, with_references=False))
    assert list(reasons) == ["λ = 1.5"]
    assert re.search(r"energy still fell by [12]\.\d+\(\d+\) E₀", reasons["λ = 1.5"][0])


def test_bad_chains_and_variance_are_named(tmp_path: Path) -> None:
    bad = results(CONFIG, energy=number(-30.0, r_hat=1.2), variance=100.0)
    made = [results(CONFIG)[0], bad[1], results(CONFIG)[2]]
    run = make_run(tmp_path, made=made)
    reasons = not_converged(gather(run, with_references=False))
    assert list(reasons) == ["λ = 1"]
    assert "variance is 100" in reasons["λ = 1"][0]
    assert "R̂ = 1.200" in reasons["λ = 1"][1]
    sentences = convergence_sentences(gather(run, with_references=False))
    assert len(sentences) == 1
    assert sentences[0].startswith("λ = 1: the variance is 100 E₀²")


def test_all_is_fine_is_said(tmp_path: Path) -> None:
    (sentence,) = convergence_sentences(gather(make_run(tmp_path), with_references=False))
    assert sentence.startswith("Nothing points to a lack of convergence")


def test_below_a_converged_exact_energy_is_an_alarm_and_below_an_upper_bound_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(references, "MAX_ELECTRONS_HF", 0)
    run = make_run(tmp_path, made=results(CONFIG, energy=number(-60.0)))
    by_name = {c.name: c for c in checks(gather(run))}
    assert by_name["Not below the exact energy"].status == "attention"
    by_name = {c.name: c for c in checks(gather(run, bands=2))}
    assert by_name["Not below the exact energy"].status == "no test"
    assert "which is fine" in by_name["Not below the exact energy"].text


def test_a_kinked_wavefunction_is_an_alarm(tmp_path: Path) -> None:
    run = make_run(tmp_path, made=results(CONFIG, kinetic_gap=number(0.06)))
    status = {c.name: c.status for c in checks(gather(run, with_references=False))}
    assert status["Kinetic energy two ways"] == "attention"
    assert status["Imaginary part of the energy"] == status["Chains agree"] == status["Acceptance"] == "ok"


def test_exact_states_pass_although_their_errors_are_rounding(tmp_path: Path) -> None:
    rounding = {"kinetic_gap": number(1e-12, 1e-14), "energy_imag": number(1e-13, 0.0)}
    run = make_run(tmp_path, replace(CONFIG, steps=0), results(CONFIG, **rounding))
    status = {c.name: c.status for c in checks(gather(run, with_references=False))}
    assert status["Kinetic energy two ways"] == status["Imaginary part of the energy"] == "ok"
    assert "No training step was made" in convergence_sentences(gather(run, with_references=False))[0]


def test_missing_files_are_one_line(tmp_path: Path, run: Path) -> None:
    with pytest.raises(InputError, match="existing run folder"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"config\.json"):
        write_report(tmp_path)
    (tmp_path / "config.json").write_text((run / "config.json").read_text())
    with pytest.raises(InputError, match="no checkpoint"):
        write_report(tmp_path)
    checkpoint.save(tmp_path / "checkpoints", 1, {"x": np.zeros(1)}, {})
    with pytest.raises(InputError, match="run `qernel scan") as error:
        write_report(tmp_path)
    assert "\n" not in str(error.value)
    (tmp_path / "results.nc").write_bytes(b"not a netCDF file")
    with pytest.raises(InputError, match=r"results\.nc: cannot be read"):
        write_report(tmp_path)


def test_a_scan_of_another_run_is_refused(tmp_path: Path, run: Path) -> None:
    other = make_run(tmp_path, replace(CONFIG, seed=5, steps=0))
    (other / "results.nc").write_bytes((run / "results.nc").read_bytes())
    with pytest.raises(InputError, match=r"another run \(seed"):
        write_report(other, references=False)


def test_references_are_kept_and_never_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references, "MAX_ELECTRONS_HF", 0)
    file, c = tmp_path / "references.json", FAMILY.grid()
    said: list[str] = []
    one = references.compute(FAMILY, c, file, 1, said.append)
    two = references.compute(FAMILY, c, file, 2, said.append)
    assert sum(x.startswith("computing") for x in said) == 2
    assert one.bands == 1
    assert two.bands == 2
    assert all(
        a is not None and b is not None and b.energy < a.energy for a, b in zip(one.exact, two.exact, strict=True)
    )
    other = replace(FAMILY, material=replace(FAMILY.material, epsilon=10.0))
    assert references.compute(other, c, file, 2, said.append).exact[0] != two.exact[0]

    def refuse(*_: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(exact, "ground_state", refuse)
    assert references.compute(FAMILY, c, file, 1, said.append) == one
    assert references.compute(FAMILY, c, file, 2, said.append) == two
    with pytest.raises(AssertionError, match="computed again"):
        references.compute(FAMILY, c + 0.1, file, 2, said.append)
    file.write_text("{ not JSON")
    with pytest.raises(AssertionError, match="computed again"):
        references.compute(FAMILY, c, file, 2, said.append)


def test_number_of_bands_follows_the_size() -> None:
    wanted = {"moire-n2": 16, "moire-n3": 6, "moire-n6": 2, "moire-n54": None}
    for name, bands in wanted.items():
        family = preset(name).family
        assert choose_bands(family.cell, family.n_up, family.n_down) == bands


def test_families_of_several_couplings(tmp_path: Path) -> None:
    config = replace(CONFIG, family=replace(FAMILY, lam=(0.5, 1.0, 2), epsilon=(4.0, 6.0, 2)), steps=0)
    text = write_report(make_run(tmp_path, config), references=False).read_text()
    assert "ε from 4 to 6 in 2 points" in text
    assert "<th>λ</th><th>ε</th>" in text
    assert "λ = 0.5, ε = 6" in text
    assert "Hartree–Fock (E₀)" not in text


def test_means_over_twists_have_a_table_beside_the_exact_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references, "MAX_ELECTRONS_HF", 0)
    family = replace(FAMILY, lam=(0.5, 1.0, 2), twist_1=(0.0, 1.4, 2), twist_2=(0.0, 1.4, 2))
    config, weights = replace(CONFIG, family=family, steps=0), np.array([0.4, 0.3, 0.2, 0.1])
    run = make_run(tmp_path, config)
    assert averages_table(gather(run, bands=2)) == ""
    data = xarray.load_dataset(run / "results.nc", engine="h5netcdf")
    data["energy"] = ("coupling", -30.0 - np.arange(8.0), data["energy"].attrs)
    save_dataset(with_averages(data, weights), run / "results.nc")
    section = averages_table(gather(run, bands=2))
    assert section in write_report(run, bands=2).read_text()
    h = family.hamiltonians(jax.numpy.asarray(family.grid()[4:]))
    exact_mean = sum(
        w * exact.ground_state_energy(jax.tree.map(lambda x, k=k: x[k], h), 2) for k, w in enumerate(weights)
    )
    assert "<th>λ</th><th>energy</th>" in section
    assert "<td>-35.000(5) [1]</td>" in section  # 34 + 0.3 + 2·0.2 + 3·0.1; 0.01 √Σw²; √Σw(x − x̄)²
    assert f"<td>{exact_mean:.4f}</td><td>{100 * (-35 - exact_mean) / abs(exact_mean):+.3f}</td>" in section


def test_eight_couplings_have_a_section_about_the_transition(tmp_path: Path, page: str) -> None:
    config = replace(CONFIG, family=replace(FAMILY, lam=(0.5, 1.5, 8)), steps=0)
    text = write_report(make_run(tmp_path, config), references=False).read_text()
    assert "<h2>Transition</h2>" in text
    assert "Verdict: no sharp transition between λ = 0.7857 and 1.214" in text
    assert "<h2>Transition</h2>" not in page


def test_drift_knows_its_error() -> None:
    rng = np.random.default_rng(1)
    steps = np.arange(3000)
    noise = 0.1 * rng.normal(size=3000)
    pulls = [drift(steps, 0.1 * rng.normal(size=3000)) for _ in range(200)]
    assert 0.85 < np.std([change / error for change, error in pulls]) < 1.25
    change, error = drift(steps, noise - 0.001 * steps)
    assert abs(change + 1.0) < 5 * error
    assert np.isnan(drift(steps[:9], noise[:9])[0])


def test_summary_fits_a_terminal(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    print_summary(gather(run, bands=3))
    out = capsys.readouterr().out
    for e in ENERGY.values():
        assert format_uncertainty(e, 0.01) in out
    assert "…" not in out
    assert "λ = 1.5: the energy still fell" in out

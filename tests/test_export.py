"""A model given away answers as the run it came from, and says what it is."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from qernel import load
from qernel.cli import main
from test_train import OPTIONS


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A family after one step, with a short scan."""
    with pytest.MonkeyPatch.context() as m:
        m.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
        folder = tmp_path_factory.mktemp("export") / "run"
        assert main(["train", *OPTIONS, "--run", str(folder), "--steps", "1"]) == 0
        short = ["--walkers", "8", "--max-sweeps", "20", "--burn-in", "5", "--observables", "energy"]
        assert main(["scan", str(folder), *short]) == 0
        yield folder


@pytest.fixture(scope="module")
def given(run):
    folder = run.with_name("given")
    assert main(["export", str(run), str(folder), "--bands", "2"]) == 0
    return folder


def test_answers_as_the_run(run, given):
    electrons = jnp.asarray(np.random.default_rng(0).uniform(size=(5, 2, 2)))
    a, b = load(run), load(given)
    np.testing.assert_array_equal(a.at(lam=0.7).log_psi(electrons), b.at(lam=0.7).log_psi(electrons))
    np.testing.assert_array_equal(a.trained_walkers, b.trained_walkers)


def test_holds_only_what_is_needed(given):
    files = sorted(str(p.relative_to(given)) for p in given.rglob("*") if p.is_file())
    assert files == ["README.md", "checkpoints/step_00000001.safetensors", "config.json", "provenance.json"]


def test_card_says_what_it_is_and_how_good(run, given):
    card = (given / "README.md").read_text()
    model = load(run)
    for words in (
        "# moire-n2",
        "lam from 0.5 to 1",
        f"{model.wavefunction.parameter_count()[0]:,}",
        model.checksum,
        "1 steps at 2 couplings with 6 walkers",
        "exact, 2 bands",
        "Hartree–Fock, liquid | Hartree–Fock, crystal",
        "What it is not for",
    ):
        assert words in card, words
    assert sum(line.startswith(("| 0.5 ", "| 1 ")) for line in card.splitlines()) == 2


def test_a_scan_of_other_weights_is_not_quoted(run):
    assert main(["train", *OPTIONS, "--run", str(run), "--steps", "2"]) == 0
    folder = run.with_name("later")
    assert main(["export", str(run), str(folder)]) == 0
    card = (folder / "README.md").read_text()
    assert "have not been measured" in card
    assert "exact" not in card


def test_references_given_must_be_of_the_system(run, capfd):
    folder = run.with_name("not-written")
    assert main(["export", str(run), str(folder), "--references", str(run / "config.json")]) == 2
    assert "--references" in capfd.readouterr().err
    (run / "results.nc").rename(run / "elsewhere.nc")
    reference = Path(__file__).parents[1] / "references" / "moire-n54-hf.json"
    assert main(["export", str(run), str(folder), "--references", str(reference)]) == 2
    assert "left out where there is no" in capfd.readouterr().err
    (run / "elsewhere.nc").rename(run / "results.nc")
    assert not folder.exists()


def test_nothing_is_overwritten(run, given, capfd):
    before = (given / "README.md").read_bytes()
    assert main(["export", str(run), str(given)]) == 2
    assert "not empty" in capfd.readouterr().err
    assert (given / "README.md").read_bytes() == before

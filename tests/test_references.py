"""Branches of Hartree–Fock followed along λ, kept in a file, and read by report and export."""

import json
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from qernel import hartree_fock, hf_branches, references
from qernel.cli import main
from qernel.config import to_dict
from qernel.errors import InputError
from qernel.family import Family
from qernel.hf_branches import chains, follow
from qernel.presets import preset
from qernel.reference_file import ReferenceFile, hartree_fock_question
from qernel.report_checks import checks
from qernel.report_data import gather
from qernel.report_files import with_references
from runs import ENERGY, FAMILY, make_run

ROOT = Path(__file__).parent.parent
SIX = Family(n_up=6, lam=(0.6, 1.4, 3))
SCAN = ["hf", "moire-n2", "--lam", "0.5", "1.5", "3"]
"""the Hamiltonians of the made-up runs"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    with pytest.MonkeyPatch.context() as m:
        m.setattr("qernel.cli._prepare_jax", lambda: None)
        path = tmp_path_factory.mktemp("references") / "hf.json"
        assert main([*SCAN, "--out", str(path)]) == 0
        yield path


def refuse(*_, **__):
    raise AssertionError("computed again")


@pytest.mark.parametrize("command", [["hf"], ["exact", "--bands", "2"]], ids=["hf", "exact"])
def test_a_run_folder_gives_the_hamiltonian(command, tmp_path, capsys):
    config = preset("moire-n2")
    family = replace(config.family, material=replace(config.family.material, epsilon=8.0))
    (tmp_path / "config.json").write_text(json.dumps(to_dict(replace(config, family=family))))
    found = []
    for who in ([str(tmp_path)], ["moire-n2", "--epsilon", "8"], ["moire-n2"]):
        assert main([command[0], *who, *command[1:], "--lam", "1", "--json"]) == 0
        found.append(capsys.readouterr().out)
    energies = [json.loads(text)["energy"] for text in found]
    assert energies[0] == energies[1] != energies[2]


def test_an_option_counts_where_its_coupling_varies(capsys):
    """ε is a range of this family, whose middle is 10."""
    found = []
    for words in (["moire-n3-lam-eps", "--epsilon", "4"], ["moire-n3", "--epsilon", "4"], ["moire-n3-lam-eps"]):
        assert main(["exact", *words, "--lam", "1", "--bands", "1", "--sector", "0", "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out)["energy"])
    assert found[0] == pytest.approx(found[1], abs=1e-9)
    assert abs(found[0] - found[2]) > 1


def test_branches_cross_and_each_is_a_stationary_determinant(tmp_path):
    """Six electrons: the liquid is lower at λ = 0.6, the crystal at 1.4; dE/dλ along each is its own ⟨W⟩ = moire/λ."""
    family = replace(SIX, lam=(0.6, 1.4, 5))
    found = follow(family, family.grid(), tmp_path / "r.json", say=lambda _: None)
    liquid, crystal = (np.array([x.energy for x in found[s]]) for s in ("liquid", "crystal"))
    assert liquid[0] < crystal[0]
    assert crystal[-1] < liquid[-1]
    direct = hartree_fock.hartree_fock(family.hamiltonian(jnp.asarray([0.8])), "crystal")
    assert found["crystal"][1].energy == pytest.approx(direct.energy, abs=6e-5)
    lam, step = family.grid()[:, 0], 0.2
    for states in found.values():
        e, w = (np.array([getattr(x, n) for x in states]) for n in ("energy", "moire"))
        slope = 0.5 * step * (w[1:] / lam[1:] + w[:-1] / lam[:-1])
        np.testing.assert_allclose(np.diff(e), slope, rtol=0.02)
    assert [x.continued_from for x in found["liquid"]] == [None, *map(float, lam[:-1])]
    assert [x.continued_from for x in found["crystal"]] == [*map(float, lam[1:]), None]
    assert all(x.order_parameter > 0.25 for x in found["crystal"])


def test_a_branch_is_followed_along_the_depth_alone():
    couplings = np.array([[0.5, 5], [1.5, 5], [1.0, 5], [0.5, 10], [1.0, 10]])
    assert chains(couplings, downwards=False) == [[0, 2, 1], [3, 4]]
    assert chains(couplings, downwards=True) == [[1, 2, 0], [4, 3]]


def test_what_is_done_is_kept_when_it_is_interrupted(tmp_path, monkeypatch):
    path, said = tmp_path / "r.json", []
    family = replace(FAMILY, lam=(0.5, 1.5, 3))
    solve, calls = hf_branches._solve, []

    def interrupted(*arguments):
        calls.append(arguments[1])
        if len(calls) == 5:
            raise KeyboardInterrupt
        return solve(*arguments)

    monkeypatch.setattr(hf_branches, "_solve", interrupted)
    with pytest.raises(KeyboardInterrupt):
        follow(family, family.grid(), path, say=said.append)
    assert said[0].startswith("Hartree-Fock, N = 2: 6 of 6 states to compute")
    assert len(said) == 1 + 4
    assert "crystal at λ = 1.5: E/N = -" in said[-1]
    calls.clear()
    follow(family, family.grid(), path, say=said.append)
    # The crystal is followed from the beginning of its branch: orbitals are not kept.
    assert calls == ["crystal", "crystal", "crystal"]
    kept = [(r["answer"]["state"], r["answer"]["continued_from"]) for r in ReferenceFile(path).records]
    assert kept[:3] == [("liquid", None), ("liquid", 0.5), ("liquid", 1.0)]
    assert kept[3:] == [("crystal", None), ("crystal", 1.5), ("crystal", 1.0)]
    monkeypatch.setattr(hf_branches, "_solve", refuse)
    assert len(follow(family, family.grid(), path, say=refuse)["liquid"]) == 3


def test_a_file_serves_any_run_of_the_same_hamiltonians(tmp_path, file, monkeypatch):
    """As for a system too large to be computed for a report."""
    monkeypatch.setattr(references, "MAX_ELECTRONS_HF", 0)
    run = make_run(tmp_path / "run")
    assert {c.name: c.status for c in checks(gather(run))}["Better than one determinant"] == "no test"
    data = gather(run, given=file)
    lower = np.minimum(*(data.reference(f"hartree_fock_{x}", "energy") for x in ("liquid", "crystal")))
    np.testing.assert_array_equal(data.reference("hartree_fock", "energy"), lower)
    check = next(c for c in checks(data) if c.name == "Better than one determinant")
    above = [k for k, e in enumerate(ENERGY.values()) if e > lower[k] + 0.03]
    assert check.status == ("attention" if above else "ok")
    kept = with_references(data)
    assert kept["hartree_fock_crystal_interaction"].shape == kept["hartree_fock_liquid_order_parameter"].shape == (3,)
    monkeypatch.setattr(hf_branches, "_solve", refuse)
    again = gather(run).references  # the run has taken them over
    assert again == data.references


def test_the_check_counts_what_it_compares(tmp_path, file, monkeypatch):
    monkeypatch.setattr(references, "MAX_ELECTRONS_HF", 0)
    monkeypatch.setitem(ENERGY, 1.0, -80.0)
    monkeypatch.setitem(ENERGY, 0.5, -79.0)
    monkeypatch.setitem(ENERGY, 1.5, -90.0)
    data = gather(make_run(tmp_path / "run"), given=file)
    check = next(c for c in checks(data) if c.name == "Better than one determinant")
    assert check.status == "ok"
    assert "at 3 of the 3 couplings that have one (of 3)" in check.text
    gain = min((data.reference("hartree_fock", "energy") - data.values("energy")) / 2)
    assert f"by {gain:.3f}(5) E₀ per electron" in check.text


@pytest.mark.parametrize(
    ("content", "words"),
    [("{", "a file of `qernel hf --out`"), (None, "a file of `qernel hf --out`"), ("other", "is of a Hamiltonian of")],
)
def test_a_file_of_something_else_is_refused(tmp_path, file, content, words):
    path = tmp_path / "given.json"
    if content is not None:
        path.write_text(file.read_text().replace('"v0": 4', '"v0": 5') if content == "other" else content)
    with pytest.raises(InputError, match=words):
        references.compute(FAMILY, FAMILY.grid(), tmp_path / "kept.json", 1, lambda _: None, path)
    assert not (tmp_path / "kept.json").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--out", "x.json", "--cutoff", "50"], "--cutoff"),
        (["--out", "x.json", "--starts", "random"], "random"),
        (["--out", "x.txt"], ".json"),
        ([], "unless --out"),
    ],
)
def test_options_that_do_not_go_together(options, words, capsys, monkeypatch):
    monkeypatch.setattr("qernel.cli._prepare_jax", lambda: None)
    assert main([*SCAN, *options]) == 2
    assert words in capsys.readouterr().err


def test_the_table_of_54_electrons_is_that_of_the_preset_and_of_an_independent_code():
    """references/moire-n54-hf.json answers for the preset's Hamiltonians, and follows the independent reference's
    crystal, read off between its points by a cubic; the liquid is no higher. dE/dλ is ⟨W⟩ along both."""
    family = preset("moire-n54").family
    file, lam = ReferenceFile(ROOT / "references" / "moire-n54-hf.json"), np.linspace(0.25, 2, 8)
    states = {
        s: [file.find(hartree_fock_question(family.hamiltonian(jnp.asarray(family.vector(lam=x))), s)) for x in lam]
        for s in ("liquid", "crystal")
    }
    rows = json.loads((ROOT / "tests" / "reference" / "wse2_ws2.json").read_text())["hartree_fock_n54"]["rows"]
    v, other, energy = np.array(rows)[:, [0, 1, 3]].T
    for k, x in enumerate(lam[:4]):
        near = np.argsort(np.abs(v - x * family.material.v0))[:4]
        crystal, liquid = (
            np.polynomial.Polynomial.fit(v[near], e[near], 3)(x * family.material.v0) for e in (energy, other)
        )
        assert states["crystal"][k].energy / 54 == pytest.approx(crystal, abs=3e-3)
        assert liquid - 0.1 < states["liquid"][k].energy / 54 < liquid + 3e-3  # of several minima, no higher a one
    assert states["crystal"][-1].energy / 54 == pytest.approx(-27.32842, abs=1e-4)
    assert states["crystal"][-1].interaction / 54 == pytest.approx(-16.75679, abs=1e-3)
    assert all(x.converged for branch in states.values() for x in branch)
    assert states["liquid"][0].energy < states["crystal"][0].energy
    assert states["crystal"][-1].energy < states["liquid"][-1].energy
    for branch in states.values():
        e, w = (np.array([getattr(x, n) for x in branch]) for n in ("energy", "moire"))
        np.testing.assert_allclose(np.diff(e), 0.125 * (w[1:] / lam[1:] + w[:-1] / lam[:-1]), rtol=0.03)

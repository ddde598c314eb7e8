"""The comparison of moves counts what it says. That all moves sample the same density: test_sampling.py."""

from dataclasses import replace

import pytest

import qernel
from qernel.bench_sampling import TERMS, Proposal, effective_samples, table
from qernel.cell import Cell
from qernel.config import Config, Sampling
from qernel.family import Family
from qernel.presets import EXACT
from qernel.train import run


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    config = Config(
        family=Family(n_up=2, cell=Cell(supercell=((1, 1), (2, -1))), lam=(0.5, 1.5, 2)),
        network=replace(EXACT, experts=0, heads=0, film_width=0, jastrow_shells=2, plane_wave_cutoff=60.0),
        sampling=Sampling(walkers=8, burn_in=10),
        steps=1,
    )
    folder = tmp_path_factory.mktemp("bench") / "run"
    run(config, folder)
    return qernel.load(folder)


def test_worth_of_a_trained_model(model):
    """Widths reach the acceptance asked for; rates follow from τ, the cost of a move and the number of chains."""
    settings = {"walkers": 64, "sweeps": 60, "moves": 1, "burn_in": 150}
    for proposal in (Proposal(0.6, drift=False), Proposal(0.8)):
        worth = effective_samples(model, proposal, **settings)
        assert worth.acceptance == pytest.approx(proposal.acceptance, abs=0.08)
        assert worth.milliseconds > 0
        for term in TERMS:
            assert 0.5 <= worth.tau[term] < 30
            # Σ_c walkers/(2τ_c) over the cost is at least that with the mean τ (convexity), and not far from it.
            simple = 2 * 64 / (2 * worth.tau[term]) / (1e-3 * worth.milliseconds)
            assert 0.99 * simple < worth.per_second[term] < 2 * simple


def test_table_has_a_row_for_each_contender(model):
    text = table(model, [Proposal(0.5, drift=False), Proposal(0.6)], walkers=64, sweeps=20, moves=1, burn_in=5)
    lines = text.splitlines()
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| Gaussian")
    assert lines[3].startswith("| Langevin")

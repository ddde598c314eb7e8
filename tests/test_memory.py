"""Sizes chosen for the machine, halved where memory runs out, remembered by the run."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from qernel import checkpoint, memory
from qernel.cell import Cell
from qernel.compiling import compiled
from qernel.config import Config, Sampling
from qernel.errors import InputError
from qernel.family import Family
from qernel.laplacian import kinetic_energy
from qernel.log import Console
from qernel.memory import GIB, MIB, Plan, make_plan
from qernel.presets import EXACT, preset
from qernel.scores import score_rows
from qernel.train import run
from qernel.vmc import Vmc

N54 = replace(preset("moire-n54"), sampling=Sampling(walkers=128))
TINY = Config(
    family=Family(n_up=2, cell=Cell(supercell=((1, 1), (2, -1))), lam=(0.5, 1.0, 2)),
    network=replace(EXACT, experts=0, heads=0, film_width=2, jastrow_shells=2, plane_wave_cutoff=40.0),
    sampling=Sampling(walkers=6, sweeps=2, burn_in=2),
    steps=2,
)


def exhausted():
    return jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.")


def plan_of(config, parameters=304_697):
    return make_plan(config, 8, config.sampling.walkers, parameters)


def test_everything_fits_into_a_large_memory():
    plan = plan_of(replace(N54, memory=16.0))
    assert plan.score_blocks == 1
    # On CPUs chunks are small for the cache: one array of first derivatives of 54 electrons fills it.
    if jax.default_backend() == "cpu":
        assert plan.chunk == 1
        assert plan_of(replace(N54, memory=16.0, family=replace(N54.family, n_up=6))).chunk > 50


@pytest.mark.parametrize("gib", [0.4, 1.0, 2.0])
def test_less_memory_gives_smaller_pieces_within_it(gib):
    config = replace(N54, memory=gib)
    plan = plan_of(config)
    rows, item = 2 * 8 * 128, 4
    assert 1 < plan.score_blocks < memory.MOST_BLOCKS
    taken = 304_697 / plan.score_blocks * rows * item + plan.score_chunk * memory.score_bytes(N54.network, 54, 304_697)
    assert taken + 8 * 8 * rows**2 <= gib * GIB
    assert plan.chunk * memory.energy_bytes(N54.network, 54) <= gib * GIB


def test_a_chunk_that_is_asked_for_is_taken():
    plan = plan_of(replace(N54, sampling=replace(N54.sampling, chunk=7)))
    assert plan.chunk == plan.move_chunk == plan.score_chunk == 7


def test_available_memory_is_a_sensible_number():
    assert 64 * MIB < memory.available() < 2**50
    assert memory.budget(TINY) == pytest.approx(0.6 * memory.available(), rel=0.2)
    assert memory.budget(replace(TINY, memory=2.0)) == 2 * GIB


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_impossible_budgets_are_refused(value):
    with pytest.raises(InputError, match=r"memory = .*must be a positive number of GiB"):
        Config(memory=value)


def test_halving_until_it_fits():
    tried, said = [], []

    def work(plan):
        tried.append(plan)
        if plan.chunk > 4:
            raise exhausted()
        return plan.chunk

    assert memory.fitting(work, Plan(20, 30, 9, 1), said.append) == (2, Plan(2, 3, 1, 8))
    assert tried == [Plan(20, 30, 9, 1), Plan(10, 15, 4, 2), Plan(5, 7, 2, 4), Plan(2, 3, 1, 8)]
    assert len(said) == 3


def test_errors_that_smaller_pieces_do_not_cure_are_raised():
    def never(plan):
        raise exhausted()

    def other(plan):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        memory.fitting(never, Plan(4, 4, 4, 4), lambda line: None)
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        memory.fitting(other, Plan(4, 4, 4, 4), lambda line: None)


def test_a_run_goes_on_with_the_sizes_it_came_to(tmp_path, monkeypatch, capsys):
    """Memory runs out at chunks above 3: said, halved, remembered, and a run that goes on starts with what fitted."""
    used, measure = [], Vmc._measure

    def short_of_memory(self, *args):
        used.append(self.plan.chunk)
        if self.plan.chunk > 3:
            raise exhausted()
        return measure.__get__(self, Vmc)(*args)

    monkeypatch.setattr(Vmc, "_measure", short_of_memory)
    run(TINY, tmp_path, console=Console(2))
    assert used == [12, 6, 3, 3]
    text = capsys.readouterr().err
    assert "chunk 12 walkers (local energy)" in text
    assert "scores held" in text
    assert text.count("out of memory") == 2
    header = checkpoint.read_header(checkpoint.latest(tmp_path / "checkpoints"))
    assert header.user["plan"]["chunk"] == 3
    used.clear()
    run(replace(TINY, steps=3), tmp_path, console=Console(3))
    assert used == [3]
    assert "chunk 3 walkers" in capsys.readouterr().err


@pytest.mark.slow
def test_estimates_are_not_below_what_the_compiler_reports():
    """Local energy and scores of a small network, in float32: within a factor of four above, never below two thirds."""
    config = replace(preset("moire-n6"), sampling=Sampling(walkers=32))
    vmc = Vmc(config)
    state = vmc.blank()
    points = jax.tree.map(np.asarray, vmc.points)
    for f, estimate in (
        (kinetic_energy, memory.energy_bytes(config.network, 6)),
        (score_rows, memory.score_bytes(config.network, 6, vmc.n_parameters)),
    ):
        taken = []
        for chunk in (256, 384):  # with fewer, the rows of all walkers take more than a chunk does
            program = compiled(f).lower(state.model, state.walkers, points, chunk).compile().compiled
            taken.append(program.memory_analysis().temp_size_in_bytes)
        per_walker = (taken[1] - taken[0]) / 128
        assert estimate / 4 < per_walker < estimate * 1.5

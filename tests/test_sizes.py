"""The least memory of a computation: a true lower bound, told without making any of it."""

import resource
import subprocess
import sys
import tracemalloc
from dataclasses import replace

import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inputs import ask, examples
from qernel import exact, hartree_fock, sizes, sizes_reference
from qernel.cell import Cell
from qernel.config import Adam, Config, from_dict, to_dict
from qernel.errors import InputError
from qernel.family import Family
from qernel.memory import GIB
from qernel.presets import preset
from qernel.result import Settings
from qernel.start import make_start
from qernel.vmc import Vmc

N3 = preset("moire-n3")
OTHERS = Config(
    family=Family(n_up=2, n_down=1, cell=Cell("square", ((2, 0), (0, 2))), lam=(0, 1, 2), twist_1=(0.0, 1.0, 2)),
    network=replace(N3.network, film_width=0, heads=0, experts=0, jastrow_shells=5),
)


@pytest.mark.parametrize("config", [N3, preset("moire-n6"), preset("free-n7"), OTHERS], ids=lambda c: c.name)
def test_weights_are_counted(config):
    assert sizes.parameters(config) == Vmc(config).n_parameters


def test_a_gram_matrix_that_does_not_fit_is_named(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("qernel.stages.available", lambda: 14.0 * GIB)
    answer = ask(tmp_path, "train", "moire-n3", "--run", tmp_path / "run", "--sampling.walkers", 32768)
    assert answer.code == 2
    rows = 2 * 8 * 32768
    assert f"Gram matrix of 2·8·32768 rows, regularised and factored: {24 * rows**2 / GIB:.0f} GiB" in answer.line
    assert "14 GiB are free: less of sampling.walkers" in answer.line
    # Adam has no such matrix.
    adam = replace(N3, optimizer=Adam(), sampling=replace(N3.sampling, walkers=32768))
    sizes.check_training(adam)


def test_the_limit_is_the_free_memory(monkeypatch):
    needed = max(sum(p.size for p in stage) for stage in [sizes.start(N3), *sizes.training(N3)])
    monkeypatch.setattr("qernel.stages.available", lambda: needed)
    sizes.check_training(N3)
    monkeypatch.setattr("qernel.stages.available", lambda: needed - 1)
    with pytest.raises(InputError, match="needs at least"):
        sizes.check_training(N3)


HUGE = [
    (("sampling", "walkers"), 10**6),
    *((("network", name), 10**9) for name in ("width", "shared_width", "expert_width", "film_width", "jastrow_shells")),
    (("network", "layers"), 10**9),
    (("network", "experts"), 10**6),
    (("network", "determinants"), 10**6),
    (("network", "plane_wave_cutoff"), 1e12),
    (("family", "n_up"), 10**6),
    (("family", "n_down"), 10**6),
    (("family", "lam"), [0.0, 1.0, 10**9]),
    (("train_at", "lam"), [0.5, 1.0, 10**9]),
    (("family", "cell"), {"supercell": [[10**4, 0], [0, 10**4]]}),
    (("family", "cell"), {"supercell": [[10**9, 1], [1, 0]]}),
    (("family", "gate"), 1e-9),
    (("steps",), 10**30),
]


def changed(path, value):
    data = to_dict(replace(N3, network=replace(N3.network, experts=4)))
    table = data
    for name in path[:-1]:
        table = table[name]
    table[path[-1]] = value
    return data


def asked(data):
    """(the refusal or None, most bytes in use) of a configuration."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    try:
        sizes.check_training(from_dict(data))
        said = None
    except InputError as error:
        said = str(error)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024
    return said, peak


@pytest.mark.parametrize(("path", "value"), HUGE, ids=lambda x: ".".join(x) if isinstance(x, tuple) else "")
def test_huge_configurations_cost_nothing(path, value):
    said, peak = asked(changed(path, value))
    assert said is not None
    assert path[-1] in said or path[0] in said
    assert peak < 2**22


@examples(25)
@given(st.sampled_from(HUGE[:12]), st.integers(1, 18), st.integers(1, 10**3))
def test_sizes_are_told_without_making_anything(huge, power, cells):
    path, value = huge
    data = changed(path, type(value)(10**power))
    data["family"]["cell"]["supercell"] = [[cells, 1], [0, 1]]
    assert asked(data)[1] < 2**22


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"walkers": 10**9}, "density in 1296 bins of every walker"),
        ({"walkers": 10**9, "observables": "energy"}, "less of --walkers"),
        ({"bins": 10**6}, "less of --bins"),
        ({"walkers": 10**12, "bins": 10**12, "max_sweeps": 10**12}, "needs at least"),
    ],
)
def test_measuring_that_does_not_fit(changes, words):
    with pytest.raises(InputError, match=words):
        sizes.check_sampling(N3, 8, Settings(**changes))


def hamiltonian(n_up, supercell=((3, 0), (0, 3))):
    family = Family(n_up=n_up, cell=Cell(supercell=supercell))
    return family.hamiltonian(jnp.asarray(family.vector(lam=1.0)))


def peak_of(run):
    tracemalloc.start()
    run()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def total(stage):
    return sum(p.size for p in stage)


def test_exact_diagonalisation_takes_what_was_said():
    h = hamiltonian(3)
    states = 54 * 53 * 52 // 6
    bound = total(sizes_reference.exact(h, 6, exact.CUTOFF, states))
    assert bound < peak_of(lambda: exact.solve(h, 6, 0)) < 4 * bound


def test_hartree_fock_takes_what_was_said():
    h = hamiltonian(6)
    bound = total(sizes_reference.hartree_fock(h, 3000.0))
    run = lambda: hartree_fock.hartree_fock(h, "random", 3000.0, max_iterations=1, threads=1)  # noqa: E731
    assert bound < peak_of(run) < 8 * bound


def test_the_start_takes_what_was_said():
    family = replace(N3.family, lam=(1.0, 1.0, 1))
    config = replace(N3, family=family, network=replace(N3.network, plane_wave_cutoff=1500.0))
    bands = total(sizes.start(config)[:2])  # the rest is of the pair factor and the interaction
    assert bands < peak_of(lambda: make_start(family, config.network)) < 4 * bands


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["exact", "moire-n3", "--lam", 1, "--bands", 10**6], "bands = 1000000: must be at most"),
        (["exact", "moire-n54", "--lam", 1, "--bands", 2], "dimension = about"),
        (["exact", "moire-n54", "--lam", 1, "--n", 2, "--bands", 30], "memory: needs at least"),
        (["hf", "moire-n150", "--lam", 1, "--cutoff", 1e5], "orbitals on a grid of"),
    ],
)
def test_references_that_do_not_fit(tmp_path, monkeypatch, arguments, words):
    monkeypatch.setattr("qernel.stages.available", lambda: 14.0 * GIB)
    answer = ask(tmp_path, *arguments)
    assert answer.code == 2
    assert words in answer.line


STEP = """
import resource
from dataclasses import replace
import jax
jax.config.update("jax_enable_x64", True)
from qernel import sizes
from qernel.presets import preset
from qernel.vmc import Vmc
c = preset("moire-n6")
c = replace(c, sampling=replace(c.sampling, walkers=256, sweeps=1, burn_in=0))
v = Vmc(c)
v.step(v.blank())
print(max(sum(p.size for p in s) for s in sizes.training(c)), 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_a_step_takes_what_was_said():
    """Fifteen couplings with 256 walkers: the Gram matrix has most of it, the process and its compiler the rest."""
    out = subprocess.run([sys.executable, "-c", STEP], capture_output=True, text=True, check=True).stdout
    said, peak = map(float, out.split())
    assert said < peak < 4 * said

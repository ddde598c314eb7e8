"""The bench: what it counts and how it reports. What it times is no test."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qernel import bench, cli
from qernel.bench_machine import Machine, alternate, products, quantity
from qernel.bench_problems import psiformer, psiformer_of
from qernel.bench_report import as_json, lines
from qernel.presets import EXACT
from qernel.start import make_start
from qernel.wavefunction import Wavefunction

MACHINE = Machine("a processor", 2, 1e11, 1e10, 1e-5)


def test_products_are_counted_with_loops_branches_and_complex_numbers():
    a, b = jnp.zeros((5, 3)), jnp.zeros((3, 7))

    def flops(f, *x):
        return products(jax.make_jaxpr(f)(*x).jaxpr)[0]

    assert flops(lambda a, b: a @ b, a, b) == 2 * 5 * 3 * 7
    assert flops(lambda a, b: a @ b, a + 0j, b + 0j) == 8 * 5 * 3 * 7
    assert flops(lambda a: jax.lax.map(lambda r: jnp.tanh(r @ b), a), a) == 2 * 5 * 3 * 7
    assert flops(lambda a: jax.lax.cond(a[0, 0] > 0, lambda: a @ b @ b.T, lambda: a), a) == 4 * 5 * 3 * 7
    assert flops(jax.jit(lambda a: a + 1), a) == 0
    traffic = products(jax.make_jaxpr(lambda a, b: a @ b)(a, b).jaxpr)[1]
    assert traffic == (5 * 3 + 3 * 7 + 5 * 7) * a.dtype.itemsize


def test_programs_take_turns():
    order = []
    times = alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, seconds=0.0, least=4)
    assert order == ["a", "b"] * 4
    assert [len(t) for t in times.values()] == [4, 4]
    assert quantity(np.array([4.0, 1.0, 2.0, 3.0, 100.0])).value == 3.0


def test_opponent_has_as_many_weights():
    f = bench.family(6)
    count = Wavefunction(jax.random.key(0), make_start(f, psiformer(20))).parameter_count()[0]
    assert psiformer_of(f, count + 10) == psiformer(20)


@pytest.fixture
def small(monkeypatch):
    """Networks and times of a test."""
    network = replace(EXACT, dtype="float32", experts=0, jastrow_shells=2, plane_wave_cutoff=60.0)
    monkeypatch.setattr(bench, "COMMON", network)
    monkeypatch.setattr(bench, "EXPERTS", replace(network, experts=6, top_k=2))
    monkeypatch.setattr(bench, "WALKERS", {6: 2})


def test_ratios_of_the_local_energy_and_the_experts(small):
    figures = bench.local_energy(6, MACHINE, 0.0).figures
    assert figures["speedup_over_folx"].low <= figures["speedup_over_folx"].value <= figures["speedup_over_folx"].high
    # The floor is far below what a network of width 8 can reach.
    assert figures["times_floor"].value > 1.0
    assert set(bench.experts(6, 0.0).figures) == {"local_energy_dense_over_sparse", "forward_dense_over_sparse"}


def test_results_as_text_and_json(monkeypatch, capsys):
    ratio = quantity(np.array([1.9, 2.0, 2.1]))
    row = bench.Row("local_energy", "n18", {"speedup_over_folx": ratio, "compile_seconds": 5.0})
    assert as_json([MACHINE, row])["local_energy"]["n18"]["speedup_over_folx"] == 2.0
    assert "speedup over folx" in next(iter(lines(row)))

    asked = []
    monkeypatch.setattr(bench, "run", lambda sizes, quick: asked.append((sizes, quick)) or iter([MACHINE, row]))
    assert cli.main(["bench", "--quick", "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert asked == [([6, 18], True)]
    assert out["local_energy"]["n18"]["quartiles"]["speedup_over_folx"] == [1.95, 2.05]
    assert out["machine"]["cores"] == 2
    assert cli.main(["bench"]) == 0
    assert "Gflop/s" in capsys.readouterr().out
    assert asked[-1] == ([6, 18, 54, 150], False)

"""Speed against a baseline in the same run: `qernel bench`.

Every figure is a ratio of two programs timed in turn (median and quartiles over the rounds), or a share of what the
same machine was measured to do a moment before. Times alone mean little on a machine that does other things.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from qernel.bench_machine import Machine, Program, Quantity, alternate, measure_machine, program, quantity
from qernel.bench_problems import COMMON, EXPERTS, config, count, family, problem, psiformer_of
from qernel.laplacian import kinetic_energy
from qernel.moe import with_experts
from qernel.network import Network
from qernel.presets import preset
from qernel.vmc import Vmc
from qernel.wavefunction import log_psi

WALKERS = {6: 64, 18: 32, 54: 8, 150: 2}
"""walkers of a timing, by N: a fraction of a second of work each"""


@dataclass(frozen=True)
class Row:
    """One result: `part` and `system` name it, `figures` are its columns."""

    part: str
    system: str
    figures: dict[str, Quantity | float]


def run(sizes: list[int], quick: bool) -> Iterator[Machine | Row]:
    """The machine, then every result as soon as it is known."""
    machine = measure_machine()
    yield machine
    seconds = 1.0 if quick else 20.0
    for n in sizes:
        yield local_energy(n, machine, seconds, at_once=not quick)
    yield experts(18, seconds, forward=not quick)
    if quick:
        return
    for n in sizes:
        if n <= 54:
            yield step(n, seconds)
    yield growth(sizes, seconds)
    for n in sizes:
        yield from limits(n, machine, seconds)


def local_energy(n: int, machine: Machine, seconds: float, *, at_once: bool = False) -> Row:
    """Kinetic energy of the common network: ours against folx, and against its own floor.

    The floor is (2N + 2) times the matrix products of log ψ at the machine's rate. Both treat the same number of
    walkers at once on each device; folx also all of them (`at_once`), as is common.
    """
    model, walkers, points = problem(n, COMMON, WALKERS[n])
    chunk = chunk_of(n, COMMON)
    forward = program(log_psi, model, walkers, points)
    ours = program(lambda m, r, p: kinetic_energy(m, r, p, chunk), model, walkers, points)
    folx = program(lambda m, r, p: kinetic_energy(m, r, p, chunk, method="folx"), model, walkers, points)
    programs = {"forward": forward, "ours": ours, "folx": folx}
    if at_once:
        programs["at once"] = program(lambda m, r, p: kinetic_energy(m, r, p, method="folx"), model, walkers, points)
    times = _times(programs, seconds)
    floor = (2 * n + 2) * forward.flops / machine.gemm
    return Row(
        "local_energy",
        f"n{n}",
        {
            "speedup_over_folx": quantity(times["folx"] / times["ours"]),
            **({"speedup_over_folx_at_once": quantity(times["at once"] / times["ours"])} if at_once else {}),
            "times_floor": quantity(times["ours"] / floor),
            "forward_passes": quantity(times["ours"] / times["forward"]),
            "milliseconds_per_walker": quantity(1e3 * times["ours"] / WALKERS[n]),
            "compile_seconds": ours.compile_seconds,
            "compile_seconds_folx": folx.compile_seconds,
        },
    )


def experts(n: int, seconds: float, *, forward: bool = True) -> Row:
    """16 experts, two open: the chosen ones evaluated, against all."""
    model, walkers, points = problem(n, EXPERTS, WALKERS[n])
    programs, chunk = {}, chunk_of(n, EXPERTS)
    for sparse in (True, False):
        m = with_experts(model, sparse=sparse)
        programs[f"local_energy {sparse}"] = program(lambda m, r, p: kinetic_energy(m, r, p, chunk), m, walkers, points)
        if forward:
            programs[f"forward {sparse}"] = program(log_psi, m, walkers, points)
    times = _times(programs, seconds)
    names = ("local_energy", "forward") if forward else ("local_energy",)
    return Row(
        "experts",
        f"n{n}",
        {f"{name}_dense_over_sparse": quantity(times[f"{name} False"] / times[f"{name} True"]) for name in names},
    )


def step(n: int, seconds: float) -> Row:
    """A training step of the preset's network against a PsiFormer of as many weights, with folx's Laplacian."""
    network = preset_network(n)
    total, active = count(family(n), network)
    peer = psiformer_of(family(n), total)
    walkers = 4 * WALKERS[n]
    ours = Vmc(config(n, network, walkers))
    theirs = Vmc(config(n, peer, walkers), method="folx")
    times = alternate({"ours": _stepper(ours), "psiformer": _stepper(theirs)}, seconds)
    return Row(
        "step",
        f"n{n}",
        {
            "psiformer_over_qernel": quantity(times["psiformer"] / times["ours"]),
            "milliseconds_per_walker": quantity(1e3 * times["ours"] / walkers),
            "parameters": float(total),
            "active_parameters": float(active),
            "psiformer_parameters": float(count(family(n), peer)[0]),
        },
    )


def growth(sizes: list[int], seconds: float) -> Row:
    """Exponent of the time of a local energy in N at a fixed width: between each N and the next.

    (2N + 2) passes over N tokens give 2, attention and determinants (2N + 2) N² and N³ operations give 3.
    """
    programs = {}
    for n in sizes:
        programs[n] = program(
            lambda m, r, p, chunk=chunk_of(n, COMMON): kinetic_energy(m, r, p, chunk), *problem(n, COMMON, WALKERS[n])
        )
    times = _times({str(n): p for n, p in programs.items()}, seconds)
    per_walker = {n: times[str(n)] / WALKERS[n] for n in sizes}
    work = {n: programs[n].flops / WALKERS[n] for n in sizes}
    figures: dict[str, Quantity | float] = {}
    for a, b in itertools.pairwise(sizes):
        figures[f"exponent_{a}_to_{b}"] = quantity(np.log(per_walker[b] / per_walker[a]) / np.log(b / a))
        figures[f"exponent_of_products_{a}_to_{b}"] = float(np.log(work[b] / work[a]) / np.log(b / a))
    return Row("growth", "local_energy", figures)


def limits(n: int, machine: Machine, seconds: float) -> Iterator[Row]:
    """What bounds each program of a step: the share of its time that its matrix products would take at the machine's
    matrix rate, that their operands would take at its bandwidth, and that the call itself takes."""
    network = preset_network(n)
    chunk = chunk_of(n, network)
    model, walkers, points = problem(n, network, WALKERS[n])
    programs = {
        "log_psi": program(log_psi, model, walkers, points),
        "local_energy": program(lambda m, r, p: kinetic_energy(m, r, p, chunk), model, walkers, points),
    }
    for name, times in _times(programs, seconds / 4).items():
        p, t = programs[name], float(np.median(times))
        shares = {
            "flops": p.flops / machine.gemm / t,
            "bandwidth": p.traffic / machine.bandwidth / t,
            "launch": machine.launch / t,
        }
        yield Row("limits", f"n{n}.{name}", {k: float(v) for k, v in shares.items()})


def preset_network(n: int) -> Network:
    """The network of `moire-nN`; of `moire-n54` for N = 18."""
    return preset(f"moire-n{54 if n == 18 else n}").network


def chunk_of(n: int, network: Network) -> int:
    """Walkers at once in a local energy, as a run would choose them."""
    return Vmc(config(n, network, WALKERS[n])).plan.chunk


def _stepper(vmc: Vmc) -> Callable[[], Any]:
    """Each call is one training step of a run of its own, compiled already."""
    state = [vmc.blank()]

    def go() -> None:
        state[0] = vmc.step(state[0])[0]

    go()
    return go


def _times(programs: dict[str, Program], seconds: float) -> dict[str, np.ndarray]:
    for p in programs.values():
        p.call()
    return alternate({name: p.call for name, p in programs.items()}, seconds)

"""Seconds of a training step of large systems on this machine, by part of the step, within a given time.

    python benchmarks/large.py --seconds 600
    python benchmarks/large.py --systems moire-n54:1024 --couplings 1 --json large.json
    python benchmarks/large.py --systems moire-n54:8 moire-n150:2 --seconds 300         # on a CPU

PRESET:WALKERS, the walkers of all couplings together. Each system is measured in a process of its own, so that compile
times are those of a first run and the peak of the memory is its own: float32 products as every run has them, and where
the device has it, all of them rounded to tf32, for the time alone (docs/precision.md says what that does to energies).
A step that is compiled is repeated until the system's part of the time is over; medians and quartiles are over the
steps. The share of the matrix rate is the matrix products of the local energy over its time, over the rate measured a
moment before in products [rows, 64] × [64, 64] of the same precision.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from qernel.errors import InputError, require, script

SYSTEMS = ["moire-n54:1024", "moire-n150:512"]
TARGETS = {"moire-n54:1024": 0.4, "moire-n150:512": 2.0}
"""seconds of a step that one H100 should need at most"""
TARGET_SHARE = 0.35
PRECISIONS = {"float32": "highest", "tf32": "tensorfloat32"}
STAGES = {"sampling": "moves", "local energy": "local energy", "gradient": "scores", "solve": "Gram and solve"}
LEAST = 3
"""steps, however long they take"""
BURN_IN = 20


def say(record: dict[str, Any]) -> None:
    """One line of JSON, at once: what is done counts if the time is over."""
    print(json.dumps(record), flush=True)


def measure(system: str, couplings: int | None, precision: str, seconds: float) -> None:
    """Measure one system in this process: the machine, two steps that compile, then steps as long as the time lasts."""
    import jax

    from qernel import compiling
    from qernel.bench_machine import measure_machine
    from qernel.devices import use_cores
    from qernel.vmc import Vmc

    begin = time.monotonic()
    use_cores()
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_enable_compilation_cache", False)
    compiling.PRODUCTS = PRECISIONS[precision]
    vmc = Vmc(configuration(system, couplings))
    blank = vmc.blank()
    say(
        {
            "machine": asdict(measure_machine()),
            "platform": jax.default_backend(),
            "devices": jax.device_count(),
            "electrons": vmc.config.family.n_electrons,
            "couplings": len(vmc.couplings),
            "walkers_per_coupling": vmc.config.sampling.walkers,
            "weights": vmc.n_parameters,
            "plan": asdict(vmc.plan),
            "local_energy_flops": local_energy_flops(vmc, blank),
        }
    )
    state = blank
    for _ in range(2):  # what comes out of a step is laid out in another way than what a run begins with
        start = time.monotonic()
        state, _, parts = vmc.step(state)
        say({"warming": parts, "wall": time.monotonic() - start})
    state, done, longest = vmc.init(state), 0, 0.0
    while done < LEAST or time.monotonic() - begin + longest < seconds:
        start = time.monotonic()
        state, metrics, parts = vmc.step(state)
        wall = time.monotonic() - start
        longest, done = max(longest, wall), done + 1
        health = {"moves": int(metrics.moves), "fallback": float(metrics.fallback)}
        say({"step": parts, "wall": wall, "peak_bytes": peak_bytes(), **health})


def configuration(system: str, couplings: int | None) -> Any:
    """The preset with so many walkers at so many couplings: its own, or fewer if there are not two walkers for each."""
    from qernel.presets import preset

    name, walkers = parse(system)
    config = preset(name)
    low, high, points = config.family.lam
    require(couplings is None or couplings >= 1, "--couplings", couplings, "at least 1")
    points = min(points, max(1, walkers // 2)) if couplings is None else couplings
    if walkers % points or walkers < 2 * points:
        raise InputError(f"--couplings {points}: must divide the {walkers} walkers of {name}, with 2 or more for each")
    lam = (low, high, points) if points > 1 else ((low + high) / 2, (low + high) / 2, 1)
    sampling = replace(config.sampling, walkers=walkers // points, burn_in=BURN_IN)
    return replace(config, family=replace(config.family, lam=lam), sampling=sampling)


def parse(system: str) -> tuple[str, int]:
    """Preset and walkers of PRESET:WALKERS."""
    name, _, walkers = system.partition(":")
    if not walkers.isdecimal() or int(walkers) < 2:
        raise InputError(f"--systems {system}: must be PRESET:WALKERS with at least 2 walkers")
    return name, int(walkers)


def local_energy_flops(vmc: Any, state: Any) -> float:
    """Of the matrix products in the local energies of all walkers, counted as `bench.limits` does."""
    import equinox as eqx
    import jax

    from qernel import vmc as steps
    from qernel.bench_machine import products
    from qernel.devices import mesh

    arrays, static = eqx.partition(state.model, eqx.is_array)
    sharing = mesh(state.walkers.shape[1]).size
    shape = (state.walkers.shape[0], state.walkers.shape[1] // sharing, *state.walkers.shape[2:])
    part = jax.ShapeDtypeStruct(shape, state.walkers.dtype)

    def share(arrays: Any, walkers: Any, couplings: Any, points: Any) -> Any:
        return steps.measure(vmc.config, eqx.combine(arrays, static), walkers, couplings, points, vmc.plan.chunk)

    return sharing * products(jax.make_jaxpr(share)(arrays, part, state.couplings, vmc.points).jaxpr)[0]


def peak_bytes() -> float:
    """Most that the device's memory held; of a CPU, this process."""
    import resource

    import jax

    stats = jax.local_devices()[0].memory_stats() or {}
    return float(stats.get("peak_bytes_in_use", 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))


def child(system: str, couplings: int | None, precision: str, seconds: float, most: float) -> list[dict[str, Any]]:
    """What `measure` says in a process of its own, which is ended after `most` seconds."""
    command = [sys.executable, __file__, "--measure", system, "--precision", precision, "--seconds", f"{seconds:.0f}"]
    command += ["--couplings", str(couplings)] if couplings else []
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        out, _ = process.communicate(timeout=max(most, 1.0))
    except subprocess.TimeoutExpired:
        process.kill()
        out, _ = process.communicate()
    return [json.loads(line) for line in out.splitlines() if line.startswith("{") and line.endswith("}")]


def summary(system: str, precision: str, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians and quartiles from what one process said."""
    result: dict[str, Any] = {"system": system, "precision": precision}
    for r in records:
        result |= r if "machine" in r else {}
    steps = [r for r in records if "step" in r]
    warming = [r for r in records if "warming" in r]
    if not steps:
        return {**result, "not_measured": "time was over, or the process failed, before a compiled step"}
    parts = {name: np.array([r["step"][name] for r in steps]) for name in STAGES}
    walls = np.array([r["wall"] for r in steps])
    energy = float(np.median(parts["local energy"]))
    flops = result["local_energy_flops"]
    return {
        **result,
        "steps": len(steps),
        "moves": steps[-1]["moves"],
        "fallback": float(np.mean([r["fallback"] for r in steps])),
        "seconds": {STAGES[name]: quartiles(x) for name, x in parts.items()} | {"step": quartiles(walls)},
        "compile_seconds": sum(r["wall"] - float(np.median(walls)) for r in warming),
        "compile_seconds_by_part": {
            STAGES[name]: sum(r["warming"][name] - float(np.median(x)) for r in warming) for name, x in parts.items()
        },
        "peak_bytes": steps[-1]["peak_bytes"],
        "local_energy_rate": flops / energy,
        "local_energy_share": flops / energy / result["machine"]["gemm"],
        "target_seconds": TARGETS.get(system),
        "target_share": TARGET_SHARE,
    }


def quartiles(x: np.ndarray) -> list[float]:
    """[median, lower, upper quartile]."""
    return [float(q) for q in np.quantile(x, [0.5, 0.25, 0.75])]


def table(results: list[dict[str, Any]]) -> str:
    """The results in Markdown."""
    heads = ["system", "products", "moves a step", *[f"{x}, s" for x in [*STAGES.values(), "step"]]]
    heads += ["steps", "ms a walker", "compile, s", "peak, GiB", "of the matrix rate", "target"]
    rows = [heads, ["---"] * 2 + ["--:"] * (len(heads) - 2)]
    for r in results:
        cells = [r["system"], r["precision"]]
        if "not_measured" in r:
            rows.append([*cells, r["not_measured"], *[""] * (len(heads) - 3)])
            continue
        times = ["{:.3g} ({:.3g}–{:.3g})".format(*r["seconds"][x]) for x in [*STAGES.values(), "step"]]
        goal = "" if r["target_seconds"] is None else f"{r['target_seconds']:g} s, {100 * TARGET_SHARE:.0f} % (H100)"
        per_walker = 1e3 * r["seconds"]["step"][0] / (r["couplings"] * r["walkers_per_coupling"])
        numbers = [
            f"{r['steps']}",
            f"{per_walker:.3g}",
            f"{r['compile_seconds']:.1f}",
            f"{r['peak_bytes'] / 2**30:.2f}",
        ]
        rows.append([*cells, str(r["moves"]), *times, *numbers, f"{100 * r['local_energy_share']:.0f} %", goal])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def heading(results: list[dict[str, Any]]) -> str:
    """The machine in a line for each precision."""
    lines = {}
    for r in results:
        if "machine" in r:
            m = r["machine"]
            lines[r["precision"]] = (
                f"{m['name']}, {r['devices']} {r['platform']} device(s), {r['precision']}: "
                f"{m['gemm'] / 1e9:.0f} Gflop/s in products [rows, 64] × [64, 64], {m['bandwidth'] / 1e9:.1f} GB/s, "
                f"{m['launch'] * 1e6:.0f} µs a call"
            )
    return "\n".join(lines.values())


def run(systems: list[str], couplings: int | None, seconds: float) -> list[dict[str, Any]]:
    """All systems in turn, each given an equal part of the time that is left."""
    end = time.monotonic() + seconds
    waiting = [(s, "float32") for s in systems]
    results = []
    while waiting:
        system, precision = waiting.pop(0)
        left = end - time.monotonic()
        share = left / (1 + len(waiting))
        if not results:  # whether there is a tf32 is known only after the first
            share /= 2
        print(f"{system}, {precision}: up to {share:.0f} s", file=sys.stderr, flush=True)
        results.append(summary(system, precision, child(system, couplings, precision, share, left)))
        if len(results) == 1 and results[0].get("platform") == "gpu":
            waiting += [(s, "tf32") for s in systems]
    return results


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", nargs="+", default=SYSTEMS, metavar="PRESET:WALKERS")
    parser.add_argument("--couplings", type=int, help="of each system (default: the preset's)")
    parser.add_argument("--seconds", type=float, default=600, help="for everything; a step under way is then cut off")
    parser.add_argument("--json", type=Path, help="write the results here (default: after the table)")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--precision", choices=tuple(PRECISIONS), default="float32", help=argparse.SUPPRESS)
    o = parser.parse_args()
    if o.measure:
        measure(o.measure, o.couplings, o.precision, o.seconds)
        return
    for system in o.systems:
        configuration(system, o.couplings)
    results = run(o.systems, o.couplings, o.seconds)
    print(heading(results))
    print()
    print(table(results))
    text = json.dumps(results, indent=1) + "\n"
    if o.json is None:
        print()
        print(text, end="")
    else:
        o.json.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    script(main)

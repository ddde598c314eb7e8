"""Rates of this machine, programs with their matrix-product work, and timing side by side."""

from __future__ import annotations

import functools
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

import equinox as eqx
import jax
import jax.extend.core as core
import jax.numpy as jnp
import numpy as np

from qernel.compiling import OPTIONS, precise
from qernel.devices import SPREAD, WHOLE, available_cores, mesh, on_each, place
from qernel.start import Point
from qernel.types import Walkers


@dataclass(frozen=True)
class Program:
    """A compiled function with its arguments, and the work its matrix products do."""

    call: Callable[[], Any]
    compile_seconds: float
    flops: float
    """of all matrix products, 2·M·N·K each (4 times that if complex)"""
    traffic: float
    """bytes that the matrix products read and write"""


def program(f: Callable[..., Any], model: Any, walkers: Walkers, points: Point) -> Program:
    """Compile f(model, walkers, points), a function of each walker, for all devices."""
    arrays, static = eqx.partition(model, eqx.is_array)
    size = walkers.shape[1]
    arguments = place(arrays, size), place(walkers, size, SPREAD), place(points, size)

    @precise
    def share(arrays: Any, walkers: Walkers, points: Point) -> Any:
        return f(eqx.combine(arrays, static), walkers, points)

    begin = time.perf_counter()
    shared = on_each(share, size, (WHOLE, SPREAD, WHOLE), SPREAD)
    compiled = jax.jit(shared, compiler_options=OPTIONS).lower(*arguments).compile()
    seconds = time.perf_counter() - begin
    part = jax.ShapeDtypeStruct((walkers.shape[0], size // mesh(size).size, *walkers.shape[2:]), walkers.dtype)
    work = products(jax.make_jaxpr(share)(arrays, part, points).jaxpr)
    flops, traffic = (mesh(size).size * x for x in work)
    return Program(lambda: jax.block_until_ready(compiled(*arguments)), seconds, flops, traffic)


def products(jaxpr: core.Jaxpr) -> tuple[float, float]:
    """Flops and bytes of all matrix products of a program; a scan counts as often as it runs, a while loop once."""
    flops = traffic = 0.0
    for e in jaxpr.eqns:
        shaped: Any = [x.aval for x in (*e.invars, *e.outvars)]
        if e.primitive.name == "dot_general":
            (contracted, _), _ = e.params["dimension_numbers"]
            left, out = shaped[0], shaped[-1]
            inner = prod(left.shape[i] for i in contracted)
            flops += 2 * inner * out.size * (4 if jnp.issubdtype(out.dtype, jnp.complexfloating) else 1)
            traffic += sum(x.size * x.dtype.itemsize for x in shaped)
        repeats = e.params.get("length", 1) if e.primitive.name == "scan" else 1
        inside = [products(sub) for sub in _inner(e.params.values())]
        # Of the branches of a conditional one runs: the dearest is counted.
        total = max(inside, default=(0, 0)) if e.primitive.name == "cond" else np.sum(inside or [(0, 0)], axis=0)
        flops, traffic = flops + repeats * total[0], traffic + repeats * total[1]
    return float(flops), float(traffic)


def _inner(parameters: Iterable[Any]) -> list[core.Jaxpr]:
    found = []
    for p in parameters:
        for x in p if isinstance(p, (tuple, list)) else (p,):
            if isinstance(x, core.ClosedJaxpr):
                found.append(x.jaxpr)
            elif isinstance(x, core.Jaxpr):
                found.append(x)
    return found


def alternate(programs: dict[str, Callable[[], Any]], seconds: float, least: int = 3) -> dict[str, np.ndarray]:
    """Seconds of each call, all programs in turn so that what disturbs one disturbs all; rounds until time is up.

    Each must have run once before (compilation).
    """
    times: dict[str, list[float]] = {name: [] for name in programs}
    begin, rounds = time.perf_counter(), 0
    while rounds < least or (time.perf_counter() - begin < seconds and rounds < 200):
        for name, f in programs.items():
            start = time.perf_counter()
            f()
            times[name].append(time.perf_counter() - start)
        rounds += 1
    return {name: np.array(t) for name, t in times.items()}


@dataclass(frozen=True)
class Quantity:
    """Median of several measurements with their quartiles."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} ({self.low:.3g}–{self.high:.3g})"


def quantity(x: np.ndarray) -> Quantity:
    """Median and quartiles."""
    low, middle, high = np.quantile(x, [0.25, 0.5, 0.75])
    return Quantity(float(middle), float(low), float(high))


@dataclass(frozen=True)
class Machine:
    """What the ratios are taken against."""

    name: str
    cores: int
    gemm: float
    """flops per second of a float32 product [rows, 64] × [64, 64], the best of several numbers of rows"""
    bandwidth: float
    """bytes per second read and written by x + 1 on 128 MB"""
    launch: float
    """seconds to call a compiled program of one device that does nothing"""


def measure_machine() -> Machine:
    """Rates of all devices together."""
    n = jax.device_count()
    weight = place(jnp.ones((64, 64), jnp.float32), n)
    gemm = 0.0
    product = jax.jit(on_each(precise(lambda x, w: x @ w), n, (SPREAD, WHOLE), SPREAD))
    for rows in (4096, 16384, 65536):
        call = functools.partial(product, place(jnp.ones((1, n * rows, 64), jnp.float32), n, SPREAD), weight)
        gemm = max(gemm, 2 * n * rows * 64 * 64 / best(call))
    plus = jax.jit(on_each(lambda x: x + 1, n, (SPREAD,), SPREAD), donate_argnums=0)
    arrays = [place(jnp.ones((1, n * (2**25 // n)), jnp.float32), n, SPREAD)]

    def in_place() -> Any:
        # Into its own memory: fresh pages would be timed otherwise.
        arrays[0] = plus(arrays[0])
        return arrays[0]

    bandwidth = 2 * arrays[0].nbytes / best(in_place, 5)
    nothing, trivial = jnp.zeros(()), jax.jit(lambda x: x + 1)
    device = jax.devices()[0]
    name = _processor() if device.platform == "cpu" else device.device_kind
    return Machine(name, available_cores(), gemm, bandwidth, best(lambda: trivial(nothing), 200))


def best(f: Callable[[], Any], repeats: int = 30, clock: Callable[[], float] = time.perf_counter) -> float:
    """Shortest of several calls, seconds: what the machine can do when nothing else disturbs."""
    jax.block_until_ready(f())
    times = []
    for _ in range(repeats):
        start = clock()
        jax.block_until_ready(f())
        times.append(clock() - start)
    return min(times)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()

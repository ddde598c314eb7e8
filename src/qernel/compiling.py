"""How functions are compiled: options, and the precision of matrix products."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax

OPTIONS = {
    # With this scheduler XLA's CPU runtime (jaxlib 0.10) loses a wake-up on two threads and waits for ever: the
    # per-walker scores of a two-layer network do it within seconds. One operation after the other costs no time here,
    # the parallel part being inside the matrix products.
    "xla_cpu_enable_concurrency_optimized_scheduler": False,
}


PRODUCTS = "highest"
"""Precision of float32 matrix products. On its own JAX lets GPUs round their operands to tf32 and TPUs to bfloat16;
docs/precision.md has what that costs."""


def compiled(f: Callable[..., Any]) -> Any:
    """`equinox.filter_jit` with the options and the precision that every program of this package needs."""

    @functools.wraps(f)
    def precise(*args: Any, **settings: Any) -> Any:
        with jax.default_matmul_precision(PRODUCTS):
            return f(*args, **settings)

    jit: Any = eqx.filter_jit
    return jit(precise, compiler_options=OPTIONS)

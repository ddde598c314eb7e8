"""How functions are compiled: options, and the precision of matrix products."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax

OPTIONS = {
    # With this scheduler operations wait for each other in threads of a pool with one for each core; on two cores all
    # of them can come to wait, for ever: the per-walker scores of a two-layer network do it within seconds.
    "xla_cpu_enable_concurrency_optimized_scheduler": False,
}


PRODUCTS = "highest"
"""Precision of float32 matrix products. On its own JAX lets GPUs round their operands to tf32 and TPUs to bfloat16;
docs/precision.md has what that costs."""


def compiled(f: Callable[..., Any]) -> Any:
    """`equinox.filter_jit` with the options and the precision that every program of this package needs."""
    jit: Any = eqx.filter_jit
    return jit(precise(f), compiler_options=OPTIONS)


def precise(f: Callable[..., Any]) -> Callable[..., Any]:
    """f with matrix products of that precision."""

    @functools.wraps(f)
    def with_precision(*args: Any, **settings: Any) -> Any:
        with jax.default_matmul_precision(PRODUCTS):
            return f(*args, **settings)

    return with_precision

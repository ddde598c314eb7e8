"""Devices that share the walkers: an equal part of every coupling's walkers on each.

The weights are the same everywhere. A stage of a step runs on every device's part at once (`on_each`); what it needs of
the others is one of the few functions below, which do nothing where there is one device. Cores of a CPU are devices
too: the operations are too small to be worth splitting among threads, but walkers are not.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from qernel.errors import require

AXIS = "devices"

SPREAD = PartitionSpec(None, AXIS)
"""[couplings, walkers, …], the walkers over the devices; [rows, weights], the weights over the devices."""

WHOLE = PartitionSpec()
"""The same on every device."""

T = TypeVar("T")


def use_cores() -> None:
    """Make a device of every core, where JAX has not started yet.

    JAX_NUM_CPU_DEVICES, XLA_FLAGS and NPROC of the environment have precedence.
    """
    cores, flags = available_cores(), os.environ.get("XLA_FLAGS", "")
    if "JAX_NUM_CPU_DEVICES" in os.environ:
        cores = max(1, int(os.environ["JAX_NUM_CPU_DEVICES"]))
    elif "xla_force_host_platform_device_count" not in flags:
        try:
            jax.config.update("jax_num_cpu_devices", cores)
        except RuntimeError:  # too late
            return
    if "xla_cpu_multi_thread_eigen" not in flags:
        # Every device computes in one thread of its own: cores work on other walkers, not on parts of one operation.
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()
    # LAPACK's functions cut a batch into parts for the threads of XLA's pool and wait for them in one of these threads.
    # The pool has one for each core; two determinants of one program were seen to hold both of two threads, the parts
    # waiting behind them for ever (jaxlib 0.10). No program has as many such operations at once as there are threads
    # for each device now; idle ones cost nothing.
    os.environ.setdefault("NPROC", str(THREADS * max(cores, available_cores())))


THREADS = 8
"""of XLA's pool for each core or device"""


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def mesh(walkers: int) -> Mesh:
    """As many devices as can share `walkers` walkers of each coupling equally; with several processes, all there are.

    Raises `InputError` if those cannot.
    """
    if jax.process_count() > 1:
        n = jax.device_count()
        require(walkers % n == 0, "walkers", walkers, f"a multiple of the {n} devices of all processes")
        return _mesh(n)
    return _mesh(max(n for n in range(1, jax.device_count() + 1) if walkers % n == 0))


@functools.cache
def _mesh(n: int) -> Mesh:
    return Mesh(np.array(jax.devices()[:n]), (AXIS,))


def on_each(f: Callable[..., Any], walkers: int, inputs: Any, outputs: Any) -> Callable[..., Any]:
    """f on every device with its part of what is `SPREAD`; `inputs` and `outputs` say what is, for each argument.

    All arrays must come in as arguments.
    """
    m = mesh(walkers)
    return f if m.size == 1 else jax.shard_map(f, mesh=m, in_specs=inputs, out_specs=outputs, check_vma=False)


def place(tree: T, walkers: int, spec: PartitionSpec = WHOLE) -> T:
    """Arrays laid out over the devices."""
    sharding = NamedSharding(mesh(walkers), spec)
    placed: T = jax.tree.map(lambda x: _put(x, sharding) if isinstance(x, jax.Array) else x, tree)
    return placed


def _put(x: Array, sharding: NamedSharding) -> Array:
    if jax.process_count() == 1:
        return jax.device_put(x, sharding)
    if not x.is_fully_addressable:
        return _relaid(x, sharding)
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_put(jax.random.key_data(x), sharding), impl=jax.random.key_impl(x))
    value = np.asarray(x)  # the same in all processes
    put = jax.make_array_from_callback(value.shape, sharding, lambda part: value[part])
    return put


@functools.partial(jax.jit, static_argnums=1)
def _relaid(x: Array, sharding: NamedSharding) -> Array:
    return jax.lax.with_sharding_constraint(x, sharding)


def whole(tree: T, walkers: int) -> T:
    """Within a compiled function of all walkers: results that every device is to have."""
    m = mesh(walkers)
    if m.size == 1:
        return tree
    gathered: T = jax.lax.with_sharding_constraint(tree, NamedSharding(m, WHOLE))
    return gathered


def sharing() -> int:
    """Devices among which the running stage is divided."""
    try:
        return int(jax.lax.axis_size(AXIS))
    except NameError:  # not within `on_each`
        return 1


def total(parts: T) -> T:
    """Sum over the devices."""
    summed: T = jax.lax.psum(parts, AXIS) if sharing() > 1 else parts
    return summed


def mean_of_walkers(x: Array) -> Array:
    """Mean over the walkers, axis 1, of all devices."""
    return total(x.mean(1)) / sharing()


def own(draw: Callable[[tuple[int, ...]], Array], couplings: int, walkers: int, *rest: int) -> Array:
    """This device's part of draw((couplings, all walkers, …)): random numbers do not depend on the devices."""
    return own_walkers(draw((couplings, sharing() * walkers, *rest)))


def own_walkers(x: Array) -> Array:
    """This device's part of [couplings, all walkers, …]."""
    walkers = x.shape[1] // sharing()
    return x if sharing() == 1 else jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(AXIS) * walkers, walkers, 1)


def in_turn(x: Array, devices: int) -> Array:
    """[couplings, all walkers, …] with the first walker of every device first, then the second of every device …"""
    return x.reshape(x.shape[0], devices, -1, *x.shape[2:]).swapaxes(1, 2).reshape(x.shape)


def own_turns(x: Array) -> Array:
    """This device's part of walkers in turn."""
    n = sharing()
    return x if n == 1 else x.reshape(x.shape[0], -1, n, *x.shape[2:])[:, :, jax.lax.axis_index(AXIS)]


def to_columns(rows: Array) -> Array:
    """From all columns of some of this device's walkers, [walkers, two, P], to its own columns of everyone's.

    [walkers, devices, two, P/devices]
    """
    n = sharing()
    parts = rows.reshape(*rows.shape[:2], n, -1)
    return parts.swapaxes(1, 2) if n == 1 else jax.lax.all_to_all(parts, AXIS, 2, 1)


def own_columns(vector: Array, columns: int) -> Array:
    """This device's part of a vector of all weights, filled up with zeros to `columns` for each device."""
    n = sharing()
    padded = jnp.pad(vector, (0, n * columns - vector.size))
    return padded if n == 1 else jax.lax.dynamic_slice_in_dim(padded, jax.lax.axis_index(AXIS) * columns, columns)


def all_columns(part: Array) -> Array:
    """The vector of all weights from every device's part."""
    return part if sharing() == 1 else jax.lax.all_gather(part, AXIS, tiled=True)

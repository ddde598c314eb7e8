"""A pytree as named numpy arrays and back, bit for bit: what `checkpoint_file.py` stores."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from qernel.errors import InputError

_PLAIN = frozenset(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)) | {
    "bool",
    "float16",
    "float32",
    "float64",
}
_COMPLEX = {"complex64": np.float32, "complex128": np.float64}
KEY_WORDS = {"threefry2x32": 2, "rbg": 4, "unsafe_rbg": 4}
"""words of a typed PRNG key, by its implementation"""


@dataclass(frozen=True)
class Leaf:
    """What one leaf of a state looks like."""

    dtype: str
    """dtype in the state: "float64", "complex128", "bfloat16", or "key<fry>" for a typed PRNG key"""
    shape: tuple[int, ...]
    """shape in the state (of the keys, not of their words)"""
    key: str | None = None
    """name of the PRNG implementation if the leaf is a typed key"""


def _name(path: tuple[Any, ...]) -> str:
    """Readable name of a leaf: params.blocks[0].attention.query."""
    text = ""
    for entry in path:
        key = getattr(entry, "name", getattr(entry, "key", getattr(entry, "idx", None)))
        plain = isinstance(key, str) and key.isidentifier()
        text += f".{key}" if plain else f"[{key!r}]"
    return text.removeprefix(".") or "state"


def _named_leaves(state: PyTree) -> dict[str, Any]:
    """Name → leaf in the order of the pytree; functions (activations of a network) are structure, not state."""
    named: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if callable(leaf):
            continue
        name = _name(path)
        if name in named or name == "__metadata__":
            raise ValueError(f"{name}: the name of this leaf is taken, it cannot be stored")
        named[name] = leaf
    return named


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _describe(leaf: Any) -> Leaf:
    """Dtype and shape of a leaf of a state or a template."""
    if _is_key(leaf):
        return Leaf(str(leaf.dtype), tuple(leaf.shape), "")
    if not hasattr(leaf, "dtype"):
        leaf = np.asarray(leaf)
    return Leaf(leaf.dtype.name, tuple(leaf.shape))


def to_arrays(state: PyTree) -> tuple[dict[str, np.ndarray], dict[str, Leaf]]:
    """Leaves as numpy arrays in native byte order, and their descriptions; keys as uint32 words."""
    arrays, leaves = {}, {}
    for name, leaf in _named_leaves(state).items():
        if _is_key(leaf):
            implementation = str(jax.random.key_impl(leaf))
            arrays[name] = np.asarray(jax.random.key_data(leaf))
            leaves[name] = Leaf(str(leaf.dtype), tuple(leaf.shape), implementation)
            continue
        array = np.asarray(leaf)
        array = np.require(array.astype(array.dtype.newbyteorder("="), copy=False), requirements="C")
        if array.dtype.name not in _PLAIN | _COMPLEX.keys() and not _is_extended_float(array.dtype):
            raise ValueError(f"{name}: a leaf of dtype {array.dtype} cannot be stored")
        arrays[name] = array
        leaves[name] = _describe(array)
    return arrays, leaves


def _is_extended_float(dtype: np.dtype) -> bool:
    """bfloat16 and the 8-bit floats, which numpy knows only through jax."""
    return dtype.name not in _PLAIN and dtype.itemsize <= 2 and bool(jnp.issubdtype(dtype, jnp.floating))


def is_finite(array: np.ndarray) -> bool:
    """No NaN and no infinity; integers have none."""
    if _is_extended_float(array.dtype):
        array = array.astype(np.float32)
    return array.dtype.kind not in "fc" or bool(np.isfinite(array).all())


def to_stored(array: np.ndarray) -> np.ndarray:
    """A view of dtype safetensors knows: complex as real with a last axis (Re, Im), extended floats as integers."""
    if array.dtype.name in _COMPLEX:
        return array[..., None].view(_COMPLEX[array.dtype.name])
    if _is_extended_float(array.dtype):
        return array[..., None].view(f"uint{8 * array.dtype.itemsize}")[..., 0]
    return array


def from_stored(stored: np.ndarray, leaf: Leaf) -> np.ndarray:
    """The inverse of `to_stored`, as a writable array of its own. Raises ValueError if shape or dtype do not fit."""
    if leaf.key is not None:
        if stored.dtype != np.uint32 or stored.shape != (*leaf.shape, KEY_WORDS[leaf.key]):
            raise ValueError("not the words of a PRNG key")
        return stored.copy()
    array = stored.copy()
    if leaf.dtype in _COMPLEX:
        array = array.view(leaf.dtype)[..., 0]
    elif leaf.dtype not in _PLAIN:
        array = array[..., None].view(jnp.dtype(leaf.dtype))[..., 0]
    if array.shape != leaf.shape or array.dtype.name != leaf.dtype:
        raise ValueError(f"{array.dtype}{list(array.shape)} instead of {leaf.dtype}{list(leaf.shape)}")
    return array


def fill(path: Path, leaves: dict[str, Leaf], arrays: dict[str, np.ndarray], template: PyTree) -> PyTree:
    """Put arrays loaded from `path` into the structure of `template`.

    Raises `InputError` naming the first leaf that does not fit.
    """
    expected = _named_leaves(template)
    for name, leaf in expected.items():
        want = _describe(leaf)
        if name not in leaves:
            raise InputError(f"checkpoint {path}: has no leaf {name}; it was saved from another configuration")
        have = leaves[name]
        for what in ("shape", "dtype"):
            a, b = getattr(have, what), getattr(want, what)
            if a != b:
                raise InputError(f"checkpoint {path}: {name} has {what} {a}, this run needs {b}")
    extra = [name for name in leaves if name not in expected]
    if extra:
        raise InputError(f"checkpoint {path}: leaf {extra[0]} is unknown to this run ({len(extra)} such)")
    loaded = iter([_like(arrays[name], leaves[name], leaf) for name, leaf in expected.items()])
    old, structure = jax.tree_util.tree_flatten(template)
    return jax.tree_util.tree_unflatten(structure, [x if callable(x) else next(loaded) for x in old])


def _like(array: np.ndarray, leaf: Leaf, template: Any) -> Any:
    """An array as the kind of leaf the template has, on the template's devices."""
    if isinstance(template, np.ndarray):
        return array
    if isinstance(template, np.generic):
        return array[()]
    if not hasattr(template, "dtype"):
        return type(template)(array.item())
    sharding = template.sharding if isinstance(template, jax.Array) and template.committed else None
    if leaf.key is not None:
        return _placed(jax.random.wrap_key_data(jnp.asarray(array), impl=leaf.key), sharding)
    if array.ndim == 0 and getattr(template, "weak_type", False):
        # A weakly typed number takes part in type promotion differently: going on bit for bit needs it weak again.
        return _placed(jnp.asarray(array.item()), sharding)
    return _placed(jnp.asarray(array) if sharding is None else array, sharding)


def _placed(x: Any, sharding: Any) -> Any:
    return x if sharding is None else jax.device_put(x, sharding)

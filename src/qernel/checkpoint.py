"""Checkpoints: one safetensors file per saved step; a kill, a full disk or a NaN never costs a good one.

A file `step_00001234.safetensors` holds every leaf of a state by its readable name and, as metadata, a JSON header with
format version, step, the caller's own header (config, provenance), a table of leaves and two SHA-256 checksums. Any
safetensors reader opens it; nothing in it is ever executed. One process at a time writes to a folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jaxtyping import PyTree
from safetensors import SafetensorError

from qernel.errors import InputError, require, shown

FORMAT_VERSION = 1
MAX_HEADER_BYTES = 16 * 2**20
"""bound on the JSON at the start of a file (about 100 bytes per leaf): a damaged length never allocates more"""

_PLAIN = frozenset(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)) | {
    "bool",
    "float16",
    "float32",
    "float64",
}
_COMPLEX = {"complex64": np.float32, "complex128": np.float64}
KEY_WORDS = {"threefry2x32": 2, "rbg": 4, "unsafe_rbg": 4}
"""words of a typed PRNG key, by its implementation"""
_FILE_NAME = re.compile(r"step_(\d{8,})\.safetensors")


class DamagedCheckpoint(InputError):
    """A file that is not a readable checkpoint of this format; an older one may still be good."""


@dataclass(frozen=True)
class Leaf:
    """What one leaf of a state looks like."""

    dtype: str
    """dtype in the state: "float64", "complex128", "bfloat16", or "key<fry>" for a typed PRNG key"""
    shape: tuple[int, ...]
    """shape in the state (of the keys, not of their words)"""
    key: str | None = None
    """name of the PRNG implementation if the leaf is a typed key"""


@dataclass(frozen=True)
class Header:
    """Everything a checkpoint says about itself without its tensors."""

    step: int
    user: dict[str, Any]
    """what the caller saved along: config, provenance"""
    leaves: dict[str, Leaf]
    """name → dtype and shape"""
    sha256: str
    """of names, dtypes, shapes and bytes of all tensors"""
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True)
class Restored:
    """A restored state and where it came from."""

    state: PyTree
    path: Path
    header: Header
    skipped: list[str]
    """one line per newer file that was damaged, with its name and the reason"""


def save(folder: Path, step: int, state: PyTree, header: dict[str, Any], keep: int = 3) -> Path:
    """Write `state` to `folder/step_XXXXXXXX.safetensors`; of the steps up to this one the last `keep` files stay.

    The file appears under its name only when complete, on disk and read back; older ones are removed after that.

    Args:
        folder: made if missing.
        step: number of the step, the order of checkpoints.
        state: pytree of arrays, numbers and typed PRNG keys; functions among the leaves are not stored.
        header: JSON-like data to store along.
        keep: how many checkpoints stay, at least 1.

    Raises:
        ValueError: if a floating or complex leaf has a NaN or an infinity (see `save_crash`), a leaf cannot be stored,
            or the header has more than `MAX_HEADER_BYTES` or is not JSON-like.
        OSError: if the disk is full or not writable; what was there before is untouched.
    """
    require(step >= 0, "step", step, "an integer ≥ 0")
    require(keep >= 1, "keep", keep, "at least 1")
    arrays, leaves = _to_arrays(state)
    for name, array in arrays.items():
        if not _is_finite(array):
            raise ValueError(f"step {step}: {name} is not finite; such a state is never saved as a checkpoint")
    path = folder / f"step_{step:08d}.safetensors"
    _write(path, step, arrays, leaves, header)
    # Later files belong to a future that was abandoned or damaged: `discard_after` deals with them.
    for old in [p for p in checkpoints(folder) if _step_of(p) <= step][:-keep]:
        old.unlink(missing_ok=True)
    for leftover in folder.glob(".step_*.safetensors.tmp"):  # of writers that were killed
        leftover.unlink(missing_ok=True)
    return path


def save_crash(folder: Path, step: int, state: PyTree, header: dict[str, Any]) -> Path:
    """Write a broken state, NaN and all, to `folder/crash_XXXXXXXX.safetensors`, never taken for a checkpoint.

    Same format as `save`, same errors but for NaN; `load_arrays` reads it.
    """
    arrays, leaves = _to_arrays(state)
    path = folder / f"crash_{step:08d}.safetensors"
    _write(path, step, arrays, leaves, header)
    return path


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoint files of a folder by step, oldest first; crash files and leftovers of a killed writer excluded."""
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if _FILE_NAME.fullmatch(p.name) and p.is_file()), key=_step_of)


def latest(folder: Path) -> Path | None:
    """The checkpoint file of the highest step, unchecked; None if there is none."""
    return next(reversed(checkpoints(folder)), None)


def discard_after(folder: Path, step: int) -> list[Path]:
    """Put checkpoints of steps after `step` aside (`….safetensors.discarded`), as when a run goes on from `step`.

    Without it, files of an abandoned future would be taken for the newest at the next start. Returns the new names.
    """
    moved = []
    for path in [p for p in checkpoints(folder) if _step_of(p) > step]:
        moved.append(path.rename(path.with_name(path.name + ".discarded")))
    return moved


def read_header(path: Path) -> Header:
    """The header of a checkpoint; no tensors are read.

    Raises `DamagedCheckpoint` (an `InputError`) naming the file and what is wrong with it.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise DamagedCheckpoint(f"checkpoint {path}: truncated at {size} bytes")
            if length > MAX_HEADER_BYTES:
                raise DamagedCheckpoint(f"checkpoint {path}: header of {length} bytes, at most {MAX_HEADER_BYTES}")
            return _parse_header(path, file.read(length))
    except OSError as error:
        raise DamagedCheckpoint(f"checkpoint {path}: cannot be read ({error.strerror or error})") from None


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """All leaves of a checkpoint by name, checked against its checksum; typed PRNG keys as their uint32 words.

    Raises `DamagedCheckpoint` (an `InputError`) naming the file and what is wrong with it.
    """
    return _load(path)[1]


def restore(path: Path, template: PyTree) -> PyTree:
    """The state saved in `path`, with the structure, array types and devices of `template`.

    Args:
        path: a checkpoint file.
        template: a state of the same structure (or its `jax.eval_shape`). Its leaves say what comes back: jax arrays
            placed on the same devices, numpy arrays, numbers; functions are taken over from it.

    Raises:
        InputError: one line naming the first leaf whose name, shape or dtype differs, or, as `DamagedCheckpoint`, what
            is wrong with the file.
    """
    header, arrays = _load(path)
    return _fill(path, header, arrays, template)


def restore_latest(folder: Path, template: PyTree) -> Restored:
    """The newest checkpoint of a folder that is undamaged.

    A good file that does not fit the template is an error, not a reason to go further back: the run has changed.

    Raises:
        InputError: if no undamaged checkpoint is there (the line says why for each), or the newest good one does not
            fit the template.
    """
    skipped: list[str] = []
    for path in reversed(checkpoints(folder)):
        try:
            header, arrays = _load(path)
        except DamagedCheckpoint as error:
            skipped.append(str(error))
            continue
        return Restored(_fill(path, header, arrays, template), path, header, skipped)
    why = "; ".join(skipped) if skipped else "no file step_*.safetensors there"
    raise InputError(f"no checkpoint in {folder}: {why}")


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write(temporary)` make a file beside `path`, bring it to disk and rename it to `path` in one go.

    Whatever happens, `path` is either the old file or the complete new one.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        # A failing disk may refuse this too; the first error is the one to report.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    if hasattr(os, "O_DIRECTORY"):  # the rename itself is only on disk once the folder is; Windows cannot do it
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _step_of(path: Path) -> int:
    match = _FILE_NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1])


# --- pytree ↔ named arrays -------------------------------------------------------------------------------------------


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


def _to_arrays(state: PyTree) -> tuple[dict[str, np.ndarray], dict[str, Leaf]]:
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


def _is_finite(array: np.ndarray) -> bool:
    if _is_extended_float(array.dtype):
        array = array.astype(np.float32)
    return array.dtype.kind not in "fc" or bool(np.isfinite(array).all())


def _to_stored(array: np.ndarray) -> np.ndarray:
    """A view of dtype safetensors knows: complex as real with a last axis (Re, Im), extended floats as integers."""
    if array.dtype.name in _COMPLEX:
        return array[..., None].view(_COMPLEX[array.dtype.name])
    if _is_extended_float(array.dtype):
        return array[..., None].view(f"uint{8 * array.dtype.itemsize}")[..., 0]
    return array


def _from_stored(stored: np.ndarray, leaf: Leaf) -> np.ndarray:
    """The inverse of `_to_stored`, as a writable array of its own. Raises ValueError if shape or dtype do not fit."""
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


def _fill(path: Path, header: Header, arrays: dict[str, np.ndarray], template: PyTree) -> PyTree:
    """Put loaded arrays into the structure of `template`, after checking that every leaf fits."""
    expected = _named_leaves(template)
    for name, leaf in expected.items():
        want = _describe(leaf)
        if name not in header.leaves:
            raise InputError(f"checkpoint {path}: has no leaf {name}; it was saved from another configuration")
        have = header.leaves[name]
        for what in ("shape", "dtype"):
            a, b = getattr(have, what), getattr(want, what)
            if a != b:
                raise InputError(f"checkpoint {path}: {name} has {what} {a}, this run needs {b}")
    extra = [name for name in header.leaves if name not in expected]
    if extra:
        raise InputError(f"checkpoint {path}: leaf {extra[0]} is unknown to this run ({len(extra)} such)")
    loaded = iter([_like(arrays[name], header.leaves[name], leaf) for name, leaf in expected.items()])
    leaves, structure = jax.tree_util.tree_flatten(template)
    return jax.tree_util.tree_unflatten(structure, [x if callable(x) else next(loaded) for x in leaves])


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


# --- the file --------------------------------------------------------------------------------------------------------


def _checksum(arrays: dict[str, np.ndarray], leaves: dict[str, Leaf]) -> str:
    """SHA-256 over name, dtype, shape and bytes of every leaf, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(json.dumps([name, leaves[name].dtype, leaves[name].shape]).encode())
        digest.update(np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _write(path: Path, step: int, arrays: dict[str, np.ndarray], leaves: dict[str, Leaf], user: dict[str, Any]) -> None:
    """Write a file atomically, after reading the temporary one back."""
    header = Header(step, user, leaves, _checksum(arrays, leaves))
    text = json.dumps({"format": "qernel-checkpoint", **asdict(header)}, default=_jsonable)
    # About 100 bytes per leaf for safetensors' own table come on top.
    size = len(json.dumps(text)) + sum(len(json.dumps(name)) + 200 for name in arrays)
    if size > MAX_HEADER_BYTES:
        raise ValueError(f"checkpoint {path}: header of {size} bytes, at most {MAX_HEADER_BYTES}")
    metadata = {"qernel": text, "qernel_sha256": hashlib.sha256(text.encode()).hexdigest()}
    stored = {name: _to_stored(array) for name, array in arrays.items()}

    def write(temporary: Path) -> None:
        try:
            safetensors.numpy.save_file(stored, temporary, metadata)
        except SafetensorError as error:  # how the library reports a full disk
            raise OSError(f"checkpoint {path}: cannot be written ({error})") from error
        if _load(temporary)[0].sha256 != header.sha256:
            raise OSError(f"checkpoint {path}: the disk gave back other bytes than were written")

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, write)


def _jsonable(value: Any) -> Any:
    """numpy numbers and arrays and paths in a header."""
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return np.asarray(value).tolist()
    if isinstance(value, Path):
        return str(value)
    raise ValueError(f"header: {value!r} of type {type(value).__name__} cannot be stored as JSON")


def _parse_header(path: Path, raw: bytes) -> Header:
    """Our header from the JSON at the start of the file. Raises `DamagedCheckpoint`."""
    try:
        metadata = json.loads(raw)["__metadata__"]
        text, checksum = metadata["qernel"], metadata["qernel_sha256"]
        if hashlib.sha256(text.encode()).hexdigest() != checksum:
            raise DamagedCheckpoint(f"checkpoint {path}: damaged header (checksum differs)")
        fields = json.loads(text)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, DamagedCheckpoint):
            raise
        raise DamagedCheckpoint(f"checkpoint {path}: damaged header, or not a checkpoint of QERNEL") from None
    try:
        if fields.pop("format") != "qernel-checkpoint":
            raise DamagedCheckpoint(f"checkpoint {path}: not a checkpoint of QERNEL")
        version = fields["format_version"]
        if version != FORMAT_VERSION:
            raise DamagedCheckpoint(
                f"checkpoint {path}: format version {shown(version)}, this QERNEL reads version {FORMAT_VERSION}"
            )
        leaves = {name: _parse_leaf(x) for name, x in fields.pop("leaves").items()}
        step, user, digest = fields["step"], fields["user"], fields["sha256"]
        if not (type(step) is int and 0 <= step < 2**63 and isinstance(user, dict) and isinstance(digest, str)):
            raise TypeError
        return Header(leaves=leaves, **fields)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, DamagedCheckpoint):
            raise
        raise DamagedCheckpoint(f"checkpoint {path}: header lacks fields or has unknown ones") from None


def _parse_leaf(x: dict[str, Any]) -> Leaf:
    """One leaf of the header's table. Raises TypeError if it does not describe an array."""
    dtype, shape, key = x["dtype"], tuple(x["shape"]), x["key"]
    sizes = all(type(n) is int and 0 <= n < 2**63 for n in shape)
    if not (isinstance(dtype, str) and sizes and (key is None or key in KEY_WORDS)):
        raise TypeError
    return Leaf(dtype, shape, key)


def _load(path: Path) -> tuple[Header, dict[str, np.ndarray]]:
    """Header and arrays of a file, checksum verified. Raises `DamagedCheckpoint`."""
    header = read_header(path)
    try:
        # Read, not mapped: a file that shrinks under a memory map kills the process.
        stored = safetensors.numpy.load(path.read_bytes())
        if stored.keys() != header.leaves.keys():
            raise DamagedCheckpoint(f"checkpoint {path}: damaged (tensors and header disagree)")
        arrays = {name: _from_stored(stored[name], leaf) for name, leaf in header.leaves.items()}
    except OSError as error:
        raise DamagedCheckpoint(f"checkpoint {path}: cannot be read ({error.strerror or error})") from None
    except (SafetensorError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        if isinstance(error, DamagedCheckpoint):
            raise
        raise DamagedCheckpoint(f"checkpoint {path}: damaged ({' '.join(str(error).split())})") from None
    if _checksum(arrays, header.leaves) != header.sha256:
        raise DamagedCheckpoint(f"checkpoint {path}: damaged (checksum differs)")
    return header, arrays

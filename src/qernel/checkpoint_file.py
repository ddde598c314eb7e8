"""The format of a checkpoint file, and nothing of when one is written.

A safetensors file that holds every leaf of a state by its readable name and, as metadata, a JSON header with format
version, step, the caller's own header (config, provenance), a table of leaves and two SHA-256 checksums. Any
safetensors reader opens it; nothing in it is ever executed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from qernel.errors import InputError, shown
from qernel.files import write_atomically
from qernel.leaves import KEY_WORDS, Leaf, from_stored, to_stored

FORMAT_VERSION = 1
MAX_HEADER_BYTES = 16 * 2**20
"""bound on the JSON at the start of a file (about 100 bytes per leaf): a damaged length never allocates more"""


class DamagedCheckpoint(InputError):
    """A file that is not a readable checkpoint of this format; an older one may still be good."""


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


def _checksum(arrays: dict[str, np.ndarray], leaves: dict[str, Leaf]) -> str:
    """SHA-256 over name, dtype, shape and bytes of every leaf, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(json.dumps([name, leaves[name].dtype, leaves[name].shape]).encode())
        digest.update(np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def write(path: Path, step: int, arrays: dict[str, np.ndarray], leaves: dict[str, Leaf], user: dict[str, Any]) -> None:
    """Write a file atomically, after reading the temporary one back."""
    header = Header(step, user, leaves, _checksum(arrays, leaves))
    text = json.dumps({"format": "qernel-checkpoint", **asdict(header)}, default=_jsonable)
    # About 100 bytes per leaf for safetensors' own table come on top.
    size = len(json.dumps(text)) + sum(len(json.dumps(name)) + 200 for name in arrays)
    if size > MAX_HEADER_BYTES:
        raise ValueError(f"checkpoint {path}: header of {size} bytes, at most {MAX_HEADER_BYTES}")
    metadata = {"qernel": text, "qernel_sha256": hashlib.sha256(text.encode()).hexdigest()}
    stored = {name: to_stored(array) for name, array in arrays.items()}

    def put(temporary: Path) -> None:
        try:
            safetensors.numpy.save_file(stored, temporary, metadata)
        except SafetensorError as error:  # how the library reports a full disk
            raise _os_error(error, path) from error
        try:
            same = load(temporary)[0].sha256 == header.sha256
        except DamagedCheckpoint:
            same = False
        if not same:
            raise OSError(f"checkpoint {path}: the disk gave back other bytes than were written")

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, put)


def _os_error(error: SafetensorError, path: Path) -> OSError:
    """As the system would have said it."""
    number = re.search(r"os error (\d+)", str(error))
    if number is None:
        return OSError(f"checkpoint {path}: cannot be written ({error})")
    return OSError(int(number[1]), os.strerror(int(number[1])), str(path))


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


def load(path: Path) -> tuple[Header, dict[str, np.ndarray]]:
    """Header and arrays of a file, checksum verified. Raises `DamagedCheckpoint`."""
    header = read_header(path)
    try:
        # Read, not mapped: a file that shrinks under a memory map kills the process.
        stored = safetensors.numpy.load(path.read_bytes())
        if stored.keys() != header.leaves.keys():
            raise DamagedCheckpoint(f"checkpoint {path}: damaged (tensors and header disagree)")
        arrays = {name: from_stored(stored[name], leaf) for name, leaf in header.leaves.items()}
    except OSError as error:
        raise DamagedCheckpoint(f"checkpoint {path}: cannot be read ({error.strerror or error})") from None
    except (SafetensorError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        if isinstance(error, DamagedCheckpoint):
            raise
        raise DamagedCheckpoint(f"checkpoint {path}: damaged ({' '.join(str(error).split())})") from None
    if _checksum(arrays, header.leaves) != header.sha256:
        raise DamagedCheckpoint(f"checkpoint {path}: damaged (checksum differs)")
    return header, arrays

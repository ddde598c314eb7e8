"""What a machine offers: versions, devices, memory, files. Each check says what it found, what it asks, what to do."""

from __future__ import annotations

import fcntl
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from itertools import zip_longest
from pathlib import Path
from typing import Literal

import jax

from qernel import memory, sizes
from qernel.devices import available_cores
from qernel.memory import GIB, MIB
from qernel.presets import PRESETS, preset

Verdict = Literal["ok", "warning", "FAILED"]


@dataclass(frozen=True)
class Check:
    """One line of the table."""

    name: str
    found: str
    bound: str
    """what is asked for"""
    verdict: Verdict = "ok"
    advice: str = ""
    """what to do, in one line, where it is not ok"""
    value: float | None = None
    """the number that was judged, if it was one"""
    limit: float | None = None


def judged(name: str, value: float, limit: float, unit: str, advice: str) -> Check:
    """A number that must not be above a limit; NaN is."""
    fine = bool(value <= limit)
    found, bound = f"{value:.2g} {unit}", f"at most {limit:g}"
    return Check(name, found, bound, "ok" if fine else "FAILED", advice, value, limit)


def versions() -> Iterator[Check]:
    """Python and every package this one depends on, and jaxlib, against the bounds that the packages declare."""
    yield _version("Python", platform.python_version(), f"Python{metadata.metadata('qernel')['Requires-Python']}")
    yield Check("qernel", metadata.version("qernel"), "")
    declared = [r for r in metadata.requires("qernel") or [] if ";" not in r]  # others are extras, for developers
    jaxlib = [r for r in metadata.requires("jax") or [] if r.startswith("jaxlib") and ";" not in r]
    for requirement in (*declared, *jaxlib):
        name = re.split(r"[^\w-]", requirement, maxsplit=1)[0]
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Check(name, "not installed", requirement, "FAILED", f"pip install '{requirement}'")
            continue
        yield _version(name, found, requirement)


def _version(name: str, found: str, requirement: str) -> Check:
    bounds = re.findall(r"([<>]=)\s*([\d.]+)", requirement)
    fine = all(_at_least(found, b) if sign == ">=" else _at_least(b, found) for sign, b in bounds)
    advice = f"install {requirement}" if name == "Python" else f"pip install '{requirement}'"
    text = ", ".join(f"{sign} {b}" for sign, b in bounds)
    return Check(name, found, text, "ok" if fine else "FAILED", advice)


def _at_least(version: str, bound: str) -> bool:
    """Whether a release is not before another: numbers between dots, missing ones 0; what follows them is ignored."""
    a, b = ([int(x) for x in re.findall(r"^[\d.]*\d", v)[0].split(".")] for v in (version, bound))
    return all(x >= y for x, y in [next((p for p in zip_longest(a, b, fillvalue=0) if p[0] != p[1]), (0, 0))])


def gpu_files() -> list[str]:
    """What the driver of an NVIDIA GPU leaves in the file system, whether JAX can use it or not."""
    found = [*Path("/dev").glob("nvidia[0-9]*"), Path("/proc/driver/nvidia/version")]
    return [str(p) for p in found if p.exists()]


def devices() -> Iterator[Check]:
    """Kind, number and backend of the devices, and whether some of the machine lies idle."""
    found, backend = jax.devices(), jax.default_backend()
    text = f"{len(found)} x {found[0].device_kind}, backend {backend}, {jax.process_count()} process(es)"
    yield Check("devices", text, "")
    files, cores = gpu_files(), available_cores()
    if backend == "cpu" and files:
        advice = 'JAX does not use it: pip install "jax[cuda13]", and leave JAX_PLATFORMS unset'
        yield Check("GPU", f"{files[0]} is there", "backend gpu", "warning", advice)
    if backend == "cpu" and cores > 1:
        advice = "unset JAX_NUM_CPU_DEVICES, or in Python call qernel.devices.use_cores() before anything else"
        verdict: Verdict = "warning" if len(found) == 1 else "ok"
        yield Check("cores", f"{cores} cores, {len(found)} device(s)", "more than 1 device", verdict, advice)


def largest_preset() -> Iterator[Check]:
    """Free memory, and the preset of most electrons that trains in it by the estimates of `sizes.py`."""
    free = memory.available()
    configs = sorted((preset(name) for name in PRESETS), key=lambda c: c.family.n_electrons, reverse=True)
    for config in configs:
        least = sizes.least(config)
        if least <= free:
            yield Check("memory", f"{free / GIB:.1f} GiB free", f"{config.name} needs {least / GIB:.2f} GiB")
            return
    bound, advice = f"{config.name} needs {least / MIB:.0f} MiB", "end other programs, or raise the limit of memory"
    yield Check("memory", f"{free / MIB:.0f} MiB free", bound, "FAILED", advice)


def files() -> Iterator[Check]:
    """Whether runs can be written and locked in the current folder, and compiled programs kept."""
    here = Path.cwd()
    problem = _not_writable(here)
    advice = "go to a folder that you may write to: runs are written below the current one"
    yield Check("current folder", problem or str(here), "writable", "FAILED" if problem else "ok", advice)
    if not problem:
        problem = _not_lockable(here)
        advice = "two processes could write to one run at once: use a local folder, or mount this one with locks"
        found = problem or "a second lock is refused"
        yield Check("file locks", found, "flock", "warning" if problem else "ok", advice)
    free = shutil.disk_usage(here).free
    # A run of the largest preset keeps 20 MB of checkpoints; logs and reports have some 10 MB.
    verdict: Verdict = "FAILED" if free < 64 * MIB else "warning" if free < GIB else "ok"
    advice = "make room: a run that cannot write its checkpoint stops"
    yield Check("free disk space", f"{free / GIB:.1f} GiB", "at least 1 GiB", verdict, advice)
    yield _cache(getattr(jax.config, "jax_compilation_cache_dir", None))


def _cache(folder: str | None) -> Check:
    """The folder of compiled programs, as it is set in JAX. It need not exist yet."""
    advice = "every command compiles anew: set JAX_COMPILATION_CACHE_DIR to a folder that you may write to"
    if not folder:
        return Check("compilation cache", "none", "a folder", "warning", advice)
    path = Path(folder).absolute()
    problem = _not_writable(next(p for p in (path, *path.parents) if os.path.lexists(p)))
    found = f"{folder}: {problem}" if problem else folder
    return Check("compilation cache", found, "writable", "warning" if problem else "ok", advice)


def _not_writable(folder: Path) -> str | None:
    """Why a file cannot be written there, if it cannot; nothing is left behind."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"qernel")
            file.flush()
    except OSError as error:
        return error.strerror or str(error)
    return None


def _not_lockable(folder: Path) -> str | None:
    """Why locks do not keep a second process out there, if they do not."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".qernel-") as first, open(first.name, "rb") as second:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return None
            return "a second lock is granted"
    except OSError as error:
        return error.strerror or str(error)


CHECKS = (versions, devices, largest_preset, files)

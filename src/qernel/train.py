"""The outer loop: files, signals, wall time and console around the pure step of `vmc.py`."""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import equinox as eqx
import jax
import numpy as np

from qernel import checkpoint, memory, sizes
from qernel.config import Config, differences, read_config, to_dict
from qernel.errors import InputError
from qernel.log import Console, TrainLog, provenance
from qernel.stats import format_uncertainty
from qernel.vmc import STAGES, Metrics, TrainState, Vmc

COLUMNS = {
    "step": "updates of the weights made before these walkers were drawn",
    "coupling": "index of the coupling",
    "lam": "moiré depth λ",
    "energy": "E0, total, mean over the walkers of this step",
    "error": "E0, standard error of energy over the walkers",
    "variance": "E0², of the local energy, real and imaginary part",
    "energy_imag": "E0, imaginary part of the mean; 0 within its error",
    "kinetic": "E0, from the Laplacian",
    "moire": "E0, λ⟨W⟩",
    "interaction": "E0, Madelung term inside",
    "kinetic_gap": "(⟨T⟩ by Laplacian − ⟨T⟩ by gradient)/standard error; normal if ψ is C¹",
    "acceptance": "of all-electron moves",
    "translation_acceptance": "of moiré translations",
    "width": "a_M, step width",
    "moves": "all-electron moves before this update",
    "energy_correlation": "of the walkers' local energies between successive updates, running mean over 20",
    "min_log_psi": "smallest log|ψ| among the walkers",
    "update_norm": "|change of the weights|",
    "bound": "factor of the norm bound, 1 where inactive",
    "fallback": "1 where Cholesky failed and eigenvalues were used",
    **{f"seconds_{s.replace(' ', '_')}": "s, wall time of this part of the step" for s in STAGES},
    "wall": "s, wall time of the run so far, all calls together",
}


@dataclass
class Stop:
    """Why the loop should end, if it should."""

    reason: str | None = None


class RunFailed(RuntimeError):
    """Training cannot go on; the last good checkpoint is intact."""


def run(
    config: Config,
    folder: Path,
    *,
    walltime: float | None = None,
    console: Console | None = None,
    begin: Callable[[Vmc], TrainState] = Vmc.blank,
) -> TrainState:
    """Train until `config.steps` updates have been made, or `walltime` seconds are over, or a signal comes.

    Calling it again on the same folder goes on where it stopped. SIGINT and SIGTERM save and stop. A new run begins
    with the weights and walkers of `begin`.

    Raises:
        InputError: if the folder holds a run of another configuration, or its checkpoints are unusable; if a new run
            should have a parent and none is given.
        RunFailed: if energies or weights are no longer finite; the offending state is in `crash_*.safetensors`.
    """
    started = time.monotonic()
    sizes.check_training(config)
    vmc = Vmc(config)
    _ = vmc.start  # bad input found here must not leave a folder behind
    before = earlier_config(config, folder)
    if before is None:
        if config.parent and begin is Vmc.blank:
            raise InputError(f"parent = {config.parent}: a run that goes on from another begins with qernel finetune")
        describe_run(config, folder)
    with console or Console(config.steps) as console, interruptible() as stop:
        vmc, state, wall_before = _start_or_resume(vmc, folder, console, begin)
        if before not in (None, config):  # only now that its checkpoint is known to be good
            describe_run(config, folder)
        console.message(describe(vmc, state))
        console.message(memory.describe(vmc.plan, config, len(vmc.couplings), vmc.n_parameters))
        deadline = None if walltime is None else started + walltime
        with TrainLog(folder / "train.csv", COLUMNS) as log:
            log.truncate_after(int(state.step) - 1)
            _loop(vmc, state_box := [state], folder, log, console, stop, deadline, started - wall_before)
        state = state_box[0]
        done = int(state.step)
        why = stop.reason or "all steps done"
        console.message(f"{folder}: stopped after step {done} of {config.steps} ({why})")
        if done < config.steps:
            console.message("the same command goes on from here")
    return state


def _loop(
    vmc: Vmc,
    box: list[TrainState],
    folder: Path,
    log: TrainLog,
    console: Console,
    stop: Stop,
    deadline: float | None,
    epoch: float,
) -> None:
    """Step until done; the newest state is always in `box`, and on disk when this returns."""
    config = vmc.config
    first = saved_step = int(box[0].step)
    saved_at, slowest = time.monotonic(), 0.0
    while int(box[0].step) < config.steps and stop.reason is None:
        state = box[0]
        begin = time.monotonic()
        (new, metrics, seconds), vmc = _step(vmc, state, console)
        _check_finite(new, metrics, state, folder, vmc)
        box[0] = new
        now = time.monotonic()
        if int(state.step) > first:  # the first step compiles and says nothing of the next
            slowest = max(slowest, now - begin)
        for row in rows(int(state.step), state, metrics, seconds, now - epoch):
            log.append(row)
        console.progress(int(new.step), energy_text(metrics))
        if deadline is not None and now + 2 * slowest + 1.0 > deadline:
            stop.reason = "wall time"
        if now - saved_at > 60 * config.checkpoint_minutes:
            save(box[0], folder, vmc, log, now - epoch)
            saved_at, saved_step = now, int(new.step)
    if int(box[0].step) > saved_step or not checkpoint.checkpoints(folder / "checkpoints"):
        save(box[0], folder, vmc, log, time.monotonic() - epoch)


def _step(vmc: Vmc, state: TrainState, console: Console) -> tuple[tuple[TrainState, Metrics, dict[str, float]], Vmc]:
    """One step, with a smaller plan if memory does not suffice; and the `Vmc` that goes on."""
    done, plan = memory.fitting(lambda plan: vmc.with_plan(plan).step(state), vmc.plan, console.message)
    return done, vmc.with_plan(plan)


def _start_or_resume(
    vmc: Vmc, folder: Path, console: Console, begin: Callable[[Vmc], TrainState]
) -> tuple[Vmc, TrainState, float]:
    """The newest good checkpoint, or an equilibrated state saved as step 0; and the wall time spent before.

    A run that goes on keeps the plan it had.
    """
    files = folder / "checkpoints"
    if not checkpoint.checkpoints(files):
        console.message(f"{folder}: new run, {vmc.config.name}; placing and equilibrating walkers")
        state, smaller = memory.fitting(lambda plan: vmc.with_plan(plan).init(begin(vmc)), vmc.plan, console.message)
        vmc = vmc.with_plan(smaller)
        checkpoint.save(files, 0, state, _header(vmc, 0.0), vmc.config.keep)
        return vmc, state, 0.0
    restored = checkpoint.restore_latest(files, vmc.blank())
    for line in restored.skipped:
        console.message(f"skipped {line}")
    if restored.skipped:
        checkpoint.discard_after(files, restored.header.step)
    console.message(f"{folder}: going on from step {restored.header.step}")
    plan = restored.header.user.get("plan")
    return (
        vmc if plan is None else vmc.with_plan(memory.Plan(**plan)),
        vmc.placed(restored.state),
        float(restored.header.user.get("wall", 0.0)),
    )


def earlier_config(config: Config, folder: Path) -> Config | None:
    """The configuration of the run the folder holds already, if any.

    Raises `InputError` with the differences if it is another one (`steps` may differ).
    """
    file = folder / "config.json"
    if not file.exists():
        return None
    earlier = read_config(file, config.family.potential)
    changed = differences({**to_dict(earlier), "steps": 0}, {**to_dict(config), "steps": 0})
    if changed:
        raise InputError(f"{folder}: holds another configuration ({'; '.join(changed)}); choose another folder")
    return earlier


def describe_run(config: Config, folder: Path) -> None:
    """Write config.json and provenance.json. Raises `InputError` if the folder cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in (("config.json", to_dict(config)), ("provenance.json", provenance())):
            text = json.dumps(data, indent=2) + "\n"
            checkpoint.write_atomically(folder / name, partial(Path.write_text, data=text))
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror})") from None


def save(state: TrainState, folder: Path, vmc: Vmc, log: TrainLog, wall: float) -> None:
    """Checkpoint of the state, after the log has reached the disk."""
    log.sync()
    checkpoint.save(folder / "checkpoints", int(state.step), state, _header(vmc, wall), vmc.config.keep)


def _header(vmc: Vmc, wall: float) -> dict[str, Any]:
    return {"config": to_dict(vmc.config), "provenance": provenance(), "plan": asdict(vmc.plan), "wall": wall}


def _check_finite(new: TrainState, metrics: Metrics, old: TrainState, folder: Path, vmc: Vmc) -> None:
    """Stop before a broken state can replace a good one."""
    leaves = jax.tree.leaves(eqx.filter(new.model, eqx.is_inexact_array))
    if np.all(np.isfinite(metrics.energy)) and all(bool(np.all(np.isfinite(x))) for x in leaves):
        return
    path = checkpoint.save_crash(folder / "checkpoints", int(old.step), old, _header(vmc, 0.0))
    raise RunFailed(f"step {int(old.step)}: energies or weights are not finite; the state before it is in {path}")


def rows(
    step: int, state: TrainState, metrics: Metrics, seconds: dict[str, float], wall: float
) -> Iterator[dict[str, Any]]:
    """One log row per coupling."""
    once = {"moves", "energy_correlation", "update_norm", "bound", "fallback"}
    for c in range(len(metrics.energy)):
        per_coupling = {k: v if k in once else v[c] for k, v in metrics._asdict().items()}
        times = {f"seconds_{k.replace(' ', '_')}": v for k, v in seconds.items()}
        yield {"step": step, "coupling": c, "lam": float(state.couplings[c, 0]), **per_coupling, **times, "wall": wall}


def energy_text(metrics: Metrics) -> str:
    """Mean energy over the couplings and its error, and the largest health deviations."""
    n = len(metrics.energy)
    mean, error = float(np.mean(metrics.energy)), float(np.sqrt(np.sum(np.square(metrics.error))) / n)
    gap = float(np.max(np.abs(metrics.kinetic_gap)))
    return (
        f"E = {format_uncertainty(mean, error)} E0  var {float(np.mean(metrics.variance)):.2g}"
        f"  T-gap {gap:.1f}σ  acc {float(np.mean(metrics.acceptance)):.2f}"
        f"  {int(metrics.moves)} moves"
    )


def describe(vmc: Vmc, state: TrainState) -> str:
    """A few words on sizes at the start of a run."""
    total, active = state.model.parameter_count()
    c = vmc.config
    return (
        f"N = {c.family.n_electrons}, {len(vmc.couplings)} couplings x {c.sampling.walkers} walkers, "
        f"{total} parameters ({active} active per electron), {c.network.determinants} determinants, "
        f"{jax.device_count()} {jax.devices()[0].platform} device(s)"
    )


@contextmanager
def interruptible() -> Iterator[Stop]:
    """SIGINT and SIGTERM ask the loop to save and stop; a second SIGINT interrupts at once."""
    stop = Stop()

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.reason is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.reason = signal.Signals(number).name

    if threading.current_thread() is not threading.main_thread():
        yield stop  # signals can only be handled by the main thread
        return
    old = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for s, handler in old.items():
            signal.signal(s, handler)


def parse_walltime(text: str) -> float:
    """Seconds from "90s", "9m", "1h30m", "2h" or "hh:mm:ss". Raises `InputError` otherwise."""
    import re

    if m := re.fullmatch(r"(\d{1,9}):(\d{1,2}):(\d{1,2})", text):
        seconds = float(int(m[1]) * 3600 + int(m[2]) * 60 + int(m[3]))
    elif m := re.fullmatch(r"(?:(\d{1,9}(?:\.\d*)?)h)?(?:(\d{1,9}(?:\.\d*)?)m)?(?:(\d{1,9}(?:\.\d*)?)s?)?", text):
        hours, minutes, rest = (float(x) if x else 0.0 for x in m.groups())
        seconds = hours * 3600 + minutes * 60 + rest
    else:
        seconds = math.nan
    if not seconds > 0:
        raise InputError(f"walltime = {text}: must be a time such as 90s, 9m, 1h30m or 01:30:00")
    return seconds


def with_steps(config: Config, steps: int | None) -> Config:
    """The config with another total number of steps."""
    return config if steps is None else replace(config, steps=steps)

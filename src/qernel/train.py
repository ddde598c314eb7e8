"""The outer loop around the pure step of `vmc.py`: go on, log, save, stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from qernel import checkpoint, memory
from qernel.config import Config, to_dict
from qernel.errors import InputError
from qernel.log import Console, TrainLog, provenance
from qernel.record import Record
from qernel.recovery import Recovery, RunFailed, find
from qernel.run_folder import changes, describe_run, earlier_config, owned
from qernel.stats import format_uncertainty
from qernel.stopping import Deadline, Stop, interruptible
from qernel.vmc import STAGES, Metrics, TrainState, Vmc

COLUMNS = {
    "step": "updates of the weights made before these walkers were drawn",
    "coupling": "index of the coupling",
    "lam": "moiré depth λ",
    "energy": "E0, total, mean over the walkers of this step",
    "error": "E0, standard error of energy over the walkers",
    "variance": "E0², of the local energy, real and imaginary part",
    "energy_imag": "E0, imaginary part of the mean; 0 within its error",
    "energy_min": "E0, smallest local energy of a walker, real part",
    "energy_max": "E0, largest",
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
    "condition": "number of the damped Gram matrix, from below",
    "refreshed": "walkers put anew before this update because their local energy was not finite",
    **{f"seconds_{s.replace(' ', '_')}": "s, wall time of this part of the step" for s in STAGES},
    "wall": "s, wall time of the run so far, all calls together",
}


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
        InputError: if the folder holds a run of another configuration, cannot be written, or another process trains
            there; if its checkpoints are unusable; if a new run should have a parent and none is given.
        RunFailed: if energies or weights stay not finite (`recovery.py`), or the end could not be saved.
    """
    started = time.monotonic()
    vmc = Vmc(config)
    _ = vmc.start  # bad input found here must not leave a folder behind
    before = earlier_config(config, folder)
    if before is None and config.parent and begin is Vmc.blank:
        raise InputError(f"parent = {config.parent}: a run that goes on from another begins with qernel finetune")
    with owned(folder), console or Console(config.steps) as console, interruptible() as stop:
        if before is None:
            describe_run(config, folder)
        vmc, state, wall = _start_or_resume(vmc, folder, console, begin)
        if before not in (None, config):  # only now that its checkpoint is known to be good
            describe_run(config, folder)
        console.message(describe(vmc, state))
        console.message(memory.describe(vmc.plan, config, len(vmc.couplings), vmc.n_parameters))
        with TrainLog(folder / "train.csv", COLUMNS) as log:
            log.truncate_after(int(state.step) - 1)
            record = Record(folder, log, config.keep, _header(vmc), console.message)
            deadline = Deadline(None if walltime is None else started + walltime)
            state = _loop(vmc, state, record, console, stop, deadline, started - wall)
        done = int(state.step)
        console.message(f"{folder}: stopped after step {done} of {config.steps} ({stop.reason or 'all steps done'})")
        if done < config.steps:
            console.message("the same command goes on from here")
    return state


def _loop(
    vmc: Vmc, state: TrainState, record: Record, console: Console, stop: Stop, deadline: Deadline, epoch: float
) -> TrainState:
    """Step until done; the last state, which is then on disk. `epoch` is when the clock of the run stood at 0.

    Raises `RunFailed` as `run` does.
    """
    config, first = vmc.config, int(state.step)
    record.saved = first
    recovery = Recovery(vmc, record, console.message)
    while (step := int(state.step)) < config.steps and stop.reason is None:
        begin = time.monotonic()
        (new, metrics, seconds), vmc = _step(vmc, state, console)
        fault = find(vmc, state, new, metrics)
        if fault is not None:
            state = recovery.after(fault, state, new)
            continue
        wall = time.monotonic() - epoch
        record.add(list(rows(step, state, metrics, seconds, recovery.refreshed, wall)))
        state = new
        recovery.passed()
        console.progress(step + 1, energy_text(metrics))
        if step > first:  # the first step compiles and says nothing of the next
            deadline.step = max(deadline.step, time.monotonic() - begin)
        if _due(record, config, step + 1):
            begin = time.monotonic()
            record.save(state, begin - epoch)
            deadline.saving = max(deadline.saving, time.monotonic() - begin)
        if deadline.near():
            stop.reason = "wall time"
    if int(state.step) > (record.saved or 0) and not record.save(state, time.monotonic() - epoch):
        raise RunFailed(
            f"{record.folder}: cannot be written ({record.problem}); saved up to step {record.saved}, "
            f"steps after it to {int(state.step)} are lost; make room, and the same command goes on"
        )
    return state


def _due(record: Record, config: Config, step: int) -> bool:
    """Is it time for a checkpoint after this many steps?"""
    by_steps = config.checkpoint_steps is not None and step % config.checkpoint_steps == 0
    return by_steps or time.monotonic() - record.saved_at > 60 * config.checkpoint_minutes


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
        try:
            checkpoint.save(files, 0, state, {**_header(vmc), "wall": 0.0}, vmc.config.keep)
        except OSError as error:
            raise InputError(f"{folder}: cannot be written ({error.strerror or error})") from None
        return vmc, state, 0.0
    restored = checkpoint.restore_latest(files, vmc.blank())
    header = restored.header.user
    changed = changes(header.get("config", {}), to_dict(vmc.config))
    if changed:
        raise InputError(f"checkpoint {restored.path}: belongs to another run ({'; '.join(changed)})")
    for line in restored.skipped:
        console.message(f"skipped {line}")
    if restored.skipped:
        checkpoint.discard_after(files, restored.header.step)
    console.message(f"{folder}: going on from step {restored.header.step}")
    plan = header.get("plan")
    return (
        vmc if plan is None else vmc.with_plan(memory.Plan(**plan)),
        vmc.placed(restored.state),
        float(header.get("wall", 0.0)),
    )


def _header(vmc: Vmc) -> dict[str, Any]:
    return {"config": to_dict(vmc.config), "provenance": provenance(), "plan": asdict(vmc.plan)}


def rows(
    step: int, state: TrainState, metrics: Metrics, seconds: dict[str, float], refreshed: np.ndarray, wall: float
) -> Iterator[dict[str, Any]]:
    """One log row per coupling."""
    once = {"moves", "energy_correlation", "update_norm", "bound", "fallback", "condition"}
    for c in range(len(metrics.energy)):
        per_coupling = {k: v if k in once else v[c] for k, v in metrics._asdict().items()}
        per_coupling["refreshed"] = int(refreshed[c])
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


def with_steps(config: Config, steps: int | None) -> Config:
    """The config with another total number of steps."""
    return config if steps is None else replace(config, steps=steps)

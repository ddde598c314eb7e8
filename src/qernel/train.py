"""The outer loop around the pure step of `vmc.py`: go on, log, save, stop."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from qernel import checkpoint, memory, sizes
from qernel.config import Config, from_dict, to_dict
from qernel.errors import InputError
from qernel.hosts import first, gathered, lead, votes
from qernel.laplacian import Method
from qernel.log import Console, TrainLog, provenance
from qernel.record import Record, restore
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
    "bound": "factor of both bounds, of the norm and of the change of log ψ; 1 where inactive",
    "fallback": "1 where Cholesky failed and eigenvalues were used",
    "condition": "number of the damped Gram matrix, from below",
    "refreshed": "walkers put anew before this update because their local energy was not finite",
    **{f"seconds_{s.replace(' ', '_')}": "s, wall time of this part of the step" for s in STAGES},
    "processor": "s, processor time of this step, all threads of the process: other work on the machine is not in it",
    "wall": "s, wall time of the run so far, all calls together",
}


def run(
    config: Config,
    folder: Path,
    *,
    walltime: float | None = None,
    console: Console | None = None,
    begin: Callable[[Vmc], TrainState] = Vmc.blank,
    method: Method = "forward",
    turn: float | None = None,
) -> TrainState:
    """Train until `config.steps` updates have been made, or `walltime` seconds are over, or a signal comes.

    Calling it again on the same folder goes on where it stopped. SIGINT and SIGTERM save and stop. A new run begins
    with the weights and walkers of `begin`. `method` is how the Laplacian is computed (folx for comparisons): the
    numbers depend on it by rounding only, and a folder does not remember it. `turn` seconds after the first step, which
    compiles, the run ends as for the wall time: runs that are compared take turns.

    Raises:
        InputError: if the folder holds a run of another configuration, cannot be written, or another process trains
            there; if its checkpoints are unusable; if a new run should have a parent and none is given.
        RunFailed: if energies or weights stay not finite (`recovery.py`), or the end could not be saved.
    """
    started = time.monotonic()
    sizes.check_training(config)
    vmc = Vmc(config, method)
    _ = vmc.start  # bad input found here must not leave a folder behind
    _ = vmc.plan  # more walkers than devices can share are found here
    with ExitStack() as files, console or _console(config) as console, interruptible() as stop:
        changed = lead(lambda: _open(config, folder, files, begin))
        vmc, state, wall = _start_or_resume(vmc, folder, console, begin)
        if changed:  # only now that its checkpoint is known to be good
            lead(lambda: describe_run(config, folder))
        console.message(describe(vmc, state))
        console.message(memory.describe(vmc.plan, config, len(vmc.couplings), vmc.n_parameters))
        logs: list[TrainLog] = []  # of the first process
        lead(lambda: logs.append(_open_log(folder, int(state.step), files)))
        record = Record(folder, logs[0] if logs else None, config.keep, _header(vmc), console.message)
        deadline = Deadline(None if walltime is None else started + walltime, turn=turn)
        state = _loop(vmc, state, record, console, stop, deadline, started - wall)
        done, console.interrupted = int(state.step), stop.asked is not None
        console.message(f"{folder}: stopped after step {done} of {config.steps} ({stop.reason or 'all steps done'})")
        if done < config.steps:
            console.message("the same command goes on from here")
    return state


def _console(config: Config) -> Console:
    """The first process tells; the others' words go nowhere."""
    return Console(config.steps) if first() else Console(config.steps, stream=io.StringIO())


def _open(config: Config, folder: Path, files: ExitStack, begin: Callable[[Vmc], TrainState]) -> bool:
    """Take the folder, which holds this run or none; has the configuration changed where it may?

    Raises `InputError` if it may not.
    """
    before = earlier_config(config, folder)
    if before is None and config.parent and begin is Vmc.blank:
        raise InputError(f"parent = {config.parent}: a run that goes on from another begins with qernel finetune")
    files.enter_context(owned(folder))
    if before is None:
        describe_run(config, folder)
    return before not in (None, config)


def _open_log(folder: Path, step: int, files: ExitStack) -> TrainLog:
    """The log, cut back to the rows before `step`. Raises `InputError` if it cannot be written."""
    try:
        log = files.enter_context(TrainLog(folder / "train.csv", COLUMNS))
        log.truncate_after(step - 1)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror or error})") from None
    return log


def _loop(
    vmc: Vmc, state: TrainState, record: Record, console: Console, stop: Stop, deadline: Deadline, epoch: float
) -> TrainState:
    """Step until done; the last state, which is then on disk. `epoch` is when the clock of the run stood at 0.

    Raises `RunFailed` as `run` does.
    """
    config, began = vmc.config, int(state.step)
    record.saved = began
    recovery = Recovery(vmc, record, console.message)
    while (step := int(state.step)) < config.steps and not _ends(stop):
        begin, worked = time.monotonic(), time.process_time()
        (new, metrics, seconds), now = _step(vmc, state, console)
        if now is not vmc:
            vmc = recovery.vmc = now
            record.header = _header(vmc)
        fault = find(vmc, state, new, metrics)
        if fault is not None:
            state = recovery.after(fault, state, new)
            continue
        clocks = {"processor": time.process_time() - worked, "wall": time.monotonic() - epoch}
        record.add(list(rows(step, vmc.couplings, metrics, seconds, recovery.refreshed, clocks)))
        state = new
        recovery.passed()
        console.progress(step + 1, energy_text(metrics))
        if step == began:  # it compiles and says nothing of the next
            deadline.compiled()
        else:
            deadline.step = max(deadline.step, time.monotonic() - begin)
        _take_stock(state, record, config, stop, deadline, epoch)
    if int(state.step) > (record.saved or 0) and not record.save(state, time.monotonic() - epoch):
        raise RunFailed(
            f"{record.folder}: cannot be written ({record.problem}); saved up to step {record.saved}, "
            f"steps after it to {int(state.step)} are lost; make room, and the same command goes on"
        )
    return state


def _take_stock(
    state: TrainState, record: Record, config: Config, stop: Stop, deadline: Deadline, epoch: float
) -> None:
    """After a step: save if that is due, and find out if the time is over."""
    begin = time.monotonic()
    said = votes(_due(record, config, int(state.step)), deadline.near())
    if said[0, 0]:  # clocks differ: that of the first process counts
        record.save(state, begin - epoch)
        deadline.saving = max(deadline.saving, time.monotonic() - begin)
    if said[0, 1] or (said[0, 0] and lead(deadline.near)):
        stop.reason = "wall time"


def _ends(stop: Stop) -> bool:
    """Are all processes to stop here? A signal may have come to any of them."""
    asked = stop.asked  # it may come between two looks, too
    if votes(asked is not None).any():
        stop.reason = asked or "signal to another process"
    return stop.reason is not None


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
    if not lead(lambda: len(checkpoint.checkpoints(files))):
        console.message(f"{folder}: new run, {vmc.config.name}; placing and equilibrating walkers")
        state, smaller = memory.fitting(lambda plan: vmc.with_plan(plan).init(begin(vmc)), vmc.plan, console.message)
        vmc = vmc.with_plan(smaller)
        whole = gathered(state)
        lead(lambda: _save_first(files, whole, vmc))
        return vmc, state, 0.0
    resumed = restore(files, vmc)
    try:  # one of an earlier version lacks fields, which then had the default's meaning
        theirs = from_dict(resumed.header.get("config", {}), vmc.config.family.potential)
    except InputError as error:
        raise InputError(f"checkpoint {resumed.path}: {error}") from None
    changed = changes(to_dict(theirs), to_dict(vmc.config))
    if changed:
        raise InputError(f"checkpoint {resumed.path}: belongs to another run ({'; '.join(changed)})")
    for line in resumed.skipped:
        console.message(f"skipped {line}")
    if resumed.skipped and first():
        checkpoint.discard_after(files, resumed.step)
    console.message(f"{folder}: going on from step {resumed.step}")
    plan = resumed.header.get("plan")
    vmc = vmc if plan is None else vmc.with_plan(memory.Plan(**plan))
    return vmc, resumed.state, float(resumed.header.get("wall", 0.0))


def _save_first(files: Path, state: TrainState, vmc: Vmc) -> None:
    try:
        checkpoint.save(files, 0, state, {**_header(vmc), "wall": 0.0}, vmc.config.keep)
    except OSError as error:
        raise InputError(f"{files}: cannot be written ({error.strerror or error})") from None


def _header(vmc: Vmc) -> dict[str, Any]:
    return {"config": to_dict(vmc.config), "provenance": provenance(), "plan": asdict(vmc.plan)}


def rows(
    step: int,
    couplings: np.ndarray,
    metrics: Metrics,
    seconds: dict[str, float],
    refreshed: np.ndarray,
    clocks: dict[str, float],
) -> Iterator[dict[str, Any]]:
    """One log row per coupling; `clocks` are the columns of time of the whole step."""
    once = {"moves", "energy_correlation", "update_norm", "bound", "fallback", "condition"}
    for c in range(len(metrics.energy)):
        per_coupling = {k: v if k in once else v[c] for k, v in metrics._asdict().items()}
        per_coupling["refreshed"] = int(refreshed[c])
        times = {f"seconds_{k.replace(' ', '_')}": v for k, v in seconds.items()}
        yield {"step": step, "coupling": c, "lam": float(couplings[c, 0]), **per_coupling, **times, **clocks}


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

"""Energy against the size of the network: several sizes of one preset, each trained for the same time.

    python benchmarks/scaling.py --folder runs/scaling --seconds 3600
    python benchmarks/scaling.py --folder runs/scaling-n6 --preset moire-n6 --seconds 20 --leg 10 preset width-8
    python benchmarks/scaling.py --folder runs/scaling preset width-96+experts-0 walkers-256+init-mixed

A size is named by what differs from the preset: width (of features, experts and shared expert), layers, determinants,
experts, walkers, bands or init, joined by +. Each is an ordinary run in FOLDER/NAME. They are trained in turn, a leg
each, so that what else the machine does disturbs all of them. Counted is the time of the steps, without compilation.
The same command goes on, also with more --seconds or further names. At the end: a table, FOLDER/scaling.json, and
FOLDER/scaling.pdf: energy per electron and variance against weights and seconds a step, both means over the couplings
and the last fifth of the steps, weights moving.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from qernel import figures
from qernel.config import Config
from qernel.errors import InputError, nearest, one_line, script
from qernel.log import Console, read_log
from qernel.options import lam_range
from qernel.presets import preset
from qernel.recovery import RunFailed
from qernel.stats import estimate, format_uncertainty

STUDY = (
    *("width-32", "width-64", "width-96"),
    *("experts-0", "experts-8", "experts-16"),
    *("determinants-1", "determinants-2", "determinants-4"),
    *("init-bloch", "init-mixed"),
)
NUMBERS = ("width", "layers", "determinants", "experts", "bands", "walkers")
STARTS = ("bloch", "mixed", "random")
STEPS = 10**8
"""more than any wall time allows"""
MISSING = 0.1
"""of a leg: less is not worth another call"""
FEWEST = 5
"""steps, of which one or two were compiled: fewer do not tell how long one takes"""
SLOW = 3.0
"""times the median: a step that took longer was compiled or disturbed"""


@dataclass(frozen=True)
class Point:
    """What one size came to. Energies in E0 per electron."""

    name: str
    weights: int
    active: int
    walkers: int
    steps: int
    seconds_per_step: float
    """median over the last fifth, all parts of a step"""
    trained: float
    """s, of all steps, compilation left out"""
    energy: float
    """mean over the couplings, of the last fifth of the steps"""
    error: float
    variance: float
    """E0² of the total local energy, mean over the couplings and the last fifth"""
    by_coupling: dict[str, tuple[float, float]]
    """λ → energy and its error"""


def configuration(base: Config, name: str) -> Config:
    """The preset with the sizes of a name; "preset" is itself. Raises `InputError` for a name of another kind."""
    config = base
    for part in name.split("+") if name != "preset" else ():
        key, _, value = part.partition("-")
        if key not in (*NUMBERS, "init"):
            raise InputError(f"{name}: {key} is no size; {nearest(key, [*NUMBERS, 'init', 'preset'])}")
        if key == "init":
            if value not in STARTS:
                raise InputError(f"{name}: {value} is no start; {nearest(value, list(STARTS))}")
            config = replace(config, network=replace(config.network, init=value))
            continue
        if not value.isdecimal():
            raise InputError(f"{name}: {key} must be followed by a number, as in {key}-8")
        config = _sized(config, key, int(value))
    return replace(config, name=f"{base.name} {name}", steps=STEPS)


def _sized(config: Config, key: str, value: int) -> Config:
    if key == "walkers":
        return replace(config, sampling=replace(config.sampling, walkers=value))
    network = config.network
    if key == "width":
        return replace(config, network=replace(network, width=value, expert_width=value, shared_width=value))
    top_k = min(network.top_k, value) if key == "experts" and value else network.top_k
    return replace(config, network=replace(network, **{key: value}, top_k=top_k))


def distinct(base: Config, names: list[str]) -> dict[str, Config]:
    """Configurations by name, "preset" first; of names that say the same the first."""
    found: dict[str, Config] = {}
    for name in ["preset", *names]:
        config = configuration(base, name)
        if all(replace(config, name=c.name) != c for c in found.values()):
            found[name] = config
    return found


def goals(seconds: float, leg: float) -> list[float]:
    """Seconds of steps that every run should have come to after each round of legs."""
    return [min(seconds, leg * (k + 1)) for k in range(math.ceil(seconds / leg))]


def step_seconds(log: dict[str, np.ndarray]) -> np.ndarray:
    """Seconds of every step, [steps]; at most `SLOW` times the median. None of fewer than `FEWEST`."""
    parts: np.ndarray = sum(log[c] for c in log if c.startswith("seconds_"))[log["coupling"] == 0]
    return np.minimum(parts, SLOW * np.median(parts)) if len(parts) >= FEWEST else np.zeros(0)


def train(configs: dict[str, Config], folder: Path, seconds: float, leg: float) -> None:
    """Train all in turn; one that fails is left out, and said.

    Raises `KeyboardInterrupt` if a signal ended a leg, whose run is then saved.
    """
    failed: set[str] = set()
    for goal in goals(seconds, leg):
        for name in [n for n in configs if n not in failed]:
            try:
                _train_to(configs[name], folder / name, goal, leg)
            except (RunFailed, jax.errors.JaxRuntimeError) as error:
                print(f"{name} failed and is left out: {one_line(str(error))[:500]}", file=sys.stderr)
                failed.add(name)


def _train_to(config: Config, folder: Path, goal: float, leg: float) -> None:
    from qernel.train import run

    while goal - (done := _steps_of(folder)).sum() > MISSING * leg:
        # A run ends early enough for one more step; its first call spends most of its time on compiling.
        margin = 1 + 2 * float(done.max(initial=0))
        console = Console(STEPS)
        run(config, folder, walltime=goal - done.sum() + margin, console=console)
        if console.interrupted:
            raise KeyboardInterrupt


def _steps_of(folder: Path) -> np.ndarray:
    log = folder / "train.csv"
    return step_seconds(read_log(log)) if log.is_file() else np.zeros(0)


def summarise(name: str, config: Config, counts: tuple[int, int], log: dict[str, np.ndarray]) -> Point | None:
    """What a run came to, from the columns of its log and its numbers of weights; none if it has too few steps."""
    first = log["coupling"] == 0
    steps = int(first.sum())
    tail = log["step"] >= steps - max(1, steps // 5)
    if steps < FEWEST:
        return None
    n, found = config.family.n_electrons, {}
    for k in np.unique(log["coupling"]):
        mine = tail & (log["coupling"] == k)
        e = estimate(log["energy"][mine][:, None] / n)
        found[f"{log['lam'][mine][0]:.6g}"] = (e.mean, e.error)
    seconds = step_seconds(log)
    means, errors = np.array(list(found.values())).T
    return Point(
        name=name,
        weights=counts[0],
        active=counts[1],
        walkers=config.sampling.walkers * len(found),
        steps=steps,
        seconds_per_step=float(np.median(seconds[-max(1, steps // 5) :])),
        trained=float(seconds.sum()),
        energy=float(means.mean()),
        error=float(np.sqrt((errors**2).sum()) / len(errors)),
        variance=float(log["variance"][tail].mean()),
        by_coupling=found,
    )


def weights(config: Config) -> tuple[int, int]:
    """All weights, and those active for one electron."""
    from qernel.bench_problems import count

    return count(config.family, config.network)


def table(points: list[Point]) -> str:
    """In Markdown; differences from the first, the preset."""
    heads = [
        "size",
        "weights (active)",
        "walkers",
        "steps",
        "s a step",
        "trained, s",
        "E/N",
        "E/N − preset",
        "variance",
    ]
    rows = [heads, ["---"] + ["--:"] * (len(heads) - 1)]
    for p in points:
        base = points[0]
        change = "" if p is base else format_uncertainty(p.energy - base.energy, math.hypot(p.error, base.error))
        rows.append(
            [
                *(p.name, f"{p.weights:,} ({p.active:,})", f"{p.walkers}", f"{p.steps}", f"{p.seconds_per_step:.3g}"),
                *(f"{p.trained:.0f}", format_uncertainty(p.energy, p.error), change, f"{p.variance:.3g}"),
            ]
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


@figures.style()
def draw(points: list[Point]) -> Any:
    """Energy per electron and variance, each against weights and seconds of a step."""
    f, axes = figures.figure(figures.PAGE, 5.0, 2, 2, sharey="row")
    columns = (("weights", "weights"), ("seconds_per_step", "seconds a step"))
    for column, (attribute, words) in enumerate(columns):
        for row, (y, error) in enumerate((("energy", "error"), ("variance", None))):
            ax = axes[row, column]
            for k, p in enumerate(points):
                look = {**figures.series(k), "ls": "none"}
                bar = getattr(p, error) if error else None
                figures.curve(ax, [getattr(p, attribute)], [getattr(p, y)], bar, look, p.name, ms=4.5)
            ax.set_xscale("log")
            figures.plain_log(ax.xaxis)
            ax.set_xlabel(words)
        axes[1, column].set_yscale("log")
    axes[0, 0].set_ylabel("energy per electron (E₀)")
    axes[1, 0].set_ylabel("variance (E₀²)")
    figures.plain_log(axes[1, 0].yaxis)
    handles, names = axes[0, 0].get_legend_handles_labels()
    f.legend(handles, names, loc="outside upper center", ncols=4)
    return f


def main() -> None:
    """Train, then print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(STUDY), metavar="SIZE")
    parser.add_argument("--preset", default="moire-n54")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument(
        "--seconds", type=float, default=3600, help="time of the steps of each size, all calls together"
    )
    parser.add_argument("--leg", type=float, default=600, help="seconds of a leg")
    parser.add_argument("--lam", type=float, nargs=3, metavar=("LOW", "HIGH", "POINTS"), help="couplings to train on")
    o = parser.parse_args()
    try:
        points = study(o)
    except KeyboardInterrupt:
        raise SystemExit("interrupted; the same command goes on") from None
    print(table(points))
    print(o.folder / "scaling.pdf")


def study(o: argparse.Namespace) -> list[Point]:
    """Train what is left to train, and write table and figure; the points."""
    from qernel.cli import _prepare_jax

    if not (0 < o.leg < math.inf and 0 < o.seconds < math.inf):
        raise InputError(f"--seconds, --leg = {o.seconds:g}, {o.leg:g}: must be positive")
    _prepare_jax()  # as `qernel train`: what one call has compiled, the next ones find
    base = preset(o.preset)
    if o.lam is not None:
        base = replace(base, family=replace(base.family, lam=lam_range(o.lam)))
    configs = distinct(base, o.names)
    o.folder.mkdir(parents=True, exist_ok=True)
    train(configs, o.folder, o.seconds, o.leg)
    found = [summarise(n, c, weights(c), read_log(o.folder / n / "train.csv")) for n, c in configs.items()]
    points = [p for p in found if p is not None]
    if not points or points[0].name != "preset":
        raise InputError(f"--seconds {o.seconds:g}: too short for {FEWEST} steps of the preset")
    text = json.dumps([asdict(p) for p in points], indent=1) + "\n"
    (o.folder / "scaling.json").write_text(text, encoding="utf-8")
    (o.folder / "scaling.pdf").write_bytes(figures.encoded(draw(points), "pdf"))
    return points


if __name__ == "__main__":
    script(main)

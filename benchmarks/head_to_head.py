"""This program's network against PsiFormers: the same optimiser, sampling, walkers and machine, in turns.

    python benchmarks/head_to_head.py --out runs/head-to-head --walltime 10m
    python benchmarks/head_to_head.py --out runs/head-to-head --walltime 10m --seconds 1200     # and again, further
    python benchmarks/head_to_head.py --out runs/n6 --preset moire-n6 --lam 1 --walkers 256 --seconds 200 \
        --networks qernel qernel-24 psiformer-equal psiformer-16 psiformer-32 --walltime 2h

Networks: `qernel` is that of the preset, `qernel-W` the same with features and experts of width W; `psiformer-W`
(4 layers, 4 heads, keys of their own, 4 determinants, random start), `psiformer-equal` the one with as many weights as
the preset's network, `psiformer-6x` with six times as many. A PsiFormer has folx's Laplacian, which is what the
publication will have had, and `psiformer-equal-forward` ours, to tell the Laplacian's part from the network's; and
`psiformer-equal-started` begins with orbitals as the preset's network does, to tell the part of the start.

Every network at every λ is a run folder of its own in --out (`qernel status`, `qernel evaluate` work there), trained in
legs, one network after the other, so that a slow hour hurts all alike. A call that ends, or is killed, goes on with the
same command. With --family the networks of this program train all λ at once, with as many walkers at each; their
seconds are then divided by the number of λ.

Seconds are those of the training steps: wall time on an accelerator; processor time on a CPU, so that other work on
the machine does not count (JAX_NUM_CPU_DEVICES=1 for one core). Start and compilation are apart ("set-up"). Compiled
programs are kept in --out. Written there at the end: head_to_head.json, .svg, .pdf and .png; printed: the two factors,
time of a step at equal weights, and weights at equal energy. --with adds series of another program (periodicwave.py).
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import jax
import numpy as np

from qernel.bench_compare import Series, comparable, from_json, step_times
from qernel.bench_compare_figure import draw
from qernel.bench_compare_report import compare, lines
from qernel.bench_problems import count, psiformer, psiformer_of
from qernel.checkpoint import checkpoints
from qernel.config import Config
from qernel.devices import use_cores
from qernel.errors import InputError, one_line, require, script
from qernel.figures import encoded
from qernel.files import write_atomically
from qernel.laplacian import Method
from qernel.log import Console, provenance, read_log
from qernel.network import Network
from qernel.presets import preset
from qernel.recovery import RunFailed
from qernel.status import status
from qernel.stopping import parse_walltime
from qernel.train import run

NETWORKS = ["qernel", "psiformer-equal", "psiformer-equal-forward", "psiformer-64", "psiformer-6x"]
RESERVE = 15.0
"""s of a call that are left for the analysis"""
LATER = 0.2
"""of the set-up of a process's first leg, what the second may take: programs are compiled, not all are traced"""
STEPS = 10**8
"""never reached: time ends a run"""


def network_of(name: str, config: Config) -> tuple[Network, Method]:
    """Network and Laplacian of a name. Raises `InputError` for one that does not exist, or cannot."""
    found = re.fullmatch(r"(qernel|psiformer)(?:-(equal|\d+(?:\.\d+)?x|\d+))?(-started)?(?:-(folx|forward))?", name)
    known = (
        "qernel, qernel-W, psiformer-W, psiformer-equal or psiformer-6x, perhaps with -started, then -folx or -forward"
    )
    require(found is not None, "--networks", name, known)
    kind, size, started, method = found.groups()
    base = config.network
    if kind == "qernel":
        require(not started and (size is None or size.isdigit()), "--networks", name, known)
        return resized(base, int(size)) if size else base, method or "forward"
    require(size is not None, "--networks", name, known)
    if size.isdigit():
        network = psiformer(int(size))
    else:
        times = 1.0 if size == "equal" else float(size[:-1])
        network = psiformer_of(config.family, round(times * count(config.family, base)[0]))
    return replace(network, init=base.init) if started else network, method or "folx"


def resized(network: Network, width: int) -> Network:
    """With features of another width, and experts in proportion."""
    shared, expert = (round(w * width / network.width) for w in (network.shared_width, network.expert_width))
    return replace(network, width=width, shared_width=shared, expert_width=expert)


class Told(Console):
    """The console, which remembers when its first step was done."""

    first: float | None = None

    def progress(self, step: int, energy_text: str = "") -> None:
        self.first = self.first or time.monotonic()
        super().progress(step, energy_text)


@dataclass(frozen=True)
class Job:
    """One run folder: a network at one λ, or at all of them."""

    name: str
    config: Config
    method: Method
    folder: Path
    clock: str

    @property
    def lams(self) -> list[float]:
        return [float(c[0]) for c in self.config.couplings]

    @cached_property
    def weights(self) -> tuple[int, int]:
        return count(self.config.family, self.config.network)

    def starts(self) -> list[int]:
        """Steps that legs began with."""
        file = self.folder / "legs.json"
        return json.loads(file.read_text()) if file.exists() else []

    def series(self) -> list[Series]:
        """What its log holds, a series for each λ; none before the first step."""
        file = self.folder / "train.csv"
        log = read_log(file) if file.exists() else {"step": np.zeros(0)}
        if len(log["step"]) == 0:
            return []
        return [self._series(log, k, lam) for k, lam in enumerate(self.lams)]

    def _series(self, log: dict[str, np.ndarray], k: int, lam: float) -> Series:
        rows = {n: x[log["coupling"] == k] for n, x in log.items()}
        seconds, setup = step_times(rows, self.starts(), self.clock)
        c = self.config
        return Series(
            name=self.name + ("" if len(self.lams) == 1 else ", family"),
            lam=lam,
            electrons=c.family.n_electrons,
            parameters=self.weights[0],
            active=self.weights[1],
            laplacian=self.method,
            optimizer=type(c.optimizer).__name__,
            walkers=c.sampling.walkers,
            moves=float(rows["moves"].mean()),
            clock=self.clock,
            setup=setup,
            seconds=np.cumsum(seconds) / len(self.lams),
            energy=rows["energy"],
            variance=rows["variance"],
        )

    def done(self) -> float:
        """Seconds of training that count, for each λ; NaN after a single step."""
        found = self.series()
        return float(found[0].seconds[-1]) if found else 0.0

    def leg(self, turn: float, walltime: float) -> tuple[bool, float]:
        """Train for `turn` seconds after set-up, `walltime` with it; was it not interrupted, and seconds of set-up."""
        begun = time.monotonic()
        begin = status(self.folder).step if checkpoints(self.folder / "checkpoints") else 0
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(sorted({*self.starts(), begin}))
        write_atomically(self.folder / "legs.json", lambda p: p.write_text(text))
        console = Told(STEPS, every=60.0)
        run(self.config, self.folder, walltime=walltime, console=console, method=self.method, turn=turn)
        return not console.interrupted, (console.first or time.monotonic()) - begun


def jobs_of(o: argparse.Namespace) -> list[Job]:
    """All networks at all λ. Raises `InputError` for what is impossible."""
    base = preset(o.preset)
    sampling = replace(base.sampling, walkers=o.walkers, sweeps=o.moves)
    clock = "processor" if jax.default_backend() == "cpu" else "wall"
    found = []
    for name in o.networks:
        network, method = network_of(name, base)
        together = o.family and name.startswith("qernel") and len(o.lam) > 1
        for lams in [o.lam] if together else [[x] for x in o.lam]:
            config = replace(
                base,
                family=replace(base.family, lam=(lams[0], lams[-1], len(lams))),
                network=network,
                sampling=sampling,
                steps=STEPS,
                seed=o.seed,
                memory=o.memory,
                keep=2,
            )
            even = np.allclose(config.couplings[:, 0], lams)
            require(even, "--lam", lams, "evenly spaced, from low to high, for --family")
            folder = o.out / f"{name}-{'family' if together else f'lam{lams[0]:g}'}-seed{o.seed}"
            found.append(Job(name, config, method, folder, clock))
    return found


def train_all(jobs: Sequence[Job], seconds: float, share: float, end: float) -> bool:
    """In turns, until each has `seconds` that count, or `end` of `time.monotonic`; were none interrupted?

    What is left before the end is shared out evenly, so that none gets a turn more than the others.
    """
    setup: dict[Path, float] = {}
    failed: set[Path] = set()
    while True:
        missing = {j: seconds - float(np.nan_to_num(j.done())) for j in jobs if j.folder not in failed}
        waiting = [j for j, left in missing.items() if left > 0]
        room = end - time.monotonic() - RESERVE - sum(setup.get(j.folder, 0.0) for j in waiting)
        turn = min(share, room / max(1, sum(len(j.lams) for j in waiting)))
        if not waiting or turn < (share / 4 if setup else 0.0):
            return True
        for job in waiting:
            room = end - time.monotonic() - RESERVE
            if room < 2 + setup.get(job.folder, 0.0):
                continue
            try:
                # The last bit is no leg of its own: a little too much does not matter.
                own = len(job.lams) * max(turn / 4, min(turn, missing[job]))
                going, spent = job.leg(own, room)
            except (RunFailed, jax.errors.JaxRuntimeError) as error:
                print(f"{job.name} failed and is left out: {one_line(str(error))[:500]}", file=sys.stderr)
                failed.add(job.folder)
                continue
            if not going:
                return False
            setup[job.folder] = spent if job.folder in setup else spent * LATER


def main() -> None:
    """Train, compare, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs, the results and the figure")
    parser.add_argument("--preset", default="moire-n54")
    parser.add_argument("--lam", type=float, nargs="+", default=[0.5, 1.0, 1.5])
    parser.add_argument("--networks", nargs="+", default=NETWORKS, metavar="NAME")
    parser.add_argument("--family", action="store_true", help="one set of weights of ours for all λ at once")
    parser.add_argument("--walkers", type=int, default=256, help="at each λ")
    parser.add_argument("--moves", type=lambda x: x if x == "auto" else int(x), default=10, help="10, or auto")
    parser.add_argument("--seconds", type=float, default=600.0, help="of training, for each network at each λ")
    parser.add_argument("--share", type=float, default=20.0, help="seconds of a turn")
    parser.add_argument("--walltime", default="10m", help="of this call; 0s: only compare and draw")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory", type=float, help="GiB that a step may take")
    parser.add_argument("--hf", type=float, nargs="+", default=[], help="Hartree–Fock energies, E0, one for each λ")
    parser.add_argument("--with", dest="others", type=Path, nargs="+", default=[], help="series of other programs")
    o = parser.parse_args()
    end = time.monotonic() + (0.0 if o.walltime in ("0", "0s") else parse_walltime(o.walltime))
    use_cores()
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_compilation_cache_dir", str(o.out / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    require(len(o.hf) in (0, len(o.lam)), "--hf", o.hf, "an energy for each λ")
    jobs = jobs_of(o)
    others = [read_series(file) for file in o.others]
    go_on = train_all(jobs, o.seconds, o.share, end)
    report(o, jobs, others)
    sys.exit(0 if go_on else 1)


def read_series(file: Path) -> Series:
    """Of another program. Raises `InputError` for a file that holds none."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--with {file}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise InputError(f"--with {file}: not valid JSON ({error})") from None
    return from_json(data, file)


def report(o: argparse.Namespace, jobs: Sequence[Job], others: Sequence[Series]) -> None:
    """Results, printed and in files."""
    found = [*(s for job in jobs for s in job.series()), *others]
    enough = comparable(found)
    for s in found:
        if not any(s is kept for kept in enough):
            print(f"{s.name} at λ = {s.lam:g}: only {len(s.seconds)} steps, left out", file=sys.stderr)
    if not enough:
        print("no network has steps enough to be compared yet; the same command goes on", file=sys.stderr)
        return
    result = {"preset": o.preset, "seed": o.seed, "provenance": provenance(), **compare(enough)}
    o.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    write_atomically(o.out / "head_to_head.json", lambda p: p.write_text(text, encoding="utf-8"))
    picture = draw(enough, dict(zip(o.lam, o.hf, strict=False)))
    for kind in ("svg", "pdf", "png"):
        (o.out / f"head_to_head.{kind}").write_bytes(encoded(picture, kind))
    print(*lines(result), sep="\n")


if __name__ == "__main__":
    script(main)

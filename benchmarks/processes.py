"""Seconds of a training step with the devices in one process or in two, and what saving costs.

    python benchmarks/processes.py [--steps 40]

Runs of `moire-n6` one after the other, each in a temporary folder: one device; two devices in one process; two
processes of one device. Times are medians over the steps after the first ten. A save is timed on the last run's state,
and set against the interval between checkpoints.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from qernel.log import read_log
from qernel.presets import preset


def train(folder: Path, steps: int, devices: int, processes: int) -> float:
    """Median seconds of a step."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "qernel.cli", "train", "moire-n6", "--run", str(folder), "--steps", str(steps)]
    meet = ["--coordinator", f"localhost:{port}", "--processes", str(processes), "--process"]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices // processes)}
    started = [
        subprocess.Popen(
            command + ([*meet, str(i)] if processes > 1 else []),
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for i in range(processes)
    ]
    if any(p.wait() for p in started):
        raise SystemExit(f"{devices} devices in {processes} processes: training failed")
    log = read_log(folder / "train.csv")
    seconds = sum(log[name] for name in log if name.startswith("seconds_"))
    return float(np.median(seconds[(log["coupling"] == 0) & (log["step"] >= 10)]))


def saving(folder: Path) -> float:
    """Median seconds of a save of the state in a run folder."""
    import jax

    from qernel import checkpoint
    from qernel.record import restore
    from qernel.vmc import Vmc

    jax.config.update("jax_enable_x64", True)
    resumed = restore(folder / "checkpoints", Vmc(preset("moire-n6")))
    times = []
    for step in range(20):
        begin = time.perf_counter()
        checkpoint.save(folder / "again", step, resumed.state, resumed.header)
        times.append(time.perf_counter() - begin)
    return float(np.median(times))


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as base:
        times = {}
        for devices, processes in ((1, 1), (2, 1), (2, 2)):
            times[devices, processes] = train(Path(base) / f"{devices}-{processes}", steps, devices, processes)
            ratio = times[1, 1] / times[devices, processes]
            text = f"{times[devices, processes]:.3f} s a step, {ratio:.2f} times one device"
            print(f"{devices} devices, {processes} processes: {text}", flush=True)
        save = saving(Path(base) / "1-1")
        interval = 60 * preset("moire-n6").checkpoint_minutes
        print(f"a save: {save:.3f} s, {100 * save / interval:.3f} % of the {interval:g} s between two")


if __name__ == "__main__":
    main()

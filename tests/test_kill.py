"""Runs that are killed at random moments, as processes of their own: nothing but an interval is ever lost."""

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from qernel import checkpoint
from qernel.log import read_log
from test_train import SETTINGS, TIMES

STEPS = 300


class Runs:
    """A run as a process; compiled programs are shared."""

    def __init__(self, base):
        self.base, self.environment = base, {**os.environ, "XDG_CACHE_HOME": str(base / "cache")}

    def start(self, folder, interval):
        command = f"train {SETTINGS} --run {folder} --steps {STEPS} --checkpoint_steps {interval}"
        return subprocess.Popen(
            [sys.executable, "-m", "qernel.cli", *command.split()],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
        )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("kill"))


@pytest.fixture(scope="module")
def whole(runs):
    """The run that nobody kills."""
    process = runs.start(runs.base / "whole", 100)
    console = process.communicate()[1]
    assert process.returncode == 0, console
    return runs.base / "whole"


def steps_logged(folder):
    path = folder / "train.csv"
    steps = read_log(path)["step"] if path.exists() else []
    return int(steps[-1]) + 1 if len(steps) else 0


def newest_good(folder):
    """Its step; every file that is there is whole, whatever the moment of the kill."""
    paths = checkpoint.checkpoints(folder / "checkpoints")
    for path in paths:
        checkpoint.load_arrays(path)
    return checkpoint.read_header(paths[-1]).step if paths else 0


def kill(process, folder, how, after):
    """The signal, some time after the run began to step or, half the time, to write."""
    began = steps_logged(folder)
    while process.poll() is None and steps_logged(folder) <= began:
        time.sleep(0.01)
    time.sleep(after)
    process.send_signal(how)
    return process.communicate(timeout=60)[1]


def survive(runs, whole, name, kills, intervals, seed):
    """Kill a run until it is done, with another of the intervals at every start; the number of kills that hit it."""
    draw, folder = random.Random(seed), runs.base / name
    hit = saved = 0
    while True:
        interval = draw.choice(intervals)
        process = runs.start(folder, interval)
        how = draw.choice([signal.SIGTERM, signal.SIGINT, signal.SIGKILL, signal.SIGKILL])
        console = kill(process, folder, how, draw.uniform(0, 0.4)) if hit < kills else process.communicate()[1]
        hit += process.returncode != 0 or how.name in console
        good, logged = newest_good(folder), steps_logged(folder)
        assert good >= saved, "an older state than before"
        assert f"going on from step {saved}" in console or saved == 0
        assert 0 <= logged - good <= interval, "more than an interval is lost"
        if process.returncode == 0:
            assert logged == good, "a run that ends in good order loses nothing"
        saved = good
        if process.returncode == 0 and good == STEPS:
            break
    a, b = (checkpoint.load_arrays(checkpoint.latest(f / "checkpoints")) for f in (whole, folder))
    for leaf in a:
        np.testing.assert_array_equal(a[leaf], b[leaf], err_msg=leaf)
    a, b = (read_log(f / "train.csv") for f in (whole, folder))
    for column in set(a) - set(TIMES):
        np.testing.assert_array_equal(a[column], b[column], err_msg=column)
    return hit


def test_five_kills(runs, whole):
    # Saving after every step most of the time goes into writing, and so do most of the kills.
    assert survive(runs, whole, "a", kills=5, intervals=[1, 1, 20], seed=1) == 5


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_fifty_kills(runs, whole, seed):
    assert survive(runs, whole, f"c{seed}", kills=5, intervals=[1, 1, 2, 5, 20], seed=100 + seed) == 5

"""Runs of several processes and devices: the numbers are those of one, and one that dies takes nothing with it."""

import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from qernel import checkpoint
from qernel.log import read_log
from qernel.status import status
from test_train import SETTINGS, TIMES

COMMAND = f"train {SETTINGS} --network.dtype float64".replace("--sampling.walkers 6", "--sampling.walkers 8").split()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tmp_path_factory.mktemp("hosts")


def start(base, name, steps, *more, devices=1):
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "NPROC")}
    environment |= {"JAX_NUM_CPU_DEVICES": str(devices), "XDG_CACHE_HOME": str(base / "cache")}
    words = [*COMMAND, "--run", base / name, "--steps", steps, *more]
    return subprocess.Popen(
        [sys.executable, "-m", "qernel.cli", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def start_two(base, name, steps, *more):
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    meet = ("--coordinator", f"localhost:{port}", "--processes", "2", "--process")
    return [start(base, name, steps, *more, *meet, i) for i in (0, 1)]


def finish(*processes, code=0):
    """Console of each; all end with the code, in bounded time."""
    try:
        consoles = [p.communicate(timeout=240) for p in processes]
    finally:
        for p in processes:
            p.kill()
    for p, (_, console) in zip(processes, consoles, strict=True):
        assert p.returncode == code, console
    return [out for out, _ in consoles], [console for _, console in consoles]


@pytest.fixture(scope="module")
def one(base):
    """Twenty steps of one process with one device."""
    finish(start(base, "one", 20))
    return base / "one"


def assert_same_numbers(a, b):
    x, y = (checkpoint.load_arrays(checkpoint.latest(f / "checkpoints")) for f in (a, b))
    assert x.keys() == y.keys()
    for name in x:
        np.testing.assert_allclose(x[name], y[name], rtol=1e-5, atol=1e-7, err_msg=name)
    x, y = (read_log(f / "train.csv") for f in (a, b))
    for column in set(x) - {*TIMES, "kinetic_gap", "energy_imag"}:  # small differences of large numbers
        np.testing.assert_allclose(x[column], y[column], rtol=1e-5, atol=1e-7, err_msg=column)


def test_checkpoints_go_from_four_devices_to_one_and_on_to_two(base, one):
    chunk = ("--sampling.chunk", "3")
    for steps, devices in ((7, 4), (14, 1), (20, 2)):
        finish(start(base, "devices", steps, *chunk, devices=devices))
    assert_same_numbers(base / "devices", one)


def test_two_processes_are_one(base, one):
    finish(*start_two(base, "two", 11))
    out, consoles = finish(*start_two(base, "two", 20))
    assert "going on from step 11" in consoles[0]
    # One of them has the folder, and speaks.
    assert out == [f"{base / 'two'}\n", ""] or "Gloo" in out[0]
    assert "step" not in consoles[1]
    assert_same_numbers(base / "two", one)


@pytest.mark.slow
def test_two_processes_go_on_as_one(base, one):
    finish(*start_two(base, "alone", 11))
    finish(start(base, "alone", 20))
    assert_same_numbers(base / "alone", one)


def wait_for_steps(folder, steps):
    end = time.monotonic() + 120
    while time.monotonic() < end:
        if (folder / "train.csv").exists() and len(read_log(folder / "train.csv")["step"]) >= 2 * steps:
            return
        time.sleep(0.05)
    raise TimeoutError(f"{folder}: not {steps} steps yet")


@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_one_that_is_killed_ends_the_other_and_both_start_again(base, victim):
    name = f"killed-{victim}"
    processes = start_two(base, name, 10**6, "--checkpoint_steps", 5)
    wait_for_steps(base / name, 12)
    processes[victim].kill()
    began = time.monotonic()
    console = processes[1 - victim].communicate(timeout=60)[1]
    assert time.monotonic() - began < 45
    assert processes[1 - victim].returncode not in (0, None)
    assert "another process is gone" in console or "another task died" in console
    assert status(base / name).step >= 10
    again = start_two(base, name, 10**6, "--checkpoint_steps", 5)
    wait_for_steps(base / name, status(base / name).step + 5)
    # A signal to any of them ends all in good order.
    again[victim].send_signal(signal.SIGTERM)
    _, consoles = finish(*again)
    assert "going on from step" in consoles[0]
    assert "stopped after step" in consoles[0]
    found = status(base / name)
    assert found.process is None
    assert len(read_log(base / name / "train.csv")["step"]) == 2 * found.step


def test_walkers_that_devices_cannot_share(base):
    _, consoles = finish(*start_two(base, "odd", 5, "--sampling.walkers", "7"), code=2)
    for console in consoles:
        assert "walkers = 7: must be a multiple of the 2 devices of all processes" in console
    assert not (base / "odd").exists()


@pytest.mark.parametrize("more", [["--processes", "2"], ["--coordinator", "localhost:1"]])
def test_half_an_invitation_is_refused(base, more):
    _, (console,) = finish(start(base, "half", 5, *more), code=2)
    assert "all three are needed" in console

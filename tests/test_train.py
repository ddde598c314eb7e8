"""The loop around the step: resuming is exact, signals and wall time end a run in good order."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from qernel import checkpoint
from qernel.cli import main
from qernel.errors import InputError
from qernel.log import read_log
from qernel.stopping import parse_walltime
from qernel.train import COLUMNS

SETTINGS = (
    "moire-n2 --network.layers 1 --network.width 4 --network.heads 2 --network.kv_heads 1 --network.experts 0 "
    "--network.film_width 2 --network.determinants 1 --network.shared_width 4 --network.jastrow_shells 2 "
    "--network.plane_wave_cutoff 40 --sampling.walkers 6 --sampling.sweeps 2 --sampling.burn_in 4 "
    "--family.lam 0.5 1.0 2"
)
OPTIONS = SETTINGS.split()
COUPLINGS = 2
TIMES = [name for name in COLUMNS if name.startswith("seconds_") or name in ("processor", "wall")]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Compiled programs are shared by the runs of this file, outside the user's cache."""
    with pytest.MonkeyPatch.context() as m:
        m.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


def train(folder, steps, *more):
    return main(["train", *OPTIONS, "--run", str(folder), "--steps", str(steps), *more])


@pytest.fixture(scope="module")
def runs(cache, tmp_path_factory):
    """One run of six steps, and one of three that goes on to six."""
    folder = tmp_path_factory.mktemp("runs")
    assert train(folder / "straight", 6) == 0
    assert train(folder / "resumed", 3) == 0
    first = (folder / "resumed" / "train.csv").read_text()
    assert train(folder / "resumed", 6) == 0
    return folder / "straight", folder / "resumed", first


def final_arrays(folder):
    return checkpoint.load_arrays(checkpoint.latest(folder / "checkpoints"))


def test_interrupted_and_resumed_equals_uninterrupted(runs):
    """Every leaf of the state bit for bit: weights, optimiser, walkers, widths, random key."""
    straight, resumed, _ = runs
    a, b = final_arrays(straight), final_arrays(resumed)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    assert any("walkers" in name for name in a)
    assert any("key" in name for name in a)


def test_logs_are_equal_but_for_times(runs):
    straight, resumed, first = runs
    a, b = read_log(straight / "train.csv"), read_log(resumed / "train.csv")
    assert list(a) == list(COLUMNS)
    for name in a:
        if name not in TIMES:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    assert (resumed / "train.csv").read_text().startswith(first)
    assert (np.diff(b["wall"][::COUPLINGS]) > 0).all()


def test_resumed_run_chooses_the_same_moves(runs):
    """Interrupted within a window of the running correlation, before the number of moves is chosen anew."""
    folder, auto = runs[0].parent, ("--sampling.sweeps", "auto")
    assert train(folder / "auto", 24, *auto) == 0
    assert train(folder / "auto_resumed", 13, *auto) == 0
    assert train(folder / "auto_resumed", 24, *auto) == 0
    a, b = (read_log(folder / name / "train.csv") for name in ("auto", "auto_resumed"))
    for name in ("moves", "energy_correlation", "energy"):
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    moves = a["moves"][::COUPLINGS]
    assert (moves[:21] == 10).all()
    assert (a["energy_correlation"][:COUPLINGS] == 0).all()
    assert (a["energy_correlation"][COUPLINGS:] != 0).all()


def test_one_row_for_each_step_and_coupling(runs):
    for folder in runs[:2]:
        log = read_log(folder / "train.csv")
        rows = list(zip(log["step"].tolist(), log["coupling"].tolist(), strict=True))
        assert rows == [(step, c) for step in range(6) for c in range(COUPLINGS)]
        np.testing.assert_array_equal(log["lam"], [0.5, 1.0] * 6)
        with (folder / "train.csv").open() as file:
            assert all(cell != "" for row in csv.reader(file) for cell in row)


def test_files_of_a_run(runs):
    for folder in runs[:2]:
        config = json.loads((folder / "config.json").read_text())
        assert config["steps"] == 6
        assert config["network"]["width"] == 4
        assert {"qernel", "jax", "device"} <= json.loads((folder / "provenance.json").read_text()).keys()
        assert json.loads((folder / "train.units.json").read_text()) == COLUMNS
        header = checkpoint.read_header(checkpoint.latest(folder / "checkpoints"))
        assert header.step == 6
        assert header.user["config"] == config
        assert not list(folder.rglob("*.tmp"))


def test_finished_run_is_left_alone(runs, capsys):
    before = {p: p.read_bytes() for p in runs[0].rglob("*") if p.is_file()}
    assert train(runs[0], 6) == 0
    assert {p: p.read_bytes() for p in runs[0].rglob("*") if p.is_file()} == before
    out, err = capsys.readouterr()
    assert out.strip() == str(runs[0])
    assert "step 6" in err


def test_rows_of_lost_steps_are_not_doubled(runs):
    """As after a kill: the log is ahead of the newest checkpoint."""
    import shutil

    folder = shutil.copytree(runs[0], runs[0].parent / "killed")
    files = checkpoint.checkpoints(folder / "checkpoints")
    assert [p.name for p in files] == ["step_00000000.safetensors", "step_00000006.safetensors"]
    files[-1].unlink()
    with (folder / "train.csv").open("a") as file:
        file.write("6,0,0.5,-3.")
    assert train(folder, 6) == 0
    a, b = final_arrays(runs[0]), final_arrays(folder)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    log = read_log(folder / "train.csv")
    assert log["step"].tolist() == np.repeat(np.arange(6), COUPLINGS).tolist()


def test_wall_time_ends_a_run_in_good_order(runs, capsys):
    """A wall time already over: at least one step is made and saved, and the same command goes on."""
    folder = runs[0].parent / "timed"
    assert train(folder, 1000, "--walltime", "0.001s") == 0
    err = capsys.readouterr().err
    assert "wall time" in err
    assert "the same command goes on from here" in err
    done = checkpoint.read_header(checkpoint.latest(folder / "checkpoints")).step
    assert 1 <= done < 1000
    assert read_log(folder / "train.csv")["step"].tolist() == np.repeat(np.arange(done), COUPLINGS).tolist()


def test_termination_signal_leaves_a_run_that_goes_on(runs):
    folder = runs[0].parent / "terminated"
    command = [sys.executable, "-m", "qernel.cli", "train", *OPTIONS, "--run", str(folder), "--steps", "100000"]
    # The same numbers bit for bit need as many devices. Nobody reads the pipe until the end, and older versions of
    # jaxlib fill it with complaints about every program from the cache.
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(jax.device_count()), "TF_CPP_MIN_LOG_LEVEL": "3"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    log = folder / "train.csv"
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if log.exists() and log.read_bytes().count(b"\n") > 3 * COUPLINGS:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "SIGTERM" in err
    assert out.strip() == str(folder)
    done = checkpoint.read_header(checkpoint.latest(folder / "checkpoints")).step
    assert done >= 3
    assert read_log(log)["step"].tolist() == np.repeat(np.arange(done), COUPLINGS).tolist()
    # Another process made the same numbers as this one.
    ours, theirs = read_log(runs[0] / "train.csv"), read_log(log)
    np.testing.assert_array_equal(theirs["energy"][: 3 * COUPLINGS], ours["energy"][: 3 * COUPLINGS])


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("90", 90),
        ("9m", 540),
        ("1h30m", 5400),
        ("2h", 7200),
        ("1.5h", 5400),
        ("01:30:00", 5400),
        ("0:00:05", 5),
    ],
)
def test_wall_times(text, seconds):
    assert parse_walltime(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-5m", "0", "5d", "1:30", "m", "nan", "inf"])
def test_bad_wall_times(text):
    with pytest.raises(InputError, match=r"walltime = .*must be a time such as"):
        parse_walltime(text)

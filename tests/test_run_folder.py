"""A run folder belongs to one process; a disk that is full, read-only or damaged costs nothing that was saved."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from qernel import checkpoint
from qernel.config import to_dict
from qernel.errors import InputError
from qernel.log import read_log
from qernel.recovery import RunFailed
from qernel.run_folder import earlier_config, owned
from qernel.train import run
from qernel.vmc import Vmc
from test_checkpoint import rewrite_header
from test_recovery import CONFIG

STEP = Vmc.step
fcntl = pytest.importorskip("fcntl")


@pytest.fixture(scope="module")
def six(tmp_path_factory):
    """A run of six steps, saved at 0, 2, 4 and 6 (0 is gone)."""
    folder = tmp_path_factory.mktemp("six") / "run"
    return run(CONFIG, folder), folder


@pytest.fixture
def copy(six, tmp_path):
    return shutil.copytree(six[1], tmp_path / "run")


def walkers(state):
    return np.asarray(state.walkers)


def test_second_process_is_refused(tmp_path):
    code = f"from pathlib import Path; from qernel.run_folder import owned\nwith owned(Path({str(tmp_path)!r})): pass"
    with owned(tmp_path):
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert f"another process ({os.getpid()}) trains there" in other.stderr
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_second_run_is_refused_before_anything_is_computed(copy, monkeypatch):
    monkeypatch.setattr(Vmc, "blank", lambda vmc: pytest.fail("computed"))
    with owned(copy), pytest.raises(InputError, match="another process"):
        run(replace(CONFIG, steps=8), copy)


def test_lock_of_a_killed_process_is_free(tmp_path):
    code = (
        "import os, signal; from pathlib import Path; from qernel.run_folder import owned\n"
        f"with owned(Path({str(tmp_path)!r})): os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert (tmp_path / "lock").exists()
    with owned(tmp_path):
        pass


@pytest.mark.parametrize("what", ["mkdir", "open"])
def test_folder_that_cannot_be_written_is_named_before_anything_is_computed(tmp_path, monkeypatch, what):
    """By its errors: the superuser, who may run this, can write to a read-only folder."""

    def refuse(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(*((type(tmp_path), "mkdir") if what == "mkdir" else (os, "open")), refuse)
    monkeypatch.setattr(Vmc, "blank", lambda vmc: pytest.fail("computed"))
    with pytest.raises(InputError, match=r"run: cannot be written \(Read-only file system\)"):
        run(CONFIG, tmp_path / "run")


def test_checkpoint_of_another_hamiltonian_is_refused(copy, tmp_path):
    other = replace(CONFIG, family=replace(CONFIG.family, lam=(0.5, 1.5, 2)), steps=2)
    run(other, tmp_path / "other")
    newest = checkpoint.latest(tmp_path / "other" / "checkpoints")
    shutil.copy(newest, copy / "checkpoints" / "step_00000009.safetensors")
    with pytest.raises(InputError, match=r"step_00000009.*belongs to another run \(family.lam: \[0.5, 1.5, 2\]"):
        run(replace(CONFIG, steps=12), copy)


def test_a_run_of_an_earlier_version_goes_on(copy):
    """Its configuration lacks a field that has been added since."""
    for file in checkpoint.checkpoints(copy / "checkpoints"):
        rewrite_header(file, lambda fields: fields["user"]["config"]["optimizer"].pop("max_change"))
    old = json.loads((copy / "config.json").read_text())
    del old["optimizer"]["max_change"]
    (copy / "config.json").write_text(json.dumps(old))
    assert int(run(replace(CONFIG, steps=7), copy).step) == 7


def test_what_is_said_of_checkpoints_may_change(copy):
    config = replace(CONFIG, steps=7, checkpoint_steps=None, checkpoint_minutes=9.0, keep=1)
    assert int(run(config, copy).step) == 7
    assert len(checkpoint.checkpoints(copy / "checkpoints")) == 1
    assert earlier_config(config, copy) == config
    with pytest.raises(InputError, match="seed: 0 → 1"):
        earlier_config(replace(config, seed=1), copy)


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped", "version"])
def test_damaged_newest_checkpoint_costs_one_interval(six, copy, capsys, damage):
    newest = checkpoint.latest(copy / "checkpoints")
    data = bytearray(newest.read_bytes())
    if damage == "flipped":
        data[-3] ^= 4
    if damage == "version":
        data = data.replace(b'format_version\\": 1', b'format_version\\": 9')
        assert data != newest.read_bytes()
    newest.write_bytes({"truncated": data[:-9], "empty": b""}.get(damage, data))
    state = run(CONFIG, copy)
    console = capsys.readouterr().err
    assert "skipped checkpoint" in console
    assert "going on from step 4" in console
    np.testing.assert_array_equal(walkers(state), walkers(six[0]))
    np.testing.assert_array_equal(read_log(copy / "train.csv")["step"], np.repeat(np.arange(6), 2))


def test_nothing_but_damaged_checkpoints_is_refused(copy):
    for path in checkpoint.checkpoints(copy / "checkpoints"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match=r"no checkpoint in .*truncated at 0 bytes"):
        run(replace(CONFIG, steps=8), copy)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 400 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("may not mount a file system")
    yield disk
    subprocess.run(["umount", disk], check=True)


def fill(disk):
    """Take what is left, and say where."""
    path = disk / "filler"
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(b"0" * 1024):
                pass
        except OSError:
            pass
    return path


def at_step(monkeypatch, actions):
    def step(vmc, state):
        actions.get(int(state.step), lambda: None)()
        return STEP(vmc, state)

    monkeypatch.setattr(Vmc, "step", step)


def test_full_disk_that_is_freed_costs_nothing(six, small_disk, monkeypatch, capsys):
    folder = small_disk / "run"
    at_step(monkeypatch, {3: lambda: fill(small_disk), 5: lambda: os.unlink(small_disk / "filler")})
    state = run(replace(CONFIG, keep=1), folder)
    console = capsys.readouterr().err
    assert "cannot be written (No space left on device); going on, nothing after step 2 is saved yet" in console
    assert "can be written again; saved at step 6" in console
    np.testing.assert_array_equal(walkers(state), walkers(six[0]))
    log, whole = read_log(folder / "train.csv"), read_log(six[1] / "train.csv")
    np.testing.assert_array_equal(log["energy"], whole["energy"])


def test_full_disk_to_the_end_is_said_and_the_old_checkpoint_stays(six, small_disk, monkeypatch):
    folder = small_disk / "run"
    at_step(monkeypatch, {3: lambda: fill(small_disk)})
    with pytest.raises(RunFailed, match=r"No space left on device.*saved up to step 2, steps after it to 6 are lost"):
        run(replace(CONFIG, keep=1), folder)
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["step_00000002.safetensors"]
    os.unlink(small_disk / "filler")
    monkeypatch.undo()
    np.testing.assert_array_equal(walkers(run(replace(CONFIG, keep=1), folder)), walkers(six[0]))


def test_disk_full_from_the_start(small_disk):
    filler = fill(small_disk)
    with pytest.raises(InputError, match=r"cannot be written"):
        run(CONFIG, small_disk / "run")
    filler.unlink()
    assert int(run(CONFIG, small_disk / "run").step) == 6


def test_config_is_written_once_and_whole(six):
    assert json.loads((six[1] / "config.json").read_text()) == json.loads(json.dumps(to_dict(CONFIG)))

"""How far a run is, and the job script that asks."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from qernel import checkpoint
from qernel.cli import main
from qernel.run_folder import owned
from qernel.train import run
from test_recovery import CONFIG
from test_train import SETTINGS

SCRIPT = Path(__file__).parents[1] / "examples" / "slurm.sh"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("status") / "run"
    run(CONFIG, folder)
    return folder


def test_finished_run(folder, capsys):
    assert main(["status", str(folder)]) == 0
    assert re.fullmatch(rf"{folder}: step 6 of 6, \d+ s so far, saved \d+ s ago; finished\n", capsys.readouterr().out)
    assert main(["status", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["step"], found["steps"], found["finished"], found["process"]) == (6, 6, True, None)
    assert found["wall"] > 0


def test_unfinished_run_and_damaged_checkpoint(folder, capsys):
    newest = checkpoint.latest(folder / "checkpoints")
    whole = newest.read_bytes()
    newest.write_bytes(whole[:50])
    assert main(["status", str(folder)]) == 3
    assert "step 4 of 6" in capsys.readouterr().out
    with owned(folder):
        assert main(["status", str(folder)]) == 3
    assert f"process {os.getpid()} trains" in capsys.readouterr().out
    newest.write_bytes(whole)


def test_no_run(tmp_path, folder, capsys):
    assert main(["status", str(tmp_path)]) == 2
    assert "cannot be read" in capsys.readouterr().err
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    assert main(["status", str(tmp_path)]) == 2
    assert "no checkpoint" in capsys.readouterr().err


def test_job_asks_for_the_next_until_the_run_is_done(tmp_path):
    """With stand-ins for the scheduler's commands: two jobs of limited wall time, then one that finishes."""
    bin = tmp_path / "bin"
    bin.mkdir()
    for name, text in (
        ("srun", 'exec "$@"'),
        ("scontrol", f'echo "$@" >> {tmp_path}/asked'),
        ("qernel", f'exec {sys.executable} -m qernel.cli "$@"'),
    ):
        (bin / name).write_text(f"#!/bin/sh\n{text}\n")
        (bin / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{bin}:{os.environ['PATH']}", "SLURM_JOB_ID": "77"}
    environment["XDG_CACHE_HOME"] = str(tmp_path / "cache")

    def job(walltime, *more):
        words = ["bash", str(SCRIPT), "moire-n2", str(tmp_path / "run"), *SETTINGS.split()[1:], *more]
        return subprocess.run(words, env={**environment, "WALLTIME": walltime}, capture_output=True, text=True)

    first = job("1s", "--steps", "4")
    assert first.returncode == 0, first.stderr
    assert (tmp_path / "asked").read_text() == "requeue 77\n"
    assert job("10m", "--steps", "4").returncode == 0
    assert (tmp_path / "asked").read_text() == "requeue 77\n"
    # What failed is not repeated.
    assert job("10m", "--steps", "4", "--seed", "1").returncode == 2
    assert (tmp_path / "asked").read_text() == "requeue 77\n"

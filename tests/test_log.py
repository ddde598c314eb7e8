"""The training log, provenance and the progress line."""

import io
import json
import math
import shutil
import subprocess
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import qernel
from qernel.errors import InputError
from qernel.log import Console, TrainLog, duration, git_state, progress_line, provenance, read_log, units_path

COLUMNS = {"step": "1", "lam": "V0", "energy": "E0, total", "note": "text"}


def filled(path: Path, steps: int = 5) -> TrainLog:
    log = TrainLog(path, COLUMNS)
    for step in range(steps):
        for lam in (0.25, 1.0):
            log.append({"step": step, "lam": lam, "energy": -1.0 / (step + 3)})
    return log


def test_round_trip_bit_for_bit(tmp_path):
    path = tmp_path / "run" / "train.csv"
    values = [0.1, -1 / 3, 1e-308, math.nan, math.inf, 5.0]
    with TrainLog(path, COLUMNS) as log:
        for step, x in enumerate(values):
            log.append({"step": step, "energy": x, "note": 'a, "b"\nc'})
        log.append({"step": np.int64(6), "energy": jnp.asarray(0.1, jnp.float32), "lam": np.float64(1.5)})
    data = read_log(path)
    assert list(data) == list(COLUMNS)
    assert data["step"].dtype == np.int64
    assert data["step"].tolist() == list(range(7))
    assert data["energy"][:6].tobytes() == np.array(values).tobytes()
    assert data["energy"][6] == np.float32(0.1)
    assert math.isnan(data["lam"][0])
    assert data["lam"][6] == 1.5
    assert data["note"][0] == 'a, "b" c'
    assert path.read_text().splitlines()[0] == "step,lam,energy,note"


def test_units_lie_beside_the_log(tmp_path):
    path = tmp_path / "train.csv"
    TrainLog(path, COLUMNS).close()
    assert units_path(path) == tmp_path / "train.units.json"
    assert json.loads(units_path(path).read_text()) == COLUMNS


def test_every_row_is_readable_at_once(tmp_path):
    log = filled(tmp_path / "train.csv", steps=1)
    assert read_log(log.path)["step"].tolist() == [0, 0]
    log.append({"step": 1})
    assert read_log(log.path)["step"].tolist() == [0, 0, 1]


def test_reopening_appends_without_a_second_header(tmp_path):
    path = tmp_path / "train.csv"
    filled(path, 2).close()
    before = path.read_bytes()
    with TrainLog(path, COLUMNS) as log:
        assert path.read_bytes() == before
        log.append({"step": 2})
    assert read_log(path)["step"].tolist() == [0, 0, 1, 1, 2]


@pytest.mark.parametrize("step", [-1, 0, 2, 4, 99])
def test_resume_without_gap_or_duplicate(tmp_path, step):
    whole = filled(tmp_path / "whole.csv", 5)
    log = filled(tmp_path / "resumed.csv", 5)
    assert log.truncate_after(step) == 2 * (4 - min(step, 4))
    assert set(read_log(log.path)["step"].tolist()) == set(range(min(step, 4) + 1))
    for k in range(step + 1, 5):
        for lam in (0.25, 1.0):
            log.append({"step": k, "lam": lam, "energy": -1.0 / (k + 3)})
    assert log.path.read_bytes() == whole.path.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir() if "resumed" in p.name) == ["resumed.csv", "resumed.units.json"]


def test_any_cut_is_repaired(tmp_path):
    path = tmp_path / "train.csv"
    filled(path, 2).close()
    data = path.read_bytes()
    for cut in range(len(data)):
        path.write_bytes(data[:cut])
        if b"\n" in data[:cut]:
            assert len(read_log(path)["step"]) == data[:cut].count(b"\n") - 1
        with TrainLog(path, COLUMNS) as log:
            complete = data[:cut][: data[:cut].rfind(b"\n") + 1]
            assert path.read_bytes() == (complete or data[: data.index(b"\n") + 1])
            log.append({"step": 7})
        assert read_log(path)["step"][-1] == 7


def test_other_columns_are_refused_and_the_file_stays(tmp_path):
    path = tmp_path / "train.csv"
    filled(path).close()
    before = path.read_bytes()
    with pytest.raises(InputError, match="has columns step,lam,energy,note, this run writes step,energy"):
        TrainLog(path, {"step": "1", "energy": "E0"})
    assert path.read_bytes() == before


def test_log_of_an_earlier_version_gets_the_new_columns(tmp_path):
    path = tmp_path / "train.csv"
    filled(path).close()
    before = read_log(path)
    with TrainLog(path, {"new": "1", **COLUMNS}) as log:
        log.append({"step": 99, "new": 7.5})
    after = read_log(path)
    assert list(after) == ["new", *COLUMNS]
    assert after["new"][-1] == 7.5
    assert np.isnan(after["new"][:-1]).all()
    for name in ("step", "lam", "energy"):
        np.testing.assert_array_equal(after[name][:-1], before[name])


def test_rows_are_checked(tmp_path):
    log = TrainLog(tmp_path / "train.csv", COLUMNS)
    with pytest.raises(InputError, match="no column enregy; did you mean 'energy'"):
        log.append({"step": 0, "enregy": 1.0})
    with pytest.raises(InputError, match="step"):
        log.append({"energy": 1.0})
    with pytest.raises(InputError, match="step"):
        TrainLog(tmp_path / "other.csv", {"energy": "E0"})


def test_full_disk_leaves_complete_lines(tmp_path):
    log = filled(tmp_path / "train.csv", 1)
    before = log.path.read_bytes()

    class Full:
        def __init__(self, file):
            self.file = file

        def write(self, data):
            return self.file.write(data[:4])

        def __getattr__(self, name):
            return getattr(self.file, name)

    log._file = Full(log._file)
    with pytest.raises(OSError, match="No space left"):
        log.append({"step": 1, "energy": 0.5})
    assert log.path.read_bytes() == before


def test_damaged_logs_are_named(tmp_path):
    path = tmp_path / "train.csv"
    with pytest.raises(InputError, match=r"train\.csv: cannot be read"):
        read_log(path)
    path.write_text("")
    with pytest.raises(InputError, match="no header row"):
        read_log(path)
    path.write_text("step,energy\n1,2\n3\n")
    with pytest.raises(InputError, match="line 3 has 1 cells, the header 2"):
        read_log(path)
    path.write_bytes(b"step,energy\n\xff\xfe,2\n")
    with pytest.raises(InputError, match="damaged line"):
        read_log(path)
    log = TrainLog(path, {"step": "1", "energy": "E0"})
    with pytest.raises(InputError, match="damaged line"):
        log.truncate_after(0)


def test_empty_log(tmp_path):
    TrainLog(tmp_path / "train.csv", COLUMNS).sync()
    assert {k: v.shape for k, v in read_log(tmp_path / "train.csv").items()} == dict.fromkeys(COLUMNS, (0,))


def test_provenance_is_json_and_complete():
    p = json.loads(json.dumps(provenance()))
    assert p["qernel"] == qernel.__version__
    assert p["x64"] is True
    assert p["devices"] >= 1
    assert p["time"].endswith("+00:00")
    for name in ("python", "jax", "jaxlib", "numpy", "equinox", "backend", "device", "platform"):
        assert isinstance(p[name], str), name
    assert "git" in p


@pytest.mark.skipif(shutil.which("git") is None, reason="no git")
def test_git_state(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    source = tmp_path / "src" / "a.py"
    source.parent.mkdir()
    source.write_text("1")
    assert git_state(source) is None
    git("init")
    assert git_state(source) is None
    git("add", "src/a.py")
    git("commit", "-m", "one")
    (tmp_path / "elsewhere").write_text("run files do not make the source dirty")
    state = git_state(source)
    assert len(state["commit"]) == 40
    assert state["dirty"] is False
    source.write_text("2")
    assert git_state(source)["dirty"] is True
    installed = tmp_path / "venv" / "a.py"
    installed.parent.mkdir()
    installed.write_text("1")
    assert git_state(installed) is None


def test_progress_line():
    assert progress_line(1200, 20000, "E = -105.31(4)", 0.12) == (
        "step 1200/20000 (6%)  E = -105.31(4)  0.12 s/step  38 min left"
    )
    assert progress_line(0, 0, "") == "step 0/0 (0%)"


def test_durations():
    assert [duration(s) for s in (0.2, 59, 61, 3599, 7500, 200_000)] == [
        "0 s",
        "59 s",
        "1 min",
        "1 h 00 min",
        "2 h 05 min",
        "2 d 07 h",
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_are_few():
    out, now = io.StringIO(), [0.0]
    with Console(100, every=10.0, stream=out, clock=lambda: now[0]) as console:
        for step in range(1, 101):
            now[0] += 1.0
            console.progress(step, "E = -1.0(1) [E0]")
        console.message("saved")
    lines = out.getvalue().splitlines()
    assert lines[0] == "step 1/100 (1%)  E = -1.0(1) [E0]"
    assert lines[1] == "step 11/100 (11%)  E = -1.0(1) [E0]  1 s/step  1 min left"
    assert lines[-2].startswith("step 100/100 (100%)")
    assert lines[-1] == "saved"
    assert len(lines) == 12
    assert "\x1b" not in out.getvalue()


def test_live_line_on_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    out, now = Terminal(), [0.0]
    with Console(3, stream=out, clock=lambda: now[0]) as console:
        for step in (1, 2, 3):
            now[0] += 1.0
            console.progress(step, f"E = -{step}.0(1) [bold]")
            console.message(f"message {step} [x]")
    text = out.getvalue()
    assert "\x1b[" in text
    for step in (1, 2, 3):
        assert f"E = -{step}.0(1) [bold]" in text
        assert f"message {step} [x]" in text


def test_dumb_terminal_gets_plain_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    out = Terminal()
    Console(3, stream=out).progress(1)
    assert out.getvalue() == "step 1/3 (33%)\n"

"""The script that makes a phase diagram in legs: what it does next, and when it stops. Commands are stand-ins."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "examples" / "legs.sh"

# A training is done after two calls; BREAKS names the word in whose presence a command fails.
STAND_IN = """#!/bin/bash
[ "$1" = status ] || echo "$@" >> "$CALLS"
[[ -n "$BREAKS" && "$*" == *"$BREAKS"* ]] && exit 1
case $1 in
    status) [ -d "$2" ] || exit 2; [ -f "$2/begun" ] && [ -f "$2/done" ] || exit 3 ;;
    train | finetune)
        while [ "$1" != --run ]; do shift; done
        mkdir -p "$2"; [ -f "$2/begun" ] && touch "$2/done"; touch "$2/begun" ;;
    scan) touch "$2/results.nc" ;;
esac
"""


@pytest.fixture
def leg(tmp_path):
    """Call the script: exit code and the commands it gave."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "qernel").write_text(STAND_IN)
    (tmp_path / "bin" / "qernel").chmod(0o755)
    calls = tmp_path / "calls"

    def call(seconds, *more, breaks="", preset="moire-n54", **environment):
        calls.write_text("")
        done = subprocess.run(
            ["bash", str(SCRIPT), preset, str(tmp_path / "runs"), str(seconds), *more],
            env={
                **os.environ,
                "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
                "CALLS": str(calls),
                "BREAKS": breaks,
                **environment,
            },
            capture_output=True,
            text=True,
        )
        return done.returncode, calls.read_text().replace(f"{tmp_path}/runs/", "").splitlines(), done.stderr

    return call


def test_stages_follow_each_other_and_go_on(leg):
    names = ["deep", "family", "shallow", "family-from-shallow"]
    given = []
    for name in names:
        code, calls, _ = leg(540, "--seed", "7")
        assert code == 3
        given.append(calls[-1])
        assert f"--run {name} --walltime 5" in calls[-1]
        assert len(calls) == 1 if name == "deep" else f"--run {names[names.index(name) - 1]} " in calls[0]
    assert "--train_at.lam 2 2 1 --sampling.walkers 1024" in given[0]
    assert "--train_at.lam 0.25 0.25 1 --sampling.walkers 1024" in given[2]
    assert given[1].startswith("finetune deep --lam 0.25 2 32 --sampling.walkers 32 --steps 12000 ")
    assert given[3].startswith("finetune shallow --lam 0.25 2 32 ")
    assert ["--seed 7" in x for x in given] == [True, False, True, False]
    code, calls, _ = leg(540)
    assert code == 0
    assert [c.split()[0] for c in calls] == ["finetune", "scan", "transition", "report"]
    report = calls[-1]
    assert report.startswith("report family --compare family-from-shallow --references ")
    assert Path(report.split()[-1]).is_file()
    # Nothing is done again but what is cheap, and says the result.
    code, calls, _ = leg(540)
    assert (code, [c.split()[0] for c in calls]) == (0, ["transition", "report"])


def test_without_a_table_of_hartree_fock_there_is_none(leg, tmp_path):
    first = leg(540, preset="moire-n6", COUPLINGS="8", WALKERS="4", ALONE="64")[1]
    assert "--sampling.walkers 64 " in first[0]
    for _ in range(4):
        code, calls, _ = leg(540, preset="moire-n6", COUPLINGS="8", WALKERS="4")
    assert code == 0
    assert calls[-1] == "report family --compare family-from-shallow"
    assert "--sampling.walkers 4 " in calls[0]
    (tmp_path / "hf.json").touch()
    _, calls, _ = leg(540, preset="moire-n6", REFERENCES=str(tmp_path / "hf.json"))
    assert calls[-1].endswith(f"--references {tmp_path}/hf.json")


def test_too_little_time_begins_nothing(leg):
    assert leg(30)[:2] == (3, [])


def test_what_fails_is_said_and_not_repeated(leg):
    assert leg(540, breaks="train")[0] == 1
    for _ in range(2):
        leg(540)
    code, calls, _ = leg(540, breaks="order_parameter")
    assert code == 1
    assert calls[-1].startswith("scan family ")

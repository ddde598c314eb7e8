"""Input that cannot hurt: whatever a configuration, a command line or a file says, it is used or refused."""

import json
import tempfile
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inputs import WORDS, ask, configurations, damaged, examples, overrides, plain, reached, trained, values
from qernel import checkpoint, evaluate, sizes
from qernel.config import from_dict, to_dict
from qernel.errors import InputError, one_line

FEW, MANY = 50, 1000
"""examples of each test, and of the slow one: five thousand together"""

counted = Counter()


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run of no steps; whatever would take long once all checks are passed is stopped."""
    with pytest.MonkeyPatch.context() as m:
        m.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
        good = trained(tmp_path_factory.mktemp("run") / "tiny")
        m.setattr("qernel.train.Vmc", reached)
        m.setattr("qernel.evaluate.Model.scan", reached)
        m.setattr("qernel.exact.solve_bands", reached)
        m.setattr("qernel.hartree_fock._initial", reached)
        m.setattr("qernel.export.accuracy", reached)
        m.setattr("qernel.report.write", reached)
        yield good


def tally(kind, answer):
    counted[kind, "refused" if answer else "taken"] += 1


# --- configurations --------------------------------------------------------------------------------------------------


def check_configuration(data):
    """Taken and written again as it was read, or refused; and its size is told without making any of it."""
    refusal = None
    try:
        config = from_dict(data)
        assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
        sizes.check_training(config)
    except InputError as error:
        refusal = str(error)
    tally("configuration", refusal)
    if refusal is not None:
        plain(refusal)


@examples(3 * FEW)
@given(configurations() | values)
def test_configurations(data):
    check_configuration(data)


@pytest.mark.slow
@examples(MANY)
@given(configurations() | values)
def test_many_configurations(data):
    check_configuration(data)


def check_file(data):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "given.json"
        file.write_bytes(data)
        answer = ask(folder, "train", "--config", file, "--run", folder / "run")
        tally("file", answer.code)


files = configurations().map(lambda x: json.dumps(x).encode()) | st.binary(max_size=50)
files = files | st.sampled_from([b"", b"[" * 100_000, b'{"seed": ' + b"9" * 5000 + b"}", b'{"seed": 1, "seed": "x"}'])


@examples(FEW)
@given(files)
def test_configuration_files(stopped, data):
    check_file(data)


@pytest.mark.slow
@examples(MANY)
@given(files)
def test_many_configuration_files(stopped, data):
    check_file(data)


# --- the command line ------------------------------------------------------------------------------------------------


words = st.sampled_from(WORDS)
RUN = "RUN"
SAMPLED = ["--walkers", "--moves", "--burn-in", "--max-sweeps", "--bins", "--seed", "--walltime", "--target-error"]
COMMANDS = {
    ("evaluate", RUN, "--lam", "1"): [*SAMPLED, "--lam", "--observables", "--phi-deg", "--twist-1"],
    ("scan", RUN): [*SAMPLED, "--observables", "--twists", "--out"],
    ("exact", "moire-n2", "--lam", "1", "--bands", "1"): [
        *("--lam", "--bands", "--n", "--phi", "--epsilon", "--sector", "--correlations"),
    ],
    ("hf", "moire-n2", "--lam", "1"): ["--lam", "--n", "--phi", "--epsilon", "--starts", "--density", "--out"],
    ("finetune", RUN, "--lam", "1"): [
        "--lam",
        "--steps",
        "--walltime",
        "--sampling.walkers",
        "--family.n_up",
        "--seed",
    ],
    ("transition", RUN): ["--quantity", "--samples", "--seed", "--figure"],
    ("report", RUN): ["--bands", "--compare", "--references"],
    ("export", RUN, "NEW"): ["--bands", "--references"],
    ("train", "moire-n2"): ["--steps", "--walltime", "--run", "--config"],
    ("config",): [],
    ("bench",): ["--fast"],
}


@st.composite
def lines(draw):
    command = list(draw(st.sampled_from(list(COMMANDS))))
    known = COMMANDS[tuple(command)]
    if draw(st.integers(0, 5)) == 0:  # another run, preset or command
        command[draw(st.integers(0, min(1, len(command) - 1)))] = draw(words)
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from(known)) if known else draw(words)
        command += [name, *draw(st.lists(words, min_size=1, max_size=2))]
    return command


def check_line(run, line):
    """Of its own folder, in which there is only that a run was."""
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as m:
        m.chdir(name)
        named = {RUN: str(run), "NEW": "new"}
        before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
        answer = ask(Path(name), *[named.get(w, w) for w in line])
        assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before
        tally("line", answer.code)


@examples(2 * FEW)
@given(lines())
def test_command_lines(stopped, line):
    check_line(stopped, line)


@pytest.mark.slow
@examples(MANY)
@given(lines())
def test_many_command_lines(stopped, line):
    check_line(stopped, line)


def check_override(tokens):
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as m:
        m.chdir(name)
        tally("override", ask(Path(name), "train", "moire-n3", *tokens).code)


@examples(2 * FEW)
@given(overrides)
def test_overrides(stopped, tokens):
    check_override(tokens)


@pytest.mark.slow
@examples(MANY)
@given(overrides)
def test_many_overrides(stopped, tokens):
    check_override(tokens)


# --- checkpoints -----------------------------------------------------------------------------------------------------


def check_checkpoint(good, draw, traced):
    """Refused as damaged, or read; never with more memory than a few times the file's size."""
    data = draw.draw(damaged(next((good / "checkpoints").glob("*.safetensors")).read_bytes()))
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "step_00000000.safetensors"
        file.write_bytes(data)
        refusals = [refusal(read, file, True) for read in (checkpoint.read_header, checkpoint.load_arrays)]
        refusals.append(refusal(evaluate.load, file, traced))
        tally("checkpoint", refusals[-1])
        for error, peak in filter(None, refusals):
            plain(one_line(str(error)))
            assert str(file) in str(error)
            assert peak < 64 * len(data) + 2**21
        assert all(x is None or isinstance(x[0], checkpoint.DamagedCheckpoint) for x in refusals[:2])
        if refusals[-1]:
            answer = ask(Path(name), "evaluate", file, "--lam", "1")
            assert answer.code == 2
            assert str(file) in answer.line


def refusal(read, file, traced):
    """(error, most bytes in use if they are traced, which is slow) of reading a file that is refused."""
    if traced:
        tracemalloc.start()
    try:
        read(file)
    except InputError as error:
        return error, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    return None


@examples(FEW)
@given(draw=st.data())
def test_checkpoints(stopped, draw):
    check_checkpoint(stopped, draw, traced=False)


@pytest.mark.slow
@examples(MANY)
@given(draw=st.data())
def test_many_checkpoints(stopped, draw):
    check_checkpoint(stopped, draw, traced=True)


def test_most_of_it_was_bad():
    """The tests above tell something: most of what they made up was refused, and some of it was taken."""
    if not counted:
        pytest.skip("alone")
    print(dict(counted))
    for kind in {k for k, _ in counted}:
        refused, taken = counted[kind, "refused"], counted[kind, "taken"]
        assert refused > taken

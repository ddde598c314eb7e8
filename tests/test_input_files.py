"""Files from elsewhere: nothing in them is run, nothing is written outside the run folder, nothing is a traceback."""

import ast
import json
import shutil
from dataclasses import fields
from pathlib import Path

import h5netcdf
import numpy as np
import pytest
import xarray
from hypothesis import given
from hypothesis import strategies as st

import qernel
from inputs import ask, configurations, examples, plain, values
from qernel import origin
from qernel.checkpoint import Header
from qernel.config import Config, from_dict, to_dict
from qernel.errors import InputError, one_line, shown
from qernel.presets import preset
from qernel.reference_file import Reference, _read
from qernel.report_data import gather
from qernel.transition_scan import read_scan
from runs import make_run

FORBIDDEN = {
    *("pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml", "runpy", "ctypes"),
    *("allow_pickle", "shell"),
    *("eval", "exec", "__import__", "import_module", "exec_module", "os.system", "os.popen"),
}
"""names that run what a file says, whatever module they come from"""


def names_used(tree):
    """(line, name) of everything imported or called."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, a.name.split(".")[0]) for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, part) for part in (node.module or "").split("."))
            yield from ((node.lineno, a.name) for a in node.names)
        elif isinstance(node, ast.Call):
            f = node.func
            yield node.lineno, f.id if isinstance(f, ast.Name) else getattr(f, "attr", "")
            yield node.lineno, ast.unparse(f)
            for keyword in node.keywords:
                unsafe = keyword.arg in ("allow_pickle", "shell") and getattr(keyword.value, "value", True) is not False
                yield node.lineno, keyword.arg if unsafe else ""


SOURCES = sorted(Path(qernel.__file__).parent.rglob("*.py"))


def test_nothing_in_the_package_runs_what_a_file_says():
    assert len(SOURCES) > 80
    found = [
        f"{file.name}:{line} {name}"
        for file in SOURCES
        for line, name in names_used(ast.parse(file.read_text()))
        if name in FORBIDDEN
    ]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from yaml import load",
        "eval(x)",
        "importlib.import_module(name)",
        "np.load(f, allow_pickle=True)",
        "subprocess.run(x, shell=True)",
        "os.system(x)",
    ],
)
def test_that_would_be_seen(text):
    assert {name for _, name in names_used(ast.parse(text))} & FORBIDDEN


NAMES = ["../../x", "/etc/x", "..", ".", "", "a/b", "a\\b", "-x", ".hidden", "a\nb", "\x1b[2J", "x\x00", "a" * 101]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_names_are_no_paths(tmp_path, monkeypatch, name):
    """The default folder is runs/NAME."""
    inside = tmp_path / "a" / "b" / "c"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    (inside / "config.json").write_text(json.dumps({**to_dict(preset("moire-n2")), "name": name}))
    answer = ask(tmp_path, "train", "--config", "config.json")
    assert answer.code == 2
    assert answer.line.startswith("config.json: name = ")
    assert "letters, digits" in answer.line


@pytest.mark.parametrize("name", ["moire-n3", "Zelle 3×3 (λ=1)".replace("×", "x"), "a", "n6_test.2+3"])
def test_ordinary_names_are_taken(name):
    assert Config(name=name).name == name


def test_values_are_shown_on_one_harmless_line():
    assert shown("\x1b[31mred\x1b[0m\nqernel: all is well") == "\\x1b[31mred\\x1b[0m qernel: all is well"
    assert shown("\u202egnp.exe\udc80") == "\\u202egnp.exe\\udc80"
    assert shown("λ = 0.5 ± 0.1") == "λ = 0.5 ± 0.1"
    assert len(shown("x" * 10**6)) < 220
    assert shown(10**5000) == "a int that cannot be printed"
    assert len(one_line("x" * 10**6)) < 2010


def test_paths_in_errors_do_nothing_to_a_terminal(tmp_path):
    for name in ("\x1b[2Jred", "a\nqernel: fine", "\udce9", "\u202e"):
        answer = ask(tmp_path, "evaluate", tmp_path / name, "--lam", "1")
        assert answer.code == 2
        assert "existing run folder" in answer.line


# --- links -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("made") / "run")


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made, tmp_path / "runs" / "run")


@pytest.mark.parametrize("name", ["checkpoints", "train.csv", ".results.nc.tmp", "figures"])
@pytest.mark.parametrize("command", [["report"], ["train", "moire-n2", "--run"], ["scan"]], ids=lambda c: c[0])
def test_links_out_of_a_run_folder_are_refused(run, tmp_path, name, command):
    outside = tmp_path / "outside"
    outside.mkdir()
    file = run / name
    if file.is_dir():
        shutil.rmtree(file)
    file.unlink(missing_ok=True)
    file.symlink_to(outside)
    answer = ask(tmp_path, *command, run)
    assert answer.code == 2
    assert f"{file}: a link to {outside}, out of the run folder" in answer.line


def test_the_run_folder_itself_may_be_a_link(run, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(run)
    (run / "again").symlink_to(run / "train.csv")
    assert "holds another configuration" in ask(tmp_path, "train", "moire-n2", "--run", link).line


# --- scans -----------------------------------------------------------------------------------------------------------


def rewritten(run, change):
    """results.nc with the dataset changed."""
    data = change(xarray.load_dataset(run / "results.nc", engine="h5netcdf"))
    data.to_netcdf(run / "results.nc", engine="h5netcdf")


def refused(run, *commands):
    """The line of the report, and of the transition too where the file is none for it."""
    lines = []
    for command in commands or ("report", "transition"):
        answer = ask(run, command, run, *(["--no-references"] if command == "report" else []))
        assert answer.code == 2, command
        assert str(run) in answer.line
        lines.append(answer.line)
    return lines[0]


@pytest.mark.parametrize("content", [b"", b"CDF\x01", b"\x89HDF\r\n\x1a\n", b"x" * 1000, b"{}"])
def test_results_that_are_no_netcdf(run, content):
    (run / "results.nc").write_bytes(content)
    assert "results.nc: cannot be read" in refused(run)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_results_that_are_cut(run, share):
    whole = (run / "results.nc").read_bytes()
    (run / "results.nc").write_bytes(whole[: int(share * len(whole))])
    assert "cannot be read" in refused(run)


def test_results_that_are_small_on_disk_only(run):
    with h5netcdf.File(run / "results.nc", "w") as file:
        file.dimensions = {"a": 10**6, "b": 10**6}
        file.create_variable("bomb", ("a", "b"), "f8", chunks=(1000, 1000))
    assert "bytes = 80000" in refused(run)


@pytest.mark.parametrize("name", ["lam", "energy", "energy_error", "r_hat", "variance", "acceptance", "outside", "tau"])
def test_results_without_a_variable(run, name):
    rewritten(run, lambda d: d.drop_vars(name))
    assert name in refused(run, "report") or "not a scan" in refused(run, "report")


CHANGES = {
    "energy[two]": lambda d: d.drop_vars("energy").assign(energy=(("coupling", "two"), np.ones((3, 2)))),
    "r_hat of words": lambda d: d.assign(r_hat=("coupling", ["a", "b", "c"])),
    "a single number": lambda d: d.assign(acceptance=0.5),
    "another length": lambda d: d.drop_vars("energy").assign(energy=("other", np.ones(7))),
    "nan couplings": lambda d: d.assign_coords(lam=("coupling", [np.nan, 1.0, 1.5])),
    "error of another shape": lambda d: d.assign(dE_dlam_error=("t1", np.ones(d.sizes["t1"]))),
    "no couplings": lambda d: d.isel(coupling=slice(0, 0)),
    "no steps": lambda d: d.assign_attrs(training_steps="many"),
    "no JSON": lambda d: d.assign_attrs(config="{"),
    "nested": lambda d: d.assign_attrs(config="[" * 3000),
    "a list": lambda d: d.assign_attrs(config="[1]"),
    "numbers": lambda d: d.assign_attrs(config=3.5),
    "a bad field": lambda d: d.assign_attrs(config='{"steps": -3}'),
    "a density without axes": lambda d: d.drop_vars("density").assign(density=("coupling", np.ones(3))),
    "words beside": lambda d: d.assign(order_parameter=("coupling", ["a", "b", "c"])),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_results_of_another_kind(run, change):
    rewritten(run, change)
    refused(run, "report")


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.drop_vars("lam"),
        lambda d: d.assign(interaction=("coupling", ["a", "b", "c"])),
        lambda d: d.assign(interaction=("coupling", [np.nan, 1.0, 2.0])),
        lambda d: d.assign(interaction_error=("coupling", [-1.0, 1.0, 2.0])),
        lambda d: d.assign_coords(lam=("coupling", ["a", "b", "c"])),
        lambda d: d.assign_coords(lam=("coupling", [1.0, 1.0, 1.5])),
        lambda d: d.isel(coupling=np.zeros(500, int)).assign_coords(lam=("coupling", np.linspace(0, 1, 500))),
        lambda d: d.expand_dims(averaged=2),
    ],
)
def test_transition_of_other_files(run, change):
    rewritten(run, change)
    answer = ask(run, "transition", run)
    assert answer.code == 2


def some(read, run):
    """Read, or refused in a line that names the file."""
    refusal = str(run)
    try:
        read(run)
    except InputError as error:
        refusal = str(error)
    plain(one_line(refusal))
    assert str(run) in refusal


@examples(25)
@given(st.lists(st.tuples(st.integers(0, 2000), st.binary(min_size=1, max_size=8)), min_size=1, max_size=3))
def test_damaged_results(made, changes):
    """The first bytes of the file, where HDF5 says what is in it."""
    file = made / "results.nc"
    whole = file.read_bytes()
    data = bytearray(whole)
    for place, piece in changes:
        data[place : place + len(piece)] = piece
    file.write_bytes(data)
    try:
        some(read_scan, made)
    finally:
        file.write_bytes(whole)


@examples(40)
@given(configurations() | values)
def test_configurations_of_other_runs(made, data):
    file = made / "config.json"
    whole = file.read_bytes()
    file.write_text(json.dumps(data))
    try:
        some(lambda run: gather(run, with_references=False), made)
    finally:
        file.write_bytes(whole)


# --- logs, references and origins ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["step,coupling\n0,0\n", "step,coupling,energy,variance,fallback\na,b,c,d,e\n", "\xff"]
)
def test_training_logs_of_another_kind(run, text):
    (run / "train.csv").write_bytes(text.encode("latin1") + b"\n")
    assert "train.csv" in refused(run, "report")


@pytest.mark.parametrize("text", ["[", "{}", "[" * 3000, '{"records": [{"answer": {}}]}', '{"records": 5}'])
def test_references_of_another_kind_are_computed_again(run, text):
    file = run / "references.json"
    file.write_text(text)
    assert _read(file) == []
    answer = dict.fromkeys([f.name for f in fields(Reference)], "x")
    file.write_text(json.dumps({"records": [{"question": {}, "answer": answer}]}))
    assert _read(file) == []


@examples(50)
@given(values, values)
def test_origins_are_text(provenance, wall):
    header = Header(step=0, user={"provenance": provenance, "wall": wall}, leaves={}, sha256="")
    found = origin.provenance(header)
    assert found["git"] is None or found["git"]["commit"].isprintable()
    assert all(str(v).isprintable() for v in found.values())
    assert 0 <= origin.seconds(header) < 1e12


def test_a_configuration_reads_as_it_was_written():
    assert from_dict(to_dict(preset("moire-n3-lam-eps"))) == preset("moire-n3-lam-eps")

"""Bad input on the command line: exit code 2, one clear line on stderr, nothing on disk changed."""

import hashlib
import json

import pytest

from qernel.cli import main
from qernel.config import override, to_dict
from qernel.errors import InputError
from qernel.presets import PRESETS, preset

SETTINGS = (
    "--network.layers 1 --network.width 4 --network.heads 0 --network.experts 0 --network.film_width 0 "
    "--network.determinants 1 --network.shared_width 4 --network.jastrow_shells 2 --network.plane_wave_cutoff 40 "
    "--sampling.walkers 4 --sampling.sweeps 2 --sampling.burn_in 4 --family.lam 1.0 1.0 1"
)
TINY = SETTINGS.split()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """Compiled programs go beside the test's files, not into the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


def contents(folder):
    """Path → hash of everything below a folder."""
    return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def refused(capsys, folder, *arguments):
    """The line on stderr of a command that must be refused."""
    before = contents(folder), sorted(folder.rglob("*"))
    code = main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    assert code == 2
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("qernel: ")
    assert (contents(folder), sorted(folder.rglob("*"))) == before
    return lines[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--family.n_up", "0"], "family.n_up + n_down = 0: must be at least 1 electron"),
        (["--family.n_up", "-3"], "family.n_up = -3"),
        (["--family.n_up", "2.5"], "family.n_up = 2.5"),
        (["--family.n_up", "400", "--network.init", "bloch"], "family.n_up = 400: must be at most"),
        (["--family.n_up", "400", "--network.init", "mixed"], "network.bands = 1: must be at least"),
        (["--family.n_up", "400"], "network.width = 16: must be at least 399 for random orbitals of 400 electrons"),
        (["--family.n_up", "9", "--network.plane_wave_cutoff", "0.1"], "network.determinants = 4: must be at most 1"),
        (["--family.lam", "nan", "1", "2"], "family.lam"),
        (["--family.lam", "1", "0", "2"], "family.lam"),
        (["--family.lam", "1"], "family.lam = 1: must be 3 values"),
        (["--family.cell.supercell", "1", "1", "2", "2"], "cell.supercell"),
        (["--family.cell.supercell", "1", "1", "2"], "cell.supercell"),
        (["--family.gate", "-1"], "family.gate = -1"),
        (["--family.material.mass", "0"], "material.mass = 0"),
        (["--network.heads", "4", "--network.kv_heads", "3"], "network.kv_heads = 3: must be a divisor of heads = 4"),
        (["--network.experts", "2", "--network.top_k", "3"], "network.top_k = 3"),
        (["--network.dtype", "float16"], "network.dtype = float16: must be float32 or float64"),
        (["--optimizer", "Adm"], "optimizer.type = Adm: did you mean 'Adam'"),
        (["--optimizer.damping", "0"], "optimizer.damping = 0"),
        (["--network.widht", "8"], "did you mean '--network.width'"),
        (["--stesp", "8"], "did you mean '--steps'"),
        (["--steps", "-1"], "steps = -1"),
        (["--steps", "many"], "--steps"),
        (["--walltime", "soon"], "walltime = soon: must be a time such as"),
        (["--seed"], "--seed"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_train_refuses(capsys, tmp_path, options, message):
    assert message in refused(
        capsys, tmp_path, "train", "moire-n3", "--run", tmp_path / "run", "--steps", "0", *options
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tarin", "moire-n3"], "command = tarin: unknown; did you mean 'train'"),
        (["train", "moire_n3"], "preset = moire_n3: unknown; did you mean 'moire-n3'"),
        (["train"], "either the name of a preset or --config FILE"),
        (["train", "--config", "missing.json"], "missing.json: cannot be read"),
        (["config", "moire-n4"], "preset = moire-n4"),
        (["exact", "moire-n3", "--lam", "1", "--bands", "1", "--phy", "3"], "did you mean '--phi'"),
        (["exact", "moire-n3", "--lam", "nan", "--bands", "1"], "lam = nan"),
        (["exact", "moire-n3", "--lam", "1", "--bands", "1", "--n", "0"], "at least 1 electron"),
        (["exact", "moire-n3", "--lam", "1", "--bands", "1", "--correlations", "no/x.nc"], "in a folder that exists"),
        (["exact", "moire-n3", "--lam", "1", "--bands", "1", "--correlations", "x.csv"], "a file .nc"),
        (["hf", "moire-n3", "--lam", "1", "--starts", "liqid"], "did you mean 'liquid'"),
        (["hf", "moire-n3"], "--lam"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_commands_refuse(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, tmp_path, *arguments)


@pytest.mark.parametrize("command", [["evaluate", "--lam", "1"], ["scan"], ["report"]])
def test_folder_without_a_checkpoint(capsys, tmp_path, command):
    empty = tmp_path / "empty"
    empty.mkdir()
    for folder in (empty, tmp_path / "missing"):
        line = refused(capsys, tmp_path, command[0], folder, *command[1:])
        assert str(folder) in line


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of no steps: configuration, provenance, log and the checkpoint of step 0."""
    folder = tmp_path_factory.mktemp("run") / "tiny"
    with pytest.MonkeyPatch.context() as m:
        m.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
        assert main(["train", "moire-n2", "--run", str(folder), "--steps", "0", *TINY]) == 0
    return folder


@pytest.fixture
def run_folder(finished, tmp_path):
    """A copy that a test may spoil."""
    import shutil

    return shutil.copytree(finished, tmp_path / "tiny")


def test_other_configuration_in_the_folder(capsys, run_folder):
    line = refused(capsys, run_folder, "train", "moire-n2", "--run", run_folder, *TINY, "--seed", "3")
    assert "holds another configuration" in line
    assert "seed: 0 → 3" in line
    line = refused(capsys, run_folder, "train", "moire-n3", "--run", run_folder, *TINY)
    assert "family.n_up: 2 → 3" in line


@pytest.mark.parametrize("steps", ["0", "5"])
def test_truncated_checkpoint(capsys, run_folder, steps):
    file = next((run_folder / "checkpoints").glob("step_*.safetensors"))
    file.write_bytes(file.read_bytes()[:1000])
    code = main(["train", "moire-n2", "--run", str(run_folder), "--steps", steps, *TINY])
    err = capsys.readouterr().err
    assert code == 2
    assert f"no checkpoint in {run_folder / 'checkpoints'}" in err
    assert "truncated" in err
    assert file.stat().st_size == 1000


def test_evaluate_refuses_a_truncated_checkpoint(capsys, run_folder):
    file = next((run_folder / "checkpoints").glob("step_*.safetensors"))
    file.write_bytes(file.read_bytes()[:1000])
    assert "truncated" in refused(capsys, run_folder, "evaluate", run_folder, "--lam", "1")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lam", "nan"], "lam = nan"),
        (["--lam", "1", "--phi-deg", "50"], "phi_deg: not a coupling of this family"),
        (["--lam", "1", "--walkers", "0"], "walkers = 0"),
        (["--lam", "1", "--target-error", "-1"], "target"),
        (["--lam", "1", "--walltime", "x"], "walltime = x"),
        (["--lma", "1", "--lam", "1"], "did you mean '--lam'"),
        ([], "--lam"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_evaluate_refuses(capsys, finished, options, message):
    assert message in refused(capsys, finished, "evaluate", finished, *options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epsilon", "4", "8", "3"], "--epsilon: epsilon does not vary in this family; axes of its scans: --lam"),
        (["--lam", "0", "1"], "--lam: expected 3 arguments"),
        (["--lam", "0", "1", "20000"], "scan = 20000 couplings (20000 lam): must be at most 10000"),
        (["--twists", "3"], "--twists: twist_1 and twist_2 do not both vary in this family; train one with --family"),
        (["--twists", "two"], "--twists: invalid int value"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_scan_refuses(capsys, finished, options, message):
    assert message in refused(capsys, finished, "scan", finished, *options)


def test_scan_over_twists(capsys, tmp_path):
    """From training to the table of means, the file and what is said of a transition."""
    run = tmp_path / "twisted"
    ranges = [
        "--family.lam",
        "0.5",
        "1",
        "2",
        "--family.twist_1",
        "-1.9",
        "1.9",
        "2",
        "--family.twist_2",
        "0",
        "2",
        "2",
    ]
    assert main(["train", "moire-n2", "--run", str(run), "--steps", "0", *TINY[:-4], *ranges]) == 0
    quick = ["--walkers", "2", "--moves", "1", "--burn-in", "0", "--max-sweeps", "20", "--observables", "energy"]
    capsys.readouterr()
    assert main(["scan", str(run), "--twists", "2", *quick]) == 0
    out, err = capsys.readouterr()
    assert "means over 2 × 2 twists" in out
    assert "outside" not in err
    import xarray

    data = xarray.load_dataset(run / "results.nc", engine="h5netcdf")
    assert data.sizes["coupling"] == 4
    assert data["averaged_energy"].dims == ("averaged",)
    assert data["averaged_lam"].values.tolist() == [0.5, 1.0]
    assert main(["transition", str(run)]) == 0
    assert "verdict: undecided: E_int: 2 couplings; at least 8 are needed" in capsys.readouterr().out


def test_observables_by_name(capsys, finished, tmp_path):
    quick = ("--walkers", 2, "--moves", 1, "--burn-in", 0, "--max-sweeps", 20)
    line = refused(capsys, finished, "scan", finished, "--observables", "structurefactor")
    assert "observables = structurefactor: unknown; did you mean 'structure_factor'? known: all, density" in line
    out = tmp_path / "x.nc"
    names = ("order_parameter", "structure_factor", "router")
    arguments = ["scan", finished, *quick, "--out", out, "--observables", *names]
    assert main([str(a) for a in arguments]) == 0
    assert "warning: router is not measured: the network has no routed experts" in capsys.readouterr().err
    import xarray

    data = xarray.load_dataset(out, engine="h5netcdf")
    assert {"energy", "order_parameter", "order_parameter_error", "v_score", "variance_error"} <= set(data)
    assert "density" not in data
    exact = tmp_path / "exact.nc"
    arguments = ["exact", "moire-n2", "--lam", "1", "--bands", "2", "--correlations", str(exact), "--json"]
    assert main(arguments) == 0
    lowest, found = json.loads(capsys.readouterr().out), xarray.load_dataset(exact, engine="h5netcdf")
    assert found.energy.item() == lowest["energy"]
    assert found.attrs["sector"] == lowest["sector"]
    assert json.loads(found.attrs["sectors_of_the_level"]) == ["(1,2)/3", "(2,1)/3"]
    for name in ("structure_factor", "order_parameter", "energy", "moire", "interaction"):
        assert (data[name].dims, data[name].shape) == (found[name].dims, found[name].shape)
        assert data[name].attrs == found[name].attrs
    for axis in data["structure_factor"].coords:
        assert (data[axis] == found[axis]).all()


def test_version_and_help(capsys):
    from qernel import __version__

    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__
    assert main([]) == 0
    assert "train" in capsys.readouterr().out


@pytest.mark.parametrize("name", PRESETS)
def test_config_prints_every_preset_as_json(capsys, name):
    assert main(["config", name]) == 0
    assert json.loads(capsys.readouterr().out) == to_dict(preset(name))


@pytest.mark.parametrize(
    ("tokens", "path", "value"),
    [
        (["--family.lam", "0.5", "1", "3"], ("family", "lam"), [0.5, 1, 3]),
        (["--network.width=16"], ("network", "width"), 16),
        (["--network.kv-heads", "1"], ("network", "kv_heads"), 1),
        (["--family.cell.supercell", "1", "1", "2", "-1"], ("family", "cell", "supercell"), [[1, 1], [2, -1]]),
        (["--family.gate", "none"], ("family", "gate"), None),
        (["--family.material.epsilon", "inf"], ("family", "material", "epsilon"), "inf"),
        (["--optimizer", "Adam"], ("optimizer",), {"type": "Adam"}),
        (["--optimizer", "Adam", "--seed", "4"], ("seed",), 4),
    ],
)
def test_override(tokens, path, value):
    data = override(to_dict(preset("moire-n3")), tokens)
    for name in path:
        data = data[name]
    assert data == value


def test_override_of_a_field_below_a_plain_value():
    with pytest.raises(InputError, match=r"--seed\.more: not an option"):
        override(to_dict(preset("moire-n3")), ["--seed.more", "3"])


def test_preset_may_follow_the_options(capsys, finished):
    assert main(["train", "--run", str(finished), "--steps", "0", "moire-n2", *TINY]) == 0
    assert capsys.readouterr().out.strip() == str(finished)

"""Going on from a family at some of its couplings: the same state at first, in a folder of its own."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from qernel import checkpoint, load
from qernel.cell import Cell
from qernel.cli import main
from qernel.errors import InputError
from qernel.family import Family, Grid
from qernel.log import read_log
from test_train import OPTIONS

TO = ["--steps", "3", "--sampling.walkers", "4"]


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    """A family trained for two steps at λ = 0.5 and 1."""
    with pytest.MonkeyPatch.context() as m:
        m.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
        folder = tmp_path_factory.mktemp("finetune") / "family"
        assert main(["train", *OPTIONS, "--run", str(folder), "--steps", "2"]) == 0
        yield folder


@pytest.fixture(scope="module")
def child(parent):
    """The same, gone on at λ = 0.75 alone."""
    before = {p: p.read_bytes() for p in parent.rglob("*") if p.is_file()}
    folder = parent.with_name("child")
    assert main(["finetune", str(parent), "--lam", "0.75", "--run", str(folder), *TO]) == 0
    assert {p: p.read_bytes() for p in parent.rglob("*") if p.is_file()} == before
    return folder


def test_begins_as_the_same_state(parent, child):
    """ψ at any coupling is that of the parent, since the family still scales the network's input."""
    first = min(checkpoint.checkpoints(child / "checkpoints"))
    a, b = load(parent), load(first)
    assert b.step == 0
    electrons = jnp.asarray(np.random.default_rng(0).uniform(size=(5, 2, 2)))
    for lam in (0.5, 0.75, 1.0):
        np.testing.assert_array_equal(a.at(lam=lam).log_psi(electrons), b.at(lam=lam).log_psi(electrons))


def test_trains_only_there(parent, child):
    log = read_log(child / "train.csv")
    assert set(log["lam"]) == {0.75}
    assert len(log["lam"]) == 3
    assert load(child).trained_walkers.shape[:2] == (1, 4)
    electrons = jnp.full((2, 2), 0.3)[None] * jnp.arange(1, 3)[:, None]
    a, b = (load(folder).at(lam=0.75).log_psi(electrons) for folder in (parent, child))
    assert not np.array_equal(a, b)


def test_says_where_it_came_from(parent, child):
    origin = json.loads((child / "config.json").read_text())["parent"]
    header = checkpoint.read_header(checkpoint.latest(parent / "checkpoints"))
    assert origin == f"moire-n2, step 2, sha256 {header.sha256[:16]}"


def test_the_same_command_goes_on(parent, child):
    assert main(["finetune", str(parent), "--lam", "0.75", "--run", str(child), *TO[2:], "--steps", "4"]) == 0
    assert len(read_log(child / "train.csv")["lam"]) == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--lam", "1.5"], ["train_at.lam", "1.5", "0.5 to 1"]),
        (["--lam", "0.5", "1"], ["--lam", "POINTS"]),
        (["--lam", "0.75", "--network.width", "8"], ["network", "finetune"]),
        (["--lam", "0.75", "--family.n_up", "1"], ["family", "finetune"]),
    ],
)
def test_bad_input_is_one_line_and_makes_no_folder(parent, capfd, options, words):
    folder = parent.with_name("refused")
    assert main(["finetune", str(parent), *options, "--run", str(folder)]) == 2
    line = capfd.readouterr().err.strip().splitlines()[-1]
    assert all(w in line for w in words), line
    assert not folder.exists()


def test_a_run_with_a_parent_cannot_begin_without_it(child, capfd):
    folder = child.with_name("orphan")
    assert main(["train", "--config", str(child / "config.json"), "--run", str(folder)]) == 2
    assert "finetune" in capfd.readouterr().err
    assert not folder.exists()


def test_grid_replaces_ranges_by_name():
    family = Family(n_up=2, cell=Cell(), lam=(0.25, 2.0, 8), epsilon=(5.0, 10.0, 2))
    points = Grid(lam=(0.5, 0.7, 2)).of(family)
    np.testing.assert_allclose(points, [[0.5, 5], [0.5, 10], [0.7, 5], [0.7, 10]])
    np.testing.assert_allclose(Grid().of(family), family.grid())
    with pytest.raises(InputError, match="phi_deg: not a coupling"):
        Grid(phi_deg=(0.0, 1.0, 2)).of(family)

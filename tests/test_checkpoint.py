"""Checkpoints: bitwise round trips, damage of every kind, atomic writing."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from qernel import checkpoint
from qernel.checkpoint import DamagedCheckpoint
from qernel.checkpoint_file import MAX_HEADER_BYTES
from qernel.errors import InputError


class Momentum(NamedTuple):
    velocity: jax.Array
    count: jax.Array


class TrainState(eqx.Module):
    params: eqx.nn.MLP
    momentum: Momentum
    walkers: jax.Array
    key: jax.Array
    extras: dict


def make_state(seed: int = 0) -> TrainState:
    rng = np.random.default_rng(seed)
    extras = {
        "c64": jnp.asarray(rng.standard_normal((2, 3)) + 1j * rng.standard_normal((2, 3)), jnp.complex64),
        "c128": jnp.asarray(rng.standard_normal(4) - 1j * rng.standard_normal(4)),
        "complex scalar": jnp.asarray(1.5 - 0.0j),
        "bf16": jnp.asarray(rng.standard_normal(5), jnp.bfloat16),
        "f16": jnp.asarray(rng.standard_normal(5), jnp.float16),
        "f32": jnp.asarray([0.1, -0.0, 1e-42], jnp.float32),
        "flags": jnp.asarray([True, False, True]),
        "i8": jnp.arange(-3, 3, dtype=jnp.int8),
        "u64": jnp.asarray([2**64 - 1], jnp.uint64),
        "empty": jnp.zeros((0, 3)),
        "empty complex": jnp.zeros((3, 0), jnp.complex128),
        "weak": jnp.asarray(0.25),
        "raw key": jax.random.PRNGKey(seed),
        "keys": jax.random.split(jax.random.key(seed, impl="rbg"), (2, 3)),
        "host": rng.standard_normal((3, 2)).T,
        "number": np.float32(seed),
        "python": [7 + seed, 0.1, True, 1 + 2j],
    }
    return TrainState(
        eqx.nn.MLP(2, 1, 8, 2, key=jax.random.key(seed)),
        Momentum(jnp.asarray(rng.standard_normal((3, 4))), jnp.asarray(seed, jnp.int32)),
        jnp.asarray(rng.standard_normal((2, 5, 3, 2))),
        jax.random.key(seed + 1),
        extras,
    )


def raw(leaf) -> tuple:
    """Type, dtype, shape and bytes of a leaf."""
    if hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return ("key", str(leaf.dtype), leaf.shape, np.asarray(jax.random.key_data(leaf)).tobytes())
    if callable(leaf):
        return ("function", leaf)
    weak = getattr(leaf, "weak_type", None)
    kind = "jax" if isinstance(leaf, jax.Array) else type(leaf)
    return (kind, weak, np.asarray(leaf).dtype, np.shape(leaf), np.asarray(leaf).tobytes())


def assert_identical(a, b) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        assert raw(x) == raw(y), path


def test_bitwise_round_trip(tmp_path):
    state = make_state(3)
    path = checkpoint.save(tmp_path, 12, state, {"config": {"lr": 0.1, "shape": (1, 2)}, "path": Path("run")})
    assert path == tmp_path / "step_00000012.safetensors"
    assert_identical(checkpoint.restore(path, make_state(0)), state)
    assert os.listdir(tmp_path) == [path.name]


def test_random_numbers_continue(tmp_path):
    state = make_state(3)
    back = checkpoint.restore(checkpoint.save(tmp_path, 0, state, {}), make_state(0))
    assert jnp.array_equal(jax.random.normal(back.key, (9,)), jax.random.normal(state.key, (9,)))


def test_restore_from_shapes_alone(tmp_path):
    def build():
        return {"x": jnp.arange(6.0).reshape(2, 3), "key": jax.random.split(jax.random.key(1), 2)}

    path = checkpoint.save(tmp_path, 0, build(), {})
    assert_identical(checkpoint.restore(path, jax.eval_shape(build)), build())


def test_restored_arrays_go_where_the_template_is(tmp_path):
    sharding = jax.sharding.NamedSharding(jax.make_mesh((1,), ("w",)), jax.sharding.PartitionSpec("w"))
    template = {"x": jax.device_put(jnp.zeros(4), sharding)}
    path = checkpoint.save(tmp_path, 0, {"x": jnp.arange(4.0)}, {})
    back = checkpoint.restore(path, template)["x"]
    assert back.sharding == sharding
    assert back.tolist() == [0, 1, 2, 3]


def test_header_and_readable_names(tmp_path):
    path = checkpoint.save(tmp_path, 12, make_state(), {"config": {"lam": [0.25, 2.0]}, "n": np.int64(3)})
    header = checkpoint.read_header(path)
    assert header.step == 12
    assert header.user == {"config": {"lam": [0.25, 2.0]}, "n": 3}
    assert header.leaves["params.layers[0].weight"].shape == (8, 2)
    assert header.leaves["momentum.velocity"].dtype == "float64"
    assert header.leaves["extras.c64"].dtype == "complex64"
    assert header.leaves["extras['raw key']"].dtype == "uint32"
    assert header.leaves["key"].key == "threefry2x32"
    assert "extras.python[1]" in header.leaves
    arrays = checkpoint.load_arrays(path)
    assert arrays.keys() == header.leaves.keys()
    assert np.array_equal(arrays["walkers"], np.asarray(make_state().walkers))
    assert arrays["extras.c64"].dtype == np.complex64
    arrays["walkers"][:] = 0  # a copy of one's own


def test_any_safetensors_reader_opens_it(tmp_path):
    path = checkpoint.save(tmp_path, 1, {"w": jnp.arange(3.0)}, {})
    assert safetensors.numpy.load_file(path)["w"].tolist() == [0, 1, 2]


def test_retention(tmp_path):
    for step in (1, 5, 30, 100_000_000, 7):
        checkpoint.save(tmp_path, step, {"x": jnp.asarray(step)}, {}, keep=2)
    assert [int(p.stem[5:]) for p in checkpoint.checkpoints(tmp_path)] == [7, 30, 100_000_000]
    assert checkpoint.latest(tmp_path).name == "step_100000000.safetensors"
    checkpoint.save(tmp_path, 100_000_001, {"x": jnp.asarray(0)}, {}, keep=1)
    assert [p.name for p in checkpoint.checkpoints(tmp_path)] == ["step_100000001.safetensors"]
    with pytest.raises(InputError, match="keep = 0"):
        checkpoint.save(tmp_path, 1, {"x": jnp.asarray(0)}, {}, keep=0)


def test_discarded_future_is_not_the_latest(tmp_path):
    for step in (10, 20, 30):
        checkpoint.save(tmp_path, step, {"x": jnp.asarray(step)}, {})
    moved = checkpoint.discard_after(tmp_path, 10)
    assert [p.name for p in moved] == [f"step_000000{k}.safetensors.discarded" for k in (20, 30)]
    assert checkpoint.latest(tmp_path).name == "step_00000010.safetensors"
    assert checkpoint.discard_after(tmp_path, 10) == []


def test_nothing_else_is_taken_for_a_checkpoint(tmp_path):
    assert checkpoint.latest(tmp_path / "missing") is None
    for name in (".step_00000009.safetensors.tmp", "step_00000009.safetensors.tmp", "step_9.safetensors", "a.txt"):
        (tmp_path / name).write_bytes(b"x")
    checkpoint.save_crash(tmp_path, 9, {"x": jnp.asarray(0.0)}, {})
    (tmp_path / "step_00000010.safetensors").mkdir()
    assert checkpoint.latest(tmp_path) is None
    checkpoint.save(tmp_path, 3, {"x": jnp.asarray(0.0)}, {})
    assert not (tmp_path / ".step_00000009.safetensors.tmp").exists()


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.complex64, jnp.complex128, jnp.bfloat16])
def test_broken_states_never_become_checkpoints(tmp_path, bad, dtype):
    good = checkpoint.save(tmp_path, 5, {"ok": jnp.zeros(2), "net": {"w": jnp.zeros(3, dtype)}}, {})
    before = good.read_bytes()
    state = {"ok": jnp.zeros(2), "net": {"w": jnp.zeros(3, dtype).at[1].set(bad)}}
    for step in (5, 6):
        with pytest.raises(ValueError, match=r"net\.w is not finite"):
            checkpoint.save(tmp_path, step, state, {}, keep=1)
    assert os.listdir(tmp_path) == [good.name]
    assert good.read_bytes() == before
    crash = checkpoint.save_crash(tmp_path, 6, state, {})
    assert not np.isfinite(checkpoint.load_arrays(crash)["net.w"].astype(np.complex128)).all()
    assert checkpoint.latest(tmp_path) == good


@pytest.mark.parametrize("leaf", ["text", 2**80, np.array([None])])
def test_leaves_that_cannot_be_stored(tmp_path, leaf):
    with pytest.raises(ValueError, match=r"x\[0\]"):
        checkpoint.save(tmp_path, 0, {"x": [leaf]}, {})
    assert os.listdir(tmp_path) == []


def test_header_must_be_data(tmp_path):
    with pytest.raises(ValueError, match="cannot be stored as JSON"):
        checkpoint.save(tmp_path, 0, {"x": jnp.zeros(1)}, {"f": object()})


@pytest.mark.parametrize("where", ["save_file", "fsync", "replace"])
def test_full_disk_leaves_the_old_file(tmp_path, monkeypatch, where):
    old = checkpoint.save(tmp_path, 5, {"x": jnp.zeros(2)}, {})
    before = old.read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.numpy if where == "save_file" else os, where, full)
        for step in (5, 6):
            with pytest.raises(OSError, match="No space left"):
                checkpoint.save(tmp_path, step, {"x": jnp.ones(2)}, {}, keep=1)
    assert os.listdir(tmp_path) == [old.name]
    assert old.read_bytes() == before


def test_a_disk_that_lies_is_noticed(tmp_path, monkeypatch):
    real = safetensors.numpy.save_file

    def corrupting(tensors, path, metadata):
        real(tensors, path, metadata)
        data = bytearray(Path(path).read_bytes())
        data[-1] ^= 1
        Path(path).write_bytes(data)

    monkeypatch.setattr(safetensors.numpy, "save_file", corrupting)
    with pytest.raises(OSError, match="other bytes"):
        checkpoint.save(tmp_path, 5, {"x": jnp.zeros(2)}, {})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("cut", [0, 4, 8, 100, -8, -1])
def test_truncated_files(tmp_path, cut):
    path = checkpoint.save(tmp_path, 5, {"x": jnp.zeros(20)}, {})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DamagedCheckpoint, match="step_00000005") as error:
        checkpoint.load_arrays(path)
    assert "\n" not in str(error.value)


def test_every_flipped_bit_is_noticed_or_harmless(tmp_path):
    state = {"x": jnp.arange(5.0), "z": jnp.ones(2, complex), "flag": jnp.asarray(True), "key": jax.random.key(0)}
    path = checkpoint.save(tmp_path, 5, state, {"config": {"lam": 1.0}})
    data, messages = path.read_bytes(), []
    for k in range(len(data)):
        flipped = bytearray(data)
        flipped[k] ^= 1 << (k % 8)
        path.write_bytes(flipped)
        try:
            back = checkpoint.restore_latest(tmp_path, state)
        except InputError as error:
            messages.append(str(error))
        else:
            assert_identical(back.state, state)
            assert back.header.step == 5
            assert back.header.user == {"config": {"lam": 1.0}}
    assert all("step_00000005" in m and "\n" not in m for m in messages)
    assert len(messages) > 0.9 * len(data)


def rewrite_header(path: Path, change) -> None:
    """Change our JSON header and make its checksum agree again."""
    import hashlib

    tensors = safetensors.numpy.load_file(path)
    with safetensors.safe_open(path, "numpy") as file:
        fields = json.loads(file.metadata()["qernel"])
    change(fields)
    text = json.dumps(fields)
    metadata = {"qernel": text, "qernel_sha256": hashlib.sha256(text.encode()).hexdigest()}
    safetensors.numpy.save_file(tensors, path, metadata)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.update(format_version=99), "format version 99, this QERNEL reads version 1"),
        (lambda f: f.update(format="other"), "not a checkpoint of QERNEL"),
        (lambda f: f.pop("step"), "lacks fields"),
        (lambda f: f.pop("leaves"), "lacks fields"),
        (lambda f: f["leaves"].pop("x"), "disagree"),
        (lambda f: f["leaves"]["x"].update(shape=[3]), "damaged"),
        (lambda f: f["leaves"]["x"].update(shape=["a"]), "lacks fields"),
        (lambda f: f["leaves"]["x"].update(dtype="O"), "damaged"),
        (lambda f: f["leaves"]["x"].update(dtype="nonsense"), "damaged"),
        (lambda f: f["leaves"]["x"].update(key="threefry2x32"), "damaged"),
    ],
)
def test_foreign_headers(tmp_path, change, message):
    path = checkpoint.save(tmp_path, 5, {"x": jnp.zeros(20)}, {})
    rewrite_header(path, change)
    with pytest.raises(DamagedCheckpoint, match=message) as error:
        checkpoint.load_arrays(path)
    assert "\n" not in str(error.value)


def test_files_of_others(tmp_path):
    path = tmp_path / "step_00000001.safetensors"
    safetensors.numpy.save_file({"x": np.zeros(2)}, path)
    with pytest.raises(DamagedCheckpoint, match="not a checkpoint"):
        checkpoint.read_header(path)
    path.write_bytes((MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b" " * (MAX_HEADER_BYTES + 9))
    with pytest.raises(DamagedCheckpoint, match="header of 16777217 bytes"):
        checkpoint.read_header(path)
    nested = b'{"__metadata__":' + b"[" * 100_000 + b"}"
    path.write_bytes(len(nested).to_bytes(8, "little") + nested)
    with pytest.raises(DamagedCheckpoint, match="damaged header"):
        checkpoint.read_header(path)
    with pytest.raises(DamagedCheckpoint, match="No such file"):
        checkpoint.read_header(tmp_path / "step_00000002.safetensors")


def test_oversized_header_is_refused_when_saving(tmp_path):
    with pytest.raises(ValueError, match="at most 16777216"):
        checkpoint.save(tmp_path, 0, {"x": jnp.zeros(1)}, {"text": "x" * 2**24})
    assert checkpoint.latest(tmp_path) is None


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ({"a": jnp.zeros(3), "b": jnp.zeros(2)}, r"a has shape \(2,\), this run needs \(3,\)"),
        ({"a": jnp.zeros(2, jnp.float32), "b": jnp.zeros(2)}, "a has dtype float64, this run needs float32"),
        ({"a": jnp.zeros(2), "c": jnp.zeros(2)}, "has no leaf c"),
        ({"a": jnp.zeros(2)}, "leaf b is unknown to this run"),
        ({"a": jax.random.key(0), "b": jnp.zeros(2)}, r"a has shape \(2,\), this run needs \(\)"),
    ],
)
def test_states_that_do_not_fit(tmp_path, template, message):
    for step in (1, 2):
        path = checkpoint.save(tmp_path, step, {"a": jnp.zeros(2), "b": jnp.ones(2)}, {})
    for load in (lambda: checkpoint.restore(path, template), lambda: checkpoint.restore_latest(tmp_path, template)):
        with pytest.raises(InputError, match=message) as error:
            load()
        assert not isinstance(error.value, DamagedCheckpoint)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


def test_keys_of_another_generator_do_not_fit(tmp_path):
    path = checkpoint.save(tmp_path, 1, {"k": jax.random.key(0)}, {})
    with pytest.raises(InputError, match=r"k has dtype key<fry>, this run needs key<rbg>"):
        checkpoint.restore(path, {"k": jax.random.key(0, impl="rbg")})


def test_fall_back_to_the_previous_good_one(tmp_path):
    template = {"x": jnp.zeros(2)}
    paths = [checkpoint.save(tmp_path, step, {"x": jnp.full(2, 1.0 * step)}, {}) for step in (1, 2, 3)]
    paths[2].write_bytes(b"")
    data = bytearray(paths[1].read_bytes())
    data[-3] ^= 16
    paths[1].write_bytes(data)
    back = checkpoint.restore_latest(tmp_path, template)
    assert back.path == paths[0]
    assert back.header.step == 1
    assert back.state["x"].tolist() == [1, 1]
    assert len(back.skipped) == 2
    assert "step_00000003" in back.skipped[0]
    assert "truncated at 0 bytes" in back.skipped[0]
    assert "checksum" in back.skipped[1]
    paths[0].write_bytes(b"")
    with pytest.raises(InputError, match=r"no checkpoint in .*step_00000003.*; .*step_00000002.*; .*step_00000001"):
        checkpoint.restore_latest(tmp_path, template)


def test_empty_folder(tmp_path):
    with pytest.raises(InputError, match="no checkpoint in"):
        checkpoint.restore_latest(tmp_path / "nowhere", {"x": jnp.zeros(1)})


def test_kill_while_saving_leaves_the_last_complete_file(tmp_path):
    """SIGKILL at an arbitrary moment of a process that does nothing but save."""
    code = f"""
import pathlib
import jax.numpy as jnp
from qernel import checkpoint
step = 0
while True:
    step += 1
    checkpoint.save(pathlib.Path({str(tmp_path)!r}), step, {{"x": jnp.full(300_000, float(step))}}, {{}}, keep=2)
    print(step, flush=True)
"""
    environment = os.environ | {"JAX_ENABLE_X64": "1"}
    writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    for _ in range(4):
        writer.stdout.readline()
    writer.kill()
    reported = [4, *map(int, writer.stdout.read().split())][-1]
    writer.wait()
    back = checkpoint.restore_latest(tmp_path, {"x": jnp.zeros(300_000)})
    assert back.skipped == []
    assert reported <= back.header.step <= reported + 1
    assert bool((back.state["x"] == back.header.step).all())


def test_another_device_count(tmp_path):
    """Saved from 4 devices, restored on 1, 2 and 4: the same numbers, placed as the template is."""
    code = f"""
import pathlib
import jax, jax.numpy as jnp
from qernel import checkpoint

def build(devices):
    mesh = jax.make_mesh((devices,), ("w",), devices=jax.devices()[:devices])
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("w"))
    keys = jax.random.split(jax.random.key(0), 4)
    return {{"x": jax.device_put(jnp.arange(8.0), split), "keys": jax.device_put(keys, split)}}

path = checkpoint.save(pathlib.Path({str(tmp_path)!r}), 1, build(4), {{}})
for devices in (1, 2, 4):
    template = build(devices)
    back = checkpoint.restore(path, template)
    assert back["x"].sharding == template["x"].sharding and back["keys"].sharding == template["keys"].sharding
    assert back["x"].tolist() == list(range(8))
    assert (jax.random.key_data(back["keys"]) == jax.random.key_data(template["keys"])).all()
"""
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)

"""Every check of `qernel doctor` passes here, and fails where what it looks at is broken."""

import errno
import fcntl
import importlib.metadata
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qernel import doctor, doctor_machine, doctor_numerics, ewald, jets_head, laplacian, memory, sizes, spring
from qernel.cli import main
from qernel.doctor_machine import Check
from qernel.presets import PRESETS, preset
from qernel.vmc import Vmc

VERDICTS = ("ok", "warning", "FAILED")


def by_name(checks):
    return {c.name: c for c in checks}


def requirements(monkeypatch, **lists):
    """Other declared requirements of packages."""
    real = importlib.metadata.requires
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: lists.get(name) or real(name))


def test_versions_are_those_declared():
    found = by_name(doctor_machine.versions())
    declared = [r for r in importlib.metadata.requires("qernel") if "extra" not in r]
    assert {r.split(">=")[0] for r in declared} | {"Python", "qernel", "jaxlib"} == set(found)
    for requirement in declared:
        name, bound = requirement.split(">=")
        assert found[name].bound == f">= {bound}"
        assert found[name].found == importlib.metadata.version(name)
    assert all(c.verdict == "ok" for c in found.values())


def test_versions_that_are_too_old_or_missing(monkeypatch):
    requirements(monkeypatch, qernel=["numpy>=99.1", "scipy>=1.0.0.0", "no-such-package>=1", 'x>=1; extra == "test"'])
    found = by_name(doctor_machine.versions())
    assert set(found) == {"Python", "qernel", "numpy", "scipy", "no-such-package", "jaxlib"}
    assert (found["numpy"].verdict, found["numpy"].advice) == ("FAILED", "pip install 'numpy>=99.1'")
    assert (found["no-such-package"].verdict, found["no-such-package"].found) == ("FAILED", "not installed")
    assert found["scipy"].verdict == "ok"


@pytest.mark.parametrize(
    ("version", "bound", "fine"),
    [
        ("0.10.2", "0.9", True),
        ("0.9", "0.9.0", True),
        ("0.9.0", "0.9.0.1", False),
        ("2.0.0rc1", "2.0", True),
        ("0.10.3.dev20260101+abc", "0.10.3", True),
        ("1.9.9", "1.14", False),
        ("2024.9.0", "2024.10", False),
    ],
)
def test_versions_are_compared_by_their_numbers(version, bound, fine):
    assert doctor_machine._at_least(version, bound) == fine


def test_a_gpu_that_is_not_used(monkeypatch):
    monkeypatch.setattr(doctor_machine, "gpu_files", lambda: [])
    assert "GPU" not in by_name(doctor_machine.devices())
    monkeypatch.setattr(doctor_machine, "gpu_files", lambda: ["/dev/nvidia0"])
    check = by_name(doctor_machine.devices())["GPU"]
    assert check.verdict == "warning"
    assert "jax[cuda13]" in check.advice
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert set(by_name(doctor_machine.devices())) == {"devices"}


def test_cores_that_are_not_used(monkeypatch):
    cpu = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: cpu)
    for cores, verdict in ((8, "warning"), (1, None)):
        monkeypatch.setattr(doctor_machine, "available_cores", lambda cores=cores: cores)
        check = by_name(doctor_machine.devices()).get("cores")
        assert (check.verdict if check else None) == verdict
    monkeypatch.setattr(jax, "devices", lambda: 8 * cpu)
    monkeypatch.setattr(doctor_machine, "available_cores", lambda: 8)
    assert by_name(doctor_machine.devices())["cores"].verdict == "ok"


def test_the_largest_preset_is_the_one_that_fits(monkeypatch):
    least = sizes.least(preset("moire-n150"))
    monkeypatch.setattr(memory, "available", lambda: 1.0001 * least)
    (check,) = doctor_machine.largest_preset()
    assert check.bound.startswith("moire-n150 needs")
    monkeypatch.setattr(memory, "available", lambda: 0.9999 * least)
    (check,) = doctor_machine.largest_preset()
    assert not check.bound.startswith("moire-n150")
    monkeypatch.setattr(memory, "available", lambda: 1.0 * memory.MIB)
    (check,) = doctor_machine.largest_preset()
    assert check.verdict == "FAILED"
    smallest = min(PRESETS, key=lambda name: preset(name).family.n_electrons)
    assert check.bound.startswith(f"{smallest} needs")


def test_files_of_a_good_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with cache_folder(tmp_path / "not" / "yet"):
        checks = list(doctor_machine.files())
    names = ["current folder", "file locks", "free disk space", "compilation cache"]
    assert [c.name for c in checks] == names
    assert [c.verdict for c in checks[:2] + checks[3:]] == ["ok"] * 3
    assert list(tmp_path.iterdir()) == []


class cache_folder:
    """JAX's folder of compiled programs, for a while."""

    def __init__(self, folder):
        self.folder = folder and str(folder)

    def __enter__(self):
        self.before = jax.config.jax_compilation_cache_dir
        jax.config.update("jax_compilation_cache_dir", self.folder)

    def __exit__(self, *_):
        jax.config.update("jax_compilation_cache_dir", self.before)


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file" / "jax", None):
        with cache_folder(folder):
            check = by_name(doctor_machine.files())["compilation cache"]
        assert check.verdict == "warning"
        assert "JAX_COMPILATION_CACHE_DIR" in check.advice


def test_a_folder_that_cannot_be_written_locked_or_filled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def refused(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as m:
        m.setattr(doctor_machine.tempfile, "TemporaryFile", refused)
        found = by_name(doctor_machine.files())
        assert (found["current folder"].verdict, found["current folder"].found) == ("FAILED", "Read-only file system")
        assert "file locks" not in found
    for broken in (refused, lambda *_: None):  # no locks here; locks that keep nobody out
        with monkeypatch.context() as m:
            m.setattr(fcntl, "flock", broken)
            assert by_name(doctor_machine.files())["file locks"].verdict == "warning"
    for free, verdict in ((2**40, "ok"), (2**29, "warning"), (2**20, "FAILED")):
        usage = type("Usage", (), {"free": free})
        monkeypatch.setattr(doctor_machine.shutil, "disk_usage", lambda _, usage=usage: usage)
        assert by_name(doctor_machine.files())["free disk space"].verdict == verdict


def rounded(x, bits):
    """float32 with so many bits of mantissa."""
    drop = 23 - bits
    whole = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((whole + (1 << (drop - 1))) >> drop << drop).astype(np.uint32).view(np.float32)


def of_rounded(f):
    """f of operands rounded as tf32 has them."""

    def g(*operands):
        parts = [
            rounded(x.real, 10) + 1j * rounded(x.imag, 10) if np.iscomplexobj(x) else rounded(x, 10) for x in operands
        ]
        return f(*parts)

    return g


BROKEN_SLOGDET = {
    "rounded": of_rounded,
    "sign": lambda f: lambda a: (-f(a)[0], f(a)[1]),
    "not a number": lambda f: lambda a: (f(a)[0], f(a)[1] * jnp.nan),
}


@pytest.mark.parametrize("check", doctor_numerics.CHECKS[:4], ids=lambda f: f.__name__)
def test_precision_is_within_its_bounds(check):
    found = check()
    assert found.verdict == "ok"
    assert 0 < found.value <= found.limit / 2, "the bound leaves no room for another device"


def test_a_broken_erfc_fails(monkeypatch):
    right = ewald.jax_erfc
    # Ten units in the last place where it is largest, or a tail that ends too early.
    for wrong in (lambda x: right(x * (1 + 3e-6)), lambda x: jnp.where(x > 4, 0.0, right(x))):
        monkeypatch.setattr(ewald, "jax_erfc", wrong)
        assert doctor_numerics.erfc().verdict == "FAILED"


@pytest.mark.parametrize("kind", BROKEN_SLOGDET)
def test_a_broken_slogdet_fails(monkeypatch, kind):
    monkeypatch.setattr(jnp.linalg, "slogdet", eager(BROKEN_SLOGDET[kind](jnp.linalg.slogdet), monkeypatch))
    assert doctor_numerics.slogdet().verdict == "FAILED"


def eager(f, monkeypatch):
    """f, which needs numbers, where the checks would compile it."""
    compiled = doctor_numerics.compiled
    monkeypatch.setattr(doctor_numerics, "compiled", lambda g: g if g is f else compiled(g))
    return f


def test_a_broken_log_det_with_inverse_fails(monkeypatch):
    right = jets_head._log_det_inverse

    def wrong(a):
        value, inverse = right(a)
        return value, inverse.swapaxes(1, 2)

    monkeypatch.setattr(jets_head, "_log_det_inverse", wrong)
    assert doctor_numerics.slogdet().verdict == "FAILED"


def test_a_broken_solve_fails(monkeypatch):
    right = spring.solve_guarded

    def single(matrix, vector, damping):
        solution, fallback = right(matrix.astype(jnp.float32), vector.astype(jnp.float32), damping)
        return solution.astype(jnp.float64), fallback.astype(jnp.float64)

    for wrong in (single, lambda *a: (right(*a)[0], jnp.ones(())), lambda m, v, d: right(m, v, 1.01 * d)):
        monkeypatch.setattr(spring, "solve_guarded", wrong)
        assert doctor_numerics.cholesky().verdict == "FAILED"


def test_rounded_products_fail(monkeypatch):
    monkeypatch.setattr(jnp, "matmul", eager(of_rounded(jnp.matmul), monkeypatch))
    found = doctor_numerics.product()
    assert found.verdict == "FAILED"
    assert found.value == pytest.approx(2300, rel=0.1)


def test_free_electrons_fail_with_a_wrong_kinetic_energy(monkeypatch):
    assert doctor_numerics.free_electrons().verdict == "ok"
    right = laplacian.value_gradient_laplacian

    def wrong(*args, **kwargs):
        value, gradient, curvature = right(*args, **kwargs)
        return value, gradient, 1.001 * curvature

    monkeypatch.setattr(laplacian, "value_gradient_laplacian", wrong)
    # Another configuration is compiled anew.
    monkeypatch.setattr(doctor_numerics, "preset", lambda name: replace(preset(name), seed=1))
    assert doctor_numerics.free_electrons().verdict == "FAILED"


def test_two_electrons_fail_with_a_wrong_interaction_or_no_training(monkeypatch):
    metrics = []
    step = Vmc.step

    def recorded(self, state):
        done = step(self, state)
        metrics.append(done[1])
        return done

    monkeypatch.setattr(Vmc, "step", recorded)
    energy, gap = doctor_numerics.two_electrons()
    assert (energy.verdict, gap.verdict) == ("ok", "ok")
    monkeypatch.setattr(Vmc, "init", lambda self: None)
    interaction = float(metrics[-1].interaction[0])

    def replayed(change):
        steps = iter(metrics)
        monkeypatch.setattr(Vmc, "step", lambda self, state: (state, change(next(steps)), {}))
        return [c.verdict for c in doctor_numerics.two_electrons()]

    assert replayed(lambda m: m) == ["ok", "ok"]
    for factor in (-0.01, 0.02):
        assert replayed(lambda m, f=factor: m._replace(energy=m.energy + f * interaction)) == ["FAILED", "ok"]
    assert replayed(lambda m: metrics[0]) == ["FAILED", "ok"]
    assert replayed(lambda m: m._replace(kinetic_gap=m.kinetic_gap + 2.5)) == ["ok", "FAILED"]
    assert replayed(lambda m: m._replace(energy=m.energy * np.nan)) == ["FAILED", "ok"]


def sources(*found):
    return tuple(lambda c=c: c for c in found)


def test_command(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fine = Check("one", "1", "at most 2", value=1.0, limit=2)
    odd = Check("two", "odd", "even", "warning", "make it even")
    wrong = Check("three", "nan", "at most 2", "FAILED", "repair it", float("nan"), 2)

    def broken():
        raise RuntimeError("no\n  device")

    for found, code in (((fine, odd), 0), ((fine, odd, wrong), 1)):
        monkeypatch.setattr(doctor, "sources", lambda found=found: sources(*found))
        assert main(["doctor"]) == code
        out = capsys.readouterr().out
        assert "ok       one" in out
        assert "→ make it even" in out
        assert ("→ repair it" in out) == (code == 1)
    monkeypatch.setattr(doctor, "sources", lambda: (*sources(fine, odd, wrong), broken))
    assert main(["doctor", "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert data["failed"]
    checks = {c["name"]: c for c in data["checks"]}
    assert checks["one"] == {
        "name": "one",
        "found": "1",
        "bound": "at most 2",
        "verdict": "ok",
        "value": 1.0,
        "limit": 2,
    }
    assert checks["two"]["advice"] == "make it even"
    assert checks["broken"]["found"] == "RuntimeError: no device"
    assert all(c["verdict"] in VERDICTS for c in data["checks"])


def test_every_part_is_asked():
    names = {f.__name__ for f in doctor.sources()}
    assert names >= {"versions", "devices", "largest_preset", "files", "erfc", "slogdet", "cholesky", "product"}
    assert names >= {"free_electrons", "two_electrons"}

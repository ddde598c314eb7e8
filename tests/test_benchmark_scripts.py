"""The pure parts of benchmarks/scaling.py and benchmarks/large.py."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qernel import errors
from qernel.bench_problems import count
from qernel.errors import InputError
from qernel.log import TrainLog, read_log
from qernel.presets import preset
from qernel.recovery import RunFailed
from qernel.train import COLUMNS
from runs import CONFIG, train_log


def script(name):
    path = Path(__file__).parent.parent / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


scaling, large, head_to_head = script("scaling"), script("large"), script("head_to_head")


@pytest.mark.parametrize(
    ("module", "words", "said"),
    [
        (large, ["--systems", "moire-n55:4"], "preset = moire-n55: unknown"),
        (large, ["--couplings", "0"], "--couplings = 0: must be at least 1"),
        (scaling, ["widht-3"], "did you mean 'width'?"),
        (scaling, ["--lam", "0.25", "2", "2.7"], "--lam = [0.25, 2.0, 2.7]: must be"),
        (scaling, ["--lam", "1", "2", "nan"], "--lam = [1.0, 2.0, nan]: must be"),
        (head_to_head, ["--networks", "psi"], "--networks = psi: must be"),
        (head_to_head, ["--with", "missing.json", "--walltime", "0s"], "--with missing.json: cannot be read"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(module, words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("qernel.cli._prepare_jax", lambda: None)
    monkeypatch.setattr(head_to_head, "use_cores", lambda: None)
    monkeypatch.setattr(head_to_head.jax.config, "update", lambda *_: None)
    folder = {scaling: ["--folder", str(tmp_path / "x")], head_to_head: ["--out", str(tmp_path / "x")]}.get(module, [])
    monkeypatch.setattr(sys, "argv", ["script", *words, *folder])
    with pytest.raises(SystemExit) as ended:
        errors.script(module.main)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_size_that_fails_is_left_out(monkeypatch, tmp_path, capsys):
    """The others are trained as far as without it."""
    trained = []

    def run(config, folder, **_):
        trained.append(folder.name)
        if folder.name == "width-8":
            raise RunFailed("weights not finite")

    monkeypatch.setattr("qernel.train.run", run)
    monkeypatch.setattr(scaling, "_steps_of", lambda f: np.full(trained.count(f.name), 10.0))
    configs = scaling.distinct(preset("moire-n6"), ["width-8", "width-12"])
    scaling.train(configs, tmp_path, 20.0, 10.0)
    assert trained == ["preset", "width-8", "width-12", "preset", "width-12"]
    assert "width-8 failed and is left out: weights not finite" in capsys.readouterr().err


def test_names_say_what_differs_from_the_preset():
    base = preset("moire-n54")
    config = scaling.configuration(base, "width-96+experts-0+walkers-32+init-mixed")
    n = config.network
    assert (n.width, n.expert_width, n.shared_width, n.experts, n.init) == (96, 96, 96, 0, "mixed")
    assert config.sampling.walkers == 32
    assert replace(config, network=base.network, sampling=base.sampling, name=base.name, steps=base.steps) == base
    assert scaling.configuration(preset("moire-n6"), "experts-1").network.top_k == 1


@pytest.mark.parametrize(
    ("name", "words"), [("widht-3", "did you mean 'width'"), ("init-blob", "bloch"), ("width-x", "width-8")]
)
def test_other_names_are_refused(name, words):
    with pytest.raises(InputError, match=words):
        scaling.configuration(preset("moire-n6"), name)


def test_the_default_study_has_each_size_once_around_the_preset():
    base = preset("moire-n54")
    found = scaling.distinct(base, list(scaling.STUDY))
    sizes = [replace(c, name="any") for c in found.values()]
    assert all(a != b for k, a in enumerate(sizes) for b in sizes[:k])
    assert next(iter(found)) == "preset"
    n = base.network
    same = {f"width-{n.width}", f"experts-{n.experts}", f"determinants-{n.determinants}", f"init-{n.init}"}
    assert set(found) == {"preset", *scaling.STUDY} - same


def test_legs_come_to_the_same_time_without_compilation(tmp_path, monkeypatch):
    """Runs whose every call takes as long as it may, of which the first spends 4 s on compiling, 0.5 s a step."""
    calls = []

    def run(config, folder, walltime, console):
        calls.append(config)
        file = folder / "train.csv"
        before = len(read_log(file)["step"]) if file.exists() else 0
        compiling = 0.0 if before else 4.0
        with TrainLog(file, COLUMNS) as log:
            for k in range(max(1, int((walltime - compiling - 2) / 0.5))):
                seconds = {name: 0.125 for name in COLUMNS if name.startswith("seconds_")}
                seconds["seconds_solve"] += compiling if k == 0 else 0.0
                log.append({"step": before + k, "coupling": 0, **seconds})

    monkeypatch.setattr("qernel.train.run", run)
    scaling.train({"a": "a", "b": "b"}, tmp_path, 25.0, 10.0)
    for name in ("a", "b"):
        assert scaling._steps_of(tmp_path / name).sum() == pytest.approx(25, abs=3)
    assert calls[0] == "a"
    rounds = [x for k, x in enumerate(calls) if k == 0 or calls[k - 1] != x]
    assert rounds == ["a", "b"] * 3
    count = len(calls)
    scaling.train({"a": "a", "b": "b"}, tmp_path, 25.0, 10.0)
    assert len(calls) == count


def test_summary_of_a_log_made_up(tmp_path):
    train_log(tmp_path, CONFIG, {})
    log = read_log(tmp_path / "train.csv")
    p = scaling.summarise("preset", CONFIG, (10, 5), log)
    # Three couplings at −28.7, −36.2 and −44.5 for two electrons, noise 0.05 in each of the last 48 steps.
    assert p.energy == pytest.approx(-36.466667 / 2, abs=5 * p.error)
    assert p.error == pytest.approx(0.05 / 2 / np.sqrt(3 * 48), rel=0.3)
    assert (p.steps, p.seconds_per_step, p.walkers) == (240, 4 * 0.5, 3 * CONFIG.sampling.walkers)
    assert list(p.by_coupling) == ["0.5", "1", "1.5"]
    other = replace(p, name="width-8", energy=p.energy + 0.1)
    assert "| 0.100(4) |" in scaling.table([p, other])
    f = scaling.draw([p, other])
    assert len(f.axes) == 4
    short = {name: column[:9] for name, column in log.items()}
    assert scaling.summarise("preset", CONFIG, (10, 5), short) is None


def test_walkers_are_shared_out_over_the_couplings():
    config = large.configuration("moire-n54:1024", None)
    assert (len(config.couplings), config.sampling.walkers) == (32, 32)
    assert (
        large.configuration("moire-n54:8", None).family.lam[2],
        large.configuration("moire-n150:2", None).steps,
    ) == (
        4,
        preset("moire-n150").steps,
    )
    assert large.configuration("moire-n54:64", 1).family.lam == (1.125, 1.125, 1)
    for system, couplings in (("moire-n54:9", 2), ("moire-n54:4", 4), ("moire-n54", None)):
        with pytest.raises(InputError):
            large.configuration(system, couplings)


def test_summary_of_what_a_process_said():
    machine = {"name": "m", "cores": 1, "gemm": 100.0, "bandwidth": 1.0, "launch": 0.0}
    head = {"machine": machine, "local_energy_flops": 50.0, "couplings": 1, "walkers_per_coupling": 4}
    step = {"sampling": 1.0, "local energy": 2.0, "gradient": 3.0, "solve": 4.0}
    records = [head, *({"warming": {k: v + c for k, v in step.items()}, "wall": 10 + 4 * c} for c in (7.0, 0.0))]
    assert "not_measured" in large.summary("moire-n54:4", "float32", records)
    for k in range(3):
        records.append({"step": step, "wall": 9.0 + k, "peak_bytes": 2.0**30, "moves": 10, "fallback": 0.0})
    r = large.summary("moire-n54:4", "float32", records)
    assert r["seconds"]["scores"] == [3.0, 3.0, 3.0]
    assert r["seconds"]["step"] == [10.0, 9.5, 10.5]
    assert r["compile_seconds"] == 28.0
    assert r["compile_seconds_by_part"]["moves"] == 7.0
    assert r["local_energy_share"] == pytest.approx(0.25)
    assert "25 %" in large.table([r])


def test_flops_of_the_local_energy_are_those_of_its_matrix_products():
    """Of a slope in 2N + 2 evaluations: more than the evaluations of log ψ alone, less than twice that many."""
    from qernel.bench_machine import program
    from qernel.vmc import Vmc
    from qernel.wavefunction import log_psi

    base = preset("moire-n6")
    config = replace(base, family=replace(base.family, lam=(1.0, 1.0, 1)), sampling=replace(base.sampling, walkers=4))
    vmc = Vmc(config)
    state = vmc.blank()
    forward = program(log_psi, state.model, state.walkers, vmc.points).flops
    flops = large.local_energy_flops(vmc, state)
    assert 0.7 < flops / (14 * forward) < 2
    assert count(config.family, config.network)[0] == vmc.n_parameters

"""Networks against each other: windows, ratios of times, which PsiFormer reaches our energy, and the figure."""

import importlib.util
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qernel.bench_compare import (
    LEAST_STEPS,
    Series,
    at_equal_steps,
    at_equal_time,
    comparable,
    from_json,
    last_window,
    mean_of,
    step_times,
    time_ratio,
    windows,
)
from qernel.bench_compare_figure import draw, limits
from qernel.bench_compare_report import compare, lines
from qernel.bench_problems import count, psiformer_of
from qernel.errors import InputError
from qernel.figures import encoded
from qernel.presets import preset
from qernel.stopping import Deadline
from qernel.train import run


def series(name="qernel", weights=1000, step=0.1, energy=-10.0, steps=400, noise=0.1, seed=0, lam=1.0):
    """White noise about an energy that is reached at once; times of steps scatter by a tenth."""
    rng = np.random.default_rng(seed)
    return Series(
        name=name,
        lam=lam,
        electrons=6,
        parameters=weights,
        active=weights,
        laplacian="folx",
        optimizer="Spring",
        walkers=64,
        moves=10.0,
        clock="wall",
        setup=30.0,
        seconds=np.cumsum(step * np.exp(0.1 * rng.normal(size=steps))),
        energy=energy + noise * rng.normal(size=steps),
        variance=np.full(steps, 2.0),
    )


def test_compilation_is_no_time_of_a_step():
    """Two legs, which begin at steps 0 and 3 with 50 s and 8 s besides the step."""
    log = {"step": np.arange(6), "wall": 50 + np.array([1, 2, 3, 12, 13, 14.0]), "processor": np.full(6, 0.7)}
    log["processor"][[0, 3]] = 40, 6
    seconds, setup = step_times(log, [0, 3], "wall")
    np.testing.assert_allclose(seconds, 1.0)
    assert setup == pytest.approx(50 + 8)
    seconds, setup = step_times(log, [0, 3], "processor")
    np.testing.assert_allclose(seconds, 0.7)
    assert setup == pytest.approx(50 + 8)
    first, setup = step_times({k: x[:1] for k, x in log.items()}, [0], "wall")
    assert np.isnan(first).all()
    assert setup == 51.0


def test_windows_follow_each_other_up_to_the_end():
    s = series(noise=0.0)
    s = replace(s, energy=-s.numbers)  # a ramp: the mean of a window is that of its first and last step
    found = windows(s, s.numbers)
    assert found[-1].high == 400.0
    assert found[-1].low == pytest.approx(400 / np.sqrt(2))
    assert [a.high for a in found[:-1]] == [b.low for b in found[1:]]
    assert all(w.steps >= 5 for w in found)
    assert len(found) > 8
    w = found[-1]
    assert w.steps == 400 - 282
    assert w.energy == pytest.approx(-(283 + 400) / 2)
    assert w.error > 5  # a drift is no white noise, for which it would be 3
    last = last_window(s, s.numbers, 300.0)
    assert last.steps == 60
    assert last.energy == pytest.approx(-(241 + 300) / 2)


def test_equal_time_is_that_of_the_slowest_and_equal_steps_of_the_shortest():
    fast, slow = series(step=0.1), series(step=0.4, steps=200)
    end, (a, b) = at_equal_time([fast, slow])
    assert end == pytest.approx(fast.seconds[-1])
    assert a.steps == pytest.approx(80, abs=4)
    assert b.steps == pytest.approx(20, abs=2)
    end, (a, b) = at_equal_steps([fast, slow])
    assert end == 200
    assert a.steps == b.steps == 40
    short = series(steps=LEAST_STEPS - 1)
    kept = comparable([fast, short])
    assert len(kept) == 1
    assert kept[0] is fast


def test_ratio_of_times_is_as_sure_as_it_says():
    """Steps of 0.3 and 0.1 s with noise: (ratio − 3)/error has a spread of 1, a little more with eight blocks."""
    pull = []
    for seed in range(200):
        value, error = time_ratio(series(step=0.3, seed=seed), series(step=0.1, seed=1000 + seed))
        pull.append((value - 3) / error)
    assert abs(np.mean(pull)) < 0.3
    assert 0.75 < np.std(pull) < 1.4


def test_a_slow_spell_enlarges_the_error_of_a_ratio():
    s, other = series(), series(seed=1)
    times = s.step_seconds
    times[:100] *= 2
    _, quiet = time_ratio(s, other)
    _, disturbed = time_ratio(replace(s, seconds=np.cumsum(times)), other)
    assert disturbed > 5 * quiet
    assert mean_of([(1.0, 0.1), (1.2, 0.1)]) == pytest.approx((1.1, 0.1))
    assert mean_of([(1.0, 0.1), (1.0, 0.1)])[1] == pytest.approx(0.1 / np.sqrt(2))


def trained(*energies):
    """Ours with 1000 weights at −10, and PsiFormers of 1000, 2000 … weights."""
    names = ["psiformer-equal", "psiformer-2x", "psiformer-4x"]
    others = [series(n, 1000 * 2**k, 0.3, e, seed=k + 1) for k, (n, e) in enumerate(zip(names, energies, strict=False))]
    return [series(), *others]


def test_the_smallest_psiformer_that_reaches_our_energy():
    result = compare(trained(-9.0, -9.99, -10.5))
    timed = result["weights"][0]
    assert [r["reaches"] for r in timed["rivals"]] == [False, True, True]
    assert timed["rivals"][0]["difference"] == pytest.approx(1.0, abs=5 * timed["rivals"][0]["error"])
    assert "has 2 times as many" in timed["words"]
    assert "s each" in timed["words"]
    none = compare(trained(-9.0, -9.5))["weights"][1]
    assert "none of the 2 PsiFormers" in none["words"]
    assert "steps each" in none["words"]
    peer = replace(series("PeriodicWave-64", 500, energy=-9.5, seed=9), optimizer="KFAC")
    both = compare([*trained(-9.0), peer])["weights"][0]["words"]
    assert "none of the 1 PsiFormers" in both
    assert re.search(r"PeriodicWave-64 \(500 weights\): energy less ours 0\.[45]", both)
    ratio = result["time_ratios"]["network and Laplacian"]
    assert ratio["value"] == pytest.approx(3.0, abs=5 * ratio["error"])
    assert 0 < ratio["error"] < 0.1
    family = compare([replace(s, name=s.name.replace("qernel", "qernel, family")) for s in trained(-9.0)])
    assert family["time_ratios"]["network and Laplacian"]["value"] == ratio["value"]
    table = lines(result)
    assert len(table) == 2 + 4 + 1 + 1 + 2
    assert table[2].startswith("| 1 | qernel | 1000 | folx | 400 | 0.0995 (")


def test_the_figure_shows_the_end_and_the_reference():
    s = trained(-9.0)
    start = np.arange(400) < 20
    s = [replace(x, energy=np.where(start, 1e3, x.energy)) for x in s]
    low, high = limits(s, -8.0)
    assert -10.5 < low < -10
    assert -8 < high < -7.5
    f = draw([*s, *(replace(x, lam=2.0) for x in s)], {1.0: -8.0})
    assert len(f.axes) == 6
    assert f.axes[0].get_ylim() == pytest.approx((low, high))
    assert [t.get_text() for t in f.legends[0].get_texts()] == ["qernel", "psiformer-equal", "Hartree–Fock"]
    assert encoded(f, "png")[1:4] == b"PNG"


def test_series_survive_a_file_and_bad_ones_are_refused():
    s = series(steps=50)
    again = from_json(s.to_json())
    assert again.name == s.name
    np.testing.assert_array_equal(again.energy, s.energy)
    with pytest.raises(InputError, match=r"peer\.json.*variance"):
        from_json({k: v for k, v in s.to_json().items() if k != "variance"}, "peer.json")
    with pytest.raises(InputError, match="peer: seconds, energy and variance must be lists of numbers"):
        from_json({**s.to_json(), "seconds": "many"}, "peer")
    with pytest.raises(InputError, match="as many seconds as energies"):
        from_json({**s.to_json(), "energy": [1.0]})


def test_opponents_of_54_electrons_are_possible():
    """54 random orbitals need 53 features, whatever the number of weights asked for."""
    assert psiformer_of(preset("moire-n54").family, 1).width == 56


def test_a_run_takes_the_laplacian_it_is_told(monkeypatch, tmp_path):
    def vmc(config, method):
        raise InputError(f"told {method}")

    monkeypatch.setattr("qernel.train.Vmc", vmc)
    with pytest.raises(InputError, match="told folx"):
        run(preset("moire-n2"), tmp_path, method="folx")


def test_a_turn_begins_after_the_first_step(monkeypatch):
    now = 100.0
    monkeypatch.setattr("qernel.stopping.time.monotonic", lambda: now)
    deadline = Deadline(at=1000.0, turn=20.0)
    assert not deadline.near()
    now = 400.0  # compiled for five minutes
    deadline.compiled()
    assert not deadline.near()
    now = 420.0
    assert deadline.near()
    plain = Deadline(at=1000.0)
    plain.compiled()
    assert not plain.near()


@pytest.fixture(scope="module")
def head_to_head():
    file = Path(__file__).parents[1] / "benchmarks" / "head_to_head.py"
    spec = importlib.util.spec_from_file_location("head_to_head", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules["head_to_head"] = module
    spec.loader.exec_module(module)
    return module


def test_names_of_networks(head_to_head):
    config = preset("moire-n54")
    ours = count(config.family, config.network)[0]
    assert head_to_head.network_of("qernel", config) == (config.network, "forward")
    wide, _ = head_to_head.network_of("qernel-128", config)
    assert (wide.width, wide.expert_width, wide.shared_width) == (128, 128, 128)
    peer, method = head_to_head.network_of("psiformer-64", config)
    assert (peer.width, peer.experts, peer.kv_heads, method) == (64, 0, 4, "folx")
    six, method = head_to_head.network_of("psiformer-6x-forward", config)
    assert count(config.family, six)[0] == pytest.approx(6 * ours, rel=0.02)
    assert method == "forward"
    started, method = head_to_head.network_of("psiformer-64-started", config)
    assert (started, method) == (replace(peer, init=config.network.init), "folx")
    for wrong in ("psiformer", "qernel-started", "qernel-equal", "psiformer-6y", "slater-8"):
        with pytest.raises(InputError, match="--networks"):
            head_to_head.network_of(wrong, config)


class Pretended:
    """A run on a clock of its own: 40 s of set-up in the first leg, 2 s in later ones."""

    lams = (1.0,)

    def __init__(self, name, clock):
        self.name = self.folder = name
        self.clock, self.seconds, self.legs = clock, 0.0, 0

    def done(self):
        return self.seconds

    def leg(self, turn, walltime):
        setup = 40.0 if self.legs == 0 else 2.0
        trained = max(0.0, min(turn, walltime - setup))
        self.clock[0] += setup + trained
        self.seconds, self.legs = self.seconds + trained, self.legs + 1
        return True, setup


def test_all_get_the_same_time_and_the_call_ends_in_time(head_to_head, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(head_to_head.time, "monotonic", lambda: clock[0])
    jobs = [Pretended(name, clock) for name in "abcd"]
    assert head_to_head.train_all(jobs, 200.0, 20.0, 400.0)
    assert 360 < clock[0] <= 400
    assert max(j.seconds for j in jobs) - min(j.seconds for j in jobs) < 0.1
    assert min(j.seconds for j in jobs) > 40
    for job in jobs:
        job.legs = 0  # another process compiles again
    assert head_to_head.train_all(jobs, 200.0, 20.0, clock[0] + 2000.0)
    assert all(200 <= j.seconds < 210 for j in jobs)

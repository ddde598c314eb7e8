"""Run folders made up: configuration, checkpoint, training log and scan, without any training or sampling."""

import json
from functools import cache
from pathlib import Path

import jax
import numpy as np

from qernel import checkpoint
from qernel.cell import Cell
from qernel.config import Config, to_dict
from qernel.evaluate import Model, Result, density_bins
from qernel.family import Family
from qernel.log import TrainLog
from qernel.presets import EXACT
from qernel.scan import save_dataset, to_dataset
from qernel.start import make_start
from qernel.stats import Estimate
from qernel.train import COLUMNS
from qernel.wavefunction import Wavefunction

FAMILY = Family(n_up=2, cell=Cell(supercell=((1, 1), (2, -1))), lam=(0.5, 1.5, 3))
CONFIG = Config(name="made-up", family=FAMILY, network=EXACT, steps=240)
ENERGY = {0.5: -28.7, 1.0: -36.2, 1.5: -44.5}


def number(mean: float, error: float = 0.01, r_hat: float = 1.001) -> Estimate:
    return Estimate(mean, error, 0.8, r_hat, 1000.0, 0.1)


def results(config: Config, **changes: object) -> list[Result]:
    """One made-up result for each trained coupling."""
    family = config.family
    bins = density_bins(family.cell, 12)
    density = np.full((bins, bins), family.n_electrons / family.cell.area)
    out = []
    for c in family.grid():
        e = ENERGY.get(float(c[0]), -30.0)
        values = {
            "energy": number(e),
            "kinetic": number(9.0),
            "moire": number(e + 24.0),
            "interaction": number(-33.0),
            "energy_imag": number(0.001),
            "kinetic_from_gradient": number(9.001),
            "kinetic_gap": number(-0.001),
            "w": number(-15.0),
            "variance": 0.2,
            **changes,
        }
        out.append(
            Result(
                couplings=dict(zip(family.names, map(float, c), strict=True)),
                n_electrons=family.n_electrons,
                e0_mev=family.material.e0_mev,
                acceptance=0.5,
                walkers=64,
                sweeps=60,
                seconds=1.0,
                outside=[],
                density=density,
                density_error=0.1 * density,
                **values,
            )
        )
    return out


def train_log(folder: Path, config: Config, fall: dict[int, float]) -> None:
    """A training log whose energies stay, or fall by so much over the last third."""
    rng = np.random.default_rng(0)
    with TrainLog(folder / "train.csv", COLUMNS) as log:
        for step in range(config.steps):
            for k, c in enumerate(config.family.grid()):
                late = max(0.0, 3 * step / config.steps - 2)
                e = ENERGY.get(float(c[0]), -30.0) - fall.get(k, 0.0) * late + 0.05 * rng.normal()
                row = dict.fromkeys(COLUMNS, 0.5)
                row |= {"step": step, "coupling": k, "lam": float(c[0]), "energy": e, "fallback": 0.0}
                log.append({**row, "kinetic_gap": rng.normal()})


@cache
def wavefunction() -> Wavefunction:
    """Any: a scan is made up from results, and no one asks it."""
    return Wavefunction(jax.random.key(0), make_start(FAMILY, EXACT))


def make_run(
    folder: Path, config: Config = CONFIG, made: list[Result] | None = None, fall: dict[int, float] | None = None
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(to_dict(config)))
    origin = {"qernel": "0", "git": {"commit": "0123456789abcdef", "dirty": True}, "jax": "0"}
    header = {"config": to_dict(config), "provenance": origin, "wall": 125.0}
    checkpoint.save(folder / "checkpoints", config.steps, {"x": np.zeros(1)}, header)
    if config.steps:
        train_log(folder, config, fall or {})
    family = config.family
    model = Model(
        config=config,
        wavefunction=wavefunction(),
        trained=family.grid(),
        trained_walkers=jax.numpy.zeros((len(family.grid()), 2, family.n_electrons, 2)),
        trained_width=np.ones(len(family.grid())),
        step=config.steps,
        provenance=origin,
    )
    save_dataset(to_dataset(model, made or results(config)), folder / "results.nc")
    return folder

"""Going on from a trained family with some of its couplings only: is one weight set for all as good as one for each?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import equinox as eqx
import jax.numpy as jnp

from qernel.config import Config
from qernel.errors import InputError
from qernel.evaluate import Model, initial_chains
from qernel.family import Grid
from qernel.train import run
from qernel.vmc import TrainState, Vmc


def finetuned(parent: Model, grid: Grid, steps: int) -> Config:
    """The configuration of a run that goes on from `parent` at the couplings of `grid`, for `steps` new steps.

    Raises `InputError` for couplings outside the family.
    """
    name = parent.config.name.removesuffix("-finetuned")
    origin = f"{name}, step {parent.step}, sha256 {parent.checksum[:16]}"
    return replace(parent.config, name=f"{name}-finetuned", train_at=grid, steps=steps, parent=origin)


def finetune(parent: Model, config: Config, folder: Path, walltime: float | None = None) -> TrainState:
    """Train `config` from the weights of `parent`, with an optimiser that has seen nothing yet.

    Walkers come from the nearest trained couplings. The same call again goes on where it stopped.

    Raises:
        InputError: if family or network differ from the parent's; and as `train.run` does.
    """
    for part in ("family", "network"):
        if getattr(config, part) != getattr(parent.config, part):
            raise InputError(f"{part}: cannot be changed by finetune, the weights are made for the parent's")
    return run(config, folder, walltime=walltime, begin=lambda vmc: weights_of(parent, vmc))


def weights_of(parent: Model, vmc: Vmc) -> TrainState:
    """A state before its first step, with the weights of `parent`, and its walkers of the nearest couplings."""
    blank = vmc.blank()
    weights = eqx.filter(parent.wavefunction, eqx.is_inexact_array)
    _, rest = eqx.partition(blank.model, eqx.is_inexact_array)
    walkers, width = initial_chains(parent, vmc.couplings, vmc.config.sampling.walkers)
    width = width.astype(blank.width.dtype)
    return vmc.placed(blank._replace(model=eqx.combine(weights, rest), walkers=jnp.asarray(walkers), width=width))

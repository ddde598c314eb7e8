"""Electrons in stripes: a one-body potential that is not built in, trained, asked and checked."""

from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp

from qernel import load
from qernel.config import Config, Sampling
from qernel.exact import ground_state_energy
from qernel.family import Family
from qernel.presets import SMALL
from qernel.train import run

jax.config.update("jax_enable_x64", True)


@dataclass(frozen=True)
class Stripes:
    """W(r) = −depth cos(b1·r), in E0; λ multiplies it."""

    depth: float = 10.0

    def __call__(self, r, h):
        return -self.depth * jnp.cos(r @ jnp.asarray(h.cell.moire_reciprocal[0], r.dtype))


def main(folder: Path, steps: int = 300, target_error: float = 0.05) -> None:
    family = Family(n_up=2, lam=(0.5, 1.5, 3), potential=Stripes())
    config = Config(name="stripes", family=family, network=SMALL, sampling=Sampling(walkers=64), steps=steps)
    run(config, folder)
    result = load(folder, potential=Stripes()).at(lam=1.0).sample(target_error)
    exact = ground_state_energy(family.hamiltonian(jnp.array([1.0])), bands=5)
    print(f"E(λ = 1) = {result.energy} E0, five bands {exact:.3f} E0")


if __name__ == "__main__":
    main(Path("runs/stripes"))

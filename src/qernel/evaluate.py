"""After training: load a run, sample it at any coupling until the error bars are small enough.

    model = qernel.load("runs/n3")
    result = model.at(lam=1.05).sample(target_error=0.05)

The Hamiltonian is read from the run. Every error bar is `stats.estimate`'s.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qernel import checkpoint, origin, sizes
from qernel.cell import FloatArray
from qernel.config import Config, from_dict
from qernel.errors import InputError, require
from qernel.hamiltonian import Hamiltonian, Potential
from qernel.measuring import sample
from qernel.observables.density import density_bins
from qernel.result import Result, Settings
from qernel.start import Point
from qernel.types import Walkers
from qernel.vmc import Vmc
from qernel.wavefunction import Wavefunction


@dataclass(frozen=True)
class Model:
    """A trained family. `at` picks a coupling, `scan` measures many at once."""

    config: Config
    wavefunction: Wavefunction
    trained: FloatArray
    """couplings trained on, [couplings, names]"""
    trained_walkers: Walkers
    trained_width: FloatArray
    step: int
    """updates the weights have had"""
    provenance: dict[str, Any]
    checksum: str = ""
    """SHA-256 of the checkpoint"""

    def at(self, **couplings: float) -> State:
        """The state at named couplings, e.g. `at(lam=1.05)`; trained or not. Warns outside the trained range."""
        return State(self, self.config.family.vector(**couplings))

    def points(self, couplings: FloatArray) -> Point:
        """Wavefunction tables at couplings [couplings, names]."""
        return self.wavefunction.start.points(couplings)

    def scan(self, couplings: FloatArray, settings: Settings | None = None) -> list[Result]:
        """Measure at every coupling vector of [couplings, names], all chains together."""
        vectors, chosen = np.asarray(couplings, float), settings or Settings()
        walkers, width = initial_chains(self, vectors, chosen.walkers)
        return sample(self.config, self.wavefunction, walkers, width, vectors, chosen)


@dataclass(frozen=True)
class State:
    """A trained family at one coupling vector."""

    model: Model
    couplings: FloatArray

    @property
    def hamiltonian(self) -> Hamiltonian:
        """The Hamiltonian there, read from the run."""
        return self.model.config.family.hamiltonian(jnp.asarray(self.couplings))

    def log_psi(self, electrons: Float[Array, "*batch electrons 2"]) -> Any:
        """log ψ (log|ψ| + i phase) of electrons [*batch, N, 2] in a_M."""
        point = jax.tree.map(lambda x: x[0], self.model.points(self.couplings[None]))
        return self.model.wavefunction(jnp.asarray(electrons, self.model.config.network.dtype), point)

    def sample(self, target_error: float | None = None, **settings: Any) -> Result:
        """Sample until `target_error` (E0) is reached; other keywords as in `Settings`."""
        return self.model.scan(self.couplings[None], Settings(target_error=target_error, **settings))[0]


def load(run: str | Path, potential: Potential | None = None) -> Model:
    """The newest good checkpoint of a run folder (or one checkpoint file), ready to be asked.

    `potential` is needed for runs with a one-body potential that is not built in.

    Raises:
        InputError: if there is no run or no undamaged checkpoint there.
    """
    jax.config.update("jax_enable_x64", True)
    path = Path(run)
    require(path.exists(), "run", path, "an existing run folder")
    if path.is_file():
        header = checkpoint.read_header(path)
    else:
        folder = path / "checkpoints"
        newest = checkpoint.latest(folder)
        if newest is None:
            raise InputError(f"run = {path}: has no checkpoint (looked for {folder}/step_*.safetensors)")
        header = _first_good_header(folder)
    config = _config_of(path, header, potential)
    vmc = Vmc(config)
    template = vmc.blank()
    state = checkpoint.restore(path, template) if path.is_file() else _restore(path / "checkpoints", template)
    return Model(
        config=config,
        wavefunction=state.model,
        trained=np.asarray(state.couplings),
        trained_walkers=state.walkers,
        trained_width=np.asarray(state.width),
        step=int(state.step),
        provenance=origin.provenance(header),
        checksum=header.sha256,
    )


def _config_of(path: Path, header: checkpoint.Header, potential: Potential | None) -> Config:
    """The configuration in a header. Nothing of its size is made before that is known to be the size of the file."""
    try:
        config = from_dict(header.user.get("config"), potential)
        sizes.check_loading(config)
    except InputError as error:
        raise InputError(f"checkpoint {path}: {error}") from None
    shape = (len(config.couplings), config.sampling.walkers, config.family.n_electrons, 2)
    weights = sum(math.prod(leaf.shape) for name, leaf in header.leaves.items() if name.startswith("model."))
    found = header.leaves["walkers"].shape if "walkers" in header.leaves else None
    if found != shape or weights != sizes.parameters(config):
        raise InputError(
            f"checkpoint {path}: walkers {found} and {weights} weights; its configuration has walkers {shape} and "
            f"{sizes.parameters(config)} weights"
        )
    return config


def _restore(folder: Path, template: Any) -> Any:
    restored = checkpoint.restore_latest(folder, template)
    for line in restored.skipped:
        warnings.warn(f"skipped {line}", stacklevel=3)
    return restored.state


def _first_good_header(folder: Path) -> checkpoint.Header:
    """Header of the newest checkpoint whose header can be read."""
    reasons = []
    for path in reversed(checkpoint.checkpoints(folder)):
        try:
            return checkpoint.read_header(path)
        except checkpoint.DamagedCheckpoint as error:
            reasons.append(str(error))
    raise InputError(f"no checkpoint in {folder}: {'; '.join(reasons)}")


def initial_chains(model: Model, couplings: FloatArray, walkers: int) -> tuple[Walkers, Array]:
    """Walkers and widths of the nearest trained coupling, repeated as often as needed."""
    here, trained = (jax.vmap(model.config.family.normalise)(jnp.asarray(x)) for x in (couplings, model.trained))
    nearest = np.linalg.norm(np.asarray(here)[:, None] - np.asarray(trained)[None], axis=-1).argmin(1)
    chosen = np.resize(np.arange(model.trained_walkers.shape[1]), walkers)
    return model.trained_walkers[nearest][:, chosen], jnp.asarray(model.trained_width[nearest])


__all__ = ["Model", "Result", "Settings", "State", "density_bins", "initial_chains", "load"]

"""After training: load a run, sample it at any coupling until the error bars are small enough.

    model = qernel.load("runs/n3")
    result = model.at(lam=1.05).sample(target_error=0.05)

The Hamiltonian is read from the run. Every error bar is `stats.estimate`'s.
"""

from __future__ import annotations

import json
import math
import time
import warnings
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from qernel import checkpoint, devices, memory, sampling
from qernel.cell import Cell, FloatArray
from qernel.compiling import compiled
from qernel.config import Config, from_dict
from qernel.devices import SPREAD, WHOLE, on_each, place
from qernel.errors import InputError, require
from qernel.hamiltonian import Hamiltonian, Potential, moire_energy
from qernel.sampling import adapt_width
from qernel.stats import Estimate, estimate
from qernel.types import Key, Walkers
from qernel.vmc import Vmc, measure
from qernel.wavefunction import Point, Wavefunction

TERMS = ("energy", "kinetic", "moire", "interaction", "energy_imag", "kinetic_from_gradient", "kinetic_gap", "w")
"""Series kept: local energy and its terms, E0; Im E_L; ½|∇log ψ|²; the difference of both kinetic energies; Σ W."""


class Block(NamedTuple):
    """One block of sampling: walkers, series of every term [terms, sweeps, couplings, walkers], histogram counts."""

    walkers: Walkers
    acceptance: Float[Array, " couplings"]
    series: Float[Array, "terms sweeps couplings walkers"]
    counts: Float[Array, "couplings bins bins"]


@dataclass(frozen=True)
class Result:
    """What was measured at one coupling vector. Energies in E0, total over the electrons."""

    couplings: dict[str, float]
    n_electrons: int
    e0_mev: float
    energy: Estimate
    kinetic: Estimate
    moire: Estimate
    interaction: Estimate
    energy_imag: Estimate
    kinetic_from_gradient: Estimate
    kinetic_gap: Estimate
    w: Estimate
    """⟨Σ W⟩ = dE/dλ (Hellmann–Feynman)"""
    variance: float
    """of the complex local energy, E0²"""
    acceptance: float
    walkers: int
    sweeps: int
    """measurements of every walker"""
    seconds: float
    outside: list[str]
    """couplings outside the trained range"""
    density: FloatArray = field(repr=False)
    """electrons per a_M², [bins, bins] over the supercell (axes: fractions of T1 and T2)"""
    density_error: FloatArray = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON: each quantity as {"mean", "error"}, with the health of the chains beside."""

        def pair(e: Estimate) -> dict[str, float]:
            return {"mean": e.mean, "error": e.error}

        names = ("energy", "kinetic", "moire", "interaction", "energy_imag", "kinetic_from_gradient", "kinetic_gap")
        return {
            "couplings": self.couplings,
            "n_electrons": self.n_electrons,
            "units": "E0",
            "e0_mev": self.e0_mev,
            **{name: pair(getattr(self, name)) for name in names},
            "dE_dlam": pair(self.w),
            "variance": self.variance,
            "tau": self.energy.tau,
            "r_hat": self.energy.r_hat,
            "effective_samples": self.energy.ess,
            "acceptance": self.acceptance,
            "walkers": self.walkers,
            "sweeps": self.sweeps,
            "seconds": self.seconds,
            "outside_trained_range": self.outside,
        }


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

    def at(self, **couplings: float) -> State:
        """The state at named couplings, e.g. `at(lam=1.05)`; trained or not. Warns outside the trained range."""
        return State(self, self.config.family.vector(**couplings))

    def points(self, couplings: FloatArray) -> Point:
        """Wavefunction tables at couplings [couplings, names]."""
        return self.wavefunction.start.points(couplings)

    def scan(self, couplings: FloatArray, settings: Settings | None = None) -> list[Result]:
        """Measure at every coupling vector of [couplings, names], all chains together."""
        return sample(self, np.asarray(couplings, float), settings or Settings())


@dataclass(frozen=True)
class Settings:
    """How long and how finely to sample. Raises `InputError` for impossible values."""

    target_error: float | None = None
    """stop when the error of every energy is below this, E0 (none: 200 sweeps)"""
    walkers: int = 256
    """chains per coupling"""
    moves: int = 10
    """all-electron moves between two measurements"""
    burn_in: int = 500
    """moves before the first measurement"""
    max_sweeps: int = 5000
    """most measurements of each walker"""
    bins: int = 36
    """density bins along each supercell vector; rounded up to fit the moiré cells"""
    seed: int = 1
    walltime: float | None = None
    """seconds after which to stop in any case"""

    def __post_init__(self) -> None:
        if self.target_error is not None:
            ok = math.isfinite(self.target_error) and self.target_error > 0
            require(ok, "target_error", self.target_error, "a positive energy in E0")
        for name, low in (("walkers", 2), ("moves", 1), ("burn_in", 0), ("max_sweeps", 20), ("bins", 1)):
            require(getattr(self, name) >= low, name, getattr(self, name), f"at least {low}")


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
    config = from_dict(header.user["config"], potential)
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
        provenance=dict(header.user.get("provenance", {})),
    )


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


def density_bins(cell: Cell, at_least: int) -> int:
    """Bins along each supercell vector: a multiple of the momentum denominator, so that moiré translations fit."""
    d = cell.momentum_denominator
    return d * max(1, -(-at_least // d))


def sample(model: Model, couplings: FloatArray, settings: Settings) -> list[Result]:
    """Measure a model at couplings [couplings, names]: burn-in, then blocks until every error bar is small enough."""
    begin = time.monotonic()
    config, family = model.config, model.config.family
    outside = [family.outside(c) for c in couplings]
    for c, names in zip(couplings, outside, strict=True):
        for name in names:
            low, high, _ = getattr(family, name)
            value = c[family.names.index(name)]
            warnings.warn(f"{name} = {value:g} is outside the trained range {low:g} to {high:g}", stacklevel=3)
    key = jax.random.key(settings.seed)
    walkers, width = initial_chains(model, couplings, settings.walkers)
    bins = density_bins(family.cell, settings.bins)
    plan = memory.make_plan(config, len(couplings), settings.walkers, model.wavefunction.parameter_count()[0])
    say = partial(warnings.warn, stacklevel=3)
    whole = partial(place, walkers=settings.walkers)
    walkers, width = place(walkers, settings.walkers, SPREAD), whole(width)
    wave, points, vectors = whole(model.wavefunction), whole(model.points(couplings)), whole(jnp.asarray(couplings))

    for _ in range(-(-settings.burn_in // settings.moves)):
        key, sub = jax.random.split(key)
        arguments = wave, points, sub, walkers, width, settings.moves, family.cell
        sampled, plan = memory.fitting(partial(_burn_in, *arguments), plan, say)
        walkers, width = sampled.walkers, adapt_width(width, sampled.acceptance, family.cell)

    length = 20
    series, counts, acceptance = [], [], []
    while True:
        key, sub = jax.random.split(key)
        fixed = config, settings.moves, bins, length
        block, plan = memory.fitting(
            partial(_next_block, *fixed, wave, walkers, vectors, points, sub, width), plan, say
        )
        walkers = block.walkers
        series.append(np.asarray(block.series, float))
        counts.append(np.asarray(block.counts, float))
        acceptance.append(np.asarray(block.acceptance))
        done = length * len(series)
        # A chain of few sweeps cannot tell its own autocorrelation time.
        enough = done >= 60 if settings.target_error is not None else done >= min(200, settings.max_sweeps)
        late = settings.walltime is not None and time.monotonic() - begin > settings.walltime
        if done >= settings.max_sweeps or late:
            break
        if enough and _worst_error(series) <= (settings.target_error or math.inf):
            break
    return _results(model, couplings, outside, series, counts, np.mean(acceptance, 0), time.monotonic() - begin)


_sample = compiled(sampling.sample)


def _burn_in(*arguments: Any) -> sampling.Sampled:
    """Moves with the chunk of the plan, the last argument; complete before it returns, or out of memory."""
    *others, plan = arguments
    sampled: sampling.Sampled = jax.block_until_ready(_sample(*others, plan.move_chunk))
    return sampled


def _next_block(*arguments: Any) -> Block:
    """The same for a block of measurements."""
    *others, plan = arguments
    block: Block = jax.block_until_ready(_block(*others, plan.chunk, plan.move_chunk))
    return block


def _worst_error(series: list[np.ndarray]) -> float:
    energy = np.concatenate([s[TERMS.index("energy")] for s in series])
    return max(estimate(energy[:, c]).error for c in range(energy.shape[1]))


@compiled
def _block(
    config: Config,
    moves: int,
    bins: int,
    length: int,
    model: Wavefunction,
    walkers: Walkers,
    couplings: Array,
    points: Point,
    key: Key,
    width: Array,
    chunk: int,
    move_chunk: int,
) -> Block:
    """`length` measurements of every walker, `moves` moves apart, each device with its own walkers."""

    def share(model: Wavefunction, walkers: Walkers, couplings: Array, points: Point, key: Key, width: Array) -> Block:
        density = sampling.wave_density(model, points, move_chunk)
        unit = config.family.hamiltonians(couplings.astype(walkers.dtype))
        unit = replace(unit, lam=jnp.ones_like(unit.lam))

        def one(carry: Walkers, key: Key) -> tuple[Walkers, tuple[Array, Array, Array]]:
            sampled = sampling.metropolis(key, carry, density, width, moves, config.family.cell)
            m = measure(config, model, sampled.walkers, couplings, points, chunk)
            total = m.terms.total
            w = jax.vmap(moire_energy)(sampled.walkers, unit)
            gap = m.kinetic.local.real - m.kinetic.from_gradient
            kinetic = (m.terms.kinetic.real, m.terms.moire, m.terms.interaction)
            terms = jnp.stack([total.real, *kinetic, total.imag, m.kinetic.from_gradient, gap, w])
            counts = histogram(sampled.walkers, config.family.cell, bins)
            return sampled.walkers, (terms, counts, sampled.acceptance)

        walkers, (series, counts, acceptance) = jax.lax.scan(one, walkers, jax.random.split(key, length))
        return Block(walkers, acceptance.mean(0), jnp.moveaxis(series, 1, 0), devices.total(counts.sum(0)))

    inputs = (WHOLE, SPREAD, *4 * (WHOLE,))
    parts: Any = (SPREAD, WHOLE, PartitionSpec(None, None, *SPREAD), WHOLE)
    outputs = Block(*parts)
    block: Block = on_each(share, walkers.shape[1], inputs, outputs)(model, walkers, couplings, points, key, width)
    return block


def histogram(walkers: Walkers, cell: Cell, bins: int) -> Float[Array, "couplings bins bins"]:
    """Counts of electrons per bin of the supercell, [couplings, bins, bins]; all walkers together."""
    s = walkers @ jnp.asarray(np.linalg.inv(cell.vectors), walkers.dtype)
    index = jnp.floor((s - jnp.floor(s)) * bins).astype(int).clip(0, bins - 1)
    flat = index[..., 0] * bins + index[..., 1]
    count = jax.vmap(lambda x: jnp.bincount(x.ravel(), length=bins * bins))(flat)
    return count.reshape(-1, bins, bins).astype(walkers.dtype)


def initial_chains(model: Model, couplings: FloatArray, walkers: int) -> tuple[Walkers, Array]:
    """Walkers and widths of the nearest trained coupling, repeated as often as needed."""
    low, high = model.config.family.bounds()
    scale = np.where(high > low, high - low, 1.0)
    distance = np.linalg.norm((couplings[:, None] - model.trained[None]) / scale, axis=-1)
    nearest = distance.argmin(1)
    chosen = np.resize(np.arange(model.trained_walkers.shape[1]), walkers)
    return model.trained_walkers[nearest][:, chosen], jnp.asarray(model.trained_width[nearest])


def _results(
    model: Model,
    couplings: FloatArray,
    outside: list[list[str]],
    series: list[np.ndarray],
    counts: list[np.ndarray],
    acceptance: np.ndarray,
    seconds: float,
) -> list[Result]:
    all_series = np.concatenate(series, axis=1)  # [terms, sweeps, couplings, walkers]
    _, sweeps, _, walkers = all_series.shape
    family = model.config.family
    results = []
    for c, vector in enumerate(couplings):
        terms = {name: estimate(all_series[i, :, c]) for i, name in enumerate(TERMS)}
        density, error = density_estimate(np.stack([x[c] for x in counts]), family.cell, family.n_electrons)
        scale = dict(zip(family.names, vector, strict=True)).get("period_nm", family.material.period_nm)
        e0 = family.material.e0_mev * (family.material.period_nm / scale) ** 2
        results.append(
            Result(
                couplings={n: float(x) for n, x in zip(family.names, vector, strict=True)},
                n_electrons=family.n_electrons,
                e0_mev=e0,
                **terms,
                variance=terms["energy"].variance + terms["energy_imag"].variance,
                acceptance=float(acceptance[c]),
                walkers=walkers,
                sweeps=sweeps,
                seconds=seconds,
                outside=outside[c],
                density=density,
                density_error=error,
            )
        )
    return results


def density_estimate(counts: np.ndarray, cell: Cell, n_electrons: int) -> tuple[FloatArray, FloatArray]:
    """Density and its standard error from block counts [blocks, bins, bins]; it integrates to N over the supercell."""
    bins = counts.shape[-1]
    per_block = counts / counts.sum((1, 2), keepdims=True) * n_electrons * bins**2 / cell.area
    blocks = len(per_block)
    error = per_block.std(0, ddof=1) / np.sqrt(blocks) if blocks > 1 else np.full(per_block.shape[1:], np.nan)
    return per_block.mean(0), error


def symmetrised(density: FloatArray, cell: Cell) -> FloatArray:
    """Average of a map [bins, bins] over the moiré translations of the supercell."""
    bins = density.shape[0]
    shifts = np.rint(cell.translations @ np.linalg.inv(cell.vectors) * bins).astype(int)
    return np.mean([np.roll(density, tuple(s), axis=(0, 1)) for s in shifts], axis=0)


def save_json(path: Path, data: Any) -> None:
    """Write JSON atomically."""
    checkpoint.write_atomically(path, lambda p: p.write_text(json.dumps(data, indent=2) + "\n"))

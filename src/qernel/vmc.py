"""One training step: sample → local energy → gradient → solve, each a pure jitted function of the state."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from qernel.compiling import compiled
from qernel.config import Adam, Config
from qernel.devices import SPREAD, WHOLE, in_turn, mesh, on_each, place, whole
from qernel.gradient import clip_per_coupling, energy_gradient, residuals
from qernel.hamiltonian import EnergyTerms, interaction_energy, moire_energy
from qernel.laplacian import Method, kinetic_energy
from qernel.memory import Plan, make_plan
from qernel.metrics import Measured, Metrics, summarise
from qernel.pace import Pace, initial, next_pace
from qernel.sampling import Sampled, adapt_width, random_walkers, sample
from qernel.scores import Held, Streamed, score_rows
from qernel.spring import Spring, SpringInfo
from qernel.start import Point, Start, make_start
from qernel.types import Chosen, Key, PerCoupling, Walkers
from qernel.wavefunction import Wavefunction


class TrainState(NamedTuple):
    """All that is needed to go on bit for bit."""

    step: Int[Array, ""]
    key: Key
    model: Wavefunction
    optimizer: Any
    couplings: Float[Array, "couplings names"]
    walkers: Walkers
    width: PerCoupling
    pace: Pace


STAGES = ("sampling", "local energy", "gradient", "solve")
Seconds = dict[str, float]


@dataclass(frozen=True)
class Vmc:
    """The optimisation of one family: `init` makes a state, `step` advances it. Holds no arrays of its own."""

    config: Config
    method: Method = "forward"
    """how the Laplacian is computed (folx for comparisons)"""
    chosen: Plan | None = None
    """how the work is cut to size (none: chosen for this machine)"""

    @cached_property
    def plan(self) -> Plan:
        """Walkers and columns treated at once."""
        return self.chosen or make_plan(
            self.config, len(self.couplings), self.config.sampling.walkers, self.n_parameters
        )

    def with_plan(self, plan: Plan) -> Vmc:
        """The same with its work cut to other sizes."""
        if plan == self.plan:
            return self
        other = replace(self, chosen=plan)
        other.__dict__.update(start=self.start, couplings=self.couplings, points=self.points)  # not computed again
        return other

    @cached_property
    def n_parameters(self) -> int:
        """Weights that are trained."""
        model = eqx.filter_eval_shape(Wavefunction, jax.random.key(0), self.start)
        return sum(x.size for x in jax.tree.leaves(model) if jnp.issubdtype(x.dtype, jnp.inexact))

    @cached_property
    def start(self) -> Start:
        """The one-body start shared by all couplings."""
        with jax.ensure_compile_time_eval():  # it may be asked for first while a step is being traced
            return make_start(self.config.family, self.config.network)

    @cached_property
    def couplings(self) -> np.ndarray:
        """The couplings trained on, [couplings, names]."""
        return self.config.couplings

    @cached_property
    def points(self) -> Point:
        """The wavefunction's tables at these couplings."""
        return place(self.start.points(self.couplings), self.config.sampling.walkers)

    def init(self, begin: TrainState | None = None) -> TrainState:
        """Fresh weights and walkers placed at random, or those of `begin`; the walkers equilibrated."""
        state = self.blank() if begin is None else begin
        cell = self.config.family.cell
        blocks = -(-self.config.sampling.burn_in // int(state.pace.moves))
        for _ in range(blocks):
            key, sub = jax.random.split(state.key)
            sampled = self._sample(state.model, sub, state.walkers, state.width, state.pace.moves, self.points)
            width = adapt_width(state.width, sampled.acceptance, cell)
            # Widths are far off at first: adapt them faster than during training.
            for _ in range(4):
                width = adapt_width(width, sampled.acceptance, cell)
            state = state._replace(key=key, walkers=sampled.walkers, width=width)
        return state

    def blank(self) -> TrainState:
        """A state with the right shapes before any sampling (a template for restoring a checkpoint)."""
        c = self.config
        n_couplings = len(self.couplings)
        k_model, k_walkers, key = jax.random.split(jax.random.key(c.seed), 3)
        model = _make_model(k_model, self.start)
        size = (n_couplings, c.sampling.walkers, c.family.n_electrons)
        walkers = random_walkers(k_walkers, *size, c.family.cell, c.network.dtype)
        width = jnp.full(n_couplings, 0.1 / np.sqrt(c.family.n_electrons / 3))
        couplings = jnp.asarray(self.couplings)
        optimizer = self._optimizer_state(model)
        state = TrainState(jnp.zeros((), int), key, model, optimizer, couplings, walkers, width, initial(c))
        return self.placed(state)

    def placed(self, state: TrainState) -> TrainState:
        """The state laid out over the devices: walkers spread, all else on every one."""
        walkers = self.config.sampling.walkers
        return place(state, walkers)._replace(walkers=place(state.walkers, walkers, SPREAD))

    def step(self, state: TrainState) -> tuple[TrainState, Metrics, Seconds]:
        """One update of the weights; also the wall time of each stage in seconds."""
        seconds: Seconds = {}

        def timed(stage: str, f: Callable[..., Any], *args: Any) -> Any:
            begin = time.perf_counter()
            out = jax.block_until_ready(f(*args))
            seconds[stage] = time.perf_counter() - begin
            return out

        key, sub = jax.random.split(state.key)
        chains = state.walkers, state.width, state.pace.moves
        sampled = timed("sampling", self._sample, state.model, sub, *chains, self.points)
        measured = timed("local energy", self._measure, state.model, sampled.walkers, state.couplings, self.points)
        gradient = timed("gradient", self._gradient, state.model, sampled.walkers, self.points, measured.terms.total)
        model, optimizer, info = timed("solve", self._update, state.model, gradient, state.optimizer, state.step)
        pace = place(self._pace(state.pace, measured.terms.total, state.step), self.config.sampling.walkers)
        metrics = self._summarise(measured, sampled, state.width, info, state.pace.moves, pace.correlation)
        metrics = jax.device_get(metrics)
        width = adapt_width(state.width, sampled.acceptance, self.config.family.cell)
        new = TrainState(state.step + 1, key, model, optimizer, state.couplings, sampled.walkers, width, pace)
        return new, metrics, seconds

    def broken(self, model: Wavefunction, walkers: Walkers) -> Chosen:
        """Walkers without a finite local energy."""
        measured = self._measure(model, walkers, place(jnp.asarray(self.couplings), walkers.shape[1]), self.points)
        found: Chosen = ~np.asarray(self._finite(measured.terms.total))
        return found

    @compiled
    def put_anew(self, key: Key, walkers: Walkers, chosen: Chosen) -> Walkers:
        """The chosen walkers where others of their coupling are, at random; anywhere if none of a coupling is left."""
        k_which, k_where = jax.random.split(key)
        c, w, n, _ = walkers.shape
        open_to = jnp.where(chosen, -jnp.inf, 0.0)
        which = jax.random.categorical(k_which, open_to[:, None], shape=(c, w))
        others = jnp.take_along_axis(walkers, which[:, :, None, None], 1)
        anywhere = random_walkers(k_where, c, w, n, self.config.family.cell, self.config.network.dtype)
        none_left = jnp.asarray(chosen).all(1)[:, None, None, None]
        new = jnp.where(none_left, anywhere, others)
        return jnp.where(jnp.asarray(chosen)[:, :, None, None], new, walkers)

    @compiled
    def _finite(self, samples: Array) -> Array:
        return whole(jnp.isfinite(samples), samples.shape[1])

    @compiled
    def _sample(
        self, model: Wavefunction, key: Key, walkers: Walkers, width: PerCoupling, moves: Array, points: Point
    ) -> Sampled:
        return sample(model, points, key, walkers, width, moves, self.config.family.cell, self.plan.move_chunk)

    @compiled
    def _measure(self, model: Wavefunction, walkers: Walkers, couplings: Array, points: Point) -> Measured:
        share = partial(measure, self.config, chunk=self.plan.chunk, method=self.method)
        run = on_each(share, walkers.shape[1], (WHOLE, SPREAD, WHOLE, WHOLE), SPREAD)
        measured: Measured = run(model, walkers, couplings, points)
        return measured

    @compiled
    def _pace(self, pace: Pace, energy: Array, step: Array) -> Pace:
        return next_pace(self.config, pace, energy, step)

    @compiled
    def _gradient(self, model: Wavefunction, walkers: Walkers, points: Point, energy: Array) -> Any:
        clipped = clip_per_coupling(energy, self.config.clip)
        if isinstance(self.config.optimizer, Adam):
            return energy_gradient(model, walkers, points, clipped, self.plan.score_chunk)
        devices = mesh(walkers.shape[1]).size
        right, chunk = in_turn(residuals(clipped), devices).reshape(-1), self.plan.score_chunk
        if self.plan.score_blocks > 1:
            columns = devices * math.ceil(self.n_parameters / (devices * self.plan.score_blocks))
            return Streamed(model, walkers, points, chunk, columns), right
        rows = on_each(partial(score_rows, chunk=chunk), walkers.shape[1], (WHOLE, SPREAD, WHOLE), SPREAD)
        return Held(rows(model, walkers, points)), right

    @compiled
    def _update(self, model: Wavefunction, gradient: Any, optimizer: Any, step: Array) -> Any:
        params = eqx.filter(model, eqx.is_inexact_array)
        if isinstance(self.config.optimizer, Spring):
            scores, residual = gradient
            solve = on_each(
                self.config.optimizer.update, self.config.sampling.walkers, (scores.layout(), *3 * (WHOLE,)), WHOLE
            )
            flat, optimizer, info = solve(scores, residual, optimizer, step)
            _, unravel = ravel_pytree(params)
            return eqx.apply_updates(model, unravel(flat)), optimizer, info
        change, optimizer = adam(self.config.optimizer).update(gradient, optimizer, params)
        info = SpringInfo(optax.tree.norm(change), jnp.ones(()), jnp.zeros(()), jnp.full((), jnp.nan))
        return eqx.apply_updates(model, change), optimizer, info

    @compiled
    def _summarise(self, *parts: Any) -> Metrics:
        return summarise(*parts)

    def _optimizer_state(self, model: Wavefunction) -> Any:
        if isinstance(self.config.optimizer, Adam):
            return adam(self.config.optimizer).init(eqx.filter(model, eqx.is_inexact_array))
        return self.config.optimizer.init(self.n_parameters, self.config.network.dtype)


_make_model = compiled(Wavefunction)
"""As one program: a hundred small ones take seconds to compile."""


def adam(settings: Adam) -> optax.GradientTransformation:
    """Adam with rate/(1 + t/decay)."""
    return optax.adam(lambda t: settings.rate / (1 + t / settings.decay))


def measure(
    config: Config,
    model: Wavefunction,
    walkers: Walkers,
    couplings: Array,
    points: Point,
    chunk: int | None = None,
    method: Method = "forward",
) -> Measured:
    """Local energy of every walker by term, and its kinetic energy two ways, `chunk` walkers at a time."""
    kinetic = kinetic_energy(model, walkers, points, chunk, method)
    hamiltonians = config.family.hamiltonians(couplings.astype(walkers.dtype))
    moire = jax.vmap(moire_energy)(walkers, hamiltonians)
    interaction = jax.vmap(interaction_energy)(walkers, hamiltonians)
    return Measured(EnergyTerms(kinetic.local, moire, interaction), kinetic)

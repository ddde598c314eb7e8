"""Small models whose state is known, and walkers to measure them with."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from qernel.cell import Cell
from qernel.config import Config, Sampling
from qernel.evaluate import Model
from qernel.family import Family
from qernel.observables import known
from qernel.observables.interface import Record, Sums, Sweep, group_of, groups, sum_groups
from qernel.presets import EXACT
from qernel.sampling import random_walkers
from qernel.units import Material
from qernel.vmc import Vmc
from qernel.wavefunction import log_psi

FREE = Material(epsilon=float("inf"))
"""no interaction: the start is exact"""
TORUS = Cell(supercell=((1, 1), (2, -1)))
"""the three-cell √3×√3 torus"""
NETWORK = replace(EXACT, heads=0, experts=0, film_width=0, jastrow_shells=2, plane_wave_cutoff=60.0)


def config(network=NETWORK, walkers=64, **family):
    family = {"lam": (0.0, 0.0, 1), "material": FREE, **family}
    return Config(family=Family(**family), network=network, sampling=Sampling(walkers=walkers, burn_in=60), steps=0)


def model_of(c):
    """The untrained model, its walkers placed at random."""
    vmc = Vmc(c)
    state = vmc.blank()
    return Model(c, state.model, vmc.couplings, state.walkers, np.asarray(state.width), 0, {})


def finalised(model, name, walkers=None, couplings=None, **settings):
    """Quantities of one observable from these walkers [couplings, walkers, N, 2] alone (default: the model's own)."""
    couplings = model.trained if couplings is None else couplings
    walkers = model.trained_walkers if walkers is None else walkers
    observable = replace(known(model.config.family)[name], **settings)
    start = model.wavefunction.start
    assert observable.missing(start, couplings) is None
    sweep = Sweep(
        model.config,
        model.wavefunction,
        walkers,
        jnp.asarray(couplings),
        model.points(couplings),
        jax.random.key(3),
        64,
        64,
    )
    sums = jax.jit(lambda tables: sum_groups(observable.evaluate(sweep, tables)))(observable.tables(start, couplings))
    n = walkers.shape[1]
    counts = np.bincount(group_of(n), minlength=groups(n)).astype(float)
    record = Record(Sums({}, np.zeros(1)).plus(sums, counts))
    return observable.finalise(record, start, couplings)


def exact_walkers(model, number, seed=7):
    """Independent samples of |ψ|² at every trained coupling, by rejection: [couplings, number, N, 2]."""
    c, points = model.config, model.points(model.trained)
    log_density = jax.jit(lambda r: 2 * log_psi(model.wavefunction, r, points).real)
    couplings, rng, found, most = len(model.trained), np.random.default_rng(seed), None, None
    for turn in range(200):
        key = jax.random.key(seed * 1000 + turn)
        r = random_walkers(key, couplings, 8192, c.family.n_electrons, c.family.cell, c.network.dtype)
        values = np.asarray(log_density(r))
        if most is None:
            # Half as much again as the largest of many: a density is smooth where it is largest.
            most, found = values.max(1) + np.log(1.5), [[] for _ in range(couplings)]
        assert (values.max(1) < most).all()
        keep = np.log(rng.uniform(size=values.shape)) < values - most[:, None]
        for i, ok in enumerate(keep):
            found[i].extend(np.asarray(r[i])[ok])
        if min(map(len, found)) >= number:
            return jnp.asarray(np.stack([x[:number] for x in found]))
    raise AssertionError("too few accepted")


def ideal(c, walkers, seed=1):
    """Electrons placed at random, independent of each other."""
    return random_walkers(jax.random.key(seed), 1, walkers, c.family.n_electrons, c.family.cell, c.network.dtype)


def close(q, expected, sigmas=5.0, floor=1e-9):
    """Every component within that many of its error bars, and the error bars of the right size on average."""
    deviation = np.abs(np.asarray(q.value) - expected) / (q.error + floor)
    assert deviation.max() < sigmas, deviation.max()
    return np.sqrt(np.mean(deviation**2))

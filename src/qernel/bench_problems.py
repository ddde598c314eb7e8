"""The systems and networks that are timed."""

from __future__ import annotations

import bisect
import math
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from qernel.cell import Cell
from qernel.config import Config, Sampling
from qernel.family import Family
from qernel.network import Network
from qernel.sizes import parameters as weights_of
from qernel.start import Point, make_start
from qernel.types import Walkers
from qernel.wavefunction import Wavefunction

SUPERCELLS = {
    6: ((3, 0), (0, 3)),
    18: ((3, 3), (-3, 6)),
    54: ((9, 0), (0, 9)),
    150: ((15, 0), (0, 15)),
}
"""N electrons at filling 2/3"""

COMMON = Network(layers=4, width=64, heads=4, kv_heads=1, experts=0, shared_width=64, determinants=2)
"""The network of the local-energy comparison: shared keys, FiLM, no routed experts."""

EXPERTS = replace(COMMON, experts=16, top_k=2, expert_width=64)
"""16 experts, two of them open, and a shared one."""


WIDEST = 2048
"""of a PsiFormer that is chosen by its number of weights"""


def family(n: int) -> Family:
    """N polarised electrons at λ = 1 and filling 2/3."""
    return Family(n_up=n, lam=(1.0, 1.0, 1), cell=Cell(supercell=SUPERCELLS[n]))


def psiformer(width: int = 64) -> Network:
    """PsiFormer (arXiv:2211.13672) of the published moiré settings, arXiv:2502.05383: 4 layers, 4 heads, complex
    determinants; every query its own key, perceptrons as wide as the features, random start."""
    return Network(
        layers=4,
        width=width,
        heads=4,
        kv_heads=4,
        experts=0,
        shared_width=width,
        film_width=0,
        determinants=4,
        init="random",
    )


def psiformer_of(f: Family, parameters: int) -> Network:
    """The PsiFormer whose number of weights is nearest to that given.

    Of those that are possible: N random orbitals need N − 1 features, or the determinant is zero.
    """

    def weights(width: int) -> int:
        return weights_of(Config(family=f, network=psiformer(width)))  # without its starting orbitals

    # The number of weights grows with the width.
    widths = range(4 * max(2, math.ceil((f.n_electrons - 1) / 4)), WIDEST + 1, 4)
    k = bisect.bisect_left(widths, parameters, key=weights)
    return psiformer(min(widths[max(0, k - 1) : k + 1], key=lambda width: abs(weights(width) - parameters)))


def count(f: Family, network: Network) -> tuple[int, int]:
    """Weights of a network, all and active."""
    start = make_start(f, network)
    model: Wavefunction = eqx.filter_eval_shape(Wavefunction, jax.random.key(0), start)
    return model.parameter_count()


def config(n: int, network: Network, walkers: int, sweeps: int = 10) -> Config:
    """A run at λ = 1."""
    return Config(
        name="bench", family=family(n), network=network, sampling=Sampling(walkers=walkers, sweeps=sweeps), steps=1
    )


def problem(n: int, network: Network, walkers: int) -> tuple[Wavefunction, Walkers, Point]:
    """A model with random weights, random walkers [1, walkers, N, 2] and the tables at λ = 1."""
    f = family(n)
    start = make_start(f, network)
    model = Wavefunction(jax.random.key(0), start)
    fraction = np.random.default_rng(0).random((1, walkers, n, 2))
    return model, jnp.asarray(fraction @ f.cell.vectors, network.dtype), start.points(f.grid())

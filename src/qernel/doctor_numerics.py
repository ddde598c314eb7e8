"""Known answers on the device that computes: special functions, linear algebra, and short runs of VMC.

Rounding is counted in units of ε of the precision at hand, times what the problem itself magnifies it by, so that a
bound is a small number on any device: a correct one has about 1 (measured: beside each bound), one that rounds operands
to tf32 or bfloat16 has 10³ to 10⁵ where single precision is asked for.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.special

from qernel import analytic, ewald, exact, jets_head, measuring, spring
from qernel.cell import FloatArray
from qernel.compiling import compiled
from qernel.config import Config, Sampling
from qernel.doctor_machine import Check, Verdict, judged
from qernel.network import Network
from qernel.presets import EXACT, preset
from qernel.result import Settings
from qernel.stats import format_uncertainty
from qernel.vmc import Metrics, Vmc

SINGLE = np.dtype(Network().dtype)
"""precision of weights and walkers, as in every preset that is trained"""

BROKEN = "the device or its libraries compute wrongly: try another jaxlib or driver, or JAX_PLATFORMS=cpu"


def _units(error: Any, magnified: Any, dtype: Any) -> float:
    """Largest error, in units of ε times what the problem magnifies it by; NaN and infinity stay what they are."""
    return float(np.max(np.abs(error) / (np.finfo(dtype).eps * magnified)))


def erfc() -> Check:
    """The erfc of the Ewald sum over its range: to 10⁻¹⁰ it ends at √(ln 10¹⁰) + 0.3 = 5.1.

    A rounding of x changes erfc(x) by 2x² ε of itself, and exp(−x²) within it has as much. Measured 1.7, bound 8.
    """
    x = np.linspace(0, 5.1, 20_001, dtype=SINGLE)
    known = scipy.special.erfc(x.astype(float))
    error = np.asarray(compiled(ewald.jax_erfc)(x), float) - known
    units = _units(error, known * (1 + 2 * x.astype(float) ** 2), SINGLE)
    return judged("erfc", units, 8, "ε(1 + 2x²)", BROKEN)


def _matrices(n: int = 24, count: int = 64) -> Any:
    parts = np.random.default_rng(1).normal(size=(2, count, n, n)).astype(SINGLE)
    return parts[0] + 1j * parts[1]


def slogdet() -> Check:
    """log det of the wavefunction, with its sign, and log det with the inverse of the local energy: complex matrices.

    LU with pivoting is exact for a matrix changed by a few ε‖A‖, and log det then changes by tr(A⁻¹δA), at most
    ε‖A‖‖A⁻¹‖ (Frobenius norms); so does the inverse, relative to its norm. Measured 0.25, bound 2.
    """
    a = _matrices()
    wide = a.astype(complex)
    sign, size = np.linalg.slogdet(wide)
    inverse = np.linalg.inv(wide)
    ours, ours_size = (np.asarray(x) for x in compiled(jnp.linalg.slogdet)(a))
    value, ours_inverse = (np.asarray(x) for x in compiled(jets_head._log_det_inverse)(a))
    norms = np.linalg.norm(wide, axis=(1, 2)) * np.linalg.norm(inverse, axis=(1, 2))
    errors = (
        np.log(ours / sign) + ours_size - size,
        np.exp(1j * value.imag) / sign - 1 + value.real - size,
        np.linalg.norm(ours_inverse - inverse, axis=(1, 2)) / np.linalg.norm(inverse, axis=(1, 2)),
    )
    units = float(np.max([_units(e, norms, SINGLE) for e in errors]))
    return judged("slogdet, complex", units, 2, "ε‖A‖‖A⁻¹‖", BROKEN)


def cholesky() -> Check:
    """Cholesky and solve of the natural gradient, in double precision: a singular Gram matrix with its damping.

    The solution is exact for a matrix changed by a few ε of its norm, so it changes by at most its condition number
    times that, relative to its norm. Measured 0.13, bound 4; infinite if Cholesky was given up.
    """
    random, damping = np.random.default_rng(2), 1e-3
    rows = random.normal(size=(192, 128))
    gram, right = rows @ rows.T / 128, random.normal(size=192)
    solution, fallback = compiled(spring.solve_guarded)(jnp.asarray(gram), jnp.asarray(right), damping)
    regular = gram + damping * np.eye(192)
    known = scipy.linalg.solve(regular, right, assume_a="pos")
    norm = float(np.linalg.norm(known))
    units = _units(np.linalg.norm(np.asarray(solution) - known), np.linalg.cond(regular) * norm, np.float64)
    return judged("Cholesky and solve", units if float(fallback) == 0 else float("inf"), 4, "ε cond(A)", BROKEN)


def product() -> Check:
    """A matrix product of 64 terms as every program here asks for it (`compiling.PRODUCTS`).

    Each rounding is at most ε/2 of Σ|a||b|, and they add up like noise. Measured 2.0, bound 8; with operands rounded
    to tf32 it is 2300, to bfloat16 17000.
    """
    random = np.random.default_rng(3)
    a, b = (random.normal(size=(256, 64)).astype(SINGLE) for _ in range(2))
    wide = a.astype(float), b.astype(float).T
    error = np.asarray(compiled(jnp.matmul)(a, b.T), float) - wide[0] @ wide[1]
    units = _units(error, np.abs(wide[0]) @ np.abs(wide[1]), SINGLE)
    advice = "products are rounded: is an option in XLA_FLAGS or a driver's setting above what the program asks for?"
    return judged("matrix products", units, 8, "ε Σ|a||b|", advice)


def free_electrons() -> Check:
    """Seven free electrons at a generic twist: every walker has the energy Σ½k², exactly.

    Double precision; the larger of the spread of the local energy and the distance of its mean from the closed form.
    Near a node 1/ψ magnifies ε by 10⁵ at worst here, of an energy of 18 E0. Measured 3·10⁻¹⁴, bound 10⁻⁹.
    """
    config = preset("free-n7")
    vmc, walkers = Vmc(config), 64
    state = vmc.blank()
    settings = Settings(walkers=walkers, moves=1, burn_in=0, max_sweeps=20, observables=("energy",))
    chains = state.walkers[:, :walkers], state.width
    result = measuring.sample(config, state.model, *chains, vmc.couplings, settings)[0]
    known = analytic.free_electron_energy(config.family.hamiltonian(jnp.asarray(vmc.couplings[0])))
    error = float(np.max([abs(result.energy.mean - known), np.sqrt(result.variance)]))
    return judged("free electrons, exact energy", error, 1e-9, "E0", BROKEN)


PAIR = Config(
    family=replace(preset("moire-n2").family, lam=(1.0, 1.0, 1)),
    network=replace(
        EXACT,
        dtype=Network().dtype,
        heads=0,
        experts=0,
        film_width=0,
        width=16,
        shared_width=16,
        determinants=4,
        jastrow_shells=6,
        plane_wave_cutoff=100.0,
    ),
    sampling=Sampling(walkers=256, sweeps=10),
    steps=32,
)
"""Two interacting electrons on the three-cell torus: what a step does, in a second."""


def two_electrons() -> list[Check]:
    """A training run of 32 steps: energy against exact diagonalisation, kinetic energy two ways, seconds of a step.

    Means over the last 16 steps. Every energy is an upper bound of the ground state's, which ten bands have within
    0.005 E0 (eight bands: 0.002 above ten): not below it by more than four errors and 0.01. The start lies 1 E0 above
    it and the trained state 0.02 to 0.08 (ten seeds), so not above it by more than 0.3.
    """
    vmc = Vmc(PAIR)
    state, seen, begin = vmc.init(), [], time.monotonic()
    for step in range(PAIR.steps):
        state, metrics, _ = vmc.step(state)
        begin = begin if step else time.monotonic()  # the first one compiles
        seen.append(metrics)
    seconds = (time.monotonic() - begin) / (PAIR.steps - 1)
    last = seen[PAIR.steps // 2 :]
    energy, error, gap = _means(last)
    h = PAIR.family.hamiltonian(jnp.asarray(vmc.couplings[0]))
    known = exact.ground_state_energy(h, bands=10)
    low, high = known - 4 * error - 0.01, known + 0.3
    found = f"{format_uncertainty(energy, error)} E0; {1e3 * seconds:.0f} ms a step"
    bound = f"{low:.2f} to {high:.2f}, exact {known:.3f}"
    verdict: Verdict = "ok" if low <= energy <= high else "FAILED"
    return [
        Check("two electrons, trained", found, bound, verdict, BROKEN, energy, high),
        judged("kinetic energy two ways", abs(gap), 5, "σ", BROKEN),
    ]


def _means(last: list[Metrics]) -> tuple[float, float, float]:
    """Mean energy with its error, and mean kinetic gap in units of its own, over steps whose walkers are correlated."""

    def series(name: str) -> FloatArray:
        return np.array([getattr(m, name)[0] for m in last], float)

    correlation = float(np.clip(last[-1].energy_correlation, 0.0, 0.9))
    independent = len(last) * (1 - correlation) / (1 + correlation)
    error = float(np.sqrt(np.mean(series("error") ** 2) / independent))
    return float(series("energy").mean()), error, float(series("kinetic_gap").mean() * np.sqrt(independent))


CHECKS = (erfc, slogdet, cholesky, product, free_electrons, two_electrons)

"""Energy gradient with respect to the weights, with every average taken for each coupling by itself.

    dE/dp = 2 Re⟨conj(E_L − ⟨E_L⟩) ∂_p log ψ⟩,       E = mean of E(c) over the couplings.

For real weights and complex log ψ = a + iφ it is XᵀΔ·2 with the centred rows X = (∂a, ∂φ)/√walkers (`scores.py`) and
Δ = (Re, Im)(E_L − ⟨E_L⟩)/√walkers: every second row is the force on the phase.
"""

from __future__ import annotations

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qernel.chunks import sum_chunks
from qernel.devices import SPREAD, WHOLE, on_each, total
from qernel.start import Point
from qernel.types import ComplexSamples, Samples, Walkers
from qernel.wavefunction import Wavefunction


def clip_per_coupling(energy: ComplexSamples, width: float) -> ComplexSamples:
    """Local energies clipped to median ± width × mean absolute deviation, real and imaginary part, per coupling."""

    def clip(x: Samples) -> Samples:
        centre = jnp.median(x, axis=1, keepdims=True)
        reach = width * jnp.mean(jnp.abs(x - centre), axis=1, keepdims=True)
        return jnp.clip(x, centre - reach, centre + reach)

    return jax.lax.complex(clip(energy.real), clip(energy.imag))


def residuals(energy: ComplexSamples) -> Float[Array, "couplings walkers two"]:
    """Δ: (Re, Im) of E_L − ⟨E_L⟩_c over √walkers, the number of all walkers."""
    centred = energy - energy.mean(axis=1, keepdims=True)
    return jnp.stack([centred.real, centred.imag], axis=-1) / energy.size**0.5


def weighted_scores(
    model: Wavefunction, walkers: Walkers, points: Point, weights: ComplexSamples, chunk: int | None = None
) -> Wavefunction:
    """Σ Re[conj(weight) ∂_p log ψ] over the walkers of all devices, as a pytree like the model.

    One reverse pass for each chunk of walkers.
    """
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def some(electrons: Array, points: Point, weights: Array) -> Wavefunction:
        def weighted(params: Wavefunction) -> Float[Array, ""]:
            value = jax.vmap(eqx.combine(params, static))(electrons, points)
            return jnp.sum(jnp.real(jnp.conj(weights) * value))

        return jax.grad(weighted)(params)

    summed: Wavefunction = sum_chunks(some, walkers, points, weights, chunk)
    return total(summed)


def energy_gradient(
    model: Wavefunction, walkers: Walkers, points: Point, energy: ComplexSamples, chunk: int | None = None
) -> Wavefunction:
    """dE/dp as a pytree like the model (for first-order optimisers)."""
    delta = energy - energy.mean(axis=1, keepdims=True)
    run = on_each(partial(weighted_scores, chunk=chunk), walkers.shape[1], (WHOLE, SPREAD, WHOLE, SPREAD), WHOLE)
    gradient: Wavefunction = run(model, walkers, points, 2 * delta / delta.size)
    return gradient

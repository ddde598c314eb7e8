"""Energy gradient with respect to the weights, with every average taken for each coupling by itself.

    dE/dp = 2 Re⟨conj(E_L − ⟨E_L⟩) ∂_p log ψ⟩,       E = mean of E(c) over the couplings.

For real weights and complex log ψ = a + iφ it is XᵀΔ·2 with the centred rows X = (∂a, ∂φ)/√M and
Δ = (Re, Im)(E_L − ⟨E_L⟩)/√M: the second half is the force on the phase.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from qernel.laplacian import map_walkers
from qernel.types import ComplexSamples, Samples, Walkers
from qernel.wavefunction import Point, Wavefunction

Rows = Float[Array, "couplings two walkers parameters"]


def clip_per_coupling(energy: ComplexSamples, width: float) -> ComplexSamples:
    """Local energies clipped to median ± width × mean absolute deviation, real and imaginary part, per coupling."""

    def clip(x: Samples) -> Samples:
        centre = jnp.median(x, axis=1, keepdims=True)
        reach = width * jnp.mean(jnp.abs(x - centre), axis=1, keepdims=True)
        return jnp.clip(x, centre - reach, centre + reach)

    return jax.lax.complex(clip(energy.real), clip(energy.imag))


def residuals(energy: ComplexSamples) -> Float[Array, "couplings two walkers"]:
    """Δ: (Re, Im) of E_L − ⟨E_L⟩_c over √M, M the number of all walkers."""
    centred = energy - energy.mean(axis=1, keepdims=True)
    return jnp.stack([centred.real, centred.imag], axis=1) / energy.size**0.5


def score_rows(model: Wavefunction, walkers: Walkers, points: Point, chunk: int | None = None) -> Rows:
    """X: ∂(log|ψ|, arg ψ)/∂p of each walker, centred per coupling, over √M, [couplings, 2, walkers, P]."""
    params, static = eqx.partition(model, eqx.is_inexact_array)
    flat, unravel = ravel_pytree(params)

    def parts(flat: Float[Array, " P"], electrons: Float[Array, "electrons 2"], point: Point) -> Float[Array, " two"]:
        value = eqx.combine(unravel(flat), static)(electrons, point)
        return jnp.stack([value.real, value.imag])

    def one(electrons: Float[Array, "couplings electrons 2"]) -> Float[Array, "couplings two P"]:
        return jax.vmap(jax.jacrev(parts), (None, 0, 0))(flat, electrons, points)

    rows = jnp.moveaxis(map_walkers(one, walkers, chunk), 2, 1)
    rows = rows - rows.mean(axis=2, keepdims=True)
    return rows / (walkers.shape[0] * walkers.shape[1]) ** 0.5


def energy_gradient(model: Wavefunction, walkers: Walkers, points: Point, energy: ComplexSamples) -> Wavefunction:
    """dE/dp as a pytree like the model, by one reverse pass (for first-order optimisers)."""
    delta = energy - energy.mean(axis=1, keepdims=True)

    def surrogate(model: Wavefunction) -> Float[Array, ""]:
        value = jax.vmap(lambda r, p: model(r, p))(walkers, points)
        return 2 * jnp.mean(jnp.real(jnp.conj(delta) * value))

    return eqx.filter_grad(surrogate)(model)

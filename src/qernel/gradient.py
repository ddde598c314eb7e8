"""Energy gradient with respect to the weights, with every average taken for each coupling by itself.

    dE/dp = 2 Re⟨conj(E_L − ⟨E_L⟩) ∂_p log ψ⟩,       E = mean of E(c) over the couplings.

For real weights and complex log ψ = a + iφ it is XᵀΔ·2 with the centred rows X = (∂a, ∂φ)/√M and
Δ = (Re, Im)(E_L − ⟨E_L⟩)/√M: the second half is the force on the phase.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qernel.laplacian import map_chunks
from qernel.types import ComplexSamples, Samples, Walkers
from qernel.wavefunction import Point, Wavefunction

Rows = Float[Array, "M P"]
"""X, M = couplings × 2 × walkers rows ordered as `residuals(...).reshape(-1)`, columns as `ravel_pytree(weights)`."""


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
    """X: ∂(log|ψ|, arg ψ)/∂p of each walker, centred per coupling, over √M, [M, P]."""
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def one(electrons: Float[Array, "electrons 2"], point: Point) -> tuple[Wavefunction, Wavefunction]:
        def parts(params: Wavefunction) -> tuple[Float[Array, ""], Float[Array, ""]]:
            value = eqx.combine(params, static)(electrons, point)
            return value.real, value.imag

        (re, im), pull = jax.vjp(parts, params)
        one, zero = jnp.ones_like(re), jnp.zeros_like(im)
        # Two pulls in a row: as one batched pull (jacrev) XLA's CPU code is several times slower.
        return pull((one, zero))[0], pull((zero, one))[0]

    re, im = map_chunks(lambda r: jax.vmap(jax.vmap(one, (0, None)))(r, points), walkers, chunk)
    size = walkers.shape[0] * walkers.shape[1]

    def centred(x: Float[Array, "couplings walkers ..."], y: Float[Array, "couplings walkers ..."]) -> Array:
        both = jnp.stack([x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)], axis=1)
        return both.reshape(2 * size, -1) / size**0.5

    # Joined only here: flattening inside the batched pull is several times slower.
    return jnp.concatenate(jax.tree.leaves(jax.tree.map(centred, re, im)), axis=1)


def energy_gradient(model: Wavefunction, walkers: Walkers, points: Point, energy: ComplexSamples) -> Wavefunction:
    """dE/dp as a pytree like the model, by one reverse pass (for first-order optimisers)."""
    delta = energy - energy.mean(axis=1, keepdims=True)

    def surrogate(model: Wavefunction) -> Float[Array, ""]:
        value = jax.vmap(lambda r, p: model(r, p))(walkers, points)
        return 2 * jnp.mean(jnp.real(jnp.conj(delta) * value))

    return eqx.filter_grad(surrogate)(model)

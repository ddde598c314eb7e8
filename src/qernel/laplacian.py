"""Kinetic energy of log ψ: value, gradient and Laplacian in one forward pass.

    T_L = −½ Σ_i [∇_i² log ψ + (∇_i log ψ)²]   (complex),       ⟨T_L⟩ = ⟨½ Σ_i |∇_i log ψ|²⟩ for a C¹ ψ.

The forward Laplacian (arXiv:2307.08214) is done by folx; nothing outside this file knows.
"""

from __future__ import annotations

from typing import NamedTuple

import folx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float

from qernel.types import ComplexPerWalker, LogPsi, PerWalker
from qernel.wavefunction import Point, Wavefunction


class Kinetic(NamedTuple):
    """Kinetic energy of each walker two ways, E0, and log ψ itself."""

    local: ComplexPerWalker
    """−½ Σ_i [∇_i² log ψ + (∇_i log ψ)²]"""
    from_gradient: PerWalker
    """½ Σ_i |∇_i log ψ|²"""
    log_psi: LogPsi


def value_gradient_laplacian(
    model: Wavefunction, electrons: Float[Array, "electrons 2"], point: Point
) -> tuple[Complex[Array, ""], Complex[Array, " coordinates"], Complex[Array, ""]]:
    """log ψ, ∇ log ψ [2N] and ∇² log ψ of one walker at one coupling."""
    out = folx.forward_laplacian(lambda r: model(r, point))(electrons)
    return out.x, out.jacobian.dense_array, out.laplacian


def kinetic_energy(
    model: Wavefunction,
    walkers: Float[Array, "couplings walkers electrons 2"],
    points: Point,
    chunk: int | None = None,
) -> Kinetic:
    """Kinetic energy of walkers [couplings, walkers, N, 2], each at its own coupling.

    `chunk` is the number of walkers per coupling treated at once (default all); results do not depend on it.
    """

    def one_walker(electrons: Float[Array, "electrons 2"], point: Point) -> Kinetic:
        value, gradient, laplacian = value_gradient_laplacian(model, electrons, point)
        local = -0.5 * (laplacian + jnp.sum(gradient * gradient))
        return Kinetic(local, 0.5 * jnp.sum(jnp.real(gradient * jnp.conj(gradient))), value)

    return map_walkers(lambda electrons: jax.vmap(one_walker)(electrons, points), walkers, chunk)


def map_walkers(f, walkers: Float[Array, "couplings walkers *rest"], chunk: int | None):  # type: ignore[no-untyped-def]
    """Apply f: [couplings, *rest] → pytree of [couplings, …] to every walker, `chunk` walkers at a time."""
    by_walker = jnp.moveaxis(walkers, 1, 0)
    size = by_walker.shape[0]
    whole = chunk is None or chunk >= size
    out = jax.vmap(f)(by_walker) if whole else jax.lax.map(f, by_walker, batch_size=chunk)
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), out)

"""Kinetic energy of log ψ: value, gradient and Laplacian in one forward pass.

    T_L = −½ Σ_i [∇_i² log ψ + (∇_i log ψ)²]   (complex),       ⟨T_L⟩ = ⟨½ Σ_i |∇_i log ψ|²⟩ for a C¹ ψ.

Forward Laplacian (arXiv:2307.08214), with a rule per layer: `jets.py` for the trunk, `jets_attention.py`,
`jets_experts.py`, `jets_head.py` for orbitals, determinants and the pair factor. folx is kept as an oracle.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import equinox as eqx
import folx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qernel.chunks import map_chunks
from qernel.jets import Jet, film, linear, phases, spread
from qernel.jets_attention import attention
from qernel.jets_experts import experts
from qernel.jets_head import LogPsiJet, log_psi_jet
from qernel.moe import with_experts
from qernel.start import Point
from qernel.types import ComplexPerWalker, LogPsi, PerWalker
from qernel.wavefunction import Block, Wavefunction

Method = Literal["forward", "folx"]


class Kinetic(NamedTuple):
    """Kinetic energy of each walker two ways, E0, and log ψ itself."""

    local: ComplexPerWalker
    """−½ Σ_i [∇_i² log ψ + (∇_i log ψ)²]"""
    from_gradient: PerWalker
    """½ Σ_i |∇_i log ψ|²"""
    log_psi: LogPsi


def value_gradient_laplacian(
    model: Wavefunction, electrons: Float[Array, "walkers electrons 2"], points: Point
) -> LogPsiJet:
    """log ψ, ∇ log ψ [walkers, 2N] and ∇² log ψ of walkers, each at its own coupling (points [walkers, …])."""
    embedding = jax.vmap(model.embedding)(points)
    return log_psi_jet(model, electrons, features(model, electrons, embedding), embedding, points)


def features(
    model: Wavefunction, electrons: Float[Array, "walkers electrons 2"], embedding: Float[Array, "walkers n_embed"]
) -> Jet:
    """Jet of the features after the trunk. All blocks but the first share compiled code."""
    arrays, static = eqx.partition(model.blocks, eqx.is_array)

    def apply(x: Jet, a: Block) -> tuple[Jet, None]:
        return block(eqx.combine(a, static), x, embedding), None

    first, rest = (jax.tree.map(lambda a, part=part: a[part], arrays) for part in (0, slice(1, None)))
    x, _ = apply(linear(model.lift, phases(model, electrons)), first)
    if model.start.network.layers > 1:
        x, _ = jax.lax.scan(apply, x, rest)
    return spread(x, electrons.shape[1])


def block(b: Block, x: Jet, embedding: Float[Array, "walkers n_embed"]) -> Jet:
    """x + attention(film(x)), then x + experts(film(x))."""
    n = x.value.shape[0] // embedding.shape[0]
    if b.attention is not None and b.film_attention is not None:
        x = spread(x, n) + attention(b.attention, film(b.film_attention, x, embedding), n)
    return x + experts(b.experts, film(b.film_experts, x, embedding))


def by_folx(model: Wavefunction, electrons: Float[Array, "walkers electrons 2"], points: Point) -> LogPsiJet:
    """The same by folx, walker by walker: the oracle of tests and the baseline of benchmarks."""
    model = with_experts(model, sparse=False)  # folx has no rule for a choice that depends on data

    def one(r: Float[Array, "electrons 2"], point: Point) -> LogPsiJet:
        out = folx.forward_laplacian(lambda r: model(r, point))(r)
        return LogPsiJet(out.x, out.jacobian.dense_array, out.laplacian)

    return jax.vmap(one)(electrons, points)


def kinetic_energy(
    model: Wavefunction,
    walkers: Float[Array, "couplings walkers electrons 2"],
    points: Point,
    chunk: int | None = None,
    method: Method = "forward",
) -> Kinetic:
    """Kinetic energy of walkers [couplings, walkers, N, 2], each at its own coupling, `chunk` of them at a time."""
    jet = value_gradient_laplacian if method == "forward" else by_folx

    def some(electrons: Float[Array, "chunk electrons 2"], points: Point) -> Kinetic:
        value, gradient, laplacian = jet(model, electrons, points)
        local = -0.5 * (laplacian + jnp.sum(gradient * gradient, -1))
        squared = jnp.sum(jnp.real(gradient * jnp.conj(gradient)), -1)
        return Kinetic(local, 0.5 * squared, value)

    kinetic: Kinetic = map_chunks(some, walkers, points, chunk)
    return kinetic

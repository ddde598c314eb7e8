"""SPRING: natural gradient in sample space with momentum. arXiv:2401.10190 (MinSR: arXiv:2302.01941).

With X [M, P] of `scores.py` and the residuals Δ [M] of `gradient.py`, the direction minimises
|Xδ − Δ|² + κ|δ − μδ'|², δ' the direction before:

    δ = μδ' + Xᵀ (XXᵀ + κ)⁻¹ (Δ − μXδ'),     p ← p − η δ.

Two bounds shorten ηδ: that of its own length, and that of the change it makes to log ψ, whose mean square over all
walkers is |ηXδ|². Near the ground state Xδ ≈ Δ, so that the change grows with the spread of the local energies, √N for
N electrons, which no rate that is chosen for a few electrons foresees.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from qernel.errors import require
from qernel.scores import Scores


@dataclass(frozen=True)
class Spring:
    """SPRING settings. Raises `InputError` for a value out of range."""

    rate: float = 0.1
    """η at the start, 1/E0"""
    decay: float = 2000.0
    """η(t) = rate / (1 + t/decay)"""
    damping: float = 1e-3
    """κ; more where XXᵀ would be worse conditioned than `CONDITION`"""
    momentum: float = 0.9
    """μ; 0 is MinSR"""
    max_norm: float = 0.3
    """bound of |ηδ|, scaled with η(t)/rate"""
    max_change: float = 0.3
    """bound of the root mean square change of log ψ, likewise"""

    def __post_init__(self) -> None:
        for name in ("rate", "decay", "damping", "max_norm", "max_change"):
            require(0 < getattr(self, name) < float("inf"), f"optimizer.{name}", getattr(self, name), "positive")
        require(0 <= self.momentum < 1, "optimizer.momentum", self.momentum, "from 0 to below 1")

    def init(self, n_parameters: int, dtype: str) -> SpringState:
        """No direction yet."""
        return SpringState(jnp.zeros(n_parameters, dtype))

    def update(
        self,
        scores: Scores,
        residual: Float[Array, " M"],
        state: SpringState,
        step: Float[Array, ""] | Int[Array, ""] | float,
    ) -> tuple[Float[Array, " P"], SpringState, SpringInfo]:
        """The change of the parameters, [P], the new state, and what happened.

        Args:
            scores: X, over the square root of the number of walkers.
            residual: Δ, likewise.
            state: δ'.
            step: t of the rate.
        """
        previous = self.momentum * state.direction
        gram, seen = scores.gram_and_times(previous)
        largest = largest_eigenvalue(gram, residual)
        damping = jnp.maximum(self.damping, largest / CONDITION)
        solution, fallback = solve_guarded(gram, (residual - seen).astype(gram.dtype), damping)
        direction = previous + scores.transpose_times(solution.astype(previous.dtype))[: previous.size]
        shrink = 1 / (1 + jnp.asarray(step, jnp.float32) / self.decay)
        length = self.rate * jnp.linalg.norm(direction)
        change_of_log_psi = self.rate * jnp.linalg.norm(seen + gram @ solution)
        scale = jnp.minimum(1.0, self.max_norm / (length + 1e-30))
        scale = jnp.minimum(scale, self.max_change / (change_of_log_psi + 1e-30)).astype(previous.dtype)
        change = (-self.rate * shrink * scale).astype(direction.dtype) * direction
        # The momentum is the whole direction: what many batches, each smaller than the number of weights, have
        # found together. Shortened with the step it would be forgotten from one batch to the next.
        norm, condition = jnp.linalg.norm(change), 1 + largest / damping
        return change, SpringState(direction), SpringInfo(norm, scale, fallback, condition)


class SpringState(NamedTuple):
    """δ' of the step before, [P]."""

    direction: Float[Array, " P"]


class SpringInfo(NamedTuple):
    """What an update was like."""

    update_norm: Float[Array, ""]
    """|change|"""
    bound: Float[Array, ""]
    """factor of both bounds, 1 where inactive"""
    fallback: Float[Array, ""]
    """1 where Cholesky had to be replaced"""
    condition: Float[Array, ""]
    """of XXᵀ + κ, (λ_max + κ)/κ: rows are centred, so that XXᵀ has eigenvalues 0"""


CONDITION = 1e6
"""most of XXᵀ + κ, whose entries have the six digits of single precision: beyond, it has negative eigenvalues"""

POWER_STEPS = 6
"""products with the matrix for its largest eigenvalue, from below: two digits where it stands well above the next"""


def largest_eigenvalue(matrix: Float[Array, "M M"], start: Float[Array, " M"]) -> Float[Array, ""]:
    """Rayleigh quotient of a positive matrix after `POWER_STEPS` power steps; at most λ_max but for rounding."""

    def unit(x: Array) -> Array:
        return x / (jnp.linalg.norm(x) + 1e-30)

    vector = jax.lax.fori_loop(0, POWER_STEPS, lambda _, x: unit(matrix @ x), unit(start.astype(matrix.dtype)))
    return vector @ (matrix @ vector)


def solve_guarded(
    matrix: Float[Array, "M M"], right: Float[Array, " M"], damping: Float[Array, ""] | float
) -> tuple[Float[Array, " M"], Float[Array, ""]]:
    """(matrix + damping)⁻¹ right by Cholesky; if that is not finite, by eigenvalues clipped at 0.

    Returns the solution and 1.0 where the fallback was needed.
    """
    regular = matrix + damping * jnp.eye(matrix.shape[0], dtype=matrix.dtype)
    by_cholesky = jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(regular), True), right)
    ok = jnp.all(jnp.isfinite(by_cholesky))

    def by_eigenvalues() -> Float[Array, " M"]:
        values, vectors = jnp.linalg.eigh(jnp.nan_to_num(matrix))
        return vectors @ ((vectors.T @ right) / (jnp.maximum(values, 0.0) + damping))

    solution = jax.lax.cond(ok, lambda: by_cholesky, by_eigenvalues)
    return solution, 1.0 - ok.astype(matrix.dtype)

"""Orbitals as learned mixtures of Bloch orbitals: φ_kj(r; c) = Σ_p C_kjp(c) φ_p(r; c).

    C(c) = C⁰ + Σ_s t_s(c) Cˢ,     t a linear map of the coupling embedding e(c)

p runs over all states of the lowest bands (`orbitals.whole_bands`). C⁰ starts as random orthonormal rows, so that the
start knows the one-body physics and prefers no momentum: filled Bloch states, which a liquid keeps, and the localised
ones of a crystal are equally far away. Random functions in their place (`init = "random"`) have to learn the one-body
physics first, and for many electrons their determinant is too close to singular to begin with.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qernel.layers import Linear
from qernel.types import Key

DIRECTIONS = 4
"""matrices Cˢ: in how many directions the mixture can move with the coupling"""

Columns = Float[Array, "*batch determinants electrons electrons"]


class Mixing(eqx.Module):
    """The mixture; call it with the orbitals φ_p(r_i) and the coupling embedding."""

    weight: Float[Array, "two determinants electrons orbitals"]
    """real and imaginary part of C⁰"""
    direction: Float[Array, "directions two determinants electrons orbitals"] | None
    """of Cˢ"""
    response: Linear | None

    def __init__(self, key: Key, determinants: int, n_up: int, n_down: int, orbitals: int, n_embed: int, *, dtype: str):
        k = jax.random.split(key, 4)
        spins = [_orthonormal(k[s], determinants, n, orbitals, dtype) for s, n in enumerate((n_up, n_down)) if n]
        self.weight = jnp.concatenate(spins, axis=2)
        self.direction, self.response = None, None
        if n_embed:
            # Small against the unit rows of C⁰: the couplings begin with nearly the same mixture.
            shape = (DIRECTIONS, *self.weight.shape)
            self.direction = 0.1 / orbitals**0.5 * jax.random.normal(k[2], shape, dtype)
            self.response = Linear(k[3], n_embed, DIRECTIONS, bias=False, dtype=dtype)

    def __call__(
        self,
        re: Float[Array, "*batch electrons orbitals"],
        im: Float[Array, "*batch electrons orbitals"],
        embedding: Float[Array, " n_embed"],
    ) -> tuple[Columns, Columns]:
        """Real and imaginary part of φ_kj(r_i), [*batch, K, i, j]."""
        c = self.weight
        if self.direction is not None and self.response is not None:
            c = c + jnp.tensordot(self.response(embedding), self.direction, 1)
        # One product for all four: the rows (C_re, −C_im) and (C_im, C_re) of (φ_re, φ_im).
        rows = jnp.stack([jnp.concatenate([c[0], -c[1]], -1), jnp.concatenate([c[1], c[0]], -1)])
        mixed = jnp.einsum("...ip,ckjp->...ckij", jnp.concatenate([re, im], -1), rows)
        return mixed[..., 0, :, :, :], mixed[..., 1, :, :, :]


def _orthonormal(
    key: Key, determinants: int, rows: int, columns: int, dtype: str
) -> Float[Array, "two k rows columns"]:
    """Random orthonormal complex rows, one set for each determinant."""
    # Gaussian rows, made orthonormal, are distributed evenly over all sets.
    z = jax.random.normal(key, (2, determinants, columns, rows))
    q = jnp.linalg.qr(jax.lax.complex(z[0], z[1]))[0].swapaxes(1, 2)
    return jnp.stack([q.real, q.imag]).astype(dtype)

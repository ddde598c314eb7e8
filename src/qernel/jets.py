"""Value, Jacobian and Laplacian of features, carried together through the trunk: one rule per layer.

A `Jet` of y(R) holds, for each token (an electron of a walker),

    value y,      jacobian ∂_a y,      laplacian Σ_a ∂_a² y      (a = electron e and direction x, y),

and a rule maps the jet of a layer's input to that of its output: for z = f(y),
∂_a z = f'·∂_a y and Δz = f'·Δy + f''[∂_a y, ∂_a y]. Forward Laplacian, arXiv:2307.08214.

Up to the first attention a token depends on its own position alone; such jets carry two derivatives and not 2N.
Every rule but attention's is the same for both. Tokens of all walkers share one axis: XLA's CPU code is several
times slower on the same arrays with more axes, above all on axes of length one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qernel.layers import NORM_FLOOR, Film, Linear
from qernel.types import Electrons
from qernel.wavefunction import Wavefunction


class Jet(NamedTuple):
    """Features with their first and second derivatives; tokens = walkers × electrons, walker-major."""

    value: Float[Array, "tokens width"]
    jacobian: Float[Array, "tokens coordinates width"]
    """∂_a of each feature; coordinates = 2N (electron-major), or 2 where only the own position matters"""
    laplacian: Float[Array, "tokens width"]
    """Σ_a ∂_a²"""

    def __add__(self, other: Jet) -> Jet:  # type: ignore[override]
        return Jet(*(a + b for a, b in zip(self, other, strict=True)))


def phases(model: Wavefunction, electrons: Electrons) -> Jet:
    """Jet of the network's inputs, sines and cosines of wavevectors (and the spin, which does not move)."""
    g = jnp.asarray(model.wavevectors, electrons.dtype)
    value = model.inputs(electrons)
    value = value.reshape(-1, value.shape[-1])
    m = len(g)
    sin, cos, still = value[:, :m], value[:, m : 2 * m], value[:, 2 * m :]
    slope = jnp.concatenate([cos, -sin], -1)[:, None] * jnp.concatenate([g, g]).T
    slope = jnp.concatenate([slope, jnp.zeros((len(still), 2, still.shape[1]), value.dtype)], -1)
    g2 = jnp.sum(g * g, -1)
    return Jet(value, slope, jnp.concatenate([-g2 * sin, -g2 * cos, jnp.zeros_like(still)], -1))


def spread(jet: Jet, electrons: int) -> Jet:
    """A jet over own positions as one over all 2N coordinates."""
    tokens, coordinates, width = jet.jacobian.shape
    if coordinates == 2 * electrons:
        return jet
    own = jnp.eye(electrons, dtype=jet.value.dtype)[:, :, None, None]
    own = own * jet.jacobian.reshape(-1, electrons, 1, 2, width)
    return jet._replace(jacobian=own.reshape(tokens, 2 * electrons, width))


def own_block(jacobian: Float[Array, "tokens coordinates width"], electrons: int) -> Float[Array, "tokens 2 width"]:
    """Derivatives of each token along its own position."""
    tokens, coordinates, width = jacobian.shape
    if coordinates == 2:
        return jacobian
    own = np.arange(electrons)
    # By index: an einsum for a diagonal reads the whole array.
    return jacobian.reshape(-1, electrons, electrons, 2, width)[:, own, own].reshape(tokens, 2, width)


def linear(layer: Linear, x: Jet) -> Jet:
    """y = x W + b: every row of the jet is one row of the matrix product."""
    return Jet(layer(x.value), x.jacobian @ layer.weight, x.laplacian @ layer.weight)


def elementwise(f: Callable[[Array], Array], x: Jet) -> Jet:
    """y = f(x) for a function of one number."""

    def slope(v: Array) -> Array:
        return jax.jvp(f, (v,), (jnp.ones_like(v),))[1]

    first, second = jax.jvp(slope, (x.value,), (jnp.ones_like(x.value),))
    squared = jnp.sum(x.jacobian * x.jacobian, 1)
    return Jet(f(x.value), first[:, None] * x.jacobian, first * x.laplacian + second * squared)


def several(f: Callable[..., Array], *x: Jet) -> Jet:
    """y = f(x_1, x_2, …) for one-number jets: value [tokens], jacobian [tokens, a], laplacian [tokens]."""
    which = tuple(range(len(x)))
    values = [y.value for y in x]
    first = jax.vmap(jax.grad(f, which))(*values)
    second = jax.vmap(jax.hessian(f, which))(*values)
    laplacian = sum(d * y.laplacian for d, y in zip(first, x, strict=True))
    for i in which:
        for j in which[i:]:
            products = jnp.sum(x[i].jacobian * x[j].jacobian, 1)
            laplacian = laplacian + (1 if i == j else 2) * second[i][j] * products
    jacobian = sum(d[:, None] * y.jacobian for d, y in zip(first, x, strict=True))
    return Jet(f(*values), jacobian, laplacian)


def film(layer: Film, x: Jet, embedding: Float[Array, "walkers n_embed"]) -> Jet:
    """y = s·c r + t with c = x − mean(x), r = (mean(c²) + floor)^−½.

    With m_a = mean(c ∂_a c): ∂_a r = −r³ m_a,  Δr = −r³ (mean(c Δc) + mean(∂_a c ∂_a c)) + 3 r⁵ m_a m_a.
    """
    electrons = x.value.shape[0] // embedding.shape[0]
    scale, shift = (jnp.repeat(y, electrons, axis=0) for y in jax.vmap(layer.modulated)(embedding))
    c = x.value - x.value.mean(-1, keepdims=True)
    r = jax.lax.rsqrt(jnp.mean(c * c, -1, keepdims=True) + NORM_FLOOR)
    width = c.shape[-1]
    # [mean(∂_a x), m_a] of every row in one small product: Σ c ∂_a c = Σ c ∂_a x since Σ c = 0.
    averages = x.jacobian @ (jnp.stack([jnp.ones_like(c), c], -1) / width)
    mean, m = averages[..., :1], averages[..., 1:]
    l_c = x.laplacian - x.laplacian.mean(-1, keepdims=True)
    squared = jnp.sum(x.jacobian**2, (1, 2))[:, None] / width - jnp.sum(mean**2, 1)
    curvature = jnp.mean(c * l_c, -1, keepdims=True) + squared
    l_r = r**3 * (3 * r * r * jnp.sum(m * m, 1) - curvature)
    cross = jnp.sum(m * x.jacobian, 1) - jnp.sum(m * mean, 1)
    rs = r * scale
    return Jet(
        c * rs + shift,
        rs[:, None] * (x.jacobian - mean) - m * (r * r * rs * c)[:, None],
        scale * (r * l_c + c * l_r - 2 * r**3 * cross),
    )

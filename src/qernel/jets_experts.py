"""Jets of the mixture of experts: gates whose threshold moves with the scores, and the experts behind them."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
from jaxtyping import Array

from qernel.dispatch import blocked_product, dispatch
from qernel.jets import Jet, elementwise, linear, several
from qernel.moe import SHARPNESS, Experts, MixtureOfExperts, excess, floored, log_ratio, next_ratio, opening


def experts(layer: MixtureOfExperts, x: Jet) -> Jet:
    """y = shared(x) + Σ_e g_e(x) expert_e(x)."""
    y = linear(layer.shared_down, elementwise(jax.nn.gelu, linear(layer.shared_up, x)))
    if layer.routed is None:
        return y
    g = gates(layer, x)
    return y + (sparse(layer.routed, x, g, layer.top_k) if layer.sparse else dense(layer.routed, x, g))


def gates(layer: MixtureOfExperts, x: Jet) -> Jet:
    """Gate of each expert, g = opening(s − τ(s)).

    τ is a function of all scores of a token.
    """
    assert layer.router is not None
    s = linear(layer.router, x)
    value = excess(s.value, layer.top_k)
    if layer.top_k >= s.value.shape[-1]:
        return elementwise(opening, s)

    tau = _threshold(s._replace(value=s.value - s.value.max(-1, keepdims=True)), layer.top_k)
    return elementwise(opening, Jet(value, s.jacobian - tau.jacobian[:, :, None], s.laplacian - tau.laplacian[:, None]))


def _threshold(s: Jet, k: int) -> Jet:
    """Jet of τ, value [tokens], jacobian [tokens, a]: the recursion of `moe.threshold`, one score a turn."""
    x = elementwise(lambda s: jnp.exp(SHARPNESS * s), s)
    by_expert = Jet(*(jnp.moveaxis(floored(y), -1, 0) for y in x))

    def take_in(ratios: tuple[Jet, ...], x: Jet) -> tuple[tuple[Jet, ...], None]:
        return (ratios[0] + x, *(several(next_ratio, *pair, x) for pair in itertools.pairwise(ratios))), None

    start = (jax.tree.map(lambda y: jnp.zeros_like(y[0]), by_expert),) * (k + 1)
    ratios, _ = jax.lax.scan(take_in, start, by_expert)
    return several(lambda ratio: log_ratio(ratio, k), ratios[k])


def dense(layer: Experts, x: Jet, gate: Jet) -> Jet:
    """Σ_e g_e down_e(gelu(up_e x)), every expert evaluated.

    With h_e = gelu(up_e x) and o_e = down_e h_e, the gates' own derivatives meet o_e and not h_e:
    ∂_a y = down(g ∂_a h) + ∂_a g o,   Δy = down(g Δh + 2 ∂_a g ∂_a h) + Δg o.
    """
    n_experts, width, hidden = layer.up.shape
    up = layer.up.transpose(1, 0, 2).reshape(width, -1)
    down = layer.down.reshape(-1, width)
    pre = Jet(x.value @ up + layer.up_bias.reshape(-1), x.jacobian @ up, x.laplacian @ up)
    h = elementwise(jax.nn.gelu, pre)

    def per_unit(g: Array) -> Array:
        """[..., experts] → [..., experts·hidden]"""
        return jnp.repeat(g, hidden, axis=-1)

    g = per_unit(gate.value)
    out = jnp.einsum("teh,ehd->ted", h.value.reshape(-1, n_experts, hidden), layer.down)
    cross = jnp.sum(per_unit(gate.jacobian) * h.jacobian, 1)
    return Jet(
        (g * h.value) @ down,
        (g[:, None] * h.jacobian) @ down + gate.jacobian @ out,
        (g * h.laplacian + 2 * cross) @ down + jnp.einsum("te,ted->td", gate.laplacian, out),
    )


def sparse(layer: Experts, x: Jet, gate: Jet, k: int) -> Jet:
    """The same from the k experts of largest gate: all rows of a token's jet travel together, in one gather."""
    n_experts = layer.up.shape[0]
    _, chosen = jax.lax.top_k(gate.value, k)
    layout = dispatch(chosen.reshape(-1), n_experts)
    token, expert = layout.pair // k, layout.expert_of_row
    g = Jet(gate.value[token, expert], gate.jacobian[token, :, expert], gate.laplacian[token, expert])
    pre = Jet(*(blocked_product(part[token], layout, layer.up) for part in x))
    h = elementwise(jax.nn.gelu, pre._replace(value=pre.value + layer.up_bias[expert]))
    out = blocked_product(h.value, layout, layer.down)
    d_gated = g.value[:, None, None] * h.jacobian
    l_gated = g.value[:, None] * h.laplacian + 2 * jnp.sum(g.jacobian[:, :, None] * h.jacobian, 1)
    y = Jet(
        g.value[:, None] * out,
        blocked_product(d_gated, layout, layer.down) + g.jacobian[:, :, None] * out[:, None],
        blocked_product(l_gated, layout, layer.down) + g.laplacian[:, None] * out,
    )
    row = layout.row.reshape(-1, k)
    return functools.reduce(Jet.__add__, (Jet(*(part[row[:, s]] for part in y)) for s in range(k)))

"""Load and entropy of the router: do experts specialise, and does that depend on the coupling?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qernel.cell import FloatArray
from qernel.observables.interface import Means, Quantity, Record, Summed, Sweep, Values
from qernel.start import Point, Start
from qernel.types import Electrons
from qernel.wavefunction import Block, Wavefunction

Gates = Float[Array, "*batch layers electrons experts"]


@dataclass(frozen=True)
class Router(Summed):
    """Shares of the routed experts in each layer, from the gates g_e of the electrons.

    With p_e = ⟨Σ_i g_ie⟩/⟨Σ_ie g_ie⟩ the load is p, its entropy −Σ_e p_e log p_e (log E where all are used alike).
    Less than that is the entropy of the shares of a single electron, averaged over electrons: the difference is what
    the electrons know of each other's experts, 0 without specialisation. Entropies in nats.
    """

    every: int = 5

    def missing(self, start: Start, couplings: FloatArray) -> str | None:
        """Needs routed experts."""
        return None if start.network.experts else "the network has no routed experts"

    def evaluate(self, sweep: Sweep, tables: tuple[()]) -> Values:
        """Gates, shares of open gates, [couplings, walkers, layers, experts], and entropy of an electron's gates."""

        def one(r: Float[Array, "electrons 2"], point: Point) -> Values:
            g = gates(sweep.model, r, point)
            share = g / jnp.maximum(g.sum(-1, keepdims=True), 1e-30)
            entropy = -jnp.sum(share * jnp.log(jnp.maximum(share, 1e-30)), -1)
            return {"gate": g.mean(-2), "open": (g > 0).mean(-2, dtype=g.dtype), "entropy": entropy.mean(-1)}

        values: Values = sweep.each(jax.vmap(one))
        return values

    def finalise(self, record: Record, start: Start, couplings: FloatArray) -> dict[str, Quantity]:
        """`router_load`, `router_open` [couplings, layer, expert], `router_entropy`, `router_entropy_electron`."""
        n = start.network
        axes: dict[str, Any] = {"layer": ("layer", np.arange(n.layers)), "expert": ("expert", np.arange(n.experts))}
        both, layer = ("layer", "expert"), {"layer": axes["layer"]}
        derived = record.sums.derived
        texts = {
            "router_load": "share of an expert in the gates of its layer",
            "router_open": "share of the electrons for which an expert is open",
            "router_entropy": "entropy of the load",
            "router_entropy_electron": "entropy of the gates of one electron, mean over electrons",
        }
        values = (derived(load), derived(lambda m: m["open"]), derived(entropy), derived(lambda m: m["entropy"]))
        dims = (both, both, ("layer",), ("layer",))
        return {
            name: Quantity(*v, "1" if d == both else "nat", text, d, axes if d == both else layer)
            for (name, text), v, d in zip(texts.items(), values, dims, strict=True)
        }


def gates(model: Wavefunction, electrons: Electrons, point: Point) -> Gates:
    """Gates of every routed expert in every layer, [*batch, layers, N, experts]."""
    embedding = model.embedding(point)
    arrays, static = eqx.partition(model.blocks, eqx.is_array)

    def layer(x: Array, block: Block) -> tuple[Array, Array]:
        block = eqx.combine(block, static)
        x = block.attended(x, embedding)
        inputs = block.film_experts(x, embedding)
        return x + block.experts(inputs), block.experts.gates(inputs)

    found: Gates = jnp.moveaxis(jax.lax.scan(layer, model.lift(model.inputs(electrons)), arrays)[1], 0, -3)
    return found


def load(m: Means) -> FloatArray:
    """p_e, [couplings, layers, experts]; even where all gates are closed."""
    g = m["gate"] + 1e-30
    p: FloatArray = g / g.sum(-1, keepdims=True)
    return p


def entropy(m: Means) -> FloatArray:
    """−Σ_e p_e log p_e, [couplings, layers]."""
    p = load(m)
    s: FloatArray = -np.sum(p * np.log(p), -1)
    return s

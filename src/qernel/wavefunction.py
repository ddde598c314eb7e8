"""The wavefunction: one set of weights for every Hamiltonian of a family.

    ψ(R; c) = exp(J + iθ·Σr_i + Σ_i f(h_i)) Σ_k w_k(c) det_ij Φ^k_j(r_i)
    Φ^k_j(r_i) = φ_kj(r_i; c) [1 + a_kj(h_i)]

h_i are the features of electron i after the trunk (FiLM · norm → attention → + → FiLM · norm → experts → +), φ the
Bloch orbitals of the non-interacting problem at c (`orbitals.py`), or mixtures of them that are learned (`mixing.py`),
a a complex linear head, J the pair factor (`jastrow.py`). A factor that knows all electrons can move any node of the
determinant; a second, additive head was measured to slow training down and to lower no energy. Random orbitals are
Φ = a. With `heads = 0` there is no attention (SlaterNet), with `experts = 0` and `film_width = 0` it is a PsiFormer
(arXiv:2211.13672).
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qernel.cell import FloatArray
from qernel.jastrow import Jastrow
from qernel.layers import Attention, Film, Linear
from qernel.mixing import Mixing
from qernel.moe import MixtureOfExperts
from qernel.network import Network
from qernel.start import Point, Start
from qernel.types import Electrons, Features, Key, LogPsi, PerWalker

OrbitalPart = Float[Array, "*batch determinants electrons electrons"]
"""real or imaginary part of the matrices of orbitals"""


class Block(eqx.Module):
    """x + attention(film(x)), then x + experts(film(x))."""

    film_attention: Film | None
    attention: Attention | None
    film_experts: Film
    experts: MixtureOfExperts

    def __init__(self, key: Key, n: Network):
        k = jax.random.split(key, 4)
        self.film_attention = Film(k[0], n.film_width, n.width, dtype=n.dtype) if n.heads else None
        self.attention = Attention(k[1], n.width, n.heads, n.kv_heads, dtype=n.dtype) if n.heads else None
        self.film_experts = Film(k[2], n.film_width, n.width, dtype=n.dtype)
        self.experts = MixtureOfExperts(
            k[3], n.width, n.shared_width, n.experts, n.expert_width, n.top_k, dtype=n.dtype
        )

    def __call__(self, x: Features, embedding: Float[Array, " n_embed"]) -> Features:
        x = self.attended(x, embedding)
        return x + self.experts(self.film_experts(x, embedding))

    def attended(self, x: Features, embedding: Float[Array, " n_embed"]) -> Features:
        """x + attention(film(x)), or x without attention."""
        if self.attention is None or self.film_attention is None:
            return x
        return x + self.attention(self.film_attention(x, embedding))


class Wavefunction(eqx.Module):
    """ψ(R; c) of a family; call it with electrons [*batch, N, 2] and the `Point` of one coupling."""

    embed: tuple[Linear, Linear] | None
    lift: Linear
    blocks: Block
    """all blocks, stacked on a leading axis of layers: they share compiled code"""
    head: Linear
    pair: Jastrow
    factor: Linear
    weights: Float[Array, "two determinants"]
    weights_response: Linear | None
    mixing: Mixing | None
    start: Start = eqx.field(static=True)

    def __init__(self, key: Key, start: Start):
        n, family = start.network, start.family
        with jax.ensure_compile_time_eval():  # u may vary in the family, and weights are made inside compiled code
            h = family.hamiltonian(jnp.asarray(family.vector()))
        k = jax.random.split(key, 8)
        n_couplings, n_electrons = len(family.names), family.n_electrons
        self.embed = None
        if n.film_width:
            self.embed = (
                Linear(k[0], n_couplings, n.film_width, dtype=n.dtype),
                Linear(k[1], n.film_width, n.film_width, dtype=n.dtype),
            )
        n_features = 6 + 2 * len(family.cell.potential_wavevectors) + (1 if family.n_down else 0)
        self.lift = Linear(k[2], n_features, n.width, dtype=n.dtype)
        self.blocks = eqx.filter_vmap(lambda key: Block(key, n))(jax.random.split(k[3], n.layers))
        scale = 1.0 if n.init == "random" else 0.0
        self.head = Linear(k[4], n.width, 2 * n.determinants * n_electrons, scale=scale, dtype=n.dtype)
        self.pair = Jastrow(k[5], h, n.jastrow_shells, n.film_width, dtype=n.dtype)
        self.factor = Linear(k[6], n.width, 1, scale=0.0, bias=False, dtype=n.dtype)
        # The lowest occupation leads; the others are there to grow where they help.
        lead = np.where(np.arange(n.determinants) == 0, 1.0, 0.05 if n.init == "bloch" else 1.0)
        self.weights = jnp.asarray(np.stack([lead, np.zeros_like(lead)]), n.dtype)
        self.weights_response = (
            Linear(k[7], n.film_width, 2 * n.determinants, scale=0.0, bias=False, dtype=n.dtype)
            if n.film_width
            else None
        )
        sizes = n.determinants, family.n_up, family.n_down, len(start.occupations.band)
        self.mixing = (
            Mixing(jax.random.fold_in(key, 8), *sizes, n.film_width, dtype=n.dtype) if n.init == "mixed" else None
        )
        self.start = start

    def __call__(self, electrons: Electrons, point: Point) -> LogPsi:
        """log ψ, complex: log|ψ| + i phase."""
        embedding = self.embedding(point)
        h = self.features(electrons, embedding)
        re, im = self.orbitals(electrons, h, point)
        sign, log_det = jnp.linalg.slogdet(re + 1j * im)
        top = jax.lax.stop_gradient(log_det.max(-1, keepdims=True))
        w_re, w_im = self.determinant_weights(embedding)
        total = jnp.sum((w_re + 1j * w_im) * sign * jnp.exp(log_det - top), axis=-1)
        return (
            jnp.log(total)
            + top[..., 0]
            + self.log_factor(electrons, h, embedding, point)
            + 1j * _phase(electrons, point)
        )

    def embedding(self, point: Point) -> Float[Array, " n_embed"]:
        """e(c), the input of every FiLM layer."""
        if self.embed is None:
            return jnp.zeros(0, point.c.dtype)
        return jax.nn.silu(self.embed[1](jax.nn.silu(self.embed[0](point.c))))

    def features(self, electrons: Electrons, embedding: Float[Array, " n_embed"]) -> Features:
        """h_i: features of every electron after the trunk, [*batch, N, width]."""
        arrays, static = eqx.partition(self.blocks, eqx.is_array)

        def apply(x: Features, block: Block) -> tuple[Features, None]:
            return eqx.combine(block, static)(x, embedding), None

        return jax.lax.scan(apply, self.lift(self.inputs(electrons)), arrays, unroll=True)[0]

    def inputs(self, electrons: Electrons) -> Features:
        """Sines and cosines of supercell and moiré-cell phases, and the spin ±1 if there are both."""
        family = self.start.family
        phase = electrons @ jnp.asarray(self.wavevectors.T, electrons.dtype)
        parts = [jnp.sin(phase), jnp.cos(phase)]
        if family.n_down:
            spin = jnp.asarray(np.r_[np.ones(family.n_up), -np.ones(family.n_down)], electrons.dtype)
            parts.append(jnp.broadcast_to(spin[:, None], (*electrons.shape[:-1], 1)))
        return jnp.concatenate(parts, axis=-1)

    @property
    def wavevectors(self) -> FloatArray:
        """Wavevectors of the inputs, of the supercell and of the moiré cell, [m, 2]."""
        cell = self.start.family.cell
        return np.concatenate([cell.distance_wavevectors[0], cell.potential_wavevectors])

    def orbitals(self, electrons: Electrons, h: Features, point: Point) -> tuple[OrbitalPart, OrbitalPart]:
        """Real and imaginary part of Φ^k_j(r_i), [*batch, K, i, j], without the twist phase."""
        n = self.start.network
        n_electrons = electrons.shape[-2]
        y = self.head(h).reshape(*h.shape[:-1], -1, n.determinants, n_electrons)
        y = jnp.moveaxis(y, -4, -2)  # [*batch, re or im, K, i, j]
        re, im = y[..., 0, :, :, :], y[..., 1, :, :, :]
        if n.init == "random":
            return re, im
        phi_re, phi_im = self.bloch_orbitals(electrons, point)
        return phi_re * (1 + re) - phi_im * im, phi_re * im + phi_im * (1 + re)

    def bloch_orbitals(self, electrons: Electrons, point: Point) -> tuple[OrbitalPart, OrbitalPart]:
        """Real and imaginary part of φ_kj(r_i), [*batch, K, i, j]; zero where spins of i and j differ."""
        occupations, dtype = self.start.occupations, electrons.dtype
        wave = electrons @ jnp.asarray(self.start.waves.vectors.T, dtype)
        cos, sin = jnp.cos(wave), jnp.sin(wave)
        c_re, c_im = point.orbitals_re.T, point.orbitals_im.T
        u_re, u_im = cos @ c_re - sin @ c_im, cos @ c_im + sin @ c_re
        bloch = electrons @ jnp.asarray(occupations.momenta.T, dtype)
        cos, sin = jnp.cos(bloch), jnp.sin(bloch)
        re, im = cos * u_re - sin * u_im, cos * u_im + sin * u_re
        if self.mixing is not None:
            re, im = self.mixing(re, im, self.embedding(point))
        elif occupations.columns is not None:
            # As a product with a matrix of ones and zeros: much faster than a gather, above all backwards.
            pick = jnp.asarray(occupations.columns[..., None] == np.arange(len(occupations.band)), dtype)
            re, im = (jnp.einsum("...io,kjo->...kij", x, pick) for x in (re, im))
        if self.start.family.n_down:
            spin = np.arange(self.start.family.n_electrons) < self.start.family.n_up
            same = jnp.asarray(spin[:, None] == spin[None], dtype)
            re, im = re * same, im * same
        return re, im

    def log_factor(
        self, electrons: Electrons, h: Features, embedding: Float[Array, " n_embed"], point: Point
    ) -> PerWalker:
        """J + Σ_i f(h_i), real."""
        return self.pair(electrons, point.u, embedding) + self.factor(h)[..., 0].sum(-1)

    def determinant_weights(
        self, embedding: Float[Array, " n_embed"]
    ) -> tuple[Float[Array, " determinants"], Float[Array, " determinants"]]:
        """Real and imaginary part of w_k(c)."""
        w = self.weights
        if self.weights_response is not None:
            w = w + self.weights_response(embedding).reshape(w.shape)
        return w[0], w[1]

    def parameter_count(self) -> tuple[int, int]:
        """(total, active for one electron): routed experts count by the share top_k/experts."""
        total = sum(x.size for x in jax.tree.leaves(self))
        routed = sum(x.size for x in jax.tree.leaves(self.blocks.experts.routed))
        n = self.start.network
        return total, total - round(routed * (1 - n.top_k / n.experts)) if n.experts else total


def _phase(electrons: Electrons, point: Point) -> PerWalker:
    """θ·Σ_i r_i."""
    return electrons.sum(-2) @ point.twist


def log_psi(model: Wavefunction, walkers: Float[Array, "couplings walkers electrons 2"], points: Point) -> LogPsi:
    """log ψ of every walker at its own coupling, [couplings, walkers]; walkers [couplings, walkers, N, 2]."""
    return jax.vmap(lambda r, p: model(r, p))(walkers, points)

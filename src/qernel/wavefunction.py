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

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qernel.cell import FloatArray
from qernel.errors import require
from qernel.family import Family
from qernel.jastrow import Jastrow
from qernel.layers import Attention, Film, Linear
from qernel.mixing import Mixing
from qernel.moe import MixtureOfExperts
from qernel.orbitals import Occupations, PlaneWaves, choose_occupations, orbital_coefficients, plane_waves, whole_bands
from qernel.types import Couplings, Electrons, Features, Key, LogPsi, PerWalker

OrbitalPart = Float[Array, "*batch determinants electrons electrons"]


MOST_UNITS = 10**12
"""of any width: beyond all that fits into memory, which is another matter (`sizes.py`)"""

MOST = {"layers": 256, "experts": 1024, "determinants": 1024}
"""of what is compiled or looked for one by one"""


@dataclass(frozen=True)
class Network:
    """Sizes of the wavefunction. Raises `InputError` where they do not fit together."""

    layers: int = 2
    """trunk blocks"""
    width: int = 32
    """features per electron"""
    heads: int = 4
    """query heads of the attention; 0: no attention (SlaterNet)"""
    kv_heads: int = 2
    """key/value heads, shared by heads/kv_heads query heads each"""
    experts: int = 4
    """routed experts; 0: the shared expert alone (a dense perceptron)"""
    top_k: int = 2
    """most routed experts open for one electron"""
    expert_width: int = 32
    """hidden width of a routed expert"""
    shared_width: int = 32
    """hidden width of the shared expert"""
    determinants: int = 4
    """determinants K"""
    film_width: int = 16
    """width of the coupling embedding; 0: no conditioning by FiLM"""
    jastrow_shells: int = 12
    """plane waves of the pair factor (pairs ±G)"""
    init: Literal["bloch", "mixed", "random"] = "bloch"
    """start from non-interacting orbitals, from random mixtures of their lowest bands, or from random functions"""
    bands: int = 1
    """bands that are mixed (init mixed)"""
    plane_wave_cutoff: float = 200.0
    """kinetic cutoff of the starting orbitals, E0"""
    dtype: Literal["float32", "float64"] = "float32"
    """precision of weights and walkers"""

    def __post_init__(self) -> None:
        for name in ("layers", "width", "shared_width", "determinants", "jastrow_shells", "bands"):
            require(getattr(self, name) >= 1, f"network.{name}", getattr(self, name), "at least 1")
        for name in ("heads", "experts", "film_width"):
            require(getattr(self, name) >= 0, f"network.{name}", getattr(self, name), "at least 0")
        for name in ("layers", "width", "shared_width", "determinants", "jastrow_shells", "heads", "experts"):
            most = MOST.get(name, MOST_UNITS)
            require(getattr(self, name) <= most, f"network.{name}", getattr(self, name), f"at most {most}")
        for name in ("film_width", "expert_width", "kv_heads"):
            require(getattr(self, name) <= MOST_UNITS, f"network.{name}", getattr(self, name), f"at most {MOST_UNITS}")
        if self.heads:
            require(self.width % self.heads == 0, "network.width", self.width, f"a multiple of heads = {self.heads}")
            require(
                self.kv_heads >= 1 and self.heads % self.kv_heads == 0,
                "network.kv_heads",
                self.kv_heads,
                f"a divisor of heads = {self.heads}",
            )
        if self.experts:
            require(
                1 <= self.top_k <= self.experts,
                "network.top_k",
                self.top_k,
                f"from 1 to the number of experts = {self.experts}",
            )
            require(self.expert_width >= 1, "network.expert_width", self.expert_width, "at least 1")
        require(0 < self.plane_wave_cutoff <= 2000, "network.plane_wave_cutoff", self.plane_wave_cutoff, "0 to 2000 E0")


class Point(NamedTuple):
    """What the wavefunction is told of one coupling vector: no weight enters. May carry a couplings axis."""

    c: Float[Array, "*couplings names"]
    """couplings, normalised to [−1, 1] over the family's ranges"""
    u: Float[Array, "*couplings"]
    twist: Float[Array, "*couplings 2"]
    orbitals_re: Float[Array, "*couplings orbitals waves"]
    orbitals_im: Float[Array, "*couplings orbitals waves"]


@dataclass(frozen=True)
class Start:
    """The family's one-body start: plane waves and occupations shared by all couplings.

    They follow from family and network, by which starts are compared (so that equal models share compiled code).
    """

    family: Family
    network: Network
    waves: PlaneWaves = field(compare=False)
    occupations: Occupations = field(compare=False)

    def points(self, couplings: FloatArray) -> Point:
        """Tables for each coupling vector of [couplings, names] (solves the one-body problem there)."""
        hamiltonians = [self.family.hamiltonian(jnp.asarray(c)) for c in np.asarray(couplings, float)]
        coefficients = np.stack([orbital_coefficients(h, self.occupations, self.waves) for h in hamiltonians])
        dtype = self.network.dtype
        return Point(
            c=jnp.stack([self.family.normalise(jnp.asarray(c)) for c in np.asarray(couplings, float)]).astype(dtype),
            u=jnp.asarray([float(h.u) for h in hamiltonians], dtype),
            twist=jnp.asarray(np.stack([np.asarray(h.twist) for h in hamiltonians]), dtype),
            orbitals_re=jnp.asarray(coefficients.real, dtype),
            orbitals_im=jnp.asarray(coefficients.imag, dtype),
        )


def make_start(family: Family, network: Network) -> Start:
    """Choose the starting occupations of a family (see `orbitals.choose_occupations`)."""
    hamiltonians = [family.hamiltonian(jnp.asarray(c)) for c in family.grid()]
    waves = plane_waves(hamiltonians[0], network.plane_wave_cutoff)
    if network.init == "mixed":
        occupations = whole_bands(hamiltonians[0], network.plane_wave_cutoff, network.bands)
    else:
        occupations = choose_occupations(hamiltonians, network.plane_wave_cutoff, network.determinants)
    return Start(family, network, waves, occupations)


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

    def orbitals(
        self, electrons: Electrons, h: Features, point: Point
    ) -> tuple[
        Float[Array, "*batch determinants electrons electrons"], Float[Array, "*batch determinants electrons electrons"]
    ]:
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

    def bloch_orbitals(
        self, electrons: Electrons, point: Point
    ) -> tuple[
        Float[Array, "*batch determinants electrons electrons"], Float[Array, "*batch determinants electrons electrons"]
    ]:
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


__all__ = ["Couplings", "Network", "Point", "Start", "Wavefunction", "log_psi", "make_start"]

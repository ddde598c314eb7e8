"""From features to log ψ with all first and second derivatives: orbitals, determinants, pair factor.

With Φ the orbital matrix of one determinant and B_a = ∂_aΦ Φ⁻¹,

    ∂_a log det Φ = tr B_a,      Δ log det Φ = tr(ΔΦ Φ⁻¹) − Σ_a tr B_a².

∂_aΦ itself is never formed: Φ is linear in the features h, so its Jacobian times Φ⁻¹ is the Jacobian of h times
V_i = (∂Φ_i/∂h_i) Φ⁻¹, which has no derivative axis. That saves N⁴ operations a determinant.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from qernel.jets import Jet, own_block
from qernel.start import Point
from qernel.types import ComplexPerWalker, Electrons, LogPsi
from qernel.wavefunction import Wavefunction

Matrices = Complex[Array, "*batch electrons electrons"]


class LogPsiJet(NamedTuple):
    """log ψ, ∇ log ψ and ∇² log ψ of each walker."""

    value: LogPsi
    gradient: Complex[Array, "*batch coordinates"]
    laplacian: ComplexPerWalker


class BlochJet(NamedTuple):
    """Bloch orbitals φ_j(r_i) of each determinant, with derivatives along r_i."""

    value: Matrices
    gradient: Complex[Array, "*batch electrons electrons 2"]
    laplacian: Matrices


def log_psi_jet(
    model: Wavefunction,
    electrons: Float[Array, "walkers electrons 2"],
    h: Jet,
    embedding: Float[Array, "walkers n_embed"],
    points: Point,
) -> LogPsiJet:
    """log ψ and its derivatives from those of the features h after the trunk (all 2N coordinates)."""
    walkers, n = electrons.shape[:2]
    determinants = _determinants(model, electrons, h, points)
    w_re, w_im = jax.vmap(model.determinant_weights)(embedding)
    # p_k = w_k det_k / ψ: the share of each determinant.
    top = determinants.value.real.max(-1, keepdims=True)
    share = jax.lax.complex(w_re, w_im) * jnp.exp(determinants.value - top)
    total = share.sum(-1, keepdims=True)
    share = share / total
    gradient = jnp.sum(share[..., None] * determinants.gradient, 1)
    curved = determinants.laplacian + jnp.sum(determinants.gradient**2, -1)
    laplacian = jnp.sum(share * curved, -1) - jnp.sum(gradient**2, -1)
    pair, d_pair, l_pair = jax.vmap(model.pair.derivatives)(electrons, points.u, embedding)
    one_body = Jet(*(y @ model.factor.weight[:, 0] for y in h))
    log_factor = pair + one_body.value.reshape(walkers, n).sum(1)
    d_factor = d_pair.reshape(walkers, 2 * n) + one_body.jacobian.reshape(walkers, n, 2 * n).sum(1)
    phase = jnp.sum(electrons.sum(1) * points.twist, -1)
    return LogPsiJet(
        jnp.log(total[:, 0]) + top[:, 0] + jax.lax.complex(log_factor, phase),
        gradient + jax.lax.complex(d_factor, jnp.tile(points.twist, (1, n))),
        laplacian + l_pair + one_body.laplacian.reshape(walkers, n).sum(1),
    )


def _determinants(
    model: Wavefunction, electrons: Float[Array, "walkers electrons 2"], h: Jet, points: Point
) -> LogPsiJet:
    """log det Φ^k and its derivatives, last batch axis k. One determinant at a time, for memory."""
    network = model.start.network
    walkers, n = electrons.shape[:2]
    y = _by_determinant(model, model.head(h.value).reshape(walkers, n, -1))  # [K, walkers, i, j]
    weight = _by_determinant(model, model.head.weight)  # [K, d, j]
    d_own = own_block(h.jacobian, n).reshape(walkers, n, 2, -1)
    d_h = h.jacobian.reshape(walkers, n, 2 * n, -1)
    l_h = h.laplacian.reshape(walkers, n, -1)

    def one(inputs: tuple[Array, Array, BlochJet | None]) -> LogPsiJet:
        y, weight, phi = inputs
        matrix = y if phi is None else phi.value * (1 + y)
        value, inverse = _log_det_inverse(matrix)
        transposed = jnp.swapaxes(inverse, 1, 2)  # [walkers, m, j]
        # V_i, [walkers, i, d, (re, im) m]; one product a walker.
        v = (_by_feature(weight, phi, walkers) @ _stacked(inverse)).reshape(walkers, -1, len(weight), 2 * n)
        b = d_h @ v  # re and im of B_a side by side, [walkers, i, a, m]
        re, im = b[..., :n], b[..., n:]
        re_t, im_t = jnp.swapaxes(re, 1, 3), jnp.swapaxes(im, 1, 3)
        squared = jax.lax.complex(jnp.sum(re * re_t - im * im_t, (1, 2, 3)), 2 * jnp.sum(re * im_t, (1, 2, 3)))
        # Column m = i of V_i holds all that traces of ∂Φ Φ⁻¹ need.
        v_own = (transposed if phi is None else phi.value * transposed) @ weight.T  # [walkers, i, d]
        v_own = jnp.stack([v_own.real, v_own.imag], -1)
        gradient = _complex(jnp.sum(d_h @ v_own, 1))
        laplacian = _complex(jnp.einsum("wid,widc->wc", l_h, v_own)) - squared
        if phi is None:
            return LogPsiJet(value, gradient, laplacian)
        # What the Bloch orbitals add: only row e of ∂_aΦ, a = (e, c).
        d_phi = jnp.moveaxis(phi.gradient, -1, 2)  # [walkers, e, c, j]
        own = ((d_phi * (1 + y)[:, :, None]).reshape(walkers, 2 * n, n) @ inverse).reshape(walkers, n, 2, n)
        column = jax.lax.complex(_column(re), _column(im))
        own_trace = own[:, np.arange(n), :, np.arange(n)].swapaxes(0, 1)
        squared = jnp.sum(2 * jnp.sum(own * column, -1) + own_trace**2, (1, 2))
        d_factor = (d_own @ jnp.concatenate([weight.real, weight.imag], 1)).reshape(walkers, n, 2, 2, n)
        d_factor = jax.lax.complex(d_factor[..., 0, :], d_factor[..., 1, :])
        l_matrix = phi.laplacian * (1 + y) + 2 * jnp.sum(d_phi * d_factor, 2)
        linear_part = jnp.sum(l_matrix * transposed, (1, 2))
        return LogPsiJet(value, gradient + own_trace.reshape(gradient.shape), laplacian + linear_part - squared)

    phi = None
    if network.init != "random":
        phi = jax.vmap(lambda r, p: bloch_jet(model, r, p))(electrons, points)
        phi = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), phi)
    out = jax.lax.map(one, (y, weight, phi))
    return LogPsiJet(*(jnp.moveaxis(x, 0, 1) for x in out))


def _by_feature(weight: Complex[Array, "d j"], phi: BlochJet | None, walkers: int) -> Float[Array, "walkers i_d two_j"]:
    """∂Φ_ij/∂h_i = W_dj φ_ij, real and imaginary part side by side; without φ the same for all i, and given once."""
    own = jnp.concatenate([weight.real, weight.imag], -1)
    if phi is None:
        return jnp.broadcast_to(own, (walkers, *own.shape))
    turned = jnp.concatenate([-weight.imag, weight.real], -1)
    re, im = (jnp.concatenate([x, x], -1)[:, :, None] for x in (phi.value.real, phi.value.imag))
    return (own * re + turned * im).reshape(walkers, -1, own.shape[1])


def _stacked(x: Matrices) -> Float[Array, "*batch two_j two_m"]:
    """Real matrix that takes (re, im) of rows w to (re, im) of w x."""
    return jnp.concatenate(
        [jnp.concatenate([x.real, x.imag], -1), jnp.concatenate([-x.imag, x.real], -1)],
        -2,
    )


def _complex(x: Float[Array, "*batch 2"]) -> Complex[Array, "*batch"]:
    return jax.lax.complex(x[..., 0], x[..., 1])


def _column(b: Float[Array, "walkers m coordinates e"]) -> Float[Array, "walkers e 2 m"]:
    """b[m, (e, c), e] as [e, c, m]."""
    walkers, n = b.shape[:2]
    own = np.arange(n)
    return jnp.moveaxis(b.reshape(walkers, n, n, 2, n)[:, :, own, :, own], (0, 1, 2, 3), (1, 0, 3, 2))


def bloch_jet(model: Wavefunction, electrons: Electrons, point: Point) -> BlochJet:
    """The non-interacting orbitals with derivatives: ∂ brings down i(k + G)."""
    q = jnp.asarray(
        model.start.occupations.momenta[:, None] + model.start.waves.vectors, electrons.dtype
    )  # [orbitals, waves, 2]

    def at(re: Array, im: Array) -> Matrices:
        return jax.lax.complex(*model.bloch_orbitals(electrons, point._replace(orbitals_re=re, orbitals_im=im)))

    re, im = point.orbitals_re, point.orbitals_im
    q2 = jnp.sum(q * q, -1)
    gradient = [at(-q[..., c] * im, q[..., c] * re) for c in range(2)]
    return BlochJet(at(re, im), jnp.stack(gradient, -1), at(-q2 * re, -q2 * im))


def _by_determinant(model: Wavefunction, y: Float[Array, "*rows outputs"]) -> Complex[Array, "K *rows n"]:
    """Head outputs, ordered (re or im, determinant, orbital), as complex."""
    y = y.reshape(*y.shape[:-1], 2, model.start.network.determinants, model.start.family.n_electrons)
    return jnp.moveaxis(jax.lax.complex(y[..., 0, :, :], y[..., 1, :, :]), -2, 0)


def _log_det_inverse(matrix: Matrices) -> tuple[Complex[Array, "*batch"], Matrices]:
    """log det (complex) and inverse from one LU decomposition."""
    lu, pivots, permutation = jax.lax.linalg.lu(matrix)
    diagonal = jnp.diagonal(lu, axis1=-2, axis2=-1)
    n = matrix.shape[-1]
    odd = jnp.sum(pivots != jnp.arange(n), -1) % 2
    sign = jnp.prod(diagonal / jnp.abs(diagonal), -1) * (1 - 2 * odd)
    value = jax.lax.complex(jnp.sum(jnp.log(jnp.abs(diagonal)), -1), jnp.angle(sign))
    identity = jnp.eye(n, dtype=matrix.dtype)[permutation]
    solve = jax.lax.linalg.triangular_solve
    inverse = solve(lu, identity, left_side=True, lower=True, unit_diagonal=True)
    return value, solve(lu, inverse, left_side=True, lower=False)

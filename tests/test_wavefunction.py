from dataclasses import replace
from functools import cache

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qernel.cell import Cell
from qernel.errors import InputError
from qernel.family import Family
from qernel.moe import with_experts
from qernel.network import Network
from qernel.presets import EXACT
from qernel.start import make_start
from qernel.wavefunction import Wavefunction, log_psi

TINY = replace(EXACT, determinants=2, experts=3, top_k=1, jastrow_shells=4, plane_wave_cutoff=60.0)
POLARISED = Family(n_up=3, lam=(0.5, 1.5, 2), twist=(0.31, -0.17), cell=Cell(supercell=((2, 1), (-1, 2))))
MIXED = replace(POLARISED, n_up=2, n_down=2)

evaluate = eqx.filter_jit(lambda model, r, point: model(r, point))


def randomised(model, seed=0, scale=0.3):
    """All weights moved, so that heads and responses that start from zero take part."""
    leaves, structure = jax.tree.flatten(eqx.filter(model, eqx.is_inexact_array))
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    moved = [x + scale * jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
    return eqx.combine(jax.tree.unflatten(structure, moved), model)


@cache
def build(family=POLARISED, network=TINY, random=True):
    """(model, point of λ = 0.9)."""
    start = make_start(family, network)
    model = Wavefunction(jax.random.key(1), start)
    points = start.points(family.vector(lam=0.9)[None])
    return randomised(model) if random else model, jax.tree.map(lambda x: x[0], points)


def walkers(family, n=6, seed=0):
    return jnp.asarray(np.random.default_rng(seed).random((n, family.n_electrons, 2)) @ family.cell.vectors)


def assert_same(log_a, log_b, factor=1.0, tolerance=1e-9):
    """ψ_a = factor ψ_b, compared as complex numbers: signs and phases count."""
    np.testing.assert_allclose(np.exp(np.asarray(log_a - log_b)), factor, atol=tolerance, rtol=0)


CASES = {
    "polarised": (POLARISED, TINY),
    "both spins": (MIXED, TINY),
    "PsiFormer": (POLARISED, replace(TINY, experts=0, film_width=0, kv_heads=2)),
    "SlaterNet": (POLARISED, replace(TINY, heads=0, experts=0, film_width=0)),
    "random start": (MIXED, replace(TINY, init="random", determinants=1)),
    "mixed start": (MIXED, replace(TINY, init="mixed", bands=2)),
}


@pytest.mark.parametrize(("family", "network"), CASES.values(), ids=CASES)
def test_symmetries_of_the_wavefunction(family, network):
    """Antisymmetry, supercell translations with the twist phase, and what is not a symmetry."""
    model, point = build(family, network)
    r = walkers(family)
    value = evaluate(model, r, point)
    assert np.isfinite(np.asarray(value)).all()
    assert_same(evaluate(model, r[:, np.array([1, 0, *range(2, family.n_electrons)])], point), value, -1.0)
    if family.n_down:
        assert_same(evaluate(model, r[:, np.array([0, 1, 3, 2])], point), value, -1.0)
        # Exchange of unlike spins is no symmetry: if it were, this test would say nothing.
        other = np.exp(np.asarray(evaluate(model, r[:, np.array([2, 1, 0, 3])], point) - value))
        assert np.abs(np.abs(other) - 1).min() > 1e-4
    twist = np.asarray(point.twist)
    for shift in (family.cell.vectors[0], family.cell.vectors[1] - 2 * family.cell.vectors[0]):
        for electron in (0, family.n_electrons - 1):
            moved = evaluate(model, r.at[:, electron].add(shift), point)
            assert_same(moved, value, np.exp(1j * twist @ shift))


def test_twist_moves_the_phase_of_a_whole_translation():
    """Phase of N electrons together, at another twist: exp(iN θ·T)."""
    family = replace(POLARISED, twist=(0.9, 1.3))
    model, point = build(family, TINY)
    r = walkers(family)
    shift = family.cell.vectors[1]
    phase = np.exp(3j * np.array([0.9, 1.3]) @ shift)
    assert abs(phase - 1) > 0.1
    assert_same(evaluate(model, r + shift, point), evaluate(model, r, point), phase)


def test_batch_axes_and_couplings():
    model, _ = build()
    points = model.start.points(POLARISED.grid())
    r = jnp.stack([walkers(POLARISED, seed=s) for s in (1, 2)])
    together = eqx.filter_jit(log_psi)(model, r, points)
    for c in range(2):
        point = jax.tree.map(lambda x, c=c: x[c], points)
        np.testing.assert_allclose(together[c], evaluate(model, r[c], point), rtol=1e-9, atol=1e-9)
    assert np.abs(np.exp(together[0] - evaluate(model, r[0], jax.tree.map(lambda x: x[1], points))) - 1).max() > 1e-3


@pytest.mark.parametrize("family", [POLARISED, MIXED], ids=["polarised", "both spins"])
def test_start_is_a_slater_determinant_times_jastrow(family):
    """With heads at zero ψ is Σ_k w_k det φ^k exp(J + iθ·Σr), here with numpy from the tables."""
    model, point = build(family, TINY, False)
    start = model.start
    r = walkers(family)
    orbital = np.asarray(point.orbitals_re) + 1j * np.asarray(point.orbitals_im)
    wave = np.exp(1j * np.asarray(r) @ start.waves.vectors.T) @ orbital.T
    phi = wave * np.exp(1j * np.asarray(r) @ start.occupations.momenta.T)  # [walkers, electron, orbital]
    up = np.arange(family.n_electrons) < family.n_up
    total = 0
    for weight, columns in zip((1.0, 0.05), start.occupations.columns, strict=True):
        matrix = phi[:, :, columns]
        blocks = [matrix[:, spin][:, :, spin] for spin in (up, ~up) if spin.any()]
        total = total + weight * np.prod([np.linalg.det(b) for b in blocks], axis=0)
    jastrow = model.pair(r, point.u, model.embedding(point))
    expected = total * np.exp(np.asarray(jastrow) + 1j * np.asarray(r).sum(1) @ np.asarray(family.twist))
    assert_same(evaluate(model, r, point), np.log(expected))


def test_mixtures_of_a_filled_band_are_the_filled_band():
    """With as many electrons as states every mixture spans the same space: one determinant, times det C."""
    family = replace(POLARISED, n_up=3, cell=Cell(supercell=((1, 1), (2, -1))))
    network = replace(TINY, init="mixed", determinants=1)
    (mixed, point), (plain, point_of_plain) = (
        build(family, n, False) for n in (network, replace(network, init="bloch"))
    )
    c = mixed.mixing.weight + jnp.tensordot(mixed.mixing.response(mixed.embedding(point)), mixed.mixing.direction, 1)
    r = walkers(family)

    def determinant(model, point):
        return np.linalg.det(np.asarray(jax.lax.complex(*model.bloch_orbitals(r, point))[:, 0]))

    ratio = determinant(mixed, point) / determinant(plain, point_of_plain)
    np.testing.assert_allclose(ratio / ratio[0], 1.0, atol=1e-10)
    np.testing.assert_allclose(abs(ratio[0]), abs(np.linalg.det(c[0, 0] + 1j * c[1, 0])), rtol=1e-10)


def test_start_is_smooth_in_the_coupling():
    """A gauge that jumped would make one set of weights useless: overlaps of neighbouring λ stay near 1, and real."""
    family = replace(POLARISED, n_up=1, lam=(0.0, 2.0, 2))
    start = make_start(family, replace(TINY, determinants=3))
    points = start.points(np.linspace(0, 2, 41)[:, None])
    c = np.asarray(points.orbitals_re) + 1j * np.asarray(points.orbitals_im)
    np.testing.assert_allclose((np.abs(c) ** 2).sum(-1), 1.0)
    overlap = (c[1:].conj() * c[:-1]).sum(-1)
    assert overlap.real.min() > 0.98
    assert np.abs(overlap.imag).max() < 0.02


def test_smooth_across_a_change_of_the_open_experts():
    """∇ log ψ changes over a distance 2h in proportion to h, also where an expert opens or closes on the way."""
    network = replace(TINY, film_width=0, determinants=1)
    model, point = build(POLARISED, network)
    # Scores far apart along the line, so that the open set changes.
    model = eqx.tree_at(lambda m: m.blocks.experts.router.weight, model, replace_fn=lambda w: 3 * w)
    model = with_experts(model, sparse=False)  # for derivatives in forward mode
    r0, direction = np.random.default_rng(3).random((2, 3, 2))

    def line(t):
        return jnp.asarray(r0) + t * jnp.asarray(direction)

    def gates(t):
        block = jax.tree.map(lambda a: a[0], model.blocks)
        x = model.lift(model.inputs(line(t)))
        none = jnp.zeros(0)
        x = x + block.attention(block.film_attention(x, none))
        return block.experts.gates(block.film_experts(x, none))

    slope = jax.jit(jax.vmap(jax.jacfwd(lambda t: model(line(t), point))))
    t = jnp.linspace(0, 0.5, 4001)
    open_ = np.asarray(jax.jit(jax.vmap(gates))(t) > 0)
    changes = np.flatnonzero((open_[1:] != open_[:-1]).any((-1, -2)))
    assert len(changes) >= 2
    x = t[changes]
    jumps = [np.abs(slope(x + h) - slope(x - h)) for h in (2e-3, 1e-3, 5e-4)]
    assert (jumps[1] / jumps[0]).max() < 0.75
    assert (jumps[2] / jumps[1]).max() < 0.75
    # Gates that stop at a jump fail the same check: their function value alone jumps there.
    gate = np.asarray(jax.jit(jax.vmap(gates))(t))
    assert np.abs(gate[1:] - gate[:-1]).max() < 1e-2


@pytest.mark.parametrize(("family", "pair", "slope"), [(POLARISED, (0, 1), 1 / 3), (MIXED, (0, 2), 1.0)])
def test_electron_electron_cusp(family, pair, slope):
    """At contact ψ ~ 1 + u r for unlike and r(1 + u r/3) for like spins: −½∇² against u/r in two dimensions."""
    model, point = build(family, TINY)
    r = np.array(walkers(family, 1, seed=4)[0])
    centre, direction = r[pair[0]].copy(), np.array([0.6, 0.8])
    distance = np.array([0.5e-4, 1e-4, -0.5e-4, -1e-4])
    batch = np.repeat(r[None], len(distance), 0)
    batch[:, pair[0]] = centre + 0.5 * distance[:, None] * direction
    batch[:, pair[1]] = centre - 0.5 * distance[:, None] * direction
    log_abs = np.asarray(evaluate(model, jnp.asarray(batch), point).real)
    if slope < 1:
        log_abs = log_abs - np.log(np.abs(distance))
    derivative = (log_abs[1] - log_abs[0]) / 0.5e-4, (log_abs[3] - log_abs[2]) / -0.5e-4
    # From both sides: what is smooth at contact drops out.
    cusp = 0.5 * (derivative[0] - derivative[1])
    assert cusp == pytest.approx(slope * float(point.u), rel=2e-3)


def test_interaction_may_vary_in_the_family():
    """Also where weights are made inside compiled code; the cusp follows u of each coupling."""
    family = replace(POLARISED, epsilon=(4.0, 20.0, 2))
    start = make_start(family, TINY)
    shapes = eqx.filter_eval_shape(Wavefunction, jax.random.key(0), start)
    model = Wavefunction(jax.random.key(0), start)
    assert [x.shape for x in jax.tree.leaves(shapes)] == [x.shape for x in jax.tree.leaves(model)]
    points = start.points(np.array([[1.0, 4.0], [1.0, 20.0]]))
    assert float(points.u[0]) == pytest.approx(5 * float(points.u[1]))
    near = walkers(family, 1).at[0, 1].set(walkers(family, 1)[0, 0] + jnp.asarray([1e-4, 0.0]))[0]
    for k in range(2):
        point = jax.tree.map(lambda x, k=k: x[k], points)
        # log|ψ| without the determinant, which vanishes there, has the slope u/3.
        factor = lambda r, point=point: model.pair(r, point.u, model.embedding(point))  # noqa: E731
        slope = jax.grad(lambda x, f=factor: f(near.at[1, 0].add(x)))(0.0)
        far = jax.grad(lambda x, f=factor: f(near.at[1, 0].add(x - 2e-4)))(0.0)
        assert float(slope - far) / 2 == pytest.approx(float(point.u) / 3, rel=1e-2)


def test_one_electron_has_no_pair_factor():
    family = replace(POLARISED, n_up=1)
    model, point = build(family, TINY)
    assert_same(model.pair(walkers(family), point.u, model.embedding(point)), 0.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 8, "heads": 3}, r"network\.width = 8: must be a multiple of heads = 3"),
        ({"width": 8, "heads": 4, "kv_heads": 3}, r"network\.kv_heads = 3: must be a divisor of heads = 4"),
        ({"kv_heads": 0}, r"network\.kv_heads = 0"),
        ({"experts": 2, "top_k": 3}, r"network\.top_k = 3: must be from 1 to the number of experts = 2"),
        ({"top_k": 0}, r"network\.top_k = 0"),
        ({"layers": 0}, r"network\.layers = 0: must be at least 1"),
        ({"determinants": 0}, r"network\.determinants = 0"),
        ({"experts": -1}, r"network\.experts = -1"),
        ({"expert_width": 0}, r"network\.expert_width = 0"),
        ({"plane_wave_cutoff": 0.0}, r"network\.plane_wave_cutoff = 0\.0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        Network(**fields)


def test_top_k_and_kv_heads_are_not_looked_at_where_unused():
    Network(heads=0, kv_heads=7, width=9)
    Network(experts=0, top_k=9)


def test_more_electrons_than_orbitals_is_refused():
    with pytest.raises(InputError, match=r"family\.n_up = 60: must be at most \d+"):
        make_start(replace(POLARISED, n_up=60), replace(TINY, plane_wave_cutoff=5.0))


def test_parameter_count_by_hand():
    model, _ = build(POLARISED, TINY, False)
    n = TINY
    w, f, k, electrons = n.width, n.film_width, n.determinants, 3
    film = 2 * w + f * 2 * w
    attention = 2 * w * w + 2 * w * (n.kv_heads * w // n.heads)
    shared = w * n.shared_width + n.shared_width + n.shared_width * w + w
    expert = w * n.expert_width + n.expert_width + n.expert_width * w
    block = 2 * film + attention + shared + (w * n.experts + n.experts) + n.experts * expert
    columns = 2 * k * electrons
    heads = w * columns + columns + w + 2 * k + f * 2 * k
    pair = 1 + n.jastrow_shells + f * (n.jastrow_shells + 1)
    total = (1 * f + f) + (f * f + f) + (12 * w + w) + block + heads + pair
    assert model.parameter_count() == (total, total - (n.experts - n.top_k) * expert)
    dense, _ = build(POLARISED, replace(TINY, experts=0, film_width=0, kv_heads=2))
    assert len(set(dense.parameter_count())) == 1


def test_special_cases_have_no_idle_parts():
    psiformer, _ = build(*CASES["PsiFormer"])
    slater, point = build(*CASES["SlaterNet"])
    assert psiformer.embed is None
    assert psiformer.blocks.experts.routed is None
    assert psiformer.blocks.attention.key.weight.shape == psiformer.blocks.attention.query.weight.shape
    assert slater.blocks.attention is None
    # Without attention, an orbital of one electron does not know where the others are.
    r = walkers(POLARISED, 2)
    h = slater.features(r, slater.embedding(point))
    moved = slater.features(r.at[:, 1].add(0.3), slater.embedding(point))
    np.testing.assert_allclose(h[:, 0], moved[:, 0], atol=1e-12)
    assert np.abs(h[:, 1] - moved[:, 1]).max() > 1e-3


def test_conditioning_is_through_film_alone_when_on():
    """Film off and heads moved: the same features at every λ; on: different ones."""
    r = walkers(POLARISED, 2)
    for network, differ in ((TINY, True), (replace(TINY, film_width=0), False)):
        model, _ = build(POLARISED, network)
        a, b = (jax.tree.map(lambda x, c=c: x[c], model.start.points(POLARISED.grid())) for c in (0, 1))
        change = np.abs(model.features(r, model.embedding(a)) - model.features(r, model.embedding(b))).max()
        assert bool(change > 1e-3) == differ


def test_single_precision_is_single_throughout():
    network = replace(TINY, dtype="float32")
    start = make_start(POLARISED, network)
    model = Wavefunction(jax.random.key(0), start)
    assert {x.dtype.name for x in jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))} == {"float32"}
    point = jax.tree.map(lambda x: x[0], start.points(POLARISED.grid()))
    value = evaluate(randomised(model), walkers(POLARISED).astype("float32"), point)
    assert value.dtype == jnp.complex64

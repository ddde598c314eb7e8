import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qernel.errors import InputError
from qernel.scores import Held
from qernel.spring import CONDITION, Spring, SpringState, solve_guarded

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(12, 30))
RESIDUAL = RNG.normal(size=12)
PREVIOUS = 0.1 * RNG.normal(size=30)
LOOSE = {"rate": 1.0, "max_norm": 1e6, "max_change": 1e6}


def update(settings, rows=ROWS, residual=RESIDUAL, previous=PREVIOUS, step=0):
    state = SpringState(jnp.asarray(previous))
    change, state, info = settings.update(Held(jnp.asarray(rows)), jnp.asarray(residual), state, step)
    return np.asarray(change), np.asarray(state.direction), info


def dense(rows, residual, previous, damping, momentum):
    """argmin |Xδ − Δ|² + κ|δ − μδ'|² as one stacked least-squares problem."""
    p = rows.shape[1]
    a = np.concatenate([rows, np.sqrt(damping) * np.eye(p)])
    b = np.concatenate([residual, np.sqrt(damping) * momentum * previous])
    return np.linalg.lstsq(a, b, rcond=None)[0]


@pytest.mark.parametrize("shape", [(12, 30), (40, 7)], ids=["more parameters", "more samples"])
@pytest.mark.parametrize(("damping", "momentum"), [(1e-3, 0.9), (1e-1, 0.0), (1e-3, 0.0)])
def test_direction_solves_the_stated_problem(shape, damping, momentum):
    rng = np.random.default_rng(1)
    rows, residual, previous = rng.normal(size=shape), rng.normal(size=shape[0]), rng.normal(size=shape[1])
    change, direction, info = update(Spring(**LOOSE, damping=damping, momentum=momentum), rows, residual, previous)
    expected = dense(rows, residual, previous, damping, momentum)
    np.testing.assert_allclose(direction, expected, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(change, -expected, rtol=1e-8, atol=1e-10)
    assert float(info.fallback) == 0.0
    assert float(info.bound) == 1.0


def test_without_momentum_the_past_is_forgotten():
    settings = Spring(**LOOSE, momentum=0.0)
    np.testing.assert_array_equal(update(settings)[1], update(settings, previous=0 * PREVIOUS)[1])


def test_momentum_lives_on_in_directions_the_samples_do_not_see():
    """Components of δ' orthogonal to all rows are kept, shrunk by μ: the point of SPRING."""
    settings = Spring(**LOOSE, momentum=0.9)
    unseen = np.eye(30) - np.linalg.pinv(ROWS) @ ROWS
    _, direction, _ = update(settings)
    np.testing.assert_allclose(unseen @ direction, 0.9 * unseen @ PREVIOUS, atol=1e-10)
    assert np.linalg.norm(unseen @ PREVIOUS) > 0.1


def test_change_goes_downhill():
    """The gradient is 2 XᵀΔ; the change has a negative product with it."""
    change, _, _ = update(Spring(momentum=0.0))
    assert change @ (ROWS.T @ RESIDUAL) < 0


def test_norm_bound():
    settings = Spring(rate=0.5, max_norm=1e-3, max_change=1e6)
    change, direction, info = update(settings)
    assert np.linalg.norm(change) == pytest.approx(1e-3, rel=1e-6)
    assert float(info.update_norm) == pytest.approx(1e-3, rel=1e-6)
    assert 0 < float(info.bound) < 1
    free, free_direction, _ = update(Spring(rate=0.5, max_norm=1e6, max_change=1e6))
    np.testing.assert_allclose(change / np.linalg.norm(change), free / np.linalg.norm(free), atol=1e-9)
    # The momentum is the whole direction.
    np.testing.assert_allclose(direction, free_direction, rtol=1e-9)


def test_bound_of_the_change_of_log_psi():
    change, _, info = update(Spring(rate=0.5, max_norm=1e6, max_change=1e-2))
    assert np.linalg.norm(ROWS @ change) == pytest.approx(1e-2, rel=1e-6)
    assert 0 < float(info.bound) < 1


def test_bounded_steps_of_many_batches_find_what_all_of_them_say():
    """Batches of 4 of 40 equations for 30 unknowns, steps bounded to a tenth and less: the direction becomes the
    solution of all, which no batch can know alone. Without momentum the error is of order one."""
    rng = np.random.default_rng(3)
    rows, truth = rng.normal(size=(40, 30)), rng.normal(size=30)

    def error(momentum):
        settings = Spring(rate=1.0, max_norm=1e-3, max_change=1e6, momentum=momentum, damping=1e-6)
        state = SpringState(jnp.zeros(30))
        step = jax.jit(lambda rows, residual, state: settings.update(Held(rows), residual, state, 0)[1:])
        for _ in range(400):
            batch = rng.choice(40, 4, replace=False)
            state, info = step(rows[batch], (rows @ truth)[batch], state)
            assert float(info.bound) < 0.1
        return np.linalg.norm(np.asarray(state.direction) - truth) / np.linalg.norm(truth)

    assert error(0.999) < 0.1
    assert error(0.0) > 0.5


def test_damping_grows_with_what_single_precision_cannot_resolve():
    rows = ROWS * np.where(np.arange(12) == 0, 1e4, 10.0)[:, None]  # one eigenvalue far above the next, as in training
    matrix = rows @ rows.T
    *_, info = update(Spring(**LOOSE, damping=1e-6), rows)
    assert float(info.condition) == pytest.approx(CONDITION, rel=1e-5)
    expected = np.linalg.solve(matrix + np.linalg.eigvalsh(matrix)[-1] / CONDITION * np.eye(12), RESIDUAL)
    direction = update(Spring(**LOOSE, damping=1e-6, momentum=0.0), rows)[1]
    np.testing.assert_allclose(direction, rows.T @ expected, rtol=1e-5)


@pytest.mark.parametrize("max_norm", [1e6, 1e-3])
def test_rate_decays_and_the_bound_with_it(max_norm):
    settings = Spring(rate=0.5, decay=100.0, max_norm=max_norm, max_change=1e6)
    start, later = update(settings, step=0)[0], update(settings, step=300)[0]
    np.testing.assert_allclose(later, start / 4, rtol=1e-6)


def test_single_precision_rows_give_single_precision_changes():
    state = Spring().init(30, "float32")
    assert state.direction.dtype == jnp.float32
    change, state, _ = Spring().update(Held(jnp.asarray(ROWS, "float32")), jnp.asarray(RESIDUAL, "float32"), state, 0)
    assert change.dtype == state.direction.dtype == jnp.float32
    np.testing.assert_allclose(change, update(Spring(), previous=0 * PREVIOUS)[0], rtol=1e-3, atol=1e-5)


def test_guarded_solve_by_cholesky():
    matrix = ROWS @ ROWS.T
    solution, fallback = solve_guarded(jnp.asarray(matrix), jnp.asarray(RESIDUAL), 1e-2)
    np.testing.assert_allclose(solution, np.linalg.solve(matrix + 1e-2 * np.eye(12), RESIDUAL), rtol=1e-8)
    assert float(fallback) == 0.0


def test_guarded_solve_where_cholesky_fails():
    """A negative eigenvalue (rounding of a singular Gram matrix, exaggerated): clipped at zero, and flagged."""
    vectors = np.linalg.qr(RNG.normal(size=(12, 12)))[0]
    values = np.r_[-0.5, np.linspace(0.1, 3, 11)]
    matrix = vectors @ np.diag(values) @ vectors.T
    solution, fallback = solve_guarded(jnp.asarray(matrix), jnp.asarray(RESIDUAL), 1e-2)
    clipped = np.maximum(values, 0) + 1e-2
    np.testing.assert_allclose(solution, vectors @ ((vectors.T @ RESIDUAL) / clipped), rtol=1e-7, atol=1e-8)
    assert float(fallback) == 1.0


def test_fallback_is_reported_by_the_update():
    rows = ROWS.copy()
    rows[0] = np.nan
    _, _, info = update(Spring(), rows)
    assert float(info.fallback) == 1.0


@pytest.mark.parametrize(
    ("name", "value"),
    [("rate", 0.0), ("rate", float("nan")), ("decay", -1.0), ("damping", 0.0), ("max_norm", float("inf"))],
)
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(InputError, match=rf"optimizer\.{name} = .*must be positive"):
        Spring(**{name: value})


@pytest.mark.parametrize("momentum", [-0.1, 1.0])
def test_momentum_must_be_below_one(momentum):
    with pytest.raises(InputError, match=r"optimizer\.momentum"):
        Spring(momentum=momentum)

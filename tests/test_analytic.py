import jax.numpy as jnp
import numpy as np
import pytest

from qernel import analytic
from qernel.bands import solve_bands
from qernel.cell import Cell
from qernel.errors import InputError
from qernel.hamiltonian import Hamiltonian
from qernel.units import Material

M = Material()


def hamiltonian(n_up=3, n_down=0, lam=1.0, u=0.0, twist=(0.0, 0.0), cell=None, phi=M.phi, gate=None):
    return Hamiltonian(
        lam=lam, v0=M.v0, phi=phi, u=u, twist=jnp.array(twist), cell=cell or Cell(), n_up=n_up, n_down=n_down, gate=gate
    )


@pytest.mark.parametrize("cell", [Cell(), Cell(supercell=((1, 1), (2, -1))), Cell("square", ((3, 1), (0, 2)))])
@pytest.mark.parametrize("twist", [(0.0, 0.0), (0.31, -0.2), (7.0, 11.0)])
def test_free_electrons_fill_the_lowest_plane_waves(cell, twist):
    h = hamiltonian(7, 4, lam=0.0, twist=twist, cell=cell)
    n = np.stack(np.meshgrid(*[np.arange(-40, 41)] * 2), -1).reshape(-1, 2)
    levels = np.sort(0.5 * ((np.array(twist) + n @ cell.reciprocal) ** 2).sum(1))
    expected = levels[:7].sum() + levels[:4].sum()
    assert analytic.free_electron_energy(h) == pytest.approx(expected, abs=1e-10)
    assert analytic.noninteracting_energy(h) == pytest.approx(expected, abs=1e-9)


def test_free_energy_is_periodic_in_the_twist():
    cell = Cell(supercell=((2, 1), (0, 3)))
    theta = np.array([0.2, 0.5])
    energies = [
        analytic.free_electron_energy(hamiltonian(5, 2, twist=theta + n @ cell.reciprocal, cell=cell))
        for n in np.array([(0, 0), (1, 0), (-2, 3)])
    ]
    assert np.ptp(energies) < 1e-10


def test_one_electron_matches_finite_differences_on_a_grid():
    """Γ of one moiré cell: sparse real-space finite differences, extrapolated in the grid spacing."""
    cell = Cell(supercell=((1, 0), (0, 1)))
    h = hamiltonian(1, cell=cell, lam=0.7)

    def grid(size: int) -> float:
        s = np.arange(size) / size
        x = np.stack(np.meshgrid(s, s, indexing="ij"), -1) @ cell.moire_vectors
        w = -2 * M.v0 * np.cos(x @ cell.potential_wavevectors.T + M.phi).sum(-1)
        eye, shift = np.eye(size), np.roll(np.eye(size), 1, axis=1)
        # The six neighbours of the triangular grid: Laplacian = 2/(3 h²) Σ (f(r + d) − f(r)).
        hops = [np.kron(shift, eye), np.kron(eye, shift), np.kron(shift.T, shift)]
        laplacian = (2 / 3) * size**2 * (sum(p + p.T for p in hops) - 6 * np.eye(size * size))
        return np.linalg.eigvalsh(-0.5 * laplacian + np.diag(0.7 * w.ravel()))[0]

    coarse, fine = grid(14), grid(28)
    extrapolated = fine + (fine - coarse) / 3
    assert analytic.one_electron_energy(h) == pytest.approx(extrapolated, abs=3e-2)


def test_one_electron_hellmann_feynman():
    step = 1e-4
    up, down = (analytic.one_electron_energy(hamiltonian(1, lam=1 + s)) for s in (step, -step))
    h = hamiltonian(1)
    bands = solve_bands(h, 1)
    k = int(np.argmin(bands.energies[:, 0]))
    moire = bands.energies[k, 0] - bands.kinetic()[k, 0, 0].real
    assert (up - down) / (2 * step) == pytest.approx(moire, abs=1e-5)


def test_one_electron_carries_its_image_energy():
    bare, coupled = analytic.one_electron_energy(hamiltonian(1)), analytic.one_electron_energy(hamiltonian(1, u=M.u))
    from qernel.ewald import ewald_tables

    assert coupled - bare == pytest.approx(0.5 * M.u * ewald_tables(Cell()).madelung)


def test_bands_are_orthonormal_and_cutoff_converged():
    h = hamiltonian(twist=(0.3, 0.1))
    bands, more = solve_bands(h, 4), solve_bands(h, 4, cutoff=500.0)
    c = bands.coefficients.reshape(9, 4, -1)
    assert np.allclose(c.conj() @ c.transpose(0, 2, 1), np.eye(4), atol=1e-12)
    assert np.abs(bands.energies - more.energies).max() < 1e-4


@pytest.mark.parametrize("field", ["lam", "u", "phi"])
def test_a_coupling_that_is_not_finite_is_refused(field):
    with pytest.raises(InputError, match=field):
        analytic.one_electron_energy(hamiltonian(**{field: float("nan")}))

"""Simple states to compare with, without parameters: plane waves, non-interacting electrons, crystals.

Each function gives determinants that span all of the states of its kind (open shells, all places of a crystal). They
follow from the one-body Hamiltonian and, for a crystal, from classical charges; from no many-body state. Raises
`InputError` where there is no such state or where there are too many.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np

from qernel import bands
from qernel.bands import ComplexArray, solve_bands
from qernel.cell import Cell, FloatArray, IntArray, coset_representatives, lattice_points, reduce_basis
from qernel.errors import require
from qernel.hamiltonian import Hamiltonian, fourier_components
from qernel.hf_seeds import site_energies
from qernel.slater import Determinants, reach, wave_integers

MOST = 64
"""determinants at most"""

MOST_PATTERNS = 10_000
"""patterns of classical charges compared at most"""

SAME = 1e-6
"""energies that differ by less, E0, are those of one level"""


def plane_waves(h: Hamiltonian) -> Determinants:
    """Plane waves of lowest kinetic energy ½|B + θ|², with every choice among those at the Fermi level."""
    cell, twist = h.cell, np.asarray(h.twist, float)
    fermi = math.sqrt(4 * math.pi * max(h.n_up, h.n_down) / cell.area)
    # A disc wider than the Fermi disc by any wavevector of the unit cell has at least as many points as electrons.
    radius = fermi + np.linalg.norm(twist) + 2 * np.linalg.norm(reduce_basis(cell.reciprocal), axis=1).sum()
    b = lattice_points(cell.reciprocal, float(radius))
    columns = occupations(0.5 * ((b + twist) ** 2).sum(1), h)
    used, columns = _used(columns)
    return Determinants(_dense([(wave_integers(b[[i]], cell), np.ones(1, complex)) for i in used]), columns)


def bloch(h: Hamiltonian) -> Determinants:
    """Bloch orbitals of lowest energy of T + λW, with every choice among those at the Fermi level."""
    fewest = min(len(n) for n in bands.plane_waves(h.cell, np.asarray(h.twist, float), bands.CUTOFF))
    found = solve_bands(h, fewest)
    columns = occupations(found.energies.ravel(), h)
    used, columns = _used(columns)
    orbitals = []
    for orbital in used:
        k, band = divmod(int(orbital), found.n_bands)
        c = found.coefficients[k, band]
        there = np.any(found.coefficients[k] != 0, axis=0)
        orbitals.append((wave_integers(found.wavevectors[k][there] - found.twist, h.cell), c[there]))
    return Determinants(_dense(orbitals), columns)


def gaussians(h: Hamiltonian) -> Determinants:
    """Gaussians on minima of λW, as wide as the ground state of the harmonic well there, for all `patterns`.

    φ_R(r) = Σ_T exp(iθ·T) g(r − R − T) by its plane waves, g(x) = exp(−½ x·Ωx), Ω² = ∇∇λW. With both spins
    every distribution of the spins over the sites.
    """
    minimum, omega = well(h)
    sites = patterns(h)
    spins = list(itertools.combinations(range(h.n_electrons), h.n_up))
    count = len(sites) * len(spins)
    require(count <= MOST, "crystals of the same classical energy", count, f"at most {MOST}")
    columns = np.array([[*row[list(up)], *np.delete(row, up)] for row in sites for up in spins])
    used, columns = _used(columns)
    twist = np.asarray(h.twist, float)
    # What is left out has less than 10⁻⁶ of the norm.
    longest = math.sqrt(16 * np.linalg.eigvalsh(omega)[-1]) + float(np.linalg.norm(twist))
    n = np.stack(np.meshgrid(*(np.arange(-r, r + 1) for r in reach(longest, h.cell)), indexing="ij"), -1)
    p = twist + n @ (2 * np.pi * np.linalg.inv(h.cell.reduced_vectors).T)
    envelope = np.exp(-0.5 * np.einsum("abi,ij,abj->ab", p, np.linalg.inv(omega), p))
    c = np.stack([envelope * np.exp(-1j * p @ (minimum + h.cell.translations[site])) for site in used])
    c /= np.linalg.norm(envelope)
    smallest = float(np.linalg.eigvalsh(np.einsum("kab,lab->kl", c.conj(), c))[0])
    require(smallest > 1e-8, "smallest eigenvalue of the overlaps of the Gaussians", smallest, "more than 1e-8")
    return Determinants(c, columns)


KINDS: dict[str, Callable[[Hamiltonian], Determinants]] = {
    "plane_waves": plane_waves,
    "bloch": bloch,
    "gaussians": gaussians,
}


def occupations(levels: FloatArray, h: Hamiltonian) -> IntArray:
    """All occupations of lowest energy, [determinants, N], of orbitals with these energies (E0), up first."""
    choices = []
    for n in (h.n_up, h.n_down):
        fermi = np.sort(levels)[n - 1] if n else -np.inf
        inner = np.flatnonzero(levels < fermi - SAME)
        shell = np.flatnonzero(np.abs(levels - fermi) <= SAME)
        choices.append((inner, shell, n - len(inner)))
    count = math.prod(math.comb(len(shell), rest) for _, shell, rest in choices)
    require(count <= MOST, "determinants of the same lowest energy", count, f"at most {MOST}")
    spins = ([(*inner, *s) for s in itertools.combinations(shell, rest)] for inner, shell, rest in choices)
    return np.array([up + down for up, down in itertools.product(*spins)])


def well(h: Hamiltonian) -> tuple[FloatArray, FloatArray]:
    """The minimum of λW [2], and Ω = (∇∇λW)^½ there [2, 2].

    Raises `InputError` unless there is one minimum in a moiré cell and λW is curved there in all directions.
    """
    n, w = fourier_components(h)
    g, w = n @ h.cell.moire_reciprocal, float(h.lam) * w
    size = 48
    fraction = np.stack(np.meshgrid(*2 * [np.arange(size) / size], indexing="ij"), -1)

    def value(r: FloatArray) -> FloatArray:
        return np.asarray((np.exp(1j * r @ g.T) @ w).real)

    def slope_and_curvature(r: FloatArray) -> tuple[FloatArray, FloatArray]:
        z = np.exp(1j * r @ g.T) * w
        return -g.T @ z.imag, -np.einsum("m,mi,mj->ij", z.real, g, g)

    grid = value(fraction @ h.cell.moire_vectors)
    depth = np.ptp(grid)
    require(bool(depth > 1e-9), "depth of the potential", float(depth), "more than 0 for it to have minima")
    steps = [s for s in itertools.product((-1, 0, 1), repeat=2) if any(s)]
    lowest = np.all([grid <= np.roll(grid, s, (0, 1)) + 1e-12 * depth for s in steps], axis=0)
    found = []
    lowest &= grid < grid.min() + 0.1 * depth
    for r in fraction[lowest] @ h.cell.moire_vectors:
        for _ in range(20):
            slope, curvature = slope_and_curvature(r)
            least = np.linalg.eigvalsh(curvature)[0]
            flat = bool(least > 1e-3 * depth)
            require(flat, "curvature of the potential at its minimum", float(least), "positive in all directions")
            r = r - np.linalg.solve(curvature, slope)
        found.append((r, float(value(r))))
    best = min(found, key=lambda f: f[1])
    away = np.array([r - best[0] for r, v in found if v < best[1] + 1e-6 * depth]) @ np.linalg.inv(h.cell.moire_vectors)
    others = int(np.any(np.abs(away - np.rint(away)) > 1e-4, axis=1).sum())
    require(others == 0, "minima of the potential in a moiré cell", others + 1, "1")
    values, vectors = np.linalg.eigh(slope_and_curvature(best[0])[1])
    return best[0], vectors * np.sqrt(values) @ vectors.T


def patterns(h: Hamiltonian) -> IntArray:
    """Sites of point charges on the minima (indices of `Cell.translations`), all patterns of lowest energy, [m, N].

    With a filling of p/q electrons per minimum those are compared that repeat after a superlattice of q moiré cells
    which fits into the supercell: p sites of each. Of equal energy are all translations, and rotations if they differ.
    """
    cell, n = h.cell, h.n_electrons
    require(n <= cell.n_cells, "electrons", n, f"at most {cell.n_cells}, one in each minimum of the potential")
    q = cell.n_cells // math.gcd(n, cell.n_cells)
    p = n * q // cell.n_cells
    fitting = sublattices(cell, q)
    count = len(fitting) * math.comb(q, p)
    require(count <= MOST_PATTERNS, f"patterns with the filling {p}/{q}", count, f"at most {MOST_PATTERNS}")
    chosen = itertools.combinations(range(q), p)
    occupied = np.unique([np.isin(coset, c) for c in chosen for coset in fitting], axis=0).astype(float)
    energy = 0.5 * np.sum((occupied @ site_energies(cell, h.gate)) * occupied, 1)
    return np.array([np.flatnonzero(o) for o in occupied[energy < energy.min() + SAME]])


def sublattices(cell: Cell, q: int) -> list[IntArray]:
    """Superlattices of q moiré cells that fit into the supercell: each as the coset (0 … q − 1) of every translation.

    A superlattice has the basis (a, b), (0, d) with a d = q and 0 ≤ b < d (Hermite's normal form), once each.
    """
    sites = coset_representatives(np.array(cell.supercell))
    found = []
    for d in (d for d in range(1, q + 1) if q % d == 0):
        a = q // d
        for b in range(d):

            def coset(x: IntArray, a: int = a, b: int = b, d: int = d) -> IntArray:
                return x[:, 0] % a * d + (x[:, 1] - x[:, 0] // a * b) % d

            if not coset(np.array(cell.supercell)).any():
                found.append(coset(sites))
    return found


def _used(columns: IntArray) -> tuple[IntArray, IntArray]:
    """The orbitals that are used, and the columns in their numbers."""
    used, numbers = np.unique(columns, return_inverse=True)
    return used, numbers.reshape(columns.shape)


def _dense(orbitals: list[tuple[IntArray, ComplexArray]]) -> ComplexArray:
    """Orbitals as integers [m, 2] and coefficients [m], put on one grid [orbitals, 2 r1 + 1, 2 r2 + 1]."""
    r = np.max([np.abs(n).max(0) for n, _ in orbitals], 0)
    c = np.zeros((len(orbitals), *2 * r + 1), complex)
    for k, (n, values) in enumerate(orbitals):
        c[k, n[:, 0] + r[0], n[:, 1] + r[1]] = values
    return c

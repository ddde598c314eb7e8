"""The least memory that a computation needs however it is cut to size, from its configuration alone.

Counted are the arrays that exist at the same time whatever the chunks, so that an estimate above the free memory is one
that cannot fit: it is refused in one line before anything is computed or written. `memory.py` cuts up the rest.
"""

from __future__ import annotations

import math

import jax

from qernel.cell import Cell
from qernel.config import Adam, Config
from qernel.devices import mesh
from qernel.memory import MOST_BLOCKS, energy_bytes, itemsize
from qernel.mixing import DIRECTIONS
from qernel.observables import check_names
from qernel.observables.density import density_bins
from qernel.result import Settings
from qernel.stages import Part, Stage, plane_waves, require_fit

REACH = 5.1
"""√(−log 10⁻¹⁰) + 0.3: of the Ewald sums, in units of their splitting parameter"""

NARROWEST = 1.6
"""smallest splitting parameter that is tried, over √area"""

QUADRATURE = 128**2
"""points at which the cusps of the pair factor are expanded in its plane waves"""


def check_training(config: Config) -> None:
    """Raise `InputError` if no step of this run can fit into the free memory."""
    require_fit([start(config), *training(config)])


def least(config: Config) -> float:
    """Bytes below which no step of this run fits."""
    return max(sum(part.size for part in stage) for stage in [start(config), *training(config)])


def check_loading(config: Config) -> None:
    """Raise `InputError` if a checkpoint of this run cannot fit into the free memory."""
    require_fit([start(config), state(config)])


def check_sampling(config: Config, couplings: int, settings: Settings) -> None:
    """Raise `InputError` if measuring at so many couplings cannot fit into the free memory."""
    require_fit([sampling(config, couplings, settings)])


def parameters(config: Config) -> int:
    """Weights of the network, as `Vmc.n_parameters` counts them."""
    n, family = config.network, config.family
    f, w, k = n.film_width, n.width, n.determinants
    names, inputs = len(family.names), 6 + (4 if family.cell.lattice == "square" else 6) + bool(family.n_down)
    film = 2 * w + 2 * w * f
    attention = film + 2 * w * w + 2 * w * n.kv_heads * (w // n.heads) if n.heads else 0
    routed = n.experts * (w + 1 + 2 * w * n.expert_width + n.expert_width) if n.experts else 0
    shared = 2 * w * n.shared_width + n.shared_width + w
    embedding = (names + f + 2) * f
    head = (w + 1) * 2 * k * family.n_electrons
    orbitals = n.bands * family.cell.n_cells
    mixture = 2 * k * family.n_electrons * orbitals if n.init == "mixed" else 0
    mixing = mixture * (1 + DIRECTIONS) + f * DIRECTIONS if mixture and f else mixture
    pair = 1 + n.jastrow_shells + f * (n.jastrow_shells + 1)
    return (
        embedding
        + (inputs + 1) * w
        + n.layers * (attention + film + shared + routed)
        + head
        + mixing
        + pair
        + w
        + 2 * k * (1 + f)
    )


def start(config: Config) -> Stage:
    """Of the one-body start: bands at one coupling, the tables of all, and those of pairs."""
    n, family, couplings = config.network, config.family, len(config.couplings)
    cells = family.cell.n_cells
    waves = plane_waves(n.plane_wave_cutoff, family.cell.area / cells)
    return [
        # Matrix and eigenvectors, complex, at every momentum.
        Part(
            32.0 * cells * waves**2,
            f"bands of {waves} plane waves at {cells} momenta",
            "network.plane_wave_cutoff or family.cell.supercell",
        ),
        orbitals_part(config, couplings, "network.plane_wave_cutoff or couplings"),
        Part(16.0 * QUADRATURE * n.jastrow_shells, "plane waves of the pair factor", "network.jastrow_shells"),
        Part(40.0 * ewald_waves(family.cell, family.gate), "Ewald sum of nearby gates", "family.cell.supercell"),
    ]


def state(config: Config) -> Stage:
    """Of weights and walkers, with what the optimiser keeps."""
    kept = 3 if isinstance(config.optimizer, Adam) else 2
    walkers = walkers_part(config, len(config.couplings), config.sampling.walkers, "sampling.walkers")
    return [weights_part(config, kept), walkers]


def training(config: Config) -> list[Stage]:
    """Of the stages of a step: local energy, and gradient with solve."""
    couplings, walkers, item = len(config.couplings), config.sampling.walkers, itemsize(config.network)
    weights, electrons = parameters(config), config.family.n_electrons
    held = [
        weights_part(config, 4 if isinstance(config.optimizer, Adam) else 3),
        walkers_part(config, couplings, walkers, "sampling.walkers", 3),
    ]
    energy = [*held, *energy_parts(config, couplings, walkers, "sampling.walkers")]
    one = Part(2.0 * item * weights, "derivatives of one walker", "network.width or network.layers")
    if isinstance(config.optimizer, Adam):
        return [energy, [*held, one]]
    rows = 2 * couplings * walkers
    # Devices of a CPU have one memory together, and each of them solves.
    copies = _sharing(walkers) if jax.default_backend() == "cpu" else 1
    fewer = "sampling.walkers or couplings (family.lam, train_at)"
    gram = Part(
        3 * 8.0 * copies * rows**2, f"Gram matrix of 2·{couplings}·{walkers} rows, regularised and factored", fewer
    )
    columns = math.ceil(weights / MOST_BLOCKS)
    scores = Part(float(item * rows * columns), f"scores of {rows} rows, {columns} of {weights} weights", fewer)
    return [energy, [*held, one, scores, gram]] if electrons else []


def sampling(config: Config, couplings: int, settings: Settings) -> Stage:
    """Of measuring: walkers of training and of the scan, their energies, their series and their densities."""
    squares = density_bins(config.family.cell, settings.bins) ** 2
    counts = couplings * settings.walkers * squares * itemsize(config.network) / _sharing(settings.walkers)
    sweeps = min(20, settings.max_sweeps)
    parts = [
        *state(config),
        walkers_part(config, couplings, settings.walkers, "--walkers", 2),
        *energy_parts(config, couplings, settings.walkers, "--walkers"),
        Part(32.0 * couplings * settings.walkers * sweeps, f"energies of {sweeps} sweeps", "--walkers"),
        orbitals_part(config, couplings, "couplings"),
    ]
    if "density" in check_names(settings.observables):
        parts.append(Part(counts, f"density in {squares} bins of every walker", "--bins or --walkers"))
    return parts


def orbitals_part(config: Config, couplings: int, fewer: str) -> Part:
    """Plane-wave coefficients of the starting orbitals: of one determinant at least, or of whole bands to mix."""
    n, family = config.network, config.family
    waves = plane_waves(n.plane_wave_cutoff, family.cell.area / family.cell.n_cells)
    orbitals = n.bands * family.cell.n_cells if n.init == "mixed" else max(family.n_up, family.n_down)
    return Part(16.0 * couplings * orbitals * waves, f"starting orbitals at {couplings} couplings", fewer)


def weights_part(config: Config, copies: int) -> Part:
    """Weights, and so many vectors like them."""
    weights = parameters(config)
    what = f"{weights} weights with the optimiser's state"
    return Part(float(copies * weights * itemsize(config.network)), what, "network.width, layers or experts")


def walkers_part(config: Config, couplings: int, walkers: int, fewer: str, copies: int = 1) -> Part:
    """Positions of the electrons of all walkers."""
    electrons = config.family.n_electrons
    size = 2.0 * copies * couplings * walkers * electrons * itemsize(config.network) / _shared_out(walkers)
    return Part(size, f"{couplings}·{walkers} walkers of {electrons} electrons", fewer)


def energy_parts(config: Config, couplings: int, walkers: int, fewer: str) -> Stage:
    """Of the local energy: phases or pairs of all walkers, and derivatives of one."""
    family, electrons = config.family, config.family.n_electrons
    phases = electrons * max(electrons - 1, ewald_waves(family.cell, family.gate) // 2)
    pairs = couplings * walkers * phases * itemsize(config.network) / _shared_out(walkers)
    one = energy_bytes(config.network, electrons) / 5  # one of its arrays
    return [
        Part(pairs, f"pairs of electrons of {couplings}·{walkers} walkers", fewer),
        Part(one, "derivatives of the features of one walker", "network.width or electrons"),
    ]


def ewald_waves(cell: Cell, gate: float | None) -> int:
    """About how many wavevectors the Ewald sum has; rather too few."""
    g = 2 * NARROWEST * REACH / math.sqrt(cell.area)
    if gate is not None:
        g = max(g, -math.log(1e-10) / (2 * gate))
    return plane_waves(g**2 / 2, cell.area)


def _sharing(walkers: int) -> int:
    return mesh(walkers).size


def _shared_out(walkers: int) -> int:
    """Devices over whose own memories the walkers are spread."""
    return 1 if jax.default_backend() == "cpu" else _sharing(walkers)

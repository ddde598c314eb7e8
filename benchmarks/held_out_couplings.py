"""A family between its trained couplings: energies in the middles of the grid cells against exact diagonalisation.

    python benchmarks/held_out_couplings.py runs/n3-lam-eps --bands 6

For any run whose system can be diagonalised. Printed, as a table of Markdown: all couplings of the family, the energy
of the network with its error bar, the exact one (all sectors), and the difference in percent of the exact one; first
where it was trained, then where it was not, and the worst of each.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from qernel import exact, load
from qernel.cell import FloatArray
from qernel.evaluate import Model, Settings
from qernel.family import Family
from qernel.stats import format_uncertainty


def middles(family: Family) -> FloatArray:
    """Middles of the cells of the trained grid, [cells, names]; a coupling of one point keeps it."""
    axes = [np.linspace(*getattr(family, n)) for n in family.names]
    return np.array(list(itertools.product(*((x[1:] + x[:-1]) / 2 if len(x) > 1 else x for x in axes))))


def spread(couplings: FloatArray, most: int) -> FloatArray:
    """At most so many of them, the first and the last always among them."""
    return couplings[np.unique(np.linspace(0, len(couplings) - 1, min(most, len(couplings))).round().astype(int))]


def compare(model: Model, couplings: FloatArray, settings: Settings, bands: int, title: str) -> float:
    """Print a row for each coupling, and return the worst difference in percent."""
    family, worst = model.config.family, 0.0
    print(f"\n| {title}: {' | '.join(family.names)} | E | exact, {bands} bands | difference, % |")
    print("|" + "--:|" * (len(family.names) + 3))
    for c, r in zip(couplings, model.scan(couplings, settings), strict=True):
        reference = exact.ground_state_energy(family.hamiltonian(jnp.asarray(c)), bands)
        difference, error = (100 * x / abs(reference) for x in (r.energy.mean - reference, r.energy.error))
        worst = max(worst, difference, key=abs)
        cells = [*(f"{x:.5g}" for x in c), str(r.energy), f"{reference:.4f}", format_uncertainty(difference, error)]
        print(f"| {' | '.join(cells)} |", flush=True)
    return worst


def main() -> None:
    """Both tables, and the worst differences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--bands", type=int, default=6, help="bands per k of the exact diagonalisation")
    parser.add_argument("--most", type=int, default=16, help="couplings in each table")
    parser.add_argument("--sweeps", type=int, default=200, help="measurements of each of 256 chains")
    o = parser.parse_args()
    model = load(o.run)
    settings = Settings(max_sweeps=o.sweeps, observables=("energy",))
    print(f"{model.config.name} after {model.step} steps; 256 chains of {o.sweeps} measurements, totals in E0")
    trained = compare(model, spread(model.trained, o.most), settings, o.bands, "trained")
    held_out = compare(model, spread(middles(model.config.family), o.most), settings, o.bands, "not trained")
    print(f"\nworst difference: {trained:+.3f} % where it was trained, {held_out:+.3f} % between")


if __name__ == "__main__":
    main()

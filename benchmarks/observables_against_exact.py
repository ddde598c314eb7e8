"""What a trained family gives for its observables, against exact diagonalisation, λ by λ.

    qernel train moire-n3 --run runs/n3
    python benchmarks/observables_against_exact.py runs/n3 --lam 0.25 0.75 1.25 2

Compared is what all states of a degenerate level share: S(k) and n(k) averaged over stars, the density averaged over
translations and the point group (its detail up to half the bins), the order parameter, and g(r) on rings, those that
hold 30 pairs or more in every replica. Error bars are standard errors over replicas, sets of chains of their own, so
they are right for any average; with 32 of them 5σ is passed by chance at one point in 50,000.

Columns: number of points; largest and root mean square deviation in σ; root mean square of the deviation and of its
error bar, in percent of that of the exact values (points weighted by the size of their star or the area of their ring);
the same deviations from the mixture of the lowest exact states of all total momenta with the weights that were measured
(momenta do not mix in these observables: where neighbouring sectors have nearly the same energy, it tells whether they
are the reason); and by how much the exact values change from --fewer to --bands bands, in percent.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from qernel import exact
from qernel.bands import solve_bands
from qernel.cell import FloatArray
from qernel.devices import use_cores
from qernel.evaluate import Model, load
from qernel.exact_dataset import DEGENERATE, quantities
from qernel.family import Family
from qernel.hamiltonian import Hamiltonian
from qernel.observables.pair_correlation import pair_kinds
from qernel.result import Result, Settings
from qernel.symmetry import star_average, symmetries, symmetrised_map

OBSERVABLES = ("density", "structure_factor", "order_parameter", "pair_correlation")
OBSERVABLES += ("momentum_distribution", "momentum_probability")
TERMS = ("energy", "kinetic", "moire", "interaction")
PAIRS = 30
"""fewest pairs in a ring and replica"""
Values = dict[str, FloatArray]


class Comparable:
    """Of all quantities by name, the numbers that can be compared, and their weights."""

    def __init__(self, h: Hamiltonian, like: dict[str, Any]) -> None:
        """`like`: quantities with the axes of those to come."""
        self.cell, self.operations = h.cell, symmetries(h)
        self.star = {
            name: q.coordinates[f"{axis}_star"][1]
            for name, q in like.items()
            for axis in ("k", "G")
            if f"{axis}_star" in q.coordinates
        }
        self.weights: Values = {name: np.bincount(star[star >= 0]).astype(float) for name, star in self.star.items()}
        rho = symmetrised_map(like["density"].value, h.cell, self.operations)
        # Translations repeat every bin.
        _, self.place, count = np.unique(rho.round(9), return_index=True, return_counts=True)
        self.weights["density"] = count.astype(float)
        for name, q in like.items():
            if name.startswith("pair"):
                self.weights[name] = q.coordinates["r"][1]

    def __call__(self, values: dict[str, Any]) -> Values:
        """Points [m] by name, from arrays by name; what is not compared is left out."""
        out: Values = {}
        for name, value in values.items():
            if name in self.star:
                out[name] = star_average(np.asarray(value), self.star[name])
            elif name == "density":
                rho = symmetrised_map(np.asarray(value), self.cell, self.operations)
                out[name] = rho.ravel()[self.place]
            elif name in (*TERMS, "order_parameter") or name.startswith("pair"):
                out[name] = np.atleast_1d(np.asarray(value, float))
        return out


def of_state(state: exact.ExactState, h: Hamiltonian, bins: int) -> dict[str, Any]:
    """All quantities of an exact state."""
    return {n: q.value for n, q in quantities(state, h, bins).items()} | {n: getattr(state, n) for n in TERMS}


def of_result(result: Result) -> dict[str, Any]:
    """All quantities of a measurement."""
    energies = {name: getattr(result, name).mean for name in TERMS}
    return {n: q.value for n, q in result.quantities.items()} | energies | {"density": result.density}


def sample(model: Model, couplings: FloatArray, o: argparse.Namespace) -> list[list[Result]]:
    """Results of every replica and coupling."""
    found = []
    for replica in range(o.replicas):
        settings = Settings(
            walkers=o.walkers,
            max_sweeps=o.sweeps,
            moves=o.moves,
            burn_in=o.burn_in,
            bins=o.bins,
            seed=o.seed + replica,
            observables=OBSERVABLES,
        )
        found.append(model.scan(couplings, settings))
        seconds = max(r.seconds for r in found[-1])
        print(f"replica {replica + 1} of {o.replicas}: {seconds:.0f} s", file=sys.stderr, flush=True)
    return found


def compare(h: Hamiltonian, results: list[Result], o: argparse.Namespace) -> None:
    """Print the table of one coupling from the results of all replicas."""
    states = exact.solve_all(h, o.bands)
    ground = min(states, key=lambda s: s.energy)
    comparable = Comparable(h, quantities(ground, h, o.bins))
    wanted = comparable(of_state(ground, h, o.bins))
    before = comparable(of_state(exact.solve(h, o.fewer, ground.sector), h, o.bins))
    share = np.mean([r.quantities["momentum_probability"].value for r in results], axis=0)
    by_state = [comparable(of_state(s, h, o.bins)) for s in states]
    weight = share[[s.sector for s in states]]
    mixture = {n: sum(w * v[n] for w, v in zip(weight, by_state, strict=True)) / weight.sum() for n in wanted}
    sampled = [comparable(of_result(r)) for r in results]
    pairs = pairs_in_rings(h, results[0], wanted)

    above = min((s.energy for s in states if s.energy > ground.energy + DEGENERATE), default=np.nan) - ground.energy
    level = sum(share[s.sector] for s in states if s.energy <= ground.energy + DEGENERATE)
    print(f"λ = {float(h.lam):g}: sector {ground.label}, the next sector is higher by {above:.4f} E0; ", end="")
    print(f"measured weight of the level {level:.4f}")
    print(f"{'':27}points  max σ  rms σ      %  error % | mixture max σ  rms σ      % | bands %")
    for name in [*TERMS, *(n for n in sorted(wanted) if n not in TERMS)]:
        values = np.stack([s[name] for s in sampled])
        seen = pairs.get(name, np.full(len(wanted[name]), np.inf)) >= PAIRS
        w = comparable.weights.get(name, np.ones(len(seen)))[seen]
        mean, error = values.mean(0)[seen], (values.std(0, ddof=1) / np.sqrt(len(values)))[seen]
        scale = rms(wanted[name][seen], w) / 100
        lowest, mixed = (deviations(mean - x[name][seen], error, w, scale) for x in (wanted, mixture))
        row = f"{name:27}{seen.sum():6}{lowest}{rms(error, w) / scale:9.2f} |       {mixed} | "
        print(f"{row}{rms((wanted[name] - before[name])[seen], w) / scale:7.2f}", flush=True)


def deviations(x: FloatArray, error: FloatArray, weights: FloatArray, scale: float) -> str:
    """Largest and root mean square of x in units of its error, and the latter in units of the scale."""
    sigmas = np.abs(x) / error
    return f"{sigmas.max():7.2f}{rms(sigmas, weights):7.2f}{rms(x, weights) / scale:7.2f}"


def rms(x: FloatArray, weights: FloatArray) -> float:
    """Root mean square with weights."""
    return float(np.sqrt(np.average(x**2, weights=weights)))


def pairs_in_rings(h: Hamiltonian, result: Result, wanted: Values) -> Values:
    """Pairs of a replica that the exact g(r) puts into each ring, by the names of g."""
    out = {}
    for name, kind in kinds(h).items():
        g = wanted[name]
        r = result.quantities[name].coordinates["r"][1]
        share = 2 * np.pi * r * (r[1] - r[0]) / h.cell.area
        out[name] = kind * share * g * result.walkers * result.sweeps
    return out


def kinds(h: Hamiltonian) -> dict[str, int]:
    """Number of pairs i < j of every g."""
    found = pair_kinds(Family(n_up=h.n_up, n_down=h.n_down))
    return {f"pair_correlation{name}": len(pairs) for name, pairs in found.items()}


def main() -> None:
    """Sample, diagonalise, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder of few electrons")
    parser.add_argument("--lam", type=float, nargs="+", required=True)
    parser.add_argument("--bands", type=int, default=10)
    parser.add_argument("--fewer", type=int, default=6, help="bands to compare the exact values with")
    parser.add_argument("--replicas", type=int, default=32)
    parser.add_argument("--walkers", type=int, default=64, help="chains of a replica and λ")
    parser.add_argument("--sweeps", type=int, default=100)
    parser.add_argument("--moves", type=int, default=10)
    parser.add_argument("--burn-in", type=int, default=500)
    parser.add_argument("--bins", type=int, default=36)
    parser.add_argument("--seed", type=int, default=1)
    o = parser.parse_args()
    if o.replicas < 8:
        parser.error("--replicas: at least 8, or the error bars mean nothing")
    use_cores()
    warnings.simplefilter("once")
    model = load(o.run)
    family = model.config.family
    couplings = np.stack([family.vector(lam=x) for x in o.lam])
    found = sample(model, couplings, o)
    print(f"{o.run}: {model.step} steps; {o.replicas} replicas of {found[0][0].walkers} chains x {found[0][0].sweeps}")
    for i, c in enumerate(couplings):
        h = family.hamiltonian(jnp.asarray(c))
        for bands in (o.bands, o.fewer):
            energies = solve_bands(h, bands + 1).energies
            if (energies[:, bands] - energies[:, bands - 1]).min() < 1e-6:
                print(f"λ = {o.lam[i]:g}: {bands} bands cut a degenerate level of the bands; take one more or less")
        compare(h, [replica[i] for replica in found], o)


if __name__ == "__main__":
    main()

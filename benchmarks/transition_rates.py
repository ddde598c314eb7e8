"""How often `qernel transition` is right: made-up scans with Gaussian noise σ, many seeds, one row for each curve.

    python benchmarks/transition_rates.py --points 16 --seeds 200
    python benchmarks/transition_rates.py --points 41 --seeds 100 --curves "jump of 5σ" "jump of 8σ"

h is the distance of the couplings, λ from 0.25 to 2, transitions at 1.06. Sizes of jumps and crossovers are differences
of the two branches, in units of the error bar of one point.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable

import numpy as np

from qernel.cell import FloatArray
from qernel.transition import examine

SIGMA, CENTRE = 0.02, 1.06
Made = Callable[[FloatArray, float], FloatArray]


def crossover(width: float, size: float) -> Made:
    """A step of `size` σ, rounded by tanh over `width` couplings."""
    return lambda x, h: -0.5 * x - size * SIGMA / 2 * np.tanh(x / (width * h))


def jump(size: float, slope: float = 0.0, curvature: float = 0.0) -> Made:
    """A sharp step of `size` σ, a change of slope, and a curvature of both branches."""
    return lambda x, h: -2 * x + curvature * x**2 - (size * SIGMA + slope * x) * (x > 0)


CURVES: dict[str, Made] = {
    "line": lambda x, h: -2 * x,
    "cubic": lambda x, h: -2 * x + x**2 - 0.8 * x**3,
    "exponential": lambda x, h: 3 * np.exp(-1.3 * x),
    "line with a wave of 2.5σ": lambda x, h: -2 * x + 2.5 * SIGMA * np.sin(2 * np.pi * x),
    "parabola, errors a third of the noise": lambda x, h: -2 * x + 0.3 * x**2,
    "crossover of 30σ over 4h": crossover(4, 30),
    "crossover of 50σ over 6h": crossover(6, 50),
    "crossover of 100σ over 3h": crossover(3, 100),
    "jump of 5σ": jump(5),
    "jump of 8σ": jump(8),
    "jump of 10σ": jump(10),
    "jump of 20σ, curved": jump(20, 0, 0.5),
    "jump of 50σ, unequal slopes, curved": jump(50, 1, 0.5),
    "kink, slope changes by 1": jump(0, 1),
    "kink, slope changes by 3": jump(0, 3),
}


def row(name: str, points: int, seeds: int, samples: int) -> str:
    """Verdicts over the seeds, and how often the intervals hold the true λ_c, as one line of a table."""
    lam, verdicts, inside = np.linspace(0.25, 2.0, points), Counter[str](), []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        error = SIGMA * rng.uniform(0.7, 1.3, points)
        noise = (3 if "a third" in name else 1) * error * rng.normal(size=points)
        found = examine("rates", lam, CURVES[name](lam - CENTRE, lam[1] - lam[0]) + noise, error, samples=samples)
        verdicts[found.verdict] += 1
        if found.place is not None:
            inside.append([a <= CENTRE <= b for a, b in (found.place.interval_68, found.place.interval_95)])
    shares = [f"{100 * verdicts[v] / seeds:.1f}" for v in ("none", "undecided", "jump", "kink")]
    cover = [f"{100 * x:.0f}" for x in np.mean(inside, axis=0)] if inside and ("jump" in name or "kink" in name) else []
    return f"| {name} | {' | '.join(shares + (cover or ['', '']))} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--samples", type=int, default=199)
    parser.add_argument("--curves", nargs="+", default=list(CURVES), choices=list(CURVES), metavar="NAME")
    o = parser.parse_args()
    print(f"| {o.points} couplings, {o.seeds} seeds; % | none | undecided | jump | kink | in 68 % | in 95 % |")
    print("|---|---|---|---|---|---|---|")
    for name in o.curves:
        print(row(name, o.points, o.seeds, o.samples), flush=True)


if __name__ == "__main__":
    main()

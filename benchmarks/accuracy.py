"""Energy of moire-n6 at λ = 1 after equal time and for several sizes: this program's network against a PsiFormer.

    python benchmarks/accuracy.py qernel-24 psiformer-32 --seconds 300

Each run trains one network (its width is in its name) with 256 walkers, the preset's optimiser and the same sampling;
the PsiFormer with folx's Laplacian. Time is that of the process's one core, so that other work on the machine does not
count (pin it, and give XLA one thread). Printed: mean and standard error over the last fifth of the steps, the weights
moving.
"""

import argparse
import json
import time
from dataclasses import replace

import jax
import numpy as np

from qernel.bench_problems import psiformer
from qernel.presets import preset
from qernel.stats import estimate
from qernel.vmc import Vmc

jax.config.update("jax_enable_x64", True)


def network(name):
    """Network and Laplacian of e.g. qernel-24 or psiformer-32."""
    kind, width = name.split("-")
    if kind == "psiformer":
        return psiformer(int(width)), "folx"
    base = preset("moire-n6").network
    return replace(base, width=int(width), shared_width=int(width)), "forward"


def train(name, seconds, seed):
    """Rows (process seconds, energy, variance) of each step, and the number of weights."""
    net, method = network(name)
    config = preset("moire-n6")
    config = replace(
        config,
        seed=seed,
        network=net,
        family=replace(config.family, lam=(1.0, 1.0, 1)),
        sampling=replace(config.sampling, walkers=256),
    )
    vmc = Vmc(config, method=method)
    state = vmc.step(vmc.init())[0]
    begin, rows = time.process_time(), []
    while time.process_time() - begin < seconds:
        state, metrics, _ = vmc.step(state)
        rows.append((time.process_time() - begin, metrics.energy[0], metrics.variance[0]))
    return rows, state.model.parameter_count()


def main():
    """Train each and print a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", metavar="NETWORK-WIDTH")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for name in options.names:
        rows, (total, active) = train(name, options.seconds, options.seed)
        t, energy, variance = np.array(rows).T
        out = {"name": name, "parameters": total, "active": active, "steps": len(t)}
        for part in (0.125, 0.25, 0.5, 1.0):
            last = (t > 0.8 * part * options.seconds) & (t <= part * options.seconds)
            e = estimate(energy[last][:, None])
            out[f"{part * options.seconds:.0f}s"] = [e.mean, e.error, float(variance[last].mean())]
        print(json.dumps(out), flush=True)


if __name__ == "__main__":
    main()

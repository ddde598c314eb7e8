"""PeriodicWave's network and optimiser on the Hamiltonian of a preset, for comparison with this program.

PeriodicWave (github.com/mg607/PeriodicWave, arXiv:2502.05383) is by the authors of the published QERNEL. Its
CustomPsiformer with the sizes of its own moiré script, its KFAC, sampler and Forward Laplacian (folx) are used as they
are; nothing of it is copied or patched. It needs older versions than this program, hence an environment of its own, and
the Hamiltonian goes there as a file, with our potential energies of some configurations, which are checked:

    git clone https://github.com/mg607/PeriodicWave && git -C PeriodicWave checkout 6525d2f
    python -m venv peer
    peer/bin/pip install jax==0.7.2 kfac-jax==0.0.8 folx==0.2.30 \
        absl-py attrs chex h5py ml-collections optax pandas pyblock scipy
    peer/bin/pip install "jax[cuda12]==0.7.2"                                          # for a GPU

    python benchmarks/periodicwave.py problem moire-n54 --lam 1 --out n54.json
    peer/bin/python benchmarks/periodicwave.py train n54.json PeriodicWave --out runs/peer --seconds 200 --walkers 256
    python benchmarks/head_to_head.py --out runs/head-to-head --walltime 0s --with runs/peer/series.json

The same command goes on where it stopped. Seconds are those of training steps, wall time on an accelerator, processor
time on a CPU; compilation and burn-in are apart. `series.json` is what head_to_head.py reads. Its variance is that of
the real part of the local energy, which is all that PeriodicWave computes; ours is of both parts.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

CONFIGURATIONS = 4
"""whose potential energies are compared"""
AGREE = 1e-4
"""E0, by how much they may differ"""


def refuse(text: str) -> NoReturn:
    """Bad input: one line, exit code 2."""
    print(text, file=sys.stderr)
    sys.exit(2)


def problem(o: argparse.Namespace) -> None:
    """Write the Hamiltonian of a preset at one λ, in this program's environment."""
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    from qernel.errors import InputError
    from qernel.hamiltonian import interaction_energy, moire_energy
    from qernel.presets import preset

    try:
        family = preset(o.preset).family
    except InputError as error:
        refuse(str(error))
    h = family.hamiltonian(jnp.asarray(family.vector(lam=o.lam)))
    plain = not any(family.twist) and family.gate is None and set(family.names) == {"lam"}
    if not plain:
        refuse(f"{o.preset}: PeriodicWave has neither a twist nor gates")
    cell, material = family.cell, family.material
    r = np.random.default_rng(0).random((CONFIGURATIONS, family.n_electrons, 2)) @ cell.vectors
    potential = moire_energy(jnp.asarray(r), h) + interaction_energy(jnp.asarray(r), h)
    data = {
        "preset": o.preset,
        "lam": o.lam,
        "electrons": [family.n_up, family.n_down],
        "supercell": cell.vectors.tolist(),
        "moire": cell.moire_vectors.tolist(),
        "depth": o.lam * material.v0,
        "coulomb": material.u,
        "phi": float(np.deg2rad(material.phi_deg)),
        "configurations": r.tolist(),
        "potential": np.asarray(potential).tolist(),
    }
    o.out.write_text(json.dumps(data))


def settings(data: dict[str, Any], o: argparse.Namespace) -> Any:
    """PeriodicWave's configuration: that of its script for the triangular potential, on this Hamiltonian."""
    from periodicwave import base_config

    lattice, moire = np.array(data["supercell"]).T, np.array(data["moire"]).T  # columns are vectors
    cfg = base_config.default()
    cfg.batch_size = o.walkers
    cfg.system.electrons = tuple(data["electrons"])
    cfg.system.ndim = 2
    cfg.system.pbc_lattice = lattice
    cfg.system.make_local_energy_fn = "periodicwave.pbc.hamiltonian.local_energy"
    cfg.system.make_local_energy_kwargs = {
        "lattice": lattice,
        "potential_type": "CoulombMoire",
        "potential_kwargs": {
            "moire_lattice_vectors": moire,
            "moire_potential_strength": data["depth"],
            "moire_potential_phi": data["phi"],
            "interaction_energy_scale": data["coulomb"],
        },
        "kinetic_kwargs": {"laplacian_method": "folx"},
    }
    cfg.network.make_feature_layer_fn = "periodicwave.pbc.feature_layer.make_pbc_feature_layer"
    cfg.network.make_feature_layer_kwargs = {"lattice": lattice, "include_r_ae": False}
    cfg.network.make_envelope_fn = "periodicwave.envelopes.make_null_envelope"
    cfg.network.update(complex=True, determinants=4, jastrow="NONE", jastrow_kwargs={"ndim": 2})
    cfg.network.network_type = "CustomPsiformer"
    cfg.network.CustomPsiformer.update(num_layers=4, num_heads=4, attn_dim=o.width // 4, value_dim=o.width // 4)
    cfg.network.CustomPsiformer.update(mlp_dim=o.width, num_perceptrons_per_layer=2, mlp_activation_fct="GELU")
    cfg.optim.optimizer = "kfac"
    cfg.optim.iterations = 10**8
    cfg.optim.lr.update(rate=0.1, delay=20000.0, decay=1.0)
    cfg.mcmc.update(burn_in=300, init_width=1.0, move_width=0.2, steps=o.moves)
    cfg.log.save_path = str(o.out / "checkpoints")
    cfg.log.save_frequency = 2.0
    return cfg


def check_potential(data: dict[str, Any]) -> float:
    """The largest difference between their potential energies and ours, E0, in double precision."""
    import jax
    import jax.numpy as jnp
    from jax.experimental import enable_x64
    from periodicwave import networks
    from periodicwave.pbc import hamiltonian

    with enable_x64():
        none = jnp.zeros(1)
        lattice, moire = (jnp.asarray(np.array(data[k]).T) for k in ("supercell", "moire"))
        pairs = hamiltonian.make_2DCoulomb_potential(lattice, none, none, 5, data["coulomb"])
        depth = hamiltonian.make_triangular_potential(moire, none, none, data["depth"], data["phi"])

        def energy(r: Any) -> Any:
            ae, ee, _, _ = networks.construct_input_features(r, jnp.zeros((1, 2)), ndim=2)
            return pairs(ae, ee) + depth(ae)

        theirs = [float(jax.jit(energy)(jnp.asarray(r).reshape(-1))) for r in np.array(data["configurations"])]
    return float(np.abs(np.array(theirs) - data["potential"]).max())


class Enough(Exception):
    """The time is over."""


class Rows:
    """PeriodicWave's writer: a row a step, as it hands them over; ends the training when the time is over.

    A row: step, seconds of the step, 1 if a leg began with it, wall seconds so far of this leg, energy, variance.
    """

    def __init__(self, file: Path, cfg: Any, clock: Callable[[], float], seconds: float, end: float) -> None:
        self.file, self.cfg, self.clock, self.seconds, self.end = file, cfg, clock, seconds, end
        self.rows = read_rows(file)
        self.begun, self.before = time.monotonic(), clock()
        self.first, self.saving = True, False

    def __enter__(self) -> Rows:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def write(self, t: int, **found: Any) -> None:
        """A step is done. The one after the last is thrown away: a checkpoint is saved after a step is written."""
        if self.saving:
            raise Enough
        now, wall = self.clock(), time.monotonic()
        row = [t, now - self.before, int(self.first), wall - self.begun]
        row += [float(found["energy"]), float(found["locstd"]) ** 2]
        # Steps after the checkpoint that this leg began with are made again.
        if self.first:
            self.rows = [r for r in self.rows if r[0] < t]
        self.rows.append(row)
        with self.file.open("w" if self.first else "a", newline="") as file:
            csv.writer(file).writerows(self.rows if self.first else [row])
        self.first = False
        step = max([r[1] for r in self.rows if not r[2]], default=0.0)
        if counted(self.rows).sum() >= self.seconds or wall + 3 * step + 2 > self.end:
            self.cfg.log.save_frequency, self.saving = -1.0, True
        self.before = self.clock()


def read_rows(file: Path) -> list[list[float]]:
    """Rows written before."""
    if not file.exists():
        return []
    with file.open(newline="") as lines:
        return [[float(x) for x in row] for row in csv.reader(lines)]


def counted(rows: list[list[float]]) -> np.ndarray:
    """Seconds of each step; those that compiled count as the median of the others."""
    times, first = np.array([row[1] for row in rows]), np.array([row[2] > 0 for row in rows])
    return np.where(first, np.median(times[~first]) if (~first).any() else 0.0, times)


def train(o: argparse.Namespace) -> None:
    """Train, or go on, in PeriodicWave's environment; writes series.json."""
    began = time.monotonic()
    sys.path.insert(0, str(o.checkout))
    import jax
    from periodicwave import checkpoint
    from periodicwave import train as peer

    jax.config.update("jax_default_matmul_precision", "float32")  # as its script does
    on_cpu = jax.default_backend() == "cpu"
    data = json.loads(o.problem.read_text())
    difference = check_potential(data)
    print(f"potential energies of {CONFIGURATIONS} configurations agree to {difference:.1e} E0", file=sys.stderr)
    if not difference < AGREE:
        sys.exit("the Hamiltonians differ")
    o.out.mkdir(parents=True, exist_ok=True)
    cfg = settings(data, o)
    clock = time.process_time if on_cpu else time.perf_counter
    rows = Rows(o.out / "rows.csv", cfg, clock, o.seconds, began + o.walltime)
    if rows.rows and counted(rows.rows).sum() >= o.seconds:
        print("trained for that long already", file=sys.stderr)
    else:
        with contextlib.suppress(Enough):
            peer.train(cfg, rows)
    saved = checkpoint.find_last_checkpoint(cfg.log.save_path)
    weights = jax.tree.leaves(np.load(saved, allow_pickle=True)["params"].tolist())
    write_series(o, data, rows.rows, sum(x[0].size for x in weights), "processor" if on_cpu else "wall")


def write_series(
    o: argparse.Namespace, data: dict[str, Any], rows: list[list[float]], weights: int, clock: str
) -> None:
    """series.json, in the form of `qernel.bench_compare.Series`."""
    seconds = counted(rows)
    typical = float(np.median(seconds))
    series = {
        "name": f"PeriodicWave-{o.width}",
        "lam": data["lam"],
        "electrons": sum(data["electrons"]),
        "parameters": weights,
        "active": weights,
        "laplacian": "folx",
        "optimizer": "KFAC",
        "walkers": o.walkers,
        "moves": o.moves,
        "clock": clock,
        "setup": sum(row[3] - typical for row in rows if row[2]),
        "seconds": np.cumsum(seconds).tolist(),
        "energy": [row[4] for row in rows],
        "variance": [row[5] for row in rows],
    }
    (o.out / "series.json").write_text(json.dumps(series))
    last = np.array(series["energy"])[-max(1, len(rows) // 5) :]
    print(f"{len(rows)} steps, {typical:.3g} s each, {weights} weights; mean of the last fifth {last.mean():.3f} E0")


def main() -> None:
    """One of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    p = commands.add_parser("problem", help="write a preset's Hamiltonian (this program's environment)")
    p.add_argument("preset")
    p.add_argument("--lam", type=float, required=True)
    p.add_argument("--out", type=Path, required=True)
    p.set_defaults(run=problem)
    p = commands.add_parser("train", help="train on it (PeriodicWave's environment)")
    p.add_argument("problem", type=Path)
    p.add_argument("checkout", type=Path, help="of PeriodicWave, commit 6525d2f")
    p.add_argument("--out", type=Path, required=True, help="folder of checkpoints and results")
    p.add_argument("--seconds", type=float, default=600.0, help="of training steps, all calls together")
    p.add_argument("--walltime", type=float, default=600.0, help="s, of this call")
    p.add_argument("--walkers", type=int, default=256)
    p.add_argument("--moves", type=int, default=10, help="all-electron moves before an update (its script: 30)")
    p.add_argument("--width", type=int, default=64, help="of features and perceptrons; heads have a quarter of it")
    p.set_defaults(run=train)
    o = parser.parse_args()
    o.run(o)


if __name__ == "__main__":
    main()

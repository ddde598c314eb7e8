"""How much precision each part of a step needs: errors of the local energy and of the update against float64.

    qernel train moire-n6 --sampling.walkers 16 --steps 300 --run runs/precision-n6
    python benchmarks/precision.py energy --system 6 --run runs/precision-n6
    python benchmarks/precision.py energy --system 18
    python benchmarks/precision.py energy --system 54 --walkers 2 --moves 100
    python benchmarks/precision.py update --run runs/precision-n6 --walkers 128

Weights and walkers are float32 numbers throughout and equal in all variants. tf32 and bf16 are emulated: the operands
of matrix products are rounded to 10 or 7 bits of mantissa and multiplied and added in float32, as accelerators do.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax._src.lax.lax import dot_general_p

from qernel.cell import Cell
from qernel.compiling import OPTIONS, compiled
from qernel.evaluate import load
from qernel.ewald import ewald_tables, pair_interaction
from qernel.family import Family
from qernel.gradient import clip_per_coupling, residuals
from qernel.hamiltonian import moire_energy
from qernel.jets_head import log_psi_jet
from qernel.laplacian import features
from qernel.presets import preset
from qernel.sampling import adapt_width, metropolis, random_walkers
from qernel.scores import score_rows
from qernel.spring import solve_guarded
from qernel.vmc import Vmc, measure
from qernel.wavefunction import Wavefunction, log_psi

MANTISSA = {"tf32": 10, "bf16": 7}
MOVED = 0.005
"""weights of untrained networks are moved by this much, so that heads that start from zero take part"""


@contextmanager
def rounded_products(bits: int | None, axis: int | None = None) -> Iterator[None]:
    """Products traced inside have float32 operands rounded to `bits`; with `axis`, only those with such an axis."""
    bind = dot_general_p.bind

    def rounding(x: Any, y: Any, **settings: Any) -> Any:
        chosen = axis is None or any(axis in operand.shape for operand in (x, y))
        if chosen and x.dtype == y.dtype == jnp.float32:
            x, y = (jax.lax.reduce_precision(operand, 8, bits) for operand in (x, y))
        return bind(x, y, **settings)

    if bits is None:
        yield
        return
    # The setting changes nothing on a CPU; it keeps traces of matrix products from being taken from JAX's cache.
    label = "high" if axis is None else {10: "tensorfloat32", 7: "bfloat16"}[bits]
    dot_general_p.bind = rounding
    try:
        with jax.default_matmul_precision(label):
            yield
    finally:
        del dot_general_p.bind


def plainly_compiled(f: Callable[..., Any]) -> Any:
    """`compiled` without its own setting of the precision."""
    return eqx.filter_jit(f, compiler_options=OPTIONS)


def cast(tree: Any, dtype: str) -> Any:
    """All real arrays of a tree in another precision."""
    return jax.tree.map(lambda x: jnp.asarray(x, dtype) if eqx.is_inexact_array(x) else x, tree)


def system(options: argparse.Namespace) -> tuple[Vmc, Wavefunction, Any, Any]:
    """(vmc, model, walkers, widths): a trained run, or a preset with its weights moved."""
    if options.run:
        model = load(options.run)
        count = options.walkers or model.config.sampling.walkers
        walkers = model.trained_walkers[:, np.resize(np.arange(model.trained_walkers.shape[1]), count)]
        return Vmc(model.config), model.wavefunction, walkers, jnp.asarray(model.trained_width)
    if options.system == 18:
        config = replace(preset("moire-n54"), family=Family(n_up=18, cell=Cell(supercell=((3, 3), (6, -3)))))
    else:
        config = preset(f"moire-n{options.system}")
    config = replace(config, sampling=replace(config.sampling, walkers=options.walkers or 8))
    vmc = Vmc(config)
    state = vmc.blank()
    leaves, structure = jax.tree.flatten(eqx.filter(state.model, eqx.is_inexact_array))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [x + MOVED * jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
    model = eqx.combine(jax.tree.unflatten(structure, moved), state.model)
    return vmc, model, state.walkers, state.width


def sampled(vmc: Vmc, model: Wavefunction, walkers: Any, width: Any, moves: int) -> Any:
    """Walkers after so many Metropolis moves, widths adapted on the way."""

    @compiled
    def some(model: Wavefunction, points: Any, key: Any, walkers: Any, width: Any) -> Any:
        return metropolis(key, walkers, lambda r: 2 * log_psi(model, r, points).real, width, 10, vmc.config.family.cell)

    for key in jax.random.split(jax.random.key(7), moves // 10):
        out = some(model, vmc.points, key, walkers, width)
        walkers, width = out.walkers, adapt_width(width, out.acceptance, vmc.config.family.cell)
    return walkers


def energies(vmc: Vmc, model: Wavefunction, walkers: Any) -> dict[str, np.ndarray]:
    """Local energy of every walker [all] in float64, and with one part after the other in less precision."""
    n, per = vmc.config.family.n_electrons, walkers.shape[1]
    electrons = walkers.reshape(-1, n, 2)
    points = jax.tree.map(lambda x: jnp.repeat(x, per, axis=0), vmc.points)
    inputs = {dtype: cast((model, electrons, points), dtype) for dtype in ("float64", "float32")}

    def trunk(dtype: str, bits: int | None = None, axis: int | None = None) -> Any:
        def jet(model: Wavefunction, electrons: Any, points: Any) -> Any:
            embedding = jax.vmap(model.embedding)(points)
            return features(model, electrons, embedding), embedding

        with rounded_products(bits, axis):
            return plainly_compiled(jet)(*inputs[dtype])

    head = compiled(log_psi_jet)

    def kinetic(jet: Any, dtype: str, bits: int | None = None) -> np.ndarray:
        h, embedding = cast(jet, dtype)
        model, electrons, points = inputs[dtype]
        with rounded_products(bits):
            run = head if bits is None else plainly_compiled(lambda *x: log_psi_jet(*x))
            out = run(model, electrons, h, embedding, points)
        return np.asarray(-0.5 * (out.laplacian + (out.gradient**2).sum(-1)), complex)

    def potential(dtype: str, bits: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        h = vmc.config.family.hamiltonians(jnp.asarray(vmc.couplings, dtype))
        r = walkers.astype(dtype)
        tables = ewald_tables(h.cell, h.gate, h.ewald_tolerance, n)
        with rounded_products(bits):
            pair = plainly_compiled(lambda r: pair_interaction(r, tables) * jnp.asarray(h.u, dtype)[:, None])(r)
        moire = compiled(lambda r, h: jax.vmap(moire_energy)(r, h))(r, h)
        return np.asarray(pair, float).reshape(-1), np.asarray(moire, float).reshape(-1)

    wide, narrow = trunk("float64"), trunk("float32")
    exact = kinetic(wide, "float64")
    pair, moire = potential("float64")
    pair32, moire32 = potential("float32")
    pair_tf32, _ = potential("float32", 10)
    all32 = kinetic(narrow, "float32")
    return {
        "float64": exact + pair + moire,
        "all float32": all32 + pair32 + moire32,
        "trunk float32": kinetic(narrow, "float64") + pair + moire,
        "determinants and pair factor float32": kinetic(wide, "float32") + pair + moire,
        "Ewald float32": exact + pair32 + moire,
        "one-body potential float32": exact + pair + moire32,
        **{
            f"trunk Jacobian {name}": kinetic(trunk("float32", bits, 2 * n), "float64") + pair + moire
            for name, bits in MANTISSA.items()
        },
        "all of the trunk tf32": kinetic(trunk("float32", 10), "float64") + pair + moire,
        "determinants and pair factor tf32": kinetic(wide, "float32", 10) + pair + moire,
        "Ewald tf32": exact + pair_tf32 + moire,
    }


def energy_table(options: argparse.Namespace) -> None:
    """Errors of the local energy relative to its spread, and of its mean."""
    vmc, model, walkers, width = system(options)
    cell = vmc.config.family.cell
    random = random_walkers(jax.random.key(3), *walkers.shape[:3], cell, "float32")
    drawn = sampled(vmc, model, walkers, width, options.moves)
    table = energies(vmc, model, jnp.concatenate([drawn, random], 1))
    split = {name: np.split(x.reshape(len(drawn), -1), 2, axis=1) for name, x in table.items()}
    for which, kind in enumerate(("sampled", "random")):
        exact = split["float64"][which]
        spread = np.sqrt(np.mean(exact.real.var(1)))
        print(f"\nN = {walkers.shape[2]}, {exact.size} {kind} walkers; spread of the local energy {spread:.3g} E0\n")
        print("| variant | rms error, E0 | over the spread | largest over the spread | shift of the mean, E0 |")
        print("|---|--:|--:|--:|--:|")
        for variant, both in split.items():
            error = both[which] - exact
            shift, sigma = error.real.mean(), error.real.std() / np.sqrt(error.size)
            rms, top = np.sqrt(np.mean(np.abs(error) ** 2)), np.abs(error).max()
            print(f"| {variant} | {rms:.1e} | {rms / spread:.1e} | {top / spread:.1e} | {shift:.1e} ± {sigma:.0e} |")


def block_gram(rows: Any, block: int | None, bits: int | None = None, total: str = "float64") -> Any:
    """XXᵀ with products of `block` columns in the precision of X, added in `total`."""
    if bits is not None:
        rows = jax.lax.reduce_precision(rows, 8, bits)
    p = rows.shape[1]
    block = block or p
    out = jnp.zeros((len(rows), len(rows)), total)
    for start in range(0, p, block):
        part = rows[:, start : start + block]
        out = out + (part @ part.T).astype(total)
    return out


def update_table(options: argparse.Namespace) -> None:
    """Errors of the natural-gradient direction, beside the difference between two independent samples."""
    vmc, model, walkers, width = system(options)
    damping = preset("moire-n6").optimizer.damping
    walkers = sampled(vmc, model, walkers, width, options.moves)
    half = walkers.shape[1] // 2
    halves = [walkers[:, :half], walkers[:, half:]]
    couplings = jnp.asarray(vmc.couplings)

    def problem(walkers: Any, dtype: str) -> tuple[Any, Any]:
        m, r, points = cast((model, walkers, vmc.points), dtype)
        run = compiled(lambda m, r, c, p: measure(vmc.config, m, r, c, p, 64).terms.total)
        energy = clip_per_coupling(run(m, r, couplings, points), vmc.config.clip)
        return compiled(lambda m, r, p: score_rows(m, r, p, 16))(m, r, points), residuals(energy).reshape(-1)

    def direction(rows: Any, gram: Any, right: Any, dtype: str = "float64") -> tuple[np.ndarray, float]:
        solution, fallback = compiled(solve_guarded)(gram.astype(dtype), right.astype(dtype), damping)
        return np.asarray(solution.astype(rows.dtype) @ rows, float), float(fallback)

    x64, right64 = problem(halves[0], "float64")
    x32, right32 = problem(halves[0], "float32")
    begin = time.perf_counter()
    exact = direction(x64, jax.jit(block_gram, static_argnums=1)(x64, None), right64)[0]
    other = direction(*(lambda x, r: (x, x @ x.T, r))(*problem(halves[1], "float32")))[0]

    def difference(x: np.ndarray) -> float:
        return float(np.linalg.norm(x - exact) / np.linalg.norm(exact))

    print(f"\nM = {x64.shape[0]} rows, P = {x64.shape[1]}, damping {damping:g}\n")
    print("| scores, Gram matrix, solve | error of the direction | seconds of the Gram matrix | fallback |")
    print("|---|--:|--:|--:|")
    print(f"| another sample of the same size | {difference(other):.1e} | | |")
    print(
        f"| all float64 but the local energy, float32 | {difference(direction(x64, x64 @ x64.T, right32)[0]):.1e} | | |"
    )
    variants: dict[str, tuple[Callable[[Any], Any], str]] = {
        "float32, float64, float64": (lambda x: block_gram(x.astype("float64"), None), "float64"),
        "float32, float32, float64": (lambda x: block_gram(x, None), "float64"),
        "float32, float32 in blocks of 8192 added in float64, float64": (lambda x: block_gram(x, 8192), "float64"),
        "float32, float32 in blocks of 1024 added in float64, float64": (lambda x: block_gram(x, 1024), "float64"),
        "float32, float32, float32": (lambda x: block_gram(x, None, total="float32"), "float32"),
        "float32, tf32, float64": (lambda x: block_gram(x, None, 10), "float64"),
        "float32, tf32 in blocks of 8192, float64": (lambda x: block_gram(x, 8192, 10), "float64"),
        "float32, bf16, float64": (lambda x: block_gram(x, None, 7), "float64"),
    }
    for name, (gram, solve) in variants.items():
        run = jax.jit(gram)
        jax.block_until_ready(run(x32))
        begin = time.perf_counter()
        matrix = jax.block_until_ready(run(x32))
        seconds = time.perf_counter() - begin
        got, fallback = direction(x32, matrix, right32, solve)
        print(f"| {name} | {difference(got):.1e} | {seconds:.2f} | {fallback:.0f} |", flush=True)


def main() -> None:
    """Print the table that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=("energy", "update"))
    parser.add_argument("--system", type=int, default=6, choices=(6, 18, 54), help="electrons of an untrained network")
    parser.add_argument("--run", help="folder of a trained run instead")
    parser.add_argument("--walkers", type=int, help="per coupling")
    parser.add_argument("--moves", type=int, default=200, help="Metropolis moves before measuring")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    {"energy": energy_table, "update": update_table}[options.table](options)


if __name__ == "__main__":
    main()

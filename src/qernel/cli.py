"""Command line `qernel COMMAND …`: results on stdout, progress on stderr, one line and exit code 2 for bad input."""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from qernel.errors import InputError, nearest, require


class Parser(argparse.ArgumentParser):
    """argparse whose errors are `InputError`s."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing usage and exiting."""
        raise InputError(message)


def build_parser() -> Parser:
    """All commands and their options."""
    parser = Parser(prog="qernel", description="One neural wavefunction for a family of moiré Hamiltonians.")
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)

    train = commands.add_parser(
        "train",
        help="train a family; the same command resumes",
        epilog="Any field of the configuration can follow, e.g. --family.lam 0.25 2.0 8 --network.width 64. "
        "`qernel config PRESET` prints them all.",
    )
    train.add_argument("preset", nargs="?", help="name of a preset")
    train.add_argument("--config", type=Path, help="JSON file of a configuration, instead of a preset")
    train.add_argument("--run", type=Path, help="run folder (default runs/PRESET)")
    train.add_argument("--steps", type=int, help="total steps of the run")
    train.add_argument("--walltime", help="stop in good order before this time is over: 90s, 9m, 1h30m, hh:mm:ss")

    config = commands.add_parser("config", help="print the configuration of a preset as JSON, or explain its fields")
    config.add_argument("preset")
    config.add_argument("--explain", action="store_true", help="every field with its meaning")

    evaluate = commands.add_parser("evaluate", help="energy of a trained family at one coupling, trained or not")
    _run_options(evaluate)
    evaluate.add_argument("--lam", type=float, required=True, help="moiré depth λ")
    _coupling_options(evaluate)
    evaluate.add_argument("--json", action="store_true", help="JSON on stdout")

    scan = commands.add_parser("scan", help="all observables against λ → RUN/results.nc")
    _run_options(scan)
    scan.add_argument("--lam", type=float, nargs=3, metavar=("LOW", "HIGH", "POINTS"), help="grid (default: trained)")
    scan.add_argument("--out", type=Path, help="netCDF file (default RUN/results.nc)")

    transition = commands.add_parser("transition", help="is there a sharp transition along λ, and where? from a scan")
    transition.add_argument("run", type=Path, help="run folder with results.nc, or that file")
    transition.add_argument("--quantity", nargs="+", default=[], help="variables of the scan (default: all it has)")
    transition.add_argument("--samples", type=int, default=999, help="bootstrap samples")
    transition.add_argument("--seed", type=int, default=1, help="of the bootstrap")
    transition.add_argument("--figure", type=Path, help="draw the fits into this file: .pdf, .png or .svg")
    transition.add_argument("--json", action="store_true", help="JSON on stdout")

    report = commands.add_parser("report", help="one self-contained HTML page about a run")
    report.add_argument("run", type=Path)
    report.add_argument("--bands", type=int, help="bands per k of the exact diagonalisation (default: what is quick)")
    report.add_argument("--no-references", action="store_true", help="leave out exact and Hartree-Fock values")

    exact = commands.add_parser("exact", help="exact diagonalisation in the lowest Bloch bands, totals in E0")
    _reference_options(exact)
    exact.add_argument("--bands", type=int, required=True, help="bands per k")
    exact.add_argument("--sector", type=int, help="index of the total momentum (default: all)")

    bench = commands.add_parser("bench", help="speed on this machine, as ratios against baselines timed in turn")
    bench.add_argument("--quick", action="store_true", help="N = 6 and 18 and the local energy only, under a minute")
    bench.add_argument("--json", action="store_true", help="JSON on stdout")

    hf = commands.add_parser("hf", help="unrestricted plane-wave Hartree-Fock, totals in E0")
    _reference_options(hf)
    hf.add_argument("--starts", nargs="+", default=["liquid", "crystal"], help="liquid, crystal, random")
    hf.add_argument("--cutoff", type=float, help="kinetic cutoff of the plane waves in E0")
    hf.add_argument(
        "--density",
        type=Path,
        help="write the lowest state's density [n1, n2] to this .npy file",
    )
    return parser


def _run_options(p: Parser) -> None:
    p.add_argument("run", type=Path, help="run folder or checkpoint file")
    p.add_argument("--target-error", type=float, help="sample until every energy error is below this, E0")
    p.add_argument("--walkers", type=int, default=256, help="chains per coupling")
    p.add_argument("--moves", type=int, default=10, help="moves between measurements")
    p.add_argument("--burn-in", type=int, default=500, help="moves before the first measurement")
    p.add_argument("--max-sweeps", type=int, default=5000, help="most measurements per chain")
    p.add_argument("--bins", type=int, default=36, help="density bins along each supercell vector")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--walltime", help="stop sampling after this time")
    p.add_argument(
        "--observables",
        nargs="+",
        metavar="NAME",
        help="energy (always measured), density, structure_factor, order_parameter, pair_correlation (these are the "
        "default), momentum_probability, momentum_distribution, susceptibility, overlap, router, or all",
    )


def _coupling_options(p: Parser) -> None:
    for name in ("phi-deg", "epsilon", "period-nm", "twist-1", "twist-2"):
        p.add_argument(f"--{name}", type=float, help="if this coupling varies in the family")


def _reference_options(p: Parser) -> None:
    p.add_argument("preset", help="preset that gives system and material")
    p.add_argument("--lam", type=float, required=True, help="moiré depth λ")
    p.add_argument("--n", type=int, help="electrons, spin-polarised (default: the preset's)")
    p.add_argument("--spin", type=int, nargs=2, metavar=("UP", "DOWN"), help="electrons by spin")
    p.add_argument("--phi", type=float, help="φ in degrees")
    p.add_argument("--epsilon", type=float, help="dielectric constant")
    p.add_argument("--twist", type=float, nargs=2, metavar=("T1", "T2"), help="Cartesian twist θ in 1/a_M")
    p.add_argument("--json", action="store_true", help="JSON on stdout")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code."""
    try:
        return _main(sys.argv[1:] if arguments is None else arguments)
    except InputError as error:
        print(f"qernel: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return 1


def _main(arguments: list[str]) -> int:
    parser = build_parser()
    known = ["train", "config", "evaluate", "scan", "transition", "report", "exact", "hf", "bench"]
    if arguments and not arguments[0].startswith("-") and arguments[0] not in known:
        raise InputError(f"command = {arguments[0]}: unknown; {nearest(arguments[0], known)}")
    options, rest = parser.parse_known_args(arguments)
    if options.version:
        from qernel import __version__

        print(__version__)
        return 0
    if options.command is None:
        parser.print_help()
        return 0
    if rest and options.command != "train":
        flags = [s for p in _subparsers(parser)[options.command]._actions for s in p.option_strings]
        raise InputError(f"{rest[0]}: not an option of {options.command}; {nearest(rest[0], flags)}")
    if options.command != "hf":
        # The linear algebra outside JAX is of many small matrices: threads only get in each other's way.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if options.command != "transition":  # no JAX in it
        _prepare_jax()
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    command = {
        "train": lambda o: _train(o, rest),
        "config": _config,
        "evaluate": _evaluate,
        "scan": _scan,
        "transition": _transition,
        "report": _report,
        "exact": _exact,
        "hf": _hf,
        "bench": _bench,
    }[options.command]
    return command(options)


def _subparsers(parser: Parser) -> dict[str, Any]:
    actions = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(actions[0].choices)


def _prepare_jax() -> None:
    """Double precision where asked for, and compiled programs kept between calls."""
    import jax

    from qernel.devices import use_cores

    use_cores()
    jax.config.update("jax_enable_x64", True)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(base / "qernel" / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _train(o: argparse.Namespace, rest: list[str]) -> int:
    from qernel.config import from_dict, read_config, to_dict
    from qernel.presets import preset
    from qernel.train import RunFailed, parse_walltime, run, with_steps

    if (o.preset is None) == (o.config is None):
        raise InputError("train: give either the name of a preset or --config FILE")
    config = preset(o.preset) if o.config is None else read_config(o.config)
    config = with_steps(from_dict(override(to_dict(config), rest)), o.steps)
    folder = o.run or Path("runs") / config.name
    try:
        run(config, folder, walltime=parse_walltime(o.walltime) if o.walltime else None)
    except RunFailed as error:
        print(f"qernel: {error}", file=sys.stderr)
        return 1
    print(folder)
    return 0


def override(config: dict[str, Any], tokens: list[str]) -> dict[str, Any]:
    """A JSON configuration with fields replaced by "--a.b VALUE …" tokens.

    Raises `InputError` for a field that does not exist, with the nearest one.
    """
    if tokens and not tokens[0].startswith("--"):
        raise InputError(f"{tokens[0]}: unexpected; options start with --")
    i = 0
    while i < len(tokens):
        name, _, joined = tokens[i][2:].partition("=")
        values = [joined] if joined else []
        i += 1
        while i < len(tokens) and not tokens[i].startswith("--"):
            values.append(tokens[i])
            i += 1
        require(bool(values), f"--{name}", "", "followed by a value")
        parsed = [_value(v) for v in values]
        _set(config, name, parsed[0] if len(parsed) == 1 else parsed)
    return config


def _set(config: dict[str, Any], name: str, value: Any) -> None:
    path = name.replace("-", "_").split(".")
    table = config
    for depth, part in enumerate(path):
        if not isinstance(table, dict) or part not in table:
            known = [".".join([*path[:depth], k]) for k in table] if isinstance(table, dict) else []
            options = ["--" + k for k in known] + ["--config", "--run", "--steps", "--walltime"]
            raise InputError(
                f"--{name}: not an option or a field of the configuration; {nearest('--' + name, options)}"
            )
        if depth < len(path) - 1:
            table = table[part]
    old = table[path[-1]]
    if isinstance(old, dict) and "type" in old:
        table[path[-1]] = {"type": value}  # another member of a union, with its defaults
    elif isinstance(old, list) and isinstance(old[0], list) and isinstance(value, list):
        row = len(old[0])
        table[path[-1]] = [value[i : i + row] for i in range(0, len(value), row)]
    else:
        table[path[-1]] = value


def _value(text: str) -> Any:
    if text.lower() in ("none", "null"):
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text


def _config(o: argparse.Namespace) -> int:
    from qernel.config import Config, to_dict
    from qernel.presets import preset

    config = preset(o.preset)
    if o.explain:
        import tyro

        tyro.cli(Config, default=config, args=["--help"], prog=f"qernel train {o.preset}")
    print(json.dumps(to_dict(config), indent=2))
    return 0


def _settings(o: argparse.Namespace) -> Any:
    from qernel.observables import DEFAULT
    from qernel.result import Settings
    from qernel.train import parse_walltime

    return Settings(
        target_error=o.target_error,
        walkers=o.walkers,
        moves=o.moves,
        burn_in=o.burn_in,
        max_sweeps=o.max_sweeps,
        bins=o.bins,
        seed=o.seed,
        walltime=parse_walltime(o.walltime) if o.walltime else None,
        observables=tuple(o.observables) if o.observables else DEFAULT,
    )


def _evaluate(o: argparse.Namespace) -> int:
    from qernel.evaluate import load
    from qernel.tables import result_table

    settings = _settings(o)
    model = load(o.run)
    names = ("lam", "phi_deg", "epsilon", "period_nm", "twist_1", "twist_2")
    state = model.at(**{n: getattr(o, n) for n in names if getattr(o, n) is not None})
    result = model.scan(state.couplings[None], settings)[0]
    if o.json:
        print(json.dumps(result.to_json(), indent=2))
    else:
        result_table(result)
    return 0


def _scan(o: argparse.Namespace) -> int:
    import numpy as np

    from qernel.evaluate import load
    from qernel.scan import save_dataset, to_dataset
    from qernel.tables import scan_table

    settings = _settings(o)
    model = load(o.run)
    couplings = model.trained
    if o.lam is not None:
        low, high, points = o.lam
        require(points == int(points) and points >= 1, "--lam", o.lam, "LOW HIGH and a whole number of POINTS")
        couplings = np.stack([model.config.family.vector(lam=x) for x in np.linspace(low, high, int(points))])
    results = model.scan(couplings, settings)
    out = o.out or (o.run if o.run.is_dir() else o.run.parent) / "results.nc"
    save_dataset(to_dataset(model, results), out)
    scan_table(results)
    print(out)
    return 0


def _transition(o: argparse.Namespace) -> int:
    from qernel.tables import columns_table
    from qernel.transition_scan import analyse, draw, lines, read_scan, rows, to_json

    require(o.seed >= 0, "--seed", o.seed, "at least 0")
    suffixes = (".pdf", ".png", ".svg")
    if o.figure is not None:
        require(o.figure.suffix in suffixes, "--figure", o.figure, f"a file {', '.join(suffixes)}")
        require(o.figure.parent.is_dir(), "--figure", o.figure, "in a folder that exists")
    analysis = analyse(read_scan(o.run), o.quantity, o.samples, o.seed)
    if o.figure is not None:
        draw(analysis).savefig(o.figure, dpi=200)
    if o.json:
        print(json.dumps(to_json(analysis), indent=2))
        return 0
    columns_table(rows(analysis), "one smooth curve against two branches, totals in E0")
    print(*lines(analysis), sep="\n")
    return 0


def _report(o: argparse.Namespace) -> int:
    from qernel.report import print_summary, write_report

    file = write_report(o.run, bands=o.bands, references=not o.no_references)
    print_summary(o.run, bands=o.bands, references=not o.no_references)
    print(file)
    return 0


def _hamiltonian(o: argparse.Namespace) -> Any:
    """The preset's Hamiltonian with the options of `exact` and `hf`."""
    from dataclasses import replace

    import jax.numpy as jnp

    from qernel.presets import preset

    family = preset(o.preset).family
    if o.n is not None:
        family = replace(family, n_up=o.n, n_down=0)
    if o.spin is not None:
        family = replace(family, n_up=o.spin[0], n_down=o.spin[1])
    if o.phi is not None:
        family = replace(family, material=replace(family.material, phi_deg=o.phi))
    if o.epsilon is not None:
        family = replace(family, material=replace(family.material, epsilon=o.epsilon))
    if o.twist is not None:
        family = replace(family, twist=(o.twist[0], o.twist[1]))
    return family.hamiltonian(jnp.asarray(family.vector(lam=o.lam)))


def _exact(o: argparse.Namespace) -> int:
    from qernel.exact import solve, solve_all, to_json
    from qernel.tables import reference_table

    h = _hamiltonian(o)
    states: Any = solve(h, o.bands, o.sector) if o.sector is not None else solve_all(h, o.bands)
    data: Any = to_json(states)
    if o.json:
        print(json.dumps(data, indent=2))
    else:
        reference_table(data, h.n_electrons, f"exact diagonalisation, {o.bands} bands, λ = {o.lam}")
    return 0


def _hf(o: argparse.Namespace) -> int:
    import numpy as np

    from qernel.hartree_fock import branches, to_json
    from qernel.tables import reference_table

    h = _hamiltonian(o)
    known = ["liquid", "crystal", "random"]
    for start in o.starts:
        if start not in known:
            raise InputError(f"--starts = {start}: unknown; {nearest(start, known)}")
    options = {} if o.cutoff is None else {"cutoff": o.cutoff}
    states = branches(h, starts=tuple(o.starts), **options)
    rho = min(states, key=lambda s: s.energy).density
    low, high, mean = float(rho.min()), float(rho.max()), float(rho.mean())
    density = {"min": low, "max": high, "mean": mean, "units": "1/a_M^2"}
    data: Any = {**to_json(states), "density": density}
    if o.density is not None:
        np.save(o.density, rho)
    if o.json:
        print(json.dumps(data, indent=2))
    else:
        reference_table(data, h.n_electrons, f"Hartree-Fock, λ = {o.lam}")
        print(f"density of the lowest state: {low:.4f} to {high:.4f}, mean {mean:.4f} electrons per a_M²")
    return 0


def _bench(o: argparse.Namespace) -> int:
    import jax

    from qernel.bench import run
    from qernel.bench_report import as_json, printed

    jax.config.update("jax_enable_compilation_cache", False)  # compile times are those of a first run
    sizes = [6, 18] if o.quick else [6, 18, 54, 150]
    say = partial(print, file=sys.stderr if o.json else sys.stdout, flush=True)
    results = list(printed(run(sizes, o.quick), say))
    if o.json:
        print(json.dumps(as_json(results), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())

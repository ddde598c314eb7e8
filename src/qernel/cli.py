"""Command line `qernel COMMAND …`: results on stdout, progress on stderr, one line and exit code 2 for bad input."""

from __future__ import annotations

import argparse
import errno
import os
import sys
import warnings
from pathlib import Path
from typing import Any, NoReturn

from qernel.errors import InputError, nearest, one_line

BAD_PATHS = {errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EEXIST, errno.ELOOP, errno.EROFS}
"""errors of the file system that are of the path given, not of the disk"""


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

    finetune = commands.add_parser(
        "finetune",
        help="go on from a trained family at some of its couplings, in a new run folder; the same command resumes",
        epilog="Fields of optimizer and sampling, seed, clip and memory can follow, e.g. --sampling.walkers 256.",
    )
    finetune.add_argument("parent", type=Path, help="run folder or checkpoint file to start from")
    finetune.add_argument(
        "--lam", type=float, nargs="+", required=True, metavar="X", help="moiré depth λ, or LOW HIGH POINTS"
    )
    finetune.add_argument("--run", type=Path, help="run folder of the new run (default PARENT-finetuned)")
    finetune.add_argument("--steps", type=int, default=1000, help="steps of the new run")
    finetune.add_argument("--walltime", help="as in train")

    status = commands.add_parser(
        "status", help="how far a run is; exit code 0 if it is finished, 3 if steps are left", description="Reads only."
    )
    status.add_argument("run", type=Path, help="run folder")
    status.add_argument("--json", action="store_true", help="JSON on stdout")

    for training in (train, finetune):
        _process_options(training)

    config = commands.add_parser("config", help="print the configuration of a preset as JSON, or explain its fields")
    config.add_argument("preset")
    config.add_argument("--explain", action="store_true", help="every field with its meaning")

    evaluate = commands.add_parser("evaluate", help="energy of a trained family at one coupling, trained or not")
    _run_options(evaluate)
    evaluate.add_argument("--lam", type=float, required=True, help="moiré depth λ")
    _coupling_options(evaluate)
    evaluate.add_argument("--json", action="store_true", help="JSON on stdout")

    scan = commands.add_parser(
        "scan",
        help="all observables against the couplings → RUN/results.nc",
        description="Every combination of the points of all couplings is sampled. A coupling keeps the points it was "
        "trained at unless its option gives others; LOW = HIGH and 1 POINT holds it there.",
    )
    _run_options(scan)
    _axis_options(scan)
    scan.add_argument("--out", type=Path, help="netCDF file (default RUN/results.nc)")

    transition = commands.add_parser("transition", help="is there a sharp transition along λ, and where? from a scan")
    transition.add_argument("run", type=Path, help="run folder with results.nc, or that file")
    transition.add_argument("--quantity", nargs="+", default=[], help="variables of the scan (default: all it has)")
    transition.add_argument("--samples", type=int, default=999, help="bootstrap samples")
    transition.add_argument("--seed", type=int, default=1, help="of the bootstrap")
    transition.add_argument("--figure", type=Path, help="draw the fits into this file: .pdf, .png or .svg")
    transition.add_argument("--json", action="store_true", help="JSON on stdout")

    report = commands.add_parser(
        "report", help="one self-contained HTML page about a run, its figures as PDF and their numbers as netCDF"
    )
    report.add_argument("run", type=Path)
    report.add_argument("--bands", type=int, help="bands per k of the exact diagonalisation (default: what is quick)")
    report.add_argument("--no-references", action="store_true", help="leave out exact and Hartree-Fock values")
    report.add_argument(
        "--references",
        type=Path,
        metavar="FILE",
        help="take Hartree-Fock (and exact) states from here: a file of `qernel hf --out`, a run's references.json",
    )
    report.add_argument(
        "--compare",
        type=Path,
        nargs="+",
        default=[],
        metavar="RUN",
        help="scanned runs to set beside it: energies at the couplings they share, or per electron for another size",
    )

    export = commands.add_parser("export", help="a trained family to give away: weights, configuration, model card")
    export.add_argument("run", type=Path, help="run folder")
    export.add_argument("folder", type=Path, help="new folder")
    export.add_argument("--bands", type=int, help="bands per k of the exact energies in the card, as in report")
    export.add_argument(
        "--references",
        type=Path,
        metavar="FILE",
        help="take Hartree-Fock (and exact) states from here: a file of `qernel hf --out`, a run's references.json",
    )

    exact = commands.add_parser("exact", help="exact diagonalisation in the lowest Bloch bands, totals in E0")
    _reference_options(exact)
    exact.add_argument("--lam", type=float, required=True, help="moiré depth λ")
    exact.add_argument("--bands", type=int, required=True, help="bands per k")
    exact.add_argument("--sector", type=int, help="index of the total momentum (default: all)")
    exact.add_argument(
        "--correlations",
        type=Path,
        metavar="FILE.nc",
        help="write S(k), g(r), n(k) and density of the lowest state, on the axes of a scan",
    )

    bench = commands.add_parser("bench", help="speed on this machine, as ratios against baselines timed in turn")
    bench.add_argument("--quick", action="store_true", help="N = 6 and 18 and the local energy only, under a minute")
    bench.add_argument("--json", action="store_true", help="JSON on stdout")

    doctor = commands.add_parser("doctor", help="is this machine fit? versions, devices, memory, precision, self-test")
    doctor.add_argument("--json", action="store_true", help="JSON on stdout")

    hf = commands.add_parser("hf", help="unrestricted plane-wave Hartree-Fock, totals in E0")
    _reference_options(hf)
    hf.add_argument(
        "--lam",
        type=float,
        nargs="+",
        required=True,
        metavar="X",
        help="moiré depth λ; with --out also LOW HIGH POINTS",
    )
    hf.add_argument(
        "--out",
        type=Path,
        metavar="FILE.json",
        help="follow the branches along λ and keep every state here, for report and export --references FILE.json; "
        "the same command goes on",
    )
    hf.add_argument("--starts", nargs="+", default=["liquid", "crystal"], help="liquid, crystal, random")
    hf.add_argument("--cutoff", type=float, help="kinetic cutoff of the plane waves in E0")
    hf.add_argument(
        "--density",
        type=Path,
        help="write the lowest state's density [n1, n2] to this .npy file",
    )
    return parser


def _process_options(p: Parser) -> None:
    several = p.add_argument_group("several processes that train together, each started with the same command")
    several.add_argument("--distributed", action="store_true", help="meet as Slurm, Open MPI or the cluster says")
    several.add_argument("--coordinator", metavar="HOST:PORT", help="meet there, at process 0; then also:")
    several.add_argument("--processes", type=int, help="how many there are")
    several.add_argument("--process", type=int, help="which one this is, from 0")


def _run_options(p: Parser) -> None:
    p.add_argument("run", type=Path, help="run folder or checkpoint file")
    p.add_argument("--target-error", type=float, help="sample until every energy error is below this, E0")
    p.add_argument("--walkers", type=int, default=256, help="chains per coupling")
    p.add_argument("--moves", type=int, default=10, help="moves between measurements")
    p.add_argument("--burn-in", type=int, default=500, help="moves before the first measurement")
    p.add_argument("--max-sweeps", type=int, default=5000, help="most measurements per chain")
    p.add_argument("--bins", type=int, default=36, help="density bins along each supercell vector")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--walltime", help="stop sampling before this time is over")
    p.add_argument(
        "--observables",
        nargs="+",
        metavar="NAME",
        help="energy (always measured), density, structure_factor, order_parameter, pair_correlation (these are the "
        "default), momentum_probability, momentum_energy, momentum_distribution, susceptibility, overlap, router, "
        "trial_plane_waves, trial_bloch, trial_gaussians, or all",
    )


def _coupling_options(p: Parser) -> None:
    for name in ("phi-deg", "epsilon", "period-nm", "twist-1", "twist-2"):
        p.add_argument(f"--{name}", type=float, help="if this coupling varies in the family")


def _axis_options(p: Parser) -> None:
    for name in ("lam", "phi-deg", "epsilon", "period-nm", "twist-1", "twist-2"):
        grid = ("LOW", "HIGH", "POINTS")
        p.add_argument(f"--{name}", type=float, nargs=3, metavar=grid, help="even grid (default: the trained points)")
    p.add_argument(
        "--twists",
        type=int,
        metavar="M",
        help="average over M x M twists of the supercell's Brillouin zone, if the family was trained over twists",
    )


def _reference_options(p: Parser) -> None:
    p.add_argument("preset", help="preset, or run folder, that gives system and material")
    p.add_argument("--n", type=int, help="electrons, spin-polarised (default: its own)")
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
        print(f"qernel: {one_line(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("qernel: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return 1
    except OSError as error:
        if error.errno not in BAD_PATHS:
            raise
        print(f"qernel: {one_line(f'{error.filename}: {error.strerror}')}", file=sys.stderr)
        return 2


def _main(arguments: list[str]) -> int:
    parser = build_parser()
    known = list(_subparsers(parser))
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
    if rest and options.command not in ("train", "finetune"):
        flags = [s for p in _subparsers(parser)[options.command]._actions for s in p.option_strings]
        raise InputError(f"{rest[0]}: not an option of {options.command}; {nearest(rest[0], flags)}")
    if options.command != "hf":
        # The linear algebra outside JAX is of many small matrices: threads only get in each other's way.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if options.command not in ("transition", "status"):  # no JAX in them
        _prepare_jax()
    if options.command in ("train", "finetune"):
        _meet(options)
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {one_line(str(message))}", file=sys.stderr)
    from qernel import commands

    options.rest = rest
    exit_code: int = getattr(commands, options.command)(options)
    return exit_code


def _meet(options: argparse.Namespace) -> None:
    """The other processes, if there are any. Raises `InputError` for options that do not go together."""
    given = [options.coordinator, options.processes, options.process]
    if options.distributed or any(x is not None for x in given):
        from qernel.hosts import join

        if not options.distributed and None in given:
            raise InputError("--coordinator, --processes, --process: all three are needed, or --distributed alone")
        join(*given)


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


if __name__ == "__main__":
    sys.exit(main())

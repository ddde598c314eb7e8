"""What each command does, once its options are read: `cli.py` calls the function of the command's name."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from qernel.commands_references import exact as exact
from qernel.commands_references import hf as hf
from qernel.errors import InputError, one_line, require
from qernel.options import lam_range, own_files, writable


def train(o: argparse.Namespace) -> int:
    """Train a family, or go on with it; prints the run folder."""
    from qernel.config import from_dict, override, read_config, to_dict
    from qernel.presets import preset
    from qernel.train import run, with_steps

    if (o.preset is None) == (o.config is None):
        raise InputError("train: give either the name of a preset or --config FILE")
    config = preset(o.preset) if o.config is None else read_config(o.config)
    config = with_steps(from_dict(override(to_dict(config), o.rest)), o.steps)
    folder = o.run or Path("runs") / config.name
    return _training(partial(run, config), folder, o.walltime)


def _training(go: Callable[..., Any], folder: Path, walltime: str | None) -> int:
    """Train in a folder; prints it."""
    from qernel.hosts import Failed, first, together
    from qernel.stopping import parse_walltime

    own_files(folder)
    try:
        with together():
            go(folder, walltime=parse_walltime(walltime) if walltime else None)
    except Failed as error:
        print(f"qernel: {one_line(str(error))}", file=sys.stderr)
        return 1
    if first():
        print(folder)
    return 0


def status(o: argparse.Namespace) -> int:
    """How far a run is."""
    from dataclasses import asdict

    from qernel.status import status

    found = status(o.run)
    print(json.dumps({**asdict(found), "finished": found.finished}) if o.json else found)
    return 0 if found.finished else 3


def finetune(o: argparse.Namespace) -> int:
    """Go on from a trained family at some couplings; prints the run folder."""
    from qernel.config import from_dict, override, to_dict
    from qernel.evaluate import load
    from qernel.family import Grid
    from qernel.finetune import finetune, finetuned

    lam = lam_range(o.lam)
    parent = load(o.parent)
    config = finetuned(parent, Grid(lam=lam), o.steps)
    config = from_dict(override(to_dict(config), o.rest))
    parent_folder = o.parent.resolve() if o.parent.name in ("", "..") else o.parent
    folder = o.run or parent_folder.with_name(f"{parent_folder.name}-finetuned")
    return _training(partial(finetune, parent, config), folder, o.walltime)


def config(o: argparse.Namespace) -> int:
    """A preset's configuration as JSON, or with an explanation."""
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
    from qernel.stopping import parse_walltime

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


def evaluate(o: argparse.Namespace) -> int:
    """Energy and observables at one coupling."""
    from qernel.evaluate import load
    from qernel.scan_axes import check_size
    from qernel.tables import result_table

    settings = _settings(o)
    model = load(o.run)
    check_size(model.config, {"point": 1}, settings)
    names = ("lam", "phi_deg", "epsilon", "period_nm", "twist_1", "twist_2")
    state = model.at(**{n: getattr(o, n) for n in names if getattr(o, n) is not None})
    result = model.scan(state.couplings[None], settings)[0]
    if o.json:
        print(json.dumps(result.to_json(), indent=2))
    else:
        result_table(result)
    return 0


def scan(o: argparse.Namespace) -> int:
    """Observables over a grid of couplings into a netCDF file, and tables."""
    from qernel.evaluate import load
    from qernel.family import COUPLING_NAMES
    from qernel.scan import save_dataset, to_dataset
    from qernel.scan_axes import scan_grid
    from qernel.tables import averages_table, scan_table
    from qernel.twist_average import averages, with_averages

    settings = _settings(o)
    out = o.out or (o.run if o.run.is_dir() else o.run.parent) / "results.nc"
    writable("--out", out)
    own_files(out.parent if o.out is None else o.run)
    model = load(o.run)
    axes = {n: tuple(getattr(o, n)) for n in COUPLING_NAMES if getattr(o, n) is not None}
    grid = scan_grid(model.config, axes, o.twists, settings)
    results = model.scan(grid.couplings, settings)
    dataset = to_dataset(model, results)
    if grid.weights is not None:
        dataset = with_averages(dataset, grid.weights)
    save_dataset(dataset, out)
    scan_table(results)
    means = averages(dataset)
    if means is not None:
        averages_table(means, f"means over {o.twists} × {o.twists} twists, in [] the spread over them")
    print(out)
    return 0


def transition(o: argparse.Namespace) -> int:
    """Two branches or one smooth curve? From a scan."""
    from qernel.figures import encoded
    from qernel.tables import columns_table
    from qernel.transition_scan import analyse, draw, lines, read_scan, rows, to_json

    require(o.seed >= 0, "--seed", o.seed, "at least 0")
    suffixes = (".pdf", ".png", ".svg")
    if o.figure is not None:
        require(o.figure.suffix in suffixes, "--figure", o.figure, f"a file {', '.join(suffixes)}")
        writable("--figure", o.figure)
    analysis = analyse(read_scan(o.run), o.quantity, o.samples, o.seed)
    if o.figure is not None:
        o.figure.write_bytes(encoded(draw(analysis), o.figure.suffix[1:]))
    if o.json:
        print(json.dumps(to_json(analysis), indent=2))
        return 0
    columns_table(rows(analysis), "one smooth curve against two branches, totals in E0")
    print(*lines(analysis), sep="\n")
    return 0


def report(o: argparse.Namespace) -> int:
    """The page about a run, and its summary."""
    from qernel.report import print_summary, write
    from qernel.report_data import gather

    own_files(o.run)
    require(not (o.no_references and o.references), "--references", o.references, "left out with --no-references")
    data = gather(o.run, o.bands, not o.no_references, compare=o.compare, given=o.references)
    file = write(data)
    print_summary(data)
    print(file)
    return 0


def export(o: argparse.Namespace) -> int:
    """Weights, configuration and model card in a folder to give away; prints the card's path."""
    from qernel.export import export

    own_files(o.run)
    print(export(o.run, o.folder, o.bands, given=o.references))
    return 0


def bench(o: argparse.Namespace) -> int:
    """Speed on this machine."""
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


def doctor(o: argparse.Namespace) -> int:
    """Is this machine fit to compute? Exit code 1 if a check failed."""
    from qernel.doctor import failed, line, run, summary, to_json

    checks = []
    for check in run():
        checks.append(check)
        print(line(check), file=sys.stderr if o.json else sys.stdout, flush=True)
    print(json.dumps(to_json(checks), indent=2) if o.json else summary(checks))
    return int(failed(checks))

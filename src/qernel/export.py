"""A trained family to give away: one checkpoint, its configuration, and a card that says what it is and is not for."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

from qernel import checkpoint, origin
from qernel.checkpoint import Header
from qernel.config import Config
from qernel.errors import InputError, require
from qernel.evaluate import Model, load
from qernel.files import write_atomically
from qernel.hamiltonian import Potential
from qernel.log import duration
from qernel.reference_file import existing
from qernel.report_checks import exact_difference
from qernel.report_data import gather
from qernel.report_tables import measured, number

CARD = """\
# {name}

One neural wavefunction, one set of weights, for a family of moiré Hamiltonians: ready to be asked.

```sh
qernel evaluate {folder} --lam {middle:g} --target-error 0.1
qernel scan {folder} --out scan.nc
qernel finetune {folder} --lam {middle:g} --run runs/one-coupling
```

| | |
|---|---|
{facts}

{accuracy}
## What it is not for

- Couplings outside the range above, another number of electrons, another supercell: the weights know one system.
- Excited states: at each coupling it is the lowest state that the optimisation found.
- Numbers of a publication without `qernel report` of a scan of your own, which says what has not converged.
- The width of a first-order transition: one continuous function of the couplings goes through it, and how sharply is a
  property of the network and its training.
"""


COPIED = ("config.json", "provenance.json")


def export(
    run: Path,
    folder: Path,
    bands: int | None = None,
    potential: Potential | None = None,
    given: Path | None = None,
) -> Path:
    """Copy what is needed to ask, scan, finetune or go on with a run into `folder`; the path of its card, README.md.

    The newest undamaged checkpoint is taken. If RUN/results.nc is a scan of it, the card has its energies beside those
    of exact diagonalisation with `bands` bands per k and of Hartree–Fock, as the report; they are also taken from the
    file `given`.

    Raises `InputError` if there is no run, its scan is of another one, or the folder exists and is not empty; if the
    file `given` holds no references, or there is no scan to compare with them.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"{folder}: exists and is not empty, or no folder; choose another")
    for name in COPIED:
        require(not run.is_dir() or (run / name).is_file(), "run", run, f"a run folder with a {name}")
    if given is not None:
        existing(given)
        scan = run / "results.nc"
        require(scan.is_file(), "--references", given, f"left out where there is no {scan} to compare with them")
    model = load(run, potential)
    files = checkpoint.checkpoints(run / "checkpoints")
    if not files:
        raise InputError(f"run = {run}: is not a run folder with checkpoints")
    file, header = next((p, h) for p in reversed(files) if (h := checkpoint.read_header(p)).sha256 == model.checksum)
    text = CARD.format(
        name=model.config.name.removesuffix("-finetuned"),
        folder=folder,
        middle=float(model.config.family.vector()[0]),
        facts="\n".join(f"| {a} | {b} |" for a, b in facts(model, header)),
        accuracy=accuracy(model, run, bands, potential, given),
    )
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "checkpoints" / file.name, partial(shutil.copyfile, file))
    for name in COPIED:
        write_atomically(folder / name, partial(shutil.copyfile, run / name))
    readme = folder / "README.md"
    write_atomically(readme, partial(Path.write_text, data=text, encoding="utf-8"))
    return readme


def facts(model: Model, header: Header) -> list[tuple[str, str]]:
    """What it was trained for, with and how: name and text."""
    config, family, p = model.config, model.config.family, model.provenance
    total, active = model.wavefunction.parameter_count()
    ranges = [f"{n} from {a:g} to {b:g}" for n, a, b in zip(family.names, *family.bounds(), strict=True)]
    commit = str((p.get("git") or {}).get("commit", "?"))[:12]
    seconds = origin.seconds(header)
    return [
        ("electrons", f"{family.n_up} with spin up, {family.n_down} with spin down"),
        ("supercell", f"{family.cell.n_cells} moiré cells, T = {[list(r) for r in family.cell.supercell]}"),
        ("couplings", "; ".join(ranges)),
        ("material", ", ".join(f"{k} = {v:g}" for k, v in vars(family.material).items())),
        ("network", architecture(config)),
        ("weights", f"{total:,}, of which {active:,} are active for one electron; {config.network.dtype}"),
        (
            "training",
            f"{model.step} steps at {len(model.trained)} couplings with {config.sampling.walkers} walkers each, "
            f"{duration(seconds)} on {p.get('devices', '?')} × {p.get('device', '?')}",
        ),
        *([("began with the weights of", config.parent)] if config.parent else []),
        ("made with", f"qernel {p.get('qernel', '?')}, commit {commit}, jax {p.get('jax', '?')}"),
        ("checksum", f"{model.checksum} (SHA-256 of the tensors)"),
    ]


def architecture(config: Config) -> str:
    """The network in words."""
    n = config.network
    experts = f"{n.experts} experts, at most {n.top_k} open" if n.experts else "no routed experts"
    return (
        f"{n.layers} layers of width {n.width}, {n.heads} heads with {n.kv_heads} keys and values, {experts}, "
        f"FiLM width {n.film_width}, {n.determinants} determinants, {n.init} start"
    )


def accuracy(model: Model, run: Path, bands: int | None, potential: Potential | None, given: Path | None = None) -> str:
    """The scan's energies as a table in Markdown, or a sentence if there is no scan of these weights."""
    if not (run / "results.nc").is_file():
        return "The energies have not been measured: there was no scan.\n"
    data = gather(run, bands, potential=potential, given=given)
    if int(data.dataset.attrs["training_steps"]) != model.step:
        return "The energies have not been measured: the scan was of other weights.\n"
    percent, _ = exact_difference(data)
    every = range(len(data.lam))
    columns = {
        **{n: [f"{x:.6g}" for x in data.values(n)] for n in model.config.family.names},
        "energy": [measured(data, "energy", k) for k in every],
        "interaction": [measured(data, "interaction", k) for k in every],
        "variance": [f"{x:.3g}" for x in data.values("variance")],
        f"exact, {data.references.bands} bands": [number(x, 4) for x in data.reference("exact", "energy")],
        "difference, %": [number(x, 3, sign=True) for x in percent],
        **{
            f"Hartree–Fock, {x}": [number(e, 4) for e in data.reference(f"hartree_fock_{x}", "energy")]
            for x in ("liquid", "crystal")
        },
    }
    shown = {head: cells for head, cells in columns.items() if any(cells)}
    rows = [list(shown), ["--:"] * len(shown), *zip(*shown.values(), strict=True)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    bound = "" if data.references.exact_converged else " Exact diagonalisation is an upper bound here."
    return f"## Accuracy\n\nTotals in E0, one standard error in brackets.{bound}\n\n{table}\n"

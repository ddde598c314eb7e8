"""The report's figures and numbers as files: RUN/figures/*.pdf, and RUN/report_data.nc to draw them again from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qernel.figures import encoded
from qernel.files import write_atomically
from qernel.report_data import RunData
from qernel.report_sections import Drawing

if TYPE_CHECKING:
    import xarray

TERMS = ("energy", "kinetic", "moire", "interaction")
METHODS = {
    "exact": "exact diagonalisation",
    "hartree_fock": "Hartree–Fock",
    "hartree_fock_liquid": "Hartree–Fock followed from the liquid",
    "hartree_fock_crystal": "Hartree–Fock followed from the crystal",
}


def write_figures(folder: Path, drawings: Iterable[Drawing]) -> list[Path]:
    """Every figure as a vector PDF in `folder`; the files."""
    folder.mkdir(exist_ok=True)
    files = []
    for d in drawings:
        files.append(folder / f"{d.name}.pdf")
        content = encoded(d.figure, "pdf")
        write_atomically(files[-1], lambda p, content=content: p.write_bytes(content))  # type: ignore[misc]
    return files


def write_data(file: Path, data: RunData, drawings: Sequence[Drawing]) -> None:
    """The scan with its references, and in group NAME what figure NAME shows besides, as one netCDF file."""

    def write(path: Path) -> None:
        with_references(data).to_netcdf(path, engine="h5netcdf", mode="w")
        for d in drawings:
            if d.data is not None:
                d.data.to_netcdf(path, engine="h5netcdf", mode="a", group=d.name)

    write_atomically(file, write)


def with_references(data: RunData) -> xarray.Dataset:
    """The scan with `exact_energy`, `hartree_fock_energy`, … [coupling], totals in E0, where there are any."""
    import xarray

    found: dict[str, Any] = {}
    attributes: dict[str, Any] = {}
    for method, words in METHODS.items():
        states = getattr(data.references, method)
        if all(s is None for s in states):
            continue
        for term in TERMS:
            text = f"{term} of {words}, total"
            values = data.reference(method, term)
            found[f"{method}_{term}"] = ("coupling", values, {"units": "E0", "long_name": text})
        names = ["" if s is None else s.state for s in states]
        if method != "exact":
            order = {"units": "1", "long_name": f"largest |ρ_K|/N of the density of {words}"}
            found[f"{method}_order_parameter"] = ("coupling", data.reference(method, "order_parameter"), order)
        found[f"{method}_state"] = ("coupling", names, {"long_name": f"state of {words}"})
    if "exact_energy" in found:
        last = np.array([np.nan if s is None or s.last_band is None else s.last_band for s in data.references.exact])
        found["exact_last_band"] = ("coupling", last, {"units": "E0", "long_name": "what the last band lowered"})
        attributes = {"exact_bands": data.references.bands, "exact_converged": int(data.references.exact_converged)}
    return data.dataset.merge(xarray.Dataset(found)).assign_attrs(attributes)

"""All observables of a trained family against its couplings, as one labelled netCDF file with units."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qernel.cell import Cell, FloatArray
from qernel.config import to_dict
from qernel.evaluate import Model
from qernel.files import write_atomically
from qernel.observables import Quantity
from qernel.observables.density import symmetrised
from qernel.result import Result
from qernel.stats import Estimate

if TYPE_CHECKING:
    import xarray

ENERGIES = {
    "energy": "total energy",
    "kinetic": "kinetic energy, from the Laplacian",
    "moire": "moiré energy λ⟨W⟩",
    "interaction": "interaction energy, Madelung term inside",
    "kinetic_from_gradient": "kinetic energy ⟨½|∇ log ψ|²⟩",
    "kinetic_gap": "difference of both kinetic energies, zero for a continuously differentiable ψ",
    "energy_imag": "imaginary part of the mean local energy, zero within its error",
}


def to_dataset(model: Model, results: list[Result]) -> xarray.Dataset:
    """Results as an xarray dataset, dimension "coupling" with the named couplings as coordinates.

    Variables: energies and their `_error` (E0, total over the electrons), `dE_dlam` = ⟨W⟩ and, where λ alone changes
    from point to point, `slope`, the derivative of E(λ) by finite differences, with errors; chain health; density maps
    [coupling, t1, t2] in 1/a_M²; and every quantity of `Result.quantities` with its `_error` and axes.
    """
    import xarray

    family = model.config.family
    data: dict[str, Any] = {}

    def add(name: str, values: Any, units: str, text: str, dims: tuple[str, ...] = ("coupling",)) -> None:
        data[name] = xarray.Variable(dims, np.asarray(values), {"units": units, "long_name": text})

    for name, text in ENERGIES.items():
        estimates: list[Estimate] = [getattr(r, name) for r in results]
        add(name, [e.mean for e in estimates], "E0", text)
        add(f"{name}_error", [e.error for e in estimates], "E0", f"standard error of {text}")
    add("dE_dlam", [r.w.mean for r in results], "E0", "Hellmann-Feynman derivative dE/dλ = ⟨W⟩")
    add("dE_dlam_error", [r.w.error for r in results], "E0", "standard error of dE/dλ")
    points = {n: np.array([r.couplings[n] for r in results]) for n in family.names}
    lam = points["lam"]
    if len(lam) > 2 and np.all(np.diff(lam) > 0) and all(np.ptp(x) == 0 for n, x in points.items() if n != "lam"):
        energy, error = np.array([r.energy.mean for r in results]), np.array([r.energy.error for r in results])
        slope, slope_error = finite_difference(lam, energy, error)
        add("slope", slope, "E0", "slope of E(λ) by finite differences between neighbouring points")
        add("slope_error", slope_error, "E0", "standard error of the slope, discretisation not included")
    add("variance", [r.variance for r in results], "E0^2", "variance of the complex local energy")
    for name, text in (
        ("tau", "integrated autocorrelation time of the energy, in measurements"),
        ("r_hat", "split R-hat of the energy"),
        ("ess", "effective number of energy samples"),
    ):
        add(name, [getattr(r.energy, name) for r in results], "1", text)
    add("acceptance", [r.acceptance for r in results], "1", "acceptance of all-electron moves")
    add("outside", [bool(r.outside) for r in results], "1", "coupling outside the trained range")
    coords: dict[str, Any] = {n: ("coupling", x) for n, x in points.items()}
    quantities = {name: _stacked([r.quantities[name] for r in results]) for name in results[0].quantities}
    quantities |= _density(results, family.cell)
    for name, q in quantities.items():
        dims = ("coupling", *q.dims)
        add(name, q.value, q.units, q.text, dims)
        if q.error.size:
            add(f"{name}_error", q.error, q.units, f"standard error of {q.text}", dims)
        coords |= {axis: (dim, np.asarray(values)) for axis, (dim, values) in q.coordinates.items()}
    attributes = {
        "title": f"QERNEL scan of {model.config.name}",
        "n_electrons": family.n_electrons,
        "e0_mev": family.material.e0_mev,
        "energy_unit": "E0 = hbar^2/(m* a_M^2), total over the electrons",
        "length_unit": "a_M",
        "supercell_vectors": family.cell.vectors.ravel(),
        "training_steps": model.step,
        "config": json.dumps(to_dict(model.config)),
        "provenance": json.dumps(model.provenance),
        "walkers": results[0].walkers,
        "sweeps": results[0].sweeps,
        "not_measured": json.dumps(results[0].skipped),
    }
    return xarray.Dataset(data, coords, attributes)


def _stacked(found: list[Quantity]) -> Quantity:
    """One quantity at all couplings from that at each."""
    return found[0]._replace(value=np.stack([q.value for q in found]), error=np.stack([q.error for q in found]))


def _density(results: list[Result], cell: Cell) -> dict[str, Quantity]:
    """The density as measured and averaged over the moiré translations, if it was measured."""
    maps = [(r.density, r.density_error) for r in results if r.density is not None and r.density_error is not None]
    if not maps:
        return {}
    return density_maps(np.stack([m for m, _ in maps]), np.stack([e for _, e in maps]), cell)


def density_maps(value: FloatArray, error: FloatArray, cell: Cell) -> dict[str, Quantity]:
    """`density` and `density_symmetrised`, its average over the moiré translations, from maps [couplings, t1, t2]."""
    centres = (np.arange(value.shape[-1]) + 0.5) / value.shape[-1]
    axes: dict[str, tuple[str, Any]] = {name: (name, centres) for name in ("t1", "t2")}
    symmetric = np.stack([symmetrised(m, cell) for m in value])
    text = "electron density; t1, t2: fractions of the supercell vectors"
    return {
        "density": Quantity(value, error, "1/a_M^2", text, ("t1", "t2"), axes),
        "density_symmetrised": Quantity(
            symmetric, np.zeros(0), "1/a_M^2", "density averaged over moiré translations", ("t1", "t2"), axes
        ),
    }


def finite_difference(x: FloatArray, y: FloatArray, error: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Slope dy/dx [n] at every point and its standard error, by second-order differences (first order nowhere).

    y values are independent; the weights are those of `numpy.gradient` with `edge_order=2`.
    """
    weights = np.stack([np.gradient(row, x, edge_order=2) for row in np.eye(len(x))], axis=1)
    return weights @ y, np.sqrt(weights**2 @ error**2)


def save_dataset(dataset: xarray.Dataset, path: Path) -> None:
    """Write netCDF-4 through h5netcdf, atomically."""
    write_atomically(path, lambda p: dataset.to_netcdf(p, engine="h5netcdf"))

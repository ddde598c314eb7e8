"""All observables of a trained family against its couplings, as one labelled netCDF file with units."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qernel.cell import FloatArray
from qernel.checkpoint import write_atomically
from qernel.config import to_dict
from qernel.evaluate import Model, Result, symmetrised
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

    Variables: energies and their `_error` (E0, total over the electrons), `dE_dlam` = ⟨W⟩ and `slope`, the derivative
    of E(λ) by finite differences over the points, with errors; chain health; density maps [coupling, y, x] in 1/a_M².
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
    lam = np.array([r.couplings["lam"] for r in results])
    if len(family.names) == 1 and len(lam) > 2 and np.all(np.diff(lam) > 0):
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
    maps = ("coupling", "t1", "t2")
    density = np.stack([r.density for r in results])
    add("density", density, "1/a_M^2", "electron density", maps)
    add("density_error", np.stack([r.density_error for r in results]), "1/a_M^2", "standard error of density", maps)
    symmetric = np.stack([symmetrised(d, family.cell) for d in density])
    add("density_symmetrised", symmetric, "1/a_M^2", "density averaged over moiré translations", maps)
    bins = density.shape[-1]
    centres = (np.arange(bins) + 0.5) / bins
    coords = {
        "t1": ("t1", centres, {"long_name": "fraction of supercell vector T1"}),
        "t2": ("t2", centres, {"long_name": "fraction of supercell vector T2"}),
        **{n: ("coupling", np.array([r.couplings[n] for r in results])) for n in family.names},
    }
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
    }
    return xarray.Dataset(data, coords, attributes)


def finite_difference(x: FloatArray, y: FloatArray, error: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Slope dy/dx [n] at every point and its standard error, by second-order differences (first order nowhere).

    y values are independent; the weights are those of `numpy.gradient` with `edge_order=2`.
    """
    weights = np.stack([np.gradient(row, x, edge_order=2) for row in np.eye(len(x))], axis=1)
    return weights @ y, np.sqrt(weights**2 @ error**2)


def save_dataset(dataset: xarray.Dataset, path: Path) -> None:
    """Write netCDF-4 through h5netcdf, atomically."""
    write_atomically(path, lambda p: dataset.to_netcdf(p, engine="h5netcdf"))

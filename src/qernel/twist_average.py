"""Means over the twists of a scan, in its dataset: variables `averaged_NAME` along a dimension of their own.

With weights w_θ that add up to 1 and independent chains at every twist,

    x̄ = Σ_θ w_θ x_θ,    error² = Σ_θ w_θ² error_θ²,    spread² = Σ_θ w_θ (x_θ − x̄)².

The error is that of sampling these twists. The spread is how much a quantity varies from twist to twist, sampling
errors included; it is not an error of the mean, and does not shrink with sampling.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from qernel.cell import FloatArray
from qernel.errors import require

if TYPE_CHECKING:
    import xarray

DIMENSION, PREFIX = "averaged", "averaged_"
TWISTS = ("twist_1", "twist_2")

SAME_AXES = (
    "energy",
    "kinetic",
    "moire",
    "interaction",
    "kinetic_from_gradient",
    "kinetic_gap",
    "dE_dlam",
    "variance",
    "order_parameter",
    "susceptibility",
    "structure_factor",
    "pair_correlation",
    "density",
)
"""What is averaged, `pair_correlation` and `density` with all that begins like them (but not `density_matrix`). What
depends on the momenta k + θ of the electrons or on ψ's phase is not: it has other axes at every twist, or another sign
at −θ."""


def is_averaged(name: str) -> bool:
    """Whether a variable is one that means the same at every twist, and at θ and −θ."""
    if name.endswith("_error") or name.startswith("density_matrix"):
        return False
    return name in SAME_AXES or name.startswith(("pair_correlation_", "density_"))


def with_averages(dataset: xarray.Dataset, weights: FloatArray) -> xarray.Dataset:
    """A scan whose twists run fastest, [couplings × twists], with their means beside.

    Added are `twist_weight` [coupling]; coordinates `averaged_lam` … of the dimension "averaged", the couplings without
    the twists; and for each variable of `is_averaged` the variables `averaged_NAME`, `averaged_NAME_error` and
    `averaged_NAME_spread`.
    """
    twists, total = len(weights), dataset.sizes["coupling"]
    require(total % twists == 0, "couplings", total, f"a multiple of {twists} twists")

    def split(name: str) -> np.ndarray:
        x = np.asarray(dataset[name].values)
        return x.reshape(-1, twists, *x.shape[1:])

    def mean(x: np.ndarray, w: FloatArray = weights) -> np.ndarray:
        found: np.ndarray = np.einsum("t,at...->a...", w, x)
        return found

    text = "share of the twist in the average over the Brillouin zone"
    added: dict[str, Any] = {
        "twist_weight": ("coupling", np.tile(weights, total // twists), {"units": "1", "long_name": text})
    }
    for name in (str(n) for n in dataset.data_vars if is_averaged(str(n))):
        variable, x = dataset[name], split(name)
        dims = (DIMENSION, *variable.dims[1:])
        units, what = variable.attrs["units"], variable.attrs["long_name"]

        def add(name: str, value: np.ndarray, text: str, dims: Any = dims, units: str = units) -> None:
            added[PREFIX + name] = (dims, value, {"units": units, "long_name": text})

        add(name, mean(x), f"mean over twists: {what}")
        if f"{name}_error" in dataset:
            error = np.sqrt(mean(split(f"{name}_error") ** 2, weights**2))
            add(f"{name}_error", error, f"standard error of the mean over twists, from sampling alone: {what}")
            spread = np.sqrt(mean((x - mean(x)[:, None]) ** 2))
            add(f"{name}_spread", spread, f"standard deviation over twists, no statistical error: {what}")
    coordinates = {
        f"{PREFIX}{name}": (DIMENSION, split(str(name))[:, 0])
        for name, c in dataset.coords.items()
        if c.dims == ("coupling",) and name not in TWISTS
    }
    return dataset.assign(added).assign_coords(coordinates)


def averages(dataset: xarray.Dataset) -> xarray.Dataset | None:
    """The averaged variables of a scan as a scan of their own, "coupling" and plain names again; None without them."""
    if DIMENSION not in dataset.dims:
        return None
    rest = dataset.drop_dims("coupling")
    kept = rest[[n for n in rest.data_vars if str(n).startswith(PREFIX)]]
    names = {n: str(n).removeprefix(PREFIX) for n in kept.variables if str(n).startswith(PREFIX)}
    return kept.rename({**names, DIMENSION: "coupling"})

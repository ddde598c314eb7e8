"""The vocabulary of array shapes. Every public signature uses these names.

Axes: couplings (points of a family), walkers, electrons; `*batch` is any leading axes,
most often (couplings, walkers). Lengths are in a_M, energies in E0, wavevectors in 1/a_M.
"""

import numpy as np
from jaxtyping import Array, Bool, Complex, Float, Int, PRNGKeyArray, PyTree

Key = PRNGKeyArray
Params = PyTree

Position = Float[Array, "*batch 2"]
Electrons = Float[Array, "*batch electrons 2"]
Walkers = Float[Array, "couplings walkers electrons 2"]
Couplings = Float[Array, "couplings names"]
CouplingVector = Float[Array, " names"]

LogPsi = Complex[Array, "*batch"]
PerWalker = Float[Array, "*batch"]
ComplexPerWalker = Complex[Array, "*batch"]
PerElectron = Float[Array, "*batch electrons"]
Features = Float[Array, "*batch electrons features"]
Orbitals = Complex[Array, "*batch determinants electrons electrons"]
PerCoupling = Float[Array, " couplings"]
Samples = Float[Array, "couplings walkers"]
ComplexSamples = Complex[Array, "couplings walkers"]
Scores = Float[Array, "couplings rows parameters"]
Chosen = Bool[Array | np.ndarray, "couplings walkers"]
Counts = Int[Array, "*batch"]

__all__ = [n for n in dir() if not n.startswith("_")]

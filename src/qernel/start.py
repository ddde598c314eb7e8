"""The one-body start of a family, and what the wavefunction is told of one coupling."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qernel.cell import FloatArray
from qernel.family import Family
from qernel.network import Network
from qernel.orbitals import Occupations, PlaneWaves, choose_occupations, orbital_coefficients, plane_waves, whole_bands


class Point(NamedTuple):
    """What the wavefunction is told of one coupling vector: no weight enters. May carry a couplings axis."""

    c: Float[Array, "*couplings names"]
    """couplings, normalised to [−1, 1] over the family's ranges"""
    u: Float[Array, "*couplings"]
    twist: Float[Array, "*couplings 2"]
    orbitals_re: Float[Array, "*couplings orbitals waves"]
    orbitals_im: Float[Array, "*couplings orbitals waves"]


@dataclass(frozen=True)
class Start:
    """The family's one-body start: plane waves and occupations shared by all couplings.

    They follow from family and network, by which starts are compared (so that equal models share compiled code).
    """

    family: Family
    network: Network
    waves: PlaneWaves = field(compare=False)
    occupations: Occupations = field(compare=False)

    def points(self, couplings: FloatArray) -> Point:
        """Tables for each coupling vector of [couplings, names] (solves the one-body problem there)."""
        hamiltonians = [self.family.hamiltonian(jnp.asarray(c)) for c in np.asarray(couplings, float)]
        coefficients = np.stack([orbital_coefficients(h, self.occupations, self.waves) for h in hamiltonians])
        dtype = self.network.dtype
        return Point(
            c=jnp.stack([self.family.normalise(jnp.asarray(c)) for c in np.asarray(couplings, float)]).astype(dtype),
            u=jnp.asarray([float(h.u) for h in hamiltonians], dtype),
            twist=jnp.asarray(np.stack([np.asarray(h.twist) for h in hamiltonians]), dtype),
            orbitals_re=jnp.asarray(coefficients.real, dtype),
            orbitals_im=jnp.asarray(coefficients.imag, dtype),
        )


def make_start(family: Family, network: Network) -> Start:
    """Choose the starting occupations of a family (see `orbitals.choose_occupations`)."""
    hamiltonians = [family.hamiltonian(jnp.asarray(c)) for c in family.grid()]
    waves = plane_waves(hamiltonians[0], network.plane_wave_cutoff)
    if network.init == "mixed":
        occupations = whole_bands(hamiltonians[0], network.plane_wave_cutoff, network.bands)
    else:
        occupations = choose_occupations(hamiltonians, network.plane_wave_cutoff, network.determinants)
    return Start(family, network, waves, occupations)

"""Sizes of the wavefunction: what `wavefunction.py` builds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qernel.errors import require

MOST_UNITS = 10**12
"""of any width: beyond all that fits into memory, which is another matter (`sizes.py`)"""

MOST = {"layers": 256, "experts": 1024, "determinants": 1024}
"""of what is compiled or looked for one by one"""


@dataclass(frozen=True)
class Network:
    """Sizes of the wavefunction. Raises `InputError` where they do not fit together."""

    layers: int = 2
    """trunk blocks"""
    width: int = 32
    """features per electron"""
    heads: int = 4
    """query heads of the attention; 0: no attention (SlaterNet)"""
    kv_heads: int = 2
    """key/value heads, shared by heads/kv_heads query heads each"""
    experts: int = 4
    """routed experts; 0: the shared expert alone (a dense perceptron)"""
    top_k: int = 2
    """most routed experts open for one electron"""
    expert_width: int = 32
    """hidden width of a routed expert"""
    shared_width: int = 32
    """hidden width of the shared expert"""
    determinants: int = 4
    """determinants K"""
    film_width: int = 16
    """width of the coupling embedding; 0: no conditioning by FiLM"""
    jastrow_shells: int = 12
    """plane waves of the pair factor (pairs ±G)"""
    init: Literal["bloch", "mixed", "random"] = "bloch"
    """start from non-interacting orbitals, from random mixtures of their lowest bands, or from random functions"""
    bands: int = 1
    """bands that are mixed (init mixed)"""
    plane_wave_cutoff: float = 200.0
    """kinetic cutoff of the starting orbitals, E0"""
    dtype: Literal["float32", "float64"] = "float32"
    """precision of weights and walkers"""

    def __post_init__(self) -> None:
        for name in ("layers", "width", "shared_width", "determinants", "jastrow_shells", "bands"):
            require(getattr(self, name) >= 1, f"network.{name}", getattr(self, name), "at least 1")
        for name in ("heads", "experts", "film_width"):
            require(getattr(self, name) >= 0, f"network.{name}", getattr(self, name), "at least 0")
        for name in ("layers", "width", "shared_width", "determinants", "jastrow_shells", "heads", "experts"):
            most = MOST.get(name, MOST_UNITS)
            require(getattr(self, name) <= most, f"network.{name}", getattr(self, name), f"at most {most}")
        for name in ("film_width", "expert_width", "kv_heads"):
            require(getattr(self, name) <= MOST_UNITS, f"network.{name}", getattr(self, name), f"at most {MOST_UNITS}")
        if self.heads:
            require(self.width % self.heads == 0, "network.width", self.width, f"a multiple of heads = {self.heads}")
            require(
                self.kv_heads >= 1 and self.heads % self.kv_heads == 0,
                "network.kv_heads",
                self.kv_heads,
                f"a divisor of heads = {self.heads}",
            )
        if self.experts:
            require(
                1 <= self.top_k <= self.experts,
                "network.top_k",
                self.top_k,
                f"from 1 to the number of experts = {self.experts}",
            )
            require(self.expert_width >= 1, "network.expert_width", self.expert_width, "at least 1")
        require(0 < self.plane_wave_cutoff <= 2000, "network.plane_wave_cutoff", self.plane_wave_cutoff, "0 to 2000 E0")

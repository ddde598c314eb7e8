"""QERNEL: one neural wavefunction for a whole family of moiré many-electron Hamiltonians."""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from qernel.evaluate import Model, load

__all__ = ["Model", "__version__", "load"]


def __getattr__(name: str) -> object:
    """Import the heavy parts only when asked for (`import qernel` does no work)."""
    if name in ("load", "Model"):
        from qernel import evaluate

        return getattr(evaluate, name)
    raise AttributeError(f"module 'qernel' has no attribute {name!r}")

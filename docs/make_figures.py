"""Figures of the README from a scanned run: python docs/make_figures.py runs/n3"""

import sys
from pathlib import Path

import numpy as np

from qernel import figures
from qernel.report_checks import exact_difference
from qernel.report_data import gather

if __name__ == "__main__":
    data = gather(Path(sys.argv[1]))
    percent, _ = exact_difference(data)
    error = 100 * data.values("energy_error") / np.abs(data.reference("exact", "energy"))
    out = Path(__file__).parent / "figures"
    out.mkdir(exist_ok=True)
    name = data.config.name
    (out / f"{name}-energy.svg").write_bytes(figures.energy(data, percent, error))
    (out / f"{name}-interaction.svg").write_bytes(figures.interaction(data))

"""Figures of the README from a scanned run: python docs/make_figures.py runs/n3"""

import sys
from pathlib import Path

from qernel.figures import encoded
from qernel.report_data import gather
from qernel.report_sections.energies import energies

if __name__ == "__main__":
    data = gather(Path(sys.argv[1]))
    out = Path(__file__).parent / "figures"
    out.mkdir(exist_ok=True)
    for drawing in energies(data).drawings:
        if drawing.name in ("energy", "interaction"):
            (out / f"{data.config.name}-{drawing.name}.svg").write_bytes(encoded(drawing.figure, "svg"))

"""Figures of the documentation from a scanned run: python docs/make_figures.py RUN [NAME …] (default: its energies)"""

import sys
from pathlib import Path

from qernel.figures import encoded
from qernel.report_data import gather
from qernel.report_sections import sections

if __name__ == "__main__":
    data = gather(Path(sys.argv[1]))
    names = sys.argv[2:] or ["energy", "interaction"]
    out = Path(__file__).parent / "figures"
    out.mkdir(exist_ok=True)
    drawings = {d.name: d for section in sections(data) for d in section.drawings}
    for name in names:
        if name not in drawings:
            sys.exit(f"{name}: no such figure; there are {', '.join(drawings)}")
        stem = data.config.name.removesuffix("-finetuned")
        (out / f"{stem}-{name.replace('_', '-')}.svg").write_bytes(encoded(drawings[name].figure, "svg"))

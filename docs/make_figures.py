"""Figures of the documentation from a scanned run: python docs/make_figures.py RUN [NAME …] (default: its energies)

Other runs are drawn beside it with --compare, references taken with --references, as in `qernel report`.
"""

import argparse
import sys
from pathlib import Path

from qernel.figures import encoded
from qernel.report_data import gather
from qernel.report_sections import sections

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("names", nargs="*", default=["energy", "interaction"])
    parser.add_argument("--compare", type=Path, nargs="+", default=[])
    parser.add_argument("--references", type=Path)
    parser.add_argument("--stem", help="of the files' names (default: the preset's)")
    o = parser.parse_args()
    data = gather(o.run, compare=o.compare, given=o.references)
    out = Path(__file__).parent / "figures"
    out.mkdir(exist_ok=True)
    drawings = {d.name: d for section in sections(data) for d in section.drawings}
    stem = o.stem or data.config.name.removesuffix("-finetuned")
    for name in o.names:
        if name not in drawings:
            sys.exit(f"{name}: no such figure; there are {', '.join(drawings)}")
        (out / f"{stem}-{name.replace('_', '-')}.svg").write_bytes(encoded(drawings[name].figure, "svg"))

"""Pieces of a self-contained HTML page: the style sheet, tables, lists and embedded figures. Escapes all text."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence

CSS = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; color: #1a1a1a;
  background: #fff; max-width: 68rem; margin: 2rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.6rem; margin: 0 0 .2rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem;
  border-bottom: 1px solid #ccc; padding-bottom: .2rem; }
p, li { max-width: 54rem; } .sub { color: #555; margin: 0 0 1rem; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; margin: .6rem 0; }
th, td { padding: .22rem .65rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #e6e6e6; }
thead th { border-bottom: 1.5px solid #555; font-weight: 600; vertical-align: bottom; white-space: normal; }
.wide { overflow-x: auto; }
table.facts th, table.facts td, table.checks th, table.checks td { text-align: left; white-space: normal;
  vertical-align: top; }
table.facts th, table.checks th { font-weight: 600; white-space: nowrap; }
.ok { color: #00654b; font-weight: 600; } .attention { color: #a33c00; font-weight: 600; } .none { color: #666; }
table.checks td:nth-child(2) { white-space: nowrap; }
figure { margin: 1rem 0; break-inside: avoid; } img { max-width: 100%; height: auto; }
figcaption { font-size: .85rem; color: #444; max-width: 54rem; }
@media print { body { margin: 0; max-width: none; font-size: 11px; } h2 { break-after: avoid; }
  table { break-inside: avoid; } .wide { overflow: visible; } }
"""


def document(title: str, body: str) -> str:
    """A whole page around `body`, which is HTML already."""
    name = html.escape(title)
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{name}</title>'
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<style>{CSS}</style></head>'
        f"<body>\n<h1>{name}</h1>\n{body}\n</body></html>\n"
    )


def pairs(rows: Sequence[tuple[str, str]]) -> str:
    """A table of facts: name and text."""
    body = "".join(f"<tr><th>{html.escape(a)}</th><td>{html.escape(b)}</td></tr>" for a, b in rows)
    return f'<table class="facts"><tbody>{body}</tbody></table>'


def table(columns: Mapping[str, Sequence[str]]) -> str:
    """Columns of numbers under their heads; columns with nothing in them are left out."""
    shown = {head: cells for head, cells in columns.items() if any(cells)}
    top = "".join(f"<th>{html.escape(x)}</th>" for x in shown)
    rows = zip(*shown.values(), strict=True)
    body = "\n".join("<tr>" + "".join(f"<td>{html.escape(x)}</td>" for x in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def sentences(texts: Sequence[str]) -> str:
    """A paragraph, or a list if there are several."""
    if len(texts) == 1:
        return f"<p>{html.escape(texts[0])}</p>"
    return "<ul>" + "".join(f"<li>{html.escape(s)}</li>" for s in texts) + "</ul>"


def figure(image: bytes, alternative: str, caption: str, width: float) -> str:
    """An SVG image inside the page, `width` inches wide, with its caption."""
    encoded = base64.b64encode(image).decode()
    return (
        f'<figure><img style="width: {width:.2f}in" alt="{html.escape(alternative)}" '
        f'src="data:image/svg+xml;base64,{encoded}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )

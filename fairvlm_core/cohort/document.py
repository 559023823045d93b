"""A page of text, tables and pictures: as Markdown, and as one HTML file for the screen, the dark and paper."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

STYLE = """
:root { --ground: #fff; --panel: #f5f7f9; --ink: #17212b; --soft: #56636f; --line: #dfe4e9; --accent: #0b5f86;
  --track: #e8ecf0; --warning: #9a5b00; --wash: #fdf4e3; }
@media screen and (prefers-color-scheme: dark) { :root { --ground: #12171d; --panel: #1b222a; --ink: #e8edf2;
  --soft: #a2aeba; --line: #313b46; --accent: #74c3ea; --track: #262f39; --warning: #e5b04f; --wash: #2c2516; } }
* { box-sizing: border-box; }
html { background: var(--ground); color: var(--ink); }
body { margin: 0 auto; padding: 3rem 1.5rem 5rem; max-width: 58rem;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif; }
h1 { margin: 0; font-size: 1.9rem; line-height: 1.2; letter-spacing: -.015em; }
h2 { margin: 2.75rem 0 .9rem; padding-top: 1.1rem; border-top: 1px solid var(--line); font-size: 1.3rem; }
section { display: flex; flex-wrap: wrap; align-items: flex-start; column-gap: 3rem; }
section > h2, section > p, figure { flex: 0 0 100%; }
figure { margin: 0 0 1.5rem; }
p { margin: 0 0 .8rem; max-width: 46rem; }
.facts, caption { color: var(--soft); }
.facts { margin: .5rem 0 0; }
.warning { max-width: none; margin: 1rem 0 0; padding: .75rem 1rem; border-left: 4px solid var(--warning);
  border-radius: 0 6px 6px 0; background: var(--wash); }
.scroll { overflow-x: auto; max-width: 100%; margin: 0 0 1.5rem; }
table { min-width: 20rem; border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
caption { padding: .15rem 0 .4rem; text-align: left; font-size: .9rem; }
th, td { padding: .35rem .8rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: baseline; }
th:first-child, td:first-child { padding-left: 0; }
thead th { color: var(--soft); font-size: .82rem; line-height: 1.3; vertical-align: bottom;
  border-bottom-color: var(--soft); }
tbody th { font-weight: 500; }
.n { text-align: right; } tbody .n { white-space: nowrap; }
svg { display: block; } .track { fill: var(--track); } .share { fill: var(--accent); }
.range { fill: var(--accent); opacity: .4; }
img { display: block; max-width: 100%; height: auto; padding: .5rem; border-radius: 6px; background: #fff; }
@media (max-width: 40rem) { body { padding: 1.5rem 1rem 3rem; } }
@media print { body { max-width: none; padding: 0; font-size: 10pt; } .scroll { overflow: visible; }
  h2 { break-after: avoid; } tr, img { break-inside: avoid; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""
BAR = 120  # pixels of 100 %


@dataclass(frozen=True)
class Table:
    """Rows of text under a caption.

    Attributes:
        text: so many columns on the left are words; the others are numbers.
        bars: (low, share, high) of each row, drawn in a last column of the HTML.
    """

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    text: int = 1
    bars: Sequence[tuple[float, float, float] | None] | None = None


@dataclass(frozen=True)
class Picture:
    """A PNG beside the page, which the HTML holds itself."""

    file: str
    alt: str
    png: bytes


Section = tuple[str, Sequence[str | Table | Picture]]


def to_markdown(title: str, facts: str, warnings: Sequence[str], sections: Sequence[Section]) -> str:
    """The page as Markdown; a paragraph is a string."""
    blocks = [f"# {_plain(title)}", _plain(facts), *(f"> **Warning:** {_plain(warning)}" for warning in warnings)]
    for heading, content in sections:
        blocks.append(f"## {_plain(heading)}")
        for block in content:
            if isinstance(block, Picture):
                blocks.append(f"![{_plain(block.alt)}]({block.file})")
            elif isinstance(block, Table):
                rules = ["---" if k < block.text else "---:" for k in range(len(block.heads))]
                lines = [
                    _line(map(_plain, block.heads)),
                    _line(rules),
                    *(_line(map(_plain, row)) for row in block.rows),
                ]
                blocks.append(f"{_plain(block.caption)}\n\n" + "\n".join(lines))
            else:
                blocks.append(_plain(block))
    return "\n\n".join(blocks) + "\n"


def _line(cells: object) -> str:
    return f"| {' | '.join(cells)} |"  # type: ignore[arg-type]


def _plain(text: str) -> str:
    """Text in which nothing is Markdown or HTML."""
    text = escape(" ".join(text.split()), quote=False)
    return "".join(f"\\{character}" if character in "\\`*_[]|#" else character for character in text)


def to_html(title: str, facts: str, warnings: Sequence[str], sections: Sequence[Section], *, style: str = "") -> str:
    """The page as one HTML file; `style` is CSS of its own, beside that of all pages."""
    told = "".join(f'<p class="warning">{escape(warning)}</p>' for warning in warnings)
    body = "".join(
        f"<section><h2>{escape(heading)}</h2>{''.join(map(_html, content))}</section>" for heading, content in sections
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        # Nothing may be fetched, whatever a name in the data contains.
        '<meta http-equiv="Content-Security-Policy" '
        """content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">"""
        f"<title>{escape(title)}</title><style>{STYLE}{style}</style></head><body>"
        f'<header><h1>{escape(title)}</h1><p class="facts">{escape(facts)}</p></header>'
        f"<main>{told}{body}</main></body></html>\n"
    )


def _html(block: str | Table | Picture) -> str:
    if isinstance(block, Picture):
        data = base64.b64encode(block.png).decode()
        return f'<figure><img alt="{escape(block.alt)}" src="data:image/png;base64,{data}"></figure>'
    if isinstance(block, str):
        return f"<p>{escape(block)}</p>"
    bars = [None] * len(block.rows) if block.bars is None else block.bars
    head = "".join(
        f'<th scope="col"{"" if k < block.text else " class=n"}>{escape(name)}</th>'
        for k, name in enumerate(block.heads)
    ) + ("" if block.bars is None else '<th scope="col">0 to 100 %</th>')
    lines = []
    for row, bar in zip(block.rows, bars, strict=True):
        cells = [
            f'<th scope="row">{escape(cell)}</th>'
            if k == 0
            else f"<td{'' if k < block.text else ' class=n'}>{escape(cell)}</td>"
            for k, cell in enumerate(row)
        ]
        lines.append(f"<tr>{''.join(cells)}{'' if block.bars is None else f'<td>{_bar(bar)}</td>'}</tr>")
    return (
        f'<div class="scroll" tabindex="0"><table><caption>{escape(block.caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _bar(interval: tuple[float, float, float] | None) -> str:
    """A share and its interval on a line from 0 to 100 %."""
    if interval is None:
        return ""
    low, at, high = (round(BAR * value, 1) for value in interval)
    return (
        f'<svg width="{BAR}" height="12" viewBox="0 0 {BAR} 12" aria-hidden="true">'
        f'<rect class="track" y="5" width="{BAR}" height="2"/>'
        f'<rect class="range" x="{low}" y="3" width="{max(high - low, 1):.1f}" height="6" rx="2"/>'
        f'<rect class="share" x="{max(at - 1.5, 0):.1f}" width="3" height="12" rx="1"/></svg>'
    )

"""What the sections of the page are built from: figures, legends, and what scrolls by itself."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from fairvlm_core.evaluation.report.svg import colour, dash, element, marker
from fairvlm_core.evaluation.report.tables import html_table

SMALL = (
    '<p class="note">The smaller a group, the more its numbers are a matter of chance: read them with the counts.</p>'
)
BOLD = "; bold is best"


def figure(caption: str, *parts: str) -> str:
    """A figure of parts that are HTML already, under its caption."""
    return f"<figure><figcaption>{escape(caption)}</figcaption>{''.join(parts)}</figure>"


def scrolled(name: str, content: str, *, even: bool = False) -> str:
    """What is wide scrolls by itself, never the page; focusable, so that the keyboard can scroll it, and named."""
    return f'<div class="scroll{" even" * even}" tabindex="0" role="group" aria-label="{escape(name)}">{content}</div>'


def scrolled_table(
    caption: str,
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    best: Sequence[str | None] = (),
    text: int = 1,
    even: bool = False,
) -> str:
    """An `html_table` that scrolls by itself; `even` makes its columns equally wide."""
    return scrolled(caption, html_table(caption, heads, rows, best=best, text=text), even=even)


def numbers_below(tables: str, summary: str = "The numbers") -> str:
    """Tables that are closed until they are asked for, and open on paper."""
    return f"<details><summary>{escape(summary)}</summary>{tables}</details>"


def panels(drawings: Sequence[str]) -> str:
    """Small drawings side by side, as many as there is room for."""
    return f'<div class="panels">{"".join(drawings)}</div>'


def legend(labels: Sequence[str], marks: Sequence[str]) -> str:
    """Labels behind their marks."""
    items = [
        f'<li><svg width="28" height="12" viewBox="0 0 28 12" aria-hidden="true">{mark}</svg>{escape(label)}</li>'
        for label, mark in zip(labels, marks, strict=True)
    ]
    return f'<ul class="legend">{"".join(items)}</ul>'


def point(i: int) -> str:
    """The legend's mark of the i-th model's points."""
    return element("g", marker(i, 14, 6, 5))


def line(i: int) -> str:
    """The legend's mark of the i-th line."""
    return element("line", x1=1, y1=6, x2=27, y2=6, class_=f"curve {colour(i)}", stroke_dasharray=dash(i))

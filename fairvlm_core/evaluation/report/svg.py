"""A few words of SVG: elements as escaped text, axes, and the colours that the style sheet names."""

from __future__ import annotations

import math
from collections.abc import Iterable
from html import escape

COLOURS = 6
DASHES = ("", "6 3", "2 3", "8 3 2 3")


def element(tag: str, *children: str, text: str | None = None, **attributes: object) -> str:
    """One element; `_` in attribute names stands for `-`, `class_` for `class`. `text` is escaped, children are not.

    >>> element("text", text="a < b", x=1.25, text_anchor="end")
    '<text x="1.25" text-anchor="end">a &lt; b</text>'
    """
    given = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(_short(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    content = (escape(text) if text is not None else "") + "".join(children)
    return f"<{tag}{given}>{content}</{tag}>" if content else f"<{tag}{given}/>"


def drawing(width: float, height: float, label: str, parts: Iterable[str]) -> str:
    """An `svg` that shrinks with the page and tells screen readers what it shows."""
    size = {"viewBox": f"0 0 {_short(width)} {_short(height)}", "width": width, "height": height}
    return element("svg", *parts, role="img", aria_label=label, **size)  # type: ignore[arg-type]


def colour(i: int) -> str:
    """Class of the i-th colour; after the last they start again."""
    return f"c{i % COLOURS + 1}"


def dash(i: int) -> str | None:
    """Dash pattern of the i-th line: lines are told apart without colour, too."""
    return DASHES[i % len(DASHES)] or None


def marker(i: int, x: float, y: float, r: float = 6) -> str:
    """The i-th model's mark: circle, square, triangle, diamond, and again."""
    shape = i % 4
    if shape == 0:
        return element("circle", cx=x, cy=y, r=r, class_=f"mark {colour(i)}")
    if shape == 1:
        return element("rect", x=x - r * 0.9, y=y - r * 0.9, width=r * 1.8, height=r * 1.8, class_=f"mark {colour(i)}")
    points = (
        [(x, y - r * 1.2), (x + r * 1.15, y + r * 0.9), (x - r * 1.15, y + r * 0.9)]
        if shape == 2
        else [(x, y - r * 1.3), (x + r * 1.3, y), (x, y + r * 1.3), (x - r * 1.3, y)]
    )
    return element(
        "polygon", points=" ".join(f"{_short(a)},{_short(b)}" for a, b in points), class_=f"mark {colour(i)}"
    )


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers that cover [low, high] in at most `most` steps; at least two, for an axis needs a length.

    >>> ticks(0, 0.23), ticks(0, 118)
    ([0.0, 0.05, 0.1, 0.15, 0.2, 0.25], [0.0, 20.0, 40.0, 60.0, 80.0, 100.0, 120.0])
    """
    span = high - low or 1.0
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(power * m for m in (1, 2, 2.5, 5, 10, 20) if span / (power * m) <= most)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    return [round(i * step, 10) for i in range(first, last + 1)]


def text_width(text: str, size: float = 12) -> float:
    """About how wide a text is in a sans-serif of `size` px; generous, so that nothing is clipped."""
    return 0.58 * size * len(text)


def _short(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)

"""The pictures of a month: score distributions then and now, how near each comparison is to its limit, who came."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fairvlm_core.evaluation.monitoring.evidence import DRIFTED, STABLE, UNSURE
from fairvlm_core.evaluation.monitoring.numbers import Pair
from fairvlm_core.evaluation.monitoring.words import MEASURES, change, percent, subject, values
from fairvlm_core.evaluation.report.svg import drawing, element, marker, text_width, ticks

WIDTH, PANEL, HEIGHT = 816.0, 256.0, 96.0
ENOUGH = 5  # times min_cell: smaller groups have no curve, in which one person would be a bump
BINS, SMOOTH = 200, 0.03
FURTHEST = 6  # limits away; what is further is drawn there


@dataclass(frozen=True)
class Curves:
    """How the scores of one group are distributed then and now, as heights in whole pixels."""

    attribute: str | None
    group: str | None
    xs: np.ndarray
    then: np.ndarray
    now: np.ndarray


def curves(pair: Pair, min_cell: int) -> list[Curves]:
    """The score distributions of one label, smooth and rounded, so that they tell of groups and not of people."""
    both = np.concatenate([pair.then.y_score[:, 0], pair.now.y_score[:, 0]])
    first, last = np.floor(np.quantile(both, 0.005) * 10) / 10, np.ceil(np.quantile(both, 0.995) * 10) / 10
    xs = np.linspace(first, max(last, first + 0.1), BINS // 2 + 1)
    found = []
    for attribute, group, then, now in pair.units(ENOUGH * min_cell):
        heights = [_density(side[rows, 0], xs) for side, rows in ((pair.then.y_score, then), (pair.now.y_score, now))]
        highest = max(height.max() for height in heights)
        pixels = [np.round(height / highest * (HEIGHT - 12)) for height in heights]
        found.append(Curves(attribute, group, xs, pixels[0], pixels[1]))
    return found


def _density(score: np.ndarray, xs: np.ndarray) -> np.ndarray:
    """A normal kernel, its mass beyond 0 and 1 turned back; of many scores by their counts in fine bins."""
    counts = np.bincount(np.clip((score * BINS).astype(int), 0, BINS - 1), minlength=BINS)
    centres, width = (np.arange(BINS) + 0.5) / BINS, SMOOTH + 0.3 * score.std() * len(score) ** -0.2
    density = np.zeros(len(xs))
    for places in (centres, -centres, 2 - centres):
        density += np.exp(-0.5 * ((xs[:, None] - places) / width) ** 2) @ counts
    return density / density.sum()


def ridge(shown: Curves, title: str, told: str, drifted: bool) -> str:
    """One group's scores: then as an area, now as a line."""
    left, right = 8.0, PANEL - 8
    bottom, scale = 30 + HEIGHT, (right - left) / (shown.xs[-1] - shown.xs[0])
    places = left + (shown.xs - shown.xs[0]) * scale

    def points(heights: np.ndarray) -> str:
        return " ".join(f"{x:.1f},{bottom - y:.0f}" for x, y in zip(places, heights, strict=True))

    area = f"{left:.1f},{bottom:.0f} {points(shown.then)} {right:.1f},{bottom:.0f}"
    parts = [
        element("text", text=title, x=left, y=14.0, class_="name"),
        element("text", text=told, x=right, y=14.0, class_="alarm" if drifted else "count", text_anchor="end"),
        element("polygon", points=area, class_="then"),
        element("polyline", points=points(shown.now), class_=f"curve {'c2' if drifted else 'c1'}"),
        element("line", x1=left, x2=right, y1=bottom, y2=bottom, class_="axis"),
    ]
    for tick in ticks(float(shown.xs[0]), float(shown.xs[-1]), 5):
        if shown.xs[0] - 1e-9 <= tick <= shown.xs[-1] + 1e-9:
            x = left + (tick - shown.xs[0]) * scale
            anchor = "start" if x < left + 4 else "end" if x > right - 4 else "middle"
            parts.append(element("text", text=f"{tick:g}", x=x, y=bottom + 15, class_="tick", text_anchor=anchor))
    return drawing(PANEL, bottom + 22, f"Scores of {title} then and now: {told}.", parts)


def nearness(findings: Sequence[Mapping[str, Any]]) -> str:
    """Each comparison with its interval, measured in its own limit: between −1 and 1 it is within."""
    names = [f"{MEASURES[f['measure']]} · {subject(f)}" for f in findings]
    lines = [_line(f) for f in findings]
    left = min(
        34 + max(max(text_width(name, 13) for name in names), max(text_width(line, 11.5) for line in lines)), 400
    )
    right, height = WIDTH - 16, 40.0
    bottom = 8 + height * len(findings)

    ends = [f[end] / f["limit"] for f in findings if f["low"] is not None for end in ("low", "high")]
    first = max(math.floor(min([*ends, -1.0])), -FURTHEST)
    last = min(math.ceil(max([*ends, 1.0])), FURTHEST)

    def x(value: float) -> float:
        return left + (min(max(value, first), last) - first) / (last - first) * (right - left)

    parts = [element("rect", x=x(-1), y=4.0, width=x(1) - x(-1), height=bottom - 4, class_="within")]
    for tick in range(first, last + 1):
        mark = f"{tick:d}".replace("-", "−")
        parts.append(element("line", x1=x(tick), x2=x(tick), y1=4.0, y2=bottom, class_="axis" if tick == 0 else "grid"))
        parts.append(element("text", text=mark, x=x(tick), y=bottom + 18, class_="tick", text_anchor="middle"))
    axis = "change, in units of its limit"
    parts.append(element("text", text=axis, x=(left + right) / 2, y=bottom + 38, class_="tick", text_anchor="middle"))
    for i, (finding, name, line) in enumerate(zip(findings, names, lines, strict=True)):
        middle = 8 + height * (i + 0.5)
        if i:
            parts.append(element("line", x1=0, x2=right, y1=middle - height / 2, y2=middle - height / 2, class_="rule"))
        parts.append(element("text", text=name, x=left - 14, y=middle - 2, class_="name", text_anchor="end"))
        parts.append(element("text", text=line, x=left - 14, y=middle + 13, class_="count", text_anchor="end"))
        if finding["low"] is None:
            parts.append(element("text", text="no interval: too few people", x=x(0) + 8, y=middle + 4, class_="count"))
            continue
        low, at, high = (finding[end] / finding["limit"] for end in ("low", "change", "high"))
        tone = {DRIFTED: "c2", UNSURE: "c6", STABLE: "c3"}[finding["verdict"]]
        parts.append(element("line", x1=x(low), x2=x(high), y1=middle, y2=middle, class_=f"curve {tone}"))
        parts.append(sign(finding["verdict"], x(at), middle))
    told = "; ".join(f"{name} {line}, {f['verdict']}" for f, name, line in zip(findings, names, lines, strict=True))
    return drawing(WIDTH, bottom + 48, f"Changes in units of their limits: {told}.", parts)


def _line(finding: Mapping[str, Any]) -> str:
    if finding["measure"] in ("score_shift", "dpd", "eod"):
        return change(finding)
    return " → ".join(values(finding))


def sign(verdict: str, x: float, y: float) -> str:
    """The mark of a verdict; shapes tell them apart without colour."""
    if verdict == UNSURE:
        return element("circle", cx=x, cy=y, r=5.0, class_="mark c6")
    return marker(1 if verdict == DRIFTED else 2, x, y, 5)


def people(rows: Sequence[Mapping[str, Any]]) -> str:
    """The share of each group then and now, as bars."""
    names = [str(row["group"]) if row["group"] is not None else "unknown" for row in rows]
    left = 34 + max(text_width(name, 13) for name in names)
    right, height = WIDTH - 70, 40.0
    shares = [row[key] for row in rows for key in ("share_then", "share_now") if row[key] is not None]
    most = max(shares, default=0) or 1.0
    parts = []
    for i, (row, name) in enumerate(zip(rows, names, strict=True)):
        top = 6 + height * i
        parts.append(element("text", text=name, x=left - 14, y=top + 20, class_="name", text_anchor="end"))
        for key, y, tone in (("share_then", top, "c0"), ("share_now", top + 15, "c1")):
            share = row[key]
            if share is None:
                parts.append(element("text", text="suppressed", x=left + 4, y=y + 10, class_="count"))
                continue
            wide = max(share / most * (right - left), 1.0)
            parts.append(element("rect", x=left, y=y, width=wide, height=12.0, rx=2, class_=f"bar {tone}"))
            parts.append(element("text", text=percent(share), x=left + wide + 6, y=y + 10, class_="value"))
    told = "; ".join(
        f"{name} {percent(row['share_then'])} then, {percent(row['share_now'])} now"
        for row, name in zip(rows, names, strict=True)
    )
    return drawing(WIDTH, 6 + height * len(rows), f"Shares of the groups: {told}.", parts)

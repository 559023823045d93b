"""The report's figures as SVG: text stays text, colours come from the style sheet, light or dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fairvlm_core.evaluation.report.subjects import Subject, group_curves
from fairvlm_core.evaluation.report.svg import colour, dash, drawing, element, marker, text_width, ticks
from fairvlm_core.evaluation.report.words import attribute_name, count, counted, number, span

WIDTH = 816.0  # what the page has room for
BAR, GAP = 12.0, 3.0
PANEL = 256.0  # three in a row


def forest(subjects: Sequence[Subject], attribute: str) -> str:
    """AUC of each group (rows) for each model (marks) with its interval, and the counts."""
    rows = _forest_rows(subjects, attribute)
    known = [value for _, _, values, _, _ in rows for value in values if value is not None]
    known += [end for _, _, _, ends, _ in rows for pair in ends if pair for end in pair]
    marks = ticks(min(known, default=0.5), max(known, default=1.0), 6)
    left = 24 + max(max(text_width(name, 13), text_width(counts, 11.5)) for name, counts, *_ in rows)
    right = WIDTH - 52
    # Two lines of label need 32 px even where there is one mark.
    height = max(len(subjects) * (BAR + GAP) - GAP, 30.0) + 16
    bottom = 8 + height * len(rows)

    def x(value: float) -> float:
        return left + (value - marks[0]) / (marks[-1] - marks[0]) * (right - left)

    parts = []
    for tick in marks:
        parts.append(element("line", x1=x(tick), x2=x(tick), y1=4.0, y2=bottom, class_="grid"))
        parts.append(element("text", text=f"{tick:g}", x=x(tick), y=bottom + 18, class_="tick", text_anchor="middle"))
    if marks[0] <= 0.5:
        parts.append(element("line", x1=x(0.5), x2=x(0.5), y1=4.0, y2=bottom, class_="axis"))
    axis = "AUC with its interval (0.5 is chance, 1 is perfect)"
    parts.append(element("text", text=axis, x=(left + right) / 2, y=bottom + 38, class_="tick", text_anchor="middle"))
    for i, (name, counts, values, ends, reason) in enumerate(rows):
        middle = 8 + height * (i + 0.5)
        if i:
            parts.append(element("line", x1=0, x2=right, y1=8 + height * i, y2=8 + height * i, class_="rule"))
        parts.append(element("text", text=name, x=left - 14, y=middle - 2, class_="name", text_anchor="end"))
        parts.append(element("text", text=counts, x=left - 14, y=middle + 14, class_="count", text_anchor="end"))
        if all(value is None for value in values):
            parts.append(element("text", text=reason, x=left + 10, y=middle + 4, class_="count"))
            continue
        top = middle - (len(subjects) * (BAR + GAP) - GAP) / 2
        for j, (value, pair) in enumerate(zip(values, ends, strict=True)):
            if value is None:
                continue
            y = top + j * (BAR + GAP) + BAR / 2
            if pair:
                parts.append(element("line", x1=x(pair[0]), x2=x(pair[1]), y1=y, y2=y, class_=f"curve {colour(j)}"))
            parts.append(marker(j, x(value), y, 4.5))
            last = max(x(value) + 5, x(pair[1]) if pair else 0.0)
            parts.append(element("text", text=number(value), x=last + 6, y=y + 4, class_="value"))
    label = f"AUC per group of {attribute_name(attribute)} with intervals: {_forest_told(subjects, rows)}."
    return drawing(WIDTH, bottom + 48, label, parts)


ForestRow = tuple[str, str, list[float | None], list[Sequence[float] | None], str]


def _forest_rows(subjects: Sequence[Subject], attribute: str) -> list[ForestRow]:
    """Name, counts, each model's AUC and interval, and why there is none: of all images and of each group."""
    first = subjects[0].judgement
    values: list[float | None] = [subject.judgement["overall"]["auc"] for subject in subjects]
    everybody = [subject.ends("overall", "auc") for subject in subjects]
    rows: list[ForestRow] = [("all images", count(first["n"]), values, everybody, "not judged")]
    reasons = _reasons(first["attributes"][attribute])
    for name, group in first["attributes"][attribute]["groups"].items():
        counts = count(group["n"])
        if group["positives"] is not None:
            counts += f" · {count(group['positives'])} positive"
        values = [subject.judgement["attributes"][attribute]["groups"][name]["auc"] for subject in subjects]
        ends = [subject.ends("attributes", attribute, "groups", name, "auc") for subject in subjects]
        rows.append((name, counts, values, ends, reasons.get(name, "not judged")))
    return rows


def _forest_told(subjects: Sequence[Subject], rows: Sequence[ForestRow]) -> str:
    """The rows in words, for those who do not see them."""
    told = []
    for name, _, values, ends, reason in rows:
        if all(value is None for value in values):
            told.append(f"{name} {reason}")
            continue
        of_models = [
            f"{subject.title} {number(value)}" + (f" ({span(pair)})" if pair and value is not None else "")
            for subject, value, pair in zip(subjects, values, ends, strict=True)
        ]
        told.append(f"{name} {', '.join(of_models)}")
    return "; ".join(told)


def roc_panel(subject: Subject, attribute: str, groups: Sequence[str]) -> str:
    """ROC curves of one model, one line per group; `groups` fixes each group's colour and dash."""
    parts = [
        *_frame(
            subject.title, [0, 0.25, 0.5, 0.75, 1], [0, 0.25, 0.5, 0.75, 1], "false positive rate", "true positive rate"
        )
    ]
    parts.append(element("line", x1=_px(0), y1=_py(0), x2=_px(1), y2=_py(1), class_="chance"))
    for name, (fpr, tpr) in group_curves(subject, attribute).items():
        i = groups.index(name)
        points = " ".join(f"{_px(a):.1f},{_py(b):.1f}" for a, b in zip(fpr, tpr, strict=True))
        parts.append(element("polyline", points=points, class_=f"curve {colour(i)}", stroke_dasharray=dash(i)))
    found = subject.judgement["attributes"][attribute]["groups"]
    told = ", ".join(f"{name} {number(found[name]['auc'])}" for name in groups)
    label = f"ROC curves of {subject.title} per group of {attribute_name(attribute)}; the areas below them: {told}."
    return drawing(PANEL, PANEL + 4, label, parts)


def reliability_panel(
    title: str, label: str, groups: Sequence[str], curves: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> str:
    """Share of positives against mean score; `groups` fixes each group's colour and dash, `curves` has those drawn."""
    marks = [0, 0.25, 0.5, 0.75, 1]
    parts = [*_frame(title, marks, marks, "mean score", "share of positives")]
    parts.append(element("line", x1=_px(0), y1=_py(0), x2=_px(1), y2=_py(1), class_="chance"))
    for name, (means, shares) in curves.items():
        i = groups.index(name)
        places = [(_px(a), _py(b)) for a, b in zip(means, shares, strict=True)]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(element("polyline", points=points, class_=f"curve {colour(i)}", stroke_dasharray=dash(i)))
        # A group that has one point has no line.
        parts += [element("circle", cx=x, cy=y, r=3.5, class_=f"mark {colour(i)}") for x, y in places]
    return drawing(PANEL, PANEL + 4, label, parts)


def curve_panel(title: str, label: str, names: Sequence[str], curves: Mapping[str, np.ndarray], xs: np.ndarray) -> str:
    """Gaps against the threshold, a line per model; `names` fixes each one's colour and dash."""
    highest = max(float(np.nanmax(values)) for values in curves.values())
    across, up = [0, 0.25, 0.5, 0.75, 1], ticks(0, max(highest, 0.1), 5)
    parts = [*_frame(title, across, up, "threshold", "EOD")]
    for name, values in curves.items():
        i = names.index(name)
        points = " ".join(f"{_px(x):.1f},{_py(_share(y, up)):.1f}" for x, y in zip(xs, values, strict=True) if y == y)
        parts.append(element("polyline", points=points, class_=f"curve {colour(i)}", stroke_dasharray=dash(i)))
    return drawing(PANEL, PANEL + 4, label, parts)


def tradeoff_panel(subjects: Sequence[Subject], attribute: str, *, xs: Sequence[float], ys: Sequence[float]) -> str:
    """Accuracy against the equalized odds difference, one mark per model, on axes shared by all panels."""
    parts = [*_frame(attribute_name(attribute), xs, ys, "equalized odds difference", "accuracy")]
    for i, subject in enumerate(subjects):
        gap, height = subject.judgement["attributes"][attribute]["eod"], subject.judgement["overall"]["accuracy"]
        if gap is not None and height is not None:
            parts.append(marker(i, _px(_share(gap, xs)), _py(_share(height, ys))))
    told = ", ".join(f"{s.title} {number(s.judgement['attributes'][attribute]['eod'])}" for s in subjects)
    label = f"Accuracy against equalized odds difference by {attribute_name(attribute)}: {told}."
    return drawing(PANEL, PANEL + 4, label, parts)


def tradeoff_axes(subjects: Sequence[Subject]) -> tuple[list[float], list[float]]:
    """Ticks of both axes that hold every model and attribute."""
    gaps = [a["eod"] for s in subjects for a in s.judgement["attributes"].values() if a["eod"] is not None]
    heights = [s.judgement["overall"]["accuracy"] for s in subjects if s.judgement["overall"]["accuracy"] is not None]
    low, high = min(heights, default=0.5), max(heights, default=0.5)
    margin = max(0.15 * (high - low), 0.02)
    return ticks(0, max(gaps, default=0.1) * 1.06, 5), ticks(max(low - margin, 0), min(high + margin, 1), 5)


def cohort_bars(strata: Mapping[str, Any]) -> str:
    """Training images per cell before and after balancing; a suppressed count has no bar."""
    cells = strata["cells"]
    names = [" · ".join(str(cell[name]) for name in strata["attributes"]) or "all" for cell in cells]
    left = 20 + max(text_width(name, 13) for name in names)
    right = WIDTH - 84
    counts = [cell[key] for cell in cells for key in ("train_before", "train_after") if isinstance(cell[key], int)]
    marks = ticks(0, max(counts, default=1), 6)
    height = 2 * (BAR + GAP) + 14
    bottom = 8 + height * len(cells)

    def x(value: float) -> float:
        return left + value / marks[-1] * (right - left)

    parts = []
    for tick in marks:
        parts.append(element("line", x1=x(tick), x2=x(tick), y1=4.0, y2=bottom, class_="grid"))
        parts.append(
            element("text", text=f"{tick:,.0f}", x=x(tick), y=bottom + 18, class_="tick", text_anchor="middle")
        )
    parts.append(
        element(
            "text", text="training images", x=(left + right) / 2, y=bottom + 38, class_="tick", text_anchor="middle"
        )
    )
    for i, (name, cell) in enumerate(zip(names, cells, strict=True)):
        top = 8 + height * i + 7
        parts.append(element("text", text=name, x=left - 14, y=top + BAR + 5, class_="name", text_anchor="end"))
        values = [cell["train_before"], cell["train_after"]]
        if values == [None, None]:
            parts.append(
                element("text", text="suppressed: too few people", x=left + 10, y=top + BAR + 5, class_="count")
            )
            continue
        for value, y, fill in zip(values, (top, top + BAR + GAP), ("c0", "c1"), strict=True):
            width = 0.0 if value is None else max(x(value) - left, 1.0)
            shown = "suppressed" if value is None else f"{value:,}"
            parts.append(element("rect", x=left, y=y, width=width, height=BAR, rx=2, class_=f"bar {fill}"))
            parts.append(element("text", text=shown, x=left + width + 6, y=y + BAR - 2, class_="value"))
    parts.append(element("line", x1=left, x2=left, y1=4.0, y2=bottom, class_="axis"))
    label = "Training images per cell before and after balancing; the numbers are in the table below."
    return drawing(WIDTH, bottom + 48, label, parts)


def _frame(title: str, xs: Sequence[float], ys: Sequence[float], x_name: str, y_name: str) -> list[str]:
    """A panel's title, grid, ticks and axis names."""
    parts = [element("text", text=title, x=_px(0), y=14.0, class_="name")]
    for tick in xs:
        x = _px(_share(tick, xs))
        parts.append(element("line", x1=x, x2=x, y1=_py(0), y2=_py(1), class_="grid"))
        parts.append(element("text", text=f"{tick:g}", x=x, y=_py(0) + 16, class_="tick", text_anchor="middle"))
    for tick in ys:
        y = _py(_share(tick, ys))
        parts.append(element("line", x1=_px(0), x2=_px(1), y1=y, y2=y, class_="grid"))
        parts.append(element("text", text=f"{tick:g}", x=_px(0) - 6, y=y + 4, class_="tick", text_anchor="end"))
    parts.append(element("text", text=x_name, x=_px(0.5), y=_py(0) + 34, class_="tick", text_anchor="middle"))
    turned = f"rotate(-90 12 {_py(0.5):.1f})"
    parts.append(
        element("text", text=y_name, x=12.0, y=_py(0.5), class_="tick", text_anchor="middle", transform=turned)
    )
    return parts


def _px(share: float) -> float:
    return 52 + share * (PANEL - 52 - 14)


def _py(share: float) -> float:
    return 24 + (1 - share) * (PANEL - 52 - 14)


def _share(value: float, marks: Sequence[float]) -> float:
    return (value - marks[0]) / (marks[-1] - marks[0])


def _reasons(found: Mapping[str, Any]) -> dict[str, str]:
    """Why a group has no AUC, in the words of its row."""
    reasons: dict[str, set[str]] = {}
    for item in found["unjudged"]:
        reasons.setdefault(item["group"], set()).add(f"{item['reason']} ({counted(item)})")
    told = {name: f"not judged: {', '.join(sorted(why))}" for name, why in reasons.items()}
    return told | dict.fromkeys(found["suppressed"], "suppressed: too few people")

"""Sections beyond the fixed numbers: gaps at other thresholds, and groups within groups."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from fairvlm_core.evaluation.judgement import INTERSECTION, with_intersection
from fairvlm_core.evaluation.report.blocks import figure, legend, line, panels
from fairvlm_core.evaluation.report.charts import curve_panel
from fairvlm_core.evaluation.report.subjects import Subject
from fairvlm_core.evaluation.report.svg import drawing, element, text_width
from fairvlm_core.evaluation.report.words import attribute_name, count, number

THRESHOLDS = np.linspace(0, 1, 101)
CELL, ROW = 82.0, 52.0


def thresholds_section(subjects: Sequence[Subject]) -> str:
    """The equalized odds difference by attribute as one threshold for all labels moves from 0 to 1."""
    single = [name for name in subjects[0].judgement["attributes"] if " x " not in name]
    drawn = []
    for attribute in single:
        curves = {subject.title: gap_curve(subject, attribute) for subject in subjects}
        known = {title: values for title, values in curves.items() if not np.isnan(values).all()}
        if known:
            told = ", ".join(f"{title} up to {number(float(np.nanmax(values)))}" for title, values in known.items())
            label = f"Equalized odds difference by {attribute_name(attribute)} at every threshold: {told}."
            drawn.append(curve_panel(attribute_name(attribute), label, list(curves), known, THRESHOLDS))
    if not drawn:
        return '<p class="note">No attribute has two groups that can be judged, so there is no gap to show.</p>'
    note = (
        "Where a curve is low only beside the thresholds that were chosen, fairness hangs on that choice. At 0 and 1 "
        "everybody is decided alike, so that every gap is 0 there, for a useless model, too."
    )
    marks = [line(i) for i in range(len(subjects))]
    return f'<p class="note">{escape(note)}</p>' + figure(
        "Equalized odds difference against the threshold",
        legend([subject.title for subject in subjects], marks),
        panels(drawn),
    )


def gap_curve(subject: Subject, attribute: str) -> np.ndarray:
    """EOD of an attribute at 101 thresholds from 0 to 1, mean over the labels, float64 [101]; NaN where none is judged.

    The groups are those that were judged at the fixed thresholds.
    """
    groups = with_intersection(subject.scores.groups)[attribute]
    curves = []
    for j, label in enumerate(subject.scores.labels):
        told = subject.judgement["attributes"][attribute]["labels"][label]["groups"]
        judged = [name for name, found in told.items() if found["auc"] is not None]
        if len(judged) < 2:
            continue
        truth, score = subject.scores.y_true[:, j], subject.scores.y_score[:, j]
        gaps = []
        for value in (1, 0):
            rates = [_share_above(score[(groups == name) & (truth == value)]) for name in judged]
            gaps.append(np.max(rates, axis=0) - np.min(rates, axis=0))
        curves.append(np.maximum(*gaps))
    return np.mean(curves, axis=0) if curves else np.full(len(THRESHOLDS), np.nan)


def _share_above(score: np.ndarray) -> np.ndarray:
    """Share of the scores that reach each threshold."""
    return 1 - np.searchsorted(np.sort(score), THRESHOLDS, side="left") / len(score)


def intersection_section(subjects: Sequence[Subject]) -> str:
    """AUC of every sex within every age group, a map per model; empty where there is no such attribute."""
    name = " x ".join(INTERSECTION)
    if name not in subjects[0].judgement["attributes"]:
        return ""
    drawn = [_heat(subject, name) for subject in subjects]
    least = subjects[0].judgement["min_cell"]
    note = (
        "The stronger the colour, the better the people of that cell are ranked. A cell of fewer than "
        f"{least} images is suppressed; one without positives or without negatives has no AUC."
    )
    return f'<p class="note">{escape(note)}</p>' + figure(f"AUC by {attribute_name(name)}", panels(drawn))


def _heat(subject: Subject, name: str) -> str:
    cells, suppressed = (subject.judgement["attributes"][name][key] for key in ("groups", "suppressed"))
    across = list(subject.judgement["attributes"][INTERSECTION[1]]["groups"])
    down = list(subject.judgement["attributes"][INTERSECTION[0]]["groups"])
    left = 14 + max(text_width(one, 13) for one in down)
    parts = [element("text", text=subject.title, x=0.0, y=14.0, class_="name")]
    parts += [
        element("text", text=one, x=left + CELL * (i + 0.5), y=38.0, class_="tick", text_anchor="middle")
        for i, one in enumerate(across)
    ]
    told = []
    for i, sex in enumerate(down):
        top = 46 + ROW * i
        parts.append(element("text", text=sex, x=left - 10, y=top + ROW / 2 + 4, class_="name", text_anchor="end"))
        for k, age in enumerate(across):
            found = cells.get(f"{sex}, {age}", {"auc": None, "n": 0})
            value, x = found["auc"], left + CELL * k
            # From chance to perfect, never so dark that the number on it cannot be read.
            shade = None if value is None else 0.08 + 0.5 * min(max((value - 0.5) / 0.5, 0.0), 1.0)
            parts.append(
                element(
                    "rect", x=x + 1, y=top + 1, width=CELL - 2, height=ROW - 2, rx=3, class_="heat", fill_opacity=shade
                )
                if shade is not None
                else element("rect", x=x + 1, y=top + 1, width=CELL - 2, height=ROW - 2, rx=3, class_="nothing")
            )
            size = found["n"]
            few = f"{sex}, {age}" in suppressed
            words = number(value) if value is not None else "suppressed" if few else "not judged"
            parts.append(element("text", text=words, x=x + CELL / 2, y=top + 24, class_="value", text_anchor="middle"))
            parts.append(
                element(
                    "text", text=f"n = {count(size)}", x=x + CELL / 2, y=top + 40, class_="value", text_anchor="middle"
                )
            )
            told.append(f"{sex} {age} {words}")
    label = f"{subject.title}, AUC by {attribute_name(name)}: {', '.join(told)}."
    return drawing(left + CELL * len(across) + 2, 52 + ROW * len(down), label, parts)

"""Sections beyond the fixed numbers: gaps at other thresholds, groups within groups, and all numbers as CSV."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from fairvlm_core.evaluation.judgement import INTERSECTION, with_intersection
from fairvlm_core.evaluation.report.blocks import figure, legend, line, panels
from fairvlm_core.evaluation.report.charts import curve_panel
from fairvlm_core.evaluation.report.subjects import Subject
from fairvlm_core.evaluation.report.svg import drawing, element, text_width
from fairvlm_core.evaluation.report.words import attribute_name, count, number

THRESHOLDS = np.linspace(0, 1, 101)
CELL, ROW = 92.0, 52.0


def thresholds_section(subjects: Sequence[Subject]) -> str:
    """The equalized odds difference by attribute as one threshold for all labels moves from 0 to 1."""
    single = [name for name in subjects[0].judgement["attributes"] if " x " not in name]
    drawn = []
    for attribute in single:
        curves = {subject.title: gap_curve(subject, attribute) for subject in subjects}
        known = {title: values for title, values in curves.items() if not np.isnan(values).all()}
        if known:
            label = f"Equalized odds difference by {attribute_name(attribute)} at every threshold."
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
    cells = subject.judgement["attributes"][name]["groups"]
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
            words = number(value) if value is not None else "suppressed" if isinstance(size, str) else "not judged"
            parts.append(element("text", text=words, x=x + CELL / 2, y=top + 24, class_="value", text_anchor="middle"))
            parts.append(
                element(
                    "text", text=f"n = {count(size)}", x=x + CELL / 2, y=top + 40, class_="count", text_anchor="middle"
                )
            )
            told.append(f"{sex} {age} {words}")
    label = f"{subject.title}, AUC by {attribute_name(name)}: {', '.join(told)}."
    return drawing(left + CELL * len(across) + 2, 52 + ROW * len(down), label, parts)


def numbers_link(subjects: Sequence[Subject]) -> str:
    """A link that holds all numbers of the page as CSV."""
    content = base64.b64encode(numbers_csv(subjects).encode()).decode()
    return (
        '<p class="note"><a download="fairness.csv" '
        f'href="data:text/csv;charset=utf-8;base64,{content}">All numbers of this page as CSV</a></p>'
    )


def numbers_csv(subjects: Sequence[Subject]) -> str:
    """A row per number: model, attribute, group, label, metric, value, low, high, p; suppressed ones are absent."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", "attribute", "group", "label", "metric", "value", "low", "high", "p"])
    for subject in subjects:
        for where, metric, value in _numbers(subject.judgement):
            ends = subject.ends(*_path(where), metric) if not where.get("label") else None
            chance = subject.p_values.get(where.get("attribute", ""), {}).get(metric) if "group" not in where else None
            low, high = ends if isinstance(ends, Sequence) else ("", "")
            place = [_harmless(where.get(name, "")) for name in ("attribute", "group", "label")]
            writer.writerow(
                [_harmless(subject.title), *place, metric, value, low, high, "" if chance is None else round(chance, 6)]
            )
    return text.getvalue()


def _harmless(name: str) -> str:
    """A name that no spreadsheet takes for a formula."""
    return f"'{name}" if name.startswith(("=", "+", "-", "@", "\t", "\r")) else name


def _numbers(judgement: Mapping[str, Any]) -> Iterator[tuple[dict[str, str], str, Any]]:
    """Every number of a judgement and where it stands."""

    def plain(found: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        return (
            (name, value) for name, value in found.items() if value is not None and not isinstance(value, (dict, list))
        )

    for metric, value in plain(judgement["overall"]):
        yield {}, metric, value
    for label, value in judgement["overall"]["auc_per_label"].items():
        if value is not None:
            yield {"label": label}, "auc", value
    for attribute, found in judgement["attributes"].items():
        for metric, value in plain(found):
            yield {"attribute": attribute}, metric, value
        for group, of in found["groups"].items():
            for metric, value in plain(of):
                yield {"attribute": attribute, "group": group}, metric, value
        for label, of in found["labels"].items():
            for metric, value in plain(of):
                yield {"attribute": attribute, "label": label}, metric, value
            for group, inner in of["groups"].items():
                for metric, value in plain(inner):
                    yield {"attribute": attribute, "group": group, "label": label}, metric, value


def _path(where: Mapping[str, str]) -> tuple[str, ...]:
    if "attribute" not in where:
        return ("overall",)
    inner = ("groups", where["group"]) if "group" in where else ()
    return ("attributes", where["attribute"], *inner)

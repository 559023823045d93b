"""The sections about groups: gaps by attribute, the numbers of each group, ROC curves, accuracy against the gap."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from fairvlm_core.evaluation.report import charts
from fairvlm_core.evaluation.report.blocks import (
    BOLD,
    figure,
    legend,
    line,
    numbers_below,
    panels,
    point,
    scrolled,
    scrolled_table,
)
from fairvlm_core.evaluation.report.subjects import Subject
from fairvlm_core.evaluation.report.words import attribute_name, count, parity, sure, with_chance


def by_attribute(subjects: Sequence[Subject]) -> str:
    """Of each attribute: every model's ES-AUC, worst group and gaps, with intervals and p-values."""
    short, name = parity(subjects[0].judgement["kind"])
    several = len(subjects[0].scores.labels) > 1
    heads = ["Model", "ES-AUC", "Worst group AUC", short, "EOD", "TPR gap"]
    best: list[str | None] = [None, "high", "high", "low", "low", "low"]
    if several:
        heads[4:4] = [f"{short}, worst label"]
        best[4:4] = ["low"]
    tables = []
    for attribute, first in subjects[0].judgement["attributes"].items():
        rows = []
        for subject in subjects:
            found = subject.judgement["attributes"][attribute]
            keys = ["es_auc", "worst_group_auc", "dpd", *(["dpd_worst"] if several else []), "eod", "tpr_gap"]
            chances = subject.p_values.get(attribute, {})
            told = [sure(found[key], subject.ends("attributes", attribute, key)) for key in keys]
            rows.append(
                [subject.title, *(with_chance(cell, chances.get(key)) for cell, key in zip(told, keys, strict=True))]
            )
        caption = f"By {attribute_name(attribute)}: {count(first['n'])} images whose group is known."
        tables.append(scrolled_table(caption, heads, rows, best=best, even=True))
    note = f"{short}: {name[0].lower()}{name[1:]}. EOD: equalized odds difference{BOLD * (len(subjects) > 1)}."
    return f'<p class="note">{escape(note)}</p>' + "".join(tables)


def group_figure(subjects: Sequence[Subject], attribute: str) -> str:
    """The AUC of each group with its interval, and all its numbers."""
    short = "Positives" if subjects[0].judgement["kind"] == "binary" else None
    heads = ["Group", "Model", "Images", *([short] if short else []), "AUC", "Accuracy"]
    keys = ["auc", "accuracy"]
    if subjects[0].judgement["kind"] != "multiclass":
        heads, keys = [*heads, "Selection rate"], [*keys, "selection_rate"]
    heads, keys = [*heads, "TPR", "FPR"], [*keys, "tpr", "fpr"]
    rows = []
    for name in subjects[0].judgement["attributes"][attribute]["groups"]:
        for subject in subjects:
            group = subject.judgement["attributes"][attribute]["groups"][name]
            counts = [count(group["n"]), *([count(group["positives"])] if short else [])]
            where = ("attributes", attribute, "groups", name)
            rows.append([name, subject.title, *counts, *(sure(group[key], subject.ends(*where, key)) for key in keys)])
    table = scrolled_table(f"The groups of {attribute_name(attribute)} in numbers.", heads, rows, text=2)
    return figure(
        f"AUC by {attribute_name(attribute)}",
        legend([subject.title for subject in subjects], [point(i) for i in range(len(subjects))]),
        scrolled(f"AUC by {attribute_name(attribute)}", charts.forest(subjects, attribute)),
        numbers_below(table),
    )


def roc_figure(subjects: Sequence[Subject], attribute: str) -> str:
    """ROC curves, a panel per model and a line per group."""
    found = subjects[0].judgement["attributes"][attribute]["groups"]
    groups = [name for name, group in found.items() if group["auc"] is not None]
    if not groups:
        return figure(f"ROC by {attribute_name(attribute)}", '<p class="note">No group can be judged.</p>')
    labels = [f"{name} (n = {count(found[name]['n'])})" for name in groups]
    drawings = [charts.roc_panel(subject, attribute, groups) for subject in subjects]
    note = (
        ""
        if len(subjects[0].scores.labels) == 1
        else '<p class="note">Mean curve over the labels, each against the rest.</p>'
    )
    return figure(
        f"ROC by {attribute_name(attribute)}",
        legend(labels, [line(i) for i in range(len(groups))]),
        panels(drawings),
        note,
    )


def tradeoff(subjects: Sequence[Subject], attributes: Sequence[str]) -> str:
    """Accuracy against the equalized odds difference, a panel per attribute and a mark per model."""
    xs, ys = charts.tradeoff_axes(subjects)
    shown = [a for a in attributes if any(s.judgement["attributes"][a]["eod"] is not None for s in subjects)]
    if not shown:
        return '<p class="note">No attribute has two groups that can be judged, so there is no gap to show.</p>'
    marks = [point(i) for i in range(len(subjects))]
    return figure(
        "Further left is fairer, further up is more accurate",
        legend([subject.title for subject in subjects], marks),
        panels([charts.tradeoff_panel(subjects, attribute, xs=xs, ys=ys) for attribute in shown]),
    )

"""The report's page: one HTML file that needs nothing else, readable on screen, in the dark and on paper."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from fairvlm_core.evaluation.report import charts
from fairvlm_core.evaluation.report.belief import belief, calibration_told
from fairvlm_core.evaluation.report.beyond import intersection_section, numbers_link, thresholds_section
from fairvlm_core.evaluation.report.blocks import BOLD, SMALL, figure, legend, line, panels, scrolled
from fairvlm_core.evaluation.report.subjects import Subject
from fairvlm_core.evaluation.report.svg import element, marker
from fairvlm_core.evaluation.report.tables import html_table, unbroken
from fairvlm_core.evaluation.report.words import (
    ANSWERS,
    ATTENTION,
    GLOSSARY,
    Selection,
    attribute_name,
    count,
    number,
    parity,
    sure,
    verdict,
)

KINDS = {"binary": "Binary", "multiclass": "Multi-class", "multilabel": "Multi-label"}


def page(
    subjects: Sequence[Subject],
    *,
    title: str,
    split: str,
    how: str,
    strata: Mapping[str, Any] | None = None,
    selection: Selection | None = None,
    pictures: Mapping[str, bytes] | None = None,
    against: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The whole document.

    Args:
        subjects: the models, all judged on the same images.
        title: heading of the page.
        split: the split they were judged on.
        how: how the decisions were made, in a sentence or two.
        strata: the content of `strata.json`: the training cells before and after balancing.
        selection: which model was chosen and by what, if one was.
        pictures: a model's title -> PNG of where it looks.
        against: what `contrasts` says of the selected model and the others.
    """
    first = subjects[0].judgement
    attributes = list(first["attributes"])
    shown = [("Summary", _headline(subjects, selection))]
    if against and selection:
        shown.append((f"{selection.selected} against the others", _against(against, first["kind"])))
    if attributes:
        single = [name for name in attributes if " x " not in name]
        shown += [
            ("By attribute", _by_attribute(subjects)),
            ("How well each group is ranked", SMALL + "".join(_group_figure(subjects, name) for name in attributes)),
            ("ROC curves per group", "".join(_roc_figure(subjects, name) for name in single)),
        ]
        within = intersection_section(subjects)
        shown += [("Groups within groups", within)] if within else []
        if len(subjects) > 1:
            shown.append(("Accuracy against the gap between groups", _tradeoff(subjects, attributes)))
        if first["kind"] != "multiclass":
            shown.append(("Gaps at other thresholds", thresholds_section(subjects)))
    shown.append(("How far the scores can be believed", belief(subjects)))
    if any("answers" in subject.judgement for subject in subjects):
        shown.append(("Answers in words", _answers(subjects)))
    if pictures:
        shown.append(("Where the models look", _attention(pictures)))
    if strata and strata.get("cells"):
        shown.append(("The training cohort before and after balancing", _cohort(strata)))
    shown += [
        ("How decisions are made", _decisions(subjects, how)),
        ("What is left out", _left_out(first)),
        ("What the words mean", _glossary(first["kind"])),
    ]
    links = "".join(f'<li><a href="#s{i}">{escape(name)}</a></li>' for i, (name, _) in enumerate(shown))
    body = "".join(
        f'<section id="s{i}"><h2>{escape(name)}</h2>{content}</section>' for i, (name, content) in enumerate(shown)
    )
    sentences = verdict(subjects, split, selection)
    facts = f"{_labels(first)} · {count(first['n'])} {split} images · {len(subjects)} model{'s' * (len(subjects) > 1)}"
    style = files(__package__).joinpath("style.css").read_text()
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        # Nothing may be fetched, whatever a name in the data contains.
        """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'"""
        f"""{"; img-src data:" if pictures else ""}">"""
        f"<title>{escape(title)}</title><style>{style}</style></head><body>"
        f'<header><h1>{escape(title)}</h1><p class="facts">{escape(facts)}</p></header><main>'
        f'<div class="verdict"><p class="lead">{unbroken(sentences[0])}</p>'
        f"<p>{unbroken(' '.join(sentences[1:]))}</p></div>"
        f'<nav aria-label="Contents"><ul>{links}</ul></nav>{body}{numbers_link(subjects)}</main></body></html>\n'
    )


def _labels(judgement: Mapping[str, Any]) -> str:
    labels = judgement["labels"]
    return f"{KINDS[judgement['kind']]} task: {', '.join(labels)}"


def _headline(subjects: Sequence[Subject], selection: Selection | None) -> str:
    short, _ = parity(subjects[0].judgement["kind"])
    heads = ["Model", "Accuracy", "Balanced accuracy", "AUC", "ES-AUC", short, "EOD", "Worst group AUC"]
    best: list[str | None] = [None, "high", "high", "high", "high", "low", "low", "high"]
    multilabel = subjects[0].judgement["kind"] == "multilabel"
    if multilabel:
        heads.insert(2, "Exact match")
        best.insert(2, "high")
    rows = []
    for subject in subjects:
        overall, across = subject.judgement["overall"], subject.judgement["across"]
        worst = [
            found["worst_group_auc"]
            for name, found in subject.judgement["attributes"].items()
            if " x " not in name and found["worst_group_auc"] is not None
        ]
        rows.append(
            [
                subject.title + (" (selected)" if selection and subject.title == selection.selected else ""),
                *(
                    sure(overall[metric], subject.ends("overall", metric))
                    for metric in ("accuracy", *(["exact_match"] if multilabel else []), "balanced_accuracy", "auc")
                ),
                *(
                    sure(across[metric]["mean"], subject.ends("across", metric, "mean"))
                    for metric in ("es_auc", "dpd", "eod")
                ),
                number(min(worst, default=None)),
            ]
        )
    caption = f"ES-AUC, {short} and EOD are means over the attributes{BOLD * (len(subjects) > 1)}."
    return scrolled(html_table(caption, heads, rows, best=best))


def _against(rows: Sequence[Mapping[str, Any]], kind: str) -> str:
    """The selected model minus each other one, and whether chance explains it."""
    names = {"auc": "AUC", "accuracy": "Accuracy", "es_auc": "ES-AUC", "dpd": parity(kind)[0], "eod": "EOD"}
    models = list(dict.fromkeys(row["model"] for row in rows))
    lines = []
    for model in models:
        told = {row["measure"]: row for row in rows if row["model"] == model}
        lines.append([model, *(_difference(told[measure]) for measure in names)])
    caption = (
        "The selected model minus each of the others, on the same images; p after Holm's correction over the models."
    )
    note = (
        "The interval and the test are paired: both models see the same patients drawn. Higher is better for AUC, "
        f"accuracy and ES-AUC, lower for {names['dpd']} and EOD. An interval that holds 0 settles nothing."
    )
    return scrolled(html_table(caption, ["Against", *names.values()], lines)) + f'<p class="note">{escape(note)}</p>'


def _difference(row: Mapping[str, Any]) -> str:
    if row["difference"] is None:
        return "–"
    ends = "" if row["low"] is None else f"\n{row['low']:+.3f} to {row['high']:+.3f}"
    return _with_chance(f"{row['difference']:+.3f}{ends}", row["p_holm"])


def _by_attribute(subjects: Sequence[Subject]) -> str:
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
                [subject.title, *(_with_chance(cell, chances.get(key)) for cell, key in zip(told, keys, strict=True))]
            )
        caption = f"By {attribute_name(attribute)}: {count(first['n'])} images whose group is known."
        tables.append(scrolled(html_table(caption, heads, rows, best=best), even=True))
    note = f"{short}: {name[0].lower()}{name[1:]}. EOD: equalized odds difference{BOLD * (len(subjects) > 1)}."
    return f'<p class="note">{escape(note)}</p>' + "".join(tables)


def _with_chance(cell: str, p: float | None) -> str:
    """A gap with its interval, and how often chance alone makes one as large."""
    return cell if p is None else f"{cell}\np {'< 0.001' if p < 0.001 else f'= {p:.3f}'}"


def _group_figure(subjects: Sequence[Subject], attribute: str) -> str:
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
    table = scrolled(html_table(f"The groups of {attribute_name(attribute)} in numbers.", heads, rows, text=2))
    return figure(
        f"AUC by {attribute_name(attribute)}",
        legend([subject.title for subject in subjects]) if len(subjects) > 1 else "",
        scrolled(charts.auc_bars(subjects, attribute)),
        f"<details><summary>The numbers</summary>{table}</details>",
    )


def _roc_figure(subjects: Sequence[Subject], attribute: str) -> str:
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


def _tradeoff(subjects: Sequence[Subject], attributes: Sequence[str]) -> str:
    xs, ys = charts.tradeoff_axes(subjects)
    shown = [a for a in attributes if any(s.judgement["attributes"][a]["eod"] is not None for s in subjects)]
    if not shown:
        return '<p class="note">No attribute has two groups that can be judged, so there is no gap to show.</p>'
    marks = [element("g", marker(i, 14, 6, 5)) for i in range(len(subjects))]
    return figure(
        "Further left is fairer, further up is more accurate",
        legend([subject.title for subject in subjects], marks),
        panels([charts.tradeoff_panel(subjects, attribute, xs=xs, ys=ys) for attribute in shown]),
    )


def _answers(subjects: Sequence[Subject]) -> str:
    heads = ["Model", "Accuracy of the scores", "Accuracy of the answers", "Of those decided", "Undecided", "Agreement"]
    best: list[str | None] = [None, "high", "high", "high", "low", None]
    keys = ("accuracy", "accuracy_decided", "undecided", "agreement")
    rows = [
        [
            subject.title,
            number(subject.judgement["overall"]["accuracy"]),
            *(number(subject.judgement.get("answers", {}).get(key)) for key in keys),
        ]
        for subject in subjects
    ]
    table = scrolled(html_table(f"Both ways to answer{BOLD * (len(subjects) > 1)}.", heads, rows, best=best), even=True)
    groups = "".join(_answers_by(subjects, attribute) for attribute in subjects[0].judgement["attributes"])
    if not groups:
        return f'<p class="note">{escape(ANSWERS)}</p>{table}'
    return f'<p class="note">{escape(ANSWERS)}</p>{table}<details><summary>By group</summary>{groups}</details>'


def _answers_by(subjects: Sequence[Subject], attribute: str) -> str:
    """Who is left without an answer: the shares per group."""
    rows = [
        [name, subject.title, count(group["n"]), number(group["accuracy"]), number(group["undecided"])]
        for subject in subjects
        if "answers" in subject.judgement
        for name, group in subject.judgement["answers"]["attributes"].get(attribute, {}).items()
    ]
    heads = ["Group", "Model", "Images", "Accuracy of the answers", "Undecided"]
    caption = f"Answers in words by {attribute_name(attribute)}."
    return scrolled(html_table(caption, heads, sorted(rows, key=lambda row: row[0]), text=2))


def _attention(pictures: Mapping[str, bytes]) -> str:
    figures = []
    for title, picture in pictures.items():
        source = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
        told = f"Images with the maps of the base model and of {title} over them."
        figures.append(figure(title, f'<img class="looks" alt="{escape(told)}" src="{source}">'))
    return f'<p class="note">{escape(ATTENTION)}</p>' + "".join(figures)


def _cohort(strata: Mapping[str, Any]) -> str:
    names = " × ".join(attribute_name(name) for name in strata["attributes"])
    heads = [*(attribute_name(name).capitalize() for name in strata["attributes"]), "Before", "After"]
    rows = [
        [
            *(str(cell[name]) for name in strata["attributes"]),
            *("suppressed" if cell[key] is None else count(cell[key]) for key in ("train_before", "train_after")),
        ]
        for cell in strata["cells"]
    ]
    table = scrolled(html_table("Training images per cell.", heads, rows, text=len(strata["attributes"])))
    swatches = [element("rect", x=1, y=1, width=26, height=10, rx=2, class_=f"bar {c}") for c in ("c0", "c1")]
    return figure(
        f"Training images by {names}",
        legend(["before", "after"], swatches),
        scrolled(charts.cohort_bars(strata)),
        f"<details><summary>The numbers</summary>{table}</details>"
        '<p class="note">Only training images are balanced; validation and test stay as they were collected.</p>',
    )


def _decisions(subjects: Sequence[Subject], how: str) -> str:
    with_thresholds = [subject for subject in subjects if subject.thresholds]
    text = f"<p>{escape(how)}</p><p>{escape(' '.join(calibration_told(subjects)))}</p>"
    if not with_thresholds:
        return text
    rows = [
        [label, *(number(subject.thresholds[label]) for subject in with_thresholds)]
        for label in with_thresholds[0].scores.labels
    ]
    return text + scrolled(html_table("Thresholds.", ["Label", *(s.title for s in with_thresholds)], rows))


def _left_out(judgement: Mapping[str, Any]) -> str:
    least = judgement["min_cell"]
    lines = []
    for attribute, found in judgement["attributes"].items():
        name = attribute_name(attribute)
        if found["unknown"]:
            lines.append(
                f"{name}: {count(found['unknown'])} images whose group is unknown count only in the overall numbers."
            )
        if found["suppressed"]:
            lines.append(f"{name}: suppressed, with fewer than {least} images: {', '.join(found['suppressed'])}.")
        reasons: dict[tuple[str, str], list[str]] = {}
        for item in found["unjudged"]:
            reasons.setdefault((item["group"], item["reason"]), []).append(item["label"])
        for (group, reason), labels in reasons.items():
            lines.append(f"{name}: {group} cannot be judged on {', '.join(labels)}: {reason}.")
    lines += [f"No AUC at all for {item['label']}: {item['reason']}." for item in judgement["unjudged"]]
    rule = (
        f"<p>Groups of fewer than {least} images are suppressed to protect the people in them, and take no part in "
        "any gap. A group without positives or without negatives has no AUC, TPR or FPR; it is left out of the gaps "
        "and never counts as 0.</p>"
    )
    if not judgement["attributes"]:
        return "<p>The predictions carry no demographic attribute, so nothing can be said about groups.</p>"
    if not lines:
        return rule + "<p>Here, nothing had to be left out.</p>"
    return rule + "<ul>" + "".join(f"<li>{escape(line[0].upper() + line[1:])}</li>" for line in lines) + "</ul>"


def _glossary(kind: str) -> str:
    short, name = parity(kind)
    terms = {
        term.format(parity=short): text.format(parity_name=name) if "{" in text else text
        for term, text in GLOSSARY.items()
    }
    return "<dl>" + "".join(f"<div><dt>{escape(t)}</dt><dd>{escape(d)}</dd></div>" for t, d in terms.items()) + "</dl>"

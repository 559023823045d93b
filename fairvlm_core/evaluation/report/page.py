"""The report's page: one HTML file that needs nothing else, readable on screen, in the dark and on paper."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from fairvlm_core.evaluation.report import charts
from fairvlm_core.evaluation.report.against import against_champion_section, against_others, champion_told
from fairvlm_core.evaluation.report.belief import belief, calibration_told
from fairvlm_core.evaluation.report.beyond import intersection_section, thresholds_section
from fairvlm_core.evaluation.report.blocks import BOLD, SMALL, figure, legend, numbers_below, scrolled, scrolled_table
from fairvlm_core.evaluation.report.content import Content
from fairvlm_core.evaluation.report.gate import badge, gate_section
from fairvlm_core.evaluation.report.groups import by_attribute, group_figure, roc_figure, tradeoff
from fairvlm_core.evaluation.report.spreadsheet import numbers_link
from fairvlm_core.evaluation.report.subjects import Subject
from fairvlm_core.evaluation.report.svg import element
from fairvlm_core.evaluation.report.tables import headline, headline_best, unbroken
from fairvlm_core.evaluation.report.words import (
    ANSWERS,
    ATTENTION,
    GLOSSARY,
    attribute_name,
    count,
    facts,
    left_out,
    left_out_rule,
    number,
    parity,
    verdict,
)


def page(content: Content) -> str:
    """The whole document."""
    shown = _sections(content)
    links = "".join(f'<li><a href="#s{i}">{escape(name)}</a></li>' for i, (name, _) in enumerate(shown))
    body = "".join(
        f'<section id="s{i}"><h2>{escape(name)}</h2>{inside}</section>' for i, (name, inside) in enumerate(shown)
    )
    lead, *more = verdict(content.subjects, content.split, content.selection)
    told = "".join(f"<p>{unbroken(' '.join(part))}</p>" for part in (more, champion_told(content)) if part)
    told += badge(content.gate) if content.gate else ""
    style = files(__package__).joinpath("style.css").read_text()
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        # Nothing may be fetched, whatever a name in the data contains.
        """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'"""
        f"""{"; img-src data:" if content.pictures else ""}">"""
        f"<title>{escape(content.title)}</title><style>{style}</style></head><body>"
        f'<header><h1>{escape(content.title)}</h1><p class="facts">{escape(facts(content))}</p></header><main>'
        f'<div class="verdict"><p class="lead">{unbroken(lead)}</p>{told}</div>'
        f'<nav aria-label="Contents"><ul>{links}</ul></nav>{body}{numbers_link(content)}</main></body></html>\n'
    )


def _sections(content: Content) -> list[tuple[str, str]]:
    """Headings and what stands below them; what does not apply is absent."""
    subjects, first = content.subjects, content.subjects[0].judgement
    attributes = list(first["attributes"])
    shown = [("Summary", _headline(content))]
    if content.gate:
        shown.append(("The gate", gate_section(content.gate, first["kind"])))
    if content.champion and content.selection:
        shown.append(("Against the champion", against_champion_section(content, content.champion)))
    if content.against and content.selection:
        shown.append((f"{content.selection.selected} against the others", against_others(content)))
    if attributes:
        single = [name for name in attributes if " x " not in name]
        shown += [
            ("By attribute", by_attribute(subjects)),
            ("How well each group is ranked", SMALL + "".join(group_figure(subjects, name) for name in attributes)),
            ("ROC curves per group", "".join(roc_figure(subjects, name) for name in single)),
        ]
        within = intersection_section(subjects)
        shown += [("Groups within groups", within)] if within else []
        if len(subjects) > 1:
            shown.append(("Accuracy against the gap between groups", tradeoff(subjects, attributes)))
        if first["kind"] != "multiclass":
            shown.append(("Gaps at other thresholds", thresholds_section(subjects)))
    shown.append(("How far the scores can be believed", belief(subjects)))
    if any("answers" in subject.judgement for subject in subjects):
        shown.append(("Answers in words", _answers(subjects)))
    if content.pictures:
        shown.append(("Where the models look", _attention(content.pictures)))
    if content.strata and content.strata.get("cells"):
        shown.append(("The training cohort before and after balancing", _cohort(content.strata)))
    return [
        *shown,
        ("How decisions are made", _decisions(content)),
        ("What is left out", _left_out(first)),
        ("What the words mean", _glossary(first["kind"])),
    ]


def _headline(content: Content) -> str:
    kind = content.subjects[0].judgement["kind"]
    heads, rows = headline(content.subjects, content.selection)
    bold = BOLD * (len(content.subjects) > 1)
    caption = f"ES-AUC, {parity(kind)[0]} and EOD are means over the attributes{bold}."
    return scrolled_table(caption, heads, rows, best=headline_best(kind))


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
    table = scrolled_table(f"Both ways to answer{BOLD * (len(subjects) > 1)}.", heads, rows, best=best, even=True)
    groups = "".join(_answers_by(subjects, attribute) for attribute in subjects[0].judgement["attributes"])
    if not groups:
        return f'<p class="note">{escape(ANSWERS)}</p>{table}'
    return f'<p class="note">{escape(ANSWERS)}</p>{table}{numbers_below(groups, "By group")}'


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
    return scrolled_table(caption, heads, sorted(rows, key=lambda row: row[0]), text=2)


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
    table = scrolled_table("Training images per cell.", heads, rows, text=len(strata["attributes"]))
    swatches = [element("rect", x=1, y=1, width=26, height=10, rx=2, class_=f"bar {c}") for c in ("c0", "c1")]
    return figure(
        f"Training images by {names}",
        legend(["before", "after"], swatches),
        scrolled(f"Training images by {names}", charts.cohort_bars(strata)),
        numbers_below(table),
        '<p class="note">Only training images are balanced; validation and test stay as they were collected.</p>',
    )


def _decisions(content: Content) -> str:
    subjects = content.subjects
    with_thresholds = [subject for subject in subjects if subject.thresholds]
    text = f"<p>{escape(content.how)}</p>"
    if content.champion and with_thresholds:
        text += "<p>The champion decides at the thresholds that it was registered with.</p>"
    text += f"<p>{escape(' '.join(calibration_told(subjects)))}</p>"
    if not with_thresholds:
        return text
    rows = [
        [label, *(number(subject.thresholds[label]) for subject in with_thresholds)]
        for label in with_thresholds[0].scores.labels
    ]
    return text + scrolled_table("Thresholds.", ["Label", *(s.title for s in with_thresholds)], rows)


def _left_out(judgement: Mapping[str, Any]) -> str:
    rule, lines = f"<p>{escape(left_out_rule(judgement))}</p>", left_out(judgement)
    if not judgement["attributes"]:
        return rule
    if not lines:
        return f"{rule}<p>Here, nothing had to be left out.</p>"
    return f"{rule}<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


def _glossary(kind: str) -> str:
    short, name = parity(kind)
    terms = {
        term.format(parity=short): text.format(parity_name=name) if "{" in text else text
        for term, text in GLOSSARY.items()
    }
    return "<dl>" + "".join(f"<div><dt>{escape(t)}</dt><dd>{escape(d)}</dd></div>" for t, d in terms.items()) + "</dl>"

"""The short report in Markdown, for places that cannot show a long page: MLflow, Kubeflow, a pull request."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fairvlm_core.evaluation.report.against import champion_table, champion_told
from fairvlm_core.evaluation.report.content import Content
from fairvlm_core.evaluation.report.gate import gate_table, verdict_line
from fairvlm_core.evaluation.report.subjects import Subject
from fairvlm_core.evaluation.report.tables import headline
from fairvlm_core.evaluation.report.words import (
    attribute_name,
    count,
    facts,
    left_out,
    left_out_rule,
    number,
    parity,
    sure,
    verdict,
    with_chance,
)


def short(content: Content, *, full: str) -> str:
    """The verdict in the page's sentences, and its main tables with intervals.

    Args:
        full: where the page is, in words.
    """
    first = content.subjects[0].judgement
    lead, *more = verdict(content.subjects, content.split, content.selection)
    name = parity(first["kind"])[0]
    parts = [
        f"# {plain(content.title)}",
        plain(facts(content)),
        f"**{plain(lead)}** {plain(' '.join(more))}",
        plain(" ".join(champion_told(content))),
        f"**{plain(verdict_line(content.gate))}**" if content.gate else "",
        markdown_table(*headline(content.subjects, content.selection)),
        f"In brackets: intervals of 95 %. ES-AUC, {name} and EOD are means over the attributes.",
    ]
    if content.gate:
        parts += ["## The gate", "\n".join(f"- {plain(reason)}" for reason in content.gate["reasons"])]
        parts += [markdown_table(*gate_table(content.gate, first["kind"]), text=2)]
        parts += ["A rule is judged on the interval in brackets, never on the number before it."]
    if content.champion and content.selection:
        told = "p is after Holm's correction over the rows."
        parts += ["## Against the champion", markdown_table(*champion_table(content, content.champion), text=2), told]
    if first["attributes"]:
        parts += ["## Gaps by attribute", markdown_table(*_gaps(content.subjects), text=2)]
        parts += ["## AUC of each group", markdown_table(*_groups(content.subjects), text=2)]
    if any("answers" in subject.judgement for subject in content.subjects):
        told = "An undecided answer counts as wrong. Agreement: with the decisions from the scores."
        parts += ["## Answers in words", markdown_table(*_answers(content.subjects)), told]
    parts += ["## What is left out", plain(left_out_rule(first))]
    parts += ["\n".join(f"- {plain(line)}" for line in left_out(first))]
    parts += [f"The full report, with the figures, the other numbers and what the words mean: {full}."]
    return "\n\n".join(part for part in parts if part) + "\n"


def _gaps(subjects: Sequence[Subject]) -> tuple[list[str], list[list[str]]]:
    heads = ["Attribute", "Model", "ES-AUC", parity(subjects[0].judgement["kind"])[0], "EOD"]
    rows = []
    for attribute in subjects[0].judgement["attributes"]:
        for subject in subjects:
            found, chances = subject.judgement["attributes"][attribute], subject.p_values.get(attribute, {})
            told = {
                gap: sure(found[gap], subject.ends("attributes", attribute, gap)) for gap in ("es_auc", "dpd", "eod")
            }
            cells = [with_chance(cell, chances.get(gap)) for gap, cell in told.items()]
            rows.append([attribute_name(attribute), subject.title, *cells])
    return heads, rows


def _groups(subjects: Sequence[Subject]) -> tuple[list[str], list[list[str]]]:
    """A row per group and a column per model; groups within groups are left to the page."""
    rows = []
    for attribute, found in subjects[0].judgement["attributes"].items():
        for name, group in found["groups"].items() if " x " not in attribute else ():
            where = ("attributes", attribute, "groups", name, "auc")
            cells = [
                sure(_group(subject.judgement, attribute, name)["auc"], subject.ends(*where)) for subject in subjects
            ]
            rows.append([attribute_name(attribute), name, count(group["n"]), *cells])
    return ["Attribute", "Group", "Images", *(subject.title for subject in subjects)], rows


def _group(judgement: Mapping[str, Any], attribute: str, name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = judgement["attributes"][attribute]["groups"][name]
    return found


def _answers(subjects: Sequence[Subject]) -> tuple[list[str], list[list[str]]]:
    heads = ["Model", "Accuracy of the scores", "Accuracy of the answers", "Undecided", "Agreement"]
    rows = []
    for subject in subjects:
        if "answers" in subject.judgement:
            answers = subject.judgement["answers"]
            told = [
                subject.judgement["overall"]["accuracy"],
                *(answers[key] for key in ("accuracy", "undecided", "agreement")),
            ]
            rows.append([subject.title, *map(number, told)])
    return heads, rows


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, text: int = 1) -> str:
    """A Markdown table whose first `text` columns are words and the others numbers."""
    sides = ["---" if j < text else "---:" for j in range(len(heads))]
    lines = [[plain(head) for head in heads], sides, *([_cell(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(cell: str) -> str:
    """What stands on further lines goes into brackets."""
    first, *below = cell.split("\n")
    return plain(f"{first} ({', '.join(below)})" if below else first)


def plain(text: str) -> str:
    """Text that stays itself in Markdown, whatever a name in the data contains.

    >>> plain("a|b <i>*c*</i> <10")
    'a\\\\|b \\\\<i>\\\\*c\\\\*\\\\</i> <10'
    """
    return re.sub(r"[\\`*_\[\]|~]|<(?=[A-Za-z/!?])|&(?=[#\w]+;)", r"\\\g<0>", re.sub(r"\s+", " ", text))

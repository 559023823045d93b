"""The tables of all models: for the terminal, for the page, and what the page and the short report share."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from fairvlm_core.evaluation.report.content import Selection
from fairvlm_core.evaluation.report.subjects import Subject
from fairvlm_core.evaluation.report.words import CRITERIA, attribute_name, number, parity, sure

if TYPE_CHECKING:
    from rich.table import Table


HYPHENATED = r"\S*\w-\w\S*"
TOGETHER = rf"\([^()]{{1,16}}\)|{HYPHENATED}"  # and what stands in brackets behind a model's title


def headline(subjects: Sequence[Subject], selection: Selection | None) -> tuple[list[str], list[list[str]]]:
    """Heads and rows: each model's main numbers with their intervals. What is best is in `headline_best`."""
    kind = subjects[0].judgement["kind"]
    exact = ["exact_match"] if kind == "multilabel" else []
    heads = ["Model", "Accuracy", *["Exact match"] * len(exact), "Balanced accuracy", "AUC", "ES-AUC"]
    rows = []
    for subject in subjects:
        overall, across = subject.judgement["overall"], subject.judgement["across"]
        mark = " (selected)" * (selection is not None and subject.title == selection.selected)
        rows.append(
            [
                subject.title + mark,
                *(
                    sure(overall[metric], subject.ends("overall", metric))
                    for metric in ("accuracy", *exact, "balanced_accuracy", "auc")
                ),
                *(
                    sure(across[metric]["mean"], subject.ends("across", metric, "mean"))
                    for metric in ("es_auc", "dpd", "eod")
                ),
                _worst_group(subject),
            ]
        )
    return [*heads, parity(kind)[0], "EOD", "Worst group AUC"], rows


def headline_best(kind: str) -> list[str | None]:
    """Per column of the headline, whether the largest or the smallest number is the best."""
    return [None, *["high"] * (5 if kind == "multilabel" else 4), "low", "low", "high"]


def _worst_group(subject: Subject) -> str:
    """The smallest AUC of any group of a single attribute, with its interval within that attribute."""
    found = [
        (judged["worst_group_auc"], name)
        for name, judged in subject.judgement["attributes"].items()
        if " x " not in name and judged["worst_group_auc"] is not None
    ]
    if not found:
        return number(None)
    value, name = min(found)
    return sure(value, subject.ends("attributes", name, "worst_group_auc"))


def summary_rows(judgements: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per model (title -> its judgement) and attribute: model, accuracy, auc, attribute, es_auc, dpd, eod."""
    rows = []
    for title, judgement in judgements.items():
        overall = {"model": title, "accuracy": judgement["overall"]["accuracy"], "auc": judgement["overall"]["auc"]}
        attributes = judgement["attributes"] or {None: {}}
        for attribute, found in attributes.items():
            gaps = {metric: found.get(metric) for metric in ("es_auc", "dpd", "eod")}
            rows.append({**overall, "attribute": attribute, **gaps})
    return rows


def summary_heads(kind: str) -> list[str]:
    """Heads of the summary's columns; the gap in selection rates is named after the task's kind."""
    return ["Model", "Accuracy", "AUC", "Attribute", "ES-AUC", parity(kind)[0], "EOD"]


def summary_table(comparison: Mapping[str, Any]) -> Table:
    """The summary for the terminal; a model's own numbers stand in the first of its rows only."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, caption=_caption(comparison), caption_justify="left", pad_edge=False)
    for i, head in enumerate(summary_heads(comparison["kind"])):
        table.add_column(head, justify="left" if i in (0, 3) else "right", no_wrap=i not in (0, 3))
    previous = None
    for row in comparison["table"]:
        if previous not in (None, row["model"]):
            table.add_section()
        cells = _cells(row, comparison)
        if row["model"] == previous:
            cells[:3] = ["", "", ""]
        table.add_row(*cells)
        previous = row["model"]
    return table


def html_table(
    caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]], *, best: Sequence[str | None] = (), text: int = 1
) -> str:
    """A table whose first `text` columns are words and the others numbers; everything is escaped.

    What stands on further lines of a cell is set small below the first. `best` says per column whether the largest
    ("high") or smallest ("low") number is set bold, if there is a choice.
    """
    bold = {
        j: _best([row[j].split("\n")[0] for row in rows], which)
        for j, which in enumerate(best)
        if which and len(rows) > 1
    }
    lines = [f"<table><caption>{escape(caption)}</caption><thead><tr>"]
    lines += [f'<th scope="col"{_class(j, text)}>{unbroken(head)}</th>' for j, head in enumerate(heads)]
    lines.append("</tr></thead><tbody>")
    for row in rows:
        lines.append(f'<tr><th scope="row">{unbroken(row[0], TOGETHER)}</th>')
        for j, cell in enumerate(row[1:], 1):
            first, *below = cell.split("\n")
            shown = f"<strong>{escape(first)}</strong>" if j in bold and first == bold[j] else escape(first)
            shown += "".join(f'<span class="ends">{escape(text_below)}</span>' for text_below in below)
            lines.append(f"<td{_class(j, text)}>{shown}</td>")
        lines.append("</tr>")
    return "".join([*lines, "</tbody></table>"])


def unbroken(text: str, pattern: str = HYPHENATED) -> str:
    """Escaped text in which what matches the pattern stays on one line: by default words like "ES-AUC" and "0-39".

    >>> unbroken("Fair-MoE (version 3)", TOGETHER)
    '<span class="nb">Fair-MoE</span> <span class="nb">(version 3)</span>'
    """
    return re.sub(pattern, r'<span class="nb">\g<0></span>', escape(text))


def _class(column: int, text: int) -> str:
    return "" if column < text else ' class="n"'


def _best(cells: Sequence[str], which: str) -> str | None:
    values = {}
    for cell in cells:
        try:
            values[cell] = float(cell)
        except ValueError:
            continue
    if len(set(values.values())) < 2:
        return None
    return (max if which == "high" else min)(values, key=values.__getitem__)


def _cells(row: Mapping[str, Any], comparison: Mapping[str, Any]) -> list[str]:
    shown = comparison["models"] | {"champion": comparison.get("champion")}
    title = shown[row["model"]]["title"] + (" *" if row["model"] == comparison["selected"] else "")
    attribute = attribute_name(row["attribute"]) if row["attribute"] else "–"
    return [
        title,
        number(row["accuracy"]),
        number(row["auc"]),
        attribute,
        *(number(row[m]) for m in ("es_auc", "dpd", "eod")),
    ]


def _caption(comparison: Mapping[str, Any]) -> str:
    return f"On the test split. * selected on validation by {CRITERIA[comparison['criterion']['name']]}."

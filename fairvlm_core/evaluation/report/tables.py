"""The tables of all models: one set of rows, shown on the terminal, as Markdown and in the page."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from fairvlm_core.evaluation.report.words import CRITERIA, attribute_name, number, parity

if TYPE_CHECKING:
    from rich.table import Table


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


def markdown(comparison: Mapping[str, Any]) -> str:
    """The summary as a Markdown table, every row complete."""
    heads = summary_heads(comparison["kind"])
    lines = [
        f"| {' | '.join(heads)} |",
        f"| {' | '.join('---' if i in (0, 3) else '---:' for i in range(len(heads)))} |",
    ]
    for row in comparison["table"]:
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in _cells(row, comparison))} |")
    return "\n".join([*lines, "", _caption(comparison), *_answer_lines(comparison), ""])


def _answer_lines(comparison: Mapping[str, Any]) -> list[str]:
    """A second Markdown table: the answers in words, of the models that gave any."""
    models = comparison["models"].values()
    answered = [(model["title"], model["test"]) for model in models if "answers" in model["test"]]
    if not answered:
        return []
    lines = ["", "| Model | Accuracy of the scores | Accuracy of the answers | Undecided | Agreement |"]
    lines.append("| --- | ---: | ---: | ---: | ---: |")
    for title, judged in answered:
        told = [
            judged["overall"]["accuracy"],
            *(judged["answers"][key] for key in ("accuracy", "undecided", "agreement")),
        ]
        lines.append(f"| {title} | {' | '.join(number(value) for value in told)} |")
    return [
        *lines,
        "",
        "Answers in words; an undecided one counts as wrong. Agreement: with the decisions from the scores.",
    ]


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
        lines.append(f'<tr><th scope="row">{unbroken(row[0])}</th>')
        for j, cell in enumerate(row[1:], 1):
            first, *below = cell.split("\n")
            shown = f"<strong>{escape(first)}</strong>" if j in bold and first == bold[j] else escape(first)
            shown += "".join(f'<span class="ends">{escape(text_below)}</span>' for text_below in below)
            lines.append(f"<td{_class(j, text)}>{shown}</td>")
        lines.append("</tr>")
    return "".join([*lines, "</tbody></table>"])


def unbroken(text: str) -> str:
    """Escaped text whose hyphenated words ("ES-AUC", "0-39") stay on one line."""
    return re.sub(r"\S*\w-\w\S*", r'<span class="nb">\g<0></span>', escape(text))


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
    title = comparison["models"][row["model"]]["title"] + (" *" if row["model"] == comparison["selected"] else "")
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

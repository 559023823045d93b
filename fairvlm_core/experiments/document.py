"""Tables of experiments in a document: what stands between two marks is written anew from the tables' JSON.

    <!-- experiment experiments/fairmed_table4 -->
    <!-- end of experiment -->

The name is that of the JSON below the folder of results, without its ending. What stands around the marks is prose and
stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairvlm_core.errors import FairVLMError
from fairvlm_core.evaluation.report.words import attribute_name
from fairvlm_core.experiments.grid import ACROSS, BY_ATTRIBUTE, OVERALL, WORST
from fairvlm_core.experiments.provenance import told
from fairvlm_core.experiments.sections import span, table
from fairvlm_core.experiments.summary import about, in_one, measure
from fairvlm_core.experiments.tables import caption, marked, metric_name
from fairvlm_core.files import read_json, written

BEGIN = re.compile(r"^<!-- experiment (?P<name>[\w./-]+) -->$", re.MULTILINE)
END = "<!-- end of experiment -->"


def update(document: Path, results: Path) -> list[str]:
    """Write every table anew of which there is JSON in `results`; returns their names.

    Raises:
        FairVLMError: for a mark without an end; the document stays as it is.
    """
    text, start = document.read_text(encoding="utf-8"), 0
    done: list[str] = []
    parts: list[str] = []
    for mark in BEGIN.finditer(text):
        end = text.find(END, mark.end())
        following = BEGIN.search(text, mark.end())
        if end < 0 or (following is not None and following.start() < end):
            raise FairVLMError(
                f"The table {mark['name']} has no end.", where=str(document), mend=f"Write {END} behind it, on a line."
            )
        file = results / f"{mark['name']}.json"
        if file.is_file():
            parts += [text[start : mark.end()], "\n", block(read_json(file, made_by="experiment")), "\n"]
            start, done = end, [*done, mark["name"]]
    if done:
        with written(document) as partial:
            partial.write_text("".join([*parts, text[start:]]), encoding="utf-8")
    return done


def block(summary: Mapping[str, Any]) -> str:
    """One table with what one needs to run it again."""
    lines = _suite(summary) if "suite" in summary else _experiment(summary)
    found = summary["provenance"]
    return "\n".join([*(["```sh", found["command"], "```", "", told(found), ""] if found else []), *lines])


def _experiment(summary: Mapping[str, Any]) -> list[str]:
    """Means and deviations in one line per method, and the interval of the patients for ES-AUC and EOD.

    The columns are about each attribute by itself, or, where each has its own model or there are more than three, about
    the mean over them.
    """
    from fairvlm_core.experiments.tables import cell

    last = in_one(summary)
    single = [name for name in summary["attributes"] if name not in (ACROSS, WORST) and " x " not in name]
    shown = [last] if summary["apart"] or len(single) > 3 else single
    wanted = [(metric, about(summary, metric, last)) for metric in OVERALL]
    wanted += [(metric, name) for name in shown for metric in BY_ATTRIBUTE]

    def text(recipe: str, metric: str, attribute: str | None) -> str:
        value = cell(summary, recipe, metric, attribute)
        interval = measure(summary, recipe, metric, attribute)["interval"]
        return f"{value} ({span(interval)})" if interval and metric in ("es_auc", "eod") else value

    heads = [
        metric_name(metric, summary["kind"])
        + (f", {attribute_name(name)}" if name is not None and len(shown) > 1 else "")
        for metric, name in wanted
    ]
    lines = [[title, *(text(recipe, *one) for one in wanted)] for recipe, title in marked(summary).items()]
    which = f" ES-AUC and gaps: {attribute_name(shown[0])}." if len(shown) == 1 and shown[0] else ""
    bracketed = any("(" in cells for row in lines for cells in row[1:])
    return [
        *table(["method", *heads], lines),
        "",
        caption(summary) + which + (" In brackets: 95 % interval over patients." if bracketed else ""),
    ]


def _suite(summary: Mapping[str, Any]) -> list[str]:
    """AUC, and ES-AUC and EOD of the first and of the finest attribute, by setting."""
    from fairvlm_core.experiments.suite import DRAWN, suite_caption, suite_rows

    attributes = dict.fromkeys((summary["attributes"][0], summary["attributes"][-1]))
    wanted = [("auc", None), *((metric, attribute) for attribute in attributes for metric in DRAWN)]
    settings = [setting["title"] for setting in summary["settings"]]
    parts: list[str] = []
    for metric, attribute in wanted:
        name = metric_name(metric, summary["kind"]) + (f", {attribute_name(attribute)}" if attribute else "")
        parts += [f"{name}:", "", *table(["method", *settings], suite_rows(summary, metric, attribute)), ""]
    return [*parts, suite_caption(summary)]

"""The tables under an experiment's main one, as Markdown: intervals, tuning, how training went, where it comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fairvlm_core.evaluation.report.words import attribute_name, number
from fairvlm_core.experiments.grid import BY_ATTRIBUTE, OVERALL
from fairvlm_core.experiments.provenance import told
from fairvlm_core.experiments.summary import about, measure, titles

Summary = Mapping[str, Any]
WORDS = ("method", "attribute", "measure", "figure", "candidate", "setting", "models", "Pareto front")


def table(names: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """A table as Markdown: words to the left, numbers to the right."""
    marks = ["---" if name in WORDS else "---:" for name in names]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in (names, marks, *lines)]


def sections(summary: Summary, metric_names: Mapping[str, str]) -> list[str]:
    """Lines of all sections for which the summary has something."""
    parts: list[str] = []
    for heading, lines in (
        ("## Intervals over the patients", _intervals(summary, metric_names)),
        ("## What was tuned", _tuning(summary)),
        ("## How training went", _diagnostics(summary)),
        ("## Where this comes from", _provenance(summary)),
    ):
        if lines:
            parts += ["", heading, "", *lines]
    return parts


def span(interval: Sequence[float] | None) -> str:
    """An interval as text.

    >>> span([0.8, 0.9123]), span(None)
    ('0.800–0.912', '–')
    """
    return "–" if interval is None else f"{number(interval[0])}–{number(interval[1])}"


def _intervals(summary: Summary, metric_names: Mapping[str, str]) -> list[str]:
    def cell(name: str, metric: str, attribute: str | None) -> str:
        return span(measure(summary, name, metric, attribute)["interval"])

    lines = []
    for name, title in titles(summary).items():
        for i, attribute in enumerate(summary["attributes"] or [None]):
            overall = [cell(name, metric, about(summary, metric, attribute)) for metric in OVERALL]
            if i and not summary["apart"]:
                overall = [""] * len(overall)
            by = [cell(name, metric, attribute) if attribute else "–" for metric in BY_ATTRIBUTE]
            shown = attribute_name(attribute) if attribute else "–"
            lines.append([title if i == 0 else "", shown, *overall, *by])
    if not any(cell not in ("–", "") for line in lines for cell in line[2:]):
        return []
    names = ["method", "attribute", *(metric_names[metric] for metric in (*OVERALL, *BY_ATTRIBUTE))]
    note = (
        "95 %, by resampling the patients of the test split. The ends are means over the seeds of each model's own: "
        "the standard deviation of a mean is at most the mean of the standard deviations, so that these are no "
        "narrower than intervals of the means. The deviations of the first table are about the training, and these "
        "are not."
    )
    return [note, "", *table(names, lines)]


def _tuning(summary: Summary) -> list[str]:
    named, lines = titles(summary), []
    for one in summary["tuning"]:
        for i, candidate in enumerate(one["candidates"]):
            shown = ", ".join(f"{key} = {value}" for key, value in candidate["overrides"].items()) or "as it is"
            value = candidate["reason"] or number(candidate["value"])
            lines.append([named[one["recipe"]] if i == 0 else "", shown, value, "chosen" if i == one["chosen"] else ""])
    if not lines:
        return []
    first = summary["tuning"][0]
    followers = [f"{named[name]} that of {named[other]}" for name, other in summary["follows"].items()]
    note = (
        f"Every method had {len(first['candidates'])} candidates, each trained once with the seed {first['seed']}, "
        f"which no table reports; the highest {first['criterion'].replace('_', '-').upper()} on validation was chosen. "
        "Test was not scored for it."
    )
    if followers:
        note += f" Taken over was a choice by: {'; '.join(followers)}."
    return [note, "", *table(["method", "candidate", "on validation", ""], lines)]


def _diagnostics(summary: Summary) -> list[str]:
    found = summary["diagnostics"]
    if not found:
        return []
    named = titles(summary)
    figures = list(dict.fromkeys(name for one in found for name in one["figures"]))
    lines = [
        ["epoch selected, of", *(f"{one['best_epoch']:.1f} of {one['epochs']}" for one in found)],
        *([figure, *(_figure(one["figures"].get(figure)) for one in found)] for figure in figures),
    ]
    note = "Means over the last epoch and the models; validation's figures are those after it."
    return [note, "", *table(["figure", *(named[one["recipe"]] for one in found)], lines)]


def _figure(value: float | None) -> str:
    """A number of any size in few digits."""
    return "–" if value is None else f"{value:.3g}"


def _provenance(summary: Summary) -> list[str]:
    found = summary["provenance"]
    return ["```sh", found["command"], "```", "", told(found)] if found else []

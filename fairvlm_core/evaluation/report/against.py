"""The selected model against the other candidates and against the champion: tables, and sentences in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from fairvlm_core.evaluation.bootstrap import LEVEL
from fairvlm_core.evaluation.contrasts import MEASURES, path_of
from fairvlm_core.evaluation.report.blocks import scrolled_table
from fairvlm_core.evaluation.report.content import Champion, Content
from fairvlm_core.evaluation.report.subjects import Subject
from fairvlm_core.evaluation.report.words import (
    attribute_name,
    capitalised,
    listed,
    number,
    parity,
    with_chance,
)
from fairvlm_core.evaluation.verdicts import signed

LOWER_IS_BETTER = ("dpd", "eod")
OF_ACCURACY = ("auc", "accuracy")
OTHER_COHORT = (
    "The champion was trained on another cohort, so some of today's test patients may have been in its training: its "
    "numbers may flatter it."
)
CHAMPION_NOTE = (
    "The difference is the selected model minus the champion, with its interval, from the same patients drawn for "
    "both; p is after Holm's correction over the rows of this table, because the sentence above takes whichever of "
    "them differ. ES-AUC and the worst group's AUC also rise where a model ranks everybody better; the others "
    "here for fairness are gaps alone. Not distinguishable does not mean equal: these images cannot tell."
)


def against_others(content: Content) -> str:
    """The selected model minus each other candidate, and whether chance explains it."""
    names = _names(content)
    lines = []
    for model in dict.fromkeys(row["model"] for row in content.against):
        told = {row["measure"]: row for row in content.against if row["model"] == model}
        lines.append([model, *(difference(told[measure]) for measure in MEASURES)])
    caption = (
        "The selected model minus each of the others, on the same images; p after Holm's correction over the models."
    )
    short = names["dpd"]
    note = (
        "The interval and the test are paired: both models see the same patients drawn. Higher is better for AUC, "
        f"accuracy and ES-AUC, lower for {short} and EOD. An interval that holds 0 settles nothing."
    )
    heads = ["Against", *(capitalised(names[measure]) for measure in MEASURES)]
    return scrolled_table(caption, heads, lines) + f'<p class="note">{escape(note)}</p>'


def against_champion_section(content: Content, champion: Champion) -> str:
    """What follows for accuracy and for fairness, in words, and the numbers behind it."""
    heads, rows = champion_table(content, champion)
    caption = "The selected model and the champion on the same images."
    words = "".join(f"<p>{escape(sentence)}</p>" for sentence in champion_told(content))
    table = scrolled_table(caption, heads, rows, text=2)
    return f'{words}{table}<p class="note">{escape(CHAMPION_NOTE)}</p>'


def champion_table(content: Content, champion: Champion) -> tuple[list[str], list[list[str]]]:
    """Heads and rows: a measure, which way is better, both models' numbers, and the difference."""
    chosen, theirs = _both(content, champion)
    names = _names(content)
    rows = []
    for row in champion.contrasts:
        path = path_of(row["measure"], row["attribute"])
        better = "lower" if row["measure"] in LOWER_IS_BETTER else "higher"
        values = [number(_at(subject.judgement, path)) for subject in (chosen, theirs)]
        rows.append([capitalised(_named(row, names)), better, *values, difference(row)])
    return ["Measure", "Better is", chosen.title, theirs.title, "Difference"], rows


def champion_told(content: Content) -> list[str]:
    """Is the selected model better or worse than the champion, for accuracy and for fairness; none without one.

    A measure counts where its p-value, after Holm's correction over all of them, is below 0.05.
    """
    champion = content.champion
    if not champion or not content.selection:
        return []
    names = _names(content)
    parts = {
        "accuracy": [row for row in champion.contrasts if row["measure"] in OF_ACCURACY],
        "fairness": [row for row in champion.contrasts if row["measure"] not in OF_ACCURACY],
    }
    told = [_judged(what, rows, names) for what, rows in parts.items()]
    who = champion.title[0].lower() + champion.title[1:]
    sentence = f"Against the {who}, {content.selection.selected} is {told[0]}, and {told[1]}."
    return [sentence, *([] if champion.same_cohort else [OTHER_COHORT])]


def difference(row: Mapping[str, Any]) -> str:
    """A difference, below it its interval and its p-value."""
    if row["difference"] is None:
        return "–"
    ends = "" if row["low"] is None else f"\n{signed(row['low'])} to {signed(row['high'])}"
    return with_chance(f"{signed(row['difference'])}{ends}", row["p_holm"])


def _judged(what: str, rows: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> str:
    tested = [row for row in rows if row["p_holm"] is not None]
    if not tested:
        return f"not comparable for {what}, for lack of numbers that exist for both"
    sure = [row for row in tested if row["p_holm"] < 1 - LEVEL and row["difference"]]
    if not sure:
        return f"not distinguishable for {what}"
    parts = []
    for word, of_them in (("better", [r for r in sure if _better(r)]), ("worse", [r for r in sure if not _better(r)])):
        if of_them:
            parts.append(f"{word} for {what} ({listed(_shown(of_them, names))})")
    return ", but ".join(parts)


def _shown(rows: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> list[str]:
    """Measures with their differences; the worst group is named once, then only by which attribute."""
    shown: list[str] = []
    for row in rows:
        again = row["attribute"] is not None and any("by " in text for text in shown)
        name = f"by {attribute_name(row['attribute'])}" if again else _named(row, names)
        shown.append(f"{name} {signed(row['difference'])}")
    return shown


def _better(row: Mapping[str, Any]) -> bool:
    return (row["difference"] < 0) == (row["measure"] in LOWER_IS_BETTER)


def _names(content: Content) -> dict[str, str]:
    short = parity(content.subjects[0].judgement["kind"])[0]
    return {"auc": "AUC", "accuracy": "accuracy", "es_auc": "ES-AUC", "dpd": short, "eod": "EOD"}


def _named(row: Mapping[str, Any], names: Mapping[str, str]) -> str:
    if row["attribute"] is None:
        return names[row["measure"]]
    return f"worst group AUC by {attribute_name(row['attribute'])}"


def _both(content: Content, champion: Champion) -> tuple[Subject, Subject]:
    by_title = {subject.title: subject for subject in content.subjects}
    assert content.selection
    return by_title[content.selection.selected], by_title[champion.title]


def _at(judgement: Mapping[str, Any], path: Sequence[str]) -> float | None:
    found: Any = judgement
    for name in path:
        found = found[name]
    return found

"""The section on how far the scores can be believed, and how they were calibrated."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from fairvlm_core.evaluation.calibration import left_alone
from fairvlm_core.evaluation.report.blocks import (
    BOLD,
    SMALL,
    figure,
    legend,
    line,
    numbers_below,
    panels,
    scrolled_table,
)
from fairvlm_core.evaluation.report.charts import reliability_panel
from fairvlm_core.evaluation.report.subjects import Subject, group_reliability
from fairvlm_core.evaluation.report.words import attribute_name, count, listed, number

ALL = "all images"


def belief(subjects: Sequence[Subject]) -> str:
    """ECE and Brier score of each model, and per attribute the reliability and the numbers of each group."""
    attributes = list(subjects[0].judgement["attributes"])
    single = [name for name in attributes if " x " not in name]
    heads, best = ["Model", "ECE", "Brier score"], [None, "low", "low"]
    if single:
        heads, best = [*heads, "Worst group ECE"], [*best, "low"]
    rows = []
    for subject in subjects:
        worst = [subject.judgement["attributes"][name]["worst_group_ece"] for name in single]
        known = [value for value in worst if value is not None]
        told = [subject.judgement["overall"]["ece"], subject.judgement["overall"]["brier"]]
        told += [max(known, default=None)] if single else []
        rows.append([subject.title, *map(number, told)])
    several = len(subjects[0].scores.labels) > 1
    over = "Means over the labels, each against the rest; lower is better" if several else "Lower is better"
    caption = f"{over}{BOLD * (len(subjects) > 1)}."
    least = subjects[0].judgement["min_cell"]
    note = (
        "On the dotted diagonal, as many images are positive as their score says. Above it the model promises too "
        f"little, below it too much. A point stands for a tenth of the scale; tenths with fewer than {least} images"
        f"{' of a group' * bool(attributes)} are not drawn."
    )
    if several:
        note += " All labels are drawn together, each against the rest."
    shown = scrolled_table(caption, heads, rows, best=best, even=True) + f'<p class="note">{escape(note)}</p>'
    if not attributes:
        return shown + figure("Reliability on all images", _panels(subjects, None))
    return SMALL + shown + "".join(_figure(subjects, name) for name in attributes)


def calibration_told(subjects: Sequence[Subject]) -> list[str]:
    """Whether and how the scores of each model were calibrated, and where not, in sentences."""
    by_method: dict[str, list[Subject]] = {"platt": [], "temperature": [], "": []}
    for subject in subjects:
        alone = subject.calibration is not None and subject.calibration.get("reason")
        by_method["" if subject.calibration is None or alone else subject.calibration["method"]].append(subject)
    platt, temperature, plain = by_method.values()
    sentences = []
    if platt:
        sentences.append(
            f"Before that, {_scores_of(platt, subjects)} were calibrated on the validation split, so that they can be "
            "read as probabilities: by Platt scaling, label by label, the same for every group. The order of the "
            "scores stays as it was."
        )
    if temperature:
        found = [f"{s.title}: {number(s.calibration['temperature'], 2)}" for s in temperature if s.calibration]
        sentences.append(
            f"Before that, {_scores_of(temperature, subjects)} were calibrated on the validation split, so that they "
            "can be read as probabilities: by one temperature per model, the same for every group, which changes no "
            f"decision ({listed(found)}; more than 1 means that the model was too sure)."
        )
    if plain:
        sentences.append(f"T{_scores_of(plain, subjects)[1:]} are taken as they are, without calibration.")
    for subject in subjects:
        if subject.calibration is not None:
            for reason, labels in left_alone(subject.calibration, subject.scores.labels).items():
                which = "" if len(labels) == len(subject.scores.labels) else f" for {listed(labels)}"
                sentences.append(f"{subject.title} is not calibrated{which}: {reason}.")
    return sentences


def _scores_of(chosen: Sequence[Subject], subjects: Sequence[Subject]) -> str:
    return "the scores" if len(chosen) == len(subjects) else f"the scores of {listed([s.title for s in chosen])}"


def _figure(subjects: Sequence[Subject], attribute: str) -> str:
    """The panels of an attribute, and its groups in numbers; an intersection has too many groups for panels."""
    rows: list[list[Any]] = []
    for name in subjects[0].judgement["attributes"][attribute]["groups"]:
        for subject in subjects:
            group = subject.judgement["attributes"][attribute]["groups"][name]
            rows.append([name, subject.title, count(group["n"]), number(group["ece"]), number(group["brier"])])
    heads = ["Group", "Model", "Images", "ECE", "Brier score"]
    name = attribute_name(attribute)
    table = scrolled_table(f"How far scores can be believed by {name}.", heads, rows, text=2)
    numbers = numbers_below(table)
    drawn = "" if " x " in attribute else _panels(subjects, attribute)
    return figure(f"{'Reliability by' if drawn else 'By'} {name}", drawn, numbers)


def _panels(subjects: Sequence[Subject], attribute: str | None) -> str:
    """Legend and one panel per model; each group keeps its line in all of them."""
    curves = [group_reliability(subject, attribute) for subject in subjects]
    counts = (
        {ALL: subjects[0].judgement["n"]}
        if attribute is None
        else {name: group["n"] for name, group in subjects[0].judgement["attributes"][attribute]["groups"].items()}
    )
    groups = [name for name in counts if any(name in found for found in curves)]
    if not groups:
        return '<p class="note">No tenth of the scale holds enough images to be drawn.</p>'
    by = "" if attribute is None else f" per group of {attribute_name(attribute)}"
    drawings = [
        reliability_panel(
            subject.title, f"Reliability of {subject.title}{by}; ECE: {_errors(subject, attribute)}.", groups, found
        )
        for subject, found in zip(subjects, curves, strict=True)
    ]
    labels = [f"{name} (n = {count(counts[name])})" for name in groups]
    return legend(labels, [line(i) for i in range(len(groups))]) + panels(drawings)


def _errors(subject: Subject, attribute: str | None) -> str:
    """What a panel comes to, for those who do not see it."""
    if attribute is None:
        return number(subject.judgement["overall"]["ece"])
    groups = subject.judgement["attributes"][attribute]["groups"]
    return ", ".join(f"{name} {number(group['ece'])}" for name, group in groups.items())

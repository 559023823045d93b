"""For whom and where a model fails, in sentences that follow from its judgement alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fairvlm_core.cohort.table import ATTRIBUTES
from fairvlm_core.evaluation.report.words import (
    attribute_name,
    capitalised,
    count,
    left_out,
    listed,
    number,
    parity,
    span,
)

Judged = Mapping[str, Any]
CHANCE = 0.5  # the AUC of a coin
MOST = 6  # lines about what could not be judged; the report has the others


def ends(test: Judged, *path: str) -> Sequence[float] | None:
    """The interval of a number of the judgement, if it has one: `ends(test, "overall", "auc")`."""
    found: Any = test.get("intervals")
    for name in path:
        found = found.get(name) if found else None
    return found


def with_ends(value: float | None, interval: Sequence[float] | None) -> str:
    """A number and its interval on one line.

    >>> with_ends(0.81239, [0.79, 0.834]), with_ends(0.5, None)
    ('0.812 (0.790–0.834)', '0.500')
    """
    return number(value) + ("" if value is None or interval is None else f" ({span(interval)})")


def failings(test: Judged) -> list[str]:
    """The known failures of a model on test, a sentence or two each; at least one.

    Args:
        test: its judgement, with `intervals`.
    """
    told = [
        *_overall(test),
        *_labels(test),
        *_worst_groups(test),
        *_gaps(test),
        *_like_a_coin(test),
        *_calibration(test),
        *_not_judged(test),
    ]
    return told or ["None can be told: no attribute has groups that can be judged."]


def _single(test: Judged) -> dict[str, Judged]:
    return {name: found for name, found in test["attributes"].items() if " x " not in name}


def _overall(test: Judged) -> list[str]:
    interval = ends(test, "overall", "auc")
    if interval is not None and interval[0] <= CHANCE:
        return [f"Overall it cannot be told from a coin: the interval of its AUC ({span(interval)}) holds 0.5."]
    return []


def _labels(test: Judged) -> list[str]:
    """The labels that it ranks worst, where there are several."""
    areas = [(value, label) for label, value in test["overall"]["auc_per_label"].items() if value is not None]
    if len(test["labels"]) < 2 or not areas:
        return []
    lowest, label = min(areas)
    told = f"{capitalised(label)} is the label it ranks worst, with AUC {_area(test, lowest, label)}."
    coins = [
        name
        for _, name in sorted(areas)
        if (interval := ends(test, "overall", "auc_per_label", name)) is not None and interval[0] <= CHANCE
    ]
    return [told + (f" It cannot be told from a coin on {listed(coins)}." if coins else "")]


def _area(test: Judged, value: float, label: str) -> str:
    return with_ends(value, ends(test, "overall", "auc_per_label", label))


def _worst_groups(test: Judged) -> list[str]:
    told = []
    for attribute, found in _single(test).items():
        judged = [(group["auc"], name) for name, group in found["groups"].items() if group["auc"] is not None]
        if len(judged) < 2:
            continue
        (low, worst), (high, best) = min(judged), max(judged)
        interval = ends(test, "attributes", attribute, "groups", worst, "auc")
        told.append(
            f"By {attribute_name(attribute)} it ranks worst in the group {worst} (AUC {number(low)}"
            f"{'' if interval is None else f', interval {span(interval)}'}) and best in {best} (AUC {number(high)})."
        )
    return told


def _gaps(test: Judged) -> list[str]:
    """The gaps that chance does not explain, and those that it may explain."""
    names = {"dpd": parity(test["kind"])[0], "eod": "EOD"}
    sure: list[str] = []
    unsure: list[str] = []
    for attribute, found in test["attributes"].items():
        for gap, name in names.items():
            interval = ends(test, "attributes", attribute, gap)
            if found[gap] is None or interval is None:
                continue
            what = f"{name} by {attribute_name(attribute)}"
            if interval[0] > 0:
                sure.append(f"{what} {with_ends(found[gap], interval)}")
            else:
                unsure.append(what)
    told = []
    if sure:
        told.append(f"Chance does not explain these gaps, whose intervals exclude 0: {listed(sure)}.")
    if unsure:
        which = "the" if len(unsure) == 1 else f"each of the {len(unsure)}"
        what = f"{which}{' other' if sure else ''} gap{'s' if len(unsure) > 1 else ''} in decisions and errors below"
        told.append(f"Chance may be the reason for {what}, which does not mean that there is none.")
    return told


def _like_a_coin(test: Judged) -> list[str]:
    """Groups whose AUC cannot be told from chance, though it may be high."""
    found = [
        f"{name} ({attribute_name(attribute)})"
        for attribute, judged in _single(test).items()
        for name, group in judged["groups"].items()
        if group["auc"] is not None
        and (interval := ends(test, "attributes", attribute, "groups", name, "auc")) is not None
        and interval[0] <= CHANCE
    ]
    return [f"Its ranking cannot be told from a coin within {listed(found)}."] if found else []


def _calibration(test: Judged) -> list[str]:
    found = [
        (group["ece"], name, attribute)
        for attribute, judged in _single(test).items()
        for name, group in judged["groups"].items()
        if group["ece"] is not None
    ]
    if not found:
        return []
    error, name, attribute = max(found)
    return [
        f"Its scores can be believed least for {name} ({attribute_name(attribute)}): there they are off by "
        f"{with_ends(error, ends(test, 'attributes', attribute, 'groups', name, 'ece'))} on average (ECE), "
        f"against {number(test['overall']['ece'])} overall."
    ]


def _not_judged(test: Judged) -> list[str]:
    """Whom nothing is known about, and why."""
    unknown = [attribute_name(name) for name in ATTRIBUTES if name not in test["attributes"]]
    told = [f"Not known of anybody here, and so not judged: {listed(unknown)}."] if unknown else []
    lines = left_out(test)
    shown = lines if len(lines) <= MOST else lines[: MOST - 1]
    told += shown
    if len(shown) < len(lines):
        told.append(
            f"{count(len(lines) - len(shown))} more groups or labels could not be judged; the report lists them."
        )
    return told

"""Drift: who is in a cohort, and what they have, beside its reference.

A change is told where it is larger than its limit, and larger than chance makes it in one of a thousand comparisons of
as many patients. Groups of fewer than `min_cell` patients are neither compared nor shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy.stats import chi2, norm

from fairvlm_core.cohort.expectation_frames import codes, label_values, numbered, years
from fairvlm_core.cohort.expectation_reference import Reference
from fairvlm_core.cohort.expectation_shares import (
    Line,
    Part,
    count_patients,
    counted,
    distance,
    independent,
    share_shown,
    shares_shown,
)
from fairvlm_core.cohort.expectation_suites import Check, expect, validated
from fairvlm_core.cohort.table import ATTRIBUTES, SPLITS, groups_of, task_of

CHANCE = 0.001
DEVIATIONS = float(norm.isf(CHANCE / 2))  # so many standard deviations leave that chance
DECADES = (*(f"{year}-{year + 9}" for year in range(0, 90, 10)), "90+")
CELLS = ("sex", "age_group")


@dataclass(frozen=True)
class Side:
    """The images of one cohort that are compared.

    Attributes:
        patient: int64 [n], numbers.
        groups: attribute -> int64 [n], -1 where unknown.
        age: float64 [n] in years, NaN where unknown.
        labels: int8 [n, L], -1 where unknown.
    """

    patient: np.ndarray
    groups: dict[str, np.ndarray]
    age: np.ndarray
    labels: np.ndarray

    def of(self, rows: np.ndarray) -> Side:
        """Some of them, as bool [n] says."""
        if rows.all():
            return self
        groups = {name: code[rows] for name, code in self.groups.items()}
        return Side(self.patient[rows], groups, self.age[rows], self.labels[rows])


@dataclass(frozen=True)
class Comparison:
    """One figure of both cohorts: how far apart they are, and how far they may be."""

    measure: str
    name: str
    shift: float
    limit: float = 0.0

    @property
    def changed(self) -> bool:
        return self.shift > self.limit


@dataclass(frozen=True)
class Panel:
    """Shares that belong together; `told` is what was measured of them as a whole."""

    title: str
    lines: list[Line]
    told: str = ""
    changed: bool = False


@dataclass(frozen=True)
class Drift:
    """The cohort beside its reference, as far as it may be shown.

    Attributes:
        rows, reference_rows: how many images of each were compared.
        balanced: whether those of the reference are not its training rows, as they were balanced.
        figures: flat names -> what was measured.
        panels: the shares.
    """

    rows: int
    reference_rows: int
    balanced: bool
    figures: dict[str, float]
    panels: list[Panel]


# What is compared one by one: measure -> column, rule, mend. It holds where shift <= limit.
RULES = {
    "groups": (
        "groups",
        "every attribute has the same groups as in the reference",
        "Ingest both with the same options (ingest.age_edges); what has other groups is not compared.",
    ),
    "new": (
        "groups",
        "no group is new since the reference",
        "No earlier model has seen such patients: look at that group's metrics before you promote one.",
    ),
    "gone": (
        "groups",
        "no group has vanished since the reference",
        "Find out why they no longer come, or are no longer recorded.",
    ),
    "unknown": (
        "all",
        "attributes, ages and labels are as often unknown as in the reference",
        "Find out where they are no longer recorded, or mapped to unknown.",
    ),
    "age": (
        "age",
        "the ages are distributed as in the reference",
        "Find out who comes now, or how ages are recorded.",
    ),
    "prevalence": (
        "labels",
        "every label is as frequent as in the reference, overall and by sex and age group",
        "Find out whether patients changed or the way they are labelled; old thresholds may no longer fit.",
    ),
    "images": (
        "image",
        "some images are new since the reference",
        "Check that validate.reference is an earlier cohort, and that new images arrive.",
    ),
}


def compare(
    table: pa.Table, seen: np.ndarray, reference: Reference, config: Any
) -> tuple[list[Check], dict[str, dict[str, Any]], Drift]:
    """Compare both cohorts.

    Args:
        table: a cohort that breaks no rule.
        seen: whether the reference has the image of each row, bool [n].
        reference: whose task is that of the cohort.
        config: `min_cell`, `max_divergence`, `max_age_shift`, `max_unknown_shift`, `max_prevalence_shift`.

    Returns:
        The outcomes, Great Expectations' results by suite, and what may be shown.
    """
    here, there = groups_of(table), groups_of(reference.table)
    documented = [name for name in ATTRIBUTES if name in here or name in there]
    common = {name: here[name] for name in documented if here.get(name) == there.get(name)}
    before, now = _sides(table, reference, common)
    found = [Comparison("images", "all were there before", float(seen.all()))]
    found += [Comparison("groups", name, float(name not in common)) for name in documented]
    panels: list[Panel] = []
    checks: list[Check] = []
    suites: dict[str, dict[str, Any]] = {}
    figures = {"images_seen": float(seen.mean())}
    if len(before.patient) and len(now.patient):
        checks, suites = _distributions(before, now, common, config)
        told = {check.column: check for check in checks}
        for name, names in common.items():
            changes, lines = _groups(name, names, before, now, config.min_cell)
            found += changes
            check = told.get(name)
            panels.append(Panel(name, lines, check.observed if check else "", bool(check and not check.success)))
        results = suites["distributions"]["results"] if suites else []
        figures |= {
            f"divergence_{c.column}": r["result"]["observed_value"] for c, r in zip(checks, results, strict=True)
        }
        labels = task_of(table).labels
        for changes, *more in (
            _age(before, now, config),
            _unknown(before, now, labels, config),
            _prevalence(before, now, labels, common, config),
        ):
            found += changes
            panels += more
        figures.update(("age_shift", round(change.shift, 4)) for change in found if change.measure == "age")
    of_comparisons, suites["comparisons"] = _compared(found, config.min_cell)
    drift = Drift(len(now.patient), len(before.patient), reference.balanced, figures, [p for p in panels if p.lines])
    return [*checks, *of_comparisons], suites, drift


def _sides(table: pa.Table, reference: Reference, groups: Mapping[str, Sequence[str]]) -> tuple[Side, Side]:
    """What is compared of the reference and of the cohort: each image once, and nothing that was balanced.

    Of a balanced reference that is validation and test. Where the cohort has both, they are compared with those. Which
    it has not, stratify drew from all its other rows, so that is what they are compared with.
    """
    then, now = (codes(of.column("split"), SPLITS) for of in (reference.table, table))
    chosen = np.ones(len(then), dtype=bool), np.ones(len(now), dtype=bool)
    if reference.balanced:
        held_out = np.arange(1, len(SPLITS))
        drawn = np.setdiff1d(held_out, now)
        chosen = np.isin(then, drawn if len(drawn) else held_out), np.isin(now, held_out, invert=bool(len(drawn)))

    def side(of: pa.Table, rows: np.ndarray) -> Side:
        found = {name: codes(of.column(name), names) for name, names in groups.items()}
        age, labels = years(of.column("age")), label_values(of)
        assert labels is not None  # both were checked before
        return Side(
            numbered(of.column("patient_id")),
            {name: np.where(code < len(groups[name]), code, -1) for name, code in found.items()},
            np.where(np.isfinite(age), age, np.nan),
            labels,
        ).of(rows & (of.column("copy").to_numpy() == 0))

    return side(reference.table, chosen[0]), side(table, chosen[1])


def _distributions(
    before: Side, now: Side, groups: Mapping[str, Sequence[str]], config: Any
) -> tuple[list[Check], dict[str, dict[str, Any]]]:
    """The Kullback-Leibler divergence of each attribute's groups from those of the reference."""
    wanted, frame = [], {}
    for name, names in groups.items():
        sizes = [independent(side.patient[side.groups[name] >= 0]) for side in (before, now)]
        if (
            len(names) < 2
            or min(count_patients(side.patient[side.groups[name] >= 0]) for side in (before, now)) < config.min_cell
        ):
            continue
        counts = np.bincount(before.groups[name] + 1, minlength=len(names) + 1)[1:]
        # Half an image more in each group: one that the reference lacks would make the divergence infinite.
        weights = (counts + 0.5) / (counts + 0.5).sum()
        chance = float(chi2.isf(CHANCE, len(names) - 1)) / 2 * (1 / sizes[0] + 1 / sizes[1])
        frame[name] = pd.Categorical.from_codes(now.groups[name], categories=list(names))
        wanted.append(
            expect(
                "ExpectColumnKLDivergenceToBeLessThan",
                name,
                f"the groups of {name} are distributed as in the reference",
                "Find out who comes now, or how it is recorded; what was fair for the old mix need not be for the new.",
                warn=True,
                partition_object={"values": list(names), "weights": weights.tolist()},
                threshold=max(config.max_divergence, chance),
            )
        )
    if not wanted:
        return [], {}
    checks, suite = validated(pd.DataFrame(frame), wanted, unit="distributions", min_cell=config.min_cell)
    return checks, {"distributions": suite}


def _groups(
    name: str, names: Sequence[str], before: Side, now: Side, min_cell: int
) -> tuple[list[Comparison], list[Line]]:
    """Which groups came and went, and the share of each among the images of known group."""
    found = []
    counts, people = counted((before.groups[name], now.groups[name]), (before.patient, now.patient), len(names))
    for measure, (old, new) in (("gone", (0, 1)), ("new", (1, 0))):
        size = independent((before, now)[new].patient[(before, now)[new].groups[name] >= 0])
        for k, group in enumerate(names):
            share = counts[old][k] / max(counts[old].sum(), 1)
            # That nobody of a group is among a few is no news.
            lost = people[old][k] >= min_cell and counts[new][k] == 0 and (1 - share) ** size < CHANCE
            found.append(Comparison(measure, f"{name} {group}", float(lost)))
    changed = {change.name for change in found if change.changed}
    return found, shares_shown([(group, f"{name} {group}" in changed) for group in names], counts, people, min_cell)


def _age(before: Side, now: Side, config: Any) -> tuple[list[Comparison], Panel]:
    """The Kolmogorov-Smirnov distance of the ages, and the share of each decade."""
    known = [side.of(np.isfinite(side.age)) for side in (before, now)]
    if min(count_patients(side.patient) for side in known) < config.min_cell:
        return [], Panel("age", [])
    # Its asymptotic law: P(distance > c sqrt(1/n + 1/m)) = 2 exp(-2 c^2).
    chance = np.sqrt(np.log(2 / CHANCE) / 2 * sum(1 / independent(side.patient) for side in known))
    shift, limit = distance(*(side.age for side in known)), max(config.max_age_shift, float(chance))
    told = f"Kolmogorov-Smirnov distance {shift:.3f}, at most {limit:.3f} allowed"
    change = Comparison("age", told, shift, limit)
    decades = tuple(np.clip(side.age // 10, 0, len(DECADES) - 1).astype(np.int64) for side in known)
    counts, people = counted(decades, tuple(side.patient for side in known), len(DECADES))
    lines = shares_shown([(decade, False) for decade in DECADES], counts, people, config.min_cell)
    return [change], Panel("age", lines, told, change.changed)


def _unknown(before: Side, now: Side, labels: Sequence[str], config: Any) -> tuple[list[Comparison], Panel]:
    """How often attributes, ages and labels are unknown."""
    both = (before, now)
    unknown = {
        **{name: [side.groups[name] < 0 for side in both] for name in before.groups},
        "age": [np.isnan(side.age) for side in both],
        **{f"label {name}": [side.labels[:, j] < 0 for side in both] for j, name in enumerate(labels)},
    }
    found, lines = [], []
    for name, (old, new) in unknown.items():
        first, second = Part.of(before.patient, old), Part.of(now.patient, new)
        # One more of each kind, for in a small cohort nobody of a kind is no proof that there are none.
        pooled = (first.share * first.size + second.share * second.size + 1) / (first.size + second.size + 2)
        chance = DEVIATIONS * np.sqrt(pooled * (1 - pooled) * (1 / first.size + 1 / second.size))
        limit = max(config.max_unknown_shift, float(chance))
        found.append(Comparison("unknown", name, abs(first.share - second.share), limit))
        lines.append(share_shown(name, first, second, found[-1].changed, config.min_cell))
    return found, Panel("unknown", lines)


def _prevalence(
    before: Side, now: Side, labels: Sequence[str], groups: Mapping[str, Sequence[str]], config: Any
) -> tuple[list[Comparison], Panel, Panel]:
    """How frequent each label is among the images where it is known, overall, then by sex and age group.

    Compared as Cohen's h, the difference of 2 asin sqrt(p), whose standard deviation depends on the sizes alone.
    """
    found: list[Comparison] = []
    overall, by_cell = Panel("labels", []), Panel("labels by sex and age group", [])
    for where, *sides in _cells(before, now, groups):
        for j, label in enumerate(labels):
            parts = []
            for patient, values in sides:
                known = values[:, j] >= 0
                parts.append(Part.of(patient[known], values[known, j] == 1))
            first, second = parts
            if min(first.patients, second.patients) < config.min_cell:
                continue
            name = f"{label} in {where}" if where else label
            chance = DEVIATIONS * np.sqrt(1 / first.size + 1 / second.size)
            limit = max(config.max_prevalence_shift, float(chance))
            found.append(Comparison("prevalence", name, abs(first.angle - second.angle), limit))
            line = share_shown(name, first, second, found[-1].changed, config.min_cell)
            (by_cell if where else overall).lines.append(line)
    return found, overall, by_cell


Labelled = tuple[np.ndarray, np.ndarray]  # patients [n] and labels [n, L]


def _cells(before: Side, now: Side, groups: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, Labelled, Labelled]]:
    """Both cohorts whole, then cut by sex and age group where both have them."""
    yield "", (before.patient, before.labels), (now.patient, now.labels)
    if all(name in groups for name in CELLS):
        for i, sex in enumerate(groups["sex"]):
            for j, age in enumerate(groups["age_group"]):
                cut = []
                for side in (before, now):
                    rows = np.flatnonzero((side.groups["sex"] == i) & (side.groups["age_group"] == j))
                    cut.append((side.patient[rows], side.labels[rows]))
                yield f"{sex} {age}", cut[0], cut[1]


def _compared(found: Sequence[Comparison], min_cell: int) -> tuple[list[Check], dict[str, Any]]:
    """One expectation per measure: no shift is above its limit."""
    from great_expectations.expectations.row_conditions import Column

    frame = pd.DataFrame(found)
    wanted = [
        expect(
            "ExpectColumnPairValuesAToBeGreaterThanB",
            column,
            rule,
            mend,
            warn=True,
            column_A="limit",
            column_B="shift",
            or_equal=True,
            row_condition=Column("measure") == measure,
        )
        for measure, (column, rule, mend) in RULES.items()
        if any(change.measure == measure for change in found)
    ]
    names = [change.name for change in found]
    return validated(frame, wanted, unit="comparisons", min_cell=min_cell, names=names)

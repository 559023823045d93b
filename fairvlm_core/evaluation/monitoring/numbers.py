"""The two samples that drift compares, and the numbers of each with their intervals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from fairvlm_core.cohort.expectation_shares import independent
from fairvlm_core.evaluation.bootstrap import intervals, replicates
from fairvlm_core.evaluation.interval import Path
from fairvlm_core.evaluation.judgement import with_intersection
from fairvlm_core.evaluation.metrics import groups_in
from fairvlm_core.evaluation.monitoring.evidence import Asked, Ends, Side, minus, resampled, wilson
from fairvlm_core.evaluation.predictions import Scores
from fairvlm_core.evaluation.resampling import patient_codes, whole_weights


@dataclass(frozen=True)
class Pair:
    """The test set and the month; `attributes` are those that both have, sex x age group among them."""

    then: Scores
    now: Scores
    attributes: tuple[str, ...]

    @classmethod
    def of(cls, then: Scores, now: Scores) -> Pair:
        both = [replace(side, groups=with_intersection(side.groups)) for side in (then, now)]
        return cls(both[0], both[1], tuple(name for name in both[0].groups if name in both[1].groups))

    def label(self, j: int) -> Pair:
        """One label as a task of its own."""
        return replace(self, then=single(self.then, j), now=single(self.now, j))

    def units(self, min_cell: int) -> Iterator[tuple[str | None, str | None, np.ndarray, np.ndarray]]:
        """Everybody, then each group that may be published on both sides: attribute, group, the rows then and now."""
        yield None, None, np.ones(len(self.then.sample_ids), bool), np.ones(len(self.now.sample_ids), bool)
        for attribute in self.attributes:
            rows = dict(groups_in(self.now.groups[attribute]))
            for group, then in groups_in(self.then.groups[attribute]):
                now = rows.get(group)
                if now is not None and min(then.sum(), now.sum()) >= min_cell:
                    yield attribute, group, then, now

    def enough(self, then: np.ndarray, now: np.ndarray, min_cell: int) -> bool:
        """Whether these rows of a single label have `min_cell` positives and as many negatives on both sides."""
        return all(
            (side.y_true[rows, 0] == truth).sum() >= min_cell
            for side, rows in ((self.then, then), (self.now, now))
            for truth in (0, 1)
        )

    def sizes(self, then: np.ndarray, now: np.ndarray) -> tuple[float, float]:
        """Effective sizes of rows on both sides."""
        return people(self.then, then), people(self.now, now)

    def numbers(self, kept: Mapping[str, set[str]], asked: Asked) -> tuple[Numbers, Numbers]:
        """The numbers of both sides, over these groups of each attribute."""
        return Numbers.of(_restricted(self.then, kept), asked), Numbers.of(_restricted(self.now, kept), asked)


def single(given: Scores, j: int) -> Scores:
    """One label against the rest."""
    columns = {name: getattr(given, name)[:, [j]] for name in ("y_true", "y_score", "y_pred")}
    return replace(given, labels=(given.labels[j],), kind="binary", y_answer=None, **columns)


def people(given: Scores, rows: np.ndarray) -> float:
    """As many patients of one image each say as much as these rows, at least."""
    return independent(patient_codes(given.patient_ids[rows]))


def _restricted(given: Scores, kept: Mapping[str, set[str]]) -> Scores:
    """The same with these groups alone, under names that nobody takes for the parts of an intersection."""
    groups = {}
    for name, names in kept.items():
        values = given.groups[name].copy()
        values[[value not in names for value in values]] = None
        groups[_by(name)] = values
    return replace(given, groups=groups)


def _by(attribute: str) -> str:
    return f"by {attribute}"


@dataclass(frozen=True)
class Numbers:
    """The numbers of a judgement with their intervals.

    Attributes:
        given: the predictions.
        level: of the intervals.
        values: where a number stands in a judgement -> it.
        sure: as `bootstrap.intervals` gives them.
    """

    given: Scores
    level: float
    values: Mapping[Path, np.ndarray]
    sure: Mapping[str, object]

    @classmethod
    def of(cls, given: Scores, asked: Asked) -> Numbers:
        values = replicates(given, whole_weights(len(given.sample_ids)), 1, min_cell=1)
        sure = intervals(given, resamples=asked.resamples, level=asked.level, min_cell=1, seed=asked.seed)
        return cls(given, asked.level, values, sure)

    def side(self, *path: str, least: Ends | None = None) -> Side | None:
        """A number of the judgement; none where it has no interval."""
        ends: object = self.sure
        for name in path:
            ends = ends.get(name) if isinstance(ends, Mapping) else None
        return resampled(float(self.values[path][0]), ends, level=self.level, least=least) if ends else None  # type: ignore[arg-type]

    def of_attribute(self, attribute: str, measure: str, *, least: Ends | None = None) -> Side | None:
        """A number of all groups of an attribute."""
        return self.side("attributes", _by(attribute), measure, least=least)

    def gap(self, attribute: str, measure: str) -> Side | None:
        """dpd or eod of a single label, no narrower than the two extreme groups' own intervals make it."""
        if measure == "eod":
            gaps = [self._gap(attribute, part, truth) for part, truth in (("tpr_gap", 1), ("fpr_gap", 0))]
            known = [side for side in gaps if side is not None]
            return max(known, key=lambda side: side.value) if known else None
        return self._gap(attribute, measure, None)

    def _gap(self, attribute: str, measure: str, truth: int | None) -> Side | None:
        shares = []
        for _, rows in groups_in(self.given.groups[_by(attribute)]):
            inside = rows if truth is None else rows & (self.given.y_true[:, 0] == truth)
            shares.append(wilson(float(self.given.y_pred[inside, 0].mean()), people(self.given, inside)))
        extremes = minus(max(shares, key=lambda side: side.value), min(shares, key=lambda side: side.value))
        return self.of_attribute(attribute, measure, least=extremes.ends)

    def auc(self, attribute: str | None, group: str | None) -> Side | None:
        """AUC of a group of a single label, or of everybody."""
        rows = np.ones(len(self.given.sample_ids), bool)
        if attribute is not None:
            rows = self.given.groups[_by(attribute)] == group
        return self.side(*self._at(attribute, group, "auc"), least=self._least_of_auc(rows, attribute, group))

    def ece(self, attribute: str | None, group: str | None) -> Side | None:
        """Expected calibration error of a group of a single label, or of everybody."""
        return self.side(*self._at(attribute, group, "ece"))

    def worst_auc(self, attribute: str) -> Side | None:
        """AUC of the worst group of a single label."""
        groups = [(name, rows) for name, rows in groups_in(self.given.groups[_by(attribute)])]
        name, rows = min(groups, key=lambda item: self.values[self._at(attribute, str(item[0]), "auc")][0])
        return self.of_attribute(attribute, "worst_group_auc", least=self._least_of_auc(rows, attribute, str(name)))

    def _at(self, attribute: str | None, group: str | None, measure: str) -> Path:
        if attribute is None or group is None:
            return ("overall", measure)
        return ("attributes", _by(attribute), "groups", str(group), measure)

    def _least_of_auc(self, rows: np.ndarray, attribute: str | None, group: str | None) -> Ends:
        """The interval of a share of as many people as the harmonic mean of the ill and the well."""
        truth = self.given.y_true[:, 0]
        ill, well = (people(self.given, rows & (truth == which)) for which in (1, 0))
        return wilson(float(self.values[self._at(attribute, group, "auc")][0]), 2 * ill * well / (ill + well)).ends

"""Has a model in use drifted: a month of its predictions beside those of the test set it was registered with.

Compared are, label by label, for everybody, each group and each sex x age group: the scores, the share that is decided
positive, the gap between groups; who came (the mix of people); and where there is truth, how common a label is, AUC,
error rates and calibration. The two samples are of other people, so nothing here is paired. What counts as drift, and
how sure it must be, is in `evidence`; how files are read, and which are refused, in `inputs`.

A group takes part where it has `min_cell` images on both sides, and where truths are needed as many positives and
negatives. Counts are told as in a judgement, and so are the shares that would tell them (`disclosure`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from fairvlm_core.evaluation.judgement import judge
from fairvlm_core.evaluation.metrics import groups_in
from fairvlm_core.evaluation.monitoring.changes import everybody, gaps, mean_gap, mix, shifts, with_truth
from fairvlm_core.evaluation.monitoring.evidence import DRIFTED, STABLE, UNSURE, Asked, Finding, judged
from fairvlm_core.evaluation.monitoring.numbers import Pair
from fairvlm_core.evaluation.predictions import Scores


def drift(then: Scores, now: Scores, asked: Asked) -> dict[str, Any]:
    """What `monitor.json` says, but for where the files were.

    Args:
        then, now: decided, of the same kind and labels in the same order.

    Returns:
        verdict: drifted; cannot tell, where nothing drifted but what is said of everybody is not sure to be within its
            limits; or stable.
        findings: the comparisons as `Finding` has them, worst first; null where there is no number.
        people: [attribute, group (null: unknown), n_then, n_now, share_then, share_now], as far as it may be told.
        labels: label -> known: share of the month's images whose truth is known; judged: whether AUC is compared.
        unjudged: label -> attribute -> groups that are compared, but lack positives or negatives for an AUC.
        suppressed: attribute -> groups that are too small on a side; new: attribute -> groups that were not there then;
        absent: the attributes that a side does not have at all.
        kind, n_then, n_now, limits, and how it was asked.
    """
    pair = Pair.of(then, now)
    single = [pair.label(j) for j in range(len(then.labels))]
    found: list[Finding] = []
    for one in single:
        found += [*shifts(one, asked), *gaps(one, asked), *with_truth(one, asked)]
    if len(then.labels) > 1:
        found += mean_gap(pair, asked)
    people = _people(then, now, asked.min_cell)
    found += mix(people, pair, asked)
    findings = judged(found, asked.level)
    return {
        "verdict": _verdict(findings),
        "findings": [_plain(finding) for finding in findings],
        "kind": then.kind,
        "n_then": len(then.sample_ids),
        "n_now": len(now.sample_ids),
        "people": people,
        "labels": {
            one.then.labels[0]: {
                "known": round(float((~np.isnan(one.now.y_true)).mean()), 6),
                "judged": one.enough(*everybody(one), asked.min_cell),
            }
            for one in single
        },
        "unjudged": {one.then.labels[0]: _unjudged(one, asked.min_cell) for one in single},
        "suppressed": _suppressed(pair, asked.min_cell),
        "new": {
            name: [group for group, _ in groups_in(pair.now.groups[name]) if group not in set(pair.then.groups[name])]
            for name in pair.attributes
            if " x " not in name
        },
        "absent": {
            "then": [name for name in now.groups if name not in then.groups],
            "now": [name for name in then.groups if name not in now.groups],
        },
        **asdict(asked),
    }


def _verdict(findings: Sequence[Finding]) -> str:
    """Of the whole month. A small group of which nothing can be told leaves the month stable; everybody does not."""
    if any(finding.verdict == DRIFTED for finding in findings):
        return DRIFTED
    of_all = [finding for finding in findings if finding.attribute is None]
    return UNSURE if any(finding.verdict == UNSURE for finding in of_all) else STABLE


def _plain(finding: Finding) -> dict[str, Any]:
    told = asdict(finding)
    numbers = {name: _number(value) for name, value in told.items() if isinstance(value, float)}
    return told | numbers | {"more": {name: _number(value) for name, value in finding.more}}


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 6)


def _people(then: Scores, now: Scores, min_cell: int) -> list[dict[str, Any]]:
    """How many of each group there were and are. Of a group that is not there at all the count is nobody's: 0."""
    told = [judge(side, min_cell=min_cell)["attributes"] for side in (then, now)]
    totals, rows = (len(then.sample_ids), len(now.sample_ids)), []
    for attribute in (name for name in then.groups if name in now.groups):
        names = dict.fromkeys([*told[0][attribute]["groups"], *told[1][attribute]["groups"]])
        for group in (*names, None):
            counts = [_count(side[attribute], group) for side in told]
            shares = [
                round(count / total, 6) if isinstance(count, int) else None
                for count, total in zip(counts, totals, strict=True)
            ]
            keys = ("n_then", "n_now", "share_then", "share_now")
            told_of = dict(zip(keys, (*counts, *shares), strict=True))
            rows.append({"attribute": attribute, "group": group, **told_of})
    return rows


def _count(told: Mapping[str, Any], group: str | None) -> int | str | None:
    if group is None:
        unknown: int | None = told["unknown"]
        return unknown
    count: int | str = told["groups"].get(group, {"n": 0})["n"]
    return count


def _suppressed(pair: Pair, min_cell: int) -> dict[str, list[str]]:
    """The groups that are there on both sides, and too small on one of them."""
    compared = {(attribute, group) for attribute, group, _, _ in pair.units(min_cell)}
    found = {}
    for name in pair.attributes:
        both = [group for group, _ in groups_in(pair.then.groups[name]) if group in set(pair.now.groups[name])]
        found[name] = [str(group) for group in both if (name, group) not in compared]
    return {name: groups for name, groups in found.items() if groups}


def _unjudged(pair: Pair, min_cell: int) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for attribute, group, then, now in pair.units(min_cell):
        if attribute is not None and not pair.enough(then, now, min_cell):
            found.setdefault(attribute, []).append(str(group))
    return found

"""What is compared between the test set and a month: one `Finding` for each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fairvlm_core.evaluation.judgement import judge
from fairvlm_core.evaluation.monitoring.evidence import (
    Asked,
    Ends,
    Finding,
    Side,
    minus,
    rise,
    score_shift,
    shift,
    stability_index,
    wilson,
)
from fairvlm_core.evaluation.monitoring.numbers import Pair

MEAN = "mean over the labels"
Where = tuple[str | None, str | None, str | None]  # label, attribute, group
Sides = tuple[Side | None, Side | None]


def shifts(pair: Pair, asked: Asked) -> Iterator[Finding]:
    """Scores, decisions and prevalence of one label, for everybody and each group.

    A prevalence is compared where the judgements tell it: elsewhere it would tell a small count.
    """
    (label,) = pair.then.labels
    told = [judge(side, min_cell=asked.min_cell) for side in (pair.then, pair.now)]
    for attribute, group, then, now in pair.units(asked.min_cell):
        where, sizes = (label, attribute, group), pair.sizes(then, now)
        yield _scores(pair.then.y_score[then, 0], pair.now.y_score[now, 0], where, sizes, asked)
        rates = float(pair.then.y_pred[then, 0].mean()), float(pair.now.y_pred[now, 0].mean())
        yield _share("selection_shift", where, rates, sizes, asked)
        if all(_prevalence(side, where) is not None for side in told):
            known = then & ~np.isnan(pair.then.y_true[:, 0]), now & ~np.isnan(pair.now.y_true[:, 0])
            ill = float(pair.then.y_true[known[0], 0].mean()), float(pair.now.y_true[known[1], 0].mean())
            yield _share("prevalence_shift", where, ill, pair.sizes(*known), asked)


def _scores(then: np.ndarray, now: np.ndarray, where: Where, sizes: tuple[float, float], asked: Asked) -> Finding:
    limit, pairs = asked.limits.score_shift, sizes[0] * sizes[1] / (sizes[0] + sizes[1])
    change, low, high, p = score_shift(then, now, pairs, limit=limit, level=asked.level)
    index, chance = stability_index(then, now, sizes)
    more = (("psi", index), ("psi_of_chance", chance))
    means = float(then.mean()), float(now.mean())
    return Finding("score_shift", *where, *means, change, low, high, limit, p, more=more)


def _share(
    measure: str, where: Where, shares: tuple[float, float], sizes: tuple[float, float], asked: Asked
) -> Finding:
    limit = getattr(asked.limits, measure)
    side = minus(wilson(shares[1], sizes[1]), wilson(shares[0], sizes[0]))
    low, high, p = shift(side, limit, asked.level)
    return Finding(measure, *where, *shares, side.value, low, high, limit, p)


def _prevalence(told: Mapping[str, Any], where: Where) -> float | None:
    label, attribute, group = where
    if attribute is None:
        found: float | None = told["per_label"][label].get("prevalence")
    else:
        found = told["attributes"][attribute]["labels"][label]["groups"].get(group, {}).get("prevalence")
    return found


def gaps(pair: Pair, asked: Asked) -> Iterator[Finding]:
    """The parity gap of each attribute in one label: what it rose by and, where it has a limit itself, how large it is.

    Taken over the groups that may be published on both sides, so that a rise is not one of the groups compared.
    """
    kept = _several(_kept(pair, asked))
    if not kept:
        return
    then, now = pair.numbers(kept, asked)
    for attribute in kept:
        where = (pair.then.labels[0], attribute, None)
        yield from _gap("dpd", where, (then.gap(attribute, "dpd"), now.gap(attribute, "dpd")), asked)


def mean_gap(pair: Pair, asked: Asked) -> Iterator[Finding]:
    """The parity gap as a mean over the labels (DPG), no narrower than the mean of theirs."""
    kept = _several(_kept(pair, asked))
    if not kept:
        return
    # Of a task with one label no exact match is reckoned, which nobody wants here.
    plain = replace(pair, then=replace(pair.then, kind="binary"), now=replace(pair.now, kind="binary"))
    whole = plain.numbers(kept, asked)
    # Of the labels only what is no narrower than the bootstrap is wanted, for which few resamples do.
    quick = replace(asked, resamples=100)
    each = [pair.label(j).numbers(kept, quick) for j in range(len(pair.then.labels))]
    for attribute in kept:
        sides = []
        for numbers, of_labels in zip(whole, zip(*each, strict=True), strict=True):
            known = [side for side in (one.gap(attribute, "dpd") for one in of_labels) if side is not None]
            sides.append(numbers.of_attribute(attribute, "dpd", least=_mean_ends(known)) if known else None)
        yield from _gap("dpd", (MEAN, attribute, None), (sides[0], sides[1]), asked)


def _mean_ends(sides: Sequence[Side]) -> Ends:
    def ends(z: float) -> tuple[float, float]:
        low, high = np.mean([side.ends(z) for side in sides], axis=0)
        return float(low), float(high)

    return ends


def with_truth(pair: Pair, asked: Asked) -> Iterator[Finding]:
    """AUC and calibration of everybody and each group, and of each attribute EOD, ES-AUC and the worst group.

    Compared are those who have `min_cell` positives and as many negatives on both sides.
    """
    if not pair.enough(*everybody(pair), asked.min_cell):
        return
    (label,) = pair.then.labels
    kept = _kept(pair, asked, truth=True)
    then, now = pair.numbers(kept, asked)
    for attribute, group in [
        (None, None),
        *((name, group) for name, groups in kept.items() for group in sorted(groups)),
    ]:
        where = (label, attribute, group)
        yield _change("auc_drop", where, (then.auc(attribute, group), now.auc(attribute, group)), asked)
        yield _change("ece_rise", where, (then.ece(attribute, group), now.ece(attribute, group)), asked)
    for attribute in _several(kept):
        where = (label, attribute, None)
        yield from _gap("eod", where, (then.gap(attribute, "eod"), now.gap(attribute, "eod")), asked)
        worst = then.worst_auc(attribute), now.worst_auc(attribute)
        yield _change("worst_group_auc_drop", where, worst, asked)
        scaled = then.of_attribute(attribute, "es_auc"), now.of_attribute(attribute, "es_auc")
        yield _change("es_auc_drop", where, scaled, asked)


def mix(people: Sequence[Mapping[str, Any]], pair: Pair, asked: Asked) -> Iterator[Finding]:
    """The share of each group and of the unknown, as far as it may be told, among all images."""
    sizes = pair.sizes(*everybody(pair))
    for row in people:
        shares = row["share_then"], row["share_now"]
        if None not in shares:
            yield _share("mix_shift", (None, row["attribute"], row["group"]), shares, sizes, asked)


def everybody(pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    """All rows of both sides."""
    return np.ones(len(pair.then.sample_ids), bool), np.ones(len(pair.now.sample_ids), bool)


def _kept(pair: Pair, asked: Asked, *, truth: bool = False) -> dict[str, set[str]]:
    """The groups that are compared, with `truth` only those of which AUC and error rates can be."""
    kept: dict[str, set[str]] = {}
    for attribute, group, then, now in pair.units(asked.min_cell):
        if attribute is not None and group is not None and (not truth or pair.enough(then, now, asked.min_cell)):
            kept.setdefault(attribute, set()).add(group)
    return kept


def _several(kept: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """One group alone has no gap."""
    return {name: groups for name, groups in kept.items() if len(groups) > 1}


def _gap(measure: str, where: Where, sides: Sides, asked: Asked) -> Iterator[Finding]:
    yield _change(f"{measure}_rise", where, sides, asked)
    most, (then, now) = getattr(asked.limits, measure), sides
    if most is not None and now is not None:
        low, high, p = rise(now, most, asked.level)
        yield Finding(measure, *where, _value(then), now.value, now.value, low, high, most, p)


LIMITS = {"worst_group_auc_drop": "auc_drop", "es_auc_drop": "auc_drop"}  # where it is that of another measure


def _change(measure: str, where: Where, sides: Sides, asked: Asked) -> Finding:
    """Now minus then, of a drop then minus now; what lacks an interval cannot be told."""
    limit, (then, now) = getattr(asked.limits, LIMITS.get(measure, measure)), sides
    if then is None or now is None:
        nan = float("nan")
        return Finding(measure, *where, _value(then), _value(now), nan, nan, nan, limit, nan)
    side = minus(then, now) if measure.endswith("_drop") else minus(now, then)
    low, high, p = rise(side, limit, asked.level)
    ends = zip(
        ("then_low", "then_high", "now_low", "now_high"), (*then.at(asked.level), *now.at(asked.level)), strict=True
    )
    return Finding(measure, *where, then.value, now.value, side.value, low, high, limit, p, more=tuple(ends))


def _value(side: Side | None) -> float | None:
    return None if side is None else side.value

"""Intervals for every number of a judgement, by resampling patients; `paired` has those for differences of two models.

Patients are drawn, not images: two images of one patient are not two opinions (cluster bootstrap). Which groups take
part is settled by the data, not by a resample. A resample in which such a group has no positives or no negatives has
no AUC for it, and none of the gaps in which it stands; an interval is made of the resamples that have the number, and
there is none where too many lack it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fairvlm_core.evaluation.interval import LEVEL, Path, extreme_interval, interval
from fairvlm_core.evaluation.judgement import GAPS, with_intersection
from fairvlm_core.evaluation.metrics import groups_in
from fairvlm_core.evaluation.predictions import Scores
from fairvlm_core.evaluation.resampling import (
    Sums,
    Weights,
    bootstrap_weights,
    label_sums,
    leave_out_weights,
    patient_codes,
    with_whole,
)

RESAMPLES = 1000
METHODS = ("percentile", "bca")
FOLDS = 256  # of the jackknife that BCa needs; with fewer patients than this each is left out by itself

Values = dict[Path, np.ndarray]  # float64 [R], NaN where a resample has no such number


def intervals(
    scores: Scores,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    method: str = "percentile",
    min_cell: int = 10,
    seed: int = 0,
) -> dict[str, Any]:
    """Intervals of the numbers that `judge` gives for the same predictions.

    Args:
        scores: with decisions.
        method: percentile, or bca (bias-corrected and accelerated: Efron 1987), of all numbers but gaps and other
            extremes, whose intervals are made as the module says.
        min_cell: as of `judge`: smaller groups have no numbers.

    Returns:
        level, resamples, method, patients; and, nested as in the judgement, `overall`, `attributes` and `across`:
        [low, high] instead of the number, null where there is no interval.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method}")
    patient = patient_codes(scores.patient_ids)
    people = int(patient.max(initial=-1)) + 1
    weights = with_whole(bootstrap_weights(patient, resamples, seed), resamples)
    told = measured(scores, weights, resamples + 1, min_cell=min_cell)
    drawn, errors = told.values, told.errors
    left: Values = {}
    if method == "bca":
        folds = min(people, FOLDS)
        left = replicates(scores, leave_out_weights(patient, folds, seed), folds, min_cell=min_cell)
    found: dict[str, Any] = {
        "level": level,
        "resamples": resamples,
        "method": method,
        "patients": people,
        **{part: {} for part in ("overall", "attributes", "across")},
    }
    for path, values in drawn.items():
        estimate, values = float(values[-1]), values[:-1]
        if path in errors:
            ends = extreme_interval(path, estimate, values, errors[path][:-1], level=level)
        else:
            ends = interval(estimate, values, level=level, jackknife=left.get(path))
        place = found
        for name in path[:-1]:
            place = place.setdefault(name, {})
        place[path[-1]] = None if ends is None else [round(end, 6) for end in ends]
    return found


def replicates(scores: Scores, weights: Weights, resamples: int, *, min_cell: int) -> Values:
    """Every number of a judgement in every resample.

    Args:
        weights: of the resamples, of which there are `resamples`.
    """
    return measured(scores, weights, resamples, min_cell=min_cell).values


@dataclass(frozen=True)
class Measured:
    """One model in every resample, the last of which is the data themselves.

    Attributes:
        values: what `replicates` gives.
        errors: how far chance pushes each extreme.
        attributes: attribute -> its groups of at least `min_cell` images, those of the intersection too.
        labels: what these are made of, label by label.
    """

    values: Values
    errors: Values
    attributes: dict[str, list[Any]]
    labels: dict[str, OfLabel]


def measured(scores: Scores, weights: Weights, resamples: int, *, min_cell: int) -> Measured:
    """Every number of a judgement in every resample, and what it takes to judge how sure it is."""
    attributes = {
        name: [(group, rows) for group, rows in groups_in(values) if rows.sum() >= min_cell]
        for name, values in with_intersection(scores.groups).items()
    }
    by_label = [_label(scores, j, attributes, weights, resamples, min_cell) for j in range(len(scores.labels))]
    nothing = np.full(resamples, np.nan)
    found: Values = {}
    errors: Values = {}
    everybody = [label.groups["overall", ""] for label in by_label]
    found["overall", "accuracy"] = _accuracy(scores.kind, everybody, nothing)
    # With several classes it is the mean recall of those that are there.
    balanced = "tpr" if scores.kind == "multiclass" else "balanced"
    found["overall", "balanced_accuracy"] = _mean([part[balanced] for part in everybody if part["judged"]], nothing)
    for name in ("auc", "ece", "brier"):
        found["overall", name] = _mean([part[name] for part in everybody if name != "auc" or part["judged"]], nothing)
    errors["overall", "ece"] = _mean([part["ece_error"] for part in everybody], nothing)
    for label, part in zip(scores.labels, everybody, strict=True):
        found["overall", "auc_per_label", label] = part["auc"]
    if scores.kind == "multilabel":
        found["overall", "exact_match"] = _exact_match(scores, weights, resamples)
    for name, groups in attributes.items():
        for metric, of_several in GAPS.items():
            told = [label.gaps[name][metric] for label in by_label if metric in label.gaps[name]]
            found["attributes", name, metric] = _mean(told, nothing)
            worst = np.fmin if of_several is min else np.fmax
            found["attributes", name, f"{metric}_worst"] = worst.reduce(told) if told else nothing
            pushed = [label.errors[name][metric] for label in by_label if metric in label.errors[name]]
            errors["attributes", name, metric] = _mean(pushed, nothing)
            errors["attributes", name, f"{metric}_worst"] = np.fmax.reduce(pushed) if pushed else nothing
        for group, _ in groups:
            parts = [label.groups[name, group] for label in by_label]
            where = ("attributes", name, "groups", str(group))
            found[*where, "accuracy"] = _accuracy(scores.kind, parts, nothing)
            parts = [part for part in parts if part["large"]]
            for metric in ("auc", "tpr", "fpr"):
                found[*where, metric] = _mean(
                    [part[metric] for part in parts if metric != "auc" or part["judged"]], nothing
                )
            if scores.kind != "multiclass":
                found[*where, "selection_rate"] = _mean([part["selection_rate"] for part in parts], nothing)
                found[*where, "prevalence"] = _mean([part["prevalence"] for part in parts], nothing)
            for metric in ("ece", "brier"):
                found[*where, metric] = _mean([part[metric] for part in parts], nothing)
            errors[*where, "ece"] = _mean([part["ece_error"] for part in parts], nothing)
        right = [found["attributes", name, "groups", str(group), "accuracy"] for group, _ in groups]
        # The groups of an attribute share nobody, so that their sums add up to everybody's.
        together = _accuracy(
            scores.kind, [label.groups[name, group] for label in by_label for group, _ in groups], nothing
        )
        path = ("attributes", name, "es_accuracy")
        found[path], errors[path] = _scaled(together, np.array(right)) if len(right) > 1 else (nothing, nothing)
        for metric, of, worst in (("worst_group_auc", "auc", np.fmin), ("worst_group_ece", "ece", np.fmax)):
            at = [("attributes", name, "groups", str(group), of) for group, _ in groups]
            path = ("attributes", name, metric)
            found[path] = worst.reduce([found[one] for one in at]) if at else nothing
            # The worst is at most as much too bad as any group is.
            each = [errors[one] if of == "ece" else found[one][-1:] - found[one] for one in at]
            errors[path] = np.fmax.reduce(each) if at else nothing
    for metric in GAPS:
        for values in (found, errors):
            told = [values["attributes", name, metric] for name in scores.groups]
            values["across", metric, "mean"] = _mean([one for one in told if not np.isnan(one).all()], nothing)
    names = {name: [group for group, _ in groups] for name, groups in attributes.items()}
    return Measured(found, errors, names, dict(zip(scores.labels, by_label, strict=True)))


@dataclass(frozen=True)
class OfLabel:
    """One label's numbers in every resample.

    Attributes:
        groups: (attribute, group) -> metric -> [R], and whether it is large enough and judged.
        gaps, errors: attribute -> gap -> [R], and how far chance pushes it.
        together: attribute -> AUC of everybody whose group is judged, [R], which ES-AUC compares with.
    """

    groups: dict[tuple[str, Any], dict[str, Any]]
    gaps: dict[str, dict[str, np.ndarray]]
    errors: dict[str, dict[str, np.ndarray]]
    together: dict[str, np.ndarray]


def _label(
    scores: Scores,
    j: int,
    attributes: Mapping[str, list[tuple[Any, np.ndarray]]],
    weights: Weights,
    resamples: int,
    min_cell: int,
) -> OfLabel:
    truth = scores.y_true[:, j]
    known, count = ~np.isnan(truth), len(truth)
    columns = [np.zeros(count, dtype=np.int32)]
    place: dict[tuple[str, Any], int] = {("overall", ""): 0}
    union: dict[str, int] = {}
    for name, groups in attributes.items():
        column, together = np.full(count, -1, dtype=np.int32), np.zeros(count, dtype=bool)
        for group, rows in groups:
            place[name, group] = len(place) + len(union)
            column[rows] = place[name, group]
            if (rows & known).sum() >= min_cell:
                together |= rows
        columns.append(column)
        # ES-AUC compares with the AUC of those whose group is judged; where that is everybody, it is known already.
        if together[known].all():
            union[name] = 0
        else:
            union[name] = len(place) + len(union)
            columns.append(np.where(together, union[name], -1).astype(np.int32))
    total = max(max(place.values()), max(union.values(), default=0)) + 1
    sums = label_sums(weights, resamples, truth, scores.y_score[:, j], scores.y_pred[:, j], np.array(columns), total)
    rates = _rates(sums)
    large = {("overall", ""): True}
    judged = {}
    for name, groups in attributes.items():
        for group, rows in groups:
            large[name, group] = (rows & known).sum() >= min_cell
            judged[name, group] = large[name, group] and 0 < truth[rows & known].sum() < (rows & known).sum()
    judged["overall", ""] = 0 < truth[known].sum() < known.sum()
    parts = {
        key: {metric: values[at] for metric, values in rates.items()} | {"large": large[key], "judged": judged[key]}
        for key, at in place.items()
    }
    gaps: dict[str, dict[str, np.ndarray]] = {}
    errors: dict[str, dict[str, np.ndarray]] = {}
    for name, groups in attributes.items():
        gap, error = gaps.setdefault(name, {}), errors.setdefault(name, {})
        among = [place[name, group] for group, _ in groups]
        if len(among) > 1:
            gap["dpd"], error["dpd"] = _gap(rates["selection_rate"][among])
        among = [place[name, group] for group, _ in groups if judged[name, group]]
        if len(among) > 1:
            gap["es_auc"], error["es_auc"] = _scaled(rates["auc"][union[name]], rates["auc"][among])
            for metric, rate in (("tpr_gap", "tpr"), ("fpr_gap", "fpr")):
                gap[metric], error[metric] = _gap(rates[rate][among])
            for made in (gap, error):
                made["eod"] = np.maximum(made["tpr_gap"], made["fpr_gap"])
    return OfLabel(parts, gaps, errors, {name: rates["auc"][place] for name, place in union.items()})


def _rates(sums: Sums) -> dict[str, np.ndarray]:
    """Each [G, R]; NaN where there is nothing to divide by."""
    known = sums.positives + sums.negatives
    with np.errstate(invalid="ignore", divide="ignore"):
        tpr, fpr = sums.hits / sums.positives, sums.false_alarms / sums.negatives
        surplus = sums.surplus / known[:, None]
        return {
            "auc": sums.wins / (sums.positives * sums.negatives),
            "tpr": tpr,
            "fpr": fpr,
            "balanced": (tpr + 1 - fpr) / 2,
            "selection_rate": sums.selected / sums.members,
            "prevalence": sums.positives / known,
            "ece": sums.miscalibration / known,
            "ece_error": np.abs(surplus - surplus[..., -1:]).sum(1),
            "brier": sums.squares / known,
            "hits": sums.hits,
            "right": sums.hits + sums.negatives - sums.false_alarms,
            "positives": sums.positives,
            "known": known,
        }


def _gap(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Largest minus smallest over the groups [G, R], and that of their errors; NaN where a group lacks the number."""
    return np.ptp(values, axis=0), np.ptp(values - values[:, -1:], axis=0)


def _scaled(base: np.ndarray, each: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Equity-scaled `base` [R] given that of each group [G, R], and by how much chance makes it too small."""
    away = base - each
    apart = np.abs(away).sum(axis=0)
    found = base / (1 + apart)
    errors = np.abs(away - away[:, -1:]).sum(axis=0)
    largest = (2 * base[-1] - base) / (1 + np.maximum(apart[-1] - errors, 0))
    return found, largest - found[-1]


def _accuracy(kind: str, parts: list[dict[str, Any]], nothing: np.ndarray) -> np.ndarray:
    """Of several classes one is true: an image is right where that one was decided. Else all known labels count."""
    if not parts:
        return nothing
    right, of = ("hits", "positives") if kind == "multiclass" else ("right", "known")
    with np.errstate(invalid="ignore"):
        return sum(part[right] for part in parts) / sum(part[of] for part in parts)


def _mean(values: list[np.ndarray], nothing: np.ndarray) -> np.ndarray:
    return np.mean(values, axis=0) if values else nothing


def _exact_match(scores: Scores, weights: Weights, resamples: int) -> np.ndarray:
    known = ~np.isnan(scores.y_true) & ~np.isnan(scores.y_pred)
    rows = known.any(axis=1)
    right = ((scores.y_true == scores.y_pred) | ~known).all(axis=1) & rows
    shares = [
        (right @ block.astype(np.float32)) / (rows @ block.astype(np.float32))
        for block in weights(np.arange(len(rows)))
    ]
    return np.concatenate(shares)[:resamples].astype(float)

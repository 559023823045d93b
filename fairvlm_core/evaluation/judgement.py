"""The judgement of one model on one split: every metric, overall and by group, as JSON that is fit for publication."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pandas as pd

from fairvlm_core.evaluation.disclosure import Withheld, withheld
from fairvlm_core.evaluation.metrics import (
    accuracy,
    auc,
    balanced_accuracy,
    brier,
    demographic_parity_difference,
    equalized_odds_difference,
    equity_scaled,
    es_auc,
    exact_match,
    expected_calibration_error,
    false_positive_rate_difference,
    group_aucs,
    groups_in,
    rates,
    true_positive_rate_difference,
)
from fairvlm_core.evaluation.predictions import Scores

INTERSECTION = ("sex", "age_group")
# What is said about an attribute, and which of several values is the worst.
GAPS: dict[str, Callable[..., float]] = {"es_auc": min, "dpd": max, "eod": max, "tpr_gap": max, "fpr_gap": max}


def judge(scores: Scores, *, min_cell: int = 10) -> dict[str, Any]:
    """All numbers for one model on one split, as JSON: null where a number does not exist, never NaN.

    Groups of fewer than `min_cell` images are suppressed: their count reads "<10", they have no values, and they take
    no part in any gap. The same holds label by label for groups with fewer than `min_cell` known truths. Where such a
    count would follow from the others, further counts are withheld (n reads "10 or more", positives are null); the
    group keeps its numbers, for which see `disclosure`. A gap needs two groups that can be judged. With several labels,
    `auc`, `es_auc`, `dpd`, `eod` and `tpr_gap` are means over the labels, each against the rest (FairMed-VLM,
    demographic parity gap), and `..._worst` is the worst label's. So are `ece` and `brier`, which need no positives: a
    group without any has them, though it has no AUC.

    Returns:
        `overall`: accuracy, balanced_accuracy, exact_match (multilabel only), auc, auc_per_label, ece, brier.
        `attributes`: attribute (and "sex x age_group") -> n, unknown, es_auc, dpd, eod, tpr_gap, fpr_gap (each also
        `_worst`), es_accuracy, worst_group_auc, worst_group_ece, `groups` {name: n, positives, auc, accuracy,
        balanced_accuracy, selection_rate, prevalence, tpr, fpr, ece, brier}, `labels` {label: the same five gaps,
        worst_group_auc and groups for that label}, suppressed [names], withheld [names whose n is],
        unjudged [{label, group, reason, n, positives}].
        `across`: es_auc, dpd, eod, tpr_gap, fpr_gap -> mean and worst over the attributes, the intersection not counted
        again.
        `per_label`: label -> n, positives, auc, accuracy, balanced_accuracy, selection_rate, prevalence, tpr, fpr, ece,
        brier, over all images; with fewer than `min_cell` known truths n and positives alone.
        `unjudged`: [{label, reason, n, positives}] for labels that have no AUC at all.
        `answers`, only where the model also answered in words: see `_judge_answers`.
    """
    columns = list(zip(scores.y_true.T, scores.y_score.T, strict=True))
    aucs = [auc(truth, score) for truth, score in columns]
    overall = {
        "accuracy": _accuracy(scores.kind, scores.y_true, scores.y_pred),
        "balanced_accuracy": _balanced(scores.kind, scores.y_true, scores.y_pred),
        "auc": _mean(aucs),
        "auc_per_label": {label: _number(value) for label, value in zip(scores.labels, aucs, strict=True)},
        "ece": _mean(expected_calibration_error(truth, score) for truth, score in columns),
        "brier": _mean(brier(truth, score) for truth, score in columns),
    }
    if scores.kind == "multilabel":
        overall["exact_match"] = _number(exact_match(scores.y_true, scores.y_pred))
    groups = with_intersection(scores.groups)
    kept = withheld(scores, groups, min_cell=min_cell)
    attributes = {name: _judge_attribute(scores, name, values, min_cell, kept) for name, values in groups.items()}
    single = [attributes[name] for name in scores.groups]
    return {
        "model": scores.model,
        "kind": scores.kind,
        "labels": list(scores.labels),
        "n": len(scores.sample_ids),
        "min_cell": min_cell,
        "overall": overall,
        "attributes": attributes,
        "across": {
            metric: {"mean": _mean(a[metric] for a in single), "worst": _pick(worst, (a[metric] for a in single))}
            for metric, worst in GAPS.items()
        },
        "per_label": {
            label: _of_label(truth, score, decision, area, min_cell)
            for label, truth, score, decision, area in zip(
                scores.labels, scores.y_true.T, scores.y_score.T, scores.y_pred.T, aucs, strict=True
            )
        },
        "unjudged": [
            {"label": label, "reason": _reason(truth), **_counts(truth, min_cell)}
            for label, truth, value in zip(scores.labels, scores.y_true.T, aucs, strict=True)
            if np.isnan(value)
        ],
        **({} if scores.y_answer is None else {"answers": _judge_answers(scores, groups, min_cell, kept)}),
    }


def _judge_answers(scores: Scores, groups: dict[str, np.ndarray], min_cell: int, kept: Withheld) -> dict[str, Any]:
    """The second path beside the first: what the answers in words are worth (FairMed-VLM, inference).

    Returns:
        accuracy: share of right answers, an undecided one being wrong; accuracy_decided: of those that are decided;
        undecided: share of the answers that say neither; agreement: share of the decided ones that say what the
        decision from the score says. Multi-class: per image, else per image and label.
        `attributes`: attribute -> group -> n, accuracy, undecided; small groups are suppressed.
    """
    right, decided, agreed = _answered(scores)
    attributes: dict[str, dict[str, Any]] = {}
    for attribute, values in groups.items():
        found = attributes[attribute] = {}
        for name, rows in groups_in(values):
            if rows.sum() < min_cell:
                found[name] = {"n": f"<{min_cell}", "accuracy": None, "undecided": None}
            else:
                shares = {"accuracy": _mean_known(right[rows]), "undecided": _mean_known(~decided[rows])}
                size = _withheld(min_cell) if (attribute, name) in kept.sizes else int(rows.sum())
                found[name] = {"n": size, **shares}
    return {
        "accuracy": _mean_known(right),
        "accuracy_decided": _mean_known(np.where(decided, right, np.nan)),
        "undecided": _mean_known(~decided),
        "agreement": _mean_known(agreed),
        "attributes": attributes,
    }


def _answered(scores: Scores) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per question, [n, Q]: right (float, NaN where the truth is unknown), decided (bool), agreed (float, NaN)."""
    truth, decision = scores.y_true, scores.y_pred
    answer = np.full(truth.shape, np.nan) if scores.y_answer is None else scores.y_answer
    decided = ~np.isnan(answer)
    right = np.where(np.isnan(truth), np.nan, answer == truth)
    agreed = np.where(decided & ~np.isnan(decision), answer == decision, np.nan)
    if scores.kind != "multiclass":
        return right, decided, agreed
    # One question per image, whose answer is right where all that is known of its row is.
    rows = [np.where(np.isnan(part).all(1), np.nan, np.nanmin(_filled(part), axis=1)) for part in (right, agreed)]
    return rows[0][:, None], decided.all(1, keepdims=True), rows[1][:, None]


def _filled(values: np.ndarray) -> np.ndarray:
    """Rows without any number become 0, so that a minimum over the numbers exists in each."""
    return np.where(np.isnan(values).all(axis=1, keepdims=True), 0.0, values)


def _mean_known(values: np.ndarray) -> float | None:
    known = np.asarray(values, dtype=float)
    known = known[~np.isnan(known)]
    return _number(known.mean()) if len(known) else None


def with_intersection(groups: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The attributes plus sex x age_group, where both are there; its groups are like "female, 0-39"."""
    if not all(name in groups for name in INTERSECTION):
        return dict(groups)
    (first, one), (second, other) = (pd.factorize(groups[name]) for name in INTERSECTION)
    names = np.array([[f"{a}, {b}" for b in other] for a in one], dtype=object).reshape(len(one), len(other))
    both = np.full(len(first), None, dtype=object)
    known = (first >= 0) & (second >= 0)
    both[known] = names[first[known], second[known]]
    return {**groups, " x ".join(INTERSECTION): both}


def shown_count(count: int, *, total: int, min_cell: int) -> int | str:
    """A count fit for publication: neither it nor what remains of the total points at fewer than `min_cell` people.

    >>> [shown_count(count, total=50, min_cell=10) for count in (4, 20, 47)]
    ['<10', 20, '>40']
    """
    if count < min_cell:
        return f"<{min_cell}"
    return f">{total - min_cell}" if count < total and total - count < min_cell else count


def _withheld(min_cell: int) -> str:
    """What stands for a count that is not small but would give away one that is."""
    return f"{min_cell} or more"


def _judge_attribute(
    scores: Scores, attribute: str, groups: np.ndarray, min_cell: int, kept: Withheld
) -> dict[str, Any]:
    members = groups_in(groups)
    published = {name: rows for name, rows in members if rows.sum() >= min_cell}
    code = {name: place for place, name in enumerate(published)}  # numbers are quicker to compare than names
    labels: dict[str, dict[str, Any]] = {}
    unjudged = []

    def counts(label: str, name: Any, truth: np.ndarray) -> dict[str, Any]:
        shown = _counts(truth, min_cell)
        if (label, attribute, name) in kept.known and not isinstance(shown["n"], str):
            shown["n"] = _withheld(min_cell)
        if (label, attribute, name) in kept.positives and not isinstance(shown["positives"], str):
            shown["positives"] = None
        return shown

    for j, label in enumerate(scores.labels):
        truth, score, decision = scores.y_true[:, j], scores.y_score[:, j], scores.y_pred[:, j]
        known = {name: rows & ~np.isnan(truth) for name, rows in published.items()}
        large = {name: rows for name, rows in known.items() if rows.sum() >= min_cell}
        cells = _coded(code, large, len(groups))
        areas = group_aucs(truth, score, groups=cells)
        judged = {name: areas[code[name]] for name in large if code[name] in areas}
        values = {
            "es_auc": es_auc(truth, score, groups=cells),
            "dpd": demographic_parity_difference(decision, groups=_coded(code, published, len(groups))),
            "eod": equalized_odds_difference(truth, decision, groups=cells),
            "tpr_gap": true_positive_rate_difference(truth, decision, groups=cells),
            "fpr_gap": false_positive_rate_difference(truth, decision, groups=cells),
        }
        labels[label] = {
            # One group alone has no gap; 0 would call it fair.
            **{
                name: _number(value) if len(published if name == "dpd" else judged) > 1 else None
                for name, value in values.items()
            },
            "worst_group_auc": _pick(min, judged.values()),
            "groups": {
                name: {
                    **_cell(
                        truth[rows],
                        score[rows],
                        decision[rows],
                        judged.get(name),
                        counts(label, name, truth[rows]),
                    ),
                    # Of all members, as in the parity gap: what is decided needs no truth.
                    "selection_rate": _mean_known(decision[published[name]]),
                }
                for name, rows in large.items()
            },
        }
        for name, rows in known.items():
            if name not in judged:
                reason = _reason(truth[rows]) if name in large else f"fewer than {min_cell} known labels"
                told = counts(label, name, truth[rows])
                unjudged.append({"label": label, "group": name, "reason": reason, **told})
    found = {name: _group(scores, name, rows, labels, min_cell) for name, rows in members}
    for name in published:
        if (attribute, name) in kept.sizes:
            found[name]["n"] = _withheld(min_cell)
    total = sum(int(rows.sum()) for _, rows in members)
    result: dict[str, Any] = {"n": total, "unknown": len(groups) - total}
    if (attribute, None) in kept.sizes:
        result = {"n": None, "unknown": None}
    for metric, worst in GAPS.items():
        result[metric] = _mean(label[metric] for label in labels.values())
        result[f"{metric}_worst"] = _pick(worst, (label[metric] for label in labels.values()))
    known_rows = np.any(list(published.values()), axis=0) if published else np.zeros(len(groups), bool)
    everybody = _accuracy(scores.kind, scores.y_true[known_rows], scores.y_pred[known_rows])
    right = [group["accuracy"] for group in found.values() if group["accuracy"] is not None]
    fair = len(right) > 1 and everybody is not None
    return {
        **result,
        "es_accuracy": _number(equity_scaled(everybody, right)) if fair and everybody is not None else None,
        "worst_group_auc": _pick(min, (group["auc"] for group in found.values())),
        "worst_group_ece": _pick(max, (group["ece"] for group in found.values())),
        "groups": found,
        "labels": labels,
        "suppressed": [name for name, _ in members if name not in published],
        "withheld": [name for name in published if (attribute, name) in kept.sizes],
        "unjudged": unjudged,
    }


def _group(scores: Scores, name: str, rows: np.ndarray, labels: dict[str, Any], min_cell: int) -> dict[str, Any]:
    """One group's numbers, as means over the labels it can be judged on."""
    count = int(rows.sum())
    if count < min_cell:
        nothing = dict.fromkeys(
            (
                "positives",
                "auc",
                "accuracy",
                "balanced_accuracy",
                "selection_rate",
                "prevalence",
                "tpr",
                "fpr",
                "ece",
                "brier",
            )
        )
        return {"n": f"<{min_cell}", **nothing}
    cells = [label["groups"][name] for label in labels.values() if name in label["groups"]]
    return {
        "n": count,
        "positives": cells[0]["positives"] if scores.kind == "binary" and cells else None,
        "accuracy": _accuracy(scores.kind, scores.y_true[rows], scores.y_pred[rows]),
        # Of several classes it is the mean recall of those that are there.
        "balanced_accuracy": _mean(
            cell["tpr" if scores.kind == "multiclass" else "balanced_accuracy"] for cell in cells
        ),
        **{metric: _mean(cell[metric] for cell in cells) for metric in ("auc", "tpr", "fpr", "ece", "brier")},
        # With exactly one class true and one chosen per image, means over the classes are constants and say nothing.
        **{
            metric: None if scores.kind == "multiclass" else _mean(cell[metric] for cell in cells)
            for metric in ("selection_rate", "prevalence")
        },
    }


def _cell(
    truth: np.ndarray, score: np.ndarray, decision: np.ndarray, area: float | None, counts: dict[str, Any]
) -> dict[str, Any]:
    tpr, fpr = rates(truth, decision)
    return {
        **counts,
        "auc": None if area is None else _number(area),
        "accuracy": _number(accuracy(truth, decision)),
        "balanced_accuracy": _number(balanced_accuracy(truth, decision)),
        # With one of the counts, their share would tell the other.
        "prevalence": None if any(not isinstance(count, int) for count in counts.values()) else _number(truth.mean()),
        "tpr": _number(tpr),
        "fpr": _number(fpr),
        "ece": _number(expected_calibration_error(truth, score)),
        "brier": _number(brier(truth, score)),
    }


def _of_label(truth: np.ndarray, score: np.ndarray, decision: np.ndarray, area: float, min_cell: int) -> dict[str, Any]:
    """One label's numbers over all images, whatever their groups."""
    known = ~np.isnan(truth)
    if known.sum() < min_cell:
        return _counts(truth, min_cell)
    return {
        **_cell(truth[known], score[known], decision[known], area, _counts(truth, min_cell)),
        "selection_rate": _mean_known(decision),
    }


def _counts(truth: np.ndarray, min_cell: int) -> dict[str, Any]:
    """How many truths are known, and how many of them are positive, fit for publication."""
    known = int((~np.isnan(truth)).sum())
    if known < min_cell:
        return {"n": f"<{min_cell}", "positives": None}
    return {"n": known, "positives": shown_count(int((truth == 1).sum()), total=known, min_cell=min_cell)}


def _accuracy(kind: str, y_true: np.ndarray, y_pred: np.ndarray) -> float | None:
    return _number((exact_match if kind == "multiclass" else accuracy)(y_true, y_pred))


def _balanced(kind: str, y_true: np.ndarray, y_pred: np.ndarray) -> float | None:
    """Multi-class: mean recall of the classes present. Otherwise the mean over the labels."""
    columns = zip(y_true.T, y_pred.T, strict=True)
    if kind == "multiclass":
        return _mean(rates(truth, decision)[0] for truth, decision in columns)
    return _mean(balanced_accuracy(truth, decision) for truth, decision in columns)


def _reason(truth: np.ndarray) -> str:
    if np.isnan(truth).all():
        return "no known labels"
    return "no negatives" if (truth == 1).any() else "no positives"


def _coded(code: dict[Any, int], kept: dict[Any, np.ndarray], count: int) -> np.ndarray:
    """The groups that are kept as numbers, int64 [count]; -1 elsewhere."""
    values = np.full(count, -1)
    for name, rows in kept.items():
        values[rows] = code[name]
    return values


def _number(value: float) -> float | None:
    """A JSON number: six decimals are more than any cohort can tell apart."""
    return None if np.isnan(value) else round(float(value), 6)


def _mean(values: Iterable[float | None]) -> float | None:
    return _pick(np.mean, values)


def _pick(reduce: Callable[..., Any], values: Iterable[float | None]) -> float | None:
    """Reduce the values that exist; null where there is none."""
    known = [value for value in values if value is not None and not np.isnan(value)]
    return _number(reduce(known)) if known else None

"""Decision thresholds: fixed on validation before the test split is read, and used for accuracy and fairness alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike

from fairvlm_core.evaluation.predictions import Scores, kind_of, scores

DEFAULT = 0.5
RULES = ("f1", "youden", "sensitivity", "specificity")
BINS = 2048  # fine enough that few rows share the best one's, and few enough for the fastest cache


def tune(y_true: ArrayLike, y_score: ArrayLike, *, rule: str = "f1", target: float = 0.9) -> np.ndarray:
    """Per label, the best threshold by a rule, when `y_score >= threshold` means positive (FairMed-VLM, thresholds).

    All thresholds between two neighbouring scores decide alike, so the result is the best over all real numbers. Of
    several best ones it is the one nearest 0.5; where that would be the open end of an interval, which decides
    differently, it is the middle of that interval.

    Args:
        y_true: [n, L], 0 or 1, NaN where unknown (such a row is ignored for that label).
        y_score: [n, L], finite.
        rule: what is best. `f1`: the largest F1; maximising every label's maximises macro-F1. `youden`: the largest sum
            of sensitivity and specificity (Youden 1950). `sensitivity`: the largest specificity at which at least
            `target` of the positives are found, as screening asks for. `specificity`: the largest sensitivity at which
            at least `target` of the negatives are cleared.

    Returns:
        float64 [L]; 0.5 for a label without positives, or for another rule than f1 without negatives.

    >>> tune([[0], [1], [0], [1]], [[0.1], [0.3], [0.2], [0.4]])
    array([0.3])
    """
    if rule not in RULES:
        raise ValueError(f"rule should be one of {', '.join(RULES)}, not {rule}")
    truth, score = np.asarray(y_true, dtype=float), np.asarray(y_score, dtype=float)
    if truth.ndim != 2 or truth.shape != score.shape:
        raise ValueError(f"y_true has the shape {truth.shape}, y_score {score.shape}; both should be [n, L]")
    unknown, positive = np.isnan(truth), truth == 1
    some_unknown = bool(unknown.any())
    coarse = score.astype(np.float32)
    thresholds = []
    for j in range(truth.shape[1]):
        rows = np.flatnonzero(~unknown[:, j]) if some_unknown else slice(None)
        thresholds.append(_best(positive[rows, j], score[rows, j], coarse[rows, j], rule, target))
    return np.array(thresholds)


def f1(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """2 TP / (2 TP + FP + FN) over the rows [n] whose truth is known; NaN without positives.

    >>> f1([1, 1, 0], [1, 0, 0])
    0.6666666666666666
    """
    truth, decision = np.asarray(y_true, dtype=float), np.asarray(y_pred, dtype=float)
    known = ~np.isnan(truth)
    positives = truth[known].sum()
    hits = (truth[known] * decision[known]).sum()
    return float(2 * hits / (positives + decision[known].sum())) if positives else float("nan")


def decide(y_score: ArrayLike, thresholds: ArrayLike | None, kind: str) -> np.ndarray:
    """Decisions float64 [n, L]: 1 where the score reaches its label's threshold; multi-class: one-hot of the argmax.

    >>> decide([[0.2, 0.5, 0.3]], None, "multiclass")
    array([[0., 1., 0.]])
    """
    score = np.asarray(y_score, dtype=float)
    if kind == "multiclass":
        return np.eye(score.shape[1])[score.argmax(axis=1)]
    return (score >= np.asarray(thresholds, dtype=float)).astype(float)


def decided(given: Scores, thresholds: Mapping[str, float]) -> Scores:
    """The same predictions with `y_pred`; `thresholds` maps label to threshold (unused for multi-class)."""
    values = None if given.kind == "multiclass" else [thresholds[label] for label in given.labels]
    return replace(given, y_pred=decide(given.y_score, values, given.kind))


def add_decisions(table: pa.Table, thresholds: Mapping[str, float]) -> pa.Table:
    """A predictions table of one model with the column `y_pred`, in every split it has."""
    frame = table.select(["sample_id", "split", "label", "y_score"]).to_pandas()
    if kind_of(table) != "multiclass":
        value = (frame["y_score"].astype(float) >= frame["label"].map(thresholds)).astype("int8").to_numpy()
    else:
        value = np.zeros(len(frame), dtype="int8")
        for split in frame["split"].unique():
            found = scores(table, split)
            best = dict(zip(found.sample_ids, np.array(found.labels)[found.y_score.argmax(axis=1)], strict=True))
            rows = (frame["split"] == split).to_numpy()
            value[rows] = frame["label"][rows] == frame["sample_id"][rows].map(best)
    if "y_pred" in table.column_names:
        table = table.drop_columns(["y_pred"])
    return table.append_column("y_pred", pa.array(value, pa.int8()))


def _best(positive: np.ndarray, score: np.ndarray, coarse: np.ndarray, rule: str, target: float) -> float:
    positive, coarse = np.ascontiguousarray(positive), np.ascontiguousarray(coarse)
    positives = int(np.count_nonzero(positive))
    negatives = len(positive) - positives
    if not positives or (rule != "f1" and not negatives):
        return DEFAULT

    def quality(hits: np.ndarray, alarms: np.ndarray) -> np.ndarray:
        return _quality(rule, target, hits, alarms, positives, negatives)

    rows, hits_above, alarms_above = _around_the_best(positive, coarse, quality)
    rows = rows[np.argsort(-score[rows])]
    score = score[rows]
    # Every threshold in (below, score] decides alike. The ends stay open: where there are scores beyond these rows, the
    # end is not best, for the bin beyond it would have been taken too.
    edges, hits = np.full(len(rows) + 2, np.inf), np.zeros(len(rows) + 1, dtype=np.int64)
    edges[1:-1], edges[-1] = score, -np.inf
    np.cumsum(positive[rows], out=hits[1:])
    last = np.flatnonzero(edges[1:] != edges[:-1])  # of each run of equal scores, counted from 1
    hits = hits[last]
    reached = quality(hits + hits_above, last - hits + alarms_above)
    best = last[reached == reached.max()]
    candidates = np.array([_nearest(edges[i + 1], edges[i]) for i in best])
    return float(candidates[np.argmin(np.abs(candidates - DEFAULT))])


def _around_the_best(
    positive: np.ndarray, coarse: np.ndarray, quality: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> tuple[np.ndarray, int, int]:
    """The rows among which the best thresholds lie; to sort all would cost several times as much as all the rest.

    The scores are counted in bins of equal width. A threshold within a bin finds at most the positives down to the end
    of the bin, and raises at least the alarms above it; no quality grows with alarms or falls with hits. So where that
    is less than what the end of some bin reaches, no best threshold is in the bin.

    Args:
        coarse: float32 [n], the scores in single precision, for speed. Each rounding keeps the order, so equal scores
            share a bin, and no score is in an earlier bin than a higher one.

    Returns:
        The places of the rows, int64 [m], and how many positives and negatives score above them all.
    """
    falling = coarse.max() - coarse
    width = float(falling.max())
    if not 1e-30 < width < 1e30:  # all alike, or out of single precision's reach
        if not np.isfinite(coarse).all():
            raise ValueError("y_score should be finite")
        return np.arange(len(coarse)), 0, 0
    falling *= np.float32(BINS / width)
    key = falling.astype(np.int16)
    key <<= 1
    key |= positive
    count = np.bincount(key, minlength=2 * BINS + 2)
    filled = np.flatnonzero(count[::2] + count[1::2])
    within_alarms, within_hits = count[2 * filled], count[2 * filled + 1]
    alarms, hits = np.cumsum(within_alarms), np.cumsum(within_hits)
    before = alarms - within_alarms
    kept = np.flatnonzero(quality(hits, before) >= quality(hits, alarms).max())
    first, last = kept[0], kept[-1]
    # Python's numbers, lest the keys be compared as 64 bits.
    rows = np.flatnonzero((key >= 2 * int(filled[first])) & (key <= 2 * int(filled[last]) + 1))
    return rows, int(hits[first] - within_hits[first]), int(before[first])


def _quality(
    rule: str, target: float, hits: np.ndarray, alarms: np.ndarray, positives: int, negatives: int
) -> np.ndarray:
    """What the rule makes largest: of whole numbers, or one division of such, so that equal qualities are equal."""
    if rule == "f1":
        return 2 * hits / (hits + alarms + positives)
    if rule == "youden":
        return (hits * negatives - alarms * positives).astype(float)
    if rule == "sensitivity":
        return np.where(hits >= target * positives, -alarms, -np.inf)
    return np.where(negatives - alarms >= target * negatives, hits, -np.inf)


def _nearest(low: float, high: float) -> float:
    """The number in (low, high] nearest 0.5, or the middle where that would be `low` itself."""
    if high <= DEFAULT:
        return high
    if low < DEFAULT:
        return DEFAULT
    if high == np.inf:
        return float(np.nextafter(low, np.inf)) if low >= 1 else (low + 1) / 2
    middle = low + (high - low) / 2
    return middle if middle > low else high  # neighbouring floats have no middle

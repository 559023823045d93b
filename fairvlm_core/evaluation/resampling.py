"""Weighted sums for many resamples at once: what every metric of a bootstrap is made of.

A resample is a column of whole numbers, how often each patient was drawn. Instead of computing metrics resample by
resample, the rows are sorted by score once, and 64 resamples go through them side by side: the wins of an AUC are a
weighted cumulative sum, and all else is a count per cell. Nothing is sampled twice for two models: equal seeds and
patients give equal resamples, which is what makes a comparison paired.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fairvlm_core.compiled import compiled
from fairvlm_core.evaluation.metrics import bins_of

LANES = 64  # resamples that go through the rows together: a cache line of one-byte weights
BINS = 15

Weights = Callable[[np.ndarray], Iterator[np.ndarray]]  # see `bootstrap_weights`


@dataclass(frozen=True)
class Sums:
    """Of one label, per group and resample, each float64 [G, R].

    Attributes:
        members, selected: rows of the group, and those decided positive, whatever their truth is.
        positives, negatives: rows of known truth.
        hits, false_alarms: of these, the ones decided positive.
        wins: (positive, negative) pairs of the group ranked rightly, ties counting one half.
        squares: sum of (score - truth)^2.
        miscalibration: sum over the bins of |sum of scores - positives|; over the known rows it is the ECE.
        surplus: of each bin the sum of scores - positives, [G, BINS, R].
    """

    members: np.ndarray
    selected: np.ndarray
    positives: np.ndarray
    negatives: np.ndarray
    hits: np.ndarray
    false_alarms: np.ndarray
    wins: np.ndarray
    squares: np.ndarray
    miscalibration: np.ndarray
    surplus: np.ndarray


def patient_codes(patients: np.ndarray) -> np.ndarray:
    """Number the patients from 0 in the order of their names, int64 [n]: equal for models that list them otherwise."""
    return pd.factorize(patients, sort=True)[0].astype(np.int64)


def bootstrap_weights(patient: np.ndarray, resamples: int, seed: int) -> Weights:
    """How often each row is drawn when the patients are drawn with replacement.

    The resample r depends on the seed, r and the number of patients alone.

    Args:
        patient: of `patient_codes`.

    Returns:
        From an order of the rows to blocks uint8 [n, LANES]; the resample r is column r % LANES of block r // LANES,
        and the last block has columns beyond `resamples`.
    """
    people = int(patient.max(initial=-1)) + 1

    def blocks(order: np.ndarray) -> Iterator[np.ndarray]:
        for start in range(0, resamples, LANES):
            yield _drawn(people, np.uint64(seed), start)[patient[order]]

    return blocks


def whole_weights(rows: int) -> Weights:
    """No resample: every row counts once."""
    return lambda order: iter([np.ones((rows, LANES), dtype=np.uint8)])


def with_whole(weights: Weights, resamples: int) -> Weights:
    """One column more, after the `resamples` of these weights, in which every row counts once."""

    def blocks(order: np.ndarray) -> Iterator[np.ndarray]:
        for start, block in zip(range(0, resamples, LANES), weights(order), strict=True):
            if resamples < start + LANES:
                block[:, resamples - start] = 1
            yield block
        if resamples % LANES == 0:
            yield from whole_weights(len(order))(order)

    return blocks


def leave_out_weights(patient: np.ndarray, folds: int, seed: int) -> Weights:
    """The jackknife's resamples: column f leaves out the patients of fold f; blocks as of `bootstrap_weights`.

    With as many folds as patients each is left out by itself; with fewer, patients are spread over them at random.
    """
    people = int(patient.max(initial=-1)) + 1
    of_row = (np.random.default_rng(seed).permutation(people) % folds)[patient]

    def blocks(order: np.ndarray) -> Iterator[np.ndarray]:
        for start in range(0, folds, LANES):
            yield (of_row[order][:, None] != np.arange(start, start + LANES)).astype(np.uint8)

    return blocks


def label_sums(
    weights: Weights,
    resamples: int,
    truth: np.ndarray,
    score: np.ndarray,
    decision: np.ndarray,
    codes: np.ndarray,
    groups: int,
) -> Sums:
    """The sums of one label.

    Args:
        weights: of the resamples, of which there are `resamples`.
        truth: float64 [n], 0, 1 or NaN.
        score: float64 [n].
        decision: float64 [n], 0, 1, or NaN where there is none (such a row is no member).
        codes: int32 [C, n], the groups a row belongs to, one per column, -1 for none; a group stands in one column.
        groups: G.
    """
    # In rising order of score, and the rows of unknown truth, which count as members only, at the end.
    order = np.argsort(np.where(np.isnan(truth), np.inf, score), kind="stable")
    truth, score, decision, codes = truth[order], score[order], decision[order], codes[:, order]
    known = int((~np.isnan(truth)).sum())
    ends = np.flatnonzero(np.append(np.diff(score[:known]) != 0, known > 0)) + 1
    cells, cell = _cells(codes, groups)
    width = cells.shape[1]
    belongs = np.zeros((groups, width))
    for column in cells:
        inside = np.flatnonzero(column >= 0)
        belongs[column[inside], inside] = 1.0
    # A row's cell, truth (0, 1, unknown) and decision (0, 1, none) decide all that is counted of it.
    told, said = (np.where(np.isnan(values), 2, values).astype(np.int64) for values in (truth, decision))
    place = (cell * 3 + told) * 3 + said
    surplus = (score - truth)[:known]
    binned = (cell * BINS + bins_of(score, BINS))[:known]
    by_row, positive = np.ascontiguousarray(codes.T.astype(np.int32)), truth == 1

    made = {name: np.empty((groups, resamples)) for name in Sums.__dataclass_fields__ if name != "surplus"}
    made["surplus"] = np.empty((groups, BINS, resamples))
    for start, block in zip(range(0, resamples, LANES), weights(order), strict=True):
        count = min(LANES, resamples - start)
        counts = counted(block, place, width * 9).reshape(width, 3, 3, LANES)
        by_group = np.tensordot(belongs, counts, axes=(1, 0))  # [G, truth, decision, LANES]
        off = _weighed(block, binned, surplus, width * BINS).reshape(width, BINS, LANES)
        off = np.tensordot(belongs, off, axes=(1, 0))  # [G, BINS, LANES]
        part = {
            "members": by_group[:, :, :2].sum((1, 2)),
            "selected": by_group[:, :, 1].sum(1),
            "positives": by_group[:, 1].sum(1),
            "negatives": by_group[:, 0].sum(1),
            "hits": by_group[:, 1, 1],
            "false_alarms": by_group[:, 0, 1],
            "wins": wins(block, ends, positive, by_row, groups),
            "squares": belongs @ _weighed(block, cell[:known], surplus**2, width),
            "miscalibration": np.abs(off).sum(1),
            "surplus": off,
        }
        for name, value in part.items():
            made[name][..., start : start + count] = value[..., :count]
    return Sums(**made)


def _cells(codes: np.ndarray, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """The different combinations of groups, [C, cells], and each row's place among them, int64 [n]."""
    key = np.zeros(codes.shape[1], dtype=np.int64)
    for column in codes:
        # Renumbered on the way, so that the key never outgrows 64 bits.
        key = pd.factorize(key * (groups + 1) + column + 1)[0]
    width = int(key.max(initial=-1)) + 1
    one = np.zeros(width, dtype=np.int64)
    one[key] = np.arange(len(key))  # any row of a cell tells its groups
    return codes[:, one], key


@compiled
def _drawn(people: int, seed: np.uint64, start: int) -> np.ndarray:
    """One block of the bootstrap, uint8 [people, LANES]: splitmix64 for each draw, started anew for each resample."""
    counts = np.zeros((LANES, people), dtype=np.uint8)
    for lane in range(LANES):
        state = (seed + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) ^ (
            np.uint64(start + lane) * np.uint64(0xD1B54A32D192ED03)
        )
        for _ in range(people):
            state += np.uint64(0x9E3779B97F4A7C15)
            z = state
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            z = z ^ (z >> np.uint64(31))
            # The upper half times the number of people, shifted back: a place without the bias of a remainder.
            counts[lane, ((z >> np.uint64(32)) * np.uint64(people)) >> np.uint64(32)] += np.uint8(1)
    return np.ascontiguousarray(counts.T)


@compiled
def wins(rows: np.ndarray, ends: np.ndarray, positive: np.ndarray, codes: np.ndarray, groups: int) -> np.ndarray:
    """Weighted pairs ranked rightly, [G, LANES]; weights [n, LANES] and codes [n, C] in rising order of score.

    `ends` closes each run of equal scores. A view of a row for each loop over the lanes: so the compiler sees that
    they do not overlap, and takes several lanes at once.
    """
    twice = np.zeros((groups, LANES))
    below = np.zeros((groups, LANES))
    weight = np.empty(LANES)
    start = 0
    for end in ends:
        # Of a positive among equal scores the negatives below it, and those up to its own score, count half each.
        rounds = 1 if end - start == 1 else 2
        for turn in range(rounds):
            for i in range(start, end):
                if positive[i]:
                    row = rows[i]
                    for lane in range(LANES):
                        weight[lane] = row[lane] * (3.0 - rounds)
                    for c in range(codes.shape[1]):
                        if codes[i, c] >= 0:
                            won, beaten = twice[codes[i, c]], below[codes[i, c]]
                            for lane in range(LANES):
                                won[lane] += weight[lane] * beaten[lane]
                elif turn == 0 and rounds == 1:
                    _add(below, rows[i], codes[i], weight)
            if turn == 0 and rounds == 2:
                for i in range(start, end):
                    if not positive[i]:
                        _add(below, rows[i], codes[i], weight)
        start = end
    return twice / 2


@compiled
def _add(below: np.ndarray, row: np.ndarray, codes: np.ndarray, weight: np.ndarray) -> None:
    """One more negative in its groups."""
    for lane in range(LANES):
        weight[lane] = row[lane]
    for code in codes:
        if code >= 0:
            beaten = below[code]
            for lane in range(LANES):
                beaten[lane] += weight[lane]


@compiled
def counted(block: np.ndarray, place: np.ndarray, places: int) -> np.ndarray:
    """Weights summed per place, [places, LANES]."""
    found = np.zeros((places, LANES))
    for row in range(len(place)):
        total, weights = found[place[row]], block[row]
        for lane in range(LANES):
            total[lane] += weights[lane]
    return found


@compiled
def _weighed(block: np.ndarray, place: np.ndarray, value: np.ndarray, places: int) -> np.ndarray:
    """Weights times values summed per place, [places, LANES]; of the first rows, as many as have a place."""
    found = np.zeros((places, LANES))
    for row in range(len(place)):
        total, weights, factor = found[place[row]], block[row], value[row]
        for lane in range(LANES):
            total[lane] += weights[lane] * factor
    return found

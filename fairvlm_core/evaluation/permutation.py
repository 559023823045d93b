"""Is a gap between groups more than chance? The groups' names are dealt out anew among the patients, many times.

What a shuffle may change depends on the question. A parity gap is chance where decisions do not depend on the group; a
gap in AUC or in error rates where scores do not depend on it among people of the same truth, for groups may well differ
in how many are ill. Names are therefore dealt out among all patients for the former, and among those who have the
finding and those who do not, apart, for the latter.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from fairvlm_core.compiled import compiled
from fairvlm_core.evaluation.judgement import with_intersection
from fairvlm_core.evaluation.metrics import auc, groups_in
from fairvlm_core.evaluation.predictions import Scores
from fairvlm_core.evaluation.resampling import LANES, counted, patient_codes, wins
from fairvlm_core.evaluation.significance import holm

PERMUTATIONS = 1000
WITHIN_TRUTH = ("es_auc", "tpr_gap", "fpr_gap", "eod")


def gap_p_values(
    scores: Scores, *, permutations: int = PERMUTATIONS, min_cell: int = 10, seed: int = 0
) -> dict[str, dict[str, float | None]]:
    """The chance of a gap at least as large, were the groups alike: attribute (and intersection) -> gap -> p.

    With several labels it is the smallest of the labels' p-values after Holm's correction: that any label has such a
    gap. Groups are those that `judge` compares. A patient whose images are in several groups counts for the first.

    Args:
        scores: with decisions.

    Returns:
        es_auc, dpd, tpr_gap, fpr_gap, eod: (1 + permutations with a gap at least as large) / (1 + permutations); null
        where there are not two groups to compare.
    """
    patient = patient_codes(scores.patient_ids)
    found: dict[str, dict[str, float | None]] = {}
    for name, values in with_intersection(scores.groups).items():
        groups = [rows for _, rows in groups_in(values) if rows.sum() >= min_cell]
        told: dict[str, list[float]] = {}
        for j in range(len(scores.labels)):
            for gap, p in _of_label(scores, j, groups, patient, permutations, min_cell, seed).items():
                told.setdefault(gap, []).append(p)
        found[name] = {gap: float(np.min(holm(told[gap]))) if gap in told else None for gap in (*WITHIN_TRUTH, "dpd")}
    return found


def _of_label(
    scores: Scores,
    j: int,
    groups: list[np.ndarray],
    patient: np.ndarray,
    permutations: int,
    min_cell: int,
    seed: int,
) -> dict[str, float]:
    truth, score, decision = scores.y_true[:, j], scores.y_score[:, j], scores.y_pred[:, j]
    known = ~np.isnan(truth)
    judged = [
        rows
        for rows in groups
        if (rows & known).sum() >= min_cell and 0 < truth[rows & known].sum() < (rows & known).sum()
    ]
    found: dict[str, float] = {}
    for compared, within, gaps in ((groups, False, ("dpd",)), (judged, True, WITHIN_TRUTH)):
        if len(compared) < 2:
            continue
        code = np.full(len(truth), -1)
        for place, rows in enumerate(compared):
            code[rows] = place
        taken = np.flatnonzero((code >= 0) & (known if within else ~np.isnan(decision)))
        order = taken[np.argsort(score[taken], kind="stable")]
        people, one = pd.factorize(patient[order])
        first = np.zeros(len(one), dtype=np.int64)
        first[people[::-1]] = code[order][::-1]
        positive = truth[order] == 1
        stratum = np.zeros(len(one), dtype=np.int64)
        if within:
            np.maximum.at(stratum, people, positive.astype(np.int64))
        ends = np.flatnonzero(np.append(np.diff(score[order]) != 0, True)) + 1
        told = 2 * positive + (decision[order] == 1)
        area = auc(positive, score[order]) if within else None
        blocks = [
            _gaps(dealt, people, ends, told, len(compared), area)
            for dealt in _deals(first, stratum, len(compared), permutations, seed)
        ]
        for gap in gaps:
            values = np.concatenate([block[gap] for block in blocks])
            observed, shuffled = values[0], values[LANES : LANES + permutations]
            # A small ES-AUC is a large gap; rounding must not tell equal gaps apart.
            extreme = shuffled <= observed + 1e-12 if gap == "es_auc" else shuffled >= observed - 1e-12
            found[gap] = (1 + int((extreme | np.isnan(shuffled)).sum())) / (1 + permutations)
    return found


def _deals(first: np.ndarray, stratum: np.ndarray, groups: int, permutations: int, seed: int) -> Iterator[np.ndarray]:
    """Blocks of the patients' groups, uint16 [people, LANES]: as they are, and then anew in each lane of each block."""
    yield np.repeat(first.astype(np.uint16)[:, None], LANES, axis=1)
    sizes = np.bincount(stratum * groups + first, minlength=2 * groups).reshape(2, groups)
    for start in range(0, permutations, LANES):
        yield _dealt(stratum, sizes, np.uint64(seed), start)


def _gaps(
    dealt: np.ndarray, people: np.ndarray, ends: np.ndarray, told: np.ndarray, groups: int, area: float | None
) -> dict[str, np.ndarray]:
    """The gaps in each lane, float64 [LANES]; NaN where a group lacks positives or negatives.

    Args:
        dealt: uint16 [people, LANES].
        people: of each row [n], the rows in rising order of score.
        ends: closes each run of equal scores.
        told: of each row [n], 2 x truth + decision.
        groups: G.
        area: everybody's AUC, which no deal changes; without it there is no ES-AUC.
    """
    rows, alone = dealt[people], np.zeros((len(people), 1), dtype=np.int32)
    counts, won = np.empty((groups, 4, LANES)), np.empty((groups, LANES))
    for g in range(groups):
        inside = (rows == g).view(np.uint8)
        counts[g] = counted(inside, told, 4)
        if area is not None:
            won[g] = wins(inside, ends, told > 1, alone, 1)[0]
    cleared, alarms, missed, hits = counts.swapaxes(0, 1)
    with np.errstate(invalid="ignore"):
        tpr, fpr = np.ptp(hits / (hits + missed), axis=0), np.ptp(alarms / (alarms + cleared), axis=0)
        found = {"tpr_gap": tpr, "fpr_gap": fpr, "eod": np.maximum(tpr, fpr)}
        found["dpd"] = np.ptp((hits + alarms) / counts.sum(1), axis=0)
        if area is not None:
            each = won / ((hits + missed) * (alarms + cleared))
            found["es_auc"] = area / (1 + np.abs(area - each).sum(0))
    return found


@compiled
def _dealt(stratum: np.ndarray, sizes: np.ndarray, seed: np.uint64, start: int) -> np.ndarray:
    """Names dealt out among the patients of each stratum, uint16 [people, LANES], as from an urn: splitmix64.

    Args:
        stratum: of each patient, int64 [people].
        sizes: how many patients of each stratum have each name, int64 [S, G].
    """
    strata, groups = sizes.shape
    dealt = np.zeros((len(stratum), LANES), dtype=np.uint16)
    left = np.empty((strata, groups, LANES), dtype=np.int64)
    state, draw = np.empty(LANES, dtype=np.uint64), np.empty(LANES, dtype=np.int64)
    total = sizes.sum(1)
    for lane in range(LANES):
        left[:, :, lane] = sizes
        state[lane] = (seed + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) ^ (
            np.uint64(start + lane) * np.uint64(0xD1B54A32D192ED03)
        )
    for i in range(len(stratum)):
        row, remaining, names = dealt[i], np.uint64(total[stratum[i]]), left[stratum[i]]
        for lane in range(LANES):
            state[lane] += np.uint64(0x9E3779B97F4A7C15)
            z = state[lane]
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            z = z ^ (z >> np.uint64(31))
            draw[lane] = ((z >> np.uint64(32)) * remaining) >> np.uint64(32)
        for g in range(groups - 1):
            of_name = names[g]
            for lane in range(LANES):
                draw[lane] -= of_name[lane]
                row[lane] += draw[lane] >= 0
        for g in range(groups):
            of_name = names[g]
            for lane in range(LANES):
                of_name[lane] -= row[lane] == g
        total[stratum[i]] -= 1
    return dealt

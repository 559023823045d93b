"""Is a gap between groups more than chance? The groups' names are dealt out anew among the patients, many times.

What a shuffle may change depends on the question. A parity gap is chance where decisions do not depend on the group; a
gap in AUC or in error rates where scores do not depend on it among people of the same truth, for groups may well differ
in how many are ill. Names are therefore dealt out among all patients for the former, and among those who have the
finding and those who do not, apart, for the latter.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from fairvlm_core.compiled import compiled
from fairvlm_core.evaluation.judgement import with_intersection
from fairvlm_core.evaluation.metrics import groups_in
from fairvlm_core.evaluation.predictions import Scores
from fairvlm_core.evaluation.resampling import patient_codes
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
        values = _shuffled_gaps(
            people,
            first,
            stratum,
            ends,
            positive,
            decision[order] == 1,
            len(compared),
            permutations,
            np.random.default_rng(seed),
        )
        for gap in gaps:
            column = values[:, ("es_auc", "tpr_gap", "fpr_gap", "eod", "dpd").index(gap)]
            # A small ES-AUC is a large gap; rounding must not tell equal gaps apart.
            extreme = column[1:] <= column[0] + 1e-12 if gap == "es_auc" else column[1:] >= column[0] - 1e-12
            found[gap] = (1 + int((extreme | np.isnan(column[1:])).sum())) / (1 + permutations)
    return found


@compiled
def _shuffled_gaps(
    people: np.ndarray,
    group: np.ndarray,
    stratum: np.ndarray,
    ends: np.ndarray,
    positive: np.ndarray,
    decided: np.ndarray,
    groups: int,
    permutations: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """The gaps as they are (row 0) and after each shuffle, float64 [permutations + 1, 5]: es_auc, tpr, fpr, eod, dpd.

    `people` is the patient of each row, rows in rising order of score; `group` and `stratum` are each patient's, and
    names are dealt out within a stratum; `ends` closes each run of equal scores.
    """
    found = np.empty((permutations + 1, 5))
    dealt = group.copy()
    # One row more: everybody.
    below, wins = np.zeros(groups + 1), np.zeros(groups + 1)
    counts = np.zeros((groups + 1, 2, 2))
    members = np.flatnonzero(stratum == 0), np.flatnonzero(stratum == 1)
    for turn in range(permutations + 1):
        if turn:
            for inside in members:
                for i in range(len(inside) - 1, 0, -1):
                    other = rng.integers(0, i + 1)
                    a, b = inside[i], inside[other]
                    dealt[a], dealt[b] = dealt[b], dealt[a]
        below[:], wins[:], counts[:] = 0.0, 0.0, 0.0
        start = np.int64(0)
        for end in ends:
            for i in range(start, end):
                g = dealt[people[i]]
                counts[g, int(positive[i]), int(decided[i])] += 1
                if positive[i]:
                    wins[g] += below[g] / 2
                    wins[groups] += below[groups] / 2
            for i in range(start, end):
                if not positive[i]:
                    below[dealt[people[i]]] += 1
                    below[groups] += 1
            for i in range(start, end):
                if positive[i]:
                    g = dealt[people[i]]
                    wins[g] += below[g] / 2
                    wins[groups] += below[groups] / 2
            start = end
        counts[groups] = counts[:groups].sum(0)
        area, apart = 0.0, 0.0
        low, high = np.full(3, np.inf), np.full(3, -np.inf)
        all_pairs = counts[groups, 1].sum() * counts[groups, 0].sum()
        if all_pairs > 0:
            area = wins[groups] / all_pairs
        for g in range(groups):
            ill, well = counts[g, 1].sum(), counts[g, 0].sum()
            rates = (
                counts[g, 1, 1] / ill if ill else np.nan,
                counts[g, 0, 1] / well if well else np.nan,
                (counts[g, 1, 1] + counts[g, 0, 1]) / (ill + well) if ill + well else np.nan,
            )
            apart += abs(area - wins[g] / (ill * well)) if ill * well else np.nan
            for k in range(3):
                if np.isnan(rates[k]) or np.isnan(low[k]):
                    low[k], high[k] = np.nan, np.nan
                else:
                    low[k], high[k] = min(low[k], rates[k]), max(high[k], rates[k])
        gaps = high - low
        found[turn, 0] = area / (1 + apart)
        found[turn, 1], found[turn, 2], found[turn, 3], found[turn, 4] = (
            gaps[0],
            gaps[1],
            max(gaps[0], gaps[1]),
            gaps[2],
        )
    return found

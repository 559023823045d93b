"""How often intervals of gaps and worst groups hold the truth, in simulated studies whose truth is known.

python benchmarks/bootstrap_coverage.py            # prints the table; some twenty minutes, one thread
python benchmarks/bootstrap_coverage.py --write    # also writes it into docs/intervals.md

Everything is float64. One group's rates and AUC are lower by the gap, the others' are alike, which is where extremes
are most biased: of the healthy 40 % are called ill and of the ill 75 %, the AUC is 0.85, and 40 % are ill.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.special import ndtr, ndtri
from side_by_side import one_thread

from fairvlm_core.evaluation.bootstrap import replicates
from fairvlm_core.evaluation.certainty import certainty
from fairvlm_core.evaluation.interval import interval
from fairvlm_core.evaluation.predictions import Scores
from fairvlm_core.evaluation.resampling import bootstrap_weights, leave_out_weights, patient_codes, whole_weights

DOCUMENT = Path(__file__).parent.parent / "docs" / "intervals.md"
STUDIES, RESAMPLES = 300, 400
GROUPS, SIZES, GAPS, LABELS = (2, 3, 5), (40, 200), (0.0, 0.05, 0.2), (1, 5)
METRICS = {"dpd": "DPD", "eod": "EOD", "es_auc": "ES-AUC", "worst_group_auc": "worst group's AUC"}
METHODS = ("percentile", "bca", "basic", "ours")


def study(groups: int, size: int, gap: float, labels: int, rng: np.random.Generator) -> Scores:
    """One study: `size` patients in each group, decisions and scores independent given the truth."""
    n = groups * size
    group = np.repeat(np.arange(groups), size)
    less = np.where(group == 0, gap, 0.0)[:, None]
    truth = (rng.random((n, labels)) < 0.4).astype(float)
    decision = (rng.random((n, labels)) < np.where(truth == 1, 0.75, 0.4) - less).astype(float)
    score = ndtr(rng.normal(size=(n, labels)) + truth * np.sqrt(2) * ndtri(0.85 - less))
    names, ids = np.array(list("abcde"), dtype=object)[group], np.arange(n).astype(object)
    kind = "binary" if labels == 1 else "multilabel"
    return Scores(ids, ids, tuple("vwxyz"[:labels]), truth, score, decision, {"group": names}, kind, "model")


def true_values(groups: int, gap: float) -> dict[str, float]:
    areas = 0.85 - gap * (np.arange(groups) == 0)
    scaled = areas.mean() / (1 + np.abs(areas.mean() - areas).sum())
    return {"dpd": gap, "eod": gap, "es_auc": float(scaled), "worst_group_auc": float(areas.min())}


def intervals_of(scores: Scores, resamples: int, seed: int) -> dict[str, dict[str, Sequence[float]]]:
    """metric -> method -> low, high; the estimate stands under `estimate`, twice."""
    patient = patient_codes(scores.patient_ids)
    folds = min(len(patient), 256)
    drawn = replicates(scores, bootstrap_weights(patient, resamples, seed), resamples, min_cell=1)
    whole = replicates(scores, whole_weights(len(patient)), 1, min_cell=1)
    left = replicates(scores, leave_out_weights(patient, folds, seed), folds, min_cell=1)
    sure, chances = certainty(scores, resamples=resamples, min_cell=1, seed=seed)
    found: dict[str, dict[str, Sequence[float]]] = {}
    for metric in METRICS:
        path = ("attributes", "group", metric)
        values, estimate = drawn[path][~np.isnan(drawn[path])], float(whole[path][0])
        ours = sure["attributes"]["group"][metric]
        if ours is None or np.isnan(estimate):
            continue
        low, high = np.quantile(values, (0.025, 0.975))
        told = {
            "percentile": [low, high],
            "bca": list(interval(estimate, values, jackknife=left[path]) or ()),
            "basic": [2 * estimate - high, 2 * estimate - low],
        }
        p = chances["group"].get(metric)
        if p is not None and p >= 0.05:
            # All of them hold equality where the permutation test does not rule it out.
            for ends in told.values():
                if metric in ("dpd", "eod"):
                    ends[0], ends[1] = 0.0, max(ends[1], 0.0)
                else:
                    ends[1] = max(ends[1], sure["overall"]["auc"][1])
        found[metric] = {**told, "ours": ours, "estimate": [estimate, estimate]}
    return found


def coverage(
    groups: int, size: int, gap: float, labels: int, studies: int, resamples: int
) -> dict[str, dict[str, tuple[float, float]]]:
    """metric -> method -> the share of the studies whose interval holds the truth, and the mean width."""
    truth = true_values(groups, gap)
    held: dict[str, dict[str, list[tuple[bool, float]]]] = {}
    for number in range(studies):
        rng = np.random.default_rng([groups, size, round(1000 * gap), labels, number])
        for metric, told in intervals_of(study(groups, size, gap, labels, rng), resamples, number).items():
            for method in METHODS:
                low, high = max(told[method][0], 0.0), min(told[method][1], 1.0)
                holds = low <= truth[metric] + 1e-6 and truth[metric] - 1e-6 <= high
                held.setdefault(metric, {}).setdefault(method, []).append((holds, high - low))
    means = {metric: {method: np.mean(of, axis=0) for method, of in told.items()} for metric, told in held.items()}
    return {metric: {method: (float(a), float(b)) for method, (a, b) in of.items()} for metric, of in means.items()}


def table(found: Mapping[tuple[int, int, float, int], Mapping[str, Mapping[str, tuple[float, float]]]]) -> str:
    """A row per number, true gap and labels: lowest and highest coverage in % over the sizes, and the mean width."""
    heads = ["number", "true gap", "labels", *METHODS]
    lines = [f"| {' | '.join(heads)} |", "| --- |" + " ---: |" * (len(heads) - 1)]
    for metric, name in METRICS.items():
        for gap, labels in itertools.product(GAPS, LABELS):
            told = [
                of[metric] for (_, _, of_gap, of_labels), of in found.items() if (of_gap, of_labels) == (gap, labels)
            ]
            cells = []
            for method in METHODS:
                shares, widths = zip(*(of[method] for of in told), strict=True)
                cells.append(f"{100 * min(shares):.0f} to {100 * max(shares):.0f} ({np.mean(widths):.2f})")
            lines.append(f"| {' | '.join([name, f'{gap:g}', str(labels), *cells])} |")
    return "\n".join(lines) + "\n"


def measure(studies: int = STUDIES, resamples: int = RESAMPLES) -> str:
    found = {}
    with one_thread():
        for cell in itertools.product(GROUPS, SIZES, GAPS, LABELS):
            found[cell] = coverage(*cell, studies, resamples)
            print(".", end="", file=sys.stderr, flush=True)
    return table(found)


if __name__ == "__main__":
    made = measure()
    print(made)
    if "--write" in sys.argv[1:]:
        text = DOCUMENT.read_text(encoding="utf-8")
        DOCUMENT.write_text(re.sub(r"(?s)\| number \|.*\Z", lambda _: made, text), encoding="utf-8")

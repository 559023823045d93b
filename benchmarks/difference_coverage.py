"""How often intervals of the difference of two models' gaps hold the truth, in simulated studies whose truth is known.

python benchmarks/difference_coverage.py            # prints the table; some ten minutes, one thread
python benchmarks/difference_coverage.py --write    # also writes it into docs/gate.md

Everything is float64. Both models see the same patients, of whom 40 % are ill; what chance does to a patient's score
and decision is correlated (0.8) between the models. In one group a model's rates and AUC are lower by its gap.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import ndtr, ndtri
from side_by_side import one_thread

from fairvlm_core.evaluation.paired import measured_alike, of_measured, of_numbers
from fairvlm_core.evaluation.predictions import Scores

DOCUMENT = Path(__file__).parent.parent / "docs" / "gate.md"
STUDIES, RESAMPLES = 200, 400
DESIGNS = ((2, 200), (3, 100), (5, 100))  # groups, and patients in each
LABELS = (1, 5)
METRICS = {"es_auc": "ES-AUC", "dpd": "DPD", "eod": "EOD", "worst_group_auc": "worst group's AUC"}
HIGHER_IS_BETTER = ("es_auc", "worst_group_auc")
METHODS = ("percentile", "ours")
ALIKE = 0.8


@dataclass(frozen=True)
class Model:
    """What a model is truly like: AUC and rates, lower by `gap` in the group `at`."""

    gap: float = 0.0
    at: int = 0
    auc: float = 0.85
    tpr: float = 0.75
    fpr: float = 0.4


GOOD, NOISY = {"auc": 0.9, "tpr": 0.9, "fpr": 0.1}, {"auc": 0.7, "tpr": 0.5, "fpr": 0.5}
CASES = {
    "no gap, no gap": (Model(), Model()),
    "0.1, 0.1": (Model(0.1), Model(0.1)),
    "0.1, 0.1 in another group": (Model(0.1), Model(0.1, at=1)),
    "no gap, 0.2": (Model(), Model(0.2)),
    "0.05, no gap": (Model(0.05), Model()),
    "0.05, no gap but noisier": (Model(0.05, **GOOD), Model(**NOISY)),
}


def study(
    groups: int, size: int, labels: int, models: tuple[Model, Model], rng: np.random.Generator
) -> tuple[Scores, Scores]:
    """Two models on the same patients, `size` in each group; scores and decisions independent given the truth."""
    n = groups * size
    group = np.repeat(np.arange(groups), size)
    truth = (rng.random((n, labels)) < 0.4).astype(float)
    names, ids = np.array(list("abcde"), dtype=object)[group], np.arange(n).astype(object)
    kind = "binary" if labels == 1 else "multilabel"
    chances = [_alike(rng, (n, labels)) for _ in ("score", "decision")]
    made = []
    for k, model in enumerate(models):
        less = np.where(group == model.at, model.gap, 0.0)[:, None]
        score = ndtr(chances[0][k] + truth * np.sqrt(2) * ndtri(model.auc - less))
        decision = (ndtr(chances[1][k]) < np.where(truth == 1, model.tpr, model.fpr) - less).astype(float)
        made.append(
            Scores(ids, ids, tuple("vwxyz"[:labels]), truth, score, decision, {"group": names}, kind, f"model {k}")
        )
    return made[0], made[1]


def _alike(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    first, other = rng.normal(size=shape), rng.normal(size=shape)
    return first, ALIKE * first + np.sqrt(1 - ALIKE**2) * other


def true_values(groups: int, model: Model) -> dict[str, float]:
    areas = model.auc - model.gap * (np.arange(groups) == model.at)
    scaled = areas.mean() / (1 + np.abs(areas.mean() - areas).sum())
    return {"dpd": model.gap, "eod": model.gap, "es_auc": float(scaled), "worst_group_auc": float(areas.min())}


def intervals_of(pair: tuple[Scores, Scores], resamples: int, seed: int) -> Iterator[tuple[str, str, float, float]]:
    """metric, method, low, high."""
    one, other = measured_alike(*pair, resamples=resamples, min_cell=1, seed=seed)
    ours = of_measured(one, other, single=["group"])
    for metric in METRICS:
        path = ("attributes", "group", metric)
        told = {"percentile": of_numbers(one.values[path] - other.values[path]), "ours": ours[path]}
        for method, found in told.items():
            yield metric, method, found.low, found.high


def coverage(
    groups: int, size: int, labels: int, case: str, studies: int, resamples: int
) -> dict[tuple[str, str], np.ndarray]:
    """(metric, method) -> shares of the studies: the truth is held, the first model is called better; and the width."""
    models = CASES[case]
    first, other = (true_values(groups, model) for model in models)
    told: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for number in range(studies):
        pair = study(groups, size, labels, models, np.random.default_rng([groups, size, labels, number]))
        for metric, method, low, high in intervals_of(pair, resamples, number):
            truth = first[metric] - other[metric]
            better = low > 0 if metric in HIGHER_IS_BETTER else high < 0
            told.setdefault((metric, method), []).append((low - 1e-9 <= truth <= high + 1e-9, better, high - low))
    return {key: np.nanmean(values, axis=0) for key, values in told.items()}


def table(found: Mapping[tuple[tuple[int, int], int, str], Mapping[tuple[str, str], np.ndarray]]) -> str:
    """A row per number, case and labels: lowest and highest coverage in % over the designs, called better, width."""
    heads = ["number", "true gaps", "labels", *(f"{method}: {of}" for method in METHODS for of in ("holds", "better"))]
    lines = [f"| {' | '.join(heads)} |", "| --- | --- |" + " ---: |" * (len(heads) - 2)]
    for metric, case, labels in itertools.product(METRICS, CASES, LABELS):
        cells = []
        for method in METHODS:
            of = [told[metric, method] for (_, many, name), told in found.items() if (many, name) == (labels, case)]
            if of:
                held, better, width = np.transpose(of)
                cells.append(f"{100 * held.min():.0f} to {100 * held.max():.0f} ({width.mean():.2f})")
                cells.append(f"{100 * better.min():.0f} to {100 * better.max():.0f}")
        lines.append(f"| {' | '.join([METRICS[metric], case, str(labels), *cells])} |")
    return "\n".join(lines) + "\n"


def measure(studies: int = STUDIES, resamples: int = RESAMPLES) -> str:
    found = {}
    with one_thread():
        for design, labels, case in itertools.product(DESIGNS, LABELS, CASES):
            found[design, labels, case] = coverage(*design, labels, case, studies, resamples)
            print(".", end="", file=sys.stderr, flush=True)
    return table(found)


if __name__ == "__main__":
    made = measure()
    print(made)
    if "--write" in sys.argv[1:]:
        text = DOCUMENT.read_text(encoding="utf-8")
        DOCUMENT.write_text(re.sub(r"(?s)\| number \|.*\Z", lambda _: made, text), encoding="utf-8")

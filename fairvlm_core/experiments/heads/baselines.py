"""Yardsticks for every table: what needs no model at all, what a linear map on the base reaches, and what is possible.

None of them is fair or unfair by design. Beside them one sees whether a method has learnt anything, whether it learnt
more than the base knew, and, on the generated cohort, how much of a gap no score can close.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fairvlm_core.cohort.table import label_matrix, read_cohort, rows_of, task_of
from fairvlm_core.errors import CohortError
from fairvlm_core.evaluation.metrics import auc
from fairvlm_core.experiments.heads import BAYES, LINEAR_PROBE, MAJORITY
from fairvlm_core.experiments.heads.writing import write_scores, write_thresholds

SMALLEST = 1e-6  # a dimension that varies less than this in training is a constant
ITERATIONS = 2000


def majority(config: Mapping[str, Any], inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Score everybody with the prevalence in training: the decision is the majority's, label by label."""
    cohort = read_cohort(inputs["cohort"])
    task = task_of(cohort)
    with np.errstate(invalid="ignore"):
        known = label_matrix(rows_of(cohort, "train"))
        share = np.where(np.isnan(known).all(0), 0.0, np.nansum(known, 0) / np.maximum((~np.isnan(known)).sum(0), 1))
    write_scores(out, cohort, config["splits"], lambda rows: np.tile(share, (len(rows), 1)), name=MAJORITY, seed=0)
    write_thresholds(out, model=MAJORITY, kind=task.kind, labels=task.labels, method="majority")
    return {"labels": len(task.labels), "images": len(known)}


def linear_probe(config: Mapping[str, Any], inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Score with a logistic regression on the standardised features of the base's frozen tower.

    Its cost C is the one of `costs` with the best AUC on validation (the mean over the labels).
    """
    from fairvlm_core.cohort.images import ImageStore
    from fairvlm_core.experiments.heads.features import open_features

    cohort, store = read_cohort(inputs["cohort"]), ImageStore.open(inputs["images"])
    task, features = task_of(cohort), open_features(inputs["features"], store)

    def x(rows: Any) -> np.ndarray:
        return np.asarray(features[store.rows(rows.column("image").to_pylist())], dtype=np.float64)

    train, validation = rows_of(cohort, "train"), rows_of(cohort, "validation")
    raw = x(train)
    centre, scale = raw.mean(0), raw.std(0)
    scale = np.where(scale > SMALLEST, scale, 1.0)
    given, truth = (raw - centre) / scale, label_matrix(train)
    seen, true = (x(validation) - centre) / scale, label_matrix(validation)
    tried: dict[float, float] = {}
    best: Any = None
    for cost in config["costs"]:
        score = fit_probe(given, truth, task.kind, cost)
        areas = [auc(column, scored) for column, scored in zip(true.T, score(seen).T, strict=True)]
        judged = [area for area in areas if not np.isnan(area)]
        tried[cost] = float(np.mean(judged)) if judged else 0.0
        if best is None or tried[cost] > tried[best[0]]:
            best = (cost, score)
    cost, score = best
    scored = config["splits"]
    write_scores(out, cohort, scored, lambda rows: score((x(rows) - centre) / scale), name=LINEAR_PROBE, seed=0)
    return {"cost": cost, "validation_auc": tried[cost], "images": len(train), "dim": given.shape[1]}


def fit_probe(x: np.ndarray, truth: np.ndarray, kind: str, cost: float) -> Any:
    """Logistic regression: one for several classes, else one for each label.

    Images of unknown label take no part. A label that is the same for all the others is scored with its share.

    Args:
        x: [n, d], standardised.
        truth: [n, L], NaN where unknown; one-hot of several classes.

    Returns:
        A function of [m, d] that gives probabilities [m, L].
    """
    from sklearn.linear_model import LogisticRegression

    known = ~np.isnan(truth)
    if kind == "multiclass":
        rows = known.all(1)
        if not rows.any():
            raise CohortError("No training image has a known label.", mend="Add labelled images to the training split.")
        classes = truth[rows].argmax(1)
        present = np.unique(classes)
        if len(present) == 1:
            return lambda given: np.tile(np.eye(truth.shape[1])[present[0]], (len(given), 1))
        model = LogisticRegression(C=cost, max_iter=ITERATIONS).fit(x[rows], classes)

        def of_classes(given: np.ndarray) -> np.ndarray:
            found = np.zeros((len(given), truth.shape[1]))
            found[:, model.classes_] = model.predict_proba(given)
            return found

        return of_classes
    columns = [_one_label(LogisticRegression(C=cost, max_iter=ITERATIONS), x, column) for column in truth.T]
    return lambda given: np.stack([column(given) for column in columns], 1)


def _one_label(model: Any, x: np.ndarray, truth: np.ndarray) -> Any:
    rows = ~np.isnan(truth)
    if len(np.unique(truth[rows])) < 2:
        share = float(truth[rows].mean()) if rows.any() else 0.0
        return lambda given: np.full(len(given), share)
    model.fit(x[rows], truth[rows].astype(int))
    return lambda given: model.predict_proba(given)[:, 1]


def bayes(config: Mapping[str, Any], inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Score with the true probability of the recorded label, which only a generated cohort has."""
    from fairvlm_core.cohort.adapters.generated import Options, bayes_scores, draw_latents, sample_ids
    from fairvlm_core.config import build

    cohort = read_cohort(inputs["cohort"])
    options = build(Options, config["options"], where="ingest.options")
    latents = draw_latents(options, config["ingest_seed"])
    score = bayes_scores(latents, options, shortcut=config["shortcut"], groups=config["groups"])
    by_image = dict(zip(sample_ids(latents), score.tolist(), strict=True))

    def scored(rows: Any) -> np.ndarray:
        return np.array([by_image[sample] for sample in rows.column("sample_id").to_pylist()]).reshape(-1, 1)

    write_scores(out, cohort, config["splits"], scored, name=BAYES, seed=0)
    return {"images": _count(cohort, config["splits"])}


def _count(cohort: Any, splits: Sequence[str]) -> int:
    return sum(len(rows_of(cohort, split)) for split in splits)

"""Post-processing: decisions that equalise the odds of the groups, without training anything (FairMed-VLM, baselines).

fairlearn's `ThresholdOptimizer` is fitted on validation and applied to every split. Its decisions are randomised; here
they are drawn once, from a seed, and written as scores that decide the same at 0.5, so that the usual evaluation judges
them. Such scores carry a decision and no ranking: their AUC says nothing.

A baseline only. To decide about a patient it must know the patient's group, so it needs the demographics at inference,
which no model of this project reads there. It is therefore no step of the pipeline and nothing that can be
registered, and the tables of the experiments mark it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from sklearn.base import BaseEstimator, ClassifierMixin

from fairvlm_core.errors import PredictionsError, nearest
from fairvlm_core.evaluation.predictions import SCHEMA, Scores, kind_of, scores
from fairvlm_core.evaluation.thresholds import DEFAULT, decide, tune

SPLITS = ("validation", "test")
OBJECTIVES = ("balanced_accuracy_score", "accuracy_score")
SUFFIX = "+threshold_optimizer"


@dataclass(frozen=True)
class Postprocessed:
    """The result of `postprocess`.

    Attributes:
        table: predictions of the same rows under another model name; the threshold of every label is 0.5.
        groups: label -> the groups whose odds were equalised; empty where fewer than two could be.
        plain: label -> the groups on validation that keep the plain decision, for want of positives or negatives.
    """

    table: pa.Table
    groups: dict[str, list[str]]
    plain: dict[str, list[str]]


class _AsGiven(ClassifierMixin, BaseEstimator):
    """An estimator, as fairlearn wants one, whose prediction is the score that it is given."""

    def fit(self, X: Any, y: Any = None) -> _AsGiven:
        return self

    def predict(self, X: Any) -> np.ndarray:
        return np.asarray(X, dtype=float)[:, 0]

    def __sklearn_is_fitted__(self) -> bool:
        return True


def postprocess(
    table: pa.Table, attributes: Sequence[str], *, seed: int, objective: str = "balanced_accuracy_score"
) -> Postprocessed:
    """Equalise the odds of one model's decisions over the groups of an attribute, or over the cells of several.

    Each label, or each class against the rest, has an optimiser of its own. A class is then chosen by the largest
    score, for exactly one is asked for. A sample whose group is unknown, or has no positive or no negative image on
    validation, keeps the plain decision: at the threshold with the best F1 on validation, or the argmax of the classes.

    Args:
        table: predictions of one model on validation and test, as `read_predictions` gives them.
        attributes: one attribute, or several whose intersection is the group.
        seed: of the randomised decisions.
        objective: what the optimiser maximises among the decisions of equal odds. Balanced accuracy by default: with
            plain accuracy a rare finding is never reported, which equalises everything.

    Returns:
        The validation and test rows with new scores, and which groups were treated.

    Raises:
        PredictionsError: an attribute that no row has, or predictions that lack a split.
    """
    validation = scores(table, "validation")
    plain = None if validation.kind == "multiclass" else tune(validation.y_true, validation.y_score)
    group = cells(validation, attributes)
    optimizers, treated, untreated = {}, {}, {}
    for j, label in enumerate(validation.labels):
        truth = validation.y_true[:, j]
        judged = judgeable(truth, group)
        treated[label] = judged if len(judged) > 1 else []
        untreated[label] = sorted({name for name in group if name is not None} - set(treated[label]))
        if treated[label]:
            rows = np.isin(group, judged) & ~np.isnan(truth)
            optimizers[label] = fit_optimizer(truth[rows], validation.y_score[rows, j], group[rows], objective)
    parts = []
    for split in SPLITS:
        given = scores(table, split, labels=validation.labels)
        group = cells(given, attributes)
        values = decide(given.y_score, plain, given.kind)  # probabilities of a positive decision, here 0 or 1
        drawn = np.empty_like(values)
        for j, label in enumerate(given.labels):
            rows = np.isin(group, treated[label])
            if rows.any():
                values[rows, j] = positive_probability(optimizers[label], given.y_score[rows, j], group[rows])
            drawn[:, j] = _uniform(decision_seed(seed, split, j), len(values))
        parts.append(_with_scores(table, split, given, score_of(values, drawn)))
    return Postprocessed(pa.concat_tables(parts), treated, untreated)


def cells(given: Scores, attributes: Sequence[str]) -> np.ndarray:
    """The group of each sample, object [n]: its attributes' values joined by a comma; None where one is unknown.

    Raises:
        PredictionsError: when no sample has a value of an attribute.
    """
    for name in attributes:
        if name not in given.groups:
            raise PredictionsError(
                f'The predictions have no groups for the attribute "{name}".',
                where=f"column {name}",
                mend=nearest(name, given.groups) if given.groups else "Give the predictions the attribute's column.",
            )
    joined = np.full(len(given.sample_ids), None, dtype=object)
    for i, values in enumerate(zip(*(given.groups[name] for name in attributes), strict=True)):
        if not any(pd.isna(value) for value in values):
            joined[i] = ", ".join(values)
    return joined


def judgeable(truth: np.ndarray, group: np.ndarray) -> list[str]:
    """The groups that have positives and negatives, in alphabetical order; without both there are no odds."""
    names = sorted({name for name in group if name is not None})
    return [name for name in names if {0.0, 1.0} <= set(truth[group == name])]


def fit_optimizer(y_true: np.ndarray, y_score: np.ndarray, group: np.ndarray, objective: str) -> Any:
    """fairlearn's `ThresholdOptimizer` for equalised odds, fitted to scores [n] of known truth and group."""
    from fairlearn.postprocessing import ThresholdOptimizer

    optimizer = ThresholdOptimizer(
        estimator=_AsGiven(),
        constraints="equalized_odds",
        objective=objective,
        prefit=True,
        predict_method="predict",
    )
    return optimizer.fit(y_score[:, None], y_true.astype(int), sensitive_features=group.astype(str))


def positive_probability(optimizer: Any, y_score: np.ndarray, group: np.ndarray) -> np.ndarray:
    """How probable a positive decision is for each score, float64 [n] in 0..1."""
    # fairlearn has no public name for it; its `predict` compares this probability with a uniform number.
    found = optimizer._pmf_predict(y_score[:, None], sensitive_features=group.astype(str))[:, 1]
    return np.clip(np.asarray(found, dtype=float), 0.0, 1.0)


def decision_seed(seed: int, split: str, label: int) -> int:
    """The seed of one label's decisions on one split: labels and splits must not share their chance."""
    return int(np.random.SeedSequence([seed, SPLITS.index(split), label]).generate_state(1)[0])


def score_of(probability: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Scores float32 that are at least 0.5 exactly where the probability reaches the number drawn.

    >>> score_of(np.array([1.0, 0.25, 0.25]), np.array([0.5, 0.25, 0.75])).tolist()
    [0.75, 0.5, 0.25]
    """
    score = (DEFAULT + (probability - drawn) / 2).astype(np.float32)
    below = np.nextafter(np.float32(DEFAULT), np.float32(0))
    # A difference below the resolution of float32 would round to 0.5 and turn the decision.
    return np.where(probability >= drawn, np.maximum(score, np.float32(DEFAULT)), np.minimum(score, below))


def _uniform(seed: int, count: int) -> np.ndarray:
    """The numbers that fairlearn's `predict(random_state=seed)` compares its probabilities with."""
    return np.random.RandomState(seed).rand(count)


def _with_scores(table: pa.Table, split: str, given: Scores, values: np.ndarray) -> pa.Table:
    """The rows of a split with other scores and the other model's name."""
    # Decisions and answers in words, if there are any, are those of the model without post-processing.
    rows = table.filter(pc.equal(table.column("split"), split)).select(SCHEMA.names)
    sample = pd.Series(np.arange(len(given.sample_ids)), index=given.sample_ids)
    label = {name: j for j, name in enumerate(given.labels)}
    i = sample.loc[rows.column("sample_id").to_pylist()].to_numpy()
    j = np.array([label[name] for name in rows.column("label").to_pylist()])
    for name, column in (
        ("y_score", pa.array(values[i, j], pa.float32())),
        ("model", pa.array([given.model + SUFFIX] * len(rows), pa.string())),
    ):
        rows = rows.set_column(rows.column_names.index(name), name, column)
    return rows.replace_schema_metadata({**(rows.schema.metadata or {}), b"fairvlm.kind": kind_of(table).encode()})

"""What a report is about: models, each judged on one split of the same images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fairvlm_core.errors import PredictionsError
from fairvlm_core.evaluation.certainty import certainty
from fairvlm_core.evaluation.judgement import judge, with_intersection
from fairvlm_core.evaluation.metrics import bins_of, reliability, roc_curve
from fairvlm_core.evaluation.predictions import Y_ANSWER, Scores, kind_of, read_predictions, scores
from fairvlm_core.evaluation.thresholds import DEFAULT, decided, tune
from fairvlm_core.files import read_json

GRID = np.linspace(0, 1, 101)
BINS = 10  # of the picture: few and wide, so that most hold enough images to be shown
HOW_GIVEN = "The decisions are those in the predictions file (column y_pred); it does not say how they were made."
HOW_ARGMAX = "Every image gets the class with the largest score; there is no threshold."
HOW_RULES = {
    "f1": "the largest F1",
    "youden": "the largest sum of sensitivity and specificity",
    "sensitivity": "the largest specificity at which at least {target:.0%} of the positives are found,",
    "specificity": "the largest sensitivity at which at least {target:.0%} of the negatives are cleared,",
}
HOW_SAME = " There is no test split: these very images were used to tune, so the numbers below flatter the models."


def how_tuned(rule: str = "f1", target: float | None = None) -> str:
    """How thresholds were fixed, in a sentence."""
    return (
        f"For each label, the threshold is the one with {HOW_RULES[rule].format(target=target)} on the validation "
        "split, fixed before the test split was read; it decides accuracy and fairness alike."
    )


@dataclass(frozen=True)
class Subject:
    """One model on the split that is reported.

    Attributes:
        title: its name as the reader sees it.
        scores: its predictions, decided.
        judgement: what `judge` says about them.
        thresholds: label -> threshold; empty for multi-class and where the file does not say.
        calibration: what made its scores, as `calibration.fit` gives it; null where they are taken as they are.
        sure: the intervals of the judgement's numbers, as `certainty` gives them; empty where none are shown.
        p_values: likewise; empty where none are shown.
        how: how its thresholds were fixed, in a sentence.
    """

    title: str
    scores: Scores
    judgement: dict[str, Any]
    thresholds: Mapping[str, float]
    calibration: Mapping[str, Any] | None = None
    sure: Mapping[str, Any] = field(default_factory=dict)
    p_values: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    how: str = ""

    def ends(self, *path: str) -> Sequence[float] | None:
        """The interval of a number of the judgement, if it has one: `ends("overall", "auc")`."""
        found: Any = self.sure
        for name in path:
            found = found.get(name) if found else None
        return found


def read_subject(folder: Path, title: str, split: str, *, min_cell: int, sure: bool = False) -> Subject:
    """One split of what evaluate wrote into a folder, under a title; with `sure`, its numbers have intervals.

    They are those that evaluate made, unless other groups are suppressed here.
    """
    evaluation = read_json(folder / "evaluation.json", made_by="evaluate")
    fixed, told = evaluation["thresholds"], evaluation.get(split, {})
    given = scores(read_predictions(folder), split)
    judgement = judge(given, min_cell=min_cell)
    how = HOW_ARGMAX if given.kind == "multiclass" else how_tuned(fixed.get("rule", "f1"), fixed.get("target"))
    subject = Subject(title, given, judgement, fixed["thresholds"], fixed.get("calibration"), how=how)
    if not sure:
        return subject
    if "intervals" in told and told["min_cell"] == min_cell:
        return replace(subject, sure=told["intervals"], p_values=told["p_values"])
    return with_intervals(subject)


def with_intervals(subject: Subject) -> Subject:
    """The same, with an interval for every number and a p-value for every gap."""
    sure, p_values = certainty(subject.scores, min_cell=subject.judgement["min_cell"])
    return replace(subject, sure=sure, p_values=p_values)


def subjects_in(table: pa.Table, *, min_cell: int, where: Path) -> tuple[list[Subject], str, str]:
    """The models of a predictions table, the split they are judged on, and how their decisions were made.

    The split is test, or without one validation, or the first. Where the table has no decisions, thresholds are tuned
    on validation; without validation they are 0.5.

    Raises:
        PredictionsError: when the models were not given the same images.
    """
    splits = pc.unique(table.column("split")).to_pylist()
    if not splits:
        raise PredictionsError("The predictions are empty.", where=str(where), mend="Run `fairvlm predict` again.")
    split = next((name for name in ("test", "validation") if name in splits), splits[0])
    subjects, how = [], ""
    for title, part in _models(table):
        given = scores(part, split)
        thresholds: dict[str, float] = {}
        if not np.isnan(given.y_pred).all():
            how = HOW_GIVEN
        elif given.kind == "multiclass":
            given, how = decided(given, {}), HOW_ARGMAX
        elif "validation" in splits:
            thresholds = tuned(scores(part, "validation", labels=given.labels))
            given, how = decided(given, thresholds), how_tuned() + ("" if split == "test" else HOW_SAME)
        else:
            thresholds = dict.fromkeys(given.labels, DEFAULT)
            given, how = decided(given, thresholds), "There is no validation split to tune on: every threshold is 0.5."
        subjects.append(with_intervals(Subject(title, given, judge(given, min_cell=min_cell), thresholds)))
    require_same_images(subjects, where=str(where))
    return subjects, split, how


def tuned(validation: Scores) -> dict[str, float]:
    """Label -> the threshold that is best on validation."""
    best = tune(validation.y_true, validation.y_score)
    return {label: float(value) for label, value in zip(validation.labels, best, strict=True)}


def require_same_images(subjects: Sequence[Subject], *, where: str) -> None:
    """Models can be compared only on the same images and labels."""
    first = subjects[0].scores
    for subject in subjects[1:]:
        same_images = set(subject.scores.sample_ids) == set(first.sample_ids)
        if not same_images or set(subject.scores.labels) != set(first.labels):
            what = "labels" if same_images else "images"
            raise PredictionsError(
                f'"{subjects[0].title}" and "{subject.title}" were not given the same {what}.',
                where=where,
                mend="Predict the same split of the same cohort with every model.",
            )


def group_curves(subject: Subject, attribute: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """ROC curve of each group that was judged: (fpr, tpr), with several labels the mean over those judged.

    The curves are drawn at 101 points, so that the picture gives away nobody's score.
    """
    groups = with_intersection(subject.scores.groups)[attribute]
    curves = {}
    for name, group in subject.judgement["attributes"][attribute]["groups"].items():
        if group["auc"] is None:
            continue
        judged = [
            label
            for label, found in subject.judgement["attributes"][attribute]["labels"].items()
            if found["groups"].get(name, {}).get("auc") is not None
        ]
        columns = [subject.scores.labels.index(label) for label in judged]
        rows = groups == name
        lines = [
            np.interp(GRID, *roc_curve(subject.scores.y_true[rows, j], subject.scores.y_score[rows, j]))
            for j in columns
        ]
        curves[name] = np.append(0.0, GRID), np.append(0.0, np.mean(lines, axis=0))
    return curves


def group_reliability(subject: Subject, attribute: str | None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Of each published group: mean score and share of positives in `BINS` bins of the score.

    With several labels, every label of an image counts by itself. A bin that holds fewer images of the group than may
    be published (`min_cell`) is left out, and a group that has no other bin.

    Args:
        attribute: none takes all images as one group.
    """
    least, given = subject.judgement["min_cell"], subject.scores
    if attribute is None:
        members = {"all images": np.ones(len(given.sample_ids), dtype=bool)}
    else:
        groups = with_intersection(given.groups)[attribute]
        judged = subject.judgement["attributes"][attribute]
        members = {name: groups == name for name in judged["groups"] if name not in judged["suppressed"]}
    curves = {}
    for name, rows in members.items():
        truth, score = given.y_true[rows], given.y_score[rows]
        image, label = np.nonzero(~np.isnan(truth))
        place = bins_of(score[image, label], BINS)
        images = np.bincount(np.unique(image * BINS + place) % BINS, minlength=BINS)
        _, means, shares = reliability(truth[image, label], score[image, label], BINS)
        shown = images >= least
        if shown.any():
            curves[name] = means[shown], shares[shown]
    return curves


def _models(table: pa.Table) -> list[tuple[str, pa.Table]]:
    """Each model's rows; several seeds of one model are several models."""
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), b"fairvlm.kind": kind_of(table).encode()})
    found = []
    models = pc.unique(table.column("model")).to_pylist()
    for model in models:
        rows = table.filter(pc.equal(table.column("model"), model))
        if (
            len(models) > 1
            and Y_ANSWER.name in rows.column_names
            and rows.column(Y_ANSWER.name).null_count == len(rows)
        ):
            rows = rows.drop_columns([Y_ANSWER.name])  # only other models of this file were asked in words
        seeds = pc.unique(rows.column("seed")).to_pylist()
        if len(seeds) < 2:
            found.append((model, rows))
            continue
        for seed in seeds:
            mask = pc.is_null(rows.column("seed")) if seed is None else pc.equal(rows.column("seed"), seed)
            found.append((f"{model}, seed {seed}", rows.filter(mask)))
    return found

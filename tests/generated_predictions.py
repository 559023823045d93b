"""Predictions as a real cohort would give them: unequal groups, ties, unknowns, a tiny group, one without positives."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa

from fairvlm_core.cohort.table import SEXES, Task, cohort_table
from fairvlm_core.evaluation import predictions

LABELS = {
    "binary": ("glaucoma",),
    "multiclass": ("nv", "mel", "bkl", "bcc", "akiec", "vasc", "df"),
    "multilabel": ("Cardiomegaly", "Edema", "Atelectasis", "Pleural Effusion"),
}


def table(
    kind: str, *, model: str = "stage1", seed: int = 0, n: int = 900, skill: float = 1.5, bias: float = 0.6
) -> pa.Table:
    """A predictions table with the splits validation (a third) and test; `model` changes the scores, never the images.

    `skill` is the distance of positives from negatives, `bias` how much of it is lost for women and the old.
    """
    rng = np.random.default_rng(seed)
    labels = LABELS[kind]
    sex = rng.choice(["female", "male", None], n, p=[0.33, 0.63, 0.04])
    age = rng.choice(["0-39", "40-59", "60-79", "80+", None], n, p=[0.18, 0.4, 0.33, 0.06, 0.03])
    race = rng.choice(["Asian", "Black", "White"], n, p=[0.12, 0.18, 0.7]).astype(object)
    race[rng.choice(n, 6, replace=False)] = "Pacific Islander"
    if kind == "multiclass":
        truth = np.eye(len(labels))[rng.choice(len(labels), n, p=[0.55, 0.14, 0.11, 0.08, 0.06, 0.03, 0.03])]
    else:
        truth = (rng.random((n, len(labels))) < np.linspace(0.3, 0.08, len(labels))).astype(float)
        truth[race == "Asian", 0] = 0  # a group without positives cannot be judged
    noise = np.random.default_rng([seed, *model.encode()])
    loss = bias * ((sex == "female").astype(float) + (age == "80+").astype(float)) / 2
    logit = noise.normal(size=truth.shape) + skill * (1 - loss)[:, None] * (truth - 0.5) - 1
    if kind == "multiclass":
        score = np.exp(logit) / np.exp(logit).sum(axis=1, keepdims=True)
    else:
        score = np.round(1 / (1 + np.exp(-logit)), 2)  # two decimals: many ties
    known = np.ones_like(truth, dtype=bool) if kind != "multilabel" else rng.random(truth.shape) > 0.1
    split = np.where(np.arange(n) < n // 3, "validation", "test")
    frame = pd.DataFrame(
        {
            "sample_id": np.repeat([f"image-{i:04}" for i in range(n)], len(labels)),
            "patient_id": np.repeat([f"patient-{i // 2:04}" for i in range(n)], len(labels)),
            "split": np.repeat(split, len(labels)),
            "label": np.tile(labels, n),
            "y_true": pd.array(np.where(known, truth, np.nan).ravel(), dtype="Int8"),
            "y_score": score.ravel(),
            "sex": np.repeat(sex, len(labels)),
            "age_group": np.repeat(age, len(labels)),
            "race": np.repeat(race, len(labels)),
            "ethnicity": None,
            "language": None,
            "model": model,
            "seed": seed,
        }
    )
    return pa.Table.from_pandas(frame, schema=predictions.SCHEMA, preserve_index=False)


def cohort(kind: str, **options) -> pa.Table:
    """The cohort whose images `table` with the same options predicts."""
    labels = LABELS[kind]
    negatives = () if kind == "multiclass" else [f"no {label}" for label in labels]
    task = Task(kind, labels, labels, negatives)
    rows: dict[str, dict] = {}
    for row in table(kind, **options).to_pylist():
        given = {name: row[name] for name in ("sample_id", "patient_id", "split", "sex", "age_group", "race")}
        place = {"image": f"{row['sample_id']}.png", "source": "generated", "labels": []}
        rows.setdefault(row["sample_id"], {**given, **place})["labels"].append(row["y_true"])
    groups = {
        "sex": SEXES,
        "age_group": ("0-39", "40-59", "60-79", "80+"),
        "race": ("Asian", "Black", "Pacific Islander", "White"),
    }
    return cohort_table(rows.values(), task=task, groups=groups)

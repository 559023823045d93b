"""How a head writes its scores and its thresholds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fairvlm_core.cohort.table import label_matrix, rows_of, task_of
from fairvlm_core.evaluation.predictions import PREDICTIONS_FILE, predictions_table, write_predictions
from fairvlm_core.evaluation.thresholds import DEFAULT
from fairvlm_core.files import write_json


def write_scores(
    out: Path, cohort: pa.Table, splits: Sequence[str], score: Callable[[pa.Table], np.ndarray], *, name: str, seed: int
) -> None:
    """Write predictions of some splits of a cohort.

    Args:
        score: rows of the cohort [n] -> probabilities [n, L].
    """
    task = task_of(cohort)
    tables = [
        predictions_table(rows, task.labels, label_matrix(rows), score(rows), name=name, seed=seed)
        for rows in (rows_of(cohort, split) for split in splits)
    ]
    write_predictions(pa.concat_tables(tables), out / PREDICTIONS_FILE, kind=task.kind)


def write_thresholds(out: Path, *, model: str, kind: str, labels: Sequence[str], method: str) -> None:
    """Every label is decided at 0.5, and of several classes the largest score, as for scores that carry a decision."""
    thresholds: dict[str, Any] = {} if kind == "multiclass" else dict.fromkeys(labels, DEFAULT)
    told = {"model": model, "kind": kind, "labels": list(labels), "split": "validation", "method": method}
    write_json(out / "thresholds.json", {**told, "thresholds": thresholds})

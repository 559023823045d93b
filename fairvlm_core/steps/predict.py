"""Score the validation and test images with a trained model; the note and the demographics are never shown to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairvlm_core.config import Port, check, option

INPUTS = {
    "model": Port("Folder that a training step wrote."),
    "base": Port("Folder that base_models wrote."),
    "cohort": Port("Folder that stratify wrote."),
    "images": Port("Folder that ingest wrote, with the image store."),
}
OUTPUTS = {"out": Port("Folder to write: predictions.parquet.")}


@dataclass(frozen=True)
class Config:
    """Parameters of the step."""

    splits: tuple[str, ...] = option(
        ("validation", "test"), "Splits to score.", choices=("train", "validation", "test")
    )

    def __post_init__(self) -> None:
        check(self)


def run(config: Config, inputs: Mapping[str, Path], outputs: Mapping[str, Path]) -> dict[str, Any]:
    """Write one row per image and label."""
    import time

    import numpy as np
    import pyarrow as pa

    from fairvlm_core.cohort.images import ImageStore
    from fairvlm_core.cohort.table import label_matrix, read_cohort, rows_of, task_of
    from fairvlm_core.errors import CheckpointError
    from fairvlm_core.evaluation.predictions import ATTRIBUTES, PREDICTIONS_FILE, write_predictions
    from fairvlm_core.models import describe, load
    from fairvlm_core.progress import track

    described = describe(inputs["model"])
    table = read_cohort(inputs["cohort"])
    task = task_of(table)
    if described["task"].labels != task.labels:
        raise CheckpointError(
            "The model was trained for other labels than the cohort has.",
            where=str(inputs["model"] / "model.json"),
            mend="Train it on this cohort, or predict the cohort it was trained for.",
        )
    model = load(inputs["model"], inputs["base"])
    store = ImageStore.open(inputs["images"])
    tables, count, started = [], 0, time.perf_counter()
    for split in config.splits:
        rows = rows_of(table, split)
        keys = rows.column("image").to_pylist()
        parts = [
            model.score(store.read(keys[start : start + 256]))
            for start in track(range(0, len(keys), 256), f"Scoring {split} with {described['name']}")
        ]
        scored = np.concatenate(parts) if parts else np.zeros((0, len(task.labels)), dtype=np.float32)
        count += len(keys)
        width = len(task.labels)
        truth = label_matrix(rows).reshape(-1)

        def repeated(name: str, rows: pa.Table = rows, width: int = width) -> np.ndarray:
            return np.repeat(np.asarray(rows.column(name).to_pylist(), dtype=object), width)

        tables.append(
            pa.table(
                {
                    **{name: pa.array(repeated(name), pa.string()) for name in ("sample_id", "patient_id", "split")},
                    "label": pa.array(list(task.labels) * len(keys), pa.string()),
                    "y_true": pa.array(truth, pa.int8(), from_pandas=True),
                    "y_score": pa.array(scored.reshape(-1), pa.float32()),
                    **{name: pa.array(repeated(name), pa.string()) for name in ATTRIBUTES},
                    "model": pa.array([described["name"]] * len(truth), pa.string()),
                    "seed": pa.array([described["seed"]] * len(truth), pa.int32()),
                }
            )
        )
    write_predictions(pa.concat_tables(tables), outputs["out"] / PREDICTIONS_FILE, kind=task.kind)
    return {
        "model": described["name"],
        "images": count,
        "images_per_second": round(count / max(1e-9, time.perf_counter() - started), 1),
    }

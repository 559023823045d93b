"""Who decides where it is not the model itself. No steps of the pipeline, but run and kept like them.

A head gets its config, the folders that it reads, and the folder to fill, with `predictions.parquet` in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fairvlm_core.files import write_json

POSTPROCESS = "postprocess"
ADVERSARIAL_HEAD = "adversarial_head"
# These decide by the group of whom they decide about, and so need the demographics of every new patient.
READS_GROUPS = (POSTPROCESS,)


def post_process(config: Mapping[str, Any], inputs: Mapping[str, Path], out: Path) -> None:
    """Equalise the odds of `predictions` over the attributes; the new scores decide at the threshold 0.5."""
    from fairvlm_core.evaluation.postprocess import postprocess
    from fairvlm_core.evaluation.predictions import (
        PREDICTIONS_FILE,
        kind_of,
        read_predictions,
        scores,
        write_predictions,
    )
    from fairvlm_core.evaluation.thresholds import DEFAULT

    found = postprocess(read_predictions(inputs["predictions"]), config["attributes"], seed=config["seed"])
    given, kind = scores(found.table, "validation"), kind_of(found.table)
    write_predictions(found.table, out / PREDICTIONS_FILE, kind=kind)
    thresholds = {
        "model": given.model,
        "kind": kind,
        "labels": list(given.labels),
        "split": "validation",
        "method": "threshold_optimizer",
        "thresholds": {} if kind == "multiclass" else dict.fromkeys(given.labels, DEFAULT),
    }
    write_json(out / "thresholds.json", thresholds)
    _finish(config, out, {"labels": len(given.labels), "equalised": sum(map(bool, found.groups.values()))})


def adversarial_head(config: Mapping[str, Any], inputs: Mapping[str, Path], out: Path) -> None:
    """Score with a head that is fitted to the frozen embeddings of `model` on the training split."""
    import pyarrow as pa

    from fairvlm_core.cohort.images import ImageStore
    from fairvlm_core.cohort.table import group_codes, label_matrix, read_cohort, rows_of, task_of
    from fairvlm_core.evaluation.predictions import PREDICTIONS_FILE, predictions_table, write_predictions
    from fairvlm_core.models import describe, load
    from fairvlm_core.training.frozen import adversarial_head as fitted

    cohort, described = read_cohort(inputs["cohort"]), describe(inputs["model"])
    task, model, store = task_of(cohort), load(inputs["model"], inputs["base"]), ImageStore.open(inputs["images"])
    rows = {split: rows_of(cohort, split) for split in ("train", "validation", "test")}
    z = {
        split: model.embed(store.read(table.column("image").to_pylist())).float().cpu().numpy()
        for split, table in rows.items()
    }
    groups = group_codes(rows["train"], config["attributes"])
    score = fitted(
        z["train"], label_matrix(rows["train"]), groups, task.kind, alpha=config["alpha"], seed=config["seed"]
    )
    name = f"{described['name']}+{ADVERSARIAL_HEAD}"
    tables = [
        predictions_table(
            rows[split], task.labels, label_matrix(rows[split]), score(z[split]), name=name, seed=config["seed"]
        )
        for split in ("validation", "test")
    ]
    write_predictions(pa.concat_tables(tables), out / PREDICTIONS_FILE, kind=task.kind)
    _finish(config, out, {"labels": len(task.labels), "images": len(rows["train"])})


def _finish(config: Mapping[str, Any], out: Path, metrics: Mapping[str, Any]) -> None:
    write_json(out / "config.json", dict(config))
    write_json(out / "metrics.json", dict(metrics))


HEADS: dict[str, Callable[[Mapping[str, Any], Mapping[str, Path], Path], None]] = {
    POSTPROCESS: post_process,
    ADVERSARIAL_HEAD: adversarial_head,
}

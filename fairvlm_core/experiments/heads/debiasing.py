"""Heads that make a trained model fairer without training it again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairvlm_core.experiments.heads import ADVERSARIAL_HEAD
from fairvlm_core.experiments.heads.writing import write_scores, write_thresholds


def post_process(config: Mapping[str, Any], inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Equalise the odds of `predictions` over the attributes; the new scores decide at the threshold 0.5."""
    from fairvlm_core.evaluation.postprocess import postprocess
    from fairvlm_core.evaluation.predictions import (
        PREDICTIONS_FILE,
        kind_of,
        read_predictions,
        scores,
        write_predictions,
    )

    found = postprocess(read_predictions(inputs["predictions"]), config["attributes"], seed=config["seed"])
    given, kind = scores(found.table, "validation"), kind_of(found.table)
    write_predictions(found.table, out / PREDICTIONS_FILE, kind=kind)
    write_thresholds(out, model=given.model, kind=kind, labels=given.labels, method="threshold_optimizer")
    return {"labels": len(given.labels), "equalised": sum(map(bool, found.groups.values()))}


def adversarial_head(config: Mapping[str, Any], inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Score with a head that is fitted to the frozen embeddings z of `model` on the training split.

    z is what the recipe's own training made of the images, so no features of the base can stand in for it.
    """
    from fairvlm_core.cohort.images import ImageStore
    from fairvlm_core.cohort.table import group_codes, label_matrix, read_cohort, rows_of, task_of
    from fairvlm_core.models import describe, load
    from fairvlm_core.training.frozen import adversarial_head as fitted

    cohort, described = read_cohort(inputs["cohort"]), describe(inputs["model"])
    model, store = load(inputs["model"], inputs["base"]), ImageStore.open(inputs["images"])

    def z(rows: Any) -> Any:
        return model.embed(store.read(rows.column("image").to_pylist())).float().cpu().numpy()

    train = rows_of(cohort, "train")
    score = fitted(
        z(train),
        label_matrix(train),
        group_codes(train, config["attributes"]),
        task_of(cohort).kind,
        alpha=config["alpha"],
        seed=config["seed"],
    )
    name = f"{described['name']}+{ADVERSARIAL_HEAD}"
    write_scores(out, cohort, config["splits"], lambda rows: score(z(rows)), name=name, seed=config["seed"])
    return {"labels": len(task_of(cohort).labels), "images": len(train)}

"""Score the validation and test images with a trained model; the note and the demographics are never shown to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
OUTPUTS = {"out": Port("Folder to write: predictions.parquet; attention.png of a LLaVA.")}
BATCH = 256  # images that are read at a time


@dataclass(frozen=True)
class Config:
    """Parameters of the step."""

    splits: tuple[str, ...] = option(
        ("validation", "test"), "Splits to score.", choices=("train", "validation", "test")
    )
    generate: bool = option(False, "Also let the model answer in words (LLaVA only); reported beside the scores.")
    answer_tokens: int = option(16, "Where an answer in words is cut.", low=1)
    attention_cases: int = option(
        0,
        "Test images (LLaVA only) that attention.png and the report show, with where base and model look. The images "
        "leave with the report, so none is shown unless asked for.",
        low=0,
        high=20,
    )

    def __post_init__(self) -> None:
        check(self)


def run(config: Config, inputs: Mapping[str, Path], outputs: Mapping[str, Path]) -> dict[str, Any]:
    """Write one row per image and label, and the picture of where the model looks."""
    import time

    import numpy as np
    import pyarrow as pa

    from fairvlm_core.cohort.images import ImageStore
    from fairvlm_core.cohort.table import label_matrix, read_cohort, rows_of, task_of
    from fairvlm_core.errors import CheckpointError
    from fairvlm_core.evaluation.predictions import PREDICTIONS_FILE, predictions_table, write_predictions
    from fairvlm_core.models import describe, load
    from fairvlm_core.models.generation import answers_in_words
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
    speaks = answers_in_words(model)
    if config.generate and not speaks:
        # One section of parameters serves all models of a run, so this is no reason to stop.
        print(f"{described['name']} has no language model to answer with: only its scores are written.", flush=True)
    store = ImageStore.open(inputs["images"])
    tables, found, count, started = [], {}, 0, time.perf_counter()
    for split in config.splits:
        rows = rows_of(table, split)
        keys = rows.column("image").to_pylist()
        scored = _scorer(model, store, keys, split)
        parts = [
            scored(slice(start, start + BATCH))
            for start in track(range(0, len(keys), BATCH), f"Scoring {split} with {described['name']}")
        ]
        found[split] = np.concatenate(parts) if parts else np.zeros((0, len(task.labels)), dtype=np.float32)
        count += len(keys)
        tables.append(
            predictions_table(
                rows, task.labels, label_matrix(rows), found[split], name=described["name"], seed=described["seed"]
            )
        )
    metrics: dict[str, Any] = {
        "model": described["name"],
        "images": count,
        "images_per_second": round(count / max(1e-9, time.perf_counter() - started), 1),
    }
    if config.generate and speaks:
        said = [_answers(config, model, store, rows_of(table, split), split) for split in config.splits]
        tables = [
            part.append_column("y_answer", pa.array(answers.reshape(-1), pa.int8(), from_pandas=True))
            for part, answers in zip(tables, said, strict=True)
        ]
        metrics["undecided"] = round(float(np.isnan(np.concatenate(said)).mean()), 6) if count else 0.0
    write_predictions(pa.concat_tables(tables), outputs["out"] / PREDICTIONS_FILE, kind=task.kind)
    if config.attention_cases and speaks:
        split = "test" if "test" in found else config.splits[-1]
        rows = rows_of(table, split)
        metrics["attention_cases"] = _draw_attention(
            config, inputs, outputs["out"], model, store, rows, found[split], described
        )
    return metrics


def _scorer(model: Any, store: Any, keys: list[str], split: str) -> Callable[[slice], Any]:
    """Scores of a part of the images; of a model that shares its lower blocks with others, those are computed once."""
    import os

    import numpy as np
    import torch

    from fairvlm_core.models import device
    from fairvlm_core.models.trunk import FEATURES, trunk_tokens

    trunk = getattr(model, "base_trunk", None)
    if trunk is None or not os.environ.get(FEATURES):
        return lambda part: model.score(store.read(keys[part]))
    rows, place = np.unique(store.rows(keys), return_inverse=True)
    tokens = trunk_tokens(trunk, store, rows, label=split)

    def score(part: slice) -> Any:
        with torch.inference_mode():
            return model.score_features(trunk.upper(tokens[place[part]].to(device()))).float().cpu().numpy()

    return score


def _answers(config: Config, model: Any, store: Any, rows: Any, split: str) -> Any:
    """What the model says in words about each image, float [n, L]: 1, 0, NaN where it is undecided."""
    import numpy as np

    from fairvlm_core.evaluation.answers import normalise
    from fairvlm_core.models.generation import generate
    from fairvlm_core.progress import track

    keys, texts = rows.column("image").to_pylist(), []
    for start in track(range(0, len(keys), BATCH), f"Answers in words on {split}"):
        texts += generate(model, store.read(keys[start : start + BATCH]), max_new_tokens=config.answer_tokens)
    return np.array([normalise(said, model.task) for said in texts]).reshape(len(keys), len(model.task.labels))


def _draw_attention(
    config: Config,
    inputs: Mapping[str, Path],
    out: Path,
    model: Any,
    store: Any,
    rows: Any,
    scored: Any,
    described: Mapping[str, Any],
) -> int:
    """Draw where base model and model look in the most confident right positives; returns how many are drawn."""
    from fairvlm_core.cohort.table import label_matrix
    from fairvlm_core.evaluation.attention import ATTENTION_FILE, Case, Look, attention_picture, choose_cases
    from fairvlm_core.models import base_path
    from fairvlm_core.models.rollout import attention_map
    from fairvlm_core.models.vlm import load_base
    from fairvlm_core.steps.compare import TITLES

    task, name = model.task, described["name"]
    cases = choose_cases(label_matrix(rows), scored, task.kind, config.attention_cases)
    if not cases:
        print(f"{name} is right about no positive image, so there is no attention to show.", flush=True)
        return 0
    keys = rows.column("image").to_pylist()
    images = store.read([keys[row] for row, _ in cases])
    questions = [0 if task.kind == "multiclass" else label for _, label in cases]

    def look(title: str, looking: Any) -> list[Look]:
        scores = looking.score(images)
        return [
            Look(title, float(scores[i, label]), attention_map(looking, images[i], question))
            for i, ((_, label), question) in enumerate(zip(cases, questions, strict=True))
        ]

    trained = look(TITLES.get(name, name), model)
    model.llava.to("cpu")  # an accelerator need not hold both; this is the model's last use
    looks = [
        look("Base model", load_base(base_path(inputs["base"], described["family"]), task, model.image_size)),
        trained,
    ]
    drawn = [
        Case(image, task.concepts[label], pair) for image, (_, label), *pair in zip(images, cases, *looks, strict=True)
    ]
    attention_picture(drawn, out / ATTENTION_FILE)
    return len(drawn)

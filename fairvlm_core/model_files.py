"""The small files beside a model's weights: what it is, and which base it stands on. Nothing heavy is imported here."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from fairvlm_core.cohort.table import Task
from fairvlm_core.errors import CheckpointError, nearest
from fairvlm_core.files import read_json, write_json

MODEL_FILE = "model.json"
BASES_FILE = "bases.json"


def base_path(base: Path, family: str) -> str:
    """Where a family's pretrained checkpoint is: a folder, or the hub name in `bases.json`.

    Raises:
        CheckpointError: when the reference is missing or points to a folder that does not exist.
    """
    bases = read_json(base / BASES_FILE, made_by="base_models")
    if family not in bases:
        raise CheckpointError(
            f"There is no base model for the family {family}.",
            where=str(base / BASES_FILE),
            mend=nearest(family, bases),
        )
    reference = bases[family]
    inside = base / reference
    if inside.is_dir():
        return str(inside)
    if reference.startswith((".", "/")):
        raise CheckpointError(
            "The pretrained checkpoint is missing.",
            where=reference,
            mend="Download it, or mend base_models in params.yaml.",
        )
    return reference


def describe(folder: Path) -> dict[str, Any]:
    """What `model.json` says: name, family, task, image_size, seed and the family's own settings."""
    if not (folder / MODEL_FILE).is_file():
        raise CheckpointError(
            "There is no trained model here.",
            where=str(folder / MODEL_FILE),
            mend="Run its training step first, or pass its folder.",
        )
    described = read_json(folder / MODEL_FILE, made_by="stage1")
    return {**described, "task": Task(**described["task"])}


def write_description(
    folder: Path, *, name: str, family: str, task: Task, image_size: int, seed: int, **settings: Any
) -> None:
    """Write `model.json`, from which `load` rebuilds the model."""
    described = {
        "name": name,
        "family": family,
        "task": asdict(task),
        "image_size": image_size,
        "seed": seed,
        **settings,
    }
    write_json(folder / MODEL_FILE, described)

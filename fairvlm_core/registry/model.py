"""The registered model: pictures in, scores and decisions out.

MLflow keeps this file itself (models from code), not a pickle, beside the folder that `tracking.write_artifact` wrote:
`model/` (what was trained), `thresholds.json` (with the calibration) and `base.json` (a reference to the base model,
never its weights).
"""

from __future__ import annotations

import base64
import binascii
import importlib
import io
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel
from PIL import Image

from fairvlm_core.cohort.images import open_image, square
from fairvlm_core.errors import CheckpointError, FairVLMError
from fairvlm_core.evaluation.calibration import calibrate
from fairvlm_core.evaluation.thresholds import decide
from fairvlm_core.files import read_json
from fairvlm_core.model_files import describe
from fairvlm_core.registry.base import find_base
from fairvlm_core.registry.columns import ARTIFACT, IMAGE, REFUSED, output_columns

BATCH = 256
# MLflow writes this file beside a registered model that it loads: which version it is.
META_FILE = "registered_model_meta"
UNREGISTERED = "unregistered"
# MLflow sets it to true where it serves a model.
SERVING_VARIABLE = "_MLFLOW_IS_IN_SERVING_ENVIRONMENT"
PICTURE_STARTS = (b"\x89PNG", b"\xff\xd8\xff")


class RegisteredModel(PythonModel):
    """Scores pictures as `predict` does, calibrates and decides as `evaluate` does."""

    def load_context(self, context: Any) -> None:
        """Load the base model and what was trained.

        Raises:
            CheckpointError: when the base model is missing or another one, or a label has no threshold.
        """
        from fairvlm_core.models import FAMILIES  # here: MLflow imports this file to log it, which needs no torch

        artifact = Path(context.artifacts[ARTIFACT])
        described = describe(artifact / "model")
        self.kind, self.labels = described["task"].kind, described["task"].labels
        fixed = read_json(artifact / "thresholds.json", made_by="register")
        self.calibration = fixed.get("calibration")
        self.thresholds = None if self.kind == "multiclass" else _thresholds(fixed, self.labels, artifact)
        self.version = _version(artifact.parent.parent)
        self.one_at_a_time = threading.Lock()
        family = importlib.import_module(FAMILIES[described["family"]])
        checkpoint = find_base(read_json(artifact / "base.json", made_by="register"))
        self.model = family.load(artifact / "model", checkpoint, described)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Score and decide.

        Args:
            model_input: one column, `image`: paths (not on a server), bytes, or base64 texts of PNG or JPEG files.

        Returns:
            Per label `score_<label>` (a probability, calibrated if the thresholds are) and `label_<label>` (0 or 1,
            decided at the fixed threshold); multi-class: also `predicted`, the label with the highest score. Last,
            `version`: the number of the registered version, as a text, or "unregistered".

        Raises:
            MlflowException: when there is another column, or a picture cannot be read; a server answers with its text.
        """
        try:
            return self._predict(model_input)
        except FairVLMError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None

    def _predict(self, model_input: pd.DataFrame) -> pd.DataFrame:
        pictures = _pictures(model_input)
        size = self.model.image_size
        parts = [np.zeros((0, len(self.labels)), dtype=np.float32)]
        for start in range(0, len(pictures), BATCH):
            batch = enumerate(pictures[start : start + BATCH], start)
            images = np.stack([_pixels(picture, size, row) for row, picture in batch])
            # A server calls this from many threads: pictures are decoded side by side, memory holds one batch.
            with self.one_at_a_time:
                parts.append(self.model.score(images))
        score = calibrate(np.concatenate(parts), self.labels, self.calibration)
        decision = decide(score, self.thresholds, self.kind).astype(np.int64)
        names = output_columns(self.labels, self.kind)
        result = pd.DataFrame(
            np.hstack([score, decision]), columns=names[: 2 * len(self.labels)], index=model_input.index
        )
        result = result.astype(dict.fromkeys(names[len(self.labels) : 2 * len(self.labels)], np.int64))
        if self.kind == "multiclass":
            result["predicted"] = np.array(self.labels, dtype=object)[score.argmax(axis=1)]
        result["version"] = self.version
        return result


def _thresholds(fixed: Mapping[str, Any], labels: Sequence[str], artifact: Path) -> list[float]:
    """The threshold of each label."""
    found = fixed.get("thresholds") or {}
    if missing := [label for label in labels if found.get(label) is None]:
        raise CheckpointError(
            "The registered model has no threshold for every label, so it cannot decide.",
            where=f"{artifact / 'thresholds.json'}: {', '.join(missing)}",
            mend="Run `fairvlm tune_thresholds` and the steps after it again, and register the model anew.",
        )
    return [float(found[label]) for label in labels]


def _version(folder: Path) -> str:
    """The number of the registered version that MLflow loaded from `folder`."""
    meta = folder / META_FILE
    return str(yaml.safe_load(meta.read_text())["model_version"]) if meta.is_file() else UNREGISTERED


def _pictures(given: pd.DataFrame) -> list[Any]:
    if not isinstance(given, pd.DataFrame) or IMAGE not in given.columns:
        raise FairVLMError(
            "There are no pictures.", where=f"column {IMAGE}", mend=f"Give a table with the column {IMAGE}."
        )
    others = [str(name) for name in given.columns if name != IMAGE]
    refused = [name for name in others if name in REFUSED]
    if refused:
        raise FairVLMError(
            "This model decides by the picture alone; it takes no demographics.",
            where=f"column {', '.join(refused)}",
            mend=f"Leave all columns but {IMAGE} out.",
        )
    if others:
        raise FairVLMError(
            "The table has columns that this model does not know.",
            where=f"column {', '.join(others)}",
            mend=f"Leave all columns but {IMAGE} out.",
        )
    return given[IMAGE].tolist()


def _pixels(picture: Any, size: int, row: int) -> np.ndarray:
    where = f"row {row}, column {IMAGE}"
    return square(_opened(picture, where), size, where=where)


def _opened(picture: Any, where: str) -> Image.Image:
    if isinstance(picture, str):
        content = _from_base64(picture)
        # The signature takes bytes, but a text in a Parquet body gets past it: a client could name files of the server.
        if content is None and os.environ.get(SERVING_VARIABLE) == "true":
            raise FairVLMError(
                "This text is not a picture.", where=where, mend="Send the base64 text of a PNG or JPEG."
            )
        return open_image(Path(picture) if content is None else io.BytesIO(content), where=where)
    if isinstance(picture, (bytes, bytearray)):
        return open_image(io.BytesIO(picture), where=where)
    raise FairVLMError(
        f"A value of the type {type(picture).__name__} is not a picture.",
        where=where,
        mend="Give the path, the bytes or the base64 text of a PNG or JPEG file.",
    )


def _from_base64(text: str) -> bytes | None:
    """The PNG or JPEG file that a text encodes; None for any other text, which is a path."""
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return content if content.startswith(PICTURE_STARTS) else None


set_model(RegisteredModel())

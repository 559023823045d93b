"""References to base models: a registered model says where its base was and what its weights hash to, without them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairvlm_core.errors import CheckpointError
from fairvlm_core.files import read_json, sha256
from fairvlm_core.models import base_path

# A folder that `base_models` wrote: where a registered model looks for its base first.
BASE_VARIABLE = "FAIRVLM_BASE"
MEND = f"Set {BASE_VARIABLE} to the folder that `fairvlm base_models` wrote when this model was trained."


def base_reference(base: Path, family: str) -> dict[str, Any]:
    """What to remember of a family's base model.

    Args:
        base: folder that `base_models` wrote.
        family: vlm or dual.

    Returns:
        family; checkpoint (absolute folder, or hub name); sha256 {file name: hash} of its safetensors files.
    """
    checkpoint = base_path(base, family)
    if Path(checkpoint).is_dir():
        checkpoint = str(Path(checkpoint).resolve())
    return {"family": family, "checkpoint": checkpoint, "sha256": _hashes(checkpoint)}


def find_base(reference: Mapping[str, Any], given: Path | None = None) -> str:
    """The base model of a reference, a folder or hub name: the one in FAIRVLM_BASE, else the one it names.

    Args:
        given: folder that `base_models` wrote; its base comes first, if the model was trained from these weights.

    Raises:
        CheckpointError: when it is missing, or its weights are not those that the model was trained from.
    """
    if given and (near := _same_weights(given, reference)):
        return near
    told = os.environ.get(BASE_VARIABLE)
    checkpoint = base_path(Path(told), reference["family"]) if told else reference["checkpoint"]
    found = _hashes(checkpoint)
    for name, expected in reference["sha256"].items():
        if found.get(name) != expected:
            raise CheckpointError(
                "The base model is not the one that this model was trained from.",
                where=f"{checkpoint}, {name}: {'other weights' if name in found else 'missing'}",
                mend=MEND,
            )
    return checkpoint


def _same_weights(base: Path, reference: Mapping[str, Any]) -> str | None:
    """The base model in a folder that `base_models` wrote, if its weights are those of the reference."""
    try:
        checkpoint = base_path(base, reference["family"])
        return checkpoint if _hashes(checkpoint) == reference["sha256"] else None
    except CheckpointError:  # that folder has no base of this family, which is no reason to stop
        return None


def _hashes(checkpoint: str) -> dict[str, str]:
    files = _weights(checkpoint)
    if not files:
        raise CheckpointError(
            "The base model has no safetensors weights.", where=checkpoint, mend="Save it with `save_pretrained`."
        )
    return {path.name: sha256(path) for path in files}


def _weights(checkpoint: str) -> list[Path]:
    """The safetensors files of a folder, or of a hub name (downloaded to the hub's cache unless it is offline)."""
    folder = Path(checkpoint)
    if folder.is_dir():
        return sorted(folder.glob("*.safetensors"))
    if folder.is_absolute():
        raise CheckpointError("The base model of this registered model is missing.", where=checkpoint, mend=MEND)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    def fetched(name: str) -> Path:
        return Path(hf_hub_download(checkpoint, name))

    try:
        try:
            return [fetched("model.safetensors")]
        except EntryNotFoundError:
            index = read_json(fetched("model.safetensors.index.json"), made_by="base_models")
            return [fetched(name) for name in sorted(set(index["weight_map"].values()))]
    # The hub's client reports what it cannot find or reach by all of these.
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"The base model cannot be fetched ({type(error).__name__}).", where=checkpoint, mend=MEND
        ) from None

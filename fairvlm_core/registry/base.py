"""References to base models: a registered model says where its base was and what its weights hash to, without them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fairvlm_core.errors import CheckpointError
from fairvlm_core.files import read_json, sha256
from fairvlm_core.model_files import base_path

# A folder that `base_models` wrote: where a registered model looks for its base first.
BASE_VARIABLE = "FAIRVLM_BASE"
# Beside bases.json: what the weights of each local base model hash to. Some are 15 GB, and they are hashed once.
WEIGHTS_FILE = "weights.json"
MEND = f"Set {BASE_VARIABLE} to the folder that `fairvlm base_models` wrote when this model was trained."


def weights_of(checkpoint: str) -> dict[str, dict[str, Any]]:
    """The safetensors files of a folder or hub name: {file name: {sha256, size in bytes}}.

    Raises:
        CheckpointError: when it has none, or they cannot be fetched.
    """
    files = _weights(checkpoint)
    if not files:
        raise CheckpointError(
            "The base model has no safetensors weights.", where=checkpoint, mend="Save it with `save_pretrained`."
        )
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter's lock
        hashes = pool.map(sha256, files)
        return {
            path.name: {"sha256": found, "size": path.stat().st_size} for path, found in zip(files, hashes, strict=True)
        }


def base_reference(base: Path, family: str) -> dict[str, Any]:
    """What to remember of a family's base model.

    Args:
        base: folder that `base_models` wrote; the hashes are those it has recorded, where files of this size are there.
        family: vlm or dual.

    Returns:
        family; checkpoint (absolute folder, or hub name); sha256 {file name: hash} and size {file name: bytes} of its
        safetensors files.
    """
    checkpoint = base_path(base, family)
    if Path(checkpoint).is_dir():
        checkpoint = str(Path(checkpoint).resolve())
    weights = _recorded(base, family, checkpoint) or weights_of(checkpoint)
    told = {what: {name: found[what] for name, found in weights.items()} for what in ("sha256", "size")}
    return {"family": family, "checkpoint": checkpoint, **told}


def find_base(reference: Mapping[str, Any], given: Path | None = None) -> str:
    """The base model of a reference, a folder or hub name: the one in FAIRVLM_BASE, else the one it names.

    Its weights are hashed: call this where they are read anyway.

    Args:
        given: folder that `base_models` wrote; its base comes first, if the model was trained from these weights.

    Raises:
        CheckpointError: when it is missing, or its weights are not those that the model was trained from.
    """
    if given and (near := _same_weights(given, reference)):
        return near
    checkpoint = _place(reference)
    found = weights_of(checkpoint)
    for name, expected in reference["sha256"].items():
        if name not in found or found[name]["sha256"] != expected:
            raise _other(checkpoint, name, "other weights" if name in found else "missing")
    return checkpoint


def require_there(reference: Mapping[str, Any]) -> str:
    """Like `find_base`, at once: the files must be there and have the right sizes; they are not read.

    Of a hub name, they must be in the hub's cache.

    Raises:
        CheckpointError: when the base model is missing, or cannot be the one that the model was trained from.
    """
    checkpoint = _place(reference)
    folder = Path(checkpoint)
    if folder.is_absolute() and not folder.is_dir():
        raise _missing(checkpoint)
    for name in reference["sha256"]:
        path = folder / name if folder.is_dir() else _cached(checkpoint, name)
        if path is None or not path.is_file():
            raise _other(checkpoint, name, "missing")
        # Versions of an earlier release do not say how large the files were.
        if path.stat().st_size != reference.get("size", {}).get(name, path.stat().st_size):
            raise _other(checkpoint, name, "other weights")
    return checkpoint


def _place(reference: Mapping[str, Any]) -> str:
    told = os.environ.get(BASE_VARIABLE)
    found: str = base_path(Path(told), reference["family"]) if told else reference["checkpoint"]
    return found


def _recorded(base: Path, family: str, checkpoint: str) -> dict[str, dict[str, Any]] | None:
    """What `base_models` wrote about the weights of a folder; None where it did not, or they are others by now."""
    if not (base / WEIGHTS_FILE).is_file() or not Path(checkpoint).is_dir():
        return None
    told: dict[str, dict[str, Any]] = read_json(base / WEIGHTS_FILE, made_by="base_models").get(family, {})
    sizes = {path.name: path.stat().st_size for path in _weights(checkpoint)}
    return told if told and sizes == {name: found["size"] for name, found in told.items()} else None


def _same_weights(base: Path, reference: Mapping[str, Any]) -> str | None:
    """The base model in a folder that `base_models` wrote, if its weights are those of the reference."""
    try:
        checkpoint = base_path(base, reference["family"])
        found = {name: weights["sha256"] for name, weights in weights_of(checkpoint).items()}
        return checkpoint if found == reference["sha256"] else None
    except CheckpointError:  # that folder has no base of this family, which is no reason to stop
        return None


def _weights(checkpoint: str) -> list[Path]:
    """The safetensors files of a folder, or of a hub name (downloaded to the hub's cache unless it is offline)."""
    folder = Path(checkpoint)
    if folder.is_dir():
        return sorted(folder.glob("*.safetensors"))
    if folder.is_absolute():
        raise _missing(checkpoint)
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


def _cached(checkpoint: str, name: str) -> Path | None:
    """A file of a hub name in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(checkpoint, name)
    return Path(found) if isinstance(found, str) else None


def _missing(checkpoint: str) -> CheckpointError:
    return CheckpointError("The base model of this registered model is missing.", where=checkpoint, mend=MEND)


def _other(checkpoint: str, name: str, what: str) -> CheckpointError:
    return CheckpointError(
        "The base model is not the one that this model was trained from.",
        where=f"{checkpoint}, {name}: {what}",
        mend=MEND,
    )

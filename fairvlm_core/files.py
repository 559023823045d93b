"""Files that are either whole or absent, and fingerprints of what a step read."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fairvlm_core.errors import FairVLMError

# Larger files (image stores, base weights) count by name and size alone, so that a fingerprint stays instant.
FINGERPRINT_BYTES = 8 * 2**20
CHECKPOINTS = "FAIRVLM_CHECKPOINTS"


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """Give a temporary name to write to, and rename it to `path` only when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys; NaN is refused, so that any reader can parse it."""
    with written(path) as partial:
        partial.write_text(json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path, *, made_by: str) -> Any:
    """Read JSON that the step `made_by` wrote.

    Raises:
        FairVLMError: when the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise FairVLMError(
            f"{path.name} is missing.", where=str(path), mend=f"Run `fairvlm {made_by}` first, or pass its folder."
        ) from None
    except json.JSONDecodeError as error:
        raise FairVLMError(
            f"{path.name} is not valid JSON.",
            where=f"{path}, line {error.lineno}",
            mend=f"Run `fairvlm {made_by}` again.",
        ) from None


@contextmanager
def folder_written(path: Path) -> Iterator[Path]:
    """Give a fresh `<path>.partial` folder to fill, and put it in the place of `path` only when the block ends well.

    Of several processes that do the same work, the first one's folder is kept and the others' are thrown away.
    """
    rank = process_rank()
    partial = path.with_name(f"{path.name}.rank{rank}.partial" if rank else f"{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if rank == 0:
            shutil.rmtree(path, ignore_errors=True)
            os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def process_rank() -> int:
    """Number of this process among those that torchrun started for one training run; 0 when alone."""
    return int(os.environ.get("RANK", "0"))


def checkpoint_folder(out: Path) -> Path:
    """Where a step that writes `out` keeps what it can resume from: beside `out`, so that it outlives a killed run.

    FAIRVLM_CHECKPOINTS names another folder, where `out` itself does not outlive it: the disk of a pod.
    """
    elsewhere = os.environ.get(CHECKPOINTS)
    beside = Path(elsewhere) / out.name if elsewhere else out
    return beside.with_name(re.sub(r"(\.rank\d+)?\.partial$", "", out.name) + ".checkpoint")


def fingerprint(config: Mapping[str, Any], inputs: Mapping[str, Path]) -> str:
    """Hash a step's config and inputs: a checkpoint may be resumed only by the run that would write it again."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, root in sorted(inputs.items()):
        files = sorted(path for path in root.rglob("*") if path.is_file()) if root.is_dir() else [root]
        for path in files:
            digest.update(f"{name}/{path.relative_to(root)}:{path.stat().st_size}".encode())
            if path.stat().st_size <= FINGERPRINT_BYTES:
                digest.update(path.read_bytes())
    return digest.hexdigest()


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()

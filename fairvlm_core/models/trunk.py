"""The frozen lower part of an image encoder: what it gives is computed once, and shared by runs that need it again.

FAIRVLM_FEATURES names a folder in which the tokens are kept between runs. A file there is named by a hash of all that
decides what is in it: the weights, the settings and the pictures themselves. So nothing in it can be stale, any run may
use it, and it may be emptied at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from fairvlm_core.cohort.images import ImageStore
from fairvlm_core.errors import FairVLMError
from fairvlm_core.files import written

FEATURES = "FAIRVLM_FEATURES"
TRUNK_BATCH = 64  # images that are computed at a time
NOT_DECISIVE = ("_name_or_path", "name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype")


def blocks(tower: Any) -> nn.ModuleList:
    """The transformer blocks of an encoder, whatever its family calls them."""
    return tower.encoder.layers if hasattr(tower.encoder, "layers") else tower.encoder.layer


def enter(tower: Any, pixel_values: Tensor) -> Tensor:
    """Tokens [n, T, D] that enter the first block of an image encoder, of pixels [n, 3, S, S]."""
    if tower.config.model_type == "dinov2":
        return tower.embeddings(pixel_values)
    other = tower.config.image_size != pixel_values.shape[-1]
    tokens = tower.embeddings(pixel_values, interpolate_pos_encoding=other)
    return tower.pre_layrnorm(tokens) if hasattr(tower, "pre_layrnorm") else tokens


def modules_below(tower: Any, block: int) -> list[nn.Module]:
    """What an image goes through before it enters block number `block`, from 0, of an image encoder."""
    norm = [tower.pre_layrnorm] if hasattr(tower, "pre_layrnorm") else []
    return [tower.embeddings, *norm, *blocks(tower)[:block]]


@dataclass(frozen=True)
class Trunk:
    """The lower part of a model's image encoder, and what comes after it.

    Attributes:
        lower: images (as `pixels` takes them) -> tokens.
        upper: tokens -> what the model's `score_features` takes.
        modules: all that `lower` runs through.
        dtype: of the tokens.
        settings: what else decides the tokens.
        shared: whether another run can need the same tokens; where not, they are not written to disk.
    """

    lower: Callable[[Any], Tensor]
    upper: Callable[[Tensor], Tensor]
    modules: tuple[nn.Module, ...]
    dtype: torch.dtype
    settings: Mapping[str, Any]
    shared: bool = True

    @cached_property
    def identity(self) -> str:
        """Hash of weights and settings."""
        about = {
            **self.settings,
            "dtype": str(self.dtype),
            "libraries": [torch.__version__, transformers.__version__],
        }
        digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
        for number, module in enumerate(self.modules):
            for name, tensor in module.state_dict().items():
                digest.update(f"{number}.{name} {tensor.dtype} {list(tensor.shape)}".encode())
                digest.update(_bytes(tensor).data)
        return digest.hexdigest()


def settings_of(tower: Any, **more: Any) -> dict[str, Any]:
    """What of an encoder's configuration decides its output, and more that does."""
    told = {name: value for name, value in tower.config.to_dict().items() if name not in NOT_DECISIVE}
    where = next(tower.parameters()).device.type
    return {"config": told, "attention": tower.config._attn_implementation, "device": where, **more}


def trunk_tokens(trunk: Trunk, store: ImageStore, rows: np.ndarray, *, label: str) -> Tensor:
    """Tokens [n, T, D] of the pictures in these rows of a store; read where an earlier run has computed them.

    Raises:
        FairVLMError: when they cannot be written to FAIRVLM_FEATURES.
    """
    folder = os.environ.get(FEATURES)
    if not folder or not trunk.shared:
        return torch.cat(list(_computed(trunk, store, rows, label)))
    path = Path(folder) / f"{_key(trunk, store, rows)}.npy"
    found = _mapped(path, trunk, len(rows))
    if found is None:
        try:
            _write(path, _computed(trunk, store, rows, label), len(rows))
        except OSError as error:
            raise FairVLMError(
                f"Image features cannot be written ({error.strerror or error}).",
                where=str(path),
                mend=f"Make room there, or let {FEATURES} name a folder on a larger disk, or none.",
            ) from None
        found = _mapped(path, trunk, len(rows))
        assert found is not None
    return found


def _computed(trunk: Trunk, store: ImageStore, rows: np.ndarray, label: str) -> Iterator[Tensor]:
    from fairvlm_core.progress import track

    with torch.no_grad():
        for start in track(range(0, len(rows), TRUNK_BATCH), f"Image features, {label}"):
            yield trunk.lower(store.at(rows[start : start + TRUNK_BATCH]))


def _key(trunk: Trunk, store: ImageStore, rows: np.ndarray) -> str:
    """Of the trunk and of the pictures: a gigabyte of them takes a second, and they would be read anyway."""
    digest = hashlib.sha256(f"{trunk.identity} {len(rows)} {store.size}".encode())
    for start in range(0, len(rows), TRUNK_BATCH):
        digest.update(np.ascontiguousarray(store.at(rows[start : start + TRUNK_BATCH])).data)
    return digest.hexdigest()


def _write(path: Path, batches: Iterator[Tensor], count: int) -> None:
    """One .npy file of bytes, [count, T, D x bytes per value]: numpy has no bfloat16.

    Written, not mapped: a full disk is then an error instead of a killed process, and memory stays small.
    """
    with written(path) as partial, partial.open("wb") as file:
        for number, tokens in enumerate(batches):
            found = _bytes(tokens).reshape(*tokens.shape[:-1], -1)
            if number == 0:
                shape = (count, *found.shape[1:])
                np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            file.write(found.data)


def _mapped(path: Path, trunk: Trunk, count: int) -> Tensor | None:
    """What a file holds, as a memory map; None where there is none, or a power failure left it in pieces."""
    if not path.is_file():
        return None
    try:
        # Torch wants to be able to write; what it would write stays in memory.
        found = np.load(path, mmap_mode="c", allow_pickle=False)
    except (ValueError, EOFError):
        return None
    return torch.from_numpy(found).view(trunk.dtype) if len(found) == count else None


def _bytes(tensor: Tensor) -> np.ndarray:
    return tensor.detach().reshape(-1).contiguous().view(torch.uint8).cpu().numpy()

"""What the frozen vision tower of a base model says of every image, computed once.

`features.npy` is float32 [N, d], a row per image in the order of the image store (`ImageStore.keys`), to be read as a
memory map. `features.json` says whose they are: family, dim, and how an image's tokens became one vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fairvlm_core.errors import CohortError

FEATURES_FILE = "features.npy"
BATCH = 64
POOLED = {
    "vlm": "mean over the patches of the layer that the projector reads",
    "dual": "pooled output of the image encoder, before the projection",
}


def features(config: Mapping[str, Any], inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Write the features of all images in the store, by the tower of `config["family"]` (vlm or dual)."""
    import torch

    from fairvlm_core.cohort.images import ImageStore
    from fairvlm_core.cohort.table import read_cohort, task_of
    from fairvlm_core.files import write_json
    from fairvlm_core.models import base_path
    from fairvlm_core.progress import track

    store, family = ImageStore.open(inputs["images"]), config["family"]
    tower = _tower(family, base_path(inputs["base"], family), task_of(read_cohort(inputs["images"])), store.size)
    count, rows = len(store.keys), []
    with torch.inference_mode():
        for start in track(range(0, count, BATCH), "Features of the base"):
            rows.append(tower(store.at(np.arange(start, min(start + BATCH, count)))).float().cpu().numpy())
    found = np.concatenate(rows)
    np.save(out / FEATURES_FILE, found, allow_pickle=False)
    write_json(out / "features.json", {"family": family, "dim": found.shape[1], "pooled": POOLED[family]})
    return {"images": count, "dim": found.shape[1]}


def open_features(folder: Path, store: Any) -> np.ndarray:
    """The features as a read-only memory map float32 [N, d], a row for each row of the image store.

    Raises:
        CohortError: they are of other images.
    """
    found = np.load(folder / FEATURES_FILE, mmap_mode="r", allow_pickle=False)
    if len(found) != len(store.keys):
        raise CohortError(
            f"There are features of {len(found)} images, and the store has {len(store.keys)}.",
            where=str(folder / FEATURES_FILE),
            mend="Delete the folder, so that they are computed again.",
        )
    return found


def _tower(family: str, checkpoint: str, task: Any, image_size: int) -> Any:
    """A function of uint8 images [n, S, S, 3] that gives [n, d]."""
    if family == "vlm":
        from fairvlm_core.models.vlm import load_base

        vlm = load_base(checkpoint, task, image_size)
        vlm.llava.eval()
        return lambda images: vlm.features(images).mean(1)
    from fairvlm_core.models import pixels
    from fairvlm_core.models.dual import load_base as load_dual
    from fairvlm_core.models.fair_moe import Experts

    dual = load_dual(checkpoint, task, image_size, experts=Experts(count=0), seed=0)
    dual.train(False)
    return lambda images: dual.towers["image"](pixels(images, dual.mean, dual.std)).pooler_output

"""Small untrained base models in the transformers layout, made in a moment, and small cohorts to train them on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from fairvlm_core.cohort.images import build_store
from fairvlm_core.cohort.table import Task, cohort_table, write_cohort
from fairvlm_core.files import write_json
from fairvlm_core.models import tiny

SIZE = 32
TASKS = {
    "binary": Task("binary", ("glaucoma",), ("glaucoma",), ("non-glaucoma",)),
    "multiclass": Task("multiclass", ("mel", "nv", "bcc"), ("melanoma", "melanocytic nevus", "basal cell carcinoma")),
    "multilabel": Task("multilabel", ("edema", "fracture"), ("edema", "a fracture"), ("no edema", "no fracture")),
}
GROUPS = {"sex": ("female", "male"), "age_group": ("0-59", "60+")}


def write_bases(folder: Path, task: Task) -> Path:
    """`bases.json`, an untrained tiny LLaVA and an untrained tiny CLIP in `folder`."""
    from transformers import CLIPVisionModel

    texts = tiny.corpus(task, ["The optic disc is pale and the cup is large."])
    dual, llava = folder / "dual", folder / "llava"
    tiny.build_clip(dual, tiny.train_tokenizer(texts, end=True), image_size=SIZE, seed=1)
    tower = CLIPVisionModel.from_pretrained(dual)
    tiny.build_llava(
        llava,
        tiny.train_tokenizer(texts, end=False),
        tower.config,
        image_size=SIZE,
        mean=tiny.MEAN,
        std=tiny.STD,
        seed=1,
        tower=tower,
    )
    write_json(folder / "bases.json", {"vlm": "llava", "dual": "dual"})
    return folder


def write_cohort_with_images(folder: Path, task: Task, *, count: int = 96, seed: int = 0) -> Path:
    """A cohort whose first label is the brightness of its images: something that can be learnt in a few steps."""
    rng = np.random.default_rng(seed)
    rows, pictures = [], {}
    for i in range(count):
        first = int(rng.integers(len(task.labels) if task.kind == "multiclass" else 2))
        kinds = len(task.labels) if task.kind == "multiclass" else 2
        if task.kind == "multiclass":
            labels = [int(j == first) for j in range(kinds)]
        else:
            labels = [first, *(int(value) for value in rng.integers(2, size=len(task.labels) - 1))]
        image = np.clip(rng.normal(60 + 110 * first / (kinds - 1), 12, (SIZE, SIZE, 3)), 0, 255)
        pictures[f"{i}.png"] = image.astype(np.uint8)
        age = float(rng.integers(20, 90))
        rows.append(
            {
                "sample_id": f"s{i}",
                "patient_id": f"p{i}",
                "image": f"{i}.png",
                "note": "The optic disc is pale and the cup is large." if i % 3 else None,
                "labels": labels,
                "sex": GROUPS["sex"][i % 2] if i % 11 else None,
                "age": age,
                "age_group": GROUPS["age_group"][int(age >= 60)],
                "split": "train" if i < count * 2 // 3 else "validation" if i < count * 5 // 6 else "test",
                "source": "test",
            }
        )
    folder.mkdir(parents=True, exist_ok=True)
    table: pa.Table = cohort_table(rows, task=task, groups=GROUPS)
    write_cohort(table, folder)
    build_store(list(pictures), pictures.__getitem__, folder, size=SIZE)
    return folder

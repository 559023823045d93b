"""What the tables of FairMed-VLM share: the full method, and a size at which they take a minute."""

from __future__ import annotations

from fairvlm_core.experiments.grid import Recipe, both

FULL = Recipe("fairmed_vlm", "FairMed-VLM")

# Neither place in which the cohort is balanced: its cells, and the strata of an epoch.
UNBALANCED = {
    "stratify.majority_cap": None,
    "stratify.oversample_cap": 1.0,
    **both("stage1", "stage2", oversample=0.0),
}
UNPROMPTED = both("stage1", "stage2", demographic_prompts=False)

TOY_COHORT = {
    "ingest.dataset": "generated",
    "ingest.image_size": 32,
    "ingest.options": {"patients": 240, "pixels": 32},
    "stratify.allow_empty_cells": True,
    "base_models.preset": "tiny",
    "base_models.image_size": 32,
    "base_models.clip_steps": 8,
    "base_models.llava_steps": 8,
    "base_models.pictures": 64,
    "evaluate.resamples": 100,
}
TOY = {
    **TOY_COHORT,
    **both("stage1", "stage2", epochs=1, batch_size=32, learning_rate=0.002, lora_rank=4, lora_alpha=8, describe=False),
}

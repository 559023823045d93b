"""FairMed-VLM, Stage 2: LoRA on tower and language model with cross-group contrast and moment alignment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairvlm_core.config import Port, option
from fairvlm_core.steps.shared import OUTPUTS, TRAINING_INPUTS, TaskConfig, begin, finish

EMBEDDINGS = ("projector", "last_hidden_state")
INPUTS = {**TRAINING_INPUTS, "stage1": Port("Folder that stage1 wrote.")}
__all__ = ["INPUTS", "OUTPUTS", "Config", "run"]


@dataclass(frozen=True)
class Config(TaskConfig):
    """Parameters of the step."""

    fairness_weight: float = option(0.1, "lambda: weight of both fairness losses together.", low=0)
    contrast_weight: float = option(1.0, "eta1: weight of the cross-group contrast.", low=0)
    moment_weight: float = option(1.0, "eta2: weight of the moment alignment.", low=0)
    embedding: str = option(
        "projector",
        "z, which the fairness losses act on: the mean of the projector's output, or of the last hidden state over the "
        "image (one more pass of the language model).",
        choices=EMBEDDINGS,
    )
    reduction: str = option(
        "mean", "Of both fairness losses: mean over what is valid, or the sum as in the paper.", choices=("mean", "sum")
    )
    temperature: float = option(0.07, "tau of the cross-group contrast.", low=1e-3)
    margin: float = option(0.3, "m: negatives are images of another label with a cosine above it.", low=-1, high=1)
    hard_negative_fallback: bool = option(
        True, "Without a negative above the margin, take the hardest one; false is literal."
    )
    bank: int = option(
        0,
        "Embeddings of earlier batches that stand in where a batch has no image of the label in another group.",
        low=0,
    )
    covariance_weight: float = option(0.1, "Weight of the covariance terms in the moment alignment.", low=0)
    tower_blocks: int | None = option(
        None,
        "How many of the last blocks of the vision tower get LoRA, of those that the projector reads: none all (the "
        "paper's), 0 no block. What lies below is frozen, and computed once where augment is false.",
        low=0,
    )


def run(config: Config, inputs: Mapping[str, Path], outputs: Mapping[str, Path]) -> dict[str, Any]:
    """Write `model.json` and the adapters of both stages."""
    import time

    from fairvlm_core.models import base_path, describe
    from fairvlm_core.models.vlm import load, save
    from fairvlm_core.training.fairmed import train_stage2

    job = begin(config, inputs, outputs, read=("cohort", "base", "stage1"))
    described = describe(inputs["stage1"])
    vlm = load(inputs["stage1"], base_path(inputs["base"], "vlm"), described)
    started = time.perf_counter()
    history = train_stage2(vlm, job, config)
    seen = config.epochs * len(job.train)
    # A block that an earlier stage has trained is no longer the base's.
    before, now = described.get("base_below"), config.tower_blocks
    changed = None if before is None or now is None else max(before, now)
    save(vlm, outputs["out"], name="stage2", seed=config.seed, earlier=inputs["stage1"], tower_blocks=changed)
    return finish(history, outputs["out"], seen / (time.perf_counter() - started))

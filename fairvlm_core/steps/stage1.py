"""FairMed-VLM, Stage 1: align the projector with clinical concepts, then tune on instructions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairvlm_core.config import option
from fairvlm_core.errors import ConfigError
from fairvlm_core.steps.shared import OUTPUTS, TRAINING_INPUTS, TaskConfig, begin, finish

INPUTS = TRAINING_INPUTS
__all__ = ["INPUTS", "OUTPUTS", "Config", "run"]


@dataclass(frozen=True)
class Config(TaskConfig):
    """Parameters of the step."""

    concept_epochs: int = option(1, "Passes of concept alignment, which trains the projector alone.", low=0)
    concept_learning_rate: float = option(2e-3, "Peak learning rate of concept alignment.", low=0)
    cache_features: bool = option(
        False, "Compute the frozen tower's features once and keep them in memory; needs augment: false."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cache_features and self.augment:
            raise ConfigError(
                "Features that are computed once cannot be augmented.",
                where="stage1.cache_features",
                mend="Set stage1.augment to false, or stage1.cache_features to false.",
            )


def run(config: Config, inputs: Mapping[str, Path], outputs: Mapping[str, Path]) -> dict[str, Any]:
    """Write `model.json` and the adapter (LoRA of the language model, and the projector)."""
    import time

    from fairvlm_core.models import base_path
    from fairvlm_core.models.vlm import load_base, save
    from fairvlm_core.training.fairmed import train_stage1

    job = begin(config, inputs, outputs, read=("cohort", "base"))
    vlm = load_base(base_path(inputs["base"], "vlm"), job.train.task, job.train.store.size)
    started = time.perf_counter()
    history = train_stage1(vlm, job, config)
    seen = (config.concept_epochs + config.epochs) * len(job.train)
    save(vlm, outputs["out"], name="stage1", seed=config.seed, tower_blocks=0)
    return finish(history, outputs["out"], seen / (time.perf_counter() - started))

"""Fair-MoE: mixtures of experts in and after both encoders, trained with the contrastive loss and FOL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairvlm_core.config import option
from fairvlm_core.errors import ConfigError
from fairvlm_core.steps.shared import OUTPUTS, TRAINING_INPUTS, TrainingConfig, begin, finish

INPUTS = TRAINING_INPUTS
__all__ = ["INPUTS", "OUTPUTS", "Config", "run"]


@dataclass(frozen=True)
class Config(TrainingConfig):
    """Parameters of the step."""

    experts: int = option(4, "M: experts per mixture; 0 leaves the encoders as they are.", low=0)
    top_k: int = option(2, "Experts per token.", low=1)
    capacity: float = option(1.0, "C: an expert keeps at most ceil(C T k / M) tokens of a sample.", low=1e-3)
    gate: str = option("mlp", "Gate of the embedding mixtures.", choices=("mlp", "linear"))
    distance_weight: float = option(1.0, "Weight of L_distance, the optimal transport between groups and batch.", low=0)
    dispersion_weight: float = option(1.0, "Weight of the four dispersion terms F.", low=0)
    group_batch: int = option(32, "Pairs per group and step.", low=2)
    prompt_share: float = option(
        0.5, "Share of the pairs captioned by their label instead of their note.", low=0, high=1
    )
    train_blocks: int = option(
        0, "Blocks to train at the end of each encoder, the rest stays frozen; 0: train all.", low=0
    )
    weight_decay: float = option(0.05, "Weight decay of AdamW.", low=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.experts and self.top_k > self.experts:
            raise ConfigError(
                f"A token cannot go to {self.top_k} of {self.experts} experts.",
                where="fair_moe.top_k",
                mend="Lower top_k, or raise experts.",
            )


def run(config: Config, inputs: Mapping[str, Path], outputs: Mapping[str, Path]) -> dict[str, Any]:
    """Write `model.json` and the parameters that were trained."""
    import time

    from fairvlm_core.models import base_path
    from fairvlm_core.models.dual import Experts, load_base, save
    from fairvlm_core.training.fairmoe import train_fair_moe

    job = begin(config, inputs, outputs, read=("cohort", "base"))
    experts = Experts(config.experts, config.top_k, config.capacity, config.gate)
    checkpoint = base_path(inputs["base"], "dual")
    dual = load_base(checkpoint, job.train.task, job.train.store.size, experts=experts, seed=config.seed)
    started = time.perf_counter()
    history = train_fair_moe(dual, job, config)
    seen = config.epochs * len(job.train)
    save(dual, outputs["out"], name="fair_moe", seed=config.seed)
    return finish(history, outputs["out"], seen / (time.perf_counter() - started))

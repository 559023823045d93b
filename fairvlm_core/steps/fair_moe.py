"""Fair-MoE: mixtures of experts in and after both encoders, trained with the contrastive loss and FOL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairvlm_core.config import Port, option
from fairvlm_core.errors import ConfigError
from fairvlm_core.steps.shared import OUTPUTS, TRAINING_INPUTS, TrainingConfig, begin, finish

PLACES = ("embedding_image", "embedding_text", "feature_image", "feature_text")
POOLINGS = ("cls", "mean")
INPUTS = {
    **TRAINING_INPUTS,
    "start": Port(
        "Folder of what the image encoder starts from: that of base_models or, with init_from stage2, that of stage2.",
        optional=True,
    ),
}
__all__ = ["INPUTS", "OUTPUTS", "Config", "run"]


@dataclass(frozen=True)
class Config(TrainingConfig):
    """Parameters of the step."""

    init_from: str = option(
        "base",
        "What the image encoder starts from: base_models' dual encoder, or the vision tower that stage2 trained.",
        choices=("base", "stage2"),
    )
    experts: int = option(4, "M: experts per mixture; 0 leaves the encoders as they are.", low=0)
    top_k: int = option(2, "Experts per token.", low=1)
    capacity: float = option(1.0, "C: an expert keeps at most ceil(C T k / M) tokens of a sample.", low=1e-3)
    places: tuple[str, ...] = option(
        PLACES, "Where there are experts: in a block of an encoder (embedding) and after it (feature).", choices=PLACES
    )
    layer: int = option(-1, "Which block of each encoder has the experts; -1 is the last.")
    pooling: str = option(
        "cls",
        "What is read of the last hidden state: the token that the checkpoint reads, or the mean.",
        choices=POOLINGS,
    )
    protect_pooled: bool = option(
        False, "The token that is read (CLS, EOT) keeps its experts, whatever the capacity; true is not the paper's."
    )
    renormalise: bool = option(False, "Scale the weights that a token keeps to sum 1; false is literal.")
    residual: bool = option(True, "Experts after an encoder add to its feature; false (literal): they replace it.")
    gate: str = option("mlp", "Gate of the embedding mixtures.", choices=("mlp", "linear"))
    distance_weight: float = option(1.0, "Weight of L_distance, the optimal transport between groups and batch.", low=0)
    distance: str = option(
        "exact", "Optimal transport by sorting, or (as in the paper) by Sinkhorn.", choices=("exact", "sinkhorn")
    )
    blur: float = option(1e-4, "Smoothing of Sinkhorn's transport, in units of a cosine.", low=1e-6)
    embedding_image_weight: float = option(
        1.0, "Weight of F_EI, the dispersion of the gates in the image encoder.", low=0
    )
    embedding_text_weight: float = option(1.0, "Weight of F_ET, the same in the text encoder.", low=0)
    feature_image_weight: float = option(1.0, "Weight of F_FI, the same after the image encoder.", low=0)
    feature_text_weight: float = option(1.0, "Weight of F_FT, the same after the text encoder.", low=0)
    importance_weight: float = option(
        0.0, "Weight of the importance loss (Shazeer): experts have equal sums of weights; 0 is the paper's.", low=0
    )
    load_weight: float = option(
        0.0, "Weight of the load loss (Switch): the experts get the same number of tokens; 0 is the paper's.", low=0
    )
    z_weight: float = option(
        0.0, "Weight of the z loss (ST-MoE): the logits of the gates stay small; 0 is the paper's.", low=0
    )
    group_batches: str = option(
        "drawn",
        "The groups' pairs are drawn for them (as in the paper), or are those in the batch: nothing more is encoded.",
        choices=("drawn", "shared"),
    )
    group_batch: int = option(32, "Pairs per group and step, where they are drawn.", low=2)
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
    from fairvlm_core.models.dual import load_base, save
    from fairvlm_core.models.fair_moe import Experts
    from fairvlm_core.training.fairmoe import train_fair_moe

    tower = _tower(config, inputs)
    job = begin(config, inputs, outputs, read=("cohort", "base", *(("start",) if tower else ())))
    experts = Experts(
        count=config.experts,
        top_k=config.top_k,
        capacity=config.capacity,
        gate=config.gate,
        places=config.places,
        layer=config.layer,
        pooling=config.pooling,
        protect_pooled=config.protect_pooled,
        renormalise=config.renormalise,
        residual=config.residual,
    )
    checkpoint, size = base_path(inputs["base"], "dual"), job.train.store.size
    dual = load_base(checkpoint, job.train.task, size, experts=experts, seed=config.seed, tower=tower)
    started = time.perf_counter()
    history = train_fair_moe(dual, job, config)
    seen = config.epochs * len(job.train)
    rate = seen / (time.perf_counter() - started)
    save(dual, outputs["out"], name="fair_moe", seed=config.seed, train_blocks=config.train_blocks)
    cut = sum(dual.shorten(note) != note for note in job.train.notes if note)
    if cut:
        print(
            f"{cut} notes are longer than the text encoder's {dual.longest} tokens and were cut at a word.", flush=True
        )
    return {**finish(history, outputs["out"], rate), "notes_cut": cut}


def _tower(config: Config, inputs: Mapping[str, Path]) -> Any:
    """The vision tower that Stage 2 trained, its adapters folded in, where that is asked for.

    Raises:
        ConfigError: `start` is missing, or is not what `init_from` says.
    """
    from fairvlm_core.models import BASES_FILE, MODEL_FILE, describe, load

    start = inputs.get("start")
    if config.init_from == "base":
        if start is not None and not (start / BASES_FILE).is_file():
            raise ConfigError(
                "fair_moe.init_from is base, and --start is no folder of base_models.",
                where=str(start),
                mend="Set init_from to stage2, or pass the folder that base_models wrote. On Kubeflow, compile the "
                "pipeline again: init_from decides its wiring.",
            )
        return None
    if start is None or not (start / MODEL_FILE).is_file() or describe(start)["family"] != "vlm":
        raise ConfigError(
            "fair_moe.init_from is stage2, and --start is no folder of stage2.",
            where="--start" if start is None else str(start),
            mend="Pass the folder that stage2 wrote. On Kubeflow, set init_from in params.yaml and compile the "
            "pipeline again: it decides its wiring.",
        )
    return load(start, inputs["base"]).parts.vision_tower  # type: ignore[attr-defined]

"""What the three training steps share: the fields of their configs, and how a run begins and ends."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairvlm_core.config import Port, check, option
from fairvlm_core.errors import CohortError, ConfigError
from fairvlm_core.evaluation import CRITERIA

if TYPE_CHECKING:
    from fairvlm_core.training.batches import Samples
    from fairvlm_core.training.job import Job

DEBIASING = ("none", "reweighted_group", "reweighted_joint", "resampled", "group_dro", "adversarial")
TRAINING_INPUTS = {
    "cohort": Port("Folder that stratify wrote."),
    "images": Port("Folder that ingest wrote, with the image store."),
    "base": Port("Folder that base_models wrote."),
}
OUTPUTS = {"out": Port("Folder to write: model.json, what was trained, history.json and history.png.")}


@dataclass(frozen=True)
class TrainingConfig:
    """Parameters of every training step."""

    attributes: tuple[str, ...] = option(
        ("sex", "age_group"), "Attributes to be fair over; they also stratify the batches."
    )
    epochs: int = option(3, "Passes over the balanced training split.", low=1)
    learning_rate: float = option(2e-5, "Peak learning rate of AdamW.", low=0)
    batch_size: int = option(64, "Images per optimiser step.", low=2)
    oversample: float = option(1.5, "Minority strata are repeated up to this multiple of the median stratum.", low=0)
    augment: bool = option(True, "Colour jitter and rotation of at most 10 degrees for the repetitions.")
    criterion: str = option("auc", "What selects the epoch on validation.", choices=CRITERIA)
    seed: int = option(0, "Seed of everything random in this step.", low=0)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class TaskConfig(TrainingConfig):
    """Parameters of L_task, which both stages of FairMed-VLM minimise."""

    instruction_weight: float = option(1.0, "alpha: weight of L_inst.", low=0)
    answer_weight: float = option(1.0, "beta: weight of L_qa.", low=0)
    concept_weight: float = option(1.0, "gamma: weight of L_concept.", low=0)
    concept_temperature: float = option(0.07, "tau_c of L_concept.", low=1e-3)
    describe: bool = option(True, "Also learn to write the note, where there is one.")
    conversations: str = option(
        "", "JSON file of conversations about training images, in LLaVA's form, to learn from as well."
    )
    demographic_prompts: bool = option(True, "State sex and age before the question in training; never at inference.")
    demographic_dropout: float = option(0.5, "Share of the demographic prompts that is left out.", low=0, high=1)
    lora_rank: int = option(32, "Rank of the LoRA matrices.", low=1)
    lora_alpha: int = option(64, "Scale of the LoRA matrices.", low=1)
    debiasing: str = option(
        "none", "Baseline that changes how L_inst and L_qa are minimised, or on which images.", choices=DEBIASING
    )
    adversary_weight: float = option(1.0, "alpha of adversarial debiasing: how hard the adversary is hindered.", low=0)
    dro_step: float = option(0.01, "Step size of GroupDRO's weights.", low=0)
    micro_batch: int = option(
        0, "Images that the language model takes at once; the losses still see the batch whole. 0: all.", low=0
    )
    checkpoint_gradients: bool = option(
        False, "Compute activations again in the backward pass instead of keeping them: less memory, a third more time."
    )
    shard: bool = option(
        False,
        "Spread the model's weights over the processes that torchrun started (FSDP2), when one GPU cannot hold it.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shard and self.debiasing == "adversarial":
            raise ConfigError(
                "Adversarial debiasing needs two gradients of one forward pass, which a sharded model does not give.",
                where="shard, debiasing",
                mend="Set shard to false, or choose another debiasing.",
            )


def begin(
    config: TrainingConfig, inputs: Mapping[str, Path], outputs: Mapping[str, Path], *, read: tuple[str, ...]
) -> Job:
    """Read the two splits a training step may see, and say where its checkpoints are.

    Args:
        read: the inputs that decide the result, for the fingerprint that guards a checkpoint.
    """
    from fairvlm_core.files import checkpoint_folder, fingerprint
    from fairvlm_core.training.batches import read_samples
    from fairvlm_core.training.job import Job

    conversations = Path(config.conversations) if isinstance(config, TaskConfig) and config.conversations else None
    splits = {
        split: read_samples(inputs["cohort"], inputs["images"], split, config.attributes, told)
        for split, told in (("train", conversations), ("validation", None))
    }
    decisive = {name: inputs[name] for name in read}
    if conversations:
        decisive["conversations"] = conversations
    _check_groups(splits["train"])
    return Job(
        train=splits["train"],
        validation=splits["validation"],
        checkpoint=checkpoint_folder(outputs["out"]),
        key=fingerprint(dataclasses.asdict(config), decisive),
        seed=config.seed,
        batch_size=config.batch_size,
        oversample=config.oversample,
        augment=config.augment,
        criterion=config.criterion,
        equal_shares=isinstance(config, TaskConfig) and config.shard,
        resample=isinstance(config, TaskConfig) and config.debiasing == "resampled",
    )


def _check_groups(samples: Samples) -> None:
    """A model cannot be made fair to a group that it never sees."""
    for k, attribute in enumerate(samples.attributes):
        for code, group in enumerate(samples.group_names[attribute]):
            if (samples.groups[:, k] == code).sum() < 2:
                raise CohortError(
                    f'Fewer than two training images are of the group "{group}", so it has no distribution.',
                    where=f"attribute {attribute}",
                    mend=f"Leave {attribute} out of the step's attributes, or add patients of the group to the cohort.",
                )


def finish(history: dict[str, list[dict[str, float]]], out: Path, images_per_second: float) -> dict[str, Any]:
    """Write how training went, as numbers and as a picture; returns the step's metrics."""
    from fairvlm_core.files import write_json
    from fairvlm_core.training.curves import ROUTING, draw_history

    write_json(out / "history.json", history)
    draw_history(history, out / "history.png")
    last = list(history.values())[-1]
    best = max(last, key=lambda epoch: epoch.get("score", float("-inf")))
    # Of the routing's many figures, the share of lost CLS and EOT is the one that decides what the experts can do.
    final = {
        name: value
        for name, value in last[-1].items()
        if name not in ("epoch", "score") and (not name.startswith(ROUTING) or name.endswith(".cls_drop_rate"))
    }
    return {
        "best_epoch": best["epoch"],
        "images_per_second": round(images_per_second, 1),
        **{f"validation_{name}": round(best[name], 6) for name in CRITERIA if name in best},
        **{f"final_{name}": round(value, 6) for name, value in final.items()},
    }

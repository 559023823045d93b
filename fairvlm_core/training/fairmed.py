"""The two stages of FairMed-VLM, put together from batches, objectives, the two-pass gradient and the engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fairvlm_core.losses import fairness_terms
from fairvlm_core.losses.bank import bank_from_tensors, bank_tensors, empty_bank, remember
from fairvlm_core.models import device
from fairvlm_core.models.packing import micro_batches, packed_length
from fairvlm_core.models.trunk import Trunk
from fairvlm_core.models.vlm import VLM
from fairvlm_core.training import ranks
from fairvlm_core.training.baselines import project_gradients
from fairvlm_core.training.batches import Samples
from fairvlm_core.training.debiasing import debiasing
from fairvlm_core.training.engine import Schedule
from fairvlm_core.training.job import Job, Tower
from fairvlm_core.training.objectives import (
    Batch,
    Terms,
    answer_losses,
    answer_totals,
    concept_loss,
    converse,
    demographics_of,
)
from fairvlm_core.training.passes import batch_gradient, in_rows, mean_pooled
from fairvlm_core.training.sharding import shard

ADVERSARY_RATE = 10.0  # an adversary that learns as slowly as what it watches never catches up


def train_stage1(vlm: VLM, job: Job, config: Any) -> dict[str, list]:
    """Concept alignment of the projector, then instruction tuning (FairMed-VLM, Stage 1); the tower is frozen."""
    prepare(vlm, job, config, tower_blocks=0)
    vlm.llava.eval()  # the tower's features must not depend on dropout
    trunk = split(vlm, config, 0)
    train = Tower(job.train, trunk, cache=config.cache_features, label="training")
    validation = Tower(job.validation, trunk, cache=True, label="validation")
    vlm.llava.train()
    named = {name: p for name, p in vlm.llava.named_parameters() if p.requires_grad}
    projector = {name: p for name, p in named.items() if "multi_modal_projector" in name}

    def features(batch: Batch, generator: torch.Generator, part: slice) -> Tensor:
        with torch.no_grad():
            return train.features(train.inputs(batch, generator if job.augment else None, part))

    def concept(batch: Batch, generator: torch.Generator) -> Terms:
        mine = features(batch, generator, ranks.share(len(batch.indices)))

        def coupled(z: Tensor) -> Terms:
            labels = torch.from_numpy(job.train.labels[batch.indices]).to(z.device)
            loss = concept_loss(vlm, z, labels, config.concept_temperature)
            return {"loss": loss, "concept": loss}

        return batch_gradient(
            [np.arange(len(mine))],
            len(batch.indices),
            tokens=lambda rows: vlm.project(mine[rows]),
            coupled=coupled,
            separate=lambda _, tokens: {"loss": tokens.sum() * 0},
            parameters=projector.values(),
        )

    history = {}
    if config.concept_epochs:
        schedule = Schedule(config.concept_epochs, config.concept_learning_rate)
        history["concept"] = job.fit(projector, schedule, concept, None, "concept_alignment")
    history["instruction"] = tune(
        vlm, job, config, named, validation, "instruction_tuning", inputs=features, tokens=vlm.project
    )
    return history


def train_stage2(vlm: VLM, job: Job, config: Any) -> dict[str, list]:
    """LoRA on tower and language model with the fairness losses on z (FairMed-VLM, Stage 2).

    What lies below the blocks of the tower that are trained is frozen: computed once, unless images are augmented.
    """
    prepare(vlm, job, config, tower_blocks=config.tower_blocks)
    vlm.llava.eval()  # what is frozen must not depend on dropout
    trunk, frozen = split(vlm, config, config.tower_blocks), config.tower_blocks is not None
    train = Tower(job.train, trunk, cache=frozen and not job.augment, label="training")
    validation = Tower(job.validation, trunk, cache=frozen, label="validation")
    vlm.llava.train()
    named = {name: p for name, p in vlm.llava.named_parameters() if p.requires_grad}

    def pictures(batch: Batch, generator: torch.Generator, part: slice) -> Tensor:
        return train.inputs(batch, generator if job.augment else None, part)

    remembered = _bank(vlm, job.train, config.bank) if config.bank else {}

    def fairness(z: Tensor, batch: Batch) -> Terms:
        labels = job.train.targets(batch.indices).to(z.device)
        groups = torch.from_numpy(job.train.groups[batch.indices]).to(z.device)
        bank = bank_from_tensors(remembered) if remembered else None
        terms = fairness_terms(
            z,
            labels,
            groups,
            temperature=config.temperature,
            margin=config.margin,
            hard_negative_fallback=config.hard_negative_fallback,
            covariance_weight=config.covariance_weight,
            reduction=config.reduction,
            bank=bank,
        )
        if bank is not None:
            remember(bank, z, labels, groups)
            remembered["seen"].fill_(bank.seen)
        added = config.contrast_weight * terms["contrast"] + config.moment_weight * terms["moments"]
        return {**terms, "loss": config.fairness_weight * added}

    def tokens(images: Any) -> Tensor:
        return vlm.project(train.features(images))

    def with_hidden_state(image_tokens: Tensor) -> Tensor:
        return torch.cat([mean_pooled(image_tokens), vlm.read(image_tokens)], 1)

    found = tune(
        vlm,
        job,
        config,
        named,
        validation,
        "fairness_tuning",
        inputs=pictures,
        tokens=tokens,
        embed=mean_pooled if config.embedding == "projector" else with_hidden_state,
        fairness=fairness,
        buffers={f"bank.{name}": value for name, value in remembered.items()},
    )
    return {"fairness": found}


def prepare(vlm: VLM, job: Job, config: Any, *, tower_blocks: int | None) -> None:
    """Give the model its LoRA matrices (the tower in its last blocks, None: all), and lay it out as the config asks."""
    torch.manual_seed(job.seed)  # LoRA starts at random
    vlm.add_adapter(rank=config.lora_rank, alpha=config.lora_alpha, tower=tower_blocks != 0, tower_blocks=tower_blocks)
    if config.checkpoint_gradients:
        vlm.checkpoint_gradients()
    if config.shard:
        shard(vlm)


def split(vlm: VLM, config: Any, tower_blocks: int | None) -> Trunk:
    """The tower's trunk, and the rest of it; a rank that holds a part of the weights cannot say whose trunk it is."""
    trunk = vlm.trunk_below(tower_blocks)
    return replace(trunk, shared=False) if config.shard else trunk


def _bank(vlm: VLM, samples: Samples, capacity: int) -> dict[str, Tensor]:
    """The tensors of an empty memory bank for z of this model."""
    bank = empty_bank(
        capacity,
        dim=vlm.llava.config.text_config.hidden_size,
        attributes=len(samples.attributes),
        labels=samples.labels.shape[1] if samples.task.kind == "multilabel" else None,
        device=device(),
    )
    return bank_tensors(bank)


def tune(
    vlm: VLM,
    job: Job,
    config: Any,
    named: dict[str, nn.Parameter],
    validation: Tower,
    name: str,
    *,
    inputs: Callable[[Batch, torch.Generator, slice], Any],
    tokens: Callable[[Any], Tensor],
    embed: Callable[[Tensor], Tensor] = mean_pooled,
    fairness: Callable[[Tensor, Batch], Terms] | None = None,
    buffers: dict[str, Tensor] | None = None,
) -> list[dict[str, float]]:
    """Minimise L_task = alpha L_inst + beta L_qa + gamma L_concept, and what is added to it on z.

    Args:
        named: what is trained of the model.
        inputs: batch, generator, part -> what `tokens` takes, for these images of the batch.
        tokens: -> image tokens [m, P, d].
        embed: image tokens -> their mean over the image, for L_concept, and behind it, where `fairness` acts on another
            embedding, that one.
        fairness: z, batch -> terms of which "loss" is added (FairMed-VLM, Stage 2).
        buffers: what `fairness` remembers from step to step.
    """
    method = debiasing(
        config.debiasing, job.train, alpha=config.adversary_weight, step_size=config.dro_step, device=device()
    )

    width = vlm.llava.config.text_config.hidden_size

    def gradients(batch: Batch, generator: torch.Generator) -> Terms:
        count, labels = len(batch.indices), job.train.labels[batch.indices]
        mine = ranks.share(count)
        given = inputs(batch, generator, mine)
        notes = [job.train.notes[i] if config.describe else None for i in batch.indices]
        # Dropping every demographic prompt is the same as not using them.
        dropout = config.demographic_dropout if config.demographic_prompts else 1.0
        said = demographics_of(job.train, batch.indices, dropout, generator)
        told = [job.train.told[i] for i in batch.indices]
        asked = converse(vlm, labels, notes, told, said, method.batch_weights(batch.indices))
        lengths = [packed_length(turns) for turns in asked.turns]
        parts = parts_of(lengths, config.micro_batch or count, alike=config.shard)
        against = None
        if method.looks_first:
            with torch.no_grad():
                seen = []
                for part in parts:
                    rows = mine.start + part
                    seen.append(answer_losses(vlm, tokens(given[part]), labels[rows], asked[rows])[2])
            scores = ranks.gather_rows(in_rows(seen, parts), count)
            if method.method == "group_dro":
                asked = replace(asked, weights=method.group_weights(scores, batch.indices))
            else:
                against = method.against(scores, batch.indices)
        totals = answer_totals(asked, labels, vlm.task.kind)

        def coupled(z: Tensor) -> Terms:
            projected, embedding = z[:, :width], z[:, -width:]
            concept = concept_loss(vlm, projected, torch.from_numpy(labels).to(z.device), config.concept_temperature)
            terms: Terms = {"concept": concept, "loss": config.concept_weight * concept}
            if fairness is not None:
                added = fairness(embedding, batch)
                terms = {**added, **terms, "loss": terms["loss"] + added["loss"]}
            return terms

        def separate(part: np.ndarray, image_tokens: Tensor) -> Terms:
            rows = mine.start + part
            instruction, answers, scores = answer_losses(vlm, image_tokens, labels[rows], asked[rows], totals)
            loss = config.instruction_weight * instruction + config.answer_weight * answers
            terms: Terms = {"loss": loss, "instruction": instruction, "answers": answers}
            if against is not None:
                terms["against"] = (scores * against[rows]).sum()
            return terms

        return batch_gradient(
            parts,
            count,
            tokens=lambda part: tokens(given[part]),
            coupled=coupled,
            separate=separate,
            embed=embed,
            parameters=named.values(),
            correct=None if against is None else partial(project_gradients, alpha=method.alpha),
        )

    beside = method.parameters
    return job.fit(
        {**named, **beside},
        Schedule(config.epochs, config.learning_rate),
        gradients,
        vlm_score(vlm, validation),
        name,
        buffers={**method.buffers, **(buffers or {})},
        faster=dict.fromkeys(beside, ADVERSARY_RATE),
    )


def parts_of(lengths: Sequence[int], size: int, *, alike: bool) -> list[np.ndarray]:
    """This rank's rows of a batch in parts of similar packed length.

    Args:
        lengths: packed length of each image of the whole batch.
        size: images per part at most.
        alike: every rank makes equally many parts, for the ranks of a sharded model meet in every forward pass.
    """
    shares = ranks.all_shares(len(lengths))
    if size >= max(part.stop - part.start for part in shares):
        return [np.arange(len(lengths[shares[ranks.rank()]]))]
    each = [micro_batches(lengths[part], size) for part in shares]
    mine = [np.array(sorted(part)) for part in each[ranks.rank()]]
    while alike and len(mine) < max(map(len, each)):
        largest = max(range(len(mine)), key=lambda i: len(mine[i]))
        mine[largest : largest + 1] = np.array_split(mine[largest], 2)
    return mine


def vlm_score(vlm: VLM, tower: Tower) -> Callable[[], np.ndarray]:
    """Probabilities of all samples of a tower, each rank scoring its share."""

    def score() -> np.ndarray:
        vlm.llava.eval()
        with torch.no_grad():
            found = [vlm.score_features(features) for features in tower.in_order()]
            rows = torch.cat(found) if found else torch.zeros(0, len(vlm.task.labels))
        vlm.llava.train()
        return ranks.gather_rows(rows.float(), len(tower.samples)).cpu().numpy()

    return score

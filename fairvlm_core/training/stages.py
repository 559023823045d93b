"""The two stages of FairMed-VLM and the training of Fair-MoE, put together from batches, objectives and the engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairvlm_core.evaluation.predictions import Scores
from fairvlm_core.evaluation.selection import selection_figures
from fairvlm_core.evaluation.thresholds import decide
from fairvlm_core.models.dual import DualEncoder
from fairvlm_core.models.moe import routing_statistics
from fairvlm_core.models.vlm import VLM
from fairvlm_core.training.batches import Samples, augment, balanced_epoch, strata, stratified_batches
from fairvlm_core.training.engine import Schedule, fit
from fairvlm_core.training.objectives import (
    Batch,
    GroupBatches,
    answer_losses,
    concept_loss,
    demographics_of,
    draw_groups,
    encode_unique,
    fairness_losses,
    fairness_oriented_loss,
    image_text_loss,
    same_text,
    texts_for,
)

FEATURE_BATCH = 64


@dataclass(frozen=True)
class Job:
    """What every training run is told besides its losses.

    Attributes:
        train, validation: the two splits; test is never read here.
        checkpoint: folder for the files to resume from.
        key: fingerprint of config and inputs.
        criterion: what selects the epoch on validation.
    """

    train: Samples
    validation: Samples
    checkpoint: Path
    key: str
    seed: int
    batch_size: int
    oversample: float
    augment: bool
    criterion: str

    def epoch(self, number: int) -> list[Batch]:
        """The batches of an epoch: balanced, stratified over label x attributes, the same for the same seed."""
        rng = np.random.default_rng([self.seed, number])
        stratum = strata(self.train.labels, self.train.groups)
        indices, repeated = balanced_epoch(stratum, self.oversample, rng)
        places = stratified_batches(stratum[indices], self.batch_size, rng)
        # A last crumb of a batch has neither positives nor groups, and would count as much as a full one.
        kept = [place for place in places if len(place) * 2 >= self.batch_size] or places
        return [Batch(indices[place], repeated[place]) for place in kept]

    def fit(
        self, parameters: Any, schedule: Schedule, losses: Any, score: Callable[[], np.ndarray] | None, name: str
    ) -> list:
        """Train one phase; `score` gives the probabilities of the validation split."""
        return fit(
            parameters,
            schedule=schedule,
            batches=self.epoch,
            losses=losses,
            validate=None if score is None else lambda: judged(self.validation, score(), self.criterion),
            checkpoint=self.checkpoint / f"{name}.safetensors",
            key=self.key,
            seed=self.seed,
            label=name.replace("_", " ").capitalize(),
        )


def judged(samples: Samples, y_score: np.ndarray, criterion: str) -> dict[str, float]:
    """The validation figures of one epoch, by the code that judges every model."""
    names = samples.group_names
    groups = {
        attribute: np.array(
            [names[attribute][code] if code >= 0 else None for code in samples.groups[:, k]], dtype=object
        )
        for k, attribute in enumerate(samples.attributes)
    }
    ids = np.arange(len(samples)).astype(object)
    kind = samples.task.kind
    scores = Scores(
        sample_ids=ids,
        patient_ids=ids,
        labels=samples.task.labels,
        y_true=samples.labels.astype(float),
        y_score=y_score.astype(float),
        y_pred=decide(y_score, np.full(y_score.shape[1], 0.5), kind),
        groups=groups,
        kind=kind,
        model="",
    )
    return selection_figures(scores, criterion)


class Tower:
    """The lower part of the image side: computed once where it is frozen, else at each step."""

    def __init__(self, samples: Samples, compute: Callable[[Any], Tensor], *, cache: bool, label: str) -> None:
        self.samples, self.compute = samples, compute
        self.cached: Tensor | None = None
        if cache:
            from fairvlm_core.progress import track

            # Repetitions share their image; each image is computed once.
            rows, self.place = np.unique(samples.rows, return_inverse=True)
            first = np.array([np.flatnonzero(self.place == i)[0] for i in range(len(rows))])
            parts = []
            with torch.no_grad():
                for start in track(range(0, len(rows), FEATURE_BATCH), f"Image features, {label}"):
                    parts.append(compute(samples.images(first[start : start + FEATURE_BATCH])))
            self.cached = torch.cat(parts)

    def __call__(self, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
        """Features of a batch; images of repetitions are augmented where a generator is given."""
        if self.cached is not None:
            return self.cached[self.place[batch.indices]]
        images: Any = self.samples.images(batch.indices)
        if generator is not None:
            images = augment(images, batch.repeated, generator)
        return self.compute(images)

    def in_order(self) -> list[Tensor]:
        """Features of all samples, in order and in batches, without augmentation."""
        none = np.zeros(FEATURE_BATCH, dtype=bool)
        return [
            self(Batch(np.arange(start, min(start + FEATURE_BATCH, len(self.samples))), none))
            for start in range(0, len(self.samples), FEATURE_BATCH)
        ]


def _vlm_score(vlm: VLM, tower: Callable[[], Sequence[Tensor]]) -> Callable[[], np.ndarray]:
    def score() -> np.ndarray:
        vlm.llava.eval()
        with torch.no_grad():
            found = torch.cat([vlm.score_features(features) for features in tower()]).float().cpu().numpy()
        vlm.llava.train()
        return found

    return score


def train_stage1(vlm: VLM, job: Job, config: Any) -> dict[str, list]:
    """Concept alignment of the projector, then instruction tuning (FairMed-VLM, Stage 1); the tower is frozen."""
    torch.manual_seed(job.seed)  # LoRA starts at random
    vlm.add_adapter(rank=config.lora_rank, alpha=config.lora_alpha, tower=False)
    vlm.llava.eval()  # the tower's features must not depend on dropout
    train = Tower(job.train, vlm.features, cache=config.cache_features, label="training")
    validation = Tower(job.validation, vlm.features, cache=True, label="validation")
    vlm.llava.train()
    named = {name: p for name, p in vlm.llava.named_parameters() if p.requires_grad}
    projector = {name: p for name, p in named.items() if "multi_modal_projector" in name}

    def image_tokens(batch: Batch, generator: torch.Generator) -> Tensor:
        with torch.no_grad():
            features = train(batch, generator if job.augment else None)
        return vlm.project(features)

    def concept(batch: Batch, generator: torch.Generator) -> dict[str, Tensor | float]:
        labels = torch.from_numpy(job.train.labels[batch.indices])
        loss = concept_loss(vlm, image_tokens(batch, generator), labels)
        return {"loss": loss, "concept": loss.detach()}

    def instruction(batch: Batch, generator: torch.Generator) -> dict[str, Tensor | float]:
        return task_terms(vlm, image_tokens(batch, generator), job.train, batch, config, generator)

    history = {}
    if config.concept_epochs:
        schedule = Schedule(config.concept_epochs, config.concept_learning_rate)
        history["concept"] = job.fit(projector, schedule, concept, None, "concept_alignment")
    schedule = Schedule(config.epochs, config.learning_rate)
    history["instruction"] = job.fit(
        named, schedule, instruction, _vlm_score(vlm, validation.in_order), "instruction_tuning"
    )
    return history


def train_stage2(vlm: VLM, job: Job, config: Any) -> dict[str, list]:
    """LoRA on tower and language model with the fairness losses on z (FairMed-VLM, Stage 2)."""
    torch.manual_seed(job.seed)  # LoRA starts at random
    vlm.add_adapter(rank=config.lora_rank, alpha=config.lora_alpha, tower=True)
    vlm.llava.train()
    train = Tower(job.train, vlm.features, cache=False, label="training")
    validation = Tower(job.validation, vlm.features, cache=False, label="validation")
    named = {name: p for name, p in vlm.llava.named_parameters() if p.requires_grad}

    def total(batch: Batch, generator: torch.Generator) -> dict[str, Tensor | float]:
        tokens = vlm.project(train(batch, generator if job.augment else None))
        terms = task_terms(vlm, tokens, job.train, batch, config, generator)
        fairness = fairness_losses(
            tokens.mean(1),
            job.train.targets(batch.indices).to(tokens.device),
            torch.from_numpy(job.train.groups[batch.indices]).to(tokens.device),
            temperature=config.temperature,
            margin=config.margin,
            hard_negative_fallback=config.hard_negative_fallback,
            covariance_weight=config.covariance_weight,
        )
        added = config.contrast_weight * fairness["contrast"] + config.moment_weight * fairness["moments"]
        loss = terms["loss"] + config.fairness_weight * added
        return {**terms, **fairness, "task": terms["loss"], "loss": loss}

    schedule = Schedule(config.epochs, config.learning_rate)
    return {"fairness": job.fit(named, schedule, total, _vlm_score(vlm, validation.in_order), "fairness_tuning")}


def task_terms(
    vlm: VLM, tokens: Tensor, samples: Samples, batch: Batch, config: Any, generator: torch.Generator
) -> dict[str, Tensor | float]:
    """L_task = alpha L_inst + beta L_qa + gamma L_concept (FairMed-VLM, Stage 1)."""
    labels = samples.labels[batch.indices]
    notes = [samples.notes[i] if config.describe else None for i in batch.indices]
    # Dropping every demographic prompt is the same as not using them.
    dropout = config.demographic_dropout if config.demographic_prompts else 1.0
    asked = demographics_of(samples, batch.indices, dropout, generator)
    instruction, answers = answer_losses(vlm, tokens, labels, notes, asked)
    concept = concept_loss(vlm, tokens, torch.from_numpy(labels).to(tokens.device))
    loss = config.instruction_weight * instruction + config.answer_weight * answers + config.concept_weight * concept
    return {"loss": loss, "instruction": instruction.detach(), "answers": answers.detach(), "concept": concept.detach()}


def train_fair_moe(dual: DualEncoder, job: Job, config: Any) -> dict[str, list]:
    """The contrastive loss plus FOL, all group batches in the forward pass of the batch (Fair-MoE)."""
    dual.freeze(config.train_blocks)
    depth = config.train_blocks or len(dual.model.vision_model.encoder.layers)
    compute = lambda images: dual.trunk(images, depth)  # noqa: E731 (two towers share it)
    frozen = bool(config.train_blocks)
    dual.train(False)
    train = Tower(job.train, compute, cache=frozen and not job.augment, label="training")
    validation = Tower(job.validation, compute, cache=frozen, label="validation")
    dual.train()

    def losses(batch: Batch, generator: torch.Generator) -> dict[str, Tensor | float]:
        drawn = draw_groups(job.train, config.group_batch, generator)
        indices = np.concatenate([batch.indices, *drawn])
        repeated = np.concatenate([batch.repeated, np.zeros(len(indices) - len(batch.indices), dtype=bool)])
        texts = texts_for(job.train, indices, config.prompt_share, generator)
        # A pair whose label is unknown and that has no note says nothing.
        said = np.array([text is not None for text in texts])
        sizes = [int(part.sum()) for part in np.split(said, np.cumsum([len(batch.indices), *map(len, drawn)])[:-1])]
        ends = np.cumsum(sizes)
        layout = GroupBatches(sizes[0], tuple(zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)))
        tokens = train(Batch(indices[said], repeated[said]), generator if job.augment else None)
        image = dual.head(tokens, depth)
        spoken = [text for text in texts if text is not None]
        text, mask = encode_unique(dual, spoken)
        first = slice(0, layout.batch)
        same = same_text(spoken[: layout.batch]).to(tokens.device)
        scale = dual.model.logit_scale.exp().clamp(max=100)
        contrast = image_text_loss(image.features[first], text.features[first], same, scale)
        fol = fairness_oriented_loss(image, text, layout, (None, mask))
        dispersion = sum((value for name, value in fol.items() if name.startswith("dispersion")), contrast * 0)
        loss = contrast + config.distance_weight * fol["distance"] + config.dispersion_weight * dispersion
        return {"loss": loss, "contrast": contrast.detach(), **_detached(fol), **_routing(image)}

    def score() -> np.ndarray:
        dual.train(False)
        with torch.no_grad():
            features = torch.cat([dual.head(tokens, depth).features for tokens in validation.in_order()])
        found = dual.score_features(features).cpu().numpy()
        dual.train()
        return found

    schedule = Schedule(config.epochs, config.learning_rate, weight_decay=config.weight_decay)
    return {"training": job.fit(dual.named_parameters(), schedule, losses, score, "fair_moe")}


def _detached(terms: dict[str, Any]) -> dict[str, Any]:
    return {name: value.detach() if isinstance(value, Tensor) else value for name, value in terms.items()}


def _routing(image: Any) -> dict[str, float]:
    """Whether the image experts collapse, and whether CLS loses them."""
    if "embedding" not in image.gates:
        return {}
    found = routing_statistics(image.gates["embedding"])
    return {name: found[name] for name in ("cls_drop_rate", "gate_entropy")}

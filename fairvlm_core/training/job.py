"""What every training run has: its samples and batches, its features, its validation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairvlm_core.evaluation.predictions import Scores
from fairvlm_core.evaluation.selection import selection_figures
from fairvlm_core.evaluation.thresholds import decide
from fairvlm_core.models import device
from fairvlm_core.models.trunk import Trunk, trunk_tokens
from fairvlm_core.training import ranks
from fairvlm_core.training.batches import (
    Samples,
    augment,
    balanced_epoch,
    resampled_epoch,
    strata,
    stratified_batches,
)
from fairvlm_core.training.engine import Schedule, fit
from fairvlm_core.training.objectives import Batch

FEATURE_BATCH = 64


@dataclass(frozen=True)
class Job:
    """What every training run is told besides its losses.

    Attributes:
        train, validation: the two splits; test is never read here.
        checkpoint: folder for the files to resume from.
        key: fingerprint of config and inputs.
        criterion: what selects the epoch on validation.
        equal_shares: every rank must get as many images of a batch as the others; a last batch that cannot be divided
            loses the images that are over.
        resample: every stratum comes equally often, in an epoch that is no longer; `oversample` then has no say.
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
    equal_shares: bool = False
    resample: bool = False

    def epoch(self, number: int) -> list[Batch]:
        """The batches of an epoch: balanced, stratified over label x attributes, the same for the same seed."""
        rng = np.random.default_rng([self.seed, number])
        stratum = strata(self.train.labels, self.train.groups)
        if self.resample:
            indices, repeated = resampled_epoch(stratum, rng)
        else:
            indices, repeated = balanced_epoch(stratum, self.oversample, rng)
        places = stratified_batches(stratum[indices], self.batch_size, rng)
        # A last crumb of a batch has neither positives nor groups, and would count as much as a full one.
        kept = [place for place in places if len(place) * 2 >= self.batch_size] or places
        if self.equal_shares:
            kept = [place[: len(place) // ranks.size() * ranks.size()] for place in kept]
        return [Batch(indices[place], repeated[place]) for place in kept]

    def fit(
        self,
        parameters: Any,
        schedule: Schedule,
        gradients: Any,
        score: Callable[[], np.ndarray] | None,
        name: str,
        buffers: dict[str, Tensor] | None = None,
        faster: dict[str, float] | None = None,
    ) -> list:
        """Train one phase; `score` gives the probabilities of the validation split."""
        return fit(
            parameters,
            schedule=schedule,
            batches=self.epoch,
            gradients=gradients,
            validate=None if score is None else lambda: judged(self.validation, score(), self.criterion),
            checkpoint=self.checkpoint / f"{name}.safetensors",
            key=self.key,
            seed=self.seed,
            label=name.replace("_", " ").capitalize(),
            buffers=buffers,
            faster=faster,
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
    """The image side of a split: its trunk is computed once where it is frozen, else at each step."""

    def __init__(self, samples: Samples, trunk: Trunk, *, cache: bool, label: str) -> None:
        self.samples, self.trunk = samples, trunk
        self.cached: Tensor | None = None
        if cache:
            # Repetitions share their image; each image is computed once.
            rows, self.place = np.unique(samples.rows, return_inverse=True)
            self.cached = trunk_tokens(trunk, samples.store, rows, label=label)

    def inputs(self, batch: Batch, generator: torch.Generator | None = None, part: slice | None = None) -> Any:
        """What `tokens` and `features` take, for a part of a batch (by default all of it).

        Images of repetitions are augmented where a generator is given; it is drawn from for the whole batch, so that
        the parts are those of the whole.
        """
        part = part or slice(0, len(batch.indices))
        if self.cached is not None:
            return self.cached[self.place[batch.indices[part]]].to(device())
        images: Any = self.samples.images(batch.indices[part])
        return images if generator is None else augment(images, batch.repeated, generator, part)

    def tokens(self, inputs: Any) -> Tensor:
        """What the trunk gives, which may have been computed before."""
        return inputs if self.cached is not None else self.trunk.lower(inputs)

    def features(self, inputs: Any) -> Tensor:
        """What the trunk and the rest give."""
        return self.trunk.upper(self.tokens(inputs))

    def in_order(self) -> list[Tensor]:
        """Features of this rank's share of the samples, in order and in batches, without augmentation."""
        mine = np.arange(len(self.samples))[ranks.share(len(self.samples))]
        none = np.zeros(FEATURE_BATCH, dtype=bool)
        parts = ranks.shares(len(self.samples), FEATURE_BATCH)
        return [self.features(self.inputs(Batch(mine[part], none))) for part in parts]

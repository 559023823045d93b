"""Which samples a training step sees: balanced epochs, stratified batches, and mild augmentation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional as F

from fairvlm_core.cohort.conversations import Rounds, conversations_of, read_conversations
from fairvlm_core.cohort.images import ImageStore
from fairvlm_core.cohort.table import Task, group_codes, groups_of, label_matrix, read_cohort, rows_of, task_of
from fairvlm_core.errors import CohortError


@dataclass(frozen=True)
class Samples:
    """One split of a cohort, ready for training; n samples, L labels, K attributes.

    Attributes:
        labels: float32 [n, L], NaN where unknown.
        groups: int64 [n, K], -1 where unknown.
        rows: int64 [n], the samples' places in the image store.
        notes, sexes, ages: None where unknown.
        told: conversations about each image, beside the questions that its labels answer.
    """

    task: Task
    store: ImageStore
    labels: np.ndarray
    groups: np.ndarray
    attributes: tuple[str, ...]
    group_names: dict[str, tuple[str, ...]]
    rows: np.ndarray
    notes: list[str | None]
    sexes: list[str | None]
    ages: list[float | None]
    told: list[list[Rounds]]

    def __len__(self) -> int:
        return len(self.rows)

    def images(self, indices: np.ndarray) -> np.ndarray:
        """uint8 [m, S, S, 3]."""
        return self.store.at(self.rows[indices])

    def targets(self, indices: np.ndarray) -> Tensor:
        """Labels as the fairness losses take them: classes int64 [m] (-1 unknown), or float32 [m, L] for multilabel."""
        labels = self.labels[indices]
        if self.task.kind == "multilabel":
            return torch.from_numpy(labels)
        known = ~np.isnan(labels).any(1)
        chosen = labels.argmax(1) if self.task.kind == "multiclass" else np.nan_to_num(labels[:, 0])
        return torch.from_numpy(np.where(known, chosen, -1).astype(np.int64))


def read_samples(
    cohort: Path, images: Path, split: str, attributes: Sequence[str], conversations: Path | None = None
) -> Samples:
    """Read one split of a stratified cohort, its images, and the conversations about them.

    Raises:
        CohortError: when the split is empty, an attribute is not in the cohort, or the conversations cannot be used.
    """
    table: pa.Table = rows_of(read_cohort(cohort), split)
    if not len(table):
        raise CohortError(
            f"The cohort has no {split} split.",
            where=str(cohort),
            mend="Run `fairvlm stratify` first, and pass its folder.",
        )
    store = ImageStore.open(images)
    keys = table.column("image").to_pylist()
    return Samples(
        task=task_of(table),
        store=store,
        labels=label_matrix(table),
        groups=group_codes(table, attributes),
        attributes=tuple(attributes),
        group_names=groups_of(table),
        rows=store.rows(keys),
        notes=table.column("note").to_pylist(),
        sexes=table.column("sex").to_pylist(),
        ages=table.column("age").to_pylist(),
        told=conversations_of(read_conversations(conversations), keys) if conversations else [[] for _ in keys],
    )


def strata(labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Number of each sample's stratum, int64 [n]: samples with the same labels and the same groups share one."""
    keys = np.concatenate([np.nan_to_num(labels, nan=-1), groups], axis=1)
    return np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1)


def balanced_epoch(stratum: np.ndarray, cap: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One epoch's samples: every one once, and minority strata repeated (FairMed-VLM, training sampler).

    A stratum is filled up to the largest one, but to no more than `cap` times the median stratum.

    Returns:
        indices int64 [m], and bool [m]: true where the sample is a repetition, which is to be augmented.
    """
    members = [np.flatnonzero(stratum == number) for number in range(stratum.max() + 1)]
    sizes = np.array([len(rows) for rows in members])
    target = int(min(sizes.max(), cap * np.median(sizes)))
    repeats = [rng.choice(rows, target - len(rows)) for rows in members if len(rows) < target]
    extra = np.concatenate(repeats) if repeats else np.empty(0, dtype=np.int64)
    indices = np.concatenate([np.arange(len(stratum)), extra])
    return indices, np.arange(len(indices)) >= len(stratum)


def resampled_epoch(stratum: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One epoch's samples, as many as there are, with every stratum as often as any other (a baseline).

    Nobody of a stratum comes once more before all of it came as often, so that a stratum larger than its share shows
    other samples every epoch. The shares of two strata differ by one at most.

    Returns:
        As `balanced_epoch`, with m = n.
    """
    number = int(stratum.max()) + 1
    share = np.full(number, len(stratum) // number)
    share[rng.permutation(number)[: len(stratum) % number]] += 1
    drawn, rounds = [], []
    for each, count in enumerate(share):
        members = np.flatnonzero(stratum == each)
        times = -(-count // len(members))
        drawn.append(np.concatenate([rng.permutation(members) for _ in range(times)])[:count])
        rounds.append(np.arange(count) // len(members))
    return np.concatenate(drawn), np.concatenate(rounds) > 0


def stratified_batches(stratum: np.ndarray, size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Shuffle positions 0..n-1 into batches in which every stratum has its share; only the last may be smaller.

    Each stratum is spread evenly over the epoch, so that a batch rarely lacks the other group of a label.
    """
    place = np.empty(len(stratum))
    for number in np.unique(stratum):
        rows = np.flatnonzero(stratum == number)
        place[rng.permutation(rows)] = (np.arange(len(rows)) + rng.random()) / len(rows)
    order = np.argsort(place, kind="stable")
    return [order[start : start + size] for start in range(0, len(order), size)]


def augment(images: np.ndarray, chosen: np.ndarray, generator: torch.Generator, part: slice | None = None) -> Tensor:
    """Images in 0..1, float32 [m, 3, S, S]; the chosen ones with colour jitter and a rotation of at most 10 degrees.

    Args:
        images: uint8 [m, S, S, 3], the images `part` of a batch of n (by default all).
        chosen: bool [n]. What is drawn is drawn for the whole batch, so that an image's does not depend on the part.
    """
    out = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    part = part or slice(0, len(chosen))
    which = torch.from_numpy(np.flatnonzero(chosen[part]))

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return (low + (high - low) * torch.rand(len(chosen), *shape, generator=generator))[part][which]

    angle = uniform(-10, 10) * math.pi / 180
    contrast, light = uniform(0.9, 1.1, 1, 1, 1), uniform(0.9, 1.1, 3, 1, 1)
    if not len(which):
        return out
    zero = torch.zeros_like(angle)
    turn = torch.stack([angle.cos(), -angle.sin(), zero, angle.sin(), angle.cos(), zero], 1).view(-1, 2, 3)
    grid = F.affine_grid(turn, [len(which), *out.shape[1:]], align_corners=False)
    turned = F.grid_sample(out[which], grid, padding_mode="border", align_corners=False)
    mean = turned.mean((1, 2, 3), keepdim=True)
    out[which] = (((turned - mean) * contrast + mean) * light).clamp(0, 1)
    return out

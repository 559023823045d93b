"""The baselines at work in a training step: what they make of a batch's answers before its gradient is taken."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fairvlm_core.training.baselines import (
    Adversary,
    group_dro_step,
    group_means,
    intersection,
    sample_weights,
)
from fairvlm_core.training.batches import Samples


@dataclass(frozen=True)
class Debiasing:
    """A baseline, with what it remembers from step to step.

    Attributes:
        weights: float32 [n], the fixed weight of every training image (reweighted).
        cells: int64 [n], the cell of every training image over all attributes, -1 unknown (GroupDRO).
        buffers: q, the weights of the cells (GroupDRO).
        adversary: what is trained beside the model (adversarial).
        alpha: weight of the gradient against the adversary.
        step_size: of GroupDRO's ascent.
    """

    method: str
    samples: Samples
    weights: Tensor | None = None
    cells: Tensor | None = None
    buffers: dict[str, Tensor] = field(default_factory=dict)
    adversary: Adversary | None = None
    alpha: float = 1.0
    step_size: float = 0.01

    @property
    def looks_first(self) -> bool:
        """Whether it must see the answers to the whole batch before the gradient is taken."""
        return self.method in ("group_dro", "adversarial")

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained beside the model, by name."""
        return {} if self.adversary is None else {f"adversary.{k}": p for k, p in self.adversary.named_parameters()}

    def batch_weights(self, indices: np.ndarray) -> Tensor | None:
        """Fixed weights of the images of a batch."""
        return None if self.weights is None else self.weights[indices]

    def group_weights(self, scores: Tensor, indices: np.ndarray) -> Tensor:
        """GroupDRO: move q towards the cells that are served badly, and weight each image by q of its cell / its size.

        An image of unknown cell counts 0. Where no image of the batch has a cell, all count the same.
        """
        assert self.cells is not None
        cells, q = self.cells[indices], self.buffers["group_weights"]
        labels = torch.from_numpy(self.samples.labels[indices])
        losses = diagnosis_losses(scores.detach().cpu().double(), labels, self.samples.task.kind)
        cells = torch.where(losses.isnan(), -1, cells)
        q.copy_(group_dro_step(group_means(losses.nan_to_num(), cells, len(q)), q, self.step_size))
        size = torch.bincount(cells[cells >= 0], minlength=len(q))
        weights = torch.where(cells >= 0, (q / size.clamp_min(1))[cells.clamp_min(0)], 0.0)
        return weights if weights.any() else torch.ones(len(indices))

    def against(self, scores: Tensor, indices: np.ndarray) -> Tensor:
        """Adversarial: leave the adversary its gradient, and return that of its loss in the scores, [n, L]."""
        assert self.adversary is not None
        leaf = scores.detach().clone().requires_grad_()
        labels = torch.from_numpy(self.samples.labels[indices]).to(leaf.device)
        groups = torch.from_numpy(self.samples.groups[indices])
        loss = self.adversary.loss(log_odds(leaf, self.samples.task.kind), labels, groups)
        own = list(self.adversary.parameters())
        gradient, *rest = torch.autograd.grad(loss, [leaf, *own], materialize_grads=True)
        for parameter, its in zip(own, rest, strict=True):
            parameter.grad = its
        return gradient


def debiasing(method: str, samples: Samples, *, alpha: float, step_size: float, device: torch.device) -> Debiasing:
    """The method of that name for a training split."""
    if method.startswith("reweighted_"):
        scheme = method.removeprefix("reweighted_")
        weights = sample_weights(scheme, samples.labels, samples.groups, samples.task.kind)
        return Debiasing(method, samples, weights=torch.from_numpy(weights))
    if method == "group_dro":
        cells = intersection(samples.groups)
        q = torch.full((int(cells.max(initial=0)) + 1,), 1.0)
        return Debiasing(
            method,
            samples,
            cells=torch.from_numpy(cells),
            buffers={"group_weights": q / len(q)},
            step_size=step_size,
        )
    if method == "adversarial":
        sizes = [len(samples.group_names[name]) for name in samples.attributes]
        adversary = Adversary(samples.labels.shape[1], sizes).to(device)
        return Debiasing(method, samples, adversary=adversary, alpha=alpha)
    return Debiasing(method, samples)


def log_odds(scores: Tensor, kind: str) -> Tensor:
    """log p / (1 - p) of each label [n, L] from the scores of `answer_losses`."""
    if kind != "multiclass":
        return scores
    others = torch.stack(
        [torch.cat([scores[:, :j], scores[:, j + 1 :]], 1).logsumexp(1) for j in range(scores.shape[1])]
    )
    return scores - others.T


def diagnosis_losses(scores: Tensor, labels: Tensor, kind: str) -> Tensor:
    """L_qa of each image [n] from the scores of `answer_losses`; NaN where no label is known."""
    known = ~labels.isnan()
    truth = labels.nan_to_num().to(scores)
    if kind == "multiclass":
        losses = -(scores.log_softmax(1) * truth).sum(1)
        return losses.masked_fill(~known.all(1), torch.nan)
    terms = F.binary_cross_entropy_with_logits(scores, truth, reduction="none").masked_fill(~known, 0.0)
    return terms.sum(1) / known.sum(1)

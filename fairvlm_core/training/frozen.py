"""Adversarial debiasing of a linear head on frozen embeddings, by fairlearn's engine (FairMed-VLM, baselines).

It needs no gradient of the model, so it is what a team can do to a model that it may not train. The same method on
the adapters themselves is `debiasing: adversarial`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from fairvlm_core.errors import CohortError
from fairvlm_core.training.baselines import intersection

Head = Callable[[np.ndarray], np.ndarray]
SMALLEST = 1e-6  # a dimension that varies less than this in training is a constant


def adversarial_head(
    embeddings: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    kind: str,
    *,
    alpha: float,
    seed: int,
    epochs: int = 30,
    batch_size: int = 64,
    learning_rate: float = 1e-2,
) -> Head:
    """Fit a linear head per label that tells it, against an adversary that tells the cell from score and label.

    Images with an unknown label or attribute take no part. Of a multiclass task each class is told from the rest.

    Args:
        embeddings: float [n, d] of the training images, as they come; they are standardised here.
        labels: float [n, L], NaN where unknown; one-hot for a multiclass task.
        groups: int [n, K], -1 where unknown; the adversary predicts their intersection.
        kind: binary | multiclass | multilabel.
        alpha: weight of the gradient against the adversary.

    Returns:
        A function of embeddings [m, d] that gives probabilities float32 [m, L]; those of classes sum to 1.

    Raises:
        CohortError: a label, or the cell, that is the same for all images that take part.
    """
    centre, scale = embeddings.mean(0), embeddings.std(0)
    scale = np.where(scale > SMALLEST, scale, 1.0)
    x, cell = (embeddings - centre) / scale, intersection(groups)
    heads = []
    for j, truth in enumerate(labels.T):
        rows = (cell >= 0) & ~np.isnan(truth)
        for what, seen in (("label", truth[rows]), ("cell of the attributes", cell[rows])):
            if len(np.unique(seen)) < 2:
                raise CohortError(
                    f"The {what} is the same for all training images, so there is nothing to learn.",
                    where=f"label {j + 1} of {labels.shape[1]}",
                    mend="Leave this baseline out, or add images to the training split.",
                )
        heads.append(_fit(x[rows], truth[rows].astype(int), cell[rows], alpha, seed, epochs, batch_size, learning_rate))

    def score(given: np.ndarray) -> np.ndarray:
        z = torch.from_numpy((given - centre) / scale).float()
        with torch.no_grad():
            found = torch.cat([head(z) for head in heads], 1)
        return (found / found.sum(1, keepdim=True) if kind == "multiclass" else found).numpy()

    return score


def _fit(
    x: np.ndarray,
    truth: np.ndarray,
    cell: np.ndarray,
    alpha: float,
    seed: int,
    epochs: int,
    batch_size: int,
    learning_rate: float,
) -> nn.Module:
    """The head of one label: standardised embeddings [m, d] -> probabilities [m, 1]."""
    from fairlearn.adversarial import AdversarialFairnessClassifier

    torch.manual_seed(seed)
    head = nn.Sequential(nn.Linear(x.shape[1], 1), nn.Sigmoid())
    settings: dict[str, Any] = {
        "backend": "torch",
        "predictor_model": head,
        "adversary_model": [],
        "constraints": "equalized_odds",
        "alpha": alpha,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "shuffle": True,
        "random_state": seed,
    }
    AdversarialFairnessClassifier(**settings).fit(x, truth, sensitive_features=cell)
    return head.eval()

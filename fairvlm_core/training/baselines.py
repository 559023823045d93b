"""The baselines that FairMed-VLM is compared with: reweighting, GroupDRO and adversarial debiasing, as pure parts.

Nothing here knows a model or a loop. A group is one cell of the attributes taken together (their intersection), because
fairness over sex and over age separately can hide a cell that is served badly. A sample with an unknown attribute is in
no cell.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fairvlm_core.errors import ConfigError, nearest

SCHEMES = ("group", "joint")


def intersection(groups: np.ndarray) -> np.ndarray:
    """The cell of each sample over all attributes, numbered from 0 in the order of the codes.

    Args:
        groups: int [n, K], -1 where unknown.

    Returns:
        int64 [n]; -1 where any attribute is unknown.

    >>> intersection(np.array([[0, 1], [1, 0], [0, 1], [-1, 0]])).tolist()
    [0, 1, 0, -1]
    """
    known = (groups >= 0).all(axis=1)
    cells = np.full(len(groups), -1, dtype=np.int64)
    if known.any():
        cells[known] = np.unique(groups[known], axis=0, return_inverse=True)[1].reshape(-1)
    return cells


def sample_weights(scheme: str, labels: np.ndarray, groups: np.ndarray, kind: str) -> np.ndarray:
    """The weight of each training sample's loss (FairMed-VLM, baselines).

    With a = the cell of the attributes: "group" is 1 / P(a), so that every cell counts alike; "joint" is
    P(a) P(y) / P(a, y) (Kamiran and Calders), under which label and cell are independent. With several labels the joint
    weight is the mean over the sample's known labels, for the cells of whole label vectors are nearly empty.
    Probabilities are shares of the samples whose cell (and label) is known; a sample of unknown cell or label gets the
    mean weight.

    Args:
        scheme: one of `SCHEMES`.
        labels: float32 [n, L], NaN where unknown; one-hot for a multiclass task.
        groups: int [n, K], -1 where unknown.
        kind: binary | multiclass | multilabel.

    Returns:
        float32 [n] of mean 1.

    Raises:
        ConfigError: for another scheme.

    >>> labels, groups = np.array([[0.0], [1.0], [0.0], [0.0]]), np.array([[0], [0], [0], [1]])
    >>> sample_weights("group", labels, groups, "binary").round(3)
    array([0.667, 0.667, 0.667, 2.   ], dtype=float32)
    """
    if scheme not in SCHEMES:
        raise ConfigError(f'There is no weighting "{scheme}".', mend=nearest(scheme, SCHEMES))
    cell = intersection(groups)
    if scheme == "group":
        return _mean_one(_inverse_share(cell)).astype(np.float32)
    if kind == "multiclass":
        known = ~np.isnan(labels).any(axis=1)
        classes = np.where(known, np.nan_to_num(labels).argmax(axis=1), -1)[:, None]
    else:
        classes = np.where(np.isnan(labels), -1, np.nan_to_num(labels)).astype(np.int64)
    by_label = np.stack([_kamiran_calders(cell, column) for column in classes.T], axis=1)
    known = ~np.isnan(by_label)
    total = np.where(known, by_label, 0.0).sum(axis=1)
    weights = np.where(known.any(axis=1), total / np.maximum(known.sum(axis=1), 1), np.nan)
    return _mean_one(weights).astype(np.float32)


def group_means(losses: Tensor, cells: Tensor, count: int) -> Tensor:
    """Mean loss of each cell; NaN for a cell that the batch has no sample of.

    Args:
        losses: float [n], one per sample.
        cells: int [n], as `intersection` numbers them; -1 takes no part.
        count: G, the number of cells in training.

    Returns:
        float [G].
    """
    member = (cells[:, None] == torch.arange(count, device=cells.device)).to(losses.dtype)
    size = member.sum(0)
    means = (losses @ member) / size.clamp(min=1)
    return torch.where(size > 0, means, torch.full_like(means, torch.nan))


def group_dro_step(losses_per_group: Tensor, q: Tensor, step_size: float) -> Tensor:
    """The exponentiated-gradient step of GroupDRO on the weights of the groups.

    The groups in the batch share out among themselves what they had together, in proportion to q exp(step_size x loss).
    A group that is absent has shown no loss and keeps its weight.

    Args:
        losses_per_group: float [G], NaN where the batch has no sample of the group.
        q: float [G], not negative, sum 1.
        step_size: eta of the ascent; 0 leaves q as it is.

    Returns:
        float [G] of the same sum, without gradient.

    >>> q = group_dro_step(torch.tensor([0.0, 1.0, torch.nan]), torch.tensor([0.25, 0.25, 0.5]), 1.0)
    >>> [round(value, 4) for value in q.tolist()]
    [0.1345, 0.3655, 0.5]
    """
    present = ~losses_per_group.isnan()
    if not present.any():
        return q.detach().clone()
    held = q.detach().double()
    exponent = step_size * losses_per_group.detach().double()[present]
    grown = held[present] * (exponent - exponent.max()).exp()
    result = held.clone()
    if grown.sum() > 0:
        result[present] = grown * (held[present].sum() / grown.sum())
    return result.to(q.dtype)


def project_gradients(predictor: Sequence[Tensor], adversary: Sequence[Tensor], alpha: float) -> list[Tensor]:
    """g_p - proj_{g_a} g_p - alpha g_a, over all parameters as one vector (Zhang, Lemoine and Mitchell).

    The first two terms are the part of the task's gradient that does not help the adversary; the third hinders it.

    Args:
        predictor: gradient of the task's loss, a tensor per parameter.
        adversary: gradient of the adversary's loss for the same parameters in the same order
            (`torch.autograd.grad(..., materialize_grads=True)` gives zeros where a parameter has none).
        alpha: weight of the third term.

    Returns:
        A tensor per parameter. An adversary whose gradient is zero leaves the predictor's as it is.
    """
    pairs = list(zip(predictor, adversary, strict=True))
    if not pairs:
        return []
    zero = torch.zeros((), dtype=torch.float64, device=pairs[0][0].device)
    inner = sum(((p.double() * a.double()).sum() for p, a in pairs), zero)
    square = sum((a.double().square().sum() for _, a in pairs), zero)
    # A tensor and not a Python number: on an accelerator the step does not wait for it.
    share = torch.where(square > 0, inner / square.clamp(min=torch.finfo(torch.float64).tiny), zero)
    return [(p.double() - (share + alpha) * a.double()).to(p.dtype) for p, a in pairs]


class Adversary(nn.Module):
    """Predicts every attribute from the prediction and the true label (Zhang, Lemoine and Mitchell; equalised odds).

    Per label it sees s, s y and s (1 - y), where s = sigmoid((1 + |c|) x log-odds) with a learnt c: given the label,
    what the prediction still tells about the group is what equalised odds forbids. One linear map per attribute.

    Args:
        labels: L.
        groups: the number of groups of each of the K attributes.
    """

    def __init__(self, labels: int, groups: Sequence[int]) -> None:
        super().__init__()
        self.sharpness = nn.Parameter(torch.ones(labels))
        self.heads = nn.ModuleList(nn.Linear(3 * labels, count) for count in groups)

    def forward(self, log_odds: Tensor, labels: Tensor) -> list[Tensor]:
        """Logits of each attribute's groups.

        Args:
            log_odds: float [n, L], log p / (1 - p) of each label.
            labels: float [n, L]; where it is NaN, neither s y nor s (1 - y) is shown.

        Returns:
            K tensors [n, G_k].
        """
        log_odds = log_odds.to(self.sharpness.dtype)
        labels = labels.to(log_odds)
        sharp = torch.sigmoid((1 + self.sharpness.abs()) * log_odds)
        known, truth = (~labels.isnan()).to(sharp), labels.nan_to_num()
        seen = torch.cat([sharp, sharp * truth * known, sharp * (1 - truth) * known], dim=1)
        return [head(seen) for head in self.heads]

    def loss(self, log_odds: Tensor, labels: Tensor, groups: Tensor) -> Tensor:
        """Cross-entropy, the mean over the samples of known group and then over the attributes that have any.

        Args:
            log_odds, labels: as in `forward`.
            groups: int [n, K], -1 where unknown.

        Returns:
            Scalar; 0, and connected to the graph, where no group is known.
        """
        predicted = self(log_odds, labels)
        columns = groups.to(log_odds.device).long().unbind(1)
        terms = [
            F.cross_entropy(logits, column, ignore_index=-1)
            for logits, column in zip(predicted, columns, strict=True)
            if (column >= 0).any()
        ]
        if not terms:
            return sum((logits.sum() * 0.0 for logits in predicted), log_odds.sum() * 0.0)
        return torch.stack(terms).mean()


def _inverse_share(codes: np.ndarray) -> np.ndarray:
    """float64 [n]: 1 / P(code); NaN where it is -1."""
    return 1.0 / _share(codes)


def _kamiran_calders(cell: np.ndarray, label: np.ndarray) -> np.ndarray:
    """float64 [n]: P(a) P(y) / P(a, y) over the samples where both are known; NaN elsewhere."""
    known = (cell >= 0) & (label >= 0)
    a, y = np.where(known, cell, -1), np.where(known, label, -1)
    both = np.where(known, a * (y.max(initial=0) + 1) + y, -1)
    return _share(a) * _share(y) / _share(both)


def _share(codes: np.ndarray) -> np.ndarray:
    """float64 [n]: the share of each sample's code among the known ones; NaN where it is -1."""
    known = codes >= 0
    counts = np.bincount(codes[known]) if known.any() else np.zeros(1)
    return np.where(known, counts[np.where(known, codes, 0)] / max(int(known.sum()), 1), np.nan)


def _mean_one(weights: np.ndarray) -> np.ndarray:
    """Scale the known weights to mean 1 and give the unknown ones that mean."""
    known = ~np.isnan(weights)
    mean = weights[known].mean() if known.any() else 1.0
    return np.where(known, weights / mean, 1.0)

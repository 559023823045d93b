"""Moment alignment: equal means and covariances of the groups within a label (FairMed-VLM, stage 2, L_dist)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from fairvlm_core.losses.pairs import check_reduction, check_samples, full_precision, unit_rows


@full_precision
def moment_alignment(
    embeddings: Tensor,
    labels: Tensor,
    groups: Tensor,
    *,
    covariance_weight: float = 0.1,
    reduction: str = "mean",
) -> Tensor:
    """Draw the embedding distributions of the groups within each label together (L_dist).

    The embeddings are L2-normalised here. For label y and attribute k, each group d in the batch has a mean mu_d and,
    with at least two samples, a population covariance S_d. The terms are ||mu_d - mean of the mu||^2 and
    ||S_d - mean of the S||_F^2; the means run over the groups present, unweighted, and keep their gradient. Where
    fewer than two groups have the moment, there is nothing to align and no term.

    Args:
        embeddings: [n, d].
        labels: [n] classes, y runs over them; or [n, L], y runs over the labels and a sample belongs to those that are
            1. NaN and negative values are unknown.
        groups: [n, K] int, one column per attribute; negative = unknown.
        covariance_weight: weight of the covariance part.
        reduction: "mean" over the mean terms plus the weighted mean over the covariance terms; "sum" of both, as in the
            paper.

    Returns:
        Scalar; 0 where there is no term.

    Raises:
        ValueError: shapes that do not fit together, or an unknown reduction.
    """
    check_samples(embeddings, labels, groups)
    check_reduction(reduction)
    unit = unit_rows(embeddings)
    mean_gaps, covariance_gaps = [], []
    for rows, group, counts in _cells(labels.detach().cpu(), groups.detach().cpu()):
        averaging = F.one_hot(group, len(counts)).T.to(unit.dtype) / counts.unsqueeze(1)
        x = unit[rows.to(unit.device)]
        means = averaging.to(unit.device) @ x
        mean_gaps.append((means - means.mean(0)).square().sum(-1))
        several = counts >= 2
        if several.sum() >= 2:
            kept = several[group]
            centred = (x - means[group.to(unit.device)])[kept.to(unit.device)]
            covariance_gaps.append(squared_covariance_gaps(centred, averaging[several][:, kept].to(unit.device)))

    reduce = torch.mean if reduction == "mean" else torch.sum
    loss = unit.sum() * 0.0
    if mean_gaps:
        loss = loss + reduce(torch.cat(mean_gaps))
    if covariance_gaps:
        loss = loss + covariance_weight * reduce(torch.cat(covariance_gaps))
    return loss


def _cells(labels: Tensor, groups: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Per label and attribute with two groups or more: the rows [N], the group of each [N], the group sizes [m]."""
    carried = labels == 1 if labels.ndim == 2 else labels.unsqueeze(1) == labels[labels >= 0].unique()
    for member in carried.T:
        for values in groups.T:
            rows = (member & (values >= 0)).nonzero().squeeze(1)
            _, group, counts = values[rows].unique(return_inverse=True, return_counts=True)
            if len(counts) >= 2:
                yield rows, group, counts


def squared_covariance_gaps(centred: Tensor, averaging: Tensor) -> Tensor:
    """||S_a - mean of the S||_F^2 of m groups.

    Args:
        centred: [N, d], the samples of all groups, each minus the mean of its own group.
        averaging: [m, N], 1 / size of group a for its members, else 0, so that S_a = X^T diag(averaging[a]) X.

    Returns:
        [m]. With N < d no d x d matrix is formed: for weights w, ||X^T diag(w) X||_F^2 = w^T (X X^T)^2 w, the square
        taken entry by entry.
    """
    weights = averaging - averaging.mean(0)
    if centred.shape[0] < centred.shape[1]:
        gram = centred @ centred.T
        # Rounding may leave a tiny negative number where two covariances agree.
        return (weights @ gram.square() * weights).sum(-1).clamp_min(0.0)
    gaps = (centred.T * weights.unsqueeze(1)) @ centred
    return gaps.square().sum((-2, -1))

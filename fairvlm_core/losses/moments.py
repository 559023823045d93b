"""Moment alignment: equal means and covariances of the groups within a label (FairMed-VLM, stage 2, L_dist)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fairvlm_core.losses.gram import Part, from_cosines
from fairvlm_core.losses.pairs import check_reduction, check_samples, full_precision, on_host, unit_rows


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
    cells = find_cells(labels, groups, covariance_weight, reduction)
    if gram_form(embeddings):
        return from_cosines(embeddings, lambda cosines, _: moments_part(cells, cosines))[0]
    return moments_by_covariances(embeddings, cells)


def gram_form(embeddings: Tensor) -> bool:
    """Whether the n x n matrix of [n, d] is the smaller one; otherwise the covariances, d x d, are."""
    n, d = embeddings.shape
    return n <= d


class Cells(NamedTuple):
    """The groups within the labels of a batch, c cells in all.

    A cell belongs to a family: one attribute within one label, which is where groups are compared. A block is the cells
    of one attribute (and, in a multi-label task, of one label): no sample is in two of them. A row of `means` or
    `spreads` takes from a cell's moment the average over those cells of its family that have the moment; it is 0 where
    there is no term.

    Attributes:
        members: float64 [c, n], 1 for a member.
        averages: float64 [c, n], 1 / size for a member.
        means: float64 [c, c], for the means.
        spreads: float64 [c, c], for the covariances.
        mean_weight: weight of each term of the means.
        spread_weight: the same for the covariances.
        blocks: where each block lies among the cells.
    """

    members: np.ndarray
    averages: np.ndarray
    means: np.ndarray
    spreads: np.ndarray
    mean_weight: float
    spread_weight: float
    blocks: list[slice]


def find_cells(labels: Tensor, groups: Tensor, covariance_weight: float, reduction: str) -> Cells:
    """The cells of a batch; they do not depend on the embeddings."""
    y, attributes = on_host(labels, groups)
    n = len(y)
    if y.ndim == 1:
        # A label that is unknown gets no number.
        named = np.unique(y[y >= 0])
        names = [np.where(y >= 0, np.searchsorted(named, y), -1)]
    else:
        names = [np.where(column == 1, 0, -1) for column in y.T]
    members, families, start = [np.zeros((0, n), dtype=bool)], [np.zeros(0, dtype=np.int64)], 0
    blocks: list[slice] = []
    for name in names:
        for group in attributes.T:
            if int(group.max(initial=0)) >= n:  # whatever they are called, at most n groups are here
                group = np.where(group >= 0, np.searchsorted(np.unique(group[group >= 0]), group), -1)
            key = np.where((name >= 0) & (group >= 0), name * n + group, -1)
            cells = np.bincount(key[key >= 0]).nonzero()[0]
            members.append(cells[:, None] == key)
            families.append(cells // n + len(blocks) * n)
            blocks.append(slice(start, start + len(cells)))
            start += len(cells)
    member, family = np.concatenate(members).astype(np.float64), np.concatenate(families)
    sizes, same = member.sum(1), family[:, None] == family
    means, mean_terms = _from_reference(same, sizes >= 1)
    spreads, spread_terms = _from_reference(same, sizes >= 2)
    weights = 1.0, covariance_weight
    if reduction == "mean":
        weights = 1 / max(mean_terms, 1), covariance_weight / max(spread_terms, 1)
    return Cells(member, member / sizes[:, None], means, spreads, *weights, blocks)


def _from_reference(same: np.ndarray, has: np.ndarray) -> tuple[np.ndarray, int]:
    """[c, c]: takes off the average of the cells that have the moment and the same family; and the number of terms."""
    shared = same & has & has[:, None]
    count = shared.sum(1)
    several = count >= 2
    return (np.eye(len(has)) - shared / np.maximum(count, 1)[:, None]) * several[:, None], int(several.sum())


def moments_part(cells: Cells, cosines: np.ndarray) -> Part:
    """Value and gradient of the loss from the cosines [n, n]."""
    rows = cells.means @ cells.averages
    value = cells.mean_weight * _forms(rows, cosines)
    gradient = (2 * cells.mean_weight * rows.T) @ rows
    if cells.spread_weight == 0 or not cells.spreads.any():
        return Part(value, gradient)
    rows = cells.spreads @ cells.averages
    for block in cells.blocks:
        members, averages, mine = cells.members[block], cells.averages[block], rows[block]
        centred = _centre(cosines, members, averages)
        value += cells.spread_weight * _forms(mine, np.square(centred))
        centred *= (4 * cells.spread_weight * mine.T) @ mine
        gradient += _centre(centred, members, averages)
    return Part(value, gradient)


def _forms(rows: np.ndarray, matrix: np.ndarray) -> float:
    """The sum of w^T M w over rows w [c, n]; M is positive semi-definite, and rounding shall not say otherwise."""
    return float(np.maximum(np.einsum("ij,ij->i", rows @ matrix, rows), 0.0).sum())


def _centre(matrix: np.ndarray, members: np.ndarray, averages: np.ndarray) -> np.ndarray:
    """H M H of a symmetric M [n, n], where H = 1 - members^T averages takes off each sample the mean of its cell."""
    # With P = 1 - H: M - P M - M P + P M P, of low rank but for M, so n x n x c operations and not n x n x n.
    thin = averages @ matrix
    thin -= (0.5 * thin @ averages.T) @ members
    product = np.concatenate([members, thin]).T @ np.concatenate([thin, members])
    return np.subtract(matrix, product, out=product)


def moments_by_covariances(embeddings: Tensor, cells: Cells) -> Tensor:
    """The loss from the cells' means and d x d covariances, for many samples of few dimensions."""
    unit = unit_rows(embeddings)
    averages, means, spreads = (
        torch.from_numpy(part).to(unit) for part in (cells.averages, cells.means, cells.spreads)
    )
    loss = cells.mean_weight * (means @ (averages @ unit)).square().sum()
    if cells.spread_weight == 0:
        return loss
    for block in cells.blocks:
        used = np.flatnonzero(cells.spreads[block, block].any(0))
        if len(used):
            rows = [torch.from_numpy(member.nonzero()[0]).to(unit.device) for member in cells.members[block][used]]
            covariances = torch.stack([_covariance(unit[row]) for row in rows]).flatten(1)
            loss = loss + cells.spread_weight * (spreads[block, block][:, used] @ covariances).square().sum()
    return loss


def _covariance(x: Tensor) -> Tensor:
    """Population covariance [d, d] of the rows of x [m, d]."""
    centred = x - x.mean(0)
    return centred.T @ centred / len(x)

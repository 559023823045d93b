"""Moment alignment: equal means and covariances of the groups within a label (FairMed-VLM, stage 2, L_dist)."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fairvlm_core.compiled import compiled
from fairvlm_core.losses.gram import Part, from_cosines
from fairvlm_core.losses.pairs import Codes, check_reduction, check_samples, codes_of, full_precision, unit_rows


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
    cells = find_cells(codes_of(labels, groups), covariance_weight, reduction)
    if gram_form(embeddings):
        return from_cosines(embeddings, lambda cosines, _: moments_part(cells, cosines))[0]
    return moments_by_covariances(embeddings, cells)


def gram_form(embeddings: Tensor) -> bool:
    """Whether the n x n matrix of [n, d] is the smaller one; otherwise the covariances, d x d, are."""
    n, d = embeddings.shape
    return n <= d


class Cells(NamedTuple):
    """The groups within the labels of a batch.

    A cell is a group of one attribute within one label; a family is all groups of that attribute within that label,
    which are what is compared, so a family has at least two cells. Cells and families lie one after the other: cell c
    is rows[starts[c] : starts[c + 1]], and family f the cells families[f] to families[f + 1], that not included.

    Attributes:
        rows: int64, samples; one is in as many cells as it has known attributes and labels.
        starts: int64 [cells + 1].
        families: int64 [families + 1].
        mean_weight: weight of each term of the means.
        spread_weight: the same for the covariances.
    """

    rows: np.ndarray
    starts: np.ndarray
    families: np.ndarray
    mean_weight: float
    spread_weight: float


def find_cells(codes: Codes, covariance_weight: float, reduction: str) -> Cells:
    """The cells of a batch; they do not depend on the embeddings."""
    rows, starts, families, spreads = _sort_into_cells(*codes)
    weights = 1.0, covariance_weight
    if reduction == "mean":
        weights = 1 / max(len(starts) - 1, 1), covariance_weight / max(spreads, 1)
    return Cells(rows, starts, families, *weights)


@compiled
def _sort_into_cells(
    labels: np.ndarray, groups: np.ndarray, lowest: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """The families that have two cells or more, as `Cells` has them, and how many covariances they have."""
    n = labels.shape[1]
    rows = np.empty(labels.shape[0] * groups.shape[1] * n, np.int64)
    starts, families = np.zeros(len(rows) + 1, np.int64), np.zeros(len(rows) + 1, np.int64)
    cell = family = spreads = 0
    for k in range(groups.shape[1]):
        group, span = _numbered(groups[:, k], 0)
        for y in labels:
            # A label that is not carried makes no cell, a class 0 does.
            name, classes = _numbered(y, lowest)
            sizes = np.zeros((classes, span), np.int64)
            for i in range(n):
                if name[i] >= 0 and group[i] >= 0:
                    sizes[name[i], group[i]] += 1
            places = np.full(sizes.shape, -1)
            for c in range(classes):
                if (sizes[c] > 0).sum() < 2:
                    continue
                for d in range(span):
                    if sizes[c, d] > 0:
                        places[c, d] = starts[cell]
                        starts[cell + 1] = starts[cell] + sizes[c, d]
                        cell += 1
                large = (sizes[c] >= 2).sum()
                spreads += large if large >= 2 else 0
                family += 1
                families[family] = cell
            for i in range(n):
                if name[i] >= 0 and group[i] >= 0 and places[name[i], group[i]] >= 0:
                    rows[places[name[i], group[i]]] = i
                    places[name[i], group[i]] += 1
    return rows[: starts[cell]], starts[: cell + 1], families[: family + 1], spreads


@compiled
def _numbered(codes: np.ndarray, lowest: float) -> tuple[np.ndarray, int]:
    """Codes [n] numbered from 0, so that there are at most n of them, and how many; those below `lowest` become -1."""
    known = np.unique(codes[codes >= lowest])
    return np.where(codes >= lowest, np.searchsorted(known, codes), -1), len(known)


def moments_part(cells: Cells, cosines: np.ndarray) -> Part:
    """Value and gradient of the loss from the cosines [n, n]."""
    return Part(*_moments(*cells, cosines))


@compiled
def _moments(
    rows: np.ndarray,
    starts: np.ndarray,
    families: np.ndarray,
    mean_weight: float,
    spread_weight: float,
    cosines: np.ndarray,
) -> tuple[float, np.ndarray]:
    """The sum over the families, and its gradient [n, n] by c_ij and c_ji together.

    With k = 1 / (sizes of the cells of i and j) x (1 if it is one cell, minus 1 / number of cells), the means of a
    family give the sum over i and j of k c_ij, and the covariances that of k h_ij^2, where h is c with the mean of its
    cell taken off each sample. As k is one number for all pairs of two cells, taking the means off 2 k h once more
    changes nothing: it is the gradient.
    """
    value, gradient = 0.0, np.zeros_like(cosines)
    sizes = np.diff(starts)
    for family in range(len(families) - 1):
        first, last = families[family], families[family + 1]
        count, large = last - first, (sizes[first : families[family + 1]] >= 2).sum()
        # Mean cosine of each member with each cell, and of each cell with each cell.
        thin, both = np.zeros((starts[last] - starts[first], count)), np.zeros((count, count))
        for a in range(first, last):
            for place in range(starts[a], starts[a + 1]):
                cosine = cosines[rows[place]]
                for b in range(first, last):
                    mean = 0.0
                    for other in range(starts[b], starts[b + 1]):
                        mean += cosine[rows[other]]
                    mean /= sizes[b]
                    thin[place - starts[first], b - first] = mean
                    both[a - first, b - first] += mean / sizes[a]
        of_means, of_spreads = -both.sum() / count, 0.0
        for c in range(count):
            of_means += both[c, c]

        for a in range(first, last):
            for b in range(first, last):
                product = sizes[a] * sizes[b]
                of_mean = 2 * mean_weight * ((a == b) - 1 / count) / product
                k = 0.0
                if large >= 2 and sizes[a] >= 2 and sizes[b] >= 2:
                    k = ((a == b) - 1 / large) / product
                for place in range(starts[a], starts[a + 1]):
                    i = rows[place]
                    off = thin[place - starts[first], b - first] - both[a - first, b - first]
                    for other in range(starts[b], starts[b + 1]):
                        j = rows[other]
                        h = cosines[i, j] - off - thin[other - starts[first], a - first]
                        of_spreads += k * h * h
                        gradient[i, j] += of_mean + 4 * spread_weight * k * h
        value += mean_weight * max(of_means, 0.0) + spread_weight * max(of_spreads, 0.0)
    return value, gradient


def moments_by_covariances(embeddings: Tensor, cells: Cells) -> Tensor:
    """The loss from the cells' means and d x d covariances, for many samples of few dimensions."""
    unit = unit_rows(embeddings)
    rows = torch.from_numpy(cells.rows).to(unit.device)
    loss = unit.sum() * 0
    for first, last in pairwise(cells.families.tolist()):
        members = [unit[rows[start:stop]] for start, stop in pairwise(cells.starts[first : last + 1].tolist())]
        loss = loss + cells.mean_weight * _from_average([member.mean(0) for member in members])
        spreads = [_covariance(member) for member in members if len(member) >= 2]
        if len(spreads) >= 2 and cells.spread_weight > 0:
            loss = loss + cells.spread_weight * _from_average(spreads)
    return loss


def _from_average(moments: list[Tensor]) -> Tensor:
    """Sum of the squared distances between equally shaped tensors and their mean."""
    stacked = torch.stack(moments)
    return (stacked - stacked.mean(0)).square().sum()


def _covariance(x: Tensor) -> Tensor:
    """Population covariance [d, d] of the rows of x [m, d]."""
    centred = x - x.mean(0)
    return centred.T @ centred / len(x)

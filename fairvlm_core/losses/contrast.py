"""Cross-group contrast: same label, different demographics, close together (FairMed-VLM, stage 2, L_supcon)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fairvlm_core.losses.bank import MemoryBank, check_bank
from fairvlm_core.losses.compiled import compiled
from fairvlm_core.losses.gram import Loan, Part, from_cosines, gram_of
from fairvlm_core.losses.pairs import (
    check_positive,
    check_reduction,
    check_samples,
    full_precision,
    on_host,
    unit_rows,
)


@full_precision
def cross_group_contrast(
    embeddings: Tensor,
    labels: Tensor,
    groups: Tensor,
    *,
    temperature: float = 0.07,
    margin: float = 0.3,
    hard_negative_fallback: bool = True,
    reduction: str = "mean",
    bank: MemoryBank | None = None,
) -> Tensor:
    """Draw samples with the same label and different demographics together, away from hard negatives (L_supcon).

    The embeddings are L2-normalised here. For an anchor i, P(i) holds the samples with the same label of which some
    attribute known for both differs, and N(i) those with another label and a cosine above the margin. The term of i is
    the mean over p in P(i) of -log(exp(s_ip) / (exp(s_ip) + sum over a in N(i) of exp(s_ia))) with s = cosine /
    temperature: each positive against the negatives alone, not against the other positives. An anchor with empty P(i)
    is skipped, unless the bank has positives for it.

    Args:
        embeddings: [n, d].
        labels: [n] classes; or [n, L] with 1 carried and 0 not carried: then anchors and positives carry label j and
            negatives do not. NaN and negative values are unknown and take no part.
        groups: [n, K] int, one column per attribute; negative = unknown, which makes no pair different.
        temperature: tau, greater than 0.
        margin: m, the cosine above which a sample with another label is a hard negative.
        hard_negative_fallback: with empty N(i) the term is identically 0 and teaches nothing, so the nearest sample
            with another label stands in. False is the paper's literal form; the anchor then counts with 0.
        reduction: "mean" over the valid anchors of a label, then over the labels that have one; "sum" over all anchors
            and labels, as in the paper.
        bank: earlier embeddings. Where P(i) is empty in the batch, P(i) is taken from the bank; N(i) never is. The
            bank gets no gradient.

    Returns:
        Scalar; 0 where no anchor is valid. It can be differentiated once.

    Raises:
        ValueError: shapes that do not fit together, a temperature that is not positive, an unknown reduction.
    """
    check_samples(embeddings, labels, groups)
    check_positive(temperature=temperature)
    check_reduction(reduction)
    options = Options(temperature, margin, hard_negative_fallback, reduction)
    pairs = find_pairs(embeddings, labels, groups, bank)
    (value,) = from_cosines(embeddings, lambda *cosines: contrast_part(pairs, options, *cosines), loan=pairs.loan)
    return value


@torch.no_grad()
@full_precision
def contrast_statistics(embeddings: Tensor, labels: Tensor, groups: Tensor, *, margin: float = 0.3) -> dict[str, float]:
    """How much a batch gives `cross_group_contrast` to work with; same arguments.

    Returns:
        anchors: number of samples with a known label (multi-label: of carried labels).
        positives, negatives: mean |P(i)| and mean |N(i)| over those, N(i) before any fallback.
        skipped: share of them with empty P(i). All are 0 where there is no anchor.
    """
    check_samples(embeddings, labels, groups)
    pairs = find_pairs(embeddings, labels, groups)
    return statistics_of(pairs, gram_of(embeddings).cosines, margin)


class Options(NamedTuple):
    """The arguments of `cross_group_contrast` that are no tensors."""

    temperature: float
    margin: float
    hard_negative_fallback: bool
    reduction: str


class Pairs(NamedTuple):
    """Who is compared with whom. All classes of a single-label task together are one label here.

    Attributes:
        labels: float64 [L, n], -1 unknown; see `pairs.on_host`.
        groups: int64 [n, K].
        lowest: the least label of an anchor: 1 where labels are carried or not, 0 where they are classes.
        counts: int64 [L, n], |P(i)| of each anchor with what the bank gives, and -1 for those that are no anchors.
        held_labels: float64 [L, m], of the rows of the loan.
        held_groups: int64 [m, K].
        places: int64 [n], which row of the cosines to the loan belongs to a sample; -1 for those that borrow nothing.
        loan: what is borrowed from the bank, if anything.
    """

    labels: np.ndarray
    groups: np.ndarray
    lowest: float
    counts: np.ndarray
    held_labels: np.ndarray
    held_groups: np.ndarray
    places: np.ndarray
    loan: Loan | None


def find_pairs(embeddings: Tensor, labels: Tensor, groups: Tensor, bank: MemoryBank | None = None) -> Pairs:
    """Labels, groups and the number of positives. Of the embeddings only device and shape matter."""
    mine, attributes = on_host(labels, groups)
    lowest = float(labels.ndim - 1)
    counts = _count_positives(mine, attributes, lowest)
    places = np.full(len(attributes), -1)
    if bank is not None:
        check_bank(bank, embeddings, labels, groups)
        held, theirs = on_host(bank.labels, bank.groups)
        borrows, lends = _borrow(mine, attributes, held, theirs, counts)
        if lends.any():
            (borrowers,), (lent,) = borrows.nonzero(), lends.nonzero()
            places[borrowers] = np.arange(len(borrowers))
            rows = bank.embeddings[torch.from_numpy(lent).to(bank.embeddings.device)]
            device = embeddings.device
            loan = Loan(torch.from_numpy(borrowers).to(device), unit_rows(rows.to(device).double()))
            return Pairs(mine, attributes, lowest, counts, held[:, lent], theirs[lent], places, loan)
    return Pairs(mine, attributes, lowest, counts, mine[:, :0], attributes[:0], places, None)


@compiled
def _differ(groups: np.ndarray, i: int, others: np.ndarray, p: int) -> bool:
    """Whether some attribute that is known for both differs, of rows of [n, K] and [m, K]; negative = unknown."""
    differ = False
    for k in range(groups.shape[1]):
        differ |= groups[i, k] >= 0 and others[p, k] >= 0 and groups[i, k] != others[p, k]
    return differ


@compiled
def _count_positives(labels: np.ndarray, groups: np.ndarray, lowest: float) -> np.ndarray:
    """int64 [L, n]: |P(i)| in the batch, -1 where i is no anchor."""
    counts = np.full(labels.shape, -1)
    for family in range(len(labels)):
        y = labels[family]
        for i in range(len(y)):
            if y[i] >= lowest:
                counts[family, i] = 0
                for p in range(len(y)):
                    if y[p] == y[i] and _differ(groups, i, groups, p):
                        counts[family, i] += 1
    return counts


@compiled
def _borrow(
    labels: np.ndarray, groups: np.ndarray, held: np.ndarray, theirs: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Give anchors without a positive in the batch those of the bank; `counts` grows.

    Returns:
        bool [n] and [m]: which samples of the batch borrow, and which of the bank are lent.
    """
    borrows, lends = np.zeros(len(groups), np.bool_), np.zeros(len(theirs), np.bool_)
    for family in range(len(labels)):
        for i in range(len(groups)):
            if counts[family, i] == 0:
                for p in range(len(theirs)):
                    if held[family, p] == labels[family, i] and _differ(groups, i, theirs, p):
                        counts[family, i] += 1
                        borrows[i] = lends[p] = True
    return borrows, lends


def contrast_part(pairs: Pairs, options: Options, cosines: np.ndarray, lent: np.ndarray | None) -> Part:
    """Value and gradient of the loss from cosines [n, n] and, where there is a loan, [r, m]."""
    valid = (pairs.counts > 0).sum(1)
    weights = np.ones(len(valid))
    if options.reduction == "mean":
        weights /= np.maximum(valid * np.count_nonzero(valid), 1)
    gradient = np.zeros_like(cosines)
    lent_gradient = np.zeros((0, 0) if lent is None else lent.shape)
    scored = lent_gradient if lent is None else lent
    value = _contrast(*pairs[:7], weights, *options[:3], cosines, scored, gradient, lent_gradient)
    return Part(value, gradient + gradient.T, None if lent is None else lent_gradient)


@compiled
def _contrast(
    labels: np.ndarray,
    groups: np.ndarray,
    lowest: float,
    counts: np.ndarray,
    held_labels: np.ndarray,
    held_groups: np.ndarray,
    places: np.ndarray,
    weights: np.ndarray,
    temperature: float,
    margin: float,
    fallback: bool,
    cosines: np.ndarray,
    lent: np.ndarray,
    gradient: np.ndarray,
    lent_gradient: np.ndarray,
) -> float:
    """The sum of the terms; `gradient` [n, n] and `lent_gradient` [r, m] grow by their derivatives.

    weights: [L], of an anchor's term.
    """
    value = 0.0
    pushes = np.empty(cosines.shape[1])  # exp(score - highest) of the negatives of an anchor, 0 for the others
    for family in range(len(labels)):
        y = labels[family]
        for i in range(len(y)):
            if counts[family, i] <= 0:
                continue
            total, nearest, highest = 0.0, -1, -np.inf
            for a in range(len(y)):
                if y[a] >= 0 and y[a] != y[i]:
                    if np.isnan(cosines[i, a]):
                        return np.nan
                    if nearest < 0 or cosines[i, a] > cosines[i, nearest]:
                        nearest = a
            # Without a negative a term is log 1.
            if nearest < 0 or not (fallback or cosines[i, nearest] > margin):
                continue
            highest = cosines[i, nearest] / temperature
            for a in range(len(y)):
                negative = a == nearest or (y[a] >= 0 and y[a] != y[i] and cosines[i, a] > margin)
                pushes[a] = np.exp(cosines[i, a] / temperature - highest) if negative else 0.0
                total += pushes[a]

            each = weights[family] / counts[family, i]
            pull, alone = 0.0, True
            for p in range(len(y)):
                if y[p] == y[i] and _differ(groups, i, groups, p):
                    term, slope = _term(cosines[i, p] / temperature - highest, total)
                    value += each * term
                    gradient[i, p] -= each * slope / temperature
                    pull += each * slope
                    alone = False
            if alone:
                place = places[i]
                for p in range(len(held_groups)):
                    if held_labels[family, p] == y[i] and _differ(groups, i, held_groups, p):
                        term, slope = _term(lent[place, p] / temperature - highest, total)
                        value += each * term
                        lent_gradient[place, p] -= each * slope / temperature
                        pull += each * slope
            for a in range(len(y)):
                if pushes[a] > 0:
                    gradient[i, a] += pull * pushes[a] / (total * temperature)
    return value


@compiled
def _term(score: float, total: float) -> tuple[float, float]:
    """-log(e / (e + total)) with e = exp(score), and minus its derivative by the score; score is finite or NaN."""
    # The larger of both is taken out, so that nothing overflows whatever the temperature; total is at least 1.
    if score > 0:
        rest = total * np.exp(-score)
        return np.log1p(rest), rest / (1 + rest)
    e = np.exp(score)
    return np.log(e + total) - score, total / (e + total)


def statistics_of(pairs: Pairs, cosines: np.ndarray, margin: float) -> dict[str, float]:
    """See `contrast_statistics`; what the bank gives counts as positives."""
    anchors = int(np.count_nonzero(pairs.counts >= 0))
    valid = int(np.count_nonzero(pairs.counts > 0))
    each = max(anchors, 1)
    return {
        "anchors": float(anchors),
        "positives": float(pairs.counts.clip(min=0).sum()) / each,
        "negatives": _count_negatives(pairs.labels, pairs.lowest, cosines, margin) / each,
        "skipped": (anchors - valid) / each,
    }


@compiled
def _count_negatives(labels: np.ndarray, lowest: float, cosines: np.ndarray, margin: float) -> int:
    count = 0
    for family in range(len(labels)):
        y = labels[family]
        for i in range(len(y)):
            if y[i] >= lowest:
                for a in range(len(y)):
                    count += y[a] >= 0 and y[a] != y[i] and cosines[i, a] > margin
    return count

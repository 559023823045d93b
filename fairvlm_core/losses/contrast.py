"""Cross-group contrast: same label, different demographics, close together (FairMed-VLM, stage 2, L_supcon)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fairvlm_core.compiled import compiled
from fairvlm_core.losses.bank import MemoryBank, check_bank
from fairvlm_core.losses.gram import Loan, Part, from_cosines, gram_of
from fairvlm_core.losses.pairs import (
    Codes,
    check_positive,
    check_reduction,
    check_samples,
    codes_of,
    full_precision,
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
    if bank is not None:
        check_bank(bank, embeddings, labels, groups)
    pairs = find_pairs(codes_of(labels, groups), embeddings.device, bank)
    (value,) = from_cosines(embeddings, lambda *cosines: contrast_part(pairs, options, *cosines)[0], loan=pairs.loan)
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
    pairs = find_pairs(codes_of(labels, groups), embeddings.device)
    _, hard = contrast_part(pairs, Options(1.0, margin, False, "mean"), gram_of(embeddings).cosines, None)
    return statistics_of(pairs, hard)


class Options(NamedTuple):
    """The arguments of `cross_group_contrast` that are no tensors."""

    temperature: float
    margin: float
    hard_negative_fallback: bool
    reduction: str


class Pairs(NamedTuple):
    """Who is compared with whom. All classes of a single-label task together are one label here.

    Attributes:
        codes: labels and groups of the batch.
        differ: bool [n, n], whether some attribute that is known for both differs.
        counts: int64 [L, n], |P(i)| of each anchor with what the bank gives, and -1 for those that are no anchors.
        held_labels: float64 [L, m], of the rows of the loan.
        held_differ: bool [n, m], the same as `differ` for the rows of the loan.
        places: int64 [n], which row of the cosines to the loan belongs to a sample; -1 for those that borrow nothing.
        loan: what is borrowed from the bank, if anything.
    """

    codes: Codes
    differ: np.ndarray
    counts: np.ndarray
    held_labels: np.ndarray
    held_differ: np.ndarray
    places: np.ndarray
    loan: Loan | None


def find_pairs(codes: Codes, device: torch.device, bank: MemoryBank | None = None) -> Pairs:
    """Who differs from whom, and the number of positives; `device` is that of the embeddings."""
    differ = _differ(codes.groups, codes.groups)
    counts = _count_positives(codes.labels, codes.lowest, differ)
    places = np.full(len(differ), -1)
    if bank is not None:
        held = codes_of(bank.labels, bank.groups)
        held_differ = _differ(codes.groups, held.groups)
        borrows, lends = _borrow(codes.labels, held.labels, held_differ, counts)
        if lends.any():
            (borrowers,), (lent,) = borrows.nonzero(), lends.nonzero()
            places[borrowers] = np.arange(len(borrowers))
            rows = bank.embeddings[torch.from_numpy(lent).to(bank.embeddings.device)]
            loan = Loan(torch.from_numpy(borrowers).to(device), unit_rows(rows.to(device).double()))
            held_labels, held_differ = (np.ascontiguousarray(x[:, lent]) for x in (held.labels, held_differ))
            return Pairs(codes, differ, counts, held_labels, held_differ, places, loan)
    return Pairs(codes, differ, counts, codes.labels[:, :0], differ[:, :0], places, None)


@compiled
def _differ(groups: np.ndarray, others: np.ndarray) -> np.ndarray:
    """bool [n, m]: whether some attribute that is known for both differs, of [n, K] and [m, K]; negative = unknown."""
    differ = np.zeros((len(groups), len(others)), np.bool_)
    for k in range(groups.shape[1]):
        for i in range(len(groups)):
            mine = groups[i, k]
            if mine >= 0:
                for p in range(len(others)):
                    differ[i, p] |= (others[p, k] >= 0) & (others[p, k] != mine)
    return differ


@compiled
def _count_positives(labels: np.ndarray, lowest: float, differ: np.ndarray) -> np.ndarray:
    """int64 [L, n]: |P(i)| in the batch, -1 where i is no anchor."""
    counts = np.full(labels.shape, -1)
    for family in range(len(labels)):
        y = labels[family]
        for i in range(len(y)):
            if y[i] >= lowest:
                count = 0
                for p in range(len(y)):
                    count += (y[p] == y[i]) & differ[i, p]
                counts[family, i] = count
    return counts


@compiled
def _borrow(
    labels: np.ndarray, held: np.ndarray, differ: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Give anchors without a positive in the batch those of the bank; `counts` grows.

    Returns:
        bool [n] and [m]: which samples of the batch borrow, and which of the bank are lent.
    """
    borrows, lends = np.zeros(differ.shape[0], np.bool_), np.zeros(differ.shape[1], np.bool_)
    for family in range(len(labels)):
        for i in range(len(borrows)):
            if counts[family, i] == 0:
                for p in range(len(lends)):
                    if held[family, p] == labels[family, i] and differ[i, p]:
                        counts[family, i] += 1
                        borrows[i] = lends[p] = True
    return borrows, lends


def contrast_part(pairs: Pairs, options: Options, cosines: np.ndarray, lent: np.ndarray | None) -> tuple[Part, int]:
    """The loss from cosines [n, n] and, where there is a loan, [r, m]; and how many hard negatives the anchors have."""
    valid = np.count_nonzero(pairs.counts > 0, axis=1)
    weights = np.ones(len(valid))
    if options.reduction == "mean":
        weights /= np.maximum(valid * np.count_nonzero(valid), 1)
    gradient = np.zeros_like(cosines)
    lent_gradient = np.zeros((0, 0) if lent is None else lent.shape)
    value, hard = _contrast(
        pairs.codes.labels,
        *pairs[1:6],
        weights,
        *options[:3],
        cosines,
        lent_gradient if lent is None else lent,
        gradient,
        lent_gradient,
    )
    return Part(value, gradient, None if lent is None else lent_gradient), hard


@compiled
def _contrast(
    labels: np.ndarray,
    differ: np.ndarray,
    counts: np.ndarray,
    held_labels: np.ndarray,
    held_differ: np.ndarray,
    places: np.ndarray,
    weights: np.ndarray,
    temperature: float,
    margin: float,
    fallback: bool,
    cosines: np.ndarray,
    lent: np.ndarray,
    gradient: np.ndarray,
    lent_gradient: np.ndarray,
) -> tuple[float, int]:
    """The sum of the terms, and sum |N(i)|; `gradient` [n, n] and `lent_gradient` [r, m], zeros, get the derivatives.

    weights: [L], of an anchor's term.
    """
    n = len(cosines)
    value, hard = 0.0, 0
    others, mates, pushes = np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n)
    for family in range(len(labels)):
        y = labels[family]
        for i in range(n):
            if counts[family, i] < 0:
                continue
            # Lists and not conditions: whether a sample is one or the other is a toss-up, which processors are slow at.
            rivals = partners = 0
            for a in range(n):
                others[rivals] = mates[partners] = a
                rivals += (y[a] >= 0) & (y[a] != y[i])
                partners += (y[a] == y[i]) & differ[i, a]
            cosine, nearest, found = cosines[i], -1, 0
            for place in range(rivals):
                a = others[place]
                if np.isnan(cosine[a]):
                    return np.nan, hard
                if nearest < 0 or cosine[a] > cosine[nearest]:
                    nearest = a
                others[found] = a
                found += cosine[a] > margin
            hard += found
            # Without a negative a term is log 1.
            if counts[family, i] == 0 or nearest < 0 or not (fallback or found > 0):
                continue
            if found == 0:
                others[0], found = nearest, 1
            highest, total = cosine[nearest] / temperature, 0.0
            for place in range(found):
                pushes[place] = np.exp(cosine[others[place]] / temperature - highest)
                total += pushes[place]

            each = weights[family] / counts[family, i]
            pull = 0.0
            for p in mates[:partners]:
                term, slope = _term(cosine[p] / temperature - highest, total)
                value += each * term
                gradient[i, p] -= each * slope / temperature
                pull += each * slope
            if partners == 0:
                borrowed = places[i]
                for p in range(held_labels.shape[1]):
                    if held_labels[family, p] == y[i] and held_differ[i, p]:
                        term, slope = _term(lent[borrowed, p] / temperature - highest, total)
                        value += each * term
                        lent_gradient[borrowed, p] -= each * slope / temperature
                        pull += each * slope
            push = pull / (total * temperature)
            for place in range(found):
                gradient[i, others[place]] += push * pushes[place]
    for i in range(n):
        for a in range(i + 1):
            gradient[i, a] = gradient[a, i] = gradient[i, a] + gradient[a, i]
    return value, hard


@compiled
def _term(score: float, total: float) -> tuple[float, float]:
    """-log(e / (e + total)) with e = exp(score), and minus its derivative by the score; score is finite or NaN."""
    # The larger of both is taken out, so that nothing overflows whatever the temperature; total is at least 1.
    if score > 0:
        rest = total * np.exp(-score)
        return np.log1p(rest), rest / (1 + rest)
    e = np.exp(score)
    return np.log(e + total) - score, total / (e + total)


def statistics_of(pairs: Pairs, hard: int) -> dict[str, float]:
    """See `contrast_statistics`; what the bank gives counts as positives. `hard` is the sum of |N(i)|."""
    anchors = int(np.count_nonzero(pairs.counts >= 0))
    valid = int(np.count_nonzero(pairs.counts > 0))
    each = max(anchors, 1)
    return {
        "anchors": float(anchors),
        "positives": float((pairs.counts.sum() + pairs.counts.size - anchors) / each),
        "negatives": hard / each,
        "skipped": (anchors - valid) / each,
    }

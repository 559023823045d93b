"""Cross-group contrast: same label, different demographics, close together (FairMed-VLM, stage 2, L_supcon)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fairvlm_core.losses.bank import MemoryBank, check_bank
from fairvlm_core.losses.gram import Loan, Part, from_cosines, gram_of
from fairvlm_core.losses.pairs import (
    check_positive,
    check_reduction,
    check_samples,
    different_groups,
    full_precision,
    on_host,
    unit_rows,
)

FAR = 600.0  # exp(+-FAR) is still far from the ends of float64
ENTRIES = 2**14  # of a matrix, that are worked on at a time


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


class Family(NamedTuple):
    """The pairs of one label; all classes of a single-label task together are one family.

    Attributes:
        anchors: [a] rows of the batch, ascending.
        positives: bool [a, n], P(i).
        other: bool [a, n], another label.
        counts: float64 [a], |P(i)|, with what the bank gives.
        places: [a], which row of the cosines to the loan is theirs; -1 for those whose P(i) is not from the bank.
        borrowed: bool [a, m], P(i) among the rows of the loan.
    """

    anchors: np.ndarray
    positives: np.ndarray
    other: np.ndarray
    counts: np.ndarray
    places: np.ndarray
    borrowed: np.ndarray


class Pairs(NamedTuple):
    """Who is compared with whom: a family per label, and what is borrowed from the bank, if anything."""

    families: list[Family]
    loan: Loan | None


def find_pairs(embeddings: Tensor, labels: Tensor, groups: Tensor, bank: MemoryBank | None = None) -> Pairs:
    """Anchors, positives and samples of another label. Of the embeddings only device and shape matter."""
    if bank is not None:
        check_bank(bank, embeddings, labels, groups)
    y, attributes = on_host(labels, groups)
    different = different_groups(attributes, attributes)
    families = []
    for anchors, same, other in _agreement(y):
        positives = same & take(different, anchors)
        counts = positives.sum(1, dtype=np.float64)
        families.append(Family(anchors, positives, other, counts, np.full_like(anchors, -1), positives[:, :0]))
    return Pairs(families, None) if bank is None else _with_bank(families, y, attributes, bank, embeddings.device)


def _agreement(labels: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Per family the anchors [a], and for each the samples [a, n] with the same label and with another."""
    if labels.ndim == 1:
        known = labels >= 0
        anchors = known.nonzero()[0]
        equal = labels[anchors, None] == labels
        yield anchors, equal, ~equal & known
        return
    for column in labels.T:
        anchors = (column == 1).nonzero()[0]
        shape = (len(anchors), len(labels))
        yield anchors, np.broadcast_to(column == 1, shape), np.broadcast_to(column == 0, shape)


def _with_bank(
    families: list[Family], labels: np.ndarray, groups: np.ndarray, bank: MemoryBank, device: torch.device
) -> Pairs:
    """The families; anchors without a positive in the batch have the bank's."""
    held, attributes = on_host(bank.labels, bank.groups)
    different = different_groups(groups, attributes)
    offers = []
    for j, family in enumerate(families):
        same = labels[family.anchors, None] == held if labels.ndim == 1 else held[:, j] == 1
        offers.append(take(different, family.anchors) & same & (family.counts == 0)[:, None])

    borrows, lends = np.zeros(len(labels), dtype=bool), np.zeros(len(held), dtype=bool)
    for family, offer in zip(families, offers, strict=True):
        borrows[family.anchors] |= offer.any(1)
        lends |= offer.any(0)
    if not lends.any():
        return Pairs(families, None)
    place, lent = borrows.cumsum() - 1, lends.nonzero()[0]
    for j, (family, offer) in enumerate(zip(families, offers, strict=True)):
        places = np.where(offer.any(1), place[family.anchors], -1)
        families[j] = family._replace(counts=family.counts + offer.sum(1), places=places, borrowed=offer[:, lent])
    unit = unit_rows(bank.embeddings[torch.from_numpy(lent).to(bank.embeddings.device)].to(device).double())
    return Pairs(families, Loan(torch.from_numpy(borrows.nonzero()[0]).to(device), unit))


def contrast_part(pairs: Pairs, options: Options, cosines: np.ndarray, lent: np.ndarray | None) -> Part:
    """Value and gradient of the loss from cosines [n, n] and, where there is a loan, [r, m]."""
    value, gradient = 0.0, np.zeros_like(cosines)
    lent_gradient = None if lent is None else np.zeros_like(lent)
    valid = [np.count_nonzero(family.counts) for family in pairs.families]
    labels = np.count_nonzero(valid)
    # A few anchors at a time, so that what is worked on stays in the processor's cache.
    step = max(1, ENTRIES // max(len(cosines), 1))
    for family, count in zip(pairs.families, valid, strict=True):
        each = np.divide(1.0, family.counts, out=np.zeros_like(family.counts), where=family.counts > 0)
        if options.reduction == "mean":
            each /= max(count * labels, 1)
        for start in range(0, len(each) if count else 0, step):
            some = slice(start, start + step)
            terms, pulls = _some_anchors(family, some, each[some], options, cosines, lent, lent_gradient)
            value += terms
            rows = family.anchors[some]
            gradient[slice(rows[0], rows[-1] + 1) if _adjoin(rows) else rows] += pulls
    return Part(value, gradient + gradient.T, lent_gradient)


def _some_anchors(
    family: Family,
    some: slice,
    each: np.ndarray,
    options: Options,
    cosines: np.ndarray,
    lent: np.ndarray | None,
    lent_gradient: np.ndarray | None,
) -> tuple[float, np.ndarray]:
    """What `some` anchors add to the loss, and its gradient by their cosines [a, n]; `lent_gradient` is added to."""
    anchored = take(cosines, family.anchors[some])
    negatives = _negatives(family.other[some], options, anchored)
    scores = anchored / options.temperature
    highest = np.where(negatives, scores, -np.inf).max(1, keepdims=True)
    # Without a negative a term is log 1.
    alone = highest == -np.inf
    each = each[:, None] * ~alone
    highest[alone] = 0.0
    scores -= highest
    exponentials = _exponentials(scores)
    chosen = exponentials * negatives
    total = chosen.sum(1, keepdims=True) + alone

    terms, pulls = _terms(scores, exponentials, total)
    weights = family.positives[some] * each
    value = float(np.vdot(terms, weights))
    pulls *= weights
    pull = pulls.sum(1, keepdims=True)
    if lent is not None and lent_gradient is not None:
        mine = (family.places[some] >= 0).nonzero()[0]
        places = family.places[some][mine]
        scores = lent[places] / options.temperature - highest[mine]
        terms, outside = _terms(scores, _exponentials(scores), total[mine])
        weights = family.borrowed[some][mine] * each[mine]
        value += float(np.vdot(terms, weights))
        outside *= weights
        pull[mine] += outside.sum(1, keepdims=True)
        lent_gradient[places] -= outside / options.temperature
    chosen *= pull / (total * options.temperature)
    pulls /= options.temperature
    chosen -= pulls
    return value, chosen


def _negatives(other: np.ndarray, options: Options, cosines: np.ndarray) -> np.ndarray:
    """bool [a, n]: N(i), or where that is empty the nearest sample of another label. other, cosines: [a, n]."""
    negatives = cosines > options.margin
    negatives &= other
    if options.hard_negative_fallback:
        empty = np.flatnonzero(~negatives.any(1))
        if len(empty):
            candidates = other[empty]
            nearest = np.where(candidates, cosines[empty], -np.inf).argmax(1)
            negatives[empty, nearest] = candidates.any(1)
    return negatives


def _exponentials(scores: np.ndarray) -> np.ndarray:
    """exp of scores [a, n] that are relative to the largest of a negative."""
    # Beyond these bounds, which only temperatures below 0.004 reach, float64 cannot tell a sum from its larger part.
    clipped = scores.clip(-FAR, FAR)
    return np.exp(clipped, out=clipped)


def _terms(scores: np.ndarray, exponentials: np.ndarray, total: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """-log(e / (e + total)) of exponentials e [a, n], and minus its derivative by the score."""
    exponentials = exponentials + total
    terms = np.log(exponentials)
    terms -= np.minimum(scores, FAR)
    return terms, np.divide(total, exponentials, out=exponentials)


def statistics_of(pairs: Pairs, cosines: np.ndarray, margin: float) -> dict[str, float]:
    """See `contrast_statistics`; what the bank gives counts as positives."""
    anchors = positives = negatives = valid = 0
    for family in pairs.families:
        anchors += len(family.anchors)
        positives += int(family.counts.sum())
        valid += int(np.count_nonzero(family.counts))
        negatives += int(np.count_nonzero((take(cosines, family.anchors) > margin) & family.other))
    each = max(anchors, 1)
    return {
        "anchors": float(anchors),
        "positives": positives / each,
        "negatives": negatives / each,
        "skipped": (anchors - valid) / each,
    }


def take(matrix: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """matrix[rows] for ascending rows without repetition: a view where they are next to each other, else a copy."""
    return matrix[rows[0] : rows[-1] + 1] if _adjoin(rows) else matrix[rows]


def _adjoin(rows: np.ndarray) -> bool:
    return len(rows) > 0 and bool(rows[-1] - rows[0] + 1 == len(rows))

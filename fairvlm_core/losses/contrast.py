"""Cross-group contrast: same label, different demographics, close together (FairMed-VLM, stage 2, L_supcon)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fairvlm_core.losses.pairs import (
    check_positive,
    check_reduction,
    check_samples,
    different_groups,
    full_precision,
    label_pairs,
    masked_logsumexp,
    unit_rows,
)


def _masks(cosines: Tensor, labels: Tensor, groups: Tensor, margin: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """anchors [Y, n], P(i), other labels and N(i), each [Y, n, n]; none of them carries a gradient."""
    anchors, same, other = label_pairs(labels.to(cosines.device))
    positives = same & different_groups(groups.to(cosines.device))
    return anchors, positives, other, other & (cosines.detach() > margin)


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
) -> Tensor:
    """Draw samples with the same label and different demographics together, away from hard negatives (L_supcon).

    The embeddings are L2-normalised here. For an anchor i, P(i) holds the samples with the same label of which some
    attribute known for both differs, and N(i) those with another label and a cosine above the margin. The term of i is
    the mean over p in P(i) of -log(exp(s_ip) / (exp(s_ip) + sum over a in N(i) of exp(s_ia))) with s = cosine /
    temperature: each positive against the negatives alone, not against the other positives. An anchor with empty P(i)
    is skipped.

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

    Returns:
        Scalar; 0 where no anchor is valid.

    Raises:
        ValueError: shapes that do not fit together, a temperature that is not positive, an unknown reduction.
    """
    check_samples(embeddings, labels, groups)
    check_positive(temperature=temperature)
    check_reduction(reduction)
    unit = unit_rows(embeddings)
    if len(unit) == 0:
        return unit.sum()
    cosines = unit @ unit.T
    _, positives, other, negatives = _masks(cosines, labels, groups, margin)
    if hard_negative_fallback:
        nearest = cosines.detach().masked_fill(~other, -torch.inf).argmax(-1, keepdim=True)
        # Where N(i) is not empty, the nearest is in it already.
        negatives = negatives | (torch.zeros_like(other).scatter_(-1, nearest, True) & other)

    scores = cosines / temperature
    against, any_negative = masked_logsumexp(scores.expand_as(negatives), negatives)
    terms = -F.logsigmoid(scores - against.unsqueeze(-1))
    terms = terms.masked_fill(~(positives & any_negative.unsqueeze(-1)), 0.0)
    per_anchor = terms.sum(-1) / positives.sum(-1).clamp_min(1)
    if reduction == "sum":
        return per_anchor.sum()
    valid = positives.any(-1)
    per_label = per_anchor.sum(-1) / valid.sum(-1).clamp_min(1)
    return per_label.sum() / valid.any(-1).sum().clamp_min(1)


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
    unit = unit_rows(embeddings)
    anchors, positives, _, negatives = _masks(unit @ unit.T, labels, groups, margin)
    count = int(anchors.sum())
    each = max(count, 1)
    return {
        "anchors": float(count),
        "positives": float(positives.sum()) / each,
        "negatives": float(negatives.sum()) / each,
        "skipped": float((anchors & ~positives.any(-1)).sum()) / each,
    }

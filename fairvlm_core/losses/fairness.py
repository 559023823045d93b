"""Both fairness losses of FairMed-VLM, stage 2, from one Gram matrix."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from fairvlm_core.losses.bank import MemoryBank, check_bank
from fairvlm_core.losses.contrast import Options, contrast_part, find_pairs, statistics_of
from fairvlm_core.losses.gram import Part, from_cosines
from fairvlm_core.losses.moments import find_cells, gram_form, moments_by_covariances, moments_part
from fairvlm_core.losses.pairs import check_positive, check_reduction, check_samples, codes_of, full_precision


@full_precision
def fairness_terms(
    embeddings: Tensor,
    labels: Tensor,
    groups: Tensor,
    *,
    temperature: float = 0.07,
    margin: float = 0.3,
    hard_negative_fallback: bool = True,
    covariance_weight: float = 0.1,
    reduction: str = "mean",
    bank: MemoryBank | None = None,
) -> dict[str, Tensor | float]:
    """`cross_group_contrast`, `moment_alignment` and `contrast_statistics` of a batch, at the price of one of them.

    Both losses, forward and backward, take two matrix products of n x n x d together. With more samples than dimensions
    the moments are made of d x d covariances instead, which are smaller then.

    Args:
        embeddings: [n, d].
        labels: [n] or [n, L].
        groups: [n, K].
        temperature, margin, hard_negative_fallback, bank: see `cross_group_contrast`.
        covariance_weight: see `moment_alignment`.
        reduction: of both.

    Returns:
        contrast, moments: scalars with gradient; they can be differentiated once.
        anchors, positives, negatives, skipped: see `contrast_statistics`; what the bank gives counts as positives.

    Raises:
        ValueError: as the two losses.
    """
    check_samples(embeddings, labels, groups)
    check_positive(temperature=temperature)
    check_reduction(reduction)
    options = Options(temperature, margin, hard_negative_fallback, reduction)
    if bank is not None:
        check_bank(bank, embeddings, labels, groups)
    codes = codes_of(labels, groups)
    pairs = find_pairs(codes, embeddings.device, bank)
    cells = find_cells(codes, covariance_weight, reduction)
    statistics: dict[str, float] = {}

    def contrast(cosines: np.ndarray, lent: np.ndarray | None) -> Part:
        part, hard = contrast_part(pairs, options, cosines, lent)
        statistics.update(statistics_of(pairs, hard))
        return part

    def moments(cosines: np.ndarray, _: np.ndarray | None) -> Part:
        return moments_part(cells, cosines)

    if gram_form(embeddings):
        values = from_cosines(embeddings, contrast, moments, loan=pairs.loan)
    else:
        apart = moments_by_covariances(embeddings, cells)
        values = (*from_cosines(embeddings, contrast, loan=pairs.loan), apart)
    return {"contrast": values[0], "moments": values[1], **statistics}

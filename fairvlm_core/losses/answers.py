"""Answers of the language model: instruction tuning and the scores of yes/no questions and options (FairMed-VLM)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fairvlm_core.losses.pairs import as_float, full_precision

IGNORED = -100
EMPTY = 1e-12  # a total of nothing: the mean is then 0, not 0/0


def _mean(terms: Tensor, known: Tensor, weights: Tensor | None, total: float | None) -> Tensor:
    """Weighted mean of the known terms [...]; weights [n] belong to their rows. 0 where nothing is known."""
    terms = terms.masked_fill(~known, 0.0)
    each = known.to(terms)
    if weights is not None:
        if weights.shape != terms.shape[:1]:
            raise ValueError(f"weights must be [n] with n = {len(terms)}, not {list(weights.shape)}.")
        each = each * weights.to(terms).view(-1, *[1] * (terms.ndim - 1))
    return (terms * each).sum() / (each.sum() if total is None else terms.new_tensor(total)).clamp_min(EMPTY)


@full_precision
def instruction_loss(
    logits: Tensor, targets: Tensor, *, weights: Tensor | None = None, total: float | None = None
) -> Tensor:
    """Next-token cross-entropy on the answer tokens (L_inst, FairMed-VLM, stage 1).

    Args:
        logits: [A, V], what the model said where it predicts each answer token; the packing of questions gives these
            rows alone, so logits of prompt, image and padding (gigabytes of them) are never computed.
        targets: [A] the answer's token ids; -100 takes no part.
        weights: [A], how much each token counts; by default all count 1.
        total: what the weighted sum is divided by. By default the weights of the tokens that take part; a part of a
            batch passes that of the whole batch, and then the parts' losses add up to the batch's.

    Returns:
        Scalar, the mean over the answer tokens of the batch; 0 where there is none.

    Raises:
        ValueError: shapes that do not fit together.
    """
    if logits.ndim != 2 or targets.shape != logits.shape[:1]:
        raise ValueError(f"logits must be [A, V] and targets [A], not {list(logits.shape)} and {list(targets.shape)}.")
    (rows,) = as_float(logits)
    targets = targets.to(logits.device)
    terms = F.cross_entropy(rows, targets, reduction="none", ignore_index=IGNORED)
    return _mean(terms, targets != IGNORED, weights, total)


def yes_no_log_odds(logits: Tensor, yes_id: int, no_id: int) -> Tensor:
    """log P(yes) - log P(no) at the first answer token: logits [n, V] -> [n]. The input of `answer_bce`.

    Raises:
        ValueError: logits that are not [n, V], or ids that are equal or outside the vocabulary.
    """
    if logits.ndim != 2:
        raise ValueError(f"logits must be [n, V], not {list(logits.shape)}.")
    if yes_id == no_id or not (0 <= yes_id < logits.shape[1] and 0 <= no_id < logits.shape[1]):
        raise ValueError(f"yes_id {yes_id} and no_id {no_id} must be two tokens below {logits.shape[1]}.")
    yes, no = as_float(logits[:, yes_id], logits[:, no_id])
    return yes - no


def yes_no_scores(logits: Tensor, yes_id: int, no_id: int) -> Tensor:
    """P(yes) / (P(yes) + P(no)) at the first answer token: logits [n, V] -> [n] (FairMed-VLM, inference).

    The softmax's normaliser cancels, so this is the sigmoid of the logits' difference and cannot be 0/0.
    """
    return yes_no_log_odds(logits, yes_id, no_id).sigmoid()


@full_precision
def answer_bce(
    log_odds: Tensor, labels: Tensor, *, weights: Tensor | None = None, total: float | None = None
) -> Tensor:
    """Binary cross-entropy over the findings (L_qa, FairMed-VLM, stage 1).

    Args:
        log_odds: [n, L], see `yes_no_log_odds`.
        labels: [n, L], 1 present, 0 absent, NaN unknown (negative values too).
        weights, total: as in `instruction_loss`, with weights [n].

    Returns:
        Scalar, the mean over the known labels; 0 where there is none.

    Raises:
        ValueError: the shapes differ.
    """
    if log_odds.shape != labels.shape:
        raise ValueError(f"log_odds and labels must both be [n, L], not {list(log_odds.shape)}, {list(labels.shape)}.")
    (log_odds,) = as_float(log_odds)
    labels = labels.to(log_odds.device)
    known = labels >= 0
    targets = torch.where(known, labels, 0).to(log_odds.dtype)
    terms = F.binary_cross_entropy_with_logits(log_odds, targets, reduction="none")
    return _mean(terms, known, weights, total)


def _per_token(log_likelihoods: Tensor, lengths: Tensor) -> Tensor:
    """Mean log-likelihood per token of each option, [n, O]; a longer answer is not less likely for its length."""
    if log_likelihoods.ndim != 2 or lengths.shape not in (log_likelihoods.shape, log_likelihoods.shape[1:]):
        raise ValueError(
            "log_likelihoods must be [n, O] and lengths [O] or [n, O], "
            f"not {list(log_likelihoods.shape)} and {list(lengths.shape)}."
        )
    if not bool((lengths > 0).all()):
        raise ValueError("Every option needs at least one token: lengths must be greater than 0.")
    (log_likelihoods,) = as_float(log_likelihoods)
    return log_likelihoods / lengths.to(log_likelihoods)


def option_scores(log_likelihoods: Tensor, lengths: Tensor) -> Tensor:
    """Softmax over the length-normalised log-likelihoods of the options (FairMed-VLM, single-label tasks).

    Args:
        log_likelihoods: [n, O], the summed log-probabilities of each option's tokens.
        lengths: [O] or [n, O], the number of tokens of each option.

    Returns:
        [n, O], rows sum to 1.

    Raises:
        ValueError: shapes that do not fit together, or a length below 1.
    """
    return _per_token(log_likelihoods, lengths).softmax(-1)


def option_cross_entropy(
    log_likelihoods: Tensor,
    lengths: Tensor,
    labels: Tensor,
    *,
    weights: Tensor | None = None,
    total: float | None = None,
) -> Tensor:
    """Cross-entropy of `option_scores` (L_qa of a single-label task, FairMed-VLM, stage 1).

    Args:
        log_likelihoods: [n, O].
        lengths: [O] or [n, O].
        labels: [n] int, the right option; negative = unknown.
        weights, total: as in `instruction_loss`, with weights [n].

    Returns:
        Scalar, the mean over the known labels; 0 where there is none.

    Raises:
        ValueError: as `option_scores`; labels that are not [n] or name no option.
    """
    scores = _per_token(log_likelihoods, lengths)
    if labels.shape != scores.shape[:1]:
        raise ValueError(f"labels must be [n] with n = {len(scores)}, not {list(labels.shape)}.")
    labels = labels.to(scores.device)
    if bool((labels >= scores.shape[1]).any()):
        raise ValueError(f"labels must be below the number of options, {scores.shape[1]}.")
    known = labels >= 0
    terms = F.cross_entropy(scores, torch.where(known, labels, 0).long(), reduction="none")
    return _mean(terms, known, weights, total)

"""Gate dispersion: the groups spread over the experts as the whole batch does (Fair-MoE, fairness-oriented loss)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fairvlm_core.losses.pairs import as_float


def gate_dispersion(batch_gates: Tensor, group_gates: Sequence[Tensor]) -> Tensor:
    """One of the four F terms of the fairness-oriented loss (Fair-MoE; F_EI, F_ET, F_FI, F_FT).

    The sum over groups p and experts j of (Var(O_j) - Var(O_pj))^2, O being the sparse gate weights and Var the
    population variance over all samples (and tokens). Both sides keep their gradient.

    Args:
        batch_gates: [..., M], the gate weights of the batch; leave padding out (`gates[mask]`).
        group_gates: one [..., M] per group; a group without samples contributes 0.

    Returns:
        Scalar.

    Raises:
        ValueError: the gates do not have the same number of experts.
    """
    if batch_gates.ndim < 2:
        raise ValueError(f"batch_gates must be [..., M] with a leading dimension, not {list(batch_gates.shape)}.")
    experts = batch_gates.shape[-1]
    for gates in group_gates:
        if gates.ndim < 2 or gates.shape[-1] != experts:
            raise ValueError(f"group_gates must be [..., M] with M = {experts}, not {list(gates.shape)}.")
    (batch,) = as_float(batch_gates)
    loss = batch.sum() * 0.0
    if batch.numel() == 0:
        return loss
    spread = _variances(batch)
    for gates in group_gates:
        (group,) = as_float(gates)
        loss = loss + ((spread - _variances(group)).square().sum() if group.numel() else group.sum())
    return loss


def _variances(gates: Tensor) -> Tensor:
    return gates.reshape(-1, gates.shape[-1]).var(0, correction=0)

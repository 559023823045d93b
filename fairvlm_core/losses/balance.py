"""Auxiliary losses of sparse mixtures: no expert idles, and the gate's logits stay small. All are off by default.

The published Fair-MoE has none of them; its dispersion term compares groups and does not stop a gate from collapsing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fairvlm_core.losses.pairs import as_float


def importance_loss(gates: Tensor) -> Tensor:
    """The squared coefficient of variation of the experts' importance (Shazeer et al. 2017, section 4, eq. 6-7).

    Args:
        gates: sparse gate weights [..., M]; leave padding out. An expert's importance is the sum of its weights.

    Returns:
        Scalar; 0 when all experts have the same importance, and where there is no token.
    """
    (weights,) = as_float(_experts(gates, "gates"))
    total = weights.sum(0)
    mean = total.mean()
    # Without any weight there is nothing to balance; the division must not make a NaN of the gradient.
    return total.var(correction=0) / mean.square().clamp_min(torch.finfo(weights.dtype).tiny)


def load_loss(logits: Tensor, routed: Tensor) -> Tensor:
    """M times the sum over the experts of their share of the tokens times their mean probability.

    Fedus et al. 2022 (Switch), eq. 4. Of a token's k assignments each counts as a k-th, so that an even load gives 1
    for every k.

    Args:
        logits: of the gate, [..., M]; leave padding out.
        routed: bool [..., M], the experts that Top_r gives to each token. Before Top_c: capacity evens out every load.

    Returns:
        Scalar; 1 when the load is even, M when one expert has all of it, 0 where there is no token.

    Raises:
        ValueError: shapes that do not fit.
    """
    if logits.shape != routed.shape:
        raise ValueError(f"logits and routed must have one shape, not {list(logits.shape)} and {list(routed.shape)}.")
    (flat,) = as_float(_experts(logits, "logits"))
    if not len(flat):
        return flat.sum() * 0.0
    assigned = _experts(routed, "routed").to(flat)
    share = assigned.sum(0) / assigned.sum().clamp_min(1)
    return flat.shape[-1] * (share * flat.softmax(-1).mean(0)).sum()


def router_z_loss(logits: Tensor) -> Tensor:
    """The mean over the tokens of the squared log-sum-exp of the gate's logits (Zoph et al. 2022, eq. 5).

    Args:
        logits: [..., M]; leave padding out.

    Returns:
        Scalar; 0 where there is no token.
    """
    (flat,) = as_float(_experts(logits, "logits"))
    return flat.logsumexp(-1).square().mean() if len(flat) else flat.sum() * 0.0


def _experts(values: Tensor, name: str) -> Tensor:
    """[N, M] of [..., M]."""
    if values.ndim < 2 or values.shape[-1] < 1:
        raise ValueError(f"{name} must be [..., M] with a leading dimension, not {list(values.shape)}.")
    return values.reshape(-1, values.shape[-1])

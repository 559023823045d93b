"""Exact optimal transport in one dimension (Fair-MoE, L_distance)."""

from __future__ import annotations

import torch
from torch import Tensor

from fairvlm_core.losses.pairs import as_float


def transport_distance(x: Tensor, y: Tensor) -> Tensor:
    """Half the squared Wasserstein-2 distance between two samples on the line, all points weighing the same.

    In Fair-MoE (fairness-oriented loss, L_distance) x and y are the image-text cosines of the batch and of one group.
    On the line the optimal plan joins equal quantiles, so sorting gives the exact distance and no regularisation is
    needed.

    Args:
        x: [n].
        y: [m]; m may differ from n.

    Returns:
        Scalar, differentiable in both; 0 where either is empty.

    Raises:
        ValueError: x or y is not one-dimensional.
    """
    if x.ndim != 1 or y.ndim != 1:
        raise ValueError(f"x and y must be one-dimensional, not {list(x.shape)} and {list(y.shape)}.")
    x, y = as_float(x, y)
    n, m = len(x), len(y)
    if n == 0 or m == 0:
        return 0.0 * (x.sum() + y.sum())
    x, y = x.sort(stable=True).values, y.sort(stable=True).values
    # Both quantile functions are constant between the points i/n and j/m; counted in units of 1/(nm) these are whole
    # numbers, so no interval is lost or doubled by rounding.
    steps = torch.cat([torch.arange(n, device=x.device) * m, torch.arange(m, device=x.device) * n]).sort().values
    widths = torch.diff(steps, append=steps.new_tensor([n * m])).to(x.dtype) / (n * m)
    return 0.5 * (widths * (x[steps // m] - y[steps // n]).square()).sum()

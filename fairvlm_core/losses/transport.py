"""Optimal transport on the line, exact by sorting or entropic by Sinkhorn (Fair-MoE, L_distance)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fairvlm_core.compiled import compiled
from fairvlm_core.losses.pairs import as_float, check_positive, full_precision


def transport_distance(x: Tensor, y: Tensor) -> Tensor:
    """Half the squared Wasserstein-2 distance between two samples on the line, all points weighing the same.

    In Fair-MoE (fairness-oriented loss, L_distance) x and y are the image-text cosines of the batch and of one group.
    On the line the optimal plan joins equal quantiles, so sorting gives the exact distance and no regularisation is
    needed.

    Args:
        x: [n].
        y: [m]; m may differ from n.

    Returns:
        Scalar with a first derivative in both; 0 where either is empty.

    Raises:
        ValueError: x or y is not one-dimensional.
    """
    return transport_distances(x, [y])[0]


def transport_distances(x: Tensor, ys: Sequence[Tensor]) -> Tensor:
    """The transport distance of one sample to each of several: of the batch to every group (Fair-MoE, L_distance).

    Args:
        x: [n].
        ys: G tensors [m_g]; the sizes may differ from n and from each other.

    Returns:
        [G], in the order of ys, with a first derivative in x and in every y; 0 where x or that y is empty.

    Raises:
        ValueError: x or a y is not one-dimensional.
    """
    _check_samples(x, *ys)
    distances: Tensor = _Transport.apply(*as_float(x, *ys))
    return distances


@full_precision
def sinkhorn_distance(x: Tensor, y: Tensor, *, blur: float = 1e-4, scaling: float = 0.5) -> Tensor:
    """The debiased Sinkhorn divergence at the cost |x - y|^2 / 2, which FairCLIP and Fair-MoE train with, by geomloss.

    The defaults are those of FairCLIP's code. As blur goes to 0 *and* scaling to 1 it converges to
    `transport_distance`. At the published scaling it stops after some log2(spread / blur) iterations, far from its
    limit: between distributions as close as those of a batch and a group, the gradient is off by tens of percent. At
    0.99 the value is right to a thousandth and the gradient to some percent, with seventy times the iterations.

    Args:
        x: [n].
        y: [m].
        blur: standard deviation of the smoothing, in units of x; the temperature is its square.
        scaling: ratio of two successive blurs, from the spread of the points down to `blur`, between 0 and 1.

    Returns:
        Scalar with a first derivative in both; 0 where either is empty.

    Raises:
        ValueError: x or y is not one-dimensional, blur is not positive, or scaling is not between 0 and 1.
    """
    from geomloss import SamplesLoss

    _check_samples(x, y)
    check_positive(blur=blur)
    if not 0 < scaling < 1:
        raise ValueError(f"scaling must be between 0 and 1, not {scaling}.")
    x, y = as_float(x, y)
    if len(x) == 0 or len(y) == 0:
        return 0.0 * (x.sum() + y.sum())
    # The spread is what geomloss would find itself, but where all points coincide it would take the logarithm of 0.
    low, high = torch.cat([x, y]).detach().aminmax()
    spread = max(blur, (high - low).item())
    divergence = SamplesLoss("sinkhorn", p=2, blur=blur, scaling=scaling, diameter=spread, backend="tensorized")
    # geomloss switches gradients off and on for everyone: without this they would be on behind a caller's no_grad.
    with torch.set_grad_enabled(torch.is_grad_enabled()):
        return divergence(x[:, None], y[:, None])


def _check_samples(*samples: Tensor) -> None:
    for sample in samples:
        if sample.ndim != 1:
            raise ValueError(f"Samples on the line must be one-dimensional, not {list(sample.shape)}.")


class _Transport(torch.autograd.Function):
    """Samples x, y_1, ..., y_G of one floating dtype to the distances [G].

    To sort and sum a few hundred numbers takes less time than to ask torch for it. So one compiled loop on the host
    does all groups, and gives the gradient together with the value: backward needs no host. To a second derivative the
    gradient is a constant.
    """

    @staticmethod
    def forward(ctx: Any, *samples: Tensor) -> Tensor:
        ctx.sizes = [len(sample) for sample in samples]
        device = samples[0].device
        distances, pulls = _couple(torch.cat(samples).cpu().numpy(), np.array(ctx.sizes))
        ctx.save_for_backward(torch.from_numpy(pulls).to(device))
        return torch.from_numpy(distances).to(device)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor, ...]:
        (pulls,) = ctx.saved_tensors
        # Not a matrix product: autocast would do that in bfloat16.
        return (weights.unsqueeze(1) * pulls).sum(0).split(ctx.sizes)


@compiled
def _couple(points: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distances [G] between the first sample and each later one, and their gradients [G, p] by all points.

    points: [p], the samples one after the other. sizes: [1 + G], of the samples.
    """
    n, start = sizes[0], sizes[0]
    distances = np.zeros(len(sizes) - 1, points.dtype)
    pulls = np.zeros((len(sizes) - 1, len(points)), points.dtype)
    order = np.argsort(points[:n], kind="mergesort")
    for group in range(len(sizes) - 1):
        m = sizes[group + 1]
        group_order = start + np.argsort(points[start : start + m], kind="mergesort")
        # Both quantile functions are constant between the points i/n and j/m; counted in units of 1/(nm) these are
        # whole numbers, so no interval is lost or doubled by rounding.
        total, begin = 0.0, 0
        while begin < n * m:
            i, j = begin // m, begin // n
            end = min((i + 1) * m, (j + 1) * n)
            mass = (end - begin) / (n * m)
            gap = np.float64(points[order[i]]) - np.float64(points[group_order[j]])
            total += 0.5 * mass * gap * gap
            pulls[group, order[i]] += mass * gap
            pulls[group, group_order[j]] -= mass * gap
            begin = end
        distances[group] = total
        start += m
    return distances, pulls

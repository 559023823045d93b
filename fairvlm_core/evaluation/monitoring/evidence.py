"""How sure a change between two independent samples is, and when it counts as drift.

A change is drift where it is beyond its limit for sure, not where it is merely not nothing: a huge month makes any
nothing significant, and in a small one chance alone passes any limit. Each side has an interval at any z, the interval
of their difference is made of both by squares and sums (Newcombe 1998; Zou and Donner 2008), and the p-value is that of
the z at which its near end touches the limit. Holm's correction goes over all comparisons of a month.

Shares have Wilson's interval. Gaps, AUC and ECE have that of the bootstrap (`interval`), no narrower than Wilson's for
as many patients: where none of twelve was selected, no resample has any, and the bootstrap takes that for certain. Of
patients with several images Kish's effective size counts, as if all images of one were alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from scipy.special import ndtr, ndtri

from fairvlm_core.cohort.expectation_shares import distance
from fairvlm_core.errors import ConfigError
from fairvlm_core.evaluation.bootstrap import LEVEL, RESAMPLES
from fairvlm_core.evaluation.significance import holm

DRIFTED, STABLE, UNSURE = "drifted", "stable", "cannot tell"
BINS = 10  # of the stability index, as practitioners have it
FURTHEST = 12.0  # a z beyond which nothing is told apart


@dataclass(frozen=True)
class Limits:
    """How large a change may be: shares of the images, or AUC and ECE. The absolute ones hold where they are given."""

    score_shift: float = 0.1
    selection_shift: float = 0.1
    prevalence_shift: float = 0.1
    mix_shift: float = 0.1
    dpd_rise: float = 0.1
    eod_rise: float = 0.1
    auc_drop: float = 0.05
    ece_rise: float = 0.05
    dpd: float | None = None
    eod: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not 0 < value <= 1:
                flag = f"--max-{field.name.replace('_', '-')}"
                raise ConfigError(
                    f"A limit of {value:g} is none.",
                    where=flag,
                    mend=f"Give more than 0, and at most 1 ({flag} 1 lets everything pass).",
                )


@dataclass(frozen=True)
class Asked:
    """How the comparison is made."""

    limits: Limits = Limits()
    min_cell: int = 10
    resamples: int = RESAMPLES
    level: float = LEVEL
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (("min_cell", 1, 10**9), ("resamples", 100, 10**6), ("level", 0.5, 0.9999)):
            if not low <= getattr(self, name) <= high:
                raise ConfigError(
                    f"{name} cannot be {getattr(self, name):g}.",
                    where=f"--{name.replace('_', '-')}",
                    mend=f"Give {low:g} to {high:g}.",
                )


Ends = Callable[[float], tuple[float, float]]  # z -> low and high


@dataclass(frozen=True)
class Side:
    """A number of one sample and its interval at any z."""

    value: float
    ends: Ends

    def at(self, level: float) -> tuple[float, float]:
        """The interval of a level."""
        return self.ends(float(ndtri((1 + level) / 2)))


@dataclass(frozen=True)
class Finding:
    """One comparison.

    Attributes:
        measure: score_shift, selection_shift, prevalence_shift, mix_shift, dpd_rise, dpd, ...: the name of its limit.
        label: none for what is about people alone.
        attribute, group: none for everybody; a gap has no group. In `mix_shift` the group none are the unknown.
        then, now: the number on both sides; of `score_shift` the mean scores.
        change: what has the limit: now minus then, in the direction that is bad; of `score_shift` the distance.
        low, high: its interval; none where there is no telling.
        p, p_holm: that chance makes as much of a change that is within the limit; p_holm is after Holm's correction.
        verdict: drifted, stable (the whole interval is within the limit) or cannot tell.
        more: what else is told, such as the stability index.
    """

    measure: str
    label: str | None
    attribute: str | None
    group: str | None
    then: float | None
    now: float | None
    change: float
    low: float
    high: float
    limit: float
    p: float
    p_holm: float = float("nan")
    verdict: str = UNSURE
    more: tuple[tuple[str, float], ...] = ()


def wilson(share: float, size: float) -> Side:
    """A share of `size` independent people, with Wilson's interval (1927).

    >>> [round(end, 2) for end in wilson(0.0, 12).ends(1.96)]
    [0.0, 0.24]
    """

    def ends(z: float) -> tuple[float, float]:
        spread = z * np.sqrt(share * (1 - share) / size + z * z / (4 * size * size))
        middle, width = share + z * z / (2 * size), 1 + z * z / size
        return max(float((middle - spread) / width), 0.0), min(float((middle + spread) / width), 1.0)

    return Side(share, ends)


def resampled(value: float, ends: Sequence[float], *, level: float, least: Ends | None = None) -> Side:
    """A number between 0 and 1 with the bootstrap's interval, stretched to any z, and no narrower than `least`."""
    unit = float(ndtri((1 + level) / 2))

    def stretched(z: float) -> tuple[float, float]:
        low, high = (value + (end - value) * z / unit for end in ends)
        if least is not None:
            floor, ceiling = least(z)
            low, high = min(low, floor), max(high, ceiling)
        return max(low, 0.0), min(high, 1.0)

    return Side(value, stretched)


def minus(first: Side, second: Side) -> Side:
    """The difference of two independent numbers, its interval by squares and sums."""

    def ends(z: float) -> tuple[float, float]:
        (low, high), (floor, ceiling), change = first.ends(z), second.ends(z), first.value - second.value
        return (
            change - float(np.hypot(first.value - low, ceiling - second.value)),
            change + float(np.hypot(high - first.value, second.value - floor)),
        )

    return Side(first.value - second.value, ends)


def tail(side: Side, limit: float) -> float:
    """Two-sided p-value of a number that is no more than its limit: of the z at which the low end touches it."""
    from scipy.optimize import brentq

    if side.value <= limit:
        return 1.0
    if side.ends(FURTHEST)[0] > limit:
        return float(2 * ndtr(-FURTHEST))
    return float(2 * ndtr(-brentq(lambda z: side.ends(z)[0] - limit, 0.0, FURTHEST)))


def rise(side: Side, limit: float, level: float) -> tuple[float, float, float]:
    """Low, high and p of a number that may be anything up to its limit."""
    return *side.at(level), tail(side, limit)


def shift(side: Side, limit: float, level: float) -> tuple[float, float, float]:
    """Low, high and p of a change that may be up to its limit in either direction."""
    low, high, p = rise(side, limit, level)
    turned = Side(-side.value, lambda z: (-side.ends(z)[1], -side.ends(z)[0]))
    return low, high, min(p, tail(turned, limit))


def score_shift(then: np.ndarray, now: np.ndarray, size: float, *, limit: float, level: float) -> tuple[float, ...]:
    """Kolmogorov-Smirnov distance of two samples of scores: it, its low and high end, and p of being within the limit.

    The measured distance exceeds the true one at most by the distance of both samples from what they were drawn from
    (triangle inequality), which is beyond x with a chance of at most 2 exp(-2 size x^2) (Dvoretzky, Kiefer and
    Wolfowitz 1956; Massart 1990). And it is no less than the difference of the shares below the score where the true
    ones differ most, whose standard deviation is at most half the root of 1 / size.

    Args:
        size: n m / (n + m) of the effective sizes.
    """
    found = distance(then, now)
    low = max(found - float(np.sqrt(np.log(2 / (1 - level)) / (2 * size))), 0.0)
    high = min(found + float(ndtri((1 + level) / 2)) / 2 / size**0.5, 1.0)
    return found, low, high, min(2 * float(np.exp(-2 * size * max(found - limit, 0.0) ** 2)), 1.0)


def stability_index(then: np.ndarray, now: np.ndarray, sizes: tuple[float, float]) -> tuple[float, float]:
    """Population stability index over the deciles of `then`, and what chance alone makes it on average.

    The sum over the bins of (q - p) ln(q / p), each bin with half an image more, so that none is empty. Without any
    drift it is about (bins - 1)(1/n + 1/m).

    Args:
        sizes: effective ones of both samples.
    """
    edges = np.unique(np.quantile(then, np.linspace(0, 1, BINS + 1)[1:-1]))
    bins = len(edges) + 1
    p, q = (
        (np.bincount(np.searchsorted(edges, side, side="left"), minlength=bins) + 0.5) / (len(side) + 0.5 * bins)
        for side in (then, now)
    )
    return float(((q - p) * np.log(q / p)).sum()), (bins - 1) * (1 / sizes[0] + 1 / sizes[1])


TWO_SIDED = ("selection_shift", "prevalence_shift", "mix_shift")


def judged(findings: Sequence[Finding], level: float) -> list[Finding]:
    """The same with verdicts, worst first: Holm's correction goes over all of them."""
    made = []
    for found, p in zip(findings, holm([found.p for found in findings]), strict=True):
        verdict = DRIFTED if p < 1 - level else STABLE if _within(found) else UNSURE
        made.append(replace(found, p_holm=float(p), verdict=verdict))
    return sorted(made, key=_how_bad)


def _how_bad(found: Finding) -> tuple[int, float]:
    """Drift by how far it is beyond its limit, all else by how near chance lets it be."""
    if found.verdict == DRIFTED:
        return 0, -abs(found.change) / found.limit
    return (1 if found.verdict == UNSURE else 2), 2.0 if np.isnan(found.p) else found.p


def _within(found: Finding) -> bool:
    lowest = -found.limit if found.measure in TWO_SIDED else -np.inf
    return found.high <= found.limit and found.low >= lowest

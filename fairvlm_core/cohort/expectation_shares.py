"""Shares of a cohort's images: how much they say, how far apart they are, and which of them may be shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fairvlm_core.cohort.suppression import hidden_counts


@dataclass(frozen=True)
class Line:
    """One share before and now, None where it is suppressed."""

    name: str
    before: float | None
    now: float | None
    changed: bool = False


@dataclass(frozen=True)
class Part:
    """A part of the images.

    Attributes:
        share: of all of them.
        size: as many independent patients say as much about it.
        patients: all of them.
        inside, outside: patients with an image of that part, and with one that is not.
    """

    share: float
    size: float
    patients: int
    inside: int
    outside: int

    @classmethod
    def of(cls, patient: np.ndarray, inside: np.ndarray) -> Part:
        images = np.bincount(patient, minlength=1)
        part = np.bincount(patient[inside], minlength=len(images))
        return cls(
            float(part.sum() / max(images.sum(), 1)),
            _independent(images),
            int(np.count_nonzero(images)),
            int(np.count_nonzero(part)),
            int(np.count_nonzero(images - part)),
        )

    @property
    def angle(self) -> float:
        """2 asin sqrt(share), with Anscombe's 3/8 more on both sides (1948): without it, rare parts seem to change."""
        return float(2 * np.arcsin(np.sqrt((self.share * self.size + 3 / 8) / (self.size + 3 / 4))))


def count_patients(patient: np.ndarray) -> int:
    """How many patients there are."""
    return int(np.count_nonzero(np.bincount(patient)))


def independent(patient: np.ndarray) -> float:
    """Kish's effective sample size: as many patients of one image each say as much, if all images of one are alike."""
    return _independent(np.bincount(patient))


def _independent(images: np.ndarray) -> float:
    return float(images.sum()) ** 2 / max(float(images @ images), 1.0)


def counted(
    code: tuple[np.ndarray, ...], patient: tuple[np.ndarray, ...], width: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Images and patients of each code, per cohort: int64 [width] each; below zero is none."""
    counts, people = [], []
    for of, who in zip(code, patient, strict=True):
        known = of >= 0
        seen = np.zeros((who.max(initial=0) + 1, width), dtype=bool)
        seen[who[known], of[known]] = True
        counts.append(np.bincount(of[known], minlength=width))
        people.append(seen.sum(axis=0))
    return counts, people


def shares_shown(
    names: Sequence[tuple[str, bool]], counts: Sequence[np.ndarray], people: Sequence[np.ndarray], min_cell: int
) -> list[Line]:
    """Lines of shares that add up to one; what is suppressed cannot be had by subtraction."""
    suppressed = hidden(people[0], min_cell) | hidden(people[1], min_cell)
    before, now = (count / max(count.sum(), 1) for count in counts)
    return [
        Line(name, None, None, changed) if suppressed[k] else Line(name, float(before[k]), float(now[k]), changed)
        for k, (name, changed) in enumerate(names)
    ]


def share_shown(name: str, before: Part, now: Part, changed: bool, min_cell: int) -> Line:
    """A line of one share: neither the part nor the rest may be a few patients."""
    small = any(0 < people < min_cell for part in (before, now) for people in (part.inside, part.outside))
    return Line(name, None if small else before.share, None if small else now.share, changed)


def hidden(patients: np.ndarray, min_cell: int) -> np.ndarray:
    """Which cells to suppress, bool [k], given their numbers of patients; an empty cell is nobody's.

    With the small ones others go, so that neither follows from the sum of all, which everybody knows.

    >>> hidden(np.array([100, 3, 20, 0]), 10)
    array([False,  True,  True, False])
    """
    of_all = np.arange(len(patients) + 1) == len(patients)
    counts = np.append(patients, patients.sum())
    return hidden_counts(counts, min_cell, unknown=np.zeros_like(of_all), public=of_all)[:-1]


def distance(x: np.ndarray, y: np.ndarray) -> float:
    """The Kolmogorov-Smirnov distance of two samples: how far their cumulative shares are apart at most.

    >>> distance(np.array([1.0, 2.0]), np.array([2.0, 3.0]))
    0.5
    """
    x, y = np.sort(x), np.sort(y)
    at = np.concatenate([x, y])
    below = np.searchsorted(x, at, side="right") / len(x) - np.searchsorted(y, at, side="right") / len(y)
    return float(np.abs(below).max())

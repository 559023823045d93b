"""Suppression: which counts may be published, so that none of a few patients is shown or follows from the others.

A table is published with its margins (women; women of 60 and over; women of 60 and over in test), and margins give a
hidden cell away. So counts are hidden until no small one follows from those that are left. Two kinds of counts are not
protected, but taken as known to everybody: how large a split is, and how many rows lack an attribute (no group has it).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np


def count_with_margins(codes: np.ndarray, shape: Sequence[int], who: np.ndarray | None = None) -> np.ndarray:
    """Count a table of any number of axes; the last place on each axis is for all its other places together.

    Args:
        codes: the place of each row on each axis, int [n, axes].
        shape: the number of places on each axis, without the last.
        who: the number of the patient of each row, int [n]; a patient counts once in each cell and once in each margin,
            so a margin can be less than the sum of its cells. None counts rows.

    Returns:
        int64 [shape[0] + 1, shape[1] + 1, ...].
    """
    counts = np.zeros([places + 1 for places in shape], dtype=np.int64)
    axes = range(len(shape))
    for kept in (kept for length in range(len(shape) + 1) for kept in combinations(axes, length)):
        size = [shape[k] for k in kept]
        cell = np.zeros(len(codes), dtype=np.int64)
        for k in kept:
            cell = cell * shape[k] + codes[:, k]
        if who is not None:
            width = int(np.prod(size))
            cell = np.unique(who * width + cell) % width
        counted = np.bincount(cell, minlength=int(np.prod(size))).reshape(size)
        counts[tuple(slice(-1) if k in kept else -1 for k in axes)] = counted
    return counts


def hidden_counts(
    patients: np.ndarray, min_cell: int, *, unknown: np.ndarray, public: np.ndarray, given: np.ndarray | bool = False
) -> np.ndarray:
    """Which counts of a table with margins are not to be published.

    First those of 1 to `min_cell` - 1 patients; then, the smallest first, others, until from what is left follows none
    of them, nor the sum of those in one line of the table if that is as small. What turns out to be hidden in vain is
    shown again, the largest first.

    Args:
        patients: what `count_with_margins` counted.
        min_cell: the least number of patients that may be published.
        unknown: where the group is unknown, bool, as the other masks of the shape of `patients`; such a count is hidden
            only where nothing else helps.
        public: what is never hidden.
        given: what is hidden anyway.

    Returns:
        bool, of the same shape.
    """
    shape = np.array(patients.shape)
    cells = np.indices((shape - 1).tolist()).reshape(len(shape), -1)
    places = np.indices(shape.tolist()).reshape(len(shape), -1)
    margin = places == (shape - 1)[:, None]
    # Which cells of the inner table each count is the sum of.
    sums = ((places[:, :, None] == cells[:, None, :]) | margin[:, :, None]).all(axis=0).astype(float)
    value, known = patients.ravel(), ~(unknown | public).ravel()
    small = known & (value > 0) & (value < min_cell)
    hidden = small | np.broadcast_to(given, shape).ravel()
    can_hide = ~public.ravel() & (value > 0)
    secrets = [sums[i] for i in np.flatnonzero(small)]
    for line in _lines(patients.shape):
        few = line[small[line]]
        if len(few) > 1 and value[few].sum() < min_cell:
            secrets.append(sums[few].sum(axis=0))
    first = hidden.copy()
    for secret in secrets:
        while can_hide[used := _derivation(secret, sums, hidden)].any():
            used = used[can_hide[used]]
            hidden[used[np.lexsort((value[used], ~known[used]))[0]]] = True
    protected = [secret for secret in secrets if not len(_derivation(secret, sums, hidden))]
    for place in sorted(np.flatnonzero(hidden & ~first), key=lambda place: (-value[place], place)):
        hidden[place] = False
        hidden[place] = _any_follows(protected, sums[~hidden])
    return hidden.reshape(patients.shape)


def _lines(shape: Sequence[int]) -> Iterator[np.ndarray]:
    """The flat places of each line of the table along each axis, without the margin that sums it."""
    numbers = np.arange(int(np.prod(shape))).reshape(shape)
    for axis, places in enumerate(shape):
        yield from np.moveaxis(numbers, axis, -1)[..., :-1].reshape(-1, places - 1)


def _derivation(secret: np.ndarray, sums: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """The places of shown sums that add up, with any factors, to the secret one; none where it does not follow."""
    shown = np.flatnonzero(~hidden)
    factors = np.linalg.lstsq(sums[shown].T, secret, rcond=None)[0]
    follows = np.allclose(sums[shown].T @ factors, secret, atol=1e-6)
    return shown[(np.abs(factors) > 1e-6) & follows]


def _any_follows(secrets: Sequence[np.ndarray], shown: np.ndarray) -> bool:
    """Whether one of the secret sums follows from the shown ones."""
    if not secrets:
        return False
    wanted = np.stack(secrets, axis=1)
    factors = np.linalg.lstsq(shown.T, wanted, rcond=None)[0]
    return bool((np.abs(shown.T @ factors - wanted).max(axis=0) < 1e-6).any())

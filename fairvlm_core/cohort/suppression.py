"""Suppression: which counts may be published, so that none of a few patients is shown or follows from the others.

A table is published with its margins (women; women of 60 and over; women of 60 and over in test), and margins give a
hidden cell away. So counts are hidden until no small one follows from those that are left. Two kinds of counts are not
protected, but taken as known to everybody: how large a split is, and how many rows lack an attribute (no group has it).

`hide` decides that for any counts that are sums of the same cells: a table with its margins (`hidden_counts`), the
strata beside the data card (`joint`), a judgement (`evaluation.disclosure`). It rules out what follows by adding and
subtracting. That a count must be a whole number, or lies between bounds, is not reckoned with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

SPANNED = 1e-9  # of a sum's square: what is left of it when all that follows from other sums is taken away


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

    First those of 1 to `min_cell` - 1 patients; then others, as `hide` chooses them, until from what is left follows
    none of them, nor the sum of those in one line of the table if that is as small.

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
    secrets = [sums[i] for i in np.flatnonzero(small)]
    for line in _lines(patients.shape):
        few = line[small[line]]
        if len(few) > 1 and value[few].sum() < min_cell:
            secrets.append(sums[few].sum(axis=0))
    hidden = hide(
        sums,
        value,
        given=small | np.broadcast_to(given, shape).ravel(),
        secrets=np.array(secrets).reshape(-1, sums.shape[1]),
        may_hide=~public.ravel(),
        last=~known,
    )
    return hidden.reshape(patients.shape)


def hide(
    sums: np.ndarray,
    values: np.ndarray,
    *,
    given: np.ndarray,
    secrets: np.ndarray,
    may_hide: np.ndarray,
    last: np.ndarray | bool = False,
) -> np.ndarray:
    """Which sums to hide so that no secret one follows from those that are shown, with whatever factors.

    As many of the smallest are hidden as it takes, and what turns out to be hidden in vain is shown again, the largest
    first: of what is hidden, nothing more could be shown. A secret that follows even if all is hidden that may be
    hidden is given up: nothing is hidden for its sake.

    Args:
        sums: which cells each is the sum of, float [M, cells].
        values: of the sums, [M]. A sum of 0 is nobody's: it is hidden only where it is given.
        given: what is hidden anyway, bool [M].
        secrets: the sums of cells that must not follow, float [W, cells].
        may_hide: what may be hidden, bool [M]; all else is known to everybody.
        last: what is hidden only where nothing else helps, bool [M].

    Returns:
        bool [M]. The time grows with the square of the number of cells that nobody sees.
    """
    hidden = given.copy()
    able = may_hide & ~given & (values > 0)
    order = np.flatnonzero(able)
    order = order[np.lexsort((order, values[order], np.broadcast_to(last, able.shape)[order]))]
    protected = secrets[~follows(secrets, sums[~(given | able)])]
    tried = 0
    while follows(protected, sums[~hidden]).any():
        tried = max(1, 2 * tried)
        hidden[order[:tried]] = True
    reader = _Reader.of(sums[~hidden], protected)
    for place in order[:tried][::-1]:
        hidden[place] = reader.learns_a_secret(sums[place])
    return hidden


def follows(secrets: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Which secret sums [W, cells] can be had from the shown ones [M, cells] by adding and subtracting, bool [W]."""
    reader = _Reader.of(shown, secrets)
    return reader.left <= reader.least


@dataclass
class _Reader:
    """Who adds and subtracts sums.

    Attributes:
        unseen: which cells are in no shown sum alone, bool [cells]; all that follows is about those.
        basis: what is known of them, orthonormal [K, unseen].
        secrets: [W, unseen].
        left: the square of what is not known of each secret, [W].
        least: less than this is nothing, [W].
    """

    unseen: np.ndarray
    basis: np.ndarray
    secrets: np.ndarray
    left: np.ndarray
    least: np.ndarray

    @classmethod
    def of(cls, shown: np.ndarray, secrets: np.ndarray) -> _Reader:
        unseen = ~shown[np.count_nonzero(shown, axis=1) == 1].any(axis=0)
        rows, wanted = shown[:, unseen], secrets[:, unseen]
        _, sizes, directions = np.linalg.svd(rows[rows.any(axis=1)], full_matrices=False)
        basis = directions[sizes > SPANNED * sizes.max(initial=0)]
        left = np.einsum("ij,ij->i", wanted, wanted) - ((wanted @ basis.T) ** 2).sum(axis=1)
        return cls(unseen, basis, wanted, left, SPANNED * np.maximum(np.einsum("ij,ij->i", secrets, secrets), 1))

    def learns_a_secret(self, row: np.ndarray) -> bool:
        """Whether this sum would give a secret one away; if not, it is known from now on."""
        new = row[self.unseen]
        for _ in range(2):  # once leaves rounding errors
            new = new - (self.basis @ new) @ self.basis
        length = float(new @ new)
        if length <= SPANNED * max(float(row @ row), 1):
            return False
        new /= np.sqrt(length)
        left = self.left - (self.secrets @ new) ** 2
        if (left <= self.least).any():
            return True
        self.basis, self.left = np.vstack([self.basis, new]), left
        return False


def _lines(shape: Sequence[int]) -> Iterator[np.ndarray]:
    """The flat places of each line of the table along each axis, without the margin that sums it."""
    numbers = np.arange(int(np.prod(shape))).reshape(shape)
    for axis, places in enumerate(shape):
        yield from np.moveaxis(numbers, axis, -1)[..., :-1].reshape(-1, places - 1)

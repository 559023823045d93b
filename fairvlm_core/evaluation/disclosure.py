"""Which counts of a judgement are withheld, so that no small one follows from the others by adding and subtracting.

A judgement counts a group's images, and label by label those of known truth and the positives; and the same of all
images. A group of two follows from everybody minus the other groups, a cell of sex x age group from the margins, and a
class's positives from those of the other classes. So beside the small counts some larger ones are withheld, the
smallest first as on the cohort's pages, until no small count follows, nor the sum of an attribute's (or, within sex x
age group, a line's) small groups where that is small, too. The numbers of a group whose size is withheld stay.

Protected are counts of 1 to `min_cell` - 1 images of a group: its size, its known truths, its positives, its negatives.
Taken as known to everybody: how large a split is, and how common a label is in it. How many images lack an attribute
is withheld only where nothing else helps, as on the cohort's pages. That a group has no positives or no negatives at
all is told as the reason why it cannot be judged; where there are hardly other groups, more may follow from that. Not
protected is what a fraction tells: 0.684932 is 50 of 73 for anybody who looks for it. Who must rule that out merges
groups in the cohort's vocabulary, or leaves the attribute out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from fairvlm_core.cohort.suppression import follows, hide
from fairvlm_core.evaluation.metrics import groups_in
from fairvlm_core.evaluation.predictions import Scores

Group = tuple[str, Any]  # attribute and group


@dataclass(frozen=True)
class Withheld:
    """Counts that are not shown though they are not small.

    Attributes:
        sizes: (attribute, group); the group is None for how many are of known group, and of unknown.
        known, positives: (label, attribute, group).
    """

    sizes: set[Group] = field(default_factory=set)
    known: set[tuple[str, str, Any]] = field(default_factory=set)
    positives: set[tuple[str, str, Any]] = field(default_factory=set)


@dataclass(frozen=True)
class _Counts:
    """Sums of the cells of a table, [M, cells]; `names` says which they are, None for those everybody knows."""

    names: list[tuple[Any, ...] | None]
    sums: np.ndarray
    cells: np.ndarray

    @property
    def values(self) -> np.ndarray:
        return np.asarray(self.sums @ self.cells)

    def hidden(self, given: np.ndarray, secrets: list[np.ndarray]) -> np.ndarray:
        """Which to hide, bool [M]: `given`, and more, until no secret sum of cells [cells] follows from the others."""
        wanted = np.array(secrets).reshape(-1, self.sums.shape[1])
        last = np.array([name is not None and name[-1] is None for name in self.names])  # of unknown group
        may_hide = np.array([name is not None for name in self.names])
        hidden = hide(self.sums, self.values, given=given, secrets=wanted, may_hide=may_hide, last=last)
        # What follows still, follows from what everybody knows if one knows that nobody's group is unknown.
        return hidden | (last & follows(wanted, self.sums[~hidden]).any())


def withheld(scores: Scores, attributes: Mapping[str, np.ndarray], *, min_cell: int) -> Withheld:
    """What to withhold of the counts of these predictions.

    Args:
        attributes: attribute -> group of each image [n], None where unknown; the intersection may be among them.
    """
    found = Withheld()
    joint = [name for name in attributes if " x " in name]
    parts = [part for name in joint for part in name.split(" x ")]
    for family in ([*parts, *joint], *([name] for name in attributes if name not in (*parts, *joint))):
        if family:
            _of_family(scores, {name: attributes[name] for name in family}, min_cell, found)
    return found


def _of_family(scores: Scores, attributes: Mapping[str, np.ndarray], min_cell: int, found: Withheld) -> None:
    """Attributes whose counts are sums of the same cells; what is withheld is added to `found`."""
    cell, members = _cells(attributes)
    unknown = [~members[name].any(axis=0) for name in attributes]
    groups = [(name, group) for name in attributes for group, _ in groups_in(attributes[name])]
    inside = [members[name][k] for name in attributes for k in range(len(members[name]))]
    everybody = np.ones(len(inside[0]) if inside else 1, dtype=bool)
    sizes = _Counts(
        [*groups, *((name, None) for name in attributes), None],
        np.array([*inside, *unknown, everybody], dtype=float),
        np.bincount(cell, minlength=len(everybody)).astype(float),
    )
    small = (sizes.values > 0) & (sizes.values < min_cell)
    small[len(groups) :] = False
    secrets = [sizes.sums[i] for i in np.flatnonzero(small)]
    for line in _lines(groups):
        few = [i for i in line if small[i]]
        if len(few) > 1 and sizes.values[few].sum() < min_cell:
            secrets.append(sizes.sums[few].sum(axis=0))
    hidden = sizes.hidden(small, secrets)
    found.sizes.update(name for i, name in enumerate(sizes.names) if name and hidden[i] and not small[i])
    suppressed = {group for i, group in enumerate(groups) if sizes.values[i] < min_cell}
    for labels, state, known, positive in _states(scores):
        _of_labels(labels, groups, (cell, state), (inside, known, positive), sizes, min_cell, suppressed, found)


def _of_labels(
    labels: tuple[str, ...],
    groups: list[Group],
    places: tuple[np.ndarray, np.ndarray],
    masks: tuple[list[np.ndarray], np.ndarray, np.ndarray],
    sizes: _Counts,
    min_cell: int,
    suppressed: set[Group],
    found: Withheld,
) -> None:
    """The known truths and positives of labels whose truths are told by one state per image.

    Args:
        places: of each image its cell and its state [n].
        masks: which cells are in each group, [cells]; which states are known, and which positive, by label [L, S].
    """
    (cell, state), (inside, known, positive) = places, masks
    width = known.shape[1]
    every = np.ones(width)
    cells = np.bincount(cell * width + state, minlength=sizes.sums.shape[1] * width).astype(float)
    names: list[tuple[Any, ...] | None] = []
    sums: list[np.ndarray] = []
    secrets: list[np.ndarray] = []
    given: list[bool] = []
    reasons: list[np.ndarray] = []

    def add(name: tuple[Any, ...] | None, row: np.ndarray, away: bool) -> None:
        names.append(name)
        sums.append(row)
        given.append(away)

    for row, name in zip(sizes.sums, sizes.names, strict=True):
        add(None, np.outer(row, every).ravel(), name in found.sizes or name in suppressed)
    everybody = np.ones(sizes.sums.shape[1])
    for label, of, ill in zip(labels, known, positive, strict=True):
        for states in (of, ill):
            add(None, np.outer(everybody, states).ravel(), False)
        for group, where in zip(groups, inside, strict=True):
            whole, part = (np.outer(where, states).ravel().astype(float) for states in (of, ill))
            total, ills = whole @ cells, part @ cells
            secrets += [row for row in (whole, part, whole - part) if 0 < row @ cells < min_cell]
            if group in suppressed:
                continue
            few, away = total < min_cell, group in found.sizes
            add(("known", label, *group), whole, few or away)
            add(("positives", label, *group), part, few or away or ills < min_cell or 0 < total - ills < min_cell)
            if not few and ills in (0, total):  # that it cannot be judged for lack of one of them is told
                reasons.append(part if ills == 0 else whole - part)
    hidden = _Counts(names, np.array(sums), cells).hidden(np.array(given), secrets)
    if reasons:
        # What follows from the reasons whatever is hidden shall at least not follow without them.
        told = _Counts([*names, *(None for _ in reasons)], np.array([*sums, *reasons]), cells)
        hidden = told.hidden(np.append(hidden, np.zeros(len(reasons), dtype=bool)), secrets)
    for name, away in zip(names, hidden, strict=False):
        if name is not None and away:
            what, label, attribute, group = name
            (found.known if what == "known" else found.positives).add((label, attribute, group))


def _cells(attributes: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The combination of groups of each image, int64 [n]; attribute -> which of them each group holds, [G, cells]."""
    codes = []
    for values in attributes.values():
        column = np.full(len(values), -1)
        for k, (_, rows) in enumerate(groups_in(values)):
            column[rows] = k
        codes.append(column)
    stacked = np.array(codes).T
    cell = pd.factorize(pd.MultiIndex.from_arrays(list(stacked.T)))[0]
    width = int(cell.max(initial=-1)) + 1
    first = np.zeros(width, dtype=np.int64)
    first[cell] = np.arange(len(cell))
    members = {
        name: stacked[first, place] == np.arange(stacked[:, place].max(initial=-1) + 1)[:, None]
        for place, name in enumerate(attributes)
    }
    return cell.astype(np.int64), members


def _lines(groups: list[Group]) -> Iterator[list[int]]:
    """The places of the groups of each attribute; of an intersection those that share a part."""
    lines: dict[tuple[str, ...], list[int]] = {}
    for i, (attribute, group) in enumerate(groups):
        keys: list[tuple[str, ...]] = [(attribute,)]
        if " x " in attribute:
            keys += [(attribute, str(k), part) for k, part in enumerate(str(group).split(", ", 1))]
        for key in keys:
            lines.setdefault(key, []).append(i)
    yield from lines.values()


def _states(scores: Scores) -> Iterator[tuple[tuple[str, ...], np.ndarray, np.ndarray, np.ndarray]]:
    """Labels, the state of each image [n], and for each label which states are of known truth and positive [L, S].

    The classes of a multi-class task are told together, because an image has one; other labels one at a time.
    """
    truth = scores.y_true
    if scores.kind == "multiclass":
        count, ill = truth.shape[1], truth == 1
        state = np.where(ill.any(axis=1), ill.argmax(axis=1), count)
        yield scores.labels, state, np.tile(np.arange(count + 1) < count, (count, 1)), np.eye(count, count + 1) > 0
        return
    for label, column in zip(scores.labels, truth.T, strict=True):
        lacking = np.isnan(column)
        width = 3 if lacking.any() else 2  # where every truth is known, everybody knows that it is
        state = np.where(lacking, 2, column == 1).astype(np.int64)
        yield (label,), state, (np.arange(width) < 2)[None], (np.arange(width) == 1)[None]

"""Which counts of the strata to hide, given what the data card of the same cohort publishes.

The card counts images by group and official split, before stratify; the strata count them by cell and split, after it.
Each is safe alone, but a cell of 25 of which 20 are shown for training leaves 5 for validation. So both are read as
sums of the same unknown numbers, one for each combination of groups, official split and split, and counts of the strata
are hidden until from both together follows neither a small one of theirs, nor the sum of some small ones that is as
small, nor anything that the card hides.

Taken as known to everybody: how large each split is, and what can only be nobody (a group that the card counts as 0;
a patient of an official validation or test split in another one). Images that stratify leaves out for their duplicates
are reckoned as if there were none: who does not know better subtracts all the same. After balancing a cell is hidden
where it is hidden before. Not reckoned with is what the rule of balancing tells: of a training split in which all cells
but one reach the median, the number of rows after balancing gives this one away to who knows the median.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import prod

import numpy as np

from fairvlm_core.cohort.card_counts import Published
from fairvlm_core.cohort.groups import ALL, NOT_SPLIT, UNKNOWN
from fairvlm_core.cohort.strata import Plan
from fairvlm_core.cohort.suppression import hide
from fairvlm_core.cohort.table import SPLITS

MOST_NUMBERS = 3000  # unknown ones
MOST_PRODUCTS = 2_000_000  # of unknown numbers and secrets: more of them take more than a second


@dataclass(frozen=True)
class _Numbers:
    """The unknown numbers of images, N of them.

    Attributes:
        group: attribute -> the group of each, str [N].
        official, split: of each, before and after stratify, str [N].
        cell: the place in the strata of each, int64 [N]; the last cell is of unknown group.
    """

    group: Mapping[str, np.ndarray]
    official: np.ndarray
    split: np.ndarray
    cell: np.ndarray

    def where(self, told: Published) -> np.ndarray:
        """Which of them a count of the card is the sum of, bool [N]."""
        inside = (self.official == told.split) | (told.split == ALL)
        for attribute, group in told.groups.items():
            inside = inside & (self.group[attribute] == group)
        if told.lacking:
            inside = inside & np.any([self.group[attribute] == UNKNOWN for attribute in told.lacking], axis=0)
        return inside


def hidden_strata(plan: Plan, attributes: Sequence[str], card: Sequence[Published], min_cell: int) -> np.ndarray:
    """Which counts of the strata are not to be published, bool [3, cells + 1]; the last cell is of unknown group.

    Args:
        plan: what stratify does.
        attributes: the groups whose combinations are the cells.
        card: what the cohort's data card publishes.
        min_cell: the least number of patients that may be published.

    Where something is to be hidden and there are more unknown numbers than `MOST_NUMBERS`, or so many with so many
    secrets that it would take long (several hundred cells), no count of a cell is published at all: that is safe.
    """
    train = SPLITS.index("train")
    patients, fewest = plan.patients_before, plan.patients_before.copy()
    fewest[train] = np.minimum(fewest[train], plan.patients_after[train])
    small = (patients > 0) & (fewest < min_cell)
    together = sorted(_small_together(plan, small, patients, min_cell))
    reached = _reached(attributes, card)
    card = [told for told in card if {*told.groups, *told.lacking} <= reached]
    hidden = _hidden(plan, attributes, card, small, together)
    # Who has not seen the card shall not find out even what it tells, how few are of unknown group.
    return _hidden(plan, attributes, [], hidden, together) if card else hidden


def _hidden(
    plan: Plan,
    attributes: Sequence[str],
    card: Sequence[Published],
    given: np.ndarray,
    together: Sequence[tuple[int, ...]],
) -> np.ndarray:
    """What to hide beside `given`, bool [3, cells + 1], so that no sum of the counts `together` follows."""
    if not together and not any(told.secret for told in card):
        return given
    patients, numbers = plan.patients_before, _numbers(plan, attributes, card)
    if numbers is None or len(numbers.cell) > min(MOST_NUMBERS, MOST_PRODUCTS // max(len(together), 1)):
        return patients > 0
    cells = np.arange(patients.shape[1])
    strata = (numbers.cell == cells[:, None]) & (numbers.split == np.array(SPLITS)[:, None, None])
    strata = strata.reshape(-1, len(numbers.cell)).astype(float)
    public = [numbers.split == split for split in SPLITS]
    public += [numbers.where(told) for told in card if told.images is not None]
    secrets = [numbers.where(told) for told in card if told.secret]
    secrets += [strata[list(places)].sum(axis=0) for places in together]
    sums = np.concatenate([strata, np.array(public, dtype=float)])
    of_strata = np.arange(len(sums)) < len(strata)
    hidden = hide(
        sums,
        np.append(patients.ravel(), np.zeros(len(public), dtype=np.int64)),
        given=np.append(given.ravel(), np.zeros(len(public), dtype=bool)),
        secrets=np.array(secrets, dtype=float).reshape(-1, sums.shape[1]),
        may_hide=of_strata,
    )
    return hidden[of_strata].reshape(given.shape)


def _reached(attributes: Sequence[str], card: Sequence[Published]) -> set[str]:
    """The attributes of the cells, and those that the card combines with one of them.

    Of the others the card tells how they are distributed over a split, and this says nothing about the cells.
    """
    reached = set(attributes)
    for told in card:
        together = {*told.groups, *told.lacking}
        if together & set(attributes):
            reached |= together
    return reached


def _axes(plan: Plan, attributes: Sequence[str], card: Sequence[Published]) -> dict[str, list[str]]:
    """Attribute -> its groups, the strata's first; "unknown" is the last, unless the card shows that nobody is."""
    axes = {name: list(dict.fromkeys(cell[k] for cell in plan.cells)) for k, name in enumerate(attributes)}
    of_card: dict[str, list[str]] = {}
    for told in card:
        for attribute, group in told.groups.items():
            of_card.setdefault(attribute, []).append(group)
    for attribute in dict.fromkeys([*axes, *of_card]):
        told_of = list(dict.fromkeys(of_card.get(attribute, [UNKNOWN])))
        known = axes.get(attribute, [group for group in told_of if group != UNKNOWN])
        axes[attribute] = known + [UNKNOWN] * (UNKNOWN in told_of)
    return axes


def _routes(plan: Plan, card: Sequence[Published]) -> list[tuple[str, str]]:
    """The pairs of official split and split that a row can have."""
    sizes = {told.split: told.images or 0 for told in card if not told.groups and not told.lacking}
    official = [split for split in sizes if split != ALL] or [NOT_SPLIT]
    # A split that is no larger than the official one got nobody else.
    grown = [
        split for split, rows in zip(SPLITS, plan.rows_before.sum(axis=1), strict=True) if rows > sizes.get(split, 0)
    ]
    free = {"train", NOT_SPLIT}
    return [(one, split) for one in official for split in SPLITS if one == split or (one in free and split in grown)]


def _numbers(plan: Plan, attributes: Sequence[str], card: Sequence[Published]) -> _Numbers | None:
    """All unknown numbers but those that are shown to be 0; None where they would be far too many."""
    axes, routes = _axes(plan, attributes, card), _routes(plan, card)
    if prod(map(len, axes.values())) * len(routes) > 50 * MOST_NUMBERS:
        return None
    codes = np.indices([*(len(groups) for groups in axes.values()), len(routes)]).reshape(len(axes) + 1, -1)
    group = {name: np.array(groups)[codes[k]] for k, (name, groups) in enumerate(axes.items())}
    official, split = (np.array(ends)[codes[-1]] for ends in zip(*routes, strict=True))
    cell, unknown = np.zeros(codes.shape[1], dtype=np.int64), np.zeros(codes.shape[1], dtype=bool)
    for k, (name, groups) in enumerate(axes.items()):
        if name in attributes:
            cell = cell * sum(one != UNKNOWN for one in groups) + codes[k]
            unknown |= group[name] == UNKNOWN
    cell = np.where(unknown, len(plan.cells), cell)
    numbers = _Numbers(group, official, split, cell)
    places = np.array([SPLITS.index(name) for name in split], dtype=np.int64)
    there = plan.rows_before[places, cell] > 0
    for told in card:
        if told.images == 0:
            there &= ~numbers.where(told)
    return _Numbers({name: groups[there] for name, groups in group.items()}, official[there], split[there], cell[there])


def _small_together(plan: Plan, small: np.ndarray, patients: np.ndarray, min_cell: int) -> set[tuple[int, ...]]:
    """The flat places of each small count, and of several in some splits that share groups and are small together."""
    found: set[tuple[int, ...]] = {(place,) for place in np.flatnonzero(small).tolist()}
    names = [*plan.cells, (UNKNOWN,) * len(plan.cells[0])]
    sizes, places = patients.tolist(), [np.flatnonzero(of_split).tolist() for of_split in small]
    for kept in _subsets(range(len(names[0]))):
        shared = [tuple(name[k] for k in kept) for name in names]
        for splits in _subsets(range(len(SPLITS))):
            lines: dict[tuple[str, ...], list[int]] = {}
            people: Counter[tuple[str, ...]] = Counter()
            for split in splits:
                for cell in places[split]:
                    lines.setdefault(shared[cell], []).append(split * len(names) + cell)
                    people[shared[cell]] += sizes[split][cell]
            found |= {tuple(line) for key, line in lines.items() if people[key] < min_cell}
    return found


def _subsets(numbers: Sequence[int]) -> Iterator[tuple[int, ...]]:
    for length in range(len(numbers) + 1):
        yield from combinations(numbers, length)

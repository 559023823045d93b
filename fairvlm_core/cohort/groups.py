"""How many images and patients are in which group, as it may be published.

A number is an int, or None where it is hidden (`suppression` says why), or text like "<10" for a few rows of unknown
group.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import pyarrow as pa

from fairvlm_core.cohort.suppression import count_with_margins, hidden_counts
from fairvlm_core.cohort.table import ATTRIBUTES, SPLITS, group_codes, groups_of

NOT_SPLIT, UNKNOWN, ALL = "not split yet", "unknown", "all"
JOINT = ("sex", "age_group")  # the attributes whose combinations are counted, too

Shown = int | str | None
# Split -> groups -> number of images; the last groups are "unknown".
Cells = dict[str, dict[tuple[str, ...], Shown]]


@dataclass(frozen=True)
class Groups:
    """Numbers of images and patients per group and split.

    Attributes:
        attributes: what the groups are of; several: their combinations; none: splits only.
        names: the places on each axis: groups, "unknown" and "all" for each attribute, then splits and "all".
        images, patients: int64, an axis for each attribute and the last for the splits.
        hidden: which of them are not to be shown, bool, of the same shape.
        min_cell: the least number of patients of a group that may be shown.
    """

    attributes: tuple[str, ...]
    names: tuple[tuple[str, ...], ...]
    images: np.ndarray
    patients: np.ndarray
    hidden: np.ndarray
    min_cell: int

    def shown(self, counts: np.ndarray, place: tuple[int, ...]) -> Shown:
        """An entry of `images` or `patients` as it may be published."""
        if self.hidden[place]:
            return None
        lacking = UNKNOWN in (names[k] for names, k in zip(self.names[:-1], place, strict=False))
        return few(int(counts[place]), self.min_cell) if lacking else int(counts[place])

    def only(self, axis: int) -> Groups:
        """The margin of one attribute."""
        at = tuple(slice(None) if k in (axis, len(self.attributes)) else -1 for k in range(len(self.names)))
        return Groups(
            attributes=(self.attributes[axis],),
            names=(self.names[axis], self.names[-1]),
            images=self.images[at],
            patients=self.patients[at],
            hidden=self.hidden[at],
            min_cell=self.min_cell,
        )


def attribute_groups(table: pa.Table, min_cell: int) -> tuple[Groups, list[Groups]]:
    """The groups of sex and age together, as far as they are known, and those of each attribute that is known.

    The latter are, for sex and age, margins of the former: what is hidden in one does not follow from the other.
    """
    known = known_attributes(table)
    joint = tuple(name for name in JOINT if name in known)
    together = count_groups(table, joint, min_cell)
    single = [together.only(k) for k in range(len(joint))]
    return together, single + [count_groups(table, (name,), min_cell) for name in known if name not in joint]


def few(count: int, min_cell: int) -> int | str:
    """A number of rows that lack something.

    >>> few(3, 10), few(0, 10), few(10, 10)
    ('<10', 0, 10)
    """
    return f"<{min_cell}" if 0 < count < min_cell else count


def count_text(count: Shown) -> str:
    """A number as a table shows it.

    >>> count_text(1234), count_text("<10"), count_text(None)
    ('1,234', '<10', '-')
    """
    return "-" if count is None else count if isinstance(count, str) else f"{count:,}"


def share(count: int, n: int, min_cell: int) -> str | None:
    """A share in words from which no count of 1 to `min_cell` - 1 follows; None of fewer than `min_cell`.

    >>> share(50, 200, 10), share(3, 200, 10), share(199, 200, 10), share(0, 200, 10), share(5, 9, 10)
    ('25.0 %', '<5 %', '>95 %', '0 %', None)
    """
    if n < min_cell:
        return None
    if count in (0, n):
        return f"{100 * count // n} %"
    if count < min_cell:
        return f"<{100 * min_cell / n:.2g} %"
    if n - count < min_cell:
        return f">{100 - 100 * min_cell / n:.4g} %"
    return f"{100 * count / n:.1f} %"


def known_attributes(table: pa.Table) -> tuple[str, ...]:
    """The attributes of which somebody's group is known."""
    groups = groups_of(table)
    return tuple(name for name in ATTRIBUTES if name in groups and table.column(name).null_count < len(table))


def count_groups(table: pa.Table, attributes: Sequence[str], min_cell: int) -> Groups:
    """Count images and patients per combination of groups and split, and say which numbers may be shown."""
    splits, split = splits_of(table)
    names = [(*groups_of(table)[name], UNKNOWN) for name in attributes]
    codes = group_codes(table, attributes)
    codes = np.where(codes < 0, np.array([len(places) - 1 for places in names], dtype=np.int64), codes)
    codes = np.column_stack([codes, split])
    shape = [*map(len, names), len(splits)]
    patients = count_with_margins(codes, shape, numbered(table, "patient_id"))
    unknown, public = np.zeros((2, *patients.shape), dtype=bool)
    for axis in range(len(names)):
        np.moveaxis(unknown, axis, 0)[-2] = True
    public[(-1,) * len(names)] = True  # all of a split
    return Groups(
        attributes=tuple(attributes),
        names=(*((*places, ALL) for places in names), (*splits, ALL)),
        images=count_with_margins(codes, shape),
        patients=patients,
        hidden=hidden_counts(patients, min_cell, unknown=unknown, public=public),
        min_cell=min_cell,
    )


def shown_kinds(groups: Groups) -> dict[str, np.ndarray]:
    """The counts that the card shows: patients beside images where these are not as many."""
    kinds = {"images": groups.images, "patients": groups.patients}
    if groups.attributes and (groups.images == groups.patients).all():
        del kinds["patients"]
    return kinds


def shown_splits(groups: Groups) -> tuple[str, ...]:
    """The splits that the card shows and, where there are several, "all"."""
    splits = groups.names[-1]
    return splits if len(splits) > 2 else splits[:1]


def shown_places(groups: Groups) -> Iterator[tuple[tuple[int, ...], tuple[str, ...]]]:
    """The places of the groups that the card shows, and their names.

    Of several attributes the combinations of known groups: each attribute's own table has the others.
    """
    for place in product(*(range(len(names)) for names in groups.names[:-1])):
        name = tuple(names[k] for names, k in zip(groups.names, place, strict=False))
        if len(groups.attributes) > 1 and (UNKNOWN in name or ALL in name):
            continue
        if UNKNOWN in name and not groups.images[(*place, -1)]:
            continue
        yield place, name


def cell_counts(groups: Groups) -> Cells:
    """Images per split and cell, a cell being a combination of groups; the last one is "unknown" in any of them."""
    unknown = (UNKNOWN,) * len(groups.attributes)
    counts: Cells = {}
    for s, split in enumerate(groups.names[-1][:-1]):
        counts[split], hidden, lacking, people = {}, False, 0, 0
        for cell in product(*(range(len(names) - 1) for names in groups.names[:-1])):
            name, place = tuple(names[k] for names, k in zip(groups.names, cell, strict=False)), (*cell, s)
            if UNKNOWN not in name:
                counts[split][name] = groups.shown(groups.images, place)
            else:
                hidden |= bool(groups.hidden[place])
                lacking, people = lacking + int(groups.images[place]), people + int(groups.patients[place])
        if unknown:
            small = few(people, groups.min_cell)
            counts[split][unknown] = None if hidden else small if isinstance(small, str) else lacking
    return counts


def splits_of(table: pa.Table) -> tuple[tuple[str, ...], np.ndarray]:
    """The splits that have rows, and the place of each row's among them, int64 [n]."""
    given = [name or NOT_SPLIT for name in table.column("split").to_pylist()]
    present = set(given)
    names = tuple(name for name in (*SPLITS, NOT_SPLIT) if name in present)
    place = {name: k for k, name in enumerate(names)}
    return names, np.array([place[name] for name in given], dtype=np.int64)


def numbered(table: pa.Table, column: str) -> np.ndarray:
    """A number for each value of a column, int64 [n]."""
    return table.column(column).combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)

"""Who is trained on and who is judged: every patient gets one split, and no picture is in two.

Official splits win. Of the other patients those of an earlier cohort keep the split they had there, and the rest are
drawn, stratified by label and cell. Patients who share a picture are drawn as one. Where that cannot be, because a
release or an earlier cohort has parted them, the copy of the picture that is nearer to training is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fairvlm_core.cohort.kinds import Kinds, Source, at, tally
from fairvlm_core.cohort.sampling import allocate, as_ids, blocks, draw, hashes, key_of
from fairvlm_core.cohort.table import SPLITS
from fairvlm_core.errors import CohortError

# Combinations of labels with fewer rows than this are pooled: a stratum of two rows cannot be divided in proportion.
RARE_COMBINATION = 10
TRAIN = SPLITS.index("train")  # 0: what is drawn from
FREE = -1  # the split of a patient who has none yet


@dataclass(frozen=True)
class Patients:
    """The patients of a cohort.

    Attributes:
        of: the patient of each row, int32 [n].
        hashes: of each patient, uint64 [patients].
        key: of the hashes.
    """

    of: np.ndarray
    hashes: np.ndarray
    key: np.uint64

    def numbered(self, ids: pa.Array) -> np.ndarray:
        """The patients with these ids, int64 [m], -1 where the cohort has none."""
        if not len(self.hashes):
            return np.full(len(ids), -1)
        wanted = hashes(ids, self.key)
        place = np.searchsorted(self.hashes, wanted, sorter=self._order).clip(max=len(self.hashes) - 1)
        place = self._order[place]
        return np.where(self.hashes[place] == wanted, place, -1)

    @cached_property
    def _order(self) -> np.ndarray:
        return np.argsort(self.hashes)


def split_patients(
    kinds: Kinds,
    cell: np.ndarray,
    patients: Patients,
    config: Any,
    *,
    duplicates: pa.Table | None = None,
    reference: Source | None = None,
    where: str = "",
) -> np.ndarray:
    """Give every row a split such that no patient is in two, stratified by label and cell.

    A patient with official rows in validation or test stays there. A split that the release does not have is carved out
    of the other patients (official training rows or no split); the rest of these becomes training.

    Args:
        kinds: of the rows; their groups hold the official `split`.
        cell: of each kind, -1 where a group is unknown.
        patients: of the rows.
        config: `validation_share` and `test_share`, of the patients that are drawn (not of the rows); `seed`.
        duplicates: what `read_pairs` read: patients who share a picture.
        reference: an earlier cohort; its patients keep the split they had there.
        where: the cohort's file, for error messages.

    Returns:
        Place in SPLITS, int8 [n].

    Raises:
        CohortError: a patient in two official splits or nearer to test than in the reference, too few patients to
            split, or a reference without splits.
    """
    counts = tally(kinds, np.zeros(len(patients.of), np.int8), np.ones(len(patients.of), np.int8))[0]
    official = kinds.groups["split"].astype(np.int8)
    present = np.unique(official[counts > 0])
    given = _official_splits(official, kinds.of, patients, where)
    settled = np.where(given > TRAIN, given, np.int8(FREE))
    if reference is not None:
        settled = _as_before(given, settled, _splits_before(reference, patients), present, where)
    patient, hashed = patients.of, patients.hashes
    if duplicates is not None:
        unit, hashed, settled = _units(patients, given > TRAIN, settled, duplicates)
        patient = unit[patient]

    free = settled == FREE
    remaining = everybody = int(free.sum())
    shares = {"test": config.test_share, "validation": config.validation_share}
    shares = {name: share for name, share in shares.items() if share > 0 and SPLITS.index(name) not in present}
    if reference is None and shares and everybody <= len(shares):
        raise CohortError(
            f"There are {everybody} patients to divide into training and {' and '.join(shares)}.",
            where=at(where, "column patient_id"),
            mend="Give more patients, mark official splits in the column split, or set the share of a split to 0.",
        )
    settled[free] = TRAIN
    if shares and everybody:
        stratum = _stratum_of_patients(kinds, cell, counts, patient, len(hashed))
        sizes = np.bincount(stratum[free])
        stratum[~free] = 0
        left = np.where(free, np.int8(TRAIN), np.int8(1))
        phase = np.random.default_rng(config.seed)
        one, strata = np.zeros(len(sizes), np.int64), np.arange(len(sizes))
        # Nobody has to be in a split that an earlier cohort has filled.
        least, spared = (1, 1) if reference is None else (0, 0)
        for name, share in shares.items():
            wanted = np.array([np.clip(round(share * everybody), least, remaining - spared)])
            taken = allocate(sizes, one, wanted, phase.integers(max(remaining, 1), size=1))
            chosen = np.zeros(len(settled), np.int8)
            draw(
                lambda: as_ids(hashed),
                key_of(config.seed, name),
                stratum,
                left,
                chosen,
                base=one.astype(np.int8),
                stratum=strata,
                sizes=sizes,
                wanted=taken,
            )
            settled[chosen > 0] = SPLITS.index(name)
            left |= chosen
            sizes, remaining = sizes - taken, remaining - int(wanted[0])
    split = np.empty(len(patient), np.int8)
    for block in blocks(len(patient)):
        split[block] = settled[patient[block]]
    return split


def leaking_rows(source: Source, split: np.ndarray, duplicates: pa.Table) -> np.ndarray:
    """Rows whose picture is also in a split nearer to test, int64 [m] in rising order.

    Args:
        source: the cohort.
        split: place in SPLITS of each row.
        duplicates: what `read_pairs` read; pairs with a row that the cohort does not have are passed over.
    """
    sides = [duplicates.column(f"sample_id_{side}").combine_chunks() for side in "ab"]
    known = pc.unique(pa.concat_arrays(sides))
    row, begin = np.full(len(known), -1, np.int64), 0
    for batch in source.batches(["sample_id"]):
        ids = batch.column("sample_id")
        place = pc.index_in(ids, value_set=known.cast(ids.type))
        found = np.flatnonzero(place.is_valid())
        row[place.drop_null().to_numpy()] = begin + found
        begin += len(batch)
    a, b = (row[pc.index_in(side, value_set=known).to_numpy()] for side in sides)
    both = (a >= 0) & (b >= 0)
    a, b = a[both], b[both]
    nearer = np.where(split[a] < split[b], a, b)
    return np.unique(nearer[split[a] != split[b]])


def label_strata(labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Number the combinations of labels, int64 [kinds], in an order that does not depend on that of the kinds.

    Combinations of several labels with fewer than `RARE_COMBINATION` rows are pooled by the rarest label they carry, or
    into one stratum if they carry none.

    Args:
        labels: 0, 1 or 2 where unknown, [kinds, L].
        counts: rows of each kind; a kind without rows is in the first stratum.
    """
    used = np.flatnonzero(counts)
    values, combination = np.unique(labels[used], axis=0, return_inverse=True)
    rows = np.bincount(combination, weights=counts[used], minlength=len(values))
    stratum, width = np.arange(len(values)), labels.shape[1]
    rare = rows < RARE_COMBINATION
    if width > 1 and rare.any():
        positives = values[rare] == 1
        often = (rows[:, None] * (values == 1)).sum(axis=0)
        rarest = np.where(positives, often, np.inf).argmin(axis=1)
        stratum[rare] = len(values) + np.where(positives.any(axis=1), rarest, width)
        stratum = np.unique(stratum, return_inverse=True)[1]
    found = np.zeros(len(labels), np.int64)
    found[used] = stratum[combination]
    return found


def _official_splits(official: np.ndarray, kind: np.ndarray, patients: Patients, where: str) -> np.ndarray:
    """The official split of each patient as a code, int8 [patients], -1 where no row has one."""
    patient, given = patients.of, np.full(len(patients.hashes), FREE, np.int8)
    for block in blocks(len(patient)):
        np.maximum.at(given, patient[block], official[kind[block]])
    wrong = [np.empty(0, np.int64)]
    for block in blocks(len(patient)):
        own = official[kind[block]]
        wrong.append(block.start + np.flatnonzero((own >= 0) & (own != given[patient[block]])))
    rows = np.concatenate(wrong)
    if len(rows):
        person = patient[rows[0]]
        other = np.flatnonzero((patient == person) & (official[kind] == given[person]))[0]
        first, second = sorted((rows[0], other))
        count = len(np.unique(patient[rows]))
        raise CohortError(
            f"{count} patient{'s are' if count > 1 else ' is'} in two splits, so training leaks into evaluation.",
            where=at(where, f"rows {first} and {second}, column split"),
            mend="Give all rows of a patient the same split, or leave their split empty.",
        )
    return given


def _splits_before(reference: Source, patients: Patients) -> np.ndarray:
    """The split that each patient has in an earlier cohort, int8 [patients], `FREE` where it does not know them."""
    before = np.full(len(patients.hashes), FREE, np.int8)
    decided = False
    for batch in reference.batches(["patient_id", "split"]):
        split = batch.column("split").cast(pa.string())
        code = pc.fill_null(pc.index_in(split, value_set=pa.array(SPLITS)), FREE).to_numpy().astype(np.int8)
        decided |= bool((code >= 0).any())
        who = patients.numbered(batch.column("patient_id"))
        seen = (who >= 0) & (code >= 0)
        before[who[seen]] = code[seen]
    if not decided:
        raise CohortError(
            "No patient of the earlier cohort has a split, so none can be kept.",
            where="stratify.reference",
            mend="Pass the folder that `fairvlm stratify` wrote for it, or leave stratify.reference empty.",
        )
    return before


def _as_before(
    given: np.ndarray, settled: np.ndarray, before: np.ndarray, present: np.ndarray, where: str
) -> np.ndarray:
    """The split of each patient that is settled, by the release or, where that leaves it open, as it was before."""
    moved = int(((before != FREE) & (settled > before)).sum())
    if moved:
        raise CohortError(
            f"The release has {moved} patient{'s' if moved > 1 else ''} nearer to test than the earlier cohort: what "
            "was learnt from them would be tested on them.",
            where=at(where, "column split"),
            mend="Leave stratify.reference empty to start anew, or give them the split that they had.",
        )
    # An official training row stays one where the release has the split that the patient was in.
    before = np.where((given == TRAIN) & np.isin(before, present), np.int8(TRAIN), before)
    return np.where(settled == FREE, before, settled)


def _units(
    patients: Patients, official: np.ndarray, settled: np.ndarray, duplicates: pa.Table
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Join the patients who share a picture and whose split is open.

    Who shares one with a patient of the earlier cohort follows that patient, to the split nearest to training if they
    are several. Nobody follows an official split: that of the release stays as large as it is.

    Returns:
        The unit of each patient, int32 [patients]; and per unit its hash and the split that is settled.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    a, b = (patients.numbered(duplicates.column(f"patient_id_{side}").combine_chunks()) for side in "ab")
    usable = (a >= 0) & (b >= 0) & (a != b)
    a, b = a[usable], b[usable]
    usable = ~official[a] & ~official[b]
    a, b = a[usable], b[usable]
    free = (settled[a] == FREE) & (settled[b] == FREE)
    count = len(settled)
    edges = coo_matrix((np.ones(free.sum(), np.int8), (a[free], b[free])), (count, count))
    units, unit = connected_components(edges, directed=False)
    hashed, split = np.full(units, np.iinfo(np.uint64).max), np.full(units, len(SPLITS), np.int8)
    np.minimum.at(hashed, unit, patients.hashes)
    np.minimum.at(split, unit, np.where(settled == FREE, np.int8(len(SPLITS)), settled))
    for own, other in ((a, b), (b, a)):
        follows = (settled[own] == FREE) & (settled[other] != FREE)
        np.minimum.at(split, unit[own[follows]], settled[other[follows]])
    split[split == len(SPLITS)] = FREE
    return unit, hashed, split


def _stratum_of_patients(
    kinds: Kinds, cell: np.ndarray, counts: np.ndarray, patient: np.ndarray, patients: int
) -> np.ndarray:
    """One stratum per patient, int32, numbered label by label: the rarest one among the patient's rows."""
    stratum = label_strata(kinds.labels, counts) * (cell.max(initial=0) + 2) + cell + 1
    found, place = np.unique(stratum, return_inverse=True)
    by_rarity = np.argsort(np.bincount(place, weights=counts), kind="stable").astype(np.int32)
    rank = np.empty_like(by_rarity)
    rank[by_rarity] = np.arange(len(found))
    rank = rank[place]
    lowest = np.full(patients, len(found), np.int32)
    for block in blocks(len(patient)):
        np.minimum.at(lowest, patient[block], rank[kinds.of[block]])
    return by_rarity[lowest]

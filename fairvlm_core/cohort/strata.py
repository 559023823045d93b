"""Stratification: patients are split first, then the training rows are balanced over demographic cells.

A cell is one combination of groups, by default sex x age group (FairMed-VLM, dataset construction). Balancing repeats
rows, so it comes after the patient-level split: repeating first would leak copies into validation and test, which are
never rebalanced. Nothing here loops over rows in Python, and nothing depends on the order of the rows.

What shall happen to each row is planned from the few columns that decide it, and then the rows are copied batch by
batch. So a table and a file are treated alike, and a file need not fit into memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fairvlm_core.cohort.kinds import (
    Kinds,
    Source,
    at,
    cells,
    number_patients,
    of_table,
    read_kinds,
    tally,
    tally_patients,
)
from fairvlm_core.cohort.sampling import allocate, as_ids, blocks, draw, key_of, rows_of, target_sizes
from fairvlm_core.cohort.table import SPLITS, groups_of
from fairvlm_core.errors import CohortError, ConfigError, nearest

# Combinations of labels with fewer rows than this are pooled: a stratum of two rows cannot be divided in proportion.
RARE_COMBINATION = 10
TRAIN = SPLITS.index("train")  # 0: what is drawn from


@dataclass(frozen=True)
class Plan:
    """What happens to each row of a cohort.

    Attributes:
        split: place in SPLITS, int8 [n].
        times: how often the row occurs in the result, int8 [n]; 0 where it is left out.
        cells: the group names of each cell, in the order of the vocabularies.
        rows_before, rows_after: rows per split and cell, int64 [3, cells + 1], the last being of unknown group.
        patients_before, patients_after: the same for different patients.
    """

    split: np.ndarray
    times: np.ndarray
    cells: list[tuple[str, ...]]
    rows_before: np.ndarray
    rows_after: np.ndarray
    patients_before: np.ndarray
    patients_after: np.ndarray


def stratify(table: pa.Table, config: Any, *, where: str = "") -> pa.Table:
    """Split the patients where the release did not, then balance the training split.

    Args:
        table: a cohort, one row per image; `split` is null where the release has no official one.
        config: the fields of `fairvlm_core.steps.stratify.Config`.
        where: the cohort's file, for error messages.

    Returns:
        The cohort with `split` filled in and its training rows down-sampled or repeated. Rows keep their order; a
        repeated row keeps its sample_id and counts up in `copy`. The schema metadata is kept.

    Raises:
        CohortError: a patient in two splits, too few patients to split, an empty cell, or an already balanced cohort.
    """
    source = of_table(table)
    batches = planned(source, plan(source, config, where=where))
    return pa.Table.from_batches(batches, schema=planned_schema(source.schema))


def plan(source: Source, config: Any, *, where: str = "") -> Plan:
    """Read the columns that decide, and decide; the arguments and errors are those of `stratify`."""
    vocabularies = _vocabularies(source, config.attributes)
    _refuse_copies(source, where)
    kinds = read_kinds(source, {"split": SPLITS, **vocabularies}, where=where)
    names, cell = cells(kinds, vocabularies)
    patient, hashes = number_patients(source, key_of(config.seed, "patients"), where=where)
    split = split_patients(kinds, cell, patient, hashes, config, where=where)
    del hashes  # ten million rows are planned in little memory

    once = np.ones(source.rows, np.int8)
    before = tally(kinds, split, once)
    if not config.allow_empty_cells:
        _refuse_empty_cells(before[TRAIN], kinds, cell, names, config.attributes, where)

    def ids() -> Iterator[pa.Array]:
        return (batch.column("sample_id") for batch in source.batches(["sample_id"]))

    times = balance(kinds, cell, split, before[TRAIN], ids, config)
    shown, width = np.where(cell < 0, len(names), cell), len(names) + 1
    return Plan(
        split=split,
        times=times,
        cells=names,
        rows_before=_per_cell(before, shown, width),
        rows_after=_per_cell(tally(kinds, split, times), shown, width),
        patients_before=tally_patients(kinds, patient, split, once, shown, width),
        patients_after=tally_patients(kinds, patient, split, times, shown, width),
    )


def planned(source: Source, plan: Plan) -> Iterator[pa.RecordBatch]:
    """The cohort's batches as planned: each row as often as it shall occur, its repeats behind it and numbered."""
    schema, begin = planned_schema(source.schema), 0
    for batch in source.batches([name for name in source.schema.names if name not in ("split", "copy")]):
        for block in blocks(len(batch)):  # all notes of a large batch can outgrow Arrow's 32-bit offsets
            part = batch.slice(block.start, block.stop - block.start)
            row = slice(begin, begin + len(part))
            yield _as_planned(part, plan.split[row], plan.times[row], schema)
            begin += len(part)


def _as_planned(batch: pa.RecordBatch, split: np.ndarray, times: np.ndarray, schema: pa.Schema) -> pa.RecordBatch:
    rows = rows_of(times)
    copies = np.arange(len(rows)) - np.repeat(np.cumsum(times, dtype=np.int64) - times, times)
    splits = pa.DictionaryArray.from_arrays(pa.array(split[rows], pa.int32()), pa.array(SPLITS))
    places = pa.array(rows)
    columns = {
        name: pa.nulls(len(rows), column.type)  # what a release does not publish need not be picked
        if column.null_count == len(column)
        else pc.take(column, places, boundscheck=False)
        for name, column in zip(batch.schema.names, batch.columns, strict=True)
    }
    columns["split"] = splits.cast(schema.field("split").type)
    columns["copy"] = pa.array(copies, schema.field("copy").type)
    return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)


def planned_schema(schema: pa.Schema) -> pa.Schema:
    """The schema of the batches that `planned` gives: that of the source, and `copy` where it has none."""
    return schema if "copy" in schema.names else schema.append(pa.field("copy", pa.int16(), nullable=False))


def split_patients(
    kinds: Kinds, cell: np.ndarray, patient: np.ndarray, hashes: np.ndarray, config: Any, *, where: str = ""
) -> np.ndarray:
    """Give every row a split such that no patient is in two, stratified by label and cell.

    Official splits win: a patient with rows in validation or test stays there. A split that the release does not have
    is carved out of the other patients (official training rows or no split); the rest of these becomes training.

    Args:
        kinds: of the rows; their groups hold the official `split`.
        cell: of each kind, -1 where a group is unknown.
        patient: of each row, int32 [n].
        hashes: of each patient, uint64 [patients].
        config: `validation_share` and `test_share`, of these patients (not of the rows); `seed`.
        where: the cohort's file, for error messages.

    Returns:
        Place in SPLITS, int8 [n].

    Raises:
        CohortError: a patient in two official splits, or too few patients to split.
    """
    counts = tally(kinds, np.zeros(len(patient), np.int8), np.ones(len(patient), np.int8))[0]
    official = kinds.groups["split"].astype(np.int8)
    given = _split_of_patients(official, kinds.of, patient, len(hashes), where)
    free = given <= TRAIN
    remaining = everybody = int(free.sum())
    shares = {"test": config.test_share, "validation": config.validation_share}
    present = official[counts > 0]
    shares = {name: share for name, share in shares.items() if share > 0 and SPLITS.index(name) not in present}
    if shares and everybody <= len(shares):
        raise CohortError(
            f"There are {everybody} patients to divide into training and {' and '.join(shares)}.",
            where=at(where, "column patient_id"),
            mend="Give more patients, mark official splits in the column split, or set the share of a split to 0.",
        )
    given[free] = TRAIN
    if shares:
        stratum = _stratum_of_patients(kinds, cell, counts, patient, len(hashes))
        sizes = np.bincount(stratum[free])
        stratum[~free] = 0
        phase = np.random.default_rng(config.seed)
        one, strata = np.zeros(len(sizes), np.int64), np.arange(len(sizes))
        for name, share in shares.items():
            wanted = np.array([np.clip(round(share * everybody), 1, remaining - 1)])
            taken = allocate(sizes, one, wanted, phase.integers(remaining, size=1))
            chosen = np.zeros(len(given), np.int8)
            draw(
                lambda: as_ids(hashes),
                key_of(config.seed, name),
                stratum,
                given,
                chosen,
                base=one.astype(np.int8),
                stratum=strata,
                sizes=sizes,
                wanted=taken,
            )
            given[chosen > 0] = SPLITS.index(name)
            sizes, remaining = sizes - taken, remaining - int(wanted[0])
    split = np.empty(len(patient), np.int8)
    for block in blocks(len(patient)):
        split[block] = given[patient[block]]
    return split


def balance(
    kinds: Kinds,
    cell: np.ndarray,
    split: np.ndarray,
    counts: np.ndarray,
    ids: Callable[[], Iterable[pa.Array]],
    config: Any,
) -> np.ndarray:
    """Balance the training rows over the cells; validation and test stay as they are.

    With t = the median size of the non-empty cells, a larger cell keeps `majority_cap` x t of its rows, and a smaller
    one is repeated up to t, but to no more than `oversample_cap` times its rows (FairMed-VLM, dataset construction).
    Within a cell each combination of labels keeps its share to within one row. A row of unknown group belongs to no
    cell: it is kept once.

    Args:
        kinds: of the rows.
        cell: of each kind, -1 where a group is unknown.
        split: place in SPLITS, int8 [n].
        counts: training rows of each kind, int64 [kinds].
        ids: gives the rows' sample ids in blocks, as often as it is called.
        config: `oversample_cap`; `majority_cap` (None keeps every row of the larger cells); `seed`.

    Returns:
        How often each row is taken, int8 [n].
    """
    labels = label_strata(kinds.labels, counts)
    used = np.flatnonzero((cell >= 0) & (counts > 0))
    pairs, place = np.unique(cell[used] * (labels.max(initial=0) + 1) + labels[used], return_inverse=True)
    cell_of = pairs // (labels.max(initial=0) + 1)
    sizes = np.bincount(place, weights=counts[used], minlength=len(pairs)).astype(np.int64)
    size = np.bincount(cell_of, weights=sizes, minlength=cell.max(initial=0) + 1).astype(np.int64)

    target = target_sizes(size, oversample_cap=config.oversample_cap, majority_cap=config.majority_cap)
    whole = target // np.maximum(size, 1)
    phase = np.random.default_rng(config.seed).integers(np.maximum(size, 1))
    wanted = allocate(sizes, cell_of, target, phase) - whole[cell_of] * sizes
    # The rows of unknown group are the last stratum: all of them once, none once more.
    stratum = np.full(len(cell), len(pairs))
    stratum[used] = place
    times = np.ones(len(split), np.int8)
    draw(
        ids,
        key_of(config.seed, "rows"),
        kinds.of,
        split,
        times,
        base=np.where(cell >= 0, whole[cell], 1).astype(np.int8),
        stratum=stratum,
        sizes=np.append(sizes, 0),
        wanted=np.append(wanted, 0),
    )
    return times


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


def _split_of_patients(
    official: np.ndarray, kind: np.ndarray, patient: np.ndarray, patients: int, where: str
) -> np.ndarray:
    """The official split of each patient as a code, int8 [patients], -1 where no row has one."""
    given = np.full(patients, -1, np.int8)
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


def _per_cell(counts: np.ndarray, cell: np.ndarray, width: int) -> np.ndarray:
    """From the rows of each kind to those of each cell: int64 [3, kinds] to [3, width]."""
    return np.array([np.bincount(cell, weights=row, minlength=width) for row in counts]).astype(np.int64)


def _refuse_copies(source: Source, where: str) -> None:
    if "copy" not in source.schema.names:
        return
    if any((pc.max(batch.column("copy")).as_py() or 0) > 0 for batch in source.batches(["copy"])):
        raise CohortError(
            "This cohort is balanced already: it has repeated rows.",
            where=at(where, "column copy"),
            mend="Pass the folder that `fairvlm ingest` wrote.",
        )


def _refuse_empty_cells(
    counts: np.ndarray,
    kinds: Kinds,
    cell: np.ndarray,
    names: list[tuple[str, ...]],
    attributes: Sequence[str],
    where: str,
) -> None:
    """Of the training rows, whose number per kind is given."""
    sizes = np.bincount(cell[cell >= 0], weights=counts[cell >= 0], minlength=len(names))
    if (sizes > 0).all():
        return
    for attribute in attributes:
        if counts.any() and not counts[kinds.groups[attribute] >= 0].any():
            raise CohortError(
                f'Not one training row has a known "{attribute}", so it has no cells to balance.',
                where=at(where, f"column {attribute}"),
                mend="Take it out of stratify.attributes, or give `fairvlm ingest` the demographics.",
            )
    empty = [" x ".join(name) for name, size in zip(names, sizes, strict=True) if size == 0]
    shown = ", ".join(f'"{name}"' for name in empty[:5]) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
    raise CohortError(
        f"No training row is in the cell{'s' if len(empty) > 1 else ''} {shown}.",
        where=at(where, f"columns {', '.join(attributes)}"),
        mend="Merge age groups (ingest.age_edges), or set stratify.allow_empty_cells to balance the others.",
    )


def _vocabularies(source: Source, attributes: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Attribute -> group names from the metadata; a table without metadata has the groups that occur in it."""
    documented = groups_of(source) if b"fairvlm.groups" in (source.schema.metadata or {}) else None
    found = {}
    for attribute in attributes:
        valid = source.schema.names if documented is None else documented
        if attribute not in valid:
            raise ConfigError(
                f'The cohort has no groups for the attribute "{attribute}".',
                where="stratify.attributes",
                mend=nearest(attribute, valid),
            )
        if documented is not None:
            found[attribute] = documented[attribute]
        else:
            occurring = (batch.column(attribute).unique().to_pylist() for batch in source.batches([attribute]))
            found[attribute] = tuple(sorted({name for names in occurring for name in names} - {None}))
    return found

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
from fairvlm_core.cohort.sampling import allocate, blocks, draw, key_of, rows_of, target_sizes
from fairvlm_core.cohort.splits import TRAIN, Patients, label_strata, leaking_rows, split_patients
from fairvlm_core.cohort.table import SPLITS, groups_of
from fairvlm_core.errors import CohortError, ConfigError, nearest


@dataclass(frozen=True)
class Plan:
    """What happens to each row of a cohort.

    Attributes:
        split: place in SPLITS, int8 [n].
        times: how often the row occurs in the result, int8 [n]; 0 where it is left out.
        leaking: number of rows that are left out because their picture is also in a split nearer to test.
        cells: the group names of each cell, in the order of the vocabularies.
        rows_before, rows_after: rows per split and cell, int64 [3, cells + 1], the last being of unknown group; those
            that leak are not counted.
        patients_before, patients_after: the same for different patients.
    """

    split: np.ndarray
    times: np.ndarray
    leaking: int
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


def plan(
    source: Source,
    config: Any,
    *,
    duplicates: pa.Table | None = None,
    reference: Source | None = None,
    where: str = "",
) -> Plan:
    """Read the columns that decide, and decide; config, errors and `where` are those of `stratify`.

    Args:
        duplicates: the pairs of rows that show the same picture, as `duplicates.read_pairs` read them.
        reference: an earlier cohort whose patients keep their split.
    """
    vocabularies = _vocabularies(source, config.attributes)
    _refuse_copies(source, where)
    kinds = read_kinds(source, {"split": SPLITS, **vocabularies}, where=where)
    names, cell = cells(kinds, vocabularies)
    key = key_of(config.seed, "patients")
    people = Patients(*number_patients(source, key, where=where), key)
    split = split_patients(kinds, cell, people, config, duplicates=duplicates, reference=reference, where=where)
    patient = people.of
    del people  # and the hashes with them: ten million rows are planned in little memory

    once = np.ones(source.rows, np.int8)
    leaking = np.empty(0, np.int64) if duplicates is None else leaking_rows(source, split, duplicates)
    once[leaking] = 0
    before = tally(kinds, split, once)
    if not config.allow_empty_cells:
        _refuse_empty_cells(before[TRAIN], kinds, cell, names, config.attributes, where)

    def ids() -> Iterator[pa.Array]:
        return (batch.column("sample_id") for batch in source.batches(["sample_id"]))

    times = balance(kinds, cell, split, once, before[TRAIN], ids, config)
    shown, width = np.where(cell < 0, len(names), cell), len(names) + 1
    return Plan(
        split=split,
        times=times,
        leaking=len(leaking),
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


def balance(
    kinds: Kinds,
    cell: np.ndarray,
    split: np.ndarray,
    once: np.ndarray,
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
        once: 0 for a row that is left out, 1 for all others, int8 [n].
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
    times = once.copy()
    draw(
        ids,
        key_of(config.seed, "rows"),
        kinds.of,
        split | (once == 0),
        times,
        base=np.where(cell >= 0, whole[cell], 1).astype(np.int8),
        stratum=stratum,
        sizes=np.append(sizes, 0),
        wanted=np.append(wanted, 0),
    )
    return times


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

"""Stratification: patients are split first, then the training rows are balanced over demographic cells.

A cell is one combination of groups, by default sex x age group (FairMed-VLM, dataset construction). Balancing repeats
rows, so it comes after the patient-level split: repeating first would leak copies into validation and test, which are
never rebalanced. Nothing here loops over rows in Python, and nothing depends on the order of the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from fairvlm_core.cohort.table import SPLITS, groups_of
from fairvlm_core.errors import CohortError, ConfigError, nearest

# Combinations of labels with fewer rows than this are pooled: a stratum of two rows cannot be divided in proportion.
RARE_COMBINATION = 10


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
    return balance(split_patients(table, config, where=where), config, where=where)


def split_patients(table: pa.Table, config: Any, *, where: str = "") -> pa.Table:
    """Give every row a split such that no patient is in two, stratified by label and cell.

    Official splits win: a patient with rows in validation or test stays there. A split that the release does not have
    is carved out of the other patients (official training rows or no split); the rest of these becomes training.

    Args:
        table: a cohort.
        config: `validation_share` and `test_share`, of these patients (not of the rows); `attributes`, whose
            combinations are the cells; `seed`.
        where: the cohort's file, for error messages.

    Raises:
        CohortError: a patient in two official splits, or too few patients to split.
    """
    official = _codes(table, "split", SPLITS, where)
    ids = table.column("patient_id").combine_chunks()
    if ids.null_count:
        raise CohortError(
            "This row has no patient, so it cannot be kept together with the patient's other rows.",
            where=_at(where, f"row {pc.index(ids.is_null(), True).as_py()}, column patient_id"),
            mend="Give every row a patient_id; where each image is a patient of its own, repeat the sample_id.",
        )
    encoded = ids.dictionary_encode()
    patient = encoded.indices.to_numpy()
    given = _split_of_patients(official, patient, len(encoded.dictionary), where)

    shares = {"test": config.test_share, "validation": config.validation_share}
    shares = {name: share for name, share in shares.items() if share > 0 and SPLITS.index(name) not in official}
    free = np.flatnonzero(given <= SPLITS.index("train"))
    if shares and len(free) <= len(shares):
        raise CohortError(
            f"There are {len(free)} patients to divide into training and {' and '.join(shares)}.",
            where=_at(where, "column patient_id"),
            mend="Give more patients, mark official splits in the column split, or set the share of a split to 0.",
        )
    stratum = _stratum_of_patients(table, config.attributes, patient, len(given), where)
    order = free[np.lexsort((_hashes(encoded.dictionary, config.seed)[free], stratum[free]))]
    phase = np.random.default_rng(config.seed)
    given[free] = SPLITS.index("train")
    everybody = len(order)
    for name, share in shares.items():
        wanted = int(np.clip(round(share * everybody), 1, len(order) - 1))
        chosen = _spread(np.arange(len(order)), len(order), wanted, phase.integers(len(order))) > 0
        given[order[chosen]] = SPLITS.index(name)
        order = order[~chosen]
    names = pa.array(SPLITS).take(pa.array(given[patient]))
    return _with_column(table, "split", names)


def balance(table: pa.Table, config: Any, *, where: str = "") -> pa.Table:
    """Balance the training rows over the cells; validation and test stay as they are.

    With t = the median size of the non-empty cells, a larger cell keeps `majority_cap` x t of its rows, and a smaller
    one is repeated up to t, but to no more than `oversample_cap` times its rows (FairMed-VLM, dataset construction).
    Within a cell each combination of labels keeps its share to within one row. A row of unknown group belongs to no
    cell: it is kept once.

    Args:
        table: a cohort in which every row has a split.
        config: `attributes`, whose combinations are the cells (none balances nothing); `oversample_cap`; `majority_cap`
            (None keeps every row of the larger cells); `allow_empty_cells`, to balance the cells there are rather than
            refuse a cohort in which one is empty; `seed`.
        where: the cohort's file, for error messages.

    Raises:
        CohortError: an empty cell, a null split, or a cohort that is balanced already.
    """
    split = _codes(table, "split", SPLITS, where)
    if (split < 0).any():
        raise CohortError(
            "This row has no split, and balancing before splitting would leak copies.",
            where=_at(where, f"row {np.flatnonzero(split < 0)[0]}, column split"),
            mend="Split the patients first.",
        )
    if "copy" in table.column_names and pc.any(pc.greater(table.column("copy"), 0)).as_py():
        raise CohortError(
            "This cohort is balanced already: it has repeated rows.",
            where=_at(where, "column copy"),
            mend="Pass the folder that `fairvlm ingest` wrote.",
        )
    train = np.flatnonzero(split == SPLITS.index("train"))
    needed = ("sample_id", "labels", *config.attributes)
    rows = table.select([name for name in table.column_names if name in needed]).take(pa.array(train))
    names, cell = cells(rows, config.attributes, where=where)
    sizes = np.bincount(cell[cell >= 0], minlength=len(names))
    if not config.allow_empty_cells and (sizes == 0).any():
        raise _empty_cell(rows, config.attributes, names, sizes, where)

    target = target_sizes(sizes, oversample_cap=config.oversample_cap, majority_cap=config.majority_cap)
    known = np.flatnonzero(cell >= 0)
    hashes = _hashes(rows.column("sample_id"), config.seed)
    order = known[np.lexsort((hashes[known], label_strata(rows)[known], cell[known]))]
    ordered = cell[order]
    position = np.arange(len(order)) - (np.cumsum(sizes) - sizes)[ordered]
    phase = np.random.default_rng(config.seed).integers(np.maximum(sizes, 1))
    times = np.ones(len(table), dtype=np.int64)
    times[train[order]] = _spread(position, sizes[ordered], target[ordered], phase[ordered])
    return _repeat_rows(table, times)


def target_sizes(sizes: np.ndarray, *, oversample_cap: float = 1.3, majority_cap: float | None = 1.0) -> np.ndarray:
    """How many rows each cell gets, given how many it has; an empty cell stays empty.

    >>> target_sizes(np.array([10, 20, 40, 100, 0]))  # the median of the four is 30
    array([13, 26, 30, 30,  0])
    """
    if not (sizes > 0).any():
        return sizes
    median = int(np.median(sizes[sizes > 0]))
    fewer = sizes if majority_cap is None else np.minimum(sizes, int(majority_cap * median))
    more = np.minimum(median, np.floor(oversample_cap * sizes).astype(np.int64))
    return np.where(sizes > median, fewer, more)


def cells(table: pa.Table, attributes: Sequence[str], *, where: str = "") -> tuple[list[tuple[str, ...]], np.ndarray]:
    """The cells and each row's place among them.

    Returns:
        The cells' group names, in the order of the vocabularies; and int64 [n], -1 where a group is unknown.
    """
    vocabularies = _vocabularies(table, attributes)
    code = np.zeros(len(table), dtype=np.int64)
    unknown = np.zeros(len(table), dtype=bool)
    for attribute in attributes:
        group = _codes(table, attribute, vocabularies[attribute], where)
        unknown |= group < 0
        code = code * len(vocabularies[attribute]) + group
    return list(product(*vocabularies.values())), np.where(unknown, -1, code)


def label_strata(table: pa.Table) -> np.ndarray:
    """Number the combinations of labels, int64 [n], in an order that does not depend on that of the rows.

    Combinations of several labels with fewer than `RARE_COMBINATION` rows are pooled by the rarest label they carry, or
    into one stratum if they carry none.
    """
    lists = table.column("labels").combine_chunks()
    flat = pc.fill_null(pc.list_flatten(lists), 2).to_numpy().astype(np.int64)
    width = len(flat) // max(len(table), 1)
    uneven = np.flatnonzero(pc.list_value_length(lists).to_numpy(zero_copy_only=False) != width)
    if len(uneven):
        raise CohortError("Not all rows have the same number of labels.", where=f"row {uneven[0]}, column labels")
    values = flat.reshape(len(table), width)
    key = np.zeros(len(table), dtype=np.int64)
    for j in range(width):
        key = key * 3 + values[:, j]
        if j % 20 == 19:  # 3^40 is more than 64 bits hold: renumber on the way
            key = np.unique(key, return_inverse=True)[1]
    key, counts = np.unique(key, return_inverse=True, return_counts=True)[1:]
    rare = counts[key] < RARE_COMBINATION
    if width > 1 and rare.any():
        positives = values[rare] == 1
        often = (values == 1).sum(axis=0)
        rarest = np.where(positives, often, np.iinfo(np.int64).max).argmin(axis=1)
        key[rare] = len(counts) + np.where(positives.any(axis=1), rarest, width)
        key = np.unique(key, return_inverse=True)[1]
    return key


def count_cells(
    table: pa.Table, attributes: Sequence[str], *, of: Literal["rows", "patients"] = "rows"
) -> dict[str, np.ndarray]:
    """Rows, or different patients, per split and cell: split -> int64 [cells + 1], the last being of unknown group."""
    names, cell = cells(table, attributes)
    width = len(names) + 1
    place = _codes(table, "split", SPLITS, where="") * width + np.where(cell < 0, len(names), cell)
    if of == "patients":
        patient = table.column("patient_id").combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
        place = np.unique(patient * len(SPLITS) * width + place) % (len(SPLITS) * width)
    counts = np.bincount(place, minlength=len(SPLITS) * width).reshape(len(SPLITS), width)
    return dict(zip(SPLITS, counts, strict=True))


def _spread(position: np.ndarray, size: Any, wanted: Any, phase: Any) -> np.ndarray:
    """How often to take each of `size` rows so that `wanted` are taken in all, evenly over the positions.

    Systematic sampling: rows in a fixed order, one pointer every size / wanted rows, started at a random phase. Of any
    run of m neighbours it takes m x wanted / size, to within one. So a stratum that is contiguous gets its share, also
    where it is too small to be sampled on its own.
    """
    return ((position + 1) * wanted + phase) // size - (position * wanted + phase) // size


def _split_of_patients(official: np.ndarray, patient: np.ndarray, patients: int, where: str) -> np.ndarray:
    """The official split of each patient as a code, -1 where no row has one."""
    highest = np.full(patients, -1)
    np.maximum.at(highest, patient, official)
    differs = (official >= 0) & (official != highest[patient])
    if differs.any():
        row = int(np.flatnonzero(differs)[0])
        other = int(np.flatnonzero((patient == patient[row]) & (official == highest[patient[row]]))[0])
        first, second = sorted((row, other))
        count = len(np.unique(patient[differs]))
        raise CohortError(
            f"{count} patient{'s are' if count > 1 else ' is'} in two splits, so training leaks into evaluation.",
            where=_at(where, f"rows {first} and {second}, column split"),
            mend="Give all rows of a patient the same split, or leave their split empty.",
        )
    return highest


def _stratum_of_patients(
    table: pa.Table, attributes: Sequence[str], patient: np.ndarray, patients: int, where: str
) -> np.ndarray:
    """One stratum per patient, numbered label by label: the rarest one among the patient's rows."""
    names, cell = cells(table, attributes, where=where)
    stratum = label_strata(table) * (len(names) + 1) + cell + 1
    found, row, counts = np.unique(stratum, return_inverse=True, return_counts=True)
    by_rarity = np.argsort(counts, kind="stable")
    rank = np.empty_like(by_rarity)
    rank[by_rarity] = np.arange(len(found))
    lowest = np.full(patients, len(found))
    np.minimum.at(lowest, patient, rank[row])
    return by_rarity[lowest]


def _empty_cell(
    rows: pa.Table, attributes: Sequence[str], names: list[tuple[str, ...]], sizes: np.ndarray, where: str
) -> CohortError:
    for attribute in attributes:
        if len(rows) and rows.column(attribute).null_count == len(rows):
            return CohortError(
                f'Not one training row has a known "{attribute}", so it has no cells to balance.',
                where=_at(where, f"column {attribute}"),
                mend="Take it out of stratify.attributes, or give `fairvlm ingest` the demographics.",
            )
    empty = [" x ".join(name) for name, size in zip(names, sizes, strict=True) if size == 0]
    shown = ", ".join(f'"{name}"' for name in empty[:5]) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
    return CohortError(
        f"No training row is in the cell {shown}." if len(empty) == 1 else f"No training row is in the cells {shown}.",
        where=_at(where, f"columns {', '.join(attributes)}"),
        mend="Merge age groups (ingest.age_edges), or set stratify.allow_empty_cells to balance the others.",
    )


def _vocabularies(table: pa.Table, attributes: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Attribute -> group names from the metadata; a table without metadata has the groups that occur in it."""
    documented = groups_of(table) if b"fairvlm.groups" in (table.schema.metadata or {}) else None
    found = {}
    for attribute in attributes:
        valid = table.column_names if documented is None else documented
        if attribute not in valid:
            raise ConfigError(
                f'The cohort has no groups for the attribute "{attribute}".',
                where="stratify.attributes",
                mend=nearest(attribute, valid),
            )
        if documented is not None:
            found[attribute] = documented[attribute]
        else:
            found[attribute] = tuple(sorted(pc.drop_null(table.column(attribute).unique()).to_pylist()))
    return found


def _codes(table: pa.Table, column: str, vocabulary: Sequence[str], where: str) -> np.ndarray:
    """Each row's place in the vocabulary, int64 [n], -1 where null. The error names the row, never its content."""
    values = table.column(column)
    found = pc.fill_null(pc.index_in(values, value_set=pa.array(vocabulary, pa.string())), -1)
    codes = found.to_numpy().astype(np.int64)
    strange = np.flatnonzero((codes < 0) & pc.is_valid(values).to_numpy())
    if len(strange):
        raise CohortError(
            f"{len(strange)} rows have a value that is not in the vocabulary of {column}.",
            where=_at(where, f"row {strange[0]}, column {column}"),
            mend=f"Valid names: {', '.join(vocabulary)}; leave it empty where it is unknown.",
        )
    return codes


def _hashes(ids: pa.ChunkedArray | pa.Array, seed: int) -> np.ndarray:
    """A pseudo-random number per id, uint64 [n]: the same for the same seed, wherever the row stands."""
    values = ids.to_numpy(zero_copy_only=False).astype(object)
    return pd.util.hash_array(values, hash_key=f"{seed:016x}", categorize=False)


def _repeat_rows(table: pa.Table, times: np.ndarray) -> pa.Table:
    """Each row as often as `times` says, its repeats behind it and numbered in `copy`."""
    starts = np.cumsum(times) - times
    copies = np.arange(times.sum()) - np.repeat(starts, times)
    parts, begin = [], 0
    for batch in table.to_batches():  # by batch: one array of all notes can outgrow Arrow's 32-bit offsets
        taken = np.repeat(np.arange(len(batch)), times[begin : begin + len(batch)])
        parts.append(batch.take(pa.array(taken)))
        begin += len(batch)
    return _with_column(pa.Table.from_batches(parts, schema=table.schema), "copy", pa.array(copies, pa.int16()))


def _with_column(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    """Replace the column, or append it where the table lacks it; field and schema metadata stay."""
    if name not in table.column_names:
        return table.append_column(name, values)
    place = table.column_names.index(name)
    field = table.schema.field(place)
    return table.set_column(place, field if field.type == values.type else pa.field(name, values.type), values)


def _at(file: str, place: str) -> str:
    return f"{file}, {place}" if file else place

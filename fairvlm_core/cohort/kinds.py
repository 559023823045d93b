"""What decides about a row of a cohort, as two small numbers: who the patient is, and what kind of row it is.

A kind is one combination of groups and labels. There are few kinds and many rows, so what is asked of a row later is
looked up by its kind. The columns are read batch by batch and not kept, from a table or from a file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fairvlm_core.cohort.sampling import BLOCK, Numbers, blocks, hashes
from fairvlm_core.compiled import compiled
from fairvlm_core.errors import CohortError

FILE_ROWS = 1 << 16  # rows of a file at a time, which will be a row group of the next file
UNKNOWN = 2  # a label that is neither 0 nor 1
WORD = 20  # so many labels of three values fit into one number, together with the groups
DENSE = np.iinfo(np.int16).max  # so few combinations need not be numbered: they are numbers already


@dataclass(frozen=True)
class Source:
    """A cohort that is read column by column.

    Attributes:
        schema: of the batches.
        rows: how many there are.
        batches: the batches of some columns, from the first row on, as often as it is called.
    """

    schema: pa.Schema
    rows: int
    batches: Callable[[Sequence[str]], Iterator[pa.RecordBatch]]


def of_table(table: pa.Table) -> Source:
    """A cohort in memory."""
    return Source(
        table.schema, len(table), lambda columns: iter(table.select(list(columns)).to_batches(max_chunksize=8 * BLOCK))
    )


def of_file(file: pq.ParquetFile) -> Source:
    """A cohort that `open_cohort` opened; its text of few values comes dictionary-encoded."""
    return Source(
        file.schema_arrow,
        file.metadata.num_rows,
        lambda columns: file.iter_batches(FILE_ROWS, columns=list(columns), use_threads=False),
    )


@dataclass(frozen=True)
class Kinds:
    """The kinds of rows that there can be.

    Attributes:
        of: the kind of each row, int16 or int32 [n].
        groups: name of a column -> each kind's place in its vocabulary, int64 [kinds], -1 where unknown.
        labels: uint8 [kinds, L]: 0, 1 or `UNKNOWN`.
    """

    of: np.ndarray
    groups: dict[str, np.ndarray]
    labels: np.ndarray


def read_kinds(source: Source, vocabularies: Mapping[str, Sequence[str]], *, where: str = "") -> Kinds:
    """The kind of each row, by the columns that have a vocabulary and by `labels`.

    Raises:
        CohortError: a value that is not in the vocabulary, a label that is neither 0 nor 1 nor null, or rows of
            different numbers of labels. It names the row, never its content.
    """
    radix = [len(vocabulary) + 1 for vocabulary in vocabularies.values()]
    width, words, numbers, dense = 0, [range(0)], [Numbers()], True
    kind = np.empty(0, np.int16)
    begin = 0
    for batch in source.batches((*vocabularies, "labels")):
        if not begin:
            width = pc.list_value_length(batch.column("labels"))[0].as_py() or 0
            words = [range(first, min(first + WORD, width)) for first in range(0, width, WORD)] or words
            numbers, dense = [Numbers() for _ in words], prod(radix) * 3**width <= DENSE
            kind = np.zeros(source.rows, np.int16 if dense else np.int32)
        block = kind[begin : begin + len(batch)]
        code = block if dense else np.zeros(len(batch), np.int64)
        for (name, vocabulary), base in zip(vocabularies.items(), radix, strict=True):
            _append(code, *_group_places(batch.column(name), vocabulary, f"column {name}", where, begin), base)
        values = _label_values(batch.column("labels"), width, where, begin)
        for word, known in zip(words, numbers, strict=True):
            _append_labels(code, values, width, word.start, word.stop)
            if not dense:
                code = known.of(code.view(np.uint64)).astype(np.int64)
        if not dense:
            block[:] = code
        begin += len(batch)
    codes = [np.arange(prod(radix) * 3**width)] if dense else [known.values.astype(np.int64) for known in numbers]
    return Kinds(kind, *_decoded(codes, words, vocabularies))


def cells(kinds: Kinds, vocabularies: Mapping[str, Sequence[str]]) -> tuple[list[tuple[str, ...]], np.ndarray]:
    """The cells and the place of each kind among them.

    Returns:
        The cells' group names, in the order of the vocabularies; and int64 [kinds], -1 where a group is unknown.
    """
    code, unknown = np.zeros(len(kinds.labels), np.int64), np.zeros(len(kinds.labels), bool)
    for name, vocabulary in vocabularies.items():
        code = code * len(vocabulary) + kinds.groups[name]
        unknown |= kinds.groups[name] < 0
    return list(product(*vocabularies.values())), np.where(unknown, -1, code)


def number_patients(source: Source, key: np.uint64, *, where: str = "") -> tuple[np.ndarray, np.ndarray]:
    """Who the patient of each row is.

    Two patients whose ids have the same hash count as one and come into the same split: it happens in one of four
    million cohorts of three million patients.

    Returns:
        The number of each row's patient, int32 [n]; and each patient's hash, uint64 [patients].
    """
    patient, numbers, begin = np.empty(source.rows, np.int32), Numbers(source.rows // 4), 0
    for batch in source.batches(["patient_id"]):
        ids = batch.column("patient_id")
        if ids.null_count:
            raise CohortError(
                "This row has no patient, so it cannot be kept together with the patient's other rows.",
                where=at(where, f"row {begin + pc.index(ids.is_null(), True).as_py()}, column patient_id"),
                mend="Give every row a patient_id; where each image is a patient of its own, repeat the sample_id.",
            )
        patient[begin : begin + len(batch)] = numbers.of(hashes(ids, key))
        begin += len(batch)
    return patient, numbers.values


def tally(kinds: Kinds, split: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Rows per split and kind, int64 [3, kinds], each row as often as it is taken."""
    counts = np.zeros((4, 3 * len(kinds.labels)), np.int64)
    _tally(kinds.of, split, times, len(kinds.labels), counts)
    return counts.sum(axis=0).reshape(3, -1)


def tally_patients(
    kinds: Kinds, patient: np.ndarray, split: np.ndarray, times: np.ndarray, cell: np.ndarray, width: int
) -> np.ndarray:
    """Different patients per split and cell, int64 [3, width], of the rows that are taken.

    Args:
        patient, split, times: of each row.
        cell: of each kind, from 0 to below `width`.
    """
    # Most patients are in one cell: that is kept per patient, and only the rows that differ from it are compared.
    first = np.full(patient.max(initial=-1) + 1, -1, np.int32)
    others, found = [np.empty((0, 2), np.int32)], np.empty((BLOCK, 2), np.int32)
    for rows in blocks(len(patient)):
        count = _places(patient[rows], kinds.of[rows], split[rows], times[rows], cell, width, first, found)
        others.append(found[:count].copy())
    more = np.unique(np.concatenate(others), axis=0)[:, 1]
    counts = np.bincount(more, minlength=3 * width)
    for some in blocks(len(first)):
        counts += np.bincount(first[some] + 1, minlength=3 * width + 1)[1:]
    return counts.reshape(3, width)


def at(file: str, place: str) -> str:
    """Where something is, for an error."""
    return f"{file}, {place}" if file else place


def _group_places(
    values: pa.Array, vocabulary: Sequence[str], column: str, where: str, begin: int
) -> tuple[np.ndarray, np.ndarray]:
    """A code per row; and before it the place of each code in the vocabulary, that of null being behind the last."""
    if not pa.types.is_dictionary(values.type):
        values = values.cast(pa.string()).dictionary_encode()
    different = values.dictionary
    place = pc.fill_null(pc.index_in(different, value_set=pa.array(vocabulary, different.type)), -1).to_numpy()
    codes = values.indices
    if codes.null_count:
        codes = pc.fill_null(codes.cast(pa.int32()), len(place))
    codes = codes.to_numpy()
    strange = np.flatnonzero(np.append(place < 0, False)[codes]) if (place < 0).any() else np.empty(0)
    if len(strange):
        raise CohortError(
            f"{len(strange)} rows have a value that is not in the vocabulary of {column.removeprefix('column ')}.",
            where=at(where, f"row {begin + strange[0]}, {column}"),
            mend=f"Valid names: {', '.join(vocabulary)}; leave it empty where it is unknown.",
        )
    return np.append(place, len(vocabulary)).astype(np.int16), codes


def _label_values(lists: pa.Array, width: int, where: str, begin: int) -> np.ndarray:
    """The labels of all rows one after the other, uint8 [rows x width]."""
    lists = lists.cast(pa.list_(pa.int8()))
    uneven = np.flatnonzero(np.diff(lists.offsets.to_numpy()) != width)
    if len(uneven):
        raise CohortError(
            "Not all rows have the same number of labels.", where=at(where, f"row {begin + uneven[0]}, column labels")
        )
    flat = lists.flatten()
    limits = pc.min_max(flat).as_py()
    if (limits["min"] or 0) < 0 or (limits["max"] or 0) > 1:
        given = pc.fill_null(flat, 0).to_numpy()
        raise CohortError(
            "A label is neither 0 nor 1 nor empty.",
            where=at(where, f"row {begin + np.flatnonzero((given < 0) | (given > 1))[0] // width}, column labels"),
            mend="Run `fairvlm ingest` again.",
        )
    return (pc.fill_null(flat, UNKNOWN) if flat.null_count else flat).to_numpy().view(np.uint8)


def _decoded(
    codes: Sequence[np.ndarray], words: Sequence[range], vocabularies: Mapping[str, Sequence[str]]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The groups and labels of each kind: after each word of labels, `codes` has what its numbers stand for."""
    code = np.arange(len(codes[-1]))
    labels = np.empty((len(code), words[-1].stop), np.uint8)
    for word, known in zip(reversed(words), reversed(codes), strict=True):
        code = known[code]
        for j in reversed(word):
            code, labels[:, j] = code // 3, code % 3
    groups = {}
    for name, vocabulary in reversed([*vocabularies.items()]):
        code, place = code // (len(vocabulary) + 1), code % (len(vocabulary) + 1)
        groups[name] = np.where(place < len(vocabulary), place, -1)
    return groups, labels


@compiled
def _append(code: np.ndarray, place: np.ndarray, codes: np.ndarray, base: int) -> None:
    for i in range(len(code)):
        code[i] = code[i] * base + place[np.uint64(codes[i])]


@compiled
def _append_labels(code: np.ndarray, values: np.ndarray, width: int, start: int, stop: int) -> None:
    if width == 1:  # so many numbers at a time
        for i in range(len(code)):
            code[i] = code[i] * 3 + values[i]
        return
    for i in range(len(code)):
        number = code[i]
        for j in range(i * width + start, i * width + stop):
            number = number * 3 + values[j]
        code[i] = number


@compiled
def _tally(kind: np.ndarray, split: np.ndarray, times: np.ndarray, width: int, counts: np.ndarray) -> None:
    for i in range(len(kind)):  # four counts in turns, as one would wait until its last is written
        counts[np.uint64(i) & np.uint64(3), np.uint64(split[i] * width + kind[i])] += times[i]


@compiled
def _places(
    patient: np.ndarray,
    kind: np.ndarray,
    split: np.ndarray,
    times: np.ndarray,
    cell: np.ndarray,
    width: int,
    first: np.ndarray,
    others: np.ndarray,
) -> int:
    count = 0
    for i in range(len(patient)):
        if times[i] > 0:
            who, place = patient[i], split[i] * width + cell[kind[i]]
            if first[who] < 0:
                first[who] = place
            elif first[who] != place:
                others[count, 0], others[count, 1] = who, place
                count += 1
    return count

"""The cohort contract: what a sample is, which task it serves, and which groups it can belong to.

`cohort.parquet` has one row per image. The task and the group vocabularies are in the Parquet schema metadata, so the
file explains itself. An attribute that a release does not publish is null, never invented.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fairvlm_core.errors import CohortError, nearest
from fairvlm_core.files import written

COHORT_FILE = "cohort.parquet"
SPLITS = ("train", "validation", "test")
ATTRIBUTES = ("sex", "age_group", "race", "ethnicity", "language")
# Columns of few different values: a file is read and written much faster as numbers of values than as text.
REPEATING = (*ATTRIBUTES, "modality", "split", "source")
SEXES = ("female", "male")

SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),  # unique per image; repeats share it and differ in `copy`
        pa.field("patient_id", pa.string(), nullable=False),  # patient, or lesion where that is what must not leak
        pa.field("image", pa.string(), nullable=False),  # path inside the release; the key of the image store
        pa.field("modality", pa.string()),
        pa.field("note", pa.string()),  # clinical text: read in training, never in evaluation
        pa.field("labels", pa.list_(pa.int8()), nullable=False),  # 0, 1 or null (uncertain), aligned to Task.labels
        pa.field("sex", pa.string()),
        pa.field("age", pa.float32()),  # years
        pa.field("age_group", pa.string()),
        pa.field("race", pa.string()),
        pa.field("ethnicity", pa.string()),
        pa.field("language", pa.string()),
        pa.field("split", pa.string()),  # null until stratify where the release has no official split
        pa.field("source", pa.string(), nullable=False),  # the release
        pa.field("copy", pa.int16(), nullable=False),  # 0, or the number of the repetition that balancing made
    ]
)


@dataclass(frozen=True)
class Task:
    """What the model is asked about an image.

    Attributes:
        kind: `binary` (one label), `multiclass` (exactly one of several) or `multilabel` (any of several).
        labels: short names, in the order of the column `labels`.
        concepts: the phrase for each label, as a clinician would write it.
        negatives: the phrase for each label's absence (binary and multilabel).
        question: the question to a generative model; `{concept}` is filled in per label (binary and multilabel).
        prompt: the zero-shot caption for a dual encoder; `{concept}` is filled in.
    """

    kind: Literal["binary", "multiclass", "multilabel"]
    labels: tuple[str, ...]
    concepts: tuple[str, ...]
    negatives: tuple[str, ...] = ()
    question: str = "Does this image show {concept}?"
    prompt: str = "A photo of {concept}"

    def __post_init__(self) -> None:
        for name in ("labels", "concepts", "negatives"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.kind not in ("binary", "multiclass", "multilabel"):
            raise CohortError(
                f'A task cannot be of the kind "{self.kind}".',
                mend=nearest(self.kind, ("binary", "multiclass", "multilabel")),
            )
        if len(self.concepts) != len(self.labels):
            raise CohortError(f"The task has {len(self.labels)} labels but {len(self.concepts)} concept phrases.")
        if self.kind != "multiclass" and len(self.negatives) != len(self.labels):
            raise CohortError(f"A {self.kind} task needs one phrase for the absence of each of its labels.")
        if self.kind == "binary" and len(self.labels) != 1:
            raise CohortError(f"A binary task has one label, this one has {len(self.labels)}.")


def cohort_table(
    rows: Iterable[Mapping[str, Any]] | pa.Table, *, task: Task, groups: Mapping[str, Sequence[str]]
) -> pa.Table:
    """Build a cohort from rows (missing optional columns become null) or re-label a table with its metadata.

    Args:
        rows: mappings with the names of `SCHEMA`; or a table that already has these columns.
        task: what the labels mean.
        groups: attribute -> the names its groups can have, in the order of their codes.
    """
    metadata = {
        b"fairvlm.task": json.dumps(asdict(task)).encode(),
        b"fairvlm.groups": json.dumps({name: list(values) for name, values in groups.items()}).encode(),
    }
    if isinstance(rows, pa.Table):
        table = rows.select(SCHEMA.names).cast(SCHEMA)
    else:
        table = pa.Table.from_pylist([{"copy": 0, **row} for row in rows], schema=SCHEMA)
    return table.replace_schema_metadata(metadata)


def write_cohort(table: pa.Table, folder: Path) -> Path:
    """Write `cohort.parquet` into `folder`; the table must carry its task and groups."""
    task_of(table), groups_of(table)
    path = folder / COHORT_FILE
    with written(path) as partial:
        pq.write_table(table, partial)
    return path


def write_batches(batches: Iterable[pa.RecordBatch], folder: Path, *, schema: pa.Schema) -> Path:
    """Write `cohort.parquet` as its batches come, each as a row group, so that it is never in memory as a whole.

    Args:
        batches: of this schema; the columns of `REPEATING` may be dictionary-encoded and are text in the file.
        folder: where to write.
        schema: with task and groups in its metadata.
    """
    path = folder / COHORT_FILE
    # To number other columns, or to find the lowest and highest value of a row group, takes longer than to write them.
    numbered = [*REPEATING, "labels.list.element"]
    with (
        written(path) as partial,
        pq.ParquetWriter(
            partial,
            schema,
            use_dictionary=[name for name in numbered if name.partition(".")[0] in schema.names],
            write_statistics=False,
            write_batch_size=1 << 14,
            store_schema=False,  # it would say that these columns are no text
        ) as file,
    ):
        file.add_key_value_metadata(schema.metadata)
        for batch in batches:
            file.write_batch(batch)
    return path


def read_cohort(path: Path) -> pa.Table:
    """Read the cohort from a folder that holds `cohort.parquet`, or from the file itself.

    Raises:
        CohortError: when the file is missing, is not a cohort, or lacks a column.
    """
    return _opened(path, pq.read_table)


def open_cohort(path: Path) -> pq.ParquetFile:
    """Open the same file to read it batch by batch, the columns of `REPEATING` dictionary-encoded; errors as there."""
    # Without `pre_buffer=False` pyarrow keeps all that it has read.
    return _opened(
        path, lambda file: pq.ParquetFile(file, read_dictionary=REPEATING, buffer_size=1 << 16, pre_buffer=False)
    )


def _opened(path: Path, read: Callable[[Path], Any]) -> Any:
    file = path / COHORT_FILE if path.is_dir() or path.suffix != ".parquet" else path
    if not file.is_file():
        raise CohortError(
            "The cohort is missing.", where=str(file), mend="Run `fairvlm ingest` first, or pass its folder."
        )
    try:
        found = read(file)
    except pa.ArrowInvalid as error:
        raise CohortError(
            f"This is not a Parquet file ({error}).", where=str(file), mend="Run `fairvlm ingest` again."
        ) from None
    schema = found.schema_arrow if isinstance(found, pq.ParquetFile) else found.schema
    for field in SCHEMA:
        if field.name not in schema.names:
            raise CohortError(
                "The cohort lacks a column.", where=f"{file}, column {field.name}", mend="Run `fairvlm ingest` again."
            )
    Task(**_metadata(schema, b"fairvlm.task", str(file))), _metadata(schema, b"fairvlm.groups", str(file))
    return found


def task_of(table: pa.Table, *, where: str = "") -> Task:
    """The task in the table's metadata."""
    return Task(**_metadata(table.schema, b"fairvlm.task", where))


def groups_of(table: pa.Table, *, where: str = "") -> dict[str, tuple[str, ...]]:
    """The group vocabularies in the table's metadata: attribute -> group names."""
    return {name: tuple(values) for name, values in _metadata(table.schema, b"fairvlm.groups", where).items()}


def _metadata(schema: pa.Schema, key: bytes, where: str) -> dict[str, Any]:
    found = (schema.metadata or {}).get(key)
    if found is None:
        raise CohortError(
            f"The table has no {key.decode()} in its schema metadata, so its labels and groups have no meaning.",
            where=where,
            mend="Write it with `fairvlm ingest`, or keep the metadata when you transform the table.",
        )
    return json.loads(found)


def label_matrix(table: pa.Table) -> np.ndarray:
    """Labels as float32 [n, L], NaN where unknown."""
    width = len(task_of(table).labels)
    column = table.column("labels").combine_chunks()
    lengths = column.value_lengths().to_numpy(zero_copy_only=False)
    if (lengths != width).any():
        row = int(np.flatnonzero(lengths != width)[0])
        raise CohortError(
            f"The task has {width} labels, this row has {lengths[row]}.",
            where=f"row {row}, column labels",
            mend="Run `fairvlm ingest` again.",
        )
    flat = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    return flat.reshape(len(table), width)


def group_codes(table: pa.Table, attributes: Sequence[str]) -> np.ndarray:
    """Group of each row per attribute, int64 [n, K]: the place in the vocabulary, -1 where unknown."""
    groups = groups_of(table)
    codes = np.full((len(table), len(attributes)), -1, dtype=np.int64)
    for k, attribute in enumerate(attributes):
        if attribute not in groups:
            raise CohortError(
                f'The cohort has no groups for the attribute "{attribute}".', mend=nearest(attribute, groups)
            )
        place = {name: code for code, name in enumerate(groups[attribute])}
        codes[:, k] = [place.get(value, -1) for value in table.column(attribute).to_pylist()]
    return codes


def rows_of(table: pa.Table, split: str) -> pa.Table:
    """The rows of one split, in order."""
    if split not in SPLITS:
        raise CohortError(f'There is no split "{split}".', mend=nearest(split, SPLITS))
    return table.filter(pc.equal(table.column("split"), split))


def age_group_names(edges: Sequence[float]) -> tuple[str, ...]:
    """Names of the age groups that the edges cut: (40, 60) gives 0-39, 40-59, 60+.

    >>> age_group_names((40, 60))
    ('0-39', '40-59', '60+')
    """
    starts = [0, *(int(edge) for edge in edges)]
    return (*(f"{low}-{high - 1}" for low, high in pairwise(starts)), f"{starts[-1]}+")


def age_group(age: float | None, edges: Sequence[float]) -> str | None:
    """The group an age falls in; None where the age is unknown.

    >>> age_group(60, (40, 60)), age_group(None, (40, 60))
    ('60+', None)
    """
    if age is None or age != age:
        return None
    return age_group_names(edges)[int(np.searchsorted(np.asarray(edges), age, side="right"))]

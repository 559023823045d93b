"""The predictions contract: one row per image and label.

Thresholds, metrics, report and gate read this and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from fairvlm_core.errors import PredictionsError
from fairvlm_core.files import written

PREDICTIONS_FILE = "predictions.parquet"
ATTRIBUTES = ("sex", "age_group", "race", "ethnicity", "language")
KINDS = ("binary", "multiclass", "multilabel")

SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("patient_id", pa.string()),  # what the bootstrap resamples
        pa.field("split", pa.string(), nullable=False),
        pa.field("label", pa.string(), nullable=False),
        pa.field("y_true", pa.int8()),  # 0, 1 or null (unknown)
        pa.field("y_score", pa.float32(), nullable=False),  # probability of the label
        *(pa.field(name, pa.string()) for name in ATTRIBUTES),
        pa.field("model", pa.string(), nullable=False),
        pa.field("seed", pa.int32()),
    ]
)
# `evaluate` adds this column: the decision at the fixed thresholds (argmax for multiclass).
Y_PRED = pa.field("y_pred", pa.int8())
# `predict` adds this one where the model also answered in words: what the answer says, null where it is undecided.
Y_ANSWER = pa.field("y_answer", pa.int8())
TYPES = {field.name: field.type for field in (*SCHEMA, Y_PRED, Y_ANSWER)}


@dataclass(frozen=True)
class Scores:
    """Predictions of one model on one split, in matrix form: n samples, L labels.

    Attributes:
        sample_ids, patient_ids: object [n].
        labels: names, length L.
        y_true: float64 [n, L], NaN where unknown.
        y_score: float64 [n, L].
        y_pred: float64 [n, L], NaN where not decided yet.
        groups: attribute -> object [n], None where unknown; only attributes with at least one known value.
        kind: binary | multiclass | multilabel.
        model: its name.
        y_answer: float64 [n, L], what the answers in words say, NaN where undecided; None where none were asked for.
    """

    sample_ids: np.ndarray
    patient_ids: np.ndarray
    labels: tuple[str, ...]
    y_true: np.ndarray
    y_score: np.ndarray
    y_pred: np.ndarray
    groups: dict[str, np.ndarray]
    kind: str
    model: str
    y_answer: np.ndarray | None = None


def predictions_table(
    people: pa.Table, labels: Sequence[str], y_true: np.ndarray, y_score: np.ndarray, *, name: str, seed: int
) -> pa.Table:
    """Scores of a split in the form of the contract, one row per image and label.

    Args:
        people: n rows of a cohort: sample_id, patient_id, split and the attributes.
        labels: L names.
        y_true: [n, L], NaN where unknown.
        y_score: [n, L], probabilities.
        name, seed: of the model.
    """

    def repeated(column: str) -> pa.Array:
        values = np.asarray(people.column(column).to_pylist(), dtype=object)
        return pa.array(np.repeat(values, len(labels)), pa.string())

    count = len(people) * len(labels)
    return pa.table(
        {
            **{column: repeated(column) for column in ("sample_id", "patient_id", "split")},
            "label": pa.array(list(labels) * len(people), pa.string()),
            "y_true": pa.array(y_true.reshape(-1), pa.int8(), from_pandas=True),
            "y_score": pa.array(y_score.reshape(-1), pa.float32()),
            **{column: repeated(column) for column in ATTRIBUTES},
            "model": pa.array([name] * count, pa.string()),
            "seed": pa.array([seed] * count, pa.int32()),
        }
    )


def write_predictions(table: pa.Table, path: Path, *, kind: str) -> Path:
    """Write a predictions table (`y_answer`, `y_pred` if it has them) to `path`, the task's kind in its metadata."""
    if kind not in KINDS:
        raise PredictionsError(f'A task cannot be of the kind "{kind}".')
    schema = pa.schema([*SCHEMA, *(field for field in (Y_ANSWER, Y_PRED) if field.name in table.column_names)])
    table = table.select(schema.names).cast(schema).replace_schema_metadata({"fairvlm.kind": kind})
    with written(path) as partial:
        pq.write_table(table, partial)
    return path


def read_predictions(path: Path) -> pa.Table:
    """Read predictions from a folder that holds `predictions.parquet`, or from a Parquet or CSV file.

    Optional columns that are absent become null; `sample_id`, `label`, `y_true` and `y_score` must be there. In a CSV
    file a blank cell is null; it may be gzipped, and may separate by tabs.

    Raises:
        PredictionsError: naming the file, row (in a CSV file the header is row 1, else rows count from 0) and column
            that break the contract.
    """
    file = path / PREDICTIONS_FILE if path.is_dir() else path
    if not file.is_file():
        raise PredictionsError("The predictions are missing.", where=str(file), mend="Run `fairvlm predict` first.")
    text = any(suffix.lower() in (".csv", ".tsv") for suffix in file.suffixes[-2:])
    first = 2 if text else 0  # number of the first row
    table = _typed(_read_text(file) if text else _read_parquet(file), file, first)
    for name in ("sample_id", "label", "y_true", "y_score"):
        if name not in table.column_names:
            raise PredictionsError(
                "The predictions lack a column.",
                where=f"{file}, column {name}",
                mend=f"A predictions file has the columns {', '.join(SCHEMA.names)}.",
            )
    defaults = {"split": "test", "model": "model"}
    for field in SCHEMA:
        if field.name not in table.column_names:
            table = table.append_column(field, pa.array([defaults.get(field.name)] * len(table), field.type))
    if not len(table):
        raise PredictionsError("There are no predictions.", where=str(file), mend="Give a row per image and label.")
    for name in (field.name for field in SCHEMA if not field.nullable and field.name != "y_score"):
        missing = np.flatnonzero(table.column(name).is_null().to_numpy())
        if len(missing):
            raise PredictionsError(
                f"{len(missing):,} of {len(table):,} rows have no {name}.",
                where=f"{file}, row {missing[0] + first}, column {name}",
                mend="Give every row one.",
            )
    score = table.column("y_score").to_numpy().astype(float)
    bad = np.flatnonzero(~((score >= 0) & (score <= 1)))
    if len(bad):
        raise PredictionsError(
            f"{len(bad):,} of {len(score):,} scores are not probabilities.",
            where=f"{file}, row {bad[0] + first}, column y_score",
            mend="Give a number between 0 and 1 for every row.",
        )
    for name, what in (("y_true", "A true label"), (Y_ANSWER.name, "An answer"), (Y_PRED.name, "A decision")):
        if name not in table.column_names:
            continue
        told = table.column(name).to_numpy(zero_copy_only=False).astype(float)
        bad = np.flatnonzero(~(np.isnan(told) | (told == 0) | (told == 1)))
        if len(bad):
            raise PredictionsError(
                f"{what} is neither 0, 1 nor empty.",
                where=f"{file}, row {bad[0] + first}, column {name}",
                mend="Write 1 for yes and 0 for no, and leave the cell empty where it is unknown.",
            )
    _refuse_mixed(table, file, first)
    return table


def _read_parquet(file: Path) -> pa.Table:
    try:
        return pq.read_table(file)
    except pa.ArrowInvalid as error:
        raise PredictionsError(
            f"This is not a Parquet file ({error}).", where=str(file), mend="Give a Parquet file, or one named *.csv."
        ) from None


def _read_text(file: Path) -> pa.Table:
    """A CSV file, first as text, so that a cell that is no number can be placed without showing it."""
    from pyarrow import csv

    tabs = any(suffix.lower() == ".tsv" for suffix in file.suffixes[-2:])
    as_text = csv.ConvertOptions(
        column_types=dict.fromkeys(TYPES, pa.string()), strings_can_be_null=True, null_values=[""]
    )
    try:
        return csv.read_csv(
            file, parse_options=csv.ParseOptions(delimiter="\t" if tabs else ","), convert_options=as_text
        )
    except pa.ArrowInvalid as error:
        what = str(error).split(":")[0]
        raise PredictionsError(
            f"This is not a table ({what}).", where=str(file), mend="Give every row as many cells as the header."
        ) from None


def _typed(table: pa.Table, file: Path, first: int) -> pa.Table:
    """Ids, labels and groups as text, all else as numbers, whichever way they were written."""
    for place, name in enumerate(table.column_names):
        if name not in TYPES:
            continue
        column, as_text = table.column(place), TYPES[name] == pa.string()
        of_numbers = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
        if TYPES[name] == column.type or (of_numbers and not as_text):
            continue
        try:
            made = column.cast(pa.string()) if as_text else _numbers(column, name, file, first)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            raise PredictionsError(
                f"The column {name} holds values of the type {column.type}.",
                where=f"{file}, column {name}",
                mend=f"Write {'text' if as_text else 'numbers'}.",
            ) from None
        table = table.set_column(place, name, made)
    return table


def _numbers(column: pa.ChunkedArray, name: str, file: Path, first: int) -> pa.Array | pa.ChunkedArray:
    """Numbers out of text or of true and false."""
    if pa.types.is_boolean(column.type):
        return column.cast(pa.int8())
    number = pd.to_numeric(column.cast(pa.string()).to_pandas(), errors="coerce").to_numpy(dtype=float)
    bad = np.flatnonzero(np.isnan(number) & column.is_valid().to_numpy())
    whole = TYPES[name] != pa.float32()
    if whole and not len(bad):
        bad = np.flatnonzero(~np.isnan(number) & (number != np.floor(number)))
    if len(bad):
        raise PredictionsError(
            f"A value of {name} is no {'whole ' * whole}number.",
            where=f"{file}, row {bad[0] + first}, column {name}",
            mend="Write 1 for yes and 0 for no, and leave the cell empty where it is unknown."
            if TYPES[name] == pa.int8()
            else "Write a number in every row.",
        )
    return pa.array(number, pa.int64() if whole else pa.float64(), from_pandas=True, safe=False)


def _refuse_mixed(table: pa.Table, file: Path, first: int) -> None:
    """A row that stands there twice, and a patient or an image that is in two splits."""
    frame = table.select(["sample_id", "label", "model", "seed", "split", "patient_id"]).to_pandas()
    twice = frame.duplicated(["sample_id", "label", "model", "seed", "split"]).to_numpy()
    if twice.any():
        raise PredictionsError(
            f"{int(twice.sum()):,} of {len(table):,} rows repeat an image and label of the same model.",
            where=f"{file}, row {int(np.flatnonzero(twice)[0]) + first}, column sample_id",
            mend="Keep one row per image, label and model.",
        )
    for name, who in (("patient_id", "patients"), ("sample_id", "images")):
        told = frame[frame[name].notna()].drop_duplicates(["model", "seed", name, "split"])
        leaking = told[told.duplicated(["model", "seed", name])]
        if len(leaking):
            raise PredictionsError(
                f"{leaking[name].nunique():,} of {told[name].nunique():,} {who} are in two splits, so that what was "
                "tuned is judged on them.",
                where=f"{file}, row {int(leaking.index[0]) + first}, column {name}",
                mend="Split by patient, and predict again.",
            )


def kind_of(table: pa.Table) -> str:
    """The task's kind from the metadata; without it, one label is binary and several are multilabel."""
    found = (table.schema.metadata or {}).get(b"fairvlm.kind")
    if found:
        return found.decode()
    return "binary" if len(table.column("label").unique()) == 1 else "multilabel"


def scores(table: pa.Table, split: str, *, model: str | None = None, labels: Sequence[str] | None = None) -> Scores:
    """Pivot one model's rows of one split to matrices; labels keep their order of first appearance.

    Raises:
        PredictionsError: when the split is empty, the model is ambiguous, or a sample lacks or repeats a label.
    """
    frame = table.to_pandas()
    frame = frame[frame["split"] == split]
    if model is not None:
        frame = frame[frame["model"] == model]
    if frame.empty:
        raise PredictionsError(f'There are no predictions for the split "{split}".', mend="Predict that split too.")
    models = frame["model"].unique()
    if len(models) > 1:
        raise PredictionsError(f"There are predictions of {len(models)} models; name one: {', '.join(models)}.")
    names = tuple(labels or dict.fromkeys(frame["label"]))
    ids = frame["sample_id"].drop_duplicates().to_numpy(dtype=object)
    if len(frame) != len(ids) * len(names) or frame.duplicated(["sample_id", "label"]).any():
        rows = frame["label"].value_counts()
        off = next((name for name in rows.index if rows[name] != len(ids)), names[0])
        raise PredictionsError(
            f'Each image needs exactly one row per label: of {len(ids):,} images, "{off}" has {rows[off]:,} rows.',
            where=f"split {split}, column label",
            mend="Remove repeated rows; add missing ones, with an empty y_true where the truth is unknown.",
        )
    place = {name: j for j, name in enumerate(names)}
    row = frame["sample_id"].map({name: i for i, name in enumerate(ids)}).to_numpy()
    column = frame["label"].map(place).to_numpy()

    def matrix(name: str) -> np.ndarray:
        values = np.full((len(ids), len(names)), np.nan)
        if name in frame:
            values[row, column] = frame[name].to_numpy(dtype=float, na_value=np.nan)
        return values

    first = frame.drop_duplicates("sample_id")
    groups = {}
    for attribute in ATTRIBUTES:
        values = first[attribute].astype(object)
        values = values.where(values.notna(), None).to_numpy(dtype=object)
        if any(value is not None for value in values):
            groups[attribute] = values
    patients = first["patient_id"].astype(object).where(first["patient_id"].notna(), first["sample_id"])
    return Scores(
        sample_ids=ids,
        patient_ids=patients.to_numpy(dtype=object),
        labels=names,
        y_true=matrix("y_true"),
        y_score=matrix("y_score"),
        y_pred=matrix("y_pred"),
        groups=groups,
        kind=kind_of(table),
        model=str(models[0]),
        y_answer=matrix(Y_ANSWER.name) if Y_ANSWER.name in frame else None,
    )

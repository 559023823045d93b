"""Any table with a column of image paths: CSV or TSV (also gzipped) or Parquet, with options that name its columns.

The pictures are what Pillow reads, and DICOM files of one frame. Nothing is guessed: a column that no option names is
not read, and a code that is not listed is an error.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from fairvlm_core.cohort.adapters import Release
from fairvlm_core.cohort.adapters.reading import (
    SEX_NAMES,
    WIDEST,
    Row,
    age_of,
    coded,
    count_unknown,
    found,
    inside,
    needed,
    once,
    read_rows,
    release_root,
)
from fairvlm_core.cohort.dicom import is_dicom, open_dicom
from fairvlm_core.cohort.images import open_image
from fairvlm_core.cohort.table import SEXES, SPLITS, Task, age_group, age_group_names, cohort_table
from fairvlm_core.cohort.tolerance import Tolerance
from fairvlm_core.config import check, option
from fairvlm_core.errors import CohortError, ConfigError, nearest

LABEL_CODES = {"1": 1, "yes": 1, "true": 1, "positive": 1, "0": 0, "no": 0, "false": 0, "negative": 0}
SPLIT_CODES = dict(zip(SPLITS, SPLITS, strict=True)) | {
    "training": "train", "valid": "validation", "val": "validation", "testing": "test"
}  # fmt: skip
FREE = ("race", "ethnicity", "language")  # attributes whose groups are whatever the table says
MOST_GROUPS = 50  # more different values are identifiers or free text, which must not become the names of groups
TABLES = (".csv", ".tsv", ".tab", ".txt", ".gz", ".parquet")
NEEDED = ("image", "patient", "labels")
COLUMNS = (*NEEDED, "sex", "age", *FREE, "note", "split")


@dataclass(frozen=True)
class Options:
    """What the columns are called, and what their cells mean."""

    file: str = option("", "The table, from the release's folder.")
    image: str = option("", "Column: path of the image, from the release's folder or that of `images`.")
    images: str = option("", "Folder in which the paths of the images begin.")
    suffix: str = option("", "What the paths lack at their end, for instance .png.")
    patient: str = option("", "Column: whose image it is; where each is somebody else's, the column of the image.")
    kind: str = option("binary", "What is asked.", choices=("binary", "multiclass", "multilabel"))
    labels: tuple[str, ...] = option((), "Columns of the labels; the one column of the class where kind is multiclass.")
    classes: tuple[str | int, ...] = option((), "Classes, where kind is multiclass.")
    concepts: tuple[str, ...] = option((), "A phrase for each label or class; none: their names.")
    negatives: tuple[str, ...] = option((), "A phrase for the absence of each label; none: `no` and the concept.")
    question: str = option("", "Question about {concept}, or the one about the classes.")
    prompt: str = option("A photo of {concept}", "Caption of an image that shows {concept}.")
    sex: str = option("", "Column: sex.")
    sex_codes: dict[str, Any] = option({}, "Code: female, male or null.")  # noqa: RUF009 - a factory copies it
    age: str = option("", "Column: age in years.")
    race: str = option("", "Column: race.")
    ethnicity: str = option("", "Column: ethnicity.")
    language: str = option("", "Column: language.")
    groups: dict[str, Any] = option({}, "race, ethnicity or language: its groups; else all.")  # noqa: RUF009
    note: str = option("", "Column: clinical text.")
    split: str = option("", "Column: official split.")
    split_codes: dict[str, Any] = option({}, "Code: train, validation, test or null.")  # noqa: RUF009
    modality: str = option("", "How the images were made.")
    unknown: tuple[str | int, ...] = option(("unknown", "na", "n/a", "nan"), "What means unknown, beside a blank cell.")

    def __post_init__(self) -> None:
        check(self)
        names = self.classes if self.kind == "multiclass" else self.labels
        for name, values in (("sex_codes", (*SEXES, None)), ("split_codes", (*SPLITS, None))):
            if any(value not in values for value in getattr(self, name).values()):
                raise _refusal(name, "A code has no such meaning.", f"Valid: {', '.join(values[:-1])}, null.")
        for attribute, listed in self.groups.items():
            if attribute not in FREE or not getattr(self, attribute):
                raise _refusal("groups", f'There is no column of "{attribute}".', f"Groups can be of {_shown(FREE)}.")
            if not isinstance(listed, (list, tuple)) or not listed:
                raise _refusal("groups", f"The groups of {attribute} are no list.", "List them: [group, group].")
        if self.kind == "multiclass" and len(self.classes) < 2:
            raise _refusal("classes", "The classes are missing.", "List the values that the column of the class has.")
        if self.kind != "multilabel" and len(self.labels) > 1:
            raise _refusal("labels", f"A {self.kind} task has one column of labels.", "Set kind to multilabel.")
        if len({str(name).lower() for name in names}) < len(names):
            raise _refusal("labels, ingest.options.classes", "A name is there twice.", "List each once.")
        for name in ("concepts", "negatives"):
            if names and len(getattr(self, name)) not in (0, len(names)):
                raise _refusal(name, f"There are not {len(names)} phrases.", f"Write one for each of {_shown(names)}.")
        for name in ("prompt", "question") if self.question and self.kind != "multiclass" else ("prompt",):
            if not _takes_concept(getattr(self, name)):
                raise _refusal(name, "The text has no place for the concept.", "Write {concept} there.")


def read(
    root: Path | None,
    options: Options,
    *,
    age_edges: tuple[float, ...],
    seed: int,
    tolerance: Tolerance | None = None,
) -> Release:
    """Read the table and find its images in `root`.

    Labels are 1/0, yes/no, true/false or positive/negative, sexes female/f and male/m, splits train(ing), val(id),
    validation and test(ing), all in any case; options list other codes. What is blank, or among `unknown`, is null; a
    row without a class is left out and counted, as are rows that repeat another one. Groups of race, ethnicity and
    language are the values that occur, sorted, unless `groups` lists them. Nothing here is random, so `seed` has no
    effect.

    Args:
        root: the folder in which table and images lie.
        options: `file`, `image`, `patient`, `labels` and, for several classes, `classes` have to be given.

    Raises:
        ConfigError: an option is missing or names no column; it says which columns there are.
        CohortError: naming the file, row and column that cannot be what it is. Row 1 is the header; a Parquet file is
            counted as if it had one.
    """
    place = release_root(root, "The table", "Pass the folder that holds the table and its images.")
    counted: Counter[str] = Counter()
    bad = tolerance or Tolerance()
    table = _table(place, options)
    columns = _columns(table, options)
    begin = found(place, [options.images], mend="Name a folder.", folder=True) if options.images else place
    readers = _readers(columns, options)

    read: list[dict[str, Any]] = []
    for cells in _rows(table, tuple(dict.fromkeys(name for names in columns.values() for name in names))):
        with bad.skipping():
            where = cells.where(columns["image"][0])
            name = inside(begin, needed(cells, columns["image"][0]) + options.suffix, where)
            key = name if begin == place else inside(place, begin / name, where)
            if not os.path.isfile(begin / name):
                raise CohortError("A listed image is missing.", where=where, mend="Put it there, or remove the row.")
            row = {attribute: reader(cells) for attribute, reader in readers.items()}
            if row["labels"] is None:
                counted["excluded_without_class"] += 1
            else:
                read.append({"sample_id": key, "image": key, **row, "where": cells.where()})
    rows = once(read, counted)
    if not rows:
        raise CohortError("The table has no rows that can be used.", where=str(table), mend="Check its classes.")
    _refuse_leaks(rows)
    for row in rows:
        row.update(age_group=age_group(row["age"], age_edges), modality=options.modality or None, source="table")
    groups = _groups(rows, columns, options, age_edges, table)
    count_unknown(rows, counted)
    places = {row["image"]: row.pop("where") for row in rows}

    def load(key: str) -> np.ndarray | Image.Image:
        file = place / key
        return (open_dicom if is_dicom(file) else open_image)(file, where=places[key])

    return Release(cohort_table(rows, task=_task(options), groups=groups), load, dict(counted))


def _refusal(name: str, what: str, mend: str) -> ConfigError:
    return ConfigError(what, where=f"ingest.options.{name}", mend=mend)


def _shown(names: Iterable[object]) -> str:
    return ", ".join(str(name) for name in names)


def _takes_concept(text: str) -> bool:
    try:
        return "\0" in text.format(concept="\0")
    except (KeyError, IndexError, ValueError, AttributeError):
        return False


def _task(options: Options) -> Task:
    several = options.kind == "multiclass"
    names = tuple(str(name) for name in (options.classes if several else options.labels))
    concepts = options.concepts or tuple(name.replace("_", " ") for name in names)
    return Task(
        kind=options.kind,  # type: ignore[arg-type]
        labels=names,
        concepts=concepts,
        negatives=() if several else options.negatives or tuple(f"no {concept}" for concept in concepts),
        question=options.question or ("What does this image show?" if several else "Does this image show {concept}?"),
        prompt=options.prompt,
    )


def _table(root: Path, options: Options) -> Path:
    if not options.file:
        there = sorted(path.name for path in root.iterdir() if path.suffix.lower() in TABLES)
        raise _refusal("file", "The table is not named.", f"Tables in {root}: {_shown(there) or 'none'}.")
    return found(root, [options.file], mend="Name the table as it lies in the release's folder.")


def _columns(table: Path, options: Options) -> dict[str, list[str]]:
    """Option -> the columns that it names, as the table writes them."""
    if _is_parquet(table):
        with _parquet(table) as parquet:
            there = parquet.schema_arrow.names
    else:
        first = next(read_rows(table, (), mend="Name another table."), None)
        if first is None:
            raise CohortError("The table has no rows.", where=str(table), mend="Name another table.")
        there = list(first.cells)
    written = {name.lower(): name for name in there}
    columns: dict[str, list[str]] = {}
    for role in COLUMNS:
        given = getattr(options, role)
        if role in NEEDED and not given:
            raise _refusal(role, f"No column is named for {role}.", f"Columns of {table.name}: {_shown(there)}.")
        for name in given if isinstance(given, tuple) else (given,) if given else ():
            if name.lower() not in written:
                raise _refusal(role, f'{table.name} has no column "{name}".', nearest(name, there))
            columns.setdefault(role, []).append(written[name.lower()])
    return columns


def _readers(columns: Mapping[str, Sequence[str]], options: Options) -> dict[str, Callable[[Row], Any]]:
    """Attribute of the cohort -> what reads it from a row; null where no column is named."""
    unknown: dict[str, Any] = dict.fromkeys(("", *_codes(dict.fromkeys(options.unknown))))

    def of(role: str, reader: Callable[[Row, str], Any]) -> Callable[[Row], Any]:
        names = columns.get(role)
        return (lambda cells: reader(cells, names[0])) if names else (lambda cells: None)

    def code(codes: Mapping[Any, Any], valid: Iterable[object]) -> Callable[[Row, str], Any]:
        return partial(coded, codes=unknown | _codes(codes), say=f"one of {_shown(valid)}, or leave it blank")

    def age(cells: Row, name: str) -> float | None:
        return None if cells[name].lower() in unknown else age_of(cells, name, unknown=())

    def group(cells: Row, name: str) -> str | None:
        return None if cells[name].lower() in unknown else cells[name]

    label = code(LABEL_CODES, LABEL_CODES)
    chosen = of("labels", code({name: k for k, name in enumerate(options.classes)}, options.classes))

    def labels(cells: Row) -> list[int | None] | None:
        if options.kind != "multiclass":
            return [label(cells, name) for name in columns["labels"]]
        one = chosen(cells)
        return None if one is None else [int(k == one) for k in range(len(options.classes))]

    listed = {name: code({value: str(value) for value in values}, values) for name, values in options.groups.items()}
    sexes, splits = options.sex_codes or SEX_NAMES, options.split_codes or SPLIT_CODES
    return {
        "patient_id": of("patient", needed),
        "note": of("note", lambda cells, name: cells[name] or None),
        "labels": labels,
        "sex": of("sex", code(sexes, (name for name in sexes if name != ""))),
        "age": of("age", age),
        **{name: of(name, listed.get(name, group)) for name in FREE},
        "split": of("split", code(splits, splits)),
    }


def _codes(codes: Mapping[Any, Any]) -> dict[str, Any]:
    """Codes in lower case, a whole number also as pandas writes it in a column with blanks: 1.0."""
    plain = {str(code).strip().lower(): meaning for code, meaning in codes.items()}
    return plain | {f"{code}.0": meaning for code, meaning in plain.items() if code.lstrip("-").isdigit()}


def _groups(
    rows: Sequence[dict[str, Any]],
    columns: Mapping[str, Sequence[str]],
    options: Options,
    age_edges: tuple[float, ...],
    table: Path,
) -> dict[str, Sequence[str]]:
    """The vocabularies of what is published; what differs in case alone becomes one group."""
    groups: dict[str, Sequence[str]] = {}
    if "sex" in columns:
        groups["sex"] = SEXES
    if "age" in columns:
        groups["age_group"] = age_group_names(age_edges)
    for attribute in (name for name in FREE if name in columns):
        if attribute in options.groups:
            groups[attribute] = [str(name) for name in options.groups[attribute]]
            continue
        spelled: dict[str, str] = {}
        for value in sorted({row[attribute] for row in rows if row[attribute] is not None}):
            spelled.setdefault(value.lower(), value)
        if len(spelled) > MOST_GROUPS:
            raise CohortError(
                f"The column has more than {MOST_GROUPS} different values.",
                where=f"{table}, column {columns[attribute][0]}",
                mend=f"Name another column for {attribute}, or list its groups in ingest.options.groups.",
            )
        for row in rows:
            row[attribute] = row[attribute] and spelled[row[attribute].lower()]
        groups[attribute] = sorted(spelled.values())
    return groups


def _refuse_leaks(rows: Iterable[Mapping[str, Any]]) -> None:
    """No patient may train and be tested."""
    first: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        if row["split"] is None:
            continue
        other = first.setdefault(row["patient_id"], row)
        if other["split"] != row["split"]:
            raise CohortError(
                "A patient is in two splits, so training leaks into evaluation.",
                where=f"{other['where']} and {row['where'].rsplit(', ', 1)[-1]}",
                mend="Give all rows of a patient the same split, or leave their split empty.",
            )


def _rows(table: Path, columns: tuple[str, ...]) -> Iterator[Row]:
    """The rows of a text or Parquet table, with these columns."""
    if not _is_parquet(table):
        yield from read_rows(table, columns, mend="Name another table.")
        return
    with _parquet(table) as parquet:
        number = 1
        for batch in parquet.iter_batches(columns=list(columns)):
            for cells in zip(*(_texts(batch.column(name), f"{table}, column {name}") for name in columns), strict=True):
                number += 1
                yield Row(table, number, dict(zip(columns, cells, strict=True)))


def _is_parquet(table: Path) -> bool:
    with table.open("rb") as stream:
        return stream.read(4) == b"PAR1"


@contextmanager
def _parquet(table: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(table) as parquet:
            yield parquet
    except (pa.ArrowException, OSError) as error:
        raise CohortError(
            f"The Parquet file cannot be read ({type(error).__name__}).", where=str(table), mend="Write it again."
        ) from None


def _texts(values: pa.Array, place: str) -> list[str]:
    """A column as text, "" where it is null: 1.0 as 1, true as true."""
    try:
        texts = pc.fill_null(values.cast(pa.string()), "")
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise CohortError(
            f"A column of the type {values.type} has no cells of text.", where=place, mend="Write one value per cell."
        ) from None
    if (pc.max(pc.utf8_length(texts)).as_py() or 0) > WIDEST:
        raise CohortError(f"A cell has more than {WIDEST} characters.", where=place, mend="Check the column.")
    if pa.types.is_floating(values.type):
        texts = pc.replace_substring_regex(texts, "^nan$", "")
    return [text.strip() for text in texts.to_pylist()]

"""What adapters share: finding files, reading tables as text, and cells as sexes, ages and numbers.

Every mistake is one `CohortError` that names the file, the row (the header being row 1) and the column.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, TextIO

from fairvlm_core.cohort.table import SEXES
from fairvlm_core.errors import CohortError, ConfigError

OLDEST = 120  # years
WIDEST = 2**20  # characters of a cell: a clinical report has some thousand
LONGEST = 2**26  # characters of a line
# A table of 380,000 rows unpacks to 60 MB; one that unpacks to more than this is a bomb or a mistake.
LARGEST = 8 * 2**30
PICTURES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp")


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        table: the file.
        number: the line's number as an editor or a spreadsheet shows it, the header being 1.
        cells: by column name, stripped.
    """

    table: Path
    number: int
    cells: Mapping[str, str]

    def __getitem__(self, column: str) -> str:
        return self.cells[column]

    def where(self, column: str = "") -> str:
        """The place, for an error; never the cell's content."""
        return f"{self.table}, row {self.number}" + (f", column {column}" if column else "")


def release_root(root: Path | None, name: str, mend: str) -> Path:
    """The folder of a release.

    Raises:
        ConfigError: none is given.
        CohortError: it is no folder.
    """
    if root is None:
        raise ConfigError(f"{name} has to be read from somewhere.", where="--root", mend=mend)
    if not root.is_dir():
        raise CohortError("The release is not a folder.", where=str(root), mend=mend)
    return root


def found(root: Path, names: Sequence[str], *, mend: str, folder: bool = False) -> Path:
    """The first of these names, in any case, that is there.

    Raises:
        CohortError: none is.
    """
    path = find(root, names, folder=folder)
    if path is None:
        other = f" (or {', '.join(names[1:])})" if names[1:] else ""
        raise CohortError(
            f"The release lacks the {'folder' if folder else 'table'} {names[0]}{other}.",
            where=str(root / names[0]),
            mend=mend,
        )
    return path


def find(root: Path, names: Sequence[str], *, folder: bool = False) -> Path | None:
    """As `found`, but None where none is there. A name may have folders in front, separated by a slash."""
    for name in names:
        places = [root]
        for part in PurePosixPath(name).parts:
            places = [
                entry
                for place in places
                if place.is_dir()
                for entry in sorted(place.iterdir())
                if entry.name.lower() == part.lower()
            ]
        for path in places:
            if path.is_dir() == folder:
                return path
    return None


def read_rows(
    table: Path, columns: Sequence[str], *, mend: str, also: Mapping[str, Sequence[str]] | None = None
) -> Iterator[Row]:
    """The rows of a CSV or TSV file, plain or gzipped, as text.

    Args:
        columns: that must be there, in any case; the rows have them by these names, other columns by theirs.
        mend: where to get the right file.
        also: column -> other names under which it is published.

    Raises:
        CohortError: the file is empty, is no text, lacks a column, has a row of another length or a cell that is too
            long.
    """
    csv.field_size_limit(WIDEST)
    other = {name.lower(): column for column in columns for name in (*(also or {}).get(column, ()), column)}
    with _opened(table) as lines:
        first = _first_line(lines, table)
        rest = _bounded_lines(lines, table)
        reader = csv.reader(chain([first] if first else [], rest), delimiter="\t" if "\t" in first else ",")
        header = [other.get(name.strip().lower(), name.strip()) for name in _next(reader, table) or ()]
        if not header:
            raise CohortError("The table is empty.", where=str(table), mend=mend)
        for column in columns:
            if column not in header:
                raise CohortError(
                    f'The table lacks the column "{column}".', where=f"{table}, column {column}", mend=mend
                )
        twice = [name for name, count in Counter(header).items() if count > 1 and name in columns]
        if twice:
            raise CohortError(
                f'The table has the column "{twice[0]}" twice.', where=f"{table}, column {twice[0]}", mend=mend
            )
        while (cells := _next(reader, table)) is not None:
            if not any(cells):
                continue
            if len(cells) != len(header):
                raise CohortError(
                    f"A row has {len(cells)} cells, the header {len(header)}.",
                    where=f"{table}, row {reader.line_num}",
                    mend="Mend the row.",
                )
            yield Row(table, reader.line_num, {name: cell.strip() for name, cell in zip(header, cells, strict=True)})


@contextmanager
def _opened(table: Path) -> Iterator[TextIO]:
    """The table as text; a byte order mark, as Excel and Dataverse write it, is no part of it."""
    try:
        with table.open("rb") as plain:
            packed = plain.read(2) == b"\x1f\x8b"
            plain.seek(0)
            content = gzip.GzipFile(fileobj=plain) if packed else plain
            bounded = io.BufferedReader(_Bounded(content, table))
            with io.TextIOWrapper(bounded, encoding="utf-8-sig", newline="") as lines:
                yield lines
    except FileNotFoundError:
        raise CohortError("The table is missing.", where=str(table), mend="Unpack the release again.") from None


class _Bounded(io.RawIOBase):
    """A stream that ends with an error where a table would be too large to be one."""

    def __init__(self, stream: Any, table: Path) -> None:
        self.stream, self.table, self.left = stream, table, LARGEST

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        chunk = self.stream.read(len(buffer))
        self.left -= len(chunk)
        if self.left < 0:
            raise CohortError(
                f"The table unpacks to more than {LARGEST // 2**30} GB.",
                where=str(self.table),
                mend="Check that it is what it should be.",
            )
        buffer[: len(chunk)] = chunk
        return len(chunk)


def _first_line(lines: TextIO, table: Path) -> str:
    with _readable(table, "row 1"):
        return next(_bounded_lines(lines, table), "")


def _bounded_lines(lines: TextIO, table: Path) -> Iterator[str]:
    """The lines, none of which may fill the memory before the length of its cells is seen."""
    while line := lines.readline(LONGEST):
        if len(line) == LONGEST:
            raise CohortError(
                f"A line has more than {LONGEST} characters.",
                where=str(table),
                mend="Check that it is what it should be.",
            )
        yield line


def _next(reader: Any, table: Path) -> list[str] | None:
    with _readable(table, f"after row {reader.line_num}"):
        return next(reader, None)


@contextmanager
def _readable(table: Path, place: str) -> Iterator[None]:
    """Say in one sentence why a table cannot be read on."""
    try:
        yield
    except UnicodeDecodeError:
        what, mend = "The table is not text.", "Save it as UTF-8, comma or tab separated."
    except (gzip.BadGzipFile, EOFError, zlib.error):
        what, mend = "The table cannot be unpacked.", "Download it again."
    except csv.Error as error:
        what, mend = f"The table cannot be read ({error}).", "Mend the row, or download the table again."
    else:
        return
    raise CohortError(what, where=f"{table}, {place}", mend=mend)


def inside(root: Path, name: str | Path, where: str) -> str:
    """The name of a file relative to the release, in which it must lie; it becomes the image's key.

    Args:
        name: relative to the release, or the path of a file that was found there.

    Raises:
        CohortError: the name is absolute, leads out of the release, by itself or through a link, or is no name.
    """
    pure = PurePosixPath(name.relative_to(root) if isinstance(name, Path) else name.replace("\\", "/"))
    if pure.is_absolute() or ".." in pure.parts or ":" in (pure.parts or ("",))[0]:
        raise CohortError(
            "The path of an image leads out of the release.", where=where, mend="Name it relative to the release."
        )
    path = root / pure
    try:
        leads_away = path.is_symlink() or not _resolved(path.parent).is_relative_to(_resolved(root))
    except (OSError, ValueError):  # too long, or with a character that no name has
        raise CohortError(
            "The path of an image cannot be that of a file.", where=where, mend="Correct it, or remove the row."
        ) from None
    if leads_away:
        raise CohortError(
            "The image is a link, or lies behind one that leads out of the release.",
            where=where,
            mend="Put the file itself there.",
        )
    return pure.as_posix()


@lru_cache(maxsize=2**16)
def _resolved(folder: Path) -> Path:
    """A release has many images in few folders, or hundreds of thousands of folders: each is looked at once."""
    return folder.resolve()


def coded(row: Row, column: str, codes: Mapping[str, Any], *, say: str) -> Any:
    """What a cell means, in any case.

    Args:
        codes: lower-case text -> meaning; "" is the blank cell.
        say: what the user may write, for the error.

    Raises:
        CohortError: the cell has no meaning.
    """
    value = row[column].lower()
    if value not in codes:
        raise CohortError(
            f"A value of the column {column} is not known.", where=row.where(column), mend=f"Write {say}."
        )
    return codes[value]


FEMALE, MALE = SEXES
SEX_NAMES: dict[str, str | None] = {
    FEMALE: FEMALE, "f": FEMALE, MALE: MALE, "m": MALE, "": None, "unknown": None,
}  # fmt: skip


def sex_of(row: Row, column: str = "sex", codes: Mapping[str, str | None] = SEX_NAMES) -> str | None:
    """A sex, None where unknown; `codes` says how it is written."""
    return coded(row, column, codes, say=f"one of {', '.join(name for name in codes if name)}, or leave it blank")


def age_of(row: Row, column: str = "age", *, unknown: Iterable[float] = (0,)) -> float | None:
    """Years, None where the cell is blank or one of the numbers that mean unknown.

    Raises:
        CohortError: no number from 0 to 120.
    """
    value = _number(row[column])
    if value is None or value in tuple(unknown):
        return None
    if not 0 <= value <= OLDEST:
        raise CohortError(
            "An age cannot be read.",
            where=row.where(column),
            mend=f"Write years from 0 to {OLDEST}, or leave it blank.",
        )
    return value


def number_of(row: Row, column: str) -> float | None:
    """A finite number, None where the cell is blank.

    Raises:
        CohortError: it is no number.
    """
    value = _number(row[column])
    if value is not None and not math.isfinite(value):
        raise CohortError(
            f"A value of the column {column} is no number.",
            where=row.where(column),
            mend="Write a number, or leave it blank.",
        )
    return value


def _number(cell: str) -> float | None:
    """NaN where it is no number."""
    try:
        return float(cell) if cell else None
    except ValueError:
        return math.nan


def needed(row: Row, column: str) -> str:
    """A cell that may not be blank."""
    if not row[column]:
        raise CohortError("An identifier is blank.", where=row.where(column), mend="Fill it in.")
    return row[column]


def once(rows: Iterable[dict[str, Any]], counted: Counter[str], *, key: str = "sample_id") -> list[dict[str, Any]]:
    """Rows that repeat another one are left out and counted (`excluded_repeated_row`); `where` takes no part.

    Raises:
        CohortError: two rows of the same key differ.
    """
    kept: dict[str, dict[str, Any]] = {}
    for row in rows:
        first = kept.setdefault(row[key], row)
        if first is row:
            continue
        if any(first[name] != value for name, value in row.items() if name != "where"):
            raise CohortError(
                "Two rows describe the same image differently.",
                where=f"{row['where']} and {first['where'].rsplit(', ', 1)[-1]}",
                mend="Keep the right one.",
            )
        counted["excluded_repeated_row"] += 1
    return list(kept.values())


def count_unknown(rows: Sequence[Mapping[str, Any]], counted: Counter[str]) -> None:
    """Count what balancing and judging over sex and age cannot use."""
    counted["without_sex"] = sum(row["sex"] is None for row in rows)
    counted["without_age"] = sum(row["age"] is None for row in rows)
    counted["without_sex_or_age"] = sum(row["sex"] is None or row["age"] is None for row in rows)

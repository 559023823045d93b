"""PTB-XL, as published on PhysioNet (doi:10.13026/x4td-x982; Wagner et al. 2020, doi:10.1038/s41597-020-0495-6).

    ptbxl_database.csv  scp_statements.csv
    records100/00000/00001_lr.{dat,hea}    100 Hz
    records500/00000/00001_hr.{dat,hea}    500 Hz

One of the two folders of recordings is enough. A recording is a signal: `sheets` draws it as a sheet of paper, and that
is the image. The folds are the official ones of Strodthoff et al. 2021 (doi:10.1109/JBHI.2020.3022989): 1 to 8 train, 9
validation, 10 test, by patient.
"""

from __future__ import annotations

import ast
import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fairvlm_core.cohort.adapters import Release
from fairvlm_core.cohort.adapters.reading import (
    FEMALE,
    MALE,
    Row,
    age_of,
    coded,
    count_unknown,
    found,
    inside,
    needed,
    number_of,
    once,
    read_rows,
    release_root,
    sex_of,
)
from fairvlm_core.cohort.sheets import LEADS, SECONDS, sheet
from fairvlm_core.cohort.table import SEXES, Task, age_group, age_group_names, cohort_table
from fairvlm_core.cohort.tolerance import Tolerance
from fairvlm_core.config import check, option
from fairvlm_core.errors import CohortError

# diagnostic_class -> the phrase for its presence, the phrase for its absence (Wagner et al. 2020, table 5).
SUPERCLASSES = {
    "NORM": ("normal findings", "abnormal findings"),
    "MI": ("myocardial infarction", "no myocardial infarction"),
    "STTC": ("ST or T wave changes", "no ST or T wave changes"),
    "CD": ("a conduction disturbance", "no conduction disturbance"),
    "HYP": ("hypertrophy", "no hypertrophy"),
}
TASK = Task(
    kind="multilabel",
    labels=tuple(SUPERCLASSES),
    concepts=tuple(presence for presence, _ in SUPERCLASSES.values()),
    negatives=tuple(absence for _, absence in SUPERCLASSES.values()),
    question="Does this electrocardiogram show {concept}?",
    prompt="An electrocardiogram with {concept}",
)
DATABASE, STATEMENTS = "ptbxl_database.csv", "scp_statements.csv"
COLUMNS = ("ecg_id", "patient_id", "age", "sex", "report", "scp_codes", "strat_fold")
FILE_COLUMN = {100: "filename_lr", 500: "filename_hr"}
# Wagner et al. 2020, table 2. Published code often has it the other way round.
SEX_CODES = {"0": MALE, "0.0": MALE, "1": FEMALE, "1.0": FEMALE, "": None}
# Version 1.0.2 and later write 300 for every age over 89. It becomes 90, where other releases top-code.
OVER_89, TOP_CODED = 300, 90.0
FOLDS = {str(fold): "train" for fold in range(1, 9)} | {"9": "validation", "10": "test"}
PASS = "Pass the folder that holds ptbxl_database.csv and records100 or records500."
TAKE = "Download the release from https://physionet.org/content/ptb-xl again."
LONGEST_HEADER = 2**16  # bytes; a header has some 700


@dataclass(frozen=True)
class Options:
    """Which recordings are read, what counts as a diagnosis, and how a recording is drawn."""

    sampling: str | int = option(
        "auto",
        "Samples per second: 100, 500, or those that are there (100 before 500).",
        choices=("auto", "100", "500"),
    )
    minimum_likelihood: float = option(
        0.0,
        "A superclass that is stated with a likelihood below this (in percent) is uncertain; 0 means that none was "
        "given, so that at 0 every statement counts, as in the published benchmark.",
        low=0,
        high=100,
    )
    notes: bool = option(True, "Read the reports, which are German for the most part.")
    grid: bool = option(True, "Draw the lines of the paper.")

    def __post_init__(self) -> None:
        object.__setattr__(self, "sampling", str(self.sampling))
        check(self)


def read(
    root: Path | None,
    options: Options,
    *,
    age_edges: tuple[float, ...],
    seed: int,
    tolerance: Tolerance | None = None,
) -> Release:
    """Read the release in `root`; every row has its official split.

    Recordings without a diagnostic superclass, which state only a rhythm or a form, are left out and counted, as in the
    published benchmark: their diagnosis is unknown, not absent. Nothing here is random, so `seed` has no effect.

    Raises:
        CohortError: naming the file, row and column that is missing or cannot be what it is.
    """
    place = release_root(root, "PTB-XL", PASS)
    rate = _rate(place, options)
    bad, counted = tolerance or Tolerance(), Counter({"excluded_without_superclass": 0})
    superclass_of = _superclasses(found(place, [STATEMENTS], mend=PASS))
    files = _files(place, f"records{rate}")
    listed: set[str] = set()
    split_of: dict[str, str] = {}
    read: list[dict[str, Any]] = []
    for cells in read_rows(found(place, [DATABASE], mend=PASS), (*COLUMNS, FILE_COLUMN[rate]), mend=TAKE):
        with bad.skipping():
            listed.add(cells[FILE_COLUMN[rate]])
            row = _row(cells, rate, place, files, superclass_of, options, age_edges)
            if 1 not in row["labels"]:
                counted["excluded_without_superclass"] += 1
                continue
            if split_of.setdefault(row["patient_id"], row["split"]) != row["split"]:
                raise CohortError(
                    "A patient is in two splits.",
                    where=cells.where("strat_fold"),
                    mend="Mend the folds, or remove the row.",
                )
            read.append(row)
    rows = once(once(read, counted), counted, key="image")
    if not rows:
        raise CohortError("No row of the table has a recording to read.", where=str(place / DATABASE), mend=TAKE)

    counted["excluded_unlisted_recording"] = sum(
        name.endswith(".hea") and name.removesuffix(".hea") not in listed for name in files
    )
    counted["without_certain_labels"] = sum(None in row["labels"] for row in rows)
    counted["without_exact_age"] = sum(row.pop("over_89") for row in rows)
    count_unknown(rows, counted)
    where = {row["image"]: row.pop("where") for row in rows}

    def load(key: str) -> np.ndarray:
        file = place / key
        signal, leads = read_recording(file, rate, where=where[key])
        return sheet(signal, leads, rate, grid=options.grid, where=f"{file} ({where[key]})")

    groups = {"sex": SEXES, "age_group": age_group_names(age_edges)}
    return Release(cohort_table(rows, task=TASK, groups=groups), load, dict(counted))


def _rate(root: Path, options: Options) -> int:
    """Samples per second of the recordings to read."""
    rates = [rate for rate in FILE_COLUMN if options.sampling in ("auto", str(rate))]
    there = [rate for rate in rates if (root / f"records{rate}").is_dir()]
    if not there:
        names = " or ".join(f"records{rate}" for rate in rates)
        raise CohortError(f"The release lacks the folder {names}.", where=str(root), mend=PASS)
    return there[0]


def _files(root: Path, folder: str) -> set[str]:
    """The files below a folder, relative to the root."""
    return {
        f"{place}/{name}"
        for path, _, names in os.walk(root / folder)
        for place in (Path(path).relative_to(root).as_posix(),)
        for name in names
    }


def _superclasses(table: Path) -> dict[str, str | None]:
    """Statement -> its diagnostic superclass, None where it is about rhythm or form only."""
    rows = read_rows(table, ("statement", "diagnostic", "diagnostic_class"), mend=TAKE, also={"statement": ("",)})
    codes = {name.lower(): name for name in SUPERCLASSES}
    say = f"one of {', '.join(SUPERCLASSES)}"
    return {
        needed(cells, "statement"): coded(cells, "diagnostic_class", codes, say=say)
        if number_of(cells, "diagnostic") == 1
        else None
        for cells in rows
    }


def _row(
    cells: Row,
    rate: int,
    root: Path,
    files: set[str],
    superclass_of: Mapping[str, str | None],
    options: Options,
    age_edges: tuple[float, ...],
) -> dict[str, Any]:
    """A row of the table as a row of the cohort, with `where` and whether the age was over 89."""
    column = FILE_COLUMN[rate]
    where, name = cells.where(column), needed(cells, column)
    image, header = (inside(root, f"{name}{suffix}", where) for suffix in (".dat", ".hea"))
    if image not in files or header not in files:
        raise CohortError(
            "A listed recording is missing.", where=where, mend="Download the whole release, or remove the row."
        )
    over_89 = number_of(cells, "age") == OVER_89
    age = TOP_CODED if over_89 else age_of(cells, unknown=())
    return {
        "sample_id": str(_whole(cells, "ecg_id")),
        "patient_id": str(_whole(cells, "patient_id")),
        "image": image,
        "modality": "electrocardiogram",
        "note": (cells["report"] or None) if options.notes else None,
        "labels": _labels(cells, superclass_of, options.minimum_likelihood),
        "sex": sex_of(cells, codes=SEX_CODES),
        "age": age,
        "age_group": age_group(age, age_edges),
        "split": coded(cells, "strat_fold", FOLDS, say="a fold from 1 to 10"),
        "source": "ptbxl",
        "where": cells.where(),
        "over_89": over_89,
    }


def _whole(cells: Row, column: str) -> int:
    """An identifier; the table has some as 15709.0."""
    value = number_of(cells, column)
    if value is None or value != int(value):
        raise CohortError("An identifier is no whole number.", where=cells.where(column), mend="Write it as published.")
    return int(value)


def _labels(cells: Row, superclass_of: Mapping[str, str | None], minimum: float) -> list[int | None]:
    """1 where a statement of the superclass reaches the minimum, None where one is made but does not, 0 elsewhere."""
    where = cells.where("scp_codes")
    try:
        stated = ast.literal_eval(cells["scp_codes"])
        likelihoods = {str(code): float(likelihood) for code, likelihood in stated.items()}
    except (ValueError, SyntaxError, TypeError, AttributeError, OverflowError, MemoryError, RecursionError):
        likelihoods = {"": math.nan}
    if not all(0 <= likelihood <= 100 for likelihood in likelihoods.values()):
        raise CohortError(
            "The statements of a recording cannot be read.",
            where=where,
            mend="Write them as published, like {'NORM': 100.0, 'SR': 0.0}.",
        )
    best: dict[str | None, float] = {}
    for code, likelihood in likelihoods.items():
        if code not in superclass_of:
            raise CohortError(
                f"A statement of a recording is not in {STATEMENTS}.",
                where=where,
                mend="Take both tables from the same version of the release.",
            )
        superclass = superclass_of[code]
        best[superclass] = max(likelihood, best.get(superclass, 0))
    return [(1 if best[name] >= minimum else None) if name in best else 0 for name in SUPERCLASSES]


def read_recording(file: Path, rate: int, *, where: str) -> tuple[np.ndarray, list[str]]:
    """Read a recording.

    Args:
        file: its samples, `*.dat`; the header lies beside it.
        rate: samples per second, which the header must confirm.
        where: the table and row that list it, for the error.

    Returns:
        mV, float64 [10 * rate, 12], NaN where a sample is missing; and the name of each lead, in the file's order.

    Raises:
        CohortError: when a file is missing, damaged or truncated, or is no recording of 10 s and 12 leads in mV.
    """
    import wfdb

    again = "Download that recording again, both of its files, or remove the row."
    place = f"{file} ({where})"
    try:
        _check_header(file, rate, where=f"{file.with_suffix('.hea')} ({where})", mend=again)
        record = wfdb.rdrecord(str(file.with_suffix("")))
    except FileNotFoundError:
        raise CohortError("A recording is missing.", where=place, mend=again) from None
    # wfdb reports damage by all of these.
    except (OSError, ValueError, LookupError, TypeError, AttributeError, MemoryError) as error:
        raise CohortError(f"The recording cannot be read ({type(error).__name__}).", where=place, mend=again) from None
    if any(unit != "mV" for unit in record.units):
        raise CohortError("The unit of a recording is not mV.", where=place, mend=again)
    return record.p_signal, record.sig_name


def _check_header(file: Path, rate: int, *, where: str, mend: str) -> None:
    """Look before wfdb leaps: it opens whatever files a header names, as long as the header says they are."""
    with file.with_suffix(".hea").open("rb") as stream:
        text = stream.read(LONGEST_HEADER).decode("ascii", errors="replace")
    lines = [line.split() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    expected = [file.stem, str(len(LEADS)), str(rate), str(SECONDS * rate)]
    if not lines or lines[0][: len(expected)] != expected or {line[0] for line in lines[1:]} != {file.name}:
        raise CohortError(
            f"The header does not describe {SECONDS} s of {len(LEADS)} leads at {rate} Hz in {file.name}.",
            where=where,
            mend=mend,
        )

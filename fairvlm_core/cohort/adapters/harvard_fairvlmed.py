"""Harvard-FairVLMed: fundus images with clinical notes, as published with FairCLIP (Luo et al., CVPR 2024).

    Training/  Validation/  Test/ (or Testing/)   data_00001.npz and, where published, slo_fundus_00001.jpg
    data_summary.csv  gpt-4_summarized_notes.csv (or gpt4_...)   both sometimes in ReadMe/

and older: data/data_00001.npz  split_files.csv (filename, file_type: train | val | test). Names may be in any case, and
folders may be nested. Each file is a patient. Notes often state diagnosis, age and sex: they are for training, and
evaluation never reads them.
"""

from __future__ import annotations

import math
import os
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fairvlm_core.cohort.adapters import Release
from fairvlm_core.cohort.adapters.generated import ETHNICITIES, LANGUAGES, RACES, TASK
from fairvlm_core.cohort.adapters.reading import (
    OLDEST,
    Row,
    age_of,
    coded,
    count_unknown,
    find,
    inside,
    once,
    read_rows,
    release_root,
    sex_of,
)
from fairvlm_core.cohort.images import open_image
from fairvlm_core.cohort.table import SEXES, age_group, age_group_names, cohort_table
from fairvlm_core.cohort.tolerance import Tolerance
from fairvlm_core.config import check, option
from fairvlm_core.errors import CohortError

ARRAYS = re.compile(r"data_(\d+)(\.npz)?", re.IGNORECASE)
PICTURE = re.compile(r"slo_fundus_(\d+)\.jpe?g", re.IGNORECASE)
SPLIT_NAMES = {
    "training": "train", "train": "train", "validation": "validation", "val": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip
SPLITS = "training, validation or test"
SUMMARY = "data_summary.csv"
COLUMNS = ("filename", "age", "gender", "race", "ethnicity", "language", "glaucoma")
NOTES = ("gpt-4_summarized_notes.csv", "gpt4_summarized_notes.csv")
SPLIT_FILES = "split_files.csv"
TEXTLESS = f"Put {NOTES[0]} there, or set ingest.options.notes to none (note: the texts in the npz files)."
UNPACK = "Unpack the release again; github.com/Harvard-Ophthalmology-AI-Lab/FairCLIP tells where it is."

VOCABULARIES = {"race": RACES, "ethnicity": ETHNICITIES, "language": LANGUAGES}
IN_TABLE: dict[str, dict[str, str | None]] = {
    name: {"": None, "unknown": None, **{value: value for value in values}} for name, values in VOCABULARIES.items()
}
IN_TABLE["language"]["others"] = "other"
# What is known of a patient -> how the npz files call it, those of old too, and what the codes mean. -1 is unknown: the
# publishers document it for two of these, and their code tests all four for it.
MEMBERS: dict[str, tuple[tuple[str, ...], dict[float, Any]]] = {
    "sex": (("gender",), {-1: None, **dict(enumerate(SEXES))}),
    "race": (("race",), {-1: None, **dict(enumerate(RACES))}),
    "ethnicity": (("ethnicity", "hispanic"), {-1: None, **dict(enumerate(ETHNICITIES))}),
    "language": (("language",), {-1: None, **dict(enumerate(LANGUAGES))}),
    "label": (("glaucoma",), {0: 0, 1: 1}),
}
DESCRIBING = ("age", *(member for members, _ in MEMBERS.values() for member in members))
FUNDUS = ("slo_fundus", "fundus_slo")  # the second one in files of old
LARGEST_MEMBER = 2**26  # bytes; an image has 340,000
# What zipfile and numpy raise for damage, encryption, pickles, and sizes that cannot be.
BAD_NPZ = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, MemoryError, RuntimeError, ArithmeticError)
IMAGES = ("npz", "jpg", "auto")
TEXTS = ("summary", "note", "none")


@dataclass(frozen=True)
class Options:
    """Which copy of an image is read, and which text."""

    images: str = option(
        "auto", "The npz (lossless, as in the papers), the jpg, or auto: the first there is.", choices=IMAGES
    )
    notes: str = option("summary", "The text: GPT-4's summary (as in the papers), the note, or none.", choices=TEXTS)
    note_length: int = option(180, "A text is cut to this many characters, at a word; 0: never.", low=0)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Files:
    """What lies in the release, by the number in the name.

    Attributes:
        arrays, pictures: number -> npz, jpg; where a file lies there twice, the first one.
        splits: number -> the splits that folders and `split_files.csv` name.
    """

    arrays: dict[str, Path] = field(default_factory=dict)
    pictures: dict[str, Path] = field(default_factory=dict)
    splits: dict[str, set[str]] = field(default_factory=dict)


def read(
    root: Path | None,
    options: Options,
    *,
    age_edges: tuple[float, ...],
    seed: int,
    tolerance: Tolerance | None = None,
) -> Release:
    """Read the release in `root`, with its official split.

    Patients are described by `data_summary.csv`, where it is there; `load` then checks that the npz file says the same.
    Else they are described by the npz files. The published code drops whoever lacks an attribute from validation and
    test (not from training); here nobody is dropped, what is unknown is null, and it is counted. Nothing here is
    random, so `seed` has no effect.

    Raises:
        CohortError: naming the file, row and column (or member) that is missing or cannot be what it is.
    """
    place = release_root(root, "Harvard-FairVLMed", "Pass the folder that holds Training, Validation and Test.")
    counted: Counter[str] = Counter()
    bad = tolerance or Tolerance()
    table = find(place, [SUMMARY, f"ReadMe/{SUMMARY}"])
    files = _files(place, bad)
    if not files.arrays and not (table and files.pictures):
        raise CohortError("The release has no files data_<number>.npz.", where=str(place), mend=UNPACK)
    summaries = _summaries(place, bad) if options.notes == "summary" else {}

    patients: list[dict[str, Any]] = []
    for source in read_rows(table, COLUMNS, mend=UNPACK) if table else sorted(files.arrays.items()):
        with bad.skipping():
            patient = _told(source) if isinstance(source, Row) else _described(*source)
            number, where = patient["number"], patient["where"]
            patient["split"] = _split(files.splits.get(number, set()) | patient.pop("split"), where)
            patient["image"] = _image(place, files, number, options.images, where)
            cells = source.cells if isinstance(source, Row) else {}
            text = _text(options.notes, cells, files.arrays.get(number), summaries.get(number, ""))
            patient["note"] = shortened(text, options.note_length) or None
            patients.append(patient)
    patients = once(patients, counted, key="number")
    if not patients:
        raise CohortError("The release has no patients.", where=str(table or place), mend=UNPACK)
    if options.notes != "none" and all(patient["note"] is None for patient in patients):
        raise CohortError("No image has a text.", where=str(place), mend=TEXTLESS)
    numbers = {patient["number"] for patient in patients}
    counted["excluded_unlisted_image"] = len((files.arrays.keys() | files.pictures.keys()) - numbers)
    _count(patients, counted)
    by_image = {patient["image"]: patient for patient in patients}

    def load(key: str) -> np.ndarray | Image.Image:
        patient = by_image[key]
        if not key.lower().endswith(".npz"):
            return open_image(place / key, where=patient["where"])
        # Without a table, the file has told everything itself.
        return _fundus(place / key, patient["where"] if table else "", patient if table else {})

    rows = [
        patient
        | {
            "sample_id": f"data_{patient['number']}",
            "patient_id": patient["number"],
            "modality": "fundus",
            "labels": [patient["label"]],
            "age_group": age_group(patient["age"], age_edges),
            "source": "harvard_fairvlmed",
        }
        for patient in patients
    ]
    groups = {"sex": SEXES, "age_group": age_group_names(age_edges), **VOCABULARIES}
    return Release(cohort_table(rows, task=TASK, groups=groups), load, dict(counted))


def _files(root: Path, bad: Tolerance) -> Files:
    """Walk the release once. The innermost folder that is called like a split decides, beside `split_files.csv`."""
    files = Files()
    for place, folders, names in os.walk(root):
        folder = Path(place)
        folders.sort()
        for name in folders:
            if name.lower() in (*SPLIT_NAMES, "data"):
                inside(root, folder / name, str(folder / name))  # a link is not walked into, so it is refused
        parts = [part.lower() for part in folder.relative_to(root).parts]
        splits = [SPLIT_NAMES[part] for part in parts if part in SPLIT_NAMES][-1:]
        for name in sorted(names):
            for kind, found in ((files.arrays, ARRAYS.fullmatch(name)), (files.pictures, PICTURE.fullmatch(name))):
                if found and "." in name:
                    kind.setdefault(found[1], folder / name)
                    files.splits.setdefault(found[1], set()).update(splits)
    table = find(root, [SPLIT_FILES, f"ReadMe/{SPLIT_FILES}"])
    for row in read_rows(table, ("filename", "file_type"), mend=UNPACK) if table else ():
        with bad.skipping():
            split = coded(row, "file_type", SPLIT_NAMES, say=SPLITS)
            files.splits.setdefault(_number(row, "filename"), set()).add(split)
    return files


def _number(row: Row, column: str) -> str:
    """The number in the name of an npz file."""
    found = ARRAYS.fullmatch(row[column])
    if found is None:
        raise CohortError("A file is not named data_<number>.npz.", where=row.where(column), mend=UNPACK)
    return found[1]


def _told(row: Row) -> dict[str, Any]:
    """A patient as a row of `data_summary.csv` describes him or her; the folder tells the split where that does not."""
    return {
        "number": _number(row, "filename"),
        "where": row.where(),
        "split": {coded(row, "use", SPLIT_NAMES, say=SPLITS)} if row.cells.get("use") else set(),
        "sex": sex_of(row, "gender"),
        "age": age_of(row),
        **{
            name: coded(row, name, codes, say=f"one of {', '.join(VOCABULARIES[name])}, or leave it blank")
            for name, codes in IN_TABLE.items()
        },
        "label": coded(row, "glaucoma", {"no": 0, "yes": 1}, say="yes or no"),
    }


def _described(number: str, path: Path) -> dict[str, Any]:
    """A patient as the npz file describes him or her; files of old do not tell the language.

    A CohortError where something else is missing, or has no meaning.
    """
    told = {"language": None, **_meanings(_members(path, DESCRIBING, str(path)), str(path))}
    for name in ("age", *MEMBERS):
        if name not in told:
            member = MEMBERS[name][0][0] if name in MEMBERS else name
            raise CohortError(f"The file has no member {member}.", where=f"{path}, member {member}", mend=UNPACK)
    return {"number": number, "where": str(path), "split": set(), **told}


def _meanings(members: Mapping[str, np.ndarray], where: str) -> dict[str, Any]:
    """What those members that are there tell of a patient; a CohortError where one has no meaning."""
    numbers = {
        name: float(array.item()) if array.size == 1 and array.dtype.kind in "biuf" else math.nan
        for name, array in members.items()
    }
    told: dict[str, Any] = {}
    for name, (called, codes) in MEMBERS.items():
        for member in [member for member in called if member in members][:1]:
            if numbers[member] not in codes:
                place = f"{where}, member {member}"
                raise CohortError("A code is not known.", where=place, mend=f"Known codes: {sorted(codes)}.")
            told[name] = codes[numbers[member]]
    if "age" in members:
        if not 0 <= numbers["age"] <= OLDEST:
            raise CohortError("An age cannot be read.", where=f"{where}, member age", mend=f"It is 0 to {OLDEST}.")
        told["age"] = numbers["age"] or None  # as in tables, 0 is nobody's age
    return told


def _members(path: Path, names: Sequence[str], where: str) -> dict[str, np.ndarray]:
    """These members of an npz file, as far as they are there; no other is unpacked, and nothing is unpickled.

    Raises:
        CohortError: the file is a link or damaged, or such a member is pickled or too large.
    """
    values: dict[str, np.ndarray] = {}
    place = where
    inside(path.parent, path, where)  # a link is not opened
    try:
        with zipfile.ZipFile(path) as archive:
            for name in names:
                member = archive.NameToInfo.get(f"{name}.npy")
                if member is not None:
                    place = f"{where}, member {name}"
                    if member.file_size > LARGEST_MEMBER:
                        raise ValueError("larger than any image")
                    with archive.open(member) as stream:
                        values[name] = np.lib.format.read_array(stream, allow_pickle=False)
    except BAD_NPZ as error:
        why = "a pickle, which can run code" if "allow_pickle" in str(error) else type(error).__name__
        mend = "Download that file again: the published ones hold plain numbers and text."
        raise CohortError(f"The file cannot be read ({why}).", where=place, mend=mend) from None
    return values


def _fundus(path: Path, where: str, told: Mapping[str, Any]) -> np.ndarray:
    """The image, uint8 [H, W] (published: 664 x 512, grey).

    Args:
        where: the row of the table, if there is one.
        told: what that row told of the patient.

    Raises:
        CohortError: there is none, it is no grey 8-bit image, or the file contradicts what was told.
    """
    place = f"{path} ({where})" if where else str(path)
    members = _members(path, (*FUNDUS, *(DESCRIBING if told else ())), place)
    for name, value in _meanings(members, place).items():
        # Ages may be rounded in one of the two.
        rounded = name == "age" and None not in (value, told[name]) and abs(value - told[name]) < 1
        if value != told[name] and not rounded:
            raise CohortError(
                f"The file and the table disagree about the {name}.",
                where=place,
                mend="Take both from one release, or remove the row.",
            )
    picture = next((members[name] for name in FUNDUS if name in members), None)
    if picture is None or picture.dtype != np.uint8 or picture.ndim != 2 or not picture.size:
        raise CohortError(
            "The file has no grey 8-bit image.", where=f"{place}, member {FUNDUS[0]}", mend="Download that file again."
        )
    return picture


def _split(named: set[str], where: str) -> str:
    """The one split that folders and tables name."""
    if len(named) == 1:
        return next(iter(named))
    if named:
        what, mend = "A patient is in two splits.", f"Folders, {SUMMARY} (use) and {SPLIT_FILES} disagree: keep one."
    else:
        what, mend = "The official split of a file is not known.", f"Put it into its folder, or {SPLIT_FILES} there."
    raise CohortError(what, where=where, mend=mend)


def _image(root: Path, files: Files, number: str, images: str, where: str) -> str:
    """The key of a patient's image."""
    kinds = {"npz": [files.arrays], "jpg": [files.pictures], "auto": [files.arrays, files.pictures]}[images]
    path = next((kind[number] for kind in kinds if number in kind), None)
    if path is None:
        raise CohortError(
            "A listed image is missing.",
            where=where,
            mend="Unpack the whole release, set ingest.options.images to auto, or remove the row.",
        )
    return inside(root, path, where)


def _summaries(root: Path, bad: Tolerance) -> dict[str, str]:
    """Number -> GPT-4's summary; none where the release lacks the table.

    As in the published code, the first column names the file and the third has the summary, whatever they are called.
    A first row that names a file is no header.
    """
    table = find(root, [f"{folder}{name}" for folder in ("", "ReadMe/") for name in NOTES])
    summaries: dict[str, str] = {}
    for row in _by_place(table) if table else ():
        with bad.skipping():
            if summaries.setdefault(_number(row, "file"), row["summary"]) != row["summary"]:
                what = "Two rows summarise the same note differently."
                raise CohortError(what, where=row.where(), mend="Keep the right one.")
    return summaries


def _by_place(table: Path) -> Iterator[Row]:
    """The rows, with their first cell as `file` and their third as `summary`."""
    for k, row in enumerate(read_rows(table, (), mend=UNPACK)):
        header, cells = list(row.cells), list(row.cells.values())
        if len(header) < 3:
            raise CohortError("The table lacks a column: file, note, summary.", where=f"{table}, row 1", mend=UNPACK)
        if k == 0 and ARRAYS.fullmatch(header[0]):
            yield Row(table, 1, {"file": header[0], "summary": header[2]})
        yield Row(table, row.number, {"file": cells[0], "summary": cells[2]})


def _text(notes: str, cells: Mapping[str, str], arrays: Path | None, summary: str) -> str:
    """The text of an image, or ""; `note_extra`, which begins with the demographics, is never read."""
    if notes == "summary":
        return summary or cells.get("gpt4_summary", "")
    if notes == "note" and "note" in cells:
        return cells["note"]
    note = _members(arrays, ("note",), str(arrays)).get("note") if notes == "note" and arrays else None
    return str(note.item()).strip() if note is not None and note.size == 1 and note.dtype.kind == "U" else ""


def shortened(text: str, length: int) -> str:
    """A text of at most so many characters, cut before the last space among them, as in the published code.

    >>> shortened("glaucoma suspect", 12), shortened("glaucoma suspect", 0)
    ('glaucoma', 'glaucoma suspect')
    """
    if not length or len(text) <= length:
        return text
    return text[:length].rpartition(" ")[0] or text[:length]


def _count(patients: Sequence[Mapping[str, Any]], counted: Counter[str]) -> None:
    """What is unknown, and of how many the published code would not judge."""
    count_unknown(patients, counted)
    for name in (*VOCABULARIES, "note"):
        counted[f"without_{name}"] = sum(patient[name] is None for patient in patients)
    counted["without_attribute_in_validation_or_test"] = sum(
        patient["split"] != "train" and None in (patient["sex"], *(patient[name] for name in VOCABULARIES))
        for patient in patients
    )

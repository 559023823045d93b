"""The COVID-19 image data collection (Cohen et al. 2020, arXiv:2006.11988), as published on GitHub.

    metadata.csv  images/*.{jpg,jpeg,png}  [volumes/*.nii.gz]

The question is whether an image shows one finding, by default COVID-19, or another one. `clinical_notes` becomes the
note; it often names the diagnosis, so it may be read in training only, as every note here. Each image has a licence of
its own (column `license`), which is neither read nor kept.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from fairvlm_core.cohort.adapters import Release
from fairvlm_core.cohort.adapters.reading import (
    PICTURES,
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
    sex_of,
)
from fairvlm_core.cohort.images import open_image
from fairvlm_core.cohort.table import SEXES, Task, age_group, age_group_names, cohort_table
from fairvlm_core.cohort.tolerance import Tolerance
from fairvlm_core.config import check, option
from fairvlm_core.errors import CohortError, ConfigError, nearest

COLUMNS = ("patientid", "sex", "age", "finding", "modality", "folder", "filename", "clinical_notes")
TABLE = "metadata.csv"
UNPACK = "Clone https://github.com/ieee8023/covid-chestxray-dataset, and pass that folder."
MODALITIES = ("X-ray", "CT")
PICTURE = {"X-ray": "chest X-ray", "CT": "CT slice of the chest", "all": "image of the chest"}
UNLABELLED = ("", "todo", "unknown")
# The finding as the table of June 2020 has it -> as the latest one has it, from the general to the particular.
PATHS = {
    "ARDS": "Pneumonia",
    "Aspiration pneumonia": "Pneumonia/Aspiration",
    "Bacterial": "Pneumonia/Bacterial",
    "Chlamydophila": "Pneumonia/Bacterial/Chlamydophila",
    "COVID-19": "Pneumonia/Viral/COVID-19",
    "E.Coli": "Pneumonia/Bacterial/E.Coli",
    "Herpes pneumonia": "Pneumonia/Viral/Herpes",
    "Influenza": "Pneumonia/Viral/Influenza",
    "Klebsiella": "Pneumonia/Bacterial/Klebsiella",
    "Legionella": "Pneumonia/Bacterial/Legionella",
    "Lipoid": "Pneumonia/Lipoid",
    "MERS-CoV": "Pneumonia/Viral/MERS-CoV",
    "MRSA": "Pneumonia/Bacterial/Staphylococcus/MRSA",
    "Mycoplasma Bacterial Pneumonia": "Pneumonia/Bacterial/Mycoplasma",
    "No Finding": "No Finding",
    "Nocardia": "Pneumonia/Bacterial/Nocardia",
    "Pneumocystis": "Pneumonia/Fungal/Pneumocystis",
    "Pneumonia": "Pneumonia",
    "SARS": "Pneumonia/Viral/SARS",
    "Streptococcus": "Pneumonia/Bacterial/Streptococcus",
    "Swine-Origin Influenza A (H1N1) Viral Pneumonia": "Pneumonia/Viral/Influenza/H1N1",
    "Tuberculosis": "Tuberculosis",
    "Varicella": "Pneumonia/Viral/Varicella",
}
BY_NAME = {name.lower(): tuple(path.split("/")) for name, path in PATHS.items()}
NAMES = {part.lower(): part for path in BY_NAME.values() for part in path}
ADJECTIVES = ("Aspiration", "Bacterial", "Fungal", "Lipoid", "Viral")
FOLDERS = {"images": "images", "volumes": "volumes"}
VOLUMES = (".nii", ".nii.gz", ".gz")


@dataclass(frozen=True)
class Options:
    """What is asked about which images."""

    finding: str = option("COVID-19", "The finding that an image shows or not, by a name in the column finding.")
    modality: str = option("X-ray", "Which images to take.", choices=(*MODALITIES, "all"))
    unspecified: str = option(
        "unknown", "What a finding means that leaves the question open.", choices=("unknown", "absent")
    )

    def __post_init__(self) -> None:
        check(self)
        if not self.name:
            raise ConfigError("The finding has no name.", where="ingest.options.finding", mend="Write COVID-19.")

    @property
    def name(self) -> str:
        """The finding by its own name, as the latest table writes it."""
        name = self.finding.rsplit("/", 1)[-1].strip()
        return NAMES.get(name.lower(), name)


def read(
    root: Path | None,
    options: Options,
    *,
    age_edges: tuple[float, ...],
    seed: int,
    tolerance: Tolerance | None = None,
) -> Release:
    """Read the release in `root`; it has no official split.

    A finding is read as it stands in the table of June 2020 (`COVID-19, ARDS`) and in the latest one
    (`Pneumonia/Viral/COVID-19`). The label is 1 where the asked finding is among those of the image, and null where
    these are only more general, as pneumonia without a cause is for COVID-19 (`unspecified: absent` makes it 0); else
    it is 0. Rows without a finding (`todo`, `Unknown`, blank), of another modality, and of volumes are left out and
    counted. Patients under whom the same file is listed are one patient. Nothing here is random, so `seed` has no
    effect.

    Raises:
        CohortError: naming the file, row and column that is missing or cannot be what it is.
        ConfigError: none of the images shows the asked finding.
    """
    place = release_root(root, "The COVID-19 image data collection", UNPACK)
    counted: Counter[str] = Counter()
    bad = tolerance or Tolerance()
    table = found(place, [TABLE], mend=UNPACK)
    images = found(place, ["images"], mend=UNPACK, folder=True)
    files = {entry.name for entry in os.scandir(images)}
    listed = list(read_rows(table, COLUMNS, mend=UNPACK, also={"clinical_notes": ["clinical notes"]}))
    if not listed:
        raise CohortError("The table has no rows.", where=str(table), mend="Download it again.")
    patients = _patients(listed)

    read: list[dict[str, Any]] = []
    for cells in listed:
        with bad.skipping():
            reason = _left_out(cells, options)
            label = None if reason else _label(cells, options)
            if reason:
                counted[reason] += 1
                continue
            name, age = needed(cells, "filename"), age_of(cells, unknown=())
            key = inside(place, f"{images.name}/{name}", cells.where("filename"))
            if name not in files:
                raise CohortError("A listed image is missing.", where=cells.where("filename"), mend=UNPACK)
            row = {
                "sample_id": name,
                "patient_id": patients[needed(cells, "patientid")],
                "image": key,
                "modality": next(kind for kind in MODALITIES if kind.lower() == cells["modality"].lower()),
                "note": cells["clinical_notes"] or None,
                "labels": [label],
                "sex": sex_of(cells),
                "age": age,
                "age_group": age_group(age, age_edges),
                "source": "covid_chestxray",
                "where": cells.where(),
            }
            read.append(row)
    rows = once(read, counted)
    if not any(row["labels"] == [1] for row in rows):
        raise ConfigError(
            f'No image shows the finding "{options.name}" (modality: {options.modality}).',
            where="ingest.options.finding",
            mend=nearest(options.name, NAMES.values()),
        )
    names = {cells["filename"] for cells in listed}
    counted["excluded_unlisted_image"] = sum(name.lower().endswith(PICTURES) for name in files - names)
    counted["without_label"] = sum(row["labels"] == [None] for row in rows)
    counted["without_note"] = sum(row["note"] is None for row in rows)
    count_unknown(rows, counted)
    places = {row["image"]: row.pop("where") for row in rows}

    def load(key: str) -> Image.Image:
        return open_image(place / key, where=places[key])

    groups = {"sex": SEXES, "age_group": age_group_names(age_edges)}
    return Release(cohort_table(rows, task=_task(options), groups=groups), load, dict(counted))


def _task(options: Options) -> Task:
    """The question, in words."""
    name, picture = options.name, PICTURE[options.modality]
    words = name.lower() if name in (*ADJECTIVES, "Pneumonia", "Tuberculosis") else name
    if any(name in path[1:] for path in BY_NAME.values()):
        words = f"{words} pneumonia"
    concept, negative = ("no abnormality", "an abnormality") if name == "No Finding" else (words, f"no {words}")
    return Task(
        kind="binary",
        labels=(name,),
        concepts=(concept,),
        negatives=(negative,),
        question=f"Does this {picture} show {{concept}}?",
        prompt=f"A {picture} with {{concept}}",
    )


def _left_out(cells: Row, options: Options) -> str | None:
    """Why a row is no image with a finding, None where it is one."""
    folder = coded(cells, "folder", FOLDERS, say="images or volumes")
    if folder == "volumes" or cells["filename"].lower().endswith(VOLUMES):
        return "excluded_volume"
    taken = MODALITIES if options.modality == "all" else (options.modality,)
    if cells["modality"].lower() not in [kind.lower() for kind in taken]:
        return "excluded_other_modality"
    return "excluded_without_finding" if cells["finding"].lower() in UNLABELLED else None


def _label(cells: Row, options: Options) -> int | None:
    """Whether the asked finding is among those of the image."""
    paths = [_path(part.strip(), cells) for part in cells["finding"].split(",")]
    name = options.name.lower()
    if any(name in path for path in paths):
        return 1
    asked = [part.strip().lower() for part in options.finding.split("/")]
    known = [[part.lower() for part in path] for path in BY_NAME.values()]
    general = {part for path in (*known, asked) if name in path for part in path[: path.index(name)]}
    unspecified = all(path[-1] in general for path in paths)
    return None if unspecified and options.unspecified == "unknown" else 0


def _path(finding: str, cells: Row) -> list[str]:
    """A finding from the general to the particular, in lower case."""
    path = finding.split("/") if "/" in finding else BY_NAME.get(finding.lower())
    if path is None:
        raise CohortError(
            "A finding is not known.",
            where=cells.where("finding"),
            mend="Take the publisher's latest table, or write a path like Pneumonia/Viral/COVID-19.",
        )
    return [part.strip().lower() for part in path]


def _patients(listed: Sequence[Row]) -> Mapping[str, str]:
    """Patient's number -> the number of all who share a file: they are the same person, read from two sources."""
    same: dict[str, str] = {}
    first: dict[str, str] = {}

    def one(number: str) -> str:
        while same.setdefault(number, number) != number:
            number = same[number]
        return number

    for cells in listed:
        number = one(cells["patientid"])
        if cells["filename"] and number:
            same[number] = one(first.setdefault(cells["filename"], number))
    return {number: one(number) for number in list(same)}

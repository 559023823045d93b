"""What a cohort's data card publishes of counts, as `card.json` beside it: stratify must not give away what it hides.

The file holds what the card and its picture show, and nothing else:

    {"min_cell": 10, "counts": [
        {"groups": {}, "split": "train", "images": 700, "patients": 690},
        {"groups": {"sex": "female", "age_group": "0-39"}, "split": "train", "images": null, "patients": null},
        {"groups": {"sex": "unknown"}, "split": "all", "images": "<10", "patients": "<10"},
        {"groups": {}, "lacking": ["sex", "age_group"], "split": "train", "images": 25}
    ]}

A count is null where the card hides it, and text like "<10" where it tells no more. `lacking` counts the images of
which at least one of these attributes is unknown. Patients are absent where the card has no column for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from fairvlm_core.cohort.card import Card
from fairvlm_core.cohort.groups import ALL, UNKNOWN, cell_counts, shown_kinds, shown_places, shown_splits
from fairvlm_core.errors import CohortError
from fairvlm_core.files import read_json

FILE = "card.json"


@dataclass(frozen=True)
class Published:
    """A number of images that a card publishes, or hides.

    Attributes:
        groups: attribute -> group, or "unknown"; the images of all groups of other attributes are counted together.
        lacking: only the images of which one of these attributes is unknown.
        split: the official one, or "not split yet", or "all".
        images: how many; None where that is not told.
        secret: whether the card hides it as a count of few patients, or along with one.
    """

    groups: Mapping[str, str]
    lacking: tuple[str, ...]
    split: str
    images: int | None
    secret: bool


def counts_of(card: Card) -> dict[str, Any]:
    """The content of `card.json`."""
    counts: list[dict[str, Any]] = []
    several = [card.together] if len(card.together.attributes) > 1 else []
    for groups in (card.splits, *several, *card.groups):
        kinds = shown_kinds(groups)
        for (place, name), (s, split) in product(shown_places(groups), enumerate(shown_splits(groups))):
            if ALL in name:
                continue  # the numbers of the split, which come first
            told = {kind: groups.shown(values, (*place, s)) for kind, values in kinds.items()}
            counts.append({"groups": dict(zip(groups.attributes, name, strict=True)), "split": split} | told)
    for groups in several:
        unknown = (UNKNOWN,) * len(groups.attributes)
        for split, cells in cell_counts(groups).items():
            counts.append({"groups": {}, "lacking": list(groups.attributes), "split": split, "images": cells[unknown]})
    return {"min_cell": card.min_cell, "counts": counts}


def read_counts(folder: Path) -> list[Published]:
    """What the card of the cohort in this folder publishes; nothing where it has none.

    Raises:
        CohortError: when the file is not what ingest writes.
    """
    path = folder / FILE
    if not path.is_file():
        return []
    try:
        found = []
        for entry in read_json(path, made_by="ingest")["counts"]:
            groups, lacking, images = dict(entry["groups"]), tuple(entry.get("lacking", ())), entry["images"]
            secret = images is None and not lacking and UNKNOWN not in groups.values()
            found.append(
                Published(groups, lacking, entry["split"], images if isinstance(images, int) else None, secret)
            )
        return found
    except (KeyError, TypeError, ValueError, AttributeError):
        raise CohortError(
            "This is no list of the counts of a data card.", where=str(path), mend="Run `fairvlm ingest` again."
        ) from None

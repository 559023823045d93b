"""Conversations about images, as LLaVA and LLaVA-Med publish them: questions and answers for instruction tuning.

A JSON list of `{"id": ..., "image": FILE, "conversations": [{"from": "human", "value": ...}, {"from": "gpt", ...}]}`.
The alignment file of LLaVA-Med misspells the key as `conversatons`; both are read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from fairvlm_core.cohort.prompts import IMAGE
from fairvlm_core.errors import CohortError

KEYS = ("conversations", "conversatons")
SPEAKERS = ("human", "gpt")

Rounds = tuple[tuple[str, str], ...]  # (question, answer) of each round


def read_conversations(path: Path) -> dict[str, list[Rounds]]:
    """The conversations about each image, by the name the file gives it; an image may have several.

    The image's token is taken out of the first question: `chat` puts it where the model was trained to find it.

    Raises:
        CohortError: the file is missing or no such JSON; an entry has no image, no rounds, a speaker out of turn, an
            empty text, or the image's token anywhere but once in its first question. What a text says is not printed.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CohortError(
            "The file of conversations is missing.", where=str(path), mend="Pass the path of its JSON file."
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise CohortError(
            "The file of conversations is not valid JSON.",
            where=f"{path}{line}",
            mend="Write one JSON list of entries; a file with one entry per line is another format.",
        ) from None
    if not isinstance(content, list) or not content:
        raise CohortError(
            "The file of conversations is not a list of entries.",
            where=str(path),
            mend='Write [{"id": ..., "image": ..., "conversations": [...]}, ...].',
        )
    found: dict[str, list[Rounds]] = {}
    for number, entry in enumerate(content):
        image, rounds = _entry(entry, f"{path}, entry {number}")
        found.setdefault(image, []).append(rounds)
    return found


def conversations_of(conversations: Mapping[str, Sequence[Rounds]], images: Sequence[str]) -> list[list[Rounds]]:
    """The conversations about each of these images, in their order; an image that has none has an empty list.

    Conversations about other images are left aside: give the images of the training split, and nothing is learnt about
    those of validation and test.

    Args:
        conversations: as `read_conversations` gives them.
        images: keys of the image store. A name that is none of them is looked up by its last part, where that is the
            last part of one key only.

    Raises:
        CohortError: none of the conversations is about one of these images.
    """
    known = set(images)
    by_last: dict[str, set[str]] = {}
    for key in known:
        by_last.setdefault(PurePosixPath(key).name, set()).add(key)
    found: dict[str, list[Rounds]] = {key: [] for key in known}
    for name, told in conversations.items():
        keys = {name} if name in known else by_last.get(PurePosixPath(name).name, set())
        if len(keys) == 1:
            found[next(iter(keys))] += told
    if not any(found.values()):
        raise CohortError(
            f"None of the {len(conversations)} images that are spoken about is among the {len(known)} of this split.",
            where="field image of the conversations",
            mend="Name the images as the release does: by the path that ingest reads, or by the file's name.",
        )
    return [found[key] for key in images]


def _entry(entry: Any, where: str) -> tuple[str, Rounds]:
    if not isinstance(entry, dict):
        raise CohortError(
            "An entry is not an object.", where=where, mend="Write an object with image and conversations."
        )
    image = entry.get("image")
    if not isinstance(image, str) or not image:
        raise CohortError(
            "An entry names no image.",
            where=f"{where}, field image",
            mend="Name its file, or take the entry out: conversations without an image are not trained on.",
        )
    key = next((key for key in KEYS if key in entry), None)
    if key is None:
        raise CohortError(
            "An entry has no conversation.", where=where, mend=f"Write its rounds in the field {KEYS[0]}."
        )
    said = entry[key]
    if not isinstance(said, list) or not said or len(said) % 2:
        raise CohortError(
            "A conversation does not consist of questions with their answers.",
            where=f"{where}, field {key}",
            mend="Write a list in which human and gpt take turns, human first and gpt last.",
        )
    texts = [_text(one, SPEAKERS[place % 2], f"{where}, field {key}, item {place}") for place, one in enumerate(said)]
    for place, text in enumerate(texts):
        if text.count(IMAGE) > (place == 0):
            raise CohortError(
                f'"{IMAGE}" stands for the image; it may stand once, in the first question.',
                where=f"{where}, field {key}, item {place}",
                mend="Take it out there. An entry is about one image.",
            )
    texts[0] = texts[0].replace(IMAGE, "").strip()
    if not texts[0]:
        raise CohortError(
            "The first question is empty but for the image.",
            where=f"{where}, field {key}, item 0",
            mend="Write what is asked about the image.",
        )
    return image, tuple(zip(texts[::2], texts[1::2], strict=True))


def _text(one: Any, speaker: str, where: str) -> str:
    if not isinstance(one, dict) or one.get("from") != speaker:
        raise CohortError(
            f"It is the turn of {speaker}.",
            where=f"{where}, field from",
            mend="Let human and gpt take turns, human first.",
        )
    value = one.get("value")
    if not isinstance(value, str) or not value.strip():
        raise CohortError(
            "A text is missing or empty.", where=f"{where}, field value", mend="Write it, or drop the round."
        )
    return value.strip()

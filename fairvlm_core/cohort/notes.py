"""What clinical notes give away: how many state the label, an age, a sex, an origin or a language.

The expressions know English, and rather miss a statement than find one where there is none. They see words, not what
is meant: "no evidence of edema" contains "edema". Only shares leave this module, never a text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fairvlm_core.cohort.duplicates import Track, untracked
from fairvlm_core.cohort.groups import ALL, UNKNOWN, Groups, numbered, share
from fairvlm_core.cohort.table import group_codes, label_matrix, task_of

NUMBER = "(?:one|two|three|four|five|six|seven|eight|nine)"
TENS = "(?:twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety)"
AGE = "|".join(
    (
        r"\b\d{1,3}(?:\.\d+)?[\s-]*(?:years?|yrs?|y|months?|weeks?|days?)[\s.-]*(?:old|o\.?|of[\s-]+age)\b",
        r"\b\d{1,3}[\s-]*y/o\b",
        rf"\b{TENS}(?:[\s-]{NUMBER})?[\s-]+years?[\s-]old\b",
        r"\bag(?:e|ed)\s*(?:[:=]|of|is)?\s*\d{1,3}\b",
        r"\bin\s+(?:his|her|their)\s+(?:(?:early|mid|late)[\s-]+)?(?:\d0\'?s|[a-z]+ties)\b",
        # 54F, but not 98F, which is a temperature, and not "5 M", which is a length or a concentration.
        r"(?-i:\b(?:[1-8]?\d|9[0-3])[FM]\b)",
    )
)
SEX = "|".join(
    (
        r"\b(?:wom[ae]n|m[ae]n|females?|males?|lad(?:y|ies)|gentlem[ae]n|girls?|boys?|herself|himself)\b",
        # Neither MR (magnetic resonance) nor MS (multiple sclerosis).
        r"(?-i:\bM(?:rs|r|s)\.?\s+[A-Z_])",
        # Neither HER2 nor the bundle of His.
        r"(?-i:\b(?:[Ss]he|[Hh]e|[Hh]er|hers|his|him)\b)",
        # 54F, 54 y/o M; and ___F, where the age has been taken out.
        r"(?-i:(?:\b(?:[1-8]?\d|9[0-3])|_)[FM]\b)",
        r"(?-i:\by\.?/?o\.?\s?[FM]\b)",
    )
)
PERSON = r"(?:wom[ae]n|m[ae]n|females?|males?|lady|gentleman|girl|boy|patient|person|[FM])"
ORIGIN = "|".join(
    (
        r"\b(?:caucasians?|african[\s-]americans?|hispanics?|latin[oax]s?|asians?|native[\s-]americans?)\b",
        # Not "white matter", not "black floaters".
        rf"\b(?:black|white)[\s-]+(?:\d+[\s-]years?[\s-]old\s+|\w+\s+)?{PERSON}\b",
    )
)
LANGUAGE = "|".join(
    (
        r"\b[a-z]+-speaking\b",
        r"\b(?:english|spanish|portuguese|french|creole|chinese|mandarin|cantonese|russian|arabic|vietnamese)\s+speaking\b",
        r"\bspeaks\s+(?:only\s+|no\s+|little\s+)?(?-i:[A-Z])[a-z]+",
        r"\b(?:interpret|translat)(?:er|or|ers|ors)\b",
    )
)
SHORT = 5  # letters
STATEMENTS = {"age": AGE, "sex": SEX, "origin": ORIGIN, "language": LANGUAGE}


@dataclass(frozen=True)
class NoteShares:
    """Shares of the notes that state something, in words (see `share`).

    Attributes:
        notes: number of rows with a note.
        labels: (label, the share of the notes that name it among images with it and without it, and the
            share that contain the phrase of its absence among the same; None where the task has no such phrase).
        people: (attribute, group, the share that states each of `STATEMENTS`); the first is of all notes.
    """

    notes: int
    labels: list[tuple[str, list[str | None]]]
    people: list[tuple[str, str, list[str | None]]]


def read_notes(
    table: pa.Table, groups: Sequence[Groups], min_cell: int, *, track: Track = untracked
) -> NoteShares | None:
    """Look for statements in the notes; None where the cohort has no notes.

    Args:
        table: the cohort.
        groups: what `count_groups` counted, one attribute each: shares of hidden groups are hidden, too.
        min_cell: as for `share`.
        track: shows progress.
    """
    notes = table.column("note").combine_chunks().dictionary_encode()
    has = pc.fill_null(pc.not_equal(table.column("note"), ""), False).to_numpy()
    if not has.any():
        return None
    task, labels = task_of(table), label_matrix(table)
    progress = track("Searching notes", len(task.labels) * (2 if task.negatives else 1) + len(STATEMENTS))

    def containing(pattern: str) -> np.ndarray:
        # Images of one examination share their note: each is searched once.
        matches = pc.match_substring_regex(notes.dictionary, pattern, ignore_case=True)
        found = pc.fill_null(matches.take(notes.indices), False).to_numpy(zero_copy_only=False)
        progress(1)
        return found

    of_labels = []
    for j, label in enumerate(task.labels):
        found = []
        # A label may be an abbreviation that means something else in a note.
        named = [task.concepts[j], *([label] if len(label) >= SHORT else [])]
        for phrases in (named, task.negatives[j : j + 1]):
            states = containing("|".join(map(phrase, phrases))) if phrases else None
            for value in (1, 0):
                among = has & (labels[:, j] == value)
                found.append(None if states is None else share(int(states[among].sum()), int(among.sum()), min_cell))
        of_labels.append((label, found))

    stated = [containing(pattern) for pattern in STATEMENTS.values()]
    patient = numbered(table, "patient_id")

    def shares(among: np.ndarray) -> list[str | None]:
        if len(np.unique(patient[among])) < min_cell:
            return [None] * len(stated)
        return [share(int(states[among].sum()), int(among.sum()), min_cell) for states in stated]

    of_people: list[tuple[str, str, list[str | None]]] = [(ALL, "", shares(has))]
    for counted in groups:
        codes = group_codes(table, counted.attributes)[:, 0]
        for g, name in enumerate(counted.names[0]):
            if name not in (UNKNOWN, ALL) and counted.patients[g, -1]:
                hidden = counted.hidden[g, -1]
                among = has & (codes == g) & (not hidden)
                of_people.append((counted.attributes[0], name, shares(among)))
    return NoteShares(int(has.sum()), of_labels, of_people)


def phrase(words: str) -> str:
    """An expression for a phrase as whole words without its article, however they are spaced, also in the plural.

    >>> re.findall(phrase("lung lesion"), "lung lesions, lung  lesion, Lung-lesion, plunge lesion", re.IGNORECASE)
    ['lung lesions', 'lung  lesion', 'Lung-lesion']
    """
    words = re.sub(r"^(?:an?|the)\s+", "", words.strip())
    return r"\b" + r"[\s-]+".join(map(re.escape, re.split(r"[\s_-]+", words))) + r"s?\b"

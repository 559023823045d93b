"""What notes give away: statements that are found, words that only look like one, and shares without a text."""

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from fairvlm_core.cohort.groups import count_groups
from fairvlm_core.cohort.notes import STATEMENTS, phrase, read_notes
from fairvlm_core.cohort.table import Task, cohort_table

TASK = Task("multilabel", ("Edema", "pe"), ("edema", "pulmonary embolism"), ("no edema", "no pulmonary embolism"))

FOUND = {
    "age": [
        "A 54 year old", "54-year-old", "a 54 yo F", "54yo", "54 y.o. woman", "54 y/o", "54y/o", "aged 54", "Age: 54",
        "at the age of 54", "54F with cough", "54 years of age", "fifty-four-year-old", "sixty year old", "54 yrs old",
        "in her 50s", "in his late sixties", "a 3-month-old", "103-year-old", "54 yr. old", "2.5 years old",
    ],
    "sex": [
        "woman", "A MAN", "females", "he was", "He was", "She", "her eyes", "54F", "___F with", "54 yo M", "Mrs. X",
        "Mr. ___ has", "gentleman", "himself", "the lady",
    ],
    "origin": [
        "African-American man", "white male", "a black 54-year-old woman", "black 54 year old man", "Caucasian",
        "hispanic lady", "Asian", "white patient",
    ],
    "language": ["Spanish-speaking", "spanish speaking", "speaks only Spanish", "via interpreter", "speaks Mandarin"],
}  # fmt: skip
NOT_FOUND = {
    "age": [
        "5 mm", "2 years ago", "10 years of follow up", "98F", "temp 101 F", "5 M solution", "T3 M0", "stage 4",
        "page 54", "for 54 days", "aged care", "___ year old", "over the past 2 years", "image 54", "day 5 of illness",
        "average 54",
    ],
    "sex": [
        "HER2 positive", "bundle of His", "human", "theme", "management", "the", "hemangioma", "Roman", "M0", "98F",
        "other", "HIS bundle", "MR imaging", "MS plaque", "shear", "SHE-protocol",
    ],
    "origin": ["white matter", "black floaters", "white lesion", "white cell count", "black and white"],
    "language": ["speech", "interpreted as", "speaks clearly", "patient was speaking", "translated"],
}  # fmt: skip


def matches(pattern, texts):
    found = pc.match_substring_regex(pa.array(texts), pattern, ignore_case=True).to_pylist()
    return [text for text, hit in zip(texts, found, strict=True) if hit]


@pytest.mark.parametrize("statement", STATEMENTS)
def test_statements_are_found_and_nothing_else(statement):
    assert matches(STATEMENTS[statement], FOUND[statement]) == FOUND[statement]
    assert matches(STATEMENTS[statement], NOT_FOUND[statement]) == []


def test_a_phrase_is_whole_words():
    texts = ["Lung  lesions.", "LUNG-LESION", "lung\nlesion", "a plung lesion", "lung lesioned", "lesion of the lung"]
    assert matches(phrase("lung lesion"), texts) == texts[:3]
    assert matches(phrase("COVID-19"), ["covid-19", "COVID 19", "COVID-190"]) == ["covid-19", "COVID 19"]
    assert matches(phrase("a.b"), ["axb", "a.b"]) == ["a.b"]
    assert matches(phrase("a conduction disturbance"), ["Conduction disturbances"]) == ["Conduction disturbances"]


def cohort(rows):
    """A cohort from (number of patients, sex, labels, note)."""
    table = [
        {"sample_id": f"{k}-{p}", "patient_id": f"{k}-{p}", "image": f"{k}-{p}", "sex": sex, "labels": labels,
         "note": note, "source": "s"}
        for k, (n, sex, labels, note) in enumerate(rows)
        for p in range(n)
    ]  # fmt: skip
    return cohort_table(table, task=TASK, groups={"sex": ("female", "male")})


def test_shares_among_images_with_a_label_and_without_it():
    table = cohort(
        [
            (30, "female", [1, 0], "A 60-year-old woman with edema."),
            (10, "female", [1, 0], "Nothing is said."),
            (20, "male", [0, 1], "No edema."),
            (20, "male", [0, None], "The man speaks Urdu."),
            (50, "male", [1, 1], None),
            (50, "male", [1, 1], ""),
        ]
    )
    tracked, done = [], []

    def track(what, total):
        tracked.append(total)
        return done.append

    notes = read_notes(table, [count_groups(table, ("sex",), 10)], 10, track=track)
    assert notes.notes == 80
    assert [sum(done)] == tracked == [8]
    # "pe" is too short to be looked for.
    assert notes.labels == [
        ("Edema", ["75.0 %", "50.0 %", "0 %", "50.0 %"]),
        ("pe", ["0 %", "0 %", "0 %", "0 %"]),
    ]
    assert notes.people == [
        ("all", "", ["37.5 %", "62.5 %", "0 %", "25.0 %"]),
        ("sex", "female", ["75.0 %", "75.0 %", "0 %", "0 %"]),
        ("sex", "male", ["0 %", "50.0 %", "0 %", "50.0 %"]),
    ]


def test_a_label_of_some_length_is_a_name_of_its_concept():
    task = Task("binary", ("COVID-19",), ("COVID-19 pneumonia",), ("no COVID-19 pneumonia",))
    rows = cohort([(20, "female", [1, 0], "Suspected COVID-19."), (20, "male", [0, 0], "A cough.")])
    labels = pa.array([[1]] * 20 + [[0]] * 20, pa.list_(pa.int8()))
    table = cohort_table(rows.set_column(rows.column_names.index("labels"), "labels", labels), task=task, groups={})
    assert read_notes(table, [], 10).labels == [("COVID-19", ["100 %", "0 %", "0 %", "0 %"])]


def test_few_notes_are_not_told_apart():
    table = cohort(
        [
            (3, "female", [1, 0], "Edema, 50 years old."),
            (97, "female", [1, 0], "Nothing."),
            (6, "male", [0, 0], "Edema."),
        ]
    )
    notes = read_notes(table, [count_groups(table, ("sex",), 10)], 10)
    assert notes.labels[0] == ("Edema", ["<10 %", None, "0 %", None])
    # The women are hidden with the men, who are six.
    assert [line[2] for line in notes.people[1:]] == [[None] * 4, [None] * 4]


def test_without_notes_there_is_nothing_to_tell():
    assert read_notes(cohort([(20, "female", [1, 0], None), (5, "male", [0, 0], "")]), [], 10) is None

"""Phi: what answers in words say."""

from __future__ import annotations

import re

import numpy as np
import pytest
from bases import TASKS

from fairvlm_core.cohort.table import Task
from fairvlm_core.evaluation.answers import canonical, finding_answer, normalise, option_answer

EDEMA = {
    1: [
        "Yes", "yes.", "YES!", "Yes, there is edema.", "The answer is yes", "There is edema",
        "Pulmonary oedema is present.", "edema", "Edemas are seen", "Edema: yes", "It is present",
        "No effusion, but edema is seen.",
        "No effusion; edema is present", "No effusion, there is edema.", "No fracture. Edema.",
        "edema without effusion", "edema and no effusion", "No change in the edema.",
        "No significant interval change in edema",
        "No doubt there is edema", "Not only effusion but edema", "Yes. No fracture.", "Yes, possibly edema",
    ],
    0: [
        "No", "no.", "No, there is no edema.", "No there is not", "The answer is no.", "No evidence of edema.",
        "There is no edema", "There are no signs of effusion or edema.", "No effusion, pneumothorax or edema.",
        "no effusion, no edema", "Neither effusion nor edema.", "Edema is not seen.", "Edema isn't present",
        "Edema is absent.", "edema: no", "edema: absent", "Edema has been ruled out", "The edema has resolved",
        "free of edema", "Negative for edema", "clear of edema", "without edema", "This does not show edema",
        "no longer edema", "Not present", "none", "Nothing", "nope",
    ],
    None: [
        "", "   ", "???", "normal", "The lungs are normal.", "Know", "unknown", "A nodule in the nose.", "edematous",
        "A small pleural effusion is seen.", "Yes, no edema.", "yes no", "yes or no", "Edema is present. No edema.",
        "Possible edema.", "There may be edema", "I cannot exclude edema", "Edema can't be ruled out",
        "I do not know if there is edema", "not sure about edema", "Edema is not severe", "not absent",
        "Unlikely edema", "This is not without edema",
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("said", "text"), [(said, text) for said, texts in EDEMA.items() for text in texts], ids=lambda value: str(value)
)
def test_answers_about_a_finding(said, text):
    assert finding_answer(text, ["edema", "Edema"]) is said
    assert finding_answer(f"  {text.upper()} ", ["edema"]) is said


OPTIONS = [
    ("mel", "melanoma"),
    ("nv", "melanocytic nevus"),
    ("bcc", "basal cell carcinoma"),
    ("bkl", "benign keratosis"),
    ("nevus", "nevus"),
]


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("Melanoma.", 0),
        ("melanoma, MEL", 0),
        ("Most likely a melanoma", 0),
        ("A melanocytic nevus", 1),  # the longest match: not the option nevus that lies inside it
        ("nevus", 4),
        ("BCC", 2),
        ("Benign keratoses", 3),
        ("not melanoma but basal cell carcinoma", 2),
        ("Basal cell carcinoma rather than melanoma", 2),
        ("melanoma or nevus", None),
        ("melanoma, basal cell carcinoma", None),
        ("No melanoma", None),
        ("carcinoma", None),
        ("melanocytic", None),
        ("melanomatous", None),
        ("Yes", None),
        ("", None),
    ],
)
def test_answers_that_name_an_option(text, chosen):
    assert option_answer(text, OPTIONS) == chosen


def test_two_options_with_the_same_words_decide_nothing():
    assert option_answer("nevus", [("a", "nevus"), ("b", "a nevus")]) is None


def test_no_is_a_word_and_not_the_beginning_of_one():
    """Every English word in the vocabulary of findings that begins with "no" or "yes" says nothing."""
    for word in ("normal", "nodule", "nonspecific", "notable", "north", "noise", "yesterday", "nova", "nose", "know"):
        assert finding_answer(word, ["edema"]) is None
        assert finding_answer(f"{word} edema", ["edema"]) == 1


def test_the_phrase_for_the_absence_is_longer_than_the_one_for_the_presence():
    for text, said in {"non-glaucoma": 0, "glaucoma": 1, "Not non-glaucoma": 1, "no glaucoma": 0}.items():
        assert finding_answer(text, ["glaucoma"], ["non-glaucoma"]) == said
    assert finding_answer("No edema is seen", ["edema"], ["no edema"]) == 0
    assert finding_answer("Benign", ["malignancy"], ["benign"]) == 0
    assert finding_answer("Not benign", ["malignancy"], ["benign"]) == 1


def test_a_longer_finding_is_not_the_one_asked_about():
    assert finding_answer("Lung opacity.", ["opacity"]) == 1
    assert finding_answer("Lung opacity.", ["opacity"], others=["lung opacity"]) is None
    assert finding_answer("Lung opacity.", ["lung opacity"], others=["opacity", "Lung opacity"]) == 1


def test_normalise_follows_the_task():
    task = TASKS["multilabel"]
    np.testing.assert_array_equal(normalise(["No evidence of edema", "A fracture."], task), [0, 1])
    np.testing.assert_array_equal(normalise(["normal", "No"], task), [np.nan, 0])
    multiclass = TASKS["multiclass"]
    np.testing.assert_array_equal(normalise(["A melanocytic nevus."], multiclass), [0, 1, 0])
    np.testing.assert_array_equal(normalise(["Not sure"], multiclass), [np.nan] * 3)
    with pytest.raises(ValueError, match="2 questions, not 1"):
        normalise(["Yes"], task)


def test_every_concept_of_a_task_is_read_back():
    """Whatever the task's words are: a phrase says its label, and the phrase after "no" denies it."""
    words = (
        "pleural effusion",
        "a fracture",
        "support devices",
        "enlarged cardiomediastinum",
        "Keratosis (actinic)",
        "cyst",
    )
    labels = tuple(re.sub(r"\W+", "_", word) for word in words)
    task = Task("multilabel", labels, words, tuple(f"no {word}" for word in words))
    np.testing.assert_array_equal(normalise([f"There is {word}." for word in words], task), 1)
    np.testing.assert_array_equal(normalise([f"There is no {word}." for word in words], task), 0)
    # The same words in answer to the next question decide nothing there.
    turned = [*words[1:], words[0]]
    assert np.isnan(normalise([f"There is {word}." for word in turned], task)).all()
    multiclass = Task("multiclass", labels, words)
    for j, word in enumerate(words):
        assert normalise([f"It is {word}"], multiclass).argmax() == j


def test_canonical_form():
    assert canonical("It’s an OEDEMA; tumours, haemorrhages can't be seen") == [
        "it", "s", "an", "edema", ".", "tumor", ",", "hemorrhage", "ca", "not", "be", "seen",
    ]  # fmt: skip
    assert canonical("nevus atelectasis diagnosis is this") == ["nevus", "atelectasis", "diagnosis", "is", "this"]

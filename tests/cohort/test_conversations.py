"""Conversations in LLaVA's layout: read, matched with images, and refused where they cannot be meant."""

from __future__ import annotations

import json

import pytest

from fairvlm_core.cohort.conversations import conversations_of, read_conversations
from fairvlm_core.errors import CohortError


def entry(*texts, image="a.jpg", key="conversations"):
    said = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]
    return {"id": "1", "image": image, key: said}


def write(tmp_path, content):
    file = tmp_path / "conversations.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def test_rounds_are_read_per_image_and_both_spellings(tmp_path):
    file = write(
        tmp_path,
        [
            entry("<image>\nWhat is shown?", "A melanoma.", "Sure?", " Yes. "),
            entry("Describe it.\n<image>", "A naevus.", image="b.jpg", key="conversatons"),
            entry("Any edema?", "No.", image="a.jpg"),
        ],
    )
    assert read_conversations(file) == {
        "a.jpg": [(("What is shown?", "A melanoma."), ("Sure?", "Yes.")), (("Any edema?", "No."),)],
        "b.jpg": [(("Describe it.", "A naevus."),)],
    }


def test_conversations_follow_the_images(tmp_path):
    told = read_conversations(
        write(
            tmp_path, [entry("What?", "This.", image=name) for name in ("x/a.jpg", "b.jpg", "c.jpg", "elsewhere.jpg")]
        )
    )
    one = [(("What?", "This."),)]
    # By the whole name; by its last part; not where two keys end alike; an image of another split is left aside.
    images = ["x/a.jpg", "y/a.jpg", "part_1/b.jpg", "p/c.jpg", "q/c.jpg"]
    assert conversations_of(told, images) == [one, [], one, [], []]
    # A repeated row of the cohort has the conversation each time.
    assert conversations_of(told, ["b.jpg", "b.jpg"]) == [one, one]
    with pytest.raises(CohortError, match=r"None of the 4 images .* among the 2"):
        conversations_of(told, ["d.jpg", "e.jpg"])


@pytest.mark.parametrize(
    ("content", "what", "where"),
    [
        ("{", "not valid JSON", "line 1"),
        ('{"id": 1}\n{"id": 2}', "not valid JSON", "line 2"),
        ({}, "not a list", "conversations.json"),
        ([], "not a list", "conversations.json"),
        ([[]], "not an object", "entry 0"),
        ([entry("Q", "A"), {"id": 2, "conversations": []}], "names no image", "entry 1, field image"),
        ([entry("Q", "A", key="conversation")], "has no conversation", "entry 0"),
        ([entry()], "questions with their answers", "entry 0, field conversations"),
        ([entry("Q", "A", "Q2")], "questions with their answers", "entry 0, field conversations"),
        ([entry("Q", " ")], "missing or empty", "entry 0, field conversations, item 1, field value"),
        ([entry("Q", 7)], "missing or empty", "item 1, field value"),
        ([entry("<image>", "A")], "empty but for the image", "item 0"),
        ([entry("<image> and <image>", "A")], "may stand once", "item 0"),
        ([entry("Q", "<image>")], "may stand once", "item 1"),
        ([entry("Q", "A", "<image> Q", "A", key="conversatons")], "may stand once", "field conversatons, item 2"),
        ([{"image": "a", "conversations": [{"from": "gpt", "value": "A"}] * 2}], "turn of human", "item 0, field from"),
        ([{"image": "a", "conversations": [{"from": "human", "value": "A"}] * 2}], "turn of gpt", "item 1, field from"),
    ],
)
def test_mistakes_are_told_with_their_place_and_without_the_text(tmp_path, content, what, where):
    with pytest.raises(CohortError, match=what) as caught:
        read_conversations(write(tmp_path, content))
    assert caught.value.where.startswith(str(tmp_path))
    assert caught.value.where.endswith(where)
    assert caught.value.mend


def test_a_missing_file_and_another_encoding_are_told(tmp_path):
    with pytest.raises(CohortError, match="missing"):
        read_conversations(tmp_path / "nothing.json")
    (tmp_path / "latin.json").write_bytes('["ä"]'.encode("latin-1"))
    with pytest.raises(CohortError, match="not valid JSON"):
        read_conversations(tmp_path / "latin.json")

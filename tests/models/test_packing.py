"""Packed questions against separate passes through the model's own forward."""

from __future__ import annotations

import pytest
import torch
from bases import SIZE, TASKS, write_bases

from fairvlm_core.cohort.prompts import chat
from fairvlm_core.models.packing import Turn, pack, shared_prefix
from fairvlm_core.models.vlm import load_base


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    base = write_bases(tmp_path_factory.mktemp("base"), TASKS["multilabel"])
    vlm = load_base(str(base / "llava"), TASKS["multilabel"], SIZE)
    vlm.llava.eval()
    return vlm


def separate_logits(vlm, images, turn):
    """One sequence per image through LlavaForConditionalGeneration itself: logits for the answer tokens [n, A, V]."""
    from fairvlm_core.models import pixels

    ids = torch.tensor([turn.ids] * len(images))
    output = vlm.llava(
        input_ids=ids, pixel_values=pixels(images, vlm.mean, vlm.std), attention_mask=torch.ones_like(ids)
    )
    return output.logits[:, turn.answer - 1 : len(turn.ids) - 1]


def test_packed_logits_equal_separate_passes(vlm):
    images = (
        torch.randint(0, 256, (3, SIZE, SIZE, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8).numpy()
    )
    asked = [
        [
            vlm.sequence(chat("Does this image show edema?"), "Yes"),
            vlm.sequence(chat("Does this image show a fracture?"), "No"),
        ],
        [vlm.sequence(chat("Describe the findings."), "The optic disc is pale and the cup is large.")],
        [
            vlm.sequence(chat("Does this image show edema?", "Patient: Female."), "No"),
            vlm.sequence(chat("Does this image show a fracture?", "Patient: Female."), "Yes"),
            vlm.sequence(chat("Describe the findings.", "Patient: Female."), "The cup is large."),
        ],
    ]
    packed = pack(asked)
    with torch.no_grad():
        found = vlm.answer_logits(vlm.project(vlm.features(images)), packed)
        number = 0
        for image, turns in enumerate(asked):
            for turn in turns:
                expected = separate_logits(vlm, images[image : image + 1], turn)[0]
                rows = packed.sequence == number
                torch.testing.assert_close(found[rows], expected, atol=2e-5, rtol=1e-4)
                assert packed.target[rows].tolist() == list(turn.ids[turn.answer :])
                number += 1
    assert packed.lengths.tolist() == [len(t.ids) - t.answer for turns in asked for t in turns]


def test_options_that_share_their_first_words():
    """The prefix may run into the answers; each answer token is still predicted from the right place."""
    turns = [Turn((1, 2, 3, 4, 9), 2), Turn((1, 2, 3, 5, 9), 2)]
    assert shared_prefix(turns) == 3
    packed = pack([turns])
    assert packed.ids.tolist() == [[1, 2, 3, 4, 9, 5, 9]]
    assert packed.positions.tolist() == [[0, 1, 2, 3, 4, 3, 4]]
    assert packed.source.tolist() == [1, 2, 3, 1, 2, 5]
    assert packed.target.tolist() == [3, 4, 9, 3, 5, 9]


def test_a_branch_sees_the_prefix_and_itself_only():
    packed = pack([[Turn((1, 2, 3), 2), Turn((1, 4, 5, 6), 2)], [Turn((1, 2), 1)]])
    seen = packed.mask[:, 0] == 0
    # Row 0: prefix 1; branch a: 2 3; branch b: 4 5 6.
    expected = [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 0, 0, 1, 0, 0],
        [1, 0, 0, 1, 1, 0],
        [1, 0, 0, 1, 1, 1],
    ]
    assert seen[0].int().tolist() == expected
    # Padding sees itself alone, and nobody sees it.
    assert seen[1, 2:, 2:].equal(torch.eye(4, dtype=torch.bool))
    assert not seen[1, :2, 2:].any()


def test_identical_sequences_keep_their_last_token_apart():
    packed = pack([[Turn((1, 2, 3), 2), Turn((1, 2, 3), 2)]])
    assert packed.target.tolist() == [3, 3]
    assert packed.source.tolist() == [1, 1]

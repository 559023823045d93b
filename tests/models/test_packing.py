"""Packed questions against separate passes through the model's own forward."""

from __future__ import annotations

import pytest
import torch
from bases import SIZE, TASKS, write_bases

from fairvlm_core.cohort.prompts import chat
from fairvlm_core.models.packing import Turn, micro_batches, pack, packed_length, shared_prefix
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
    seen = packed.attention_mask(torch.float32)[:, 0] == 0
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


def padding(lengths, groups):
    """Share of the tokens that are padding, by a plain loop."""
    real = computed = 0
    for group in groups:
        for index in group:
            real += lengths[index]
            computed += max(lengths[other] for other in group)
    return 1 - real / computed


@pytest.mark.parametrize("spread", [0, 20, 400])
def test_micro_batches_hold_each_image_once_with_little_padding(spread):
    generator = torch.Generator().manual_seed(spread)
    lengths = (700 + torch.randint(0, spread + 1, (64,), generator=generator)).tolist()
    groups = micro_batches(lengths, 8)
    assert sorted(index for group in groups for index in group) == list(range(64))
    assert all(len(group) <= 8 for group in groups)
    assert padding(lengths, groups) < 0.05
    assert max(len(group) for group in groups) == 8
    # Where the lengths allow it, there are no more micro-batches than there must be.
    assert len(groups) == 8 if spread < 400 else len(groups) < 20
    in_order = [list(range(start, start + 8)) for start in range(0, 64, 8)]
    assert padding(lengths, groups) <= padding(lengths, in_order)
    assert lengths[groups[0][0]] == max(lengths)


def test_lengths_that_differ_too_much_stay_apart():
    assert micro_batches([10, 100, 99, 1000], 4) == [[3], [1, 2], [0]]
    assert micro_batches([10, 100, 99, 1000], 4, waste=1) == [[3, 1, 2, 0]]
    assert micro_batches([5, 5, 5], 2) == [[0, 1], [2]]
    assert micro_batches([], 4) == []
    with pytest.raises(ValueError, match="size"):
        micro_batches([1], 0)


def test_the_packed_length_is_that_of_the_row(vlm):
    asked = [vlm.sequence(chat(question), "Yes") for question in ("Does this image show edema?", "Is it large?")]
    for turns in (asked, asked[:1]):
        assert packed_length(turns) == pack([turns]).ids.shape[1]


def test_the_questions_of_a_conversation_are_no_targets():
    """Two rounds in one branch: what was asked in between is seen, not learnt."""
    rounds = Turn((1, 2, 3, 4, 5, 6, 7), 2, ((4, 6),))
    packed = pack([[Turn((1, 2, 8), 2), rounds]])
    assert rounds.learnt == [2, 3, 6]
    assert packed.ids.tolist() == [[1, 2, 8, 3, 4, 5, 6, 7]]
    assert packed.target.tolist() == [8, 3, 4, 7]
    assert packed.source.tolist() == [1, 1, 3, 6]
    assert packed.lengths.tolist() == [1, 3]
    assert packed.sequence.tolist() == [0, 1, 1, 1]

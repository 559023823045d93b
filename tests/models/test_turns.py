"""Where an answer begins, what of a conversation is learnt, and what does not fit."""

from __future__ import annotations

import pytest
from published import TOKENIZERS, sentencepiece

from fairvlm_core.cohort.prompts import chat
from fairvlm_core.errors import CohortError
from fairvlm_core.models.turns import Speech, conversation, sequence, split_answer

ROUNDS = [
    ("What does the image show?", "It shows a melanoma."),
    ("Is the cup large?", "Yes"),
    ("Sure?", "Naïve: 100 %"),
]
IMAGE_TOKENS = 9


@pytest.fixture(scope="module", params=TOKENIZERS)
def speech(request):
    tokenizer = sentencepiece(request.param)
    return Speech(tokenizer, tokenizer.convert_tokens_to_ids("<image>"), IMAGE_TOKENS, 256)


def behind(tokenizer, text, begin):
    """Ids of the tokens from the first one that covers a character behind text[:begin], by the tokens' offsets."""
    made = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    first = next(i for i, (_, end) in enumerate(made["offset_mapping"]) if end > begin)
    return made["input_ids"][first:]


@pytest.mark.parametrize("answer", ["Yes", "No", "melanoma", "The optic disc is pale.", "Ödem, 5 µm"])
def test_the_answer_begins_where_it_says(speech, answer):
    prompt = chat("Does this image show edema?")
    turn = sequence(speech, prompt, answer)
    text = f"{prompt} {answer}"
    told = behind(speech.tokenizer, text, len(prompt))
    # Behind a special token the tokenizer writes a space that every answer begins with: the prompt's.
    assert list(turn.ids[turn.answer : -1]) == told[len(speech.space) :]
    assert turn.ids[-1] == speech.tokenizer.eos_token_id
    # The whole is what the tokenizer makes of the whole, with the image's token repeated.
    whole = [1]
    for token in speech.tokenizer(text, add_special_tokens=False)["input_ids"]:
        whole += [token] * (IMAGE_TOKENS if token == speech.image_token else 1)
    assert list(turn.ids[:-1]) == whole
    # What stands before the answer does not depend on the answer.
    other = sequence(speech, prompt, "Zebra")
    assert turn.ids[: turn.answer] == other.ids[: other.answer]


def test_a_space_is_the_prompts_only_where_every_answer_begins_with_it(speech):
    control = speech.tokenizer.convert_tokens_to_ids("[/INST]") != speech.tokenizer.unk_token_id
    assert [speech.tokenizer.convert_ids_to_tokens(token) for token in speech.space] == ["▁"] * control


def test_yes_and_no_begin_with_tokens_of_their_own(speech):
    turns = [sequence(speech, chat("Does this image show edema?"), answer) for answer in ("Yes", "No")]
    first = [speech.tokenizer.decode([turn.ids[turn.answer]]).strip() for turn in turns]
    assert first == ["Yes", "No"]


def test_a_limit_cuts_the_answer_only(speech):
    whole = sequence(speech, chat("Describe the findings."), "The optic disc is pale and the cup is large.")
    cut = sequence(speech, chat("Describe the findings."), "The optic disc is pale and the cup is large.", 3)
    assert cut.ids == (*whole.ids[: whole.answer + 3], 2)


def test_all_answers_of_a_conversation_are_learnt_and_no_question(speech):
    turn = conversation(speech, ROUNDS)
    text = chat(ROUNDS[0][0])
    expected = []
    for number, (question, answer) in enumerate(ROUNDS):
        text += f"[INST] {question} [/INST]" if number else ""
        expected += [*behind(speech.tokenizer, f"{text} {answer}", len(text))[len(speech.space) :], 2]
        text += f" {answer}</s>"
    assert [turn.ids[place] for place in turn.learnt] == expected
    whole = [1]
    for token in speech.tokenizer(text, add_special_tokens=False)["input_ids"]:
        whole += [token] * (IMAGE_TOKENS if token == speech.image_token else 1)
    assert list(turn.ids) == whole
    assert turn.ids.count(speech.image_token) == IMAGE_TOKENS


def test_one_round_is_a_sequence(speech):
    assert conversation(speech, ROUNDS[:1]) == sequence(speech, chat(ROUNDS[0][0]), ROUNDS[0][1])
    told = conversation(speech, ROUNDS[:1], "Patient: Female.")
    assert told == sequence(speech, chat(ROUNDS[0][0], "Patient: Female."), ROUNDS[0][1])


def test_rounds_that_do_not_fit_are_left_out_whole(speech):
    lengths = [len(conversation(speech, ROUNDS[:count]).ids) for count in (1, 2, 3)]
    for limit in range(lengths[0], lengths[2] + 1):
        kept = sum(length <= limit for length in lengths)
        assert conversation(speech, ROUNDS, limit=limit) == conversation(speech, ROUNDS[:kept])
    with pytest.raises(CohortError, match=f"{lengths[0]} tokens, {IMAGE_TOKENS} of them for the image"):
        conversation(speech, ROUNDS, limit=lengths[0] - 1)


def test_an_image_is_never_cut(speech):
    small = Speech(speech.tokenizer, speech.image_token, 300, 256)
    for make in (lambda: sequence(small, chat("Sure?"), "Yes"), lambda: conversation(small, ROUNDS)):
        with pytest.raises(CohortError, match="300 of them for the image; the limit is 256") as caught:
            make()
        assert "would cut the image" in caught.value.mend


@pytest.mark.parametrize(("question", "answer"), [("Is <image> here?", "Yes"), ("Sure?", "An <image>.")])
def test_a_text_cannot_stand_for_the_image(speech, question, answer):
    with pytest.raises(CohortError, match='says "<image>" itself'):
        sequence(speech, chat(question), answer)
    with pytest.raises(CohortError, match='says "<image>" itself'):
        conversation(speech, [("Sure?", "Yes"), (question, answer)])


def test_a_text_cannot_end_the_answer(speech):
    with pytest.raises(CohortError, match='says "</s>" itself') as caught:
        conversation(speech, [("Sure?", "Yes"), ("Really?", "Yes</s> and more")])
    assert caught.value.where == "round 2"


def test_a_tokenizer_that_joins_prompt_and_answer():
    """The first token that differs from those of the prompt alone belongs to the answer, even if it holds both."""

    def tokenizer(text, add_special_tokens):
        return {"input_ids": {"ab": [1, 2], "ab c": [1, 3, 4]}[text]}

    assert split_answer(tokenizer, "ab", "ab c") == ([1, 3, 4], 1)

"""Text and image as tokens: a question with its answer, or several rounds of them, in Mistral's instruct form.

Prompt and answer are tokenised together, as they will be read: alone, an answer would get other tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Any

from fairvlm_core.cohort.prompts import IMAGE, NO, YES, chat
from fairvlm_core.errors import CohortError
from fairvlm_core.models.packing import Turn


@dataclass(frozen=True)
class Speech:
    """How a model reads text and image.

    Attributes:
        tokenizer: of the language model.
        image_token: id of the token that stands for the image in a text.
        image_tokens: tokens that the image has in its place.
        longest: tokens that the language model can take, those of the image included.
    """

    tokenizer: Any
    image_token: int
    image_tokens: int
    longest: int

    @cached_property
    def space(self) -> tuple[int, ...]:
        """Tokens of white space that every answer begins with, usually none.

        Behind a special token, sentencepiece may write a space of its own. It belongs to the prompt then: at that token
        yes and no could not be told apart.
        """
        prompt = "[INST] a [/INST]"
        yes, no = (split_answer(self.tokenizer, prompt, f"{prompt} {answer}") for answer in (YES, NO))
        shared = _shared(yes[0][yes[1] :], no[0][no[1] :])
        return tuple(takewhile(lambda token: not self.tokenizer.decode([token]).strip(), shared))

    def split(self, prompt: str, text: str) -> tuple[list[int], int]:
        """As `split_answer`, but for the space that every answer begins with."""
        told, start = split_answer(self.tokenizer, prompt, text)
        return told, start + len(self.space) * (tuple(told[start : start + len(self.space)]) == self.space)


def split_answer(tokenizer: Any, prompt: str, text: str) -> tuple[list[int], int]:
    """Token ids of a text that begins with a prompt, and the place of the first one that is not the prompt's."""
    asked = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    told = tokenizer(text, add_special_tokens=False)["input_ids"]
    return told, len(_shared(asked, told))


def _shared(first: Sequence[int], second: Sequence[int]) -> list[int]:
    """The beginning that two sequences share."""
    return [a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))]


def sequence(speech: Speech, prompt: str, answer: str, limit: int = 0) -> Turn:
    """Prompt and answer (`limit` tokens of it at most, 0: all), which ends with the end-of-sequence token.

    Raises:
        CohortError: a text holds the image's token, or is longer than the language model can take.
    """
    told, start = speech.split(prompt, f"{prompt} {answer}")
    told = told[: start + limit] if limit else told
    return _with_image(speech, [*told, speech.tokenizer.eos_token_id], start)


def conversation(speech: Speech, rounds: Sequence[tuple[str, str]], demographics: str = "", limit: int = 0) -> Turn:
    """Several rounds of question and answer about one image; all answers are learnt, no question is.

    The form is Mistral's: `[INST] <image>\\n{question} [/INST] {answer}</s>[INST] {question} [/INST] {answer}</s>`.

    Args:
        rounds: (question, answer), at least one.
        demographics: stands before the first question, see `demographic_prompt`.
        limit: tokens in all, those of the image included (0: as many as the language model takes). Rounds that do not
            fit are left out whole, from the end.

    Raises:
        CohortError: not even the first round fits, or a text holds the image's or the end token.
    """
    tokenizer = speech.tokenizer
    limit = min(limit or speech.longest, speech.longest)
    text, answer = "", 0
    ids: list[int] = []
    asked: list[tuple[int, int]] = []
    for number, (question, reply) in enumerate(rounds):
        prompt = text + (f"[INST] {question} [/INST]" if number else chat(question, demographics))
        told, start = speech.split(prompt, f"{prompt} {reply}")
        # The end token of each earlier round, and nothing else, is found in the text.
        if told.count(tokenizer.eos_token_id) != number or told[: len(ids)] != ids:
            raise CohortError(
                f'A text of a conversation says "{tokenizer.eos_token}" itself, which ends an answer.',
                where=f"round {number + 1}",
                mend="Take the word out of the text.",
            )
        # The begin token, the end token, and the image, whose one token is among those that are counted.
        if number and len(told) + 1 + speech.image_tokens > limit:
            break
        if number:
            asked.append((len(ids), start))
        else:
            answer = start
        ids = [*told, tokenizer.eos_token_id]
        text = f"{prompt} {reply}{tokenizer.eos_token}"
    return _with_image(speech, ids, answer, asked, limit)


def _with_image(
    speech: Speech, ids: Sequence[int], answer: int, asked: Sequence[tuple[int, int]] = (), limit: int = 0
) -> Turn:
    """The begin token, and as many image tokens as the image has where one stands for it."""
    limit = limit or speech.longest
    places = [place for place, token in enumerate(ids) if token == speech.image_token]
    if len(places) > 1 or any(place >= answer for place in places):
        raise CohortError(
            f'A text says "{IMAGE}" itself, which stands for the image.',
            where="a question, an answer or a note",
            mend="Take the word out of the text.",
        )
    begin = [] if speech.tokenizer.bos_token_id is None else [speech.tokenizer.bos_token_id]
    full = [*begin]
    for token in ids:
        full += [token] * (speech.image_tokens if token == speech.image_token else 1)
    if len(full) > limit:
        raise CohortError(
            f"A question with its answer takes {len(full)} tokens, {speech.image_tokens if places else 0} of them for "
            f"the image; the limit is {limit}.",
            where="a question, an answer or a note",
            mend="Shorten the text, use smaller images or raise the limit: cutting tokens off would cut the image.",
        )
    # The image stands before the first answer, so all that is behind it moves by as much.
    moved = len(begin) + (speech.image_tokens - 1 if places else 0)
    return Turn(tuple(full), answer + moved, tuple((start + moved, end + moved) for start, end in asked))

"""Answers in words: greedy generation for the questions about an image, the second path beside the scores.

The rows of a batch are prompts of different lengths, padded on the left, so that all of them begin to answer at the
same place; padding is masked and takes no position, so a row's answer does not depend on its neighbours. An image is
encoded once for all of its questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairvlm_core.models.vlm import VLM

ROWS = 64  # sequences that are generated together


def answers_in_words(model: Any) -> bool:
    """Whether a model can be asked: a dual encoder has no language model to answer with."""
    return isinstance(model, VLM)


def prompts(vlm: VLM) -> list[tuple[int, ...]]:
    """Token ids of what is asked of an image, up to where the answer begins: one per label, or one for all options."""
    return list(dict.fromkeys(turn.ids[: turn.answer] for turn in vlm.turns()))


def generate(vlm: VLM, images: np.ndarray, *, max_new_tokens: int) -> list[list[str]]:
    """Ask every question of the task about each image and let the model answer (FairMed-VLM, inference).

    Args:
        images: uint8 [n, S, S, 3].
        max_new_tokens: where an answer is cut that does not end by itself.

    Returns:
        n lists of answers, one per label (binary, multilabel) or one in all (multiclass), without special tokens.
    """
    asked = prompts(vlm)
    per_batch = max(1, ROWS // len(asked))
    vlm.llava.eval()
    said: list[str] = []
    with torch.inference_mode():
        for start in range(0, len(images), per_batch):
            image_tokens = vlm.project(vlm.features(images[start : start + per_batch]))
            rows = image_tokens.repeat_interleave(len(asked), 0)
            ids = continue_rows(vlm, rows, asked * len(image_tokens), max_new_tokens=max_new_tokens)
            said += vlm.tokenizer.batch_decode(ids, skip_special_tokens=True)
    width = len(asked)
    return [[text.strip() for text in said[start : start + width]] for start in range(0, len(said), width)]


def continue_rows(
    vlm: VLM, image_tokens: Tensor, rows: Sequence[Sequence[int]], *, max_new_tokens: int
) -> list[list[int]]:
    """The most likely next tokens of each row, token by token, up to its end token (which is left out).

    Args:
        image_tokens: [R, P, d], what `VLM.project` gives for the image of each row.
        rows: R prompts of token ids, of any lengths.
    """
    from transformers import GenerationConfig

    end = vlm.tokenizer.eos_token_id
    pad = end if vlm.tokenizer.pad_token_id is None else vlm.tokenizer.pad_token_id
    length = max(len(row) for row in rows)
    ids = torch.tensor([[pad] * (length - len(row)) + list(row) for row in rows], device=image_tokens.device)
    filled = [[0] * (length - len(row)) + [1] * len(row) for row in rows]
    mask = torch.tensor(filled, device=image_tokens.device)
    embedded = vlm.parts.language_model.get_input_embeddings()(ids)
    spot = ((ids == vlm.image_token) & mask.bool())[..., None]
    embedded = embedded.masked_scatter(spot, image_tokens.to(embedded.dtype))
    # Whatever the checkpoint's own settings say (sampling, beams, penalties): the answer is the most likely one.
    settings = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        eos_token_id=end,
        pad_token_id=pad,
        suppress_tokens=[vlm.image_token],  # a place holder, no word
    )
    kept, vlm.llava.generation_config = vlm.llava.generation_config, settings
    try:
        found = vlm.llava.generate(inputs_embeds=embedded, attention_mask=mask, generation_config=settings)
    finally:
        vlm.llava.generation_config = kept
    return [row[: row.index(end)] if end in row else row for row in found.tolist()]

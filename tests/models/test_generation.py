"""Answers in words, batched, against a plain loop over the model's own forward."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bases import SIZE, TASKS, write_bases

from fairvlm_core.models import pixels
from fairvlm_core.models.dual import load_base as load_dual
from fairvlm_core.models.fair_moe import Experts
from fairvlm_core.models.generation import answers_in_words, continue_rows, generate, prompts
from fairvlm_core.models.vlm import load_base

IMAGES = np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3)).astype(np.uint8)
TOKENS = 6


@pytest.fixture(scope="module", params=list(TASKS))
def vlm(request, tmp_path_factory):
    """An untrained model whose weights are large enough for its answers to differ from image to image."""
    base = write_bases(tmp_path_factory.mktemp(request.param), TASKS[request.param])
    vlm = load_base(str(base / "llava"), TASKS[request.param], SIZE)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in vlm.llava.named_parameters():
            if "vision_tower" not in name and parameter.ndim == 2:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    vlm.llava.eval()
    return vlm


def one_by_one(vlm, image, prompt):
    """The most likely token, appended, over and over; the whole sequence goes through the model each time."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(TOKENS):
            row = torch.tensor([ids])
            output = vlm.llava(
                input_ids=row,
                pixel_values=pixels(image[None], vlm.mean, vlm.std),
                attention_mask=torch.ones_like(row),
            )
            logits = output.logits[0, -1]
            logits[vlm.image_token] = -torch.inf  # no word
            token = int(logits.argmax())
            if token == vlm.tokenizer.eos_token_id:
                break
            ids.append(token)
    return ids[len(prompt) :]


def test_batched_answers_equal_those_given_one_by_one(vlm):
    asked = prompts(vlm)
    assert len(asked) == (len(vlm.task.labels) if vlm.task.kind == "multilabel" else 1)
    expected = [
        [vlm.tokenizer.decode(one_by_one(vlm, image, prompt), skip_special_tokens=True).strip() for prompt in asked]
        for image in IMAGES
    ]
    assert generate(vlm, IMAGES, max_new_tokens=TOKENS) == expected
    assert len({text for texts in expected for text in texts}) > 1


def test_prompts_of_different_lengths_do_not_disturb_each_other(vlm):
    """Padding on the left is neither seen nor counted: a row with much of it says what it says alone."""
    asked = prompts(vlm)[0]
    rows = [asked, asked[:-1], (*asked[:-1], *asked[-4:]), (*asked, *asked[-9:])]
    assert len({len(row) for row in rows}) == 4
    tokens = vlm.project(vlm.features(IMAGES[:4])).detach()
    together = continue_rows(vlm, tokens, rows, max_new_tokens=TOKENS)
    for i, row in enumerate(rows):
        assert together[i] == one_by_one(vlm, IMAGES[i], row)


def test_the_checkpoints_own_settings_do_not_count(vlm):
    expected = generate(vlm, IMAGES[:2], max_new_tokens=TOKENS)
    kept = vlm.llava.generation_config.to_dict()
    vlm.llava.generation_config.do_sample, vlm.llava.generation_config.temperature = True, 5.0
    vlm.llava.generation_config.repetition_penalty = 3.0
    try:
        assert generate(vlm, IMAGES[:2], max_new_tokens=TOKENS) == expected
        assert vlm.llava.generation_config.temperature == 5.0
    finally:
        vlm.llava.generation_config = type(vlm.llava.generation_config).from_dict(kept)


def test_an_answer_ends_with_the_end_token(vlm):
    asked = prompts(vlm)[0]
    first = one_by_one(vlm, IMAGES[0], asked)
    kept = vlm.tokenizer.eos_token
    vlm.tokenizer.eos_token = vlm.tokenizer.convert_ids_to_tokens(first[2])
    try:
        tokens = vlm.project(vlm.features(IMAGES[:1])).detach()
        found = continue_rows(vlm, tokens, [asked], max_new_tokens=TOKENS)
    finally:
        vlm.tokenizer.eos_token = kept
    assert found == [first[: first.index(first[2])]]


def test_a_dual_encoder_has_no_words(tmp_path):
    base = write_bases(tmp_path, TASKS["binary"])
    assert not answers_in_words(
        load_dual(str(base / "dual"), TASKS["binary"], SIZE, experts=Experts(count=2, top_k=1), seed=0)
    )

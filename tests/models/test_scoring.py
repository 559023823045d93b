"""All findings of an image from one prefill, against one pass of LlavaForConditionalGeneration per finding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bases import SIZE, TASKS, write_bases

from fairvlm_core.cohort.prompts import NO, YES, chat, questions
from fairvlm_core.cohort.table import Task
from fairvlm_core.models import pixels
from fairvlm_core.models.packing import pack
from fairvlm_core.models.vlm import load_base

FINDINGS = (
    "no finding", "an enlarged cardiomediastinum", "cardiomegaly", "lung opacity", "a lung lesion", "edema",
    "consolidation", "pneumonia", "atelectasis", "a pneumothorax", "pleural effusion", "another pleural disease",
    "a fracture", "support devices",
)  # fmt: skip
MANY = {
    "binary": TASKS["binary"],
    "multilabel": Task("multilabel", FINDINGS, FINDINGS, tuple(f"not {finding}" for finding in FINDINGS)),
    # Options of different lengths, of which two begin alike and one is the beginning of another.
    "multiclass": Task(
        "multiclass",
        ("nv", "mel", "mis", "bcc", "bkl"),
        ("nevus", "melanoma", "melanoma in situ", "basal cell carcinoma of the skin", "basal keratosis"),
    ),
}
IMAGES = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3)).astype(np.uint8)


@pytest.fixture(scope="module", params=list(MANY))
def vlm(request, tmp_path_factory):
    """Weights large enough for the scores to differ from image to image and from finding to finding."""
    base = write_bases(tmp_path_factory.mktemp(request.param), MANY[request.param])
    vlm = load_base(str(base / "llava"), MANY[request.param], SIZE)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in vlm.llava.parameters():
            if parameter.ndim == 2:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    vlm.llava.eval()
    return vlm


def separate(vlm, prompt, answer):
    """Log-probabilities [n, tokens] of an answer (with its end) after a prompt, a pass of its own for each image."""
    turn = vlm.sequence(prompt, answer)
    ids = torch.tensor([turn.ids])
    rows = []
    for image in IMAGES:
        with torch.no_grad():
            output = vlm.llava(
                input_ids=ids,
                pixel_values=pixels(image[None], vlm.mean, vlm.std),
                attention_mask=torch.ones_like(ids),
            )
        said = output.logits[0, :-1].double().log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        rows.append(said[turn.answer - 1 :])
    return torch.stack(rows)


def test_one_prefill_scores_like_separate_passes(vlm):
    found, task = vlm.score(IMAGES), vlm.task
    if task.kind == "multiclass":
        lengths = [len(turn.ids) - turn.answer for turn in vlm.turns()]
        assert len(set(lengths)) > 2, "the options should differ in length"
        likelihood = torch.stack([separate(vlm, chat(task.question), option).mean(1) for option in task.concepts], 1)
        expected = likelihood.softmax(1)
    else:
        assert len(vlm.turns()) == len(task.labels)
        odds = []
        for question in questions(task):
            yes, no = (separate(vlm, chat(question), answer)[:, 0].exp() for answer in (YES, NO))
            odds.append(yes / (yes + no))
        expected = torch.stack(odds, 1)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    assert expected.std() > 0.01


def test_an_answer_depends_on_its_own_question_only(vlm):
    """Scores do not change with the order of the questions, nor when others are left out."""
    tokens = vlm.project(vlm.features(IMAGES[:1]))
    turns = vlm.turns()
    with torch.no_grad():
        packed = pack([turns])
        logits = vlm.answer_logits(tokens, packed)
        turned = pack([turns[::-1]])
        other = vlm.answer_logits(tokens, turned)
        for j, turn in enumerate(turns):
            mine = logits[packed.sequence == j]
            torch.testing.assert_close(other[turned.sequence == len(turns) - 1 - j], mine, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(vlm.answer_logits(tokens, pack([[turn]])), mine, atol=1e-5, rtol=1e-5)

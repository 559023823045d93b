"""The LLaVA family: loading, scoring, adapters."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from bases import SIZE, TASKS, write_bases

from fairvlm_core.cohort.prompts import chat, questions
from fairvlm_core.errors import CheckpointError
from fairvlm_core.models import base_path, describe, load, pixels
from fairvlm_core.models.vlm import apply_adapter, load_base, save

IMAGES = np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3)).astype(np.uint8)


@pytest.fixture(scope="module", params=list(TASKS))
def base(request, tmp_path_factory):
    return write_bases(tmp_path_factory.mktemp(request.param), TASKS[request.param]), TASKS[request.param]


def fresh(base):
    folder, task = base
    return load_base(str(folder / "llava"), task, SIZE)


def log_probabilities(vlm, prompt, answer):
    """Token log-probabilities of an answer per image, by the model's own forward: [n, tokens]."""
    turn = vlm.sequence(prompt, answer)
    ids = torch.tensor([turn.ids] * len(IMAGES))
    output = vlm.llava(
        input_ids=ids, pixel_values=pixels(IMAGES, vlm.mean, vlm.std), attention_mask=torch.ones_like(ids)
    )
    chosen = output.logits.double().log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
    return chosen[:, turn.answer - 1 :]


def test_scores_equal_separate_passes_in_float64_arithmetic(base):
    vlm, task = fresh(base), base[1]
    vlm.llava.eval()
    found = vlm.score(IMAGES)
    with torch.no_grad():
        if task.kind == "multiclass":
            options = [log_probabilities(vlm, chat(task.question), option).mean(1) for option in task.concepts]
            expected = torch.stack(options, 1).softmax(1)
        else:
            pairs = [
                torch.stack([log_probabilities(vlm, chat(q), answer)[:, 0] for answer in ("Yes", "No")], 1).exp()
                for q in questions(task)
            ]
            expected = torch.stack([pair[:, 0] / pair.sum(1) for pair in pairs], 1)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    assert found.dtype == np.float32


def test_a_score_does_not_depend_on_the_batch(base):
    vlm = fresh(base)
    np.testing.assert_allclose(vlm.score(IMAGES)[3:4], vlm.score(IMAGES[3:4]), atol=1e-6)


def trained(vlm, seed):
    """An adapter with random contents, as training would leave one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in vlm.llava.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return vlm


def test_two_stages_are_saved_and_loaded_without_base_weights(base, tmp_path):
    folder, _ = base
    first = fresh(base)
    first.add_adapter(rank=4, alpha=8, tower=False)
    trained(first, 1)
    (tmp_path / "stage1").mkdir()
    save(first, tmp_path / "stage1", name="stage1", seed=0)

    second = load(tmp_path / "stage1", folder)
    np.testing.assert_allclose(second.score(IMAGES), first.score(IMAGES), atol=1e-5)
    second.add_adapter(rank=4, alpha=8, tower=True)
    trained(second, 2)
    (tmp_path / "stage2").mkdir()
    save(second, tmp_path / "stage2", name="stage2", seed=0, earlier=tmp_path / "stage1")

    reloaded = load(tmp_path / "stage2", folder)
    np.testing.assert_allclose(reloaded.score(IMAGES), second.score(IMAGES), atol=1e-5)
    assert np.abs(reloaded.score(IMAGES) - first.score(IMAGES)).max() > 1e-4
    assert describe(tmp_path / "stage2")["adapters"] == ["adapter-stage1", "adapter-stage2"]

    from safetensors.torch import load_file

    for adapter in (tmp_path / "stage2").glob("adapter-*"):
        names = load_file(adapter / "adapter_model.safetensors").keys()
        assert all("lora_" in name or "multi_modal_projector" in name for name in names)
        written = json.loads((adapter / "adapter_config.json").read_text())
        assert written["base_model_name_or_path"] in (None, "")


def test_stage2_reaches_tower_language_and_projector_but_not_the_unused_layer(base):
    vlm = fresh(base)
    vlm.add_adapter(rank=4, alpha=8, tower=True)
    with_gradient = {name for name, p in vlm.llava.named_parameters() if p.requires_grad}
    tower = {name for name in with_gradient if "vision_tower" in name}
    assert tower
    assert any("language_model" in name for name in with_gradient)
    assert any("multi_modal_projector" in name for name in with_gradient)
    assert not any("vision_tower.encoder.layers.3." in name for name in tower)  # 4 layers, the projector reads -2
    # LoRA's B starts at zero, so A has no gradient in the first step; B must have one everywhere.
    vlm.project(vlm.features(IMAGES)).mean(1).square().sum().backward()
    for name, parameter in vlm.llava.named_parameters():
        if "vision_tower" in name and "lora_B" in name:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def test_stage1_leaves_the_tower_alone(base):
    vlm = fresh(base)
    vlm.add_adapter(rank=4, alpha=8, tower=False)
    assert not any("vision_tower" in name for name, p in vlm.llava.named_parameters() if p.requires_grad)


def test_concept_embeddings_are_the_mean_input_embeddings(base):
    vlm, task = fresh(base), base[1]
    table = vlm.llava.get_input_embeddings().weight
    found = vlm.concept_embeddings(task.concepts)
    for phrase, row in zip(task.concepts, found, strict=True):
        ids = vlm.tokenizer(f" {phrase}", add_special_tokens=False)["input_ids"]
        torch.testing.assert_close(row, sum(table[i] for i in ids) / len(ids))


def test_what_is_read_of_an_image_is_the_hidden_state_of_transformers(base):
    """Whatever is asked: the mean of the last hidden state at the image's tokens, from a pass through all of Llava."""
    vlm = fresh(base)
    vlm.llava.eval()
    with torch.no_grad():
        found = vlm.read(vlm.project(vlm.features(IMAGES)))
        for prompt in ("What is this?", "Describe the findings."):
            ids = torch.tensor([vlm.sequence(chat(prompt), "Yes").ids] * len(IMAGES))
            shown = pixels(IMAGES, vlm.mean, vlm.std)
            states = vlm.llava(input_ids=ids, pixel_values=shown, output_hidden_states=True).hidden_states
            expected = states[-1][ids == vlm.image_token].view(len(IMAGES), vlm.image_tokens, -1).mean(1)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_mistakes_are_told(base, tmp_path):
    folder, task = base
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_base(str(tmp_path / "nowhere"), task, SIZE)
    with pytest.raises(CheckpointError, match='model type "clip"'):
        load_base(str(folder / "dual"), task, SIZE)
    with pytest.raises(CheckpointError, match="no trained model"):
        load(tmp_path, folder)
    with pytest.raises(CheckpointError, match="adapter is missing"):
        apply_adapter(fresh(base), tmp_path / "adapter-stage1")
    (tmp_path / "bases.json").write_text('{"vlm": "./gone"}')
    with pytest.raises(CheckpointError, match="checkpoint is missing"):
        base_path(tmp_path, "vlm")
    with pytest.raises(CheckpointError, match="no base model for the family dual"):
        base_path(tmp_path, "dual")

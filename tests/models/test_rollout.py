"""Attention rollout and the map of a case, against loops over the eager model's own attention."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bases import SIZE, TASKS, write_bases
from transformers import Dinov2Config, LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig

from fairvlm_core.models import pixels
from fairvlm_core.models.generation import prompts
from fairvlm_core.models.rollout import attention_map, attention_rollout, eager_attention, patch_map, recorded
from fairvlm_core.models.vlm import load_base

IMAGE = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)
PATCHES = (SIZE // 8) ** 2


def attentions(blocks, heads, tokens, seed=0):
    drawn = torch.rand(
        blocks, heads, tokens, tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return list(drawn / drawn.sum(-1, keepdim=True))


def loop_rollout(blocks):
    """Plain numbers: token i of a block is half itself and half what its heads attend to on average."""
    tokens = len(blocks[0][0])
    made = [[float(i == j) for j in range(tokens)] for i in range(tokens)]
    for block in blocks:
        mixed = []
        for i in range(tokens):
            row = [0.0] * tokens
            for k in range(tokens):
                weight = 0.5 * sum(float(head[i][k]) for head in block) / len(block) + 0.5 * (i == k)
                for j in range(tokens):
                    row[j] += weight * made[k][j]
            mixed.append(row)
        made = mixed
    return np.array(made)


def test_rollout_equals_a_loop_and_its_rows_sum_to_one():
    blocks = attentions(3, 2, 7)
    found = attention_rollout(blocks)
    np.testing.assert_allclose(found, loop_rollout(blocks), atol=1e-12)
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-12)
    assert attention_rollout([block.float() for block in blocks]).dtype == torch.float64
    # The order of the blocks counts.
    assert not torch.allclose(found, attention_rollout(blocks[::-1]))
    with pytest.raises(ValueError, match="at least one block"):
        attention_rollout([])


@pytest.mark.parametrize("before", [0, 1, 5], ids=["no class token", "class token", "class token and registers"])
def test_a_model_that_looks_at_one_patch_has_its_map_there(before):
    """All tokens of the tower read patch 4; the answer reads patch 7 of the image. Both show, and nothing else."""
    tokens, image = before + 9, slice(2, 11)
    tower = torch.zeros(2, 3, tokens, tokens)
    tower[..., before + 4] = 1
    language = torch.zeros(2, 2, 13, 13)
    language[:, :, 12, image.start + 7] = 0.25
    language[:, :, 12, 0] = 0.75  # most of it flows to the begin token, as in real models: it is no part of the map
    found = patch_map(list(tower), list(language), image=image, position=12, patches=9)
    expected = np.zeros(9)
    expected[7], expected[4] = 0.25, 0.75  # after two blocks a quarter of a token is still itself
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_an_even_model_has_an_even_map():
    tower, language = [torch.full((2, 10, 10), 0.1)] * 2, [torch.full((2, 14, 14), 1 / 14)] * 2
    found = patch_map(tower, language, image=slice(2, 11), position=13, patches=9)
    np.testing.assert_allclose(found, 1 / 9, atol=1e-12)


def tower_config(kind):
    shape = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": SIZE, "patch_size": 8}
    if kind == "siglip":
        return SiglipVisionConfig(**shape, intermediate_size=64)
    return Dinov2Config(**shape)


@pytest.fixture(scope="module", params=["clip", "dinov2", "siglip"])
def vlm(request, tmp_path_factory):
    """A tiny LLaVA with a tower with a class token (CLIP, DINOv2) or without one (SigLIP)."""
    folder, task = tmp_path_factory.mktemp(request.param), TASKS["multilabel"]
    base = write_bases(folder, task)
    if request.param != "clip":
        config = LlavaConfig.from_pretrained(base / "llava")
        config.vision_config = tower_config(request.param)
        config.vision_feature_select_strategy = "full" if request.param == "siglip" else "default"
        torch.manual_seed(0)
        LlavaForConditionalGeneration(config).save_pretrained(base / "llava")
        (base / "llava" / "processor_config.json").unlink(missing_ok=True)  # it speaks of CLIP's tower
    vlm = load_base(str(base / "llava"), task, SIZE)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in vlm.llava.parameters():
            if parameter.ndim == 2:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    vlm.llava.eval()
    return vlm


def loop_map(vlm, question):
    """From LlavaForConditionalGeneration itself, switched to eager attention, with plain loops."""
    prompt = prompts(vlm)[question]
    values = pixels(IMAGE[None], vlm.mean, vlm.std)
    ids = torch.tensor([prompt])
    vlm.llava.set_attn_implementation("eager")
    with torch.no_grad():
        output = vlm.llava(
            input_ids=ids, pixel_values=values, attention_mask=torch.ones_like(ids), output_attentions=True
        )
        blocks = vlm.parts.vision_tower(values, output_attentions=True).attentions
    vlm.llava.set_attn_implementation("sdpa")
    # The projector reads hidden state -2: the last block takes no part.
    rolled = loop_rollout([block[0].tolist() for block in blocks[:-1]])
    places = [i for i, token in enumerate(prompt) if token == vlm.image_token]
    looked = np.zeros(len(places))
    for layer in output.attentions:
        for head in layer[0]:
            looked += [float(head[len(prompt) - 1, place]) for place in places]
    first = rolled.shape[0] - len(places)
    found = sum(looked[i] * rolled[first + i] for i in range(len(places)))[-PATCHES:]
    return (found / found.sum()).reshape(SIZE // 8, SIZE // 8)


@pytest.mark.parametrize("question", [0, 1])
def test_the_map_equals_a_loop_over_the_models_own_attention(vlm, question):
    found = attention_map(vlm, IMAGE, question)
    np.testing.assert_allclose(found, loop_map(vlm, question), rtol=1e-4)
    assert found.sum() == pytest.approx(1)
    assert found.std() * PATCHES > 0.01  # not simply even


def test_questions_and_images_have_maps_of_their_own(vlm):
    found = attention_map(vlm, IMAGE, 0)
    assert np.abs(found - attention_map(vlm, IMAGE, 1)).max() > 1e-6
    assert np.abs(found - attention_map(vlm, IMAGE[::-1].copy(), 0)).max() > 1e-6


def test_the_model_is_left_as_it_was(vlm):
    """Eager attention and the hooks are for the map alone, also where something fails."""
    before, scored = vlm.llava.config.text_config._attn_implementation, vlm.score(IMAGE[None])
    hooks = len(vlm.parts.vision_tower._forward_hooks), len(vlm.parts.vision_tower._forward_pre_hooks)

    def fails():
        with eager_attention(vlm.llava), recorded(vlm.parts.vision_tower):
            assert vlm.llava.config.text_config._attn_implementation == "eager"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    attention_map(vlm, IMAGE)
    assert before == "sdpa" == vlm.llava.config.text_config._attn_implementation
    assert vlm.llava.config.vision_config._attn_implementation == "sdpa"
    assert hooks == (len(vlm.parts.vision_tower._forward_hooks), len(vlm.parts.vision_tower._forward_pre_hooks))
    np.testing.assert_array_equal(vlm.score(IMAGE[None]), scored)

"""The CLIP family on both of transformers' dual encoders: features, experts, freezing, files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bases import SIZE, TASKS, write_bases
from torch.nn import functional as F

from fairvlm_core.cohort.prompts import zero_shot_prompts
from fairvlm_core.errors import CheckpointError
from fairvlm_core.models import load, pixels, tiny
from fairvlm_core.models.dual import Experts, blocks, load_base, save
from fairvlm_core.models.moe import EmbeddingMoE

IMAGES = np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3)).astype(np.uint8)
TEXTS = ["A photo of melanoma", "A photo of a much longer text about an edema of the lung", "disc"]
NONE = Experts(count=0)


def write_two_towers(folder):
    """A dual encoder of an untrained DINOv2 and an untrained BERT."""
    from transformers import BertConfig, BertModel, Dinov2Config, Dinov2Model, VisionTextDualEncoderModel
    from transformers.models.vision_text_dual_encoder import VisionTextDualEncoderConfig

    tokenizer = tiny.train_tokenizer(tiny.corpus(TASKS["multiclass"], []), end=True)
    torch.manual_seed(0)
    vision = Dinov2Model(
        Dinov2Config(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=64, patch_size=8)
    )
    text = BertModel(
        BertConfig(
            hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, vocab_size=len(tokenizer)
        )
    )
    config = VisionTextDualEncoderConfig.from_vision_text_configs(vision.config, text.config, projection_dim=16)
    VisionTextDualEncoderModel(config=config, vision_model=vision, text_model=text).save_pretrained(folder)
    tiny.save_processors(folder, tokenizer, SIZE, tiny.MEAN, tiny.STD)


@pytest.fixture(scope="module", params=["clip", "two towers"])
def checkpoint(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dual")
    if request.param == "clip":
        return str(write_bases(folder, TASKS["multiclass"]) / "dual")
    write_two_towers(folder)
    return str(folder)


def fresh(checkpoint, experts=NONE, task="multiclass"):
    dual = load_base(checkpoint, TASKS[task], SIZE, experts=experts, seed=3)
    dual.train(False)
    return dual


def test_without_experts_the_features_are_those_of_transformers(checkpoint):
    dual = fresh(checkpoint)
    with torch.no_grad():
        expected = dual.model.get_image_features(pixel_values=pixels(IMAGES, dual.mean, dual.std)).pooler_output
        tokens = dual.tokenizer(TEXTS, padding=True, return_tensors="pt", return_token_type_ids=False)
        spoken = dual.model.get_text_features(**tokens).pooler_output
        for depth in (1, 2, len(blocks(dual.model.vision_model))):
            found = dual.head(dual.trunk(IMAGES, depth), depth).features
            torch.testing.assert_close(found, F.normalize(expected, dim=-1), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(dual.encode_text(TEXTS).features, F.normalize(spoken, dim=-1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("task", list(TASKS))
def test_scores_are_the_softmax_over_the_captions(checkpoint, task):
    dual = fresh(checkpoint, task=task)
    found = dual.score(IMAGES)
    with torch.no_grad():
        image = F.normalize(
            dual.model.get_image_features(pixel_values=pixels(IMAGES, dual.mean, dual.std)).pooler_output
        )
        columns = []
        for group in zero_shot_prompts(TASKS[task]):
            captions = torch.cat([dual.encode_text([text]).features for text in group])
            chance = (dual.model.logit_scale.exp() * image @ captions.T).double().softmax(1)
            columns.append(chance if task == "multiclass" else chance[:, 1:])
    np.testing.assert_allclose(found, torch.cat(columns, 1).numpy(), atol=1e-5)


def test_with_every_expert_on_every_token_the_experts_begin_as_the_mlp(checkpoint):
    """All M copies with softmax weights that sum to 1 and capacity for all tokens are the pretrained MLP itself."""
    plain, mixed = fresh(checkpoint), fresh(checkpoint, Experts(count=3, top_k=3, capacity=float("inf")))
    torch.testing.assert_close(mixed.embed(IMAGES), plain.embed(IMAGES), atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(
            mixed.encode_text(TEXTS).features, plain.encode_text(TEXTS).features, atol=1e-5, rtol=1e-4
        )


def test_experts_run_on_the_pooled_token_alone_and_nothing_changes(checkpoint, monkeypatch):
    """Features, gates and gradients equal those of experts that run on every token."""

    def outcome():
        dual = fresh(checkpoint, Experts(capacity=0.4))
        found = dual.head(dual.trunk(IMAGES, 1), 1), dual.encode_text(TEXTS)
        torch.manual_seed(0)
        values = [value for side in found for value in (side.features, *side.gates.values())]
        sum((value * torch.randn_like(value)).sum() for value in values).backward()
        return values + [p.grad for p in dual.named_parameters().values() if p.grad is not None]

    mine = outcome()
    forward = EmbeddingMoE.forward
    monkeypatch.setattr(EmbeddingMoE, "forward", lambda self, x, mask, read: forward(self, x, mask))
    wanted = outcome()
    assert len(mine) == len(wanted)
    for a, b in zip(mine, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_gates_of_padding_are_zero_and_padding_changes_nothing(checkpoint):
    dual = fresh(checkpoint, Experts())
    with torch.no_grad():
        together = dual.encode_text(TEXTS)
        mask = dual.slots["text"].mask
        assert (together.gates["embedding"][~mask] == 0).all()
        assert together.gates["feature"].shape == (3, 4)
        for row, text in enumerate(TEXTS):
            alone = dual.encode_text([text]).features[0]
            torch.testing.assert_close(together.features[row], alone, atol=1e-5, rtol=1e-4)


def test_only_the_last_blocks_train(checkpoint):
    dual = fresh(checkpoint, Experts())
    dual.freeze(1)
    for name, parameter in dual.named_parameters().items():
        lower = ".embeddings." in name or any(
            f".{kind}.0." in name and "encoder" in name for kind in ("layers", "layer")
        )
        if lower:
            assert not parameter.requires_grad, name
        if "experts" in name or name.startswith(("visual_projection", "text_projection", "logit_scale")):
            assert parameter.requires_grad, name


def test_what_is_frozen_has_no_dropout(checkpoint):
    dual = fresh(checkpoint, Experts())
    dual.freeze(1)
    dual.train()
    assert not any(module.training for frozen in dual.frozen for module in frozen.modules())
    for tower in (dual.model.vision_model, dual.model.text_model):
        assert blocks(tower)[-1].training
        assert not blocks(tower)[0].training


@pytest.mark.parametrize("train_blocks", [0, 1])
def test_a_trained_model_is_saved_and_loaded_exactly(checkpoint, train_blocks, tmp_path):
    dual = fresh(checkpoint, Experts())
    dual.freeze(train_blocks)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in dual.named_parameters().values():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    save(dual, tmp_path, name="fair_moe", seed=3)
    (tmp_path / "bases.json").write_text(f'{{"dual": "{checkpoint}"}}')
    assert np.array_equal(load(tmp_path, tmp_path).score(IMAGES), dual.score(IMAGES))
    assert not np.allclose(dual.score(IMAGES), fresh(checkpoint, Experts()).score(IMAGES))
    if train_blocks:
        from safetensors.torch import load_file

        assert not any(".embeddings." in name for name in load_file(tmp_path / "trained.safetensors"))


def test_weights_of_another_base_are_refused(checkpoint, tmp_path):
    from safetensors.torch import save_file

    dual = fresh(checkpoint)
    save(dual, tmp_path, name="fair_moe", seed=0)
    (tmp_path / "bases.json").write_text(f'{{"dual": "{checkpoint}"}}')
    save_file({"visual_projection.weight": torch.zeros(1, 1)}, tmp_path / "trained.safetensors")
    with pytest.raises(CheckpointError, match="do not fit the base model"):
        load(tmp_path, tmp_path)
    (tmp_path / "trained.safetensors").unlink()
    with pytest.raises(CheckpointError, match="weights are missing"):
        load(tmp_path, tmp_path)

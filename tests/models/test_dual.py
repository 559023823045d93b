"""The CLIP family on both of transformers' dual encoders: features, experts, freezing, files."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from bases import SIZE, TASKS, write_bases
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from fairvlm_core.cohort.prompts import zero_shot_prompts
from fairvlm_core.errors import CheckpointError, ConfigError
from fairvlm_core.models import load, pixels, tiny
from fairvlm_core.models.dual import load_base, save
from fairvlm_core.models.fair_moe import Experts, FairMoEConfig, FairMoEModel, blocks
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


def test_only_whole_safetensors_are_read(checkpoint, tmp_path):
    """A pickle is not even opened, and what is missing is not drawn at random, as transformers would do."""
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    gone = next(name for name in tensors if name.startswith("text_model") and name.endswith("weight"))
    save_file({name: value for name, value in tensors.items() if name != gone}, weights, {"format": "pt"})
    with pytest.raises(CheckpointError, match="lacks 1 of the model's tensors") as caught:
        fresh(str(folder))
    assert gone in caught.value.where
    torch.save(tensors, folder / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(CheckpointError, match="no safetensors"):
        fresh(str(folder))


def test_without_experts_the_features_are_those_of_transformers(checkpoint):
    dual = fresh(checkpoint)
    with torch.no_grad():
        expected = dual.model.encoders.get_image_features(
            pixel_values=pixels(IMAGES, dual.mean, dual.std)
        ).pooler_output
        tokens = dual.tokenizer(TEXTS, padding=True, return_tensors="pt", return_token_type_ids=False)
        spoken = dual.model.encoders.get_text_features(**tokens).pooler_output
        for depth in (1, 2, len(blocks(dual.model.encoders.vision_model))):
            found = dual.head(dual.trunk(IMAGES, depth), depth).features
            torch.testing.assert_close(found, F.normalize(expected, dim=-1), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(dual.encode_text(TEXTS).features, F.normalize(spoken, dim=-1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("task", list(TASKS))
def test_scores_are_the_softmax_over_the_captions(checkpoint, task):
    dual = fresh(checkpoint, task=task)
    found = dual.score(IMAGES)
    with torch.no_grad():
        image = F.normalize(
            dual.model.encoders.get_image_features(pixel_values=pixels(IMAGES, dual.mean, dual.std)).pooler_output
        )
        columns = []
        for group in zero_shot_prompts(TASKS[task]):
            captions = torch.cat([dual.encode_text([text]).features for text in group])
            chance = (dual.model.encoders.logit_scale.exp() * image @ captions.T).double().softmax(1)
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
        values = [
            value for side in found for value in (side.features, *(routing.gates for routing in side.routing.values()))
        ]
        sum((value * torch.randn_like(value)).sum() for value in values).backward()
        return values + [p.grad for p in dual.model.parameters() if p.grad is not None]

    mine = outcome()
    mix = EmbeddingMoE.mix
    monkeypatch.setattr(EmbeddingMoE, "mix", lambda self, x, routing, read: mix(self, x, routing))
    wanted = outcome()
    assert len(mine) == len(wanted)
    for a, b in zip(mine, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_gates_of_padding_are_zero_and_padding_changes_nothing(checkpoint):
    dual = fresh(checkpoint, Experts())
    with torch.no_grad():
        together = dual.encode_text(TEXTS)
        mask = dual.model.slots["text"].mask
        assert (together.routing["embedding"].gates[~mask] == 0).all()
        assert together.routing["feature"].gates.shape == (3, 4)
        for row, text in enumerate(TEXTS):
            alone = dual.encode_text([text]).features[0]
            torch.testing.assert_close(together.features[row], alone, atol=1e-5, rtol=1e-4)


def test_a_text_that_is_too_long_is_cut_behind_a_word(checkpoint):
    dual = fresh(checkpoint)
    text = "the optic disc is pale and the cup is large " * 60
    short = dual.shorten(text)
    assert text.startswith(short + " ")
    length = len(dual.tokenizer(short)["input_ids"])
    following = text[len(short) :].split()[0]
    assert length <= dual.longest < len(dual.tokenizer(f"{short} {following}")["input_ids"])
    assert dual.shorten("a pale disc") == "a pale disc"
    with torch.no_grad():
        torch.testing.assert_close(dual.encode_text([text]).features, dual.encode_text([short]).features)


def test_the_pooled_token_keeps_its_experts_where_it_is_protected(checkpoint):
    lost = {}
    for protected in (False, True):
        dual = fresh(checkpoint, Experts(capacity=0.1, top_k=1, protect_pooled=protected, renormalise=protected))
        with torch.no_grad():
            gates = (
                dual.encode_text(TEXTS * 8).routing["embedding"].gates,
                dual.head(dual.trunk(IMAGES, 1), 1).routing["embedding"].gates,
            )
        read = dual.model.slots["text"].read
        pooled = torch.cat([gates[0][torch.arange(len(read)), read], gates[1][:, 0]])
        lost[protected] = (pooled == 0).all(1).float().mean().item()
        if protected:
            torch.testing.assert_close(pooled.sum(1), torch.ones(len(pooled)))
    assert lost[False] > 0
    assert lost[True] == 0


@pytest.mark.parametrize("side", ["image", "text"])
@pytest.mark.parametrize("kind", ["embedding", "feature"])
def test_experts_are_where_they_are_asked_for(checkpoint, kind, side):
    dual = fresh(checkpoint, Experts(places=(f"{kind}_{side}",)))
    with torch.no_grad():
        found = {"image": dual.head(dual.trunk(IMAGES, 1), 1), "text": dual.encode_text(TEXTS)}
    assert {name: list(encoded.routing) for name, encoded in found.items()} == {
        "image": [kind] if side == "image" else [],
        "text": [kind] if side == "text" else [],
    }


@pytest.mark.parametrize(("layer", "reaches"), [(-2, True), (-1, False)])
def test_what_a_dropped_patch_is_given_reaches_the_feature_from_an_earlier_block_only(
    checkpoint, layer, reaches, monkeypatch
):
    dual = fresh(checkpoint, Experts(count=3, top_k=1, capacity=0.3, layer=layer, places=("embedding_image",)))
    mix = EmbeddingMoE.mix

    def disturbed(self, x, routing, _):
        dropped = (routing.gates == 0).all(-1, keepdim=True)
        dropped[:, 0] = False
        assert dropped.any()
        return mix(self, x, routing) + dropped * torch.linspace(-1, 1, x.shape[-1])

    before = dual.embed(IMAGES)
    monkeypatch.setattr(EmbeddingMoE, "mix", disturbed)
    assert bool((dual.embed(IMAGES) - before).abs().max() > 1e-4) == reaches


def test_the_mean_is_read_where_it_is_asked_for(checkpoint):
    plain, dual = fresh(checkpoint), fresh(checkpoint, Experts(count=0, pooling="mean"))
    tower = plain.model.encoders.vision_model
    with torch.no_grad():
        state = tower(pixel_values=pixels(IMAGES, plain.mean, plain.std), output_hidden_states=True).hidden_states[-1]
        norm = tower.post_layernorm if hasattr(tower, "post_layernorm") else tower.layernorm
        patches = torch.stack([norm(row)[1:].mean(0) for row in state])
        expected = F.normalize(plain.model.encoders.visual_projection(patches), dim=-1)
        torch.testing.assert_close(dual.embed(IMAGES), expected, atol=1e-5, rtol=1e-4)
        words = []
        for text in TEXTS:
            ids = plain.tokenizer(text, return_tensors="pt")["input_ids"]
            words.append(plain.model.encoders.text_model(input_ids=ids).last_hidden_state[0].mean(0))
        expected = F.normalize(plain.model.encoders.text_projection(torch.stack(words)), dim=-1)
        torch.testing.assert_close(dual.encode_text(TEXTS).features, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("size", "vision", "text", "projection", "millions"),
    [
        ("B/16", (768, 12, 12, 16, 224), (512, 12, 8), 512, 197),
        ("L/14", (1024, 24, 16, 14, 224), (768, 12, 12), 768, 519),
    ],
)
def test_four_experts_make_the_papers_number_of_parameters(size, vision, text, projection, millions):
    """Fair-MoE: about 200 M and 500 M. From the published configurations, without any weights."""
    from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig

    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size", "image_size")
    sides = [
        kind(**dict(zip(names, values, strict=False)), intermediate_size=4 * values[0], projection_dim=projection)
        for kind, values in ((CLIPTextConfig, text), (CLIPVisionConfig, vision))
    ]
    with torch.device("meta"):
        encoders = CLIPConfig(text_config=sides[0], vision_config=sides[1], projection_dim=projection)
        model = FairMoEModel(FairMoEConfig(encoders=encoders))
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count / 1e6 == pytest.approx(millions, rel=0.005)


def test_a_block_that_is_not_there_or_not_trained_is_told(checkpoint):
    with pytest.raises(ConfigError, match="none is number 9"):
        fresh(checkpoint, Experts(layer=9))
    with pytest.raises(ConfigError, match="a block that is not trained"):
        fresh(checkpoint, Experts(layer=0)).freeze(1)


def test_only_the_last_blocks_train(checkpoint):
    dual = fresh(checkpoint, Experts())
    dual.freeze(1)
    for name, parameter in dual.model.named_parameters():
        lower = ".embeddings." in name or any(
            f".{kind}.0." in name and "encoder" in name for kind in ("layers", "layer")
        )
        if lower:
            assert not parameter.requires_grad, name
        if "experts" in name or name.startswith(
            ("encoders.visual_projection", "encoders.text_projection", "encoders.logit_scale")
        ):
            assert parameter.requires_grad, name


def test_what_is_frozen_has_no_dropout(checkpoint):
    dual = fresh(checkpoint, Experts())
    dual.freeze(1)
    dual.train()
    assert not any(module.training for frozen in dual.frozen for module in frozen.modules())
    for tower in (dual.model.encoders.vision_model, dual.model.encoders.text_model):
        assert blocks(tower)[-1].training
        assert not blocks(tower)[0].training


@pytest.mark.parametrize("train_blocks", [0, 1])
def test_a_trained_model_is_saved_and_loaded_exactly(checkpoint, train_blocks, tmp_path):
    dual = fresh(checkpoint, Experts())
    dual.freeze(train_blocks)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in dual.model.parameters():
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

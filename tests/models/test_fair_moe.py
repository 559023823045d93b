"""Fair-MoE as a transformers model: files, initialisation, and the same numbers as the pipeline's own."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from bases import SIZE, TASKS, write_bases
from test_dual import IMAGES, TEXTS, write_two_towers
from torch import nn
from transformers import AutoModel

from fairvlm_core.errors import CheckpointError
from fairvlm_core.models import load, pixels
from fairvlm_core.models.dual import load_base, save
from fairvlm_core.models.fair_moe import PLACES, Experts, FairMoEConfig, FairMoEModel
from fairvlm_core.models.moe import EmbeddingMoE, FeatureMoE

VARIANTS = [
    Experts(),
    Experts(count=3, top_k=1, gate="linear", layer=-2, pooling="mean", residual=False),
    Experts(places=("embedding_text", "feature_image"), protect_pooled=True, renormalise=True),
    Experts(count=0),
]


@pytest.fixture(scope="module", params=["clip", "two towers"])
def checkpoint(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fair_moe")
    if request.param == "clip":
        return str(write_bases(folder, TASKS["multiclass"]) / "dual")
    write_two_towers(folder)
    return str(folder)


def fresh(checkpoint, experts, seed=3):
    """A model whose every parameter has moved, as training would leave it."""
    dual = load_base(checkpoint, TASKS["multiclass"], SIZE, experts=experts, seed=seed)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in dual.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    dual.train(False)
    return dual


def asked(dual):
    """What a call of the model takes, for the same images and texts as the pipeline's."""
    tokens = dual.tokenizer(TEXTS, padding=True, return_tensors="pt", return_token_type_ids=False)
    return {"pixel_values": pixels(IMAGES, dual.mean, dual.std), **tokens}


@pytest.mark.parametrize("experts", VARIANTS, ids=range(len(VARIANTS)))
def test_a_round_trip_through_files_is_exact(checkpoint, experts, tmp_path):
    dual = fresh(checkpoint, experts)
    dual.model.save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    again = AutoModel.from_pretrained(tmp_path).eval()
    assert type(again) is FairMoEModel
    assert again.experts == experts
    mine, its = dual.model.state_dict(), again.state_dict()
    assert mine.keys() == its.keys()
    assert all(torch.equal(mine[name], its[name]) for name in mine)
    for parameter in again.parameters():
        parameter.data = parameter.data.clone()  # a file's tensors may lie unaligned, which moves the last bit of a sum
    with torch.no_grad():
        wanted, found = dual.model(**asked(dual)), again(**asked(dual))
    for name in ("logits_per_image", "logits_per_text", "image_embeds", "text_embeds"):
        assert torch.equal(wanted[name], found[name]), name
    torch.testing.assert_close(found.image_embeds, dual.embed(IMAGES))
    torch.testing.assert_close(found.text_embeds, dual.encode_text(TEXTS).features)


def test_the_files_hold_no_path_of_this_machine(checkpoint, tmp_path):
    fresh(checkpoint, Experts()).model.save_pretrained(tmp_path)
    told = (tmp_path / "config.json").read_text()
    assert checkpoint not in told
    assert json.loads(told)["experts"]["places"] == list(PLACES)


@pytest.mark.parametrize("residual", [True, False])
def test_a_model_made_of_its_configuration_begins_as_one_with_pretrained_encoders(checkpoint, residual):
    """Gates as torch draws them, the experts of an embedding mixture one MLP, those behind an encoder add nothing."""
    config = fresh(checkpoint, Experts(residual=residual)).model.config
    torch.manual_seed(5)
    model = FairMoEModel(FairMoEConfig(**config.to_dict()))
    assert all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())
    for mixture in model.modules():
        if not isinstance(mixture, (EmbeddingMoE, FeatureMoE)):
            continue
        for linear in (part for part in mixture.gate.modules() if isinstance(part, nn.Linear)):
            bound = linear.in_features**-0.5
            assert 0.5 * bound < linear.weight.abs().max().item() <= bound
            assert linear.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.25)
        first, *others = mixture.experts
        same = [
            torch.equal(a, b)
            for other in others
            for a, b in zip(other.parameters(), first.parameters(), strict=True)
            if a.ndim == 2
        ]
        if isinstance(mixture, EmbeddingMoE):
            assert all(same)
        else:
            last = [list(expert.children())[-1] for expert in mixture.experts]
            assert all(bool((part.weight == 0).all()) == residual for part in last)
            assert not all(same)


def test_what_a_checkpoint_lacks_is_initialised_and_what_it_has_is_kept(checkpoint, tmp_path):
    from safetensors.torch import load_file, save_file

    dual = fresh(checkpoint, Experts())
    dual.model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    gone = {name for name in weights if ".gate." in name or name.startswith("feature_moes.")}
    save_file(
        {name: value for name, value in weights.items() if name not in gone},
        tmp_path / "model.safetensors",
        metadata={"format": "pt"},
    )
    again = FairMoEModel.from_pretrained(tmp_path)
    found = again.state_dict()
    kept = dual.model.state_dict()
    assert all(torch.equal(found[name], kept[name]) for name in kept if name not in gone)
    assert gone <= found.keys()
    assert gone
    for name in gone:
        assert bool(torch.isfinite(found[name]).all())
        assert float(found[name].abs().max()) <= 1
    for mixture in again.feature_moes.values():
        assert all(bool((list(expert.children())[-1].weight == 0).all()) for expert in mixture.experts)


def test_the_weights_of_mixtures_with_another_number_of_experts_are_refused(checkpoint, tmp_path):
    dual = fresh(checkpoint, Experts(count=4))
    save(dual, tmp_path, name="fair_moe", seed=3)
    (tmp_path / "bases.json").write_text(json.dumps({"dual": checkpoint}))
    told = json.loads((tmp_path / "model.json").read_text())
    told["experts"]["count"] = 8
    (tmp_path / "model.json").write_text(json.dumps(told))
    with pytest.raises(CheckpointError, match=r"with 4 experts, and model\.json says 8"):
        load(tmp_path, tmp_path)
    dual.model.save_pretrained(tmp_path / "plain")
    config = FairMoEConfig.from_pretrained(tmp_path / "plain")
    config.experts["count"] = 8
    with pytest.raises(RuntimeError, match="mismatch"):
        FairMoEModel.from_pretrained(tmp_path / "plain", config=config)


@pytest.mark.parametrize("blocks", [0, 1])
def test_an_image_encoder_that_was_brought_is_saved_with_what_is_frozen_of_it(checkpoint, blocks, tmp_path):
    plain = load_base(checkpoint, TASKS["multiclass"], SIZE, experts=Experts(count=0), seed=0)
    tower = plain.model.encoders.vision_model
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    dual = load_base(checkpoint, TASKS["multiclass"], SIZE, experts=Experts(), seed=0, tower=tower)
    dual.freeze(blocks)
    save(dual, tmp_path, name="fair_moe", seed=0)
    (tmp_path / "bases.json").write_text(json.dumps({"dual": checkpoint}))
    scores = load(tmp_path, tmp_path).score(IMAGES)
    assert np.array_equal(scores, dual.score(IMAGES))
    base = load_base(checkpoint, TASKS["multiclass"], SIZE, experts=Experts(), seed=0)
    assert not np.allclose(scores, base.score(IMAGES), atol=1e-4)
    # Also the experts are copies of the brought MLP, not of the base's.
    if "encoder.layers" in "".join(tower.state_dict()):
        mlp = tower.encoder.layers[-1].mlp
        for expert in dual.model.slots["image"].moe.experts:
            assert torch.equal(expert.fc1.weight, mlp.fc1.weight)


def test_an_image_encoder_of_another_architecture_is_refused(checkpoint):
    with pytest.raises(CheckpointError, match="not of the architecture"):
        load_base(
            checkpoint,
            TASKS["multiclass"],
            SIZE,
            experts=Experts(),
            seed=0,
            tower=nn.ModuleDict({"a": nn.Linear(1, 1)}),
        )

"""The exported checkpoint, loaded by transformers alone, against the model it was made of."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import typer
from bases import TASKS, write_bases
from PIL import Image
from published import SIZE, write_published
from typer.testing import CliRunner

from fairvlm_core.cohort.prompts import YES, chat, questions
from fairvlm_core.commands.export import export
from fairvlm_core.errors import CheckpointError, ConfigError
from fairvlm_core.files import write_json
from fairvlm_core.models import load
from fairvlm_core.models.dual import load_base as load_dual
from fairvlm_core.models.dual import save as save_dual
from fairvlm_core.models.export import export_model
from fairvlm_core.models.fair_moe import Experts
from fairvlm_core.models.packing import pack
from fairvlm_core.models.vlm import load_base, save

TASK = TASKS["multilabel"]


def trained(folder, base, task, size):
    """A model of two stages whose adapters have random contents, as training would leave them."""
    generator = torch.Generator().manual_seed(0)
    for name, earlier in (("stage1", None), ("stage2", folder / "stage1")):
        vlm = load(earlier, base) if earlier else load_base(str(base / "llava"), task, size)
        vlm.add_adapter(rank=2, alpha=4, tower=earlier is not None)
        with torch.no_grad():
            for parameter in vlm.llava.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
        (folder / name).mkdir()
        save(vlm, folder / name, name=name, seed=0, earlier=earlier)
    return folder / "stage2"


def served_logits(folder, images, question, answer_ids):
    """Logits behind the prompt, by transformers alone; `answer_ids` follow what the chat template writes."""
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    model, processor = (
        LlavaForConditionalGeneration.from_pretrained(folder).eval(),
        AutoProcessor.from_pretrained(folder),
    )
    found = []
    for image in images:
        content = [{"type": "image", "image": Image.fromarray(image)}, {"type": "text", "text": question}]
        made = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
        )
        space = torch.tensor([answer_ids], dtype=torch.long)
        ids = torch.cat([made["input_ids"], space], 1)
        with torch.no_grad():
            output = model(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=made["pixel_values"])
        found.append(output.logits[0, -1])
    return torch.stack(found)


@pytest.mark.parametrize(
    ("kind", "tower", "size"),
    [("llama", "clip", SIZE), ("controls", "dinov2", 84), ("prepend", "clip", 84), ("llama", "siglip", 84)],
)
def test_the_export_gives_the_same_logits_and_scores(tmp_path, kind, tower, size):
    """Also where the images have another size than the tower was pretrained for."""
    base = tmp_path / "base"
    write_published(base / "llava", kind=kind, tower=tower, strategy="full" if tower == "siglip" else "default")
    write_json(base / "bases.json", {"vlm": "llava"})
    folder = trained(tmp_path, base, TASK, size)
    vlm = load(folder, base)
    export_model(folder, base, tmp_path / "served")

    images = np.random.default_rng(0).integers(0, 256, (3, size, size, 3)).astype(np.uint8)
    scores, (yes, no) = vlm.score(images), vlm.yes_no
    for j, question in enumerate(questions(TASK)):
        turn = vlm.sequence(chat(question), YES)
        logits = served_logits(tmp_path / "served", images, question, list(vlm.speech.space))
        packed = pack([[turn]] * len(images))
        with torch.no_grad():
            ours = vlm.answer_logits(vlm.project(vlm.features(images)), packed)
        first = torch.cumsum(packed.lengths, 0) - packed.lengths
        torch.testing.assert_close(logits, ours[first], atol=1e-5, rtol=1e-5)
        served = torch.sigmoid((logits[:, yes] - logits[:, no]).double()).numpy()
        np.testing.assert_allclose(served, scores[:, j], atol=1e-5)
    # What was trained is in it: the base alone scores otherwise.
    assert np.abs(load_base(str(base / "llava"), TASK, size).score(images) - scores).max() > 1e-3


def test_the_folder_holds_what_serving_needs_and_nothing_else(tmp_path):
    base = tmp_path / "base"
    write_published(base / "llava")
    write_json(base / "bases.json", {"vlm": "llava"})
    folder = trained(tmp_path, base, TASK, SIZE)
    app = typer.Typer()
    app.command()(export)
    given = ["--model", str(folder), "--base", str(base), "--out", str(tmp_path / "served"), "--dtype", "bfloat16"]
    answer = CliRunner().invoke(app, given, catch_exceptions=False)
    assert answer.exit_code == 0
    assert str(tmp_path / "served") in answer.output
    files = {file.name for file in (tmp_path / "served").iterdir()}
    needed = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert needed | {"processor_config.json", "preprocessor_config.json", "fairvlm.json"} <= files
    assert not any(name.endswith((".bin", ".pt", ".py")) or "adapter" in name for name in files)
    weights = (tmp_path / "served" / "model.safetensors").stat().st_size
    base_size = sum(file.stat().st_size for file in (base / "llava").glob("*.safetensors"))
    assert weights == pytest.approx(base_size / 2, rel=0.05)
    described = json.loads((tmp_path / "served" / "fairvlm.json").read_text())
    assert described["task"]["labels"] == list(TASK.labels)
    assert str(tmp_path) not in "".join(
        file.read_text() for file in (tmp_path / "served").iterdir() if file.suffix in (".json", ".jinja")
    )


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("experts", [Experts(), Experts(count=0), Experts(count=0, pooling="mean")])
def test_a_dual_encoder_gives_the_same_scores(tmp_path, experts, size):
    """By transformers' classes alone: processor, tokenizer, the prompts in fairvlm.json, and the model's call."""
    from transformers import AutoModel, AutoTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    base = write_bases(tmp_path / "base", TASK)
    model = load_dual(str(base / "dual"), TASK, size, experts=experts, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    (tmp_path / "fair_moe").mkdir()
    save_dual(model, tmp_path / "fair_moe", name="fair_moe", seed=0)
    out = tmp_path / "served"
    export_model(tmp_path / "fair_moe", base, out)

    plain = experts == Experts(count=0)
    served = AutoModel.from_pretrained(out).eval()
    assert type(served).__name__ == ("CLIPModel" if plain else "FairMoEModel")
    images = np.random.default_rng(0).integers(0, 256, (3, size, size, 3)).astype(np.uint8)
    seen = CLIPImageProcessorPil.from_pretrained(out)([Image.fromarray(image) for image in images], return_tensors="pt")
    prompts = json.loads((out / "fairvlm.json").read_text())["prompts"]
    expected = load(tmp_path / "fair_moe", base).score(images)
    tokenizer = AutoTokenizer.from_pretrained(out)
    for j, pair in enumerate(prompts):
        told = tokenizer(pair, padding=True, return_tensors="pt", return_token_type_ids=False)
        with torch.no_grad():
            chance = served(**told, pixel_values=seen["pixel_values"]).logits_per_image.softmax(-1)
        np.testing.assert_allclose(chance[:, 1].numpy(), expected[:, j], atol=1e-5)
    assert str(tmp_path) not in "".join(file.read_text() for file in out.iterdir() if file.suffix == ".json")


def test_what_cannot_be_exported_is_refused(tmp_path):
    base = write_bases(tmp_path / "base", TASK)
    with pytest.raises(CheckpointError, match="no trained model"):
        export_model(tmp_path, base, tmp_path / "served")
    model = trained(tmp_path, base, TASK, 32)
    with pytest.raises(ConfigError, match="not empty"):
        export_model(model, base, base)
    assert not (tmp_path / "served").exists()
    # An empty folder is as good as none.
    (tmp_path / "served").mkdir()
    export_model(model, base, tmp_path / "served")
    assert (tmp_path / "served" / "config.json").is_file()

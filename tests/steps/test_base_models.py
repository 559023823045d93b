"""Base models: pretrained a little, written in the transformers layout, the same for the same seed."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from bases import SIZE, TASKS, write_cohort_with_images

from fairvlm_core.cohort.table import read_cohort, rows_of
from fairvlm_core.errors import CheckpointError, ConfigError
from fairvlm_core.files import read_json
from fairvlm_core.models import base_path
from fairvlm_core.models.pictures import draw
from fairvlm_core.steps import base_models, execute


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return write_cohort_with_images(tmp_path_factory.mktemp("cohort"), TASKS["binary"])


def make(cohort, out, **fields):
    config = base_models.Config(**{"image_size": SIZE, "clip_steps": 4, "llava_steps": 4, "pictures": 64, **fields})
    return execute("base_models", config, {"cohort": cohort}, {"out": out})


def test_tiny_models_load_as_any_published_checkpoint(cohort, tmp_path):
    from transformers import AutoProcessor, AutoTokenizer, CLIPModel, LlavaForConditionalGeneration

    metrics = make(cohort, tmp_path / "base")
    assert read_json(tmp_path / "base" / "bases.json", made_by="base_models") == {"vlm": "llava", "dual": "dual"}
    llava, dual = base_path(tmp_path / "base", "vlm"), base_path(tmp_path / "base", "dual")
    language = LlavaForConditionalGeneration.from_pretrained(llava)
    clip = CLIPModel.from_pretrained(dual)
    assert AutoProcessor.from_pretrained(dual) is not None
    tokenizer = AutoTokenizer.from_pretrained(llava)
    # yes and no are one token each: answers are scored at their first token.
    assert all(len(tokenizer(f" {word}", add_special_tokens=False)["input_ids"]) == 1 for word in ("Yes", "No"))
    tower = language.model.vision_tower.state_dict()
    assert all(value.equal(tower[name]) for name, value in clip.vision_model.state_dict().items())
    assert metrics["clip_loss"] > 0
    assert metrics["llava_loss"] > 0


def test_the_same_seed_gives_the_same_bytes(cohort, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make(cohort, tmp_path / name, seed=seed)
    for model in ("llava", "dual"):
        first, again, other = ((tmp_path / name / model / "model.safetensors").read_bytes() for name in "abc")
        assert first == again != other
        for file in (tmp_path / "a" / model).iterdir():  # whatever folder they were written to
            assert file.read_bytes() == (tmp_path / "b" / model / file.name).read_bytes(), file.name


def test_pretraining_learns(cohort, tmp_path):
    little = make(cohort, tmp_path / "a", clip_steps=1, llava_steps=1)
    more = make(cohort, tmp_path / "b", clip_steps=25, llava_steps=25)
    assert more["clip_loss"] < little["clip_loss"] * 0.9
    assert more["llava_loss"] < little["llava_loss"] * 0.5


def test_the_tokenizer_reads_the_training_split_only(cohort, tmp_path, monkeypatch):
    from fairvlm_core.models import tiny

    seen = []
    monkeypatch.setattr(tiny, "corpus", lambda task, notes: seen.extend(notes) or ["text Yes No"] * 10)
    make(cohort, tmp_path / "base", clip_steps=0, llava_steps=0)
    notes = set(rows_of(read_cohort(cohort), "train").column("note").to_pylist()) - {None}
    assert set(seen) == notes


def test_pictures_show_what_their_captions_say():
    images, shown = draw(400, 48, np.random.default_rng(0))
    marked = np.array([picture.marked for picture in shown])
    corner = images[:, 41:46, 3:7].mean((1, 2, 3))
    assert corner[marked].min() > corner[~marked].max() - 25
    disc = (
        images.astype(float).mean(3) > np.median(images.astype(float).mean(3), axis=(1, 2))[:, None, None] + 35
    ).mean((1, 2))
    large = np.array([picture.large for picture in shown])
    assert disc[large].mean() > 2 * disc[~large].mean()
    assert len({picture.caption for picture in shown}) > 50
    for picture in shown[:50]:
        assert picture.answers["Is there a mark?"] == ("with a mark" in picture.caption)
        assert picture.answers["Is the disc large?"] == ("large disc" in picture.caption)


def test_published_checkpoints_are_named_not_copied(cohort, tmp_path):
    base = tmp_path / "tiny"
    make(cohort, base)
    names = {"vlm": str(base / "llava"), "dual": "openai/clip-vit-base-patch16"}
    execute(
        "base_models", base_models.Config(preset="published", **names), {"cohort": cohort}, {"out": tmp_path / "out"}
    )
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("bases.json", "weights.json", "config.json", "metrics.json"),
    }
    file = base / "llava" / "model.safetensors"
    recorded = {"sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "size": file.stat().st_size}
    told = read_json(tmp_path / "out" / "weights.json", made_by="base_models")
    assert told == {"vlm": {file.name: recorded}}  # nothing is fetched from the hub for it
    assert told["vlm"] == read_json(base / "weights.json", made_by="base_models")["vlm"]
    assert base_path(tmp_path / "out", "vlm") == str(base / "llava")
    assert base_path(tmp_path / "out", "dual") == "openai/clip-vit-base-patch16"


def test_a_published_folder_that_stage1_could_not_use_is_refused_at_once(cohort, tmp_path):
    base = tmp_path / "tiny"
    make(cohort, base)
    weights = base / "llava" / "model.safetensors"
    weights.rename(tmp_path / "pytorch_model.bin")
    config = base_models.Config(preset="published", vlm=str(base / "llava"), dual="openai/clip-vit-base-patch16")
    with pytest.raises(CheckpointError, match="no safetensors"):
        execute("base_models", config, {"cohort": cohort}, {"out": tmp_path / "out"})
    (tmp_path / "pytorch_model.bin").rename(weights)
    other = base_models.Config(**{**vars(config), "image_size": 60})
    with pytest.raises(CheckpointError, match="60 pixels"):
        execute("base_models", other, {"cohort": cohort}, {"out": tmp_path / "out"})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", ["vlm", "dual"])
def test_a_folder_that_is_not_there_is_refused_before_anything_is_trained(cohort, tmp_path, family):
    names = {"vlm": "someone/llava", "dual": "someone/clip", family: "../../pretrained/not-there"}
    config = base_models.Config(preset="published", **names)
    with pytest.raises(CheckpointError, match=r"missing(.|\n)*not-there(.|\n)*base_models\." + family):
        execute("base_models", config, {"cohort": cohort}, {"out": tmp_path / "out"})
    assert not (tmp_path / "out").exists()


def test_a_dual_encoder_that_fair_moe_could_not_use_is_refused_at_once(cohort, tmp_path):
    base = tmp_path / "tiny"
    make(cohort, base)
    config = base_models.Config(preset="published", vlm=str(base / "llava"), dual=str(base / "llava"))
    with pytest.raises(CheckpointError, match='model type "llava"'):
        execute("base_models", config, {"cohort": cohort}, {"out": tmp_path / "out"})
    config = base_models.Config(**{**vars(config), "dual": str(base / "dual")})
    (base / "dual" / "model.safetensors").rename(base / "dual" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="no safetensors"):
        execute("base_models", config, {"cohort": cohort}, {"out": tmp_path / "out"})


def test_mistakes_are_told(cohort, tmp_path):
    with pytest.raises(ConfigError, match=r"base_models\.dual is empty"):
        execute(
            "base_models",
            base_models.Config(preset="published", vlm="x"),
            {"cohort": cohort},
            {"out": tmp_path / "out"},
        )
    with pytest.raises(CheckpointError, match="pretrained checkpoint is missing"):
        make(cohort, tmp_path / "out", preset="small", vision=str(tmp_path), text=str(tmp_path))
    assert not (tmp_path / "out").exists()

"""The frozen part of the image side, computed once and shared: the same results, and no result of anything else."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import published
import pytest
import torch
from bases import SIZE, TASKS, write_bases, write_cohort_with_images
from safetensors.torch import load_file

from fairvlm_core.cohort.images import ImageStore
from fairvlm_core.errors import ConfigError, FairVLMError
from fairvlm_core.evaluation.predictions import read_predictions
from fairvlm_core.files import read_json, write_json
from fairvlm_core.models.trunk import FEATURES, trunk_tokens
from fairvlm_core.models.vlm import load_base
from fairvlm_core.steps import execute, fair_moe, predict, stage1, stage2

FAST = {"batch_size": 16, "learning_rate": 3e-3, "epochs": 1, "augment": False}
CONFIGS = {
    "stage1": stage1.Config(**FAST, lora_rank=4, cache_features=True),
    "stage2": stage2.Config(**FAST, lora_rank=4, tower_blocks=1),
    "fair_moe": fair_moe.Config(**FAST, group_batch=4, experts=2, train_blocks=1),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trunk")
    write_cohort_with_images(folder / "cohort", TASKS["binary"])
    write_bases(folder / "base", TASKS["binary"])
    train(folder, "stage1", folder / "stage1")
    return folder


def train(place, name, out, **options):
    inputs = {"cohort": place / "cohort", "images": place / "cohort", "base": place / "base"}
    more = {"stage1": place / "stage1"} if name == "stage2" else {}
    execute(name, dataclasses.replace(CONFIGS[name], **options), {**inputs, **more}, {"out": out})
    return out


def scored(place, model, out, **options):
    inputs = {"model": model, "base": place / "base", "cohort": place / "cohort", "images": place / "cohort"}
    execute("predict", predict.Config(**options), inputs, {"out": out})
    return np.array(read_predictions(out).column("y_score").to_pylist())


def assert_same_training(one, other, *, atol):
    """Weights and figures of two folders."""
    for file in one.rglob("*.safetensors"):
        ours, theirs = load_file(file), load_file(other / file.relative_to(one))
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            torch.testing.assert_close(value, theirs[name], atol=atol, rtol=0, msg=lambda text, name=name: name + text)
    first, second = (read_json(folder / "history.json", made_by="stage2") for folder in (one, other))
    for phase, epochs in first.items():
        for mine, its in zip(epochs, second[phase], strict=True):
            assert mine == pytest.approx(its, abs=max(atol, 1e-12) * 10)


def fresh(place):
    vlm = load_base(str(place / "base" / "llava"), TASKS["binary"], SIZE)
    vlm.llava.eval()
    return vlm


@pytest.fixture
def seen(monkeypatch):
    """How many images went through the patch embedding of any tower."""
    from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings

    counted = []
    forward = CLIPVisionEmbeddings.forward

    def counting(self, pixel_values, *args, **kwargs):
        counted.append(len(pixel_values))
        return forward(self, pixel_values, *args, **kwargs)

    monkeypatch.setattr(CLIPVisionEmbeddings, "forward", counting)
    return counted


@pytest.mark.parametrize("layer", [-2, -1, 2, [-2, 1]])
@pytest.mark.parametrize("tower", ["clip", "dinov2", "siglip"])
def test_trunk_and_rest_are_the_whole_tower(tmp_path, tower, layer):
    """Against transformers' own forward pass, whose hidden states `features` reads."""
    strategy = "full" if tower == "siglip" else "default"
    published.write_published(tmp_path, layer=layer, strategy=strategy, tower=tower)
    vlm = load_base(str(tmp_path), TASKS["binary"], published.SIZE)
    vlm.llava.eval()
    shape = (5, published.SIZE, published.SIZE, 3)
    images = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    with torch.no_grad():
        expected = vlm.features(images)
        for blocks in (None, *range(max(vlm.layers_read) + 1)):
            trunk = vlm.trunk_below(blocks)
            assert torch.equal(trunk.upper(trunk.lower(images)), expected), blocks


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_lora_is_in_the_last_blocks_that_are_read(place, blocks):
    vlm = fresh(place)
    vlm.add_adapter(rank=4, alpha=8, tower=blocks != 0, tower_blocks=blocks)
    trained = {name for name, parameter in vlm.llava.named_parameters() if parameter.requires_grad}
    found = {int(name.split(".layers.")[1].split(".")[0]) for name in trained if "vision_tower" in name}
    assert found == {0: set(), 1: {2}, 2: {1, 2}}[blocks]  # 4 blocks, the projector reads what enters the last
    assert any("language_model" in name for name in trained)
    with pytest.raises(ConfigError, match="reads 3 blocks of the vision tower, so 4 cannot"):
        fresh(place).add_adapter(rank=4, alpha=8, tower=True, tower_blocks=4)


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_a_trunk_that_is_computed_once_gives_the_same_training(place, tmp_path, seen, blocks):
    """Without repetitions there is nothing to augment, but images that may be augmented are never kept."""
    # What augmentation draws would change which demographic prompts are dropped: there are none.
    options = {"oversample": 0.0, "tower_blocks": blocks, "demographic_prompts": False}
    kept = train(place, "stage2", tmp_path / "kept", epochs=2, **options)
    once = sum(seen)
    assert once == 64 + 16  # training and validation
    each = train(place, "stage2", tmp_path / "each", epochs=2, augment=True, **options)
    assert sum(seen) - once == 2 * 64 + 16
    assert_same_training(kept, each, atol=1e-6)


def test_all_blocks_by_number_are_all_blocks(place, tmp_path):
    ours = train(place, "stage2", tmp_path / "number", tower_blocks=3)
    whole = train(place, "stage2", tmp_path / "none", tower_blocks=None)
    assert_same_training(ours, whole, atol=1e-6)
    assert read_json(whole / "model.json", made_by="stage2")["base_below"] is None
    assert read_json(ours / "model.json", made_by="stage2")["base_below"] == 3


@pytest.mark.parametrize("name", list(CONFIGS))
def test_a_second_run_computes_no_features(place, tmp_path, monkeypatch, seen, name):
    """Neither the same training again nor another seed, nor `predict`; and none of them gives anything else."""
    alone = train(place, name, tmp_path / "alone")
    expected = scored(place, alone, tmp_path / "expected", splits=("train", "validation", "test"))
    monkeypatch.setenv(FEATURES, str(tmp_path / "features"))
    seen.clear()
    first = train(place, name, tmp_path / "first")
    assert sum(seen) == 64 + 16
    seen.clear()
    second = train(place, name, tmp_path / "second")
    train(place, name, tmp_path / "third", seed=1, oversample=2.0)
    assert not seen
    for folder in (first, second):
        assert_same_training(alone, folder, atol=0)
    found = scored(place, second, tmp_path / "found", splits=("train", "validation", "test"))
    assert sum(seen) == 16  # those of the test split alone, which no training reads
    np.testing.assert_allclose(found, expected, atol=1e-6, rtol=0)
    seen.clear()
    scored(place, tmp_path / "third", tmp_path / "again", splits=("test", "validation"))
    assert not seen
    files = list((tmp_path / "features").iterdir())
    assert [path.suffix for path in files] == [".npy"] * 3


def test_what_is_trained_is_never_shared(place, tmp_path, monkeypatch):
    """A tower with LoRA in all its blocks, the model of an earlier release, and a tower that another stage made."""
    monkeypatch.setenv(FEATURES, str(tmp_path / "features"))
    whole = train(place, "stage2", tmp_path / "whole", tower_blocks=None)
    scored(place, whole, tmp_path / "a")
    described = read_json(place / "stage1" / "model.json", made_by="stage1")
    described.pop("base_below")
    (tmp_path / "earlier").symlink_to(place / "stage1")
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "adapter-stage1").symlink_to(place / "stage1" / "adapter-stage1")
    write_json(copy / "model.json", described)
    expected = scored(place, copy, tmp_path / "b")
    inputs = {"cohort": place / "cohort", "images": place / "cohort", "base": place / "base", "start": whole}
    config = dataclasses.replace(CONFIGS["fair_moe"], init_from="stage2")
    execute("fair_moe", config, inputs, {"out": tmp_path / "moe"})
    scored(place, tmp_path / "moe", tmp_path / "c")
    assert not (tmp_path / "features").exists()
    np.testing.assert_allclose(scored(place, place / "stage1", tmp_path / "d"), expected, atol=1e-6, rtol=0)
    assert (tmp_path / "features").exists()


def test_a_file_belongs_to_the_weights_below_and_to_the_pictures(place, tmp_path, monkeypatch):
    monkeypatch.setenv(FEATURES, str(tmp_path))
    store = ImageStore.open(place / "cohort")
    rows = np.arange(5)

    def tokens(vlm, blocks=1, store=store, rows=rows):
        """The tokens, which must be what the trunk gives now, and how many files there are."""
        trunk = vlm.trunk_below(blocks)
        found = trunk_tokens(trunk, store, rows, label="test")
        with torch.no_grad():
            torch.testing.assert_close(found, trunk.lower(store.at(rows)), atol=1e-6, rtol=0)
        return len(list(tmp_path.iterdir()))

    assert tokens(fresh(place)) == 1
    assert tokens(fresh(place)) == 1
    above, below = fresh(place), fresh(place)
    for vlm, block in ((above, 2), (below, 1)):
        with torch.no_grad():
            vlm.parts.vision_tower.encoder.layers[block].mlp.fc1.weight[0, 0] += 0.5
    assert tokens(above) == 1
    assert tokens(below) == 2
    assert tokens(fresh(place), blocks=2) == 3
    assert tokens(fresh(place), rows=rows[::-1].copy()) == 4
    changed = store.pixels.copy()
    changed[4, 0, 0, 0] ^= 1
    assert tokens(fresh(place), store=ImageStore(changed, store.keys)) == 5
    elsewhere = ImageStore(store.pixels[::-1].copy(), store.keys)
    assert tokens(fresh(place), store=elsewhere, rows=len(store.pixels) - 1 - rows) == 5  # the same pictures


def test_half_precision_is_kept_to_the_bit(place, tmp_path, monkeypatch):
    monkeypatch.setenv(FEATURES, str(tmp_path))
    vlm = load_base(str(place / "base" / "llava"), TASKS["binary"], SIZE, dtype=torch.bfloat16)
    trunk, store = vlm.trunk_below(1), ImageStore.open(place / "cohort")
    first, second = (trunk_tokens(trunk, store, np.arange(5), label="test") for _ in range(2))
    assert first.dtype == torch.bfloat16
    with torch.no_grad():
        expected = trunk.lower(store.at(np.arange(5)))
    assert torch.equal(first, expected)
    assert torch.equal(second, expected)


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY\x01\x00", None])
def test_a_file_in_pieces_is_written_again(place, tmp_path, monkeypatch, damage):
    monkeypatch.setenv(FEATURES, str(tmp_path))
    trunk, store = fresh(place).trunk_below(1), ImageStore.open(place / "cohort")
    expected = trunk_tokens(trunk, store, np.arange(5), label="test").clone()
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:-100] if damage is None else damage)
    assert torch.equal(trunk_tokens(trunk, store, np.arange(5), label="test"), expected)
    assert path.read_bytes() == whole


def test_a_folder_that_cannot_be_written_is_told(place, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(FEATURES, str(tmp_path / "file" / "features"))
    with pytest.raises(FairVLMError, match="features cannot be written") as caught:
        trunk_tokens(fresh(place).trunk_below(1), ImageStore.open(place / "cohort"), np.arange(5), label="test")
    assert str(tmp_path) in caught.value.where
    assert FEATURES in caught.value.mend


def test_two_runs_at_once_leave_one_whole_file(place, tmp_path, monkeypatch):
    script = (
        "import sys, numpy as np, pathlib, test_trunk as t\n"
        "place = pathlib.Path(sys.argv[1])\n"
        "store = t.ImageStore.open(place / 'cohort')\n"
        "found = t.trunk_tokens(t.fresh(place).trunk_below(1), store, np.arange(96), label='test')\n"
        "np.save(sys.argv[2], found.numpy())\n"
    )
    here = Path(__file__).parent
    environment = {
        **os.environ,
        FEATURES: str(tmp_path / "features"),
        "PYTHONPATH": os.pathsep.join(map(str, (here.parents[1], here.parent, here))),
    }
    running = [
        subprocess.Popen([sys.executable, "-c", script, place, tmp_path / f"{number}.npy"], env=environment)
        for number in range(2)
    ]
    assert [process.wait() for process in running] == [0, 0]
    (path,) = (tmp_path / "features").iterdir()
    assert path.suffix == ".npy"
    expected = trunk_tokens(fresh(place).trunk_below(1), ImageStore.open(place / "cohort"), np.arange(96), label="test")
    for number in range(2):
        np.testing.assert_allclose(np.load(tmp_path / f"{number}.npy"), expected.numpy(), atol=1e-6, rtol=0)

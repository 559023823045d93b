"""The training steps and predict as a user runs them: outputs, mistakes, a killed run."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from bases import GROUPS, SIZE, TASKS, write_bases, write_cohort_with_images

from fairvlm_core.errors import CheckpointError, CohortError, ConfigError
from fairvlm_core.evaluation.metrics import auc
from fairvlm_core.evaluation.predictions import read_predictions, scores
from fairvlm_core.files import read_json
from fairvlm_core.models import load
from fairvlm_core.models.dual import DualEncoder, load_base
from fairvlm_core.models.fair_moe import Experts
from fairvlm_core.steps import execute, fair_moe, predict, stage1, stage2

DISPERSIONS = [f"{kind}_{side}_weight" for kind in ("embedding", "feature") for side in ("image", "text")]
FAST = {"batch_size": 16, "learning_rate": 3e-3, "augment": False}
CONFIGS = {
    "stage1": stage1.Config(**FAST, epochs=6, concept_epochs=1, lora_rank=4),
    "stage2": stage2.Config(**FAST, epochs=2, lora_rank=4),
    "fair_moe": fair_moe.Config(**FAST, epochs=6, group_batch=4, experts=2),
}


@pytest.fixture(scope="module", params=list(TASKS))
def place(request, tmp_path_factory):
    """A folder with a cohort, its images, and base models."""
    folder = tmp_path_factory.mktemp(request.param)
    write_cohort_with_images(folder / "cohort", TASKS[request.param])
    write_bases(folder / "base", TASKS[request.param])
    return folder


@pytest.fixture(scope="module")
def trained(place):
    common = {"cohort": place / "cohort", "images": place / "cohort", "base": place / "base"}
    for name, config in CONFIGS.items():
        more = {"stage1": place / "stage1"} if name == "stage2" else {}
        execute(name, config, {**common, **more}, {"out": place / name})
    return place


@pytest.mark.parametrize("name", list(CONFIGS))
def test_a_trained_model_knows_bright_from_dark(trained, name):
    inputs = {
        "model": trained / name,
        "base": trained / "base",
        "cohort": trained / "cohort",
        "images": trained / "cohort",
    }
    metrics = execute("predict", predict.Config(), inputs, {"out": trained / "predictions" / name})
    table = read_predictions(trained / "predictions" / name)
    found = scores(table, "test")
    assert metrics["images"] == 32
    assert set(table.column("split").to_pylist()) == {"validation", "test"}
    assert found.groups.keys() == GROUPS.keys()
    assert found.model == name
    if found.kind == "multiclass":
        np.testing.assert_allclose(found.y_score.sum(1), 1, atol=1e-5)
    # The first label is the brightness of the image; the others, if any, are noise.
    assert auc(found.y_true[:, 0], found.y_score[:, 0]) > 0.9
    assert (trained / name / "history.png").stat().st_size > 10_000
    history = read_json(trained / name / "history.json", made_by=name)
    assert all(np.isfinite(value) for phase in history.values() for epoch in phase for value in epoch.values())


@pytest.mark.parametrize(
    ("options", "encoded"),
    [
        ({}, 16 + 4 * 4),
        ({"group_batches": "shared"}, 16),
        ({"experts": 0, "distance_weight": 0.0, **dict.fromkeys(DISPERSIONS, 0.0)}, 16),
    ],
)
def test_images_are_encoded_for_the_groups_only_where_they_are_needed(place, tmp_path, monkeypatch, options, encoded):
    """Four groups of four pairs behind a batch of 16; none where the batch holds them, or for CLIP's loss alone."""
    seen = []
    head = DualEncoder.head
    monkeypatch.setattr(DualEncoder, "head", lambda self, x, depth: seen.append(len(x)) or head(self, x, depth))
    common = {"cohort": place / "cohort", "images": place / "cohort", "base": place / "base"}
    config = fair_moe.Config(**FAST, epochs=1, group_batch=4, prompt_share=1.0, **options)
    execute("fair_moe", config, common, {"out": tmp_path / "out"})
    assert seen[0] == encoded
    history = read_json(tmp_path / "out" / "history.json", made_by="fair_moe")["training"][0]
    assert (history["distance"] > 0) == ("distance_weight" not in options)
    routed = [name for name in history if name.startswith("routing.")]
    assert len(routed) == (0 if "experts" in options else 2 * (4 + 3) + 2 * (4 + 1))
    for place_of in {name.rsplit(".", 1)[0] for name in routed}:
        loads = [history[f"{place_of}.expert_load_{j}"] for j in range(4)]
        assert sum(loads) == pytest.approx(1)
    told = read_json(tmp_path / "out" / "metrics.json", made_by="fair_moe")
    assert sum("routing" in name for name in told) == (0 if "experts" in options else 2)


def test_fair_moe_starts_from_the_vision_tower_of_stage_2(trained, tmp_path):
    """Frozen but for its last block, the tower below it stays what Stage 2 made of it."""
    inputs = {"cohort": trained / "cohort", "images": trained / "cohort", "base": trained / "base"}
    config = dataclasses.replace(CONFIGS["fair_moe"], init_from="stage2", epochs=1, train_blocks=1)
    execute("fair_moe", config, {**inputs, "start": trained / "stage2"}, {"out": tmp_path / "after"})
    tower = load(trained / "stage2", trained / "base").parts.vision_tower
    found = load(tmp_path / "after", trained / "base").towers["image"]
    base = load_base(str(trained / "base" / "dual"), TASKS["binary"], SIZE, experts=Experts(), seed=0).towers["image"]
    names = [name for name, _ in tower.named_parameters() if ".layers.0." in name or "embed" in name]
    assert names
    for name in names:
        torch.testing.assert_close(found.get_parameter(name), tower.get_parameter(name), atol=0, rtol=0)
    assert any(not torch.equal(found.get_parameter(name), base.get_parameter(name)) for name in names)

    for wrong, start in (("stage2", "base"), ("stage2", None), ("base", "stage2")):
        more = {"start": trained / start} if start else {}
        with pytest.raises(ConfigError, match=f"init_from is {wrong}, and --start is no folder of"):
            execute(
                "fair_moe", dataclasses.replace(config, init_from=wrong), {**inputs, **more}, {"out": tmp_path / "no"}
            )
    assert not (tmp_path / "no").exists()


def test_the_losses_that_keep_experts_busy_are_minimised_where_they_have_a_weight(place, tmp_path):
    inputs = {"cohort": place / "cohort", "images": place / "cohort", "base": place / "base"}
    found = {}
    for weight in (0.0, 1.0):
        config = dataclasses.replace(
            CONFIGS["fair_moe"],
            epochs=3,
            experts=4,
            top_k=1,
            load_weight=weight,
            z_weight=weight,
            importance_weight=weight,
        )
        execute("fair_moe", config, inputs, {"out": tmp_path / str(weight)})
        found[weight] = read_json(tmp_path / str(weight) / "history.json", made_by="fair_moe")["training"]
    names = {"importance", "load", "z"}
    assert not names & found[0.0][-1].keys()
    first, last = found[1.0][0], found[1.0][-1]
    assert names <= last.keys()
    assert sum(last[name] for name in names) < sum(first[name] for name in names)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_what_is_written_is_small_and_holds_no_pickle(trained, name):
    files = [path for path in (trained / name).rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".json", ".png", ".safetensors"}
    assert not (trained / f"{name}.checkpoint").exists()
    assert not (trained / f"{name}.partial").exists()


def test_training_never_reads_the_test_split(trained, tmp_path):
    """With every test label turned round, the trained weights are the same to the last bit."""
    import pyarrow as pa

    from fairvlm_core.cohort.table import read_cohort, write_cohort

    table = read_cohort(trained / "cohort")
    turned = [
        [1 - value for value in labels] if split == "test" else labels
        for labels, split in zip(table.column("labels").to_pylist(), table.column("split").to_pylist(), strict=True)
    ]
    column = table.schema.get_field_index("labels")
    write_cohort(table.set_column(column, table.schema.field(column), pa.array(turned, pa.list_(pa.int8()))), tmp_path)
    inputs = {"cohort": tmp_path, "images": trained / "cohort", "base": trained / "base"}
    execute("fair_moe", CONFIGS["fair_moe"], inputs, {"out": tmp_path / "out"})
    same = [(folder / "trained.safetensors").read_bytes() for folder in (tmp_path / "out", trained / "fair_moe")]
    assert same[0] == same[1]


def test_scores_do_not_depend_on_the_note(trained, tmp_path):
    model = load(trained / "fair_moe", trained / "base")
    assert "note" not in model.score.__annotations__


def command(place, out, *, epochs=12):
    return [
        *(sys.executable, "-m", "fairvlm_core.cli", "stage1"),
        *("--cohort", place / "cohort", "--images", place / "cohort", "--base", place / "base", "--out", out),
        *("--batch-size", "16", "--epochs", str(epochs), "--lora-rank", "4", "--learning-rate", "1e-3"),
    ]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}


@pytest.mark.parametrize("place", ["binary"], indirect=True)
def test_a_killed_run_is_resumed_to_the_same_weights(place, tmp_path):
    whole = subprocess.run(command(place, tmp_path / "whole"), env=ENVIRONMENT, capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr

    checkpoint = tmp_path / "cut.checkpoint" / "instruction_tuning.safetensors"
    running = subprocess.Popen(
        command(place, tmp_path / "cut"), env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    assert checkpoint.exists()
    assert not (tmp_path / "cut").exists()

    resumed = subprocess.run(command(place, tmp_path / "cut"), env=ENVIRONMENT, capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming at step" in resumed.stdout
    for file in ("adapter-stage1/adapter_model.safetensors", "history.json", "model.json"):
        assert (tmp_path / "cut" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file
    assert not checkpoint.parent.exists()


@pytest.mark.parametrize("place", ["binary"], indirect=True)
def test_a_mistake_ends_with_status_2_and_leaves_nothing(place, tmp_path):
    wrong = command(place, tmp_path / "out")
    wrong[wrong.index("--base") + 1] = tmp_path / "nowhere"
    ended = subprocess.run(wrong, env=ENVIRONMENT, capture_output=True, text=True)
    assert ended.returncode == 2
    assert "does not exist" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["binary"], indirect=True)
def test_mistakes_are_told(place, tmp_path):
    common = {"cohort": place / "cohort", "images": place / "cohort", "base": place / "base"}
    with pytest.raises(ConfigError, match="cannot be augmented"):
        stage1.Config(cache_features=True)
    with pytest.raises(ConfigError, match="2 of 1 experts"):
        fair_moe.Config(experts=1)
    with pytest.raises(CohortError, match='no groups for the attribute "race"'):
        execute("stage1", stage1.Config(attributes=("race",)), common, {"out": tmp_path / "out"})
    with pytest.raises(CheckpointError, match="no trained model here"):
        execute("stage2", stage2.Config(), {**common, "stage1": place / "cohort"}, {"out": tmp_path / "out"})
    (tmp_path / "bases.json").write_text('{"vlm": "./gone", "dual": "./gone"}')
    with pytest.raises(CheckpointError, match="pretrained checkpoint is missing"):
        execute("fair_moe", fair_moe.Config(), {**common, "base": tmp_path}, {"out": tmp_path / "out"})
    assert [path.name for path in tmp_path.iterdir()] == ["bases.json"]


@pytest.mark.parametrize("place", ["binary"], indirect=True)
def test_a_group_without_training_images_is_named(place, tmp_path):
    from fairvlm_core.cohort.table import read_cohort, write_cohort

    table = read_cohort(place / "cohort")
    keep = [
        split != "train" or group != "60+"
        for split, group in zip(table.column("split").to_pylist(), table.column("age_group").to_pylist(), strict=True)
    ]
    write_cohort(table.filter(keep), tmp_path / "cohort")
    inputs = {"cohort": tmp_path / "cohort", "images": place / "cohort", "base": place / "base"}
    with pytest.raises(CohortError, match='Fewer than two training images are of the group "60\\+"'):
        execute("fair_moe", CONFIGS["fair_moe"], inputs, {"out": tmp_path / "out"})


@pytest.mark.parametrize("place", ["binary"], indirect=True)
def test_a_model_of_other_labels_is_refused(place, trained, tmp_path):
    write_cohort_with_images(tmp_path / "cohort", TASKS["multilabel"])
    inputs = {
        "model": trained / "stage1",
        "base": trained / "base",
        "cohort": tmp_path / "cohort",
        "images": tmp_path / "cohort",
    }
    with pytest.raises(CheckpointError, match="other labels"):
        execute("predict", predict.Config(), inputs, {"out": tmp_path / "out"})

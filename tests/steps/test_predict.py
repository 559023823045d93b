"""The step predict: scores, answers in words, and the picture of where the model looks."""

from __future__ import annotations

import re

import bases
import numpy as np
import pipeline_outputs
import pytest
from PIL import Image

from fairvlm_core.cohort.images import ImageStore
from fairvlm_core.cohort.table import label_matrix, read_cohort, rows_of
from fairvlm_core.errors import ConfigError
from fairvlm_core.evaluation.attention import choose_cases
from fairvlm_core.evaluation.predictions import read_predictions
from fairvlm_core.models import base_path, generation, load
from fairvlm_core.models.rollout import attention_map
from fairvlm_core.models.vlm import load_base
from fairvlm_core.steps import execute
from fairvlm_core.steps.predict import Config


@pytest.fixture(scope="module", params=list(bases.TASKS))
def place(request, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param)
    folders = pipeline_outputs.write_models(root, request.param)
    folders["cohort"] = bases.write_cohort_with_images(root / "cohort", bases.TASKS[request.param], count=90)
    return folders


def predict(place, name, out, **options):
    inputs = {"model": place[name], "base": place["base"], "cohort": place["cohort"], "images": place["cohort"]}
    return execute("predict", Config(**options), inputs, {"out": out})


def test_answers_stand_beside_the_scores_of_their_images(place, tmp_path, monkeypatch):
    """The text of each image says how bright it is: the column must say so of the same image and label."""
    kind = bases.TASKS[place["cohort"].parent.name[:-1]]

    def told(vlm, images, *, max_new_tokens):
        assert max_new_tokens == 5
        texts = []
        for brightness in images.reshape(len(images), -1).mean(1):
            if kind.kind == "multiclass":
                texts.append([f"It is {kind.concepts[int(brightness // 86)]}." if brightness > 40 else ""])
            else:
                words = [f"There is no {concept}" if brightness < 115 else "Yes" for concept in kind.concepts]
                texts.append(["" if brightness > 170 else word for word in words])
        return texts

    monkeypatch.setattr(generation, "generate", told)
    metrics = predict(place, "stage1", tmp_path / "out", generate=True, answer_tokens=5, attention_cases=0)
    table = read_predictions(tmp_path / "out")
    cohort, store = read_cohort(place["cohort"]), ImageStore.open(place["cohort"])
    bright = {
        sample: store.read([image])[0].mean()
        for sample, image in zip(cohort["sample_id"].to_pylist(), cohort["image"].to_pylist(), strict=True)
    }
    undecided = 0
    for row in table.to_pylist():
        brightness = bright[row["sample_id"]]
        if kind.kind == "multiclass":
            expected = None if brightness <= 40 else int(kind.labels.index(row["label"]) == int(brightness // 86))
        else:
            expected = None if brightness > 170 else int(brightness >= 115)
        assert row["y_answer"] == expected
        undecided += expected is None
    assert metrics["undecided"] == pytest.approx(undecided / len(table), abs=1e-6)
    assert table.schema.field("y_answer").type == "int8"


def test_the_scores_are_the_same_with_and_without_answers(place, tmp_path):
    with_answers = predict(place, "stage1", tmp_path / "a", splits=("test",), generate=True, answer_tokens=3)
    without = predict(place, "stage1", tmp_path / "b", splits=("test",), attention_cases=0)
    tables = [read_predictions(tmp_path / name) for name in "ab"]
    assert "y_answer" in tables[0].column_names
    assert "undecided" in with_answers
    assert "y_answer" not in tables[1].column_names
    assert "undecided" not in without
    assert tables[0].drop_columns(["y_answer"]).to_pylist() == tables[1].to_pylist()


def test_a_dual_encoder_is_scored_and_says_that_it_has_no_words(place, tmp_path, capsys):
    metrics = predict(place, "fair_moe", tmp_path / "out", splits=("test",), generate=True, attention_cases=2)
    assert "fair_moe has no language model to answer with" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "predictions.parquet", "config.json", "metrics.json"
    }  # fmt: skip
    assert "y_answer" not in read_predictions(tmp_path / "out").column_names
    assert "undecided" not in metrics


def test_the_picture_shows_base_and_model_on_the_chosen_cases(place, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "fairvlm_core.evaluation.attention.attention_picture",
        lambda cases, path: (drawn.extend(cases), path.write_bytes(b"")),
    )
    metrics = predict(place, "stage2", tmp_path / "out", attention_cases=2)
    model = load(place["stage2"], place["base"])
    base = load_base(base_path(place["base"], "vlm"), model.task, bases.SIZE)
    rows = rows_of(read_cohort(place["cohort"]), "test")
    images = ImageStore.open(place["cohort"]).read(rows["image"].to_pylist())
    cases = choose_cases(label_matrix(rows), model.score(images), model.task.kind, 2)
    assert metrics.get("attention_cases", 0) == len(cases) == len(drawn) > 0
    for (row, label), case in zip(cases, drawn, strict=True):
        np.testing.assert_array_equal(case.image, images[row])
        assert case.finding == model.task.concepts[label]
        assert [look.title for look in case.looks] == ["Base model", "Stage 2"]
        question = 0 if model.task.kind == "multiclass" else label
        for look, looking in zip(case.looks, (base, model), strict=True):
            np.testing.assert_allclose(look.patches, attention_map(looking, images[row], question), atol=1e-9)
            assert look.score == pytest.approx(looking.score(images[row : row + 1])[0, label], abs=1e-5)
        assert np.abs(case.looks[0].patches - case.looks[1].patches).max() > 1e-6


@pytest.mark.parametrize("place", ["binary"], indirect=True)
def test_the_picture_names_nobody(place, tmp_path):
    predict(place, "stage2", tmp_path / "out", attention_cases=1)
    with Image.open(tmp_path / "out" / "attention.png") as picture:
        assert picture.size[0] > 600
        assert set(picture.info) <= {"dpi"}
    assert not re.search(rb"tEXt|iTXt|eXIf", (tmp_path / "out" / "attention.png").read_bytes())


def test_options_have_bounds():
    with pytest.raises(ConfigError, match=r"predict\.answer_tokens"):
        Config(answer_tokens=0)
    with pytest.raises(ConfigError, match=r"predict\.attention_cases"):
        Config(attention_cases=-1)

"""Which cases are shown, and that their picture holds the images, the maps and nothing about the people."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from fairvlm_core.evaluation.attention import Case, Look, attention_picture, choose_cases


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel"])
def test_cases_are_the_most_confident_right_positives(kind):
    rng = np.random.default_rng(0)
    n, width = 60, 1 if kind == "binary" else 4
    score = rng.random((n, width))
    truth = (rng.random((n, width)) < 0.3).astype(float)
    if kind == "multiclass":
        score /= score.sum(1, keepdims=True)
        truth = np.eye(width)[rng.integers(width, size=n)]
    truth[rng.random(n) < 0.1] = np.nan
    right = []
    for i in range(n):
        for j in range(width):
            said = j == score[i].argmax() if kind == "multiclass" else score[i, j] >= 0.5
            if truth[i, j] == 1 and said:
                right.append((score[i, j], i, j))
    expected, seen = [], set()
    for _, i, j in sorted(right, reverse=True):
        if i not in seen:
            seen.add(i)
            expected.append((i, j))
    assert choose_cases(truth, score, kind, 5) == expected[:5]
    assert choose_cases(truth, score, kind, 1000) == expected
    assert choose_cases(truth, score, kind, 0) == []


def test_without_a_right_positive_there_is_no_case():
    assert choose_cases(np.array([[0.0], [1.0], [np.nan]]), np.array([[0.9], [0.4], [0.9]]), "binary", 2) == []
    for kind in ("binary", "multiclass"):
        assert choose_cases(np.zeros((0, 1)), np.zeros((0, 1)), kind, 2) == []


def drawn(tmp_path, cases):
    attention_picture(cases, tmp_path / "attention.png")
    with Image.open(tmp_path / "attention.png") as picture:
        assert set(picture.info) <= {"dpi"}  # no text, no software, no name
        return np.asarray(picture.convert("RGB")).astype(float)


def case(spot):
    patches = np.full((4, 4), 0.02)
    patches[spot] += 1 - patches.sum()
    even = np.full((4, 4), 1 / 16)
    return Case(np.full((32, 32, 3), 60, np.uint8), "edema", [Look("Base", 0.2, even), Look("Fair", 0.9, patches)])


def test_the_map_is_drawn_over_its_image_where_it_is_bright(tmp_path):
    """The hot patch is the brightest place of the third panel, and moves with the map."""
    pictures = {spot: drawn(tmp_path, [case(spot)]) for spot in ((0, 0), (3, 3))}
    height, width, _ = pictures[0, 0].shape
    difference = (pictures[0, 0] - pictures[3, 3]).sum(-1)
    left, right = slice(None, int(width * 0.6)), slice(int(width * 0.6), None)
    assert np.abs(difference[:, left]).max() < 1  # the image and the even map are the same in both
    rows, columns = np.nonzero(difference[:, right] > 100)
    other_rows, other_columns = np.nonzero(difference[:, right] < -100)
    assert rows.mean() < height / 2 < other_rows.mean()
    assert columns.mean() < other_columns.mean()


def test_a_row_per_case(tmp_path):
    one, three = (drawn(tmp_path, [case((1, 1))] * count) for count in (1, 3))
    assert three.shape[1] == one.shape[1]
    assert three.shape[0] > 2.5 * one.shape[0]

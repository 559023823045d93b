"""Balanced epochs, stratified batches, augmentation."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from bases import GROUPS, SIZE, TASKS, write_cohort_with_images
from hypothesis import given, settings
from hypothesis import strategies as st

from fairvlm_core.cohort.table import read_cohort
from fairvlm_core.errors import CohortError
from fairvlm_core.training.batches import (
    augment,
    balanced_epoch,
    read_samples,
    resampled_epoch,
    strata,
    stratified_batches,
)

STRATA = st.lists(st.integers(1, 60), min_size=1, max_size=8).map(lambda sizes: np.repeat(np.arange(len(sizes)), sizes))


@settings(max_examples=60, deadline=None)
@given(STRATA, st.floats(0.5, 2), st.integers(0, 5))
def test_balancing_keeps_everyone_and_fills_minorities_to_the_cap(stratum, cap, seed):
    indices, repeated = balanced_epoch(stratum, cap, np.random.default_rng(seed))
    before = np.bincount(stratum)
    after = np.bincount(stratum[indices], minlength=len(before))
    assert sorted(indices[~repeated]) == list(range(len(stratum)))
    target = int(min(before.max(), cap * np.median(before)))
    assert after.tolist() == [max(size, target) for size in before]


@settings(max_examples=60, deadline=None)
@given(STRATA, st.integers(0, 5))
def test_resampling_shows_every_stratum_equally_often_in_an_epoch_of_the_same_length(stratum, seed):
    indices, repeated = resampled_epoch(stratum, np.random.default_rng(seed))
    assert len(indices) == len(stratum)
    assert np.ptp(np.bincount(stratum[indices])) <= 1
    times = np.bincount(indices, minlength=len(stratum))
    for number in range(stratum.max() + 1):
        assert np.ptp(times[stratum == number]) <= 1
    assert sorted(indices[~repeated]) == sorted(np.unique(indices))


def test_resampling_shows_others_of_a_large_stratum_every_epoch():
    stratum = np.repeat([0, 1], (90, 10))
    seen = [set(resampled_epoch(stratum, np.random.default_rng([0, epoch]))[0]) for epoch in range(12)]
    assert len(seen[0] & set(range(90))) == 50
    assert set.union(*seen) == set(range(100))


@settings(max_examples=60, deadline=None)
@given(STRATA, st.integers(2, 32), st.integers(0, 5))
def test_batches_hold_everyone_once_and_every_stratum_in_its_share(stratum, size, seed):
    batches = stratified_batches(stratum, size, np.random.default_rng(seed))
    assert sorted(np.concatenate(batches)) == list(range(len(stratum)))
    assert all(len(batch) == size for batch in batches[:-1])
    for batch in batches[:-1]:
        share = np.bincount(stratum[batch], minlength=stratum.max() + 1)
        # A stratum is spread evenly, so a batch misses its share by one for itself, and by the others' jitter.
        expected = np.bincount(stratum) * size / len(stratum)
        assert np.abs(share - expected).max() <= len(share) + 1


def test_batches_follow_the_seed_alone():
    stratum = np.repeat(np.arange(3), (10, 20, 5))
    first, again, other = (stratified_batches(stratum, 8, np.random.default_rng([seed, 1])) for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_strata_are_labels_and_groups_together():
    labels = np.array([[0.0], [0.0], [1.0], [np.nan], [0.0]])
    groups = np.array([[0], [1], [0], [0], [0]])
    numbers = strata(labels, groups)
    assert numbers[0] == numbers[4]
    assert len(set(numbers)) == 4


def test_augmentation_is_mild_and_only_for_the_chosen():
    images = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3)).astype(np.uint8)
    smooth = np.repeat(images.mean((1, 2), keepdims=True), 16, 1).repeat(16, 2).astype(np.uint8)
    chosen = np.array([True, False] * 3)
    plain = torch.from_numpy(smooth).permute(0, 3, 1, 2) / 255
    found = augment(smooth, chosen, torch.Generator().manual_seed(0))
    torch.testing.assert_close(found[1::2], plain[1::2])
    assert not torch.allclose(found[::2], plain[::2])
    assert (found[::2] - plain[::2]).abs().max() <= 0.1 * plain.max() + 1e-6
    assert torch.equal(found, augment(smooth, chosen, torch.Generator().manual_seed(0)))


def test_a_rotation_stays_within_ten_degrees():
    """A bright radius at 0 degrees may turn, but by no more than 10."""
    image = np.zeros((40, 65, 65, 3), dtype=np.uint8)
    image[:, 32, 52:60] = 255
    found = augment(image, np.ones(40, dtype=bool), torch.Generator().manual_seed(1)).sum(1)
    y, x = torch.meshgrid(torch.arange(65.0) - 32, torch.arange(65.0) - 32, indexing="ij")
    angles = torch.atan2((found * y).sum((1, 2)), (found * x).sum((1, 2))).rad2deg()
    assert angles.abs().max() <= 10.5
    assert angles.abs().max() > 5
    assert angles.min() < 0 < angles.max()


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return write_cohort_with_images(tmp_path_factory.mktemp("cohort"), TASKS["binary"])


def test_samples_are_the_rows_of_their_split(cohort):
    table = read_cohort(cohort).to_pylist()
    samples = read_samples(cohort, cohort, "validation", ["sex", "age_group"])
    rows = [row for row in table if row["split"] == "validation"]
    assert samples.labels.tolist() == [row["labels"] for row in rows]
    codes = [[GROUPS[k].index(row[k]) if row[k] else -1 for k in ("sex", "age_group")] for row in rows]
    assert samples.groups.tolist() == codes
    assert samples.images(np.array([0, 2])).shape == (2, SIZE, SIZE, 3)
    assert samples.images(np.array([1])).mean() > 100 or samples.labels[1, 0] == 0
    assert samples.targets(np.arange(len(rows))).tolist() == [row["labels"][0] for row in rows]


def test_conversations_belong_to_the_images_of_the_split(cohort, tmp_path):
    table = read_cohort(cohort).to_pylist()
    own, other = (next(row["image"] for row in table if row["split"] == split) for split in ("train", "test"))
    said = [{"from": "human", "value": "<image>\nWhat is seen?"}, {"from": "gpt", "value": "A disc."}]
    file = tmp_path / "said.json"
    file.write_text(json.dumps([{"id": i, "image": i, "conversations": said} for i in (own, other)]))
    samples = read_samples(cohort, cohort, "train", ["sex"], file)
    assert sum(map(len, samples.told)) == 1
    keys = [row["image"] for row in table if row["split"] == "train"]
    assert samples.told[keys.index(own)] == [(("What is seen?", "A disc."),)]
    with pytest.raises(CohortError, match="missing"):
        read_samples(cohort, cohort, "train", ["sex"], tmp_path / "none.json")


def test_an_attribute_without_groups_is_named(cohort):
    with pytest.raises(CohortError, match='no groups for the attribute "race"'):
        read_samples(cohort, cohort, "train", ["race"])

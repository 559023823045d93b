"""Duplicates: the hash against imagehash, the search against all pairs, and what is told about the pairs."""

import csv
import io
from pathlib import Path

import imagehash
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from fairvlm_core.cohort.adapters import covid_chestxray, generated, ham10000
from fairvlm_core.cohort.duplicates import (
    NEAR,
    find_duplicates,
    grey_pictures,
    near_pairs,
    perceptual_hashes,
    same_detail,
    write_pairs,
)
from fairvlm_core.cohort.images import build_store
from fairvlm_core.cohort.table import Task, cohort_table

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def picture(seed, side=64):
    """Something with coarse shapes and detail."""
    rng = np.random.default_rng(seed)
    layers = [
        np.asarray(
            Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)).resize((side, side)), dtype=float
        )
        for cells in (4, 9, 30)
    ]
    return np.average(layers, axis=0, weights=(3, 2, 1)).astype(np.uint8)


def jpeg(array, quality):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def halved(array):
    size = array.shape[0] // 2
    return np.asarray(Image.fromarray(array).resize((size, size)).resize(array.shape[:2]))


def lighter(array):
    return np.asarray(ImageEnhance.Brightness(Image.fromarray(array)).enhance(1.15))


def cohort(rows):
    """A cohort from (key, patient, split, label)."""
    task = Task("binary", ("x",), ("x",), ("no x",))
    return cohort_table(
        [
            {
                "sample_id": f"s{i}",
                "patient_id": patient,
                "image": key,
                "labels": [label],
                "split": split,
                "source": "s",
            }
            for i, (key, patient, split, label) in enumerate(rows)
        ],
        task=task,
        groups={},
    )


def found(rows, pictures, folder):
    table = cohort(rows)
    store = build_store([row[0] for row in rows], pictures.__getitem__, folder, size=64)
    return find_duplicates(table, store), table


def bits(a, b):
    return bin(int(a) ^ int(b)).count("1")


@pytest.mark.parametrize("side", [48, 64, 112])
def test_hashes_are_those_of_imagehash(side):
    pictures = np.stack([picture(seed, side) for seed in range(40)])
    hashes = perceptual_hashes(grey_pictures(pictures))
    expected = [int(str(imagehash.phash(Image.fromarray(array))), 16) for array in pictures]
    # A frequency at the median can fall on either side when a grey level is rounded otherwise.
    differing = [bits(a, b) for a, b in zip(hashes, expected, strict=True)]
    assert np.mean(differing) < 0.2
    assert max(differing) <= 2
    assert len(set(expected)) == 40


def test_small_grey_pictures_are_those_of_pillow():
    pictures = np.stack([picture(seed, 100) for seed in range(5)])
    expected = [
        np.asarray(Image.fromarray(array).convert("L").resize((32, 32), Image.Resampling.LANCZOS)) for array in pictures
    ]
    done = []
    greys = grey_pictures(pictures, progress=done.append)
    assert abs(greys.astype(int) - np.stack(expected)).max() <= 1
    assert sum(done) == 5


@pytest.mark.parametrize("near", [0, 2, 4, 6])
def test_the_search_finds_what_comparing_all_with_all_finds(near):
    rng = np.random.default_rng(near)
    some = rng.integers(0, 2**63, 60, dtype=np.uint64)
    hashes = list(some)
    for base in some:
        for flips in range(8):
            changed = int(base)
            for bit in rng.choice(64, flips, replace=False):
                changed ^= 1 << int(bit)
            hashes.append(np.uint64(changed))
    hashes = np.array(hashes, dtype=np.uint64)[rng.permutation(len(hashes))]
    pairs, complete = near_pairs(hashes, near=near)
    expected = [
        [i, j] for i in range(len(hashes)) for j in range(i + 1, len(hashes)) if bits(hashes[i], hashes[j]) <= near
    ]
    assert complete
    assert pairs.tolist() == expected
    assert len(expected) >= 60


def test_a_crowd_of_equal_hashes_does_not_explode():
    pairs, complete = near_pairs(np.zeros(5000, dtype=np.uint64), crowd=20)
    assert not complete
    assert len(pairs) <= 5000 * 20
    # Each is still in a pair, and no pair is there twice.
    assert set(pairs.ravel().tolist()) == set(range(5000))
    assert len(np.unique(pairs, axis=0)) == len(pairs)
    # Many different hashes that share their bands: bits of the last band only.
    alike = np.arange(600, dtype=np.uint64) << np.uint64(54)
    pairs, complete = near_pairs(alike, neighbours=10)
    assert not complete
    assert 0 < len(pairs) < 600 * 600
    assert all(bits(alike[i], alike[j]) <= NEAR for i, j in pairs)


def test_no_picture_and_one_picture_are_no_pair():
    for n in (0, 1):
        pairs, complete = near_pairs(np.zeros(n, dtype=np.uint64))
        assert pairs.shape == (0, 2)
        assert complete


@pytest.mark.parametrize("change", [lambda a: a, lambda a: jpeg(a, 50), halved, lighter])
def test_a_changed_copy_is_found(tmp_path, change):
    pictures = {str(seed): picture(seed, 160) for seed in range(30)} | {"copy": change(picture(7, 160))}
    rows = [(key, f"p{key}", None, 0) for key in pictures]
    result, _ = found(rows, pictures, tmp_path)
    assert [(a, b) for a, b in zip(result.a, result.b, strict=True)] == [(7, 30)]
    assert result.identical.tolist() == [np.array_equal(pictures["7"], pictures["copy"])]
    assert result.distance[0] <= NEAR
    assert result.complete
    assert result.blank == 0


def test_alike_in_coarse_shapes_is_not_the_same(tmp_path):
    # The same shading and rim, as in photographs of one apparatus, but other detail within.
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    rim = np.where(x**2 + y**2 < 0.9, 160 + 60 * x - 30 * y, 5.0)
    pictures = {}
    for seed in range(6):
        noise = np.random.default_rng(seed).normal(0, 8, (64, 64))
        pictures[str(seed)] = np.repeat((rim + noise).clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)
    greys = grey_pictures(np.stack(list(pictures.values())))
    pairs, _ = near_pairs(perceptual_hashes(greys), near=6)
    assert len(pairs) > 0
    assert not same_detail(greys, pairs).any()
    result, _ = found([(key, key, None, 0) for key in pictures], pictures, tmp_path)
    assert len(result.a) == 0


def test_what_is_told_about_a_pair(tmp_path):
    pictures = {name: picture(seed) for seed, name in enumerate("abcde")}
    pictures |= {f"{name}2": picture(seed) for seed, name in enumerate("abcd")}
    rows = [
        ("a", "p1", "train", 0), ("a2", "p1", "train", 0),  # a patient
        ("b", "p2", "train", 1), ("b2", "p3", "train", 0),  # two patients, and their labels differ
        ("c", "p4", "train", 1), ("c2", "p5", "test", 1),  # two splits
        ("d", "p6", None, 1), ("d2", "p7", "test", None),  # not split yet, and a label that is unknown
        ("e", "p8", "train", 1), ("e", "p9", "test", 1),  # one file in two rows
    ]  # fmt: skip
    result, table = found(rows, pictures, tmp_path)
    assert list(zip(result.a.tolist(), result.b.tolist(), strict=True)) == [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]
    assert result.same_patient.tolist() == [True, False, False, False, False]
    assert result.across.tolist() == [False, False, True, True, True]
    assert result.labels_differ.tolist() == [False, True, False, False, False]
    assert result.identical.all()
    assert not result.distance.any()
    write_pairs(result, table, tmp_path / "duplicates.csv")
    with (tmp_path / "duplicates.csv").open(newline="") as handle:
        listed = list(csv.DictReader(handle))
    assert [(row["sample_id_a"], row["sample_id_b"]) for row in listed] == [
        ("s0", "s1"), ("s2", "s3"), ("s4", "s5"), ("s6", "s7"), ("s8", "s9"),
    ]  # fmt: skip
    assert listed[3] == {
        "sample_id_a": "s6", "sample_id_b": "s7", "patient_id_a": "p6", "patient_id_b": "p7", "split_a": "",
        "split_b": "test", "differing_bits": "0", "identical": "1", "labels_differ": "0",
    }  # fmt: skip


def test_three_of_a_kind_are_three_pairs(tmp_path):
    pictures = {name: picture(1) for name in "abc"} | {"other": picture(2)}
    result, _ = found([(key, key, None, 0) for key in pictures], pictures, tmp_path)
    assert list(zip(result.a.tolist(), result.b.tolist(), strict=True)) == [(0, 1), (0, 2), (1, 2)]


def test_blank_pictures_are_counted_and_not_compared(tmp_path):
    pictures = {f"blank{level}": np.full((64, 64, 3), level, np.uint8) for level in (0, 9, 255)}
    pictures |= {"speck": np.zeros((64, 64, 3), np.uint8), "a": picture(1)}
    pictures["speck"][3, 3] = 40
    result, _ = found([(key, key, None, 0) for key in pictures], pictures, tmp_path)
    assert result.blank == 4
    assert len(result.a) == 0


def test_generated_photographs_are_all_different(tmp_path):
    options = generated.Options(patients=600)
    release = generated.read(None, options, age_edges=(40.0, 60.0), seed=0)
    keys = release.table.column("image").to_pylist()
    store = build_store(keys, release.load, tmp_path, size=64)
    hashes = perceptual_hashes(grey_pictures(store.pixels))
    assert len(near_pairs(hashes)[0]) > 50  # their hashes are not
    assert len(find_duplicates(release.table, store).a) == 0


@pytest.mark.skipif(not (DATA / "ham10000").is_dir(), reason="the real files are not at hand")
def test_the_real_dermoscopic_images(tmp_path):
    """Of 5 million pairs, two images of one lesion."""
    release = ham10000.read(DATA / "ham10000", ham10000.Options(), age_edges=(40.0, 60.0), seed=0)
    store = build_store(release.table.column("image").to_pylist(), release.load, tmp_path, size=64)
    result = find_duplicates(release.table, store)
    assert release.table.column("sample_id").take([result.a[0], result.b[0]]).to_pylist() == [
        "ISIC_0034921",
        "ISIC_0035597",
    ]
    assert result.same_patient.tolist() == [True]
    assert result.labels_differ.tolist() == [False]


@pytest.mark.skipif(not (DATA / "covid_chestxray").is_dir(), reason="the real files are not at hand")
def test_the_real_radiographs(tmp_path):
    """A series of one patient that is listed once more as another patient's."""
    root = DATA / "covid_chestxray"
    release = covid_chestxray.read(root, covid_chestxray.Options(), age_edges=(40.0, 60.0), seed=0)
    store = build_store(release.table.column("image").to_pylist(), release.load, tmp_path, size=64)
    result = find_duplicates(release.table, store)
    patients = [release.table.column("patient_id").take(side).to_pylist() for side in (result.a, result.b)]
    assert len(result.a) == 4
    assert not result.same_patient.any()
    assert [len(set(side)) for side in patients] == [1, 1]

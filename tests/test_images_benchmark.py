"""The benchmark of the image store compares like with like. Nothing here is timed."""

import os
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import side_by_side
from PIL import Image

import fairvlm_core

BENCHMARK = Path(fairvlm_core.__file__).parent.parent / "benchmarks" / "images.py"
ROWS = 20


@pytest.fixture(scope="module")
def benchmark():
    return runpy.run_path(str(BENCHMARK), run_name="images_benchmark")


@pytest.fixture(scope="module")
def files(benchmark, tmp_path_factory):
    """Two files of each kind; photographs that look real stand in for those that are not everywhere at hand."""
    place, rng = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    for i in range(5):
        coarse = Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8))
        (place / "real" / "part").mkdir(parents=True, exist_ok=True)
        coarse.resize((224, 224), Image.Resampling.BICUBIC).save(place / "real" / "part" / f"ISIC_{i}.jpg")
    pictures = benchmark["kinds"](2, place / "real")
    assert list(pictures) == ["drawn fundus", "drawn fundus, grey", "dermoscopy"]
    return {kind: benchmark["files_of"](of_kind, place / kind) for kind, of_kind in pictures.items()}


@pytest.fixture
def races(benchmark, files, monkeypatch):
    monkeypatch.setitem(benchmark["batch_races"].__globals__, "BATCH", 8)
    monkeypatch.setitem(benchmark["ingest_races"].__globals__, "usable_cores", lambda: 3)
    return [*benchmark["ingest_races"](files), *benchmark["batch_races"](files["drawn fundus"], 32, rows=ROWS)]


def test_the_files_are_of_the_size_that_is_named(benchmark, files):
    for kind, paths in files.items():
        assert len(set(paths)) == 2
        for path in paths:
            with Image.open(path) as image:
                assert image.size == (664, 512)
                assert image.format == "JPEG"
                assert image.mode == ("L" if "grey" in kind else "RGB")


def test_both_sides_make_the_same_pictures(benchmark, races):
    assert len(races) == 3 * 2 * 2 + 2 + 2
    for race in races:
        ours, theirs = race.ours(1), race.theirs(1)
        assert ours.dtype == theirs.dtype == np.uint8
        assert ours.shape == theirs.shape
        assert len(ours) == race.images
        if race.exact:
            np.testing.assert_array_equal(ours, theirs)
        else:
            mean, high, most = benchmark["levels"](ours, theirs)
            assert 0 < mean < 1.5 < high < most
    assert [race.exact for race in races] == [True, False] * 7 + [True, True]
    assert [race.cores for race in races] == [1] * 12 + [3] * 2 + [1] * 2


def test_batches_are_other_pictures_each_time_and_never_beyond_the_store(races):
    for race in races[-2:]:
        for i in range(ROWS):
            np.testing.assert_array_equal(race.ours(i), race.theirs(i))
    read = races[-1]
    assert not np.array_equal(read.ours(0), read.ours(1))


def test_the_peer_decodes_every_pixel_with_pillow_alone(benchmark, files):
    path = files["dermoscopy"][0]
    with Image.open(path) as image:
        # 512 px in the middle of 664; only at its border do the pixels beside it count.
        middle = image.convert("RGB").crop((76, 0, 588, 512))
    expected = np.asarray(middle.resize((64, 64), Image.Resampling.BICUBIC))
    found = benchmark["plain"](path, 64)
    np.testing.assert_array_equal(found[:, 2:-2], expected[:, 2:-2])
    np.testing.assert_array_equal(benchmark["looped"]([path], 64)[0], found)


@pytest.mark.parametrize("exact", [True, False])
def test_a_difference_is_noticed(benchmark, races, exact):
    race = next(race for race in races if race.exact == exact)
    wrong = race.ours(0).copy()
    if exact:
        wrong[-1, 3, 4, 1] ^= 1  # one grey level of one colour of one pixel
    else:
        wrong = wrong // 2
    other = benchmark["Race"](race.name, race.peer, lambda _: wrong, race.theirs, race.images, exact)
    with pytest.raises(RuntimeError, match="differ"):
        benchmark["run"](other, 1)
    fewer = benchmark["Race"](race.name, race.peer, race.ours, race.theirs, race.images + 1, exact)
    with pytest.raises(RuntimeError, match="differ"):
        benchmark["run"](fewer, 1)


def test_one_core_is_one_core_for_the_threads_too(benchmark):
    before = os.sched_getaffinity(0)
    with benchmark["cores"](1):
        assert benchmark["usable_cores"]() == 1
    assert os.sched_getaffinity(0) == before


def test_the_tables_name_each_comparison(benchmark, races, files, monkeypatch):
    monkeypatch.setattr(side_by_side, "calls_in", lambda step, seconds: 1)
    results = [benchmark["run"](race, 2) for race in races]
    lines = benchmark["table"](results).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [f"| {race.name}" for race in races]
    assert [line.endswith("| none |") for line in lines[2:]] == [race.exact for race in races]
    changed = benchmark["differences"]({"dermoscopy": files["dermoscopy"]}, (448, 64)).splitlines()
    assert changed[0] == "| fast decoding to | 448 px | 64 px |"
    assert re.fullmatch(r"\| dermoscopy \| none \| [01]\.\d\d / \d+ / \d+ \|", changed[2])
    assert [benchmark["digits"](value) for value in (0.01234, 1.234, 12.34, 1234.0)] == [
        "0.0123",
        "1.23",
        "12.3",
        "1234",
    ]

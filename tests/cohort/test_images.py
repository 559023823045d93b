"""The image store: every picture once, in order, in bounded memory; what is not there is named."""

import io
import os
import shutil
import threading
import time

import numpy as np
import pytest
from picture_files import detailed, picture, saved

from fairvlm_core.cohort import images
from fairvlm_core.cohort.images import ImageStore, build_store, open_image, square
from fairvlm_core.cohort.tolerance import Tolerance
from fairvlm_core.errors import CohortError


def test_the_store_keeps_order_and_gives_back_what_was_asked(tmp_path):
    rng = np.random.default_rng(0)
    pictures = {f"folder/{i}.png": rng.integers(0, 256, (16, 16, 3), dtype=np.uint8) for i in range(150)}
    asked, done, threads = list(pictures), [], set()

    def load(key):
        threads.add(threading.get_ident())
        return pictures[key]

    built = build_store([*asked, asked[3]], load, tmp_path, size=16, progress=done.append)
    store = ImageStore.open(tmp_path)
    assert sum(done) == 150
    assert len(threads) <= images.usable_cores()
    assert store.size == built.size == 16
    assert store.pixels.shape == (150, 16, 16, 3)
    assert isinstance(store.pixels, np.memmap)
    order = [asked[140], asked[2], asked[140]]
    np.testing.assert_array_equal(store.rows(order), [140, 2, 140])
    assert store.rows(order).dtype == np.int64
    # At the stored size nothing is resampled.
    np.testing.assert_array_equal(store.read(order), [pictures[key] for key in order])
    with pytest.raises(ValueError, match="read-only"):
        store.pixels[0] = 0


def test_a_store_reads_any_rows_in_any_order(tmp_path):
    """Also where a picture does not begin at the beginning of a page of memory, and the last one."""
    pictures = np.random.default_rng(0).integers(0, 256, (40, 45, 45, 3), dtype=np.uint8)
    store = build_store([str(i) for i in range(40)], lambda key: pictures[int(key)], tmp_path, size=45)
    for rows in ([39, 0, 17, 17], [], list(range(40))):
        found = store.at(np.array(rows, dtype=np.int64))
        assert type(found) is np.ndarray
        np.testing.assert_array_equal(found, pictures[rows])
    held = ImageStore(pictures, store.keys)  # in memory, not mapped
    np.testing.assert_array_equal(held.read(["3", "1"]), pictures[[3, 1]])


def test_pictures_are_decoded_by_as_many_threads_as_there_are_cores(tmp_path, monkeypatch):
    """In order, whichever thread is late, and only a few pictures ahead of what has been stored."""
    rng, begun, stored, ahead = np.random.default_rng(0), [], [], []
    pictures = rng.integers(0, 256, (90, 16, 16, 3), dtype=np.uint8)
    together = threading.Barrier(3, timeout=20)

    def load(key):
        begun.append(key)
        ahead.append(len(begun) - len(stored))
        if int(key) < 3:
            together.wait()
        time.sleep(0.002 * (int(key) % 3 == 0))
        return pictures[int(key)]

    monkeypatch.setattr(images, "usable_cores", lambda: 3)
    store = build_store([str(i) for i in range(90)], load, tmp_path, size=16, progress=stored.append)
    np.testing.assert_array_equal(store.pixels, pictures)
    assert max(ahead) <= 3 * images.AHEAD


def test_usable_cores_are_those_this_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 2, 5}, raising=False)
    assert images.usable_cores() == 3
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(200)), raising=False)
    assert images.usable_cores() == images.MOST_THREADS
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert images.usable_cores() == 1


def test_fast_decoding_reaches_open_image_in_every_thread_and_ends_there(tmp_path):
    files = {f"{i}.jpg": saved(detailed(300 + i, 400), "jpeg") for i in range(12)}
    sizes = {True: set(), False: set()}

    def store(fast):
        def load(key):
            opened = open_image(io.BytesIO(files[key]), where=key)
            sizes[fast].add(min(opened.size))
            return opened

        return build_store(list(files), load, tmp_path / str(fast), size=48, fast=fast).pixels.astype(int)

    fast, exact = store(True), store(False)
    assert sizes[True] == {75, 76, 77, 78}
    assert sizes[False] == set(range(300, 312))
    expected = [square(open_image(io.BytesIO(content), where=""), 48) for content in files.values()]
    np.testing.assert_array_equal(exact, expected)
    assert 0 < abs(fast - exact).mean() < 1


def test_bad_pictures_are_left_out_and_the_file_is_as_long_as_the_rest(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (100, 16, 16, 3), dtype=np.uint8)

    def load(key):
        if int(key) % 10 == 3:
            raise CohortError("The image cannot be read.", where=f"row {key}", mend="Remove it.")
        return pictures[int(key)]

    keys, tolerance = [str(i) for i in range(100)], Tolerance(allowed=10)
    store = build_store(keys, load, tmp_path, size=16, tolerance=tolerance)
    kept = [i for i in range(100) if i % 10 != 3]
    assert store.keys == [str(i) for i in kept]
    np.testing.assert_array_equal(store.pixels, pictures[kept])
    assert [error.where for error in tolerance.errors] == [f"row {i}" for i in range(3, 100, 10)]
    whole = np.load(tmp_path / "images" / "pixels.npy")  # and any reader of .npy files can read it
    assert (tmp_path / "images" / "pixels.npy").stat().st_size == 128 + whole.nbytes
    # Even nothing is a store.
    nothing = build_store(["3", "13"], load, tmp_path / "nothing", size=16, tolerance=Tolerance(allowed=2))
    assert nothing.keys == []
    assert nothing.at(np.array([], np.int64)).shape == (0, 16, 16, 3)


def test_a_bad_picture_stops_the_work_soon(tmp_path):
    seen = []

    def load(key):
        seen.append(key)
        if key == "5":
            raise CohortError("The image cannot be read.", where="row 5")
        time.sleep(0.001)
        return picture()

    with pytest.raises(CohortError, match="row 5"):
        build_store([str(i) for i in range(10_000)], load, tmp_path, size=16)
    assert len(seen) <= 6 + images.AHEAD * images.usable_cores()


def test_a_disk_that_is_too_small_is_an_error_before_the_work(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    sizes = {"total": usage.total, "used": usage.used, "free": 40 * 16 * 16 * 3}
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(**sizes))
    keys, loaded = [str(i) for i in range(41)], []

    def load(key):
        loaded.append(key)
        return picture()

    with pytest.raises(CohortError, match="are free"):
        build_store(keys, load, tmp_path, size=16)
    assert loaded == []
    assert len(build_store(keys[:40], load, tmp_path, size=16).keys) == 40
    sizes |= {"total": 0, "free": 0}  # a file system that says nothing about itself
    assert len(build_store(keys, load, tmp_path, size=16).keys) == 41


def test_the_shorter_side_fits_and_the_middle_is_kept(tmp_path):
    # Left quarter red, right quarter blue, the middle half a fine chessboard whose mean is 127.5.
    wide = np.zeros((64, 128, 3), np.uint8)
    wide[:, :32, 0] = 255
    wide[:, 96:, 2] = 255
    wide[:, 32:96] = (np.indices((64, 64)).sum(0) % 2 * 255)[..., None]
    tall = np.rot90(wide).copy()
    build_store(["wide", "tall"], {"wide": wide, "tall": tall}.__getitem__, tmp_path, size=16)
    for stored in ImageStore.open(tmp_path).read(["wide", "tall"]):
        inner = stored[1:-1, 1:-1].astype(int)
        # Not antialiased, picking every fourth pixel of the chessboard would give 0 or 255.
        assert abs(inner - 127.5).max() < 12
        assert abs(stored.astype(int) - 127.5).max() < 40


def test_a_failure_leaves_no_store(tmp_path):
    def load(key):
        if key == "b":
            raise CohortError("The image cannot be read.", where="b, row 2")
        return picture()

    with pytest.raises(CohortError, match="row 2"):
        build_store(["a", "b"], load, tmp_path, size=16)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_or_damaged_store_is_refused(tmp_path):
    with pytest.raises(CohortError, match="missing"):
        ImageStore.open(tmp_path)
    store = build_store(["a", "b"], lambda key: picture(), tmp_path, size=16)
    with pytest.raises(CohortError, match="lacks 2 of 3 images") as caught:
        store.rows(["a", "x", "y"])
    assert "image x" in caught.value.where
    whole = (tmp_path / "images" / "pixels.npy").read_bytes()
    (tmp_path / "images" / "pixels.npy").write_bytes(whole[:-100])
    with pytest.raises(CohortError, match="damaged"):
        ImageStore.open(tmp_path)
    shutil.rmtree(tmp_path / "other", ignore_errors=True)
    build_store(["a"], lambda key: picture(), tmp_path / "other", size=16)
    (tmp_path / "images" / "pixels.npy").write_bytes((tmp_path / "other" / "images" / "pixels.npy").read_bytes())
    with pytest.raises(CohortError, match="do not fit together"):
        ImageStore.open(tmp_path)

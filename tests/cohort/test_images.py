"""The image store: every kind of picture becomes the right pixels, and what cannot is named."""

import shutil
import threading

import numpy as np
import pytest
from PIL import Image

from fairvlm_core.cohort.images import ImageStore, build_store, open_image, to_rgb
from fairvlm_core.errors import CohortError


def picture(height=40, width=60):
    """A smooth picture whose four corners differ, so that turning or cropping it shows."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // (width - 1), y * 255 // (height - 1), np.full_like(x, 90)], axis=2).astype(np.uint8)


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
    assert len(threads) == 2
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


def test_orientation_from_the_camera_is_applied(tmp_path):
    upright = picture()
    for orientation, stored in {3: np.rot90(upright, 2), 6: np.rot90(upright, 1), 8: np.rot90(upright, -1)}.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        for suffix, options in (("png", {}), ("tiff", {}), ("jpg", {"quality": 95, "subsampling": 0})):
            file = tmp_path / f"{orientation}.{suffix}"
            Image.fromarray(np.ascontiguousarray(stored)).save(file, exif=exif, **options)
            seen = np.asarray(to_rgb(open_image(file, where="row 1")))
            assert seen.shape == upright.shape
            assert abs(seen.astype(int) - upright).mean() < 2


def test_every_mode_becomes_rgb(tmp_path):
    rgb = picture()
    grey = rgb[..., 0]
    deep = grey.astype(np.uint16) * 256 + 128
    cases = {
        "grey": (Image.fromarray(grey), np.stack([grey] * 3, 2), 0),
        "bits": (
            Image.fromarray(grey).convert("1", dither=Image.Dither.NONE),
            np.stack([(grey > 127) * 255] * 3, 2),
            0,
        ),
        "deep": (Image.fromarray(deep), np.stack([grey] * 3, 2), 1),
        "integers": (Image.fromarray(deep.astype(np.int32)), np.stack([grey] * 3, 2), 1),
        "palette": (Image.fromarray(rgb).quantize(256), rgb, 24),
        "cmyk": (Image.fromarray(rgb).convert("CMYK"), rgb, 1),
        "ycbcr": (Image.fromarray(rgb).convert("YCbCr"), rgb, 3),
    }
    for name, (image, expected, tolerance) in cases.items():
        seen = to_rgb(image)
        assert seen.mode == "RGB", name
        assert abs(np.asarray(seen).astype(int) - expected).max() <= tolerance, name
    np.testing.assert_array_equal(np.asarray(to_rgb(deep)), np.asarray(to_rgb(Image.fromarray(deep))))
    # The same through files: 16-bit PNG and TIFF, CMYK JPEG.
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.fromarray(deep).save(tmp_path / "deep.tiff")
    Image.fromarray(rgb).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95, subsampling=0)
    for name, expected, tolerance in (
        ("deep.png", cases["deep"][1], 1),
        ("deep.tiff", cases["deep"][1], 1),
        ("cmyk.jpg", rgb, 12),
    ):
        seen = np.asarray(to_rgb(open_image(tmp_path / name, where="row 1"))).astype(int)
        assert abs(seen - expected).max() <= tolerance, name


def test_what_is_transparent_becomes_black(tmp_path):
    rgb = picture()
    alpha = np.zeros(rgb.shape[:2], np.uint8)
    alpha[:, 30:] = 255
    alpha[:, 50:] = 128
    expected = rgb.astype(float) * alpha[..., None] / 255
    image = Image.fromarray(np.dstack([rgb, alpha]))
    assert abs(np.asarray(to_rgb(image)) - expected).max() <= 1
    palette = Image.fromarray(np.where(alpha > 0, 1, 0).astype(np.uint8), mode="P")
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.save(tmp_path / "p.png", transparency=0)
    seen = np.asarray(to_rgb(open_image(tmp_path / "p.png", where="row 1")))
    np.testing.assert_array_equal(seen[0, 0], [0, 0, 0])
    np.testing.assert_array_equal(seen[0, 59], [0, 255, 0])


@pytest.mark.parametrize("kind", ["truncated", "text", "empty", "damaged png", "missing", "folder"])
def test_an_unreadable_file_is_named_with_its_row(tmp_path, kind):
    file = tmp_path / "ISIC_1.jpg"
    if kind == "truncated":
        Image.fromarray(picture(200, 200)).save(file)
        file.write_bytes(file.read_bytes()[:1500])
    elif kind == "text":
        file.write_text("<html>404</html>")
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "damaged png":
        Image.fromarray(picture(100, 100)).save(file, format="png")
        content = bytearray(file.read_bytes())
        content[60:90] = bytes(30)
        file.write_bytes(content)
    elif kind == "folder":
        file.mkdir()
    with pytest.raises(CohortError, match=r"ISIC_1\.jpg \(table\.csv, row 7\)") as caught:
        open_image(file, where="table.csv, row 7")
    assert caught.value.mend


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("limit", [1500, 900])  # 2,000 pixels: over the limit, and over twice of it
def test_a_decompression_bomb_is_an_error_by_name(tmp_path, monkeypatch, limit):
    Image.fromarray(picture(40, 50)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(CohortError, match=r"decompression-bomb limit[^$]*large\.png"):
        open_image(tmp_path / "large.png", where="row 2")


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4), np.float32),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.uint16),
        np.full((4, 4), 70_000, np.int32),
    ],
)
def test_pixels_without_an_agreed_range_are_refused(pixels):
    with pytest.raises(CohortError, match="image 12"):
        to_rgb(pixels, where="image 12")
    if pixels.ndim == 2:
        with pytest.raises(CohortError, match="image 12"):
            to_rgb(Image.fromarray(pixels), where="image 12")


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

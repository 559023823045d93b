"""What cannot be shown as it was meant is refused, and the error names it."""

import io
import random
import warnings
import zlib
from contextlib import nullcontext

import numpy as np
import pytest
from picture_files import detailed, exif_of, picture, png, saved, seen, tiff
from PIL import Image, ImageFile

from fairvlm_core.cohort.pictures import open_image, scaled_decoding, square, to_rgb
from fairvlm_core.errors import CohortError


def refused(content):
    """The error about this file."""
    with pytest.raises(CohortError) as caught:
        square(open_image(io.BytesIO(content), where="table.csv, row 2"), 16, where="table.csv, row 2")
    assert caught.value.where == "table.csv, row 2"
    assert caught.value.mend
    return caught.value.what


@pytest.mark.parametrize("kind", ["truncated", "text", "empty", "damaged png", "missing", "folder"])
def test_an_unreadable_file_is_named_with_its_row(tmp_path, kind):
    file = tmp_path / "ISIC_1.jpg"
    if kind == "truncated":
        file.write_bytes(saved(picture(200, 200), "jpeg")[:1500])
    elif kind == "text":
        file.write_text("<html>404</html>")
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "damaged png":
        content = bytearray(saved(picture(100, 100)))
        content[60:90] = bytes(30)
        file.write_bytes(content)
    elif kind == "folder":
        file.mkdir()
    with pytest.raises(CohortError, match=r"ISIC_1\.jpg \(table\.csv, row 7\)") as caught:
        open_image(file, where="table.csv, row 7")
    assert caught.value.mend


SMALL = detailed(20, 28)
KINDS = {
    "jpeg": saved(SMALL, "jpeg"),
    "progressive jpeg": saved(SMALL, "jpeg", progressive=True),
    "cmyk jpeg": saved(Image.fromarray(SMALL).convert("CMYK"), "jpeg"),
    "turned jpeg": saved(SMALL, "jpeg", exif=exif_of(6)),
    "png": saved(SMALL),
    "16-bit png": saved(Image.frombytes("I;16", (28, 20), SMALL[..., 0].astype("<u2").tobytes())),
    "tiff": saved(SMALL, "tiff"),
    "lzw tiff": saved(SMALL, "tiff", compression="tiff_lzw"),
    "jpeg tiff": saved(SMALL, "tiff", compression="jpeg"),
    "bmp": saved(SMALL, "bmp"),
    "gif": saved(SMALL, "gif"),
    "ppm": saved(SMALL, "ppm"),
    "webp": saved(SMALL, "webp", exif=exif_of(6)),
    "avif": saved(SMALL, "avif"),
    "jpeg 2000": saved(SMALL, "jpeg2000"),
    "jpeg 2000 in tiles": saved(SMALL, "jpeg2000", tile_size=(16, 16)),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("decoding", [nullcontext, lambda: scaled_decoding(4)], ids=["exact", "scaled"])
def test_a_file_that_ends_too_early_is_refused_wherever_it_ends(kind, decoding):
    """Or it has lost nothing but what comes after its pixels."""
    content, lost = KINDS[kind], []
    with decoding():
        whole = seen(content)
        for end in range(0, len(content), 1 if "2000" in kind else 3):
            try:
                found = seen(content[:end])
            except CohortError:
                continue
            lost += [] if np.array_equal(found, whole) else [end]
    assert lost == []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_never_anything_but_a_named_error(kind, capfd):
    """What a decoder cannot notice it shows; what it does notice has one form, whichever exception it raised."""
    rng, places = random.Random(5), []
    for _ in range(300):
        content = bytearray(KINDS[kind])
        for _ in range(rng.choice([1, 2, 8])):
            content[rng.randrange(len(content))] = rng.choice([0, 255, rng.randrange(256)])
        try:
            found = square(open_image(io.BytesIO(content), where="row 2"), 16, where="row 2")
        except CohortError as error:
            places.append(error.where)
        else:
            assert found.shape == (16, 16, 3)
    assert set(places) == {"row 2"}
    capfd.readouterr()  # libtiff reports damage on the standard error, too


def test_truncated_images_are_not_filled_up(monkeypatch):
    """Another library may have switched that on for the whole process."""
    content = saved(picture(200, 200), "jpeg")
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    for given in (content[:1500], content):
        assert "LOAD_TRUNCATED_IMAGES" in refused(given)


@pytest.mark.parametrize("limit", [1500, 900])  # 2,000 pixels: over the limit, and over twice of it
@pytest.mark.parametrize("action", ["ignore", "error"])
def test_a_decompression_bomb_is_an_error_by_name(tmp_path, monkeypatch, limit, action):
    (tmp_path / "large.png").write_bytes(saved(picture(40, 50)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        with pytest.raises(CohortError, match=r"decompression-bomb limit[^$]*large\.png \(row 2\)"):
            open_image(tmp_path / "large.png", where="row 2")


def test_a_bomb_is_none_the_less_when_it_would_be_decoded_small(monkeypatch):
    content = saved(picture(400, 500), "jpeg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 150_000)
    with warnings.catch_warnings(), scaled_decoding(16):
        warnings.simplefilter("ignore")
        assert "decompression-bomb limit" in refused(content)


def test_a_small_file_that_claims_to_be_huge_is_refused():
    assert "decompression-bomb limit" in refused(png(50_000, 50_000, 8, 2, [b""]))
    # So is text that unpacks to 100 MB.
    text = b"Comment\0\0" + zlib.compress(bytes(100_000_000), 1)
    assert "cannot be read" in refused(png(1, 1, 8, 0, [b"\0"], (b"zTXt", text)))


@pytest.mark.parametrize("kind", ["gif", "png", "webp", "tiff", "avif"])
def test_several_frames_or_pages_are_refused(kind):
    frames = [Image.fromarray(SMALL), Image.fromarray(SMALL[::-1])]
    assert "several frames" in refused(saved(frames[0], kind, save_all=True, append_images=frames[1:]))
    alone = saved(frames[0], kind, save_all=True)
    assert seen(alone).shape == SMALL.shape


def test_other_formats_are_not_opened():
    """A format of games, one of fax machines, and one for which Pillow would run another program."""
    for kind in ("tga", "pcx", "eps"):
        assert "cannot be read" in refused(saved(SMALL, kind))


@pytest.mark.parametrize("shape", [(0, 0), (0, 4, 3), (4, 0)])
def test_a_picture_without_pixels_is_refused(shape):
    with pytest.raises(CohortError, match="no pixels") as caught:
        square(np.zeros(shape, np.uint8), 16, where="row 2")
    assert caught.value.where == "row 2"


def test_a_file_without_pixels_is_refused():
    assert "cannot be read" in refused(png(0, 5, 8, 0, [b""] * 5))
    for mode in ("RGB", "L", "I;16", "RGBA"):
        with pytest.raises(CohortError, match="no pixels"):
            to_rgb(Image.new(mode, (0, 3)))


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


def test_a_tiff_file_without_an_agreed_range_is_refused():
    for content in (
        tiff(2, 1, 32, np.array([0.5, 1], "<f4").tobytes(), kind=3),
        tiff(2, 1, 16, np.array([-1000, 40], "<i2").tobytes(), kind=2),
        tiff(2, 1, 32, np.array([70_000, 40], "<u4").tobytes()),
    ):
        assert "no agreed range" in refused(content)


def test_damaged_exif_data_is_an_error_by_name():
    content = saved(SMALL, "webp", exif=exif_of(6))
    assert "EXIF" in refused(content.replace(b"MM\0*", b"MM\xff*"))

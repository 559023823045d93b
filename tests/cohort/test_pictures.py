"""Every kind of picture becomes the right pixels."""

import io
import threading

import numpy as np
import pytest
from picture_files import detailed, exif_of, grey_of, picture, png, saved, seen, tiff
from PIL import Image

from fairvlm_core.cohort.pictures import open_image, scaled_decoding, size_of, square, to_rgb

RGB = picture()
GREY = RGB[..., 0]
DEEP = GREY.astype(np.uint16) * 257
DEEP_IMAGE = Image.frombytes("I;16", (60, 40), DEEP.tobytes())

# Orientation -> what a camera that was held so has stored of an upright picture (EXIF 2.32, 4.6.4).
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[::-1],
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: a.swapaxes(0, 1)[:, ::-1],
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("png", {}),
        ("tiff", {}),
        ("tiff", {"compression": "tiff_lzw"}),
        ("webp", {"lossless": True}),
        ("jpeg", {"quality": 95, "subsampling": 0}),
    ],
    ids=["png", "tiff", "lzw", "webp", "jpeg"],
)
def test_orientation_from_the_camera_is_applied(orientation, kind, options):
    upright = picture()
    content = saved(STORED[orientation](upright), kind, exif=exif_of(orientation), **options)
    found = seen(content)
    assert found.shape == upright.shape
    assert abs(found.astype(int) - upright).max() <= (3 if kind == "jpeg" else 0)
    # What is turned is decoded whole.
    with scaled_decoding(16 if orientation > 1 else 32):
        np.testing.assert_array_equal(seen(content), found)


@pytest.mark.parametrize("orientation", [0, 9, 2**16 - 1])
@pytest.mark.parametrize("kind", ["png", "tiff", "jpeg"])
def test_an_orientation_that_is_none_turns_nothing(orientation, kind):
    """0 is what cameras write that do not know."""
    assert abs(seen(saved(RGB, kind, exif=exif_of(orientation))).astype(int) - RGB).max() <= 8


def test_orientation_is_found_in_xmp_and_in_a_16_bit_picture():
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="3"/></x:xmpmeta>'
    upright = picture()
    found = seen(saved(upright[::-1, ::-1], "jpeg", quality=95, subsampling=0, xmp=xmp))
    assert abs(found.astype(int) - upright).max() <= 3
    deep = DEEP_IMAGE.transpose(Image.Transpose.ROTATE_180)
    np.testing.assert_array_equal(seen(saved(deep, exif=exif_of(3))), grey_of(GREY))


# What a file holds -> its bytes, its pixels as they are known without reading it, and how far they may be off.
FILES = {
    "grey": (saved(GREY), grey_of(GREY), 0),
    "rgb": (saved(RGB), RGB, 0),
    "16-bit png": (saved(DEEP_IMAGE), grey_of(GREY), 0),
    "16-bit tiff": (saved(DEEP_IMAGE, "tiff"), grey_of(GREY), 0),
    "16-bit pgm": (saved(DEEP_IMAGE, "ppm"), grey_of(GREY), 0),
    "32-bit tiff of 16-bit values": (tiff(60, 40, 32, DEEP.astype("<u4").tobytes()), grey_of(GREY), 0),
    "16-bit tiff, 0 is white": (tiff(60, 40, 16, (65535 - DEEP).tobytes(), white=True), grey_of(GREY), 0),
    "8-bit tiff, 0 is white": (tiff(60, 40, 8, (255 - GREY).tobytes(), white=True), grey_of(GREY), 0),
    "12-bit tiff": (tiff(4, 1, 12, bytes.fromhex("fff8000007ff")), grey_of([[255, 128, 0, 127]]), 0),
    "1-bit": (png(8, 1, 1, 0, [b"\xa5"]), grey_of([[255, 0, 255, 0, 0, 255, 0, 255]]), 0),
    "2-bit": (png(4, 1, 2, 0, [b"\x1b"]), grey_of([[0, 85, 170, 255]]), 0),
    "4-bit": (png(2, 1, 4, 0, [b"\x5a"]), grey_of([[85, 170]]), 0),
    "16-bit rgb": (png(1, 1, 16, 2, [bytes.fromhex("ffffc0000100")]), [[[255, 192, 1]]], 0),
    "palette": (
        png(2, 1, 8, 3, [b"\1\0"], (b"PLTE", bytes([9, 8, 7, 200, 100, 50]))),
        [[[200, 100, 50], [9, 8, 7]]],
        0,
    ),
    "gif": (saved(Image.fromarray(RGB[:8, :8]).quantize(64), "gif"), RGB[:8, :8], 0),
    "bmp": (saved(RGB, "bmp"), RGB, 0),
    "ppm": (saved(RGB, "ppm"), RGB, 0),
    "webp": (saved(RGB, "webp", lossless=True), RGB, 0),
    "jpeg 2000": (saved(RGB, "jpeg2000"), RGB, 0),
    "avif": (saved(RGB, "avif", quality=100, subsampling="4:4:4"), RGB, 4),
    "jpeg": (saved(RGB, "jpeg", quality=95, subsampling=0), RGB, 3),
    "progressive jpeg": (saved(RGB, "jpeg", quality=95, subsampling=0, progressive=True), RGB, 3),
    "grey jpeg": (saved(GREY, "jpeg", quality=95), grey_of(GREY), 2),
    "cmyk tiff": (saved(Image.fromarray(RGB).convert("CMYK"), "tiff"), RGB, 1),
}


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_becomes_rgb(name, tmp_path):
    content, expected, tolerance = FILES[name]
    found = seen(content)
    (tmp_path / "image").write_bytes(content)  # whatever its suffix
    np.testing.assert_array_equal(np.asarray(to_rgb(open_image(tmp_path / "image", where="row 2"))), found)
    assert found.dtype == np.uint8
    assert found.shape == np.shape(expected)
    assert abs(found.astype(int) - expected).max() <= tolerance


def test_every_kind_of_picture_in_memory_becomes_rgb():
    cases = {
        "bits": (Image.fromarray(GREY > 127), grey_of((GREY > 127) * 255)),
        "integers": (Image.fromarray(DEEP.astype(np.int32)), grey_of(GREY)),
        "16 bits": (DEEP, grey_of(GREY)),
        "8 bits": (GREY, grey_of(GREY)),
        "colour": (RGB, RGB),
        "a view": (RGB[::-1, ::2], RGB[::-1, ::2]),
        "with padding": (Image.fromarray(RGB).convert("RGBX"), RGB),
    }
    for name, (image, expected) in cases.items():
        assert to_rgb(image).mode == "RGB", name
        np.testing.assert_array_equal(np.asarray(to_rgb(image)), expected, err_msg=name)
    for mode, tolerance in (("YCbCr", 3), ("HSV", 8)):
        found = np.asarray(to_rgb(Image.fromarray(RGB).convert(mode)))
        assert abs(found.astype(int) - RGB).max() <= tolerance, mode


@pytest.mark.parametrize("transformed", [False, True], ids=["cmyk", "ycck"])
def test_colours_of_cmyk_jpeg_are_not_inverted(transformed):
    """Adobe stores 255 - ink; in YCCK the inks C, M and Y are stored as if they were the light R, G and B, in YCbCr."""
    light = np.zeros((48, 64, 3), np.uint8)
    light[:24, :32], light[:24, 32:], light[24:, :32], light[24:, 32:] = (
        (250, 20, 20),
        (20, 250, 20),
        (20, 20, 250),
        235,
    )
    black = np.full((48, 64), 51, np.uint8)  # a fifth of the light is gone
    ink = Image.merge("CMYK", [*Image.fromarray(255 - light).split(), Image.fromarray(black)])
    if transformed:
        inks = Image.fromarray(np.asarray(ink)[..., :3]).convert("YCbCr")
        # Pillow inverts what it writes; the fourth channel is stored as in CMYK.
        channels = [Image.fromarray(255 - np.asarray(channel)) for channel in inks.split()]
        content = bytearray(saved(Image.merge("CMYK", [*channels, ink.split()[3]]), "jpeg", quality=98, subsampling=0))
        content[content.index(b"Adobe") + 11] = 2
    else:
        content = saved(ink, "jpeg", quality=98, subsampling=0)
    expected = light * 0.8
    assert abs(seen(bytes(content)) - expected).max() <= 6
    with scaled_decoding(16):
        small = square(open_image(io.BytesIO(content), where=""), 16)
    assert abs(small[[2, 2, -3, -3], [2, -3, 2, -3]] - expected[[0, 0, -1, -1], [0, -1, 0, -1]]).max() <= 6


def test_what_is_transparent_becomes_black():
    alpha = np.zeros(RGB.shape[:2], np.uint8)
    alpha[:, 30:], alpha[:, 50:] = 255, 128
    cases = {
        "rgba": (np.dstack([RGB, alpha]), RGB),
        "la": (np.dstack([GREY, alpha]), grey_of(GREY)),
    }
    for name, (pixels, opaque) in cases.items():
        expected = opaque * (alpha[..., None] / 255)
        for kind in ("png", "tiff"):
            assert abs(seen(saved(pixels, kind)) - expected).max() <= 1, (name, kind)
    # Colours that were multiplied by their alpha already.
    expected = RGB * (alpha[..., None] / 255)
    assert abs(np.asarray(to_rgb(Image.fromarray(np.dstack([RGB, alpha])).convert("RGBa"))) - expected).max() <= 2
    grey = Image.fromarray(np.dstack([GREY, alpha])).convert("La")
    assert abs(np.asarray(to_rgb(grey)) - grey_of(GREY) * (alpha[..., None] / 255)).max() <= 2


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        # A transparent grey level, colour or place in the palette, and one beside it that is not.
        (png(2, 1, 8, 0, [b"\x09\x0a"], (b"tRNS", b"\0\x09")), [[[0] * 3, [10] * 3]]),
        (png(2, 1, 8, 2, [bytes([9, 8, 7, 9, 8, 6])], (b"tRNS", bytes([0, 9, 0, 8, 0, 7]))), [[[0] * 3, [9, 8, 6]]]),
        (png(2, 1, 8, 3, [b"\0\1"], (b"PLTE", bytes([9, 8, 7, 6, 5, 4])), (b"tRNS", b"\0")), [[[0] * 3, [6, 5, 4]]]),
        (png(2, 1, 16, 0, [bytes.fromhex("80008080")], (b"tRNS", b"\x80\0")), [[[0] * 3, [128] * 3]]),
    ],
    ids=["grey", "rgb", "palette", "16-bit"],
)
def test_a_transparent_colour_becomes_black(content, expected):
    np.testing.assert_array_equal(seen(content), expected)


def test_a_square_is_what_pillow_alone_makes_of_the_file():
    """Bit for bit, also of grey, which is resized as grey, and of 1, 8 and 16 bits, at even and odd margins."""
    wide, tall = detailed(101, 156), detailed(90, 61)
    for pixels in (wide, tall):
        grey = pixels[..., 1]
        for content in (
            saved(pixels, "jpeg", quality=85),
            saved(grey, "jpeg", quality=85),
            saved(pixels),
            saved(grey),
            saved(Image.fromarray(grey > 128)),
        ):
            for size in (16, 45, 64, 130):
                plain = Image.open(io.BytesIO(content)).convert("RGB")
                side = min(plain.size)
                left, top = (plain.width - side) / 2, (plain.height - side) / 2
                box = (left, top, left + side, top + side)
                expected = np.asarray(plain.resize((size, size), Image.Resampling.BICUBIC, box=box))
                found = square(open_image(io.BytesIO(content), where=""), size)
                np.testing.assert_array_equal(found, expected)


def test_a_picture_of_one_row_is_its_middle():
    strip = np.zeros((1, 501), np.uint8)
    strip[0, 245:256] = 200
    assert (square(strip, 16) == 200).all()


def test_of_a_cameras_photograph_and_its_previews_the_photograph_is_taken():
    """MPO: what many telephones write, with the suffix .jpg."""
    first, second = (Image.fromarray(pixels) for pixels in (picture(), picture()[::-1]))
    content = saved(first, "mpo", save_all=True, append_images=[second], quality=95, subsampling=0)
    assert abs(seen(content).astype(int) - picture()).max() <= 3
    with scaled_decoding(16):
        assert open_image(io.BytesIO(content), where="").size == (30, 20)


# Least side of what is opened of a JPEG of 664 x 512 pixels, for squares of each size.
SCALED = {
    513: 512,
    512: 512,
    257: 512,
    256: 256,
    224: 256,
    129: 256,
    128: 128,
    65: 128,
    64: 128,
    33: 128,
    32: 64,
    16: 64,
}


@pytest.mark.parametrize("side", SCALED)
def test_a_jpeg_is_opened_as_small_as_the_squares_allow(side):
    content, grey = saved(detailed(512, 664), "jpeg"), saved(detailed(512, 664)[..., 0], "jpeg", progressive=True)
    with scaled_decoding(side):
        opened = open_image(io.BytesIO(content), where="")
        assert min(opened.size) == SCALED[side]
        assert size_of(opened) == (664, 512)
        opened = open_image(io.BytesIO(grey), where="")
        assert min(opened.size) == SCALED[side]
        assert opened.mode == "L"


@pytest.mark.parametrize("shape", [(512, 664), (513, 665), (519, 671), (664, 513), (391, 320)])
@pytest.mark.parametrize("size", [16, 32, 64, 100, 224])
def test_scaled_squares_differ_by_few_grey_levels(shape, size):
    """Odd sizes, too: a last column that is only part of a pixel must not move the centre."""
    content = saved(detailed(*shape), "jpeg", quality=90)
    exact = square(open_image(io.BytesIO(content), where=""), size).astype(int)
    with scaled_decoding(size):
        opened = open_image(io.BytesIO(content), where="")
    if min(shape) >= 2 * size:
        assert min(opened.size) < min(shape)
    difference = abs(square(opened, size) - exact)
    assert difference.mean() < 1
    assert np.percentile(difference, 99) <= 4
    assert difference.max() <= 12


def test_what_was_cut_or_resized_after_it_was_opened_is_taken_as_it_is():
    content = saved(detailed(513, 665), "jpeg")
    with scaled_decoding(64):
        opened = open_image(io.BytesIO(content), where="")
    assert size_of(opened) == (665, 513)
    assert size_of(np.zeros((3, 4), np.uint8)) == size_of(Image.new("L", (4, 3))) == (4, 3)
    cut = opened.crop((0, 0, 100, 80))
    np.testing.assert_array_equal(square(cut, 32), square(np.asarray(cut), 32))


def test_other_files_and_what_is_small_are_decoded_as_always():
    small = saved(detailed(80, 120), "jpeg")
    for content in (saved(detailed(300, 400)), saved(detailed(300, 400), "webp"), small):
        exact = square(open_image(io.BytesIO(content), where=""), 64)
        with scaled_decoding(64):
            np.testing.assert_array_equal(square(open_image(io.BytesIO(content), where=""), 64), exact)


def test_scaled_decoding_ends_with_its_block_and_holds_in_its_thread_alone():
    content, sizes = saved(detailed(512, 664), "jpeg"), []

    def look():
        sizes.append(open_image(io.BytesIO(content), where="").size)

    def fail():
        with scaled_decoding(64):
            look()
            thread = threading.Thread(target=look)
            thread.start()
            thread.join()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    look()
    assert sizes == [(166, 128), (664, 512), (664, 512)]

"""Pictures as files have them, of any mode and turned in any way, and the RGB squares that models see.

What is read: JPEG, PNG, TIFF, BMP, GIF, WebP, AVIF, JPEG 2000 and PNM files with 1 to 16 bits per pixel and colour.
What has no one meaning is refused: floating-point pixels, several frames or pages, and files that end too early.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from math import ceil
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageFile, TiffImagePlugin

from fairvlm_core.errors import CohortError

# Pillow knows more: formats that hold no photographs, and one for which it runs another program (EPS).
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000", "PPM", "AVIF")
RANGE_16 = 65535
# EXIF orientation -> what makes such a picture upright.
TURNS: dict[object, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# In the `info` of a picture decoded at a fraction of its size: its width and height in the pixels that it has, not
# rounded, and those of its file.
EXTENT, FILE_SIZE = "extent", "file_size"

# Side of the squares that are cut from what this thread opens; None where every pixel is to be decoded.
_side: ContextVar[int | None] = ContextVar("side", default=None)


@contextmanager
def scaled_decoding(side: int) -> Iterator[None]:
    """Let `open_image` decode JPEG files at 1/2, 1/4 or 1/8 of their size where squares of `side` pixels need no more.

    This holds in the calling thread. libjpeg then leaves out the high frequencies of each block of 8 x 8 pixels instead
    of decoding all and shrinking it: faster, and a few grey levels off (benchmarks/images.md). Such a picture has at
    least `side` pixels in both directions, and twice as many at 1/8, which is the bare mean of each block. What an EXIF
    orientation turns is decoded whole.
    """
    token = _side.set(side)
    try:
        yield
    finally:
        _side.reset(token)


def open_image(file: Path | BinaryIO, *, where: str) -> Image.Image:
    """Open and fully decode a picture; within `scaled_decoding` it may be smaller than its file says.

    Args:
        file: its path, or an open file.
        where: what the error adds to the path: the table and row that list it.

    Raises:
        CohortError: when the file is missing, is not a picture, is truncated, has several frames or pages, or is larger
            than Pillow's limit.
    """
    place = f"{file} ({where})" if isinstance(file, Path) else where
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise CohortError(
            "Pillow has been told to fill up truncated images (ImageFile.LOAD_TRUNCATED_IMAGES).",
            where=place,
            mend="Leave that switched off, so that half a picture is not taken for a whole one.",
        )
    too_large = CohortError(
        f"The image exceeds Pillow's decompression-bomb limit of {Image.MAX_IMAGE_PIXELS} pixels.",
        where=place,
        mend="Check that it is what it should be, and shrink it.",
    )
    try:
        with Image.open(file, formats=FORMATS) as image:
            # Between once and twice the limit, Pillow only warns.
            if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise too_large
            # After a camera's photograph, an MPO file has previews of it.
            if getattr(image, "is_animated", False) and image.format != "MPO":
                raise CohortError(
                    "The image has several frames or pages.",
                    where=place,
                    mend="Save the one that is meant as a file of its own.",
                )
            if image.format == "JPEG2000":
                _require_end(image)
            _scale(image)
            image.load()
            return image
    except CohortError:
        raise
    except FileNotFoundError:
        raise CohortError(
            "An image is missing.", where=place, mend="Unpack the release again, or remove the row."
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise too_large from None
    # There is hardly an exception by which one of Pillow's decoders does not report damage.
    except Exception as error:
        raise CohortError(
            f"The image cannot be read ({type(error).__name__}).",
            where=place,
            mend="Unpack or download that file again: it is damaged or not an image.",
        ) from None


def _require_end(image: ImageFile.ImageFile) -> None:
    """JPEG 2000 that lacks whole tiles is decoded in silence: look for the marker of its end, which no data hold."""
    assert image.fp is not None
    image.fp.seek(0)
    if b"\xff\xd9" not in image.fp.read():
        raise EOFError


def _scale(image: ImageFile.ImageFile) -> None:
    """Choose the fraction of its size at which a JPEG file will be decoded, as `scaled_decoding` says."""
    side = _side.get()
    if side is None or image.format not in ("JPEG", "MPO"):
        return
    if image.getexif().get(ExifTags.Base.Orientation) in TURNS:
        return
    least = side if min(image.size) < 8 * side else 2 * side
    # The last column and row may stand for less than a whole pixel. For the centre of the picture that counts.
    before, drafted = image.size, image.draft(None, (least, least))
    if drafted and image.size != before:
        image.info |= {EXTENT: drafted[1][2:], FILE_SIZE: before}


def size_of(picture: np.ndarray | Image.Image) -> tuple[int, int]:
    """Width and height in pixels as the file of a picture has them, also where it was decoded at a fraction of them."""
    if isinstance(picture, np.ndarray):
        return picture.shape[1], picture.shape[0]
    return picture.info.get(FILE_SIZE, picture.size)


def to_rgb(picture: np.ndarray | Image.Image, *, where: str = "") -> Image.Image:
    """Any picture as 8-bit RGB, upright.

    The EXIF orientation is applied. 16-bit grey is scaled from its full range (0..65535), whatever part of it is used.
    What is transparent becomes black, the background of medical images. Colour profiles are not applied.

    Args:
        picture: a PIL image of any integer mode, or an array: uint8 [H, W] or [H, W, 3], or uint16 [H, W].
        where: the image, for the error.

    Raises:
        CohortError: when there are no pixels, or they have no agreed range (floating point, integers beyond 16 bits).
    """
    return _shown(picture, where).convert("RGB")


def square(picture: np.ndarray | Image.Image, size: int, *, where: str = "") -> np.ndarray:
    """What a model sees of a picture, uint8 [size, size, 3]: its central square, antialiased.

    Shapes keep their proportions, borders are cut. Takes what `to_rgb` takes, and raises what it raises.
    """
    image = _shown(picture, where)
    scaled = _extent(picture, image.size)
    width, height = scaled or image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    # A scaled picture is hardly larger than the square. Resizing its three colours would take as long as decoding them,
    # and the fine detail that the longer kernel would keep has been left out by libjpeg.
    short = scaled is not None and side < 1.5 * size and image.mode == "RGB"
    kernel = Image.Resampling.BILINEAR if short else Image.Resampling.BICUBIC
    # Grey is resized as grey, a third of the work; each colour of an RGB picture would become the same.
    return np.asarray(image.resize((size, size), kernel, box=box).convert("RGB"))


def _extent(picture: np.ndarray | Image.Image, size: tuple[int, int]) -> tuple[float, float] | None:
    """Width and height of a scaled picture in its pixels; None for one that was cropped or resized since, too."""
    known = None if isinstance(picture, np.ndarray) else picture.info.get(EXTENT)
    return known if known and (ceil(known[0]), ceil(known[1])) == size else None


def _shown(picture: np.ndarray | Image.Image, where: str) -> Image.Image:
    """A picture as `to_rgb` describes it, of the mode RGB or L."""
    image = _from_array(picture, where) if isinstance(picture, np.ndarray) else _upright(picture, where)
    if 0 in image.size:
        raise CohortError("The image has no pixels.", where=where, mend="Download it again, or remove the row.")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _eight_bits(image, where)
    try:
        if image.mode in ("L", "RGB") and not image.has_transparency_data:
            return image
        if image.mode == "La":  # Pillow converts it to nothing else
            image = image.convert("LA")
        if image.has_transparency_data:
            image = image.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", image.size, "black"), image).convert("RGB")
        return image.convert("L" if image.mode == "1" else "RGB")
    except ValueError:
        raise CohortError(
            f'A picture of the mode "{image.mode}" cannot be shown in RGB.', where=where, mend="Save it as RGB or grey."
        ) from None


def _from_array(picture: np.ndarray, where: str) -> Image.Image:
    is_8_bit = picture.dtype == np.uint8 and picture.shape[2:] in ((), (3,))
    is_16_bit = picture.dtype == np.uint16 and picture.ndim == 2
    if not (is_8_bit or is_16_bit):
        raise CohortError(
            f"An array {picture.dtype} {list(picture.shape)} is not a picture.",
            where=where,
            mend="Let the adapter load uint8 [H, W] or [H, W, 3], or uint16 [H, W].",
        )
    return Image.fromarray(picture)


def _upright(image: Image.Image, where: str) -> Image.Image:
    """The picture as its EXIF orientation says that it is to be seen; TIFF files have been turned by Pillow."""
    try:
        turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    # Damage of EXIF shows by as many exceptions as that of pixels.
    except Exception as error:
        raise CohortError(
            f"The EXIF data of the image cannot be read ({type(error).__name__}).",
            where=where,
            mend="Download it again, or save it without EXIF data, turned as it is to be seen.",
        ) from None
    return image if turn is None else image.transpose(turn)


def _eight_bits(image: Image.Image, where: str) -> Image.Image:
    """Grey of 16 bits, or of as many that are used of the mode I, as the mode L."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > RANGE_16:
        raise CohortError(
            f'The pixels of a picture of the mode "{image.mode}" have no agreed range.',
            where=where,
            mend="Save it with 8 or 16 bits per pixel.",
        )
    # What Pillow leaves to do of TIFF: pixels of 12 bits, and grey that counts down from white.
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    white = 4095 if tags.get(TiffImagePlugin.BITSPERSAMPLE) == (12,) else RANGE_16
    grey = ((values.astype(np.uint32) * 255 + white // 2) // white).astype(np.uint8)
    if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:
        grey = 255 - grey
    if "transparency" in image.info:
        grey[values == image.info["transparency"]] = 0
    return Image.fromarray(grey)

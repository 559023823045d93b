"""The image store: every picture decoded once, as RGB squares of one size in a memory-mapped array.

`images/pixels.npy` is uint8 [N, S, S, 3], `images/index.parquet` gives the key of each of its N rows.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from fairvlm_core.cohort.tolerance import Tolerance
from fairvlm_core.errors import CohortError
from fairvlm_core.files import folder_written

STORE = "images"
PIXELS_FILE = "pixels.npy"
INDEX_FILE = "index.parquet"
THREADS = 2
# Handed to the threads at a time: enough to keep them busy, few enough for an error to stop the work soon.
BATCH = 64


class ImageStore:
    """The pictures that `ingest` decoded.

    Attributes:
        size: side of the pictures in pixels.
        pixels: read-only memory map, uint8 [N, size, size, 3].
    """

    def __init__(self, pixels: np.ndarray, keys: Sequence[str], *, where: str = "") -> None:
        self.pixels = pixels
        self.size = int(pixels.shape[1])
        self._row = {key: row for row, key in enumerate(keys)}
        self._where = where

    @property
    def keys(self) -> list[str]:
        """The keys of the pictures, in the order of `pixels`."""
        return list(self._row)

    @classmethod
    def open(cls, folder: Path) -> ImageStore:
        """Open the store in the folder that `ingest` wrote (the one that holds `images/`).

        Raises:
            CohortError: when the store is missing or damaged.
        """
        store = Path(folder) / STORE
        again = "Run `fairvlm ingest` again, and pass the folder that it wrote."
        for name in (PIXELS_FILE, INDEX_FILE):
            if not (store / name).is_file():
                raise CohortError("The image store is missing.", where=str(store / name), mend=again)
        try:
            pixels = np.load(store / PIXELS_FILE, mmap_mode="r", allow_pickle=False)
            keys = pq.read_table(store / INDEX_FILE).column("image").to_pylist()
        except (ValueError, KeyError, OSError) as error:
            raise CohortError(f"The image store is damaged ({error}).", where=str(store), mend=again) from None
        square = pixels.ndim == 4 and pixels.shape[1] == pixels.shape[2] and pixels.shape[3] == 3
        if not square or pixels.dtype != np.uint8 or len(pixels) != len(keys):
            raise CohortError(
                "The pictures and the index of the image store do not fit together.", where=str(store), mend=again
            )
        return cls(pixels, keys, where=str(store))

    def rows(self, keys: Sequence[str]) -> np.ndarray:
        """Row of each key in `pixels`, int64 [n].

        Raises:
            CohortError: when a key is not in the store.
        """
        try:
            return np.fromiter((self._row[key] for key in keys), dtype=np.int64, count=len(keys))
        except KeyError:
            lacking = [key for key in keys if key not in self._row]
            raise CohortError(
                f"The image store lacks {len(lacking)} of {len(keys)} images.",
                where=f"{self._where}, image {lacking[0]}",
                mend="Pass the images of the same `fairvlm ingest` run as the cohort.",
            ) from None

    def read(self, keys: Sequence[str]) -> np.ndarray:
        """The pictures of these keys, in their order, uint8 [n, size, size, 3]."""
        return np.asarray(self.pixels[self.rows(keys)])


def build_store(
    keys: Sequence[str],
    load: Callable[[str], np.ndarray | Image.Image],
    folder: Path,
    *,
    size: int,
    progress: Callable[[int], object] = lambda done: None,
    tolerance: Tolerance | None = None,
) -> ImageStore:
    """Decode every picture once into `folder/images`, which is put in place only when enough of them are readable.

    Args:
        keys: image keys; a repeated key is stored once.
        load: key -> PIL image, or an array that `to_rgb` takes; called from several threads.
        folder: where to put the store.
        size: side of the stored squares in pixels.
        progress: called with the number of pictures that have been decoded since the last call.
        tolerance: how many pictures may be bad; those are not in the store. By default none.

    Raises:
        CohortError: whatever `load` raises, or when a picture's pixels have no meaning.
    """
    unique, tolerance = list(dict.fromkeys(keys)), tolerance or Tolerance()
    kept: list[str] = []
    with folder_written(Path(folder) / STORE) as store:
        shape = (len(unique), size, size, 3)
        pixels = np.lib.format.open_memmap(store / PIXELS_FILE, mode="w+", dtype=np.uint8, shape=shape)

        def decoded(key: str) -> np.ndarray | CohortError:
            try:
                return square(load(key), size, where=f"image {key}")
            except CohortError as error:
                return error

        with ThreadPoolExecutor(THREADS) as threads:
            for start in range(0, len(unique), BATCH):
                batch = unique[start : start + BATCH]
                for key, picture in zip(batch, threads.map(decoded, batch), strict=True):
                    if isinstance(picture, CohortError):
                        tolerance.add(picture)
                    else:
                        pixels[len(kept)] = picture
                        kept.append(key)
                progress(len(batch))
        pixels.flush()
        del pixels
        if len(kept) < len(unique):
            _shorten(store / PIXELS_FILE, (len(kept), *shape[1:]))
        pq.write_table(pa.table({"image": pa.array(kept, pa.string())}), store / INDEX_FILE)
    return ImageStore.open(folder)


def _shorten(file: Path, shape: tuple[int, ...]) -> None:
    """Keep the first rows of an .npy file of uint8: its header has room for any smaller shape."""
    header = io.BytesIO()
    described = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, described)
    with file.open("r+b") as stream:
        stream.write(header.getvalue())
        stream.truncate(len(header.getvalue()) + int(np.prod(shape)))


def open_image(file: Path | BinaryIO, *, where: str) -> Image.Image:
    """Open and fully decode a picture.

    Args:
        file: its path, or an open file.
        where: what the error adds to the path: the table and row that list it.

    Raises:
        CohortError: when the file is missing, is not a picture, is truncated, or is larger than Pillow's limit.
    """
    place = f"{file} ({where})" if isinstance(file, Path) else where
    too_large = CohortError(
        f"The image exceeds Pillow's decompression-bomb limit of {Image.MAX_IMAGE_PIXELS} pixels.",
        where=place,
        mend="Check that it is what it should be, and shrink it.",
    )
    try:
        with Image.open(file) as image:
            # Between once and twice the limit, Pillow only warns.
            if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise too_large
            image.load()
            return image
    except FileNotFoundError:
        raise CohortError(
            "An image is missing.", where=place, mend="Unpack the release again, or remove the row."
        ) from None
    except Image.DecompressionBombError:
        raise too_large from None
    # Pillow's plugins report damage by all of these.
    except (OSError, SyntaxError, ValueError, EOFError, IndexError) as error:
        raise CohortError(
            f"The image cannot be read ({type(error).__name__}).",
            where=place,
            mend="Unpack or download that file again: it is damaged or not an image.",
        ) from None


def to_rgb(picture: np.ndarray | Image.Image, *, where: str = "") -> Image.Image:
    """Any picture as 8-bit RGB, upright.

    The EXIF orientation is applied. 16-bit grey is scaled from its full range (0..65535), whatever part of it is used.
    What is transparent becomes black, the background of medical images.

    Args:
        picture: a PIL image of any integer mode, or an array: uint8 [H, W] or [H, W, 3], or uint16 [H, W].
        where: the image, for the error.

    Raises:
        CohortError: when the pixels have no agreed range (floating point, or integers beyond 16 bits).
    """
    if isinstance(picture, np.ndarray):
        is_8_bit = picture.dtype == np.uint8 and picture.shape[2:] in ((), (3,))
        is_16_bit = picture.dtype == np.uint16 and picture.ndim == 2
        if not (is_8_bit or is_16_bit):
            raise CohortError(
                f"An array {picture.dtype} {list(picture.shape)} is not a picture.",
                where=where,
                mend="Let the adapter load uint8 [H, W] or [H, W, 3], or uint16 [H, W].",
            )
        image = Image.fromarray(picture)
    else:
        image = ImageOps.exif_transpose(picture)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise CohortError(
                f'The pixels of a picture of the mode "{image.mode}" have no agreed range.',
                where=where,
                mend="Save it with 8 or 16 bits per pixel.",
            )
        image = Image.fromarray((values.astype(np.float32) / 257).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "black"), image).convert("RGB")
    try:
        return image.convert("RGB")
    except ValueError:
        raise CohortError(
            f'A picture of the mode "{image.mode}" cannot be shown in RGB.', where=where, mend="Save it as RGB or grey."
        ) from None


def square(picture: np.ndarray | Image.Image, size: int, *, where: str = "") -> np.ndarray:
    """What a model sees of a picture, uint8 [size, size, 3]: its central square, antialiased.

    Shapes keep their proportions, borders are cut. Takes what `to_rgb` takes, and raises what it raises.
    """
    image = to_rgb(picture, where=where)
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box))

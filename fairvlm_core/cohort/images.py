"""The image store: every picture decoded once, as RGB squares of one size in a memory-mapped array.

`images/pixels.npy` is uint8 [N, S, S, 3], `images/index.parquet` gives the key of each of its N rows. How a picture
becomes such a square is in `pictures`.
"""

from __future__ import annotations

import mmap
import os
import shutil
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, nullcontext
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from fairvlm_core.cohort.pictures import open_image, scaled_decoding, square, to_rgb
from fairvlm_core.cohort.tolerance import Tolerance
from fairvlm_core.errors import CohortError
from fairvlm_core.files import folder_written

__all__ = ["INDEX_FILE", "PIXELS_FILE", "STORE", "ImageStore", "build_store", "open_image", "square", "to_rgb"]

STORE = "images"
PIXELS_FILE = "pixels.npy"
INDEX_FILE = "index.parquet"
MOST_THREADS = 32
# Pictures per thread that are decoded or wait for those before them.
AHEAD = 4


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
        squares = pixels.ndim == 4 and pixels.shape[1] == pixels.shape[2] and pixels.shape[3] == 3
        if not squares or pixels.dtype != np.uint8 or len(pixels) != len(keys):
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

    def at(self, rows: np.ndarray) -> np.ndarray:
        """The pictures in these rows of `pixels`, in their order, uint8 [n, size, size, 3]."""
        # Told of all rows first, the system reads those that are not in memory side by side, not one page at a time.
        mapped = self.pixels.base
        if isinstance(self.pixels, np.memmap) and isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_WILLNEED"):
            length = self.pixels.strides[0]
            for row in rows.tolist():
                start = self.pixels.offset + row * length
                before = start % mmap.PAGESIZE
                mapped.madvise(mmap.MADV_WILLNEED, start - before, length + before)
        return np.asarray(self.pixels[rows])

    def read(self, keys: Sequence[str]) -> np.ndarray:
        """The pictures of these keys, in their order, uint8 [n, size, size, 3]."""
        return self.at(self.rows(keys))


def build_store(
    keys: Sequence[str],
    load: Callable[[str], np.ndarray | Image.Image],
    folder: Path,
    *,
    size: int,
    fast: bool = False,
    progress: Callable[[int], object] = lambda done: None,
    tolerance: Tolerance | None = None,
) -> ImageStore:
    """Decode every picture once into `folder/images`, which is put in place only when enough of them are readable.

    Args:
        keys: image keys; a repeated key is stored once.
        load: key -> PIL image, or an array that `to_rgb` takes; called from as many threads as there are usable cores.
        folder: where to put the store.
        size: side of the stored squares in pixels.
        fast: let `open_image`, called by `load`, decode JPEG files at a fraction of their size (`scaled_decoding`).
        progress: called with the number of pictures that have been decoded since the last call.
        tolerance: how many pictures may be bad; those are not in the store. By default none.

    Raises:
        CohortError: whatever `load` raises, when a picture's pixels have no meaning, or when the disk is too small.
    """
    unique, tolerance = list(dict.fromkeys(keys)), tolerance or Tolerance()

    def decoded(key: str) -> np.ndarray | CohortError:
        try:
            with scaled_decoding(size) if fast else nullcontext():
                return square(load(key), size, where=f"image {key}")
        except CohortError as error:
            return error

    kept: list[str] = []
    with folder_written(Path(folder) / STORE) as store:
        _require_room(store, len(unique) * size * size * 3)
        # Written, not mapped: a full disk is then an error instead of a killed process, and memory stays small.
        with (
            (store / PIXELS_FILE).open("wb") as pixels,
            closing(in_order(decoded, unique, threads=usable_cores())) as pictures,
        ):
            _write_header(pixels, (len(unique), size, size, 3))
            for key, picture in zip(unique, pictures, strict=True):
                if isinstance(picture, CohortError):
                    tolerance.add(picture)
                else:
                    pixels.write(picture.data)
                    kept.append(key)
                progress(1)
            _write_header(pixels, (len(kept), size, size, 3))
        pq.write_table(pa.table({"image": pa.array(kept, pa.string())}), store / INDEX_FILE)
    return ImageStore.open(folder)


def in_order(
    work: Callable[[str], np.ndarray | CohortError], keys: Iterable[str], *, threads: int
) -> Generator[np.ndarray | CohortError, None, None]:
    """What `work` gives for each key, in their order; the threads are only a few keys ahead of what has been taken."""
    waiting: deque[Future[np.ndarray | CohortError]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for key in keys:
            waiting.append(pool.submit(work, key))
            if len(waiting) == AHEAD * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def usable_cores() -> int:
    """Cores that this process may use, as far as more threads would help."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_THREADS)


def _require_room(folder: Path, needed: int) -> None:
    """Raise before hours of work that would fill the disk."""
    total, _, free = shutil.disk_usage(folder)
    if total and free < needed:  # some network file systems say nothing
        raise CohortError(
            f"The image store needs {needed / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free.",
            where=str(folder),
            mend="Pass a folder on a larger disk to --out, or a smaller --image-size.",
        )


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    """Begin an .npy file of uint8; its header is as long for any number of rows."""
    file.seek(0)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})

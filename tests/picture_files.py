"""Pictures, and files of every kind that hold them."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

from fairvlm_core.cohort.pictures import open_image, to_rgb

ORIENTATION = 0x0112


def picture(height=40, width=60):
    """A smooth picture whose four corners differ, so that turning or cropping it shows."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // (width - 1), y * 255 // (height - 1), np.full_like(x, 90)], axis=2).astype(np.uint8)


def detailed(height, width):
    """Shapes of all sizes with some noise, as a photograph has them; it differs from its mirror images."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / a + y / b) for a, b in ((70, 150), (31, -90), (17, 23), (5, -9), (3.5, 4))]
    grey = 128 + sum(wave * size for wave, size in zip(waves, (50, 30, 20, 8, 4), strict=True))
    return (grey[..., None] + [0, 20, -30] + rng.normal(0, 2, (height, width, 3))).clip(0, 255).astype(np.uint8)


def saved(pixels, kind="png", **options):
    """The bytes of a file of this kind."""
    stream = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.ascontiguousarray(pixels))
    image.save(stream, kind, **options)
    return stream.getvalue()


def seen(content):
    return np.asarray(to_rgb(open_image(io.BytesIO(content), where="row 2"), where="row 2"))


def exif_of(orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def png(width, height, depth, colour, rows, *extra):
    """A PNG file of any depth, of raw rows; `extra` are chunks before the pixels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    before = b"".join(chunk(*pair) for pair in extra)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def tiff(width, height, bits, data, *, white=False, kind=1):
    """A little-endian grey TIFF file of raw data; `white`: 0 is white; `kind`: 1 unsigned, 2 signed, 3 floating."""
    photometric = 0 if white else 1
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 0), (277, 1), (278, height)]
    tags += [(279, len(data)), (339, kind)]
    start = 8 + 2 + 12 * len(tags) + 4
    entries = [struct.pack("<HHII", tag, 4, 1, start if tag == 273 else value) for tag, value in tags]
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + b"".join(entries) + bytes(4) + data


def grey_of(values):
    return np.stack([np.asarray(values, np.uint8)] * 3, axis=-1)

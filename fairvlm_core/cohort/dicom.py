"""A DICOM file as a picture: greys as the file says they are shown (PS3.3 C.11), or colours.

Only the elements that describe pixels are parsed, so that nothing else in the header can reach an error or a warning.
Burned-in annotations are not looked for: names and dates that a device wrote into the pixels stay in the picture.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.filereader import read_file_meta_info
from pydicom.multival import MultiValue
from pydicom.pixels import apply_color_lut, get_decoder, pixel_array
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from fairvlm_core.errors import CohortError

SUFFIXES = (".dcm", ".dicom")
GREY = ("MONOCHROME1", "MONOCHROME2")
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
PALETTE = "PALETTE COLOR"
COLOURS = ("Red", "Green", "Blue")
TAGS = [
    *("SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "PlanarConfiguration", "Rows", "Columns"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("PixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
    *("ModalityLUTSequence", "RescaleSlope", "RescaleIntercept"),
    *("VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction"),
    *(f"{colour}PaletteColorLookupTable{part}" for colour in COLOURS for part in ("Descriptor", "Data")),
    *(f"Segmented{colour}PaletteColorLookupTableData" for colour in COLOURS),
]
CONVERT = "Convert it to an uncompressed DICOM file, for instance with gdcmconv --raw, or to PNG."


def is_dicom(file: Path) -> bool:
    """Whether a file is DICOM by its name, or begins as one."""
    if file.suffix.lower() in SUFFIXES:
        return True
    try:
        with file.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def open_dicom(file: Path, *, where: str) -> np.ndarray:
    """Decode the one picture of a DICOM file.

    Greys go through the modality LUT (or slope and intercept), then the first VOI LUT, the first window, or the range
    from the lowest to the highest pixel that is no padding; MONOCHROME1 is inverted; padding becomes black. Colours are
    scaled from the bits that are stored.

    Args:
        file: its path.
        where: what the error adds to the path: the table and row that list it.

    Returns:
        uint8 [H, W] or [H, W, 3].

    Raises:
        CohortError: the file is missing, damaged or not DICOM; it has no pixels, more than one frame, more pixels than
            Pillow's limit, or colours of another kind; or there is no decoder for its compression.
    """
    place = f"{file} ({where})"
    try:
        _check_syntax(read_file_meta_info(file).get("TransferSyntaxUID"), place)
        data = dcmread(file, specific_tags=TAGS)
        _check_picture(data, place)
        return _decoded(data, place)
    except CohortError:
        raise
    except FileNotFoundError:
        raise CohortError(
            "An image is missing.", where=place, mend="Unpack the release again, or remove the row."
        ) from None
    # pydicom reports damage by whatever its parsing ran into; the message may show what stands in the file.
    except Exception as error:
        raise CohortError(
            f"The DICOM file cannot be read ({type(error).__name__}).",
            where=place,
            mend="Fetch that file again: it is damaged, or not DICOM with its header of 132 bytes.",
        ) from None


def _check_syntax(syntax: UID | None, place: str) -> None:
    """Before anything is read on: a deflated file is unpacked as a whole, however large it becomes."""
    if syntax is None:
        raise CohortError("The DICOM file does not say how its pixels are encoded.", where=place, mend=CONVERT)
    try:
        readable = syntax != DeflatedExplicitVRLittleEndian and get_decoder(syntax).is_available
    except NotImplementedError:
        readable = False
    if not readable:
        raise CohortError(f"There is no decoder here for {syntax.name}.", where=place, mend=CONVERT)


def _check_picture(data: Dataset, place: str) -> None:
    if "PixelData" not in data:
        raise CohortError(
            "The DICOM file has no pixel data.", where=place, mend="Name the image itself, not a report or a waveform."
        )
    frames = int(data.get("NumberOfFrames") or 1)
    if frames != 1:
        raise CohortError(
            f"The DICOM file has {frames} frames.",
            where=place,
            mend="Save the frame that is meant as a file of its own.",
        )
    if data.PhotometricInterpretation not in (*GREY, *COLOUR, PALETTE):
        raise CohortError("The colours of the DICOM file are of a kind that cannot be read.", where=place, mend=CONVERT)
    if Image.MAX_IMAGE_PIXELS is not None and data.Rows * data.Columns > Image.MAX_IMAGE_PIXELS:
        raise CohortError(
            f"The image exceeds Pillow's decompression-bomb limit of {Image.MAX_IMAGE_PIXELS} pixels.",
            where=place,
            mend="Check that it is what it should be, and shrink it.",
        )


def _decoded(data: Dataset, place: str) -> np.ndarray:
    syntax = data.file_meta.TransferSyntaxUID
    try:
        pixels = pixel_array(data)  # RGB where it was YBR; bits that are not stored are cleared
    except RuntimeError:  # raised when every decoder has failed
        raise CohortError(
            f"The pixels, compressed as {syntax.name}, cannot be decoded.", where=place, mend=CONVERT
        ) from None
    if data.PhotometricInterpretation in GREY:
        valid = ~_padding(pixels, data)
        shown = _windowed(_rescaled(pixels, data), data, valid, place)
        if data.PhotometricInterpretation == "MONOCHROME1":
            shown = 1 - shown
        return _bytes(np.where(valid, shown, 0))
    if data.PhotometricInterpretation == PALETTE:
        pixels = apply_color_lut(pixels, data)[..., :3]
        return _bytes(pixels / np.iinfo(pixels.dtype).max)
    return _bytes(pixels / (2**data.BitsStored - 1))


def _bytes(shown: np.ndarray) -> np.ndarray:
    """From 0..1 to uint8."""
    return (shown * 255).round().clip(0, 255).astype(np.uint8)


def _padding(pixels: np.ndarray, data: Dataset) -> np.ndarray:
    """Where the device had nothing to show, bool [H, W]; a limit makes it a range (PS3.3 C.7.5.1.1.2)."""
    if (value := data.get("PixelPaddingValue")) is None:
        return np.zeros(pixels.shape, bool)
    bounds = [value, data.get("PixelPaddingRangeLimit", value)]
    if data.PixelRepresentation == 1:  # written as unsigned by some devices
        bounds = [b - 2**data.BitsAllocated if b >= 2 ** (data.BitsAllocated - 1) else b for b in bounds]
    return (pixels >= min(bounds)) & (pixels <= max(bounds))


def _rescaled(pixels: np.ndarray, data: Dataset) -> np.ndarray:
    """Stored values as what the device measured, for instance Hounsfield units (PS3.3 C.11.1)."""
    if data.get("ModalityLUTSequence"):
        return _looked_up(pixels, data.ModalityLUTSequence[0], data)[0]
    slope, intercept = data.get("RescaleSlope"), data.get("RescaleIntercept")
    return pixels * float(1 if slope is None else slope) + float(intercept or 0)


def _windowed(values: np.ndarray, data: Dataset, valid: np.ndarray, place: str) -> np.ndarray:
    """Measured values as brightness from 0 to 1 (PS3.3 C.11.2)."""
    if data.get("VOILUTSequence"):
        found, bits = _looked_up(np.rint(values), data.VOILUTSequence[0], data)
        return found / (2**bits - 1)
    centre, width = _first(data.get("WindowCenter")), _first(data.get("WindowWidth"))
    if centre is None or width is None:
        low, high = (values[valid].min(), values[valid].max()) if valid.any() else (0.0, 0.0)
        return np.clip((values - low) / (high - low or 1), 0, 1)
    function = str(data.get("VOILUTFunction") or "LINEAR").upper()
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID") or not width > 0:
        raise CohortError("The window of the DICOM file has no meaning.", where=place, mend="Correct it, or remove it.")
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700)))
    if function == "LINEAR":
        centre, width = centre - 0.5, max(width - 1, 0)
    return np.where(
        values <= centre - width / 2,
        0,
        np.where(values > centre + width / 2, 1, (values - centre) / (width or 1) + 0.5),
    )


def _looked_up(values: np.ndarray, item: Dataset, data: Dataset) -> tuple[np.ndarray, int]:
    """Values through a lookup table, float64 [H, W], and the bits of its entries; beyond its ends, it goes on flat."""
    entries, first, bits = (int(number) for number in item.LUTDescriptor)
    table = item.LUTData
    if isinstance(table, bytes):
        table = np.frombuffer(table, "<u2" if data.file_meta.TransferSyntaxUID.is_little_endian else ">u2")
    place = np.clip(values.astype(np.int64) - first, 0, (entries or 2**16) - 1)
    return np.asarray(table)[place].astype(np.float64), bits


def _first(value: Any) -> float | None:
    """The first of several windows; an element can be there and empty."""
    if isinstance(value, MultiValue):
        value = value[0] if value else None
    return None if value in (None, "") else float(value)

"""Draw a 12-lead electrocardiogram as a sheet of paper that a vision model can read.

The layout is the usual one of three rows and four columns with a rhythm strip, at 25 mm/s and 10 mm/mV (Kligfield et
al. 2007, "Recommendations for the Standardization and Interpretation of the Electrocardiogram: Part I",
doi:10.1161/CIRCULATIONAHA.106.180200): each panel shows its own 2.5 s, so that the columns follow one another in time,
and the strip shows lead II over all 10 s.

    I    aVR  V1  V4
    II   aVL  V2  V5
    III  aVF  V3  V6
    II (10 s)

10 s make a width of 250 mm. The image store keeps the central square of a picture, so the sheet is square: four rows of
60 mm between margins of 5 mm. Zero is the middle of a row, on a line of the grid; what exceeds 3 mV either way is cut
off at the row's border. At 4 pixels/mm, 1 mV is 40 pixels high and 0.2 s are 20 pixels wide. The scale is always the
same, so no calibration pulse is drawn.

A model sees the sheet reduced to 112 to 336 pixels. So the pen is thicker than on paper, the lines of 1 mm become a
tint, and those of 5 mm are faint; at 224 pixels, 1 mV is 9 pixels high and 0.2 s are 4.5 pixels wide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fairvlm_core.errors import CohortError

LAYOUT = (("I", "aVR", "V1", "V4"), ("II", "aVL", "V2", "V5"), ("III", "aVF", "V3", "V6"), ("II",))
LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
SECONDS = 10

PER_MM = 4  # pixels
PER_SECOND = 25 * PER_MM
PER_MV = 10 * PER_MM
SIDE = SECONDS * PER_SECOND
ROW = 60 * PER_MM
MARGIN = (SIDE - len(LAYOUT) * ROW) // 2
PEN = 1.5 * PER_MM  # diameter of the pen
STEPS = 10  # the trace is followed in tenths of a pixel, which meet every sample of 100, 200, 500 and 1,000 Hz

PAPER, MM_LINE, LINE, INK = (255, 255, 255), (255, 234, 234), (248, 196, 196), (0, 0, 0)
NAME_HEIGHT = 6 * PER_MM


def sheet(signal: np.ndarray, leads: Sequence[str], rate: float, *, grid: bool = True, where: str = "") -> np.ndarray:
    """Draw a recording of 10 s.

    Args:
        signal: mV, [10 * rate, 12].
        leads: what each column is, in any order and case.
        rate: samples per second.
        grid: whether the paper has lines.
        where: the recording, for the error.

    Returns:
        uint8 [1000, 1000, 3]; the same recording gives the same pixels.

    Raises:
        CohortError: when a lead is lacking, the recording is shorter or longer, or a sample is no number.
    """
    column = {name.lower(): signal[:, place] for place, name in enumerate(leads)}
    lacking = [name for name in LEADS if name.lower() not in column]
    if lacking or len(leads) != len(LEADS):
        raise CohortError(
            "A recording does not have the 12 standard leads.", where=where, mend=f"It needs {', '.join(LEADS)}."
        )
    if len(signal) != round(SECONDS * rate):
        raise CohortError(
            f"A recording is not {SECONDS} s long.", where=where, mend="Unpack or download that file again."
        )
    if not np.isfinite(signal).all():
        raise CohortError(
            "A recording lacks samples.", where=where, mend="Download that file again, or leave the row out."
        )
    pixels = _paper(grid).copy()
    for row, names in enumerate(LAYOUT):
        top, width = MARGIN + row * ROW, SIDE // len(names)
        for place, name in enumerate(names):
            start, stop = (len(signal) * k // len(names) for k in (place, place + 1))
            panel = pixels[top : top + ROW, place * width : (place + 1) * width]
            panel[_trace(column[name.lower()][start:stop], width)] = INK
    return pixels


def _trace(signal: np.ndarray, width: int) -> np.ndarray:
    """One lead as a round pen draws it: mV [n] to bool [ROW, width], zero in the middle.

    Sample k lies at the left edge of its part k/n of the width. Each column of pixels is inked from the lowest to the
    highest point that the pen touches in it, so that no peak is lost and the line has no gap.
    """
    steps = np.arange(width * STEPS) * len(signal) / (width * STEPS)
    height = ROW / 2 - PER_MV * np.interp(steps, np.arange(len(signal)), signal)
    columns = height.reshape(width, STEPS)
    reach = math.ceil(PEN / 2) - 1
    low, high = (np.pad(side, reach, mode="edge") for side in (columns.min(1), columns.max(1)))
    above, below = np.full(width, np.inf), np.full(width, -np.inf)
    for shift in range(-reach, reach + 1):
        pen = math.sqrt((PEN / 2) ** 2 - shift**2)
        part = slice(reach + shift, reach + shift + width)
        above, below = np.minimum(above, low[part] - pen), np.maximum(below, high[part] + pen)
    centres = np.arange(ROW)[:, None] + 0.5
    return (centres >= above) & (centres < below)


@lru_cache(maxsize=2)
def _paper(grid: bool) -> np.ndarray:
    """The sheet without traces, uint8 [SIDE, SIDE, 3]: the grid and the names of the leads."""
    image = Image.new("RGB", (SIDE, SIDE), PAPER)
    draw = ImageDraw.Draw(image)
    for millimetres, colour, width in ((1, MM_LINE, 1), (5, LINE, 2)) if grid else ():
        for place in range(0, SIDE + 1, millimetres * PER_MM):
            # A line of 2 pixels has its middle at the place.
            draw.rectangle((place - width // 2, 0, place + (width - 1) // 2, SIDE), fill=colour)
            draw.rectangle((0, place - width // 2, SIDE, place + (width - 1) // 2), fill=colour)
    font = ImageFont.load_default(NAME_HEIGHT)
    for row, names in enumerate(LAYOUT):
        for place, name in enumerate(names):
            left, top = place * SIDE // len(names), MARGIN + row * ROW
            draw.text((left + 2 * PER_MM, top + PER_MM), name, fill=INK, font=font)
    pixels = np.asarray(image)
    pixels.flags.writeable = False
    return pixels

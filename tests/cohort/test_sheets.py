"""The drawn electrocardiogram: its scale, its layout and its line, by what stands in the pixels."""

import numpy as np
import pytest

from fairvlm_core.cohort.images import square
from fairvlm_core.cohort.sheets import LEADS, sheet
from fairvlm_core.errors import CohortError

# The documented geometry, in pixels: rows of 60 mm from 5 mm on, four panels of 2.5 s to a row.
TOPS = (20, 260, 500, 740)
PANELS = {
    "I": (0, 0), "aVR": (0, 1), "V1": (0, 2), "V4": (0, 3),
    "II": (1, 0), "aVL": (1, 1), "V2": (1, 2), "V5": (1, 3),
    "III": (2, 0), "aVF": (2, 1), "V3": (2, 2), "V6": (2, 3),
}  # fmt: skip


def draw(signal, leads=LEADS, rate=100, grid=False):
    return sheet(np.asarray(signal, dtype=float), leads, rate, grid=grid)


def flat(rate=100):
    return np.zeros((10 * rate, 12))


def inked(picture):
    """Bool [1000, 1000], without the names of the leads, which stand above 2.1 mV."""
    ink = (picture == 0).all(2)
    for top in TOPS:
        ink[top : top + 36] = False
    return ink


def panel(picture, name):
    row, place = PANELS[name]
    return inked(picture)[TOPS[row] : TOPS[row] + 240, 250 * place : 250 * (place + 1)]


def strip(picture):
    return inked(picture)[740:980]


def millivolts(ink):
    """The middle of the line in each column."""
    height = np.where(ink.any(0), (ink * (np.arange(240)[:, None] + 0.5)).sum(0) / np.maximum(ink.sum(0), 1), np.nan)
    return (120 - height) / 40


def test_a_calibration_pulse_is_40_pixels_high_and_20_wide():
    signal = flat()
    signal[100:120] = 1  # mV, 0.2 s
    ink = panel(draw(signal), "II")
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink[100])  # half a millivolt up: both flanks
    assert (rows[0], rows[-1]) == (120 - 40 - 3, 120 + 3 - 1)  # a pen of 6 pixels around 1 mV and 0 mV
    left, right = np.split(columns, [np.flatnonzero(np.diff(columns) > 1)[0] + 1])
    assert right.mean() - left.mean() == 20
    assert left.mean() == 99  # from the sample before 1 s, 100 pixels from the left, to the one at 1 s
    assert np.flatnonzero(strip(draw(signal))[100]).tolist() == columns.tolist()


def test_zero_is_in_the_middle_of_each_row_on_a_line_of_the_grid():
    picture = draw(flat())
    assert np.flatnonzero(inked(picture).all(1)).tolist() == [
        middle + k for middle in (140, 380, 620, 860) for k in range(-3, 3)
    ]
    lines = draw(flat() - 1, grid=True)  # the traces are elsewhere
    np.testing.assert_array_equal(lines[[139, 140], 500:700], np.broadcast_to((248, 196, 196), (2, 200, 3)))


def test_each_lead_stands_in_its_panel_whatever_the_order_and_case():
    order = np.random.default_rng(0).permutation(12)
    levels = np.linspace(-2, 2, 12)
    signal = np.tile(levels[order], (1000, 1))
    picture = draw(signal, [LEADS[k].upper() if k % 2 else LEADS[k].lower() for k in order])
    for name, level in zip(LEADS, levels, strict=True):
        np.testing.assert_allclose(millivolts(panel(picture, name)), level, atol=0.02)
    np.testing.assert_allclose(millivolts(strip(picture)), levels[1], atol=0.02)


def test_each_panel_shows_its_own_two_and_a_half_seconds():
    steps = np.repeat([-1.5, -0.5, 0.5, 1.5], 250)
    picture = draw(np.tile(steps[:, None], 12))
    for name, (_, place) in PANELS.items():
        # Nothing of the neighbouring segments, not even at the border.
        np.testing.assert_allclose(millivolts(panel(picture, name)), steps[250 * place], atol=0.02)
    middles = [125, 375, 625, 875]
    np.testing.assert_allclose(millivolts(strip(picture))[middles], steps[middles], atol=0.02)


def test_what_exceeds_three_millivolts_is_cut_off_at_the_row():
    signal = flat()
    signal[50:100, LEADS.index("III")] = 4
    signal[150:200, LEADS.index("III")] = -4
    plain, tall = draw(flat()), draw(signal)
    changed = (plain != tall).any(2)
    assert np.flatnonzero(changed.any(1)).min() == 500
    assert np.flatnonzero(changed.any(1)).max() == 739
    ink = (tall == 0).all(2)[500:740, :250]
    assert not ink[:, 60:90].any()
    assert ink[0, 47:51].all()  # its flank leaves the row


def distance(points, x, y):
    """Distance of points [n, 2] to the polyline through (x, y): the loop that the drawing does without."""
    best = np.full(len(points), np.inf)
    for k in range(len(x) - 1):
        start, along = np.array([x[k], y[k]]), np.array([x[k + 1] - x[k], y[k + 1] - y[k]])
        t = np.clip((points - start) @ along / (along @ along), 0, 1)
        best = np.minimum(best, np.linalg.norm(points - (start + t[:, None] * along), axis=1))
    return best


@pytest.mark.parametrize("rate", [100, 500])
def test_the_line_is_what_lies_within_the_pen_of_the_trace(rate):
    count = rate * 5 // 2
    signal = np.cumsum(np.random.default_rng(rate).normal(0, 0.7 / np.sqrt(rate / 10), (10 * rate, 12)), 0)
    signal = 2 * np.sin(signal)
    ink = panel(draw(signal, rate=rate), "V3")
    y, x = np.mgrid[36:240, 0:246]
    trace = signal[2 * count : 3 * count, LEADS.index("V3")]
    far = distance(np.stack([x, y], -1).reshape(-1, 2) + 0.5, np.arange(count) * 100 / rate, 120 - 40 * trace)
    far = far.reshape(204, 246)
    assert ink[36:, :246][far < 2.2].all()
    assert not ink[36:, :246][far > 3.8].any()


def test_no_peak_of_a_faster_recording_is_lost():
    signal = flat(500)
    signal[333, LEADS.index("V1")] = signal[2500 + 333, LEADS.index("V1")] = 2
    assert np.flatnonzero(panel(draw(signal, rate=500), "V1").any(1)).min() == 120 - 80 - 3


def test_a_steep_flank_has_no_gap():
    signal = flat() - 2.5
    signal[100:] = 2
    rows = np.flatnonzero(strip(draw(signal))[:, 97:102].any(1))
    assert (rows[0], rows[-1]) == (120 - 80 - 3, 120 + 100 + 2)
    assert (np.diff(rows) == 1).all()


def test_recordings_of_both_rates_look_alike():
    time = np.arange(5000) / 500
    signal = np.sin(2 * np.pi * 1.3 * time)[:, None] * np.linspace(0.2, 1.5, 12)
    assert (inked(draw(signal[::5])) != inked(draw(signal, rate=500))).mean() < 0.002


def test_the_grid_has_a_line_each_millimetre_and_each_fifth_is_darker():
    picture = draw(flat(), grid=True)[40:120, 350:490].astype(int)  # between a name and the next panel
    across, down = picture.min(0)[:, 1], picture.min(1)[:, 1]
    for light, first in ((picture[:, :, 1].max(0), 350), (picture[:, :, 1].max(1), 40)):
        place = np.arange(first, first + len(light))
        # A line is where even the lightest pixel is not white; one of 5 mm takes up 2 pixels.
        np.testing.assert_array_equal(light < 255, (place % 4 == 0) | (place % 20 == 19))
        np.testing.assert_array_equal(light < 220, (place % 20 == 0) | (place % 20 == 19))
    assert across.min() == down.min() == 196
    bare = draw(flat())
    assert (bare[..., 0] == bare[..., 2]).all()
    np.testing.assert_array_equal(inked(bare), inked(draw(flat(), grid=True)))


def test_the_same_recording_gives_the_same_pixels():
    signal = np.random.default_rng(0).normal(0, 0.5, (1000, 12))
    first = draw(signal, grid=True).copy()
    draw(-signal, grid=True)[:] = 7  # the paper is not drawn on
    picture = draw(signal, grid=True)
    assert picture.dtype == np.uint8
    assert picture.shape == (1000, 1000, 3)
    np.testing.assert_array_equal(picture, first)


@pytest.mark.parametrize(("size", "darkest"), [(336, 40), (224, 60), (112, 120)])
def test_the_line_can_be_seen_when_the_sheet_is_reduced(size, darkest):
    pulses = flat()
    pulses[100:110] = 1
    small = square(draw(pulses, grid=True), size)
    assert small.shape == (size, size, 3)
    middle = round(0.38 * size)
    line = small[middle - 2 : middle + 3, : size // 12].min(0).max(1)
    assert line.max() <= darkest  # black, not a tint, along the whole line
    assert np.percentile(small, 20) > 200  # the paper stays light
    # And 1 mV is as many pixels high as the scale says: 40 of 1,000.
    dark = (small[:, round(0.09 * size) : round(0.13 * size)] < 150).all(2)
    dark[: round(0.31 * size)] = False  # the name of the lead
    assert abs(middle - np.flatnonzero(dark.any(1)).min() - 0.043 * size) <= 1


@pytest.mark.parametrize(
    ("signal", "leads", "what"),
    [
        (np.zeros((999, 12)), LEADS, "not 10 s long"),
        (np.zeros((5000, 12)), LEADS, "not 10 s long"),
        (np.zeros((1000, 11)), LEADS[:-1], "12 standard leads"),
        (np.zeros((1000, 12)), (*LEADS[:-1], "V5"), "12 standard leads"),
        (np.zeros((1000, 12)), (*LEADS[:-1], "X"), "12 standard leads"),
        (np.zeros((1000, 13)), (*LEADS, "X"), "12 standard leads"),
        (np.where(np.arange(12000).reshape(1000, 12) == 99, np.nan, 0.0), LEADS, "lacks samples"),
        (np.where(np.arange(12000).reshape(1000, 12) == 99, np.inf, 0.0), LEADS, "lacks samples"),
    ],
)
def test_a_recording_that_is_no_12_lead_electrocardiogram_is_named(signal, leads, what):
    with pytest.raises(CohortError, match=what) as caught:
        sheet(signal, leads, 100, where="x.dat (table.csv, row 3)")
    assert caught.value.where == "x.dat (table.csv, row 3)"

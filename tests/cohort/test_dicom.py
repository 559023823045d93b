"""DICOM files as pictures: the same greys and colours as pydicom's own functions give, and refusals by name."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import FileMetaDataset
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_rescale, apply_voi_lut
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid

from fairvlm_core.cohort import dicom
from fairvlm_core.cohort.dicom import is_dicom, open_dicom
from fairvlm_core.cohort.images import to_rgb
from fairvlm_core.errors import CohortError

PATIENT = "Doe^Jane"
WHERE = "t.csv, row 7"


def lut(values, first=0, bits=8):
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(values), first, bits])
    item.add_new("LUTData", "US", list(values))
    return item


def write(file, pixels, syntax=ExplicitVRLittleEndian, **elements):
    """A file with these pixels; greys of as many bits as the array has, signed or not."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    data.PatientName = PATIENT
    data.PatientBirthDate = "19700101"
    data.Rows, data.Columns = pixels.shape[:2]
    data.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    data.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    if pixels.ndim == 3:
        data.PlanarConfiguration = 0
    data.BitsAllocated = data.BitsStored = pixels.dtype.itemsize * 8
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    stored = pixels.astype(pixels.dtype.newbyteorder("<" if syntax.is_little_endian else ">"))
    data.PixelData = stored.tobytes() + b"\0" * (stored.nbytes % 2)
    for name, value in elements.items():
        setattr(data, name, value)
    data.HighBit = data.BitsStored - 1
    data.save_as(file, enforce_file_format=True)
    return file


def greys(low, high, dtype, shape=(32, 48)):
    return np.linspace(low, high, shape[0] * shape[1]).round().astype(dtype).reshape(shape)


def assert_like(file, expected):
    """Equal to brightness from 0 to 1, to the half grey level that rounding costs."""
    seen = open_dicom(file, where=WHERE)
    assert seen.dtype == np.uint8
    assert abs(seen / 255 - expected).max() <= 0.51 / 255
    return seen


def pydicom_brightness(file):
    """The window that pydicom applies, from the range it maps to onto 0..1."""
    data = dcmread(file)
    shown = apply_voi_lut(apply_modality_lut(data.pixel_array, data), data, index=0)
    ends = data.pixel_array.copy().astype(np.int64)
    bits, signed = data.BitsStored, data.PixelRepresentation
    ends = np.array([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1] if signed else [0, 2**bits - 1])
    low, high = apply_rescale(ends, data)
    return (shown - low) / (high - low)


# Greys


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # pydicom's
@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(
    ("dtype", "low", "high", "elements"),
    [
        (np.int16, -1000, 3000, {"WindowCenter": 40, "WindowWidth": 400}),
        (np.uint16, 0, 4095, {"WindowCenter": 40, "WindowWidth": 400, "RescaleSlope": 1, "RescaleIntercept": -1024}),
        (np.uint16, 0, 65535, {"WindowCenter": 1000.5, "WindowWidth": 1, "RescaleSlope": 0.25, "RescaleIntercept": 0}),
        (np.uint8, 0, 255, {"WindowCenter": 128, "WindowWidth": 256}),
        (np.int16, -900, 900, {"WindowCenter": [40, -600], "WindowWidth": [350, 1500]}),
        (np.uint16, 0, 4095, {"WindowCenter": 2048, "WindowWidth": 3000, "BitsStored": 12}),
    ],
)
def test_windows_are_those_of_pydicom(tmp_path, function, dtype, low, high, elements):
    chosen = {} if function is None else {"VOILUTFunction": function}
    file = write(tmp_path / "a.dcm", greys(low, high, dtype), **elements, **chosen)
    seen = assert_like(file, pydicom_brightness(file))
    assert len(np.unique(seen)) > 1


def test_a_window_by_hand(tmp_path):
    pixels = np.array([[-200, -160, -159, 40], [239, 240, 241, 3000]], np.int16)
    file = write(tmp_path / "a.dcm", pixels, WindowCenter=40.5, WindowWidth=401)
    # PS3.3 C.11.2.1.2: from 40 - 200 to 40 + 200.
    np.testing.assert_array_equal(open_dicom(file, where=WHERE), [[0, 0, 1, 128], [254, 255, 255, 255]])


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_however_the_file_is_written(tmp_path, syntax):
    pixels = greys(-1000, 1000, np.int16)
    window = {"WindowCenter": 0, "WindowWidth": 500, "PixelPaddingValue": -1000}
    expected = open_dicom(write(tmp_path / "a.dcm", pixels, **window), where=WHERE)
    np.testing.assert_array_equal(
        open_dicom(write(tmp_path / "b.dcm", pixels, syntax, **window), where=WHERE), expected
    )


def test_without_a_window_the_range_that_is_used(tmp_path):
    file = write(tmp_path / "a.dcm", greys(700, 1700, np.uint16), RescaleSlope=2, RescaleIntercept=-5)
    assert_like(file, (greys(700, 1700, float) - 700) / 1000)
    # An element that is there and empty is no window.
    file = write(tmp_path / "b.dcm", greys(700, 1700, np.uint16), WindowCenter=None, WindowWidth=None)
    assert_like(file, (greys(700, 1700, float) - 700) / 1000)
    # A negative slope turns it around.
    file = write(tmp_path / "c.dcm", greys(0, 1000, np.uint16), RescaleSlope=-1, RescaleIntercept=0)
    assert_like(file, 1 - greys(0, 1000, float) / 1000)
    constant = write(tmp_path / "d.dcm", np.full((4, 4), 900, np.uint16))
    np.testing.assert_array_equal(open_dicom(constant, where=WHERE), np.zeros((4, 4)))


@pytest.mark.parametrize("written", [-2000, 63536])  # 63536 as unsigned is -2000 as signed
def test_padding_is_black_and_outside_the_range(tmp_path, written):
    pixels = greys(100, 1100, np.int16)
    pixels[:4] = -2000
    expected = (greys(100, 1100, float) - pixels[4:].min()) / (1100 - pixels[4:].min())
    expected[:4] = 0
    file = write(tmp_path / "a.dcm", pixels)
    data = dcmread(file)
    data.add_new("PixelPaddingValue", "SS" if written < 0 else "US", written)
    data.save_as(file)
    assert_like(file, expected)
    data.PhotometricInterpretation = "MONOCHROME1"
    data.save_as(file)
    expected[4:] = 1 - expected[4:]
    assert_like(file, expected)


def test_a_range_of_padding(tmp_path):
    pixels = greys(0, 1000, np.uint16)
    file = write(tmp_path / "a.dcm", pixels, PixelPaddingValue=900, PixelPaddingRangeLimit=1000)
    seen = open_dicom(file, where=WHERE)
    assert (seen[pixels >= 900] == 0).all()
    assert seen[pixels < 900].max() == 255
    nothing = write(tmp_path / "b.dcm", pixels, PixelPaddingValue=0, PixelPaddingRangeLimit=1000)
    assert (open_dicom(nothing, where=WHERE) == 0).all()


def test_monochrome1_is_inverted(tmp_path):
    pixels = greys(0, 4095, np.uint16)
    window = {"WindowCenter": 1000, "WindowWidth": 900}
    plain = open_dicom(write(tmp_path / "a.dcm", pixels, **window), where=WHERE)
    inverted = write(tmp_path / "b.dcm", pixels, PhotometricInterpretation="MONOCHROME1", **window)
    assert abs(open_dicom(inverted, where=WHERE).astype(int) - (255 - plain.astype(int))).max() <= 1


def test_bits_that_are_not_stored_do_not_count(tmp_path):
    pixels = greys(0, 4095, np.uint16)
    clean = open_dicom(write(tmp_path / "a.dcm", pixels, BitsStored=12), where=WHERE)
    overlaid = write(tmp_path / "b.dcm", pixels | 0xF000, BitsStored=12)
    np.testing.assert_array_equal(open_dicom(overlaid, where=WHERE), clean)


@pytest.mark.parametrize("first", [0, 200, -100])
def test_lookup_tables_are_those_of_pydicom(tmp_path, first):
    pixels = greys(-500, 2000, np.int16) if first < 0 else greys(0, 2000, np.uint16)
    curve = (np.sqrt(np.linspace(0, 1, 1000)) * 4095).round().astype(int)
    file = write(
        tmp_path / "a.dcm", pixels, VOILUTSequence=[lut(curve.tolist(), first, 12)], WindowCenter=1, WindowWidth=2
    )
    data = dcmread(file)
    assert_like(file, apply_voi_lut(data.pixel_array, data) / 4095)
    file = write(tmp_path / "b.dcm", pixels, ModalityLUTSequence=[lut(curve.tolist(), first, 16)])
    data = dcmread(file)
    looked_up = apply_modality_lut(data.pixel_array, data).astype(float)
    assert_like(file, (looked_up - looked_up.min()) / (looked_up.max() - looked_up.min()))
    # After a slope, the table is of what was measured.
    file = write(
        tmp_path / "c.dcm", pixels, RescaleSlope=2, RescaleIntercept=7, VOILUTSequence=[lut(curve.tolist(), first, 12)]
    )
    expected = curve[np.clip(pixels.astype(int) * 2 + 7 - first, 0, 999)] / 4095
    assert_like(file, expected)


def test_a_lookup_table_of_bytes_in_both_orders(tmp_path):
    pixels = greys(0, 999, np.uint16)
    curve = (np.linspace(1, 0, 1000) * 1023).round().astype(int)
    for name, syntax, order in (("a", ExplicitVRLittleEndian, "<u2"), ("b", ExplicitVRBigEndian, ">u2")):
        item = lut(range(1000), 0, 10)
        item.add_new("LUTData", "OW", curve.astype(order).tobytes())
        file = write(tmp_path / f"{name}.dcm", pixels, syntax, VOILUTSequence=[item])
        assert_like(file, curve[pixels] / 1023)


# pydicom's own files


@pytest.mark.parametrize("name", ["MR_small.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm", "examples_overlay.dcm"])
def test_real_files_with_a_window(name):
    file = Path(get_testdata_file(name))
    assert_like(file, pydicom_brightness(file))


def test_a_real_ct_with_padding():
    file = Path(get_testdata_file("CT_small.dcm"))
    pixels = dcmread(file).pixel_array.astype(float)
    assert_like(file, (pixels - pixels.min()) / (pixels.max() - pixels.min()))


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("MR_small_RLE.dcm", "MR_small.dcm"),
        ("MR_small_jp2klossless.dcm", "MR_small.dcm"),
        ("MR_small_implicit.dcm", "MR_small.dcm"),
        ("liver_expb_1frame.dcm", "liver_1frame.dcm"),
        ("SC_rgb_small_odd_big_endian.dcm", "SC_rgb_small_odd.dcm"),
    ],
)
def test_the_same_picture_encoded_in_two_ways(name, other):
    seen, same = (open_dicom(Path(get_testdata_file(file)), where=WHERE) for file in (name, other))
    np.testing.assert_array_equal(seen, same)


@pytest.mark.parametrize(
    "name",
    [
        "examples_rgb_color.dcm",
        "examples_jpeg2k.dcm",
        "SC_rgb_rle.dcm",
        "SC_rgb_jpeg_dcmtk.dcm",
        "SC_ybr_full_422_uncompressed.dcm",
    ],
)
def test_real_colours(name):
    file = Path(get_testdata_file(name))
    seen = open_dicom(file, where=WHERE)
    assert seen.shape[2] == 3
    np.testing.assert_array_equal(seen, dcmread(file).pixel_array)
    np.testing.assert_array_equal(np.asarray(to_rgb(seen)), seen)


def test_ybr_is_turned_into_the_colours_it_stands_for():
    """The same test card as RGB and as YBR, to what rounding costs."""
    red = open_dicom(Path(get_testdata_file("SC_rgb_rle.dcm")), where=WHERE).astype(int)
    for name in ("SC_ybr_full_422_uncompressed.dcm", "SC_rgb_jpeg_dcmtk.dcm", "SC_rgb_gdcm_KY.dcm"):
        assert abs(open_dicom(Path(get_testdata_file(name)), where=WHERE) - red)[5::10, 5::10].max() <= 6


def test_a_palette():
    file = Path(get_testdata_file("examples_palette.dcm"))
    data = dcmread(file)
    assert_like(file, apply_color_lut(data.pixel_array, data) / 65535)


def test_colours_of_16_bits(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 65536, (8, 8, 3), dtype=np.uint16)
    assert_like(write(tmp_path / "a.dcm", rgb), rgb / 65535)
    ten = rgb >> 6
    assert_like(write(tmp_path / "b.dcm", ten, BitsStored=10), ten / 1023)
    planes = write(tmp_path / "c.dcm", rgb, PixelData=rgb.transpose(2, 0, 1).tobytes(), PlanarConfiguration=1)
    assert_like(planes, rgb / 65535)


# Refusals


def refused(file):
    with warnings.catch_warnings(record=True) as said, pytest.raises(CohortError) as caught:
        open_dicom(file, where=WHERE)
    assert f"{file.name} ({WHERE})" in caught.value.where
    assert caught.value.mend
    assert PATIENT not in str(caught.value) + "".join(str(warning.message) for warning in said)
    return caught.value.what


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("SC_rgb_jpeg_gdcm.dcm", "no decoder here for JPEG Lossless, Non-Hierarchical, First-Order Prediction"),
        ("MR_small_jpeg_ls_lossless.dcm", "no decoder here for JPEG-LS Lossless Image Compression"),
        ("image_dfl.dcm", "no decoder here for Deflated Explicit VR Little Endian"),
        ("JPGExtended.dcm", "compressed as JPEG Extended (Process 2 and 4), cannot be decoded"),
        ("examples_ybr_color.dcm", "has 30 frames"),
        ("rtdose.dcm", "has 15 frames"),
        ("waveform_ecg.dcm", "no pixel data"),
        ("test-SR.dcm", "no pixel data"),
        ("rtplan.dcm", "no pixel data"),
        ("meta_missing_tsyntax.dcm", "does not say how its pixels are encoded"),
        ("no_meta.dcm", "cannot be read (InvalidDicomError)"),
        ("MR_truncated.dcm", "cannot be read (ValueError)"),
    ],
)
def test_what_cannot_be_shown_is_named(name, what):
    assert what in refused(Path(get_testdata_file(name)))


def test_an_unknown_compression_is_named(tmp_path):
    file = write(tmp_path / "a.dcm", greys(0, 255, np.uint8))
    data = dcmread(file)
    for uid, name in (("1.2.840.10008.1.2.4.100", "MPEG2 Main Profile / Main Level"), ("1.2.3.4.5", "1.2.3.4.5")):
        content = bytearray(file.read_bytes())
        place = content.index(data.file_meta.TransferSyntaxUID.encode())
        old = data.file_meta.TransferSyntaxUID.encode()
        old += b"\0" * (len(old) % 2)
        new = uid.encode() + b"\0" * (len(uid) % 2)
        content[place : place + len(old)] = new
        content[place - 2 : place] = len(new).to_bytes(2, "little")
        length = content.index(b"UL\x04\x00") + 4  # of the group
        group = int.from_bytes(content[length : length + 4], "little") + len(new) - len(old)
        content[length : length + 4] = group.to_bytes(4, "little")
        other = tmp_path / "b.dcm"
        other.write_bytes(content)
        assert refused(other) == f"There is no decoder here for {name}."


@pytest.mark.parametrize("photometric", ["HSV", "YBR_PARTIAL_420", ""])
def test_other_colours(tmp_path, photometric):
    rgb = np.zeros((4, 4, 3), np.uint8)
    assert "of a kind" in refused(write(tmp_path / "a.dcm", rgb, PhotometricInterpretation=photometric))


@pytest.mark.parametrize(
    "window", [{"WindowWidth": 0}, {"WindowWidth": -5}, {"WindowWidth": 9, "VOILUTFunction": "CURVE"}]
)
def test_a_window_without_a_meaning(tmp_path, window):
    assert "window" in refused(write(tmp_path / "a.dcm", greys(0, 255, np.uint8), WindowCenter=1, **window))


def test_damage(tmp_path, monkeypatch):
    whole = write(tmp_path / "whole.dcm", greys(0, 999, np.uint16)).read_bytes()
    for cut in (0, 100, 131, 140, 400, len(whole) - 900, len(whole) - 3):
        file = tmp_path / f"cut{cut}.dcm"
        file.write_bytes(whole[:cut])
        refused(file)
    random = tmp_path / "random.dcm"
    random.write_bytes(whole[:132] + np.random.default_rng(0).bytes(3000))
    refused(random)
    for elements in ({"Rows": 0}, {"Rows": 60_000}, {"BitsAllocated": 13}, {"BitsStored": 99}):
        refused(write(tmp_path / "wrong.dcm", greys(0, 999, np.uint16), **elements))
    short = lut([1, 2, 3])
    short.add_new("LUTDescriptor", "US", [1000, 0, 8])
    refused(write(tmp_path / "lut.dcm", greys(0, 999, np.uint16), VOILUTSequence=[short]))
    assert refused(tmp_path / "nothing.dcm") == "An image is missing."
    (tmp_path / "folder.dcm").mkdir()
    refused(tmp_path / "folder.dcm")


def test_a_bomb(tmp_path, monkeypatch):
    file = write(tmp_path / "a.dcm", np.zeros((40, 50), np.uint8))
    open_dicom(file, where=WHERE)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1999)
    assert "decompression-bomb limit of 1999 pixels" in refused(file)


def test_nothing_of_the_patient_is_read(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(dicom, "dcmread", lambda *a, **k: read.append(dcmread(*a, **k)) or read[-1])
    open_dicom(write(tmp_path / "a.dcm", greys(0, 255, np.uint8)), where=WHERE)
    assert {element.tag.group for element in read[0]} == {0x0028, 0x7FE0}


def test_what_is_dicom(tmp_path):
    file = write(tmp_path / "a.DCM", greys(0, 255, np.uint8))
    bare = tmp_path / "bare"
    bare.write_bytes(file.read_bytes())
    wrong = tmp_path / "wrong.png"
    wrong.write_bytes(file.read_bytes())
    Image.new("L", (4, 4)).save(tmp_path / "b.png")
    assert [is_dicom(tmp_path / name) for name in ("a.DCM", "bare", "wrong.png", "x.dicom")] == [True] * 4
    assert not is_dicom(tmp_path / "b.png")
    assert not is_dicom(tmp_path / "nothing.png")
    assert not is_dicom(tmp_path)

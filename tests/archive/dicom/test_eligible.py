"""What may have a lossy copy, and what never (REQ-DCM-85)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import JPEG2000, JPEGBaseline8Bit, JPEGLSNearLossless

from archive.dicom.derive import Derived, Kept
from archive.dicom.elements import opened
from archive.dicom.eligible import MAY, NEVER, Facts, Reason, asked, excluded, facts_of
from archive.dicom.file_meta import data_set_offset
from archive.dicom.tree import parse
from archive.sections import QUALITY
from tests.archive.dicom.deriving import derived_from, lenient, original, smooth, stored

MG = "1.2.840.10008.5.1.4.1.1.1.2"
CLASS = "1.2.840.10008.5.1.4.1.1."


def facts(folder: Path, ds: Dataset) -> Facts:
    path, syntax = stored(folder, ds), str(ds.file_meta.TransferSyntaxUID)
    with opened(path, data_set_offset=data_set_offset(path), transfer_syntax_uid=syntax) as (source, encoding):
        return facts_of(source, parse(source, encoding), syntax)


def reason(folder: Path, ds: Dataset) -> Reason | None:
    """Why it stays, by way of the whole, with a gate that lets everything pass; None when it is derived."""
    outcome = derived_from(stored(folder, ds), gate=lenient)
    return outcome.reason if isinstance(outcome, Kept) else None


def test_a_ct_slice_may(tmp_path: Path) -> None:
    assert excluded(facts(tmp_path, original())) is None
    assert reason(tmp_path, original()) is None


@pytest.mark.req("REQ-DCM-85")
@pytest.mark.parametrize("modality", ["MG", "DOC", "NM", "PT", "SR", "KO", "PR", "SEG", "RTIMAGE", "RTDOSE", "ECG"])
def test_some_modalities_never_whatever_the_settings_say(tmp_path: Path, modality: str) -> None:
    assert modality in NEVER
    assert reason(tmp_path, original(Modality=modality)) is Reason.MODALITY


@pytest.mark.req("REQ-DCM-85")
@pytest.mark.parametrize(
    "sop_class", [MG, CLASS + "20", CLASS + "128", CLASS + "66.4", CLASS + "481.1", CLASS + "30", CLASS + "77.1.6"]
)
def test_other_classes_than_those_listed_never(tmp_path: Path, sop_class: str) -> None:
    assert sop_class not in MAY
    assert reason(tmp_path, original(SOPClassUID=sop_class)) is Reason.SOP_CLASS


@pytest.mark.req("REQ-DCM-85")
@pytest.mark.parametrize(
    "changes",
    [
        {"LossyImageCompression": "01"},
        {"LossyImageCompressionRatio": "10"},
        {"LossyImageCompressionMethod": "ISO_10918_1"},
    ],
)
def test_what_lost_something_before_is_not_compressed_again(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert reason(tmp_path, original(**changes)) is Reason.ALREADY_LOSSY


@pytest.mark.req("REQ-DCM-85")
@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEG2000, JPEGLSNearLossless])
def test_a_syntax_that_may_lose_counts_as_lossy(tmp_path: Path, syntax: str) -> None:
    from pydicom.encaps import encapsulate

    ds = original(transfer_syntax=syntax)
    ds.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
    ds["PixelData"].is_undefined_length = True
    assert reason(tmp_path, ds) is Reason.ALREADY_LOSSY


def eight_bits(**changes: Any) -> Dataset:
    values = smooth(high=250, dtype="u1")
    return original(pixels=values, BitsAllocated=8, BitsStored=8, HighBit=7, **changes)


def thirty_two_bits() -> Dataset:
    return original(pixels=smooth(dtype="<u4"), BitsAllocated=32, BitsStored=32, HighBit=31)


def floats() -> Dataset:
    ds = original()
    values = smooth().astype("<f4").tobytes()
    del ds.PixelData
    ds.FloatPixelData, ds.BitsAllocated = values, 32
    return ds


def single_bits() -> Dataset:
    ds = original(BitsAllocated=1, BitsStored=1, HighBit=0)
    ds.PixelData = bytes(64 * 64 // 8)
    return ds


def without_pixels() -> Dataset:
    ds = original()
    del ds.PixelData
    return ds


def colours(photometric: str) -> Dataset:
    ds = eight_bits(SamplesPerPixel=3, PlanarConfiguration=0, PhotometricInterpretation=photometric)
    ds.PixelData = np.repeat(smooth(high=250, dtype="u1")[0][..., None], 3, axis=2).tobytes()
    return ds


@pytest.mark.req("REQ-DCM-85")
@pytest.mark.parametrize(
    ("ds", "expected"),
    [
        (without_pixels(), Reason.NO_PIXELS),
        (floats(), Reason.FLOAT),
        (single_bits(), Reason.BITS),
        (thirty_two_bits(), Reason.BITS),
        (original(HighBit=15), Reason.BITS),
        (original(BitsStored=16), Reason.BITS),  # High Bit still 11
        (eight_bits(PhotometricInterpretation="PALETTE COLOR"), Reason.COLOUR),
        (colours("YBR_FULL"), Reason.COLOUR),
        (original(ConcatenationUID="1.2.3"), Reason.CONCATENATION),
        (original(pixels=smooth(rows=31)), Reason.TINY),
        (original(SOPClassUID=CLASS + "2.99"), Reason.SOP_CLASS),
    ],
)
def test_pixels_that_the_codec_would_alter_stay_as_they_are(tmp_path: Path, ds: Dataset, expected: Reason) -> None:
    assert reason(tmp_path, ds) is expected


@pytest.mark.parametrize("ds", [eight_bits(), eight_bits(PhotometricInterpretation="MONOCHROME1"), colours("RGB")])
def test_eight_bits_and_rgb_may(tmp_path: Path, ds: Dataset) -> None:
    assert reason(tmp_path, ds) is None


@pytest.mark.req("REQ-DCM-85")
def test_an_overlay_in_the_unused_bits_keeps_its_image(tmp_path: Path) -> None:
    """A codec drops those bits without a word."""
    ds = original()
    ds.add_new(0x60000010, "US", 64)
    ds.add_new(0x60000011, "US", 64)
    ds.add_new(0x60000100, "US", 16)
    ds.add_new(0x60000102, "US", 15)
    assert reason(tmp_path, ds) is Reason.OVERLAY


def test_bits_above_those_stored_keep_their_image_though_nothing_speaks_of_an_overlay(tmp_path: Path) -> None:
    values = smooth()
    values[0, 3, 3] |= 0x8000
    assert reason(tmp_path, original(pixels=values)) is Reason.BITS


def test_an_overlay_of_its_own_is_no_obstacle(tmp_path: Path) -> None:
    ds = original()
    ds.add_new(0x60000010, "US", 64)
    ds.add_new(0x60000011, "US", 64)
    ds.add_new(0x60000100, "US", 1)
    ds.add_new(0x60000102, "US", 0)
    ds.add_new(0x60003000, "OW", bytes(512))
    outcome = derived_from(stored(tmp_path, ds), gate=lenient)
    assert isinstance(outcome, Derived)


def test_a_modality_without_a_gate_stays(tmp_path: Path) -> None:
    outcome = derived_from(stored(tmp_path, original(Modality="US", SOPClassUID=CLASS + "6.1")))
    assert isinstance(outcome, Kept)
    assert outcome.reason is Reason.NO_GATE


@pytest.mark.parametrize(
    ("changes", "ratio"),
    [
        ({}, 8),
        ({"SliceThickness": "3"}, 8),
        ({"SliceThickness": "2.9"}, 5),
        ({"SliceThickness": None}, 5),
        ({"BodyPartExamined": "HEAD"}, 5),
        ({"BodyPartExamined": "BRAIN"}, 5),
        ({"BodyPartExamined": "SKULL"}, 5),
        ({"BodyPartExamined": None}, 8),
    ],
)
def test_thin_slices_and_heads_are_asked_for_less(tmp_path: Path, changes: dict[str, Any], ratio: float) -> None:
    assert asked(QUALITY["CT"], facts(tmp_path, original(**changes))).ratio == ratio


def test_a_thickness_that_is_no_number_is_not_known(tmp_path: Path) -> None:
    ds = original(SliceThickness=None)
    ds.add_new(0x00180050, "CS", "THICK")
    assert facts(tmp_path, ds).slice_thickness_mm is None


def test_a_gate_that_asks_for_less_than_the_cap_stays(tmp_path: Path) -> None:
    gate = QUALITY["CT"].model_copy(update={"ratio": 3})
    assert asked(gate, facts(tmp_path, original(BodyPartExamined="HEAD"))).ratio == 3


def test_the_thinnest_frame_of_an_enhanced_image_counts(tmp_path: Path) -> None:
    ds = original()
    del ds.SliceThickness
    ds.PerFrameFunctionalGroupsSequence = []
    for thickness in ("5", "2"):
        measures, group = Dataset(), Dataset()
        measures.SliceThickness = thickness
        group.PixelMeasuresSequence = [measures]
        ds.PerFrameFunctionalGroupsSequence.append(group)
    assert facts(tmp_path, ds).slice_thickness_mm == 2

"""Pictures for people are right side up in brightness and colour."""

from __future__ import annotations

import io
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataset import Dataset

from archive.dicom.render import render
from archive.errors import Unsupported
from tests.archive.dicom.reading import real_files
from tests.builders import ct_slice, part10

RAMP = np.arange(256, dtype="<u2").reshape(16, 16) * 16


def ramp(**changes: object) -> Dataset:
    ds = ct_slice(**changes)
    if "PixelData" not in changes:
        ds.PixelData = RAMP.tobytes()
    return ds


def picture(folder: Path, ds: Dataset, **how: object) -> np.ndarray:
    path = folder / "one.dcm"
    path.write_bytes(part10(ds))
    return np.asarray(Image.open(io.BytesIO(render(str(path), media_type="image/png", **how)))).astype(int)


def test_a_side_that_is_too_long_for_a_jpeg_is_none_and_a_png(tmp_path: Path) -> None:
    for columns, fits in ((65500, True), (65501, False)):
        ds = ct_slice(rows=1, columns=columns)
        assert picture(tmp_path, ds).shape == (1, columns)
        if fits:
            assert Image.open(io.BytesIO(render(str(tmp_path / "one.dcm")))).size == (columns, 1)
        else:
            with pytest.raises(Unsupported, match="65500"):
                render(str(tmp_path / "one.dcm"))
            assert render(str(tmp_path / "one.dcm"), size=(100, 100))


def test_without_a_window_all_values_are_shown(tmp_path: Path) -> None:
    assert np.array_equal(picture(tmp_path, ramp()), np.arange(256).reshape(16, 16))


def test_rescale_and_window_of_the_header_are_applied(tmp_path: Path) -> None:
    shown = picture(tmp_path, ramp(RescaleSlope="2", RescaleIntercept="-1000", WindowCenter="0", WindowWidth="400"))
    modality = RAMP.astype(float) * 2 - 1000
    expected = np.clip(((modality + 0.5) / 399 + 0.5) * 255, 0, 255).astype(int)
    assert np.abs(shown - expected).max() <= 1
    assert shown[0, 0] == 0 and shown[-1, -1] == 255


def test_an_asked_window_comes_before_that_of_the_header(tmp_path: Path) -> None:
    shown = picture(tmp_path, ramp(WindowCenter="0", WindowWidth="10"), window=(2048.0, 1.0))
    assert set(np.unique(shown)) == {0, 255}
    assert (shown == 255).sum() == (RAMP > 2047).sum()


@pytest.mark.parametrize("function", ["SIGMOID", "LINEAR_EXACT"])
def test_other_window_functions_are_understood(tmp_path: Path, function: str) -> None:
    shown = picture(tmp_path, ramp(WindowCenter="2048", WindowWidth="1000", VOILUTFunction=function))
    assert shown[8, 0] == 127  # the value 2048, the middle
    assert (np.diff(shown.ravel()) >= 0).all()


def test_monochrome1_is_inverted(tmp_path: Path) -> None:
    shown = picture(tmp_path, ramp(PhotometricInterpretation="MONOCHROME1"))
    assert np.array_equal(shown, 255 - np.arange(256).reshape(16, 16))


def test_signed_values_are_signed(tmp_path: Path) -> None:
    ds = ramp(PixelRepresentation=1, WindowCenter="0.5", WindowWidth="2")
    ds.PixelData = np.tile(np.array([-5, 5], "<i2"), 128).tobytes()
    shown = picture(tmp_path, ds)
    assert set(shown[:, 0]) == {0} and set(shown[:, 1]) == {255}


def test_padding_around_the_image_does_not_darken_it(tmp_path: Path) -> None:
    pixels = np.full((16, 16), 0, "<u2")
    pixels[4:8, 4:8] = [1000, 1100, 1200, 1300]
    shown = picture(tmp_path, ramp(PixelData=pixels.tobytes(), PixelPaddingValue=0))
    assert shown[4, 4] == 0 and shown[4, 5] == 85 and shown[4, 7] == 255


def test_tables_of_the_header_are_applied(tmp_path: Path) -> None:
    item = Dataset()
    item.add_new(0x00283002, "US", [4096, 0, 16])
    item.add_new(0x00283006, "OW", np.linspace(65535, 0, 4096).astype("<u2").tobytes())
    for keyword in ("VOILUTSequence", "ModalityLUTSequence"):
        shown = picture(tmp_path, ramp(**{keyword: [item]}))
        assert shown[0, 0] == 255 and shown[-1, -1] <= 16 and (np.diff(shown.ravel()) <= 0).all()


def test_colours_and_palettes_are_shown(tmp_path: Path) -> None:
    rgb = np.zeros((16, 16, 3), "u1")
    rgb[..., 0] = 255
    facts = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    colour = facts | {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}
    ds = ramp(**colour, PlanarConfiguration=1, PixelData=rgb.transpose(2, 0, 1).tobytes())
    assert picture(tmp_path, ds)[3, 3].tolist() == [255, 0, 0]
    ybr = np.tile(np.array([76, 85, 255], "u1"), 256)
    ds = ramp(**(colour | {"PhotometricInterpretation": "YBR_FULL"}), PlanarConfiguration=0, PixelData=ybr.tobytes())
    assert np.abs(picture(tmp_path, ds)[3, 3] - [255, 0, 0]).max() <= 2
    ds = ramp(**facts, PhotometricInterpretation="PALETTE COLOR", PixelData=bytes([0, 1] * 128))
    for name, values in (("Red", [0, 65535]), ("Green", [65535, 0]), ("Blue", [0, 0])):
        setattr(ds, f"{name}PaletteColorLookupTableDescriptor", [2, 0, 16])
        setattr(ds, f"{name}PaletteColorLookupTableData", np.array(values, "<u2").tobytes())
    shown = picture(tmp_path, ds)
    assert shown[0, 0].tolist() == [0, 255, 0] and shown[0, 1].tolist() == [255, 0, 0]


def test_frames_have_their_own_values_and_functional_groups(tmp_path: Path) -> None:
    ds = ramp(NumberOfFrames=2)
    ds.PixelData = RAMP.tobytes() + RAMP.T.tobytes()
    groups = []
    for centre in ("1", "4000"):
        window, group = Dataset(), Dataset()
        window.WindowCenter, window.WindowWidth = centre, "1"
        group.FrameVOILUTSequence = [window]
        groups.append(group)
    ds.PerFrameFunctionalGroupsSequence = groups
    assert (picture(tmp_path, ds, frame=1) == 255).sum() == 255
    assert (picture(tmp_path, ds, frame=2) == 255).sum() == (RAMP > 3999).sum()
    with pytest.raises(Unsupported):
        picture(tmp_path, ds, frame=3)


def test_pictures_fit_in_the_size_and_are_never_enlarged(tmp_path: Path) -> None:
    ds = ct_slice(rows=200, columns=100)
    assert picture(tmp_path, ds, size=(50, 50)).shape == (50, 25)
    assert picture(tmp_path, ds, size=(500, 500)).shape == (200, 100)
    path = tmp_path / "one.dcm"
    assert render(str(path)).startswith(b"\xff\xd8\xff")


@pytest.mark.parametrize(
    "changes",
    [
        {"PixelData": None},
        {"Rows": None, "Columns": None},
        {"Rows": 60000, "Columns": 60000},
        {"SamplesPerPixel": 2, "PlanarConfiguration": 0, "Rows": 8},
        {"PhotometricInterpretation": "PALETTE COLOR"},
    ],
)
def test_what_is_no_picture_is_unsupported(tmp_path: Path, changes: dict[str, object]) -> None:
    with pytest.raises(Unsupported):
        picture(tmp_path, ct_slice(**changes))


def test_an_element_whose_length_does_not_fit_its_vr_makes_no_picture(tmp_path: Path) -> None:
    rows, odd = b"\x28\0\x10\0US\x02\0", b"\x28\0\x10\0US\x03\0\0"
    raw = part10(ct_slice())
    assert raw.count(rows) == 1
    path = tmp_path / "one.dcm"
    path.write_bytes(raw.replace(rows, odd))
    with pytest.raises(Unsupported):
        render(str(path))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(st.data())
def test_damaged_files_make_a_picture_or_are_unsupported(tmp_path: Path, data: st.DataObject) -> None:
    ds = ramp(WindowCenter="0", WindowWidth="400", RescaleSlope="1", RescaleIntercept="0", SOPInstanceUID="1.2.3")
    raw = bytearray(part10(ds))
    for _ in range(data.draw(st.integers(1, 5))):
        raw[data.draw(st.integers(400, len(raw) - 513))] = data.draw(st.integers(0, 255))
    path = tmp_path / "one.dcm"
    path.write_bytes(bytes(raw))
    with suppress(Unsupported):
        assert render(str(path), media_type="image/png").startswith(b"\x89PNG")


def test_every_real_image_has_a_picture() -> None:
    shown = 0
    for path, _, _ in real_files():
        if path.parent.name == "mr-series-ge":  # all alike
            continue
        try:
            shown += bool(render(str(path), size=(64, 64)))
        except Unsupported:
            continue
    assert shown > 140

"""What part of a picture is shown, how large and which way round (PS3.18 8.3.5.1.3)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from archive.dicom.viewport import ENLARGED_PIXELS, Region, fitted
from archive.errors import InvalidRequest

RAMP = np.arange(12 * 20, dtype=np.uint8).reshape(12, 20)


def shown(size: tuple[int, int] | None, region: Region | None, *, enlarge: bool = True) -> np.ndarray:
    return np.asarray(fitted(Image.fromarray(RAMP), size, region, enlarge=enlarge))


@pytest.mark.req("REQ-DCM-90")
@pytest.mark.parametrize(
    ("region", "expected"),
    [
        (None, RAMP),
        (Region(3, 2, 5, 4), RAMP[2:6, 3:8]),
        (Region(3, 2), RAMP[2:, 3:]),
        (Region(width=5), RAMP[:, :5]),
        (Region(3, 2, -5, 4), RAMP[2:6, 3:8][:, ::-1]),
        (Region(3, 2, 5, -4), RAMP[2:6, 3:8][::-1]),
        (Region(0, 0, -20, -12), RAMP[::-1, ::-1]),
        (Region(18, 10, 100, 100), RAMP[10:, 18:]),  # what is there of it
        (Region(0.25, 0.5, 0.5, 0.5, parts=True), RAMP[6:, 5:15]),
    ],
)
def test_a_region_is_the_pixels_in_it_the_right_way_round(region: Region | None, expected: np.ndarray) -> None:
    rows, columns = expected.shape
    for size in (None, (rows, columns), (rows, 500), (500, columns)):
        assert np.array_equal(shown(size, region), expected), size


@pytest.mark.parametrize(
    "region",
    [Region(20, 0), Region(0, 12), Region(25, 3, 5, 5), Region(0, 0, 0.0, 5), Region(1, 0, 1, 1, parts=True)],
)
def test_a_region_without_a_pixel_is_refused(region: Region) -> None:
    with pytest.raises(InvalidRequest):
        shown(None, region)


def test_a_region_fills_its_viewport_in_its_own_proportions() -> None:
    assert shown((60, 60), Region(0, 0, 4, 2)).shape == (30, 60)
    assert shown((60, 60), Region(0, 0, 4, 2), enlarge=False).shape == (2, 4)
    assert shown((6, 60), None).shape == (6, 10)
    left = shown((60, 60), Region(0, 0, 4, 2))
    assert (np.diff(left[:, ::15].astype(int), axis=1) > 0).all()  # columns stay in order
    with pytest.raises(InvalidRequest, match=str(ENLARGED_PIXELS)):
        shown((16384, 16384), None)


@pytest.mark.parametrize("least", [5e-324, 6.8e-308, 1e-9])
def test_what_is_left_of_a_pixel_is_none(least: float) -> None:
    for region in (Region(0, 0, least, 4), Region(0, 0, 4, -least), Region(0, 0, least, least, parts=True)):
        with pytest.raises(InvalidRequest, match="no pixel"):
            shown((13, 13), region)


@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.floats(0, 25),
    st.floats(0, 25),
    st.floats(-25, 25),
    st.floats(-25, 25),
    st.booleans(),
)
def test_no_picture_is_larger_than_its_viewport_or_without_a_pixel(
    rows: int, columns: int, left: float, top: float, width: float, height: float, enlarge: bool
) -> None:
    try:
        rows_made, columns_made = shown((rows, columns), Region(left, top, width, height), enlarge=enlarge).shape
    except InvalidRequest:
        return
    assert 1 <= rows_made <= rows and 1 <= columns_made <= columns

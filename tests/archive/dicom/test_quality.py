"""The figures of the gate (REQ-DCM-86)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archive.dicom.quality import Figures, measure, peak_of, summary
from archive.sections import Quality

Pixels = np.ndarray[Any, Any]
FLOOR = Quality(ratio=8, min_psnr_db=50, min_ssim=0.9, max_error=10)


def image(seed: int, *, rows: int = 40, columns: int = 33, dtype: str = "<u2", high: int = 4096) -> Pixels:
    return np.random.default_rng(seed).integers(0, high, (rows, columns)).astype(dtype)


def ssim_by_the_book(a: Pixels, b: Pixels, peak: float) -> float:
    """Window by window, as the article writes it."""
    found = []
    for row in range(a.shape[0] - 7):
        for column in range(a.shape[1] - 7):
            x, y = (one[row : row + 8, column : column + 8].astype(float) - a.min() for one in (a, b))
            steady, sharp = (0.01 * peak) ** 2, (0.03 * peak) ** 2
            covariance = ((x - x.mean()) * (y - y.mean())).mean()
            light = (2 * x.mean() * y.mean() + steady) / (x.mean() ** 2 + y.mean() ** 2 + steady)
            found.append(light * (2 * covariance + sharp) / (x.var() + y.var() + sharp))
    return float(np.mean(found))


@settings(deadline=None)
@given(st.integers(0, 1 << 30), st.integers(1, 300), st.sampled_from(["u1", "i1", "<u2", "<i2"]))
def test_a_frame_that_comes_back_unchanged_is_perfect(seed: int, rows: int, dtype: str) -> None:
    frame = image(seed, rows=rows, dtype=dtype)
    assert measure(frame, frame.copy(), bits_stored=16) == Figures(psnr_db=math.inf, ssim=1.0, max_error=0)


@settings(deadline=None)
@given(st.integers(0, 1 << 30), st.integers(1, 500))
def test_a_known_error_has_the_psnr_of_its_formula(seed: int, error: int) -> None:
    frame = image(seed)
    frame[0, :2] = 0, 4095  # the range, and 99.8 % of it in between
    peak = peak_of(frame, bits_stored=12)
    figures = measure(frame, frame + np.uint16(error), bits_stored=12)
    assert figures.max_error == error
    assert figures.psnr_db == pytest.approx(20 * math.log10(peak / error))
    assert figures.ssim < 1


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 1 << 30), st.integers(1, 200), st.sampled_from(["<u2", "<i2"]))
def test_similarity_is_that_of_the_article(seed: int, noise: int, dtype: str) -> None:
    frame = image(seed, dtype=dtype)
    noisy = frame + np.random.default_rng(seed + 1).integers(-noise, noise + 1, frame.shape).astype(dtype)
    noisy = np.clip(noisy, 0, 8191)
    figures = measure(frame, noisy, bits_stored=13)
    if figures.max_error:
        expected = ssim_by_the_book(frame, noisy, peak_of(frame, bits_stored=13))
        assert figures.ssim == pytest.approx(expected, abs=1e-9)


def test_a_large_frame_is_measured_as_a_whole() -> None:
    """In bands of rows, each window once."""
    frame = image(1, rows=700, columns=40)
    noisy = frame + image(2, rows=700, columns=40, high=50)
    expected = ssim_by_the_book(frame, noisy, peak_of(frame, bits_stored=16))
    assert measure(frame, noisy, bits_stored=16).ssim == pytest.approx(expected, abs=1e-9)


@settings(deadline=None)
@given(st.integers(0, 1 << 30))
def test_more_noise_is_never_better(seed: int) -> None:
    frame = image(seed)
    less, more = (measure(frame, frame + image(seed, high=top), bits_stored=13) for top in (20, 400))
    assert more.psnr_db < less.psnr_db
    assert more.ssim < less.ssim
    assert more.max_error >= less.max_error


def test_the_peak_is_the_range_in_use_not_that_of_the_bits() -> None:
    """A scanner that says 16 bits and uses 11 wins nothing by it."""
    frame = image(3, rows=100, columns=100, high=2048)
    frame[0, 0] = 65535  # one hot pixel neither
    assert 2000 < peak_of(frame, bits_stored=16) < 2048
    assert peak_of(frame, bits_stored=8) == 255


def test_padding_widens_no_range() -> None:
    frame = image(4, rows=100, columns=100, dtype="<i2", high=1000)
    frame[:30] = -2000
    assert peak_of(frame, bits_stored=16) > 2900
    assert peak_of(frame, bits_stored=16, padding=-2000) < 1000


def test_an_error_in_the_padding_counts() -> None:
    frame = image(5, dtype="<i2", high=1000)
    frame[:10] = -2000
    smeared = frame.copy()
    smeared[3, 3] = -1700
    assert measure(frame, smeared, bits_stored=16, padding=-2000).max_error == 300


@pytest.mark.parametrize("value", [0, 77])
def test_an_error_in_a_flat_frame_is_not_divided_by_nothing(value: int) -> None:
    frame = np.full((40, 40), value, "<u2")
    wrong = frame.copy()
    wrong[5, 5] += 3
    figures = measure(frame, wrong, bits_stored=12, padding=value)
    assert figures.max_error == 3
    assert math.isfinite(figures.psnr_db)
    assert not figures.reach(FLOOR)


def test_of_colours_the_worst_channel_counts() -> None:
    frame = np.stack([image(seed, dtype="u1", high=200) for seed in (6, 7, 8)], axis=-1)
    wrong = frame.copy()
    wrong[..., 2] += image(9, dtype="u1", high=50)
    peak = peak_of(frame, bits_stored=8)
    figures = measure(frame, wrong, bits_stored=8)
    assert figures.ssim == pytest.approx(ssim_by_the_book(frame[..., 2], wrong[..., 2], peak), abs=1e-9)


@pytest.mark.req("REQ-DCM-86")
@pytest.mark.parametrize(
    ("figures", "passes"),
    [
        (Figures(50, 0.9, 10), True),
        (Figures(math.inf, 1, 0), True),
        (Figures(49.99, 1, 0), False),
        (Figures(60, 0.89, 0), False),
        (Figures(60, 1, 11), False),
    ],
)
def test_every_figure_has_to_reach_its_floor(figures: Figures, passes: bool) -> None:
    assert figures.reach(FLOOR) is passes


def test_a_summary_names_the_worst_of_each_figure() -> None:
    both = summary([Figures(60, 0.9, 4), Figures(50, 0.99, 2)])
    assert both.worst == Figures(50, 0.9, 4)
    assert (both.mean_psnr_db, both.mean_ssim, both.mean_max_error) == (55, pytest.approx(0.945), 3)
    assert summary([Figures(math.inf, 1, 0)]).record()["psnr_db"] == {"worst": None, "mean": None}


def test_frames_of_two_shapes_are_not_compared() -> None:
    with pytest.raises(ValueError, match="two shapes"):
        measure(image(1), image(1, rows=41), bits_stored=12)

"""How far a lossy frame is from its original: the figures of the gate (REQ-DCM-86), in numpy alone.

All are taken over every pixel of the frame, padding and background too: a codec that smears the edge of the padding is
seen. `peak` is what the errors are compared with: the range that the frame really uses, from the 0.1th to the 99.9th
percentile of the original without its padding value, and never more than the bits stored can hold. The range of the
bits stored alone would be too kind: a scanner that says 16 bits and uses 11 would win 30 dB for nothing.

- PSNR, decibels: 20 log10(peak) - 10 log10(mean squared error); infinite without any error.
- SSIM (Wang, Bovik, Sheikh, Simoncelli 2004): mean over all windows of 8 x 8 equally weighted pixels, stride 1, with
  K1 = 0.01, K2 = 0.03, L = peak, population variances, values counted from the smallest of the original; of colours the
  worst channel.
- Maximum error: the largest absolute difference of two values, in stored units (HU for a CT with slope 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from archive.sections import Quality

if TYPE_CHECKING:
    import numpy as np

_WINDOW = 8
_BAND = 256  # rows of windows at a time: memory stays that of a band, also for a radiograph
_K1, _K2 = 0.01, 0.03


@dataclass(frozen=True, slots=True)
class Figures:
    """One frame against its original."""

    psnr_db: float
    ssim: float
    max_error: int

    def reach(self, floor: Quality) -> bool:
        """Whether the frame passes the gate."""
        return self.psnr_db >= floor.min_psnr_db and self.ssim >= floor.min_ssim and self.max_error <= floor.max_error

    def record(self) -> dict[str, Any]:
        """As JSON; an infinite PSNR is null."""
        return {"psnr_db": _finite(self.psnr_db), "ssim": round(self.ssim, 6), "max_error": self.max_error}


@dataclass(frozen=True, slots=True)
class Summary:
    """All frames of an instance: the worst of each figure, and its mean."""

    frames: int
    worst: Figures
    mean_psnr_db: float
    mean_ssim: float
    mean_max_error: float

    def record(self) -> dict[str, Any]:
        """As JSON; an infinite PSNR is null."""
        return {
            "frames": self.frames,
            "psnr_db": {"worst": _finite(self.worst.psnr_db), "mean": _finite(self.mean_psnr_db)},
            "ssim": {"worst": round(self.worst.ssim, 6), "mean": round(self.mean_ssim, 6)},
            "max_error": {"worst": self.worst.max_error, "mean": round(self.mean_max_error, 2)},
        }


def measure(
    original: np.ndarray[Any, Any], decoded: np.ndarray[Any, Any], *, bits_stored: int, padding: int | None = None
) -> Figures:
    """One decoded frame against its original, both rows x columns (x samples) of whole numbers of at most 16 bits.

    `padding`: Pixel Padding Value (0028,0120), which the peak is not to count.

    Raises:
        ValueError: the two have not the same shape.
    """
    import numpy as np

    if original.shape != decoded.shape:
        raise ValueError("frames of two shapes")
    difference = original.astype(np.int32) - decoded.astype(np.int32)
    largest = int(np.abs(difference).max(initial=0))
    if not largest:
        return Figures(psnr_db=math.inf, ssim=1.0, max_error=0)
    peak = peak_of(original, bits_stored=bits_stored, padding=padding)
    squared = float(np.mean(np.square(difference, dtype=np.float64)))
    channels = [(original, decoded)] if original.ndim == 2 else list(_channels(original, decoded))
    return Figures(
        psnr_db=20 * math.log10(peak) - 10 * math.log10(squared),
        ssim=min(_ssim(a, b, peak) for a, b in channels),
        max_error=largest,
    )


def summary(figures: Sequence[Figures]) -> Summary:
    """Of at least one frame."""
    count = len(figures)
    return Summary(
        frames=count,
        worst=Figures(
            psnr_db=min(one.psnr_db for one in figures),
            ssim=min(one.ssim for one in figures),
            max_error=max(one.max_error for one in figures),
        ),
        mean_psnr_db=sum(one.psnr_db for one in figures) / count,
        mean_ssim=sum(one.ssim for one in figures) / count,
        mean_max_error=sum(one.max_error for one in figures) / count,
    )


def peak_of(original: np.ndarray[Any, Any], *, bits_stored: int, padding: int | None = None) -> int:
    """The range that errors are compared with, at least 1; see the module."""
    import numpy as np

    lowest = int(original.min())
    counts = np.bincount(original.ravel().astype(np.int32) - lowest)
    if padding is not None and 0 <= padding - lowest < len(counts) and counts[padding - lowest] < original.size:
        counts[padding - lowest] = 0
    reached = np.cumsum(counts)
    low, high = (int(np.searchsorted(reached, share * reached[-1], side=side)) for share, side in _SHARES)
    return max(1, min(high - low, (1 << bits_stored) - 1))


_SHARES: tuple[tuple[float, Any], ...] = ((0.001, "right"), (0.999, "left"))


def _channels(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> list[tuple[np.ndarray[Any, Any], ...]]:
    return [(a[..., sample], b[..., sample]) for sample in range(a.shape[-1])]


def _ssim(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any], peak: int) -> float:
    rows, columns = a.shape
    window = min(_WINDOW, 1 << (min(rows, columns).bit_length() - 1))  # of a smaller frame the largest power of two
    lowest = int(a.min())
    total = 0.0
    for top in range(0, rows - window + 1, _BAND):
        bottom = min(top + _BAND + window - 1, rows)
        total += _similarity(a[top:bottom], b[top:bottom], window, lowest, peak)
    return float(total / ((rows - window + 1) * (columns - window + 1)))


def _similarity(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any], window: int, lowest: int, peak: int) -> float:
    """The sum of the index over all windows of a band of rows."""
    import numpy as np

    x, y = a.astype(np.float64) - lowest, b.astype(np.float64) - lowest
    mean_x, mean_y = _means(x, window), _means(y, window)
    product, squares = mean_x * mean_y, mean_x**2 + mean_y**2
    spread = _means(x * x + y * y, window) - squares
    together = _means(x * y, window) - product
    steady, sharp = (_K1 * peak) ** 2, (_K2 * peak) ** 2
    index = (2 * product + steady) * (2 * together + sharp) / ((squares + steady) * (spread + sharp))
    return float(index.sum())


def _means(values: np.ndarray[Any, Any], window: int) -> np.ndarray[Any, Any]:
    """Of every window, a power of two wide: sums of neighbours, then of neighbours of those, and so on, all exact."""
    step = 1
    while step < window:
        values = values[:-step] + values[step:]
        values = values[:, :-step] + values[:, step:]
        step *= 2
    return values / (window * window)


def _finite(value: float) -> float | None:
    return round(value, 2) if math.isfinite(value) else None

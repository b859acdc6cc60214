"""Deriving in tests: originals that pass the gate, and a sink in memory."""

from __future__ import annotations

import io
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from archive.dicom.derive import Derived, Kept, derive
from archive.dicom.equipment import Equipment
from archive.dicom.file_meta import FileMeta, file_head
from archive.sections import Quality, Retention
from tests.builders import ct_slice, part10

AT = datetime(2029, 1, 6, 3, 15, 0, 250000, tzinfo=UTC)
SERIES = "2.25.77"
EQUIPMENT = Equipment(software_version="1.2", station_name="MINIPACS", institution_name="Cabinet Lefèvre")
GATE = Retention().gate


class Buffer:
    """A whole PS3.10 file in memory."""

    def __init__(self, meta: FileMeta) -> None:
        self.file = io.BytesIO(file_head(meta))
        self.file.seek(0, io.SEEK_END)
        self.discarded = False

    def write(self, data: bytes) -> None:
        self.file.write(data)

    def discard(self) -> None:
        self.discarded = True


def smooth(*, rows: int = 64, columns: int = 64, frames: int = 1, high: int = 2000, dtype: str = "<u2") -> Any:
    """Pixels like those of a phantom: soft shapes and a little noise."""
    y, x = np.mgrid[0:rows, 0:columns]
    stack = [
        high / 2 * (1 + np.sin((x + 3 * number) / 9) * np.cos(y / 11))
        + np.random.default_rng(number).normal(0, 2, (rows, columns))
        for number in range(frames)
    ]
    return np.clip(np.rint(np.stack(stack)), 0, high).astype(dtype)


def original(**changes: Any) -> Dataset:
    """A CT slice that passes, 64 x 64 and 5 mm thick."""
    pixels = changes.pop("pixels", None)
    values = smooth() if pixels is None else pixels
    ds = ct_slice(
        rows=values.shape[1], columns=values.shape[2], **{"SliceThickness": "5", "BodyPartExamined": "CHEST", **changes}
    )
    ds.PixelData = values.tobytes()
    if len(values) > 1:
        ds.NumberOfFrames = len(values)
    return ds


def stored(folder: Path, ds: Dataset) -> str:
    path = folder / "original.dcm"
    path.write_bytes(part10(ds))
    return str(path)


def derived_from(
    path: str | Path,
    *,
    gate: Callable[[str], Quality | None] = GATE,
    at: datetime = AT,
    receive: Callable[[FileMeta], Buffer] = Buffer,
) -> Derived[Buffer] | Kept:
    syntax = str(pydicom.filereader.read_file_meta_info(path).TransferSyntaxUID)
    return derive(
        str(path),
        transfer_syntax_uid=syntax,
        gate=gate,
        series_instance_uid=SERIES,
        policy_version="0123abcd",
        at=at,
        equipment=EQUIPMENT,
        receive=receive,
    )


def copy_of(outcome: Derived[Buffer] | Kept) -> Dataset:
    """The copy as pydicom reads it."""
    assert isinstance(outcome, Derived), outcome
    outcome.incoming.file.seek(0)
    return pydicom.dcmread(outcome.incoming.file)


def lenient(modality: str) -> Quality | None:
    """A gate that everything passes."""
    return Quality(ratio=8, min_psnr_db=30, min_ssim=0, max_error=65535)

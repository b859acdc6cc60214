"""A generated CT, as files."""

from __future__ import annotations

from pathlib import Path

from tests.builders import ct_slice, new_uid, part10


def make_series(folder: Path, slices: int, size: int) -> tuple[str, str]:
    """A series of distinct slices; its study and series UID."""
    study, series = new_uid(), new_uid()
    for number in range(1, slices + 1):
        ds = ct_slice(
            rows=size,
            columns=size,
            number=number,
            StudyInstanceUID=study,
            SeriesInstanceUID=series,
            PatientID=f"BENCH{study[-6:]}",
        )
        (folder / f"{number:05}.dcm").write_bytes(part10(ds))
    return study, series

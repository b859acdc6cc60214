"""The figures of dose reports: made ones to the last digit, real ones of five makers (IHE REM)."""

from __future__ import annotations

import io
from typing import Any

import pytest

from archive.dicom.document import Json, read_content
from archive.dicom.dose import Dose, doses
from archive.storage.part10 import read_meta
from tests.archive.dicom.conftest import shared
from tests.builders import dose_report, part10


def content_of(raw: bytes, tmp: io.FileIO) -> Json:
    meta, offset = read_meta(raw[: 64 << 10])
    tmp.write(raw)
    return read_content(
        tmp.fileno(),
        offset=offset,
        length=len(raw) - offset,
        transfer_syntax_uid=meta.transfer_syntax_uid,
        default_charset="ISO_IR 100",
    )


def said(raw: bytes, tmp_path: Any) -> list[Dose]:
    with io.FileIO(tmp_path / "report", "w+") as tmp:
        return doses(content_of(raw, tmp))


@pytest.mark.req("REQ-IHE-07")
def test_totals_come_first_then_events_in_their_order(tmp_path: Any) -> None:
    whole, first, second = said(part10(dose_report((5.5, 120.25), (12.0, 0.0), total=130.0)), tmp_path)
    assert (whole.number, whole.template, whole.dlp_mgycm, whole.ctdi_vol_mgy) == (0, "10011", 130.0, 12.0)
    assert (whole.device_uid, whole.dap_gym2) == ("1.2.3.99", None)
    assert (first.number, first.event_uid, first.label) == (1, "1.2.3.99.1", "Passage 1")
    assert (second.ctdi_vol_mgy, second.dlp_mgycm) == (12.0, 0.0)


@pytest.mark.req("REQ-IHE-07")
def test_what_a_report_does_not_total_is_added_up_and_a_unit_is_never_guessed(tmp_path: Any) -> None:
    whole = said(part10(dose_report((5.0, 100.0), (6.0, 20.5))), tmp_path)[0]
    assert whole.dlp_mgycm == 120.5
    ds = dose_report((5.0, 100.0), total=7777.0)
    measured = ds.ContentSequence[1].ContentSequence[0].MeasuredValueSequence[0]
    for unit, expected in (("Gy.cm", 7777000.0), ("parsec", 100.0)):
        measured.MeasurementUnitsCodeSequence[0].CodeValue = unit
        assert said(part10(ds), tmp_path)[0].dlp_mgycm == expected, unit
    written = part10(dose_report((5.0, 100.0), total=7777.0))
    for number in (b"many  ", b"NaN   ", b"-7777 "):
        assert said(written.replace(b"7777.0", number), tmp_path)[0].dlp_mgycm == 100.0, number


def test_a_report_without_figures_says_nothing(tmp_path: Any) -> None:
    ds = dose_report()
    ds.ContentSequence = []
    assert said(part10(ds), tmp_path) == []


REAL = {  # template, events, and the total as the report prints it
    "CT-RDSR-GEPixelMed": ("10011", 2, "dlp_mgycm", 586.34),
    "CT-RDSR-Siemens_Flash-TAP-SS": ("10011", 4, "dlp_mgycm", 724.52),
    "CT-RDSR-Toshiba_DoseCheck": ("10011", 2, "dlp_mgycm", 502.4),
    "DX-RDSR-Canon_CXDI": ("10001", 1, "dap_gym2", 1.07e-05),
    "MG-RDSR-Hologic_2D": ("10001", 2, "agd_mgy", 1.3),
    "RF-RDSR-GE": ("10001", 8, "dap_gym2", 0.00024126),
}


@pytest.mark.req("REQ-IHE-07")
@pytest.mark.parametrize("name", REAL)
def test_a_real_report_is_read(tmp_path: Any, name: str) -> None:
    template, events, figure, total = REAL[name]
    found = said(shared(f"data/rdsr/{name}.dcm").read_bytes(), tmp_path)
    assert (found[0].template, len(found) - 1) == (template, events)
    assert getattr(found[0], figure) == pytest.approx(total)
    assert all(one.event_uid for one in found[1:])

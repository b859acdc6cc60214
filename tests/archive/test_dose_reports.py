"""Dose reports: indexed at reception, found by their template, outliving the images (IHE REM, sheet 30 §7)."""

from __future__ import annotations

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian
from sqlalchemy import select

from archive import retrieve
from archive.access import Actor
from archive.core import Archive
from archive.dicom import dose as figures
from archive.dicom.attributes import Level
from archive.errors import Gone
from archive.index.doses import list_reports, reports_of
from archive.index.match import Key
from archive.index.query import Query, find
from archive.ingest import Outcome, ingest
from archive.lifecycle.certificate import pdf
from archive.lifecycle.compute import explain
from archive.lifecycle.purged import list_purges
from archive.schema import dose
from archive.storage.part10 import Part10
from retention.tick import tick
from tests.archive.lifecycle.pdf_text import text_of
from tests.archive.lifecycle.studies import at
from tests.archive.test_rejections import CT1, STUDY, counted, given, send, slices
from tests.builders import ct_slice, dose_report, key_object, new_uid, part10


def of_template(archive: Archive, identifier: str) -> list[str]:
    """C-FIND: Modality SR, TemplateIdentifier in ContentTemplateSequence."""
    template = Key(0x0040A504, "SQ", items=(Key(0x0040DB00, "CS", identifier),))
    query = Query(
        Level.IMAGE, (Key(0x0020000D, "UI", STUDY), Key(0x00080060, "CS", "SR"), template), frozenset({0x00080018})
    )
    with archive.reading() as conn:
        return [row["00080018"]["Value"][0] for row in find(conn, query)]


@pytest.mark.req("REQ-IHE-07")
def test_a_report_is_found_by_its_template_and_its_dose_is_told(archive: Archive) -> None:
    slices(archive)
    report = dose_report((5.5, 120.0), (12.0, 30.0), total=150.0)
    assert send(archive, report) is Outcome.STORED
    assert of_template(archive, "10011") == [report.SOPInstanceUID]
    assert of_template(archive, "10001") == []
    with archive.reading() as conn:
        (found,) = reports_of(conn, STUDY)
        listed = list_reports(conn, since="20260101", until="20260131", modality="CT", limit=10)
        assert list_reports(conn, since="20260106", limit=10) == list_reports(conn, modality="MR", limit=10) == []
    assert listed == [found]
    assert (found.totals.dlp_mgycm, found.totals.ctdi_vol_mgy, len(found.events)) == (150.0, 12.0, 2)
    assert (found.study_date, found.accession, found.patient_id) == ("20260105", "A1001", "IPP1")
    assert found.events[0].event_uid == "1.2.3.99.1"


@pytest.mark.req("REQ-IHE-07")
def test_a_report_that_is_too_long_or_says_nothing_is_kept_all_the_same(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("archive.index.said.MAX_REPORT_BYTES", 500)
    long = dose_report((5.5, 120.0))
    assert send(archive, long) is Outcome.STORED
    monkeypatch.setattr("archive.index.said.MAX_REPORT_BYTES", figures.MAX_BYTES)
    empty = dose_report()
    empty.ContentSequence = []
    assert send(archive, empty) is Outcome.STORED
    assert set(given(archive)) == {long.SOPInstanceUID, empty.SOPInstanceUID}
    with archive.reading() as conn:
        assert reports_of(conn, STUDY) == []


def ticks(archive: Archive, *days: str) -> None:
    for day in days:
        at(archive, day)
        tick(archive)


@pytest.mark.req("REQ-IHE-07")
def test_a_dose_report_outlives_the_images_of_its_study(archive: Archive, actor: Actor) -> None:
    at(archive, "2026-01-05")
    images = slices(archive)
    report = dose_report((5.5, 120.0), total=120.0)
    send(archive, report)
    ticks(archive, "2031-01-06", "2031-02-10")
    assert given(archive) == [report.SOPInstanceUID]
    assert counted(archive) == (1, 1)
    assert of_template(archive, "10011") == [report.SOPInstanceUID]
    (stored,) = retrieve.select(archive, study_uids=[STUDY])
    assert stored.stands()
    with pytest.raises(Gone):
        send(archive, images[0])
    with archive.reading() as conn:
        (purge,) = list_purges(conn)
        assert len(reports_of(conn, STUDY)) == 1
    assert purge.certificate["kept_dose_reports"] == [report.SOPInstanceUID]
    assert "1 compte rendu de dose de rayonnement" in " ".join(text_of(pdf(purge.certificate)).split())
    compute = explain(archive, STUDY)
    assert compute["date"] == "2046-01-05"
    ticks(archive, "2045-12-31")
    assert given(archive) == [report.SOPInstanceUID]
    ticks(archive, "2046-01-06", "2046-02-10")
    assert given(archive) == []
    with archive.reading() as conn:
        assert conn.execute(select(dose.c.pk)).all() == []
        assert "kept_dose_reports" not in list_purges(conn)[1].certificate


@pytest.mark.req("REQ-IHE-07")
def test_reports_come_in_pages_in_the_order_in_which_they_came(archive: Archive) -> None:
    made: list[Dataset] = []
    for day in ("20260105", "20260106", "20260107"):
        study = new_uid("study", day)
        send(archive, ct_slice(StudyInstanceUID=study, SeriesInstanceUID=new_uid("ct", day), StudyDate=day))
        made.append(dose_report((1.0, 10.0), StudyInstanceUID=study, StudyDate=day))
        send(archive, made[-1])
    with archive.reading() as conn:
        first = list_reports(conn, limit=2)
        rest = list_reports(conn, after=first[-1].number, limit=2)
    assert [one.sop_instance_uid for one in (*first, *rest)] == [ds.SOPInstanceUID for ds in made]


@pytest.mark.req("REQ-IHE-07")
def test_whatever_a_report_holds_it_is_kept(archive: Archive) -> None:
    """NUL, which PostgreSQL takes in no text; UIDs longer than its indexes take; letters of no character set."""
    report = dose_report((5.5, 120.0))
    event = report.ContentSequence[2].ContentSequence
    event[0].TextValue = "Passage \0\x1b 1" + "é" * 5000
    report.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    raw = part10(report).replace(b"1.2.3.99\0", b"1.2\0" + b"3.99\0")
    file = Part10(archive.hot, at=archive.real_clock())
    file.feed(raw)
    assert ingest(archive, file.finish(), actor=CT1) is Outcome.STORED
    event[1]["UID"].value = "1." * 4000 + "1"
    report.SOPInstanceUID = report.file_meta.MediaStorageSOPInstanceUID = new_uid()
    assert send(archive, report) is Outcome.STORED
    with archive.reading() as conn:
        first, second = reports_of(conn, STUDY)
    assert first.events[0].label.startswith("Passage")
    assert len(second.events[0].event_uid) == 64


@pytest.mark.req("REQ-IHE-06")
def test_whatever_a_key_object_names_it_is_kept(archive: Archive) -> None:
    (image,) = slices(archive, 1)
    note = key_object(image, image)
    item = note.ContentSequence[1].ReferencedSOPSequence[0]
    item["ReferencedSOPInstanceUID"].value = "1." * 4000 + "1"
    note.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    assert send(archive, note) is Outcome.STORED

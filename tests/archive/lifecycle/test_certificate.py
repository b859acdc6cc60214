"""Certificates of destruction, as JSON and on paper (sheet 00 §8, rule 4)."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any

import orjson
import pytest
from sqlalchemy import select

from archive.core import Archive
from archive.dicom.equipment import Equipment
from archive.lifecycle.certificate import Destroyed, StudyFacts, body, certificate, pdf
from archive.lifecycle.certificate_pdf import digest
from archive.lifecycle.guard import terms
from archive.lifecycle.holds import add_hold, remove_hold
from archive.schema import instance, series, study
from archive.sections import OneSite
from tests.archive.lifecycle.pdf_text import text_of
from tests.archive.lifecycle.studies import at, row_of, send, uid_of

CT, DOSE = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.88.67"


def paper(count: int = 3, **changes: Any) -> dict[str, Any]:
    """A certificate with French in every corner."""
    destroyed = [
        Destroyed(f"1.2.3.{number % 2}.{number}", f"1.2.3.{number % 2}", CT, f"{number:064x}", 1_500_000)
        for number in range(count)
    ]
    facts: dict[str, Any] = {
        "id": "0b8a1f5e-5a0e-4a39-9d0e-1d0ce0bd6c1d",
        "equipment": Equipment(software_version="1.2", station_name="MINIPACS"),
        "site": OneSite(id="principal", name="Imagerie du Vœu – Élancourt", finess="780000001"),
        "keep_until": "20310105",
        "keep_reasons": [{"rule": "liberal_5_years", "text": "cabinet libéral : 5 ans", "source": "Annexe 5 §3.1"}],
        "policy_version": "0123abcd",
        "announced_at": None,
        "purge_on": "20310801",
        "holds": [],
        "approvals": [],
        "note_uid": "2.25.99",
        "note_digest": "e" * 64,
        "at": datetime.fromisoformat("2031-08-01T22:30:00+00:00"),
        **changes,
    }
    of = StudyFacts("1.2.3", "IPP1^^^CABINET", "20260105", "A1001", "S1", "Scanner < 3 mm & œdème", ("CT", "SR"))
    return body(of, destroyed, **facts)


def test_a_certificate_says_what_why_when_how_and_where(archive: Archive, actor: Any) -> None:
    """Drawn up from the rows of a study, in the transaction that takes them away."""
    at(archive, "2026-01-05")
    for number in (1, 2):
        send(archive, "one", "20260105", InstanceNumber=number)
    send(archive, "one", "20260105", series="2", Modality="MR", SOPClassUID="1.2.840.10008.5.1.4.1.1.4")
    placed = add_hold(archive, uid_of("one"), reason="Expertise", until=date(2028, 1, 1), actor=actor)
    remove_hold(archive, placed.id, actor=actor)
    at(archive, "2031-02-04")
    pk, now = row_of(archive, "one").pk, archive.clock()
    with archive.reading() as conn:
        known = terms(conn, pk)
        assert known is not None
        going = conn.execute(
            select(instance, series.c.series_instance_uid).join_from(instance, series).where(series.c.study_pk == pk)
        ).all()
        found = certificate(
            conn,
            archive.settings,
            purge_id="one-purge",
            known=known,
            instances=going,
            aside=going[:1],
            note_uid="2.25.99",
            note_digest="e" * 64,
            at=now,
        )
    assert found["id"] == "one-purge"
    assert found["study"]["study_instance_uid"] == uid_of("one")
    assert found["study"]["patient"] == known.patient
    assert (found["study"]["study_date"], found["study"]["modalities"]) == ("20260105", ["CT", "MR"])
    assert found["counts"]["instances"] == 3
    assert found["counts"]["series"] == 2
    assert found["counts"]["by_sop_class"] == {"1.2.840.10008.5.1.4.1.1.2": 2, "1.2.840.10008.5.1.4.1.1.4": 1}
    assert {one["digest"] for one in found["instances"]} == {row.digest for row in going}
    assert {one["sop_instance_uid"] for one in found["instances"]} == {row.sop_instance_uid for row in going}
    assert all(one["file_bytes"] > 500 for one in found["instances"])
    assert found["site"]["profile"] == "liberal"
    (hold,) = found["notice"]["holds"]
    assert (hold["reason"], hold["placed_by"], hold["removed_by"]) == ("Expertise", "tester", "tester")
    assert found["destruction"]["decided_at"] == now.isoformat()
    assert found["rejection_note"] == {"sop_instance_uid": "2.25.99", "digest": "e" * 64, "title": "113039^DCM"}
    assert found["quarantined"] == [{"sop_instance_uid": going[0].sop_instance_uid, "digest": going[0].digest}]
    assert orjson.loads(orjson.dumps(found)) == found
    assert pdf(found).startswith(b"%PDF-")


def test_a_certificate_names_no_patient_but_by_identifier(archive: Archive) -> None:
    at(archive, "2026-01-05")
    send(archive, "one", "20260105", PatientName="SECRET^Prénom", PatientBirthDate="19991231")
    with archive.reading() as conn:
        pk = conn.execute(select(study.c.pk)).scalar_one()
        known = terms(conn, pk)
        assert known is not None
        found = certificate(
            conn, archive.settings, purge_id="p", known=known, instances=[], aside=[], note_uid="2.25.1",
            note_digest="", at=archive.clock(),
        )  # fmt: skip
    written = orjson.dumps(found)
    assert b"P-one" in written
    assert b"SECRET" not in written
    assert b"19991231" not in written


def test_paper_says_it_in_french_with_every_accent() -> None:
    text = text_of(pdf(paper() | {"finished_at": "2031-08-01T22:31:00+00:00"}))
    for said in (
        "Certificat de destruction",
        "Imagerie du Vœu – Élancourt — FINESS 780000001",
        "cabinet libéral : 5 ans — Annexe 5 §3.1",
        "Scanner < 3 mm & œdème — CT, SR",
        "5 janvier 2026",
        "2 août 2031 à 00:30 (heure de Paris)",
        "2 août 2031 à 00:31 (heure de Paris)",
        "3 instances dans 2 séries, 4,3 Mio",
        "3 × CT Image Storage",
        "Note de rejet DICOM 2.25.99",
        "page 1 / 2",
    ):
        assert said in text, said


def test_paper_names_every_instance_and_its_digest() -> None:
    body = paper(500)
    text = text_of(pdf(body))
    assert {one["sop_instance_uid"] for one in body["instances"]} <= set(text.split())
    assert {one["digest"] for one in body["instances"]} <= set(text.split())
    assert "Série 1.2.3.1 — 250 instances" in text
    last = text.count("Certificat de destruction 0b8a1f5e")
    assert f"page {last} / {last}" in text
    assert last > 10


def test_paper_tells_holds_approvals_and_what_lay_aside() -> None:
    hold = {
        "reason": "Expertise n° 12",
        "placed_by": "qualité",
        "placed_at": datetime.fromisoformat("2028-03-01T09:00:00+00:00"),
    }
    hold |= {"until": "20290101", "removed_by": None, "removed_at": None}
    approval = {"user": "alice", "at": "2031-07-20T08:00:00+00:00", "reason": "vu"}
    aside = [{"sop_instance_uid": "1.2.3.9", "digest": "f" * 64}]
    text = text_of(pdf(paper(holds=[hold], approvals=[approval], quarantined=aside)))
    assert "« Expertise n° 12 », par qualité, le 1er mars 2028 à 10:00 (heure de Paris)" in text
    assert "jusqu’au 1er janvier 2029 inclus" in text
    assert "alice, le 20 juillet 2031 à 10:00 (heure de Paris) : « vu »" in text
    assert "f" * 64 in text


def test_paper_is_the_same_for_the_same_certificate_and_tied_to_it() -> None:
    one = pdf(paper())
    assert pdf(orjson.loads(orjson.dumps(paper()))) == one
    assert pdf(paper(note_uid="2.25.98")) != one
    assert digest(paper()) in text_of(one)


def test_paper_carries_its_fonts() -> None:
    content = pdf(paper())
    assert content.count(b"/FontFile2") == 2
    assert b"/BaseFont /Helvetica" not in content.replace(
        b"/BaseFont /Helvetica /Encoding /WinAnsiEncoding /Name /F1", b""
    )


@pytest.mark.parametrize(("sop_class", "lossy"), [(DOSE, None), (CT, "1.2.3.4")])
def test_paper_marks_lossy_copies(sop_class: str, lossy: str | None) -> None:
    found = paper(1)
    found["instances"][0] |= {"sop_class_uid": sop_class, "derived_from": lossy}
    assert ("copie avec pertes" in text_of(pdf(found))) is (lossy is not None)

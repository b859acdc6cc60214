"""REQ-DCM-70: what was corrected leaves corrected, whatever it is asked as; the rest leaves as it lies."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pydicom
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGLSLossless
from sqlalchemy import select as sql_select
from sqlalchemy import update

from archive.access import Actor
from archive.core import Archive
from archive.dicom.header import read_header
from archive.dicom.transcode import targets
from archive.errors import NotAcceptable, StorageFailed
from archive.ingest import Outcome
from archive.outgoing import _changes, outgoing
from archive.retrieve import Stored, select
from archive.schema import instance
from tests.archive.dicom.correcting import correct, element, pn
from tests.archive.index.filling import fill
from tests.builders import ct_slice, data_set, new_uid, part10

MARTIN = {"00100010": pn("MARTIN^Zoé"), "00100020": element("LO", "IPP1")}
SAME = {"00100010": pn("DUPONT^Anne"), "00100020": element("LO", "IPP1"), "00100021": element("LO", "CABINET")}


def only(archive: Archive) -> Stored:
    [found] = select(archive, study_uids=[new_uid("study")])
    return found


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The headers that are looked at."""
    _changes.cache_clear()
    seen: list[object] = []

    def count(*args: object, **how: object) -> object:
        seen.append(how["offset"])
        return read_header(*args, **how)  # type: ignore[arg-type]

    monkeypatch.setattr("archive.outgoing.read_header", count)
    return seen


@pytest.mark.req("REQ-DCM-70")
def test_without_corrections_nothing_is_read_and_the_file_leaves(
    archive: Archive, actor: Actor, reads: list[object]
) -> None:
    ds = ct_slice()
    fill(archive, actor, ds)
    leaving = outgoing(archive, only(archive))
    assert leaving.intact(ExplicitVRLittleEndian)
    assert b"".join(leaving.data_set(ExplicitVRLittleEndian)) == data_set(ds)
    assert b"".join(leaving.file(ExplicitVRLittleEndian)) == Path(leaving.stored.path).read_bytes()
    assert not leaving.intact(ImplicitVRLittleEndian)
    assert reads == []


@pytest.mark.req("REQ-DCM-70")
def test_a_header_that_says_the_same_leaves_bit_for_bit(archive: Archive, actor: Actor) -> None:
    ds = ct_slice()
    fill(archive, actor, ds)
    correct(archive, "IPP1", SAME, accession="A1001")
    leaving = outgoing(archive, only(archive))
    assert leaving.stored.patient_corrections
    assert leaving.intact(ExplicitVRLittleEndian)
    assert b"".join(leaving.data_set(ExplicitVRLittleEndian)) == data_set(ds)
    assert "04000561" not in leaving.metadata(str)


@pytest.mark.req("REQ-DCM-70", "REQ-DCM-71")
@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, JPEGLSLossless]
)
def test_every_form_of_a_corrected_instance_says_the_same(archive: Archive, actor: Actor, syntax: str) -> None:
    ds = ct_slice(rows=32, columns=32, transfer_syntax=ExplicitVRLittleEndian if syntax == JPEGLSLossless else syntax)
    if syntax == JPEGLSLossless:
        ds.compress(syntax, generate_instance_uid=False)
    fill(archive, actor, ds)
    stored = only(archive)
    before = Path(stored.path).read_bytes()
    correct(archive, "IPP1", MARTIN, accession="A2002")
    leaving = outgoing(archive, only(archive))
    assert not leaving.intact(syntax)
    for target in (syntax, *targets(syntax)):
        file = pydicom.dcmread(io.BytesIO(b"".join(leaving.file(target))))
        assert file.file_meta.TransferSyntaxUID == target
        assert file.file_meta.MediaStorageSOPInstanceUID == file.SOPInstanceUID == ds.SOPInstanceUID
        assert (str(file.PatientName), file.AccessionNumber) == ("MARTIN^Zoé", "A2002")
        former = file.OriginalAttributesSequence[0].ModifiedAttributesSequence[0]
        assert (str(former.PatientName), former.AccessionNumber) == ("DUPONT^Anne", "A1001")
        whole = b"".join(leaving.file(target))
        assert whole.endswith(b"".join(leaving.data_set(target)))
    told = leaving.metadata(lambda path: f"bulk/{path}")
    assert told["00100010"] == pn("MARTIN^Zoé")
    [item] = told["04000561"]["Value"]  # type: ignore[index]
    assert item["04000550"]["Value"][0]["00100010"] == pn("DUPONT^Anne")
    assert item["04000565"]["Value"] == ["CORRECT"]  # the study's, which is not earlier
    assert told["7FE00010"]["BulkDataURI"] == "bulk/7FE00010"  # type: ignore[index]
    assert Path(stored.path).read_bytes() == before  # law 3
    assert archive.tier("hot").damage(
        os.path.relpath(stored.path, archive.hot.root),
        digest=stored.digest,
        file_bytes=stored.file_bytes,
        data_set_offset=stored.data_set_offset,
    ) in (None, "")


@pytest.mark.req("REQ-DCM-70")
def test_slices_that_say_the_same_cost_one_look(archive: Archive, actor: Actor, reads: list[object]) -> None:
    fill(archive, actor, *(ct_slice(number=number) for number in range(1, 9)), ct_slice(number=9, PatientSex="M"))
    correct(archive, "IPP1", MARTIN)
    found = select(archive, study_uids=[new_uid("study")])
    assert len({one.identity for one in found}) == 2
    assert not any(outgoing(archive, one).intact(ExplicitVRLittleEndian) for one in found)
    assert len(reads) == 2
    assert not any(outgoing(archive, one).intact(ExplicitVRLittleEndian) for one in found)
    assert len(reads) == 2
    correct(archive, "IPP1", SAME)  # other corrections: another look
    again = select(archive, study_uids=[new_uid("study")])
    assert all(outgoing(archive, one).intact(ExplicitVRLittleEndian) for one in again)
    assert len(reads) == 4


def test_an_instance_that_came_before_identities_were_kept_is_looked_at_itself(
    archive: Archive, actor: Actor, reads: list[object]
) -> None:
    fill(archive, actor, ct_slice(number=1), ct_slice(number=2))
    archive.commit.run(lambda conn: conn.execute(update(instance).values(identity=None)))
    correct(archive, "IPP1", MARTIN)
    for one in select(archive, study_uids=[new_uid("study")]):
        assert outgoing(archive, one).changes is not None
    assert len(reads) == 2
    with archive.reading() as conn:
        assert conn.execute(sql_select(instance.c.identity)).scalars().all() == [None, None]


def test_what_cannot_be_read_is_said(archive: Archive, actor: Actor) -> None:
    fill(archive, actor, ct_slice())
    correct(archive, "IPP1", MARTIN)
    _changes.cache_clear()
    stored = only(archive)
    leaving = outgoing(archive, stored)
    with pytest.raises(NotAcceptable):
        next(leaving.data_set("1.2.840.10008.1.2.4.50"))
    os.truncate(stored.path, stored.file_bytes - 10)
    waiting: list[Callable[[], object]] = [
        lambda: outgoing(archive, replace(stored, identity="other")).changes,
        lambda: b"".join(outgoing(archive, stored).file(ExplicitVRLittleEndian)),
        lambda: outgoing(archive, replace(stored, path="")).metadata(str),
    ]
    for one in waiting:
        with pytest.raises(StorageFailed):
            one()


@pytest.mark.req("REQ-DCM-15")
def test_what_we_gave_corrected_and_get_back_is_stored_already(archive: Archive, actor: Actor) -> None:
    stored = ct_slice(rows=32, columns=32)
    fill(archive, actor, stored)
    for attributes in (MARTIN, {**MARTIN, "00100010": pn("ŠIMEK"), "00100020": element("LO", "IPP2")}):
        correct(archive, "IPP1", attributes)
        leaving = outgoing(archive, only(archive))
        for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
            came = pydicom.dcmread(io.BytesIO(b"".join(leaving.file(syntax))))
            assert part10(came) != part10(stored)
            assert fill(archive, actor, came) == [Outcome.ALREADY_STORED]
    came.PatientComments = "and something else"
    assert fill(archive, actor, came) == [Outcome.QUARANTINED]
